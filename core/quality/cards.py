"""Cards: one picture per frame for the report, driver beside result."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from core.face.keypoints import LEFT_EYE, OUTER_LIPS, RIGHT_EYE
from core.face.network import aligned_roi, to_picture
from core.media.write import to_bytes

CARD = (448, 400)  # px, width and height
FACE_TILE = 224  # px, side of the two faces in the card's upper part
# Below them: points in the middle of a strip, its width in distances of the eyes, its height in px.
_STRIPS = ((RIGHT_EYE + LEFT_EYE, 1.35, 72), (OUTER_LIPS, 1.0, 104))


def card(
    driver: Tensor | None, result: Tensor | None, driving: np.ndarray, generated: np.ndarray
) -> bytes:
    """Lays out driver and result side by side, with their eyes and mouths enlarged below.

    Args:
        driver: `[3, R, R]` in [-1, 1], any R; None leaves it blank.
        result: likewise.
        driving: the driver's mesh `[478, 3]`, px of the 192 px crop; NaN without a face.
        generated: the result's mesh, likewise.

    Returns:
        A JPEG of `CARD` px.
    """
    sheet = np.full((CARD[1], CARD[0], 3), 40, np.uint8)
    eye_distances = [float(np.linalg.norm(m[263, :2] - m[33, :2])) for m in (driving, generated)]
    eye_distance = np.nanmax(eye_distances) if np.isfinite(eye_distances).any() else 0.0
    for left, picture, mesh in ((0, driver, driving), (FACE_TILE, result, generated)):
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
                x, y = picture_points(mesh[list(points)], size).mean(0)
                # Both at one scale, centred on the facial part.
                scale = FACE_TILE / (eye_distance * width * _picture_scale(size))
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


def picture_points(landmarks: np.ndarray, size: int) -> np.ndarray:
    """Maps landmarks `[K, 3]` in px of the 192 px crop to px `[K, 2]` of an aligned picture.

    Args:
        landmarks: as above.
        size: side of the picture, px.
    """
    points = torch.from_numpy(np.asarray(landmarks, np.float32))[None]
    return to_picture(points, aligned_roi(size))[0, :, :2].numpy()


def _picture_scale(size: int) -> float:
    """Returns the px of a picture per px of the 192 px crop."""
    ends = picture_points(np.array([[0, 0, 0], [1, 0, 0]]), size)
    return float(ends[1, 0] - ends[0, 0])


def jpeg(rgb: np.ndarray, quality: int) -> bytes:
    """Encodes `[H, W, 3]` uint8 as a JPEG of a quality in 0..100."""
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality]
    return cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]), flags)[1].tobytes()
