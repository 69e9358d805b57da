"""Whose face a picture shows: what measures it, and a proxy that needs no network of the user's.

The proxy uses features of the landmark network. They depend on a person's colours and outlines, but
were never trained to tell people apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.face.keypoints import FACE_OVAL
from core.face.network import CROP, aligned_roi, crop_roi, face_mesh
from core.face.perceptual import mesh_layers

PROXY = "proxy: features of the landmark network"

_INNER = 0.9  # share of the outline that the proxy uses, without hair and background
_SIDE = 200  # px, at which the ROI of the landmark network samples nearly every pixel


@dataclass(frozen=True)
class Recogniser:
    """Measures whose face a picture shows."""

    name: str
    # Aligned pictures `[B, 3, R, R]` in [-1, 1] and their meshes `[B, 478, 3]` in px of the 192 px
    # crop -> vectors `[B, D]` of length 1.
    embed: Callable[[Tensor, Tensor], Tensor]
    proxy: bool = False


def proxy_recogniser(device: torch.device | str = "cpu") -> Recogniser:
    """Returns the recogniser that needs no file.

    Its vectors are the landmark network's activations, averaged within the face's outline, less
    those of a grey picture, without which all cosines would be close to 1.
    """
    layers = mesh_layers(face_mesh(device=str(device)).net)
    grey = layers(torch.full((1, 3, CROP, CROP), 0.5, device=device))[0][0].detach()

    @torch.no_grad()
    def embed(pictures: Tensor, landmarks: Tensor) -> Tensor:
        sized = F.interpolate(pictures.float(), (_SIDE, _SIDE), mode="bilinear", antialias=True)
        roi = aligned_roi(_SIDE, len(pictures), device=pictures.device)
        features = layers(crop_roi(sized / 2 + 0.5, roi))[0][0] - grey
        inside = F.interpolate(
            _inner_faces(landmarks).to(features), features.shape[2:], mode="area"
        )
        return F.normalize((features * inside).sum((2, 3)), dim=1)

    return Recogniser(PROXY, embed, proxy=True)


def _inner_faces(landmarks: Tensor) -> Tensor:
    """Returns masks of the inner part of each face, `[B, 1, 192, 192]` of 0 and 1."""
    masks = np.zeros((len(landmarks), CROP, CROP), np.float32)
    for mask, outline in zip(masks, landmarks[:, list(FACE_OVAL), :2].cpu().numpy(), strict=True):
        inner = outline.mean(0) + _INNER * (outline - outline.mean(0))
        cv2.fillPoly(mask, [np.rint(inner).astype(np.int32)], (1.0,))
    return torch.from_numpy(masks)[:, None]
