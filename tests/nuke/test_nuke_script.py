"""Tests what Nuke does with a script around our nodes: loads, renders, copies, clones, updates."""

import ast
import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from unittest.mock import patch

import nk_script
import nuke_standin
import numpy as np
import OpenImageIO as oiio
import pytest
from hypothesis import given as examples_of
from hypothesis import settings
from hypothesis import strategies as st
from nk_script import substitute
from nuke_session import copy_of, plugin, read_node, under, until_said, whole, work
from nuke_standin import Node, Session
from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QMessageBox
from reenact import launcher
from reenact.files import Frames
from repository import ROOT
from running_server import wait_for
from small_character import small_character

from core.media.write import write_exr
from core.personalize.character import save_character

FIRST, LAST = 1001, 1004
SIZE = 16
JOB_NODES = ("ReenactPersonalize", "Reenact", "ReenactRepair", "ReenactEdit", "ReenactStyle")


@pytest.fixture
def frames(tmp_path: Path) -> str:
    """Frames whose pixels are their number, without 1003."""
    folder = tmp_path / "reenact" / "a_v001"
    folder.mkdir(parents=True)
    for number in (1001, 1002, 1004):
        path = folder / f"a_v001.{number}.exr"
        write_exr(path, np.full((SIZE, SIZE, 4), number, np.float32), half=False)
    return str(folder / "a_v001.####.exr")


def update_of(node: Node, **changes: object) -> object:
    """Returns an update of the plugin for a node."""
    runs = plugin("runs")
    text, result = changes.pop("text", ""), runs.Result(**changes)
    return runs.NodeUpdate(node["reenact_id"].value(), "", text, result=result)


def show(session: Session, node: Node, read: str, pattern: str, numbers: list[int]) -> None:
    """Delivers frames to a node, as a run does."""
    whole(session, node)
    knobs = {f"has_{read.lower()}": True, "show": read.lower()}
    if read == "Preview":
        knobs["preview_frame"] = numbers[0]
    work().updates.put(update_of(node, knobs=knobs, reads={read: Frames.of(pattern, numbers)}))
    work().drain()


def saved(session: Session, folder: Path) -> Path:
    path = folder / "shot.nk"
    session.module.scriptSaveAs(str(path), True)
    return path


# -- loading -------------------------------------------------------------------------------------


def events(session: Session, seconds: float) -> None:
    """Processes events for a time, as what takes long while a script loads does."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        session._app.processEvents()
        time.sleep(0.01)


def window(session: Session) -> None:
    """Asks the artist something, who takes a moment to answer."""
    box = QMessageBox()
    QTimer.singleShot(300, box.accept)
    box.exec()


@pytest.mark.parametrize("from_menu", [True, False], ids=["menu", "start"])
@pytest.mark.parametrize("meanwhile", ["nothing", "events", "window"])
def test_a_script_loads_without_root_and_with_a_call_for_every_knob(
    session: Session, tmp_path: Path, meanwhile: str, from_menu: bool
) -> None:
    """Also where much happens meanwhile: the plugin waits until the script is loaded."""
    nodes = [session.module.createNode(name) for name in JOB_NODES]
    whole(session, *nodes)
    ids = [node["reenact_id"].value() for node in nodes]
    assert len(set(ids)) == len(JOB_NODES)
    path = saved(session, tmp_path)
    assert "ready true" not in path.read_text()
    completed: list[Node] = []
    complete = work().complete

    def note(node: Node) -> None:
        assert not session._loading
        completed.append(node)
        complete(node)

    steps = {"events": lambda: events(session, 0.5), "window": lambda: window(session)}
    counts = iter(range(100))
    if meanwhile != "nothing":  # long after one node, and before the next one
        session.while_loading = lambda: next(counts) == 1 and steps[meanwhile]()
    if from_menu:
        session._load_calls.clear()  # without Nuke's word for it, too
    with patch.object(work(), "complete", note):
        opened = lambda: session.module.scriptOpen(str(path)) or True  # noqa: E731
        session.in_event(opened) if from_menu else opened()
        nodes = [session.module.toNode(f"{name}1") for name in JOB_NODES]
        whole(session, *nodes)
    assert not any("Traceback" in text for text in session.said), session.said
    assert {*nodes} <= {*completed}
    assert [node["reenact_id"].value() for node in nodes] == ids
    assert not session.module.modified()  # opening a script does not change it
    assert not work().queries
    assert not work().live


def test_a_node_that_is_pasted_while_a_script_loads_is_no_sign_that_it_is_loaded(
    session: Session, tmp_path: Path
) -> None:
    whole(session, session.module.createNode("Reenact"))
    path = saved(session, tmp_path)
    session._load_calls.clear()
    early: list[bool] = []

    def nested() -> None:
        session.while_loading = lambda: None
        host = plugin("host")
        QTimer.singleShot(0, lambda: host.after_this(lambda: early.append(session._loading)))
        events(session, 0.4)

    session.while_loading = nested
    session.in_event(lambda: session.module.scriptOpen(str(path)) or True)
    whole(session, session.module.toNode("Reenact1"))
    assert early == [True]  # that event was over, and the script was still being loaded


def test_a_slider_is_followed_once_its_node_is_whole_and_not_for_our_own_changes(
    session: Session,
) -> None:
    node, host = session.module.createNode("ReenactEdit"), plugin("host")
    session.set(node, "smile", 1.0)
    assert work()._followed is None
    whole(session, node)
    host.put(node, "smile", 2.0)
    assert work()._followed is None
    session.set(node, "smile", 1.0)
    assert work()._followed == node


def test_what_a_callback_raises_never_reaches_nuke(session: Session) -> None:
    nodes = plugin("nodes")
    with patch.object(work(), "add", side_effect=RuntimeError("broken")):
        session.module.createNode("Reenact")
    node = session.module.createNode("ReenactEdit")
    whole(session, node)
    with patch.object(nodes, "kind_of", side_effect=RuntimeError("broken")):
        session.set(node, "smile", 1.0)
    with patch.object(work(), "remove", side_effect=RuntimeError("broken")):
        session.module.delete(node)
    assert sum("RuntimeError: broken" in text for text in session.said) == 3


def test_a_farm_imports_nothing_and_renders(frames: str, tmp_path: Path) -> None:
    """Opening a script in a terminal, with the plugin on its path."""
    with nuke_standin.running() as session:
        for name in JOB_NODES:
            session.module.createNode(name)
        node = session.module.toNode("Reenact1")
        show(session, node, "Result", frames, [1001, 1002, 1004])
        path = saved(session, tmp_path)
    code = (
        "import sys; from pathlib import Path; import nuke_standin\n"
        f"with nuke_standin.running(gui=False) as session:\n"
        f"    session.module.scriptOpen({str(path)!r})\n"
        "    picture = session.look(session.module.toNode('Reenact1'), 1002)\n"
        "    print(picture['red'].max(), [m for m in sys.modules if m in\n"
        "        ('zmq', 'reenact.nodes', 'reenact.client', 'reenact.host')])\n"
    )
    search = [ROOT, ROOT / "nuke_plugin", ROOT / "tests" / "support"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, search))}
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert told.stdout == "1002.0 []\n", told.stderr


# -- rendering -----------------------------------------------------------------------------------


def write_of(session: Session, node: Node, folder: Path) -> Node:
    """Creates the artist's Write below a node."""
    write = under(session, "Write", node)
    for knob, value in {"file_type": "exr", "raw": True, "create_directories": True}.items():
        write[knob].setValue(value)
    write["file"].setValue((folder / "comp.####.exr").as_posix())
    return write


@pytest.mark.parametrize("kind", [name for name in JOB_NODES if name != "ReenactPersonalize"])
def test_a_preview_is_seen_on_its_frame_only_and_never_rendered(
    session: Session, frames: str, tmp_path: Path, kind: str
) -> None:
    node = under(session, kind, read_node(session, frames, FIRST, LAST))
    show(session, node, "Result", frames, [1001, 1002, 1004])
    session.module.frame(1002)
    live = tmp_path / "live.1002.exr"
    layers = {"reenact_render": np.full((SIZE, SIZE, 3), 7, np.float32)}
    write_exr(live, np.full((SIZE, SIZE, 4), 5, np.float32), half=False, layers=layers)
    show(session, node, "Preview", str(live), [1002])
    assert session.look(node, 1002)["red"].max() == 5
    assert session.look(node, 1001)["red"].max() == 1001
    assert session.label(node).startswith("preview\n")
    session.set(node, "output_as", "render")  # its layers are there as those of a result
    assert session.look(node, 1002)["red"].max() == 7
    session.set(node, "output_as", "RGBA premultiplied")
    session.module.execute(write_of(session, node, tmp_path / "out"), 1002, 1002)
    assert oiio.ImageBuf(str(tmp_path / "out" / "comp.1002.exr")).getpixel(0, 0)[0] == 1002


def without_disabled_reads(text: str) -> str:
    """Returns the text of a gizmo of node version 4, whose Reads are never disabled."""
    text = re.sub(r"^  disable \{\{1-parent\.has_.*\n", "", text, flags=re.M)
    return text.replace("node_version 6", "node_version 4")


STATES = {
    **{"has_result": (False, True), "has_preview": (False, True), "show": (0, 1)},
    **{"has_compare": (False, True), "has_crops": (False, True), "output_as": (0, 3)},
}
SHEETS = {"has_result": (False, True), "show": (0, 1, 2)}


@pytest.mark.parametrize("kind", JOB_NODES)
def test_no_read_that_is_not_shown_offers_pictures_of_a_person(
    session: Session, frames: str, tmp_path: Path, kind: str
) -> None:
    """Submitters to farms upload the files of every node, in groups too, that is not disabled."""
    text = (ROOT / "gizmos" / f"{kind}.gizmo").read_text()
    states = SHEETS if kind == "ReenactPersonalize" else STATES
    nodes = []
    for one in (text, without_disabled_reads(text)):
        session._read_text(one.replace(f" name {kind}\n", f" name {kind}{len(nodes) + 1}\n", 1))
        nodes.append(session._root._children[-1])
        whole(session, nodes[-1])
        for i in range(2):
            nodes[-1].setInput(i, read_node(session, frames, FIRST, FIRST))
            nodes[-1].input(i)["raw"].setValue(True)
    now, before = nodes
    reads = [child for child in now.nodes() if child.Class() == "Read"]
    for i, read in enumerate(reads):
        path, grey = tmp_path / f"{read.name()}.exr", np.full((SIZE, SIZE, 4), i + 2, np.float32)
        write_exr(path, grey, half=False, layers={"reenact_render": grey[..., :3] + 10})
        for node in nodes:
            one = node.node(read.name())
            plugin("host").show_files(one, Frames(str(path), FIRST, FIRST + 1, still=True))
            one["raw"].setValue(True)
    drawn: list[Node] = []
    draw = session._read
    with patch.object(session, "_read", lambda one, frame: drawn.append(one) or draw(one, frame)):
        for state in itertools.product(*states.values()):
            for node in nodes:
                for knob, value in zip(states, state, strict=True):
                    node[knob].setValue(value)
                if node.knob("preview_frame"):
                    node["preview_frame"].setValue(FIRST)
            drawn.clear()
            for frame in (FIRST, FIRST + 1):
                seen, wanted = session.look(now, frame), session.look(before, frame)
                assert sorted(seen) == sorted(wanted)
                for channel, pixels in seen.items():
                    np.testing.assert_array_equal(pixels, wanted[channel], f"{state} {channel}")
            offered = {read for read in reads if not read["disable"].value()}
            assert {read for read in reads if read in drawn} <= offered, state
            crops = now.node("Crops")
            if crops in drawn:  # instead of the others, which are of the same person
                offered &= {crops}
            assert offered <= {*drawn}, state


def test_what_happens_while_the_artist_renders_is_shown_afterwards(
    session: Session, frames: str, tmp_path: Path
) -> None:
    """A render processes events, and timers with them."""
    node = under(session, "Reenact", read_node(session, frames, FIRST, FIRST))
    node.input(0)["raw"].setValue(True)
    show(session, node, "Result", frames, [1001, 1002, 1004])
    write = write_of(session, node, tmp_path / "out")
    late, seen = update_of(node, text="Late.", knobs={"has_result": False}), []
    rendered = session._picture

    def picture(*of: object) -> object:
        if not seen:
            work().updates.put(late)
            work()._watch()
        time.sleep(0.15)  # two frames take longer than the timer's interval
        session._app.processEvents()
        seen.append((session.module.executing(), node["state"].value()))
        return rendered(*of)

    with patch.object(session, "_picture", picture):
        session.module.execute(write, 1001, 1002)
    assert len(seen) > 3
    assert {*seen} == {(True, "Not submitted.")}
    values = []
    for number in (1001, 1002):
        values.append(oiio.ImageBuf(str(tmp_path / f"out/comp.{number}.exr")).getpixel(0, 0)[0])
    assert values == [1001, 1002]
    until_said(session, node, "Late.")
    assert not node["has_result"].value()


def test_the_same_frames_again_change_nothing(
    session: Session, frames: str, tmp_path: Path
) -> None:
    node = under(session, "Reenact", read_node(session, frames, FIRST, LAST))
    show(session, node, "Result", frames, [1001, 1002, 1004])
    file = node.node("Result")["file"]
    assert file.value() == frames.replace("####", "%04d")
    for written in (file.toScript(), frames):  # as today's plugin writes it, and as older ones did
        file.fromScript(written)
        saved(session, tmp_path)
        show(session, node, "Result", frames, [1001, 1002, 1004])
        assert not session.module.modified()
        assert file.toScript() == written


@pytest.mark.parametrize("keeps", [True, False])
def test_a_script_names_nobody_whom_the_server_knows(
    session: Session, tmp_path: Path, keeps: bool
) -> None:
    session.keeps_items = keeps
    nodes = [under(session, "Reenact"), under(session, "ReenactStyle")]
    for node, knob in zip(nodes, ("characters", "styles"), strict=True):
        choices = {knob: ["on the server...", "Jane Roe (12ab34cd)"]}
        work().updates.put(update_of(node, choices=choices))
    work().drain()
    assert nodes[0]["characters"].values()[1:] == ["Jane Roe (12ab34cd)"]
    assert "Jane" not in saved(session, tmp_path).read_text()
    assert not session.module.modified()


def test_outside_its_range_and_in_its_gaps_a_result_is_black(session: Session, frames: str) -> None:
    node = under(session, "Reenact", read_node(session, frames, FIRST, LAST))
    show(session, node, "Result", frames, [1001, 1002, 1004])
    for number, value in ((1000, 0), (1001, 1001), (1003, 0), (1004, 1004), (1005, 0)):
        picture = session.look(node, number)
        assert (picture["red"].max(), picture["alpha"].max()) == (value, value)
    # A frame of a complete result that is lost later is an error, and not a black frame.
    show(session, node, "Result", frames, [1001, 1002])
    Path(frames.replace("####", "1002")).unlink()
    with pytest.raises(RuntimeError, match="No such file"):
        session.look(node, 1002)


def test_the_sheets_of_a_character_are_seen_on_every_frame(
    session: Session, frames: str, tmp_path: Path
) -> None:
    node = under(session, "ReenactPersonalize", read_node(session, frames, FIRST, LAST))
    sheet = tmp_path / "sheet.exr"
    write_exr(sheet, np.full((SIZE, SIZE, 4), 3, np.float32), half=False)
    still = Frames(str(sheet), 1, 1, still=True)
    work().updates.put(update_of(node, knobs={"has_result": True}, reads={"Selection": still}))
    work().drain()
    node.node("Selection")["raw"].setValue(True)
    session.set(node, "show", "chosen frames")
    assert session.look(node, FIRST)["red"].min() == 3


def test_a_refused_button_leaves_a_running_job_alone(session: Session) -> None:
    node = session.module.createNode("ReenactEdit")
    whole(session, node)
    node["job_state"].setValue("running")
    session.press(node, "approve")
    assert "No version is shown" in node["state"].value()
    assert node["job_state"].value() == "running"


def test_a_live_preview_without_a_key_says_so_each_time(session: Session) -> None:
    node = session.module.createNode("ReenactEdit")
    whole(session, node)
    node["server"].setValue("render7:5555")
    for _ in range(2):
        node["state"].setValue("")
        work().request_frame(node, object())  # no client is made, so nobody looks into it
        session.pump(lambda: "There is no key" in node["state"].value(), 10, "the reason")
    assert not work().live["render7:5555"].busy()


def test_render_all_does_not_meet_our_writes(session: Session, frames: str, tmp_path: Path) -> None:
    read = read_node(session, frames, 1001, 1002)
    read["raw"].setValue(True)
    node = under(session, "Reenact", read)
    under(session, "ReenactPersonalize", read)
    write_of(session, read, tmp_path / "out")
    session.render_all(1001, 1002)
    host = plugin("host")
    pattern = str(tmp_path / "a [of two]" / "rendered.%04d.exr")
    host.render(host.inner(node, "Source"), pattern, 1001, 1002, "main")
    assert Path(pattern % 1001).exists()
    session.render_all(1001, 1002)  # also afterwards


# -- text ----------------------------------------------------------------------------------------


@settings(max_examples=30)
@examples_of(st.text(alphabet='[]$\\{}"; errno2:.#%dax\n', max_size=60))
def test_messages_are_shown_and_not_evaluated(text: str) -> None:
    with nuke_standin.running(gui=False):
        display = plugin("display")
        shown = display.plain_text(text)
        assert substitute("[value state]", {"state": substitute(shown, {})}) == shown
        assert all(len(line) < 40 for line in display.tile_text(shown).split("\n"))


def test_an_error_with_brackets_is_what_the_node_says(session: Session) -> None:
    node = session.module.createNode("Reenact")
    whole(session, node)
    said = "[Errno 2] No such file: '$HOME\\x'. Choose a folder that exists and submit it again."
    work().updates.put(plugin("runs").NodeUpdate(node["reenact_id"].value(), "failed", said))
    work().drain()
    assert node["state"].evaluate() == said.translate(str.maketrans("[]\\", "()/", "$"))
    assert session.label(node) == "(Errno 2) No such file: 'HOME/x'"


def test_one_bad_message_does_not_lose_the_others(session: Session) -> None:
    node = session.module.createNode("Reenact")
    whole(session, node)
    for knobs in ({"steps": "many"}, {"character": Path("/a.character")}):
        work().updates.put(update_of(node, knobs=knobs))
    work().drain()
    assert node["character"].value() == "/a.character"
    assert any("TypeError" in text for text in session.said)


def test_progress_leaves_a_saved_script_saved(session: Session, tmp_path: Path) -> None:
    node = session.module.createNode("Reenact")
    whole(session, node)
    saved(session, tmp_path)
    runs, id = plugin("runs"), node["reenact_id"].value()
    for state, step in (("sending", ""), ("running", ""), ("lost", "start"), ("running", "")):
        work().updates.put(runs.NodeUpdate(id, state, f"Now {state}.", step))
        work().drain()
        assert node["next"].visible() == bool(step)
        assert not session.module.modified()
    assert node["state"].value() == "Now running."
    work().updates.put(update_of(node, knobs={"track": Path("/a.latents")}))
    work().drain()
    assert session.module.modified()  # a result is worth saving


# -- Windows -------------------------------------------------------------------------------------


@pytest.fixture
def windows(session: Session) -> Iterator[Session]:
    """A Nuke whose files lie on drive C: paths that the plugin writes are Windows paths."""
    host = plugin("host")
    plain = host._tcl_path
    session.drive = "C:"

    def on_drive(path: object) -> str:
        return str(plain(str(PureWindowsPath(f"C:{path}"))))

    with patch.object(host, "_tcl_path", on_drive):
        yield session


def test_every_path_in_a_knob_has_slashes(windows: Session, frames: str) -> None:
    node = windows.module.createNode("ReenactStyle")
    whole(windows, node)
    folder = Path(frames).parent
    paths = [knob for knob in plugin("kinds").PATHS if node.knob(knob) is not None]
    assert set(paths) >= {"track", "run", "folder", "style", "pictures", "character"}
    files = dict.fromkeys(paths, folder / "new [of two]" / "t.latents")
    work().updates.put(
        update_of(node, knobs=files, reads={"Result": Frames.of(frames, [1001, 1002])})
    )
    work().drain()
    for knob in paths:
        assert node[knob].value().startswith("C:/"), knob
        assert "\\" not in node[knob].value().replace("\\[", "").replace("\\]", "")
        read_back = substitute(node[knob].value(), {})  # by Tcl
        assert read_back == f"C:{files[knob].as_posix()}"
        assert plugin("host").get(node, knob) == files[knob].as_posix()
    assert node.node("Result")["file"].value().startswith("C:/")
    node["has_result"].setValue(True)
    assert windows.look(node, 1002)["red"].max() == 1002


def test_a_pasted_windows_path_is_taken_for_what_it_is(session: Session) -> None:
    node = session.module.createNode("Reenact")
    host = plugin("host")
    session.set(node, "character", "C:\\faces\\new\\anna.character")  # before it is whole
    assert host.get(node, "character") == "C:/faces/new/anna.character"
    whole(session, node)
    session.set(node, "folder", "\\\\server\\shots\\reenact")
    assert node["folder"].value() == "//server/shots/reenact"
    session.set(node, "folder", "[file dirname [value root.name]]/reenact")
    assert node["folder"].value() == "[file dirname [value root.name]]/reenact"


def test_no_program_opens_a_console_window() -> None:
    """Every program that the plugin starts is given the flags for it."""
    started = 0
    for path in (ROOT / "nuke_plugin").rglob("*.py"):
        for line in ast.walk(ast.parse(path.read_text())):
            if isinstance(line, ast.Call) and ast.unparse(line.func).startswith("subprocess."):
                started += 1
                unpacked = [ast.unparse(k.value) for k in line.keywords if k.arg is None]
                assert unpacked == ["DETACHED"]
    assert started == 2
    code = (
        "import os, shutil, subprocess; os.name = 'nt'\n"
        "from reenact import launcher; print(launcher.DETACHED)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "nuke_plugin")}
    told = subprocess.run(
        [sys.executable, "-c", "import pathlib\n" + code],
        capture_output=True,
        text=True,
        env=environment,
    )
    # CREATE_NO_WINDOW and CREATE_NEW_PROCESS_GROUP of Windows' process creation flags
    assert told.stdout == f"{dict(creationflags=0x08000200)}\n", told.stderr


def test_the_desktop_opens_files_without_nukes_libraries(tmp_path: Path) -> None:
    opener = tmp_path / "xdg-open"
    opener.write_text('#!/bin/sh\necho "$1 $LD_LIBRARY_PATH" > "$0.said"\n')
    opener.chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LD_LIBRARY_PATH": "/nuke"}
    with patch.dict(os.environ, variables):
        launcher.open_path(tmp_path)
    said = tmp_path / "xdg-open.said"
    wait_for(lambda: said.exists() and said.read_text(), 10, "the opener")
    assert said.read_text() == f"{tmp_path} \n"


# -- nodes ---------------------------------------------------------------------------------------


def test_the_plugin_never_lists_all_nodes() -> None:
    """Nuke Indie and Non-commercial let Python see ten nodes."""
    sources = [*(ROOT / "nuke_plugin").rglob("*.py"), *(ROOT / "gizmos").rglob("*.gizmo")]
    for path in sources:
        assert not re.search(r"\.nodes\(\)|allNodes|recurseGroups", path.read_text()), path


def test_pasting_selects_what_it_hangs_below_and_nothing_else(session: Session) -> None:
    host, nuke = plugin("host"), session.module
    read = nuke.createNode("Read")
    comp = under(session, "ReenactComp", read, read)
    other = nuke.createNode("Dot")
    other["selected"].setValue(True)
    host.paste(comp, "push $cut_paste_input\nDot {\n name Baked1\n}\n", read, "Bake")
    assert nuke.toNode("Baked1").input(0) is read
    host.paste(comp, "push $cut_paste_input\nDot {\n name Baked2\n}\n", None, "Bake")
    assert nuke.toNode("Baked2").input(0) is None


def test_a_copy_has_an_id_of_its_own_and_a_clone_shares_its_job(
    session: Session, tmp_path: Path
) -> None:
    """A clone shares its knobs: another id would take the job from the node that was cloned."""
    node = session.module.createNode("Reenact")
    whole(session, node)
    id = node["reenact_id"].value()
    copy = copy_of(session, node, tmp_path)
    whole(session, copy)
    assert copy["reenact_id"].value() not in ("", id)
    clone = session.clone(node)
    session.pump(lambda: not work()._created, 10, "the clone")
    assert clone["reenact_id"].value() == node["reenact_id"].value() == id
    session.module.delete(clone)
    work().updates.put(update_of(node, text="Here."))
    work().drain()
    assert node["state"].value() == "Here."


def test_clones_that_are_copied_together_share_an_id_and_not_that_of_the_originals(
    session: Session, tmp_path: Path
) -> None:
    """Pasted they are clones of each other, and not of those that were copied."""
    nuke = session.module
    node = nuke.createNode("Reenact")
    whole(session, node)
    clone = session.clone(node)
    id = node["reenact_id"].value()
    node["run"].setValue("/shot/reenact/a_v001")
    for one in (node, clone):
        one["selected"].setValue(True)
    nuke.nodeCopy(str(tmp_path / "clipboard.nk"))
    before = list(session._root._children)
    nuke.nodePaste(str(tmp_path / "clipboard.nk"))
    pasted = [one for one in session._root._children if one not in before]
    assert [one.clones() for one in pasted] == [1, 1]
    whole(session, *pasted)
    session.pump(lambda: not work()._created + work()._whole, 10, "all of them")
    (new,) = {one["reenact_id"].value() for one in pasted}
    assert node["reenact_id"].value() == clone["reenact_id"].value() == id != new
    assert (node["run"].value(), pasted[0]["run"].value()) == ("/shot/reenact/a_v001", "")
    work().updates.put(update_of(node, text="Of the originals."))
    work().updates.put(update_of(pasted[1], text="Of the copies."))
    work().drain()
    assert [one["state"].value() for one in (clone, pasted[0])] == [
        "Of the originals.",
        "Of the copies.",
    ]
    path = saved(session, tmp_path)
    nuke.scriptOpen(str(path))
    opened = [one for one in session._root._children if one.Class() == "Group"]
    whole(session, *opened)
    assert [one["reenact_id"].value() for one in opened] == [id, id, new, new]


def test_what_a_button_makes_is_one_named_step_of_undo(session: Session, frames: str) -> None:
    nuke = session.module
    read = read_node(session, frames, FIRST, LAST)
    read["raw"].setValue(True)
    comp = under(session, "ReenactComp", read, read)
    steps = len(session._undo)
    text = "push $cut_paste_input\nBlur {\n name Baked1\n}\nDot {\n name Baked2\n}\n"
    plugin("host").paste(comp, text, read, "Bake Roto")
    assert (len(session._undo), session.undo_names) == (steps + 1, ["Bake Roto"])
    nuke.undo()
    assert nuke.toNode("Baked1") is nuke.toNode("Baked2") is None
    node = under(session, "Reenact", read)
    steps = len(session._undo)
    session.press(node, "input_range")
    assert [node[knob].value() for knob in ("first", "last")] == [FIRST, LAST]
    assert (len(session._undo), session.undo_names[1:]) == (steps + 1, ["Input range"])
    nuke.undo()
    assert [node[knob].value() for knob in ("first", "last")] == [0, 0]


def test_the_tool_set_is_inserted_twice_and_each_chain_has_its_own_person(
    session: Session, tmp_path: Path
) -> None:
    path = ROOT / "gizmos" / "ToolSets" / "Reenact" / "ScanToShot.nk"
    upstream = plugin("upstream")
    found = []
    for n in (1, 2):
        session.module.nodePaste(str(path))
        person = session.module.toNode(f"ReenactPersonalize{n}")
        person["character"].setValue(f"/faces/{n}.character")
        found.append(upstream.character_of(session.module.toNode(f"Reenact{n}")))
    assert found == ["/faces/1.character", "/faces/2.character"]
    reenact = session.module.toNode("Reenact2")
    reenact["character"].setValue("/mine.character")
    assert upstream.character_of(reenact) == "/mine.character"
    reenact["character"].setValue("")
    session.module.toNode("ReenactPersonalize2")["character"].setValue("")
    with pytest.raises(Exception, match="ReenactPersonalize2 has no character yet"):
        upstream.character_of(reenact)


def test_undo_takes_back_what_a_button_sets(session: Session) -> None:
    """Nuke keeps no undo of what a program sets outside of a step."""
    nuke = session.module
    node, repair, personalize = (
        under(session, kind) for kind in ("Reenact", "ReenactRepair", "ReenactPersonalize")
    )
    session.picked = "/there/anna.character"
    repair["repairs"].setValue("hold 1 from 2")
    node["thumbnail"].setValue("of another person")
    for pressed, button, knob, step in (
        (node, "choose_character", "character", "Choose character"),
        (personalize, "choose_folder", "folder", "Choose folder"),
        (node, "all_views", "view", "All views"),
        (repair, "add_repair", "repairs", "Add repair"),
        (repair, "clear_repairs", "repairs", "Clear repairs"),
    ):
        before = pressed[knob].value()
        session.press(pressed, button)
        assert pressed[knob].value() != before
        assert session.undo_names[-1] == step
        nuke.undo()
        assert pressed[knob].value() == before
        assert node["thumbnail"].value() == "of another person"
    node["step"].setValue("locate")
    plugin("host").show(node, "next", "Locate character")
    session.press(node, "next")
    assert node["character"].value() == session.picked
    assert "Locate character" in session.undo_names


def test_the_server_of_a_node_is_the_one_it_names(session: Session) -> None:
    from reenact.address import server_at
    from reenact.errors import ServerError

    assert server_at("") is None
    with pytest.raises(ServerError, match="There is no key"):
        server_at("render7:5555")
    node = session.module.createNode("Reenact")
    whole(session, node)
    node["server"].setValue(" render7:5555 ")
    session.press(node, "list_characters")
    session.pump(lambda: "There is no key" in node["state"].value(), 10, "the answer")
    named = {  # brackets are Tcl's, but for those of an address
        "[::1]:5555": "[::1]:5555",
        " tcp://[fd00::7]:5555": "tcp://[fd00::7]:5555",
        "[string tolower RENDER7]:5555": "render7:5555",
    }
    for written, address in named.items():
        node["server"].setValue(written)
        assert plugin("session").server_of(node) == address


def test_nodes_of_the_version_before_are_updated_and_render_the_same(
    session: Session, tmp_path: Path
) -> None:
    text = (ROOT / "tests" / "nuke" / "scripts" / "before_layer_names.nk").read_text()
    path = tmp_path / "before.nk"
    path.write_text(text.replace("FOLDER", tmp_path.as_posix()))
    nuke = session.module
    nuke.scriptOpen(str(path))
    old = [nuke.toNode(name) for name in ("Reenact1", "ReenactEdit1", "ReenactComp1")]
    whole(session, *old[:2])  # a ReenactComp has no jobs, and nothing to wait for
    assert "the node is older (version 2): update it" in old[0]["versions"].value()
    kept = {
        node.name(): {k: v._text() for k, v in node._knobs.items() if k in KEPT} for node in old
    }
    files = [node.node("Result")["file"].value() for node in old[:2]]
    for node in old:
        node["selected"]._value = True
    nuke.show(old[1])
    plugin("nodes").update_selected()
    assert nuke.toNode("Reenact1") is old[0]  # not inside a callback of the node
    session.pump(lambda: nuke.toNode("ReenactComp1") is not old[2], 10, "the update")
    new = [nuke.toNode(name) for name in kept]
    for node in new:
        assert node not in old
        assert node["node_version"].value() == 6
        for knob, value in kept[node.name()].items():
            assert node[knob]._text() == value, knob
    assert [node.node("Result")["file"].value() for node in new[:2]] == files
    assert files[0]
    assert all("Update ReenactComp" in node["state"].value() for node in new[:2])
    assert new[1].input(0) is new[0]
    assert new[2].input(1) in new
    assert session.shown == ["ReenactEdit1"] * 2  # no panels but those that were open
    for _ in old:
        nuke.undo()
    assert [nuke.toNode(name).knob("node_version") for name in kept] == [None] * 3


# What an artist and a job have set on a node.
KEPT = {
    *("first", "last", "handles", "character", "smile", "track", "run", "reenact_id"),
    *("has_result", "amount", "erode", "match", "shutter", "result_name", "folder", "preset"),
}


# What an artist may add to a node: a tab, numbers with keys and an expression, texts, a button.
ADDED = """
addUserKnob {20 User}
addUserKnob {7 my_gain l "my gain" t "Of the shot." R 0 4}
my_gain {{curve L x1001 1 x1004 2.5}}
addUserKnob {3 twice}
twice {{handles*2}}
addUserKnob {1 note l "" +STARTLINE}
note "a {c} \\"d\\" 100 %"
addUserKnob {4 take M {one two "take three"}}
take "take three"
addUserKnob {6 checked -STARTLINE}
checked true
addUserKnob {12 spot}
spot {12.5 {curve L x1001 3 x1004 4}}
addUserKnob {20 more n 1}
addUserKnob {2 lut l LUT}
lut /luts/a.cube
addUserKnob {20 endGroup n -1}
addUserKnob {22 say T "nuke.message('said')"}
"""


@pytest.mark.parametrize("kind", [*JOB_NODES, "ReenactComp"])
def test_an_update_keeps_what_the_artist_has_done_to_a_node(session: Session, kind: str) -> None:
    nuke = session.module
    node = session.module.createNode(kind)
    if kind != "ReenactComp":
        whole(session, node)
    node.readKnobs(ADDED if kind == "Reenact" else ADDED.replace("handles", "node_version"))
    own = {
        **{"disable": "{frame>1002}", "note_font_size": "40", "note_font": "Verdana Bold"},
        **{"hide_input": "true", "useLifetime": "true", "lifetimeEnd": "1003"},
        **{"lifetimeStart": "1001", "note_font_color": "0xff00ff", "gl_color": "0xff"},
    }
    for knob, value in own.items():
        node[knob].fromScript(value)
    node["indicators"].fromScript("5")  # Nuke's own: what its tile shows
    session.set(node, "tile_color", 0x00FF00FF)
    names = words_of(ADDED)
    values = {name: node[name]._text() for name in names}
    texts = {name: (node[name].label(), node[name].tooltip()) for name in names}
    gain = node["my_gain"].valueAt(1002)
    assert gain == 1.5
    plugin("nodes").update(node)
    session.pump(lambda: not work()._deferred, 10, "the update")
    new = nuke.toNode(f"{kind}1")
    assert new is not node
    assert {name: new[name]._text() for name in names} == values
    assert {name: (new[name].label(), new[name].tooltip()) for name in names} == texts
    assert new["my_gain"].valueAt(1002) == gain
    factor = new["handles" if kind == "Reenact" else "node_version"]
    factor.setValue(7)
    assert new["twice"].value() == 14
    assert {knob: new[knob]._text() for knob in own} == own
    assert new["indicators"].value() == 0
    assert new["tile_color"].value() == 0x00FF00FF
    session.press(new, "say")
    assert session.messages == ["said"]
    assert [*new.knobs()].index("User") > [*new.knobs()].index("about")
    order = [name for name in new.knobs() if name in {*names, "User", "more", "endGroup", "say"}]
    assert order[:2] == ["User", "my_gain"]
    assert order[-3:] == ["lut", "endGroup", "say"]
    nuke.undo()
    assert nuke.toNode(f"{kind}1")["note"]._text() == values["note"]


def words_of(text: str) -> list[str]:
    """Returns the names of the knobs that a text gives a value."""
    flat = nk_script.words(text)
    return [name for name in flat[::2] if name != "addUserKnob"]


def test_an_update_keeps_a_number_that_the_artist_has_set_to_0(session: Session) -> None:
    """Nuke writes no 0 of a user knob, whatever its gizmo begins with."""
    comp = session.module.createNode("ReenactComp")
    comp["amount"].setValue(0)
    assert "amount" not in nk_script.words(comp.writeKnobs(1 | 4 | 8))
    plugin("nodes").update(comp)
    session.pump(lambda: not work()._deferred, 10, "the update")
    assert session.module.toNode("ReenactComp1")["amount"].value() == 0


# -- groups --------------------------------------------------------------------------------------

INSIDE = """Group {
 name Shot
}
 Input {
  inputs 0
  name Input1
 }
 Dot {
  name Dot1
 }
CHILD
 Output {
  name Output1
 }
end_group
"""


def group_with(session: Session, child: str, source: Node | None) -> tuple[Node, Node]:
    """Creates a Group around a node, which takes what comes in; returns both."""
    text = (ROOT / "gizmos" / f"{child}.gizmo").read_text() if child else ""
    session._read_text(INSIDE.replace("CHILD", text))
    group = session._root._children[-1]
    group.setInput(0, source)
    made = group.node(child) if child else group
    if child:
        whole(session, made)
    return group, made


def hands_on(node: Node, track: str, version: str) -> None:
    """Has a node show a version."""
    for knob, value in {"track": track, "shown_version": version}.items():
        node[knob].setValue(value)
    plugin("display").fill_menus(node, [version])


def test_the_search_goes_out_of_groups_and_into_them(session: Session, frames: str) -> None:
    upstream = plugin("upstream").upstream
    read = read_node(session, frames, FIRST, LAST)
    reenact = under(session, "Reenact", read)
    hands_on(reenact, "/a/t.latents", "a")
    reenact["character"].setValue("/a")
    group, edit = group_with(session, "ReenactEdit", under(session, "Blur", reenact))
    assert upstream(edit).node is reenact
    below = under(session, "ReenactStyle", under(session, "Blur", group))
    with pytest.raises(Exception, match=r"Shot.ReenactEdit has no latent track yet"):
        upstream(below)
    hands_on(edit, "/b/t.latents", "b")
    assert upstream(below).node is edit
    for kind, found in (("Precomp", reenact), ("LiveGroup", edit)):
        group.__class__, group._kind = getattr(nuke_standin, kind), kind
        assert upstream(below).node is found
    group["disable"].setValue(True)
    assert upstream(below).node is reenact
    group["disable"].setValue(False)
    edit["disable"].setValue(True)  # in at the Output, out at the Input
    assert upstream(below).node is reenact
    # A clone has the name of the other one, and what is connected to it is its own.
    reenact["track"].setValue("")
    solved = under(session, "Reenact", read)
    hands_on(solved, "/c/t.latents", "c")
    empty = session.module.createNode("Blur")
    clone = session.clone(empty)
    clone.setInput(0, solved)
    merge = under(session, "Merge2", empty, clone)
    assert upstream(under(session, "ReenactStyle", merge)).node is solved


@pytest.mark.parametrize("where", ["Read outside", "Read inside", "both"])
def test_the_files_of_a_plate_are_sent_through_groups(
    session: Session, frames: str, tmp_path: Path, where: str
) -> None:
    nuke = session.module
    read = read_node(session, frames, FIRST, LAST)
    source = read
    if where != "Read outside":
        group, _ = group_with(session, "", None)
        with group:
            read = read_node(session, frames, FIRST, LAST)
        group.output().setInput(0, read)
        source = group
    node = under(session, "Reenact", source)
    if where != "Read inside":
        _, node = group_with(session, "Reenact", source)
    read["raw"].setValue(True)
    nuke.scriptSaveAs(str(tmp_path / "shot.nk"))
    for knob, value in {"character": "/a.character", "source": "files"}.items():
        node[knob].setValue(value)
    session.press(node, "input_range")
    source = plugin("requests").build_request(node).source
    assert source.paths == [frames.replace("####", str(n)) for n in range(FIRST, LAST + 1)]


def test_the_character_comes_through_a_group(session: Session) -> None:
    person = session.module.createNode("ReenactPersonalize")
    person["character"].setValue("/anna.character")
    group, _ = group_with(session, "", person)
    node = under(session, "Reenact", None, group)
    assert plugin("upstream").character_of(node) == "/anna.character"


# -- files ---------------------------------------------------------------------------------------


def test_a_busy_disk_does_not_hold_nuke_up(
    session: Session, frames: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is made durable takes seconds then."""
    character = tmp_path / "small.character"
    save_character(character, small_character())
    node = session.module.createNode("Reenact")
    whole(session, node)
    folder = Path(frames).parent
    (folder / "track.latents").write_bytes(b"a track")
    show(session, node, "Result", frames, [1001, 1002, 1004])
    hands_on(node, str(folder / "track.latents"), folder.name)
    slept: list[float] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (slept.append(0), time.sleep(1), fsync(file)))
    session.longest = 0.0
    session.set(node, "character", character.as_posix())
    session.pump(lambda: "<img" in node["thumbnail"].value(), 10, "the picture")
    session.press(node, "approve")
    session.pump(lambda: node["approved"].value() == folder.name, 10, "the approval")
    assert (folder / "approved.json").exists()
    copy_of(session, node, tmp_path)
    assert slept  # in a thread
    assert session.longest < 0.5
