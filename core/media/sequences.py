"""Finding the files of a sequence."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from core.media.clip import PICTURES
from core.media.errors import (
    MAX_RANGE,
    ClipNotFoundError,
    ClipNotReadableError,
    MissingFramesError,
    TooLargeError,
)
from core.media.numbering import format_numbers, frame_path, split_pattern

# Finding files


def check_file(path: str) -> None:
    """Tell missing, forbidden and damaged files apart; the libraries do not."""
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
    """The numbered pictures of a folder: pattern with # -> sorted numbers.

    The number is the last thing before the suffix; "_v002" is a version, not a number.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for name in os.listdir(folder):
        split = _split_number(name)
        if split:
            found.setdefault((split[0], split[2]), []).append(split[1])
    sequences: dict[str, list[int]] = {}
    for (head, tail), texts in found.items():
        # A leading zero tells the padding; other numbers join the widest padding they satisfy.
        padded = sorted({len(text) for text in texts if text.lstrip("-").startswith("0")})
        loose = [len(text) for text in texts if bisect_right(padded, len(text)) == 0]
        for text in texts:
            fits = bisect_right(padded, len(text))
            width = padded[fits - 1] if fits else min(loose)
            sequences.setdefault(f"{head}{'#' * width}{tail}", []).append(int(text))
    return {pattern: sorted(numbers) for pattern, numbers in sorted(sequences.items())}


def _split_number(name: str) -> tuple[str, str, str] | None:
    stem, suffix = os.path.splitext(name)
    if suffix.lower() not in PICTURES or name.startswith("."):
        return None
    match = re.fullmatch(r"(.*?)((?:(?<=[._])-)?\d+)", stem, re.DOTALL)
    if match is None or re.search(r"(?:^|[._-])[vV]$", match[1]):
        return None
    return match[1], match[2], suffix


def _matching(pattern: str) -> list[int]:
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
    """What a path stands for: a pattern with its numbers, or a still (None)."""
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
            numbers = _matching(pattern)
            if numbers:
                return pattern, numbers
        hint = f" {_offer(Path(folder or '.'))}" if os.path.isdir(folder or ".") else ""
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
            f"{_offer(folder)}"
        )
    ((pattern, numbers),) = sequences.items()
    return str(folder / pattern), numbers


def _offer(folder: Path) -> str:
    there = [f"{name} {format_numbers(numbers)}" for name, numbers in _sequences(folder).items()]
    if not there:
        return "Its folder holds no numbered pictures."
    more = f" and {len(there) - 5} more" if len(there) > 5 else ""
    return f"Its folder holds: {'; '.join(there[:5])}{more}."


def clip_range(
    path: str, existing: Sequence[int], first: int | None, last: int | None
) -> tuple[tuple[int, ...], int, int]:
    first = existing[0] if first is None else first
    last = existing[-1] if last is None else last
    if last - first >= MAX_RANGE:
        raise TooLargeError(
            f"The range {first}-{last} of {path} has more than {MAX_RANGE} frames: name the range "
            "you mean, and look for a stray file with a huge number."
        )
    numbers = tuple(number for number in existing if first <= number <= last)
    if not numbers:
        asked = range(first, max(first, last) + 1)
        raise MissingFramesError(path, asked, format_numbers(existing))
    return numbers, first, last


def first_sentence(reason: str | None) -> str:
    first = (reason or "").strip().splitlines()[:1]
    return f"{first[0].rstrip('.')}." if first else "no reason is known."
