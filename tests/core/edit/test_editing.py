"""Edits against closed forms, a solver of quadratic programs, and what must not change."""

import dataclasses
import json
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from small_generators import random_generator

from core.base.keyframes import Key, KeyframeError
from core.edit.directions import Direction
from core.edit.editing import (
    EditError,
    Move,
    coordinates,
    dilation,
    edit,
    moves_from_json,
    parse_layers,
    replay,
)
from core.personalize.character import Character, CharacterInfo
from core.solve.latent_space import BETA
from core.solve.latent_track import (
    CharacterMismatchError,
    FrameState,
    LatentTrack,
    load_track,
    save_track,
)

ANCHORS, FRAMES = 9, 7
ARRAYS = ("alpha", "delta", "codes", "smooth")


@lru_cache(maxsize=1)
def somebody() -> Character:
    generator = random_generator()
    anchors = torch.randn(ANCHORS, 512, generator=torch.Generator().manual_seed(1)) + 0.5
    info = CharacterInfo("Somebody", {}, base_hash="b" * 64, selected=list(range(ANCHORS)))
    keypoints = torch.zeros(ANCHORS, 86, 3)
    return Character(generator, anchors, keypoints, np.zeros((8, 8, 3), np.uint8), info, "c" * 64)


@lru_cache(maxsize=1)
def shot() -> LatentTrack:
    """Codes of P+, and their low-pass."""
    rng = np.random.default_rng(0)
    rows = somebody().generator.architecture.num_ws
    weights = rng.dirichlet(np.ones(ANCHORS), (FRAMES, rows)) * (1 + ANCHORS * BETA) - BETA
    alpha = np.float32(weights.mean(1))
    delta = np.float32(weights - alpha[:, None])
    codes = np.float32((alpha[:, None] + delta) @ somebody().anchors.numpy())
    smooth = codes.copy()
    smooth[1:-1] = (codes[:-2] + 2 * codes[1:-1] + codes[2:]) / 4
    return LatentTrack(
        character=somebody().hash,
        numbers=np.array([1001, 1002, 1003, 1004, 1006, 1007, 1008]),
        state=np.full(FRAMES, FrameState.SOLVED, np.uint8),
        cut=np.arange(FRAMES) == 0,
        alpha=alpha,
        delta=delta,
        codes=codes,
        smooth=smooth,
        neutral_offset=np.float32(rng.standard_normal((86, 3))),
        landmarks=np.float32(rng.standard_normal((FRAMES, 478, 3))),
        quads=rng.standard_normal((FRAMES, 4, 2)),
        amount=np.float32(rng.random(FRAMES)),
        losses={"keypoints": np.float32(rng.random(FRAMES))},
        quality={"keypoint_error": np.float32(rng.random(FRAMES))},
        settings={"steps": 8},
        task="d" * 64,
        hash="e" * 64,
    )


def within(*weights: float) -> Direction:
    """A direction of the anchors' plane, by its change of the first weights, without their mean."""
    gamma = np.zeros(ANCHORS)
    gamma[: len(weights)] = weights
    return Direction(np.float32((gamma - gamma.mean()) @ somebody().anchors.numpy()))


NAMED = {"a": within(0.1, -0.1), "b": within(0, 0.05, 0.02, -0.03), "far": within(3, -2, 1)}


def constant(name: str, amount: float, rows: str = "") -> Move:
    return Move(name, (Key(0, amount),), rows)


def same(
    a: LatentTrack, b: LatentTrack, but: tuple[str, ...] = (), without: int | None = None
) -> None:
    """Bit for bit, in all fields but some, and in all frames but one."""
    kept = np.flatnonzero(a.numbers != without)
    for field in dataclasses.fields(LatentTrack):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if field.name in but:
            continue
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype
            if len(x) == len(a.numbers):
                x, y = x[kept], y[kept]
            assert x.tobytes() == y.tobytes(), field.name
        elif field.name in ("losses", "quality"):
            assert all(x[name].tobytes() == y[name].tobytes() for name in x.keys() | y.keys())
        else:
            assert x == y, field.name


# -- gamma ---------------------------------------------------------------------------------------


def test_gamma_is_constrained_least_squares() -> None:
    rng = np.random.default_rng(0)
    anchors, n = rng.standard_normal((6, 40)) + 2, rng.standard_normal((3, 40))
    gamma, share = coordinates(n, anchors)
    # Lagrange: [A A^T, 1; 1^T, 0] [gamma; l] = [A n; 0]
    system = np.block([[anchors @ anchors.T, np.ones((6, 1))], [np.ones((1, 6)), np.zeros((1, 1))]])
    wanted = np.linalg.solve(system, np.vstack([anchors @ n.T, np.zeros((1, 3))]))[:-1].T
    np.testing.assert_allclose(gamma, wanted, atol=1e-10)
    np.testing.assert_allclose(gamma.sum(1), 0, atol=1e-12)
    reached = gamma @ anchors
    assert share == pytest.approx(np.linalg.norm(reached) / np.linalg.norm(n))
    assert 0 < share < 0.9


def test_gamma_is_mystyles_where_the_direction_lies_in_the_plane_of_p() -> None:
    rng = np.random.default_rng(1)
    anchors = rng.standard_normal((30, 512)) + 1
    change = rng.standard_normal(30)
    n = (change - change.mean()) @ anchors
    gamma, share = coordinates(n, anchors)
    mystyle = np.linalg.inv(anchors @ anchors.T) @ anchors @ n
    np.testing.assert_allclose(gamma, mystyle, atol=1e-9)
    np.testing.assert_allclose(gamma, change - change.mean(), atol=1e-9)
    assert share == pytest.approx(1)
    # Where it does not, theirs changes the sum: the code would leave the plane.
    out = rng.standard_normal(512) + anchors.mean(0)
    assert abs((np.linalg.inv(anchors @ anchors.T) @ anchors @ out).sum()) > 0.1
    assert coordinates(out, anchors)[0].sum() == pytest.approx(0, abs=1e-9)


def test_more_anchors_than_numbers_and_twins_among_them() -> None:
    rng = np.random.default_rng(2)
    few = rng.standard_normal((40, 16))
    anchors = np.float32(np.concatenate([few, few[:5], few[:1] + 1e-9]))
    n = rng.standard_normal(16)
    gamma, share = coordinates(n, anchors)
    assert share == pytest.approx(1)
    np.testing.assert_allclose(gamma @ np.float64(anchors), n, atol=1e-5)
    assert gamma.sum() == pytest.approx(0, abs=1e-9)
    assert np.linalg.norm(gamma) < 1  # the smallest of many; twins don't blow it up
    np.testing.assert_allclose(gamma[:5], gamma[40:45], atol=1e-6)
    assert coordinates(n, anchors[:1])[1] == 0  # one anchor: nowhere to go


# -- moves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        (),
        (Key(1, 0.0), Key(1, 1.0)),
        (Key(1, float("nan")),),
        (Key(1, 1e39),),
        (Key(1, 0.0, "bounce"),),
    ],
)
def test_keys_that_make_no_sense(keys: tuple[Key, ...]) -> None:
    with pytest.raises(KeyframeError, match=r"^a: "):
        edit(shot(), somebody(), NAMED, [Move("a", keys)])


def test_rows() -> None:
    assert parse_layers("", 18).all()
    split = [parse_layers(name, 18) for name in ("coarse", "middle", "fine")]
    assert [np.flatnonzero(s).tolist() for s in split] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        list(range(8, 18)),
    ]
    assert np.flatnonzero(parse_layers("0+fine", 10)).tolist() == [0, 8, 9]
    assert np.flatnonzero(parse_layers("2-4", 10)).tolist() == [2, 3, 4]
    for wrong in ("10", "4-3", "0-10", "smooth", "-1", "+", "fine+", "1-2-3"):
        with pytest.raises(EditError, match=r"rows|0-9"):
            parse_layers(wrong, 10)
    with pytest.raises(EditError, match="0-7"):
        parse_layers("fine", 8)


# -- edits ---------------------------------------------------------------------------------------


def test_nothing_changes_where_amounts_are_zero() -> None:
    for moves in ([], [constant("a", 0.0)], [constant("a", 0.0), constant("b", -0.0, "fine")]):
        same(
            edit(shot(), somebody(), NAMED, moves, "project"),
            shot(),
            ("task", "parent", "recipe", "hash"),
        )
    keyed = Move("a", (Key(1003, 0.0, "hold"), Key(1006, 1.0, "hold"), Key(1007, 0.0)))
    found = edit(shot(), somebody(), NAMED, [keyed])
    same(found, shot(), ("task", "parent", "recipe", "hash"), without=1006)
    assert (found.smooth[4] != shot().smooth[4]).any()
    assert found.parent == shot().hash


def test_an_edit_is_the_amount_times_the_direction_and_arrays_agree() -> None:
    keyed = Move("b", (Key(1001, -1.0), Key(1008, 2.0)))
    found = edit(shot(), somebody(), NAMED, [constant("a", 0.5), keyed])
    strength = np.interp(shot().numbers, [1001, 1008], [-1, 2])[:, None, None]
    wanted = 0.5 * NAMED["a"].vector + strength * NAMED["b"].vector
    for name in ("codes", "smooth"):
        moved = getattr(found, name) - getattr(shot(), name)
        np.testing.assert_allclose(moved, np.broadcast_to(wanted, moved.shape), atol=2e-6)
    anchors = somebody().anchors.numpy()
    np.testing.assert_allclose(found.weights @ anchors, found.codes, atol=2e-6)
    np.testing.assert_allclose(found.weights.sum(2), 1, atol=1e-6)
    np.testing.assert_allclose(found.delta.mean(1), 0, atol=1e-7)


def test_only_the_rows_that_are_asked_for_are_moved() -> None:
    found = edit(shot(), somebody(), NAMED, [constant("a", 1.0, "middle")], "project", 0.0)
    for name in ("codes", "smooth"):
        changed = (getattr(found, name) != getattr(shot(), name)).any(2)
        assert changed[:, 4:8].all()
        assert not changed[:, :4].any()
        assert not changed[:, 8:].any()
    rows = np.random.default_rng(3).standard_normal((10, ANCHORS)) * 0.01
    rows -= rows.mean(1, keepdims=True)
    deep = {"deep": Direction(np.float32(rows @ somebody().anchors.numpy()))}
    moved = edit(shot(), somebody(), deep, [constant("deep", 2.0)]).codes - shot().codes
    np.testing.assert_allclose(
        moved, np.broadcast_to(2 * deep["deep"].vector, moved.shape), atol=2e-6
    )


def test_frames_that_nobody_looks_at_can_be_left_out() -> None:
    moves = [constant("a", 1.0), Move("b", (Key(1003, 0.0), Key(1006, 2.0)))]
    whole = edit(shot(), somebody(), NAMED, moves)
    some = edit(shot(), somebody(), NAMED, moves, only=np.array([2, 4]))
    for name in ARRAYS:
        wanted = getattr(shot(), name).copy()
        wanted[[2, 4]] = getattr(whole, name)[[2, 4]]
        assert getattr(some, name).tobytes() == wanted.tobytes()


def test_edits_compose() -> None:
    one = edit(shot(), somebody(), NAMED, [constant("a", 0.7)])
    two = edit(replace(one, hash="f" * 64), somebody(), NAMED, [constant("b", 0.4, "coarse")])
    both = edit(shot(), somebody(), NAMED, [constant("a", 0.7), constant("b", 0.4, "coarse")])
    for name in ARRAYS:
        np.testing.assert_allclose(getattr(two, name), getattr(both, name), atol=3e-6)
    assert two.parent == "f" * 64  # and that one remembers its own


def test_stop_goes_as_far_as_p_reaches_and_no_further() -> None:
    moves = [constant("far", 1.0)]
    free = edit(shot(), somebody(), NAMED, moves)
    assert dilation(free.weights).min() > 0.5
    stopped = edit(shot(), somebody(), NAMED, moves, "stop")
    whole = free.codes - shot().codes
    share = (stopped.codes - shot().codes)[..., 0] / whole[..., 0]
    assert (share > 0).all()
    assert (share < 0.2).all()
    np.testing.assert_allclose(share, np.broadcast_to(share[:, :1], share.shape), atol=1e-4)
    # Codes and what is rendered stop together, where the first weight of either is at the edge.
    ends = [dilation(stopped.weights)]
    anchors = somebody().anchors.double().numpy()
    inverse = np.linalg.pinv(anchors - anchors.mean(0), rcond=1e-6)
    ends += [dilation(stopped.weights + (stopped.smooth - stopped.codes) @ inverse)]
    np.testing.assert_allclose(np.max(ends, 0), BETA, atol=1e-5)
    inside = edit(shot(), somebody(), NAMED, [constant("a", 1.0)], "stop", 0.5)
    same(inside, edit(shot(), somebody(), NAMED, [constant("a", 1.0)], limit=0.5), ("recipe",))
    beyond = edit(free, somebody(), NAMED, moves, "stop")  # it is outside already: no step further
    np.testing.assert_allclose(beyond.codes, free.codes, atol=1e-5)


def test_project_is_the_quadratic_program() -> None:
    moves = [constant("far", 0.3)]
    free = edit(shot(), somebody(), NAMED, moves)
    found = edit(shot(), somebody(), NAMED, moves, "project")
    for frame, row in ((0, 0), (3, 5), (6, 9)):
        goal = np.float64(free.weights[frame, row])
        best = minimize(
            lambda w, goal=goal: ((w - goal) ** 2).sum(),
            np.full(ANCHORS, 1 / ANCHORS),
            jac=lambda w, goal=goal: 2 * (w - goal),
            bounds=[(-BETA, None)] * ANCHORS,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            method="SLSQP",
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(found.weights[frame, row], best.x, atol=1e-5)
    assert dilation(found.weights).max() <= BETA + 1e-6
    wide = edit(shot(), somebody(), NAMED, moves, "project", 5.0)
    for name in ARRAYS:
        np.testing.assert_allclose(getattr(wide, name), getattr(free, name), atol=3e-6)


def test_a_track_remembers_what_replays_it(tmp_path) -> None:
    moves = [constant("a", 0.5, "coarse"), Move("b", (Key(1001, 0.0, "smooth"), Key(1004, 2.0)))]
    save_track(tmp_path / "shot.latents", shot())
    parent = load_track(tmp_path / "shot.latents")
    save_track(tmp_path / "edited.latents", edit(parent, somebody(), NAMED, moves, "stop", 0.03))
    edited = load_track(tmp_path / "edited.latents")
    assert edited.parent == parent.hash
    (recipe,) = edited.recipe
    again = replay(parent, somebody(), NAMED, json.loads(json.dumps(recipe)))
    same(again, edited, ("hash",))
    with pytest.raises(EditError, match="not the one"):
        replay(parent, somebody(), NAMED | {"a": NAMED["b"]}, recipe)
    with pytest.raises(EditError, match="no direction 'a'"):
        replay(parent, somebody(), {"b": NAMED["b"]}, recipe)
    with pytest.raises(EditError, match="'repair'"):
        replay(parent, somebody(), NAMED, {"do": "repair"})


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_what_can_not_be_edited() -> None:
    def fails(error: type[Exception], match: str, track=None, **changes) -> None:
        arguments = {"directions": NAMED, "moves": [constant("a", 1.0)]} | changes
        with pytest.raises(error, match=match):
            edit(track or shot(), somebody(), **arguments)

    fails(CharacterMismatchError, "solved for", replace(shot(), character="9" * 64))
    partial = replace(shot(), smooth=np.where(np.arange(10)[:, None] < 3, np.nan, shot().smooth))
    fails(EditError, "Finish", partial)
    fails(EditError, "There are: a, b, far", moves=[constant("smirk", 1.0)])
    fails(EditError, "another shape", directions={"a": Direction(np.ones(256, np.float32))})
    fails(EditError, "another shape", directions={"a": Direction(np.ones((18, 512), np.float32))})
    fails(EditError, "too large", moves=[constant("a", 3e38)] * 9)
    fails(EditError, "policy", edge="bounce")
    fails(EditError, "negative", limit=-0.1)


@pytest.mark.parametrize(
    "value",
    [None, 5, "smile", [1], [{"direction": "a"}], [{"keys": [[1, 1]]}]],
)
def test_json_that_is_no_moves(value: object) -> None:
    with pytest.raises(EditError, match="Moves are a list"):
        moves_from_json(value)


@pytest.mark.parametrize(
    "keys", [3, [], [[1.5, 1]], [[1, "1"]], [[1, 1], [1, 2]], [{"frame": 1, "amount": 1}]]
)
def test_json_whose_keys_are_none(keys: object) -> None:
    with pytest.raises(KeyframeError, match=r"^a: "):
        moves_from_json([{"direction": "a", "keys": keys}])


def test_moves_from_json_and_back() -> None:
    moves = (constant("a", 0.5, "coarse"), Move("b", (Key(1, 0.0, "smooth"), Key(2, 2.0))))
    plain = json.loads(json.dumps([dataclasses.asdict(move) for move in moves]))
    assert moves_from_json(plain) == moves
    short = [{"direction": "a", "keys": [[3, 1]]}]
    assert moves_from_json(short) == (Move("a", (Key(3, 1.0),)),)
