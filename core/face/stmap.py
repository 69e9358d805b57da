"""The alignment in Nuke's terms: STMaps between plate and aligned square, and corner pins.

Convention:
    An STMap holds u, v in 0..1 over its source with the origin at the bottom left, sampled at pixel
    centres. Its rows are stored from the top. Quads are those of `core.face.alignment`.
"""

import numpy as np
import torch
from torch import Tensor

from core.face.alignment import crop_to_plate, inverse_affine
from core.media.clip import Window


def stmap_to_crop(quad: np.ndarray, plate: tuple[int, int], size: int) -> np.ndarray:
    """Returns the STMap that cuts the aligned square out of the plate.

    Args:
        quad: `[4, 2]` plate px.
        plate: width and height of the plate, px.
        size: side of the aligned square, px.

    Returns:
        `[size, size, 2]` float32.
    """
    return _stmap(crop_to_plate(torch.as_tensor(quad[None]), size), (size, size), plate)


def stmap_to_plate(quad: np.ndarray, window: Window) -> np.ndarray:
    """Returns the STMap that puts the aligned square into the plate.

    Args:
        quad: `[4, 2]` plate px.
        window: the part of the plate that it covers.

    Returns:
        `[h, w, 2]` float32; u, v leave 0..1 outside the square.
    """
    matrix = inverse_affine(crop_to_plate(torch.as_tensor(quad[None]), 1))
    return _stmap(matrix, (window.height, window.width), (1, 1), (window.x, window.y))


def _stmap(
    matrix: Tensor,
    shape: tuple[int, int],
    source: tuple[int, int],
    origin: tuple[int, int] = (0, 0),
) -> np.ndarray:
    """Returns u, v `[h, w, 2]` into a source (width, height).

    Args:
        matrix: `[1, 2, 3]`, the affine map from result px to source px.
        shape: height and width of the result.
        source: width and height.
        origin: x and y of the result's first pixel.
    """
    m = matrix[0].double().numpy()
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    x, y = x + origin[0], y + origin[1]
    u = (m[0, 0] * x + m[0, 1] * y + m[0, 2]) / source[0]
    v = 1 - (m[1, 0] * x + m[1, 1] * y + m[1, 2]) / source[1]
    return np.stack([u, v], -1).astype(np.float32)


def corner_pin(quads: np.ndarray, plate_height: int) -> np.ndarray:
    """Returns `to1..to4` of a Nuke CornerPin2D that places the aligned square in the plate.

    Args:
        quads: `[..., 4, 2]` plate px, origin top left.
        plate_height: px.

    Returns:
        `[..., 4, 2]` px, origin bottom left: bottom left, bottom right, top right, top left. The
        matching `from1..from4` are the corners of the square in the same order.
    """
    corners = quads[..., [1, 2, 3, 0], :]
    return np.stack([corners[..., 0], plate_height - corners[..., 1]], -1)
