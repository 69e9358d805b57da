"""`reenact serve`: the inference server."""

from __future__ import annotations

import json
import logging
import signal
from pathlib import Path
from typing import Annotated

import typer

from server.frontend import home
from server.locks import exclusive_lock


class _JsonLines(logging.Formatter):
    """Writes a record as one line of JSON."""

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
        return json.dumps(line)


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
    from server.frontend.service import Limits, Service

    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
    logging.getLogger("reenact").addHandler(handler)
    logging.getLogger("reenact").setLevel(logging.INFO)
    folder = home.home()
    with exclusive_lock(folder / "server.lock", f"A server runs for {folder} already."):
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
