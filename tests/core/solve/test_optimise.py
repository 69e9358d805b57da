from dataclasses import replace

import numpy as np
import pytest
import torch
from solve_shots import STILL, draw, driving, known, losses

from core.face.landmarks import detect_averaged
from core.solve import optimise
from core.solve.objective import Objective, keypoint_loss
from core.solve.settings import SolveSettings
from core.solve.shot import solve_shot


def test_the_best_iterate_is_kept(character):
    """Steps that overshoot by far cost time, and nothing else."""
    clip = driving(draw(character, known(4)))
    wild = replace(STILL, rate=500.0, steps=4, first_steps=4, start="retrieval")
    start = losses(solve_shot(character, clip, replace(STILL, start="retrieval")))
    np.testing.assert_allclose(losses(solve_shot(character, clip, wild)), start, rtol=1e-4)
    tame = losses(solve_shot(character, clip, replace(wild, rate=0.25)))
    assert (tame < 0.95 * start).all()


def test_frames_that_gain_no_more_are_done(character):
    clip = driving(draw(character, known(2)))
    drawn = 0

    def count(*_) -> None:
        nonlocal drawn
        drawn += torch.is_grad_enabled()

    hook = character.generator.synthesis.register_forward_pre_hook(count)
    steps = []
    for tolerance in (0.0, 1e9):  # a batch may stop never, or once patience has run out
        solve_shot(
            character,
            clip,
            replace(STILL, first_steps=6, patience=2, tolerance=tolerance, start="retrieval"),
        )
        steps.append(drawn)
        drawn = 0
    hook.remove()
    assert steps == [6, 3]


def test_half_precision_finds_as_much_and_tells_in_full(character, monkeypatch):
    clip = driving(draw(character, known(4)))
    found = []
    for half in (None, torch.bfloat16):
        monkeypatch.setattr(optimise, "half_precision", lambda device, half=half: half)
        track = solve_shot(character, clip, SolveSettings(neutral=None))
        with torch.no_grad():  # what it tells of its codes is so, in full
            made = detect_averaged(character.generator.synthesis(torch.from_numpy(track.codes)))
        wanted = detect_averaged(clip.pictures).keypoints
        error = keypoint_loss(made.keypoints, wanted, Objective()).numpy()
        assert track.losses["keypoints"] == pytest.approx(error, rel=1e-3)
        found.append(losses(track))
    start = losses(solve_shot(character, clip, replace(STILL, start="retrieval")))
    gained = [(start - one).mean() for one in found]
    assert gained[1] == pytest.approx(gained[0], rel=0.05)
