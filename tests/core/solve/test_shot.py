import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from solve_shots import QUICK, STILL, draw, driving, known, looked_up, only, same

from core.face.aligned_clip import NoFaceError
from core.face.landmarks import detect_averaged, keypoint_error
from core.solve.context import prepare
from core.solve.initial import retrieve
from core.solve.latent_space import BETA
from core.solve.latent_track import (
    CharacterMismatchError,
    FrameState,
    LatentTrack,
)
from core.solve.objective import TERMS, Objective, picture_losses
from core.solve.settings import SolveSettings
from core.solve.shot import solve_shot
from core.solve.smoothing import smooth_codes

SOLVED = FrameState.SOLVED


@pytest.fixture(scope="module")
def recovered(character):
    truth = known(6)
    clip = driving(draw(character, truth))
    before = {name: p.clone() for name, p in character.generator.state_dict().items()}
    steps: list[tuple[float, int]] = []
    named = replace(character, hash="c" * 64)
    track = solve_shot(named, clip, progress=lambda *step: steps.append(step))
    after = character.generator.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in character.generator.parameters())
    return clip, track, steps


def test_known_codes_are_recovered(character, recovered):
    """Pictures that the generator can make: what is left of the distance to the best first guess,
    measured on pictures drawn anew from the stored codes."""
    clip, track, _ = recovered
    wanted = detect_averaged(clip.pictures).keypoints
    with torch.no_grad():
        guess = retrieve(wanted, character.keypoints) @ character.anchors
        guessed = detect_averaged(character.generator.synthesis(guess)).keypoints
    before = keypoint_error(guessed, wanted)

    def after(track: LatentTrack) -> torch.Tensor:
        with torch.no_grad():
            made = detect_averaged(character.generator.synthesis(torch.from_numpy(track.codes)))
        return keypoint_error(made.keypoints, wanted)

    assert float(after(track).mean()) < 0.4 * float(before.mean())
    # At both ends the guess is an anchor, and off by less than shapes found from six frames are.
    told = after(solve_shot(character, clip, SolveSettings(neutral=None)))
    assert float(told.mean()) < 0.3 * float(before.mean())
    assert (told < before + 0.05).all()


def test_reported_terms_are_those_of_the_stored_codes(character, recovered):
    clip, track, _ = recovered
    generator, anchors = character.generator, character.anchors
    with torch.no_grad():
        made = detect_averaged(generator.synthesis(torch.from_numpy(track.codes)))
        centre = detect_averaged(generator.synthesis(anchors.mean(0, keepdim=True)))
        offset = torch.from_numpy(track.neutral_offset)
        terms = picture_losses(made, detect_averaged(clip.pictures), centre, Objective(), offset)
    for name, values in terms.items():
        assert track.losses[name] == pytest.approx(values.numpy(), rel=0.02, abs=0.01), name
    assert set(track.losses) == set(TERMS)
    assert all(np.isfinite(values).all() for values in track.losses.values())


def test_codes_are_in_p_plus_and_come_from_alpha_and_delta(character, recovered):
    _, track, _ = recovered
    weights = track.weights
    assert weights.min() >= -BETA - 1e-6
    assert np.abs(weights.sum(-1) - 1).max() < 1e-5
    assert np.abs(track.delta.mean(1)).max() < 1e-6
    assert np.abs(weights @ character.anchors.numpy() - track.codes).max() < 1e-4
    assert np.abs(track.delta).max() > 1e-4  # the rows do differ


def test_the_track_says_what_it_is(recovered):
    clip, track, steps = recovered
    assert track.complete
    assert (track.state == SOLVED).all()
    assert track.character == "c" * 64
    assert track.numbers.tolist() == list(range(1001, 1007))
    assert np.array_equal(track.quads, clip.quads)
    assert (track.fps, track.plate) == (24.0, (640, 480))
    assert json.loads(json.dumps(track.settings)) == json.loads(json.dumps(asdict(SolveSettings())))
    done = [frames for frames, _ in steps]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 6)
    assert {count for _, count in steps} == {6}


def test_a_solve_can_be_repeated(character):
    clip = driving(draw(character, known(4)))
    noisy = replace(QUICK, noise=0.01)
    first = solve_shot(character, clip, noisy)
    torch.manual_seed(99)
    same(first, solve_shot(character, clip, noisy))
    assert not np.array_equal(
        first.alpha, solve_shot(character, clip, replace(noisy, seed=1)).alpha
    )


@pytest.mark.parametrize(
    "settings",
    [
        SolveSettings.paper(),
        SolveSettings(objective=Objective(mouth=0, eyes=0)),
        SolveSettings(objective=Objective(grouped=False)),
        SolveSettings(start="retrieval"),
        SolveSettings(start="centre"),
    ],
)
def test_ablations_run_and_report_every_term(character, settings):
    clip = driving(draw(character, known(3)))
    track = solve_shot(character, clip, replace(settings, steps=1, first_steps=1))
    assert track.complete
    assert all(np.isfinite(track.losses[name]).all() for name in TERMS)


def test_anchors_are_observed_once_while_a_character_is_loaded(character):
    drawn: list[int] = []
    hook = character.generator.synthesis.register_forward_pre_hook(
        lambda network, codes: drawn.append(len(codes[0]))
    )
    contexts = []
    for anchors in (character.anchors.clone(), character.anchors.flip(0)):
        for hash in ("a", "b"):  # two jobs
            who = replace(character, anchors=anchors, hash=hash)
            contexts.append(prepare(who, QUICK))
            assert sum(drawn) == (len(anchors) + 1 if hash == "a" else 0)
            drawn.clear()
    hook.remove()
    first, second, flipped, _ = contexts
    assert torch.equal(first.crop_bias, second.crop_bias)
    assert torch.equal(first.centre.landmarks, second.centre.landmarks)
    assert torch.equal(first.keypoints, second.keypoints)
    assert not torch.equal(first.crop_bias, flipped.crop_bias)


def test_the_papers_preset():
    paper = SolveSettings.paper()
    o = paper.objective
    assert (o.keypoints, o.eye_points, o.iris_points, o.mouth_points, o.head_points) == (1,) * 5
    assert (o.mouth, o.eyes) == (1, 1)
    assert (o.delta, o.sum, o.norm, o.grouped) == (10, 10, "l2", True)
    assert (paper.start, paper.noise, paper.smoothing_frames) == ("previous", 0.05, 2)


def test_sigma_is_in_seconds(character):
    clip = driving(draw(character, known(6)))
    slow, fast = (
        solve_shot(character, replace(clip, fps=fps), replace(STILL, smoothing=0.05))
        for fps in (24.0, 48.0)
    )
    assert np.array_equal(slow.codes, fast.codes)
    for track, sigma in ((slow, 1.2), (fast, 2.4)):
        assert track.smooth == pytest.approx(smooth_codes(track, sigma))
    in_frames = solve_shot(character, clip, replace(STILL, smoothing_frames=2.4))
    assert in_frames.smooth == pytest.approx(fast.smooth)


def test_a_part_is_solved_again_and_the_rest_stays(character):
    clip = driving(draw(character, known(7)))
    whole = solve_shot(character, clip, QUICK)
    again = solve_shot(
        character, only(clip, [1003, 1004]), replace(STILL, smoothing=0.06), previous=whole
    )
    part = np.isin(whole.numbers, [1003, 1004])
    assert again.numbers.tolist() == whole.numbers.tolist()
    for name in ("alpha", "delta", "codes", "smooth"):
        assert np.array_equal(getattr(again, name)[~part], getattr(whole, name)[~part]), name
        assert not np.array_equal(getattr(again, name)[part], getattr(whole, name)[part]), name
    # both frames were keyframes: half looked up, half between the frames around the part
    near = whole.weights[1] * 2 / 3 + whole.weights[4] / 3
    alone = looked_up(character, clip.pictures[2:3])
    assert again.weights[2] == pytest.approx((alone + near) / 2, abs=2e-4)
    assert again.smooth[part] == pytest.approx(smooth_codes(again, 0.06 * 24)[part])


def test_a_part_can_be_added(character):
    clip = driving(draw(character, known(6)))
    first = solve_shot(character, only(clip, range(1001, 1004)), QUICK)
    both = solve_shot(character, only(clip, range(1004, 1007)), QUICK, previous=first)
    assert both.complete
    assert both.numbers.tolist() == clip.numbers.tolist()
    assert np.array_equal(both.codes[:3], first.codes)


def test_a_part_of_another_characters_track_is_refused(character):
    clip = driving(draw(character, known(2)))
    track = solve_shot(character, clip, QUICK)
    with pytest.raises(CharacterMismatchError):
        solve_shot(replace(character, hash="b"), clip, QUICK, previous=track)


def test_driving_that_makes_no_sense(character):
    pictures = draw(character, known(2))
    with pytest.raises(NoFaceError):
        solve_shot(character, driving(pictures, found=np.zeros(2, bool)), QUICK)
    with pytest.raises(ValueError, match="order"):
        solve_shot(character, driving(pictures, numbers=np.array([2, 1])), QUICK)
    with pytest.raises(ValueError, match="lengths"):
        solve_shot(character, driving(pictures, cut=np.zeros(3, bool)), QUICK)
