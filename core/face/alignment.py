"""FFHQ alignment of faces in plates, and the exact way back.

A quad `[4, 2]` holds the corners of the aligned square in plate pixels, in FFHQ's order: top left,
bottom left, bottom right, top right. Plate coordinates are continuous with the origin at the top
left corner, so pixel `i` covers `i..i+1` and its centre is `i + 0.5`.

The framing is FFHQ's (Karras et al. 2019, data-set tool), from MediaPipe's equivalents of dlib's
points. As in "Stitch it in Time" (Tzaban et al. 2022) the quad is smoothed over time, not the
landmarks.
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
from core.media.clip import Window

# Frames without a face that smoothing bridges by interpolation; a longer gap separates.
MAX_GAP = 5
# Smoothing of quads over time, in frames: of the square's place, and of its size and turn, which
# change more slowly.
CENTRE_SIGMA = 1.0
AXES_SIGMA = 3.0
# Coarser scales at which noise is told from movement, and how often the energy of white noise
# counts as noise: the tracker's is not quite white, because each ROI follows the last landmarks.
_OCTAVES = 5
_NOISE_MARGIN = 6.0
_MOST_NOISE = 0.005  # of the square's side: more than a tracker's noise is a camera that shakes


def ffhq_quads(landmarks: np.ndarray, pixel_aspect: float = 1.0) -> np.ndarray:
    """The square that FFHQ's framing cuts out around each face.

    Args:
        landmarks: `[T, 478, 2 or 3]` mesh in MediaPipe's plate px (a pixel's centre is a whole
            number); NaN where there is no face.
        pixel_aspect: width of a plate pixel over its height; the quad is square on the screen.

    Returns:
        `[T, 4, 2]` float64, NaN where there is no face.
    """
    return quads_from_points(ffhq_points(landmarks), pixel_aspect)


def ffhq_points(landmarks: np.ndarray) -> np.ndarray:
    """The four points that decide FFHQ's framing.

    Args:
        landmarks: as for `ffhq_quads`.

    Returns:
        `[T, 4, 2]` float64, continuous plate px: right eye, left eye, right and left mouth corner.
    """
    xy = landmarks[..., :2].astype(np.float64) + 0.5
    eyes = [xy[:, [*eye]].mean(1) for eye in (DLIB_RIGHT_EYE, DLIB_LEFT_EYE)]
    return np.stack([*eyes, *(xy[:, corner] for corner in DLIB_MOUTH_CORNERS)], 1)


def quads_from_points(points: np.ndarray, pixel_aspect: float = 1.0) -> np.ndarray:
    """FFHQ's square around the four points of `ffhq_points`; returns as `ffhq_quads`."""
    points = points * [pixel_aspect, 1]
    right_eye, left_eye = points[:, 0], points[:, 1]
    mouth = points[:, 2:].mean(1)
    eyes = (right_eye + left_eye) / 2
    across, down = left_eye - right_eye, mouth - eyes
    # half the square's side, along the picture's rows: eyes and mouth both vote on the roll
    x = across + np.stack([down[:, 1], -down[:, 0]], 1)
    length = np.maximum(2.0 * np.hypot(*across.T), 1.8 * np.hypot(*down.T))
    x *= (length / np.hypot(*x.T))[:, None]
    y = np.stack([-x[:, 1], x[:, 0]], 1)
    return _corners(eyes + 0.1 * down, x, y) / [pixel_aspect, 1]


def _corners(centre: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Quads `[T, 4, 2]` from centres and half axes `[T, 2]`."""
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y], 1)


def smooth_quads(
    quads: np.ndarray,
    numbers: np.ndarray,
    cut: np.ndarray,
    centre_sigma: float = CENTRE_SIGMA,
    axes_sigma: float = AXES_SIGMA,
) -> np.ndarray:
    """Smoothing of quads over time, never across a cut or a long gap.

    A Gaussian, which does not lag; and where nothing moves but by the landmarks' noise, more of it
    (`_steady`), so that a head at rest has a quad at rest.

    Args:
        quads: `[T, 4, 2]`, NaN where there is no face.
        numbers: `[T]` frame numbers, increasing; they may have gaps.
        cut: `[T]` bool, true on the first frame of a new shot.
        centre_sigma: of the square's place, in frames.
        axes_sigma: of its size and turn, in frames; these change more slowly.

    Returns:
        `[T, 4, 2]`. Up to `MAX_GAP` frames without a face between two that have one get an
        interpolated quad; other frames without a face stay NaN.
    """
    x, y = (quads[:, 3] - quads[:, 0]) / 2, (quads[:, 1] - quads[:, 0]) / 2

    def steady(values: np.ndarray) -> np.ndarray:
        centre, axes = values[:, :2], values[:, 2:]
        most = _MOST_NOISE * 2 * float(np.median(np.hypot(*axes[:, :2].T)))
        return np.concatenate(
            [_steady(centre, centre_sigma, most), _steady(axes, axes_sigma, most)], 1
        )

    values = _over_time(np.concatenate([quads.mean(1), x, y], 1), numbers, cut, steady)
    return _corners(values[:, :2], values[:, 2:4], values[:, 4:])


def _over_time(
    values: np.ndarray,
    numbers: np.ndarray,
    cut: np.ndarray,
    smooth: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Applies `smooth` to every stretch of `values` `[T, D]`, gaps filled by interpolation."""
    values = values.astype(np.float64)
    result = np.full_like(values, np.nan)
    for run in shot_runs(numbers, cut, np.isfinite(values).all(1)):
        dense = np.arange(numbers[run[0]], numbers[run[-1]] + 1)
        filled = np.stack([np.interp(dense, numbers[run], v) for v in values[run].T], 1)
        inside = slice(run[0], run[-1] + 1)
        result[inside] = smooth(filled)[numbers[inside] - dense[0]]
    return result


def _steady(values: np.ndarray, sigma: float, most: float) -> np.ndarray:
    """Gaussian smoothing of `[T, D]`, and wavelet shrinkage of what it leaves.

    What lies between Gaussians of sigma, twice sigma and so on is kept as far as there is more of
    it around a frame than white noise would give (a local Wiener gain): movements pass, noise does
    not. Fourth differences tell the noise, which is at most `most`: heads move too smoothly to
    show in them, unless they are shaken.
    """
    finest = gaussian_filter1d(values, sigma, axis=0)
    if len(values) < 5:
        return finest
    noise = np.median(np.abs(np.diff(values, 4, axis=0)), 0) / (0.6745 * math.sqrt(70))
    noise = np.minimum(noise, most)
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


def shot_runs(numbers: np.ndarray, cut: np.ndarray, valid: np.ndarray) -> list[np.ndarray]:
    """Stretches of a shot that belong together.

    Args:
        numbers: `[T]` frame numbers, increasing.
        cut: `[T]` bool, true on the first frame of a new shot.
        valid: `[T]` bool.

    Returns:
        Indices of valid frames, split at cuts and at gaps longer than `MAX_GAP`.
    """
    indices = np.flatnonzero(valid)
    shot = np.cumsum(cut)[indices]
    gap = np.diff(numbers[indices]) - 1
    splits = np.flatnonzero((gap > MAX_GAP) | (np.diff(shot) > 0)) + 1
    return [run for run in np.split(indices, splits) if len(run)]


def near_in_time(
    numbers: np.ndarray, cut: np.ndarray, row: int, sigma: float
) -> tuple[np.ndarray, np.ndarray]:
    """The frames that a Gaussian around one of them reaches, never across a cut.

    Args:
        numbers: `[T]` frame numbers, increasing; they may have gaps.
        cut: `[T]` bool, true on the first frame of a new shot.
        row: index of the frame in the middle.
        sigma: in frames; more than 0.

    Returns:
        Their indices, increasing, and their weights, which add up to 1.
    """
    shot = np.cumsum(cut)
    distance = numbers - numbers[row]
    rows = np.flatnonzero((shot == shot[row]) & (np.abs(distance) <= 3 * sigma))
    gauss = np.exp(-0.5 * (distance[rows] / sigma) ** 2)
    return rows, gauss / gauss.sum()


# -- warps -------------------------------------------------------------------------------------


class Placed(NamedTuple):
    """An aligned picture put back into its plate; only the part around the face."""

    pixels: Tensor  # [C, h, w], not multiplied by coverage
    coverage: Tensor  # [h, w] in 0..1, how much of each plate pixel the square covers
    window: Window  # where it lies in the plate


def warp(image: Tensor, quads: Tensor, size: int) -> Tensor:
    """Cuts the aligned squares out of plates.

    Args:
        image: `[B, C, H, W]` plates, any float range.
        quads: `[B, 4, 2]` in plate px.
        size: side of the result in px.

    Returns:
        `[B, C, size, size]`. Bicubic, low-passed where the plate is shrunk; beyond its edge the
        plate is mirrored.

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
    return _resample(image, _plate_from_crop(quads, size), (size, size), "reflection")


def paste(crop: Tensor, quad: Tensor, plate: tuple[int, int]) -> Placed | None:
    """The inverse of `warp`: puts one aligned picture back into its plate.

    Args:
        crop: `[C, S, S]`.
        quad: `[4, 2]`, as given to `warp`.
        plate: width and height of the plate in px.

    Returns:
        The placed picture, or None where the quad lies outside the plate.

    Raises:
        ValueError: a quad that is NaN or is no parallelogram.
    """
    size = crop.shape[-1]
    window = quad_window(quad.detach().cpu().numpy(), plate)
    if window is None:
        return None
    matrix = _invert(_plate_from_crop(quad[None], size))
    origin = matrix.new_tensor([window.x, window.y])
    matrix = torch.cat([matrix[..., :2], matrix[..., :2] @ origin[:, None] + matrix[..., 2:]], -1)
    shape = (window.height, window.width)
    pixels = _resample(crop[None], matrix, shape, "border")[0]
    solid = torch.ones_like(crop[None, :1])
    coverage = _resample(solid, matrix, shape, "zeros", "bilinear")[0, 0]
    return Placed(pixels, coverage.clamp(0, 1), window)


def from_square(points: np.ndarray, quad: np.ndarray) -> np.ndarray:
    """Points `[..., 2]` in sides of the aligned square -> plate px of a quad `[4, 2]`."""
    return quad[0] + points @ np.stack([quad[3] - quad[0], quad[1] - quad[0]])


def to_square(points: np.ndarray, quad: np.ndarray) -> np.ndarray:
    """The inverse of `from_square`."""
    return (points - quad[0]) @ np.linalg.inv(np.stack([quad[3] - quad[0], quad[1] - quad[0]]))


def quad_window(quad: np.ndarray, plate: tuple[int, int]) -> Window | None:
    """The pixels of a plate (width, height) that a quad `[4, 2]` touches, or None."""
    low = np.maximum(np.floor(quad.min(0)), 0).astype(int)
    high = np.minimum(np.ceil(quad.max(0)), plate).astype(int)
    if (high <= low).any():
        return None
    return Window(int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1]))


def _plate_from_crop(quads: Tensor, size: int) -> Tensor:
    """Affine maps `[B, 2, 3]` from continuous crop px to continuous plate px."""
    quads = quads.to(torch.promote_types(quads.dtype, torch.float32))
    top_left, bottom_left, bottom_right, top_right = quads.unbind(1)
    side = (top_right - top_left).norm(dim=1)
    error = (top_left + bottom_right - top_right - bottom_left).norm(dim=1)
    if not bool((error <= 1e-3 * side).all()):  # NaN fails too
        raise ValueError("A quad must be a parallelogram of finite corners (TL, BL, BR, TR).")
    return torch.stack(
        [(top_right - top_left) / size, (bottom_left - top_left) / size, top_left], 2
    )


def _invert(matrix: Tensor) -> Tensor:
    linear = torch.linalg.inv(matrix[..., :2])
    return torch.cat([linear, -linear @ matrix[..., 2:]], -1)


def _resample(
    image: Tensor, matrix: Tensor, shape: tuple[int, int], padding: str, mode: str = "bicubic"
) -> Tensor:
    """Resamples `[B, C, H, W]` by affine maps `[B, 2, 3]` from result px to image px.

    Where the image is shrunk it is first sampled densely enough for every pixel to count, and
    then reduced by an antialiased filter.
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


# -- for the compositor ------------------------------------------------------------------------


def stmap_to_crop(quad: np.ndarray, plate: tuple[int, int], size: int) -> np.ndarray:
    """STMap that cuts the aligned square out of the plate.

    Nuke's convention: u, v in 0..1 over the source, origin bottom left, sampled at pixel centres.

    Args:
        quad: `[4, 2]` in plate px.
        plate: width and height of the plate in px.
        size: side of the aligned square in px.

    Returns:
        `[size, size, 2]` float32, rows from the top.
    """
    return _stmap(_plate_from_crop(torch.as_tensor(quad[None]), size), (size, size), plate)


def stmap_to_plate(quad: np.ndarray, window: Window) -> np.ndarray:
    """STMap that puts the aligned square into the plate; u, v leave 0..1 outside the square.

    Args:
        quad: `[4, 2]` in plate px.
        window: the part of the plate to make it for.

    Returns:
        `[h, w, 2]` float32, rows from the top; conventions as `stmap_to_crop`.
    """
    matrix = _invert(_plate_from_crop(torch.as_tensor(quad[None]), 1))
    return _stmap(matrix, (window.height, window.width), (1, 1), (window.x, window.y))


def _stmap(
    matrix: Tensor,
    shape: tuple[int, int],
    source: tuple[int, int],
    origin: tuple[int, int] = (0, 0),
) -> np.ndarray:
    """u, v into a source (width, height) by an affine map from result px to source px."""
    m = matrix[0].double().numpy()
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    x, y = x + origin[0], y + origin[1]
    u = (m[0, 0] * x + m[0, 1] * y + m[0, 2]) / source[0]
    v = 1 - (m[1, 0] * x + m[1, 1] * y + m[1, 2]) / source[1]
    return np.stack([u, v], -1).astype(np.float32)


def corner_pin(quads: np.ndarray, plate_height: int) -> np.ndarray:
    """`to1..to4` of a Nuke CornerPin2D that places the aligned square in the plate.

    Args:
        quads: `[..., 4, 2]` in plate px, origin top left.
        plate_height: in px.

    Returns:
        `[..., 4, 2]`: bottom left, bottom right, top right, top left; origin bottom left. The
        matching `from1..from4` are the corners of the square in the same order.
    """
    corners = quads[..., [1, 2, 3, 0], :]
    return np.stack([corners[..., 0], plate_height - corners[..., 1]], -1)
