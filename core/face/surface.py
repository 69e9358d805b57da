"""Where each pixel of an aligned picture lies on the face: coordinates that move with it.

A neural texture (`core.personalize.detail`) is sampled by them, so that a freckle stays on its
cheek. There are two sets. **Skin** coordinates follow the mesh, point by point. Through its holes
other parts show, which move as wholes: the eyeballs follow the irises, and the lower teeth the
chin. **Head** coordinates follow the head alone, by an affine map: for hair, ears, neck and the
upper teeth.

Convention:
    Points of pictures are in sides of the picture, the origin is its top left corner, and `z` is in
    the same unit, negative towards the camera. Skin coordinates are 0..1 in the skin texture
    `[SKIN_ASPECT * T, T]`, head coordinates 0..1 in the head texture `[T, T]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
from scipy.spatial import Delaunay

from core.base.compiled import compiled
from core.face.keypoints import (
    FACE_OVAL,
    INNER_LIPS,
    LEFT_EYE,
    LEFT_EYEBROW,
    LEFT_IRIS,
    RIGHT_EYE,
    RIGHT_EYEBROW,
    RIGHT_IRIS,
)

SKIN_ASPECT = 1.25  # height of the skin texture over its width: below the face are the parts
MESH_POINTS = 478
SURFACE_POINTS = 468  # of the mesh; the irises' points are not on the skin
SHELL_POINTS = SURFACE_POINTS + len(FACE_OVAL)  # with those of the ring around it
REFERENCE_SIDE = 256  # of `Atlas.reference`, px

_RING = 1.2  # how far the skin reaches beyond the mesh, where it fades: times the outline
_MARGIN = 0.01  # of the skin texture around the face
_HEAD_MARGIN = 0.25  # of the head texture beyond the mean picture, on each side, in its sides
_FACING = (-0.35, 0.12)  # cosines to the camera between which the skin fades in
_SUBNASAL = 2  # point between nose and upper lip: what is above it moves with the head
_SIDES = (234, 454)  # in front of the ears
_AXIS = 0.05  # how far behind them the cylinder's axis is that the face is unrolled from
_CHIN = (152, 148, 377, 176, 400)

# The parts that show through holes of the skin: the hole's outline, the points that the part
# follows, and the centre and half the width of its tile, in widths of the skin texture.
_PARTS = (
    (RIGHT_EYE, RIGHT_IRIS[:1], (0.15, 1.125), 0.12),
    (LEFT_EYE, LEFT_IRIS[:1], (0.43, 1.125), 0.12),
    (INNER_LIPS, _CHIN, (0.78, 1.125), 0.12),
)
_BEFORE = 0.005  # by how much a part is before the skin across its hole, sides of the picture
_PART_REACH = (0.06, 0.06, 0.12)  # half the height that a tile shows, in sides of the picture


@dataclass(frozen=True, eq=False)
class Atlas:
    """One person's surface, as their own mean mesh lays it out."""

    mean: np.ndarray  # [478, 3] float32, mean mesh of the person's pictures
    triangles: np.ndarray  # [T, 3] int32 of the mesh and, from 468 on, its surrounding ring
    # Luma of the mean picture in the skin texture's upper square, [256, 256] uint8, by which
    # `core.face.skin` puts meshes right; None: they stay as the network finds them.
    reference: np.ndarray | None = None


class SurfaceMap(NamedTuple):
    """The coordinates of a picture's pixels."""

    skin: np.ndarray  # [h, w, 2] float32
    weight: np.ndarray  # [h, w] float32 in 0..1: 0 where there is no skin, or it is turned away
    head: np.ndarray  # [h, w, 2] float32; outside of 0..1 the texture's edge is meant


def fit_atlas(meshes: np.ndarray) -> Atlas:
    """Lays out a person's surface.

    Args:
        meshes: `[N, 478, 3]` of the person's aligned pictures.
    """
    mean = meshes.mean(0, dtype=np.float64)
    for _ in range(3):  # the mean of shapes, not of places: Procrustes
        aligned = []
        for mesh in meshes.astype(np.float64):
            moved, _ = cv2.estimateAffinePartial2D(
                mesh[:, :2].copy(), mean[:, :2].copy(), method=cv2.LMEDS
            )
            scale = np.hypot(*moved[0, :2])
            flat = mesh[:, :2] @ moved[:, :2].T + moved[:, 2]
            aligned.append(np.c_[flat, scale * mesh[:, 2]])
        mean = np.mean(aligned, 0)
    # Joined up where mouth and lids are open: a closed mouth's lips would be sewn together. Of the
    # half that is turned least, because triangles of a turned face fold over.
    turns = [np.abs(mesh[[*FACE_OVAL]] - mean[[*FACE_OVAL]]).mean() for mesh in aligned]
    frontal = [mesh for mesh, turn in zip(aligned, turns, strict=True) if turn <= np.median(turns)]
    return Atlas(mean.astype(np.float32), _triangulate(max(frontal, key=_openness)))


def _unwrap(mesh: np.ndarray) -> np.ndarray:
    """Unrolls a mesh `[P, 3]` from a cylinder through the head, for its sides not to overlap.

    Returns:
        `[P, 2]`, in sides of the picture, about as large as the mesh seen from the front.
    """
    sides = mesh[[*_SIDES]].mean(0)
    depth = sides[2] - mesh[:, 2] + _AXIS
    radius = sides[2] - mesh[:, 2].min() + _AXIS
    return np.c_[np.arctan2(mesh[:, 0] - sides[0], depth) * radius, mesh[:, 1]]


def _openness(mesh: np.ndarray) -> float:
    """How far mouth and lids are open, all three counting alike, by areas of their outlines."""
    areas = [cv2.contourArea(mesh[[*ring], :2].astype(np.float32)) for ring, *_ in _PARTS]
    return float(np.prod(np.maximum(areas, 1e-9)))


def _ring(mesh: np.ndarray) -> np.ndarray:
    """Points `[36, 2]` around a mesh `[P, 2]`."""
    oval = mesh[[*FACE_OVAL]]
    return oval.mean(0) + _RING * (oval - oval.mean(0))


def _triangulate(mesh: np.ndarray) -> np.ndarray:
    """Triangles between the mesh's points, and those of the ring around them."""
    points = _unwrap(mesh)[:SURFACE_POINTS]
    triangles = Delaunay(points).simplices
    centres = points[triangles].mean(1).astype(np.float32)

    outline = points[[*FACE_OVAL]].astype(np.float32)
    kept = [cv2.pointPolygonTest(outline, (x, y), False) >= 0 for x, y in centres.tolist()]
    inner = np.array(FACE_OVAL)
    outer = np.arange(SURFACE_POINTS, SHELL_POINTS)
    following = [np.roll(ring, -1) for ring in (inner, outer)]
    around = [(inner, following[0], outer), (following[0], outer, following[1])]
    every = [triangles[kept], *(np.stack(corners, 1) for corners in around)]
    return np.concatenate(every).astype(np.int32)


def head_pose(atlas: Atlas, mesh: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the affine map from a picture to the mean picture, by the points above the mouth.

    Args:
        atlas: the person's.
        mesh: `[478, 2 or 3]`.

    Returns:
        A `[2, 2]` and b `[2]`: `A @ point + b` lies in the mean picture.
    """
    stable = _stable(atlas)
    source = np.c_[atlas.mean[stable, :2], np.ones(len(stable))].astype(np.float64)
    there, *_ = np.linalg.lstsq(source, mesh[stable, :2].astype(np.float64), rcond=None)
    inverse = np.linalg.inv(there[:2].T)
    return inverse, -inverse @ there[2]


def _stable(atlas: Atlas) -> np.ndarray:
    """Indices of points that move with the head alone: above the mouth, no lids, no brows."""
    moving = {*RIGHT_EYE, *LEFT_EYE, *RIGHT_EYEBROW, *LEFT_EYEBROW}
    above = np.flatnonzero(atlas.mean[:SURFACE_POINTS, 1] < atlas.mean[_SUBNASAL, 1])
    return np.array([i for i in above if int(i) not in moving])


def surface_map(
    atlas: Atlas, mesh: np.ndarray, size: int, window: tuple[int, int, int, int] | None = None
) -> SurfaceMap:
    """Computes the coordinates of a picture's pixels.

    Args:
        atlas: the person's.
        mesh: `[478, 3]` of the picture.
        size: its side, px.
        window: x, y, width and height of the part that is wanted, px; by default all of it.
    """
    x, y, width, height = window or (0, 0, size, size)
    pose, shift = head_pose(atlas, mesh)
    columns, rows = (np.arange(x, x + width) + 0.5) / size, (np.arange(y, y + height) + 0.5) / size
    in_mean = (
        columns[None, :, None] * pose[:, 0] + rows[:, None, None] * pose[:, 1] + shift
    )  # [h, w, 2], in sides of the mean picture
    head = (in_mean + _HEAD_MARGIN) / (1 + 2 * _HEAD_MARGIN)

    vertices, depth, values, triangles = _shell(atlas, mesh, pose)
    out = np.zeros((height, width, 3), np.float32)
    _fill(
        (vertices * size - [x, y]).astype(np.float64),
        depth.astype(np.float64),
        values.astype(np.float64),
        triangles,
        np.full((height, width), np.inf),
        out,
    )
    return SurfaceMap(
        np.ascontiguousarray(out[..., :2]),
        np.ascontiguousarray(out[..., 2]),
        head.astype(np.float32),
    )


def texture_map(atlas: Atlas, mesh: np.ndarray, size: int) -> np.ndarray:
    """Computes where in a picture the texels of the face are: the inverse of `surface_map`.

    Args:
        atlas: the person's.
        mesh: `[478, 3]` of the picture.
        size: side of the skin texture's upper square, which the face fills, px.

    Returns:
        `[size, size, 3]` float32: the place in the picture, in its sides, and in 0..1 how much it
        faces the camera. Texels of no place have zeros.
    """
    pose, _ = head_pose(atlas, mesh)
    vertices, depth, values, triangles = _shell(atlas, mesh, pose)
    skin = triangles[: len(atlas.triangles)]
    out = np.zeros((size, size, 3), np.float32)
    _fill(
        values[:, :2] * [size, size * SKIN_ASPECT],
        depth.astype(np.float64),
        np.c_[vertices, values[:, 2]].astype(np.float64),
        skin,
        np.full((size, size), np.inf),
        out,
    )
    return out


def layout(atlas: Atlas) -> np.ndarray:
    """Returns where the points of mesh and ring lie in the skin texture's upper square.

    Args:
        atlas: the person's.

    Returns:
        `[504, 2]` in 0..1; the face fills the square.
    """
    flat = _unwrap(atlas.mean.astype(np.float64))[:SURFACE_POINTS]
    flat = np.concatenate([flat, _ring(flat)])
    low, high = flat.min(0) - _MARGIN, flat.max(0) + _MARGIN
    return (flat - low) / (high - low)


def _shell(
    atlas: Atlas, mesh: np.ndarray, pose: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The skin and what shows through its holes, as one set of triangles.

    Returns:
        Points `[V, 2]`, depths `[V]`, values `[V, 3]` (skin coordinates and weight), and triangles
        `[T, 3]`.
    """
    mean = atlas.mean.astype(np.float64)
    flat = layout(atlas)

    # The ring keeps its distance from the outline, also where the head is turned.
    turn, sizes, axes = np.linalg.svd(np.linalg.inv(pose))
    oval = [*FACE_OVAL]
    distance = (_ring(mean[:, :2]) - mean[oval, :2]) @ (sizes[0] * turn @ axes).T
    ring = mesh[oval, :2] + distance
    points = np.concatenate([mesh[:SURFACE_POINTS, :2], ring])
    depth = np.concatenate([mesh[:SURFACE_POINTS, 2], np.full(len(ring), mesh[:, 2].max())])
    weight = np.concatenate([_facing(atlas, mesh), np.zeros(len(ring))])
    vertices, depths = [points], [depth]
    values = [np.c_[flat[:, 0], flat[:, 1] / SKIN_ASPECT, weight]]
    triangles = [atlas.triangles]
    count = len(points)
    for (hole, followed, centre, half), reach in zip(_PARTS, _PART_REACH, strict=True):
        edge = [*hole]
        offset = (mesh[edge, :2] - mesh[[*followed], :2].mean(0)) @ pose.T
        if hole is INNER_LIPS:  # the chin is below the teeth by as much as on average
            offset += mean[[*followed], :2].mean(0) - mean[edge, :2].mean(0)
        tile = np.array(centre) + offset * (half / reach)
        vertices.append(mesh[edge, :2])
        depths.append(mesh[edge, 2] - _BEFORE)
        values.append(np.c_[tile[:, 0], tile[:, 1] / SKIN_ASPECT, weight[edge]])
        triangles.append(_strip(len(edge)) + count)
        count += len(edge)
    return (
        np.concatenate(vertices),
        np.concatenate(depths),
        np.concatenate(values),
        np.concatenate(triangles),
    )


def _strip(count: int) -> np.ndarray:
    """Triangles between the two sides of a ring of points, which starts in a corner."""
    pairs = [(i, (count - i) % count) for i in range(count // 2 + 1)]
    result = []
    for (a, b), (c, d) in pairwise(pairs):
        result += [(a, b, c), (b, c, d)]
    return np.array(result, np.int32)


def _facing(atlas: Atlas, mesh: np.ndarray) -> np.ndarray:
    """How much each of the mesh's points faces the camera: `[468]` in 0..1."""
    inner = atlas.triangles[(atlas.triangles < SURFACE_POINTS).all(1)]
    corners = mesh[inner].astype(np.float64)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flat = _unwrap(atlas.mean.astype(np.float64))[inner]
    sides = flat[:, 1:] - flat[:, :1]
    turns = np.sign(sides[:, 0, 0] * sides[:, 1, 1] - sides[:, 0, 1] * sides[:, 1, 0])
    total = np.zeros((SURFACE_POINTS, 3))
    for corner in range(3):
        np.add.at(total, inner[:, corner], normals * turns[:, None])
    for _ in range(2):  # nostrils and lids are folds: what counts is how the face around is turned
        spread = np.zeros_like(total)
        for corner in range(3):
            np.add.at(spread, inner[:, corner], total[inner].mean(1))
        total = spread
    cosine = total[:, 2] / np.maximum(np.linalg.norm(total, axis=1), 1e-12)
    low, high = _FACING
    share = np.clip((cosine - low) / (high - low), 0, 1)
    return share * share * (3 - 2 * share)


@compiled()
def _fill(
    points: np.ndarray,
    depth: np.ndarray,
    values: np.ndarray,
    triangles: np.ndarray,
    nearest: np.ndarray,
    out: np.ndarray,
) -> None:
    """Draws triangles, the nearest in front.

    Args:
        points: `[V, 2]` px.
        depth: `[V]`, smaller is nearer.
        values: `[V, C]`, interpolated over each triangle.
        triangles: `[T, 3]`.
        nearest: `[h, w]`, depth so far.
        out: `[h, w, C]`; pixels that no triangle covers stay as they are.
    """
    height, width, channels = out.shape
    for t in range(len(triangles)):
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        ax, ay = points[a, 0], points[a, 1]
        ux, uy = points[b, 0] - ax, points[b, 1] - ay
        vx, vy = points[c, 0] - ax, points[c, 1] - ay
        area = ux * vy - uy * vx
        if abs(area) < 1e-9:
            continue
        left = max(int(np.floor(min(ax, ax + ux, ax + vx) - 0.5)), 0)
        right = min(int(np.ceil(max(ax, ax + ux, ax + vx) - 0.5)), width - 1)
        top = max(int(np.floor(min(ay, ay + uy, ay + vy) - 0.5)), 0)
        bottom = min(int(np.ceil(max(ay, ay + uy, ay + vy) - 0.5)), height - 1)
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                px, py = column + 0.5 - ax, row + 0.5 - ay
                i = (px * vy - py * vx) / area
                j = (ux * py - uy * px) / area
                if i < -1e-6 or j < -1e-6 or i + j > 1 + 1e-6:
                    continue
                z = depth[a] + i * (depth[b] - depth[a]) + j * (depth[c] - depth[a])
                if z < nearest[row, column]:
                    nearest[row, column] = z
                    for k in range(channels):
                        out[row, column, k] = (
                            values[a, k]
                            + i * (values[b, k] - values[a, k])
                            + j * (values[c, k] - values[a, k])
                        )
