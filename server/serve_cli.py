"""`reenact serve | status | logs | jobs | keys | store`: the server, and a look at it."""

from __future__ import annotations

import json as jsonlib
import logging
import signal
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from reenact import protocol
from reenact.client import Client, ServerError
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from server import home
from server.remote import JobFailed

console = Console(highlight=False, soft_wrap=True)
keys = typer.Typer(help="Who may connect to this server.", no_args_is_help=True)
store = typer.Typer(help="The server's files.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="JSON instead of a table")]


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = getattr(record, "facts", {})
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **facts,
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return jsonlib.dumps(line)


def serve(
    bind: Annotated[
        str, typer.Option(help="HOST:PORT to listen at; port 0 takes a free one")
    ] = "127.0.0.1:0",
    allow_path: Annotated[
        list[Path] | None,
        typer.Option(help="Folder in which clients may name files by path; repeat for more"),
    ] = None,
    store_limit: Annotated[float, typer.Option(min=0.01, help="GiB that files may take")] = 100.0,
    idle_exit: Annotated[
        float | None, typer.Option(help="Seconds without clients and jobs, after which it ends")
    ] = None,
) -> None:
    """Runs the inference server until Ctrl-C or SIGTERM; jobs then go on at the next start.

    It listens to this machine alone unless --bind says otherwise, and only to clients whose keys
    were allowed (reenact keys).
    """
    from server.service import Limits, Service

    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
    logging.getLogger("reenact").addHandler(handler)
    logging.getLogger("reenact").setLevel(logging.INFO)
    folder = home.home()
    with home.only_one(folder / "server.lock", f"A server runs for {folder} already."):
        service = Service(
            folder,
            f"tcp://{bind}",
            Limits(store_bytes=int(store_limit * 2**30)),
            tuple(allow_path or ()),
            idle_exit,
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: service.stop())
        service.serve()


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on showing it")] = False,
    json: Json = False,
) -> None:
    """Shows the server's jobs, how fast they go, and what is left."""
    with _client() as client:
        if json:
            print(jsonlib.dumps({**client.ask(protocol.Health()), "list": client.jobs()}))
            return
        before: dict[str, tuple[float, float]] = {}
        if not watch:
            console.print(_table(client, before))
            return
        with Live(_table(client, before), console=console, refresh_per_second=2) as live:
            while True:
                time.sleep(0.5)
                live.update(_table(client, before))


def _table(client: Client, before: dict[str, tuple[float, float]]) -> Group:
    """`before`: when each job's stage was first seen at what, to tell its rate."""
    health = client.ask(protocol.Health())
    whole = [Column(name, no_wrap=True) for name in ("job", "kind", "state")]
    table = Table(*whole, "stage", "done", "per s", "left", "for")
    for job in client.jobs()[:30]:
        progress = job["progress"]
        done, total = progress.get("done", 0), progress.get("total", 0)
        rate = left = ""
        if job["state"] == "running" and total:
            key = f"{job['id']} {progress['stage']}"
            since, at = before.setdefault(key, (time.monotonic(), done))
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
    said = (
        f"server {health['server']}, up {_minutes(health['seconds'])}, "
        f"{health['clients']} clients, device {health['device'] or 'not used yet'}, "
        f"store {health['store_bytes'] / 2**30:.2f} of {health['store_limit'] / 2**30:.0f} GiB"
    )
    if health["gpu"]:
        said += f", GPU memory {health['gpu']}"
    return Group(Text(said), table)


def _minutes(seconds: float) -> str:
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f}"


def logs(
    job: Annotated[str, typer.Argument(help="A job's id, see reenact status")],
    json: Json = False,
) -> None:
    """Shows what happened to a job."""
    with _client() as client:
        after = 0
        while events := client.events(job, after):
            for event in events:
                after = event["n"]
                if json:
                    print(jsonlib.dumps(event))
                elif (said := _said(event)) is not None:
                    when = time.strftime("%H:%M:%S", time.localtime(event["time"]))
                    console.print(f"{when}  {escape(said)}")


def _said(event: dict[str, Any]) -> str | None:
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


def halt(
    what: Annotated[str, typer.Argument(help="cancel, pause, resume or delete")],
    job: Annotated[str, typer.Argument(help="A job's id, see reenact status")],
) -> None:
    """Cancels, pauses, resumes or deletes a job."""
    if what not in ("cancel", "pause", "resume", "delete"):
        raise typer.BadParameter(f"cancel, pause, resume or delete, not {what}")
    with _client() as client:
        getattr(client, what)(job)


class _client:
    """A client whose refusals are sentences of the command line."""

    def __enter__(self) -> Client:
        self.client = Client("reenact", deadline=5.0)
        return self.client

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.client.close()
        if isinstance(error, ServerError):
            raise JobFailed(str(error)) from None


# -- keys ----------------------------------------------------------------------------------------


@keys.command("list")
def list_keys() -> None:
    """Shows who may connect."""
    home.make_keys(home.home())
    for key, name in home.allowed(home.home()).items():
        console.print(f"{name:20s} {escape(key)}")


@keys.command("add")
def add(
    name: Annotated[str, typer.Argument(help="What to call the holder")],
    public: Annotated[
        Path | None, typer.Argument(help="Their .key file; default: makes them a pair here")
    ] = None,
) -> None:
    """Lets somebody in: by their public key, or with a pair that is made here and handed over."""
    folder = home.home()
    home.make_keys(folder)
    if public is None:
        secret = home.make_key(Path.cwd(), name)
        public = secret.with_suffix(".key")
        console.print(
            f"  {escape(str(secret))} is theirs: it becomes their ~/.reenact/keys/client."
            f"key_secret, and {folder / 'keys' / 'server.key'} their keys/remote.key"
        )
    home.add_key(folder, name, public)
    console.print(f"  {escape(name)} may connect")


@keys.command("revoke")
def revoke(name: Annotated[str, typer.Argument(help="As keys list calls them")]) -> None:
    """Lets somebody in no more, at once."""
    home.revoke_key(home.home(), name)
    console.print(f"  {escape(name)} may no longer connect")


# -- store ---------------------------------------------------------------------------------------


def _open_store() -> Any:
    from server.store import Store

    return Store(home.home() / "store", 1 << 62)


@store.command("show")
def show() -> None:
    """Shows what files take, and which are pinned."""
    with _quiet_server():
        opened = _open_store()
        used, kept = opened.used(), opened.pinned()
        opened.close()
    console.print(f"  {used / 2**30:.2f} GiB in {home.home() / 'store'}")
    for hash in kept:
        console.print(f"  pinned {hash}")


@store.command("collect")
def collect() -> None:
    """Removes files that clients can send again; never results, nor what is pinned."""
    with _quiet_server():
        opened = _open_store()
        freed = opened.collect()
        opened.close()
    console.print(f"  {freed / 2**20:.0f} MiB freed")


@store.command("pin")
def pin(
    hash: Annotated[str, typer.Argument(help="A file's hash")],
    off: Annotated[bool, typer.Option("--off", help="Unpin it")] = False,
) -> None:
    """Keeps a file from being removed when room is needed."""
    with _quiet_server():
        opened = _open_store()
        found = opened.pin(hash, not off)
        opened.close()
    if not found:
        raise JobFailed(f"The store has no file {hash}.")


def _quiet_server() -> Any:
    folder = home.home()
    return home.only_one(
        folder / "server.lock", "A server uses the store. Stop it first; it collects by itself."
    )
