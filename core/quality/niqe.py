"""NIQE, the quality of a picture without a reference: "Making a 'completely blind' image quality
analyzer" (Mittal, Soundararajan, Bovik 2012).

The distance of the statistics of a picture's blocks from those of good photographs: lower is
better, 3 to 6 for sharp photographs. The photographs' statistics are the authors' own (LIVE,
release of 2013), in `niqe_params.npz`: the unchanged file `basicsr/metrics/niqe_pris_params.npz` of
BasicSR 1.4.2 (Copyright 2018-2022 BasicSR authors, Apache License 2.0), sha256
2a7c182a68c9e7f1b2e2e5ec723279d6f65d912b6fcaf37eb2bf03d7367c4296.
"""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import convolve1d
from scipy.special import gamma

BLOCK = 96  # side of a block, px; half of it at the second scale
MIN_SIDE = 2 * BLOCK  # px: the covariance needs more than one block

# Below this a flat area contains only rounding errors, whose statistics mean nothing.
_FLAT = 1e-6
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
_SHAPES = np.arange(0.2, 10.001, 0.001)  # of generalised Gaussians, as the authors search them
_RATIOS = gamma(2 / _SHAPES) ** 2 / (gamma(1 / _SHAPES) * gamma(3 / _SHAPES))


def niqe(rgb: np.ndarray) -> float:
    """Computes NIQE.

    Args:
        rgb: `[H, W, 3]` sRGB in 0..1. Pixels at the right and at the bottom that fill no block of
            96 px do not count.

    Returns:
        The distance; NaN for a picture with fewer than two blocks that are not flat.

    Raises:
        ValueError: another shape, or a side below 192 px.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or min(rgb.shape[:2]) < MIN_SIDE:
        raise ValueError(f"NIQE needs [H, W, 3] of {MIN_SIDE} px and more, not {[*rgb.shape]}.")
    mean, covariance, window = _photographs()
    height, width = (n // BLOCK * BLOCK for n in rgb.shape[:2])
    # BT.601 luma, rounded to 8 bits like MATLAB's rgb2ycbcr.
    red, green, blue = np.moveaxis(rgb[:height, :width], 2, 0)
    # Not by BLAS, whose last bits, and so the rounding, differ with the layout in memory.
    luma = np.rint(65.481 * red + 128.553 * green + 24.966 * blue + 16)
    features = []
    for block in (BLOCK, BLOCK // 2):
        features.append(_features(_normalised(luma, window), block))
        luma = _halved(luma)
    every = np.concatenate(features, 1)
    finite = every[np.isfinite(every).all(1)]
    if len(finite) < 2:  # flat blocks have NaN features
        return float("nan")
    difference = mean - np.nanmean(every, 0)
    both = (covariance + np.cov(finite, rowvar=False)) / 2
    return float(np.sqrt(difference @ np.linalg.pinv(both) @ difference))


@cache
def _photographs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns mean `[36]` and covariance `[36, 36]` of photographs' features, window `[7]`."""
    with np.load(Path(__file__).with_name("niqe_params.npz")) as stored:
        window = stored["gaussian_window"].sum(0)  # it is separable
        return stored["mu_pris_param"][0], stored["cov_pris_param"], window


def _normalised(luma: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Subtracts each pixel's local mean and divides by its local deviation (eq. 1)."""

    def smooth(values: np.ndarray) -> np.ndarray:
        return convolve1d(convolve1d(values, window, 0, mode="nearest"), window, 1, mode="nearest")

    mean = smooth(luma)
    normalised = (luma - mean) / (np.sqrt(np.abs(smooth(luma**2) - mean**2)) + 1)
    return np.where(np.abs(normalised) > _FLAT, normalised, 0)


def _features(normalised: np.ndarray, block: int) -> np.ndarray:
    """Returns 18 features of each block, `[B, 18]` (eqs. 5 to 9)."""
    rows, columns = (n // block for n in normalised.shape)
    blocks = normalised.reshape(rows, block, columns, block).swapaxes(1, 2)
    blocks = blocks.reshape(-1, block, block)
    shape, left, right = _fit(blocks)
    features = [shape, (left + right) / 2]
    for shift in _NEIGHBOURS:
        shape, left, right = _fit(blocks * np.roll(blocks, shift, (1, 2)))
        mean = (right - left) * gamma(2 / shape) / gamma(1 / shape)
        features += [shape, mean, left, right]
    return np.stack(features, 1)


def _fit(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fits asymmetric generalised Gaussians to blocks `[B, n, n]` by their moments.

    Returns:
        `[B]` shape, left scale and right scale; NaN where a block has no values on that side.
    """
    x = blocks.reshape(len(blocks), -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        left, right = (np.sqrt((x**2 * side).sum(1) / side.sum(1)) for side in (x < 0, x > 0))
        skew = left / right
        ratio = np.abs(x).mean(1) ** 2 / (x**2).mean(1)
        ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    # The ratio increases with the shape: take the nearest one listed.
    after = np.searchsorted(_RATIOS, ratio).clip(1, len(_RATIOS) - 1)
    nearer = np.abs(_RATIOS[after - 1] - ratio) <= np.abs(_RATIOS[after] - ratio)
    shape = _SHAPES[after - nearer]
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * scale, right * scale


def _halved(luma: np.ndarray) -> np.ndarray:
    """Halves the size like MATLAB's imresize: Keys' cubic at twice its support."""
    d = np.abs(np.arange(8) - 3.5) / 2
    taps = np.where(d < 1, 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2) / 2
    for axis in (0, 1):
        width = [(3, 3) if axis == a else (0, 0) for a in (0, 1)]
        padded = np.pad(luma, width, "symmetric")
        luma = sliding_window_view(padded, 8, axis)[(slice(None),) * axis + (slice(None, None, 2),)]
        luma = luma @ taps
    return luma
