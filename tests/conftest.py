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


# What takes long to make, for a whole file: its tests go to one worker.
COSTLY = {"running", "demo", "measured", "given_shot", "pictures", "recovered", "lpips"}


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by their room, groups those that share what takes long, the longest first.

    Begun last, a long one would leave other cores idle.
    """

    def seconds(item: pytest.Item) -> float:
        marker = item.get_closest_marker("timeout")
        return marker.args[0] if marker else 60.0 * ("own_server" in fixtures(item))

    def fixtures(item: pytest.Item) -> set[str]:
        return set(getattr(item, "fixturenames", ()))

    items.sort(key=seconds, reverse=True)
    for item in items:
        room = item.path.relative_to(Path(__file__).parent).parts[0]
        if room in ("server", "nuke"):
            item.add_marker(room)
        if shared := COSTLY & fixtures(item):
            group = "demo" if "demo" in shared else item.path.stem
            item.add_marker(pytest.mark.xdist_group(group))
