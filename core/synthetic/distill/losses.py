"""Losses between generated pictures and the performer's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from core.face.landmarks import detect_landmarks

_EYE_CORNERS = (263, 33)  # the outer ones in MediaPipe's mesh


def pixel_weights(points: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Weights pixels: eyes and mouth are a few percent of a face and most of what is looked at.

    Args:
        points: alignment points `[B, 4, 2]`, eyes and mouth corners, in fractions of the picture.
        size: side of the picture, px.

    Returns:
        Weights `[B, 1, size, size]` of every pixel, and of the eyes alone.
    """
    at = (torch.arange(size, device=points.device) + 0.5) / size

    def bumps(centres: Tensor, width: float, height: float) -> Tensor:
        x = torch.exp(-(((at - centres[..., :1]) / width) ** 2))
        y = torch.exp(-(((at - centres[..., 1:]) / height) ** 2))
        return torch.einsum("bkh,bkw->bhw", y, x)

    eyes, mouth = points[:, :2], points[:, 2:].mean(1, keepdim=True)
    brows = eyes - points.new_tensor([0, 0.07])
    middle = points.mean(1, keepdim=True)
    eye = bumps(eyes, 0.075, 0.05)
    weight = 0.5 + 8 * eye + 4 * bumps(mouth, 0.11, 0.08) + 1.5 * bumps(brows, 0.08, 0.035)
    weight = weight + 0.8 * bumps(middle, 0.28, 0.30)
    return weight[:, None], eye[:, None]


def picture_loss(generated: Tensor, target: Tensor, points: Tensor) -> Tensor:
    """Weighted L1 on pixels and on gradients at three scales, and squared error in the eyes.

    Args:
        generated: `[B, 3, R, R]` in [-1, 1].
        target: the same shape.
        points: alignment points `[B, 4, 2]` of the target, in fractions of the picture.

    Returns:
        A scalar; 0 where both are the same.
    """
    weight, eye = pixel_weights(points, generated.shape[-1])
    error = generated - target
    total = (weight * error.abs()).mean() + 6 * (eye * error.square()).mean()
    for _ in range(3):
        dx, dy = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
        total = total + (weight[..., 1:] * dx.abs()).mean() + (weight[..., 1:, :] * dy.abs()).mean()
        if error.shape[-1] <= 16:
            break
        error, weight = F.avg_pool2d(error, 2), F.avg_pool2d(weight, 2)
    return total


def landmark_loss(generated: Tensor, target: Tensor) -> Tensor:
    """Mean distance of the landmarks detected in two sets of pictures `[B, 3, R, R]`.

    Returns:
        A scalar, in fractions of the distance between the outer eye corners.
    """
    one, other = _EYE_CORNERS
    with torch.no_grad():
        expected = detect_landmarks(target).landmarks[..., :2]
        span = (expected[:, one] - expected[:, other]).norm(dim=1)
    distance = (detect_landmarks(generated).landmarks[..., :2] - expected).norm(dim=2).mean(1)
    return (distance / span).mean()
