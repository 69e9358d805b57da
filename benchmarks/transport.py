"""How fast frames travel to the server and back, against ZeroMQ by itself and a copy of the files.

    python benchmarks/transport.py [--frames 60] [--passed 2000]

The frames are 1920x1080 half-float EXRs of noise. Every row is from disk to disk through the
loopback, the best of three:

upload, download: the client and a server in a process of its own: encrypted (CURVE), hashed on both
    sides, answered chunk by chunk, and every file flushed to the disk before its rename.
upload again: the same files; nothing travels but hashes.
bare ZeroMQ: DEALER to ROUTER, another process that writes what comes; no encryption, no hash, no
    answers, no flush.
bare ZeroMQ, CURVE: the same, encrypted, as ours always is.
bare ZeroMQ, CURVE, flushed: every file is also flushed to the disk, as ours are.
file copy: shutil.copyfile.

Then so many frames pass through the server, as uploads that are downloaded again, and its resident
memory is printed on the way.
"""

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import zmq
from reenact.client import Client
from reenact.protocol import CHUNK, File

from core.media.write import write_exr
from server.frontend import home

ROOT = Path(__file__).resolve().parents[1]
TRIES = 3
FLUSHED = "bare ZeroMQ, CURVE, flushed"


def make_frames(folder: Path, count: int) -> list[Path]:
    """Files of which no two are alike: a few of noise, and numbers after their end."""
    rng = np.random.default_rng(0)
    noise = []
    for i in range(4):
        pixels = rng.random((1080, 1920, 3), np.float32)
        write_exr(folder / f"noise.{i}.exr", pixels)
        noise.append((folder / f"noise.{i}.exr").read_bytes())
    paths = []
    for i in range(count):
        paths.append(folder / f"frame.{1001 + i}.exr")
        paths[-1].write_bytes(noise[i % 4] + i.to_bytes(8, "big"))
    return paths


@contextmanager
def server(folder: Path) -> Iterator[int]:
    """`reenact serve`; its process number."""
    os.environ["REENACT_HOME"] = str(folder)
    os.environ.pop("REENACT_SERVER", None)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "nuke_plugin")])
    home.make_keys(folder)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "server.cli.main", "serve"], stdout=log, stderr=log
        )
    try:
        until = time.monotonic() + 60
        while not (folder / "server.json").exists():
            if process.poll() is not None or time.monotonic() > until:
                sys.exit(f"the server does not start:\n{(folder / 'log').read_text()}")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def resident(pid: int, name: str = "VmRSS") -> float:
    """MiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split(f"{name}:")[1].split()[0]) / 1024


# -- bare ZeroMQ -------------------------------------------------------------------------------


def bare_writer(
    folder: Path, port: "multiprocessing.Queue[str]", flush: bool, secret: bytes, public: bytes
) -> None:
    """Writes what comes: a name, its chunks, and an empty message after each file."""
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.RCVHWM, 32)
    if secret:
        socket.curve_server, socket.curve_secretkey, socket.curve_publickey = True, secret, public
    port.put(f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}")
    while True:
        identity, name = socket.recv_multipart()
        if not name:
            socket.send_multipart([identity, b"done"])
            time.sleep(0.2)
            return
        with (folder / name.decode()).open("wb", buffering=0) as file:
            while len((chunk := socket.recv_multipart(copy=False)[1]).buffer):
                file.write(chunk.buffer)
            if flush:
                os.fsync(file.fileno())


def bare(paths: list[Path], folder: Path, encrypted: bool, flush: bool) -> None:
    server_keys, keys = zmq.curve_keypair(), zmq.curve_keypair()
    port: multiprocessing.Queue[str] = multiprocessing.Queue()
    arguments = (folder, port, flush, *(server_keys[::-1] if encrypted else (b"", b"")))
    process = multiprocessing.Process(target=bare_writer, args=arguments)
    process.start()
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.SNDHWM, 32)
    if encrypted:
        socket.curve_publickey, socket.curve_secretkey = keys
        socket.curve_serverkey = server_keys[0]
    socket.connect(port.get())
    start = time.perf_counter()
    for path in paths:
        socket.send(path.name.encode())
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(CHUNK):
                socket.send(chunk, copy=False)
        socket.send(b"")
    socket.send(b"")
    socket.recv()
    bare.seconds = time.perf_counter() - start  # type: ignore[attr-defined]
    process.join()
    context.destroy(0)


# -- rows --------------------------------------------------------------------------------------


def best(run: Callable[[int], float]) -> float:
    return min(run(i) for i in range(TRIES))


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--passed", type=int, default=2000, help="frames for the memory figure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "made").mkdir()
        paths = make_frames(folder / "made", options.frames)
        size = sum(p.stat().st_size for p in paths) / 1e6
        print(f"{len(paths)} frames, {size / len(paths):.1f} MB each; zmq {zmq.zmq_version()}")
        seconds: dict[str, float] = {}

        def copies(i: int) -> float:
            target = folder / f"copy{i}"
            target.mkdir()
            took = timed(lambda: [shutil.copyfile(p, target / p.name) for p in paths])
            shutil.rmtree(target)
            return took

        def plain(i: int, encrypted: bool = False, flush: bool = False) -> float:
            target = folder / f"bare{i}"
            target.mkdir()
            bare(paths, target, encrypted, flush)
            shutil.rmtree(target)
            return bare.seconds  # type: ignore[attr-defined, no-any-return]

        sent: list[File] = []

        def up(i: int) -> float:
            with server(folder / f"home{i}"), Client() as client:
                client.hello()
                took = timed(lambda: sent.extend(client.send(paths)))
            if i < TRIES - 1:
                shutil.rmtree(folder / f"home{i}")
            return took

        seconds["file copy"] = best(copies)
        seconds["bare ZeroMQ"] = best(plain)
        seconds["bare ZeroMQ, CURVE"] = best(lambda i: plain(i, True))
        seconds[FLUSHED] = best(lambda i: plain(i, True, True))
        seconds["upload"] = best(up)
        with server(folder / f"home{TRIES - 1}"), Client() as client:
            seconds["upload again"] = timed(lambda: client.send(paths))

            def down(i: int) -> float:
                target = folder / f"down{i}"
                wanted = [(f, target / p.name) for f, p in zip(sent, paths, strict=False)]
                took = timed(lambda: client.receive(wanted))
                shutil.rmtree(target)
                return took

            seconds["download"] = best(down)
        columns = ("seconds", "MB/s", "of bare", "of CURVE", "of copy")
        print(" " * 27 + "".join(f"{c:>10s}" for c in columns))
        for row, took in seconds.items():
            shares = [seconds[n] / took for n in ("bare ZeroMQ", "bare ZeroMQ, CURVE", "file copy")]
            print(
                f"{row:27s} {took:8.2f} {size / took:8.0f} {shares[0]:8.0%} {shares[1]:9.0%} "
                f"{shares[2]:8.0%}"
            )
        memory(folder, paths, options.passed)


def memory(folder: Path, paths: list[Path], count: int) -> None:
    """Prints what the server holds while frames pass."""
    work = folder / "passing"
    work.mkdir()
    with server(folder / "home_memory") as pid, Client() as client:
        client.hello()
        print(f"server's resident memory, MiB: {resident(pid):.0f} at rest", end="")
        content = paths[0].read_bytes()
        done = 0
        while done < count:
            batch = []
            for i in range(done, min(done + 50, count)):
                batch.append(work / f"{i}.exr")
                batch[-1].write_bytes(content + b"x" + i.to_bytes(8, "big"))
            files = client.send(batch)
            client.receive([(f, p.with_suffix(".back")) for f, p in zip(files, batch, strict=True)])
            done += len(batch)
            for path in work.iterdir():
                path.unlink()
            # The store is not what is measured, and the disk is not endless.
            for path in (folder / "home_memory/store/files").glob("*/*"):
                path.unlink()
            if done % (count // 4) == 0 or done >= count:
                print(f", {resident(pid):.0f} after {done}", end="", flush=True)
        print(f"; at most {resident(pid, 'VmHWM'):.0f}")


if __name__ == "__main__":
    main()
