"""Tests the nodes in the stand-in for Nuke, with real sockets, a real server and real pictures."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock, patch

import nuke_standin
import numpy as np
import pytest
from nuke_session import (
    copy_of,
    plugin,
    read_node,
    request_of,
    slow,
    state,
    under,
    until,
    until_said,
    work,
)
from nuke_standin import Node, Session
from OpenImageIO import UINT8, ImageBuf
from performer_faces import film_scan
from reenact import __version__, client, launcher, live, protocol, queries, runs, thumbnails
from reenact import channel as channel_module
from reenact.errors import NodeError
from reenact.files import Frames
from repository import ROOT
from running_server import FRAMES, Server, inputs, wait_for

from core.media import colour
from core.media.numbering import frame_path
from core.media.read import open_clip, read_frame
from core.personalize.character import load_character
from core.solve.latent_track import load_track
from server.frontend import home

FIRST, LAST = 1001, 1000 + FRAMES
GIZMOS = ROOT / "gizmos"


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Returns a character's file and a driving clip's pattern."""
    return inputs(tmp_path_factory.mktemp("given"))


def shot(session: Session, given: tuple[Path, str], folder: Path, **knobs: Any) -> Node:
    """Saves a script with a Read of the driving clip and a Reenact below; returns the Reenact."""
    nuke = session.module
    nuke.root()["first_frame"].setValue(FIRST)
    nuke.root()["last_frame"].setValue(LAST)
    nuke.frame(FIRST)
    node = under(session, "Reenact", read_node(session, given[1], FIRST, LAST))
    for knob, value in {"character": str(given[0]), **knobs}.items():
        node[knob].setValue(value)
    nuke.scriptSaveAs(str(folder / "shot.nk"), True)
    return node


# -- from the plate to the result ----------------------------------------------------------------


def test_a_plate_becomes_frames_under_the_node(
    session: Session,
    server: Server,
    given: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Meanwhile the node is renamed and copied, and its copy is deleted."""
    nuke = session.module
    node = shot(
        session,
        given,
        tmp_path,
        first=FIRST,
        last=FIRST + 2,
        handles=1,
        crops=True,
        result_name="anna",
    )
    plate = session.look(node, FIRST)  # it shows the plate until there is a result
    host = plugin("host")
    landed: list[tuple[str, int]] = []

    def show_files(read: Node, frames: Frames, *how: bool) -> None:
        landed.append((read.name(), frames.last))
        show(read, frames, *how)

    show = host.show_files
    monkeypatch.setattr(host, "show_files", show_files)
    states: list[str] = []

    def put(node: Node, knob: str, value: object, *how: bool, **quiet: bool) -> None:
        if knob == "job_state":
            states.append(str(value))
        put_it(node, knob, value, *how, **quiet)

    put_it = host.put
    monkeypatch.setattr(host, "put", put)
    session.press(node, "submit")
    until(session, node, "running")
    steps = len(session._undo)
    node.setName("Anna")
    copy = copy_of(session, node, tmp_path)
    assert copy["reenact_id"].value() != node["reenact_id"].value()
    assert (copy["state"].value(), copy["run"].value()) == ("Not submitted.", "")
    nuke.delete(copy)
    assert len(session._undo) == steps + 2  # the copy and its end, none of ours
    until(session, node, "done")
    assert states.count("done") == 1  # not before the crops are there too
    assert node["has_crops"].value()
    assert landed[0] == ("Result", FIRST)  # as soon as there was one
    assert ("Result", FIRST + 2) in landed

    run = Path(node["run"].value())
    assert run == tmp_path / "reenact" / "anna_v001"
    track = load_track(node["track"].value())
    assert track.numbers.tolist() == [FIRST, FIRST + 1, FIRST + 2, FIRST + 3]  # and a handle
    for number, error in zip(track.numbers, track.quality["keypoint_error"], strict=True):
        assert node["keypoint_error"].valueAt(number) == pytest.approx(float(error), rel=1e-5)
    made = sorted(p.name for p in run.glob("*.exr"))
    assert made == [f"anna_v001.{n}.exr" for n in range(FIRST, FIRST + 3)]
    assert node.node("Result")["file"].value() == f"{run.as_posix()}/anna_v001.%04d.exr"

    exr = ImageBuf(str(run / made[0]))
    # The plate is an sRGB file; the result is in the script's working space.
    assert exr.spec().getattribute("reenact:colourSpace") == colour.resolve("lin_rec709")
    assert exr.spec().full_width == plate["red"].shape[1]
    shown = session.look(node, FIRST)
    there = exr.roi
    inside = np.s_[there.ybegin : there.yend, there.xbegin : there.xend]
    np.testing.assert_array_equal(shown["alpha"][inside], exr.get_pixels()[..., 3])
    assert 0 < (shown["alpha"] > 0.9).mean() < 0.9
    session.set(node, "output_as", "over the plate")
    over = session.look(node, FIRST)
    outside = shown["alpha"] == 0
    for channel in ("red", "green", "blue"):
        np.testing.assert_array_equal(over[channel][outside], plate[channel][outside])
        assert not np.allclose(over[channel][~outside], plate[channel][~outside], atol=0.02)
    session.set(node, "output_as", "render")
    np.testing.assert_array_equal(session.look(node, FIRST)["red"], shown["reenact_render.red"])
    session.set(node, "output_as", "aligned crop")
    assert session.look(node, FIRST)["red"].shape == (64, 64)

    session.press(node, "submit")  # the same request: the same version, nothing new
    until(session, node, "done")
    assert node["run"].value() == str(run)
    nuke.scriptSaveAs(str(tmp_path / "shot.nk"), True)
    nuke.scriptOpen(str(tmp_path / "shot.nk"))
    again = nuke.toNode("Anna")
    np.testing.assert_array_equal(session.look(again, FIRST)["red"].shape, (64, 64))
    session.set(again, "output_as", "RGBA premultiplied")
    np.testing.assert_array_equal(session.look(again, FIRST)["alpha"], shown["alpha"])


def test_a_preview_is_shown_beside_the_result(
    session: Session, server: Server, given: tuple[Path, str], tmp_path: Path
) -> None:
    node = shot(session, given, tmp_path, neutral="off")
    session.module.frame(FIRST + 3)
    session.press(node, "preview")
    until(session, node, "done")
    assert node["show"].value() == "preview"
    run = Path(node["run"].value())
    assert run.name == "Reenact1_preview_v001"
    (frame,) = run.glob("*.exr")
    assert "reenact_render.R" in ImageBuf(str(frame)).spec().channelnames
    shown, plate = session.look(node, FIRST + 3), session.look(node.input(0), FIRST + 3)
    assert not np.array_equal(shown["red"], plate["red"])
    session.set(node, "show", "result")
    np.testing.assert_array_equal(session.look(node, FIRST + 3)["red"], plate["red"])


def test_a_scan_becomes_a_character_that_the_next_node_finds(
    session: Session, server: Server, given: tuple[Path, str], tmp_path: Path
) -> None:
    pattern = film_scan(tmp_path, 20)
    driving = shot(session, given, tmp_path)
    scan = read_node(session, pattern, 1, 20)
    node = under(session, "ReenactPersonalize", scan)
    session.press(node, "submit")
    assert "agreed" in node["state"].value()  # nothing is submitted without consent
    for knob, value in {
        "who": "nobody: synthetic",
        "agreed": True,
        "refine": 1,
        "result_name": "Anna B.",
    }.items():
        session.set(node, knob, value)
    for quality, count, steps in (("preview", 60, 300), ("production", 250, 2000)):
        session.set(node, "quality", quality)
        settings = request_of(node).settings
        assert (settings["count"], settings["steps"]) == (count, steps)
    for resolution, asked in (("auto", None), ("1024", 1024), ("128", 128)):
        session.set(node, "resolution", resolution)
        assert request_of(node).settings["resolution"] == asked
    for knob, value in {"count": 8, "steps": 3}.items():
        session.set(node, knob, value)
    session.press(node, "submit")
    until(session, node, "done")
    made = Path(node["character"].value())
    assert made == tmp_path / "reenact/Anna_B__v001/Anna_B__v001.character"
    picture = thumbnails.picture_path(made)
    assert node["thumbnail"].value() == f'<img src="{picture}" width="128">'
    seen = ImageBuf(str(picture)).get_pixels(UINT8)
    np.testing.assert_array_equal(seen, load_character(made).thumbnail)
    session.set(node, "show", "chosen frames")
    sheet = ImageBuf(str(made.parent / "selection.png"))
    assert session.look(node, 1)["red"].shape == (sheet.roi.height, sheet.roi.width)

    session.press(driving, "list_characters")
    session.pump(lambda: len(driving["characters"].values()) > 1, 60, "the list")
    session.set(driving, "characters", driving["characters"].values()[1])
    assert driving["characters"].values() == ["on the server..."]  # and nobody's name is saved
    session.pump(lambda: "is here" in driving["state"].value(), 60, "the character")
    fetched = Path(driving["character"].value())
    assert fetched.parent == tmp_path / "reenact" / "characters"
    assert fetched.read_bytes() == made.read_bytes()
    assert thumbnails.picture_path(fetched).read_bytes() == picture.read_bytes()
    assert str(thumbnails.picture_path(fetched)) in driving["thumbnail"].value()


# -- what the knobs do ---------------------------------------------------------------------------


def test_the_picture_of_a_character_replaces_nobodys(
    session: Session, given: tuple[Path, str], tmp_path: Path
) -> None:
    character, photo = tmp_path / "anna.character", tmp_path / "anna.png"
    shutil.copyfile(given[0], character)
    photo.write_bytes(b"a photo")
    node = under(session, "Reenact")
    session.picked = str(character)
    session.press(node, "choose_character")
    assert "anna.character.png" in node["thumbnail"].value()
    assert (tmp_path / "anna.character.png").is_file()
    assert photo.read_bytes() == b"a photo"


def test_what_is_not_there_is_not_opened(session: Session, tmp_path: Path) -> None:
    """A desktop that is asked to open nothing says nothing."""
    node = under(session, "ReenactPersonalize")
    session.module.scriptSaveAs(str(tmp_path / "shot.nk"), True)
    with patch.object(subprocess, "Popen", side_effect=AssertionError("opened")):
        session.press(node, "open_results")
        assert node["state"].value() == "There are no results yet. Press Submit."
        session.press(node, "open_sheet")
        assert node["state"].value().startswith("No frames were chosen yet.")
        node["run"].setValue(str(tmp_path / "gone"))
        session.press(node, "open_results")
        assert node["state"].value() == f"There is no {tmp_path / 'gone'}."


@pytest.mark.parametrize("kind", sorted(p.stem for p in GIZMOS.glob("*.gizmo")))
def test_every_button_of_a_new_node_says_what_it_lacks(
    session: Session, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the shipped text, and without an input, a saved script, a server or the plugin."""
    opened: list[Path] = []
    monkeypatch.setattr(launcher, "open_path", opened.append)
    monkeypatch.setenv("REENACT_HOME", str(tmp_path / "nobody"))
    node = session.module.createNode(kind)
    said = node["state" if node.knob("state") else "baked"]
    buttons = [knob for knob in node.knobs().values() if knob.Class() == "PyScript_Knob"]
    # What these do is seen elsewhere: a knob changes, or a window asks.
    speechless = {"all_views", "add_repair", "clear_repairs"} | {
        button.name() for button in buttons if button.name().startswith("choose_")
    }

    def quiet() -> bool:
        return work().updates.empty() and not any(q.is_alive() for q in work().queries)

    for button in buttons:
        if button.visible() and button.name() != "update":  # that makes another node
            said.setValue("")
            session.press(node, button.name())
            session.pump(quiet, 60, "the answer")
            assert said.value().endswith(".") or button.name() in speechless, button.name()
    assert opened == session.messages == []
    if kind != "ReenactComp":
        assert node["versions"].value() == f"plugin {__version__}, protocol 1, Nuke 15.1v3"
        id = node["reenact_id"].value()
        failure = runs.NodeUpdate(id, "failed", "It failed.", "log")
        plugin("display").show_update(node, failure)
        assert node["next"].label() == "Show log"
        session.press(node, "next")
        assert opened == [tmp_path / "nobody/store/logs/server.log"]
    with patch.dict("sys.modules", {"reenact.nodes": None}):
        for button in buttons:
            button.execute()
    assert len(session.messages) == len(buttons)
    assert all("plugin does not load" in message for message in session.messages)


def test_progress_is_stage_loss_and_time_left() -> None:
    event = {"stage": "tuning", "done": 300, "total": 1200, "figures": {"loss": 0.01234}}
    text = "Tuning: 300 of 1200, loss 0.0123"
    assert runs.progress_text(event, 130.0, (100.0, 0.0)) == f"{text}, 90 s left"
    assert runs.progress_text(event, 400.0, (100.0, 0.0)) == f"{text}, 15 min left"
    assert runs.progress_text(event, 400.0, (100.0, 300.0)) == text  # no speed is known yet


# -- what is sent --------------------------------------------------------------------------------


def test_the_files_of_a_plain_read_are_sent_as_they_are(
    session: Session, given: tuple[Path, str], tmp_path: Path
) -> None:
    node = shot(session, given, tmp_path, first=FIRST + 1, last=FIRST + 2, handles=5)
    source = request_of(node).source
    assert source.numbers == list(range(FIRST, LAST + 1))  # handles end with the plate
    assert source.paths == [frame_path(given[1], n) for n in source.numbers]
    assert source.space == "srgb_tx"  # Nuke's own sRGB
    assert request_of(node).settings["neutral"] == "auto"
    for knob, value in {"neutral": "pair", "neutral_driving": FIRST + 1, "neutral_scan": 4}.items():
        node[knob].setValue(value)
    assert "at" not in request_of(node).settings
    node["at"].setValue((50, 30))  # from the bottom left; the server counts from the top left
    settings = request_of(node).settings
    height = session.look(node.input(0), FIRST)["red"].shape[0]
    assert (settings["neutral"], settings["at"]) == (f"{FIRST + 1}:4", [50, height - 30])
    session.module.root()["proxy"].setValue(True)  # knobs are in pixels of full size
    assert request_of(node).settings["at"] == [50, height - 30]
    session.module.root()["proxy"].setValue(False)
    node.input(0)["raw"].setValue(True)
    assert request_of(node).source.space == "lin_rec709"  # the working space


def test_what_is_upstream_is_rendered_at_full_size_as_raw_half(
    session: Session, given: tuple[Path, str], tmp_path: Path
) -> None:
    node = shot(session, given, tmp_path, last=FIRST, first=FIRST)
    root, read = session.module.root(), node.input(0)
    node.setInput(0, under(session, "NoOp", read))
    root["proxy"].setValue(True)
    steps = len(session._undo)
    source = request_of(node).source
    read["file"].setValue("/nowhere.####.png")
    session.press(node, "submit")
    assert "The input could not be rendered" in node["state"].value()
    read["file"].setValue(given[1])
    write = node.node("Source")  # both are restored, whether rendering succeeds or not
    assert (root["proxy"].value(), write["file"].value()) == (True, "")
    assert len(session._undo) == steps
    assert (source.space, source.numbers) == ("lin_rec709", [FIRST])
    exr = ImageBuf(source.paths[0])
    assert str(exr.spec().format) == "half"
    shown = session.look(read, FIRST)
    pixels = np.dstack([shown[c] for c in ("red", "green", "blue")])
    np.testing.assert_allclose(exr.get_pixels(), pixels, rtol=1e-3, atol=1e-6)
    session.set(node, "source", "files")
    session.press(node, "submit")
    assert "no plain Read" in node["state"].value()
    session.set(node, "source", "auto")
    node.setInput(0, None)
    session.press(node, "submit")
    assert node["state"].value() == "Connect the input."
    assert node["tile_color"].value() == plugin("display").RED


def test_what_the_server_cannot_read_is_rendered(
    session: Session, given: tuple[Path, str], tmp_path: Path
) -> None:
    """Nuke reads more kinds of files than the server does; here it reads one of them."""
    node = shot(session, given, tmp_path, first=FIRST, last=FIRST)
    other = tmp_path / f"plate.{FIRST}.sgi"
    shutil.copyfile(frame_path(given[1], FIRST), other)
    node.input(0)["file"].setValue(str(tmp_path / "plate.####.sgi"))
    (path,) = request_of(node).source.paths
    assert Path(path).suffix == ".exr"
    assert ImageBuf(path).spec().width == ImageBuf(frame_path(given[1], FIRST)).spec().width
    session.set(node, "source", "files")  # as asked: the server says why not
    assert request_of(node).source.paths == [str(other)]


def test_an_input_is_rendered_through_a_time_clip_and_into_any_folder(
    session: Session, given: tuple[Path, str], tmp_path: Path
) -> None:
    node = shot(session, given, tmp_path, first=FIRST, last=FIRST)
    node.setInput(0, under(session, "TimeClip", node.input(0)))
    session.set(node, "folder", str(tmp_path / "at 100%"))
    (path,) = request_of(node).source.paths
    assert "at 100%" in path
    assert ImageBuf(path).spec().nchannels == 3


def test_the_files_of_an_input_are_not_written_over(
    session: Session, given: tuple[Path, str], tmp_path: Path
) -> None:
    node = shot(session, given, tmp_path, first=FIRST, last=FIRST)
    session.set(node, "source", "render")
    (rendered,) = request_of(node).source.paths
    before = Path(rendered).read_bytes()
    node.input(0)["file"].setValue(rendered.replace(str(FIRST), "####"))  # read back
    node.input(0)["raw"].setValue(True)
    session.press(node, "submit")
    assert "would be rendered over" in node["state"].value()
    assert Path(rendered).read_bytes() == before

    run = runs.Run("a node", lambda update: None)
    run._first = (
        protocol.Solve(protocol.Clip(), protocol.File()),
        "",
        {"source": {"paths": [str(tmp_path / "v" / "shot_v001" / "crops" / "a.1001.exr")]}},
    )
    (tmp_path / "v" / "shot_v001").mkdir(parents=True)
    (tmp_path / "link").symlink_to("v")
    with pytest.raises(NodeError, match="where its own result goes"):
        run.enter(tmp_path / "link" / "shot_v001")
    assert not list((tmp_path / "v" / "shot_v001").iterdir())


def test_the_chosen_view_is_used(given: tuple[Path, str], tmp_path: Path) -> None:
    with nuke_standin.running(views=("left", "right")) as session:
        node = shot(session, given, tmp_path, first=FIRST, last=FIRST)
        node.input(0)["file"].setValue("/plates/%V/shot.%v.####.exr")
        node.input(0)["raw"].setValue(True)
        assert request_of(node).source.paths == [f"/plates/left/shot.l.{FIRST}.exr"]
        node["view"].setValue("right")
        assert request_of(node).source.paths == [f"/plates/right/shot.r.{FIRST}.exr"]
        node["view"].setValue("middle")
        session.press(node, "submit")
        assert "no view middle" in node["state"].value()


# -- interruptions -------------------------------------------------------------------------------


def test_server_killed_and_nuke_closed_and_the_job_is_finished(
    session: Session, own_server: Server, given: tuple[Path, str], tmp_path: Path
) -> None:
    own_server.start()
    nuke = session.module
    node = shot(session, given, tmp_path, first=FIRST, last=FIRST + 3, steps=20)
    session.press(node, "submit")
    until_said(session, node, "Solving: ")
    nuke.scriptSaveAs(str(tmp_path / "shot.nk"), True)
    nuke.scriptClear()
    own_server.kill()
    nuke.scriptOpen(str(tmp_path / "shot.nk"))
    node = nuke.toNode("Reenact1")
    until(session, node, "failed")
    assert node["next"].label() == "Start server"
    own_server.start()
    session.press(node, "next")
    until(session, node, "done")
    assert len(list(Path(node["run"].value()).glob("*.exr"))) == 4
    assert node["tile_color"].value() == plugin("display").PLAIN
    assert not node["next"].visible()


def test_a_deleted_node_gets_its_result_when_undo_brings_it_back(
    session: Session, server: Server, given: tuple[Path, str], tmp_path: Path
) -> None:
    nuke = session.module
    node = shot(session, given, tmp_path, first=FIRST, last=FIRST + 1)
    session.press(node, "submit")
    until(session, node, "running")
    run, id = work().runs[node["reenact_id"].value()], node["reenact_id"].value()
    nuke.delete(node)
    session.pump(lambda: not run.is_alive(), 200, "the job")
    nuke.undo()
    node = nuke.toNode("Reenact1")
    until(session, node, "done")
    assert node["reenact_id"].value() == id
    assert session.look(node, FIRST)["alpha"].max() > 0.9


SECOND = """
import sys
import nuke_standin
from nuke_session import until
with nuke_standin.running() as session:
    session.module.scriptOpen(sys.argv[1])
    node = session.module.toNode("Reenact1")
    until(session, node, "done")
    print(node["run"].value(), node["reenact_id"].value())
    assert session.look(node, 1001)["alpha"].max() > 0.9
"""


def test_a_second_nuke_follows_the_same_job(
    session: Session, server: Server, given: tuple[Path, str], tmp_path: Path
) -> None:
    node = shot(session, given, tmp_path, first=FIRST, last=FIRST + 2, steps=12)
    session.press(node, "submit")
    until(session, node, "running")
    session.module.scriptSaveAs(str(tmp_path / "shot.nk"), True)
    command = [sys.executable, "-c", SECOND, str(tmp_path / "shot.nk")]
    paths = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths}
    ) as second:
        until(session, node, "done")
        said, _ = second.communicate(timeout=200)
    assert second.returncode == 0
    assert said.split() == [node["run"].value(), node["reenact_id"].value()]
    assert len(list(Path(node["run"].value()).glob("*.exr"))) == 3
    assert len(list((tmp_path / "reenact").iterdir())) == 1


def test_cancel_keeps_what_is_done_and_resume_goes_on(
    session: Session, server: Server, given: tuple[Path, str], tmp_path: Path
) -> None:
    node = shot(session, given, tmp_path, steps=200)
    session.press(node, "submit")
    until_said(session, node, "Solving: ")
    session.press(node, "cancel")
    until(session, node, "cancelled")
    assert node["next"].label() == "Resume"
    session.press(node, "resume")
    until_said(session, node, "Solving: ")
    session.press(node, "cancel")
    until(session, node, "cancelled")


@pytest.mark.timeout(120)
def test_cancel_does_not_wait_until_a_long_movie_is_read(server: Server, tmp_path: Path) -> None:
    """It is read whole before it is sent; so long, a node would say nothing, and Nuke not end."""
    movie = tmp_path / "scan.mov"
    movie.touch()
    os.truncate(movie, 20 << 30)  # half a minute's work
    source = runs.Source([str(movie)], [1, 2])
    request = runs.RunRequest("personalize", str(tmp_path), "a", source, {"name": "a", "who": "b"})
    updates: list[runs.NodeUpdate] = []
    run = runs.Run("id", updates.append, request)
    run.start()
    wait_for(lambda: updates, 10, "progress")
    assert updates[-1].text == "Sending frames: 0 %"
    run.cancel()
    run.join(10)
    assert not run.is_alive()
    assert updates[-1].state == "cancelled"
    assert not [t.name for t in threading.enumerate() if "ThreadPool" in t.name]


def test_every_trouble_lands_on_the_node(
    session: Session, own_server: Server, given: tuple[Path, str], tmp_path: Path
) -> None:
    """No server, a frozen, a slow and a dying one; a wrong version, file and character.

    The main thread is never blocked; waiting for a server that doesn't answer would take seconds.
    """
    node = shot(session, given, tmp_path)
    session.longest = 0.0
    session.press(node, "submit")
    until(session, node, "failed")
    assert "No Reenact server answers" in node["state"].value()
    assert node["next"].label() == "Start server"
    own_server.start()
    process = own_server.process
    assert process is not None
    for version, side in ((2, "server"), (0, "plugin")):
        with patch.object(protocol, "VERSION", version):
            session.press(node, "submit")
            until_said(session, node, f"Update the {side}")
            until(session, node, "failed")
    process.send_signal(signal.SIGSTOP)
    session.press(node, "submit")
    until(session, node, "failed")
    process.send_signal(signal.SIGCONT)
    with slow(own_server):
        session.press(node, "list_characters")
        until_said(session, node, "0 characters on the server.")
    session.set(node, "character", str(tmp_path / "gone.character"))
    session.press(node, "submit")
    until_said(session, node, "There is no character")
    session.picked = str(given[0])
    with (
        patch.object(channel_module, "RESEND_SECONDS", 0.5),
        patch.object(runs, "Client", Impatient),
    ):
        session.press(node, "next")  # locates the character, and submits
        until_said(session, node, "Solving: ")
        own_server.kill()
        until(session, node, "lost")
        assert node["tile_color"].value() == plugin("display").RED
        own_server.start()
        until(session, node, "running", "done")
    session.press(node, "cancel")
    until(session, node, "cancelled", "done")
    node.input(0)["file"].setValue(given[1].replace("plate", "absent"))
    session.press(node, "submit")
    until_said(session, node, "There is no file")
    print(f"held up for {session.longest:.3f} s at most")
    assert session.longest < 0.5
    assert session.messages == []  # no windows


def test_what_nobody_foresaw_is_said_too(
    session: Session, own_server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """A thread that ends without a word leaves a node that is waited for in vain."""
    done: list[runs.NodeUpdate] = []
    runs.Run("id", done.append, folder="/gone", server=cast(str, 5)).run()
    runs.Run("id", done.append, server=cast(str, 5)).run()
    assert [update.step for update in done] == ["log", "retry"]  # the latter has no log
    assert capsys.readouterr().err.count("Traceback") == 2
    home.make_keys(own_server.folder)
    node, surprise = under(session, "ReenactEdit"), RuntimeError("surprise")
    expected = "Something went wrong in the plugin: RuntimeError('surprise')"
    with patch.object(client.Client, "hello", side_effect=surprise):
        work().query(node, lambda one, id: queries.list_files(one, id, "characters"))
        until_said(session, node, plugin("display").plain_text(expected))
    node["state"].setValue("")
    work().do(node, Mock(side_effect=surprise))
    until_said(session, node, plugin("display").plain_text(expected))
    node["state"].setValue("")
    drawn = runs.NodeUpdate(node["reenact_id"].value(), "done", "Drawn.")
    with patch.object(live, "render_frame", side_effect=[surprise, drawn]):
        work().request_frame(node, Mock())
        until_said(session, node, plugin("display").plain_text(expected))
        (preview,) = work().live.values()
        session.pump(lambda: not preview.busy(), 10, "the thread")
        work().request_frame(node, Mock())  # by the same thread
        until_said(session, node, "Drawn.")
        assert [*work().live.values()] == [preview]


def test_a_log_takes_what_the_system_cannot_write(tmp_path: Path) -> None:
    """A server on Linux names files as Nuke's system can't: the job's own words still arrive."""
    code = """if True:
        import sys
        from reenact.runs import Run
        run = Run("id", print, folder=sys.argv[1])
        name = "\\u5408\\u6210.1001.exr"
        run._on_event(None, {"type": "note", "text": f"{name} is cut off"}, None, None)
        run._on_event(None, {"type": "log", "text": "half a letter: \\ud83d"}, None, None)
    """
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = {**os.environ, **plain, "PYTHONPATH": str(ROOT / "nuke_plugin")}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True)
    said = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert said == "\u5408\u6210.1001.exr is cut off\nhalf a letter: \\ud83d\n"


class Impatient(client.Client):
    def __init__(self, name: str, deadline: float = 2.0, server: Any = None) -> None:
        super().__init__(name, min(deadline, 2.0), server)


def test_the_button_starts_the_server_and_goes_on(
    session: Session,
    own_server: Server,
    given: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = tmp_path / "bin" / "reenact"
    command.parent.mkdir()
    command.write_text(
        f"#!/bin/sh\nPYTHONPATH='{os.environ.get('PYTHONPATH', '')}' exec "
        f"'{sys.executable}' -m server.cli.main \"$@\"\n"
    )
    command.chmod(0o755)
    monkeypatch.setattr(launcher, "server_command", lambda: [str(command), "serve"])
    node = shot(session, given, tmp_path, first=FIRST, last=FIRST)
    session.press(node, "submit")
    until(session, node, "failed")
    session.press(node, "next")
    session.pump(lambda: node["run"].value(), 120, "a job")
    session.press(node, "cancel")
    until(session, node, "cancelled", "done")
    os.kill(json.loads((own_server.folder / "server.json").read_text())["pid"], signal.SIGTERM)
    wait_for(lambda: not (own_server.folder / "server.json").exists(), 60, "its end")


# -- nuke -t -------------------------------------------------------------------------------------


def test_a_terminal_submits_at_once_and_a_render_asks_no_server(
    server: Server, given: tuple[Path, str], tmp_path: Path
) -> None:
    with nuke_standin.running(gui=False, views=("left", "right")) as session:
        nuke = session.module
        node = shot(session, given, tmp_path, first=FIRST, last=FIRST + 1, steps=11)
        session.press(node, "submit")
        assert node["state"].value() == "Reenact1_v001: 2 frames, view left."
        assert state(node) == "done"
        assert any(line.strip() for line in session.said), session.said  # it reports progress
        nuke.scriptSaveAs(str(tmp_path / "shot.nk"), True)
        node["job_state"].setValue("running")  # as saved by an artist while the job was running
        nuke.scriptSaveAs(str(tmp_path / "busy.nk"), True)
    for installed in (True, False):
        with (
            nuke_standin.running(gui=False) as farm,
            patch.object(client.Client, "__init__", side_effect=AssertionError("a socket")),
            patch.object(runs.Run, "start", side_effect=AssertionError("a thread")),
            patch.dict("sys.modules", {} if installed else {"reenact.nodes": None}),
        ):
            nuke = farm.module
            nuke.scriptOpen(str(tmp_path / "busy.nk"))
            write = nuke.createNode("Write")
            for knob, value in {
                "file": str(tmp_path / "out.%04d.exr"),
                "file_type": "exr",
                "raw": True,
            }.items():
                write[knob].setValue(value)
            write.setInput(0, nuke.toNode("Reenact1"))
            nuke.execute(write, FIRST, FIRST + 1)
            result = open_clip(str(tmp_path / "reenact/Reenact1_v001/Reenact1_v001.####.exr"))
            out = open_clip(str(tmp_path / "out.####.exr"))
            for number in (FIRST, FIRST + 1):
                np.testing.assert_array_equal(
                    read_frame(out, number).pixels, read_frame(result, number).pixels
                )
            first = Path(frame_path(result.path, FIRST))
            first.rename(tmp_path / "away.exr")
            with pytest.raises(RuntimeError, match="No such file"):  # as any Read says
                nuke.execute(write, FIRST, FIRST)
            (tmp_path / "away.exr").rename(first)


# -- the panel -----------------------------------------------------------------------------------


def test_the_panel_lists_jobs_with_their_nodes(
    session: Session, server: Server, given: tuple[Path, str], tmp_path: Path
) -> None:
    panel = importlib.import_module("reenact.panel").Jobs()
    thumbnails.make_picture(given[0])
    node = shot(session, given, tmp_path, steps=300)
    session.press(node, "submit")
    until_said(session, node, "Solving: ")
    panel.resize(700, 300)
    panel.show()

    def cell(column: int) -> str:
        return panel.table.item(0, column).text() if panel.table.rowCount() else ""

    session.pump(lambda: cell(0) == "Reenact1" and "solving" in cell(3), 60, "the job")
    assert cell(2) == "running"
    assert not panel.table.item(0, 0).icon().isNull()
    picture = tmp_path / "panel.png"
    assert panel.grab().save(str(picture))
    assert ImageBuf(str(picture)).roi.width == 700
    panel.table.selectRow(0)
    session._held(panel.show_node)
    assert session.shown == ["Reenact1"]
    session._held(panel.cancel)
    session.pump(lambda: cell(2) == "cancelled", 60, "the end")
    assert panel.chosen()
    until(session, node, "cancelled")
    panel.close()
