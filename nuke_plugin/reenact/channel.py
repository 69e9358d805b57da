"""A socket to the server: sends requests, repeats them, and matches answers to them.

`Client` and `transfers` talk to the server through a `Channel`. A channel belongs to one thread.
It finds a server again that has restarted, also on another port.
"""

import contextlib
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

from reenact import protocol
from reenact.errors import NoServerError, ServerError
from reenact.protocol import CHUNK, CREDIT, ProtocolError

RESEND_SECONDS = 3.0  # a request without an answer is repeated after this time

Answer = Tuple[Union[Dict[str, Any], ProtocolError], Optional[memoryview]]  # body and chunk


def home() -> Path:
    """Returns the folder with keys and server address: REENACT_HOME, else ~/.reenact."""
    return Path(os.environ.get("REENACT_HOME") or Path.home() / ".reenact")


def find_server() -> Tuple[str, str]:
    """Returns the endpoint and public key of the server; both are empty if none is known.

    REENACT_SERVER (`host:port`, with the key `keys/remote.key`) takes precedence over the
    server that runs for `home()`.

    Raises:
        ServerError: `no_key`, the remote server's key is missing.
    """
    named = server_at(os.environ.get("REENACT_SERVER", ""))
    if named is not None:
        return named
    try:
        address = json.loads((home() / "server.json").read_text())
        return str(address["endpoint"]), str(address["key"])
    except (OSError, ValueError, KeyError):
        return "", ""


def server_at(name: str) -> Optional[Tuple[str, str]]:
    """Returns the endpoint and public key of a server that is named by `host:port`.

    Returns:
        None for an empty name, which means what `find_server` returns.

    Raises:
        ServerError: `no_key`, the remote server's key is missing.
    """
    if not name:
        return None
    endpoint = name if "://" in name else f"tcp://{name}"
    return endpoint, _load_key("remote.key")[0].decode()


def _load_key(name: str) -> Tuple[bytes, Optional[bytes]]:
    from reenact.pyzmq import zmq

    path = home() / "keys" / name
    try:
        return zmq.auth.load_certificate(path)
    except (OSError, ValueError):
        raise ServerError(
            "no_key",
            f"There is no key {path}. Whoever runs the server can make one: reenact keys add.",
        ) from None


class Channel:
    """Requests and their answers over one ZeroMQ socket, which is opened by the first request.

    Args:
        deadline: seconds that a request waits for its answer, through restarts of the server.
        server: endpoint and public key; None for what `find_server` returns.

    Attributes:
        named: the endpoint that was asked for; empty where `find_server` finds it.
        endpoint: the server's that the socket is connected to; empty before the first request.
        socket: the ZeroMQ socket, if it is open.

    Raises:
        ServerError: `no_pyzmq`, this Python has no pyzmq that loads.
    """

    def __init__(self, deadline: float, server: Optional[Tuple[str, str]] = None) -> None:
        try:
            from reenact.pyzmq import zmq  # imported late: Nuke's renders don't need it
        except ImportError as error:
            raise ServerError("no_pyzmq", str(error)) from error
        self._zmq = zmq
        self.deadline = deadline
        self._server = server
        self.named = server[0] if server is not None else ""
        self.endpoint = ""
        self._looked_up = 0.0
        self.socket: Optional[zmq.Socket[bytes]] = None
        self._unanswered: Dict[str, List[Any]] = {}  # message parts by request id
        self._answers: Dict[str, Answer] = {}
        self._context = zmq.Context()

    def close(self) -> None:
        """Says goodbye to the server and closes the socket."""
        if self.socket is not None:
            with contextlib.suppress(self._zmq.ZMQError):
                self.socket.send(protocol.encode(protocol.Bye(), "bye"), self._zmq.DONTWAIT)
            self.socket.setsockopt(self._zmq.LINGER, 200)
            self.socket.close()
            self.socket = None
        self._context.term()

    def send(self, request: protocol.Request, chunk: Optional[bytes] = None) -> str:
        """Sends a request without waiting for its answer; returns the request's id."""
        id = uuid.uuid4().hex[:16]
        parts: List[Any] = [protocol.encode(request, id)]
        if len(parts[0]) > protocol.MAX_HEADER:
            raise ServerError("too_large", "The request is too large. Choose a shorter range.")
        if chunk is not None:
            parts.append(chunk)
        self._unanswered[id] = parts
        self._post(parts)
        return id

    def poll(self, seconds: float) -> bool:
        """Receives what has arrived, waiting at most `seconds` for the first message.

        Returns:
            Whether anything has arrived.

        Raises:
            ServerError: the server refused the connection, or its message is malformed.
        """
        if self.socket is None:
            time.sleep(min(seconds, 0.2))
            return False
        if not self.socket.poll(int(max(seconds, 0) * 1000)):
            return False
        while self.socket.poll(0):
            frames = self.socket.recv_multipart(copy=False)
            try:
                id, body = protocol.decode_answer(frames[0].bytes)
            except ProtocolError as error:
                raise ServerError(error.code, error.message, error.detail) from None
            chunk = frames[1].buffer if len(frames) > 1 else None  # no copy
            if id in self._unanswered:
                del self._unanswered[id]
                self._answers[id] = body, chunk
            elif isinstance(body, ProtocolError) and not id and body.code != "rate":
                raise ServerError(body.code, body.message, body.detail)
        return True

    def take_answer(self, id: str) -> Optional[Answer]:
        """Returns the answer to a request if `poll` has received it, once."""
        return self._answers.pop(id, None)

    def wait(
        self, id: str, deadline: Optional[float] = None
    ) -> Tuple[Dict[str, Any], Optional[memoryview]]:
        """Waits for the answer to a request, and repeats the request while none comes.

        Args:
            id: of the request.
            deadline: seconds; None for the channel's own.

        Returns:
            The answer's body, and its chunk if it has one.

        Raises:
            NoServerError: no answer came before the deadline.
            ServerError: the server refused.
        """
        patience = self.deadline if deadline is None else deadline
        start = last = time.monotonic()
        try:
            while id not in self._answers:
                now = time.monotonic()
                if now - start > patience:
                    raise NoServerError(self.endpoint or find_server()[0], now - start)
                self.poll(min(0.5, patience))
                if time.monotonic() - last > RESEND_SECONDS and id in self._unanswered:
                    last = time.monotonic()
                    self._post(self._unanswered[id])
        except BaseException:
            self._unanswered.pop(id, None)
            raise
        body, chunk = self._answers.pop(id)
        if isinstance(body, ProtocolError):
            raise ServerError(body.code, body.message, body.detail)
        return body, chunk

    def ask(self, request: protocol.Request, deadline: Optional[float] = None) -> Dict[str, Any]:
        """Sends a request, and returns the body of its answer; raises as `wait` does."""
        return self.wait(self.send(request), deadline)[0]

    def forget(self, id: str) -> None:
        """Drops a request: it isn't repeated, and its answer is ignored."""
        self._unanswered.pop(id, None)
        self._answers.pop(id, None)

    def _connect(self) -> None:
        endpoint, key = self._server or find_server()
        if not endpoint:
            return
        zmq = self._zmq
        socket = self._context.socket(zmq.DEALER)
        public, secret = _load_key("client.key_secret")
        socket.curve_publickey, socket.curve_secretkey = public, secret or b""
        socket.curve_serverkey = key.encode()
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 2 * CREDIT)
        socket.setsockopt(zmq.RCVHWM, 2 * CREDIT)
        socket.setsockopt(zmq.MAXMSGSIZE, max(CHUNK, protocol.MAX_HEADER) + 1024)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        socket.setsockopt(zmq.HEARTBEAT_IVL, 5000)
        socket.connect(endpoint)
        self.socket, self.endpoint = socket, endpoint

    def _disconnect(self) -> None:
        if self.socket is not None:
            self.socket.close(0)
            self.socket = None

    def _post(self, parts: List[Any]) -> None:
        if self.socket is None or self._has_moved():
            self._disconnect()
            self._connect()
        if self.socket is not None:
            with contextlib.suppress(self._zmq.Again):  # not connected yet: `wait` repeats it
                self.socket.send_multipart(parts, self._zmq.DONTWAIT, copy=False)

    def _has_moved(self) -> bool:
        """Returns whether the server listens elsewhere now; looks that up once a second at most."""
        now = time.monotonic()
        if self._server is not None or now - self._looked_up < 1:
            return False
        self._looked_up = now
        return find_server()[0] not in ("", self.endpoint)
