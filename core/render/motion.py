"""The face's velocity at every pixel of the plate, and the motion blur it causes."""

from __future__ import annotations

import cv2
import numpy as np
from scipy.interpolate import RBFInterpolator

from core.media.clip import Window

_GRID = 64  # points along the longer side at which the spline is evaluated
_SMOOTHING = 0.1  # px: points on the far side of a turned head coincide
_MAX_SAMPLES = 64  # along a blur


def velocity(before: np.ndarray | None, here: np.ndarray, after: np.ndarray | None) -> np.ndarray:
    """Returns the velocity of points at a frame, from their positions one frame before and after.

    Args:
        before: `[P, 2]`, or None at the start of a shot.
        here: `[P, 2]`.
        after: `[P, 2]`, or None at its end.

    Returns:
        `[P, 2]` px per frame: central difference, one-sided at the ends, 0 for a single frame.
    """
    first, last = (here if p is None else p for p in (before, after))
    return (last - first) / max((before is not None) + (after is not None), 1)


def field(points: np.ndarray, velocity: np.ndarray, window: Window) -> np.ndarray:
    """Interpolates the velocity of points to every pixel.

    Args:
        points: `[P, 2]`, continuous plate px.
        velocity: `[P, 2]`, px per frame.
        window: part of the plate.

    Returns:
        `[h, w, 2]` float32, px per frame, x to the right and y down: a biharmonic spline, smooth
        between the points and nearly affine beyond them.
    """
    fit = RBFInterpolator(points, velocity, kernel="linear", degree=1, smoothing=_SMOOTHING)
    step = max(window.width, window.height) / _GRID
    columns, rows = (int(np.ceil(n / step)) + 1 for n in (window.width, window.height))
    x, y = np.meshgrid(np.arange(columns) * step, np.arange(rows) * step)
    at = np.stack([window.x + x, window.y + y], -1).reshape(-1, 2)
    coarse = fit(at).reshape(rows, columns, 2).astype(np.float32)
    map_x, map_y = np.meshgrid(
        *(
            (np.arange(n, dtype=np.float32) + 0.5) / np.float32(step)
            for n in (window.width, window.height)
        )
    )
    return cv2.remap(coarse, map_x, map_y, cv2.INTER_LINEAR)


def blur(rgba: np.ndarray, velocity: np.ndarray, shutter: float) -> np.ndarray:
    """Applies the motion blur of an exposure that is centred on the frame.

    Args:
        rgba: `[h, w, 4]`, premultiplied.
        velocity: `[h, w, 2]`, px per frame, from `field`.
        shutter: degrees; 360 is a whole frame.

    Returns:
        `[h, w, 4]` float32.
    """
    open_for = shutter / 360
    longest = float(np.hypot(*velocity.reshape(-1, 2).T).max()) * open_for
    count = min(int(np.ceil(longest)) + 1, _MAX_SAMPLES)
    if longest < 0.05:
        return rgba
    y, x = np.mgrid[: rgba.shape[0], : rgba.shape[1]].astype(np.float32)
    total = np.zeros(rgba.shape, np.float32)
    for at in (np.arange(count) + 0.5) / count - 0.5:
        shift = np.float32(at * open_for) * velocity
        total += cv2.remap(
            rgba,
            x - shift[..., 0],
            y - shift[..., 1],
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
        )
    return total / count
