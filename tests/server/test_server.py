"""The server with real workers: jobs, transfers, and clients of all kinds."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import zmq
from command_line import reenact_here
from interpreters import interpreter
from OpenImageIO import ImageOutput, ImageSpec
from reenact import protocol
from reenact.client import Client, Pump, ServerError, find_server
from reenact.protocol import CHUNK, File
from reenact.transfers import PartialFile
from running_server import (
    FRAMES,
    QUICK,
    Server,
    finish,
    inputs,
    render_task,
    resident,
    same_track,
    solve_task,
    wait_for,
    wait_for_progress,
)

from core.media.numbering import frame_path
from core.media.read import open_clip
from core.solve.latent_track import load_track
from server.cli.reporting import Report
from server.frontend import home
from server.jobs import registry
from server.jobs.common import Context

pytestmark = pytest.mark.timeout(600)


# -- a job's life --------------------------------------------------------------------------------


def test_the_server_gives_what_the_command_line_gives(
    server: Server, folder: Path, local: Path, tmp_path: Path
) -> None:
    with server.client() as client:
        task = solve_task(client, folder)
        job = client.submit(task)
        assert finish(client, job)["state"] == "done"
        track = same_track(client, job, local, tmp_path)
        assert client.submit(task) == job  # nothing is computed twice
        another = client.submit(dataclasses.replace(task, steps=1))
        assert another != job
        client.cancel(another)

        drawing = client.submit(render_task(client, folder, track))
        seen: list[dict[str, object]] = []
        manifest = client.collect(drawing, tmp_path / "shots", "anna", seen.append)
        assert manifest["state"] == "done"
        assert manifest["frames"] == list(range(1001, 1001 + FRAMES))
        assert Path(manifest["folder"]).name == "anna_v001"
        states = [e["state"] for e in seen if e["type"] == "state"]
        assert states == ["queued", "running", "done"]
        first_file = next(i for i, e in enumerate(seen) if e["type"] == "file")
        assert first_file < len(seen) - FRAMES  # frames came while it still ran

        character, pattern = inputs(folder)
        out = str(tmp_path / "local.####.exr")
        empty = protocol.Render(File(), File(), name="track")
        context = Context(
            Report(machine=True),
            {"track": track, "character": character},
            {"plate": open_clip(pattern)},
            {"frame": Path(out)},
        )
        registry.run_task(empty, context)
        for number in manifest["frames"]:
            there, here = (frame_path(p, number) for p in (manifest["pattern"], out))
            assert Path(there).read_bytes() == Path(here).read_bytes()
        again = client.collect(drawing, tmp_path / "shots", "anna")
        assert again["folder"] == manifest["folder"]  # the same job, the same version
        other = client.collect(job, tmp_path / "shots", "anna")
        assert Path(other["folder"]).name == "anna_v002"


NUKES_PYTHONS = ("3.9", "3.10", "3.11")  # Nuke 14, 15, 16
SESSION = """
import json, sys
from reenact.client import Client
from reenact.protocol import Solve
folder, character, pattern, first, last, settings = sys.argv[1:]
with Client("a Nuke", 60) as client:
    plate = client.send_clip(pattern, range(int(first), int(last) + 1))
    job = client.submit(Solve(plate, client.send([character])[0], **json.loads(settings)))
    made = client.collect(job, folder, "anna")
print(json.dumps([sys.version_info[:2], sorted(m for m in sys.modules if m == "numpy"), made]))
"""


@pytest.mark.parametrize("version", NUKES_PYTHONS)
def test_the_client_in_the_pythons_of_nuke(
    server: Server, folder: Path, local: Path, tmp_path: Path, version: str
) -> None:
    """A whole session with the pyzmq of that interpreter, and no other package."""
    python = interpreter(version, "pip")
    packages = tmp_path / "packages"
    installed = subprocess.run(
        [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--target",
            packages,
            f"pyzmq=={zmq.__version__}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if installed.returncode:
        pytest.skip(f"pyzmq can't be had for Python {version}: {installed.stderr[-200:]}")
    character, pattern = inputs(folder)
    plugin = Path(protocol.__file__).parents[1]
    done = subprocess.run(
        [
            *(python, "-c", SESSION, tmp_path / "shots", character, pattern),
            *("1001", str(1000 + FRAMES), json.dumps(QUICK)),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        cwd=tmp_path,
        env=os.environ
        | {
            "REENACT_HOME": str(server.folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": f"{plugin}{os.pathsep}{packages}",
        },
    )
    assert not done.returncode, done.stderr
    ran, unwanted, made = json.loads(done.stdout)
    assert (f"{ran[0]}.{ran[1]}", unwanted, made["state"]) == (version, [], "done")
    theirs, ours = load_track(Path(made["folder"]) / "track.latents"), load_track(local)
    np.testing.assert_array_equal(theirs.smooth, ours.smooth)


def test_one_frame_does_not_wait_for_long_jobs(
    server: Server, folder: Path, local: Path, tmp_path: Path
) -> None:
    with server.client() as client:
        long = solve_task(client, folder, steps=500)
        track, character = client.send([local])[0], long.character
        job = client.submit(long)
        one = client.submit(protocol.Frame(track, character, 1003, long.plate))
        status = finish(client, one)
        assert status["state"] == "done", status
        assert [f["number"] for f in status["files"]] == [1003]
        assert client.status(job)["state"] in ("queued", "running")
        client.cancel(job)
        assert finish(client, job)["state"] == "cancelled"
        absent = client.submit(protocol.Frame(track, character, 7, long.plate))
        assert finish(client, absent)["reason"].startswith("Frame 7 is not in the track")
        for id in (job, one, absent):
            client.delete(id)
        with pytest.raises(ServerError, match="doesn't know this job"):
            client.status(job)


def test_a_pause_keeps_what_is_solved(
    server: Server, folder: Path, local: Path, tmp_path: Path
) -> None:
    with server.client() as client:
        task = solve_task(client, folder, batch=1)
        job = client.submit(task)
        wait_for_progress(client, job, "solving", 2)
        client.pause(job)
        wait_for(lambda: client.status(job)["state"] == "paused", 60, "the pause")
        pump = Pump("test")
        with patch.dict(os.environ, {"REENACT_HOME": str(server.folder)}):
            pump.watch(job)
            client.resume(job)
            assert finish(client, job)["state"] == "done"
            news: list[dict[str, object]] = []
            wait_for(
                lambda: news.extend(pump.drain()) or any(e.get("state") == "done" for e in news),
                30,
                "the pump",
            )
        pump.close()
        numbers = [e["n"] for e in news if e.get("job") == job]
        assert numbers == sorted(numbers)


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(
    server: Server, folder: Path, tmp_path: Path
) -> None:
    character, pattern = inputs(folder)
    track = tmp_path / "shot.latents"
    command = [
        sys.executable,
        "-m",
        "server.cli.main",
        "solve",
        pattern,
        "--character",
        str(character),
        "-o",
        str(track),
        *("--batch", "2", "--steps", "2", "--neutral", "off"),
        "--json",
    ]
    environment = os.environ | {"REENACT_HOME": str(server.folder)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        lines = (json.loads(line) for line in first.stdout)
        next(line for line in lines if line.get("stage") == "solving" and line["done"] > 0)
        first.send_signal(signal.SIGINT)
        rest = [*lines]
    assert first.returncode not in (0, None)
    assert {"note": "stopping: what is done is kept"} in rest
    assert not track.exists()
    with server.client() as client:
        assert client.jobs()[0]["state"] == "paused"
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout.splitlines()[-1])["result"]["frames"] == FRAMES
    whole = tmp_path / "whole.latents"
    command[command.index(str(track))] = str(whole)
    assert reenact_here(*command[3:], "--local", cwd=tmp_path).returncode == 0
    np.testing.assert_array_equal(load_track(track).codes, load_track(whole).codes)


# -- transfers ------------------------------------------------------------------------------------

SEND = """
import sys
from reenact.client import Client
with Client("sender", 60) as client:
    client.send([sys.argv[1]])
"""
RECEIVE = """
import sys
from reenact.client import Client
from reenact.protocol import File
with Client("receiver", 60) as client:
    client.receive([(File(sys.argv[1], int(sys.argv[2])), sys.argv[3])])
"""


def test_transfers_go_on_where_a_killed_client_left_them(server: Server, tmp_path: Path) -> None:
    big = tmp_path / "big.mov"
    with big.open("wb") as file:
        for i in range(150):
            file.write(np.random.default_rng(i).bytes(CHUNK))
        file.write(b"end")
    hash, size = protocol.file_hash(big)
    environment = os.environ | {"REENACT_HOME": str(server.folder)}
    with server.client() as client:

        def held() -> int:
            return client.ask(protocol.Held([hash]))["bytes"][0]

        sender = subprocess.Popen([sys.executable, "-c", SEND, str(big)], env=environment)
        wait_for(lambda: held() > 10 * CHUNK, 60, "some chunks")
        sender.kill()
        sender.wait()
        time.sleep(0.5)
        left = held()
        assert 10 * CHUNK < left < size
        sent: list[int] = []
        client.send([big], lambda done, total: sent.append(done))
        assert next(done for done in sent if done) >= left  # it began there, once it was hashed
        assert held() == size

        target = tmp_path / "fetched.mov"
        command = [sys.executable, "-c", RECEIVE, hash, str(size), str(target)]
        receiver = subprocess.Popen(command, env=environment)

        def part() -> int:
            return sum(p.stat().st_size for p in tmp_path.glob(".fetched.mov.*.part"))

        wait_for(lambda: part() > 5 * CHUNK, 60, "some chunks")
        receiver.kill()
        receiver.wait()
        assert not target.exists()
        kept, told = part(), []
        client.receive([(File(hash, size), target)], lambda done, total: told.append(done))
        assert told[0] > kept - 2 * CHUNK
        assert target.read_bytes() == big.read_bytes()
        assert not list(tmp_path.glob("*.part"))


def test_two_programs_that_fetch_one_file_do_not_meet(tmp_path: Path) -> None:
    """As two Nukes do that follow the same job."""
    content = [os.urandom(CHUNK), os.urandom(100)]
    path, whole = tmp_path / "frame.exr", b"".join(content)
    hash = hashlib.blake2b(whole, digest_size=32).hexdigest()

    def part() -> PartialFile:
        return PartialFile(File(hash, len(whole)), path)

    first = part()
    first.write(content[0])
    second = part()
    assert second.received == 0  # not what the first one is at
    first.write(content[1])
    second.write(content[0])
    assert first.finish()
    assert path.read_bytes() == whole
    second.write(content[1])
    assert second.finish()
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_bytes() == whole
    cut = part()
    cut.write(content[0])
    cut.target.close()  # it died
    assert part().received == CHUNK


class Line:
    """A TCP connection to the server that can be cut."""

    def __init__(self, endpoint: str) -> None:
        host, port = endpoint.removeprefix("tcp://").split(":")
        self.there = (host, int(port))
        self.cut = threading.Event()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self.socket.getsockname()[1]}"
        self.open: list[socket.socket] = []
        self.sent = bytearray()  # by clients
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.socket.accept()
            except OSError:
                return
            if self.cut.is_set():
                near.close()
                continue
            far = socket.create_connection(self.there)
            self.open += [near, far]
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(a, b), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if target.getpeername() == self.there:
                    self.sent += data
                target.sendall(data)
        for end in (source, target):
            end.close()

    def break_off(self) -> None:
        self.cut.set()
        for end in self.open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.break_off()
        self.socket.close()


@pytest.mark.parametrize("content", [b'{"endpoint": "tcp://127', None])
def test_the_server_tells_where_it_is_again(server: Server, content: bytes | None) -> None:
    """A cleaning script deletes server.json, or a full disk leaves half of it."""
    path = server.folder / "server.json"
    with server.client() as client:
        known = find_server()
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        assert find_server() == ("", "")
        wait_for(lambda: find_server() == known, 60, "the address")
        client.hello()


def test_a_connection_cut_for_20_seconds(
    server: Server, folder: Path, local: Path, tmp_path: Path
) -> None:
    with server.client() as direct:
        direct.hello()
        line = Line(direct.channel.endpoint)
        through = line.endpoint, find_server()[1]
        with Client("test", 60, through) as client:
            job = client.submit(render_task(client, folder, local))
            result: list[dict[str, object]] = []

            def collect() -> None:
                with Client("collector", 60, through) as own:
                    result.append(own.collect(job, tmp_path, "cut"))

            thread = threading.Thread(target=collect)
            thread.start()
            # A client that never reached the server would give up within seconds, as it should.
            wait_for(lambda: [*tmp_path.glob("cut_v*/*.exr")], 60, "a frame")
            line.break_off()
            big = tmp_path / "sent.mov"
            big.write_bytes(np.random.default_rng(99).bytes(40 * CHUNK + 5))
            time.sleep(20)
            assert finish(direct, job)["state"] == "done"  # nobody waited for the client
            line.cut.clear()
            (sent,) = client.send([big])
            assert direct.ask(protocol.Held([sent.hash]))["bytes"] == [sent.size]
            thread.join(60)
        line.close()
    assert result[0]["frames"] == list(range(1001, 1001 + FRAMES))


# -- many, greedy and hostile clients ------------------------------------------------------------


def test_fifty_clients_at_once(server: Server, folder: Path, local: Path) -> None:
    task_files: list[protocol.Solve] = []
    with server.client() as client:
        task_files.append(solve_task(client, folder))
    found: list[str] = []
    failed: list[BaseException] = []

    def one(i: int) -> None:
        try:
            with Client(f"client {i}", 60) as client:
                client.hello()
                found.append(client.submit(task_files[0]))
                client.jobs()
                client.status(found[-1])
        except BaseException as error:
            failed.append(error)

    with patch.dict(os.environ, {"REENACT_HOME": str(server.folder)}):
        threads = [threading.Thread(target=one, args=(i,)) for i in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
    assert not failed
    assert len(found) == 50
    assert len(set(found)) == 1  # they asked for the same


def test_a_client_that_never_reads_costs_a_stated_amount(
    own_server: Server, tmp_path: Path
) -> None:
    own_server.start()
    big = tmp_path / "big.mov"
    big.write_bytes(np.random.default_rng(6).bytes(64 * CHUNK))
    with own_server.client() as client, own_server.client() as deaf:
        (file,) = client.send([big])
        before = resident(own_server)
        deaf.hello()
        for turn in range(20):  # 1.25 GiB, were they all kept
            for i in range(64):
                id = deaf.channel.send(protocol.Download(file.hash, i * CHUNK))
                deaf.channel.forget(id)
            start = time.monotonic()
            client.ask(protocol.Ping())
            assert time.monotonic() - start < 5, f"turn {turn}"
        assert resident(own_server) - before < 160 * CHUNK


def test_keys_decide_who_gets_an_answer(own_server: Server, tmp_path: Path) -> None:
    own_server.start()

    def answers(folder: Path) -> bool:
        with patch.dict(os.environ, {"REENACT_HOME": str(folder)}), Client("x", 3) as client:
            try:
                return bool(client.hello())
            except ServerError as error:
                if error.code != "no_key":
                    raise
                return False

    stranger = tmp_path / "stranger"
    home.make_keys(stranger)
    shutil.copyfile(own_server.folder / "server.json", stranger / "server.json")
    assert answers(own_server.folder)
    assert not answers(stranger)
    home.add_key(own_server.folder, "friend", stranger / "keys/client.key")
    assert answers(stranger)
    (stranger / "server.json").unlink()
    shutil.copyfile(own_server.folder / "keys/server.key", stranger / "keys/remote.key")
    endpoint = "tcp://{}:{}".format(*answers_at(own_server))
    with patch.dict(os.environ, {"REENACT_SERVER": endpoint}):
        assert answers(stranger)
    shutil.copyfile(own_server.folder / "server.json", stranger / "server.json")
    with patch.dict(os.environ, {"REENACT_HOME": str(stranger)}), Client("x", 3) as connected:
        connected.hello()
        home.revoke_key(own_server.folder, "friend")
        time.sleep(1.2)
        with pytest.raises(ServerError, match="No Reenact server answers"):
            connected.ask(protocol.Ping())
    assert not answers(stranger)
    for name in ("server.key_secret", "client.key_secret"):
        assert (own_server.folder / "keys" / name).stat().st_mode & 0o777 == 0o600
    host, port = answers_at(own_server)
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" + bytes(8) + b"\x7f", os.urandom(4096)):
        with socket.create_connection((host, port)) as raw:
            raw.sendall(garbage)
            raw.settimeout(1)
            with contextlib.suppress(OSError):
                while raw.recv(4096):
                    pass
    assert answers(own_server.folder)


def answers_at(server: Server) -> tuple[str, int]:
    with patch.dict(os.environ, {"REENACT_HOME": str(server.folder)}):
        host, port = find_server()[0].removeprefix("tcp://").split(":")
    return host, int(port)


def test_limits_are_named(server: Server, folder: Path, tmp_path: Path) -> None:
    with server.client() as client:
        solve = solve_task(client, folder)
        begun = time.monotonic()
        refused: list[ServerError] = []
        made = []
        for i in range(200):
            absent = File(f"{i:064x}", 10)
            task = dataclasses.replace(solve, character=absent)
            try:
                client.ask(protocol.Submit("solve", dataclasses.asdict(task)))
                made.append(i)
            except ServerError as error:
                refused.append(error)
        assert time.monotonic() - begun < 60
        assert refused
        assert all(e.code == "too_many_jobs" and "64 jobs" in str(e) for e in refused)
        for job in client.jobs():
            if job["state"] == "waiting":
                client.delete(job["id"])

        long = dataclasses.replace(
            solve.plate, numbers=list(range(4001)), files=solve.plate.files[:1] * 4001
        )
        with pytest.raises(ServerError, match=r"4001 frames, 4000 are allowed"):
            client.ask(
                protocol.Submit("solve", dataclasses.asdict(dataclasses.replace(solve, plate=long)))
            )
        for path in ("/etc/passwd", "../../x.png", f"{folder}/plate.####.png", "x.png"):
            clip = protocol.Clip(path=path)
            with pytest.raises(ServerError, match="may not read files there") as raised:
                client.submit(dataclasses.replace(solve, plate=clip))
            assert raised.value.code == "path"
        with pytest.raises(ServerError) as raised:
            client.ask(protocol.Download("../../../../etc/passwd", 0))
        assert raised.value.code == "malformed"
        socket = client.channel.socket
        assert socket is not None
        until, codes = time.monotonic() + 20, set()
        while "rate" not in codes:
            assert time.monotonic() < until
            ping = protocol.encode(protocol.Ping(), "a")
            for _ in range(500):
                with contextlib.suppress(zmq.Again):
                    socket.send(ping, zmq.DONTWAIT)
            while socket.poll(0):
                codes.add(getattr(protocol.decode_answer(socket.recv())[1], "code", "ok"))
        time.sleep(1.5)
        client.ask(protocol.Ping())


def test_connections_are_counted_until_they_say_goodbye(own_server: Server) -> None:
    own_server.start()
    with contextlib.ExitStack() as open_ones:
        for _ in range(64):
            open_ones.enter_context(own_server.client()).hello()
        with own_server.client() as late, pytest.raises(ServerError, match="64 clients") as raised:
            late.hello()
        assert raised.value.code == "too_many_clients"
    with own_server.client() as later:
        wait_for(lambda: later.ask(protocol.Health())["clients"] == 1, 20, "their end")


def test_a_recorded_connection_is_worth_nothing(own_server: Server) -> None:
    own_server.start()
    with own_server.client() as direct:
        direct.hello()
        key = find_server()[1]
        line = Line(direct.channel.endpoint)
        with Client("recorded", 20, (line.endpoint, key)) as client:
            client.hello()
            client.jobs()
        recorded = bytes(line.sent)
        line.close()
        assert len(recorded) > 500
        clients = direct.ask(protocol.Health())["clients"]
        for part in (recorded, recorded[:-7], recorded[: len(recorded) // 2]):
            with socket.create_connection(answers_at(own_server)) as raw:
                raw.sendall(part)
                raw.settimeout(1)
                got = b""
                with contextlib.suppress(OSError):
                    while data := raw.recv(4096):
                        got += data
            assert len(got) < 500  # the server's half of a handshake that can't be completed
        assert direct.ask(protocol.Health())["clients"] == clients


def test_a_picture_that_unpacks_to_too_much_fails_its_job_alone(
    server: Server, folder: Path, tmp_path: Path
) -> None:
    bomb = tmp_path / "bomb.1001.exr"
    side = 12000  # a little more than is allowed
    spec = ImageSpec(side, side, 3, "half")
    spec["compression"] = "zip"
    out = ImageOutput.create(str(bomb))
    out.open(str(bomb), spec)
    row = np.zeros((16, side, 3), np.float16)
    for y in range(0, side, 16):
        out.write_scanlines(y, y + 16, 0, row)
    out.close()
    assert bomb.stat().st_size < 4 << 20
    with server.client() as client:
        solve = solve_task(client, folder)
        clip = client.send_clip(tmp_path / "bomb.####.exr", [1001])
        status = finish(client, client.submit(dataclasses.replace(solve, plate=clip)))
        assert status["state"] == "failed"
        assert str(side) in status["reason"]
        client.ask(protocol.Ping())
