import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reenact import protocol
from running_server import FRAMES, Server, finish, inputs

from core.base.files import next_version
from core.edit.repair import (
    RepairError,
    affected_neighbours,
    changed_frames,
    check,
    read_list,
    repair,
)
from core.media.clip import Clip
from core.media.errors import MissingFramesError
from core.media.numbering import format_numbers
from core.media.read import open_clip
from core.personalize.character import Character, load_character
from core.solve.driving import driving_from_track
from core.solve.latent_space import BETA
from core.solve.latent_track import (
    FrameState,
    LatentTrack,
    PlateMismatchError,
    load_track,
    save_track,
)
from core.solve.settings import SolveSettings
from core.solve.shot import TrackExistsError, solve_shot
from core.solve.smoothing import smooth_codes
from server.cli import main
from server.cli.reporting import Report
from server.jobs import registry
from server.jobs.common import Context

ANCHORS = np.random.default_rng(9).standard_normal((6, 16)).astype(np.float32)
CODES = ("alpha", "delta", "codes", "smooth")
SIGMA = SolveSettings().sigma(24.0)


def shot(**changes: Any) -> LatentTrack:
    """40 frames that move smoothly through P+: 1001 to 1042, none at 1013, 1014; a cut at 1030."""
    t = np.arange(40)
    numbers = 1001 + t + 2 * (t >= 12)
    phase = np.arange(18).reshape(3, 6)
    weights = 1.2 + np.sin(phase + numbers[:, None, None] / (4 + phase % 5))
    weights = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    alpha = weights.mean(1)
    rng = np.random.default_rng(1)

    def random(*shape: int) -> np.ndarray:
        return rng.random((40, *shape)).astype(np.float32)

    landmarks = random(478, 3)
    landmarks[[4, 5]] = np.nan
    state = np.full(40, FrameState.SOLVED, np.uint8)
    state[[4, 5]] = FrameState.INTERPOLATED
    track = LatentTrack(
        character="c" * 64,
        numbers=numbers,
        state=state,
        cut=numbers == 1030,
        alpha=alpha,
        delta=weights - alpha[:, None],
        codes=weights @ ANCHORS,
        smooth=weights @ ANCHORS,
        neutral_offset=rng.random((86, 3)).astype(np.float32),
        landmarks=landmarks,
        quads=rng.random((40, 4, 2)),
        amount=random(),
        losses={"mouth": random()},
        quality={"keypoint_error": random(), "sharpness": random()},
        settings=json.loads(json.dumps(asdict(SolveSettings()))),
        plate=(160, 160),
        created="2030-01-01T00:00:00+00:00",
        hash="a" * 64,
    )
    track = replace(track, **changes)
    return replace(track, smooth=smooth_codes(track, SIGMA))


def rows_of(track: LatentTrack, *numbers: int) -> np.ndarray:
    return np.array([track.index(n) for n in numbers])


def spoilt(track: LatentTrack, *numbers: int) -> LatentTrack:
    """The track as if a solve had failed in some frames: a far anchor's code."""
    alpha, delta, codes = track.alpha.copy(), track.delta.copy(), track.codes.copy()
    rows = rows_of(track, *numbers)
    alpha[rows], delta[rows], codes[rows] = np.eye(6)[5], 0, ANCHORS[5]
    track = replace(track, alpha=alpha, delta=delta, codes=codes)
    return replace(track, smooth=smooth_codes(track, SIGMA))


def same_but(a: LatentTrack, b: LatentTrack, rows: np.ndarray, names: tuple[str, ...]) -> None:
    """All arrays agree bit for bit, but for those named in some rows."""
    for f in fields(LatentTrack):
        tables = {f.name: (getattr(a, f.name), getattr(b, f.name))}
        if f.name in ("losses", "quality"):
            assert getattr(a, f.name).keys() == getattr(b, f.name).keys()
            tables = {k: (v, getattr(b, f.name)[k]) for k, v in getattr(a, f.name).items()}
        for x, y in tables.values():
            if isinstance(x, np.ndarray):
                there = np.ones(len(x), bool)
                if f.name in names:
                    there[rows] = False
                assert x.dtype == y.dtype
                assert x[there].tobytes() == y[there].tobytes(), f.name
            elif f.name not in ("task", "parent", "recipe", "hash"):
                assert x == y, f.name


# -- any list ------------------------------------------------------------------------------------

TRACK = shot()
SOME = st.sets(st.sampled_from(TRACK.numbers.tolist()), min_size=1, max_size=9).map(sorted)


@st.composite
def repairs(draw: st.DrawFn) -> dict[str, Any]:
    numbers, kind = draw(SOME), draw(st.sampled_from(["hold", "replace", "interpolate"]))
    frames = format_numbers(numbers)
    if kind == "interpolate":
        inside = [n for n in numbers if n not in (1001, 1029, 1030, 1042)] or [1010]
        ease = draw(st.sampled_from(["linear", "smooth", "hold"]))
        return {"do": kind, "frames": format_numbers(inside), "ease": ease, "reason": "it jumps"}
    entry: dict[str, Any] = {"do": kind, "frames": frames}
    if draw(st.booleans()):
        entry["blend"] = draw(st.integers(0, 4))
    count = 1 if kind == "hold" else len(expanded(frames))
    others = st.lists(
        st.sampled_from(TRACK.numbers.tolist()), min_size=count, max_size=count, unique=True
    )
    return entry | {"from": ", ".join(map(str, draw(others)))}


def expanded(frames: str) -> np.ndarray:
    """Rows of frames that are written as people do."""
    rows: set[int] = set()
    for part in frames.split(","):
        first, _, last = part.strip().partition("-")
        inside = (TRACK.numbers >= int(first)) & (TRACK.numbers <= int(last or first))
        rows |= set(np.flatnonzero(inside).tolist())
    return np.array(sorted(rows))


@given(st.lists(repairs(), min_size=1, max_size=4))
@example(
    [
        {"do": "hold", "frames": "1001", "from": "1001"},
        {"do": "hold", "frames": "1017", "from": "1015"},
        {"do": "hold", "frames": "1001, 1015, 1019", "from": "1001"},
    ]
)
@settings(max_examples=25, deadline=None)
def test_nothing_else_changes_and_codes_stay_in_p_plus(
    tmp_path_factory: pytest.TempPathFactory, entries: list[dict[str, Any]]
) -> None:
    made = repair(TRACK, entries)
    rows = np.unique(np.concatenate([expanded(e["frames"]) for e in entries]))
    assert changed_frames(check(entries, TRACK)).tolist() == rows.tolist()
    same_but(made, TRACK, rows, (*CODES, "state", "losses", "quality"))
    assert (made.state[rows] == FrameState.REPAIRED).all()
    assert all(np.isnan(v[rows]).all() for v in {**made.losses, **made.quality}.values())
    assert made.weights.min() >= -BETA
    assert made.weights.sum(-1) == pytest.approx(1, abs=1e-5)
    assert made.delta.mean(1) == pytest.approx(0, abs=1e-6)
    assert made.codes == pytest.approx(made.weights @ ANCHORS, abs=1e-4)
    rendered = made.smooth @ np.linalg.pinv(ANCHORS)
    assert rendered.min() >= -BETA - 1e-5
    assert rendered.sum(-1) == pytest.approx(1, abs=1e-4)
    assert made.parent == TRACK.hash
    folder = tmp_path_factory.mktemp("again")
    save_track(folder / "a.latents", made)
    recipe = read_list(folder / "a.latents")
    (folder / "list.json").write_text(json.dumps(entries))
    assert recipe == entries == read_list(folder / "list.json")
    save_track(folder / "b.latents", repair(TRACK, recipe))
    assert load_track(folder / "a.latents").hash == load_track(folder / "b.latents").hash


def test_lists_may_be_made_in_parts(tmp_path: Path) -> None:
    """Far enough from each other not to be smoothed together."""
    one = [{"do": "interpolate", "frames": "1005-1007"}]
    two = [
        {"do": "hold", "frames": "1020-1022", "from": 1018},
        {"do": "amount", "keys": [[1, 0.5]]},
    ]
    save_track(tmp_path / "one.latents", repair(TRACK, one))
    apart = repair(load_track(tmp_path / "one.latents"), two)
    together = repair(TRACK, one + two)
    same_but(apart, together, np.arange(0), ())
    assert (apart.parent, together.parent) == (load_track(tmp_path / "one.latents").hash, "a" * 64)


def test_repairs_see_what_those_before_them_made() -> None:
    first = {"do": "hold", "frames": "1010", "from": 1003}
    made = repair(TRACK, [first, {"do": "hold", "frames": "1022", "from": 1010}])
    a, b, c = rows_of(TRACK, 1003, 1010, 1022)
    for name in ("alpha", "delta", "codes"):
        values = getattr(made, name)
        assert np.array_equal(values[c], getattr(TRACK, name)[a])
        assert np.array_equal(values[b], values[c])


# -- each repair ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ease", ["linear", "smooth"])
def test_interpolation_is_the_straight_line_by_frame_numbers(ease: str) -> None:
    """In float64, over a hole in the numbers, and in two stretches at once."""
    made = repair(TRACK, [{"do": "interpolate", "frames": "1011-1016, 1035", "ease": ease}])
    for numbers, a, b in (((1011, 1012, 1015, 1016), 1010, 1017), ((1035,), 1034, 1036)):
        ends = TRACK.weights[rows_of(TRACK, a, b)].astype(np.float64)
        for number in numbers:
            t = (number - a) / (b - a)
            t = t * t * (3 - 2 * t) if ease == "smooth" else t
            expected = (1 - t) * ends[0] + t * ends[1]
            row = TRACK.index(number)
            assert made.weights[row] == pytest.approx(expected, abs=1e-6)
            assert made.codes[row] == pytest.approx(expected @ ANCHORS, abs=1e-4)


def test_a_held_code_is_eased_into_and_out_of() -> None:
    """Over two frames at either end, at rest in both; the frames between have it bit for bit."""
    entry = {"do": "hold", "frames": "1016-1022", "from": 1003, "blend": 2}
    made = repair(TRACK, [entry])
    before, held, after = TRACK.weights[rows_of(TRACK, 1015, 1003, 1023)].astype(np.float64)
    share = {1: 7 / 27, 2: 20 / 27}  # 3 t^2 - 2 t^3 in thirds
    for number, end, steps in (
        (1016, before, 1),
        (1017, before, 2),
        (1021, after, 2),
        (1022, after, 1),
    ):
        expected = end + share[steps] * (held - end)
        assert made.weights[made.index(number)] == pytest.approx(expected, abs=1e-6)
    for number in (1018, 1019, 1020):
        assert np.array_equal(made.codes[made.index(number)], TRACK.codes[TRACK.index(1003)])
    at_once = repair(TRACK, [entry | {"blend": 0}])
    assert np.array_equal(at_once.codes[made.index(1016)], TRACK.codes[TRACK.index(1003)])


def test_at_a_cut_there_is_nothing_to_ease_from() -> None:
    made = repair(TRACK, [{"do": "hold", "frames": "1027-1033", "from": 1003, "blend": 1}])
    at = [
        np.array_equal(made.codes[made.index(n)], TRACK.codes[TRACK.index(1003)])
        for n in range(1027, 1034)
    ]
    assert at == [False, True, True, True, True, True, False]


def test_frames_are_replaced_one_by_one() -> None:
    """By what the others were before, even where the two overlap."""
    entry = {"do": "replace", "frames": "1016-1018", "from": "1017-1019", "blend": 0}
    made = repair(TRACK, [entry])
    for to, source in ((1016, 1017), (1017, 1018), (1018, 1019)):
        assert np.array_equal(made.codes[made.index(to)], TRACK.codes[TRACK.index(source)])


def test_amounts_follow_their_keys_and_nothing_else_does() -> None:
    keys = [[1001, 0, "smooth"], [1011, 1], [1040, 1], [1042, 0.5]]
    made = repair(TRACK, [{"do": "amount", "keys": keys}])
    same_but(made, TRACK, np.arange(40), ("amount",))
    at = dict(zip(TRACK.numbers.tolist(), made.amount.tolist(), strict=True))
    t = 0.3
    assert at[1004] == pytest.approx(3 * t**2 - 2 * t**3)
    assert [at[n] for n in (1001, 1011, 1030, 1041, 1042)] == [0, 1, 1, 0.75, 0.5]
    as_text = "1001:0:smooth,1011:1,1040:1,1042:0.5"
    same_but(made, repair(TRACK, [{"do": "amount", "keys": as_text}]), np.arange(0), ())
    part = repair(TRACK, [{"do": "amount", "keys": keys, "frames": "1002-1004"}])
    same_but(part, TRACK, rows_of(TRACK, 1002, 1003, 1004), ("amount",))
    assert part.amount[3] == made.amount[3]


# -- over time -----------------------------------------------------------------------------------


def restless(track: LatentTrack) -> np.ndarray:
    """How far rendered frames lie from the middle of their neighbours, 1016 to 1028."""
    return np.linalg.norm(np.diff(track.smooth[12:27], 2, axis=0), axis=(1, 2))


@pytest.mark.parametrize(
    "entry",
    [
        {"do": "interpolate", "frames": "1017-1025"},
        {"do": "hold", "frames": "1017-1025", "from": 1016},
        {"do": "replace", "frames": "1017-1025", "from": "1003-1011"},
    ],
    ids=lambda entry: entry["do"],
)
def test_a_repair_does_not_pop(entry: dict[str, Any]) -> None:
    """Nowhere near it, where a range is two frames wider than the bad codes. The shot itself is
    much quieter than any, and a code that is put in without being eased much less so."""
    bad = spoilt(TRACK, *range(1019, 1024))
    made = repair(bad, [entry])
    assert restless(made).max() < restless(bad).max() / 3
    if entry["do"] != "interpolate":
        hard = repair(bad, [entry | {"blend": 0}])
        assert restless(made).max() < restless(hard).max() / 2


def test_what_the_low_pass_left_outside_fades_inside() -> None:
    """Still codes: in thirds of how far the frame outside stays from where it would be now."""
    bad = spoilt(TRACK, 1019, 1020)
    made = repair(bad, [{"do": "interpolate", "frames": "1019-1024"}])
    again = smooth_codes(made, SIGMA)
    left = TRACK.index(1018)
    for number, share in ((1019, 2 / 3), (1020, 1 / 3), (1021, 0)):
        expected = again[made.index(number)] + share * (bad.smooth[left] - again[left])
        assert made.smooth[made.index(number)] == pytest.approx(expected, abs=1e-6)
    assert np.array_equal(made.smooth[left], bad.smooth[left])


def test_what_the_low_pass_spread_is_told() -> None:
    bad = spoilt(TRACK, 1018, 1019)
    for frames, told in (("1018-1019", [1017, 1020]), ("1017-1020", [])):
        entries = [{"do": "interpolate", "frames": frames}]
        assert affected_neighbours(bad, repair(bad, entries), check(entries, bad)) == told


# -- what is no repair ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (3, "Repair 2: 3 is no object. It must be one of solve, interp"),
        ({"frames": "1004"}, "Repair 2: do is None. It must be one of solve, interp"),
        ({"do": ["hold"]}, "It must be one of solve, interp"),
        ({"do": "hold", "frame": "1004"}, r"Repair 2 \(hold\): it has no 'frame'. It may have fra"),
        ({"do": "hold", "frames": "1004"}, r"Repair 2 \(hold\): it needs 'from'"),
        ({"do": "interpolate"}, "needs 'frames'"),
        ({"do": "amount"}, "needs 'keys'"),
        (
            {"do": "hold", "frames": "1004", "from": 1013},
            "frame 1013 is not in the track, which has 1001-1012, 1015-1042",
        ),
        ({"do": "interpolate", "frames": "1004-10100"}, "frame 10100 is not"),
        ({"do": "interpolate", "frames": "1009-1004"}, "ends before it starts"),
        ({"do": "interpolate", "frames": "soon"}, "as in \"1020-1035, 1040\", not 'soon'"),
        ({"do": "interpolate", "frames": True}, "must be frames"),
        ({"do": "interpolate", "frames": 1004, "ease": "slow"}, "one of linear, smooth, hold"),
        ({"do": "interpolate", "frames": "1040-1042"}, "no frame after 1040-1042"),
        ({"do": "interpolate", "frames": "1030"}, "no frame before 1030"),
        ({"do": "hold", "frames": 1004, "from": "1006-1007"}, "2 frames for 1: hold one"),
        ({"do": "replace", "frames": "1004-1006", "from": 1007}, "1 frames for 3: give as many"),
        ({"do": "hold", "frames": 1004, "from": 1006, "blend": -1}, "whole number from 0, not -1"),
        ({"do": "amount", "keys": [[1, 2]]}, "between 0, the plate alone, and 1"),
        ({"do": "amount", "keys": [[1, 1, "slow"]]}, r"Repair 2 \(amount\): No easing"),
        ({"do": "amount", "keys": "1001:"}, r"Repair 2 \(amount\): '1001:' in '1001:' is no key"),
        ({"do": "solve", "frames": "1005-1006"}, "show no face. Hold or interpolate"),
        ({"do": "solve", "frames": 1004, "only": "nose"}, "of eyes, mouth, head, not 'nose'"),
        ({"do": "solve", "frames": 1004, "weights": {"nose": 1}}, "numbers of keypoints, eye_po"),
        ({"do": "solve", "frames": 1004, "weights": {"mouth": -1}}, "mouth must be a number fro"),
        ({"do": "solve", "frames": 1004, "steps": 0}, "steps must be a whole number from 1"),
    ],
)
def test_what_is_no_repair(entry: Any, said: str) -> None:
    with pytest.raises(RepairError, match=said):
        check([{"do": "interpolate", "frames": 1004}, entry], TRACK)


def test_what_is_no_list(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    for text, said in (("{", "can't be read"), ('{"do": "hold"}', "is no list")):
        path.write_text(text)
        with pytest.raises(RepairError, match=said):
            read_list(path)
    with pytest.raises(RepairError, match="No such file"):
        read_list(tmp_path / "none.json")
    with pytest.raises(RepairError, match="no repair"):
        check([], TRACK)
    partial = replace(TRACK, smooth=np.full_like(TRACK.smooth, np.nan))
    with pytest.raises(RepairError, match="not complete"):
        check([{"do": "hold", "frames": 1004, "from": 1001}], partial)


def test_the_next_version(tmp_path: Path) -> None:
    first = tmp_path / "a.b.latents"
    assert next_version(first).name == "a.b_v001.latents"
    for name in ("a.b_v001.latents", "a.b_v007.latents", "other_v009.latents", "a.b_v009.png"):
        (tmp_path / name).touch()
    assert next_version(first).name == "a.b_v008.latents"
    assert next_version(tmp_path / "a.b_v001.latents").name == "a.b_v008.latents"


# -- solving again -------------------------------------------------------------------------------

SOLVE = [
    {"do": "solve", "frames": "1002-1003", "steps": 3},
    {"do": "hold", "frames": "1005", "from": 1001},
    {"do": "solve", "frames": "1006", "only": "mouth", "weights": {"mouth": 40}, "steps": 4},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A character, a plate of frames 1001 to 1008, and the track `shot.latents` of it."""
    folder = tmp_path_factory.mktemp("shot")
    character, pattern = inputs(folder)
    task = protocol.Solve(protocol.Clip(), protocol.File(), steps=2)
    context = Context(
        Report(machine=True),
        {"character": character},
        {"plate": open_clip(pattern)},
        {"track.latents": folder / "shot.latents"},
    )
    registry.run_task(task, context)
    return folder


@pytest.fixture(scope="module")
def given_shot(folder: Path) -> tuple[LatentTrack, Character, Clip]:
    character, pattern = inputs(folder)
    return load_track(folder / "shot.latents"), load_character(character), open_clip(pattern)


def test_frames_are_solved_again_and_nothing_else_changes(
    given_shot: tuple[LatentTrack, Character, Clip],
) -> None:
    track, who, plate = given_shot
    steps: list[tuple[float, float]] = []
    made = repair(track, SOLVE, character=who, plate=plate, progress=lambda *s: steps.append(s))
    rows = rows_of(track, 1002, 1003, 1005, 1006)
    same_but(made, track, rows, (*CODES, "state", "losses", "quality"))
    states = [FrameState(s).name[0] for s in made.state]
    assert "".join(states) == "SSSSRS"
    assert np.isfinite(made.losses["mouth"]).tolist() == [c == "S" for c in states]
    others = made.losses["keypoints"][rows] != track.losses["keypoints"][rows]
    assert others.all()
    assert made.settings == track.settings
    # As the solver alone does it: with the shot's settings, from the frames around.
    driving = driving_from_track(plate, track, [1002, 1003], 64)
    alone = solve_shot(
        who, driving, replace(SolveSettings.of(track), steps=3, first_steps=3), previous=track
    )
    for name in ("alpha", "delta", "codes"):
        assert np.array_equal(getattr(made, name)[1:3], getattr(alone, name)[1:3]), name
    assert (alone.parent, alone.recipe) == (track.hash, ({"do": "solve", "frames": "1002-1003"},))
    done = [n for n, _ in steps]
    assert done == sorted(done)
    assert (done[0], steps[-1]) == (0, (3, 3))


def test_an_interrupted_repair_goes_on_to_the_same_track(
    folder: Path, given_shot: tuple[LatentTrack, Character, Clip], tmp_path: Path
) -> None:
    track, who, plate = given_shot
    task = protocol.Repair(protocol.File(), SOLVE)
    source, path = inputs_of(track, tmp_path), tmp_path / "new.latents"
    shown: list[float] = []

    class Impatient(Report):
        @contextlib.contextmanager
        def stage(self, title: str):  # type: ignore[no-untyped-def]
            def tick(done: float, total: float, **figures: float) -> None:
                shown.append(done)
                if done > limit:
                    raise KeyboardInterrupt

            yield tick

    character, _ = inputs(folder)
    alone = Context(Impatient(machine=True), {"track": source}, {}, {"track.latents": path})
    context = replace(
        alone, files={"track": source, "character": character}, clips={"plate": plate}
    )
    limit = 2.5  # in the second solve
    with pytest.raises(KeyboardInterrupt):
        registry.run_task(task, context)
    assert not path.exists()
    assert len(list((tmp_path / "new.latents.work").glob("*.latents"))) == 1
    limit, before = 9.0, len(shown)
    registry.run_task(task, context)
    assert min(shown[before:]) == 2  # the first is not solved again
    undisturbed = repair(track, SOLVE, character=who, plate=plate)
    same_but(load_track(path), undisturbed, np.arange(0), ())
    assert not (tmp_path / "new.latents.work").exists()
    # Once it is there it is not made again, and not overwritten.
    registry.run_task(task, alone)
    with pytest.raises(TrackExistsError, match="no version is overwritten"):
        registry.run_task(replace(task, repairs=SOLVE[1:2]), alone)


def inputs_of(track: LatentTrack, folder: Path) -> Path:
    save_track(folder / "old.latents", track)
    return folder / "old.latents"


def test_what_a_solve_needs(given_shot: tuple[LatentTrack, Character, Clip]) -> None:
    track, who, plate = given_shot
    with pytest.raises(ValueError, match="character and plate are needed"):
        repair(track, SOLVE)
    with pytest.raises(ValueError, match="load it"):
        repair(replace(track, hash=""), SOLVE[1:2])
    with pytest.raises(PlateMismatchError, match="160x160, the track was solved on 320x180"):
        repair(replace(track, plate=(320, 180)), SOLVE, character=who, plate=plate)
    with pytest.raises(MissingFramesError, match="1002"):
        repair(track, SOLVE, character=who, plate=replace(plate, numbers=(1003, 1006)))
    edited = replace(track, recipe=({"do": "edit", "moves": []},))
    with pytest.raises(RepairError, match=r"Repair 1 \(solve\): the track was edited"):
        repair(edited, SOLVE, character=who, plate=plate)
    assert repair(edited, SOLVE[1:2]).recipe == (SOLVE[1],)


# -- the command ---------------------------------------------------------------------------------

Reenact = Callable[..., dict[str, Any]]


@pytest.fixture
def reenact(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> Reenact:
    """Runs `reenact repair FOLDER/shot.latents … --json`; what it says last."""

    def run(*arguments: object, code: int = 0) -> dict[str, Any]:
        monkeypatch.setattr(
            sys,
            "argv",
            ["reenact", "repair", *map(str, (folder / "shot.latents", *arguments)), "--json"],
        )
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main.main()
        said = capsys.readouterr()
        assert ended.value.code == code, said
        line = said.out.splitlines()[-1:]
        return json.loads(line[0]) if line else {"error": " ".join(said.err.split())}

    return run


def test_a_repair_is_a_new_version(reenact: Reenact, folder: Path, tmp_path: Path) -> None:
    before = (folder / "shot.latents").read_bytes()
    hold = ("--do", "hold", "--frames", "1003-1004", "--from", "1002", "--blend", 0, "--local")
    first, second = (Path(reenact(*hold)["result"]["track"]) for _ in range(2))
    assert (first.name, second.name) == ("shot_v001.latents", "shot_v002.latents")
    track = load_track(first)
    entry = {"do": "hold", "frames": "1003-1004", "from": "1002", "blend": 0}
    assert (track.recipe, track.parent) == ((entry,), load_track(folder / "shot.latents").hash)
    (tmp_path / "list.json").write_text(json.dumps([entry]))
    for made_of in (second, tmp_path / "list.json"):
        again = reenact("--list", made_of, "-o", tmp_path / f"{made_of.stem}.latents", "--local")
        assert again["result"]["repaired"] == "1003-1004"
        assert load_track(again["result"]["track"]).hash == track.hash
    keyed = reenact("--do", "amount", "--keys", "1001:0:smooth,1005:1", "--local")["result"]
    assert load_track(keyed["track"]).amount[:5] == pytest.approx([0, 5 / 32, 0.5, 27 / 32, 1])
    assert (folder / "shot.latents").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "Give --list, or one repair with --do"),
        (("--list", "none.json"), 1, "none.json can't be read"),
        (("--do", "hold", "--frames", "1003"), 1, "Repair 1 (hold): it needs 'from'"),
        (
            ("--do", "hold", "--frames", "1003", "--from", "1001", "-o", "FOLDER/shot.latents"),
            1,
            "the track, which is read",
        ),
        (("--do", "solve", "--frames", "1003"), 2, "give the driving clip with --plate"),
        (("--do", "solve", "--frames", "1003", "--weight", "mouth"), 2, "NAME=NUMBER"),
        (
            ("--do", "solve", "--frames", "1003", "--plate", "FOLDER/plate.####.png 1005-1008"),
            1,
            "1003",
        ),
        (("--do", "amount", "--keys", "soon"), 1, "no key"),
    ],
)
def test_wrong_repairs_are_a_sentence(
    reenact: Reenact, folder: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    there = sorted(folder.iterdir())
    answer = reenact(*(a.replace("FOLDER", str(folder)) for a in arguments), "--local", code=code)
    assert said in answer["error"].replace("│ ", "")
    assert sorted(folder.iterdir()) == there


def test_the_server_repairs_as_the_command_does(
    reenact: Reenact,
    folder: Path,
    given_shot: tuple[LatentTrack, Character, Clip],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    track, who, plate = given_shot
    (tmp_path / "list.json").write_text(json.dumps(SOLVE))
    server = Server(tmp_path / "home").start()
    monkeypatch.setenv("REENACT_HOME", str(tmp_path / "home"))
    try:
        made = reenact(
            "--list",
            tmp_path / "list.json",
            "--plate",
            folder / "plate.####.png",
            "-o",
            tmp_path / "made.latents",
        )["result"]
        with server.client() as client:
            wrong = client.submit(protocol.Repair(client.send([folder / "shot.latents"])[0], [{}]))
            assert finish(client, wrong)["reason"].startswith("Repair 1: do is None")
    finally:
        assert server.stop() == 0
    assert made["repaired"] == "1002-1003, 1005-1006"
    assert made["states"] == {"solved": FRAMES - 1, "repaired": 1}
    expected = repair(track, SOLVE, character=who, plate=plate)
    same_but(load_track(made["track"]), expected, np.arange(0), ())
