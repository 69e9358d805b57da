"""Landmarks of aligned pictures, as the objective compares them."""

from typing import NamedTuple

import torch
from torch import Tensor

from core.face.keypoints import GROUPS, KEYPOINTS
from core.face.network import CROP, FaceMesh, aligned_roi, crop_roi, face_mesh, to_picture

# How the fixed ROI is varied where a face is looked at closely: its centre and the logarithm of its
# size, over its size, and its turn, radians. Whatever shifts a mesh alike for +1 and -1 cancels.
_CROP_JITTER = (0.02, 0.02, 0.06, 0.07)
_CROP_JITTER_SIGNS = (
    (1, 1, 1, 1),
    (1, -1, 1, -1),
    (1, 1, -1, -1),
    (1, -1, -1, 1),
)  # and their opposites


class Observation(NamedTuple):
    """Aligned pictures and the meshes seen in them."""

    pictures: Tensor  # [B, 3, R, R] in [-1, 1]
    landmarks: Tensor  # [B, 478, 3], px of the 192 px crop

    @property
    def keypoints(self) -> Tensor:
        """[B, 86, 3]."""
        return self.landmarks[:, KEYPOINTS]


def detect_landmarks(pictures: Tensor, mesh: FaceMesh | None = None) -> Observation:
    """Finds the meshes of aligned pictures, differentiably.

    Args:
        pictures: `[B, 3, R, R]` in [-1, 1], any R.
        mesh: the landmark network; by default the shared one of the pictures' device.
    """
    mesh = mesh or face_mesh(device=str(pictures.device))
    roi = aligned_roi(pictures.shape[-1], len(pictures), device=pictures.device)
    crop = crop_roi(pictures * 0.5 + 0.5, roi.to(pictures.dtype))
    return Observation(pictures, mesh(crop).landmarks)


def detect_averaged(pictures: Tensor) -> Observation:
    """The mean of the meshes of eight slightly different crops, without gradient.

    One crop's mesh is off by more than some of what a face does, gaze above all. So this is what
    is compared; a search, which can't afford it at every step, takes out what its looks are off.

    Args:
        pictures: `[B, 3, R, R]` in [-1, 1], any R.
    """
    mesh = face_mesh(device=str(pictures.device))
    fixed = aligned_roi(pictures.shape[-1], 1, device=pictures.device)
    offset, size = fixed[:, :2], fixed[:, 2:4]
    glances = fixed.new_tensor(_CROP_JITTER_SIGNS) * fixed.new_tensor(_CROP_JITTER)
    shift, zoom, turn = torch.cat([glances, -glances]).split([2, 1, 1], 1)
    roi = torch.cat([offset + size * shift, size * zoom.exp(), fixed[:, 4:] + turn], 1)
    meshes = []
    with torch.no_grad():
        for picture in pictures:  # alone: what is seen must not depend on what it is seen with
            crop = crop_roi(picture[None] * 0.5 + 0.5, roi.to(pictures.dtype))
            meshes.append(to_picture(mesh(crop).landmarks, roi).mean(0))
    landmarks = torch.stack(meshes)
    xy = (landmarks[..., :2] - offset) / size + 0.5
    depth = landmarks[..., 2:] / size[:, :1]
    return Observation(pictures, CROP * torch.cat([xy, depth], -1))


def detect_keypoints(pictures: Tensor) -> Tensor:
    """The keypoints `[B, 86, 3]`, px of the 192 px crop, of pictures as in `look`."""
    return detect_landmarks(pictures).keypoints


def group_keypoints(keypoints: Tensor) -> Tensor:
    """Takes out where each facial part is: zero mean per part, but for the head frame.

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
    """Mean distance of grouped keypoints `[..., 86, 3]`, px: the figure to report, `[...]`."""
    return group_keypoints(a - b).norm(dim=-1).mean(-1)
