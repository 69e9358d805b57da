"""Measures of a shot against closed forms, brute force, and a shot whose faults are known."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import coefficient_network, pooling_network
from small_shot import FIRST, FRAMES, LOST, WRONG, small_shot

from core.edit.repair import check
from core.face.aligned_clip import cut_out
from core.face.identity import proxy_recogniser
from core.face.landmarks import detect_landmarks
from core.media.clip import Clip
from core.media.errors import ClipError
from core.media.numbering import frame_path
from core.media.read import open_clip
from core.media.write import write_png
from core.personalize.character import Character, load_character
from core.quality.definitions import MARGIN, MEASURES, SOLVE_STEPS, Quality
from core.quality.export import as_csv, plain, summary
from core.quality.marks import mark, suggested_repairs
from core.quality.measure import (
    NothingToMeasureError,
    _picture_figures,
    jitter,
    latent_position,
    measure_shot,
    rendered_pictures,
)
from core.quality.recognition import load_face_model, load_recogniser
from core.render.drawing import draw_pictures
from core.render.frames import FrameFiles, write_frames
from core.solve.latent_space import BETA
from core.solve.latent_track import FrameState, LatentTrack, load_track

WRONG_ROW, LOST_ROW = WRONG - FIRST, LOST - FIRST
COMPARED = (
    "landmarks",
    "right_eye",
    "left_eye",
    "lips",
    "head",
    "mouth",
    "smile",
    "lids",
    "pose",
)


@pytest.fixture(scope="module")
def shot(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Character, LatentTrack, Clip]:
    character, track, plate = small_shot(tmp_path_factory.mktemp("shot"))
    return load_character(character), load_track(track), open_clip(plate)


@pytest.fixture(scope="module")
def measured(shot: tuple[Character, LatentTrack, Clip]) -> Quality:
    who, track, plate = shot
    return measure_shot(track, who, plate, proxy_recogniser(), batch=4)


# -- a shot whose faults are known ---------------------------------------------------------------


def test_the_wrong_mouth_is_found_named_and_the_worst(measured: Quality) -> None:
    assert measured.marked[0] == WRONG
    found = {m.measure: m for m in measured.marks if m.number == WRONG}
    assert {"landmarks", "lips", "mouth"} <= set(found)
    assert found["mouth"].reason.startswith("The mouth is open wider than the driver's (")
    assert measured.measures["mouth"][WRONG_ROW] > 5
    assert set(measured.marked) == {WRONG, LOST}
    whole = np.delete(np.arange(FRAMES), [WRONG_ROW, LOST_ROW])
    assert np.nanmax(measured.measures["landmarks"][whole]) < 1.0
    assert measured.measures["landmarks"][WRONG_ROW] > 2 * np.nanmax(
        measured.measures["landmarks"][whole]
    )


def test_a_frame_without_a_face_says_so_and_is_compared_with_nothing(measured: Quality) -> None:
    for name in COMPARED:
        assert np.isnan(measured.measures[name][LOST_ROW]), name
    for name in ("identity", "sharpness", "niqe", "dilation"):  # the result is there
        assert np.isfinite(measured.measures[name][LOST_ROW]), name
    (mark,) = [m for m in measured.marks if m.number == LOST and m.measure == "state"]
    assert "not found" in mark.reason


def test_the_repair_list_begins_with_what_can_be_mended(measured: Quality) -> None:
    entries = suggested_repairs(measured)
    assert str(LOST) not in json.dumps(entries)
    (entry,) = [e for e in entries if e["do"] == "solve"]
    assert entry["frames"] == f"{WRONG - MARGIN}-{WRONG + MARGIN}"
    assert "mouth" in entry["reason"]
    assert entry["steps"] == SOLVE_STEPS


def test_shapes_at_rest_are_taken_out_and_named(
    shot: tuple[Character, LatentTrack, Clip], measured: Quality
) -> None:
    who, track, plate = shot
    assert "left in" in measured.notes[0]
    rest = np.zeros((86, 3), np.float32)
    rest[:, 0] = 5.0  # says: five px further to the right than the driver; it is not so
    moved = measure_shot(replace(track, neutral_offset=rest), who, plate, proxy_recogniser())
    assert not moved.notes
    head = moved.measures["head"] - measured.measures["head"]
    assert np.nanmedian(head) > 3  # absolute: it shows
    lips = moved.measures["lips"] - measured.measures["lips"]
    assert abs(np.nanmedian(lips)) < 0.5  # about its own middle: it does not


def test_rendered_frames_measure_as_drawn_ones(
    shot: tuple[Character, LatentTrack, Clip], measured: Quality, tmp_path: Path
) -> None:
    who, track, plate = shot
    rows = np.arange(3, 8)
    numbers = [int(n) for n in track.numbers[rows]]

    def rendered(name: str, on: Clip | None) -> Quality:
        pattern = str(tmp_path / name / "out.####.exr")
        write_frames(who.generator, track, rows, FrameFiles(pattern, "t"), on)
        clip = open_clip(pattern)
        return measure_shot(track, who, plate, proxy_recogniser(), rendered=clip)

    crops, patches = rendered("crops", None), rendered("patches", plate)
    for made, off in ((crops, 0.15), (patches, 0.6)):  # a patch's edge is the plate's
        assert made.numbers.tolist() == numbers
        for name in ("landmarks", "lips", "mouth", "pose"):
            apart = made.measures[name] - measured.measures[name][rows]
            if made is patches:  # the wrong one's chin is not where the plate's is
                apart = apart[made.numbers != WRONG]
            # Degrees, and of a face that is 64 px wide, with the outline of the plate's head.
            most = 1.5 if made is patches and name == "pose" else off
            assert np.abs(apart).max() < most * 3, name
            assert np.abs(apart).mean() < most, name
    np.testing.assert_array_equal(crops.measures["dilation"], measured.measures["dilation"][rows])
    write_png(tmp_path / "wide.1004.png", np.zeros((20, 40, 3)))
    with pytest.raises(NothingToMeasureError, match="40x20"):
        measure_shot(
            track,
            who,
            plate,
            proxy_recogniser(),
            rendered=open_clip(str(tmp_path / "wide.####.png")),
        )


def test_patches_are_judged_merged_over_their_plate(
    shot: tuple[Character, LatentTrack, Clip], tmp_path: Path
) -> None:
    who, track, plate = shot
    numbers = [FIRST, FIRST + 1]
    pattern = str(tmp_path / "out.####.exr")
    nothing = replace(track, smooth=-track.smooth, amount=np.zeros(FRAMES, np.float32))
    write_frames(who.generator, nothing, np.arange(2), FrameFiles(pattern, "t"), plate)
    made = rendered_pictures(open_clip(pattern), plate, track, np.arange(2), 64)
    driver = cut_out(plate, numbers, track.quads[:2], 64)
    for a, b in zip(made, driver, strict=True):  # an amount of 0 is the plate
        assert a is not None
        torch.testing.assert_close(a, b.float(), atol=2e-3, rtol=0)


def test_what_was_interrupted_goes_on_where_it_was(
    shot: tuple[Character, LatentTrack, Clip], measured: Quality, tmp_path: Path
) -> None:
    """And looks at no frame twice: they are gone."""
    who, track, plate = shot
    pattern = str(tmp_path / "plate.####.png")
    for number in plate.numbers:
        source = Path(frame_path(plate.path, number))
        Path(frame_path(pattern, number)).write_bytes(source.read_bytes())
    clip = open_clip(pattern)
    work = tmp_path / "work"

    def stop(done: float, total: float) -> None:
        if done >= len(who.anchors) + 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_shot(track, who, clip, proxy_recogniser(), batch=4, work=work, progress=stop)
    for number in clip.numbers[:8]:
        Path(frame_path(pattern, number)).unlink()
    again = measure_shot(track, who, clip, proxy_recogniser(), batch=4, work=work)
    assert (again.marks, again.cards) == (measured.marks, measured.cards)
    for name, values in measured.measures.items():
        np.testing.assert_array_equal(again.measures[name], values, err_msg=name)
    other = replace(track, smooth=track.codes)
    with pytest.raises(ClipError):  # another track's are not these
        measure_shot(other, who, clip, proxy_recogniser(), work=work)


def test_of_other_clips_nothing_is_measured(
    shot: tuple[Character, LatentTrack, Clip], tmp_path: Path
) -> None:
    who, track, _ = shot
    write_png(tmp_path / "other.0001.png", np.zeros((20, 20, 3)))
    with pytest.raises(NothingToMeasureError, match=f"{FIRST}-{FIRST + FRAMES - 1}"):
        measure_shot(track, who, open_clip(str(tmp_path / "other.####.png")), proxy_recogniser())
    half = replace(track, smooth=np.full_like(track.smooth, np.nan))
    with pytest.raises(ValueError, match="not complete"):
        measure_shot(half, who, shot[2], proxy_recogniser())


def test_a_users_networks_take_the_place_of_the_proxies(
    shot: tuple[Character, LatentTrack, Clip], tmp_path: Path
) -> None:
    who, track, plate = shot
    known = load_recogniser(pooling_network(tmp_path / "face.onnx", 112, 16))
    model = load_face_model(coefficient_network(tmp_path / "model.onnx"))
    found = measure_shot(track, who, plate, known, face_model=model, batch=5)
    assert found.metrics["identity"].startswith("face.onnx (sha256 ")
    assert found.metrics["pose_distance"].startswith("model.onnx (sha256 ")

    def pictures(codes: np.ndarray) -> torch.Tensor:
        return torch.stack(list(draw_pictures(who.generator, codes)))

    rows = who.generator.architecture.num_ws
    made, anchors = (
        pictures(codes)
        for codes in (track.smooth, who.anchors[:, None].expand(-1, rows, -1).numpy())
    )
    with torch.no_grad():
        vectors = [known.embed(p, detect_landmarks(p).landmarks).numpy() for p in (made, anchors)]
    cosines = np.array(
        [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in vectors[1]] for a in vectors[0]]
    )
    top = np.sort(cosines, 1)[:, -5:].mean(1)
    np.testing.assert_allclose(found.measures["identity"], top, atol=1e-5)
    # The frame whose two sides differ most: where they hardly do, float32 has no three digits.
    row = slice(WRONG_ROW, WRONG_ROW + 1)
    crop = next(cut_out(plate, [WRONG], track.quads[row], 256))[None].float()
    with torch.no_grad():
        sides = [
            model.fit(
                p,
                detect_landmarks(
                    torch.nn.functional.interpolate(p, (64, 64), mode="bilinear", antialias=True)
                ).landmarks,
            )
            for p in (crop, made[row])
        ]
    expected = [((a - b) ** 2).mean().item() for a, b in zip(*sides, strict=True)]
    for name, value in (
        ("expression_distance", 10 * expected[0]),
        ("pose_distance", 100 * expected[1]),
    ):
        assert found.measures[name][WRONG_ROW] == pytest.approx(value, rel=1e-3)
    assert summary(found)["ID"] == pytest.approx(top.mean(), abs=1e-4)


def test_blur_lowers_sharpness_and_white_clips(
    shot: tuple[Character, LatentTrack, Clip],
) -> None:
    who, track, _ = shot
    picture = next(draw_pictures(who.generator, track.smooth))
    mesh = detect_landmarks(picture[None]).landmarks[0]

    def seen(rgb: np.ndarray) -> dict[str, float]:
        return _picture_figures(torch.from_numpy(rgb).permute(2, 0, 1), mesh, 64)

    rgb = picture.permute(1, 2, 0).numpy()
    sharp = [seen(rgb)["sharpness"]]
    sharp += [seen(cv2.GaussianBlur(rgb, (0, 0), s))["sharpness"] for s in (0.5, 1.0, 2.0)]
    assert sharp == sorted(sharp, reverse=True)
    assert seen(0.5 * rgb)["clipping"] == 0
    assert seen(np.ones_like(rgb))["clipping"] == 100
    half = 0.5 * rgb
    middle = float(mesh[:, 0].mean() / 192 * 0.96 * 64 + 0.02 * 64)
    half[:, : round(middle)] = -1
    assert 30 < seen(half)["clipping"] < 70


# -- closed forms --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(st.floats(0.05, 3), st.floats(0.1, 20))
def test_jitter_of_a_sinusoid(omega: float, size: float) -> None:
    t = np.arange(40)
    points = np.zeros((40, 3, 2))
    points[..., 0] = size * np.sin(omega * t)[:, None]
    # sin(w(t-1)) - 2 sin(wt) + sin(w(t+1)) = -4 sin(w/2)^2 sin(wt)
    expected = 4 * np.sin(omega / 2) ** 2 * np.abs(points[:, 0, 0])
    found = jitter(points, t, np.zeros(40, bool))
    assert np.isnan(found[[0, -1]]).all()
    np.testing.assert_allclose(found[1:-1], expected[1:-1], atol=1e-9 * size)


def test_jitter_knows_gaps_cuts_and_steady_motion() -> None:
    points = np.arange(8.0)[:, None, None] * np.ones((8, 2, 2))
    numbers = np.array([1, 2, 3, 4, 6, 7, 8, 9])
    cut = numbers == 8
    found = jitter(points, numbers, cut)
    assert np.isfinite(found).tolist() == [False, True, True] + [False] * 5
    assert found[1] == found[2] == 0
    assert np.isnan(jitter(points[:2], numbers[:2], cut[:2])).all()


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 40), st.integers(0, 2**31))
def test_where_codes_lie(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    anchors = rng.standard_normal((count, 64))
    inside = rng.dirichlet(np.ones(count), (3, 2)) * (1 + count * BETA) - BETA
    dilation, distance = latent_position(inside @ anchors, torch.from_numpy(anchors))
    np.testing.assert_allclose(dilation, np.maximum(-inside.min((1, 2)), 0), atol=1e-9)
    np.testing.assert_allclose(distance, 0, atol=1e-6)
    # A step at a right angle to all anchors leads away by its own length.
    basis = np.linalg.svd(anchors - anchors.mean(0))[2]
    away = inside @ anchors
    away[1, 1] += 0.3 * basis[-1]
    spread = np.sqrt(((anchors - anchors.mean(0)) ** 2).sum(1).mean())
    _, distance = latent_position(away, torch.from_numpy(anchors))
    np.testing.assert_allclose(distance, [0, 30 / spread, 0], atol=1e-6)


def test_a_weight_below_beta_is_dilation_and_distance() -> None:
    anchors = np.eye(3)
    weights = np.array([[[1.5, -0.5, 0.0]]])
    dilation, distance = latent_position(weights @ anchors, torch.from_numpy(anchors))
    assert dilation[0] == pytest.approx(0.5)
    assert distance[0] > 30


# -- marks and repairs ---------------------------------------------------------------------------

QUIET = {name: 1.0 if MEASURES[name].bad == "low" else 0.0 for name in MEASURES}


def table(count: int, **spikes: dict[int, float]) -> dict[str, np.ndarray]:
    values = {name: np.full(count, level) for name, level in QUIET.items()}
    for name, changes in spikes.items():
        for row, value in changes.items():
            values[name][row] = value
    return values


def marked(values: dict[str, np.ndarray], amount: float = 1.0) -> Quality:
    count = len(values["landmarks"])
    numbers, state = np.arange(1, count + 1), np.full(count, FrameState.SOLVED, np.uint8)
    bounds, marks = mark(numbers, state, np.full(count, amount), values)
    return Quality(
        numbers, state, np.arange(count) == 0, values, {}, bounds, marks, {}, (1.0, 1.0), (), []
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 19), st.sampled_from([n for n in MEASURES if MEASURES[n].bad]))
def test_what_stands_out_is_marked_and_nothing_else(row: int, name: str) -> None:
    m = MEASURES[name]
    away = -1 if m.bad == "low" else 1
    assert marked(table(20)).marks == ()
    almost = table(20, **{name: {row: QUIET[name] + 0.9 * away * m.least}})
    assert marked(almost).marks == ()
    far = table(20, **{name: {row: QUIET[name] + 1.1 * away * m.least}})
    (mark,) = marked(far).marks
    assert (mark.number, mark.measure) == (row + 1, name)
    assert f"{mark.value:.3g}" in mark.reason
    assert marked(far, amount=0.0).marks == ()
    few = table(5, **{name: {row % 5: QUIET[name] + 1.1 * away * m.least}})
    beyond = m.limit is not None and 1.1 * m.least > abs(m.limit - QUIET[name])
    assert bool(marked(few).marks) == beyond  # too short for outliers: absolute limits alone
    blank = table(20)
    blank[name][:] = np.nan
    assert marked(blank).marks == ()


def test_the_worst_comes_first_and_a_limit_holds_however_bad_the_shot_is() -> None:
    found = marked(table(30, lips={4: 5.0, 9: 9.0}, gaze={9: 40.0}))
    assert found.marked == [10, 5]
    bad = table(30)
    bad["pose"][:] = MEASURES["pose"].limit * 1.01
    assert len(marked(bad).marked) == 30


def test_a_limit_that_was_given_is_the_only_one() -> None:
    values = table(30, mouth={4: 2.0, 7: -2.0, 9: 30.0}, identity={5: 0.2}, pose={3: 50.0})
    numbers, state = np.arange(1, 31), np.full(30, FrameState.SOLVED, np.uint8)

    def found(**limits: float) -> list[tuple[int, str]]:
        return [(m.number, m.measure) for m in mark(numbers, state, np.ones(30), values, limits)[1]]

    usual = [(4, "pose"), (6, "identity"), (10, "mouth")]
    assert found() == usual
    assert found(mouth=1.0) == sorted([*usual, (5, "mouth"), (8, "mouth")])
    assert found(mouth=1e6, pose=60, identity=0.1) == []


def test_a_frame_that_jumps_is_marked_and_not_its_neighbours() -> None:
    found = marked(table(20, jitter={6: 3.0, 7: 6.0, 8: 3.1, 15: 4.0}))
    assert [m.number for m in found.marks] == [8, 16]


def test_repairs_join_frames_that_need_the_same() -> None:
    mouth = {3: 20.0, 4: 20.0, 5: 20.0, 8: 20.0}
    found = marked(
        table(
            30, mouth=mouth, lids={8: 30.0, 12: -30.0}, jitter={20: 9.0, 0: 9.0}, identity={25: 0.5}
        )
    )
    entries = [
        {k: e[k] for k in e if k not in ("reason", "steps")} for e in suggested_repairs(found)
    ]
    assert entries == [
        {"do": "solve", "frames": "2-8", "only": "mouth"},
        {"do": "solve", "frames": "7-11"},
        {"do": "solve", "frames": "11-15", "only": "eyes"},
        {"do": "interpolate", "frames": "19-23"},  # frame 1 has nothing before it
    ]
    reasons = [e["reason"] for e in suggested_repairs(found)]
    assert reasons[0] == "The mouth is open wider than the driver's"
    assert reasons[2] == "An eye is more shut than the driver's"
    json.dumps(suggested_repairs(found), allow_nan=False)


def test_suggested_ranges_reach_further_but_not_out_of_the_shot() -> None:
    """Nor into frames to which something else is to be done; what meets is one repair."""
    mouth = {0: 20.0, 4: 20.0, 11: 20.0, 16: 20.0, 29: 20.0}
    found = marked(table(30, mouth=mouth, jitter={12: 9.0, 21: 9.0}))
    found = replace(found, cut=np.isin(found.numbers, [1, 16, 21]))
    spans = [(e["do"], e["frames"]) for e in suggested_repairs(found)]
    assert spans == [
        ("solve", "1-7"),  # 1-3 and 3-7
        ("solve", "10-12"),  # 13 is interpolated, 14 beyond it
        ("interpolate", "13-14"),  # 12 is solved, 15 must stay to interpolate to
        ("solve", "16-19"),  # 16 and 21 begin shots
        ("interpolate", "22-24"),  # 21 must stay
        ("solve", "28-30"),
    ]


@settings(deadline=None, max_examples=30)
@given(st.sets(st.integers(0, 29), max_size=6), st.sets(st.integers(1, 29), max_size=4))
def test_what_is_suggested_is_a_repair_list(jumps: set[int], cuts: set[int]) -> None:
    """Of a track with those shots, which holds every frame that is mended."""
    values = table(30, jitter=dict.fromkeys(jumps, 9.0), mouth={7: 20.0})
    found = replace(marked(values), cut=np.isin(np.arange(30), [0, *cuts]))
    entries = suggested_repairs(found)
    named = {int(i) for one in check(entries, still(found)) for i in one.frames}
    assert 7 in named
    of_shot = np.cumsum(found.cut)
    for i in named:
        assert any(abs(i - j) <= MARGIN and of_shot[i] == of_shot[j] for j in jumps | {7})


def still(found: Quality) -> LatentTrack:
    """A track of the frames that were measured, all of them alike."""
    count = len(found.numbers)
    return LatentTrack(
        character="c" * 64,
        numbers=found.numbers,
        state=found.state,
        cut=found.cut,
        alpha=np.ones((count, 1), np.float32),
        delta=np.zeros((count, 2, 1), np.float32),
        codes=np.zeros((count, 2, 4), np.float32),
        smooth=np.zeros((count, 2, 4), np.float32),
        neutral_offset=np.zeros((86, 3), np.float32),
        landmarks=np.zeros((count, 478, 3), np.float32),
        quads=np.zeros((count, 4, 2)),
        amount=np.ones(count, np.float32),
        losses={},
        quality={},
        settings={},
        source="",
        plate=(8, 8),
    )


# -- files ---------------------------------------------------------------------------------------


def test_the_plain_form_and_the_csv_hold_every_number(measured: Quality) -> None:
    facts = json.loads(json.dumps(plain(measured), allow_nan=False))
    assert facts["frames"] == list(range(FIRST, FIRST + FRAMES))
    assert facts["state"][LOST_ROW] == "interpolated"
    rows = list(csv.DictReader(io.StringIO(as_csv(measured))))
    for name, m in MEASURES.items():
        column = f"{name} ({m.unit})" if m.unit else name
        for i, value in enumerate(measured.measures[name]):
            there = facts["measures"][name][i]
            if np.isnan(value):
                assert there is None
                assert rows[i][column] == ""
            else:
                assert there == pytest.approx(value, abs=1e-6)
                assert float(rows[i][column]) == pytest.approx(value, rel=1e-4, abs=1e-6)
    assert set(facts["limits"]) == set(facts["units"]) == set(facts["measures"]) == set(MEASURES)
    assert "mouth" in rows[WRONG_ROW]["marks"].lower()
    for name, both in facts["signals"].items():
        assert len(both["driver"]) == len(both["result"]) == FRAMES, name
    assert {m["frame"] for m in facts["marks"]} == set(measured.marked)
