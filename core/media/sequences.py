"""Finding the files of a sequence on disk."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from core.media.clip import MAX_RANGE, PICTURES
from core.media.errors import (
    ClipNotFoundError,
    ClipNotReadableError,
    MissingFramesError,
    TooLargeError,
)
from core.media.numbering import format_numbers, frame_path, split_pattern


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
    """Returns the numbered pictures of a folder: pattern with # -> sorted numbers.

    The number stands right before the suffix; "_v002" is a version, not a number.
    """
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
    """Splits "shot.1001.exr" into "shot.", "1001" and ".exr"; None for any other file name."""
    stem, suffix = os.path.splitext(name)
    if suffix.lower() not in PICTURES or name.startswith("."):
        return None
    match = re.fullmatch(r"(.*?)((?:(?<=[._])-)?\d+)", stem, re.DOTALL)
    if match is None or re.search(r"(?:^|[._-])[vV]$", match[1]):
        return None
    return match[1], match[2], suffix


def _matching_numbers(pattern: str) -> list[int]:
    """Returns the sorted numbers of the files that fit a pattern with #."""
    head, width, tail = split_pattern(os.path.basename(pattern))
    numbers = []
    for name in os.listdir(os.path.dirname(pattern) or "."):
        digits = name[len(head) : len(name) - len(tail)]
        if (
            name.startswith(head)
            and name.endswith(tail)
            and re.fullmatch(r"-?\d+", digits)
            and f"{int(digits):0{width}d}" == digits
        ):
            numbers.append(int(digits))
    return sorted(numbers)


def find_sequence(text: str) -> tuple[str, list[int] | None]:
    """Finds the sequence or the still that a path stands for.

    Args:
        text: a pattern with # or %04d, a file of a sequence, a still, or a folder with exactly one
            sequence.

    Returns:
        The pattern with # and its sorted numbers, or the still's path and None.

    Raises:
        ClipNotFoundError: there is nothing of the kind; the message lists what is nearby.
        ClipNotReadableError: a folder may not be read.
    """
    folder, name = os.path.split(text)
    # %04d -> ####, %d -> #
    pattern_name = re.sub(r"%0?(\d*)d", lambda match: "#" * int(match[1] or 1), name)
    try:
        if os.path.isdir(text):
            return _only_sequence(Path(text))
        if os.path.exists(text):
            for pattern, numbers in _sequences(Path(folder or ".")).items():
                if any(frame_path(pattern, number) == name for number in numbers):
                    return os.path.join(folder, pattern), numbers
            return text, None
        if "#" in pattern_name and os.path.isdir(folder or "."):
            pattern = os.path.join(folder, pattern_name)
            numbers = _matching_numbers(pattern)
            if numbers:
                return pattern, numbers
        hint = f" {_list_sequences(Path(folder or '.'))}" if os.path.isdir(folder or ".") else ""
    except PermissionError as error:
        raise ClipNotReadableError(
            f"{error.filename} may not be read by this user. Ask for access to it."
        ) from error
    raise ClipNotFoundError(f"There is no {text}.{hint}")


def _only_sequence(folder: Path) -> tuple[str, list[int]]:
    sequences = _sequences(folder)
    if len(sequences) != 1:
        raise ClipNotFoundError(
            f"The folder {folder} must hold exactly one sequence to be read as a clip. "
            f"{_list_sequences(folder)}"
        )
    ((pattern, numbers),) = sequences.items()
    return str(folder / pattern), numbers


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
