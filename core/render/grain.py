"""Grain and noise: measured on the plate, drawn anew for the generated face.

The model is Gaussian noise whose strength follows the brightness (shot noise, film curves), with
the spatial correlation that lenses, debayering and resizing give it, and correlated channels.
Texture and movement only ever add to what a block of pixels varies by: the blocks that vary least,
within a frame or between two, vary by noise alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

BLOCK = 32  # px
LEVELS = 8  # of brightness
REACH = 4  # px, of the spatial correlation
TILE = 512  # px: drawn grain repeats so far away

_QUIETEST = 0.1  # share of a level's blocks that are taken for noise alone at first,
_LIKE = 1.3  # and then all whose variance is no larger than so many times theirs
_LEAST = 6  # blocks of a level
_STEEPEST = 2.0  # times as fast as brightness is more than noise ever changes


@dataclass(frozen=True, eq=False)
class Grain:
    """The noise of a plate, in its own values."""

    levels: tuple[np.ndarray, ...]  # per channel [K], brightness, rising
    sigma: tuple[np.ndarray, ...]  # per channel [K], standard deviation there
    spatial: np.ndarray  # [3, 2 REACH + 1, 2 REACH + 1] autocorrelation, 1 in the middle
    channels: np.ndarray  # [3, 3] correlation of the channels

    def strength(self, pixels: np.ndarray) -> np.ndarray:
        """The standard deviation at pixels `[..., 3]`, in the same shape."""
        by_channel = [np.interp(pixels[..., c], self.levels[c], self.sigma[c]) for c in range(3)]
        return np.stack(by_channel, -1).astype(np.float32)


def measure(frames: Iterable[tuple[np.ndarray, ...]]) -> Grain | None:
    """Estimates the noise of a plate.

    Args:
        frames: some frames `[H, W, 3]`, each alone or with the one after it.

    Returns:
        The noise; None where there is none to be measured (flat or tiny pictures).
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
        at, found, used = _by_level(mean[c], variance[c])
        if not len(at):
            return None
        levels.append(at)
        sigma.append(found)
        quiet.append(used)
        spatial.append(_autocorrelation(residual[c, used]))
    every = quiet[0] & quiet[1] & quiet[2]
    normed = residual[:, every] / np.sqrt(np.maximum(variance[:, every, None], 1e-20))
    channels = np.eye(3)
    if every.sum() >= _LEAST:
        channels = np.corrcoef(normed.reshape(3, -1))
    return Grain(tuple(levels), tuple(sigma), np.stack(spatial), channels)


def draw(grain: Grain, number: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Noise of standard deviation 1 and the grain's structure, always the same for a frame.

    Args:
        grain: its structure.
        number: of the frame; another one, other noise.
        rows: `[h]` of the plate.
        columns: `[w]` of the plate.

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
    """`[3, N, BLOCK * BLOCK]` of a frame `[H, W, 3]`."""
    h, w = (n // BLOCK for n in frame.shape[:2])
    cut = frame[: h * BLOCK, : w * BLOCK].reshape(h, BLOCK, w, BLOCK, 3)
    return cut.transpose(4, 0, 2, 1, 3).reshape(3, h * w, BLOCK * BLOCK).astype(np.float64)


@lru_cache(maxsize=1)
def _basis() -> np.ndarray:
    """`[BLOCK * BLOCK, 6]`, orthonormal: the polynomials of second order over a block."""
    y, x = np.mgrid[-1 : 1 : BLOCK * 1j, -1 : 1 : BLOCK * 1j]
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], -1)
    return np.linalg.qr(terms.reshape(BLOCK * BLOCK, -1))[0]


def _detrended(blocks: np.ndarray) -> np.ndarray:
    return blocks - (blocks @ _basis()) @ _basis().T


def _by_level(mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Levels and standard deviations of one channel, and which blocks `[N]` they come from."""
    varied = variance > 1e-12 * variance.max(initial=1e-12)  # no repeated frames, no black bars
    edges = (
        np.quantile(mean[varied], np.linspace(0, 1, LEVELS + 1)) if varied.any() else np.zeros(1)
    )
    used = np.zeros(len(mean), bool)
    levels, sigma = [], []
    for low, high in pairwise(edges):
        here = np.flatnonzero(varied & (mean >= low) & (mean <= high))
        if len(here) < _LEAST:
            continue
        quietest = np.sort(variance[here])[: max(int(_QUIETEST * len(here)), _LEAST)]
        alike = here[variance[here] <= _LIKE * np.median(quietest)]
        used[alike] = True
        levels.append(mean[alike].mean())
        sigma.append(np.sqrt(variance[alike].mean()))
    # A level that only textured blocks have stands out against the others.
    at, found = np.array(levels), np.array(sigma)
    ratio = at[:, None] / np.maximum(at, 1e-6)
    steepest = _STEEPEST * np.maximum(ratio, 1 / np.maximum(ratio, 1e-6))
    np.fill_diagonal(steepest, np.inf)
    found = np.minimum(found, (found * steepest).min(1, initial=np.inf))
    order = np.argsort(at)
    return at[order], found[order], used


def _autocorrelation(residual: np.ndarray) -> np.ndarray:
    """`[2 REACH + 1, 2 REACH + 1]` of blocks `[N, BLOCK * BLOCK]`, 1 in the middle."""
    blocks = residual.reshape(-1, BLOCK, BLOCK)
    size = 2 * BLOCK
    power = (np.abs(np.fft.rfft2(blocks, (size, size))) ** 2).sum(0)
    overlap = np.abs(np.fft.rfft2(np.ones((BLOCK, BLOCK)), (size, size))) ** 2
    near = np.arange(-REACH, REACH + 1)
    products, pairs = (np.fft.irfft2(p, (size, size)) for p in (power, overlap))
    correlation = (products / pairs.clip(1))[near[:, None], near]
    return correlation / correlation[REACH, REACH]
