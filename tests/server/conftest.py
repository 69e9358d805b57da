"""Shared by tests of the server and of the command line."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from reenact import protocol
from running_server import QUICK, Server, inputs
from shared import made_once

from core.media.read import open_clip
from server.cli.reporting import Report
from server.jobs import registry
from server.jobs.common import Context


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the character and the driving clip lie."""
    return tmp_path_factory.mktemp("given")


@pytest.fixture(scope="module")
def server(running: Server) -> Server:
    """One server for the tests that leave it as it was."""
    return running


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """One for a test that hurts it."""
    running = Server(tmp_path / "home")
    yield running
    if running.process is not None and running.process.poll() is None:
        running.kill()


@pytest.fixture(scope="session")
def local(folder: Path) -> Path:
    """The clip solved without a server: what every undisturbed and disturbed job must give."""
    character, pattern = inputs(folder)

    def make(made: Path) -> None:
        context = Context(
            Report(machine=True),
            {"character": character},
            {"plate": open_clip(pattern)},
            {"track.latents": made / "local.latents"},
        )
        registry.run_task(protocol.Solve(protocol.Clip(), protocol.File(), **QUICK), context)

    return made_once("local solve", make) / "local.latents"
