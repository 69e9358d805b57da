"""Meshes that stick to the skin, by pictures of synthetic people whose skin is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from performer_faces import acted, aligned
from skin_dots import dotted, drift

from core.face.skin import lay_out, stick
from core.face.surface import REFERENCE_SIDE, SURFACE_POINTS, Atlas, fit_atlas
from core.personalize.detail import find_meshes

SIZE = 128  # px, as the embedded generator draws
MOVES = (
    *({}, {"yaw": 12.0, "pitch": 6.0}, {"yaw": 25.0, "pitch": 3.0}, {"yaw": -12.0, "pitch": 8.0}),
    *({"yaw": -25.0}, {"pitch": -10.0}, {"jaw": 0.6}, {"yaw": 15.0, "pitch": -8.0, "jaw": 0.3}),
)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return aligned(acted(3, *MOVES), SIZE).numpy()


@pytest.fixture(scope="module")
def meshes(pictures: np.ndarray) -> np.ndarray:
    return find_meshes(torch.from_numpy(pictures))


@pytest.fixture(scope="module")
def atlas(pictures: np.ndarray, meshes: np.ndarray) -> Atlas:
    return lay_out(meshes, pictures)


def px(difference: np.ndarray) -> np.ndarray:
    """Lengths, px of 512, of the skin's points."""
    return np.linalg.norm(difference[..., :SURFACE_POINTS, :2], axis=-1) * 512


def test_points_glide_less_over_the_skin() -> None:
    """Against where a point of the skin really is."""
    pictures = aligned(acted(3, *MOVES), 256)
    found = find_meshes(pictures)
    dots = dotted(3, found[0], *MOVES)
    network = drift(fit_atlas(found), found, dots)
    atlas = lay_out(found, pictures.numpy())
    stuck = drift(atlas, stick(atlas, found, pictures.numpy()), dots)
    assert np.median(stuck["all"]) < 0.9 * np.median(network["all"])
    assert np.median(stuck["nose"]) < 0.75 * np.median(network["nose"])


def test_a_mesh_that_is_put_beside_the_skin_comes_back(
    atlas: Atlas, meshes: np.ndarray, pictures: np.ndarray
) -> None:
    """Where the face has something to hold on to."""
    straight = stick(atlas, meshes, pictures)
    beside = meshes.copy()
    beside[..., 0] += 4 / 512 * np.sin(meshes[..., 1] * 9)
    beside[..., 1] += 4 / 512 * np.cos(meshes[..., 0] * 7)
    back = stick(atlas, beside, pictures)
    middle = np.linalg.norm(atlas.mean[:SURFACE_POINTS, :2] - atlas.mean[4, :2], axis=1) < 0.18
    before, after = px(beside - meshes)[:, middle], px(back - straight)[:, middle]
    assert np.median(before) > 3
    assert np.median(after) < 0.4 * np.median(before)


def test_noise_and_light_hardly_move_it(
    atlas: Atlas, meshes: np.ndarray, pictures: np.ndarray
) -> None:
    """What trembles is seen at once; a flow that is searched for jumps by pixels here."""
    straight = stick(atlas, meshes, pictures)
    noise = np.random.default_rng(1).normal(0, 2 / 255, pictures.shape).astype(np.float32)
    noisy = px(stick(atlas, meshes, pictures + noise) - straight)
    assert np.median(noisy) < 0.1
    assert np.quantile(noisy, 0.99) < 0.8
    darker = px(stick(atlas, meshes, pictures * 0.8 - 0.15) - straight)
    assert np.median(darker) < 0.3


def test_no_point_jumps_while_a_head_turns(atlas: Atlas) -> None:
    """Where a picture shows what the reference does not, as beside the face, flow has no hold."""
    turning = aligned(acted(3, *({"yaw": float(yaw)} for yaw in np.arange(-24, -12, 1.5))), SIZE)
    found = find_meshes(turning)
    moved = stick(atlas, found, turning.numpy())
    network, stuck = (px(np.diff(meshes, 2, axis=0)) for meshes in (found, moved))
    assert network.max() < 4
    assert stuck.max() < 8
    assert np.median(stuck) < 1.2 * np.median(network)


def test_depths_and_irises_stay(atlas: Atlas, meshes: np.ndarray, pictures: np.ndarray) -> None:
    moved = stick(atlas, meshes, pictures)
    np.testing.assert_array_equal(moved[..., 2], meshes[..., 2])
    np.testing.assert_array_equal(moved[:, SURFACE_POINTS:], meshes[:, SURFACE_POINTS:])
    assert px(moved - meshes).max() < 30
    one = stick(atlas, meshes[2:3], pictures[2:3])
    np.testing.assert_array_equal(one[0], moved[2])


def test_no_point_moves_beyond_the_ring_around_the_face(
    atlas: Atlas, meshes: np.ndarray, pictures: np.ndarray
) -> None:
    """Beyond it no texel has a place."""
    assert atlas.reference is not None
    for shift in (-60, -30, 30, 60):
        elsewhere = replace(atlas, reference=np.roll(atlas.reference, shift, 1))
        assert px(stick(elsewhere, meshes, pictures) - meshes).max() < 60, shift


def test_nothing_moves_without_a_reference(
    atlas: Atlas, meshes: np.ndarray, pictures: np.ndarray
) -> None:
    np.testing.assert_array_equal(stick(replace(atlas, reference=None), meshes, pictures), meshes)
    assert atlas.reference is not None
    assert (atlas.reference.shape, atlas.reference.dtype) == ((REFERENCE_SIDE,) * 2, np.uint8)
