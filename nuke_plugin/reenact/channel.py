"""A socket to the server: sends requests, repeats them, and matches answers to them.

`Client` and `transfers` talk to the server through a `Channel`. A channel belongs to one thread.
It finds a server again that has restarted, also on another port.
"""

import contextlib
import os
import struct
import time
import uuid
from typing import Any, Dict, List, Optional, Tuple, Union

from reenact import protocol
from reenact.address import (
    endpoint_of,
    find_server,
    home,
    load_key,
    parse_address,
    resolve,
    server_elsewhere,
)
from reenact.errors import NoServerError, ServerError
from reenact.protocol import CHUNK, CREDIT, ProtocolError

RESEND_SECONDS = 3.0  # a request without an answer is repeated after this time
CONTACT_SECONDS = 2.5  # for which a server that was never reached may take to shake hands
SPARE_FILES = 32  # that can be opened before a socket is: short of them, ZeroMQ ends the process

Answer = Tuple[Union[Dict[str, Any], ProtocolError], Optional[memoryview]]  # body and chunk


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
        ServerError: `no_pyzmq`, this Python has no pyzmq that loads; `too_many_files`, this program
            can't open more.
    """

    # What the monitor of the socket has told of its connection.
    _NOTHING, _CONNECTED, _REACHED, _REFUSED = range(4)

    def __init__(self, deadline: float, server: Optional[Tuple[str, str]] = None) -> None:
        try:
            from reenact.pyzmq import zmq  # imported late: Nuke's renders don't need it
        except ImportError as error:
            raise ServerError("no_pyzmq", str(error)) from error
        if not (zmq.has("curve") and hasattr(zmq, "EVENT_HANDSHAKE_FAILED_AUTH")):
            where = os.path.dirname(zmq.__file__)
            raise ServerError(
                "no_pyzmq",
                f"The zmq that this Python finds first, {where}, is too old "
                "or can't encrypt. Put pyzmq of PyPI in its place, or take it off the path: then "
                "Reenact uses its own.",
            )
        self._zmq = zmq
        self.deadline = deadline
        self._server = server
        self.named = server[0] if server is not None else ""
        self.endpoint = ""
        self._looked_up = 0.0
        self.socket: Optional[zmq.Socket[bytes]] = None
        self._unanswered: Dict[str, List[Any]] = {}  # message parts by request id
        self._answers: Dict[str, Answer] = {}
        self._monitor: Optional[zmq.Socket[bytes]] = None  # until the server is reached
        self._contact = self._NOTHING  # of this socket
        self._reached = False  # the server, with this socket or one before it
        _check_spare_files()
        self._context = zmq.Context()

    def close(self) -> None:
        """Says goodbye to the server and closes the socket."""
        if self.socket is not None and self._reached:
            with contextlib.suppress(self._zmq.ZMQError):
                self.socket.send(protocol.encode(protocol.Bye(), "bye"), self._zmq.DONTWAIT)
        self._close_monitor()
        self.socket = None
        self._context.destroy(linger=200)  # with every socket of it

    def send(self, request: protocol.Request, chunk: Optional[bytes] = None) -> str:
        """Sends a request without waiting for its answer; returns the request's id."""
        id = uuid.uuid4().hex[:16]
        parts: List[Any] = [protocol.encode(request, id)]
        if len(parts[0]) > protocol.MAX_HEADER:
            raise ServerError("too_large", "The request is too large. Choose a shorter range.")
        if chunk is not None:
            parts.append(chunk)
        self._post(parts)
        self._unanswered[id] = parts
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
        self._read_monitor()
        if not self.socket.poll(int(max(seconds, 0) * 1000)):
            self._read_monitor()
            return False
        while self.socket.poll(0):
            frames = self.socket.recv_multipart(copy=False)
            try:
                id, body = protocol.decode_answer(frames[0].bytes)
            except ProtocolError as error:
                raise ServerError(error.code, error.message, error.detail) from None
            chunk = frames[1].buffer if len(frames) > 1 else None  # no copy
            self._contact, self._reached = self._REACHED, True
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
            NoServerError: no answer came before the deadline; no server was ever reached at the
                address, which is said sooner.
            ServerError: the server refused; `bad_address`, what answers there is no server;
                `too_many_files`, this program can't open more.
        """
        patience = self.deadline if deadline is None else deadline
        start = last = time.monotonic()
        try:
            while id not in self._answers:
                now = time.monotonic()
                reached = self._reached
                if now - start > (patience if reached else min(patience, CONTACT_SECONDS)):
                    raise self._unreachable(now - start)
                self.poll(min(0.5 if reached else 0.1, patience))
                if self._contact == self._REFUSED:
                    raise self._unreachable(now - start)
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
        _check_spare_files()
        endpoint, key = self._server or find_server()
        if not endpoint:
            elsewhere = "" if self._reached else server_elsewhere()
            if elsewhere:
                raise NoServerError("", 0, elsewhere)
            return
        zmq = self._zmq
        host, port = parse_address(endpoint)
        public, secret = load_key(home() / "keys" / "client.key_secret")
        try:
            address, ipv6 = resolve(host, port)
        except ServerError:
            if self._reached:  # the name service fails for a while
                return
            raise
        socket = self._context.socket(zmq.DEALER)
        try:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.IPV6, int(ipv6))
            socket.curve_publickey, socket.curve_secretkey = public, secret
            socket.curve_serverkey = key.encode()
            socket.setsockopt(zmq.SNDHWM, 2 * CREDIT)
            socket.setsockopt(zmq.RCVHWM, 2 * CREDIT)
            socket.setsockopt(zmq.MAXMSGSIZE, max(CHUNK, protocol.MAX_HEADER) + 1024)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
            socket.setsockopt(zmq.HEARTBEAT_IVL, 5000)
            self._open_monitor(socket)
            socket.connect(address)
        except (zmq.ZMQError, ValueError) as error:
            socket.close(0)
            self._close_monitor()
            raise ServerError(
                "bad_address",
                f"The server at {endpoint} can't be reached: its key or address is wrong.",
                str(error),
            ) from None
        self.socket, self.endpoint = socket, endpoint_of(host, port)

    def _disconnect(self) -> None:
        self._close_monitor()
        if self.socket is not None:
            self.socket.close(0)
            self.socket = None

    def _open_monitor(self, socket: Any) -> None:
        """Has ZeroMQ tell whether the socket reaches a server, and why not."""
        zmq, name = self._zmq, f"inproc://monitor-{uuid.uuid4().hex}"
        socket.monitor(
            name,
            zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH,
        )
        self._contact = self._NOTHING
        self._monitor = self._context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.LINGER, 0)
        self._monitor.setsockopt(zmq.RCVHWM, 0)  # full, it would block ZeroMQ's own thread
        self._monitor.connect(name)

    def _close_monitor(self) -> None:
        if self._monitor is not None:
            if self.socket is not None:
                self.socket.monitor(None, 0)
            self._monitor.close(0)
            self._monitor = None

    def _read_monitor(self) -> None:
        zmq = self._zmq
        while self._monitor is not None and self._monitor.poll(0):
            event, value = struct.unpack("=hi", self._monitor.recv_multipart()[0])
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._contact, self._reached = self._REACHED, True
                self._close_monitor()
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH and value == 400:  # ZAP's status
                self._contact = self._REFUSED
            elif self._contact == self._NOTHING:
                self._contact = self._CONNECTED

    def _unreachable(self, seconds: float) -> ServerError:
        """Returns the error of a request without an answer; closes a socket that reached nobody."""
        contact, self._contact = self._contact, self._NOTHING
        endpoint = self.endpoint or find_server()[0]
        if not self._reached or contact == self._REFUSED:
            self._disconnect()
        if contact == self._REFUSED:
            return ServerError(
                "no_key",
                f"The server at {endpoint} does not know your key. Whoever runs it can add "
                f"{home() / 'keys' / 'client.key'}: reenact keys add NAME FILE.",
            )
        by_name = self._server is not None or bool(os.environ.get("REENACT_SERVER"))
        if contact == self._CONNECTED and by_name:
            return ServerError(
                "bad_address",
                f"What answers at {endpoint} is no Reenact server, or one with another key than "
                f"{home() / 'keys' / 'remote.key'}. Check the port, and copy the server's "
                "keys/server.key there again.",
            )
        return NoServerError(endpoint, seconds)

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


def _check_spare_files() -> None:
    """
    Raises:
        ServerError: `too_many_files`, this program can't open the few that a socket takes.
    """
    files: List[int] = []
    try:
        for _ in range(SPARE_FILES):
            files.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        raise ServerError(
            "too_many_files",
            "This program has almost as many files open as the system lets it. Close what you do "
            "not need, or start it again with a higher limit: ulimit -n 4096.",
            str(error),
        ) from None
    finally:
        for file in files:
            os.close(file)
