"""Latent tracks (`NAME.latents`): one code per frame, and how it was found.

The file is a container (`core.base.container`) of format "reenact.latents": the arrays under the
names of `LatentTrack`'s fields (`losses.NAME` and `quality.NAME` for the two tables), and all other
fields as JSON in the header's entry `track`. Reading and writing need no torch.

Files of version 4 are read too. They call `neutral_offset` `rest` and the setting `neutral_steps`
`rest_steps`, and have no `phase`: NaN in `rest` says that the neutral offset is still to be found.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum, IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.base import container
from core.base.errors import ReenactError

if TYPE_CHECKING:
    from core.media.clip import Clip

FORMAT = "reenact.latents"
VERSION = 5
OLDEST = 4  # version that is still read

_TABLES = ("losses", "quality")


class NotATrackError(ReenactError):
    """The file is not a latent track that can be loaded."""


class CharacterMismatchError(ReenactError):
    """The track was solved for another character."""


class PlateMismatchError(ReenactError):
    """The plate is not the one on which the track was solved."""


class TrackNotWrittenError(ReenactError):
    """The track could not be written; an older file in its place is untouched."""


class FrameState(IntEnum):
    """Where the code of a frame comes from."""

    PENDING = 0  # not solved yet: NaN, or a keyframe's code of the neutral pass
    SOLVED = 1
    INTERPOLATED = 2  # no face in the frame: between the solved frames before and after
    HELD = 3  # no face for long, or at the end of a shot: the code of the nearest solved frame
    NO_FACE = 4  # no face in the whole shot: the centre of P
    REPAIRED = 5  # from other frames' codes, by a repair (core/edit/repair.py)


class Phase(str, Enum):
    """Which pass of the solver a track is in. The values are on disk."""

    NEUTRAL = "neutral"  # keyframes are solved to find the neutral offset
    SOLVE = "solve"  # the neutral offset is known, all frames are solved with it


@dataclass(frozen=True, eq=False)
class LatentTrack:
    """Codes of F frames for a character of N anchors and a generator of L layers."""

    character: str  # hash of the character's file
    numbers: np.ndarray  # [F] int64, real frame numbers, increasing
    state: np.ndarray  # [F] uint8, FrameState
    cut: np.ndarray  # [F] bool, true on the first frame of a new shot
    alpha: np.ndarray  # [F, N] float32, weights of the anchors, averaged over the layers
    delta: np.ndarray  # [F, L, N] float32, each layer's own offset from them
    codes: np.ndarray  # [F, L, 512] float32, w+ as solved: (alpha + delta) @ anchors
    smooth: np.ndarray  # [F, L, 512] float32, w+ after the low-pass over time: what is rendered
    # [86, 3] float32, px of the 192 px crop, added to the driving keypoints: how the character's
    # neutral face differs in shape from the driver's. An estimate while the phase is NEUTRAL.
    neutral_offset: np.ndarray
    landmarks: np.ndarray  # [F, 478, 3] float32, driving face, plate px; NaN where there is none
    quads: np.ndarray  # [F, 4, 2] float64, aligned square, plate px; NaN where there is none
    amount: np.ndarray  # [F] float32, 0..1: opacity of the face over the plate
    losses: Mapping[str, np.ndarray]  # term -> [F] float32, unweighted; NaN where none was solved
    quality: Mapping[str, np.ndarray]  # measure -> [F] float32; NaN where there is none
    settings: Mapping[str, Any]  # `core.solve.settings.SolveSettings`, plain JSON
    phase: Phase = Phase.SOLVE
    source: str = ""  # the driving clip
    fps: float = 24.0
    plate: tuple[int, int] = (0, 0)  # width and height of the driving clip, px
    pixel_aspect: float = 1.0
    task: str = ""  # hash of what was to be solved: a partial track of another one is not resumed
    created: str = ""  # ISO 8601
    notes: tuple[str, ...] = field(default=())  # sentences for the user
    parent: str = ""  # hash of the track that it was made from; empty where it was solved
    recipe: tuple[Mapping[str, Any], ...] = ()  # what was done to the parent, in order, plain JSON
    hash: str = ""  # of the file that it was read from

    @property
    def complete(self) -> bool:
        """Whether every frame has its final code; an interrupted solve leaves NaN."""
        return bool(np.isfinite(self.smooth).all())

    @property
    def weights(self) -> np.ndarray:
        """[F, L, N] float32, barycentric coordinates of every layer in P+."""
        return self.alpha[:, None] + self.delta

    def index(self, number: int) -> int:
        """Returns a frame number's place in the arrays.

        Raises:
            KeyError: the track has no such frame.
        """
        i = int(np.searchsorted(self.numbers, number))
        if i == len(self.numbers) or self.numbers[i] != number:
            raise KeyError(f"The track has no frame {number}.")
        return i

    def check_plate(self, plate: Clip) -> None:
        """Refuses a clip of another size, such as a proxy or another shot.

        Raises:
            PlateMismatchError: its size is not that of the track's plate.
        """
        size = (plate.width, plate.height)
        if size != tuple(self.plate):
            raise PlateMismatchError(
                f"{plate.shown} is {size[0]}x{size[1]}, the track was solved on "
                f"{self.plate[0]}x{self.plate[1]}. Choose the clip it was solved on."
            )


_LARGEST = 1e6  # a code, or a place in the plate, px
_SMALLEST = 1e-3  # side of a face or of its square, px
_ARRAYS = {
    "numbers": ("int64", "F"),
    "state": ("uint8", "F"),
    "cut": ("bool", "F"),
    "alpha": ("float32", "FN"),
    "delta": ("float32", "FLN"),
    "codes": ("float32", "FLW"),
    "smooth": ("float32", "FLW"),
    "neutral_offset": ("float32", "K3"),
    "landmarks": ("float32", "FP3"),
    "quads": ("float64", "F42"),
    "amount": ("float32", "F"),
}


def save_track(path: str | Path, track: LatentTrack) -> None:
    """Writes a track, atomically.

    Raises:
        ValueError: the arrays' shapes or types don't fit together.
        TrackNotWrittenError: the file system refused; an older file at `path` is untouched.
    """
    arrays = {name: np.ascontiguousarray(getattr(track, name)) for name in _ARRAYS}
    for table in _TABLES:
        for name, values in getattr(track, table).items():
            arrays[f"{table}.{name}"] = np.ascontiguousarray(values)
    _check(arrays)
    plain = {
        f.name: getattr(track, f.name)
        for f in fields(track)
        if f.name not in _ARRAYS and f.name not in _TABLES and f.name != "hash"
    }
    try:
        container.write(
            path, FORMAT, VERSION, {"track": json.dumps(plain, allow_nan=False)}, arrays
        )
    except OSError as error:
        raise TrackNotWrittenError(
            f"{path} could not be written: {error}. Check the free space and your rights in that "
            "folder, and run again."
        ) from error


def load_track(path: str | Path, character: str | None = None) -> LatentTrack:
    """Reads a track.

    Args:
        path: the file.
        character: hash of the character that it is to be used with; None accepts any.

    Raises:
        NotATrackError: there is no such file, or it is of another kind, damaged, newer, or older
            than version 4.
        CharacterMismatchError: the track was solved for another character.
    """
    header, arrays = container.read(path, FORMAT, VERSION, NotATrackError, "latent track", OLDEST)
    try:
        plain = container.parse(header["track"])
        if int(header["version"]) == 4:
            _rename_version_4(plain, arrays)
        _check(arrays)
        _check_values(arrays)
        plain["phase"] = Phase(plain["phase"])
        for name in ("plate", "notes", "recipe"):
            plain[name] = tuple(plain[name])
        plain["hash"] = header["sha256"]
        plain |= {name: arrays[name] for name in _ARRAYS}
        plain |= {
            table: {
                name.partition(".")[2]: values
                for name, values in arrays.items()
                if name.startswith(f"{table}.")
            }
            for table in _TABLES
        }
        track = container.record(LatentTrack, plain)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotATrackError(f"{path} is damaged: {error}. Solve it again.") from error
    if character is not None and character != track.character:
        raise CharacterMismatchError(
            f"{path} was solved for the character {track.character[:12]}, not for "
            f"{character[:12]}. Choose the character it belongs to, or solve it again; its codes "
            "mean other pictures elsewhere, unless both come from the same base."
        )
    return track


def _rename_version_4(plain: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Brings what a file of version 4 holds under today's names, in place."""
    offset = arrays.pop("rest")
    found = bool(np.isfinite(offset).all())
    plain["phase"] = (Phase.SOLVE if found else Phase.NEUTRAL).value
    arrays["neutral_offset"] = offset if found else np.zeros_like(offset)
    if "rest_steps" in plain["settings"]:
        plain["settings"] = {
            "neutral_steps" if name == "rest_steps" else name: value
            for name, value in plain["settings"].items()
        }


def _check(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError where arrays are missing, of another type, or don't fit together."""
    sizes: dict[str, int] = {}
    expected = dict(_ARRAYS)
    for name in arrays:
        if name.partition(".")[0] in _TABLES:
            expected[name] = ("float32", "F")
    unknown, absent = set(arrays) - set(expected), set(expected) - set(arrays)
    if unknown or absent:
        raise ValueError(f"its arrays are not a track's ({', '.join(sorted(unknown | absent))})")
    for name, (kind, shape) in expected.items():
        array = arrays[name]
        if array.dtype != kind or array.ndim != len(shape):
            raise ValueError(f"{name} is {array.dtype} {[*array.shape]}")
        for axis, size in zip(shape, array.shape, strict=True):
            if size != (int(axis) if axis.isdigit() else sizes.setdefault(axis, size)):
                raise ValueError(f"{name} {[*array.shape]} does not fit the other arrays")
    if (np.diff(arrays["numbers"]) <= 0).any():
        raise ValueError("frame numbers don't increase")
    if not np.isin(arrays["state"], list(FrameState)).all():
        raise ValueError("there are unknown frame states")
    if not ((arrays["amount"] >= 0) & (arrays["amount"] <= 1)).all():
        raise ValueError("amounts are not between 0 and 1")


def _check_values(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError where values can't be a track's, as those of a script that failed."""
    for name in ("alpha", "delta", "codes", "smooth", "landmarks", "quads"):
        rows = arrays[name].reshape(len(arrays[name]), math.prod(arrays[name].shape[1:]))
        absent = np.isnan(rows).all(1)  # not solved, or no face
        wrong = ~absent & ~(np.abs(rows) < _LARGEST).all(1)  # also where some are NaN
        if wrong.any():
            frame = arrays["numbers"][wrong][0]
            raise ValueError(f"{name} of frame {frame} are not finite, or far too large")
    edges = np.diff(arrays["quads"], axis=1)
    turns = edges[:, :-1, 0] * edges[:, 1:, 1] - edges[:, :-1, 1] * edges[:, 1:, 0]
    sides = np.ptp(arrays["landmarks"][..., :2], axis=1)
    for name, sizes in (("square", np.sqrt(np.abs(turns))), ("face", sides)):
        flat = (sizes < _SMALLEST).any(1)
        if flat.any():
            raise ValueError(f"the {name} of frame {arrays['numbers'][flat][0]} has no size")
