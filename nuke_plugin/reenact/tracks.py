"""Reads what Nuke needs of latent tracks: frames, quality measures, and where the faces are."""

import array
import contextlib
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from reenact import exr
from reenact.container import PathLike, open_container

Point = Tuple[float, float]
Corners = Tuple[Point, Point, Point, Point]  # bottom left, bottom right, top right, top left
Values = Callable[[str, str], "array.array[Any]"]  # reads an array by its name and type code


@dataclass(frozen=True)
class FaceQuads:
    """Where the aligned square lies in the plate.

    Pixels are Nuke's: continuous (the centre of the first one is 0.5), origin bottom left.

    Attributes:
        corners: by frame; frames without a face are absent.
        crop: side of an aligned crop without detail, px.
        plate: width and height, px.
        pixel_aspect: width of a plate pixel over its height.
    """

    corners: Dict[int, Corners]
    crop: int
    plate: Tuple[int, int]
    pixel_aspect: float

    def scaled_to(self, plate: Tuple[int, int]) -> "FaceQuads":
        """Returns where they lie once the plate is scaled to another width and height, px."""
        x, y = plate[0] / self.plate[0], plate[1] / self.plate[1]
        corners: Dict[int, Corners] = {}
        for number, quad in self.corners.items():
            a, b, c, d = ((x * corner[0], y * corner[1]) for corner in quad)
            corners[number] = (a, b, c, d)
        return FaceQuads(corners, self.crop, plate, self.pixel_aspect * y / x)


def numbers(path: PathLike) -> List[int]:
    """Returns the frames of a track (`core.solve.latent_track`), increasing.

    Raises:
        OSError: the file can't be read.
        ValueError: the file is not a track.
    """
    with _open(path) as (_, values):
        return list(values("numbers", "q"))


def quality(path: PathLike) -> Dict[str, Dict[int, float]]:
    """Returns a track's quality measures: name -> frame -> value.

    Frames without a value are absent.

    Raises:
        OSError, ValueError: as `numbers`.
    """
    with _open(path) as (header, values):
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


def face_quads(path: PathLike) -> FaceQuads:
    """Returns where a track's faces are.

    Raises:
        OSError, ValueError: as `numbers`.
    """
    with _open(path) as (header, values):
        plate = json.loads(header["__metadata__"]["track"])
        width, height = plate["plate"]
        layers = header["codes"]["shape"][1]  # two for each resolution, from 4 px on
        frames, flat = values("numbers", "q"), values("quads", "d")
    corners: Dict[int, Corners] = {}
    for i, number in enumerate(frames):
        quad = flat[8 * i : 8 * i + 8]  # top left, bottom left, bottom right, top right; y down
        if all(map(math.isfinite, quad)):
            points: List[Point] = [(quad[2 * k], height - quad[2 * k + 1]) for k in (1, 2, 3, 0)]
            corners[number] = (points[0], points[1], points[2], points[3])
    return FaceQuads(corners, 2 << (layers // 2), (width, height), plate["pixel_aspect"])


def crop_side(track: PathLike, character: PathLike) -> Optional[int]:
    """Returns the side of a track's aligned crops, px.

    That is the side of those beside the track, else of the pictures that the character's detail
    makes; None if there is neither.

    Raises:
        OSError, ValueError, KeyError: a file can't be read.
    """
    crop = next(Path(track).parent.glob("crops/*.exr"), None)
    if crop is not None:
        return exr.size(exr.headers(crop)[0])[0]
    with open_container(character, "thumbnail") as (header, _):
        detail = json.loads(header["__metadata__"].get("detail", "null"))
    return None if detail is None else int(detail["shape"]["resolution"])


@contextlib.contextmanager
def _open(path: PathLike) -> Iterator[Tuple[Dict[str, Any], Values]]:
    """Opens a track; yields its header and a function that reads its arrays."""
    with open_container(path, "numbers") as (header, read):

        def values(name: str, type_code: str) -> "array.array[Any]":
            numbers = array.array(type_code)
            numbers.frombytes(read(name))
            if sys.byteorder == "big":
                numbers.byteswap()
            return numbers

        yield header, values
