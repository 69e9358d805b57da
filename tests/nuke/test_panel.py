"""Tests the panel, offscreen: what it shows of a job while it works, and what its buttons do."""

import importlib
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from nuke_session import plugin, read_node, under, until, until_said, work
from nuke_standin import Session
from performer_faces import film_scan
from PySide6.QtCore import Qt, qInstallMessageHandler
from PySide6.QtGui import QColor, QImage
from PySide6.QtTest import QTest
from reenact import protocol
from reenact.client import Client
from running_server import FRAMES, Server, inputs, solve_task, wait_for

from core.personalize.character import load_character
from server.frontend import home

pytestmark = pytest.mark.timeout(600)

STEPS = 24


@pytest.fixture
def panel(session: Session) -> Iterator[Any]:
    """The panel, shown; Qt may say nothing about it."""
    said: list[str] = []
    before = qInstallMessageHandler(lambda kind, context, text: said.append(text))
    one = importlib.import_module("reenact.panel").Jobs()
    one.resize(760, 520)
    one.show()
    yield one
    one.close()
    session.pump(lambda: "jobs" not in {t.name for t in threading.enumerate()}, 20, "its thread")
    one.deleteLater()
    qInstallMessageHandler(before)
    # The platform without a screen says that of every window.
    assert {*said} <= {"This plugin does not support propagateSizeHints()"}


def pixels(widget: Any, path: Path) -> np.ndarray:
    """What a widget draws, `[H, W, 3]`; it lies in a file, too, to be looked at."""
    image = widget.grab().toImage().convertToFormat(QImage.Format.Format_RGB888)
    image.save(str(path))
    rows = np.frombuffer(image.constBits(), np.uint8).reshape(image.height(), -1).copy()
    return rows[:, : 3 * image.width()].reshape(image.height(), image.width(), 3)


def drawn(seen: np.ndarray, name: str) -> int:
    """How many columns of a graph, below its legend, have the colour of a figure."""
    colour = QColor(plugin("graph").FIGURES[name][2])
    rgb = np.array([colour.red(), colour.green(), colour.blue()])
    near = np.abs(seen[60:].astype(int) - rgb).max(2) < 40
    return int(near.any(0).sum())


def row_of(panel: Any, kind: str) -> int:
    kinds = [panel.table.item(row, 1).text() for row in range(panel.table.rowCount())]
    return kinds.index(kind) if kind in kinds else -1


def test_a_training_is_watched_and_stopped_early(
    session: Session, server: Server, panel: Any, tmp_path: Path
) -> None:
    pattern = film_scan(tmp_path, 20)
    session.module.scriptSaveAs(str(tmp_path / "shot.nk"), True)
    scan = read_node(session, pattern, 1, 20)
    node = under(session, "ReenactPersonalize", scan)
    knobs = {"who": "nobody: synthetic", "agreed": True, "refine": 1, "result_name": "anna"}
    for knob, value in {**knobs, "count": 8, "steps": STEPS, "resolution": "128"}.items():
        session.set(node, knob, value)
    nodes = plugin("nodes")
    session._held(lambda: nodes.finish(node))
    assert node["state"].value() == "Nothing is trained here at the moment."
    session.press(node, "submit")
    session.pump(lambda: row_of(panel, "personalize") == 0, 60, "the job")
    assert not panel.buttons["Stop and keep"].isEnabled()  # no job is chosen
    session._held(lambda: panel.table.selectRow(0))
    assert panel.buttons["Stop and keep"].isEnabled()
    session._held(panel.finish)
    session.pump(lambda: "Nothing is trained yet" in panel.message.text(), 60, "the refusal")
    session._held(lambda: nodes.finish(node))
    until_said(session, node, "Nothing is trained yet")

    def points(name: str) -> list[Any]:
        curves = [c["points"] for c in panel._detail.curves if c["name"] == name]
        return curves[0] if curves else []

    session.pump(lambda: len(points("psnr")) > 1, 200, "the second evaluation")
    seen = pixels(panel.graph, tmp_path / "graph.png")
    for name in ("loss", "psnr", "identity"):
        assert drawn(seen, name) > 20, name
    sheet = pixels(panel.sheet, tmp_path / "sheet.png")
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 1000  # faces, not a text
    files = sorted((server.folder / "cache" / "sheets").iterdir())
    opened: list[Path] = []
    panel.sheet._open = opened.append
    QTest.mouseClick(panel.sheet, Qt.MouseButton.LeftButton)
    assert opened[0] in files
    pixels(panel, tmp_path / "panel.png")

    session._held(lambda: nodes.finish(node))
    until(session, node, "done")
    text = node["state"].value()
    info = load_character(node["character"].value()).info
    assert info.stopped_early
    assert text == f"anna_v001.character is ready, stopped early after {info.steps} steps. " + (
        "Resume trains it further."
    )
    assert node["step"].value() == "resume"
    said = f"stopped early, {info.steps} steps"
    session.pump(lambda: panel.table.item(0, 3).text() == said, 60, "the state")
    assert panel.buttons["Resume"].isEnabled()
    assert not panel.buttons["Stop and keep"].isEnabled()
    assert points("loss")[-1][0] == info.steps

    # A panel that is opened later shows the whole curve, and fetches no picture again.
    before = {p: p.stat().st_mtime_ns for p in (server.folder / "cache" / "sheets").iterdir()}
    session._held(panel.hide)
    assert session.longest < 0.5
    later = importlib.import_module("reenact.panel").Jobs()
    later.show()
    session.pump(lambda: row_of(later, "personalize") == 0, 60, "the list")
    session._held(lambda: later.table.selectRow(0))
    session.pump(lambda: later._detail.image is not None, 60, "the job")
    assert later._detail.curves == panel._detail.curves
    assert later._detail.sheet == panel._detail.sheet
    after = {p: p.stat().st_mtime_ns for p in (server.folder / "cache" / "sheets").iterdir()}
    assert after == before
    later.close()

    session.press(node, "next")  # it is Resume
    until_said(session, node, "Tuning: ")
    until(session, node, "done")
    assert node["state"].value() == "anna_v001.character is ready."
    whole = load_character(node["character"].value()).info
    assert (whole.steps, whole.stopped_early) == (STEPS, False)


def test_a_solve_is_shown_by_frames(
    session: Session, server: Server, panel: Any, tmp_path: Path
) -> None:
    with server.client() as client:
        job = client.submit(solve_task(client, tmp_path))
        session.pump(lambda: row_of(panel, "solve") == 0, 60, "the job")
        session._held(lambda: panel.table.selectRow(0))
        assert not panel.buttons["Stop and keep"].isEnabled()
        session.pump(lambda: client.status(job)["state"] == "done", 200, "the track")
    session.pump(
        lambda: [len(c["points"]) for c in panel._detail.curves] == [FRAMES] * 2, 60, "the figures"
    )
    assert {c["axis"] for c in panel._detail.curves} == {"frame"}
    assert [x for x, _ in panel._detail.curves[0]["points"]] == list(range(1001, 1001 + FRAMES))
    seen = pixels(panel.graph, tmp_path / "graph.png")
    assert drawn(seen, "loss") > 20
    assert drawn(seen, "keypoint_error") > 20


def test_the_jobs_of_every_server_that_a_node_uses_are_listed(
    session: Session, server: Server, own_server: Server, panel: Any, tmp_path: Path
) -> None:
    """`own_server` is found, and a node names the other one; later another node names it, too."""
    own_server.start()
    shutil.copyfile(server.folder / "keys/server.key", own_server.folder / "keys/remote.key")
    home.add_key(server.folder, "panel", own_server.folder / "keys/client.key")
    tasks = {}
    for one in (server, own_server):
        with one.client() as client:
            character = client.send([inputs(tmp_path)[0]])[0]
            endless = protocol.Stylize(character, "sketch", program="sketch", steps=100_000)
            tasks[one] = client.submit(endless)

    def rows() -> list[tuple[str, str, str]]:
        jobs = {(name, job["id"], job["state"]) for name, job in panel._rows}
        return sorted(jobs, key=lambda row: (row[0], row[1] not in tasks.values()))

    def shown(one: Server, state: str = "running") -> tuple[str, str, str]:
        return ("" if one is own_server else name, tasks[one], state)

    name = json.loads((server.folder / "server.json").read_text())["endpoint"]
    name = name.removeprefix("tcp://")
    session.pump(lambda: shown(own_server) in rows(), 60, "the server that is found")
    assert panel.table.isColumnHidden(5)
    assert panel.message.text() == "1 job on the server."
    first = under(session, "Reenact")
    session.pump(lambda: work().servers() == [""], 10, "the node")
    session.set(first, "server", name)
    session.pump(lambda: {row[0] for row in rows()} == {name}, 60, "the node's server alone")
    under(session, "ReenactEdit")  # names none
    session.pump(lambda: {row[0] for row in rows()} == {"", name}, 60, "both")
    assert not panel.table.isColumnHidden(5)
    assert "on 2 servers." in panel.message.text()

    session._held(lambda: panel.table.selectRow([row[0] for row in panel._rows].index(name)))
    while panel.chosen() != tasks[server]:
        session._held(lambda: panel.table.selectRow(panel.table.currentRow() + 1))
    session._held(panel.cancel)
    session.pump(lambda: shown(server, "cancelled") in rows(), 60, "the end")
    assert shown(own_server) in rows()
    assert panel.chosen() == tasks[server]

    # One that is named in two ways is listed once, and one that is gone is said to be.
    found = json.loads((own_server.folder / "server.json").read_text())["endpoint"]
    shutil.copyfile(own_server.folder / "keys/server.key", own_server.folder / "keys/remote.key")
    session.set(first, "server", found.removeprefix("tcp://"))
    both = {"", found.removeprefix("tcp://")}
    session.pump(lambda: panel._lists.keys() == both, 60, "both names")
    session.pump(lambda: all(isinstance(j, list) for j in panel._lists.values()), 60, "lists")
    session.pump(lambda: [row[1] for row in rows()] == [tasks[own_server]], 60, "one row")
    session.set(first, "server", "127.0.0.1:1")
    said = "127.0.0.1:1: No Reenact server answers"
    session.pump(lambda: said in panel.message.text(), 60, "the reason")
    assert panel.message.text().startswith("1 job on the server. ")
    assert shown(own_server) in rows()
    assert session.longest < 0.5


def test_a_hidden_panel_asks_nothing(session: Session, own_server: Server, panel: Any) -> None:
    own_server.start()
    session.pump(lambda: "jobs on the server" in panel.message.text(), 60, "the list")
    session._held(panel.hide)
    with own_server.client() as client:
        ask = importlib.import_module("reenact.protocol").Health()
        wait_for(lambda: client.ask(ask)["clients"] == 1, 20, "the panel's goodbye")
    session._held(panel.show)
    with own_server.client() as client:
        session.pump(lambda: client.ask(ask)["clients"] == 2, 20, "the panel")


def test_a_panel_asks_again_after_what_nobody_foresaw(
    session: Session, own_server: Server, panel: Any
) -> None:
    home.make_keys(own_server.folder)
    with patch.object(Client, "jobs", side_effect=[RuntimeError("surprise"), *([[]] * 99)]):
        session.pump(lambda: "RuntimeError('surprise')" in panel.message.text(), 20, "the error")
        session.pump(lambda: "0 jobs on the server" in panel.message.text(), 20, "the list")
