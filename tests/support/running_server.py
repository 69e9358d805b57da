"""A server in its own process and home, as `reenact serve` runs it, and what it is given to do."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from reenact import protocol
from reenact.client import Client
from reenact.protocol import File, Render, Solve
from small_character import small_character

from core.media.write import write_png
from core.personalize.character import save_character
from core.solve.latent_track import load_track
from core.synthetic import performer
from server.frontend import home

FRAMES = 6
QUICK: dict[str, Any] = {"steps": 2, "neutral": "off"}  # settings of a solve


class Server:
    """`reenact serve` in a folder; may be killed and started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        home.make_keys(folder)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Server":
        (self.folder / "server.json").unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "server.cli.main", "serve", *self.options],
                env=os.environ | {"REENACT_HOME": str(self.folder)},
                stdout=log,
                stderr=log,
            )
        wait_for(lambda: (self.folder / "server.json").exists(), 60, "the server")
        return self

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, as service managers do; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)

    @contextmanager
    def client(self, deadline: float = 60.0) -> Iterator[Client]:
        with (
            patch.dict(os.environ, {"REENACT_HOME": str(self.folder)}),
            Client("test", deadline) as client,
        ):
            yield client

    def log(self) -> list[dict[str, Any]]:
        lines = (self.folder / "log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


def wait_for(test: Callable[[], object], seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < until, f"waited {seconds} s for {what}"
        time.sleep(0.05)


@lru_cache(maxsize=1)
def inputs(folder: Path) -> tuple[Path, str]:
    """A character's file and a driving clip's pattern, made once."""
    made = folder / "small.character"
    save_character(made, small_character())
    motion = performer.performance(performer.random_identity(3), FRAMES, fps=8.0, seed=3)
    for i, parameters in enumerate(motion):
        write_png(folder / f"plate.{1001 + i}.png", performer.render(parameters, 160))
    return made, str(folder / "plate.####.png")


def solve_task(client: Client, folder: Path, **settings: Any) -> Solve:
    """A quick solve of the clip, its files sent."""
    character, pattern = inputs(folder)
    clip = client.send_clip(pattern, range(1001, 1001 + FRAMES))
    return Solve(clip, client.send([character])[0], **QUICK | settings)


def render_task(client: Client, folder: Path, track: Path) -> Render:
    """Patches of a track on the clip."""
    task = solve_task(client, folder)
    return Render(client.send([track])[0], task.character, task.plate, name="track")


def finish(client: Client, job: str, seconds: float = 200) -> dict[str, Any]:
    """Waits for a job's end; its status."""
    wait_for(lambda: client.status(job)["state"] in ("done", "failed", "cancelled"), seconds, job)
    return client.status(job)


def wait_for_progress(client: Client, job: str, stage: str, least: float = 0.5) -> None:
    """Until a job is somewhere inside a stage."""

    def there() -> bool:
        status = client.status(job)
        assert status["state"] not in ("done", "failed"), status
        progress = status["progress"]
        return progress.get("stage") == stage and progress["done"] >= least

    wait_for(there, 120, f"{stage} in {job}")


def same_track(client: Client, job: str, local: Path, folder: Path) -> Path:
    """Fetches a job's track and compares it with the local one."""
    (made,) = client.status(job)["files"]
    path = folder / "fetched.latents"
    client.receive([(File(made["hash"], made["size"]), path)])
    ours, theirs = load_track(path), load_track(local)
    for name in (
        "numbers",
        "state",
        "alpha",
        "delta",
        "codes",
        "smooth",
        "quads",
        "neutral_offset",
    ):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)
    return path


def kill_worker(client: Client, lane: str = "long") -> int:
    pid = client.ask(protocol.Health())["workers"][lane]["pid"]
    os.kill(pid, signal.SIGKILL)
    return pid


def gateway_of(server: Server) -> int:
    """The number of the process that holds the server's sockets."""
    assert server.process is not None
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            (parent,) = re.findall(r"PPid:\s+(\d+)", (folder / "status").read_text())
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if int(parent) == server.process.pid and b"server.frontend.gateway" in command:
            return int(folder.name)
    raise AssertionError("there is no gateway")


def resident(server: Server) -> int:
    """Bytes of memory that the front end and its gateway hold."""
    assert server.process is not None
    pages = 0
    for pid in (server.process.pid, gateway_of(server)):
        pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
