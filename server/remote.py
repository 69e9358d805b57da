"""The command line as a client: sends what a job needs, shows how it goes, fetches what it made."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from reenact import protocol
from reenact.client import Client, ServerError, find_server

from core.base.errors import ReenactError
from core.media.clip import Clip
from server import home
from server.reporting import Report

PRIVATE_IDLE_SECONDS = 30.0  # that a server which was started for a call outlives it
START_SECONDS = 60.0
HALT_SECONDS = 60.0  # that a job has to stop in


class JobFailed(ReenactError):
    """A job ended without its result; the message is the server's."""


@contextmanager
def connected(report: Report) -> Iterator[Client]:
    """A client of the server that runs, or of one that is started for the call.

    Raises:
        JobFailed: no server could be reached or started, or it refused something.
    """
    home.make_keys(home.home())
    with Client("reenact") as client:
        try:
            if not _answers(client):
                if "REENACT_SERVER" in os.environ:
                    raise JobFailed(
                        f"No server answers at {os.environ['REENACT_SERVER']} (REENACT_SERVER). "
                        "Start it there, or add --local to work without one."
                    )
                _start(client)
            yield client
        except ServerError as error:
            raise JobFailed(str(error) + (f" ({error.detail})" if error.detail else "")) from None


def _answers(client: Client, seconds: float = 3.0) -> bool:
    if not find_server()[0]:
        return False
    try:
        client.ask(protocol.Hello(client.name, [protocol.VERSION]), seconds)
    except ServerError as error:
        if error.code != "no_server":
            raise
        return False
    return True


def _start(client: Client) -> None:
    folder = home.home()
    log = folder / "store" / "logs" / "server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "server.cli",
        "serve",
        "--idle-exit",
        str(PRIVATE_IDLE_SECONDS),
    ]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # a job outlives the terminal
        )
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if _answers(client, 1.0):
            return
        # Another call may have been quicker: then this one ends, and that one answers.
        if process.poll() not in (None, 0) and not find_server()[0]:
            break
        time.sleep(0.1)
    raise JobFailed(f"The server does not start. Its log is {log}. --local works without one.")


def clip(client: Client, opened: Clip, report: Report) -> protocol.Clip:
    """Sends a clip's frames in its range, or says where the server can read them."""
    path, suffix = os.path.abspath(opened.path), Path(opened.path).suffix.lower()
    range_ = f"{opened.first}-{opened.last}"
    common: dict[str, Any] = {"colour_space": opened.colour_space, "name": opened.shown}
    if _may_read(client, path):
        whole = opened.kind == "still"
        return protocol.Clip(path=path, frames="" if whole else range_, **common)
    numbers = list(opened.numbers) if opened.kind == "sequence" else []
    paths = [opened.file(n) for n in numbers] or [opened.path]
    with report.stage("sending") as tick:
        files = client.send(paths, tick)
    if opened.kind == "movie":
        common["frames"] = range_
    return protocol.Clip(suffix=suffix, numbers=numbers, files=files, **common)


def file(client: Client, path: Path) -> protocol.File:
    """Sends a file."""
    if _may_read(client, os.path.abspath(path)):
        return protocol.File(path=os.path.abspath(path))
    return client.send([path])[0]


def _may_read(client: Client, path: str) -> bool:
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(prefix) for prefix in client.hello()["paths"])


def run(
    client: Client,
    task: protocol.Task,
    report: Report,
    place: Callable[[str, int], Path | None],
) -> dict[str, Any]:
    """Has a job done, and fetches its files as they come.

    Ctrl-C stops it; the same call goes on.

    Args:
        client: connected.
        task: whose files have been sent.
        report: told of progress.
        place: says where a file goes, by its name and number; None leaves it.

    Returns:
        The job's result, as plain values.

    Raises:
        JobFailed: it ended otherwise.
    """
    job = client.submit(task)
    facts: dict[str, Any] = {}
    state, reason, stage, after = "", "", "", 0
    with ExitStack() as bars:
        tick: Any = None
        try:
            for event in client.follow(job):
                after = event["n"]
                match event["type"]:
                    case "state":
                        state, reason = event["state"], event["reason"]
                    case "progress":
                        if event["stage"] != stage:
                            bars.close()
                            stage = event["stage"]
                            tick = bars.enter_context(report.stage(stage))
                        if event["total"]:
                            tick(event["done"], event["total"], **event["figures"])
                    case "note":
                        report.note(event["text"])
                    case "file":
                        path = place(event["name"], event["number"])
                        if path is not None:
                            client.fetch(protocol.File(event["hash"], event["size"]), path)
                    case "result":
                        facts = {k: v for k, v in event.items() if k not in ("n", "time", "type")}
        except KeyboardInterrupt:
            bars.close()
            report.note("stopping: what is done is kept")
            client.pause(job)
            until = time.monotonic() + HALT_SECONDS
            while client.status(job)["state"] == "running" and time.monotonic() < until:
                after = (client.events(job, after, 1.0) or [{"n": after}])[-1]["n"]
            raise
    if state != "done":
        raise JobFailed(reason or f"The job is {state}.")
    return facts
