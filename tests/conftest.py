"""Shared by all tests."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import shared

if "PYTEST_XDIST_WORKER" in os.environ:  # a process for each core: more threads would only wait
    os.environ["OMP_NUM_THREADS"] = "1"

import server  # noqa: F401  (sets torch's threads up as the command line does)

# What a shell runs in the background ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["nuke_session"]


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keys, server and store of the tests: nobody's real ones. The server ends with them."""
    base = tmp_path_factory.getbasetemp()  # of this worker
    shared.FOLDER = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder = tmp_path_factory.mktemp("home")
    os.environ["REENACT_HOME"] = str(folder)
    os.environ.pop("REENACT_SERVER", None)
    yield folder
    if (folder / "server.json").exists():
        pid = json.loads((folder / "server.json").read_text())["pid"]
        os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + 20
        while (folder / "server.json").exists() and time.monotonic() < until:
            time.sleep(0.1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by their room, and puts files with a longer timeout first.

    Begun last, one of these would leave other cores idle.
    """
    for item in items:
        room = item.path.relative_to(Path(__file__).parent).parts[0]
        if room in ("server", "nuke"):
            item.add_marker(room)
    longest: dict[Path, float] = {}
    for item in items:
        marker = item.get_closest_marker("timeout")
        seconds = marker.args[0] if marker else 0
        longest[item.path] = max(seconds, longest.get(item.path, 0))
    items.sort(key=lambda item: longest[item.path], reverse=True)
