"""Surface coordinates: what follows the skin, the eyeballs, the jaw and the head."""

import cv2
import numpy as np
import pytest
from performer_faces import acted, aligned
from skin_dots import dotted, drift

from core.face.keypoints import (
    FACE_OVAL,
    INNER_LIPS,
    LEFT_EYE,
    LEFT_IRIS,
    OUTER_LIPS,
    RIGHT_EYE,
    RIGHT_IRIS,
)
from core.face.surface import SKIN_ASPECT, SURFACE_POINTS, Atlas, fit_atlas, head_pose, surface_map
from core.personalize.detail import find_meshes

SIZE = 256
IRISES = [*RIGHT_IRIS, *LEFT_IRIS]
HOLES = (RIGHT_EYE, LEFT_EYE, INNER_LIPS)


@pytest.fixture(scope="module")
def meshes() -> np.ndarray:
    """A person at rest, with the mouth open, smiling, and turned to the side."""
    moves = ({}, {"jaw": 1.0}, {"smile": 1.0}, {"yaw": 38.0}, {"yaw": -38.0})
    return find_meshes(aligned(acted(3, *moves), SIZE))


@pytest.fixture(scope="module")
def atlas(meshes: np.ndarray) -> Atlas:
    return fit_atlas(meshes)


def at(plane: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values of a map's plane in the pixels that points, in sides of the picture, lie in."""
    x, y = np.clip((points * len(plane)).astype(int), 0, len(plane) - 1).T
    return plane[y, x]


def skin_points(atlas: Atlas) -> list[int]:
    """Points well within the skin, by the atlas alone: no holes' edges, no outline."""
    edges = {i for ring in (*HOLES, FACE_OVAL, OUTER_LIPS) for i in ring}
    return [i for i in range(SURFACE_POINTS) if i not in edges]


def test_a_point_of_the_skin_has_the_same_coordinates_in_every_picture(
    meshes: np.ndarray, atlas: Atlas
) -> None:
    inner = skin_points(atlas)
    first = surface_map(atlas, meshes[0], SIZE)
    home = at(first.skin, meshes[0][inner, :2])
    for mesh in meshes[1:3]:  # from the front
        found = surface_map(atlas, mesh, SIZE)
        moved = at(found.skin, mesh[inner, :2]) - home
        distance = np.linalg.norm(moved * [1, SKIN_ASPECT], axis=1)
        # Texture coordinates within a pixel: it has about a hundred and fifty across the face.
        assert np.quantile(distance, 0.9) < 0.01
        assert at(found.weight, mesh[inner, :2]).mean() > 0.8


def test_coordinates_are_linear_over_each_triangle(meshes: np.ndarray, atlas: Atlas) -> None:
    """In the middle between two corners they are the mean of those in the corners."""
    mesh = meshes[0]
    found = surface_map(atlas, mesh, 1024)
    inner = atlas.triangles[(atlas.triangles < SURFACE_POINTS).all(1)]
    a, b, c = (at(found.skin, mesh[inner[:, i], :2]) for i in range(3))
    centre = at(found.skin, mesh[inner, :2].mean(1))
    # What is on the skin, and not folded away behind it.
    seen = (at(found.weight, mesh[inner, :2].mean(1)) > 0.99) & (centre[:, 1] < 0.8)
    for corner in (a, b, c):
        seen &= np.abs(corner - centre).max(1) < 0.06
    assert seen.sum() > 600
    error = np.abs((a + b + c) / 3 - centre)[seen]
    assert np.quantile(error, 0.9) < 2e-3  # a pixel is as much


def test_a_window_is_that_part_of_the_whole(meshes: np.ndarray, atlas: Atlas) -> None:
    whole = surface_map(atlas, meshes[1], SIZE)
    part = surface_map(atlas, meshes[1], SIZE, (70, 90, 100, 80))
    for name in whole._fields:
        assert np.array_equal(getattr(part, name), getattr(whole, name)[90:170, 70:170]), name
    around = surface_map(atlas, meshes[1], SIZE, (-4, -4, SIZE + 8, SIZE + 8))
    for name in whole._fields:
        assert np.array_equal(getattr(around, name)[4:-4, 4:-4], getattr(whole, name)), name


def test_eyeballs_follow_the_irises(meshes: np.ndarray, atlas: Atlas) -> None:
    """Gaze moves what is drawn in the eye, and not the lids around it."""
    mesh, looking = meshes[0], meshes[0].copy()
    step = 4 / SIZE
    looking[IRISES, 0] += step
    before, after = (surface_map(atlas, m, SIZE) for m in (mesh, looking))
    changed = np.abs(before.skin - after.skin).max(-1) > 1e-6
    eyes = before.skin[..., 1] > 0.99 / SKIN_ASPECT
    assert changed[eyes & (before.skin[..., 0] < 0.6)].mean() > 0.99
    assert not changed[~eyes].any()
    # What was at a pixel is four pixels on.
    eye = changed[:, :-4] & changed[:, 4:]
    assert np.abs(before.skin[:, :-4][eye] - after.skin[:, 4:][eye]).max() < 1e-4


def test_the_lower_teeth_follow_the_chin_and_the_upper_ones_the_head(
    meshes: np.ndarray, atlas: Atlas
) -> None:
    still, opened = meshes[0], meshes[1]
    inside = opened[[*INNER_LIPS], :2].mean(0, keepdims=True)
    lower = at(surface_map(atlas, opened, SIZE).skin, inside)
    moved = opened.copy()
    moved[[152, 148, 377, 176, 400], 1] += 8 / SIZE
    assert at(surface_map(atlas, moved, SIZE).skin, inside)[0, 1] < lower[0, 1] - 0.01
    # The head's coordinates know nothing of the jaw.
    heads = [at(surface_map(atlas, m, SIZE).head, still[[168], :2]) for m in (still, moved)]
    assert np.allclose(heads[0], at(surface_map(atlas, still, SIZE).head, still[[168], :2]))
    pose, shift = head_pose(atlas, opened)
    again, there = head_pose(atlas, moved)
    assert np.array_equal(pose, again)
    assert np.array_equal(shift, there)


def test_skin_that_is_turned_away_fades(meshes: np.ndarray, atlas: Atlas) -> None:
    right, left = 123, 352  # on the cheekbones
    for mesh, near, far in ((meshes[3], right, left), (meshes[4], left, right)):
        weights = at(surface_map(atlas, mesh, SIZE).weight, mesh[[near, far], :2])
        assert weights[1] < 0.9 < 0.99 < weights[0]


def test_the_skin_has_no_edge(meshes: np.ndarray, atlas: Atlas) -> None:
    """From pixel to pixel its weight changes little, but where a nose hides what is behind it."""
    for mesh in meshes:
        weight = surface_map(atlas, mesh, SIZE).weight
        steps = np.concatenate([np.abs(np.diff(weight, axis=axis)).ravel() for axis in (0, 1)])
        assert np.quantile(steps[steps > 0], 0.98) < 0.2
    for mesh in meshes[:3]:  # seen from the front nothing is hidden
        weight = surface_map(atlas, mesh, SIZE).weight
        assert max(np.abs(np.diff(weight, axis=axis)).max() for axis in (0, 1)) < 0.2


def test_the_skin_has_no_hole(meshes: np.ndarray, atlas: Atlas) -> None:
    for mesh in meshes:
        weight = surface_map(atlas, mesh, SIZE).weight
        outline = cv2.convexHull((mesh[skin_points(atlas), :2] * SIZE).astype(np.float32))
        inside = np.zeros((SIZE, SIZE), np.uint8)
        cv2.fillConvexPoly(inside, outline.astype(np.int32), 1)
        inside = cv2.erode(inside, np.ones((9, 9), np.uint8))
        near = weight[inside > 0]
        assert (near == 0).mean() < 0.005


def test_meshes_are_where_the_faces_are(meshes: np.ndarray) -> None:
    """FFHQ's framing puts the eyes and the mouth to known places of the picture."""
    eyes = meshes[0][[*RIGHT_EYE, *LEFT_EYE], :2].mean(0)
    assert np.abs(eyes - [0.5, 0.47]).max() < 0.04


TURNS = (
    {},
    {"yaw": 15.0, "pitch": 10.0},
    {"yaw": 30.0, "pitch": 5.0},
    {"yaw": 22.0, "pitch": -15.0},
    {"yaw": -12.0, "pitch": 15.0},
    {"yaw": -30.0, "pitch": -8.0},
)


def test_dots_stay_on_the_skin_while_the_head_turns() -> None:
    """By points that move with the skin, and by the network's, which glide over it."""
    found = find_meshes(aligned(acted(11, *TURNS), SIZE))
    dots = dotted(11, found[0], *TURNS)
    own = drift(fit_atlas(dots.meshes), dots.meshes, dots)  # what triangles can't follow, px
    for region in ("cheek", "chin", "forehead", "nose"):
        assert len(own[region]) > 100, region
        assert np.median(own[region]) < 0.6, region
        assert np.quantile(own[region], 0.8) < 1, region
    assert np.quantile(own["all"], 0.95) < 2.5
    network = drift(fit_atlas(found), found, dots)
    assert np.median(network["all"]) < 4.5
    assert np.quantile(network["all"], 0.95) < 14
