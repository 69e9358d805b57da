"""What can be wrong with a clip, and the limits of its size.

ClipError
    ClipNotFoundError, ClipNotReadableError, MissingFramesError, TooLargeError,
    WriteFailedError
    FrameError (names the frame)
        UnreadableFrameError, BadPixelsError, UnsupportedChannelsError, FormatChangeError
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from core.base.errors import ReenactError
from core.media.numbering import format_numbers

MAX_SIDE = 32768
MAX_PIXELS = 2**27  # 134 million; the largest cinema cameras make 80
MAX_RANGE = 1_000_000  # frames: 11 hours at 24 fps


class ClipError(ReenactError):
    """Something is wrong with a clip; the message says what, where and what to do."""


class ClipNotFoundError(ClipError):
    """Nothing at the path, or several sequences where one was meant."""


class ClipNotReadableError(ClipError):
    """The path exists, but it may not be read, or is neither picture nor movie."""


class MissingFramesError(ClipError):
    """Frames that were asked for do not exist.

    Attributes:
        numbers: the missing frame numbers, sorted.
    """

    def __init__(self, path: str, numbers: Iterable[int], range_there: str) -> None:
        self.numbers = tuple(sorted(numbers))
        super().__init__(
            f"{path} has no frame {format_numbers(self.numbers)}; there are {range_there}. "
            "Render the missing ones or change the range."
        )


class FrameError(ClipError):
    """Trouble with one frame.

    Attributes:
        path: its file.
        number: its frame number; None while writing.
    """

    def __init__(self, path: str | Path, number: int | None, trouble: str) -> None:
        self.path = str(path)
        self.number = number
        super().__init__(f"{'Picture' if number is None else f'Frame {number}'} ({path}) {trouble}")


class UnreadableFrameError(FrameError):
    """Truncated, damaged, or gone since the clip was opened."""


class BadPixelsError(FrameError):
    """NaN or infinite pixels.

    Attributes:
        count: how many pixels have one.
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
    """A header that claims more pixels, or a range more frames, than any real clip has."""


class UnsupportedChannelsError(FrameError):
    """No plain RGB (or one luminance channel) in the picture."""


class FormatChangeError(FrameError):
    """A frame whose size is not that of the clip."""


class WriteFailedError(ClipError):
    """The file could not be written; nothing is left behind, and an older file is untouched."""
