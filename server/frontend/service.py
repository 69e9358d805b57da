"""The server's loop: one thread that takes requests and calls what answers them.

The parts that it composes each keep their own state: `Requests` and `EventPolls` (what clients
ask), `Transfers` (chunks, in threads of their own), `Scheduler` (jobs, in worker processes), and
`Database`. No part here reads a picture, so no client's file can crash the front end; nor has it a
socket that clients reach, which is the gateway's (`server.frontend.gateway`).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import sys
import time
from collections.abc import Callable
from pathlib import Path

from server.frontend import home
from server.frontend.database import Database, WriteQueue
from server.frontend.gateway import Gateway
from server.frontend.peers import Limits, Message, Peer, Peers, Reply
from server.frontend.requests import EventPolls, Requests
from server.frontend.scheduler import Scheduler
from server.frontend.transfers import Transfers

log = logging.getLogger("reenact")

TICK_SECONDS = 0.1  # after which the loop looks at clocks, whatever arrives
SWITCH_SECONDS = 0.0005  # after which a thread that computes lets the one of the gateway read
TURN_SECONDS = 0.01  # of requests, after which the loop looks at everything else again
TIDY_SECONDS = 3.0
STOP_SECONDS = 60.0  # that workers have to stop in


class Mailbox:
    """Functions that other threads hand to the loop; each one wakes it."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.post = self._queue.put

    def deliver(self, seconds: float) -> None:
        """Calls what was posted, after waiting at most some seconds for the first; from the loop.

        What is posted meanwhile is left for the next call.
        """
        try:
            self._queue.get(timeout=seconds)()
            for _ in range(self._queue.qsize()):
                self._queue.get_nowait()()
        except queue.Empty:
            pass


class Service:
    """The server.

    Args:
        folder: with keys and store, see `server.frontend.home`.
        bind: ZeroMQ endpoint; port 0 (`tcp://127.0.0.1:0`) takes a free one.
        limits: of what clients may ask for.
        allow_paths: prefixes under which a task may name files by path.
        idle_exit: seconds without clients and jobs after which it ends; None: never.
        gpus: how many to use; None: all.

    Raises:
        SchemaMismatchError: a newer version has written the store.
        OSError, zmq.ZMQError: the endpoint or the folder can't be used.
    """

    def __init__(
        self,
        folder: Path,
        bind: str = "tcp://127.0.0.1:0",
        limits: Limits | None = None,
        allow_paths: tuple[Path, ...] = (),
        idle_exit: float | None = None,
        gpus: int | None = None,
    ) -> None:
        self._folder, self._idle_exit = folder, idle_exit
        limits = limits or Limits()
        home.make_keys(folder)
        self._database = Database(folder / "store", limits.store_bytes)
        self._writes = WriteQueue(self._database)
        self._mailbox = Mailbox()
        post = self._mailbox.post
        self._allow_list = home.AllowList(folder)
        self._peers = Peers(limits, lambda: post(lambda: None))
        self._polls = EventPolls(self._database)
        notify = self._polls.notify
        self._scheduler = Scheduler(self._database, self._writes, post, notify, gpus)
        self._transfers = Transfers(self._database, self._writes, post, notify, limits)
        self._requests = Requests(
            self._database,
            limits,
            allow_paths,
            self._peers,
            self._polls,
            self._scheduler,
            self._transfers,
            post,
        )
        self._public = home.server_keys(folder)[0].decode()
        self._gateway = Gateway(
            folder,
            bind,
            limits.requests_per_second,
            self._on_record,
            self._on_restart,
        )
        self.endpoint = self._gateway.endpoint
        self._busy = time.monotonic()  # when there was a client or a job last
        self._tidied = 0.0
        self._more = False  # whether requests wait that there was no time for
        self._stopping = False
        home.write_server_file(folder, self.endpoint, self._public)

    def stop(self) -> None:
        """Ends `serve` soon; from any thread or signal handler."""
        self._stopping = True

    def serve(self) -> None:
        """Serves until it is stopped; jobs that run then continue at the next start."""
        sys.setswitchinterval(SWITCH_SECONDS)
        log.info("serving", extra={"facts": {"endpoint": self.endpoint}})
        try:
            while not self._stopping:
                self._step()
                now = time.monotonic()
                self._scheduler.schedule()
                self._tidy(now)
            self._scheduler.stop_all()
            until = time.monotonic() + STOP_SECONDS
            while self._scheduler.busy and time.monotonic() < until:
                self._step(accept=False)
                self._scheduler.end_stuck()
        finally:
            self.close()

    def close(self) -> None:
        """Frees everything; what runs is killed."""
        home.remove_server_file(self._folder)
        self._scheduler.close()
        self._transfers.close()
        self._gateway.close()
        self._database.close()

    def _on_record(self, record: list[bytearray]) -> None:
        """Takes what the gateway tells; called from its thread."""
        kind, identity, *rest = record
        name = bytes(identity)
        if kind == b"message":
            key, *parts = rest
            self._peers.arrive(name, key.decode(), parts)
        elif kind == b"sent":
            size = int(rest[0])
            self._mailbox.post(lambda: self._peers.sent(name, size))
        else:
            self._mailbox.post(lambda: self._peers.end(name))

    def _on_restart(self) -> None:
        """Ends the connections that the gateway had; called from its thread."""
        for name in self._peers.identities():
            self._mailbox.post(functools.partial(self._peers.end, name))

    def _step(self, accept: bool = True) -> None:
        """Handles what has arrived, or waits for it for a moment.

        Args:
            accept: whether requests are taken.
        """
        self._mailbox.deliver(0 if accept and self._more else TICK_SECONDS)
        self._writes.flush()
        now = time.monotonic()
        self._more = accept
        while self._more and time.monotonic() - now < TURN_SECONDS:
            self._more = self._peers.serve_next(self._handle, not self._transfers.overloaded)
        self._polls.expire(now)

    def _handle(self, peer: Peer, message: Message) -> None:
        name = self._allow_list.name(peer.key)
        if name is not None:  # it has not been revoked
            peer.name = name
            self._requests.handle(Reply(self._gateway.send, peer), message)

    def _tidy(self, now: float) -> None:
        """Forgets clients that are gone, frees what is abandoned, and ends when idle for long."""
        self._peers.expire(now)
        if now - self._tidied > TIDY_SECONDS:
            self._tidied = now
            self._database.reserve_space()
            self._database.fold_log()
            self._transfers.expire(now)
            with contextlib.suppress(OSError):  # the disk is full, or gone for a while
                home.write_server_file(self._folder, self.endpoint, self._public)  # it was deleted
        if len(self._peers) or self._scheduler.busy:
            self._busy = now
        if self._idle_exit is not None and now - self._busy > self._idle_exit:
            self.stop()
