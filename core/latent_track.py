"""Latent tracks (`NAME.latents`): one code per frame, and all that is known of how it came about.

The file is safetensors: arrays by the names of `LatentTrack`'s fields (`losses.NAME` and
`quality.NAME` for the two tables), and a header of strings: `format` ("reenact.latents"),
`version`, `track` (the other fields, as JSON) and `sha256` over all of it. Reading and writing
need numpy and safetensors, no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from core.errors import ReenactError
from core.files import atomic_write

FORMAT = "reenact.latents"
VERSION = 1

_TABLES = ("losses", "quality")


class NotATrack(ReenactError):
    """The file is not a latent track that can be loaded here."""


class OtherCharacter(ReenactError):
    """The track was solved for another character."""


class TrackNotWritten(ReenactError):
    """The track could not be written; what stood there before still does."""


class FrameState(IntEnum):
    """Where the code of a frame comes from."""

    PENDING = 0  # not solved yet; NaN
    SOLVED = 1
    INTERPOLATED = 2  # no face in the frame: between the solved frames before and after
    HELD = 3  # no face for long, or at the end of a shot: that of the nearest solved frame
    NO_FACE = 4  # no face in the whole shot: the centre of P


@dataclass(frozen=True, eq=False)
class LatentTrack:
    """Codes of F frames for a character of N anchors and a generator of L rows."""

    character: str  # hash of the character's file
    numbers: np.ndarray  # [F] int64, real frame numbers, increasing
    state: np.ndarray  # [F] uint8, FrameState
    cut: np.ndarray  # [F] bool, true on the first frame of a new shot
    alpha: np.ndarray  # [F, N] float32, weights of the anchors, meant over the rows
    delta: np.ndarray  # [F, L, N] float32, each row's own offset from them
    codes: np.ndarray  # [F, L, 512] float32, w+ as solved: (alpha + delta) @ anchors
    smooth: np.ndarray  # [F, L, 512] float32, w+ after the low-pass over time: what is rendered
    landmarks: np.ndarray  # [F, 478, 3] float32, driving face, plate px; NaN where there is none
    quads: np.ndarray  # [F, 4, 2] float64, aligned square, plate px; NaN where there is none
    losses: Mapping[str, np.ndarray]  # term -> [F] float32, unweighted; NaN where none was solved
    quality: Mapping[str, np.ndarray]  # measure -> [F] float32; NaN where there is none
    settings: Mapping[str, Any]  # those of the solver, plain JSON
    source: str = ""  # the driving clip
    fps: float = 24.0
    plate: tuple[int, int] = (0, 0)  # width and height of the driving clip, px
    pixel_aspect: float = 1.0
    task: str = ""  # hash of what was to be solved: says whether a partial track is of this task
    created: str = ""  # ISO 8601
    notes: tuple[str, ...] = field(default=())  # sentences for the user

    @property
    def complete(self) -> bool:
        """Whether every frame has its final code; a solve that was stopped leaves NaN."""
        return bool(np.isfinite(self.smooth).all())

    @property
    def weights(self) -> np.ndarray:
        """[F, L, N] float32, barycentric coordinates of every row in P+."""
        return self.alpha[:, None] + self.delta

    def index(self, number: int) -> int:
        """The row of a frame number.

        Raises:
            KeyError: the track has no such frame.
        """
        i = int(np.searchsorted(self.numbers, number))
        if i == len(self.numbers) or self.numbers[i] != number:
            raise KeyError(f"The track has no frame {number}.")
        return i


_ARRAYS = {
    "numbers": ("int64", "F"),
    "state": ("uint8", "F"),
    "cut": ("bool", "F"),
    "alpha": ("float32", "FN"),
    "delta": ("float32", "FLN"),
    "codes": ("float32", "FLW"),
    "smooth": ("float32", "FLW"),
    "landmarks": ("float32", "FP3"),
    "quads": ("float64", "F42"),
}


def save_track(path: str | Path, track: LatentTrack) -> None:
    """Writes a track, atomically.

    Raises:
        ValueError: arrays whose shapes or types don't fit together.
        TrackNotWritten: what the file system said; an older file at `path` is untouched.
    """
    arrays = {name: np.ascontiguousarray(getattr(track, name)) for name in _ARRAYS}
    for table in _TABLES:
        for name, values in getattr(track, table).items():
            arrays[f"{table}.{name}"] = np.ascontiguousarray(values)
    _check(arrays)
    plain = {
        f.name: getattr(track, f.name)
        for f in fields(track)
        if f.name not in _ARRAYS and f.name not in _TABLES
    }
    header = {
        "format": FORMAT,
        "version": str(VERSION),
        "track": json.dumps(plain, allow_nan=False),
    }
    header["sha256"] = _digest(header, arrays)
    try:
        with atomic_write(path) as temporary:
            save_file(arrays, temporary, header)
    except (OSError, SafetensorError) as error:
        raise TrackNotWritten(
            f"{path} could not be written: {error}. Check the free space and your rights in that "
            "folder, and run again."
        ) from error


def load_track(path: str | Path, character: str | None = None) -> LatentTrack:
    """Reads a track.

    Args:
        path: the file.
        character: hash of the character that it is to be used with; None takes any.

    Raises:
        NotATrack: no such file, another kind of file, a damaged or a newer one.
        OtherCharacter: the track was solved for another character.
    """
    try:
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise NotATrack(f"{path} is a safetensors file, but not a latent track.")
            if not header.get("version", "").isdecimal():
                raise NotATrack(f"{path} is damaged: it has no version. Solve it again.")
            if int(header["version"]) > VERSION:
                raise NotATrack(
                    f"{path} was written by a newer Reenact. Update this one to load it."
                )
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError, AttributeError) as error:  # the latter: bfloat16
        raise NotATrack(
            f"{path} can't be read as a latent track: {error}. If it was cut off while being "
            "copied, copy it again."
        ) from error
    if header.pop("sha256", None) != _digest(header, arrays):
        raise NotATrack(f"{path} is damaged: its contents are not those that were written.")
    try:
        _check(arrays)
        plain = json.loads(header["track"])
        for name in ("plate", "notes"):
            plain[name] = tuple(plain[name])
        tables: dict[str, Any] = {
            table: {
                name.partition(".")[2]: values
                for name, values in arrays.items()
                if name.startswith(f"{table}.")
            }
            for table in _TABLES
        }
        track = LatentTrack(**plain, **{name: arrays[name] for name in _ARRAYS}, **tables)
    except (KeyError, TypeError, ValueError) as error:
        raise NotATrack(f"{path} is damaged: {error}. Solve it again.") from error
    if character is not None and character != track.character:
        raise OtherCharacter(
            f"{path} was solved for the character {track.character[:12]}, not for "
            f"{character[:12]}. Choose the character it belongs to, or solve it again; its codes "
            "mean other pictures elsewhere, unless both come from the same base."
        )
    return track


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


def _digest(header: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 over the header (without its own) and all arrays."""
    digest = hashlib.sha256(json.dumps(dict(header), sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
