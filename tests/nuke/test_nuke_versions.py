"""Tests versions in the stand-in for Nuke: choosing, comparing, approving, and Reads of them."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import nuke_standin
import numpy as np
import OpenImageIO as oiio
import pytest
from nuke_session import copy_of, open_copy, plugin, read_node, under, until, until_said, work
from nuke_standin import Node, Picture, Session
from reenact import protocol
from reenact.errors import NodeError
from repository import ROOT
from running_server import Server, inputs

from core.edit.directions import Direction, Directions, save_directions
from core.media.numbering import frame_path
from core.personalize.character import load_character
from core.solve.latent_track import load_track

FIRST, LAST = 1001, 1002


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, running: Server) -> Path:
    """Makes a script whose Reenact and ReenactEdit have two versions each, and all their files."""
    folder = tmp_path_factory.mktemp("made") / "shot"
    (folder / "given").mkdir(parents=True)
    character, pattern = inputs(folder / "given")
    who = load_character(character)
    smile = Direction((who.anchors[2] - who.anchors[0]).numpy() / 6)
    save_directions(
        character.with_suffix(".directions"), Directions({"smile": smile}, owner=who.hash)
    )
    with (
        patch.dict(os.environ, {"REENACT_HOME": str(running.folder)}),
        nuke_standin.running() as session,
    ):
        nuke = session.module
        plate = read_node(session, pattern, FIRST, LAST)
        reenact = under(session, "Reenact", plate)
        for knob, value in {
            "character": character.as_posix(),
            "neutral": "off",
            "first": FIRST,
            "last": LAST,
        }.items():
            reenact[knob].setValue(value)
        edit = under(session, "ReenactEdit", reenact, plate)
        session.set(edit, "live", False)
        nuke.scriptSaveAs(str(folder / "shot.nk"))
        for node, knob, values in ((reenact, "steps", (1, 3)), (edit, "smile", (1.0, 3.0))):
            for i, value in enumerate(values):
                session.set(node, knob, value)
                session.set(node, "crops", i == 0)
                session.press(node, "submit")
                name = f"{node.name()}_v00{i + 1}"
                shown = lambda: node["shown_version"].value() == name and not busy(node)  # noqa: B023, E731
                session.pump(shown, 200, name)
        nuke.scriptSaveAs(str(folder / "shot.nk"), True)
    return folder


def busy(node: Node) -> bool:
    run = work().run_of(node)
    return not work().updates.empty() or (run is not None and run.is_alive())


@pytest.fixture
def shot(session: Session, made: Path, tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    """Opens a copy of that script with its files; yields the Reenact and the ReenactEdit."""
    open_copy(session, made, tmp_path / "shot")
    session.module.frame(FIRST)
    nodes = session.module.toNode("Reenact1"), session.module.toNode("ReenactEdit1")
    ready(session, *nodes)
    yield nodes
    session.pump(lambda: not any(busy(n) for n in nodes if n._attached), 60, "the end")


def ready(session: Session, *nodes: Node) -> None:
    session.pump(lambda: all(node["ready"].value() for node in nodes), 10, "nodes")


def reopened(session: Session, node: Node, path: Path) -> Node:
    """Saves the script and opens it again; returns the node."""
    name = node.name()
    session.module.scriptSaveAs(str(path), True)
    session.module.scriptOpen(str(path))
    node = session.module.toNode(name)
    ready(session, node)
    return node


def shows(session: Session, node: Node, version: str) -> None:
    """Asserts that a version is what is shown and handed on, in all that a node says of it."""
    folder = Path(session.module.root()["name"].value()).parent / "reenact" / version
    assert node["shown_version"].value() == node["version"].value() == version
    assert Path(node["track"].value()) == folder / "track.latents"
    track = load_track(folder / "track.latents")
    errors = zip(track.numbers, track.quality["keypoint_error"], strict=True)
    for number, error in errors if node.knob("keypoint_error") else ():
        assert node["keypoint_error"].valueAt(number) == pytest.approx(float(error), rel=1e-4)
    for frame in (FIRST, LAST):
        same(session.look(node, frame), frames_of(session, folder, frame))
    below = under(session, "ReenactEdit", node)
    assert Path(plugin("upstream").shot_above(below).track) == folder / "track.latents"
    session.module.delete(below)


def frames_of(session: Session, version: Path, frame: int) -> Picture:
    """Returns a version's frame as a plain Read shows it."""
    read = read_node(session, str(version / f"{version.name}.####.exr"), FIRST, LAST)
    read["raw"].setValue(True)
    picture = session.look(read, frame)
    session.module.delete(read)
    return picture


def same(a: Picture, b: Picture) -> None:
    assert sorted(a) == sorted(b)
    for channel in a:
        np.testing.assert_array_equal(a[channel], b[channel], channel)


# -- choosing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("which", "keeps"), [(0, True), (1, True), (1, False)])
def test_each_version_is_shown_and_handed_on_also_after_opening(
    session: Session, shot: tuple[Node, Node], tmp_path: Path, which: int, keeps: bool
) -> None:
    session.keeps_items = keeps
    node, path = shot[which], tmp_path / "shot" / "shot.nk"
    names = [f"{node.name()}_v001", f"{node.name()}_v002"]
    assert node["version"].values() == ["upstream", *names]
    shows(session, node, names[1])
    assert not node["has_crops"].value()
    a, b = (frames_of(session, path.parent / "reenact" / name, FIRST) for name in names)
    assert not np.array_equal(a["red"], b["red"])

    session.set(node, "version", names[0])
    shows(session, node, names[0])
    assert node["state"].value() == f"Shows {names[0]}."
    session.set(node, "output_as", "aligned crop")
    assert session.look(node, FIRST)["red"].shape == (64, 64)
    session.set(node, "version", names[1])
    shows(session, node, names[1])  # it was made without crops
    session.set(node, "output_as", "RGBA premultiplied")
    session.set(node, "version", names[0])

    text = path.read_text()
    node = reopened(session, node, path)
    assert f"version {names[0]}" in path.read_text() != text
    assert node["version"].values() == ["upstream", *names]
    assert not session.module.modified()
    shows(session, node, names[0])


@pytest.mark.parametrize("keeps", [True, False])
def test_upstream_passes_on_what_comes_in(
    session: Session, shot: tuple[Node, Node], tmp_path: Path, keeps: bool
) -> None:
    session.keeps_items = keeps
    reenact, edit = shot
    below = under(session, "ReenactStyle", edit)
    upstream = plugin("upstream")
    session.set(edit, "version", "upstream")
    for _ in range(2):  # before and after opening
        same(session.look(edit, FIRST), session.look(reenact, FIRST))
        assert upstream.upstream(below).track == reenact["track"].value()
        edit = reopened(session, edit, tmp_path / "shot" / "shot.nk")
        reenact, below = edit.input(0), session.module.toNode("ReenactStyle1")
        assert edit["version"].value() == "upstream"
    session.set(reenact, "version", "upstream")
    assert reenact["keypoint_error"].valueAt(FIRST) == 0
    same(session.look(edit, FIRST), session.look(reenact.input(0), FIRST))
    with pytest.raises(NodeError, match="Reenact1 shows what comes in"):
        upstream.upstream(below)
    session.set(edit, "version", "ReenactEdit1_v001")
    shows(session, edit, "ReenactEdit1_v001")
    new = under(session, "ReenactEdit", under(session, "ReenactEdit", edit))
    with pytest.raises(NodeError, match="ReenactEdit2 has no latent track yet"):
        upstream.upstream(new)


def whole_state(session: Session, node: Node) -> dict[str, object]:
    """Returns what a node shows and says."""
    knobs = ("version", "shown_version", "track", "state", "tile", "has_crops", "compare")
    inside = {n: node.node(n)["file"].toScript() for n in ("Result", "Crops", "Compare")}
    return {k: node[k]._text() for k in (*knobs, "compared_version", "has_compare")} | inside


@pytest.mark.parametrize("calls", [True, False])
def test_undo_takes_back_all_that_follows_a_choice(
    session: Session, shot: tuple[Node, Node], calls: bool
) -> None:
    node = shot[0]
    session.calls_for_programs = calls
    errors = node["keypoint_error"]._text()
    states = [whole_state(session, node)]
    for knob, value in (
        *(("version", "Reenact1_v001"), ("compare", "Reenact1_v002")),
        *(("version", "upstream"), ("version", "Reenact1_v002"), ("compare", "nothing")),
    ):
        steps = len(session._undo)
        session.set(node, knob, value)
        assert len(session._undo) == steps + 1
        states.append(whole_state(session, node))
        assert states[-1] != states[-2]
    for state in reversed(states[:-1]):
        steps = len(session._undo)
        session.module.undo()
        assert whole_state(session, node) == state
        assert len(session._undo) == steps - 1
    assert node["keypoint_error"]._text() == errors
    shows(session, node, "Reenact1_v002")


@pytest.mark.parametrize("calls", [True, False])
def test_a_choice_that_nuke_does_not_tell_of_is_shown_where_it_matters(
    session: Session, shot: tuple[Node, Node], calls: bool
) -> None:
    """A program may set the menus, and an undo of the menu alone does the same."""
    reenact, edit = shot
    session.calls_for_programs = calls
    folder = Path(reenact["track"].value()).parents[1]
    reenact["version"].setValue("Reenact1_v001")
    assert (reenact["shown_version"].value() == "Reenact1_v001") == calls
    above = plugin("upstream").upstream(edit)  # as every request of a node below asks for it
    assert above.track == (folder / "Reenact1_v001" / "track.latents").as_posix()
    shows(session, reenact, "Reenact1_v001")
    edit["version"].setValue("ReenactEdit1_v001")
    edit["compare"].setValue("ReenactEdit1_v002")
    session.press(edit, "create_read")
    assert edit["compared_version"].value() == "ReenactEdit1_v002"
    edit["compare"].setValue("nothing")
    session.press(edit, "create_read")
    shows(session, edit, "ReenactEdit1_v001")
    read = session.module.toNode(edit["read_name"].value())
    assert "ReenactEdit1_v001" in read["file"].value()
    reenact["version"].setValue("upstream")
    with pytest.raises(NodeError, match="Reenact1 shows what comes in"):
        plugin("upstream").upstream(reenact, [reenact])


@pytest.mark.parametrize("keeps", [True, False])
def test_a_terminal_shows_what_a_program_chooses(made: Path, tmp_path: Path, keeps: bool) -> None:
    open_folder = tmp_path / "shot"
    for gui in (True, False):
        with nuke_standin.running(gui) as session:
            session.keeps_items = keeps
            if gui:
                open_copy(session, made, open_folder)
                ready(session, session.module.toNode("ReenactEdit1"))
                session.module.scriptSaveAs(str(open_folder / "shot.nk"), True)
                continue
            session.module.scriptOpen(str(open_folder / "shot.nk"))
            reenact, edit = (session.module.toNode(n) for n in ("Reenact1", "ReenactEdit1"))
            track = reenact["track"].value()
            assert plugin("upstream").upstream(edit).track == track  # no menu says otherwise
            if keeps:
                reenact["version"].setValue("Reenact1_v001")
                track = track.replace("Reenact1_v002", "Reenact1_v001")
            session.press(edit, "create_read")
            assert plugin("upstream").upstream(edit).track == track
            assert edit["version"].value() == "ReenactEdit1_v002"


@pytest.mark.parametrize("which", ["gone", "never saved"])
def test_a_menu_says_what_is_shown_where_the_versions_are_not_to_be_had(
    session: Session, shot: tuple[Node, Node], tmp_path: Path, which: str
) -> None:
    """Otherwise the next button would show what comes in."""
    session.keeps_items = False
    path, edit = tmp_path / "shot" / "shot.nk", shot[1]
    if which == "gone":
        edit["folder"].setValue((tmp_path / "offline").as_posix())
    else:
        edit["folder"].setValue("relative")
    track = edit["track"].value()
    edit["version"]._given = ["upstream"]  # as its gizmo defines it
    edit = reopened(session, edit, path)
    assert edit["version"].values() == ["upstream", "ReenactEdit1_v002"]
    session.press(edit, "create_read")
    assert (edit["version"].value(), edit["track"].value()) == ("ReenactEdit1_v002", track)


@pytest.mark.parametrize("knob", ["version", "compare"])
def test_a_version_that_is_gone_is_said_and_what_is_shown_stays(
    session: Session, shot: tuple[Node, Node], tmp_path: Path, knob: str
) -> None:
    edit = shot[1]
    shutil.rmtree(tmp_path / "shot" / "reenact" / "ReenactEdit1_v001")
    session.set(edit, knob, "ReenactEdit1_v001")
    assert "There is no ReenactEdit1_v001 in" in edit["state"].value()
    assert edit["version"].values() == ["upstream", "ReenactEdit1_v002"]
    assert edit["shown_version"].value() == edit["version"].value() == "ReenactEdit1_v002"
    assert not edit["has_compare"].value()


def test_a_version_knows_its_own_character(
    session: Session, shot: tuple[Node, Node], tmp_path: Path
) -> None:
    """The one that it was made with, which came through a pipe, and not the next one's."""
    reenact, edit = shot
    mine = reenact["character"].value()
    person = under(session, "ReenactPersonalize", reenact.input(0))
    reenact["character"].setValue("")
    reenact.setInput(1, person)
    shot_above = plugin("upstream").shot_above
    assert shot_above(edit).character == mine
    person["character"].setValue("/faces/another.character")
    session.set(reenact, "version", "Reenact1_v001")
    assert (shot_above(edit).character, reenact["character"].value()) == (mine, "")
    moved = tmp_path / "moved.character"
    shutil.move(mine, moved)
    with pytest.raises(NodeError, match="The character of Reenact1 is gone"):
        shot_above(edit)
    reenact["character"].setValue(moved.as_posix())
    assert shot_above(edit).character == moved.as_posix()


def test_a_copy_lists_what_it_shows_and_makes_versions_of_its_own(
    session: Session, server: Server, shot: tuple[Node, Node], tmp_path: Path
) -> None:
    reenact, edit = shot
    session.press(edit, "approve")
    session.press(edit, "create_read")
    copy = copy_of(session, edit, tmp_path)
    copy.setInput(0, reenact)
    ready(session, copy)
    assert copy["version"].values() == ["upstream", "ReenactEdit1_v002"]
    shows(session, copy, "ReenactEdit1_v002")
    assert copy["approved"].value() == copy["read_name"].value() == ""
    assert edit["approved"].value() == "ReenactEdit1_v002"
    session.set(copy, "smile", -2.0)
    session.press(copy, "submit")
    until_said(session, copy, "ReenactEdit2_v001: 2 frames")
    assert copy["version"].values() == ["upstream", "ReenactEdit1_v002", "ReenactEdit2_v001"]
    assert edit["version"].values() == ["upstream", "ReenactEdit1_v001", "ReenactEdit1_v002"]
    shows(session, copy, "ReenactEdit2_v001")


# -- comparing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1])
def test_two_versions_are_compared_in_the_viewer_and_not_in_a_render(
    session: Session, shot: tuple[Node, Node], tmp_path: Path, which: int
) -> None:
    session.keeps_items = which == 0
    node, folder = shot[which], tmp_path / "shot" / "reenact"
    old, new = (f"{node.name()}_v00{n}" for n in (1, 2))
    assert node["compare"].values() == ["nothing", old, new]
    left, right = (frames_of(session, folder / name, FIRST) for name in (new, old))
    session.set(node, "compare", old)
    assert session.label(node).startswith("wipe\n")
    width = left["red"].shape[1]
    for wipe in (0.5, 0.3, 0.0, 1.0):
        session.set(node, "wipe", wipe)
        seen, edge = session.look(node, FIRST), int(wipe * width)
        assert sorted(seen) == sorted(left)  # all layers
        for channel, pixels in seen.items():
            np.testing.assert_array_equal(pixels[:, :edge], left[channel][:, :edge])
            np.testing.assert_array_equal(pixels[:, edge:], right[channel][:, edge:])
    session.set(node, "wipe", 0.5)
    session.set(node, "output_as", "over the plate")
    assert not np.array_equal(
        session.look(node, FIRST)["red"][:, width // 2 :], left["red"][:, width // 2 :]
    )
    session.set(node, "output_as", "RGBA premultiplied")

    node = reopened(session, node, tmp_path / "shot" / "shot.nk")
    assert (node["compare"].value(), node["compare"].values()) == (old, ["nothing", old, new])
    np.testing.assert_array_equal(session.look(node, FIRST)["red"][:, -1], right["red"][:, -1])
    write = under(session, "Write", node)
    for knob, value in {
        "file": (tmp_path / "out.####.exr").as_posix(),
        "file_type": "exr",
        "raw": True,
    }.items():
        write[knob].setValue(value)
    session.module.execute(write, FIRST, FIRST)
    pixels = oiio.ImageBuf(str(tmp_path / f"out.{FIRST}.exr")).get_pixels()
    np.testing.assert_array_equal(pixels[..., 0], left["red"])

    session.set(node, "compare", "nothing")
    same(session.look(node, FIRST), left)
    assert not session.label(node).startswith("wipe")


# -- approving -----------------------------------------------------------------------------------


def test_an_approved_version_stays_beside_new_ones(
    session: Session, server: Server, shot: tuple[Node, Node], tmp_path: Path
) -> None:
    edit = shot[1]
    folder = tmp_path / "shot" / "reenact"
    approved, new = "ReenactEdit1_v002", "ReenactEdit1_v003"
    session.press(edit, "approve")
    until_said(session, edit, f"{approved} is approved")
    assert session.label(edit).startswith("approved\n")
    note = json.loads((folder / approved / "approved.json").read_text())
    track = folder / approved / "track.latents"
    assert note["tracks"] == {"track.latents": protocol.file_hash(track)[0]}
    assert (note["node"], note["node_id"]) == ("ReenactEdit1", edit["reenact_id"].value())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", note["when"])
    assert "who" in note

    session.set(edit, "smile", -3.0)
    session.set(edit, "crops", True)
    before = {n: edit.node(n)["file"].value() for n in ("Result", "Crops")}
    session.press(edit, "submit")
    text = f"{new} is ready. The approved {approved} stays: choose {new} under version."
    until_said(session, edit, text)
    session.pump(lambda: not busy(edit), 60, "the crops")
    assert edit["state"].value() == text
    assert before == {n: edit.node(n)["file"].value() for n in before}
    shows(session, edit, approved)
    assert edit["version"].values()[-1] == edit["compare"].values()[-1] == new
    edit = reopened(session, edit, tmp_path / "shot" / "shot.nk")
    assert edit["approved"].value() == approved
    shows(session, edit, approved)

    session.set(edit, "version", new)  # the artist may look at it
    shows(session, edit, new)
    assert not session.label(edit).startswith("approved")
    session.press(edit, "approve")
    until_said(session, edit, f"{new} is approved")
    assert edit["approved"].value() == new
    assert not (folder / approved / "approved.json").exists()
    assert (folder / new / "approved.json").exists()
    session.press(edit, "approve")  # withdraws it
    until_said(session, edit, f"{new} is not approved any more.")
    assert (edit["approved"].value(), [*folder.glob("*/approved.json")]) == ("", [])
    session.set(edit, "smile", 0.5)
    session.press(edit, "submit")
    session.pump(lambda: edit["shown_version"].value() == "ReenactEdit1_v004", 200, "v004")
    session.pump(lambda: not busy(edit), 60, "the crops")
    shows(session, edit, "ReenactEdit1_v004")


def test_only_a_version_can_be_approved(session: Session, shot: tuple[Node, Node]) -> None:
    reenact, edit = shot
    session.set(edit, "version", "upstream")
    for button in ("approve", "create_read"):
        session.press(edit, button)
        assert edit["state"].value() == (
            "No version is shown. Submit the node, or choose a version."
        )
    shutil.rmtree(Path(reenact["track"].value()).parent)
    session.press(reenact, "approve")
    until_said(session, reenact, "Nothing was approved.")
    assert reenact["approved"].value() == ""


# -- Reads ---------------------------------------------------------------------------------------


def test_a_read_of_the_version_is_put_below_and_set_again(
    session: Session, shot: tuple[Node, Node], tmp_path: Path
) -> None:
    nuke, edit = session.module, shot[1]
    steps = len(session._undo)
    session.press(edit, "create_read")
    read = nuke.toNode(edit["read_name"].value())
    assert len(session._undo) == steps + 1
    assert (read.Class(), read.input(0)) == ("Read", None)
    values = {
        "file": edit.node("Result")["file"].value(),
        **dict.fromkeys(("first", "origfirst"), FIRST),
        **dict.fromkeys(("last", "origlast"), LAST),
        **dict.fromkeys(("before", "after"), "black"),
        **dict.fromkeys(("raw", "origset"), True),
        "localizationPolicy": "off",
        "label": "ReenactEdit1\nReenactEdit1_v002",
    }
    assert {knob: read[knob].value() for knob in values} == values
    same(session.look(read, LAST), session.look(edit, LAST))
    assert (read.xpos(), read.ypos() > edit.ypos()) == (edit.xpos(), True)

    session.set(edit, "version", "ReenactEdit1_v001")
    steps = len(session._undo)
    session.press(edit, "create_read")
    assert nuke.toNode(edit["read_name"].value()) is read
    same(session.look(read, LAST), session.look(edit, LAST))
    assert read["label"].value() == "ReenactEdit1\nReenactEdit1_v001"
    assert len(session._undo) == steps + 1
    nuke.undo()
    assert read["file"].value() == values["file"]

    edit = reopened(session, edit, tmp_path / "shot" / "shot.nk")
    read = nuke.toNode(edit["read_name"].value())
    session.press(edit, "create_read")
    assert nuke.toNode(edit["read_name"].value()) is read
    session.set(read, "file", frame_path(str(tmp_path / "other.####.exr"), FIRST))  # the artist's
    session.press(edit, "create_read")
    second = nuke.toNode(edit["read_name"].value())
    assert second is not read
    assert read["file"].value() == str(tmp_path / f"other.{FIRST}.exr")
    nuke.delete(second)
    session.press(edit, "create_read")
    third = nuke.toNode(edit["read_name"].value())
    assert third["file"].value() == edit.node("Result")["file"].value()


# -- scripts of the version before ---------------------------------------------------------------


def same_colours(a: Picture, b: Picture) -> None:
    """Asserts the same RGBA: the layers of nodes of version 2 have other names."""
    for channel in ("red", "green", "blue", "alpha"):
        np.testing.assert_array_equal(a[channel], b[channel], channel)


def as_version_2(name: str) -> str:
    """Returns a gizmo's text without what was added after node version 2."""
    text = (ROOT / "gizmos" / f"{name}.gizmo").read_text()
    added = ["ready", "node_version", "tile", "approve", "compare", "wipe", "create_read"]
    added += ["approved", "has_compare", "compared_version", "read_name", "shown_version", "update"]
    added += ["server"] + ["version"] * (name != "ReenactRepair")
    for knob in added:
        text = re.sub(rf"^ addUserKnob \{{\d+ {knob} .*\n( {knob} .*\n)?", "", text, flags=re.M)
    text = re.sub(r"^ label .*\n", ' label "\\\\[value state]"\n', text, flags=re.M)
    text = re.sub(r"\boutput_as\b", "output", text)
    text = re.sub(r"which \{\{\$gui\*parent.has_compare\}\}", "which 0", text)
    text = re.sub(r"^  box .*\n", "", text, flags=re.M)
    shown = r"which \{\{\(parent.has_result\|\|.*\}\}"
    by_menu = "which {{(parent.version>0)*(parent.output+1)}}"
    by_result = "which {{parent.has_result*(parent.output+1)}}"
    return re.sub(shown, by_menu if name == "ReenactRepair" else by_result, text)


def test_nodes_of_version_2_work_as_they_did_and_are_updated(
    session: Session, server: Server, shot: tuple[Node, Node], tmp_path: Path
) -> None:
    nuke, (reenact, edit) = session.module, shot
    session._read_text(as_version_2("ReenactEdit"))
    old = nuke.toNode("ReenactEdit")
    assert old.knob("version") is old.knob("shown_version") is None
    old.setInput(0, reenact)
    old["live"].setValue(False)
    old["folder"].setValue((tmp_path / "old").as_posix())
    with pytest.raises(NodeError, match="no latent track yet"):
        plugin("upstream").upstream(under(session, "ReenactStyle", old))
    old["smile"].setValue(3.0)
    session.press(old, "submit")
    until(session, old, "done")
    same_colours(session.look(old, FIRST), session.look(edit, FIRST))
    assert Path(old["track"].value()) == tmp_path / "old/ReenactEdit_v001/track.latents"
    (mark,) = (tmp_path / "old/ReenactEdit_v001").glob(".node-*")
    mark.unlink()  # as the version of then has left it
    plugin("nodes").update(old)
    session.pump(lambda: not work()._deferred, 10, "the update")
    new = nuke.toNode("ReenactEdit")
    assert new["shown_version"].value() == new["version"].value() == "ReenactEdit_v001"
    assert new["version"].values() == ["upstream", "ReenactEdit_v001"]
    same_colours(session.look(new, FIRST), session.look(edit, FIRST))
    session.set(new, "version", "upstream")
    same(session.look(new, FIRST), session.look(reenact, FIRST))


def test_a_repair_of_version_2_shows_what_its_menu_says(
    session: Session, server: Server, shot: tuple[Node, Node], tmp_path: Path
) -> None:
    nuke, (reenact, _) = session.module, shot
    session._read_text(as_version_2("ReenactRepair"))
    old = nuke.toNode("ReenactRepair")
    assert (old["version"].values(), old.knob("shown_version")) == (["upstream"], None)
    old.setInput(0, reenact)
    old["folder"].setValue((tmp_path / "old").as_posix())
    same(session.look(old, FIRST), session.look(reenact, FIRST))
    old["repairs"].setValue(f"hold {LAST} from {FIRST}")
    session.press(old, "submit")
    until(session, old, "done")
    assert old["version"].value() == "ReenactRepair_v001"
    version = tmp_path / "old" / "ReenactRepair_v001"
    same(session.look(old, LAST), frames_of(session, version, LAST))
    below = under(session, "ReenactStyle", old)
    upstream = plugin("upstream").upstream
    assert upstream(below).track == (version / "track.latents").as_posix()
    session.set(old, "version", "upstream")
    same(session.look(old, LAST), session.look(reenact, LAST))
    assert upstream(below).track == reenact["track"].value()
    session.set(old, "version", "ReenactRepair_v001")
    plugin("nodes").update(old)
    session.pump(lambda: not work()._deferred, 10, "the update")
    new = nuke.toNode("ReenactRepair")
    assert new["version"].values() == ["upstream", "ReenactRepair_v001"]
    assert new["shown_version"].value() == new["version"].value() == "ReenactRepair_v001"
    shown, read = session.look(new, LAST), frames_of(session, version, LAST)
    same({channel: shown[channel] for channel in read}, read)
    assert shown.keys() - read.keys() == {f"reenact_{c}" for c in read if "." in c} - {
        f"reenact_{c}" for c in read if c.startswith("forward.")
    }
    assert upstream(below).track == (version / "track.latents").as_posix()
