"""The command line as a client: sends what a job needs, shows how it goes, fetches what it made."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reenact import protocol
from reenact.address import server_elsewhere
from reenact.client import Client, ServerError
from reenact.launcher import answers, launch

from core.base.errors import ReenactError
from core.base.text import printable
from core.media.numbering import frame_path
from server import start
from server.cli.reporting import Report
from server.frontend import home
from server.jobs import registry
from server.locks import exclusive_lock

if TYPE_CHECKING:
    from core.media.clip import Clip

PRIVATE_IDLE_SECONDS = 30.0  # that a server which was started for a call outlives it
PAUSE_SECONDS = 60.0  # that a job has to stop in


class JobFailedError(ReenactError):
    """A job ended without its result; the message is the server's."""


@contextmanager
def connected(report: Report) -> Iterator[Client]:
    """Yields a client of the server that runs, or of one that is started for the call.

    Raises:
        JobFailedError: no server could be reached or started, or it refused something.
        LockHeldError: the server of this home runs on another machine, for that machine alone.
    """
    home.make_keys(home.home())
    with Client("reenact") as client:
        try:
            if not answers(client):
                if elsewhere := os.environ.get("REENACT_SERVER"):
                    raise JobFailedError(
                        f"No server answers at {elsewhere} (REENACT_SERVER). "
                        "Start it there, or add --local to work without one."
                    )
                if why := server_elsewhere():  # if it is alive, a server would start in vain
                    with exclusive_lock(home.home() / "server.lock", why):
                        pass
                idle = ("--idle-exit", str(PRIVATE_IDLE_SECONDS))
                launch(client, start.command("server.cli.main", "serve", *idle))
            yield client
        except ServerError as error:
            local = " --local works without one." if error.code == "no_start" else ""
            detail = f" ({error.detail})" if error.detail else local
            raise JobFailedError(str(error) + detail) from None


def send(
    client: Client, value: Path | Clip | Sequence[Path], report: Report
) -> protocol.File | protocol.Clip | list[protocol.File]:
    """Sends a file or a clip, or says where the server can read it; a list is always sent.

    Returns:
        What a task names it by.
    """
    if isinstance(value, Sequence):
        return client.send(list(value))
    if not isinstance(value, Path):
        return _send_clip(client, value, report)
    if _may_read(client, os.path.abspath(value)):
        return protocol.File(path=os.path.abspath(value))
    return client.send([value])[0]


def _send_clip(client: Client, clip: Clip, report: Report) -> protocol.Clip:
    """Sends a clip's frames in its range, or says where the server can read them."""
    path, suffix = os.path.abspath(clip.path), Path(clip.path).suffix.lower()
    range_ = f"{clip.first}-{clip.last}"
    common: dict[str, Any] = {
        "colour_space": clip.colour_space,
        "config": os.environ.get("OCIO", ""),
        "name": printable(clip.shown),
    }
    if _may_read(client, path):
        whole = clip.kind == "still"
        return protocol.Clip(path=path, frames="" if whole else range_, **common)
    numbers = list(clip.numbers) if clip.kind == "sequence" else []
    paths = [clip.file(n) for n in numbers] or [clip.path]
    with report.stage("sending") as progress:
        files = client.send(paths, progress)
    if clip.kind == "movie":
        common["frames"] = range_
    return protocol.Clip(suffix=suffix, numbers=numbers, files=files, **common)


def _may_read(client: Client, path: str) -> bool:
    if path != printable(path):  # messages are Unicode
        return False
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(prefix) for prefix in client.hello()["paths"])


def run(
    client: Client, task: protocol.Task, report: Report, outputs: Mapping[str, Path]
) -> dict[str, Any]:
    """Has a job done, and fetches its files as they come.

    Ctrl-C pauses it; the same call goes on.

    Args:
        client: connected.
        task: whose files have been sent.
        report: receives progress and notes.
        outputs: where results go, by name; others are not fetched.

    Returns:
        The facts about the result, as plain values.

    Raises:
        JobFailedError: the job ended otherwise.
    """
    kind = registry.kind_of(task)
    results = kind.results
    texts: dict[str, Any] = {
        name: printable(value, lines=True)
        for name, value in vars(task).items()
        if isinstance(value, str)
    }
    task = dataclasses.replace(task, **texts)  # messages are Unicode, names of files need not be
    job = client.submit(task)
    facts: dict[str, Any] = {}
    state, reason, stage, after = "", "", "", 0
    with ExitStack() as bars:
        progress: Any = None
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
                            progress = bars.enter_context(report.stage(stage))
                        if event["total"]:
                            progress(event["done"], event["total"], **event["figures"])
                    case "note":
                        report.note(event["text"])
                    case "file" if event["name"] in outputs:
                        path = outputs[event["name"]]
                        if "####" in results[event["name"]]:
                            path = Path(frame_path(str(path), event["number"]))
                        client.fetch(protocol.File(event["hash"], event["size"]), path)
                    case "result":
                        facts = {k: v for k, v in event.items() if k not in ("n", "time", "type")}
        except KeyboardInterrupt:
            bars.close()
            report.note("stopping: what is done is kept")
            client.pause(job)
            if kind.name in protocol.TRAINING:
                report.note(
                    f"the same command goes on; first `reenact job finish {job}`, and it "
                    "ends with what is trained"
                )
            until = time.monotonic() + PAUSE_SECONDS
            while client.status(job)["state"] == "running" and time.monotonic() < until:
                after = (client.events(job, after, 1.0) or [{"n": after}])[-1]["n"]
            raise
    if state != "done":
        raise JobFailedError(reason or f"The job is {state}.")
    if facts.get("stopped_early"):
        report.note(
            f"it was stopped early, after {facts['steps']} steps: `reenact job resume {job}` lets "
            "it go on, and the same command then fetches more"
        )
    return facts
