"""The gateway: the process that talks to clients, so that no client can end the front end.

    python -m server.frontend.gateway HOME ENDPOINT RATE

libzmq 4.3.5 ends its process where one of its assertions fails, and a client can bring that about:
while messages of a connection wait unread, its input stops; if the client dies then, a ZMTP ping or
pong that is due is written to the closed connection (`stream_engine_base_t::out_event`). So the
socket, its encryption and its authentication are in this process, which the front end starts again
at the same address. Clients reconnect by themselves and repeat what has no answer; jobs and workers
do not notice. The socket is always read: what a connection sends beyond RATE requests a second is
dropped here.

Both pipes carry records of frames of bytes, see `write_record`. From the gateway:

    bound ENDPOINT | failed ERRNO
    message IDENTITY KEY HEADER [CHUNK]     of a connection; KEY is the client's public one
    sent IDENTITY BYTES                     an answer of at least TRACKED bytes has left the process
    gone IDENTITY                           the connection has ended

To it: `IDENTITY HEADER [CHUNK]`, an answer. The end of its input ends the gateway.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import queue
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import zmq
from reenact import protocol
from reenact.protocol import CHUNK, CREDIT, ProtocolError
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import parse_monitor_message

from core.base.errors import ReenactError
from server import start
from server.frontend import home

log = logging.getLogger("reenact")

TRACKED = 1 << 14  # bytes of an answer from which on `sent` tells that it has left
FRAME_BYTES = max(CHUNK, protocol.MAX_HEADER) + 1024  # of a client's message
CURVE_BYTES = 33  # that encryption adds to a frame
UNREAD_SECONDS = 30  # after which TCP gives a connection up whose client doesn't read
BATCH = 64  # messages that are read before answers have their turn
LARGE_BYTES = 128 << 20  # of large messages that wait to be passed on; beyond, none is read
LEAST_SECONDS = 5.0  # that a gateway lives, if it is to be started again without a pause
MAX_PAUSE = 50  # ms between looks at what has been sent

_COUNT, _LENGTH = struct.Struct("!B"), struct.Struct("!I")


def write_record(target: IO[bytes], frames: Sequence[Any]) -> None:
    """Writes a record: how many frames it has (one byte), their lengths (four each), and they.

    Args:
        target: a pipe, unbuffered.
        frames: bytes-like; at most 255.

    Raises:
        OSError: nobody reads it any more.
    """
    lengths = b"".join(_LENGTH.pack(len(frame)) for frame in frames)
    small = _COUNT.pack(len(frames)) + lengths
    for frame in frames:
        if len(frame) < TRACKED:
            small += frame
        else:
            protocol.write_all(target, small)
            protocol.write_all(target, frame)
            small = b""
    protocol.write_all(target, small)


def read_record(source: IO[bytes]) -> list[bytearray] | None:
    """Reads a record.

    Args:
        source: a pipe, buffered.

    Returns:
        Its frames; None at the end.
    """
    head = source.read(_COUNT.size)
    if not head:
        return None
    (count,) = _COUNT.unpack(head)
    lengths = source.read(count * _LENGTH.size)
    if len(lengths) < count * _LENGTH.size:
        return None
    frames = [bytearray(length) for (length,) in _LENGTH.iter_unpack(lengths)]
    for frame in frames:
        if source.readinto(frame) < len(frame):  # type: ignore[attr-defined]
            return None
    return frames


class GatewayError(ReenactError):
    """The gateway's process does not start."""


# -- the front end's side ------------------------------------------------------------------------


def _widen(pipe: Any) -> None:
    """Has a pipe hold a whole chunk, where the system lets it: fewer turns of both processes."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, CHUNK)


class Gateway:
    """The gateway's process, as the front end sees it; it is started again when it dies.

    Args:
        folder: of the server, with its keys.
        bind: ZeroMQ endpoint.
        rate: requests a second that a connection may make, see `_Bucket`.
        on_record: called from a thread with the frames of a `message`, `sent` or `gone`.
        on_restart: called from that thread when all connections have ended with the process, before
            another one is started.

    Attributes:
        endpoint: with the port that was taken.

    Raises:
        zmq.ZMQError: the endpoint can't be used.
        GatewayError: the process does not start.
    """

    def __init__(
        self,
        folder: Path,
        bind: str,
        rate: int,
        on_record: Callable[[list[bytearray]], None],
        on_restart: Callable[[], None],
    ) -> None:
        self._folder, self._rate = folder, rate
        self._on_record, self._on_restart = on_record, on_restart
        self._closing = threading.Event()
        self._process = self._start(bind)
        first = read_record(self._process.stdout) if self._process.stdout is not None else None
        if first is None or first[0] != b"bound":
            self._process.kill()
            self._process.wait()
            if first is None:
                raise GatewayError("The server's gateway did not start; what it says is above.")
            raise zmq.ZMQError(int(first[1]))
        self.endpoint = first[1].decode()
        self._thread = threading.Thread(target=self._listen, daemon=True, name="gateway")
        self._thread.start()

    def _start(self, bind: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            start.command("server.frontend.gateway", str(self._folder), bind, str(self._rate)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the front end's to handle
        )
        for pipe in (process.stdin, process.stdout):
            _widen(pipe)
        return process

    def _listen(self) -> None:
        started = time.monotonic()
        while True:
            assert self._process.stdout is not None
            while (record := read_record(self._process.stdout)) is not None:
                if record[0] not in (b"bound", b"failed"):
                    self._on_record(record)
            code = self._process.wait()
            if self._closing.is_set():
                return
            log.error("the gateway died and is started again", extra={"facts": {"exit": code}})
            self._on_restart()
            lived = time.monotonic() - started
            if lived < LEAST_SECONDS and self._closing.wait(LEAST_SECONDS - lived):
                return
            started = time.monotonic()
            try:
                self._process = self._start(self.endpoint)
            except OSError:  # no memory for a process: the one that died is waited for again
                log.exception("the gateway can't be started")

    def send(self, identity: bytes, header: bytes, chunk: bytes | None) -> None:
        """Sends an answer to a connection, if that still exists; always from one thread."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has died, and every connection with it
            parts = [identity, header] if chunk is None else [identity, header, chunk]
            write_record(self._process.stdin.raw, parts)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Ends the process, once it has sent what it was given."""
        self._closing.set()
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join(5)


# -- the process ---------------------------------------------------------------------------------


class _Bucket:
    """What a connection may ask for this second: a token bucket of requests.

    Args:
        rate: requests a second; every 256 bytes of a header count as one more.
    """

    def __init__(self, rate: int) -> None:
        self._rate, self._tokens = rate, float(rate)
        self._filled = time.monotonic()
        self._refused = 0.0

    def take(self, header: int) -> bool:
        """Takes a request with a header of some bytes; returns False if it is to be dropped."""
        now = time.monotonic()
        self._tokens = min(self._rate, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        self._tokens = max(self._tokens - 1 - header // 256, -self._rate / 10)
        return self._tokens >= 0

    def should_say(self) -> bool:
        """Whether to tell the client that requests are dropped: once a second."""
        if self._filled - self._refused < 1:
            return False
        self._refused = self._filled
        return True


class _Relay:
    """Passes messages between the clients' socket and the front end's pipes.

    Args:
        context: of the sockets.
        folder: of the server, with its keys.
        rate: of requests, for each connection.
        target: the pipe to the front end.
    """

    def __init__(self, context: zmq.Context, folder: Path, rate: int, target: IO[bytes]) -> None:
        self._target, self._rate = target, rate
        self._answers: queue.SimpleQueue[list[bytearray] | None] = queue.SimpleQueue()
        self._wake = context.socket(zmq.PULL)
        self._wake.bind("inproc://answers")
        self._context = context
        public, secret = home.server_keys(folder)
        self.router = _router(context, public, secret)
        self._monitor = self.router.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._identities: dict[int, bytes] = {}  # of connections, by file descriptor
        # Large messages that wait, so that small ones pass them by: a turn for each connection.
        self._large: collections.OrderedDict[bytes, collections.deque[list[Any]]]
        self._large = collections.OrderedDict()
        self._large_bytes = 0
        self._buckets: dict[bytes, _Bucket] = {}
        self._gone: collections.OrderedDict[bytes, None] = collections.OrderedDict()
        # Answers that libzmq still holds, oldest first: whether they have left, and their bytes.
        self._unsent: dict[bytes, collections.deque[tuple[zmq.MessageTracker, int]]] = {}

    def listen(self, source: IO[bytes]) -> None:
        """Takes answers from the front end, until it is gone; in a thread of its own."""
        bell = self._context.socket(zmq.PUSH)
        bell.connect("inproc://answers")
        while (answer := read_record(source)) is not None:
            self._answers.put(answer)
            bell.send(b"")
        self._answers.put(None)
        bell.send(b"")
        bell.close()

    def run(self) -> None:
        """Works until the front end is gone."""
        poller = zmq.Poller()
        for socket in (self.router, self._wake, self._monitor):
            poller.register(socket, zmq.POLLIN)
        pause = 1
        while True:
            ready = dict(poller.poll(0 if self._large else pause if self._unsent else None))
            for _ in range(BATCH if self.router in ready else 0):
                if self._large_bytes > LARGE_BYTES or not self.router.poll(0):
                    break
                self._receive()
            self._forward_large()
            while self._wake.poll(0):
                self._wake.recv()
                answer = self._answers.get()
                if answer is None:
                    return
                self._send(*answer)
            self._note_ends()
            pause = 1 if self._note_sent() or ready else min(2 * pause, MAX_PAUSE)

    def _receive(self) -> None:
        """Takes a message, and passes it on if it is small and its connection waits for none."""
        identity, *parts = self.router.recv_multipart(copy=False)
        last = (parts or [identity])[-1]
        name = identity.bytes
        try:
            key, descriptor = str(last.get("User-Id")), int(last.get(zmq.SRCFD))
        except zmq.ZMQError:
            return
        if self._identities.get(descriptor) != name and name not in self._gone:
            self._note_ends()  # of the connection that had this descriptor before
            if name not in self._gone:
                self._identities[descriptor] = name
        bucket = self._buckets.setdefault(name, _Bucket(self._rate))
        if not bucket.take(len(parts[0].buffer) if parts else 0):
            if bucket.should_say():
                text = f"More than {self._rate} requests a second. Slow down."
                self._send(name, protocol.encode_error(ProtocolError("rate", text)))
            return
        # One part too many tells the front end that there were more.
        frames = [part.buffer for part in parts[:3]]
        message = [b"message", name, key.encode(), *frames]
        size = sum(map(len, frames))
        if size >= TRACKED or name in self._large:
            self._large.setdefault(name, collections.deque()).append(message)
            self._large_bytes += size
        else:
            write_record(self._target, message)
        if name in self._gone:
            self._buckets.pop(name, None)
            self._end(name)

    def _forward_large(self) -> None:
        """Passes the next message on that had to wait."""
        if not self._large:
            return
        name, messages = next(iter(self._large.items()))
        message = messages.popleft()
        self._large_bytes -= sum(map(len, message[3:]))
        write_record(self._target, message)
        self._large.move_to_end(name)
        if not messages:
            del self._large[name]
            if name in self._gone:
                self._end(name)

    def _end(self, name: bytes) -> None:
        """Tells that a connection has ended, once its last message is passed on."""
        if name not in self._large:
            write_record(self._target, [b"gone", name])

    def _note_ends(self) -> None:
        """Tells of connections that have ended."""
        while self._monitor.poll(0):
            event = parse_monitor_message(self._monitor.recv_multipart())
            name = self._identities.pop(event["value"], None)
            if name is None:
                continue
            self._gone[name] = None
            if len(self._gone) > 10_000:
                self._gone.popitem(last=False)
            self._unsent.pop(name, None)
            self._buckets.pop(name, None)
            self._end(name)

    def _send(self, identity: bytes | bytearray, *parts: bytes | bytearray) -> None:
        size = sum(len(part) for part in parts)
        name = bytes(identity)
        try:
            if size < TRACKED:
                self.router.send_multipart([name, *parts], zmq.DONTWAIT)
                return
            self.router.send(name, zmq.DONTWAIT | zmq.SNDMORE)
            tracker = self.router.send_multipart(parts, zmq.DONTWAIT, copy=False, track=True)
            assert tracker is not None
            self._unsent.setdefault(name, collections.deque()).append((tracker, size))
        except zmq.ZMQError:
            # It is gone, or reads nothing: it asks again if it still wants the answer.
            if size >= TRACKED:
                write_record(self._target, [b"sent", name, str(size).encode()])

    def _note_sent(self) -> bool:
        """Tells which answers have left; returns whether any has."""
        progress = False
        for name, answers in list(self._unsent.items()):
            size = 0
            while answers and answers[0][0].done:
                size += answers.popleft()[1]
            if size:
                progress = True
                write_record(self._target, [b"sent", name, str(size).encode()])
            if not answers:
                del self._unsent[name]
        return progress


def _router(context: zmq.Context, public: bytes, secret: bytes) -> zmq.Socket:
    """Returns the socket that clients connect to, encrypted and with bounded queues."""
    router = context.socket(zmq.ROUTER)
    router.curve_publickey, router.curve_secretkey = public, secret
    router.curve_server = True
    router.copy_threshold = TRACKED // 2  # a tracked answer has a part of this size
    router.setsockopt(zmq.ZAP_DOMAIN, b"reenact")
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES + CURVE_BYTES)
    router.setsockopt(zmq.RCVHWM, 4 * CREDIT)
    router.setsockopt(zmq.SNDHWM, 4 * CREDIT)
    router.setsockopt(zmq.LINGER, 500)
    router.setsockopt(zmq.HANDSHAKE_IVL, 5_000)
    # No HEARTBEAT_IVL: its timer writes to connections that are dead, see above. TCP finds those.
    router.setsockopt(zmq.TCP_KEEPALIVE, 1)
    router.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 20)
    router.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
    router.setsockopt(zmq.TCP_KEEPALIVE_CNT, 4)
    router.setsockopt(zmq.TCP_MAXRT, UNREAD_SECONDS * 1000)
    return router


def main() -> None:
    """Serves clients until standard input ends."""
    folder, bind, rate = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    # Libraries print what they like; the front end reads only what we say.
    target = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    context = zmq.Context()
    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve_callback("reenact", home.AllowList(folder))
    relay = _Relay(context, folder, rate, target)
    try:
        relay.router.setsockopt(zmq.IPV6, int("[" in bind))
        relay.router.bind(bind)
    except zmq.ZMQError as error:
        write_record(target, [b"failed", str(error.errno).encode()])
        os._exit(1)
    endpoint = relay.router.getsockopt_string(zmq.LAST_ENDPOINT)
    write_record(target, [b"bound", endpoint.encode()])
    threading.Thread(target=relay.listen, args=(sys.stdin.buffer,), daemon=True).start()
    with contextlib.suppress(BrokenPipeError):  # the front end was killed
        relay.run()
        authenticator.stop()
        context.destroy(linger=500)
    os._exit(0)


if __name__ == "__main__":
    main()
