"""Latent tracks as far as Nuke looks into them."""

import array
import contextlib
import json
import math
import sys
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Tuple

from reenact.sealed import PathLike, opened

Point = Tuple[float, float]
Corners = Tuple[Point, Point, Point, Point]  # bottom left, bottom right, top right, top left
Values = Callable[[str, str], "array.array[Any]"]  # an array's values by its name and type code


@dataclass(frozen=True)
class Places:
    """Where the aligned square lies in the plate, in Nuke's pixels: continuous (the centre of the
    first one is 0.5), origin bottom left.

    Attributes:
        corners: by frame; frames without a face are left out.
        crop: side of an aligned crop, px.
        plate: width and height, px.
        pixel_aspect: width of a plate pixel over its height.
    """

    corners: Dict[int, Corners]
    crop: int
    plate: Tuple[int, int]
    pixel_aspect: float


def numbers(path: PathLike) -> List[int]:
    """The frames of a track (`core.solve.latent_track`), increasing.

    Raises:
        OSError: the file can't be read.
        ValueError: it is no track.
    """
    with _opened(path) as (_, values):
        return list(values("numbers", "q"))


def quality(path: PathLike) -> Dict[str, Dict[int, float]]:
    """Per-frame measures of a track: name -> frame -> value.

    Frames without a value are left out.

    Raises:
        OSError, ValueError: as `numbers`.
    """
    with _opened(path) as (header, values):
        frames = values("numbers", "q")
        measures = [name for name in header if name.startswith("quality.")]
        return {
            name.partition(".")[2]: {
                number: value
                for number, value in zip(frames, values(name, "f"))
                if math.isfinite(value)
            }
            for name in sorted(measures)
        }


def places(path: PathLike) -> Places:
    """Where a track's faces are.

    Raises:
        OSError, ValueError: as `numbers`.
    """
    with _opened(path) as (header, values):
        facts = json.loads(header["__metadata__"]["track"])
        width, height = facts["plate"]
        rows = header["codes"]["shape"][1]  # two for each resolution of the generator, from 4 px on
        frames, flat = values("numbers", "q"), values("quads", "d")
    corners: Dict[int, Corners] = {}
    for i, number in enumerate(frames):
        quad = flat[8 * i : 8 * i + 8]  # top left, bottom left, bottom right, top right; y down
        if all(map(math.isfinite, quad)):
            points: List[Point] = [(quad[2 * k], height - quad[2 * k + 1]) for k in (1, 2, 3, 0)]
            corners[number] = (points[0], points[1], points[2], points[3])
    return Places(corners, 2 << (rows // 2), (width, height), facts["pixel_aspect"])


@contextlib.contextmanager
def _opened(path: PathLike) -> Iterator[Tuple[Dict[str, Any], Values]]:
    """The header of a track's file, and what reads its arrays."""
    with opened(path, "numbers") as (header, read):

        def values(name: str, kind: str) -> "array.array[Any]":
            made = array.array(kind)
            made.frombytes(read(name))
            if sys.byteorder == "big":
                made.byteswap()
            return made

        yield header, values
