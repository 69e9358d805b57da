"""Pictures of marked frames for the report."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from core.face.keypoints import LEFT_EYE, OUTER_LIPS, RIGHT_EYE
from core.face.network import aligned_roi, to_picture
from core.media.write import to_bytes


def pixels(landmarks: np.ndarray, size: int) -> np.ndarray:
    """Landmarks `[K, 3]` in px of the 192 px crop -> `[K, 2]` px of a picture."""
    points = torch.from_numpy(np.asarray(landmarks, np.float32))[None]
    return to_picture(points, aligned_roi(size))[0, :, :2].numpy()


CARD = (448, 400)  # px, width and height
FACE_TILE = 224  # px: the card's upper part is two of them, driver and result
_STRIPS = ((RIGHT_EYE + LEFT_EYE, 1.35, 72), (OUTER_LIPS, 1.0, 104))  # points, width, height in px


def card(
    driver: Tensor | None, result: Tensor | None, driven: np.ndarray, made: np.ndarray
) -> bytes:
    """A frame for people: driver and result side by side, below them their eyes and mouths.

    Args:
        driver: `[3, R, R]` in [-1, 1], any R; None for a blank.
        result: as `driver`.
        driven: the driver's mesh `[478, 3]`, px of the 192 px crop.
        made: the result's.

    Returns:
        A JPEG of `CARD` px.
    """
    sheet = np.full((CARD[1], CARD[0], 3), 40, np.uint8)
    spans = [float(np.linalg.norm(m[263, :2] - m[33, :2])) for m in (driven, made)]
    span = np.nanmax(spans) if np.isfinite(spans).any() else 0.0
    for left, picture, mesh in ((0, driver, driven), (FACE_TILE, result, made)):
        if picture is None:
            continue
        rgb = to_bytes(picture.permute(1, 2, 0).float().cpu().numpy() / 2 + 0.5)
        size = len(rgb)
        tile = (FACE_TILE, FACE_TILE)
        kind = cv2.INTER_AREA if size > FACE_TILE else cv2.INTER_CUBIC
        sheet[:FACE_TILE, left : left + FACE_TILE] = cv2.resize(rgb, tile, interpolation=kind)
        top = FACE_TILE
        for points, width, height in _STRIPS:
            if np.isfinite(mesh).all():
                x, y = pixels(mesh[list(points)], size).mean(0)
                # Both pictures at one scale, about the part's own middle.
                scale = FACE_TILE / (span * width * pixels_per_unit(size))
                move = [[scale, 0, FACE_TILE / 2 - scale * x], [0, scale, height / 2 - scale * y]]
                strip = cv2.warpAffine(
                    rgb,
                    np.array(move),
                    (FACE_TILE, height),
                    flags=cv2.INTER_CUBIC,
                    borderMode=cv2.BORDER_REPLICATE,
                )
                sheet[top : top + height, left : left + FACE_TILE] = strip
            top += height
    return jpeg(sheet, 88)


def pixels_per_unit(size: int) -> float:
    ends = pixels(np.array([[0, 0, 0], [1, 0, 0]]), size)
    return float(ends[1, 0] - ends[0, 0])


def jpeg(rgb: np.ndarray, quality: int) -> bytes:
    """A JPEG of `[H, W, 3]` uint8."""
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality]
    return cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]), flags)[1].tobytes()
