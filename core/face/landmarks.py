"""Landmarks of aligned pictures: detection, and the error by which faces are compared."""

from typing import NamedTuple

import torch
from torch import Tensor

from core.face.keypoints import GROUPS, KEYPOINTS
from core.face.network import CROP, FaceMesh, aligned_roi, crop_roi, face_mesh, to_picture

# Jitter of the fixed ROI over the crops that are averaged: of its centre (x, y), as a fraction of
# its size, of the logarithm of its size, and of its turn, radians. The crops come in pairs of
# opposite signs, so that shifts which follow the jitter cancel.
_CROP_JITTER = (0.02, 0.02, 0.06, 0.07)
_CROP_JITTER_SIGNS = (
    (1, 1, 1, 1),
    (1, -1, 1, -1),
    (1, 1, -1, -1),
    (1, -1, -1, 1),
)  # and their opposites


class Observation(NamedTuple):
    """Aligned pictures and the landmarks detected in them."""

    pictures: Tensor  # [B, 3, R, R] in [-1, 1]
    landmarks: Tensor  # [B, 478, 3], px of the 192 px crop

    @property
    def keypoints(self) -> Tensor:
        """[B, 86, 3]."""
        return self.landmarks[:, KEYPOINTS]


def detect_landmarks(pictures: Tensor, mesh: FaceMesh | None = None) -> Observation:
    """Detects the landmarks of aligned pictures, differentiably.

    Args:
        pictures: `[B, 3, R, R]` in [-1, 1], any R.
        mesh: the landmark network; by default the shared one of the pictures' device.
    """
    mesh = mesh or face_mesh(device=str(pictures.device))
    roi = aligned_roi(pictures.shape[-1], len(pictures), device=pictures.device)
    crop = crop_roi(pictures * 0.5 + 0.5, roi.to(pictures.dtype))
    return Observation(pictures, mesh(crop).landmarks)


def detect_averaged(pictures: Tensor) -> Observation:
    """Detects landmarks averaged over eight slightly different crops, without gradient.

    This is test-time augmentation. A single crop's landmarks are off by more than some movements of
    a face, gaze above all.

    Args:
        pictures: `[B, 3, R, R]` in [-1, 1], any R.
    """
    mesh = face_mesh(device=str(pictures.device))
    fixed = aligned_roi(pictures.shape[-1], 1, device=pictures.device)
    offset, size = fixed[:, :2], fixed[:, 2:4]
    jitter = fixed.new_tensor(_CROP_JITTER_SIGNS) * fixed.new_tensor(_CROP_JITTER)
    shift, zoom, turn = torch.cat([jitter, -jitter]).split([2, 1, 1], 1)
    roi = torch.cat([offset + size * shift, size * zoom.exp(), fixed[:, 4:] + turn], 1)
    meshes = []
    with torch.no_grad():
        for picture in pictures:  # alone, so that a result does not depend on the batch
            crop = crop_roi(picture[None] * 0.5 + 0.5, roi.to(pictures.dtype))
            meshes.append(to_picture(mesh(crop).landmarks, roi).mean(0))
    landmarks = torch.stack(meshes)
    xy = (landmarks[..., :2] - offset) / size + 0.5
    depth = landmarks[..., 2:] / size[:, :1]
    return Observation(pictures, CROP * torch.cat([xy, depth], -1))


def detect_keypoints(pictures: Tensor) -> Tensor:
    """Detects the keypoints `[B, 86, 3]`, px of the 192 px crop, as `detect_landmarks` does."""
    return detect_landmarks(pictures).keypoints


def group_keypoints(keypoints: Tensor) -> Tensor:
    """Removes each facial part's position: zero mean per part, except for the head frame.

    Args:
        keypoints: `[..., 86, 3]` in the order of `KEYPOINTS`.
    """
    parts = keypoints.split([len(points) for points in GROUPS.values()], -2)
    return torch.cat(
        [
            part if name == "head" else part - part.mean(-2, keepdim=True)
            for name, part in zip(GROUPS, parts, strict=True)
        ],
        -2,
    )


def keypoint_error(a: Tensor, b: Tensor) -> Tensor:
    """Returns the mean distance of grouped keypoints `[..., 86, 3]`, px: the reported error."""
    return group_keypoints(a - b).norm(dim=-1).mean(-1)
