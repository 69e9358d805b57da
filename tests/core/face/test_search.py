"""Finding faces that a single coarse search misses: whole figures, rolled faces, small ones."""

import math
from unittest import mock

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from core.face.alignment import ffhq_points, ffhq_quads
from core.face.network import FaceDetector, face_detector, face_mesh
from core.face.search import THOROUGH_STAGES, find_face
from core.face.tracking import FaceState, track_face
from core.synthetic import performer
from core.synthetic.performer import INDEX

GREY = 128


def frame(
    seed: int, shape: tuple[int, int], side: int, at: tuple[int, int], roll: float = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A performer's head, rolled clockwise, above an oval body; and its eyes and mouth corners.

    The square of the head has `side` px around `at`; the points are `[4, 2]` px.
    """
    p = performer.random_identity(seed)
    for name in ("bg_clutter", "bg_gradient"):
        p[INDEX[name]] = 0
    height, width = shape
    plate = np.full((height, width, 3), GREY, np.uint8)
    x, y = at
    down = np.array([-math.sin(math.radians(roll)), math.cos(math.radians(roll))])
    body = np.array(at) + down * side * 1.7
    size = (int(side * 0.9), int(side * 1.6))
    cv2.ellipse(plate, tuple(map(int, body)), size, roll, 0, 360, (160, 120, 60), -1)
    matrix = cv2.getRotationMatrix2D((side / 2, side / 2), -roll, 1)
    matrix[:, 2] += np.array(at) - side / 2
    mask = cv2.ellipse(
        np.zeros((side, side), np.float32), (side // 2, side // 2),
        (int(side * 0.36), side // 2), 0, 0, 360, 1, -1,
    )  # fmt: skip
    head = performer.render(p, max(side, 64)).astype(np.float32)
    head = cv2.resize(head, (side, side), interpolation=cv2.INTER_AREA)
    head, mask = (cv2.warpAffine(a, matrix, (width, height)) for a in (head, mask))
    plate = np.where(mask[..., None] > 0.5, head, plate).astype(np.uint8)
    points = performer.landmarks(p)
    corners = [points[n] for n in ("eye_r", "eye_l", "mouth_r", "mouth_l")]
    return plate, np.array(corners) * side @ matrix[:, :2].T + matrix[:, 2]


def off(landmarks: np.ndarray, truth: np.ndarray) -> float:
    """Mean distance from the truth, over the distance between eyes and mouth."""
    points = ffhq_points(landmarks[None])[0]
    length = np.hypot(*(truth[:2].mean(0) - truth[2:].mean(0)))
    return float(np.hypot(*(points - truth).T).mean() / length)


def tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


def clip(pictures: list[np.ndarray]) -> list[tuple[int, np.ndarray]]:
    return [(1001 + i, p.astype(np.float32) / 255) for i, p in enumerate(pictures)]
