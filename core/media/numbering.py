"""Frame numbers in text: ranges, and patterns such as `shot.####.exr` and `%04d`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable


def format_numbers(numbers: Iterable[int]) -> str:
    """Formats frame numbers as people write them.

    Example:
        >>> format_numbers([1004, 1010, 1011, 1012])
        '1004, 1010-1012'
    """
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def split_range(text: str) -> tuple[str, int | None, int | None]:
    """Splits a path from the frame range that Nuke writes behind it.

    Returns:
        The path, and the first and last frame; None for both without a range, or where the whole
        text is an existing path.

    Example:
        >>> split_range("shot.####.exr 1001-1050")
        ('shot.####.exr', 1001, 1050)
    """
    match = re.fullmatch(r"(.*\S)\s+(-?\d+)(?:-(-?\d+))?", text, re.DOTALL)
    if match is None or os.path.exists(text):
        return text, None, None
    return match[1], int(match[2]), int(match[3] or match[2])


def frame_path(pattern: str, number: int) -> str:
    """Returns the file of a frame: its number replaces the last run of # in the pattern's name,
    zero-padded like printf.

    Example:
        >>> frame_path("cut#2/shot.####.exr", 7)
        'cut#2/shot.0007.exr'
    """
    head, hashes, tail = split_pattern(pattern)
    return f"{head}{number:0{hashes}d}{tail}"


def is_pattern(path: str) -> bool:
    """Returns whether the name of a path, whatever its folders are called, has a # for a number."""
    return "#" in os.path.basename(path)


def as_pattern(path: str) -> str:
    """Returns a path with # where its name has a number of printf: ``%04d`` becomes ####.

    A number has 99 digits at most; what asks for more is no number.

    Example:
        >>> as_pattern("shot.%04d.exr")
        'shot.####.exr'
    """
    folder, name = os.path.split(path)
    name = re.sub(r"%0?(\d{0,2})d", lambda match: "#" * int(match[1] or 1), name)
    return os.path.join(folder, name)


def split_pattern(pattern: str) -> tuple[str, int, str]:
    """Splits a pattern at the last run of # in its name: what stands before, with the folder, its
    length, what stands behind.

    Raises:
        ValueError: there is no # in the name.
    """
    folder, name = os.path.split(pattern)
    match = re.fullmatch(r"(.*?)(#+)([^#]*)", name, re.DOTALL)
    if match is None:
        raise ValueError(f"{pattern} has no # for the number of a frame in its name")
    return os.path.join(folder, match[1]), len(match[2]), match[3]


def matching_numbers(pattern: str) -> list[int]:
    """Returns the sorted numbers of the files that fit a pattern with #.

    Raises:
        OSError: its folder can't be listed.
    """
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
