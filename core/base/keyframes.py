"""Keyframes: a value that changes over the frames of a shot.

As text, `NUMBER:VALUE[:EASING]` with commas or spaces between them, or one value for all frames:

    0.5    1001:0,1010:1    1001:0:smooth 1010:1:hold 1020:0

As JSON, a list of `[number, value, easing]`, which is also what `json.dumps` makes of keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from core.base.errors import ReenactError

EASINGS = ("linear", "smooth", "hold")
MAX_NUMBER = 10**9  # largest frame number


class KeyframeError(ReenactError):
    """The input is no valid keyframes.

    Args:
        problem: a sentence that says what is wrong and what to do.
        of: what the keys belong to, such as a direction or an option; it precedes the message.
    """

    def __init__(self, problem: str, of: str = "") -> None:
        super().__init__(f"{of}: {problem}" if of else problem)


class Key(NamedTuple):
    """A value at a frame, and how it changes from there to the next key."""

    number: int  # of the frame
    value: float
    # "linear"; "smooth": 3 t^2 - 2 t^3, with no slope at either key; "hold": jumps at the next key.
    easing: str = "linear"


def parse(text: str, of: str = "") -> tuple[Key, ...]:
    """Reads keys from text.

    Args:
        text: as in this module's docstring; keys may have any order.
        of: what the keys belong to, for the error.

    Returns:
        The keys by increasing number. A single value becomes one key, which holds for all frames.

    Raises:
        KeyframeError: invalid text or values.

    Example:
        >>> [(key.number, key.value, key.easing) for key in parse("1001:0:smooth,1010:1")]
        [(1001, 0.0, 'smooth'), (1010, 1.0, 'linear')]
    """
    words = text.replace(",", " ").split()
    plain: list[list[Any]] = []
    try:
        for word in words:
            parts = word.split(":")
            if len(words) == len(parts) == 1:
                parts.insert(0, "0")
            number, value, *easing = parts
            plain.append([int(number), float(value), *easing])
    except ValueError:
        raise KeyframeError(
            f"{word!r} in {text!r} is no key. Write NUMBER:VALUE or NUMBER:VALUE:EASING, as in "
            "1001:0:smooth,1010:1, or one value for all frames.",
            of,
        ) from None
    return from_plain(plain, of)


def from_plain(plain: Any, of: str = "") -> tuple[Key, ...]:
    """Reads keys from their JSON form.

    Args:
        plain: a list of `[number, value, easing]`, in any order.
        of: what the keys belong to, for the error.

    Raises:
        KeyframeError: another structure, a value that is not finite, or two keys of one number.
    """
    try:
        keys = sorted(Key(*key) for key in plain)
    except TypeError:
        raise KeyframeError(
            f"{plain!r} are no keys. They are a list of [number, value, easing].", of
        ) from None
    if not keys:
        raise KeyframeError("There are no keys. Give one value at least, as in 1 or 1001:1.", of)
    for key in keys:
        if type(key.number) is not int or type(key.value) not in (int, float):
            raise KeyframeError(f"{list(key)} is no key: it is [number, value, easing].", of)
        if abs(key.number) > MAX_NUMBER:
            raise KeyframeError(f"Frame {key.number} is too far: at most {MAX_NUMBER}.", of)
        if not abs(key.value) <= np.finfo(np.float32).max:
            raise KeyframeError(f"The value {key.value} at frame {key.number} is not finite.", of)
        if key.easing not in EASINGS:
            raise KeyframeError(
                f"No easing is called {key.easing!r}. Choose one of {', '.join(EASINGS)}.", of
            )
    numbers = [key.number for key in keys]
    for number in numbers:
        if numbers.count(number) > 1:
            raise KeyframeError(f"Frame {number} has two keys. Keep one of them.", of)
    return tuple(keys)


def as_text(keys: Sequence[Key]) -> str:
    """Formats keys as text from which `parse` reads the same keys."""
    return ",".join(f"{key.number}:{float(key.value)!r}:{key.easing}" for key in keys)


def at(keys: Sequence[Key], numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    """Interpolates keys.

    Args:
        keys: at least one, by increasing number.
        numbers: F frame numbers, in any order.

    Returns:
        `[F]` float32: the keys' values at their frames, interpolated between them by each key's
        easing, and constant before the first and after the last key.

    Example:
        >>> at(parse("1001:0,1011:1"), [1000, 1001, 1006, 1020]).tolist()
        [0.0, 0.0, 0.5, 1.0]
    """
    frames = np.asarray(numbers, np.int64)
    positions = np.array([key.number for key in keys], np.int64)
    values = np.array([key.value for key in keys], np.float64)
    before = np.clip(np.searchsorted(positions, frames, "right") - 1, 0, len(keys) - 1)
    after = np.minimum(before + 1, len(keys) - 1)
    span = np.maximum(positions[after] - positions[before], 1)
    t = np.clip((frames - positions[before]) / span, 0, 1)
    easing = np.array([key.easing for key in keys])[before]
    t = np.select([easing == "hold", easing == "smooth"], [0 * t, t * t * (3 - 2 * t)], t)
    return ((1 - t) * values[before] + t * values[after]).astype(np.float32)
