"""`reenact serve`: the inference server."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
import time
from pathlib import Path
from typing import Annotated

import typer
import zmq
from reenact.address import parse_address, resolve, server_elsewhere
from reenact.errors import ServerError

from core.base.errors import ReenactError
from server.frontend import home
from server.jobs.common import BadOptionError
from server.locks import LockHeldError, exclusive_lock

TAKEN_SECONDS = 3.0  # for which the gateway of a server that was killed may keep its port


class ListenError(ReenactError):
    """The server can't listen at its address."""


class ServerRunsError(ReenactError):
    """Another server of this machine has the folder."""


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
    folder, endpoint = home.home(), _endpoint(bind)
    try:
        with exclusive_lock(folder / "server.lock", f"A server runs for {folder} already."):
            home.remove_server_file(folder)  # of a server that was killed
            try:
                service = Service(
                    folder,
                    endpoint,
                    Limits(store_bytes=int(store_limit * 2**30)),
                    tuple(allow_path or ()),
                    idle_exit,
                )
            except zmq.ZMQError as error:
                raise ListenError(f"The server can't listen at {bind}: {error}.") from None
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: service.stop())
            service.serve()
    except LockHeldError as error:
        if elsewhere := server_elsewhere():
            raise LockHeldError(elsewhere) from None
        raise ServerRunsError(str(error)) from None


def _endpoint(bind: str) -> str:
    """Returns the ZeroMQ endpoint of HOST:PORT, after a try to listen there.

    Raises:
        BadOptionError: it is no address.
        ListenError: nobody can listen there; the message says why.
    """
    try:
        host, port = parse_address(bind, least_port=0)
        endpoint, ipv6 = resolve("0.0.0.0" if host == "*" else host, port)
    except ServerError as error:
        raise BadOptionError(f"--bind: {error}") from None
    number = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    until = time.monotonic() + TAKEN_SECONDS
    while True:
        try:
            _try_listening(number, port, ipv6)
            return endpoint
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < until:
                time.sleep(0.1)
                continue
            why = {
                errno.EADDRINUSE: f"port {port} is in use",
                errno.EADDRNOTAVAIL: f"{host} is no address of this machine",
                errno.EACCES: f"port {port} is not for everybody, those from 1024 are",
            }.get(error.errno or 0, str(error.strerror))
            raise ListenError(
                f"The server can't listen at {bind}: {why}. Choose another address with --bind; "
                "port 0 takes a free one."
            ) from None


def _try_listening(number: str, port: int, ipv6: bool) -> None:
    """Listens at an address for a moment.

    Raises:
        OSError: that is not possible.
    """
    with socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET) as probe:
        if os.name == "posix":  # as ZeroMQ does; on Windows it would take a port from another
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((number, port))
        probe.listen()
