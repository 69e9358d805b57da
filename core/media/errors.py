"""What can be wrong with a clip.

    core.base.errors.ReenactError
    └── ClipError                      the message says what, where and what to do
        ├── ClipNotFoundError          no such path, or several sequences where one is needed
        ├── ClipNotReadableError       no permission, or neither a picture nor a movie
        ├── MissingFramesError         numbers: frames that do not exist
        ├── TooLargeError              more pixels or frames than any real clip has
        ├── WriteFailedError           a full disk, no permission
        └── FrameError                 path, number: one frame
            ├── UnreadableFrameError   truncated, damaged, or gone since the clip was opened
            ├── BadPixelsError         count: pixels that are NaN or infinite
            ├── UnsupportedChannelsError   neither RGB nor luminance
            └── FormatChangeError      its size is not the clip's

`core.media.colour.ColourError`, a colour space or a config that cannot be used, is a ReenactError
beside these.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from core.base.errors import ReenactError
from core.media.numbering import format_numbers


class ClipError(ReenactError):
    """Something is wrong with a clip; the message says what, where and what to do."""


class ClipNotFoundError(ClipError):
    """There is nothing at the path, or there are several sequences where one is needed."""


class ClipNotReadableError(ClipError):
    """The path exists, but may not be read, or is neither a picture nor a movie."""


class MissingFramesError(ClipError):
    """Requested frames do not exist.

    Attributes:
        numbers: the missing frame numbers, sorted.
    """

    def __init__(self, path: str, numbers: Iterable[int], existing: str) -> None:
        self.numbers = tuple(sorted(numbers))
        super().__init__(
            f"{path} has no frame {format_numbers(self.numbers)}; there are {existing}. "
            "Render the missing ones or change the range."
        )


class FrameError(ClipError):
    """A problem with one frame.

    Attributes:
        path: its file.
        number: its frame number; None for a file that is being written.
    """

    def __init__(self, path: str | Path, number: int | None, problem: str) -> None:
        self.path = str(path)
        self.number = number
        super().__init__(f"{'Picture' if number is None else f'Frame {number}'} ({path}) {problem}")


class UnreadableFrameError(FrameError):
    """The frame is truncated, damaged, or gone since the clip was opened."""


class BadPixelsError(FrameError):
    """A picture has NaN or infinite pixels.

    Attributes:
        count: number of pixels with at least one such channel.
    """

    def __init__(self, path: str | Path, number: int | None, count: int) -> None:
        self.count = count
        super().__init__(
            path,
            number,
            f"has {count} pixel{'s' * (count != 1)} with NaN or infinity. "
            "Clean them upstream, for example by a Clamp or an Expression node.",
        )


class TooLargeError(ClipError):
    """A header claims more pixels, or a range more frames, than any real clip has."""


class UnsupportedChannelsError(FrameError):
    """The picture has neither plain R, G, B channels nor one luminance channel."""


class FormatChangeError(FrameError):
    """The frame's size is not that of the clip."""


class WriteFailedError(ClipError):
    """The file could not be written. No partial file is left, and an older file is untouched."""


def check_finite(pixels: np.ndarray, path: str | Path, number: int | None) -> None:
    """Refuses NaN and infinity.

    Args:
        pixels: `[H, W, C]`.
        path: the picture's file, for the message.
        number: its frame number; None for a file that is being written.

    Raises:
        BadPixelsError: a channel of some pixel is not finite.
    """
    finite = np.isfinite(pixels)
    if not finite.all():
        raise BadPixelsError(path, number, int(np.count_nonzero(~finite.all(axis=2))))


def first_sentence(reason: str | None) -> str:
    """Returns the first line of a library's message as a sentence with a full stop."""
    first = (reason or "").strip().splitlines()[:1]
    return f"{first[0].rstrip('.')}." if first else "no reason is known."
