from dataclasses import replace

import numpy as np
import pytest
import torch
from small_character import MOVES
from solve_shots import STILL, bias, draw, driving, known, looked_up, only

from core.face.landmarks import detect_averaged, detect_landmarks
from core.solve.initial import retrieve
from core.solve.objective import Objective, keypoint_loss
from core.solve.shot import solve_shot


def test_blended_starts(character):
    """Keyframes are looked up; a frame between is half that, half its neighbours'."""
    clip = driving(draw(character, known(5)))
    alone = looked_up(character, clip.pictures)
    track = solve_shot(character, clip, STILL)
    expected = alone.copy()
    for i in (1, 2, 3):
        near = alone[0] + (alone[4] - alone[0]) * i / 4
        expected[i] = (alone[i] + near) / 2
    assert track.alpha == pytest.approx(expected, abs=2e-4)
    assert np.abs(track.delta).max() < 1e-5


@pytest.mark.parametrize("objective", [Objective(), Objective(grouped=False)])
def test_secants_lead_nearer_without_a_gradient(character, objective):
    clip = driving(draw(character, known(3)))
    still = replace(STILL, start="centre", objective=objective)
    tracks = [solve_shot(character, clip, replace(still, secants=n)) for n in (0, 4)]
    before, after = (track.losses["keypoints"] for track in tracks)
    with torch.no_grad():  # by what they see themselves, none leads away
        glances = [
            detect_landmarks(character.generator.synthesis(torch.from_numpy(t.codes))).keypoints
            for t in tracks
        ]
    wanted = detect_averaged(clip.pictures).keypoints + bias(character)
    first, last = (keypoint_loss(glance, wanted, objective) for glance in glances)
    assert (last <= first).all()
    assert after.mean() < 0.6 * before.mean()


def test_the_papers_starts(character):
    """The frame before, and noise that is the same whatever is solved beside it."""
    clip = driving(draw(character, known(3)), cut=np.array([False, False, True]))
    track = solve_shot(character, clip, replace(STILL, start="previous"))
    assert track.weights == pytest.approx(1 / len(MOVES), abs=1e-6)
    noisy = replace(STILL, start="previous", noise=0.01)
    track = solve_shot(character, clip, noisy)
    assert np.abs(track.alpha[0] - 1 / len(MOVES)).max() > 1e-3
    alone = solve_shot(character, only(clip, [1003]), noisy)
    assert track.alpha[2] == pytest.approx(alone.alpha[0], abs=1e-6)


def test_retrieval_finds_the_anchor_itself(character):
    weights = retrieve(character.keypoints, character.keypoints)
    assert (weights.argmax(1) == torch.arange(len(MOVES))).all()
    assert weights.sum(1).tolist() == pytest.approx([1] * len(MOVES))
    assert weights.diagonal().min() > 0.9
