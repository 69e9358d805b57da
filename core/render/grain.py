"""Grain and noise: measured on the plate, and synthesised for the generated face.

The model is Gaussian noise whose strength follows the brightness (shot noise, film curves), with
the spatial correlation of lens, debayering and resizing, and with correlated channels. Texture and
movement only add to the variance of a block of pixels, so the blocks of least variance, within a
frame or between two, contain noise alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

BLOCK = 32  # px
LEVELS = 8  # levels of brightness
REACH = 4  # px, radius of the spatial correlation
TILE = 512  # px, period of drawn grain

_QUIETEST = 0.1  # share of a level's blocks that are first assumed to be pure noise
_SIMILAR = 1.3  # then all blocks up to this multiple of their variance count as pure noise
_MIN_BLOCKS = 6  # of a level
_MAX_SLOPE = 2.0  # noise never changes faster than this multiple of the brightness' change


@dataclass(frozen=True, eq=False)
class Grain:
    """The noise of a plate, in the plate's own values."""

    levels: tuple[np.ndarray, ...]  # per channel [K], increasing brightness
    sigma: tuple[np.ndarray, ...]  # per channel [K], standard deviation at each level
    spatial: np.ndarray  # [3, 2 REACH + 1, 2 REACH + 1] autocorrelation, 1 in the middle
    channels: np.ndarray  # [3, 3] correlation of the channels

    def strength(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the standard deviation at pixels `[..., 3]`, in the same shape."""
        by_channel = [np.interp(pixels[..., c], self.levels[c], self.sigma[c]) for c in range(3)]
        return np.stack(by_channel, -1).astype(np.float32)


def measure(frames: Iterable[tuple[np.ndarray, ...]]) -> Grain | None:
    """Estimates the noise of a plate.

    Args:
        frames: some frames `[H, W, 3]`, each alone or with the next one.

    Returns:
        The noise; None where it can't be measured (flat or tiny pictures).
    """
    residuals, means = [], []
    for group in frames:
        blocks = [_blocks(frame) for frame in group]
        between = [(a - b) / np.sqrt(2) for a, b in pairwise(blocks)]
        residuals += [_detrended(variant) for variant in (*blocks, *between)]
        means += [b.mean(2) for b in (*blocks, *blocks[:-1])]
    residual, mean = np.concatenate(residuals, 1), np.concatenate(means, 1)
    variance = (residual**2).sum(2) / (BLOCK * BLOCK - _basis().shape[1])
    levels, sigma, spatial, quiet = [], [], [], []
    for c in range(3):
        level, deviation, used = _by_level(mean[c], variance[c])
        if not len(level):
            return None
        levels.append(level)
        sigma.append(deviation)
        quiet.append(used)
        spatial.append(_autocorrelation(residual[c, used]))
    every = quiet[0] & quiet[1] & quiet[2]
    normed = residual[:, every] / np.sqrt(np.maximum(variance[:, every, None], 1e-20))
    channels = np.eye(3)
    if every.sum() >= _MIN_BLOCKS:
        channels = np.corrcoef(normed.reshape(3, -1))
    return Grain(tuple(levels), tuple(sigma), np.stack(spatial), channels)


def draw(grain: Grain, number: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Draws noise with the grain's structure and a standard deviation of 1.

    Args:
        grain: gives the structure.
        number: the frame's number, which seeds the noise.
        rows: `[h]` pixel rows of the plate.
        columns: `[w]` pixel columns of the plate.

    Returns:
        `[h, w, 3]` float32.
    """
    rng = np.random.default_rng([20230, number])
    white = rng.standard_normal((TILE, TILE, 3), np.float32)
    values, vectors = np.linalg.eigh(grain.channels)
    mixed = white @ (vectors * np.sqrt(values.clip(0)) @ vectors.T).astype(np.float32)
    response = np.zeros((3, TILE, TILE))
    near = np.arange(-REACH, REACH + 1)
    fade = np.where(np.abs(near) == REACH, 0.5, 1)
    response[:, near[:, None], near] = grain.spatial * fade[:, None] * fade
    power = np.fft.rfft2(response).real.clip(0)
    spectrum = np.fft.rfft2(mixed, axes=(0, 1)) * np.sqrt(power).transpose(1, 2, 0)
    tile = np.fft.irfft2(spectrum, (TILE, TILE), axes=(0, 1)).astype(np.float32)
    tile /= tile.std((0, 1))
    return tile[np.ix_(rows % TILE, columns % TILE)]


def _blocks(frame: np.ndarray) -> np.ndarray:
    """Divides a frame `[H, W, 3]` into blocks `[3, N, BLOCK * BLOCK]`."""
    h, w = (n // BLOCK for n in frame.shape[:2])
    cut = frame[: h * BLOCK, : w * BLOCK].reshape(h, BLOCK, w, BLOCK, 3)
    return cut.transpose(4, 0, 2, 1, 3).reshape(3, h * w, BLOCK * BLOCK).astype(np.float64)


@lru_cache(maxsize=1)
def _basis() -> np.ndarray:
    """Returns the polynomials of second order over a block, orthonormal: `[BLOCK * BLOCK, 6]`."""
    y, x = np.mgrid[-1 : 1 : BLOCK * 1j, -1 : 1 : BLOCK * 1j]
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], -1)
    return np.linalg.qr(terms.reshape(BLOCK * BLOCK, -1))[0]


def _detrended(blocks: np.ndarray) -> np.ndarray:
    """Subtracts from each block its second-order polynomial."""
    return blocks - (blocks @ _basis()) @ _basis().T


def _by_level(mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns levels and standard deviations of a channel, and a mask `[N]` of the blocks used."""
    varied = variance > 1e-12 * variance.max(
        initial=1e-12
    )  # repeated frames and black bars have none
    edges = (
        np.quantile(mean[varied], np.linspace(0, 1, LEVELS + 1)) if varied.any() else np.zeros(1)
    )
    used = np.zeros(len(mean), bool)
    levels, sigma = [], []
    for low, high in pairwise(edges):
        here = np.flatnonzero(varied & (mean >= low) & (mean <= high))
        if len(here) < _MIN_BLOCKS:
            continue
        quietest = np.sort(variance[here])[: max(int(_QUIETEST * len(here)), _MIN_BLOCKS)]
        alike = here[variance[here] <= _SIMILAR * np.median(quietest)]
        used[alike] = True
        levels.append(mean[alike].mean())
        sigma.append(np.sqrt(variance[alike].mean()))
    # A level with only textured blocks stands out from the others: it is limited by them.
    at, found = np.array(levels), np.array(sigma)
    ratio = at[:, None] / np.maximum(at, 1e-6)
    steepest = _MAX_SLOPE * np.maximum(ratio, 1 / np.maximum(ratio, 1e-6))
    np.fill_diagonal(steepest, np.inf)
    found = np.minimum(found, (found * steepest).min(1, initial=np.inf))
    order = np.argsort(at)
    return at[order], found[order], used


def _autocorrelation(residual: np.ndarray) -> np.ndarray:
    """Returns the autocorrelation `[2 REACH + 1, 2 REACH + 1]` of blocks `[N, BLOCK * BLOCK]`."""
    blocks = residual.reshape(-1, BLOCK, BLOCK)
    size = 2 * BLOCK
    power = (np.abs(np.fft.rfft2(blocks, (size, size))) ** 2).sum(0)
    overlap = np.abs(np.fft.rfft2(np.ones((BLOCK, BLOCK)), (size, size))) ** 2
    near = np.arange(-REACH, REACH + 1)
    products, pairs = (np.fft.irfft2(p, (size, size)) for p in (power, overlap))
    correlation = (products / pairs.clip(1))[near[:, None], near]
    return correlation / correlation[REACH, REACH]
