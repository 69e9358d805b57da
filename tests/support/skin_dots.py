"""A grid of dots on the performer's skin, and how far they drift from their skin coordinates."""

from typing import NamedTuple

import cv2
import numpy as np
from performer_faces import SIDE, acted, squares

from core.face.alignment import from_square, to_square
from core.face.keypoints import FACE_OVAL, LEFT_EYE, OUTER_LIPS, RIGHT_EYE
from core.face.surface import SKIN_ASPECT, Atlas, surface_map
from core.synthetic.performer import Pins, follow, pin

SIZE = 512  # px, of the pictures in which drift is measured
_STEP = 0.025  # sides of the picture between dots
_NEAR = 1.5  # px over which the coordinates' change is measured


class Dots(NamedTuple):
    """K dots on one person's skin in T pictures; points in sides of the aligned picture."""

    places: np.ndarray  # [T, K, 2]
    seen: np.ndarray  # [T, K] bool: no skin hides them
    meshes: np.ndarray  # [T, 478, 3], points of the skin that move with it as none of a network do
    regions: np.ndarray  # [K] of str


def dotted(identity: int, mesh: np.ndarray, *moves: dict[str, float]) -> Dots:
    """Dots of a person who makes one face per picture.

    Args:
        identity: the person's.
        mesh: `[478, 3]` of the first picture, in its sides.
        moves: of each picture.
    """
    params = acted(identity, *moves)
    quads = squares(params) / SIDE
    grid = _grid(mesh)
    pins = pin(params[0], from_square(grid, quads[0]))
    points = _pin_mesh(params[0], mesh, quads[0])
    placed = [_followed(p, quad, pins) for p, quad in zip(params, quads, strict=True)]
    meshes = [_followed(p, quad, points)[0] for p, quad in zip(params, quads, strict=True)]
    return Dots(
        np.stack([places[:, :2] for places, _ in placed]),
        np.stack([seen for _, seen in placed]),
        np.stack(meshes),
        np.array([_region(mesh, x, y) for x, y in grid]),
    )


def _followed(params: np.ndarray, quad: np.ndarray, pins: Pins) -> tuple[np.ndarray, np.ndarray]:
    points, seen = follow(params, pins)
    side = np.linalg.norm(quad[3] - quad[0])
    return np.c_[to_square(points[:, :2], quad), points[:, 2] / side], seen


def _pin_mesh(params: np.ndarray, mesh: np.ndarray, quad: np.ndarray) -> Pins:
    """The mesh's points on the skin: those that lie just beside it are moved inwards."""
    middle = mesh[:, :2].mean(0)
    result = pin(params, from_square(mesh[:, :2], quad))
    for share in (0.97, 0.94, 0.91):
        missed = np.isnan(result.weights).any(1)
        other = pin(params, from_square(middle + share * (mesh[:, :2] - middle), quad))
        result.faces[missed], result.weights[missed] = other.faces[missed], other.weights[missed]
    return result


def _grid(mesh: np.ndarray) -> np.ndarray:
    """[K, 2] well within the face, and not on what moves by itself."""

    def inside(ring: tuple[int, ...], x: float, y: float) -> float:
        return cv2.pointPolygonTest(mesh[[*ring], :2].astype(np.float32), (x, y), True)

    steps = np.arange(0.2, 0.95, _STEP)
    return np.array(
        [
            (x, y)
            for x in steps
            for y in steps
            if inside(FACE_OVAL, x, y) > 0.03
            and max(inside(hole, x, y) for hole in (RIGHT_EYE, LEFT_EYE, OUTER_LIPS)) < -0.015
        ]
    )


def _region(mesh: np.ndarray, x: float, y: float) -> str:
    if y < mesh[[66, 296], 1].mean():  # on the brows
        return "forehead"
    if y > mesh[17, 1]:  # under the lower lip
        return "chin"
    wings = mesh[[129, 358], 0]
    return "nose" if wings.min() - 0.01 < x < wings.max() + 0.01 else "cheek"


def drift(atlas: Atlas, meshes: np.ndarray, dots: Dots) -> dict[str, np.ndarray]:
    """By how much dots differ from the place that their mean skin coordinates have in a picture.

    Args:
        atlas: of the meshes.
        meshes: `[T, 478, 3]`, by which the pictures' coordinates are computed.
        dots: in the same pictures.

    Returns:
        By region and for `all`, the distances, px of 512 in the picture, of dots that are seen.
    """
    scale = np.array([1, SKIN_ASPECT]) * SIZE  # of the skin texture, px: it shows the face as large
    values, changes, known = [], [], []
    for mesh, places, seen in zip(meshes, dots.places, dots.seen, strict=True):
        found = surface_map(atlas, mesh, SIZE)
        planes = np.dstack([found.skin * scale, found.weight]).astype(np.float32)
        right, left, below, above, here = (
            _sample(planes, places * SIZE + step)
            for step in ((_NEAR, 0), (-_NEAR, 0), (0, _NEAR), (0, -_NEAR), (0, 0))
        )
        change = np.stack([right - left, below - above], -1)[:, :2] / (2 * _NEAR)
        values.append(here[:, :2])
        changes.append(change)
        area = np.abs(np.linalg.det(change))  # beyond: over the edge of what hides it
        known.append(seen & (here[:, 2] > 0.5) & (area > 0.2) & (area < 30))
    value, change, used = np.stack(values), np.stack(changes), np.stack(known)
    change[~used] = np.eye(2)
    counts = np.maximum(used.sum(0), 1)[:, None]
    off = value - (value * used[..., None]).sum(0) / counts
    distance = np.linalg.norm(np.linalg.solve(change, off[..., None])[..., 0], axis=-1)
    used[:, used.sum(0) < 3] = False
    names = [*np.unique(dots.regions), "all"]
    return {n: distance[used & ((dots.regions == n) | (n == "all"))] for n in names}


def _sample(planes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values `[K, C]` of planes `[H, W, C]` at points `[K, 2]`, px."""
    x, y = (points[None] - 0.5).astype(np.float32).transpose(2, 0, 1)
    return cv2.remap(planes, x, y, cv2.INTER_LINEAR)[0]
