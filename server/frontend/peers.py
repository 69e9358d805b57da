"""Connections: how many there may be, what each may ask for, and how it is answered."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from reenact import protocol
from reenact.protocol import CHUNK, CREDIT, ProtocolError

CLIENT_SECONDS = 60.0  # of silence, after which a client counts as gone

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
    requests_per_second: int = 5000  # of a client; every KiB of a header counts as one more
    waiting: int = 64  # requests for events that have not been answered yet, of a client
    chunk_bytes: int = CHUNK
    credit: int = CREDIT
    header_bytes: int = protocol.MAX_HEADER


@dataclasses.dataclass
class Peer:
    """A connection."""

    key: str  # the name of the key that it was made with
    seen: float  # monotonic seconds
    tokens: float  # requests left, see `Peers.charge`
    chunks: int = 0  # requests for chunks that are not answered yet
    polls: int = 0  # requests for events that are not answered yet
    refused: float = 0.0  # monotonic seconds


class Peers:
    """The connections, within their limits.

    Args:
        limits: of connections, and of the requests of each.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._peers: dict[bytes, Peer] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def admit(self, identity: bytes, key: str) -> Peer:
        """Returns the connection of an identity, a new one if need be, and notes that it lives.

        Raises:
            ProtocolError: `too_many_clients`.
        """
        now, rate = time.monotonic(), self._limits.requests_per_second
        peer = self._peers.get(identity)
        if peer is None:
            if len(self._peers) >= self._limits.clients:
                raise ProtocolError(
                    "too_many_clients",
                    f"{self._limits.clients} clients are connected, more are not allowed. Try "
                    "again later.",
                )
            peer = self._peers[identity] = Peer(key, now, rate)
        peer.tokens = min(rate, peer.tokens + (now - peer.seen) * rate)
        peer.seen = now
        return peer

    def charge(self, peer: Peer, cost: int) -> bool:
        """Takes a request from what a client may ask for this second (a token bucket).

        Returns:
            False if the request is to be dropped unread.

        Raises:
            ProtocolError: `rate`, once a second instead of returning False. It concerns no
                request in particular.
        """
        rate = self._limits.requests_per_second
        peer.tokens = max(peer.tokens - cost, -rate / 10)
        if peer.tokens >= 0:
            return True
        if peer.seen - peer.refused < 1:
            return False
        peer.refused = peer.seen
        raise ProtocolError("rate", f"More than {rate} requests a second. Slow down.")

    def remove(self, identity: bytes) -> None:
        """Ends a connection that said goodbye."""
        del self._peers[identity]

    def expire(self, now: float) -> None:
        """Ends connections that have been silent for long."""
        for identity, peer in list(self._peers.items()):
            if now - peer.seen > CLIENT_SECONDS:
                del self._peers[identity]


@dataclasses.dataclass(frozen=True)
class Reply:
    """The way back to whoever made a request."""

    send: Send
    identity: bytes
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
        self.send(self.identity, header, chunk)


def check_hash(hash: str) -> None:
    """Refuses what is no file's hash.

    Raises:
        ProtocolError: `malformed`.
    """
    if not protocol.HASH.fullmatch(hash):
        raise ProtocolError("malformed", "That is no file's hash.", hash[:80])
