"""Shared by tests of the command line and of the server."""

import time

import pytest
from command_line import reenact
from small_demo import DEMO, STYLES, Demo


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """A small demo, made with the server of this session."""
    folder = tmp_path_factory.mktemp("a demo [of two]")
    begun = time.time()
    done = reenact(*DEMO, *STYLES, cwd=folder)
    assert done.returncode == 0, done.stderr
    drawn = max(path.stat().st_mtime for path in (folder / "demo" / "out").iterdir())
    return Demo(folder, done.stdout, drawn - begun)
