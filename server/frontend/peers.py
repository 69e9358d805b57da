"""Connections: what waits of each, whose turn it is, what each may ask for, and how it is answered.

No connection can keep the loop from another: each has a bounded queue, and the next request is
taken from the one that has used least of the loop's time. A connection that does not read its
answers is not served until it does.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

from reenact import protocol
from reenact.protocol import CHUNK, CREDIT, ProtocolError

from server.frontend.gateway import TRACKED

CLIENT_SECONDS = 60.0  # of silence, after which a client counts as gone
MAX_WAITING = 1024  # requests of a connection that wait to be read
HEADER_BYTES = 4 << 20  # of a connection's waiting headers
ALL_HEADER_BYTES = 64 << 20  # of all connections' waiting headers
ALL_CHUNK_BYTES = 128 << 20  # of all connections' waiting chunks
UNREAD_BYTES = 2 << 20  # of unsent answers, from which on a connection is not served
SECONDS_PER_BYTE = 2e-8  # of the loop's time that a header takes, roughly
MAX_ANSWERED = 4096  # ids of a connection that are remembered while its requests wait

# Sends a header, and perhaps a chunk, to the connection of this identity.
Send = Callable[[bytes, bytes, bytes | None], None]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a client may ask for; `hello` reports it."""

    clients: int = 64
    jobs: int = 64  # unfinished
    frames: int = 4000  # of a clip
    file_bytes: int = 4 << 30
    store_bytes: int = 100 << 30
    requests_per_second: int = 5000  # of a client; see `gateway._Bucket`
    waiting: int = 64  # requests for events that have not been answered yet, of a client
    chunk_bytes: int = CHUNK
    credit: int = CREDIT
    header_bytes: int = protocol.MAX_HEADER


@dataclasses.dataclass(frozen=True)
class Message:
    """A request that has arrived."""

    place: int  # how many had arrived on its connection, with it
    parts: list[bytearray]  # header, perhaps chunk
    no_room: bool = False  # the chunk was dropped: too many wait


@dataclasses.dataclass(eq=False)
class Peer:
    """A connection."""

    identity: bytes
    key: str  # the public key that it was made with, Z85
    seen: float  # monotonic seconds
    name: str = ""  # of the key
    counted: bool = False  # among the clients
    gone: bool = False
    chunks: int = 0  # requests for chunks that are not answered yet
    polls: int = 0  # requests for events that are not answered yet
    unsent: int = 0  # bytes of answers that have not left yet, or will come of downloads
    used: float = 0.0  # seconds of the loop's time, see `Peers.serve_next`
    messages: collections.deque[Message] = dataclasses.field(default_factory=collections.deque)
    header_bytes: int = 0  # of `messages`
    chunk_count: int = 0  # of `messages`
    arrived: int = 0  # messages so far
    overrun: bool = False  # one was dropped
    open: set[str] = dataclasses.field(default_factory=set)  # ids that are being worked on
    # By ids that were answered, how many messages had arrived then.
    answered: dict[str, int] = dataclasses.field(default_factory=dict)

    def begin(self, id: str, place: int) -> bool:
        """Notes that a request is being worked on.

        A request that arrived before another one with its id was answered is a repeat of it: the
        client has had no answer yet.

        Returns:
            False if it is a repeat, which is to be dropped.
        """
        if id in self.open or place <= self.answered.get(id, 0):
            return False
        self.open.add(id)
        return True

    def end(self, id: str) -> None:
        """Notes that a request has its answer."""
        self.open.discard(id)
        self.answered[id] = self.arrived
        if len(self.answered) > MAX_ANSWERED:
            first = self.messages[0].place if self.messages else self.arrived + 1
            self.answered = {k: v for k, v in self.answered.items() if v >= first}

    @property
    def reads(self) -> bool:
        """Whether it takes its answers, so that it may be sent more."""
        return self.unsent < UNREAD_BYTES


class Peers:
    """The connections, within their limits; `arrive` and `identities` may be called from others.

    Args:
        limits: of connections, and of the requests of each.
        wake: called when a request has arrived.
    """

    def __init__(self, limits: Limits, wake: Callable[[], None]) -> None:
        self._limits, self._wake = limits, wake
        self._peers: dict[bytes, Peer] = {}
        self._queued: dict[Peer, None] = {}  # those with messages
        self._header_bytes = self._chunk_bytes = 0  # of all messages
        self._clock = 0.0  # the time that the connection served last had used
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return sum(peer.counted for peer in list(self._peers.values()))

    # -- what arrives, and whose turn it is

    def arrive(self, identity: bytes, key: str, parts: list[bytearray]) -> None:
        """Queues a request, or drops it where too many wait; from any thread."""
        header, chunk = len(parts[0]) if parts else 0, len(parts[1]) if len(parts) == 2 else 0
        with self._lock:
            peer = self._peers.get(identity)
            if peer is None:
                peer = self._peers[identity] = Peer(identity, key, time.monotonic())
            peer.arrived += 1
            if peer.messages and (
                len(peer.messages) >= MAX_WAITING
                or peer.header_bytes + header > HEADER_BYTES
                or self._header_bytes + header > ALL_HEADER_BYTES
                or len(parts) > 2
            ):
                peer.overrun = True
                return
            no_room = chunk > 0 and (
                peer.chunk_count + peer.chunks >= CREDIT
                or self._chunk_bytes + chunk > ALL_CHUNK_BYTES
            )
            if no_room:
                parts, chunk = [parts[0], bytearray()], 0
            peer.messages.append(Message(peer.arrived, parts, no_room))
            self._count(peer, header, chunk, 1)
            self._queued[peer] = None
        self._wake()

    def _count(self, peer: Peer, header: int, chunk: int, sign: int) -> None:
        self._header_bytes += sign * header
        self._chunk_bytes += sign * chunk
        peer.header_bytes += sign * header
        peer.chunk_count += sign * (chunk > 0)

    def serve_next(self, handle: Callable[[Peer, Message], None], disk_is_free: bool) -> bool:
        """Has the next request handled: of those who wait, that of who will have used least time.

        Time that a connection lets pass without requests is not saved up (start-time fair queuing).

        Args:
            handle: called with the request.
            disk_is_free: whether chunks can be taken; those who sent one wait otherwise.

        Returns:
            False if there is none whose turn it can be.
        """
        with self._lock:
            ready = [
                peer
                for peer in self._queued
                if (peer.reads or peer.gone) and (disk_is_free or len(peer.messages[0].parts) < 2)
            ]
            if not ready:
                return False
            peer = min(ready, key=self._end_of_turn)
            message = peer.messages.popleft()
            parts = message.parts
            chunk = len(parts[1]) if len(parts) == 2 else 0
            self._count(peer, len(parts[0]) if parts else 0, chunk, -1)
            if not peer.messages:
                del self._queued[peer]
        self._clock = peer.used = max(peer.used, self._clock)
        start = time.perf_counter()
        handle(peer, message)
        peer.used += time.perf_counter() - start
        if not peer.messages:
            peer.answered.clear()
            if peer.gone:
                self._forget(peer)
        return True

    def _end_of_turn(self, peer: Peer) -> float:
        """Returns how much time a connection will have used when its next request is answered."""
        header = peer.messages[0].parts[:1]
        return max(peer.used, self._clock) + SECONDS_PER_BYTE * sum(map(len, header))

    # -- what each may ask for

    def admit(self, peer: Peer) -> None:
        """Counts a connection among the clients, and notes that it lives.

        Raises:
            ProtocolError: `too_many_clients`.
        """
        peer.seen = time.monotonic()
        if not peer.counted:
            if len(self) >= self._limits.clients:
                raise ProtocolError(
                    "too_many_clients",
                    f"{self._limits.clients} clients are connected, more are not allowed. Try "
                    "again later.",
                )
            peer.counted = not peer.gone

    def dismiss(self, peer: Peer) -> None:
        """Counts a connection no longer, which said goodbye."""
        peer.counted = False

    # -- their ends

    def sent(self, identity: bytes, size: int) -> None:
        """Notes that an answer has left."""
        if identity in self._peers:
            self._peers[identity].unsent -= size

    def end(self, identity: bytes) -> None:
        """Notes that a connection has ended; what it asked for before is still done."""
        peer = self._peers.get(identity)
        if peer is not None:
            peer.gone, peer.counted = True, False
            if not peer.messages:
                self._forget(peer)

    def identities(self) -> list[bytes]:
        """Returns who is connected; from any thread."""
        with self._lock:
            return list(self._peers)

    def expire(self, now: float) -> None:
        """Counts connections no longer that have been silent for long."""
        for peer in list(self._peers.values()):
            if now - peer.seen > CLIENT_SECONDS:
                peer.counted = False

    def _forget(self, peer: Peer) -> None:
        with self._lock:
            if not peer.messages and self._peers.get(peer.identity) is peer:
                del self._peers[peer.identity]


@dataclasses.dataclass(frozen=True)
class Reply:
    """The way back to whoever made a request."""

    send: Send
    peer: Peer
    id: str = ""  # the request's; empty: it could not be read

    def answer(self, body: dict[str, Any], chunk: bytes | None = None) -> None:
        """Sends an answer, and perhaps a chunk with it."""
        self._send_header(protocol.encode_answer(self.id, body), chunk)

    def refuse(self, code: str, message: str, detail: str = "") -> None:
        """Sends an error."""
        self.error(ProtocolError(code, message, detail))

    def error(self, error: ProtocolError) -> None:
        """Sends an error that was raised."""
        error.id = error.id or self.id
        self._send_header(protocol.encode_error(error), None)

    def _send_header(self, header: bytes, chunk: bytes | None) -> None:
        if len(header) > protocol.MAX_HEADER:
            self.refuse("too_large", "The answer is too large to be sent.")
            return
        if self.id:
            self.peer.end(self.id)
        if self.peer.gone:
            return
        size = len(header) + len(chunk or b"")
        if size >= TRACKED:
            self.peer.unsent += size
        self.send(self.peer.identity, header, chunk)


def check_hash(hash: str) -> None:
    """Refuses what is no file's hash.

    Raises:
        ProtocolError: `malformed`.
    """
    if not protocol.HASH.fullmatch(hash):
        raise ProtocolError("malformed", "That is no file's hash.", hash[:80])
