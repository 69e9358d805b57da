"""One careless client beside a well-behaved one, which is answered within 500 ms meanwhile."""

import hashlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from reenact import protocol
from reenact.channel import find_server
from reenact.client import ServerError
from reenact.protocol import CHUNK, File
from running_server import Server, gateway_of, inputs, resident, solve_task, wait_for

from core.media.numbering import frame_path

pytestmark = pytest.mark.timeout(300)

ANSWERED = 0.5  # seconds, for which a well-behaved client waits at most
STORE_GIB = 0.25


@pytest.fixture(scope="module")
def allowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the server may read."""
    return tmp_path_factory.mktemp("plates")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, allowed: Path) -> Iterator[Server]:
    """One server for all careless clients."""
    options = ("--store-limit", str(STORE_GIB), "--allow-path", str(allowed))
    running = Server(tmp_path_factory.mktemp("careless") / "home", *options).start()
    yield running
    assert running.process is not None
    assert running.process.poll() is None
    running.kill()


def holds_nobody_up(server: Server, careless: Callable[[], object]) -> bool:
    """Whether a well-behaved client is answered in time while a careless one does something.

    It is done up to three times: other programs of this machine may take the processor, too.
    """
    return any(longest_answer(server, careless) < ANSWERED for _ in range(3))


def longest_answer(server: Server, careless: Callable[[], object]) -> float:
    """Seconds that a client which asks all the time waits at most."""
    times: list[float] = []
    failed: list[BaseException] = []
    over = threading.Event()
    with server.client(10) as client:
        client.hello()

        def ask() -> None:
            while not over.is_set():
                start = time.monotonic()
                try:
                    client.ask(protocol.Ping())
                except ServerError as error:
                    failed.append(error)
                    return
                times.append(time.monotonic() - start)
                time.sleep(0.02)

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            careless()
        finally:
            over.set()
            thread.join()
    assert not failed
    return max(times)


@contextmanager
def raw(server: Server, number: int = 1) -> Iterator[list["zmq.Socket[bytes]"]]:
    """Sockets that send what they like, and are closed without a word."""
    context = zmq.Context()
    sockets = []
    public, secret = zmq.auth.load_certificate(server.folder / "keys/client.key_secret")
    address = json.loads((server.folder / "server.json").read_text())
    for _ in range(number):
        socket = context.socket(zmq.DEALER)
        socket.curve_publickey, socket.curve_secretkey = public, secret or b""
        socket.curve_serverkey = address["key"].encode()
        socket.setsockopt(zmq.SNDHWM, 10_000)
        socket.setsockopt(zmq.RCVHWM, 1)
        socket.connect(address["endpoint"])
        sockets.append(socket)
    try:
        yield sockets
    finally:
        context.destroy(linger=0)


def ask(socket: "zmq.Socket[bytes]", request: protocol.Request, *chunk: bytes) -> Any:
    """The answer's body, or the error."""
    id = os.urandom(6).hex()
    socket.send_multipart([protocol.encode(request, id), *chunk])
    while True:
        assert socket.poll(10_000), f"no answer to {request}"[:300]
        got, body = protocol.decode_answer(socket.recv_multipart()[0])
        if got == id:
            return body


def of(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def clients(server: Server) -> int:
    with server.client() as client:
        return int(client.ask(protocol.Health())["clients"])


def test_the_gateway_is_killed_and_nobody_loses_a_job(server: Server, folder: Path) -> None:
    with server.client() as client:
        job = client.submit(solve_task(client, folder, steps=300))
        wait_for(lambda: client.status(job)["state"] == "running", 60, "its start")
        worker = client.ask(protocol.Health())["workers"]["long"]
        endpoint = find_server()
        gateway = gateway_of(server)
        os.kill(gateway, signal.SIGABRT)  # as an assertion of libzmq does
        assert client.ask(protocol.Ping())["time"]  # repeated by the client itself
        assert gateway_of(server) != gateway
        assert find_server() == endpoint
        assert client.ask(protocol.Health())["workers"]["long"] == worker
        states = [e["state"] for e in client.events(job) if e["type"] == "state"]
        assert states == ["queued", "running"]
        client.cancel(job)
        wait_for(lambda: client.status(job)["state"] == "cancelled", 60, "its end")
        assert client.status(job)["reason"] == "by owner"


def test_thousands_of_hashes_hold_nobody_up(server: Server) -> None:
    """With 300 of them on a connection, and a client that was killed, the server was ended."""
    hashes = [of(str(i)) for i in range(10_000)]
    message = protocol.encode(protocol.Held(hashes), "x")
    before = resident(server)

    def careless() -> None:
        with raw(server, 10) as sockets:
            assert len(ask(sockets[0], protocol.Held(hashes))["bytes"]) == 10_000
            for _ in range(6):
                for socket in sockets:
                    socket.send(message)
            time.sleep(1)
            assert resident(server) - before < 150 << 20
        wait_for(lambda: clients(server) <= 2, 10, "their ends")

    assert holds_nobody_up(server, careless)


def test_checks_of_files_are_done_once_and_for_those_who_wait(server: Server) -> None:
    assert server.process is not None
    tasks = f"/proc/{server.process.pid}/task"
    files = []
    with server.client() as client:
        for i in range(2):
            path = server.folder / f"big{i}.mov"
            path.write_bytes(bytes([i + 1]) * (32 << 20))
            files += client.send([path])
        assert client.ask(protocol.Verify(files[0].hash)) == {"whole": True}
        threads = len(os.listdir(tasks))

        def careless() -> None:
            with raw(server, 4) as sockets:
                for i in range(16):
                    for socket in sockets:
                        socket.send(protocol.encode(protocol.Verify(files[i % 2].hash), f"v{i}"))
                time.sleep(0.5)
                assert len(os.listdir(tasks)) <= threads

        assert holds_nobody_up(server, careless)
        assert client.ask(protocol.Verify(files[1].hash)) == {"whole": True}
        assert client.ask(protocol.Verify(of("unknown"))) == {"whole": False}


def test_announced_sizes_take_no_room(server: Server) -> None:
    budget = int(STORE_GIB * 2**30)
    with server.client() as client, raw(server) as (socket,):
        old = server.folder / "old.mov"
        old.write_bytes(os.urandom(16 << 20))
        (kept,) = client.send([old])
        for i in range(24):
            whole = File(of(f"announced {i}"), budget // 2)
            body = ask(socket, protocol.Upload(whole.hash, whole.size, 0), bytes(CHUNK))
            assert body == {"received": CHUNK}
        path = server.folder / "honest.mov"
        path.write_bytes(os.urandom(60 << 20))
        client.send([path])
        assert client.ask(protocol.Held([kept.hash]))["bytes"] == [kept.size]
        too_much = protocol.Upload(of("too much"), budget + 1, 0)
        assert ask(socket, too_much, bytes(CHUNK)).code == "store_full"


def test_those_who_do_not_read_cost_a_stated_amount(server: Server) -> None:
    """At most 4 MiB each, where each took 60; and after 30 s TCP gives the connection up."""
    path = server.folder / "much.mov"
    path.write_bytes(os.urandom(32 << 20))
    back = server.folder / "back.mov"
    with server.client() as client:
        (file,) = client.send([path])
        before = resident(server)

        def careless() -> None:
            with raw(server, 20) as sockets:
                for i in range(64):
                    for socket in sockets:
                        request = protocol.Download(file.hash, i % 32 * CHUNK)
                        socket.send(protocol.encode(request, f"d{i}"))
                time.sleep(0.5)
                client.receive([(file, back)])
                assert resident(server) - before < 21 * 4 << 20  # with the one that reads

        assert holds_nobody_up(server, careless)
    assert back.read_bytes() == path.read_bytes()


def test_connections_that_end_without_a_word_lock_nobody_out(server: Server) -> None:
    for _ in range(2):
        with raw(server, 50) as sockets:
            for socket in sockets:
                assert ask(socket, protocol.Ping())
        wait_for(lambda: clients(server) == 1, 10, "their ends")


def test_a_repeat_has_no_answer_of_its_own(server: Server, folder: Path) -> None:
    with server.client() as client, raw(server) as (socket,):
        job = client.submit(solve_task(client, folder, steps=299))
        client.cancel(job)
        wait_for(lambda: client.status(job)["state"] == "cancelled", 60, "its end")
        os.kill(server.process.pid, signal.SIGSTOP)  # a stall
        for _ in range(3):
            for request, id in (
                (protocol.Delete(job), "delete"),
                (protocol.Ping(), "ping"),
                (protocol.Events(job, 0, 1), "gone"),
            ):
                socket.send(protocol.encode(request, id))
        time.sleep(0.3)
        os.kill(server.process.pid, signal.SIGCONT)
        answers = []
        while socket.poll(1500):
            answers.append(protocol.decode_answer(socket.recv()))
        assert sorted(id for id, _ in answers) == ["delete", "gone", "ping"]
        assert dict(answers)["delete"] == {}
        assert ask(socket, protocol.Delete(job)).code == "no_such_job"


def test_a_worker_stuck_in_a_read_obeys_and_frees_its_lane(
    server: Server, folder: Path, allowed: Path
) -> None:
    character, pattern = inputs(folder)
    frame = allowed / "plate.1001.png"
    with server.client() as client:
        (file,) = client.send([character])
        os.mkfifo(allowed / "pipe.mov")
        for path in (allowed / "pipe.mov", allowed / "."):
            with pytest.raises(ServerError) as raised:
                client.submit(protocol.Solve(protocol.Clip(path=str(path)), file))
            assert raised.value.code in ("bad_value", "path")
        shutil.copyfile(frame_path(pattern, 1001), frame)
        busy = client.submit(solve_task(client, folder, steps=297))
        wait_for(lambda: client.status(busy)["state"] == "running", 60, "its start")
        clip = protocol.Clip(path=str(allowed / "plate.####.png"))
        replaced = client.submit(protocol.Solve(clip, file))
        frame.unlink()
        os.mkfifo(frame)  # after it was looked at
        client.pause(busy)
        wait_for(lambda: client.status(busy)["state"] == "paused", 60, "its pause")
        assert client.status(busy)["reason"] == "by owner"
        client.pause(busy)
        states = [e["state"] for e in client.events(busy) if e["type"] == "state"]
        assert states == ["queued", "running", "paused"]
        wait_for(lambda: client.status(replaced)["state"] == "failed", 60, "its end")

        client.resume(busy)
        wait_for(lambda: client.status(busy)["state"] == "running", 60, "its start")
        worker = client.ask(protocol.Health())["workers"]["long"]["pid"]
        os.kill(worker, signal.SIGSTOP)  # as by a disk that hangs
        client.pause(busy)
        wait_for(lambda: client.status(busy)["state"] == "paused", 30, "its end")
        assert client.status(busy)["reason"] == "by owner"
        assert not Path(f"/proc/{worker}").exists()
        client.resume(busy)
        wait_for(lambda: client.status(busy)["state"] == "running", 60, "the free lane")
        client.cancel(busy)
        wait_for(lambda: client.status(busy)["state"] == "cancelled", 60, "its end")


def test_what_can_not_be_is_refused_at_once(server: Server, folder: Path) -> None:
    with server.client() as client, raw(server) as (socket,):
        task = protocol.plain(solve_task(client, folder))
        track = {"track": task["character"], "character": task["character"]}
        for kind, wrong, code in (
            ("render", track | {"movie": True}, "bad_value"),
            ("render", track | {"sheet": True}, "bad_value"),
            ("render", track | {"layers": "most"}, "bad_value"),
            ("render", track | {"grain": -0.5}, "bad_value"),
            ("solve", task | {"preset": "best"}, "bad_value"),
            ("qc", {**track, "plate": task["plate"], "limits": {"ID": "low"}}, "bad_value"),
            ("qc", {**track, "plate": task["plate"], "limits": {"ID": True}}, "bad_value"),
            ("solve", task | {"character": {"path": "/x", "size": 5}}, "malformed"),
        ):
            with pytest.raises(ServerError) as raised:
                client.ask(protocol.Submit(kind, wrong))
            assert raised.value.code == code, wrong
        hash, size = task["character"]["hash"], task["character"]["size"]
        body = ask(socket, protocol.Download(hash, 2**53 - 1))
        assert body == {"offset": 2**53 - 1, "size": size}
        assert ask(socket, protocol.Upload(hash, size + 1, 0), bytes(CHUNK)).code == "bad_value"
        for request in (protocol.Events("x", -1), protocol.Events("x", 0, -1.0)):
            assert ask(socket, request).code == "malformed"
        header = json.loads(protocol.encode(protocol.Ping(), "extra")) | {"hint": 1}
        socket.send(json.dumps(header).encode())
        id, refused = protocol.decode_answer(socket.recv())
        assert (id, getattr(refused, "code", "")) == ("extra", "malformed")


def test_the_limit_of_jobs_holds_for_those_that_are_resumed(server: Server, folder: Path) -> None:
    with server.client() as client:
        task = protocol.plain(solve_task(client, folder))
        made = []

        def add(i: int) -> str:
            absent = task | {"character": {"hash": of(f"absent {i}"), "size": 10}}
            return str(client.ask(protocol.Submit("solve", absent))["id"])

        first = add(0)
        client.cancel(first)
        with pytest.raises(ServerError, match="64 jobs"):
            made += [add(i) for i in range(1, 66)]
        for again in (lambda: client.resume(first), lambda: add(0)):
            with pytest.raises(ServerError, match="64 jobs"):
                again()
        for job in client.jobs():
            if job["state"] in ("waiting", "paused"):
                client.delete(job["id"])
        client.resume(first)
        client.delete(first)


def test_no_text_shows_a_path_of_the_server(server: Server, folder: Path) -> None:
    character, _ = inputs(folder)
    with server.client() as client:
        broken = server.folder / "broken.1001.png"
        broken.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
        movie = server.folder / "broken.mov"
        movie.write_bytes(b"no movie")
        (file,) = client.send([character])
        wrong = client.send([movie])[0]
        clip = client.send_clip(server.folder / "broken.####.png", [1001])
        jobs = [
            client.submit(protocol.Solve(clip, file)),
            client.submit(protocol.Solve(client.send_clip(movie), file)),
            client.submit(protocol.Render(wrong, file)),
            client.submit(protocol.FitDirections(base=wrong)),
        ]
        for job in jobs:
            wait_for(lambda job=job: client.status(job)["state"] == "failed", 60, job)
            said = json.dumps([client.status(job), client.events(job)])
            assert str(server.folder / "store") not in said
            assert os.fspath(Path(__file__).parents[2]) not in said
        assert "broken.1001.png" in client.status(jobs[0])["reason"]
        with pytest.raises(ServerError) as raised:
            client.ask(protocol.Download(of("nothing"), 0))
        assert str(server.folder) not in raised.value.detail


def test_a_client_of_its_own_kind_waits_its_turn() -> None:
    """The one that used least of the loop's time is served next."""
    from server.frontend.peers import Limits, Message, Peer, Peers

    peers, served = Peers(Limits(), lambda: None), []

    def handle(peer: Peer, message: Message) -> None:
        served.append((peer.identity, message.place))
        time.sleep(0.002 if peer.identity == b"greedy" and len(served) < 9 else 0)

    for _ in range(2000):
        peers.arrive(b"greedy", "key", [bytearray(b"{}")])
    for _ in range(3):
        peers.serve_next(handle, True)
    peers.arrive(b"modest", "key", [bytearray(b"{}")])
    peers.arrive(b"modest", "key", [bytearray(b"{}")])
    for _ in range(3):
        peers.serve_next(handle, True)
    assert (b"modest", 1) in served[3:5]
    assert (b"modest", 2) in served[3:6]
    while peers.serve_next(handle, True):
        pass
    assert len(served) < 1100  # the rest was dropped
