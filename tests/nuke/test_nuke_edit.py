"""Tests ReenactEdit and ReenactStyle in the stand-in for Nuke, with a real server and pictures."""

import copy
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nuke_standin
import numpy as np
import pytest
import torch
from hypothesis import given as examples_of
from hypothesis import settings
from hypothesis import strategies as st
from nuke_session import copy_of, freeze, plugin, read_node, under, until, until_said, work
from nuke_standin import Node, Session
from OpenImageIO import ImageBuf
from reenact import keyframes, protocol, shots
from reenact.errors import NodeError, ServerError
from reenact.files import existing_frames, frame_file
from repository import ROOT
from running_server import Server, inputs

from core.base import keyframes as keys_of
from core.edit.directions import Direction, Directions, load_directions, save_directions
from core.generator.storage import generator_digest
from core.media.write import write_png
from core.personalize.character import Character, load_character
from core.render.layers import in_file
from core.solve.latent_track import LatentTrack, load_track
from core.stylize.style import Style, StyleInfo, save_style, style_info

FIRST, LAST = 1001, 1004


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory, running: Server) -> Path:
    """Makes a script whose Reenact has solved its shot, the character and its files."""
    folder = tmp_path_factory.mktemp("solved")
    (tmp_path_factory.getbasetemp() / "given").mkdir()
    made, pattern = inputs(tmp_path_factory.getbasetemp() / "given")
    character = folder / "anna.character"
    shutil.copyfile(made, character)
    who = load_character(character)
    anchors = who.anchors.numpy()
    along = {"smile": (2, 0), "jaw": (1, 0), "yaw": (3, 4)}
    found = {name: Direction((anchors[a] - anchors[b]) / 6) for name, (a, b) in along.items()}
    save_directions(folder / "anna.directions", Directions(found, owner=who.hash))
    age = {"age": Direction((anchors[5] - anchors[6]) / 6)}
    save_directions(folder / "age.directions", Directions(age, owner=who.hash))
    save_style(folder / "loud.style", loud(who))
    with (
        patch.dict(os.environ, {"REENACT_HOME": str(running.folder)}),
        nuke_standin.running() as session,
    ):
        nuke = session.module
        node = under(session, "Reenact", read_node(session, pattern, FIRST, LAST + 1))
        for knob, value in {
            "character": character.as_posix(),
            "neutral": "off",
            "steps": 2,
            "first": FIRST,
            "last": LAST,
            "handles": 1,
        }.items():
            node[knob].setValue(value)
        nuke.scriptSaveAs(str(folder / "shot.nk"))
        session.press(node, "submit")
        until(session, node, "done")
        nuke.scriptSaveAs(str(folder / "shot.nk"), True)
    return folder


def loud(who: Character) -> Style:
    """Returns a style whose weights are the character's plus noise."""
    generator = copy.deepcopy(who.generator)
    torch.manual_seed(3)
    for parameter in generator.synthesis.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    info = StyleInfo("loud", who.hash, generator_digest(who.generator), who.info.base_hash)
    return Style(generator, np.zeros((4, 4, 3), np.uint8), info)


def opened(session: Session, solved: Path, folder: Path) -> Node:
    """Opens the solved shot in a script of the test's own; returns its Reenact node."""
    nuke = session.module
    nuke.scriptOpen(str(solved / "shot.nk"))
    nuke.scriptSaveAs(str(folder / "shot.nk"), True)
    nuke.frame(FIRST)
    return nuke.toNode("Reenact1")


@contextmanager
def of_character(reenact: Node, character: Path) -> Iterator[None]:
    """Has the version of a Reenact say that it is of another character."""
    path = Path(reenact["track"].value()).parent / "run.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), "character": str(character)}))
    try:
        yield
    finally:
        path.write_text(before)


def shown_live(session: Session, node: Node, but: str = "") -> Path:
    """Waits until the node's preview shows another file; returns that file."""
    read = node.node("Preview")["file"]
    session.pump(lambda: read.value() not in ("", but), 120, "a preview")
    return Path(read.value())


def same(a: np.ndarray, b: np.ndarray) -> None:
    """Equal up to the last digit of half floats: a batch is rounded differently from one frame."""
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-3)


def values(node: Node, knob: str, track: LatentTrack) -> np.ndarray:
    return np.array([node[knob].valueAt(int(n)) for n in track.numbers], np.float32)


# -- down the pipe -------------------------------------------------------------------------------


def test_a_track_is_found_through_whatever_lies_between(session: Session) -> None:
    plate = under(session, "Read")
    first, second = (under(session, "Reenact", plate) for _ in range(2))
    below = under(session, "Dot", under(session, "Reenact", under(session, "Dot", first)))
    third = below.input(0)
    for node, track in ((first, "/1.latents"), (second, "/2.latents"), (third, "/3.latents")):
        node["track"].setValue(track)
        node["character"].setValue(f"{track}.character")

    def found(*sources: Node | None) -> str:
        end = under(session, "NoOp", *sources)
        seen = plugin("upstream").upstream(end)
        assert seen.character == f"{seen.track}.character"
        assert seen.node["track"].value() == seen.track
        return str(seen.track)

    assert found(first) == "/1.latents"
    assert found(below) == "/3.latents"  # the nearest
    assert found(under(session, "Merge2", plate, second)) == "/2.latents"  # A over the plate
    assert found(under(session, "Merge2", first, second)) == "/1.latents"  # B before A
    assert found(None, second) == "/2.latents"
    third["disable"].setValue(True)
    assert found(below) == "/1.latents"


def test_the_track_is_that_of_the_picture_that_is_shown(session: Session) -> None:
    plate = under(session, "Read")
    first, second, third = (under(session, "Reenact", plate) for _ in range(3))
    for node, track in ((first, "/1.latents"), (second, "/2.latents"), (third, "/3.latents")):
        node["track"].setValue(track)
    upstream = plugin("upstream").upstream
    switch = under(session, "Switch", first, second)
    edit = under(session, "ReenactEdit", under(session, "Dot", switch))
    for which, shown in ((0, first), (1, second), (7, second), (-1, first)):
        switch["which"].setValue(which)
        assert upstream(edit).node is shown
    switch["which"].setValue(1)
    switch["disable"].setValue(True)
    assert upstream(edit).node is first
    merge = under(session, "Merge2", plate, second)
    below = under(session, "ReenactStyle", merge)
    assert upstream(below).node is second
    merge["disable"].setValue(True)  # shows the plate alone
    with pytest.raises(NodeError, match="no Reenact node above"):
        upstream(below)
    passing = under(session, "ReenactEdit", first, under(session, "Merge2", plate, third))
    passing["shown_version"].setValue("upstream")
    assert upstream(under(session, "NoOp", passing)).node is first
    passing.setInput(0, plate)  # what is over its plate is not shown
    with pytest.raises(NodeError, match="no Reenact node above"):
        upstream(under(session, "NoOp", passing))


def test_a_shot_that_variables_choose_is_refused(session: Session) -> None:
    plate = under(session, "Read")
    shots_of = [under(session, "Reenact", plate) for _ in range(2)]
    for node in shots_of:
        node["track"].setValue(f"/{node.name()}.latents")
    switch = under(session, "VariableSwitch", *shots_of)
    edit = under(session, "ReenactEdit", under(session, "Dot", switch))
    session.press(edit, "preview")
    sentence = (
        "VariableSwitch1 shows only for some of the script's variables what comes from Reenact1."
    )
    assert edit["state"].value() == f"{sentence} Connect this node above VariableSwitch1."
    comp = under(session, "ReenactComp", plate, switch)
    for button in ("bake_tracker", "bake_corner_pin"):
        session.press(comp, button)
        assert comp["baked"].value().startswith(sentence)
    switch["disable"].setValue(True)
    assert plugin("upstream").upstream(edit).node is shots_of[0]


@pytest.mark.parametrize(
    ("kind", "knobs"),
    [
        ("TimeOffset", {"time_offset": 10}),
        ("TimeOffset", {"reverse_input": True}),
        ("TimeClip", {"frame_mode": "start at", "frame": "1001"}),
        *((kind, {}) for kind in ("Retime", "TimeWarp", "FrameHold", "AppendClip", "Kronos")),
    ],
)
def test_frames_that_come_in_at_other_times_are_not_taken_for_those_of_the_track(
    session: Session, kind: str, knobs: dict[str, object]
) -> None:
    reenact = under(session, "Reenact", under(session, "Read"))
    reenact["track"].setValue("/1.latents")
    between = under(session, kind, reenact)
    edit = under(session, "ReenactEdit", under(session, "Dot", between))
    for knob, value in knobs.items():
        between[knob].setValue(value)
    sentence = f"Connect this node above {between.name()}."
    session.press(edit, "preview")
    assert edit["state"].value().endswith(sentence)
    comp = under(session, "ReenactComp", reenact.input(0), between)
    for face in (between, under(session, "Dot", under(session, kind, reenact.input(0)))):
        source = face if face is between else face.input(0)
        for knob, value in knobs.items():
            source[knob].setValue(value)
        comp.setInput(1, face)
        for button in ("bake_tracker", "bake_corner_pin")[: 2 if face is between else 1]:
            session.press(comp, button)
            said = comp["baked"].value()
            assert said.endswith(f"Connect this node above {source.name()}."), said
    assert plugin("upstream").upstream(comp, [reenact]).node == reenact
    between["disable"].setValue(True)
    assert plugin("upstream").upstream(edit).node == reenact


@pytest.mark.parametrize("kind", ["TimeOffset", "TimeClip"])
def test_a_node_that_moves_nothing_is_passed(session: Session, kind: str) -> None:
    reenact = under(session, "Reenact", under(session, "Read"))
    reenact["track"].setValue("/1.latents")
    assert plugin("upstream").upstream(under(session, kind, reenact)).node == reenact


def test_without_a_track_above_it_is_said_what_to_do(session: Session) -> None:
    plate = under(session, "Read")
    node = under(session, "Reenact", plate)
    end = under(session, "NoOp")
    for source, sentence in (
        (None, "no Reenact node above"),
        (plate, "no Reenact node above"),
        (under(session, "ReenactPersonalize", plate), "no Reenact node above"),
        (node, "Reenact1 has no latent track yet. Submit it first, or disable it."),
    ):
        end.setInput(0, source)
        with pytest.raises(NodeError, match=sentence):
            plugin("upstream").upstream(end)


def test_a_diamond_of_nodes_is_walked_once(session: Session) -> None:
    top = under(session, "Read")
    for _ in range(40):  # there are 2^40 paths to the top
        top = under(session, "Merge2", top, top)
    with pytest.raises(NodeError):
        plugin("upstream").upstream(top)


# -- edits ---------------------------------------------------------------------------------------


def test_keys_of_sliders_become_amounts_of_frames_and_edits_stack(
    session: Session, server: Server, solved: Path, tmp_path: Path
) -> None:
    reenact = opened(session, solved, tmp_path)
    nuke, plate = session.module, reenact.input(0)
    node = under(session, "ReenactEdit", under(session, "Dot", reenact), plate)
    node["smile"].fromScript("{curve L x1001 0 x1003 1.5 x1004 -1 x1006 0.25}")
    node["mouth"].fromScript("0.5")
    session.set(node, "rows", "coarse+middle")
    for knob, value in {
        "extra_file": str(solved / "age.directions"),
        "first": FIRST + 1,
        "last": FIRST + 2,
        "crops": True,
    }.items():
        session.set(node, knob, value)
    node["extra"].fromScript("{curve L x1002 1 x1003 0}")
    before = session.look(node, FIRST)
    np.testing.assert_array_equal(before["red"], session.look(reenact, FIRST)["red"])
    session.press(node, "submit")
    until(session, node, "done")
    assert node["has_crops"].value()

    run = tmp_path / "reenact" / "ReenactEdit1_v001"
    assert Path(node["run"].value()) == run
    assert sorted(p.name for p in run.glob("*.exr")) == [
        f"ReenactEdit1_v001.{n}.exr" for n in (1002, 1003)
    ]
    parent, track = load_track(reenact["track"].value()), load_track(node["track"].value())
    assert Path(node["track"].value()).parent == run
    assert node["character"].value() == reenact["character"].value()
    assert track.parent == parent.hash
    named = {
        name: direction
        for file in ("anna", "age")
        for name, direction in load_directions(solved / f"{file}.directions").directions.items()
    }
    knobs = {"smile": "smile", "jaw": "mouth", "age": "extra"}
    wanted = sum(
        values(node, knob, parent)[:, None] * named[name].vector for name, knob in knobs.items()
    )
    moved = track.smooth - parent.smooth
    np.testing.assert_allclose(moved[:, :8], np.repeat(wanted[:, None], 8, 1), atol=2e-5)
    assert not moved[:, 8:].any()

    plain, over = session.look(node, 1003), node.node("Result")["file"].value()
    assert over == f"{run.as_posix()}/ReenactEdit1_v001.%04d.exr"
    assert not np.array_equal(plain["red"], session.look(reenact, 1003)["red"])
    session.set(node, "output_as", "over the plate")
    outside, merged = plain["alpha"] == 0, session.look(node, 1003)
    under_it = session.look(plate, 1003)
    np.testing.assert_array_equal(merged["red"][outside], under_it["red"][outside])
    session.set(node, "output_as", "render")
    np.testing.assert_array_equal(session.look(node, 1003)["red"], plain["reenact_render.red"])
    session.set(node, "output_as", "aligned crop")
    assert session.look(node, 1003)["red"].shape == (64, 64)

    second = under(session, "ReenactEdit", node)
    session.set(second, "yaw", 1.0)
    session.set(second, "live", False)
    session.press(second, "submit")
    until(session, second, "done")
    last = load_track(second["track"].value())
    assert (last.parent, last.numbers.tolist()) == (track.hash, track.numbers.tolist())
    made = sorted(p.name for p in Path(second["run"].value()).glob("*.exr"))
    assert len(made) == 2  # the range of the shot above

    session.set(node, "smile", 2.0)
    session.press(node, "submit")
    session.pump(lambda: node["run"].value() != str(run), 60, "another version")
    nuke.scriptSaveAs(str(tmp_path / "shot.nk"), True)  # and closed while it is busy
    nuke.scriptOpen(str(tmp_path / "shot.nk"))
    node = nuke.toNode("ReenactEdit1")
    until(session, node, "done")
    assert node["track"].value() == f"{run.as_posix()[:-1]}2/track.latents"
    assert load_track(node["track"].value()).parent == parent.hash
    assert load_track(run / "track.latents").hash == track.hash  # the first version is kept


def test_a_terminal_edits_and_previews_at_once(
    server: Server, solved: Path, tmp_path: Path
) -> None:
    with nuke_standin.running(gui=False) as session:
        node = under(session, "ReenactEdit", opened(session, solved, tmp_path))
        session.set(node, "mouth", 2.0)
        assert not work().live  # nothing starts by itself
        session.press(node, "preview")
        assert node["state"].value() == f"Frame {FIRST}, live."
        session.set(node, "last", FIRST)
        session.set(node, "first", FIRST)
        session.press(node, "submit")
        assert node["job_state"].value() == "done"
        (made,) = Path(node["run"].value()).glob("*.exr")
        same(
            ImageBuf(node.node("Preview")["file"].value()).get_pixels()[..., :4],
            ImageBuf(str(made)).get_pixels()[..., :4],
        )


def test_sliders_are_drawn_live_as_submit_would(
    session: Session, server: Server, solved: Path, tmp_path: Path
) -> None:
    with server.client() as client:
        known = {job["id"] for job in client.jobs()}
    reenact = opened(session, solved, tmp_path)
    node = under(session, "ReenactEdit", reenact, reenact.input(0))
    session.module.frame(1003)
    node["yaw"].fromScript("{curve L x1001 -1 x1006 2}")
    begun = len(session._undo)
    for amount in (0.2, 0.9, 1.6):  # a slider is being dragged
        session.set(node, "smile", amount)
    steps = len(session._undo)
    assert steps == begun + 3
    first = shown_live(session, node)
    assert (node["show"].value(), first.parent.parent) == ("preview", tmp_path / "reenact/live")
    assert len([*first.parent.glob("*.exr")]) == 1  # one frame for the whole drag
    assert "reenact_render.R" in channels_of(str(first))
    session.module.frame(1004)  # the preview follows
    second = shown_live(session, node, str(first))
    until_said(session, node, "Frame 1004, live.")
    session.set(node, "live", False)
    session.set(node, "smile", 0.4)
    assert len(session._undo) == steps + 2  # none of ours
    session.set(node, "smile", 1.6)
    session.press(node, "submit")
    until(session, node, "running")
    until(session, node, "done")
    assert node["show"].value() == "result"
    for frame, live in ((1003, first), (1004, second)):
        result = ImageBuf(frame_file(node.node("Result")["file"].value(), frame))
        there = ImageBuf(str(live))
        assert (there.roi.xbegin, there.roi.ybegin) == (result.roi.xbegin, result.roi.ybegin)
        same(there.get_pixels()[..., :4], result.get_pixels()[..., :4])
    with server.client() as client:
        made = [job["kind"] for job in client.jobs() if job["id"] not in known]
    assert sorted(made) == ["edit", "render"]  # live frames are deleted from the server's list


def test_a_frozen_server_holds_nobody_up_and_overtaken_frames_are_not_shown(
    session: Session, server: Server, solved: Path, tmp_path: Path
) -> None:
    reenact = opened(session, solved, tmp_path)
    node = under(session, "ReenactEdit", reenact)
    shown: list[str] = []
    freeze(server)
    session.longest = 0.0
    session.set(node, "smile", 2.0)
    session.pump(lambda: work().live, 30, "a wish")
    session.set(node, "smile", -2.0)
    wished = time.monotonic() + 1.0

    def look() -> bool:
        shown.append(node.node("Preview")["file"].value())
        return time.monotonic() > wished

    session.pump(look, 30, "a second")
    assert set(shown) == {""}
    freeze(server, signal.SIGCONT)
    session.pump(lambda: look() and shown[-1], 120, "a frame")
    live = work().live[""]
    session.pump(lambda: look() and not live.busy(), 60, "the end")
    assert len(set(shown)) == 2  # nothing, then the last one
    with server.client() as client:
        kept = client.send(
            [
                reenact["track"].value(),
                reenact["character"].value(),
                str(solved / "anna.directions"),
            ]
        )
        above = plugin("upstream").shot_above(node)
        wanted = protocol.Frame(
            kept[0],
            kept[1],
            FIRST,
            above.plate,
            "",
            above.source.working,
            directions=kept[2:],
            moves=[protocol.Move("smile", "-2")],
            layer_names=2,
        )
        client.collect(client.submit(wanted), tmp_path, "wanted")
    there = ImageBuf(str(tmp_path / f"wanted_v001/wanted_v001.{FIRST}.exr"))
    same(ImageBuf(shown[-1]).get_pixels(), there.get_pixels())

    # A frame that has arrived but isn't shown yet is replaced too.
    work().request_frame(node, plugin("requests").build_request(node, FIRST + 1))
    until_time = time.monotonic() + 60
    while live.updates.empty():
        assert time.monotonic() < until_time
        time.sleep(0.01)
    work().request_frame(node, plugin("requests").build_request(node, FIRST + 2))
    session.pump(lambda: look() and f".{FIRST + 2}." in shown[-1], 60, "the last")
    assert not any(f".{FIRST + 1}." in name for name in shown)

    freeze(server)
    session.set(node, "smile", 1.0)
    until(session, node, "failed")
    assert "No Reenact server answers" in node["state"].value()
    assert node["next"].label() == "Start server"
    freeze(server, signal.SIGCONT)
    session.set(node, "smile", 1.1)
    session.pump(lambda: node["job_state"].value() == "done", 60, "a frame")
    assert node["tile_color"].value() == plugin("display").PLAIN
    print(f"held up for {session.longest:.3f} s at most")
    assert session.longest < 0.5


def test_what_is_wrong_is_said_on_the_node(
    session: Session, server: Server, solved: Path, tmp_path: Path
) -> None:
    reenact = opened(session, solved, tmp_path)
    node = under(session, "ReenactEdit")
    session.set(node, "smile", 1.0)
    until_said(session, node, "There is no Reenact node above.")
    assert node["job_state"].value() == ""  # moving a slider is no failure
    session.press(node, "submit")
    assert node["job_state"].value() == "failed"
    assert node["tile_color"].value() == plugin("display").RED
    node.setInput(0, reenact)
    session.set(node, "extra_file", str(solved / "gone.directions"))
    until_said(session, node, "gone.directions: No such file")
    assert node["next"].label() == "Try again"
    session.set(node, "extra_file", "")
    session.press(node, "next")
    until_said(session, node, f"Frame {FIRST}, live.")
    session.set(node, "brow", 1.0)  # these directions have no brow
    until_said(session, node, "There are: jaw, smile, yaw")
    session.set(node, "brow", 0.0)
    session.module.frame(LAST + 5)
    session.press(node, "preview")
    assert (
        f"Frame {LAST + 5} is not in the shot above, {FIRST}-{LAST + 1}." == node["state"].value()
    )
    session.set(node, "first", LAST + 5)
    session.set(node, "last", LAST + 9)
    session.press(node, "submit")
    assert "are not in the shot above" in node["state"].value()
    style = under(session, "ReenactStyle", reenact)
    session.press(style, "submit")
    assert "Choose a style" in style["state"].value()
    session.press(style, "make_style")
    assert "by a program, a prompt or pictures" in style["state"].value()
    nothing = under(session, "ReenactEdit", node)
    session.press(nothing, "submit")
    assert "ReenactEdit1 has no latent track yet" in nothing["state"].value()
    reenact["track"].setValue(str(tmp_path / "moved/track.latents"))
    session.press(style, "preview")
    assert "The result of Reenact1 is gone" in style["state"].value()


def test_a_copy_is_a_node_of_its_own(
    session: Session, server: Server, solved: Path, tmp_path: Path
) -> None:
    reenact = opened(session, solved, tmp_path)
    node = under(session, "ReenactEdit", reenact)
    session.set(node, "yaw", 1.0)
    first = shown_live(session, node)
    session.press(node, "submit")
    other = copy_of(session, node, tmp_path)
    other.setInput(0, reenact)
    assert other["reenact_id"].value() != node["reenact_id"].value()
    assert (other["run"].value(), other["yaw"].value()) == ("", 1.0)
    session.set(other, "yaw", -1.0)
    second = shown_live(session, other, str(first))
    until(session, node, "done")
    assert node.node("Preview")["file"].value() == first.as_posix()
    assert first.parent != second.parent
    assert first.exists()


def channels_of(frames: str, number: int = FIRST) -> set[str]:
    return set(ImageBuf(frame_file(frames, number)).spec().channelnames)


PLAIN_NAMES = {"matte.face", "parts.mouth", "render.R"}
NEW_NAMES = {in_file("matte.face"), in_file("parts.mouth"), "reenact_render.R"}


def test_older_nodes_are_submitted_again(
    session: Session, server: Server, solved: Path, tmp_path: Path
) -> None:
    """The plugin and the server are newer, the nodes' text and the ReenactComp are not."""
    new = opened(session, solved, tmp_path)
    settings = {
        knob: new[knob].value()
        for knob in ("character", "neutral", "steps", "first", "last", "handles")
    }
    pattern = new.input(0)["file"].value()
    text = (ROOT / "tests/nuke/scripts/before_layer_names.nk").read_text()
    text = text.replace("FOLDER/plate.####.exr", pattern).replace(
        "raw true\n name Plate", "name Plate"
    )
    (tmp_path / "before.nk").write_text(text.replace("FOLDER", tmp_path.as_posix()))
    session.module.scriptOpen(str(tmp_path / "before.nk"))
    reenact, edit, comp = (
        session.module.toNode(f"{k}1") for k in ("Reenact", "ReenactEdit", "ReenactComp")
    )
    reenact.input(0)["last"].setValue(LAST + 1)
    for knob, value in {**settings, "crops": True}.items():
        reenact[knob].setValue(value)
    session.press(reenact, "submit")
    until(session, reenact, "done")
    plain = reenact.node("Result")["file"].value()
    for frames in (plain, reenact.node("Crops")["file"].value()):
        assert {"matte.face", "parts.mouth"} <= channels_of(frames)
        assert not channels_of(frames) & NEW_NAMES
    session.set(reenact, "output", "render")
    assert session.look(reenact, FIRST)["red"].any()
    session.set(reenact, "output", "RGBA premultiplied")
    # A new node's frames are another version, though the solve is the same.
    new = under(session, "Reenact", reenact.input(0))
    for knob, value in {**settings, "result_name": "Reenact1"}.items():
        new[knob].setValue(value)
    session.press(new, "submit")
    until(session, new, "done")
    assert channels_of(new.node("Result")["file"].value()) >= NEW_NAMES
    assert not channels_of(new.node("Result")["file"].value()) & PLAIN_NAMES
    assert Path(new["run"].value()).name == "Reenact1_v002"
    assert load_track(new["track"].value()).hash == load_track(reenact["track"].value()).hash

    session.set(edit, "live", False)
    session.set(edit, "smile", 2.0)
    session.press(edit, "submit")
    until(session, edit, "done")
    assert channels_of(edit.node("Result")["file"].value()) >= PLAIN_NAMES
    session.press(edit, "preview")
    shown_live(session, edit)
    assert "render.R" in channels_of(edit.node("Preview")["file"].value())
    session.set(edit, "show", "result")
    looks = []
    for amount in (0.0, 1.0):  # it finds the mouth
        comp["mouth_amount"].setValue(amount)
        looks.append(session.look(comp, FIRST)["red"])
    assert np.abs(looks[1] - looks[0]).max() > 0.01

    # A version that is followed again keeps its names, also one of a plugin that wrote none.
    for node, names in ((reenact, PLAIN_NAMES), (edit, PLAIN_NAMES), (new, NEW_NAMES)):
        version = Path(node["run"].value())
        if node is not new:
            content = json.loads((version / "run.json").read_text())
            assert content.pop("layer_names") == 1
            content.get("render", {}).pop("layer_names", None)
            (version / "run.json").write_text(json.dumps(content))
        frames = sorted(version.glob("*.exr"))
        for path in frames:
            path.unlink()
        session.press(node, "resume")
        session.pump(lambda frames=frames: all(p.exists() for p in frames), 200, "the frames")
        until(session, node, "done")
        assert channels_of(node.node("Result")["file"].value()) >= names


# -- styles --------------------------------------------------------------------------------------


def test_a_style_is_drawn_by_amount_and_resolution_and_kept_by_an_edit_below(
    session: Session, server: Server, solved: Path, tmp_path: Path
) -> None:
    reenact = opened(session, solved, tmp_path)
    node = under(session, "ReenactStyle", reenact, reenact.input(0))
    node["style_amount"].fromScript("{curve L x1001 0 x1002 0 x1003 1}")
    session.set(node, "style_from", "16")
    session.module.frame(1003)
    session.set(node, "style", str(solved / "loud.style"))  # only this knob is needed
    live = shown_live(session, node)
    session.set(node, "first", 1002)
    session.set(node, "last", 1003)
    session.press(node, "submit")
    until(session, node, "running")
    until(session, node, "done")
    same(session.look(node, 1002)["red"], session.look(reenact, 1002)["red"])  # amount 0
    drawn, before = (session.look(n, 1003)["reenact_render.red"] for n in (node, reenact))
    assert np.abs(drawn - before).max() > 0.05
    session.set(node, "output_as", "over the plate")
    session.set(node, "show", "preview")
    there = session.look(node, 1003)
    session.set(node, "show", "result")
    same(session.look(node, 1003)["red"], there["red"])
    assert node.node("Preview")["file"].value() == live.as_posix()
    # Its track is a copy of the one above, in its own version.
    assert node["track"].value() != reenact["track"].value()
    assert load_track(node["track"].value()).hash == load_track(reenact["track"].value()).hash

    edit = under(session, "ReenactEdit", node)
    session.set(edit, "live", False)
    session.press(edit, "submit")  # without moves: the style stays
    until(session, edit, "done")
    same(session.look(edit, 1003)["reenact_render.red"], drawn)


def test_a_style_is_made_from_the_node_and_chosen_in_another(
    session: Session, server: Server, solved: Path, tmp_path: Path
) -> None:
    reenact = opened(session, solved, tmp_path)
    node = under(session, "ReenactStyle", reenact)
    for knob, value in {"program": "posterise", "steps": 1, "result_name": "ink"}.items():
        session.set(node, knob, value)
    session.press(node, "make_style")
    session.pump(lambda: node["style"].value(), 200, "the style")
    made = Path(node["style"].value())
    assert made == tmp_path / "reenact/ink_style_v001/ink_style_v001.style"
    assert style_info(made).parent == load_track(reenact["track"].value()).character
    shown_live(session, node)  # at once

    other = under(session, "ReenactStyle", reenact)
    session.press(other, "list_styles")
    until_said(session, other, "1 style of this character on the server.")
    rest, label = other["styles"].values()
    assert label.startswith("ink_style (")
    session.set(other, "styles", label)
    shown_live(session, other)
    fetched = Path(other["style"].value())
    assert fetched.parent == tmp_path / "reenact" / "styles"
    assert fetched.read_bytes() == made.read_bytes()
    assert other["styles"].value() == rest
    with of_character(reenact, solved / "age.directions"):  # another character
        session.press(other, "list_styles")
        until_said(session, other, "0 styles of this character")
    assert other["styles"].values() == [rest]


# -- what is sent --------------------------------------------------------------------------------


def test_directions_are_found_where_a_character_has_none(
    session: Session, server: Server, solved: Path, tmp_path: Path
) -> None:
    reenact = opened(session, solved, tmp_path)
    character = tmp_path / "new.character"
    shutil.copyfile(solved / "anna.character", character)
    node = under(session, "ReenactEdit", reenact)

    def quick(character: protocol.File) -> Any:
        return fit(character, samples=64)

    fit = protocol.FitDirections
    with (
        of_character(reenact, character),
        patch.object(shots.protocol, "FitDirections", quick),
        patch.dict(protocol.TASKS, {"fit_directions": fit}),
    ):
        session.set(node, "yaw", 1.0)
        until_said(session, node, "Finding")
        shown_live(session, node)
    assert "yaw" in load_directions(tmp_path / "new.directions").directions


def test_frames_that_the_server_has_lost_are_sent_again(server: Server, tmp_path: Path) -> None:
    paths = [tmp_path / f"p.{n}.png" for n in (1, 2, 3)]
    for i, path in enumerate(paths):
        write_png(path, np.full((4, 4, 3), 50 * i + len(str(tmp_path)) % 40, np.uint8))
    files = [protocol.File(*protocol.file_hash(path)) for path in paths]
    clip = protocol.Clip(".png", [1, 2, 3], files)
    source = shots.Source([str(p) for p in paths], [1, 2, 3])
    with server.client() as client:
        client.send(paths[:1])
        shots.send_missing_frames(client, clip, source)
        held = client.ask(protocol.Held([file.hash for file in files]))["bytes"]
        assert held == [file.size for file in files]
        changed = protocol.Clip(".png", [1], [protocol.File("a" * 64, 9)])
        with pytest.raises(ServerError, match="has changed"):
            shots.send_missing_frames(client, changed, source)


def values_of(texts: list[str], numbers: list[int]) -> np.ndarray:
    assert all(len(text) <= protocol.MAX_TEXT for text in texts)
    return np.sum([keys_of.at(keys_of.parse(text), numbers) for text in texts], axis=0)


@settings(max_examples=30, deadline=None)
@examples_of(
    st.lists(st.floats(-3, 3), min_size=1, max_size=60),
    st.lists(st.integers(1, 4), min_size=60, max_size=60),
    st.integers(2, 60),
)
def test_keyframes_are_the_curve(heights: list[float], gaps: list[int], room: int) -> None:
    numbers = (1000 + np.cumsum(gaps))[: len(heights)].tolist()
    with patch.object(keyframes, "MAX_KEYS", room):
        texts = keyframes.keyframes(numbers, heights)
    np.testing.assert_allclose(values_of(texts, numbers), heights, atol=3e-5)


def test_keyframes_of_long_shots() -> None:
    numbers = list(range(999_998_001, 1_000_000_001))
    ramp = [0.001 * n for n in range(2000)]
    assert [text.count(":") for text in keyframes.keyframes(numbers, ramp)] == [2]
    assert keyframes.keyframes(numbers, [0.5] * 2000) == ["0.5"]
    assert keyframes.keyframes([7], [0.0]) == ["0"]
    for near, count in ((1e-5, 14), (1e-3, 2)):
        smooth = [-1e-5 + float(np.sin(n / 80)) for n in range(2000)]
        texts = keyframes.keyframes(numbers, smooth, near)
        assert len(texts) <= count
        np.testing.assert_allclose(values_of(texts, numbers), smooth, atol=near + 1e-6)


def test_example_pictures_are_those_of_a_folder(
    session: Session, server: Server, solved: Path, tmp_path: Path
) -> None:
    node = under(session, "ReenactStyle", opened(session, solved, tmp_path))
    art = tmp_path / "art"
    art.mkdir()
    for i, name in enumerate(("b.png", "a.PNG")):
        write_png(art / f"{name}.png", np.full((4, 4 + i, 3), 90, np.uint8))
        (art / f"{name}.png").rename(art / name)
    (art / "notes.txt").touch()
    session.set(node, "pictures", art.as_posix())
    wanted = plugin("requests").new_style_request(node)
    with server.client() as client:
        clip = shots.send_examples(client, wanted.pictures)
        files = [protocol.File(*protocol.file_hash(art / name)) for name in ("a.PNG", "b.png")]
        assert (clip.suffix, clip.numbers, clip.files) == (".png", [1, 2], files)
        one = shots.send_examples(client, str(art / "b.png"))
        assert (one.numbers, one.files) == ([], files[1:])
        (art / "c.jpg").touch()
        with pytest.raises(ServerError, match="several kinds"):
            shots.send_examples(client, wanted.pictures)
        with pytest.raises(ServerError, match="no pictures"):
            shots.send_examples(client, str(server.folder / "keys"))


def test_files_of_a_pattern_are_listed(tmp_path: Path) -> None:
    for name in ("art.03.png", "art.11.png", "art.1.txt", "other.04.png"):
        (tmp_path / name).touch()
    assert existing_frames(str(tmp_path / "art.##.png")) == [3, 11]
    assert existing_frames(str(tmp_path / "art.%02d.png")) == [3, 11]
    assert existing_frames(str(tmp_path / "art.03.png")) == []
    with pytest.raises(ServerError, match="There is no picture"):
        existing_frames(str(tmp_path / "none.##.png"))
