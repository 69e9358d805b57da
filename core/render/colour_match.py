"""The generated skin's colour beside the plate's, as gains and offsets in linear light.

Two people's skins differ by the light that falls on them and by what they are; a picture does not
say by how much of each. So a match is measured for every frame and kept beside the pictures, and
laid on only by as much as somebody asks for.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_QUANTILES = np.linspace(0.05, 0.95, 19)  # shadows and highlights beyond are not skin
MOST = 4.0  # that a gain may be, and one part of which it must be
FLARE = 0.2  # that an offset may be, of the plate's mean: what freckles and make-up do is no light
_LEAST_PIXELS = 50


class Match(NamedTuple):
    """`gain * render + offset`, scene-linear, is nearest to the plate's skin."""

    gain: np.ndarray  # [3]
    offset: np.ndarray  # [3]


NONE = Match(np.ones(3), np.zeros(3))


def fit(made: np.ndarray, plate: np.ndarray) -> Match | None:
    """Finds gain and offset that give one sample of skin the other's distribution.

    Quantiles are compared, not pixels: two faces never lie quite on one another.

    Args:
        made: `[N, 3]` scene-linear.
        plate: `[M, 3]` scene-linear.

    Returns:
        The match; None for too few pixels.
    """
    if min(len(made), len(plate)) < _LEAST_PIXELS:
        return None
    x, y = (np.quantile(values.astype(np.float64), _QUANTILES, 0) for values in (made, plate))
    mean_x, mean_y = x.mean(0), y.mean(0)
    spread = ((x - mean_x) ** 2).sum(0)
    slope = ((x - mean_x) * (y - mean_y)).sum(0) / np.maximum(spread, 1e-12)
    ratio = mean_y / np.maximum(mean_x, 1e-6)
    # Skin without light and shade has no slope to measure: then the offset stays 0.
    flat = spread < 1e-4 * len(_QUANTILES) * mean_x**2
    offset = np.where(flat, 0, mean_y - slope * mean_x).clip(-FLARE * mean_y, FLARE * mean_y)
    gain = (ratio - offset / np.maximum(mean_x, 1e-6)).clip(1 / MOST, MOST)
    return Match(gain, offset)


def apply(pixels: np.ndarray, match: Match, amount: float) -> np.ndarray:
    """Grades scene-linear pixels `[..., 3]` by so much (0..1) of a match.

    It is Nuke's Grade with `multiply` gain, `add` offset and `mix` amount.
    """
    graded = pixels * (1 + amount * (match.gain - 1)) + amount * match.offset
    return np.asarray(graded, np.float32)


def mean(matches: list[Match | None], weights: np.ndarray) -> Match:
    """The weighted mean of the matches that there are; `NONE` of none."""
    there = [(m, w) for m, w in zip(matches, weights, strict=True) if m is not None]
    if not there:
        return NONE
    share = np.array([w for _, w in there]) / sum(w for _, w in there)
    gain = np.exp(share @ np.log([m.gain for m, _ in there]))
    return Match(gain, share @ np.stack([m.offset for m, _ in there]))
