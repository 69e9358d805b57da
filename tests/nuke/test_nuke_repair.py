"""Tests ReenactRepair in the stand-in for Nuke, on a shot with known faults, with a real server."""

import shutil
from pathlib import Path
from typing import Any

import nuke_standin
import numpy as np
import pytest
from hypothesis import given as examples_of
from hypothesis import settings
from hypothesis import strategies as st
from nuke_session import plugin, read_node, under, until, whole
from nuke_standin import Node, Session
from OpenImageIO import ImageBuf
from reenact import repairs
from reenact.repairs import (
    RepairLineError,
    format_entry,
    format_ranges,
    parse,
    parse_ranges,
)
from running_server import Server
from small_shot import FIRST, FRAMES, LOST, WRONG, small_shot

from core.media.write import copy_exr
from core.render.layers import ATTRIBUTE, NEWEST
from core.solve.latent_track import LatentTrack, load_track
from server import blobs

LAST = FIRST + FRAMES - 1
NUMBERS = range(FIRST, LAST + 1)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Returns the files of a character and a track, and the plate's pattern."""
    return small_shot(tmp_path_factory.mktemp("given"))


def script(session: Session, given: tuple[Path, Path, str], folder: Path) -> tuple[Node, Node]:
    """Saves a script with a plate, its Reenact, and a ReenactRepair below; returns both nodes.

    The Reenact's job is cancelled at once, and its version gets the track with the known faults.
    """
    nuke = session.module
    nuke.root()["first_frame"].setValue(FIRST)
    nuke.root()["last_frame"].setValue(LAST)
    nuke.frame(FIRST)
    character, track, pattern = given
    plate = read_node(session, pattern, FIRST, LAST)
    above = under(session, "Reenact", plate)
    above["character"].setValue(character.as_posix())
    node = under(session, "ReenactRepair", above, plate)
    nuke.scriptSaveAs(str(folder / "shot.nk"), True)
    session.press(above, "submit")
    session.pump(lambda: above["run"].value(), 60, "the job")
    session.press(above, "cancel")
    until(session, above, "cancelled")
    version = Path(above["run"].value())
    shutil.copyfile(track, version / "track.latents")
    above["track"].setValue((version / "track.latents").as_posix())
    return above, node


def press(session: Session, node: Node, knob: str) -> str:
    """Presses a button, waits for the job, and returns the node's state."""
    session.press(node, knob)
    until(session, node, "done")
    return node["state"].value()


def same_but(a: LatentTrack, b: LatentTrack, *numbers: int) -> None:
    """Asserts that the tracks are equal bit for bit except in these frames, where they differ."""
    others = ~np.isin(a.numbers, numbers)
    for name in ("alpha", "delta", "codes", "smooth", "state", "amount", "landmarks"):
        np.testing.assert_array_equal(getattr(a, name)[others], getattr(b, name)[others])
    moved = (a.smooth != b.smooth).any((1, 2)) | (a.amount != b.amount)
    assert set(a.numbers[moved].tolist()) == {*numbers}


# -- from the measures to the versions -----------------------------------------------------------


def test_bad_frames_are_listed_repaired_and_every_version_kept(
    session: Session, server: Server, given: tuple[Path, Path, str], tmp_path: Path
) -> None:
    nuke = session.module
    above, node = script(session, given, tmp_path)
    came_in = session.look(node, WRONG)
    before = load_track(above["track"].value())

    assert f"2 of {FRAMES} frames stand out, {WRONG} the most." in press(session, node, "measure")
    assert node["marked"].value() == f"{WRONG}, {LOST}"
    error = [node["landmarks"].valueAt(number) for number in NUMBERS if number != LOST]
    assert np.argmax(error) == WRONG - FIRST
    assert "1006" in Path(node["report"].value()).read_text(encoding="utf-8")
    wide = f"{WRONG - 2}-{WRONG + 2}"
    (line,) = node["repairs"].value().splitlines()
    assert line.startswith(f"solve {wide} steps 40  # ")
    assert "The mouth is open wider than the driver's" in line
    for expected in (WRONG, LOST, WRONG):
        session.press(node, "next_bad")
        assert nuke.frame() == expected

    session.set(node, "repairs", line.replace("steps 40", "steps 5"))
    nuke.frame(WRONG)
    press(session, node, "preview")  # repairs the whole list, and renders one frame
    assert (node["show"].value(), node["track"].value()) == ("preview", "")
    assert node["version"].values() == ["upstream"]
    previewed = session.look(node, WRONG)
    assert not np.array_equal(previewed["red"], came_in["red"])
    assert f"ReenactRepair1_v001: {FRAMES} frames" in press(session, node, "submit")
    for read in ("Preview", "Result"):
        spec = ImageBuf(node.node(read)["file"].evaluate(WRONG)).spec()
        assert "reenact_render.R" in spec.channelnames
        assert spec.getattribute(ATTRIBUTE) == NEWEST
    with server.client() as client:
        assert [job["kind"] for job in client.jobs()].count("repair") == 1  # by the preview
    np.testing.assert_allclose(
        session.look(node, WRONG)["red"], previewed["red"], rtol=2e-3, atol=1e-3
    )
    first = load_track(node["track"].value())
    assert (first.parent, first.recipe[0]["steps"]) == (before.hash, 5)
    same_but(before, first, *range(WRONG - 2, WRONG + 3))
    right, row = before.codes[WRONG - FIRST], WRONG - FIRST  # the plate's own codes
    off = [np.linalg.norm(track.smooth[row] - right) for track in (before, first)]
    assert off[1] < off[0] / 3
    repaired = session.look(node, WRONG)
    exr = ImageBuf(node.node("Result")["file"].evaluate(WRONG))
    assert exr.spec().full_width == came_in["red"].shape[1]
    assert repaired["alpha"].max() > 0.9

    steps = len(session._undo)
    nuke.frame(LOST)  # one more by hand
    session.set(node, "repair_action", "hold")
    session.press(node, "add_repair")
    listed = node["repairs"].value().splitlines()
    assert listed[1:] == [f"hold {LOST} from {LOST - 1}"]
    session.press(node, "clear_repairs")
    nuke.undo()
    assert node["repairs"].value().splitlines() == listed
    kept = press(session, node, "measure")
    assert "Your list stays" in kept
    assert node["repairs"].value().splitlines() == listed
    press(session, node, "submit")
    assert node["version"].values() == ["upstream", "ReenactRepair1_v001", "ReenactRepair1_v002"]
    second = load_track(node["track"].value())
    assert second.parent == before.hash
    same_but(before, second, *range(WRONG - 2, WRONG + 3), LOST)
    assert len(session._undo) == steps + 2  # only the artist's steps, none of ours

    below = nuke.createNode("ReenactRepair")  # works on the shown version
    below.setInput(0, node)
    session.set(node, "show", "preview")
    session.set(node, "version", "ReenactRepair1_v001")
    assert node["show"].value() == "result"
    assert load_track(node["track"].value()).hash == first.hash
    for channel, pixels in session.look(node, WRONG).items():
        np.testing.assert_array_equal(pixels, repaired[channel])
    assert plugin("upstream").upstream(below).track == node["track"].value()
    session.set(node, "version", "upstream")
    np.testing.assert_array_equal(session.look(node, WRONG)["red"], came_in["red"])
    assert plugin("upstream").upstream(below).track == above["track"].value()

    press(session, node, "submit")  # the same request: the same version
    assert node["version"].value() == "ReenactRepair1_v002"
    assert len(node["version"].values()) == 3
    nuke.scriptSaveAs(str(tmp_path / "shot.nk"), True)
    nuke.scriptOpen(str(tmp_path / "shot.nk"))
    node = nuke.toNode("ReenactRepair1")
    whole(session, node)
    assert node["repairs"].value().splitlines() == listed
    session.set(node, "version", "ReenactRepair1_v001")
    np.testing.assert_array_equal(session.look(node, WRONG)["red"], repaired["red"])
    shutil.rmtree(tmp_path / "reenact" / "ReenactRepair1_v002")
    session.set(node, "version", "ReenactRepair1_v002")
    assert "There is no ReenactRepair1_v002 in" in node["state"].value()


# -- what is wrong is said -----------------------------------------------------------------------


def test_what_is_wrong_with_a_list_is_said_with_its_line(
    server: Server, given: tuple[Path, Path, str], tmp_path: Path
) -> None:
    """By the node, and by the server, which counts repairs, not lines; in a terminal."""
    with nuke_standin.running() as session:
        above, node = script(session, given, tmp_path)
        track = above["track"].value()
        session.module.scriptSaveAs(str(tmp_path / "shot.nk"), True)
    with nuke_standin.running(gui=False) as session:
        session.module.scriptOpen(str(tmp_path / "shot.nk"))
        node = session.module.toNode("ReenactRepair1")

        def said(button: str, **knobs: Any) -> str:
            for knob, value in knobs.items():
                node[knob].setValue(value)
            session.press(node, button)
            return node["state"].value()

        assert "The list is empty" in said("submit")
        assert "No frame is listed" in said("next_bad")
        assert "Nothing was measured yet" in said("open_report")
        assert "Line 2: " in said("submit", repairs=f"interpolate {WRONG}\nhold {WRONG}")
        assert node["tile_color"].value() == plugin("display").RED
        first = f"# by hand\n\ninterpolate {WRONG}\ninterpolate {FIRST}  # has none before it"
        assert said("submit", repairs=first).startswith(
            "Line 4 (interpolate): the shot has no frame before"
        )
        assert node["step"].value() == "log"
        assert '"soon" is not a list of frames' in said("add_repair", repair_frames="soon")
        assert "which frames replace them" in said(
            "add_repair", repair_action="replace", repair_frames="1003-1004"
        )
        said("clear_repairs")
        for action, knobs in (
            ("replace", {"repair_from": "1001-1002"}),
            ("solve", {"repair_part": "mouth"}),
            ("solve", {"repair_part": "whole face"}),
            ("amount", {"repair_amount": 0.25}),
        ):
            said("add_repair", repair_action=action, **knobs)
        assert node["repairs"].value().splitlines() == [
            "replace 1003-1004 from 1001-1002",
            "solve 1003-1004 only mouth",
            "solve 1003-1004",
            "amount 1003-1004 keys 0.25",
        ]
        said("submit", repairs="amount 1003-1004 keys 0.25")
        amount = load_track(node["track"].value()).amount
        assert np.flatnonzero(amount != 1).tolist() == [2, 3]
        assert amount[2] == np.float32(0.25)
        # Another amount for two frames: the others are not rendered again.
        with server.client() as client:
            drawn = next(job["id"] for job in client.jobs() if job["kind"] == "render")
            stored = {
                file["number"]: blobs.file_path(server.folder / "store", file["hash"])
                for file in client.status(drawn)["files"]
            }
        for path in stored.values():
            assert copy_exr(path, path, {"mark": "drawn before"})
        said("submit", repairs="amount 1003-1004 keys 0.5")
        shown = node.node("Result")["file"]
        specs = {number: ImageBuf(shown.evaluate(number)).spec() for number in NUMBERS}
        again = [n for n, spec in specs.items() if spec.getattribute("mark") is None]
        assert again == [1003, 1004]
        names = {spec.getattribute("reenact:track") for spec in specs.values()}
        assert names == {Path(node["run"].value()).name}
        (tmp_path / "away.json").write_bytes((Path(track).parent / "run.json").read_bytes())
        (Path(track).parent / "run.json").unlink()
        assert "The result of Reenact1 is gone or damaged" in said("measure")
        node.setInput(0, None)
        for button in ("measure", "submit"):
            assert "no Reenact node above" in said(button)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("sovle 1004", "sovle is no repair. Begin with one of solve, interpolate, hold"),
        ("solve", "the frames are missing. Write them as in 1020-1035, 1040"),
        ("solve 1004 mouth", '"1004 mouth" is not a list of frames'),
        ("solve 1006-1004", '"1006-1004" is not a list of frames'),
        ("solve 1004,", '"1004," is not a list of frames'),
        ("solve 1004-1020", "frame 1020 is not in the shot above, 1001-1014"),
        ("solve 1004 steps", "steps must be a whole number, not nothing"),
        ("solve 1004 steps -3", "steps must be a whole number, not -3"),
        ("solve 1004 ease smooth", "solve takes only and steps, each once"),
        ("hold 1004 from 1003 from 1002", "hold takes from and blend, each once"),
        ("hold 1004 from 999", "frame 999 is not in the shot"),
        ("replace 1004", "replace needs from"),
        ("amount 1004", "amount needs keys"),
    ],
)
def test_lines_that_are_no_repairs(line: str, what: str) -> None:
    with pytest.raises(RepairLineError, match=f"^Line 3: {what}"):
        parse(f"hold 1004 from 1003 # fine\n\n{line}  # why\nnonsense", NUMBERS)


some_frames = st.sets(st.sampled_from(NUMBERS), min_size=1).map(format_ranges)
some_repairs = st.one_of(
    st.fixed_dictionaries(
        {"do": st.just("solve"), "frames": some_frames},
        optional={
            "only": st.just("mouth, eyes"),
            "steps": st.integers(1, 99),
            "reason": st.just("It is # wrong"),
        },
    ),
    st.fixed_dictionaries(
        {"do": st.just("interpolate"), "frames": some_frames},
        optional={"ease": st.sampled_from(["linear", "smooth"])},
    ),
    st.fixed_dictionaries(
        {"do": st.just("replace"), "frames": some_frames, "from": some_frames},
        optional={"blend": st.integers(0, 9)},
    ),
    st.fixed_dictionaries(
        {"do": st.just("amount"), "keys": st.just("1001:0:smooth,1009:1")},
        optional={"frames": some_frames},
    ),
)


@settings(max_examples=50, deadline=None)
@examples_of(st.lists(some_repairs, max_size=4))
def test_a_list_is_read_as_it_was_written(entries: list[dict[str, Any]]) -> None:
    text = "\n\n".join(map(format_entry, entries))
    assert parse(text, NUMBERS) == [(2 * i + 1, entry) for i, entry in enumerate(entries)]


@settings(max_examples=50, deadline=None)
@examples_of(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40), min_size=1))
def test_bad_frames_are_the_marked_ones_and_the_rest_of_the_list(
    marked: set[int], frames: set[int]
) -> None:
    spans = parse_ranges(format_ranges(frames))
    assert {n for first, last in spans for n in range(first, last + 1)} == frames
    entries = [{"do": "solve", "frames": format_ranges(frames)}, {"do": "amount", "keys": "1"}]
    bad = repairs.bad_frames(entries, format_ranges(marked))
    assert bad == sorted(bad)
    assert set(bad) >= marked
    for first, last in spans:
        assert any(first <= number <= last for number in bad)
    assert len(bad) <= len(marked) + len(spans)
