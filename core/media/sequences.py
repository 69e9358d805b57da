"""Finding the files of a sequence on disk."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.media.clip import MAX_RANGE, PICTURES
from core.media.errors import (
    ClipNotFoundError,
    ClipNotReadableError,
    MissingFramesError,
    TooLargeError,
)
from core.media.numbering import (
    as_pattern,
    format_numbers,
    frame_path,
    is_pattern,
    matching_numbers,
)


def check_file(path: str) -> None:
    """Checks that a file can be read, because the libraries do not say why one can't.

    Raises:
        ClipNotFoundError: there is no such file.
        ClipNotReadableError: it may not be read, or is a folder, a pipe or a device.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait forever
            raise ClipNotReadableError(f"{path} is not a file. Choose a picture or a movie.")
        with open(path, "rb"):
            pass
    except FileNotFoundError as error:
        raise ClipNotFoundError(f"There is no {path}.") from error
    except OSError as error:
        raise ClipNotReadableError(
            f"{path} can't be read: {error.strerror}. Ask for the right to read it."
        ) from error


def _sequences(folder: Path) -> dict[str, list[int]]:
    """Returns the numbered pictures of a folder: pattern with # -> sorted numbers."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in os.listdir(folder):
        split = _split_number(name)
        if split:
            found.setdefault((split[0], split[2]), []).append(split[1])
    sequences: dict[str, list[int]] = {}
    for (head, tail), texts in found.items():
        # A leading zero shows the padding; other numbers join the widest padding they satisfy.
        padded = sorted({len(text) for text in texts if text.lstrip("-").startswith("0")})
        loose = [len(text) for text in texts if bisect_right(padded, len(text)) == 0]
        for text in texts:
            fits = bisect_right(padded, len(text))
            width = padded[fits - 1] if fits else min(loose)
            sequences.setdefault(f"{head}{'#' * width}{tail}", []).append(int(text))
    return {pattern: sorted(numbers) for pattern, numbers in sorted(sequences.items())}


def _split_number(name: str) -> tuple[str, str, str] | None:
    """Splits "shot.1001.exr" into "shot.", "1001" and ".exr"; None for a name without a number.

    The number stands right before the suffix, or else between dots: "shot.1001.beauty.exr". "_v002"
    is a version, not a number.
    """
    stem, suffix = os.path.splitext(name)
    if suffix.lower() not in PICTURES or name.startswith(".") or "#" in name:
        return None
    match = re.fullmatch(r"(.*?)((?:(?<=[._])-)?\d+)", stem, re.DOTALL)
    if match is not None and not re.search(r"(?:^|[._-])[vV]$", match[1]):
        return match[1], match[2], suffix
    match = re.fullmatch(r"(.*\.)(-?\d+)(\..*)", stem, re.DOTALL)
    return None if match is None else (match[1], match[2], match[3] + suffix)


@dataclass(frozen=True)
class Found:
    """What a path stands for.

    Attributes:
        path: the sequence's pattern with #, or the still.
        numbers: of the sequence, sorted; None for a still.
        named: the number of the one file of the sequence that the path names, if it does.
    """

    path: str
    numbers: list[int] | None
    named: int | None = None


def find_sequence(text: str) -> Found:
    """Finds the sequence or the still that a path stands for.

    Args:
        text: a pattern with # or %04d, a file of a sequence, a still, or a folder with exactly one
            sequence.

    Raises:
        ClipNotFoundError: there is nothing of the kind; the message lists what is nearby.
        ClipNotReadableError: a folder may not be read.
    """
    folder, name = os.path.split(text)
    pattern = as_pattern(text)
    try:
        if os.path.isdir(text):
            return _only_sequence(Path(text))
        if os.path.exists(text):
            return _sequence_of(folder, name)
        if is_pattern(pattern) and os.path.isdir(folder or "."):
            numbers = matching_numbers(pattern)
            if numbers:
                return Found(pattern, numbers)
        hint = f" {_list_sequences(Path(folder or '.'))}" if os.path.isdir(folder or ".") else ""
    except PermissionError as error:
        raise ClipNotReadableError(
            f"{error.filename} may not be read by this user. Ask for access to it."
        ) from error
    raise ClipNotFoundError(f"There is no {text}.{hint}")


def _sequence_of(folder: str, name: str) -> Found:
    """Returns the sequence that an existing file belongs to, or the file as a still."""
    for pattern, numbers in _sequences(Path(folder or ".")).items():
        for number in numbers:
            if frame_path(pattern, number) == name:
                return Found(os.path.join(folder, pattern), numbers, number)
    return Found(os.path.join(folder, name), None)


def _only_sequence(folder: Path) -> Found:
    sequences = _sequences(folder)
    if len(sequences) != 1:
        raise ClipNotFoundError(
            f"The folder {folder} must hold exactly one sequence to be read as a clip. "
            f"{_list_sequences(folder)}"
        )
    ((pattern, numbers),) = sequences.items()
    return Found(str(folder / pattern), numbers)


def _list_sequences(folder: Path) -> str:
    """Returns a sentence that names the first sequences of a folder."""
    found = [f"{name} {format_numbers(numbers)}" for name, numbers in _sequences(folder).items()]
    if not found:
        return "Its folder holds no numbered pictures."
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return f"Its folder holds: {'; '.join(found[:5])}{more}."


def clip_range(
    path: str, existing: Sequence[int], first: int | None, last: int | None
) -> tuple[tuple[int, ...], int, int]:
    """Limits a clip to the requested range.

    Args:
        path: the clip, for the messages.
        existing: its frame numbers, sorted.
        first: start of the range; None for the first frame.
        last: its end, inclusive; None for the last frame.

    Returns:
        The existing numbers in the range, and its first and last frame.

    Raises:
        TooLargeError: the range has more than `MAX_RANGE` frames.
        MissingFramesError: no frame lies in it.
    """
    first = existing[0] if first is None else first
    last = existing[-1] if last is None else last
    if last - first >= MAX_RANGE:
        raise TooLargeError(
            f"The range {first}-{last} of {path} has more than {MAX_RANGE} frames: name the range "
            "you mean, and look for a stray file with a huge number."
        )
    numbers = tuple(number for number in existing if first <= number <= last)
    if not numbers:
        requested = range(first, max(first, last) + 1)
        raise MissingFramesError(path, requested, format_numbers(existing))
    return numbers, first, last
