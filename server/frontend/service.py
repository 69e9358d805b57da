"""The server's loop and sockets: one thread that reads requests and calls what answers them.

The parts that it composes each keep their own state: `Requests` and `EventPolls` (what clients
ask), `Transfers` (chunks, in threads of their own), `Scheduler` (jobs, in worker processes), and
`Database`. No part here reads a picture, so no client's file can crash the front end.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

import zmq
from reenact import protocol
from reenact.protocol import CHUNK, CREDIT
from zmq.auth.thread import ThreadAuthenticator

from server.frontend import home
from server.frontend.database import Database, WriteQueue
from server.frontend.peers import Limits, Peers, Reply
from server.frontend.requests import EventPolls, Requests
from server.frontend.scheduler import Scheduler
from server.frontend.transfers import Transfers

log = logging.getLogger("reenact")

TICK_MILLISECONDS = 100  # after which the loop looks at clocks, whatever arrives
BATCH = 64  # requests read before the workers' events are looked at again
TIDY_SECONDS = 10.0
STOP_SECONDS = 60.0  # that workers have to stop in


class Mailbox:
    """Functions that other threads hand to the loop; each one wakes it.

    Args:
        context: of the socket on which the loop is woken.
    """

    def __init__(self, context: zmq.Context) -> None:
        self._context = context
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._woken = False
        self._local = threading.local()
        self.socket = context.socket(zmq.PULL)
        self.socket.bind("inproc://wake")

    def post(self, function: Callable[[], None]) -> None:
        """Has the loop call a function; from any thread."""
        self._queue.put(function)
        if self._woken:
            return  # the loop has not looked yet
        self._woken = True
        if not hasattr(self._local, "socket"):
            self._local.socket = self._context.socket(zmq.PUSH)
            self._local.socket.connect("inproc://wake")
        with contextlib.suppress(zmq.ZMQError):  # the socket is full, or closed at the end
            self._local.socket.send(b"", zmq.DONTWAIT)

    def deliver(self) -> None:
        """Calls what was posted; from the loop."""
        while self.socket.poll(0):
            self.socket.recv()
        self._woken = False  # before the queue is read: what comes later wakes again
        while not self._queue.empty():
            self._queue.get()()


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
        self._context = zmq.Context()
        self._mailbox = Mailbox(self._context)
        self._allow_list = home.AllowList(folder)
        self._authenticator = ThreadAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback("reenact", self._allow_list)
        public, secret = home.server_keys(folder)
        self._router = _router(self._context, public, secret)
        self._router.setsockopt(zmq.IPV6, int("[" in bind))
        self._router.bind(bind)
        self.endpoint = self._router.getsockopt_string(zmq.LAST_ENDPOINT)

        self._peers, self._polls = Peers(limits), EventPolls(self._database)
        post, notify = self._mailbox.post, self._polls.notify
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
        )
        self._busy = time.monotonic()  # when there was a client or a job last
        self._tidied = 0.0
        self._stopping = False
        home.write_server_file(folder, self.endpoint, public.decode())

    def stop(self) -> None:
        """Ends `serve` soon; from any thread or signal handler."""
        self._stopping = True

    def serve(self) -> None:
        """Serves until it is stopped; jobs that run then continue at the next start."""
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._mailbox.socket, zmq.POLLIN)
        log.info("serving", extra={"facts": {"endpoint": self.endpoint}})
        try:
            while not self._stopping:
                self._step(poller)
                now = time.monotonic()
                self._scheduler.schedule()
                self._tidy(now)
            self._scheduler.stop_all()
            until = time.monotonic() + STOP_SECONDS
            while self._scheduler.busy and time.monotonic() < until:
                self._step(poller, accept=False)
        finally:
            self.close()

    def close(self) -> None:
        """Frees everything; what runs is killed."""
        home.remove_server_file(self._folder)
        self._scheduler.close()
        self._transfers.close()
        self._authenticator.stop()
        self._context.destroy(linger=500)
        self._database.close()

    def _step(self, poller: zmq.Poller, accept: bool = True) -> None:
        """Handles what has arrived, or waits for it for a moment.

        Args:
            poller: of the router and the mailbox.
            accept: whether requests are read.
        """
        ready = dict(poller.poll(TICK_MILLISECONDS))
        self._mailbox.deliver()
        self._writes.flush()
        if accept and self._router in ready:
            for _ in range(BATCH):
                # While the disk is behind, clients wait in ZeroMQ's bounded queues.
                if self._transfers.overloaded or not self._router.poll(0):
                    break
                self._receive()
        self._polls.expire(time.monotonic())

    def _receive(self) -> None:
        identity, *parts = self._router.recv_multipart(copy=False)
        try:
            key = self._allow_list.name(str((parts or [identity])[-1].get("User-Id")))
        except zmq.ZMQError:
            key = None
        if key is not None:  # it has not been revoked
            self._requests.handle(Reply(self._send, identity.bytes), key, parts)

    def _send(self, identity: bytes, header: bytes, chunk: bytes | None) -> None:
        parts = [identity, header] if chunk is None else [identity, header, chunk]
        # A client that is gone, or does not read, asks again if it still wants the answer.
        with contextlib.suppress(zmq.ZMQError):
            self._router.send_multipart(parts, zmq.DONTWAIT, copy=chunk is None)

    def _tidy(self, now: float) -> None:
        """Forgets clients that are gone, frees what is abandoned, and ends when idle for long."""
        self._peers.expire(now)
        if now - self._tidied > TIDY_SECONDS:
            self._tidied = now
            self._database.reserve_space()
            self._transfers.expire(now)
        if len(self._peers) or self._scheduler.busy:
            self._busy = now
        if self._idle_exit is not None and now - self._busy > self._idle_exit:
            self.stop()


def _router(context: zmq.Context, public: bytes, secret: bytes) -> zmq.Socket:
    """Returns the socket that clients connect to, encrypted and with bounded queues."""
    router = context.socket(zmq.ROUTER)
    router.curve_publickey, router.curve_secretkey = public, secret
    router.curve_server = True
    router.setsockopt(zmq.ZAP_DOMAIN, b"reenact")
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.setsockopt(zmq.MAXMSGSIZE, max(CHUNK, protocol.MAX_HEADER) + 1024)
    router.setsockopt(zmq.RCVHWM, 2 * CREDIT)
    router.setsockopt(zmq.SNDHWM, 4 * CREDIT)
    router.setsockopt(zmq.LINGER, 500)
    router.setsockopt(zmq.HEARTBEAT_IVL, 10_000)
    router.setsockopt(zmq.HANDSHAKE_IVL, 5_000)
    return router
