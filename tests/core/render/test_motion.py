"""Vectors of known movements, and the blur of an edge against its integral."""

import numpy as np
import pytest

from core.media.clip import Window
from core.render import motion

WINDOW = Window(30, 20, 120, 90)


def points() -> np.ndarray:
    return np.random.default_rng(0).uniform([50, 35], [130, 95], (200, 2))


def test_affine_movements_come_back_at_every_pixel() -> None:
    matrix = np.array([[0.02, -0.05], [0.04, 0.01]])
    shift = np.array([3.0, -2.0])
    moves = points() @ matrix.T + shift
    field = motion.field(points(), moves, WINDOW)
    y, x = np.mgrid[:90, :120] + 0.5
    pixels = np.stack([x + WINDOW.x, y + WINDOW.y], -1)
    np.testing.assert_allclose(field, pixels @ matrix.T + shift, atol=2e-3)


def test_what_moves_apart_has_vectors_of_its_own() -> None:
    at = points()
    moves = np.where(at[:, 1:] > 65, [0.0, 6.0], [0.0, 0.0])  # a jaw that drops
    field = motion.field(at, moves, WINDOW)
    assert np.abs(field[20:35, 20:100]).max() < 1.0
    assert field[60:75, 20:100, 1] == pytest.approx(6, abs=1.0)


def test_velocities_are_central_and_one_sided_at_the_ends() -> None:
    a, b, c = (np.full((5, 2), v) for v in (1.0, 3.0, 8.0))
    assert motion.velocity(a, b, c) == pytest.approx(3.5)
    assert motion.velocity(None, b, c) == pytest.approx(5)
    assert motion.velocity(a, b, None) == pytest.approx(2)
    assert motion.velocity(None, b, None) == pytest.approx(0)


@pytest.mark.parametrize("shutter", [90, 180, 360])
def test_an_edge_is_blurred_to_the_ramp_that_an_exposure_gives(shutter: float) -> None:
    rgba = np.zeros((20, 120, 4), np.float32)
    rgba[:, 60:] = [0.5, 0.25, 1.0, 1.0]
    moves = np.broadcast_to(np.float32([16, 0]), (20, 120, 2))
    blurred = motion.blur(rgba, moves, shutter)
    length = 16 * shutter / 360
    ramp = np.clip((np.arange(120) + 0.5 - 60) / length + 0.5, 0, 1)
    inner = slice(20, 100)
    assert np.abs(blurred[10, inner, 3] - ramp[inner]).max() < 0.07
    np.testing.assert_allclose(blurred[..., 0], 0.5 * blurred[..., 3], atol=1e-6)
    assert blurred[10, inner, 3].sum() == pytest.approx(rgba[10, inner, 3].sum(), abs=0.05)


def test_what_does_not_move_is_not_touched() -> None:
    rgba = np.random.default_rng(0).random((20, 30, 4), np.float32)
    moves = np.full((20, 30, 2), 0.01, np.float32)
    np.testing.assert_array_equal(motion.blur(rgba, moves, 180), rgba)
