"""What the tests of nodes share: a session of Nuke, a server that it finds, and waiting.

A pytest plugin (`conftest.py`), so that its fixtures need no imports.
"""

from __future__ import annotations

import importlib
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # Qt and sockets are loaded only by tests of nodes
    from nuke_standin import Node, Session
    from running_server import Server


# What studios and artists set with nuke.knobDefault, as public menu.py files do. It holds inside
# our nodes too, and on a machine that lacks it a script would render another picture.
STUDIO_DEFAULTS = {
    "Merge2.bbox": "B",
    "Copy.bbox": "A",
    "Crop.crop": "false",
    "Crop.reformat": "true",
    "FilterErode.filter": "gaussian",
    "Premult.channels": "all",
    "Unpremult.channels": "all",
    "Grade.black_clamp": "true",
    "Switch.which": "1",
    "Read.raw": "true",
    "Read.before": "loop",
    "Read.after": "loop",
    "Read.localizationPolicy": "on",
    "Write.datatype": "32 bit float",
    "STMap.uv": "rgb",
    "Blur.channels": "alpha",
    "Multiply.channels": "rgba",
    "Multiply.value": "0",
    "Reformat.resize": "none",
    "Reformat.pbb": "false",
    "VectorBlur2.uv": "motion",
    "VectorBlur2.uv_offset": "-0.5",
    "VectorBlur2.blur_uv": "linear",
    "VectorBlur2.soft_lines": "true",
    "VectorBlur2.normalize": "false",
    "CornerPin2D.enable1": "false",
    "Roto.cliptype": "bbox",
    "Roto.output": "rgba",
}


@pytest.fixture
def session() -> Iterator[Session]:
    """A Nuke with a GUI."""
    import nuke_standin

    with nuke_standin.running() as one:
        yield one


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Starts a server for all tests of a file."""
    from running_server import Server

    one = Server(tmp_path_factory.mktemp("server")).start()
    yield one
    assert one.stop() == 0


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server that Nuke finds; it is unfrozen after each test."""
    monkeypatch.setenv("REENACT_HOME", str(running.folder))
    yield running
    freeze(running, signal.SIGCONT)


@pytest.fixture
def own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server for a test that kills or freezes it; not started yet."""
    from running_server import Server

    one = Server(tmp_path / "home")
    monkeypatch.setenv("REENACT_HOME", str(one.folder))
    yield one
    if one.process is not None and one.process.poll() is None:
        freeze(one, signal.SIGCONT)
        one.kill()


def freeze(server: Server, how: signal.Signals = signal.SIGSTOP) -> None:
    assert server.process is not None
    server.process.send_signal(how)


@contextmanager
def slow(server: Server) -> Iterator[None]:
    """Freezes a server for two thirds of the time."""
    ended = Event()

    def hold_up() -> None:
        while not ended.wait(0.1):
            freeze(server)
            ended.wait(0.2)
            freeze(server, signal.SIGCONT)

    thread = Thread(target=hold_up)
    thread.start()
    yield
    ended.set()
    thread.join()


def plugin(module: str) -> ModuleType:
    """Returns a module of the plugin as the current session has imported it."""
    return importlib.import_module(f"reenact.{module}")


def work() -> Any:
    """Returns the plugin's `Session`."""
    return plugin("nodes").SESSION


def request_of(node: Node, frame: int | None = None) -> Any:
    """Returns what a node's knobs ask the server for."""
    return plugin("requests").build_request(node, frame)


def under(session: Session, kind: str, *sources: Node | None) -> Node:
    """Creates a node with others connected to its inputs, and waits until it is whole."""
    node = session.module.createNode(kind)
    for i, source in enumerate(sources):
        node.setInput(i, source)
    if session._gui and node.knob("ready") is not None:
        whole(session, node)
    return node


def read_node(session: Session, pattern: str, first: int, last: int) -> Node:
    """Creates a Read of some frames."""
    node = session.module.createNode("Read")
    for knob, value in {"file": pattern, "first": first, "last": last}.items():
        node[knob].setValue(value)
    return node


def copy_of(session: Session, node: Node, folder: Path) -> Node:
    """Copies a node and pastes it, as by Ctrl+C and Ctrl+V."""
    clipboard = str(folder / "clipboard.nk")
    node["selected"].setValue(True)
    session.module.nodeCopy(clipboard)
    copy = session.module.nodePaste(clipboard)
    whole(session, copy)
    return copy


def whole(session: Session, *nodes: Node) -> None:
    """Waits until nodes that were created are whole for the plugin."""
    session.pump(lambda: all(n.knob("ready") and n["ready"].value() for n in nodes), 10, "nodes")


def open_copy(session: Session, made: Path, folder: Path) -> None:
    """Copies a folder with the script `shot.nk` and its versions, and opens the copy."""
    shutil.copytree(made, folder)
    for path in (folder / "shot.nk", *folder.glob("reenact/**/run.json")):
        path.write_text(path.read_text().replace(str(made), str(folder)))
    session.module.scriptOpen(str(folder / "shot.nk"))


def state(node: Node) -> str:
    return node["job_state"].value()


def until(session: Session, node: Node, *states: str, seconds: float = 200) -> None:
    """Waits for a state of the node's job; fails at once if the job has failed instead."""

    def there() -> bool:
        assert state(node) != "failed" or "failed" in states, node["state"].value()
        return state(node) in states

    session.pump(there, seconds, " or ".join(states))


def until_said(session: Session, node: Node, text: str) -> None:
    session.pump(lambda: text in node["state"].value(), 120, text)
