"""Grain that is known is found again, and drawn the same every time."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from core.render import grain

SHAPE = (288, 384, 3)


def picture() -> np.ndarray:
    """Smooth areas of many levels, and a third of it full of detail."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    smooth = 0.05 + 0.5 * x / SHAPE[1] + 0.1 * np.sin(y / 60)
    detail = 0.2 * np.sin(x * 1.3) * np.sin(y * 1.1) * (y > 190)
    return (smooth + detail)[..., None] * [1.0, 0.8, 0.5]


def noisy(seed: int, blur: float = 0.0, shared: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A noisy picture, and its noise's standard deviation."""
    clean = picture()
    sigma = np.sqrt(2e-5 + 4e-4 * np.maximum(clean, 0))
    rng = np.random.default_rng(seed)
    white = rng.standard_normal(SHAPE)
    white = np.sqrt(1 - shared) * white + np.sqrt(shared) * rng.standard_normal((*SHAPE[:2], 1))
    if blur:
        white = gaussian_filter(white, (blur, blur, 0))
        white /= white.std()
    return (clean + sigma * white).astype(np.float32), sigma


@pytest.mark.parametrize(("blur", "tolerance"), [(0.0, 0.06), (0.7, 0.12)])
@pytest.mark.parametrize("frames", [1, 2])
def test_strength_by_brightness_is_found_again(blur: float, tolerance: float, frames: int) -> None:
    found = grain.measure([tuple(noisy(s, blur)[0] for s in range(frames))])
    assert found is not None
    _, sigma = noisy(0)
    smooth = picture()[:180]
    ratio = found.strength(smooth) / sigma[:180]
    assert np.abs(ratio.mean((0, 1)) - 1).max() < tolerance
    assert np.abs(np.quantile(ratio, [0.05, 0.95]) - 1).max() < 2 * tolerance


def test_structure_is_found_and_drawn_again() -> None:
    frames = [(noisy(s, 0.7, 0.5)[0],) for s in range(3)]
    found = grain.measure(frames)
    assert found is not None
    truth = np.exp(-1 / (4 * 0.7**2))  # of a Gaussian's noise, one pixel apart
    middle = grain.REACH
    assert found.spatial[:, middle, middle + 1] == pytest.approx(truth, abs=0.06)
    assert found.spatial[:, middle + 3, middle] == pytest.approx(0, abs=0.06)
    assert found.channels[0, 1] == pytest.approx(0.5, abs=0.06)
    drawn = grain.draw(found, 1001, np.arange(300), np.arange(300))
    assert drawn.std((0, 1)) == pytest.approx(1, abs=0.03)
    beside = (drawn[:, 1:] * drawn[:, :-1]).mean((0, 1))
    assert beside == pytest.approx(truth, abs=0.06)
    assert np.corrcoef(drawn.reshape(-1, 3).T)[0, 1] == pytest.approx(0.5, abs=0.07)


def test_a_frame_has_one_grain_wherever_it_is_looked_at() -> None:
    found = grain.measure([(noisy(0)[0],)])
    assert found is not None
    rows, columns = np.arange(500, 560), np.arange(1000, 1100)  # over the tile's edge
    drawn = grain.draw(found, 7, rows, columns)
    np.testing.assert_array_equal(drawn, grain.draw(found, 7, rows, columns))
    np.testing.assert_array_equal(drawn[10:, 20:], grain.draw(found, 7, rows[10:], columns[20:]))
    other = grain.draw(found, 8, rows, columns)
    assert abs(np.corrcoef(drawn.ravel(), other.ravel())[0, 1]) < 0.05


def test_detail_and_movement_are_no_grain() -> None:
    clean = picture().astype(np.float32)
    moved = np.roll(clean, 3, 1)
    found = grain.measure([(clean, moved)])
    assert found is not None
    assert found.strength(clean[:180]).max() < 2e-3


def test_still_frames_and_black_bars_do_not_hide_the_grain() -> None:
    """Frames that were doubled have no difference, bars have none at all."""
    frame, sigma = noisy(3)
    frame[:48] = 0
    found = grain.measure([(frame, frame.copy())])
    assert found is not None
    ratio = found.strength(picture()[48:180]) / sigma[48:180]
    assert np.abs(ratio.mean((0, 1)) - 1).max() < 0.1


@pytest.mark.parametrize("shape", [(288, 384, 3), (8, 8, 3)])
def test_flat_or_tiny_pictures_have_no_grain_to_measure(shape: tuple[int, int, int]) -> None:
    assert grain.measure([(np.full(shape, 0.5, np.float32),)]) is None
