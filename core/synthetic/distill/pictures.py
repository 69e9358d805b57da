"""Pictures to learn from: aligned draws of the performer, rendered once and kept as shards."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.base.files import atomic_write
from core.face.alignment import ffhq_points, quads_from_points, warp
from core.face.network import crop_roi, face_detector, face_mesh, to_picture
from core.synthetic import performer
from core.synthetic.parameters import HIGH, LOW, MOTION, PARAMETERS, from_normal, mirror

SHARD = 512  # pictures per file
HELD_OUT = 512  # pictures of the first shards, never trained on
Z_DIM = 512
CALIBRATION = 1536  # pictures on which MediaPipe's alignment is learnt

_POINTS = 4  # FFHQ's alignment points: two eyes, two mouth corners


def draw_normals(seed: int, count: int) -> np.ndarray:
    """Draws standard normals of the performer's parameters, `[count, P]` float64."""
    return np.random.default_rng(seed).standard_normal((count, len(PARAMETERS)))


def latents(normals: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Makes latents of draws: the normals, then noise so that |z|^2 = 512.

    Args:
        normals: `[B, P]`.
        generator: of the noise; by default torch's global one.

    Returns:
        z `[B, 512]`.
    """
    noise = torch.randn(len(normals), Z_DIM - normals.shape[1], generator=generator).to(normals)
    # A draw of unusually large normals leaves little for the noise, but never nothing.
    left = (Z_DIM - normals.square().sum(1)).clamp(min=1.0)
    noise = noise * (left / noise.square().sum(1)).sqrt()[:, None]
    return torch.cat([normals, noise], 1)


# -- alignment ---------------------------------------------------------------------------------


def calibrate(folder: Path, seed: int, size: int = 256) -> np.ndarray:
    """Learns MediaPipe's alignment points from the performer's parameters.

    Measured on each picture they would jitter with the landmark network's noise, and the target
    would no longer be a smooth function of z.

    Args:
        folder: keeps the result as `align.npy`, from which it is read the next time.
        seed: of the draws.
        size: of the rendered pictures, px.

    Returns:
        Ridge-regression weights `[features, 8]`, for points in fractions of the plate.
    """
    path = folder / "align.npy"
    if path.exists():
        return np.load(path)
    params = from_normal(draw_normals(seed, CALIBRATION))
    mesh, detector = face_mesh(), face_detector()
    with_face, points = [], []
    for i, p in enumerate(params):
        image = torch.from_numpy(performer.render(p, size)).permute(2, 0, 1)[None] / 255
        roi = detector(image).roi[:1]
        if not len(roi):
            continue
        with torch.no_grad():
            landmarks = to_picture(mesh(crop_roi(image, roi)).landmarks, roi).numpy()
        with_face.append(i)
        points.append(ffhq_points(landmarks)[0] / size)
    x, y = _features(params[with_face]), np.stack(points).reshape(len(points), -1)
    train = len(x) * 3 // 4
    weights = _ridge(x[:train], y[:train])
    error = np.sqrt(((x[train:] @ weights - y[train:]) ** 2).mean()) * size
    print(f"alignment points: {error:.2f} px of {size} rms on held-out pictures", flush=True)
    weights = _ridge(x, y)
    with atomic_write(path) as temporary:
        np.save(temporary, weights)
    return weights


def _features(params: np.ndarray) -> np.ndarray:
    """Features of parameters `[N, P]` for the alignment points: geometry, motion, products."""
    points = np.array([np.ravel([*performer.landmarks(p).values()]) for p in params])
    unit = ((params - LOW) / (HIGH - LOW) * 2 - 1)[:, MOTION]
    i, j = np.triu_indices(unit.shape[1])
    products = unit[:, i] * unit[:, j]
    return np.concatenate([np.ones((len(params), 1)), points, unit, products], 1)


def _ridge(x: np.ndarray, y: np.ndarray, penalty: float = 1e-2) -> np.ndarray:
    return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)


def _aligned(params: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Alignment points and crop squares, each `[N, 4, 2]` in fractions of the plate."""
    points = (_features(params) @ weights).reshape(-1, _POINTS, 2)
    return points, quads_from_points(points)


def _in_crop(points: np.ndarray, quads: np.ndarray) -> np.ndarray:
    """Converts points `[N, K, 2]` to fractions of the squares `[N, 4, 2]`."""
    x, y = quads[:, 3] - quads[:, 0], quads[:, 1] - quads[:, 0]
    offset = points - quads[:, :1]
    return np.stack([(offset * a[:, None]).sum(-1) / (a**2).sum(-1)[:, None] for a in (x, y)], -1)


def cues(normals: np.ndarray, weights: np.ndarray) -> Tensor:
    """Features of draws that the mapping network must find out from their normals.

    Args:
        normals: `[N, P]`.
        weights: of `calibrate`.

    Returns:
        `[N, P + 24]` float32: the parameters in [-1, 1], ten points of the face in fractions of the
        aligned picture, that picture's upper edge and upper left corner in fractions of the plate.
    """
    params = from_normal(normals)
    face = np.array([[*performer.landmarks(p).values()] for p in params])
    _, quads = _aligned(params, weights)
    edge = quads[:, 3] - quads[:, 0]
    unit = (params - LOW) / (HIGH - LOW) * 2 - 1
    features = [unit, _in_crop(face, quads).reshape(len(params), -1), edge, quads[:, 0]]
    return torch.from_numpy(np.concatenate(features, 1).astype(np.float32))


# -- shards ------------------------------------------------------------------------------------


def render_aligned(
    params: np.ndarray, weights: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Renders draws and aligns them.

    Args:
        params: `[N, P]`.
        weights: of `calibrate`.
        size: side of the pictures, px.

    Returns:
        Pictures `[N, size, size, 3]` uint8 and alignment points `[N, 4, 2]` float32 in fractions
        of them.
    """
    # At this size the face is about as large as in the aligned picture.
    plate = round(size * 1.5)
    points, quads = _aligned(params, weights)
    in_crop = _in_crop(points, quads)
    quads = quads * plate
    pictures = np.empty((len(params), size, size, 3), np.uint8)
    for i, p in enumerate(params):
        image = torch.from_numpy(performer.render(p, plate)).permute(2, 0, 1)[None].float()
        crop = warp(image, torch.from_numpy(quads[i])[None], size)[0]
        pictures[i] = crop.clamp(0, 255).round().permute(1, 2, 0).numpy()
    return pictures, in_crop.astype(np.float32)


def render_shards(folder: Path, seed: int, count: int, size: int) -> list[Path]:
    """Renders all shards that do not exist yet, on every core.

    Args:
        folder: for the shards and the alignment.
        seed: of the draws.
        count: of pictures to train on; `HELD_OUT` more come before them.
        size: side of the pictures, px.

    Returns:
        Paths of the shards; the first one is held out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    calibrate(folder, seed)
    shards = HELD_OUT // SHARD + -(-count // SHARD)
    start = time.monotonic()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(_render_shard, folder, i, seed, size) for i in range(shards)]
        for i, job in enumerate(jobs):
            job.result()
            seconds = time.monotonic() - start
            print(f"\rrendered {i + 1} of {shards} shards, {seconds:.0f} s", end="", flush=True)
    print()
    return [_shard_path(folder, i) for i in range(shards)]


def _render_shard(folder: Path, index: int, seed: int, size: int) -> None:
    path = _shard_path(folder, index)
    if path.exists():
        return
    torch.set_num_threads(1)
    normals = draw_normals(seed * 100_003 + index, SHARD)
    pictures, points = render_aligned(from_normal(normals), np.load(folder / "align.npy"), size)
    with atomic_write(path) as temporary:
        np.savez(temporary, normals=normals.astype(np.float32), pictures=pictures, points=points)


def _shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard{index:04d}.npz"


@dataclass(frozen=True)
class Pictures:
    """Rendered draws in memory."""

    normals: Tensor  # [N, P] float32
    pictures: Tensor  # [N, H, W, 3] uint8
    points: Tensor  # [N, 4, 2] float32, alignment points in fractions of the picture

    def to(self, device: torch.device | str) -> Pictures:
        """Returns the same pictures on a device."""
        return Pictures(self.normals.to(device), self.pictures.to(device), self.points.to(device))

    def first(self, count: int) -> Pictures:
        """Returns the first pictures, at most `count`."""
        return Pictures(self.normals[:count], self.pictures[:count], self.points[:count])

    def batch(self, indices: Tensor, mirrored: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns pictures, some of them mirrored.

        Args:
            indices: `[B]` int64.
            mirrored: `[B]` bool, which of them to mirror.
            size: side of the pictures, px; divides the side of those in memory.

        Returns:
            Targets `[B, 3, size, size]` in [-1, 1], normals `[B, P]`, points `[B, 4, 2]`.
        """
        indices, mirrored = indices.to(self.points.device), mirrored.to(self.points.device)
        target = self.pictures[indices].permute(0, 3, 1, 2).float() / 127.5 - 1
        target = torch.where(mirrored[:, None, None, None], target.flip(-1), target)
        normals, points = self.normals[indices], self.points[indices]
        flip = torch.from_numpy(mirror(np.eye(len(PARAMETERS)))).to(normals)  # it is linear
        normals = torch.where(mirrored[:, None], normals @ flip, normals)
        swapped = points[:, [1, 0, 3, 2]] * points.new_tensor([-1, 1]) + points.new_tensor([1, 0])
        points = torch.where(mirrored[:, None, None], swapped, points)
        if size < target.shape[-1]:
            target = F.avg_pool2d(target, target.shape[-1] // size)
        return target, normals, points


def load_pictures(paths: Sequence[Path]) -> Pictures:
    """Reads shards into memory, on the CPU."""
    shards = [np.load(p) for p in paths]
    normals, pictures, points = (
        torch.from_numpy(np.concatenate([shard[name] for shard in shards]))
        for name in ("normals", "pictures", "points")
    )
    return Pictures(normals, pictures, points)
