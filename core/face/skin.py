"""Meshes that stick to the skin: what the mesh network's lack for textures that lie on them.

The network finds outlines well, but its points glide over the skin by some pixels as a head turns
or a mouth opens: what lies on them is smeared over the frames that it is learnt from. The person's
own pictures put them right. Unrolled to the skin texture by their meshes all should look alike, and
smooth flow says by how much each is beside their mean. (Active appearance models fit so: Matthews
and Baker 2004, with the reference's slopes; the flow's prior is Horn and Schunck's, 1981.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt

from core.face.surface import (
    REFERENCE_SIDE,
    SURFACE_POINTS,
    Atlas,
    fit_atlas,
    layout,
    texture_map,
)

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # BT.601
_NODES = 16  # along a side of the grid on which flow is found
_ROUNDS = 3  # of registering pictures to their mean
# In sides of the texture: how soft pictures are made, from coarse to fine.
_SOFTNESS = (0.02, 0.006)
_STEPS = 4  # of Gauss-Newton, at each
_AROUND = 0.047  # in sides of the texture, where contrast is measured relative to
_FAINT = 4.0  # of 255: fainter contrast is not amplified, for it is noise
_STIFF, _HOLD = 0.3, 0.03  # how much flow resists being uneven, and being at all
_UNLIKE = 0.3  # difference of contrast from which it pulls hardly more: something else is there
_LARGEST = 0.06  # in sides of the texture: flow that is believed


class _Unrolled(NamedTuple):
    """A picture in the skin texture's upper square, of S texels a side."""

    luma: np.ndarray  # [S, S] float32 in 0..255
    weight: np.ndarray  # [S, S] in 0..1: how much it faces the camera
    places: np.ndarray  # [S, S, 2], where in the picture that is, in its sides


class _Level(NamedTuple):
    softness: float
    target: np.ndarray  # [S, S], the reference's contrast
    slopes: np.ndarray  # [2, S, S], of it, weighted
    inverse: np.ndarray  # of the Gauss-Newton matrix, of all nodes' x, then y


def lay_out(meshes: np.ndarray, pictures: np.ndarray) -> Atlas:
    """Lays out a person's surface, with the picture that shows where on it a mesh is.

    Args:
        meshes: `[N, 478, 3]` of the pictures, by the network.
        pictures: `[N, 3, R, R]`, clipped to [-1, 1], aligned; of one person in one light.
    """
    atlas = fit_atlas(meshes)
    unrolled = [_unroll(atlas, *pair) for pair in zip(meshes, pictures, strict=True)]
    flows = [np.zeros_like(one.places) for one in unrolled]
    for _ in range(_ROUNDS):
        levels = _levels(atlas, _mean(unrolled, flows))
        flows = [_find_flow(levels, one) for one in unrolled]
        shift = np.mean(flows, 0)  # the mean picture stays where it is
        flows = [flow - shift for flow in flows]
    return replace(atlas, reference=_mean(unrolled, flows).round().clip(0, 255).astype(np.uint8))


def stick(atlas: Atlas, meshes: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """Moves meshes so that their points lie on the same skin in every picture.

    On slow paths points tremble hardly more than the network's. Where a picture shows what the
    mean picture lacks, such as an ear, some still move by pixels from frame to frame.

    Args:
        atlas: of `lay_out`; by one without a reference nothing is moved.
        meshes: `[N, 478, 3]` of the pictures, by the network.
        pictures: `[N, 3, R, R]`, clipped to [-1, 1].

    Returns:
        `[N, 478, 3]` float32; depths and irises are those given.
    """
    moved = np.array(meshes, np.float32)
    if atlas.reference is None:
        return moved
    points = (layout(atlas)[:SURFACE_POINTS] * REFERENCE_SIDE - 0.5).astype(np.float32)
    for mesh, picture in zip(moved, pictures, strict=True):
        unrolled = _unroll(atlas, mesh, picture)
        flow = _at(_find_flow(_own_levels(atlas), unrolled), points)
        there = points + flow.clip(-_LARGEST * REFERENCE_SIDE, _LARGEST * REFERENCE_SIDE)
        places = unrolled.places[_nearest(atlas)]
        mesh[:SURFACE_POINTS, :2] += _at(places, there) - _at(places, points)
    return moved


def _unroll(atlas: Atlas, mesh: np.ndarray, picture: np.ndarray) -> _Unrolled:
    found = texture_map(atlas, mesh, REFERENCE_SIDE)
    places = np.ascontiguousarray(found[..., :2])
    luma = np.tensordot(_LUMA, picture.astype(np.float32).clip(-1, 1), 1)
    luma = _sampled(luma, places * picture.shape[-1] - 0.5)
    return _Unrolled((luma + 1) * 127.5, found[..., 2], places)


def _mean(unrolled: Sequence[_Unrolled], flows: Sequence[np.ndarray]) -> np.ndarray:
    """The mean luma of pictures, each moved by its flow."""
    grid = _grid()
    weights = [one.weight + 1e-6 for one in unrolled]
    moved = [_sampled(one.luma, grid + flow) for one, flow in zip(unrolled, flows, strict=True)]
    return sum(w * m for w, m in zip(weights, moved, strict=True)) / sum(weights)


@lru_cache(maxsize=2)  # each has 7 MB, and outlives its character
def _own_levels(atlas: Atlas) -> list[_Level]:
    assert atlas.reference is not None
    return _levels(atlas, atlas.reference)


def _levels(atlas: Atlas, reference: np.ndarray) -> list[_Level]:
    """What does not depend on the picture that is registered."""
    weight = texture_map(atlas, atlas.mean, REFERENCE_SIDE)[..., 2]
    contrast, hats = _contrast(reference), _hats().astype(np.float64)
    stiffness = np.kron(np.eye(2), _stiffness())
    levels = []
    for softness in _SOFTNESS:
        target = _blurred(contrast, softness)
        slopes = np.stack(np.gradient(target, axis=(1, 0)))
        matrix = np.empty((2, _NODES**2, 2, _NODES**2))
        for i, j in ((0, 0), (0, 1), (1, 1)):
            product = (weight * slopes[i] * slopes[j]).astype(np.float64)
            block = np.einsum("yx,ya,yc,xb,xd->abcd", product, *[hats] * 4, optimize=True)
            matrix[i, :, j] = matrix[j, :, i] = block.reshape(_NODES**2, -1)
        inverse = np.linalg.inv(matrix.reshape(stiffness.shape) + stiffness)
        levels.append(_Level(softness, target, slopes * weight, inverse))
    return levels


def _find_flow(levels: Sequence[_Level], picture: _Unrolled) -> np.ndarray:
    """Where in a picture each texel of the reference lies: offsets `[S, S, 2]`, px."""
    contrast, grid, hats, stiffness = _contrast(picture.luma), _grid(), _hats(), _stiffness()
    nodes = np.zeros((2, _NODES, _NODES))
    flow = np.zeros_like(grid)
    for level in levels:
        source = _blurred(contrast, level.softness)
        for _ in range(_STEPS):
            missing = _sampled(source, grid + flow) - level.target
            missing *= picture.weight / np.sqrt(1 + (missing / _UNLIKE) ** 2)
            pull = np.stack([hats.T @ (slope * missing) @ hats for slope in level.slopes])
            resisting = nodes.reshape(2, -1) @ stiffness
            step = level.inverse @ (pull.reshape(2, -1) + resisting).ravel()
            nodes -= step.reshape(nodes.shape)
            flow = cv2.merge([hats @ part @ hats.T for part in nodes.astype(np.float32)])
    return flow


def _contrast(luma: np.ndarray) -> np.ndarray:
    """Detail over its mean strength around it, so that light and shade do not count."""
    luma = luma.astype(np.float32)
    detail = luma - _blurred(luma, _AROUND)
    return detail / np.sqrt(_blurred(detail * detail, _AROUND) + _FAINT**2)


def _blurred(image: np.ndarray, softness: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), softness * REFERENCE_SIDE)


def _sampled(image: np.ndarray, at: np.ndarray) -> np.ndarray:
    """An image at points `[h, w, 2]`, px from its first texel's centre."""
    x, y = cv2.split(at)
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _at(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """An image `[S, S, 2]` at points `[K, 2]`: `[K, 2]`."""
    return _sampled(image, points[None])[0]


@lru_cache(maxsize=2)
def _nearest(atlas: Atlas) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of each texel's nearest one with a place: beyond the ring there is none."""
    empty = ~texture_map(atlas, atlas.mean, REFERENCE_SIDE)[..., :2].any(-1)
    rows, columns = distance_transform_edt(empty, return_distances=False, return_indices=True)
    return rows, columns


@lru_cache(maxsize=1)
def _grid() -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(REFERENCE_SIDE, dtype=np.float32)] * 2), -1)


@lru_cache(maxsize=1)
def _hats() -> np.ndarray:
    """How much each of a line's nodes gives to each texel, linearly: `[S, nodes]`."""
    at = (np.arange(REFERENCE_SIDE) + 0.5) / REFERENCE_SIDE * (_NODES - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(_NODES)), 0).astype(np.float32)


@lru_cache(maxsize=1)
def _stiffness() -> np.ndarray:
    """The matrix of squared differences between neighbouring nodes, and a little of each one."""
    line = 2 * np.eye(_NODES) - np.eye(_NODES, k=1) - np.eye(_NODES, k=-1)
    line[0, 0] = line[-1, -1] = 1
    alone = np.eye(_NODES)
    between = np.kron(line, alone) + np.kron(alone, line)
    return _STIFF * (between + _HOLD * np.kron(alone, alone))
