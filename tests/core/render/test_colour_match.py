"""Known gains and offsets are found again, and can be taken out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.render import colour_match


def skin(count: int, seed: int = 0) -> np.ndarray:
    """Scene-linear skin, lit from one side, with some highlights."""
    rng = np.random.default_rng(seed)
    light = rng.beta(2, 2, (count, 1))
    return (0.1 + light) * [0.45, 0.28, 0.2] + (rng.random((count, 1)) > 0.98) * 0.8


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.3, 3), min_size=3, max_size=3), st.floats(-0.02, 0.03))
def test_gain_and_offset_are_found_in_other_pixels_of_the_same_skin(
    gain: list[float], flare: float
) -> None:
    offset = flare * min(gain)  # within `MAX_OFFSET` of every channel's mean
    plate = skin(9_000, 1) * gain + offset
    plate[:200] = [0, 0, 3]  # a hand with a blue glove
    match = colour_match.fit(skin(8_000, 2), plate)
    assert match is not None
    np.testing.assert_allclose(match.gain, gain, rtol=0.06)
    np.testing.assert_allclose(match.offset, offset, atol=0.02 * max(gain))


def test_a_match_is_nukes_grade_and_can_be_taken_out() -> None:
    pixels = skin(100).astype(np.float32)
    match = colour_match.Match(np.array([2.0, 1.5, 0.5]), np.array([0.01, -0.02, 0.0]))
    graded = colour_match.apply(pixels, match, 0.25)
    np.testing.assert_allclose(
        graded, pixels + 0.25 * (pixels * match.gain + match.offset - pixels), atol=1e-6
    )
    back = (graded - 0.25 * match.offset) / (1 + 0.25 * (match.gain - 1))
    np.testing.assert_allclose(back, pixels, atol=1e-6)
    np.testing.assert_array_equal(colour_match.apply(pixels, match, 0), pixels)


def test_what_is_no_light_stays_within_limits() -> None:
    made, plate = skin(1000), skin(1000, 1)
    freckled = plate * np.where(np.arange(1000)[:, None] % 3 == 0, 0.1, 1)
    match = colour_match.fit(made, freckled)
    assert match is not None
    assert (np.abs(match.offset) <= colour_match.MAX_OFFSET * freckled.mean(0) + 0.02).all()
    dark = colour_match.fit(made, made / 100)
    assert dark is not None
    assert dark.gain == pytest.approx(1 / colour_match.MAX_GAIN)


def test_skin_without_shade_gets_a_gain_alone() -> None:
    made, plate = np.full((500, 3), 0.2), np.full((500, 3), 0.3)
    match = colour_match.fit(made, plate)
    assert match is not None
    np.testing.assert_allclose(match.gain, 1.5)
    np.testing.assert_allclose(match.offset, 0, atol=1e-12)


def test_means_over_time_leave_out_what_is_not_there() -> None:
    a = colour_match.Match(np.full(3, 1.0), np.full(3, 0.0))
    b = colour_match.Match(np.full(3, 4.0), np.full(3, 0.1))
    mean = colour_match.mean([a, None, b], np.array([0.25, 0.5, 0.25]))
    np.testing.assert_allclose(mean.gain, 2)  # gains multiply
    np.testing.assert_allclose(mean.offset, 0.05)
    assert colour_match.mean([None], np.ones(1)) is colour_match.IDENTITY
    assert colour_match.fit(np.ones((5, 3)), np.ones((900, 3))) is None
