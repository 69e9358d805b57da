import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from performer_faces import acted, aligned
from repository import ROOT, SUPPORT
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation
from small_character import MOVES, SIZE, small_character

from core.face.aligned_clip import NoFaceError
from core.face.alignment import MAX_GAP, shot_runs, warp
from core.face.keypoints import INNER_LIPS, KEYPOINTS, OUTER_LIPS
from core.face.landmarks import detect_averaged, detect_landmarks, group_keypoints, keypoint_error
from core.media.read import open_clip
from core.media.write import write_png
from core.personalize.character import load_character, save_character
from core.solve import optimise
from core.solve.driving import Driving, driving_from_clip, driving_from_track
from core.solve.initial import retrieve
from core.solve.latent_space import BETA
from core.solve.latent_track import CharacterMismatchError, FrameState, LatentTrack, load_track
from core.solve.neutral import (
    _TURNS,
    NeutralMissingError,
    head_neutral_offset,
    head_turns,
    mouth_neutral_offset,
)
from core.solve.objective import TERMS, Objective, keypoint_loss, picture_losses, total_loss
from core.solve.optimise import _Solver
from core.solve.schedule import plan_batches
from core.solve.settings import SolveSettings
from core.solve.shot import TrackExistsError, solve_shot
from core.solve.smoothing import smooth_codes
from core.synthetic.performer import render

QUICK = SolveSettings(steps=2, first_steps=2, batch=3)
SOLVED, HELD = FrameState.SOLVED, FrameState.HELD


@pytest.fixture(scope="module")
def character():
    return small_character()


def known(count: int) -> np.ndarray:
    """[count, N] barycentric coordinates of a motion through several expressions."""
    stops = np.eye(len(MOVES))[[0, 1, 3, 6]] * 0.8 + 0.2 / len(MOVES)
    t = np.linspace(0, len(stops) - 1, count)
    return np.stack([np.interp(t, range(len(stops)), w) for w in stops.T], 1)


def draw(character, weights: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        codes = torch.from_numpy(weights).float() @ character.anchors
        return character.generator.synthesis(codes).clamp(-1, 1)


def driving(pictures: torch.Tensor, first: int = 1001, **changes) -> Driving:
    count = len(pictures)
    rng = np.random.default_rng(0)
    plain = Driving(
        numbers=np.arange(first, first + count),
        pictures=pictures,
        found=np.ones(count, bool),
        cut=np.zeros(count, bool),
        landmarks=rng.random((count, 478, 3)).astype(np.float32),
        quads=rng.random((count, 4, 2)),
        fps=24.0,
        plate=(640, 480),
    )
    return replace(plain, **changes)


def only(clip: Driving, numbers: Iterable[int]) -> Driving:
    """These frames of it."""
    keep = np.flatnonzero(np.isin(clip.numbers, list(numbers)))
    names = ("numbers", "pictures", "found", "cut", "landmarks", "quads")
    return replace(clip, **{name: getattr(clip, name)[keep] for name in names})


def bias(character) -> torch.Tensor:
    """[86, 3] px: what a single look at the character is off a close one, on average."""
    with torch.no_grad():
        own = character.generator.synthesis(character.anchors)
        return (detect_landmarks(own).keypoints - detect_averaged(own).keypoints).mean(0)


def looked_up(character, pictures: torch.Tensor) -> np.ndarray:
    """[F, N] weights of the anchors that look like driving pictures, all seen closely."""
    anchors = character.keypoints - bias(character)
    return retrieve(detect_averaged(pictures).keypoints, anchors).numpy()


def same(a: LatentTrack, b: LatentTrack) -> None:
    for name in ("numbers", "state", "cut", "alpha", "delta", "codes", "smooth", "rest"):
        assert np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True), name
    for name in TERMS:
        assert np.array_equal(a.losses[name], b.losses[name], equal_nan=True), name
    assert a.task == b.task


# -- solving -------------------------------------------------------------------------------------


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
        rest = torch.from_numpy(track.rest)
        terms = picture_losses(made, detect_averaged(clip.pictures), centre, Objective(), rest)
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


def test_frames_of_a_batch_do_not_influence_each_other(character):
    alone = replace(QUICK, start="retrieval", neutral=None)
    truth = known(3)
    made = [
        solve_shot(character, driving(draw(character, weights)), alone).alpha[0]
        for weights in (truth, truth[[0, 2, 1]], truth[[0, 0, 0]])
    ]
    assert np.array_equal(made[0], made[1])
    assert np.array_equal(made[0], made[2])


def test_a_frame_the_network_can_make_nothing_of_keeps_its_start(character):
    """NaN in one driving frame, a keyframe, stays in that frame."""
    pictures = draw(character, known(3))
    pictures[0] = torch.nan
    track = solve_shot(character, driving(pictures), replace(QUICK, start="centre"))
    assert np.isfinite(track.smooth).all()
    assert np.isnan(track.losses["keypoints"]).tolist() == [True, False, False]
    assert track.weights[0] == pytest.approx(1 / len(MOVES))
    nothing = solve_shot(character, driving(pictures[:1]), replace(QUICK, start="centre"))
    assert not nothing.rest.any()


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


def test_the_papers_preset():
    paper = SolveSettings.paper()
    o = paper.objective
    assert (o.keypoints, o.eye_points, o.iris_points, o.mouth_points, o.head_points) == (1,) * 5
    assert (o.mouth, o.eyes) == (1, 1)
    assert (o.delta, o.sum, o.norm, o.grouped) == (10, 10, "l2", True)
    assert (paper.start, paper.noise, paper.smoothing_frames) == ("previous", 0.05, 2)


# -- starts --------------------------------------------------------------------------------------

# The result is the start.
STILL = SolveSettings(secants=0, steps=0, first_steps=0, smoothing=0, batch=8, neutral=None)


def losses(track: LatentTrack) -> np.ndarray:
    """Eq. 10 of every frame."""
    terms = {name: torch.from_numpy(values) for name, values in track.losses.items()}
    return total_loss(terms, Objective()).numpy()


def test_the_best_iterate_is_kept(character):
    """Steps that overshoot by far cost time, and nothing else."""
    clip = driving(draw(character, known(4)))
    wild = replace(STILL, rate=500.0, steps=4, first_steps=4, start="retrieval")
    start = losses(solve_shot(character, clip, replace(STILL, start="retrieval")))
    np.testing.assert_allclose(losses(solve_shot(character, clip, wild)), start, rtol=1e-4)
    tame = losses(solve_shot(character, clip, replace(wild, rate=0.25)))
    assert (tame < 0.95 * start).all()


def test_frames_that_gain_no_more_are_done(character):
    clip = driving(draw(character, known(4)))
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
    clip = driving(draw(character, known(6)))
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
    clip = driving(draw(character, known(5)))
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


def misled(monkeypatch, character) -> Driving:
    """Nine frames of one face; all keyframes but the first will be looked up wrongly."""
    clip = driving(draw(character, np.repeat(known(3)[:1], 9, 0)))
    wrong = retrieve(detect_averaged(draw(character, known(3)[2:])).keypoints, character.keypoints)

    def mislead(wanted, keypoints):
        found = retrieve(wanted, keypoints)
        if len(found) == 3:  # frames 1, 5 and 9
            found[1:] = wrong
        return found

    monkeypatch.setattr(optimise, "retrieve", mislead)
    return clip


def test_a_better_answer_spreads(character, monkeypatch):
    """A face that is held is held, whatever each frame of it began with."""
    clip = misled(monkeypatch, character)
    settled = losses(solve_shot(character, clip, STILL))
    monkeypatch.setattr(_Solver, "settle", lambda self, track, *_: track)
    before = losses(solve_shot(character, clip, STILL))
    assert before.max() > 2 * before.min()
    assert settled.max() < 1.3 * settled.min()
    assert (settled <= before).all()


def test_an_interrupt_while_answers_spread_loses_nothing(character, monkeypatch, tmp_path):
    save_character(tmp_path / "small.character", character)
    loaded = load_character(tmp_path / "small.character")
    clip, path = misled(monkeypatch, loaded), tmp_path / "shot.latents"
    few = replace(STILL, batch=4)
    shown: list[float] = []
    whole = solve_shot(loaded, clip, few, progress=lambda n, count: shown.append(n / count))
    assert shown == sorted(shown)
    assert shown[-1] == 1
    solved = next(i for i, share in enumerate(shown) if share > 0.95)  # then answers spread

    def interrupt(n, count):
        shown.append(n / count)
        if len(shown) == solved + 3:  # some have changed
            raise KeyboardInterrupt

    shown.clear()
    with pytest.raises(KeyboardInterrupt):
        solve_shot(loaded, clip, few, path=path, progress=interrupt)
    assert 0.95 < shown[-1] < 1  # in between
    partial = load_track(path)
    assert (partial.state == SOLVED).all()
    assert not partial.complete
    same(solve_shot(loaded, clip, few, path=path), whole)


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


@given(
    st.lists(st.tuples(st.integers(1, 8), st.booleans(), st.booleans()), min_size=1, max_size=60),
    st.sampled_from(["blend", "retrieval", "previous", "centre"]),
    st.integers(1, 7),
    st.integers(1, 9),
)
@hypothesis_settings(max_examples=150, deadline=None)
def test_every_frame_is_planned_once_and_after_what_it_starts_from(frames, start, batch, every):
    steps, cut, face = (np.array(column) for column in zip(*frames, strict=True))
    numbers = np.cumsum(steps)
    shots = shot_runs(numbers, cut, face)
    settings = SolveSettings(start=start, batch=batch, keyframe_every=every)
    plan = plan_batches(shots, face.copy(), settings)
    order = [int(row) for rows in plan for row in rows]
    assert sorted(order) == np.flatnonzero(face).tolist()
    assert all(1 <= len(rows) <= batch for rows in plan)
    solved: set[int] = set()
    for rows in plan:
        for row in map(int, rows):
            run = next(run for run in shots if row in run).tolist()
            if start == "previous":
                assert set(run[: run.index(row)]) <= solved
            if start == "blend" and row not in run[::every] and row != run[-1]:
                assert set(run[: run.index(row)]) & solved
                assert set(run[run.index(row) :]) & solved
        solved |= set(map(int, rows))


# -- over time -----------------------------------------------------------------------------------


def codes(values, numbers=None, cut=(), state=None) -> LatentTrack:
    """A track of given codes, one row, the value in every component."""
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
        rest=np.zeros((86, 3), np.float32),
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


def test_sigma_is_in_seconds(character):
    clip = driving(draw(character, known(6)))
    slow, fast = (
        solve_shot(character, replace(clip, fps=fps), replace(QUICK, smoothing=0.05))
        for fps in (24.0, 48.0)
    )
    assert np.array_equal(slow.codes, fast.codes)
    for track, sigma in ((slow, 1.2), (fast, 2.4)):
        assert track.smooth == pytest.approx(smooth_codes(track, sigma))
    in_frames = solve_shot(character, clip, replace(QUICK, smoothing_frames=2.4))
    assert in_frames.smooth == pytest.approx(fast.smooth)


# -- parts of a shot -----------------------------------------------------------------------------


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


def test_a_part_of_the_face_follows_and_the_others_stay(character):
    """A blink that looks ahead; the driver, with eyes open, turns and opens the mouth."""
    shut, acting = np.zeros((2, 1, len(MOVES)))
    shut[0, 5], acting[0, [1, 3]] = 1, (0.6, 0.4)
    before = solve_shot(
        character, driving(draw(character, shut)), replace(STILL, start="retrieval")
    )
    clip = driving(draw(character, acting))
    # At their usual weights the parts that are to stay hold the mouth of so small a character.
    mouth = replace(
        SolveSettings(neutral=None),
        follow=("mouth",),
        first_steps=30,  # its eyes are a few px wide: with fewer they stay only on some machines
        objective=Objective(eye_points=6, iris_points=12, head_points=12),
    )
    track = solve_shot(character, clip, mouth, previous=before)
    with torch.no_grad():
        was, now = (
            detect_landmarks(character.generator.synthesis(torch.from_numpy(t.codes))).keypoints
            for t in (before, track)
        )
    wanted = detect_averaged(clip.pictures).keypoints
    parts = {"eyes": slice(0, 42), "mouth": slice(42, 82), "head": slice(82, 86)}

    def apart(a: torch.Tensor, b: torch.Tensor, part: str) -> float:
        return float(group_keypoints(a - b)[:, parts[part]].norm(dim=-1).mean())

    assert apart(now, wanted, "mouth") < 0.7 * apart(was, wanted, "mouth")
    for part in ("eyes", "head"):
        assert apart(now, was, part) < 0.7 * apart(was, wanted, part)
    with pytest.raises(ValueError, match="previous track"):
        solve_shot(character, clip, mouth)


# -- faces at rest -------------------------------------------------------------------------------


def test_shapes_at_rest_are_found_without_a_neutral_pair(character):
    """Another person does what the character can do: the rest is how their shapes differ."""
    acting = known(13)
    clip = driving(aligned(acting @ acted(31, *MOVES), SIZE))
    own, other = (
        detect_landmarks(draw(character, acting)).keypoints,
        detect_averaged(clip.pictures).keypoints,
    )
    truth = group_keypoints((own - other).mean(0))
    track = solve_shot(character, clip)
    found = group_keypoints(torch.from_numpy(track.rest))
    assert float((found - truth).norm()) < 0.7 * float(truth.norm())
    assert not solve_shot(character, clip, replace(QUICK, neutral=None)).rest.any()


HEAD = slice(-4, None)  # of the 86 keypoints


def turned(shape: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Keypoints `[86, 3]` about the origin, turned by yaw, pitch and roll `[F, 3]`, degrees."""
    turns = Rotation.from_euler("yxz", angles, degrees=True).as_matrix()
    return 96 + np.einsum("fij,kj->fki", turns, shape)


@pytest.fixture(scope="module")
def own(character) -> np.ndarray:
    """The character's keypoints on average, about the origin, `[86, 3]`."""
    mean = character.keypoints.mean(0).numpy().astype(np.float64)
    return mean - mean[HEAD].mean(0)


@pytest.fixture(scope="module")
def heads(own) -> np.ndarray:
    """Anchors that only turn, evenly to all sides."""
    angles = np.random.default_rng(0).normal(0, [8, 5, 3], (32, 3))
    return turned(own, np.concatenate([angles, -angles]))


def pitch(keypoints: np.ndarray) -> float:
    return float(np.median(head_turns(keypoints)[:, _TURNS.index("pitch")]))


def test_a_turned_head_is_not_taken_for_its_shape(own, heads):
    driving = turned(own, np.array([[12.0, 0, 4], [14, 0, 6], [16, 0, 5]]))
    unturned = np.abs(heads.mean(0) - driving.mean(0))[HEAD].max()
    found = head_neutral_offset(driving, heads)
    assert np.abs(found[HEAD]).max() < 0.12 * unturned
    assert not found[: HEAD.start].any()


def test_the_shape_of_a_head_is_found_however_it_is_turned(own, heads):
    broad = own * [1.15, 1, 1]
    angles = np.array([[10.0, 0, 3], [12, 0, 5], [14, 0, 4]])
    truth = (turned(own, angles) - turned(broad, angles)).mean(0)[HEAD]
    found = head_neutral_offset(turned(broad, angles), heads)[HEAD]
    assert np.linalg.norm(found - truth) < 0.3 * np.linalg.norm(truth)


@pytest.mark.parametrize(("degrees", "taken"), [(-6, -3), (6, 3), (20, 5)])
def test_half_of_a_pitch_is_taken_for_the_shape_but_no_more_than_five_degrees(
    own, heads, degrees, taken
):
    driving = turned(own, np.array([[0.0, degrees, 0]]))
    sign = np.sign(pitch(turned(own, np.array([[0.0, 1, 0]]))) - pitch(own[None]))
    assert pitch(driving) - pitch(own[None]) == pytest.approx(sign * degrees, abs=0.5)
    left = pitch(driving + head_neutral_offset(driving, heads))
    assert pitch(driving) - left == pytest.approx(sign * taken, abs=1)


def test_driving_frames_that_no_mesh_was_found_in_dont_count(own, heads):
    driving = turned(own, np.array([[5.0, 2, 0]] * 3))
    some = driving.copy()
    some[1] = np.nan
    np.testing.assert_allclose(
        head_neutral_offset(some, heads), head_neutral_offset(driving, heads), atol=1e-6
    )
    assert not head_neutral_offset(driving * np.nan, heads).any()


MOUTH = [KEYPOINTS.index(point) for point in INNER_LIPS]
LIPS = [KEYPOINTS.index(point) for point in INNER_LIPS + OUTER_LIPS]


def mouths(own: np.ndarray, widths: list[float], gaps: list[float]) -> np.ndarray:
    """Faces `[F, 86, 3]` with inner lips so wide and so far apart, over the eyes' distance."""
    span = np.linalg.norm(np.diff(own[[KEYPOINTS.index(33), KEYPOINTS.index(263)]], axis=0))
    # From the right corner along the lower lip to the left one, and back along the upper lip.
    turn = np.pi + np.arange(20) * np.pi / 10
    around = np.stack([np.cos(turn), -np.sin(turn), np.cos(2 * turn)], 1) / 2
    faces = np.tile(own, (len(widths), 1, 1))
    size = np.stack([widths, gaps, np.full(len(widths), 0.1)], 1)
    faces[:, MOUTH] = span * size[:, None] * around
    return faces


def test_mouths_are_compared_where_they_rest(own):
    """However long the driver smiles, and more broadly than the character ever does."""
    anchors = mouths(own, [0.41, 0.46, 0.5, 0.52, 0.56, 0.61] * 2, [0.0] * 6 + [0.2] * 6)
    driving = mouths(own, [0.51] * 3 + [0.72] * 9, [0.01] * 3 + [0.17] * 9)
    assert np.abs(mouth_neutral_offset(driving, anchors)).max() < 0.5
    thick = np.random.default_rng(0).normal(0, 1, (40, 3)) * [0, 1, 1]
    thick[[INNER_LIPS.index(i) for i in (78, 308, 13, 14)]] = 0  # what rest is told by
    shaped = driving.copy()
    shaped[:, LIPS] += thick
    shaped[1] = np.nan
    found = mouth_neutral_offset(shaped, anchors) - mouth_neutral_offset(driving, anchors)
    np.testing.assert_allclose(found, thick.mean(0) - thick, atol=1e-4)


def test_where_no_mouth_rests_none_is_compared(own):
    rests, smiles = mouths(own, [0.51] * 4, [0.0] * 4), mouths(own, [0.7] * 4, [0.15] * 4)
    assert mouth_neutral_offset(rests, rests) is not None
    assert mouth_neutral_offset(smiles, rests) is None
    assert mouth_neutral_offset(rests, smiles) is None
    assert mouth_neutral_offset(rests * np.nan, rests) is None


def test_a_part_is_compared_as_the_whole_was(character):
    clip = driving(draw(character, known(7)))
    whole = solve_shot(character, clip, QUICK)
    part = only(clip, [1003, 1004])
    assert (solve_shot(character, part, QUICK, previous=whole).rest == whole.rest).all()
    other = solve_shot(character, part, replace(QUICK, neutral=None), previous=whole)
    assert not other.rest.any()


def test_faces_at_rest_are_taken_out_of_the_comparison(character):
    """The driver at rest stands for the character at rest: there is nothing left to solve."""
    rest = np.eye(len(MOVES))[[2, 0]]  # the driver's resting face is a smile
    clip = driving(draw(character, rest))
    settings = replace(STILL, start="centre", neutral=(1001, 0))
    track = solve_shot(character, clip, settings)
    pictures = draw(
        character, np.stack([np.full(len(MOVES), 1 / len(MOVES)), np.eye(len(MOVES))[0]])
    )
    centre, at_rest = detect_averaged(pictures).keypoints
    assert track.quality["keypoint_error"][0] == pytest.approx(
        float(keypoint_error(centre, at_rest)), abs=0.05
    )
    looked_up = solve_shot(character, clip, replace(settings, start="retrieval"))
    assert looked_up.alpha[0].argmax() == 0
    assert solve_shot(character, clip, replace(STILL, start="retrieval")).alpha[0].argmax() == 2


@pytest.mark.parametrize(
    ("neutral", "words"),
    [((1002, 0), "Frame 1002, the neutral driving"), ((1001, 12), "nearest that are: 0, 10, 20")],
)
def test_a_neutral_pair_that_is_not_there(character, neutral, words):
    clip = driving(draw(character, known(2)), found=np.array([True, False]))
    with pytest.raises(NeutralMissingError, match=words):
        solve_shot(character, clip, replace(QUICK, neutral=neutral))


# -- interruptions -------------------------------------------------------------------------------

_CHILD = """
import os, signal, sys
import torch
torch.set_num_threads(int(sys.argv[4]))
sys.path.insert(0, sys.argv[1])
import test_reenactment as t
from core.solve import shot
shot.SAVE_SECONDS = -1
folder = t.Path(sys.argv[2])
character = t.load_character(folder / "small.character")
clip = t.driving(torch.load(folder / "pictures.pt"))
def progress(done, count):
    if done >= float(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
t.solve_shot(character, clip, t.QUICK, path=folder / "shot.latents", progress=progress)
"""


@pytest.mark.parametrize(
    ("killed", "solved"),
    [(2.5, 3), (5.5, 3)],  # of 8: after the first look at the keyframes, and after the second
    ids=["before the rest shapes", "after"],
)
def test_a_killed_solve_goes_on_to_the_same_track(character, tmp_path, killed, solved):
    save_character(tmp_path / "small.character", character)
    loaded = load_character(tmp_path / "small.character")
    pictures = draw(loaded, known(8))
    torch.save(pictures, tmp_path / "pictures.pt")
    path = tmp_path / "shot.latents"
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{SUPPORT}"}
    run = subprocess.run(
        [sys.executable, "-c", _CHILD, here, tmp_path, str(killed), str(torch.get_num_threads())],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    partial = load_track(path)
    assert not partial.complete
    assert (partial.state == SOLVED).sum() == solved
    assert np.isfinite(partial.rest).all() == (killed > 5)
    done: list[float] = []
    result = solve_shot(
        loaded, driving(pictures), QUICK, path=path, progress=lambda n, _: done.append(n)
    )
    # Of eight frames three are keyframes, which count twice, and 5 % is kept for answers to spread.
    assert done[0] == pytest.approx(3 * 8 / (8.4 if killed > 5 else 11.4))
    same(result, solve_shot(loaded, driving(pictures), QUICK))
    same(result, load_track(path))
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.endswith("latents")) == [path.name]


def test_ctrl_c_keeps_what_is_done(character, tmp_path):
    clip, path = driving(draw(character, known(8))), tmp_path / "shot.latents"

    def stop(done: float, count: int) -> None:
        if done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve_shot(character, clip, QUICK, path=path, progress=stop)
    partial = load_track(path)
    assert (partial.state == SOLVED).sum() == 3
    assert np.isfinite(partial.codes[partial.state == SOLVED]).all()
    same(solve_shot(character, clip, QUICK, path=path), solve_shot(character, clip, QUICK))


def test_a_finished_track_is_not_solved_again(character, tmp_path):
    clip, path = driving(draw(character, known(2))), tmp_path / "shot.latents"
    first = solve_shot(character, clip, QUICK, path=path)
    steps: list[float] = []
    same(
        solve_shot(character, clip, QUICK, path=path, progress=lambda n, _: steps.append(n)), first
    )
    assert not steps


def test_another_track_is_not_overwritten(character, tmp_path):
    clip, path = driving(draw(character, known(2))), tmp_path / "shot.latents"
    solve_shot(character, clip, QUICK, path=path)
    before = path.read_bytes()
    louder = clip.pictures.clone()
    louder[1] *= 0.9
    for changed in (
        lambda: solve_shot(character, clip, replace(QUICK, seed=1), path=path),
        lambda: solve_shot(replace(character, hash="b"), clip, QUICK, path=path),
        lambda: solve_shot(character, driving(louder), QUICK, path=path),
    ):
        with pytest.raises(TrackExistsError, match="delete"):
            changed()
    assert path.read_bytes() == before


def test_driving_that_makes_no_sense(character):
    pictures = draw(character, known(2))
    with pytest.raises(NoFaceError):
        solve_shot(character, driving(pictures, found=np.zeros(2, bool)), QUICK)
    with pytest.raises(ValueError, match="order"):
        solve_shot(character, driving(pictures, numbers=np.array([2, 1])), QUICK)
    with pytest.raises(ValueError, match="lengths"):
        solve_shot(character, driving(pictures, cut=np.zeros(3, bool)), QUICK)


# -- clips ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Six frames: a person, two empty frames, the person again."""
    folder = tmp_path_factory.mktemp("clip")
    faces = [render(p, 200) for p in acted(5, {}, {"jaw": 0.5}, {"yaw": 5.0}, {"yaw": 8.0})]
    empty = np.full_like(faces[0], 90)
    for number, picture in zip(
        range(1001, 1007), [*faces[:2], empty, empty, *faces[2:]], strict=True
    ):
        write_png(folder / f"a.{number}.png", picture)
        write_png(folder / f"none.{number}.png", empty)
    return open_clip(folder / "a.####.png")


def test_driving_from_a_clip(clip):
    steps: list[float] = []
    d = driving_from_clip(clip, size=96, progress=lambda done, _: steps.append(done))
    assert d.numbers.tolist() == list(range(1001, 1007))
    assert d.found.tolist() == [True, True, False, False, True, True]
    assert d.pictures.shape == (6, 3, 96, 96)
    assert d.plate == (200, 200)
    assert d.source == clip.path
    assert steps == sorted(steps)
    assert steps[-1] == 12  # read twice
    picture = cv2.imread(clip.file(1005))[:, :, ::-1] / np.float32(255)
    plate = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
    crop = warp(plate, torch.from_numpy(d.quads[4:5]).float(), 96)[0] * 2 - 1
    assert (d.pictures[4].float() - crop).abs().max() < 0.01
    # the face stands where FFHQ's alignment puts it, and the two see the same mesh
    mesh = detect_landmarks(d.pictures[4:5].float()).landmarks[0, :, :2].detach().numpy()
    eyes = (mesh[[33, 263]].mean(0) / 192 - 0.5) * 0.96 + [0.5, 0.6]
    assert eyes == pytest.approx([0.5, 0.47], abs=0.05)


def test_a_part_of_a_clip_by_its_track(character, clip):
    d = driving_from_clip(clip, size=96)
    track = solve_shot(character, d, QUICK)
    assert track.state.tolist() == [1, 1, 3, 3, 1, 1]  # a grey picture looks like a cut
    part = driving_from_track(clip, track, [1005, 1002, 1004], size=96)
    expected = only(d, [1002, 1004, 1005])
    assert part.numbers.tolist() == [1002, 1004, 1005]
    assert part.found.tolist() == [True, False, True]
    assert torch.equal(part.pictures, expected.pictures)
    assert np.array_equal(part.quads, expected.quads, equal_nan=True)
    with pytest.raises(KeyError):
        driving_from_track(clip, track, [99])


def test_a_clip_without_a_face(clip):
    with pytest.raises(NoFaceError, match="Choose another range"):
        driving_from_clip(open_clip(clip.path.replace("a.", "none.")))
