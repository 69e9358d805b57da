from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d
from small_character import MOVES
from solve_shots import QUICK, draw, driving, known

from core.face.temporal import MAX_GAP
from core.solve.latent_track import FrameState, LatentTrack
from core.solve.shot import solve_shot
from core.solve.smoothing import smooth_codes

SOLVED, HELD = FrameState.SOLVED, FrameState.HELD


def codes(values, numbers=None, cut=(), state=None) -> LatentTrack:
    """A track of given codes, one layer, the value in every component."""
    values = np.asarray(values, np.float32)
    count = len(values)
    filled = np.repeat(values[:, None, None], 4, 2)
    nothing = np.zeros((count, 1), np.float32)
    return LatentTrack(
        character="",
        numbers=np.arange(count) if numbers is None else np.asarray(numbers),
        state=np.full(count, SOLVED, np.uint8) if state is None else np.asarray(state, np.uint8),
        cut=np.isin(np.arange(count), cut),
        alpha=nothing,
        delta=nothing[:, None],
        codes=filled,
        smooth=filled,
        neutral_offset=np.zeros((86, 3), np.float32),
        landmarks=np.zeros((count, 478, 3), np.float32),
        quads=np.zeros((count, 4, 2)),
        amount=np.ones(count, np.float32),
        losses={},
        quality={},
        settings={},
    )


def smoothed(sigma, *args, **kwargs):
    result = smooth_codes(codes(*args, **kwargs), sigma)
    assert (result == result[:, :, :1]).all()
    return result[:, 0, 0]


def test_smoothing_an_impulse_gives_the_gauss():
    values = np.zeros(41)
    values[20] = 1
    x = np.arange(-20, 21)
    gauss = np.exp(-(x**2) / 2 / 1.6**2) * (abs(x) <= 6.4)
    assert smoothed(1.6, values) == pytest.approx(gauss / gauss.sum(), abs=1e-6)


def test_smoothing_damps_a_wave_as_in_theory():
    t = np.arange(200)
    for period in (6, 12, 24):
        wave = np.sin(2 * np.pi * t / period)
        damped = np.exp(-((2 * np.pi / period * 1.6) ** 2) / 2)
        assert smoothed(1.6, wave)[20:-20] == pytest.approx(damped * wave[20:-20], abs=2e-4)


@given(st.lists(st.floats(-5, 5), min_size=20, max_size=40), st.floats(0.3, 2.4))
@hypothesis_settings(max_examples=30, deadline=None)
def test_smoothing_agrees_with_scipy_inside_a_shot(values, sigma):
    reference = gaussian_filter1d(np.asarray(values), sigma, truncate=4)
    # The two round the kernel's last sample, of weight e^-8, differently.
    assert smoothed(sigma, values)[10:-10] == pytest.approx(reference[10:-10], abs=1e-2)


def test_smoothing_respects_cuts_and_gaps():
    step = np.repeat([1.0, 5.0], 8)
    numbers = np.r_[0:8, 8 + MAX_GAP : 16 + MAX_GAP]
    assert np.ptp(smoothed(2, step)) < 4  # nothing between them: smeared
    assert smoothed(2, step, cut=[8]) == pytest.approx(step)
    assert smoothed(2, step, numbers + 1 * (numbers >= 8)) == pytest.approx(step)
    assert np.abs(smoothed(2, step, numbers) - step).max() > 0.01  # a short gap does not divide
    assert smoothed(0, step) == pytest.approx(step)


def test_smoothing_goes_by_frame_numbers():
    """A ramp with frames missing stays a ramp where both sides are equally full."""
    numbers = np.array([0, 2, 4, 6, 8, 10, 12, 14, 16])
    assert smoothed(1.0, numbers.astype(float), numbers)[4] == pytest.approx(8)
    narrow = smoothed(0.2, [0, 1, 0], [0, 2, 4])
    assert narrow == pytest.approx([0, 1, 0], abs=1e-6)


def test_held_frames_are_not_smoothed():
    state = [SOLVED] * 4 + [HELD] * 3
    values = [0, 1, 0, 1, 9, 9, 9]
    result = smoothed(1.0, values, state=state)
    assert result[4:].tolist() == [9, 9, 9]
    assert result[:4].max() < 1


def test_frames_without_a_face(character):
    """Short gaps are bridged, long ones and ends held, shots without a face get the centre."""
    count = 19
    found = np.zeros(count, bool)
    numbers = np.arange(1, count + 1)
    numbers[8:] += MAX_GAP  # a long gap behind row 7
    found[[1, 4, 7, 9]] = True
    cut = np.zeros(count, bool)
    cut[16] = True
    pictures = torch.full((count, 3, 64, 64), torch.nan)
    pictures[found] = draw(character, known(4))
    clip = driving(pictures, numbers=numbers, found=found, cut=cut)
    track = solve_shot(character, clip, replace(QUICK, smoothing=0))
    names = [FrameState(s).name[0] for s in track.state]
    assert "".join(names) == "HSIISIISHSHHHHHHNNN"
    assert track.complete
    w = track.weights
    for i, share in ((2, 1 / 3), (3, 2 / 3)):
        assert w[i] == pytest.approx((1 - share) * w[1] + share * w[4], abs=1e-6)
    for row, source in ((0, 1), (8, 9), (10, 9), (15, 9)):
        assert w[row] == pytest.approx(w[source], abs=1e-6)
    assert w[16:] == pytest.approx(1 / len(MOVES), abs=1e-6)
    assert np.abs(w @ character.anchors.numpy() - track.codes).max() < 1e-4
    assert np.isnan(track.losses["mouth"]).tolist() == (~found).tolist()
