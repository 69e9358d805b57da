"""The match of the generated skin's colour to the plate's: gains and offsets in linear light.

Two people's skins differ by the light and by their own colour, and a picture does not tell the two
apart. So the match is measured in every frame and stored beside the pictures, and applied only by
the amount that the user asks for.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_QUANTILES = np.linspace(0.05, 0.95, 19)  # outside are shadows and highlights
MAX_GAIN = 4.0  # gains are limited to this and its inverse
MAX_OFFSET = 0.2  # share of the plate's mean; larger ones come from freckles and make-up, not light
_MIN_PIXELS = 50


class Match(NamedTuple):
    """Takes the render to the plate's skin: `gain * render + offset`, scene-linear."""

    gain: np.ndarray  # [3]
    offset: np.ndarray  # [3]


IDENTITY = Match(np.ones(3), np.zeros(3))


def fit(generated: np.ndarray, plate: np.ndarray) -> Match | None:
    """Fits the gain and offset that give generated skin the distribution of the plate's.

    Quantiles are compared, not pixels, because two faces never coincide exactly.

    Args:
        generated: `[N, 3]` scene-linear pixels.
        plate: `[M, 3]` scene-linear pixels.

    Returns:
        The match; None for fewer than 50 pixels.
    """
    if min(len(generated), len(plate)) < _MIN_PIXELS:
        return None
    x, y = (np.quantile(values.astype(np.float64), _QUANTILES, 0) for values in (generated, plate))
    mean_x, mean_y = x.mean(0), y.mean(0)
    variance = ((x - mean_x) ** 2).sum(0)
    slope = ((x - mean_x) * (y - mean_y)).sum(0) / np.maximum(variance, 1e-12)
    ratio = mean_y / np.maximum(mean_x, 1e-6)
    # Evenly lit skin has no slope that could be measured: its offset stays 0.
    flat = variance < 1e-4 * len(_QUANTILES) * mean_x**2
    offset = np.where(flat, 0, mean_y - slope * mean_x).clip(
        -MAX_OFFSET * mean_y, MAX_OFFSET * mean_y
    )
    gain = (ratio - offset / np.maximum(mean_x, 1e-6)).clip(1 / MAX_GAIN, MAX_GAIN)
    return Match(gain, offset)


def apply(pixels: np.ndarray, match: Match, amount: float) -> np.ndarray:
    """Applies a share of a match, like Nuke's Grade with `multiply`, `add` and `mix`.

    Args:
        pixels: `[..., 3]` scene-linear.
        match: its gain and offset.
        amount: 0..1.

    Returns:
        `[..., 3]` float32.
    """
    graded = pixels * (1 + amount * (match.gain - 1)) + amount * match.offset
    return np.asarray(graded, np.float32)


def mean(matches: list[Match | None], weights: np.ndarray) -> Match:
    """Returns the weighted mean of the matches that are not None; `IDENTITY` if all are.

    Gains are averaged geometrically.
    """
    found = [(m, w) for m, w in zip(matches, weights, strict=True) if m is not None]
    if not found:
        return IDENTITY
    share = np.array([w for _, w in found]) / sum(w for _, w in found)
    gain = np.exp(share @ np.log([m.gain for m, _ in found]))
    return Match(gain, share @ np.stack([m.offset for m, _ in found]))
