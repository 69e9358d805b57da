"""The performer's faces: a self-scan, and aligned ones as the solver gets them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.face.alignment import ffhq_quads, warp
from core.face.network import crop_roi, face_detector, face_mesh, to_picture
from core.media.write import write_png
from core.synthetic.performer import INDEX, random_identity, render, self_scan

SIDE = 256  # px, of the pictures that faces are cut out of


def film_scan(folder: Path, frames: int) -> str:
    """Films the self-scan of a person, 160 px, from frame 1 on; returns its pattern."""
    for number, parameters in enumerate(self_scan(random_identity(6), frames, seed=6), 1):
        write_png(folder / f"scan.{number:04d}.png", render(parameters, 160))
    return str(folder / "scan.####.png")


def acted(identity: int, *moves: dict[str, float]) -> np.ndarray:
    """[T, P] parameters of a person who makes one face per row."""
    params = np.tile(random_identity(identity), (len(moves), 1))
    for row, move in zip(params, moves, strict=True):
        for name, value in move.items():
            row[INDEX[name]] = value
    return params


def squares(params: np.ndarray) -> np.ndarray:
    """[T, 4, 2] corners of the aligned squares, px of the performer's pictures of `SIDE` px."""
    return np.stack([_square(_film(p)) for p in params])


def aligned(params: np.ndarray, size: int) -> Tensor:
    """[T, 3, size, size] in [-1, 1], aligned by detection as every clip is."""
    crops = []
    for p in params:
        image = _film(p)
        quad = torch.from_numpy(_square(image)[None]).float()
        crops.append(warp(image, quad, size)[0] * 2 - 1)
    return torch.stack(crops).clamp(-1, 1)


def _film(params: np.ndarray) -> Tensor:
    return torch.from_numpy(render(params, SIDE)).permute(2, 0, 1)[None] / 255


def _square(image: Tensor) -> np.ndarray:
    roi = face_detector()(image).roi[:1]
    with torch.no_grad():
        landmarks = to_picture(face_mesh()(crop_roi(image, roi)).landmarks, roi)
    return ffhq_quads(landmarks.numpy())[0]
