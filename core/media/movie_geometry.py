"""How stored movie pictures are shown: turned, mirrored, cropped."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np

from core.media.clip import Window

_UPRIGHT = 1.0  # degrees from a right angle that are rounding, as FFmpeg takes it
_DEGENERATE = 0.1  # sine between the axes, below which a matrix shows no picture


@dataclass(frozen=True)
class Orientation:
    """How a stored picture is shown: first transposed, then flipped.

    Attributes:
        transposed: whether rows become columns.
        flip_rows: whether the bottom row comes first.
        flip_columns: whether the right column comes first.
        note: a sentence for the user, where this is not all that the movie asks for.
    """

    transposed: bool = False
    flip_rows: bool = False
    flip_columns: bool = False
    note: str = ""

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Returns a picture `[H, W, ...]` as it is shown, as a view."""
        if self.transposed:
            pixels = pixels.swapaxes(0, 1)
        return pixels[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


def orientation(picture: Any) -> Orientation:
    """Returns the orientation that a decoded picture's display matrix stands for.

    The nearest of the eight; the scale of a matrix is in the pixel aspect already. A matrix that
    shows nothing, such as all zeros, is ignored, as players do.

    Source:
        The matrix of ISO/IEC 14496-12, 8.3.2 (tkhd), with x to the right and y down.
    """
    data = picture.side_data.get("DISPLAYMATRIX")
    if data is None:
        return Orientation()
    a, b, _, c, d = struct.unpack("=9i", bytes(data))[:5]  # x axis to (a, b), y axis to (c, d)
    length_x, length_y = math.hypot(a, b), math.hypot(c, d)
    if length_x == 0 or length_y == 0 or abs(a * d - b * c) < _DEGENERATE * length_x * length_y:
        return Orientation(
            note="The movie's rotation is damaged: its frames are read as they are stored."
        )
    a, b, c, d = a / length_x, b / length_x, c / length_y, d / length_y
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    along = (abs(b), abs(c)) if transposed else (abs(a), abs(d))
    odd = max(math.degrees(math.acos(min(cosine, 1))) for cosine in along)
    note = ""
    if odd > _UPRIGHT:
        note = (
            f"The movie asks to be shown {odd:.0f} degrees off a right angle: its frames are "
            "turned to the nearest one. Export it upright if they should be turned fully."
        )
    if transposed:
        return Orientation(True, b < 0, c < 0, note)
    return Orientation(False, d < 0, a < 0, note)


def clean_aperture(path: str, track: int, width: int, height: int) -> Window | None:
    """Returns the part of the stored pictures that a QuickTime or MP4 track shows.

    Args:
        path: the movie.
        track: the track's id.
        width: of the stored pictures, px.
        height: likewise.

    Returns:
        None where the track shows all of them, or its `clap` box makes no sense.

    Source:
        ISO/IEC 14496-12, 12.1.4 (clap): a size, and the offset of its centre.
    """
    with open(path, "rb") as file:
        try:
            box = _clap(file, track)
            if box is None:
                return None
            numbers = struct.unpack(">4I", box[:16]) + struct.unpack(">iIiI", box[16:32])
            wide, high, right, down = (
                Fraction(numbers[place], numbers[place + 1]) for place in (0, 2, 4, 6)
            )
        except (struct.error, ZeroDivisionError):
            return None
    size = Window(
        math.floor((width - wide) / 2 + right + Fraction(1, 2)),
        math.floor((height - high) / 2 + down + Fraction(1, 2)),
        round(wide),
        round(high),
    )
    inside = size.x >= 0 and size.y >= 0 and size.width > 0 and size.height > 0
    inside &= size.x + size.width <= width and size.y + size.height <= height
    return size if inside and (size.width, size.height) != (width, height) else None


def _clap(file: BinaryIO, track: int) -> bytes | None:
    """Returns the content of the track's `clap` box."""
    file.seek(0, 2)
    for moov in _boxes(file, b"moov", 0, file.tell()):
        for trak in _boxes(file, b"trak", *moov):
            header = next(_boxes(file, b"tkhd", *trak), None)
            if header is None or _track_id(file, header[0]) != track:
                continue
            place = trak
            for name in (b"mdia", b"minf", b"stbl", b"stsd"):
                found = next(_boxes(file, name, *place), None)
                if found is None:
                    return None
                place = found
            file.seek(place[0] + 8)  # after version, flags and count: the first sample entry
            (size,) = struct.unpack(">I", file.read(4))
            entry = place[0] + 8
            clap = next(_boxes(file, b"clap", entry + 86, entry + size), None)
            if clap is not None:
                file.seek(clap[0])
                return file.read(32)
    return None


def _track_id(file: BinaryIO, start: int) -> int:
    file.seek(start)
    version = file.read(1)[0:1]
    file.seek(start + (20 if version == b"\1" else 12))
    return int(struct.unpack(">I", file.read(4))[0])


def _boxes(file: BinaryIO, name: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yields where the content of the boxes of a name starts and ends."""
    while start + 8 <= end:
        file.seek(start)
        size, found = struct.unpack(">I4s", file.read(8))
        content = start + 8
        if size == 1:
            (size,) = struct.unpack(">Q", file.read(8))
            content += 8
        stop = end if size == 0 else start + size
        if stop < content or stop > end:
            return
        if found == name:
            yield content, stop
        start = stop
