"""FFHQ alignment of faces in plates, and its exact inverse.

Convention:
    A quad `[4, 2]` holds the corners of the aligned square in plate pixels, in FFHQ's order: top
    left, bottom left, bottom right, top right. Plate coordinates are continuous with the origin at
    the top left corner, so pixel `i` covers `i..i+1` and its centre is `i + 0.5`.

The framing is FFHQ's (Karras et al. 2019, data-set tool), computed from MediaPipe's equivalents of
dlib's points. As in "Stitch it in Time" (Tzaban et al. 2022) the quad is smoothed over time, not
the landmarks.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from core.face.keypoints import DLIB_LEFT_EYE, DLIB_MOUTH_CORNERS, DLIB_RIGHT_EYE
from core.face.temporal import shot_runs
from core.media.clip import Window

# Sigmas of the smoothing of quads over time, frames: of the square's centre, and of its size and
# rotation, which change more slowly.
CENTRE_SIGMA = 1.0
AXES_SIGMA = 3.0
# Coarser scales at which noise is separated from movement, and the multiple of white noise's energy
# that counts as noise: the tracker's is not quite white, because each ROI follows the last
# landmarks.
_OCTAVES = 5
_NOISE_MARGIN = 6.0
_MAX_NOISE = 0.005  # sides of the square; anything larger is a shaking camera, not tracking noise


def ffhq_quads(landmarks: np.ndarray, pixel_aspect: float = 1.0) -> np.ndarray:
    """Returns the square that FFHQ's framing cuts out around each face.

    Args:
        landmarks: `[T, 478, 2 or 3]` mesh in MediaPipe's plate px (pixel centres are whole
            numbers); NaN where there is no face.
        pixel_aspect: width of a plate pixel over its height. The quad is square on screen.

    Returns:
        `[T, 4, 2]` float64, NaN where there is no face.
    """
    return quads_from_points(ffhq_points(landmarks), pixel_aspect)


def ffhq_points(landmarks: np.ndarray) -> np.ndarray:
    """Returns the four points that FFHQ's framing is computed from.

    Args:
        landmarks: as for `ffhq_quads`.

    Returns:
        `[T, 4, 2]` float64, continuous plate px: right eye, left eye, right and left mouth corner.
    """
    xy = landmarks[..., :2].astype(np.float64) + 0.5
    eyes = [xy[:, [*eye]].mean(1) for eye in (DLIB_RIGHT_EYE, DLIB_LEFT_EYE)]
    return np.stack([*eyes, *(xy[:, corner] for corner in DLIB_MOUTH_CORNERS)], 1)


def quads_from_points(points: np.ndarray, pixel_aspect: float = 1.0) -> np.ndarray:
    """Returns FFHQ's squares around the points of `ffhq_points`; see `ffhq_quads`."""
    points = points * [pixel_aspect, 1]
    right_eye, left_eye = points[:, 0], points[:, 1]
    mouth = points[:, 2:].mean(1)
    eyes = (right_eye + left_eye) / 2
    across, down = left_eye - right_eye, mouth - eyes
    # Half a side along the picture's rows: both the eyes and the mouth decide the roll.
    x = across + np.stack([down[:, 1], -down[:, 0]], 1)
    length = np.maximum(2.0 * np.hypot(*across.T), 1.8 * np.hypot(*down.T))
    x *= (length / np.hypot(*x.T))[:, None]
    y = np.stack([-x[:, 1], x[:, 0]], 1)
    return _corners(eyes + 0.1 * down, x, y) / [pixel_aspect, 1]


def _corners(centre: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns quads `[T, 4, 2]` of centres and half axes `[T, 2]`."""
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y], 1)


def smooth_quads(
    quads: np.ndarray,
    numbers: np.ndarray,
    cut: np.ndarray,
    centre_sigma: float = CENTRE_SIGMA,
    axes_sigma: float = AXES_SIGMA,
) -> np.ndarray:
    """Smooths quads over time, never across a cut or a long gap.

    A Gaussian, which does not lag, and stronger smoothing where the only movement is the landmarks'
    noise (`_denoise`), so that a still head has a still quad.

    Args:
        quads: `[T, 4, 2]`, NaN where there is no face.
        numbers: `[T]` frame numbers, increasing; they may have gaps.
        cut: `[T]` bool, true on the first frame of a new shot.
        centre_sigma: sigma for the square's centre, frames.
        axes_sigma: sigma for its size and rotation, frames.

    Returns:
        `[T, 4, 2]`. At most `core.face.temporal.MAX_GAP` frames without a face between two with one
        get an interpolated quad; other frames without a face stay NaN.
    """
    x, y = (quads[:, 3] - quads[:, 0]) / 2, (quads[:, 1] - quads[:, 0]) / 2

    def denoise(values: np.ndarray) -> np.ndarray:
        centre, axes = values[:, :2], values[:, 2:]
        max_noise = _MAX_NOISE * 2 * float(np.median(np.hypot(*axes[:, :2].T)))
        return np.concatenate(
            [_denoise(centre, centre_sigma, max_noise), _denoise(axes, axes_sigma, max_noise)], 1
        )

    values = _by_run(np.concatenate([quads.mean(1), x, y], 1), numbers, cut, denoise)
    return _corners(values[:, :2], values[:, 2:4], values[:, 4:])


def _by_run(
    values: np.ndarray,
    numbers: np.ndarray,
    cut: np.ndarray,
    smooth: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Applies `smooth` to every run of `values` `[T, D]`, with gaps filled by interpolation."""
    values = values.astype(np.float64)
    result = np.full_like(values, np.nan)
    for run in shot_runs(numbers, cut, np.isfinite(values).all(1)):
        dense = np.arange(numbers[run[0]], numbers[run[-1]] + 1)
        filled = np.stack([np.interp(dense, numbers[run], v) for v in values[run].T], 1)
        inside = slice(run[0], run[-1] + 1)
        result[inside] = smooth(filled)[numbers[inside] - dense[0]]
    return result


def _denoise(values: np.ndarray, sigma: float, max_noise: float) -> np.ndarray:
    """Smooths `[T, D]` with a Gaussian and shrinks the noise in the bands below it.

    The bands are differences of Gaussians of sigma, 2 sigma, 4 sigma and so on. Each is scaled by a
    local Wiener gain: as far as its energy around a frame exceeds that of white noise, so movement
    passes and noise does not. The noise is estimated from fourth differences, which heads are too
    smooth to affect unless they are shaken, and is at most `max_noise`.
    """
    finest = gaussian_filter1d(values, sigma, axis=0)
    if len(values) < 5:
        return finest
    noise = np.median(np.abs(np.diff(values, 4, axis=0)), 0) / (0.6745 * math.sqrt(70))
    noise = np.minimum(noise, max_noise)
    result, finer = 0.0, finest
    for _ in range(_OCTAVES):
        impulse = np.zeros(int(16 * sigma) + 1)
        impulse[len(impulse) // 2] = 1
        coarser = gaussian_filter1d(values, 2 * sigma, axis=0)
        response = gaussian_filter1d(impulse, sigma) - gaussian_filter1d(impulse, 2 * sigma)
        expected = (noise**2).sum() * (response**2).sum()
        band = finer - coarser
        energy = gaussian_filter1d((band**2).sum(1), 2 * sigma)
        gain = 1 - _NOISE_MARGIN * expected / np.maximum(energy, np.finfo(float).tiny)
        result = result + np.clip(gain, 0, 1)[:, None] * band
        finer, sigma = coarser, 2 * sigma
    return result + finer


# -- warps -------------------------------------------------------------------------------------


class Placed(NamedTuple):
    """An aligned picture in its plate, as the part of the plate around the face."""

    pixels: Tensor  # [C, h, w], not premultiplied by coverage
    coverage: Tensor  # [h, w] in 0..1, the share of each plate pixel that the square covers
    window: Window  # its position in the plate


def warp(image: Tensor, quads: Tensor, size: int) -> Tensor:
    """Cuts the aligned squares out of plates.

    Args:
        image: `[B, C, H, W]` plates, any float range.
        quads: `[B, 4, 2]` plate px.
        size: side of the result, px.

    Returns:
        `[B, C, size, size]`, bicubic, low-passed where the plate is shrunk. The plate is mirrored
        at its edges.

    Raises:
        ValueError: a quad that is NaN or is no parallelogram.

    Example:
        >>> plate = torch.zeros(1, 3, 40, 60)
        >>> plate[..., 10:30, 20:40] = 1
        >>> quads = torch.tensor([[[22.0, 12], [22, 28], [38, 28], [38, 12]]])  # in the white
        >>> crop = warp(plate, quads, 8)
        >>> crop.shape, round(float(crop.min()), 3)
        (torch.Size([1, 3, 8, 8]), 1.0)
    """
    return _resample(image, crop_to_plate(quads, size), (size, size), "reflection")


def paste(crop: Tensor, quad: Tensor, plate: tuple[int, int]) -> Placed | None:
    """Puts one aligned picture back into its plate: the inverse of `warp`.

    Args:
        crop: `[C, S, S]`.
        quad: `[4, 2]`, as given to `warp`.
        plate: width and height of the plate, px.

    Returns:
        The placed picture; None where the quad lies outside the plate.

    Raises:
        ValueError: a quad that is NaN or is no parallelogram.
    """
    size = crop.shape[-1]
    window = quad_window(quad.detach().cpu().numpy(), plate)
    if window is None:
        return None
    matrix = inverse_affine(crop_to_plate(quad[None], size))
    origin = matrix.new_tensor([window.x, window.y])
    matrix = torch.cat([matrix[..., :2], matrix[..., :2] @ origin[:, None] + matrix[..., 2:]], -1)
    shape = (window.height, window.width)
    pixels = _resample(crop[None], matrix, shape, "border")[0]
    solid = torch.ones_like(crop[None, :1])
    coverage = _resample(solid, matrix, shape, "zeros", "bilinear")[0, 0]
    return Placed(pixels, coverage.clamp(0, 1), window)


def from_square(points: np.ndarray, quad: np.ndarray) -> np.ndarray:
    """Maps points `[..., 2]` in sides of the aligned square to plate px, by its quad `[4, 2]`."""
    return quad[0] + points @ np.stack([quad[3] - quad[0], quad[1] - quad[0]])


def to_square(points: np.ndarray, quad: np.ndarray) -> np.ndarray:
    """Maps points `[..., 2]` in plate px to sides of the aligned square, by its quad `[4, 2]`."""
    return (points - quad[0]) @ np.linalg.inv(np.stack([quad[3] - quad[0], quad[1] - quad[0]]))


def quad_window(quad: np.ndarray, plate: tuple[int, int]) -> Window | None:
    """Returns the pixels of a plate (width, height) that a quad `[4, 2]` touches; None for none."""
    low = np.maximum(np.floor(quad.min(0)), 0).astype(int)
    high = np.minimum(np.ceil(quad.max(0)), plate).astype(int)
    if (high <= low).any():
        return None
    return Window(int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1]))


def crop_to_plate(quads: Tensor, size: int) -> Tensor:
    """Returns affine maps `[B, 2, 3]` from continuous crop px to continuous plate px.

    Raises:
        ValueError: a quad `[4, 2]` of `quads` `[B, 4, 2]` is NaN or no parallelogram.
    """
    quads = quads.to(torch.promote_types(quads.dtype, torch.float32))
    top_left, bottom_left, bottom_right, top_right = quads.unbind(1)
    side = (top_right - top_left).norm(dim=1)
    error = (top_left + bottom_right - top_right - bottom_left).norm(dim=1)
    if not bool((error <= 1e-3 * side).all()):  # NaN fails too
        raise ValueError("A quad must be a parallelogram of finite corners (TL, BL, BR, TR).")
    return torch.stack(
        [(top_right - top_left) / size, (bottom_left - top_left) / size, top_left], 2
    )


def inverse_affine(matrix: Tensor) -> Tensor:
    """Inverts affine maps `[B, 2, 3]`."""
    linear = torch.linalg.inv(matrix[..., :2])
    return torch.cat([linear, -linear @ matrix[..., 2:]], -1)


def _resample(
    image: Tensor, matrix: Tensor, shape: tuple[int, int], padding: str, mode: str = "bicubic"
) -> Tensor:
    """Resamples `[B, C, H, W]` by affine maps `[B, 2, 3]` from result px to image px.

    An image that shrinks is first sampled densely enough for every pixel to count, and then reduced
    by an antialiased filter.
    """
    dense = max(math.ceil(float(torch.linalg.matrix_norm(matrix[..., :2], 2).max()) - 1e-3), 1)
    margin = 2 if dense > 1 else 0  # the reach of the reducing filter, in result px
    height, width = (n + 2 * margin for n in shape)
    steps = torch.arange(max(height, width) * dense, dtype=matrix.dtype, device=matrix.device)
    steps = (steps + 0.5) / dense - margin
    x, y = torch.meshgrid(steps[: width * dense], steps[: height * dense], indexing="xy")
    points = torch.stack([x, y, torch.ones_like(x)], -1)
    extent = matrix.new_tensor([image.shape[3], image.shape[2]])
    grid = 2 * (points @ matrix[:, None].transpose(-1, -2)) / extent - 1
    # Half precision has too few digits for sampling positions.
    dtype = torch.promote_types(image.dtype, torch.float32)
    result = F.grid_sample(image.to(dtype), grid.to(dtype), mode, padding, align_corners=False)
    if dense > 1:
        result = F.interpolate(result, (height, width), mode="bicubic", antialias=True)
        result = result[..., margin:-margin, margin:-margin]
    return result.to(image.dtype)
