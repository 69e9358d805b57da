"""`reenact status | logs | job`: the server's jobs, shown and controlled."""

from __future__ import annotations

import json as jsonlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from reenact import protocol
from reenact.client import Client, ServerError
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from server.cli.remote import JobFailedError
from server.cli.reporting import Terminal
from server.frontend import home

console = Terminal(highlight=False, soft_wrap=True)
Json = Annotated[bool, typer.Option("--json", help="JSON instead of a table")]
ACTIONS = ("cancel", "pause", "resume", "finish", "delete")


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on showing it")] = False,
    json: Json = False,
) -> None:
    """Shows the server's jobs, how fast they go, and what is left."""
    with _connected() as client:
        if json:
            print(jsonlib.dumps({**client.ask(protocol.Health()), "list": client.jobs()}))
            return
        first: dict[str, tuple[float, float]] = {}
        if not watch:
            console.print(_table(client, first))
            return
        with Live(_table(client, first), console=console, refresh_per_second=2) as live:
            while True:
                time.sleep(0.5)
                live.update(_table(client, first))


def _table(client: Client, first: dict[str, tuple[float, float]]) -> Group:
    """Returns the server's state.

    Args:
        client: connected.
        first: when each job's stage was first seen, s, and what was done then: gives its rate.
    """
    health = client.ask(protocol.Health())
    whole = [Column(name, no_wrap=True) for name in ("job", "kind", "state")]
    table = Table(*whole, "stage", "done", "per s", "left", "for")
    for job in client.jobs()[:30]:
        progress = job["progress"]
        done, total = progress.get("done", 0), progress.get("total", 0)
        rate = left = ""
        if job["state"] == "running" and total:
            key = f"{job['id']} {progress['stage']}"
            since, at = first.setdefault(key, (time.monotonic(), done))
            seconds = time.monotonic() - since
            if seconds > 1 and done > at:
                speed = (done - at) / seconds
                rate, left = f"{speed:.2g}", _minutes((total - done) / speed)
        table.add_row(
            job["id"],
            job["kind"],
            job["state"],
            progress.get("stage", ""),
            f"{done:.0f} of {total:.0f}" if total else "",
            rate,
            left,
            escape(job["client"]),
        )
    summary = (
        f"server {health['server']}, up {_minutes(health['seconds'])}, "
        f"{health['clients']} clients, device {health['device'] or 'not used yet'}, "
        f"store {health['store_bytes'] / 2**30:.2f} of {health['store_limit'] / 2**30:.0f} GiB"
    )
    if health["gpu"]:
        summary += f", GPU memory {health['gpu']}"
    return Group(Text(summary), table)


def _minutes(seconds: float) -> str:
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f}"


def logs(
    job: Annotated[str, typer.Argument(help="A job's id, see reenact status")],
    json: Json = False,
) -> None:
    """Shows what happened to a job."""
    with _connected() as client:
        after = 0
        while events := client.events(job, after):
            for event in events:
                after = event["n"]
                if json:
                    print(jsonlib.dumps(event))
                elif (text := _event_text(event)) is not None:
                    when = time.strftime("%H:%M:%S", time.localtime(event["time"]))
                    console.print(f"{when}  {escape(text)}")


def _event_text(event: dict[str, Any]) -> str | None:
    """Returns an event in words; None for those that people need not see."""
    match event["type"]:
        case "state":
            return event["state"] + (f": {event['reason']}" if event["reason"] else "")
        case "note" | "log":
            return event["text"]
        case "file":
            return f"made {event['name']} {event['number'] or ''}".rstrip()
        case "progress" if event["done"] == event["total"] and event["total"]:
            return f"{event['stage']}: {event['done']:.0f} of {event['total']:.0f}"
    return None


def control_job(
    what: Annotated[str, typer.Argument(help="cancel, pause, resume, finish or delete")],
    job: Annotated[str, typer.Argument(help="A job's id, see reenact status")],
) -> None:
    """Cancels, pauses, resumes, finishes or deletes a job.

    To finish is to stop training at its next step and to keep a whole character or style of what it
    has learnt; resume then lets it go on.
    """
    if what not in ACTIONS:
        raise typer.BadParameter(f"cancel, pause, resume, finish or delete, not {what}")
    with _connected() as client:
        getattr(client, what)(job)


@contextmanager
def _connected() -> Iterator[Client]:
    """Yields a client of the server that runs; none is started.

    Raises:
        JobFailedError: no server answers, or it refused something.
    """
    home.make_keys(home.home())
    with Client("reenact", deadline=5.0) as client:
        try:
            yield client
        except ServerError as error:
            raise JobFailedError(str(error)) from None
