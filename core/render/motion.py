"""The face's movement in the plate, pixel by pixel, and the blur that it leaves in an exposure."""

from __future__ import annotations

import cv2
import numpy as np
from scipy.interpolate import RBFInterpolator

from core.media.clip import Window

_GRID = 64  # points along the longer side at which the field is worked out
_SMOOTHING = 0.1  # px: points of a turned head's far side lie on one another
_MOST = 64  # samples along a blur


def velocity(before: np.ndarray | None, here: np.ndarray, after: np.ndarray | None) -> np.ndarray:
    """How points move at a frame, from their places one frame before and after.

    Args:
        before: `[P, 2]`, or None at the start of a shot.
        here: `[P, 2]`.
        after: `[P, 2]`, or None at its end.

    Returns:
        `[P, 2]` px per frame: central difference, one-sided at the ends, 0 for a single frame.
    """
    first, last = (here if p is None else p for p in (before, after))
    return (last - first) / max((before is not None) + (after is not None), 1)


def field(points: np.ndarray, moves: np.ndarray, window: Window) -> np.ndarray:
    """A velocity for every pixel.

    Args:
        points: `[P, 2]`, continuous plate px.
        moves: `[P, 2]`, px per frame.
        window: of the plate.

    Returns:
        `[h, w, 2]` float32, px per frame, x to the right and y down: smooth between the
        points (biharmonic spline), beyond them nearly affine.
    """
    fit = RBFInterpolator(points, moves, kernel="linear", degree=1, smoothing=_SMOOTHING)
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


def blur(rgba: np.ndarray, moves: np.ndarray, shutter: float) -> np.ndarray:
    """Motion blur over an exposure centred on the frame.

    Args:
        rgba: `[h, w, 4]`, multiplied by alpha.
        moves: `[h, w, 2]`, px per frame, as `field` gives them.
        shutter: degrees; 360 is a whole frame.

    Returns:
        `[h, w, 4]` float32.
    """
    open_for = shutter / 360
    longest = float(np.hypot(*moves.reshape(-1, 2).T).max()) * open_for
    count = min(int(np.ceil(longest)) + 1, _MOST)
    if longest < 0.05:
        return rgba
    y, x = np.mgrid[: rgba.shape[0], : rgba.shape[1]].astype(np.float32)
    total = np.zeros(rgba.shape, np.float32)
    for at in (np.arange(count) + 0.5) / count - 0.5:
        shift = np.float32(at * open_for) * moves
        total += cv2.remap(
            rgba,
            x - shift[..., 0],
            y - shift[..., 1],
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
        )
    return total / count
