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
    match = re.fullmatch(r"(.*\S)\s+(-?\d+)(?:-(-?\d+))?", text)
    if match is None or os.path.exists(text):
        return text, None, None
    return match[1], int(match[2]), int(match[3] or match[2])


def frame_path(pattern: str, number: int) -> str:
    """Returns the file of a frame: its number replaces the last run of #, zero-padded like printf.

    Example:
        >>> frame_path("shot.####.exr", 7)
        'shot.0007.exr'
    """
    head, hashes, tail = split_pattern(pattern)
    return f"{head}{number:0{hashes}d}{tail}"


def split_pattern(pattern: str) -> tuple[str, int, str]:
    """Splits a pattern at its last run of #: what stands before, its length, what stands behind."""
    head, hashes, tail = re.fullmatch(r"(.*?)(#+)([^#]*)", pattern, re.DOTALL).groups()  # type: ignore[union-attr]
    return head, len(hashes), tail
