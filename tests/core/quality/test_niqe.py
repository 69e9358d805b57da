"""NIQE against figures of BasicSR 1.4.2's implementation, and what it must order rightly."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from core.quality.niqe import MIN_SIDE, niqe


def formula() -> np.ndarray:
    """A picture `[300, 400, 3]` that anyone can make again: waves, and a little noise."""
    y, x = np.mgrid[:300, :400] / 100
    waves = [
        np.sin(7 * x + 3 * np.sin(5 * y)),
        np.cos(9 * y * x + 1),
        np.sin(40 * x * y + 2 * x) * np.cos(31 * y),
    ]
    noise = np.modf(np.sin(np.arange(360_000) * 12.9898) * 43758.5453)[0].reshape(300, 400, 3)
    return np.clip(np.stack(waves, -1) * 0.2 + 0.5 + 0.05 * noise, 0, 1)


def test_as_basicsr() -> None:
    """Its `calculate_niqe` rounds the picture to single precision; its `niqe` takes doubles."""
    assert niqe(formula()) == pytest.approx(16.56557, abs=0.02)
    assert niqe(formula()) == pytest.approx(16.565947, abs=1e-4)


@pytest.mark.parametrize(("name", "expected"), [("coffee", 4.115242), ("astronaut", 3.064607)])
def test_as_basicsr_on_photographs(name: str, expected: float) -> None:
    assert niqe(getattr(data, name)() / 255) == pytest.approx(expected, abs=1e-3)


def test_blur_and_noise_are_worse() -> None:
    picture = data.astronaut() / 255
    noise = np.random.default_rng(0).standard_normal(picture.shape)
    blurred = [niqe(cv2.GaussianBlur(picture, (0, 0), s)) for s in (1.0, 2.0, 4.0)]
    noisy = [niqe(np.clip(picture + s * noise, 0, 1)) for s in (0.05, 0.1, 0.2)]
    for row in (blurred, noisy):
        assert niqe(picture) < row[0] < row[1] < row[2]


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 95), st.integers(0, 95))
def test_what_lies_beyond_whole_blocks_does_not_count(right: int, bottom: int) -> None:
    picture = data.coffee()[:192, :288] / 255
    more = np.pad(picture, ((0, bottom), (0, right), (0, 0)))
    assert niqe(more) == niqe(picture)


def test_small_and_flat_pictures() -> None:
    with pytest.raises(ValueError, match="192 px"):
        niqe(np.zeros((MIN_SIDE - 1, 400, 3)))
    with pytest.raises(ValueError, match="NIQE needs"):
        niqe(np.zeros((400, 400)))
    assert np.isnan(niqe(np.full((200, 200, 3), 0.4)))
