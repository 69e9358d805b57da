"""The front end: one thread that talks to clients, keeps the books and minds the workers.

Disk work for chunks is another thread's; what computes are processes (`server.worker`). Nothing
here reads a picture, so no client's file can take the front end down.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import glob
import hashlib
import json
import logging
import os
import queue
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import reenact
import zmq
import zmq.auth
from reenact import protocol
from reenact.protocol import CHUNK, CREDIT, ProtocolError
from zmq.auth.thread import ThreadAuthenticator

from core.base.files import atomic_write
from server import home
from server.store import Job, Store, StoreFull, file_path

log = logging.getLogger("reenact")

# Kinds of job by the worker that does them: what an artist waits for never waits for training.
# Each GPU has one worker of each.
LANES = {
    "long": (
        "personalize",
        "solve",
        "render",
        "repair",
        "qc",
        "stylize",
        "fit_directions",
    ),
    "live": ("frame", "edit"),
}
DEATHS = 3  # of a worker at one place before its job fails
CLIENT_SECONDS = 60.0  # of silence, after which a client counts as gone
STOP_SECONDS = 60.0  # that workers have to stop in
EARLIER = 4  # jobs that a render looks for frames of its own in
UPLOAD_SECONDS = 600.0  # of silence, after which no room is kept for an upload


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a client may ask for; `hello` tells them."""

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


# -- disk ----------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Upload:
    file: Any
    sha: Any
    received: int


class Disk:
    """Chunks to and from the disk, in order, in a thread of its own.

    Args:
        root: the store's folder.
        post: called from the thread with a function that the front end is to run.
    """

    OPEN = 64  # uploads whose file stays open

    def __init__(self, root: Path, post: Callable[[Callable[[], None]], None]) -> None:
        self.root, self.post = root, post
        self.queue: queue.SimpleQueue[Callable[[], Callable[[], None] | None] | None]
        self.queue = queue.SimpleQueue()
        self._uploads: collections.OrderedDict[str, _Upload] = collections.OrderedDict()
        self._ending: set[str] = set()
        self.enders = ThreadPoolExecutor(2, "fsync")
        self._thread = threading.Thread(target=self._work, daemon=True, name="disk")
        self._thread.start()

    def close(self) -> None:
        self.queue.put(None)
        self._thread.join()
        self.enders.shutdown()
        for upload in self._uploads.values():
            upload.file.close()

    def _work(self) -> None:
        while (task := self.queue.get()) is not None:
            if (news := task()) is not None:
                self.post(news)

    def write(self, request: protocol.Upload, chunk: Any) -> tuple[int, Callable[[], None] | None]:
        """Appends a chunk to an upload, if it is the next one.

        Returns:
            Bytes received, and once the file is whole what puts it into its place; that waits for
            the disk, and is another thread's to call.

        Raises:
            ProtocolError: `corrupt`: the whole is not what its name says; it is dropped.
            OSError: what the file system said.
        """
        if file_path(self.root, request.hash).exists():
            return request.size, None
        if request.hash in self._ending:
            return request.offset, None  # another client has just sent it; ask again
        upload = self._open(request.hash)
        if upload.received >= request.size:  # whole, but a crash kept it from its place
            self._drop(request.hash)
            upload = self._open(request.hash)
        if request.offset != upload.received:
            return upload.received, None
        try:
            protocol.write_all(upload.file, chunk)
        except OSError:
            self._drop(request.hash, remove=False)
            raise
        upload.sha.update(chunk)
        upload.received += len(chunk)
        if upload.received < request.size:
            return upload.received, None
        if upload.received != request.size or upload.sha.hexdigest() != request.hash:
            self._drop(request.hash)
            raise ProtocolError("corrupt", "A file was damaged on its way. Send it again.")
        del self._uploads[request.hash]
        self._ending.add(request.hash)

        def end() -> None:
            try:
                with upload.file:
                    os.fsync(upload.file.fileno())
                target = file_path(self.root, request.hash)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.root / "partial" / request.hash, target)
            finally:
                self._ending.discard(request.hash)

        return request.size, end

    def _open(self, hash: str) -> _Upload:
        if hash in self._uploads:
            self._uploads.move_to_end(hash)
            return self._uploads[hash]
        path = self.root / "partial" / hash
        sha, received = hashlib.blake2b(digest_size=32), 0
        file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        while len(chunk := file.read(CHUNK)) == CHUNK:
            sha.update(chunk)
            received += CHUNK
        file.seek(received)
        file.truncate()  # a chunk that was cut off
        self._uploads[hash] = upload = _Upload(file, sha, received)
        if len(self._uploads) > self.OPEN:
            self._uploads.popitem(last=False)[1].file.close()
        return upload

    def _drop(self, hash: str, remove: bool = True) -> None:
        self._uploads.pop(hash).file.close()
        if remove:
            (self.root / "partial" / hash).unlink(missing_ok=True)

    def read(self, request: protocol.Download) -> tuple[int, bytes]:
        """Size of a file, and its chunk.

        Raises:
            FileNotFoundError: it is not here.
        """
        with file_path(self.root, request.hash).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(request.offset)
            return size, file.read(CHUNK)


# -- workers -------------------------------------------------------------------------------------


def gpu_count() -> int:
    """CUDA devices that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:  # workers inherit it as it is
        return 0
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return listed.stdout.count("GPU ")


class Worker:
    """A worker process, and what it does."""

    def __init__(
        self,
        lane: str,
        gpu: int | None,
        root: Path,
        post: Callable[[Callable[[], None]], None],
        told: Callable[[Worker, dict[str, Any]], None],
        gone: Callable[[Worker], None],
    ) -> None:
        self.lane, self.job, self.then = lane, "", ""  # `then`: the job's state once it stopped
        self.place = ""
        self.log = root / "logs" / f"{lane}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open(
            "ab" if self.log.exists() and self.log.stat().st_size < 1 << 24 else "wb"
        ) as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "server.worker", str(root)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}),
                start_new_session=True,  # Ctrl-C is the front end's to handle
            )
        self._post, self._told, self._gone = post, told, gone
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = json.loads(line, parse_constant=lambda name: None)  # a loss that is NaN
            self._post(lambda message=message: self._told(self, message))  # type: ignore[misc]
        self.process.wait()
        self._post(lambda: self._gone(self))

    def run(self, job: Job, earlier: dict[int, list[str]]) -> None:
        self.job, self.then, self.place = job.id, "", ""
        self._say({"run": {"id": job.id, "kind": job.kind, "task": job.task, "earlier": earlier}})

    def stop(self, then: str) -> None:
        """Asks it to stop its job, which will be in this state then."""
        self.then = then
        self._say({"stop": self.job})

    def _say(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it died; its listener says so

    def how_it_died(self) -> str:
        code = self.process.returncode
        if code is not None and code < 0:
            return f"signal {-code}" + (", out of memory?" if code == -signal.SIGKILL else "")
        return f"exit {code}"


# -- clients -------------------------------------------------------------------------------------


@dataclasses.dataclass
class Peer:
    """A connection."""

    who: str  # the key's name
    seen: float  # monotonic seconds
    tokens: float
    under_way: int = 0  # chunks
    waiting: int = 0
    refused: float = 0.0


@dataclasses.dataclass
class _Arriving:
    """An upload that is not whole."""

    size: int
    left: int  # bytes, for which room is kept
    seen: float  # monotonic seconds


@dataclasses.dataclass
class _Wait:
    identity: bytes
    id: str
    after: int
    until: float


class Service:
    """The server.

    Args:
        folder: `server.home`'s.
        bind: ZeroMQ endpoint; port 0 (`tcp://127.0.0.1:0`) takes a free one.
        limits: see there.
        allow_paths: prefixes under which a task may name files by path.
        idle_exit: seconds without clients and jobs after which it ends; None: never.
        gpus: how many it uses; by default all that are there.

    Raises:
        server.home.ServerRuns: there is one for this folder.
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
        self.folder, self.limits = folder, limits or Limits()
        self.allow_paths = tuple(p.resolve() for p in allow_paths)
        self.idle_exit = idle_exit
        home.make_keys(folder)
        self.store = Store(folder / "store", self.limits.store_bytes)
        self.started = self.busy = time.monotonic()
        self.device = self.gpu = ""
        self._tidied = 0.0
        self._stop = False
        count = gpu_count() if gpus is None else gpus
        # Names of workers, the kinds that they do, and their GPU.
        self._lanes = [
            (lane if gpu is None else f"{lane} {gpu}", kinds, gpu)
            for gpu in (range(count) if count > 1 else (None,))
            for lane, kinds in LANES.items()
        ]
        self._workers: dict[str, Worker] = {}
        self._peers: dict[bytes, Peer] = {}
        self._waits: dict[str, list[_Wait]] = collections.defaultdict(list)
        self._arriving: dict[str, _Arriving] = {}
        self._mail: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._woken = False
        self._books: collections.deque[Callable[[], None]] = collections.deque()
        self._allowed: dict[str, str] = {}
        self._keys_read = -1e9

        self.context = zmq.Context()
        self._wake_out = self.context.socket(zmq.PULL)
        self._wake_out.bind("inproc://wake")
        self._local = threading.local()
        self._authenticator = ThreadAuthenticator(self.context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback("reenact", self)
        self.router = self.context.socket(zmq.ROUTER)
        public, secret = zmq.auth.load_certificate(folder / "keys" / "server.key_secret")
        self.router.curve_publickey, self.router.curve_secretkey = public, secret or b""
        self.router.curve_server = True
        self.router.setsockopt(zmq.ZAP_DOMAIN, b"reenact")
        self.router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.router.setsockopt(zmq.MAXMSGSIZE, max(CHUNK, protocol.MAX_HEADER) + 1024)
        self.router.setsockopt(zmq.RCVHWM, 2 * CREDIT)
        self.router.setsockopt(zmq.SNDHWM, 4 * CREDIT)
        self.router.setsockopt(zmq.LINGER, 500)
        self.router.setsockopt(zmq.HEARTBEAT_IVL, 10_000)
        self.router.setsockopt(zmq.HANDSHAKE_IVL, 5_000)
        self.router.bind(bind)
        self.endpoint = self.router.getsockopt_string(zmq.LAST_ENDPOINT)
        self.disk = Disk(self.store.root, self._post)
        with atomic_write(folder / "server.json") as temporary:
            facts = {
                "endpoint": self.endpoint,
                "pid": os.getpid(),
                "key": public.decode(),
                "version": reenact.__version__,
            }
            temporary.write_text(json.dumps(facts))

    # ZAP: called by the authenticator's thread, for every connection

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether the holder of a key may connect."""
        return key.decode() in home.allowed(self.folder)

    def _who(self, key: str) -> str | None:
        """Name of a key; None where it is allowed no longer."""
        if time.monotonic() - self._keys_read > 1:
            self._allowed, self._keys_read = home.allowed(self.folder), time.monotonic()
        return self._allowed.get(key)

    # -- the loop

    def stop(self) -> None:
        """Ends `serve` soon; from any thread or signal handler."""
        self._stop = True

    def serve(self) -> None:
        """Serves until it is stopped; jobs that run then go on at the next start."""
        poller = zmq.Poller()
        poller.register(self.router, zmq.POLLIN)
        poller.register(self._wake_out, zmq.POLLIN)
        log.info("serving", extra={"facts": {"endpoint": self.endpoint}})
        try:
            while not self._stop:
                self._turn(poller)
            self._stop_workers(poller)
        finally:
            self.close()

    def _turn(self, poller: zmq.Poller, accept: bool = True) -> None:
        ready = dict(poller.poll(100))
        if self._wake_out in ready:
            while self._wake_out.poll(0):
                self._wake_out.recv()
        self._woken = False  # before the mail is read: what comes later wakes again
        while not self._mail.empty():
            self._mail.get()()
        self._keep_books()
        if accept and self.router in ready:
            for _ in range(64):  # then it is the workers' turn again
                # While the disk is behind, clients wait in ZeroMQ's bounded queues.
                if self.disk.queue.qsize() > 4 * CREDIT or not self.router.poll(0):
                    break
                self._receive()
        now = time.monotonic()
        for job, waits in list(self._waits.items()):
            if any(w.until <= now for w in waits):
                self._tell_waiting(job, now)
        if accept:
            self._schedule()
            self._rest(now)

    def _rest(self, now: float) -> None:
        for identity, peer in list(self._peers.items()):
            if now - peer.seen > CLIENT_SECONDS:
                del self._peers[identity]
        if now - self._tidied > 10:
            self._tidied = now
            self.store.reserve()
            for hash, arriving in list(self._arriving.items()):
                if now - arriving.seen > UPLOAD_SECONDS:
                    del self._arriving[hash]
            self.store.drop_partial(keep=self._arriving)
        if self._peers or any(w.job for w in self._workers.values()):
            self.busy = now
        if self.idle_exit is not None and now - self.busy > self.idle_exit:
            self.stop()

    def close(self) -> None:
        """Frees everything; what runs is killed."""
        (self.folder / "server.json").unlink(missing_ok=True)
        for worker in self._workers.values():
            worker.process.kill()
            worker.process.wait()
        self.disk.close()
        self._authenticator.stop()
        self.context.destroy(linger=500)
        self.store.close()

    def _post(self, task: Callable[[], None]) -> None:
        """From any thread: lets the front end run this."""
        self._mail.put(task)
        if self._woken:
            return  # it will look
        self._woken = True
        if not hasattr(self._local, "wake"):
            self._local.wake = self.context.socket(zmq.PUSH)
            self._local.wake.connect("inproc://wake")
        with contextlib.suppress(zmq.ZMQError):  # it has enough to wake up for, or ends
            self._local.wake.send(b"", zmq.DONTWAIT)

    def _keep_books(self) -> None:
        """Writes down what workers said, in order; while the disk is full it waits."""
        while self._books:
            try:
                self._books[0]()
            except sqlite3.OperationalError as error:
                log.error("can't write the books", extra={"facts": {"error": str(error)}})
                if not self.store.release():
                    return
                continue
            self._books.popleft()

    # -- requests

    def _receive(self) -> None:
        frames = self.router.recv_multipart(copy=False)
        identity = frames[0].bytes
        try:
            key = str(frames[-1].get("User-Id"))
        except zmq.ZMQError:
            key = ""
        who = self._who(key)
        if who is None:
            return  # revoked
        id = ""
        try:
            peer = self._peer(identity, who)
            if len(frames) not in (2, 3):
                raise ProtocolError("malformed", "The request has too many parts.")
            if not self._pay(peer, 1 + len(frames[1].buffer) // 1024):
                return
            id, request = protocol.decode(frames[1].bytes)
            if (len(frames) == 3) != isinstance(request, protocol.Upload):
                raise ProtocolError("malformed", "The request has a chunk too many or too few.")
            chunk = frames[2].buffer if len(frames) == 3 else None
            body = self._answer_to(identity, peer, id, request, chunk)
            if body is not None:
                self._send(identity, protocol.encode_answer(id, body))
        except ProtocolError as error:
            error.id = error.id or id
            self._send(identity, protocol.encode_error(error))
        except StoreFull as error:
            self._refuse(identity, id, "store_full", str(error))
        except sqlite3.OperationalError as error:
            self._refuse(identity, id, "no_space", "The server's disk is full.", str(error))
        except Exception as error:  # no client's message ends the server
            log.exception("a request went wrong inside", extra={"facts": {"key": who}})
            self._refuse(
                identity,
                id,
                "internal",
                "Something went wrong inside the server; see its log.",
                repr(error)[:300],
            )

    def _refuse(self, identity: bytes, id: str, code: str, said: str, detail: str = "") -> None:
        self._send(identity, protocol.encode_error(ProtocolError(code, said, detail, id)))

    def _send(self, identity: bytes, header: bytes, chunk: bytes | None = None) -> None:
        if len(header) > protocol.MAX_HEADER:
            id = json.loads(header)["id"]
            self._refuse(identity, id, "too_large", "The answer is too large to be sent.")
            return
        parts = [identity, header] if chunk is None else [identity, header, chunk]
        # Who is gone, or does not read, asks again if it still wants the answer.
        with contextlib.suppress(zmq.ZMQError):
            self.router.send_multipart(parts, zmq.DONTWAIT, copy=chunk is None)

    def _peer(self, identity: bytes, who: str) -> Peer:
        now = time.monotonic()
        peer = self._peers.get(identity)
        if peer is None:
            if len(self._peers) >= self.limits.clients:
                raise ProtocolError(
                    "too_many_clients",
                    f"{self.limits.clients} clients are connected, more are not allowed. Try "
                    "again later.",
                )
            peer = self._peers[identity] = Peer(who, now, self.limits.requests_per_second)
        rate = self.limits.requests_per_second
        peer.tokens = min(rate, peer.tokens + (now - peer.seen) * rate)
        peer.seen = now
        return peer

    def _pay(self, peer: Peer, cost: int) -> bool:
        """Whether a client has requests left to make this second.

        It is told of the limit once a second, about no request in particular: the others are
        dropped unread.
        """
        rate = self.limits.requests_per_second
        peer.tokens = max(peer.tokens - cost, -rate / 10)
        if peer.tokens >= 0:
            return True
        if peer.seen - peer.refused < 1:
            return False
        peer.refused = peer.seen
        raise ProtocolError("rate", f"More than {rate} requests a second. Slow down.")

    def _answer_to(
        self, identity: bytes, peer: Peer, id: str, request: protocol.Request, chunk: Any
    ) -> dict[str, Any] | None:
        """The answer's body; None if it comes later."""
        match request:
            case protocol.Hello():
                return self._hello(request, peer)
            case protocol.Ping():
                return {"time": time.time()}
            case protocol.Bye():
                del self._peers[identity]
                return None
            case protocol.Health():
                return self._health()
            case protocol.List_():
                return {"jobs": [_public(job) for job in self.store.jobs()[:500]]}
            case protocol.Submit():
                return self._submit(request, peer)
            case protocol.Status():
                job = self.store.job(request.job)
                return {
                    **_public(job),
                    "missing": self.store.missing(job.id),
                    "files": self.store.results(job.id),
                }
            case protocol.Events():
                return self._events(identity, peer, id, request)
            case protocol.Cancel() | protocol.Pause():
                state = "cancelled" if isinstance(request, protocol.Cancel) else "paused"
                return self._halt(request.job, state, peer)
            case protocol.Resume():
                job = self.store.job(request.job)
                if job.state in ("paused", "failed", "cancelled"):
                    self.store.resume(job.id)
                    self._tell_waiting(job.id)
                return _public(self.store.job(request.job))
            case protocol.Delete():
                return self._delete(request)
            case protocol.Held():
                for hash in request.hashes:
                    _check_hash(hash)
                return {"bytes": [self.store.received(h) for h in request.hashes]}
            case protocol.Upload():
                return self._upload(identity, peer, id, request, chunk)
            case protocol.Download():
                return self._download(identity, peer, id, request)
            case protocol.Verify():
                return self._verify(identity, peer, id, request)

    def _hello(self, request: protocol.Hello, peer: Peer) -> dict[str, Any]:
        if protocol.VERSION not in request.versions:
            older = "plugin" if max(request.versions, default=0) < protocol.VERSION else "server"
            raise ProtocolError(
                "version",
                f"Plugin and server don't speak the same protocol. Update the {older}.",
                f"server {protocol.VERSION}, client {request.versions[:9]}",
            )
        log.info("hello", extra={"facts": {"client": request.client[:100], "key": peer.who}})
        made = [
            (job.task, f, {"name": job.task["name"][:200], "hash": f["hash"], "size": f["size"]})
            for job in self.store.jobs()
            if job.kind in ("personalize", "stylize") and job.state == "done"
            for f in self.store.results(job.id)
        ]
        characters = [
            facts | {"who": task["who"][:200]}
            for task, f, facts in made
            if f["name"] == "character"
        ]
        styles = [
            facts | {"character": task["character"]["hash"]}
            for task, f, facts in made
            if f["name"] == "style"
        ]
        return {
            "server": reenact.__version__,
            "version": protocol.VERSION,
            "limits": dataclasses.asdict(self.limits),
            "paths": [str(p) for p in self.allow_paths],
            "device": self.device,
            "characters": characters[:500],
            "styles": styles[:500],
        }

    def _health(self) -> dict[str, Any]:
        states = collections.Counter(job.state for job in self.store.jobs())
        return {
            "server": reenact.__version__,
            "seconds": round(time.monotonic() - self.started, 1),
            "clients": len(self._peers),
            "jobs": dict(states),
            "workers": {
                w.lane: {"pid": w.process.pid, "job": w.job} for w in self._workers.values()
            },
            "device": self.device,
            "gpu": self.gpu,
            "store_bytes": self.store.used(),
            "store_limit": self.limits.store_bytes,
        }

    def _submit(self, request: protocol.Submit, peer: Peer) -> dict[str, Any]:
        task = protocol.read_task(request)
        seen = ""
        for name, part in protocol.parts(task):
            if isinstance(part, protocol.Clip) and len(part.files) > self.limits.frames:
                raise ProtocolError(
                    "too_large",
                    f"{name} has {len(part.files)} frames, {self.limits.frames} are allowed. "
                    "Choose a shorter range.",
                )
            if part.path:
                seen += self._look_at(part.path)
        for file in protocol.files(task):
            self._check_size(file.size)
            if self.store.has(file.hash) and self.store.received(file.hash) != file.size:
                raise ProtocolError("bad_value", "A file's size is wrong.", file.hash)
        known = self.store.known(request.kind, task, seen)
        if known is None and self.store.unfinished() >= self.limits.jobs:
            raise ProtocolError(
                "too_many_jobs",
                f"{self.limits.jobs} jobs are waiting or running, more are not allowed. Let some "
                "finish, or cancel them.",
            )
        id = self.store.submit(request.kind, task, peer.who, seen)
        self._tell_waiting(id)
        return {**_public(self.store.job(id)), "missing": self.store.missing(id)}

    def _look_at(self, path: str) -> str:
        """The state of files named by path.

        Raises:
            ProtocolError: `path`: it is under no allowed prefix.
        """
        place = Path(path)
        real = Path(os.path.realpath(place.parent)) / place.name
        if (
            not place.is_absolute()
            or place.name in ("", "..")
            or not any(real.is_relative_to(prefix) for prefix in self.allow_paths)
        ):
            raise ProtocolError(
                "path",
                "The server may not read files there. Send them, or ask its owner to allow the "
                "folder: reenact serve --allow-path.",
                path[:200],
            )
        escaped = re.sub(r"%0?\d*d|#+", "\0", path)
        pattern = glob.escape(escaped).replace("\0", "*")
        sha = hashlib.blake2b(digest_size=16)
        for found in sorted(glob.glob(pattern)):
            if not any(Path(os.path.realpath(found)).is_relative_to(p) for p in self.allow_paths):
                raise ProtocolError("path", "A link leads out of the allowed folders.", found[:200])
            stat = os.stat(found)
            sha.update(f"{found}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
        return sha.hexdigest()

    def _check_size(self, size: int) -> None:
        if size > self.limits.file_bytes:
            raise ProtocolError(
                "too_large",
                f"A file has {size >> 20} MiB, {self.limits.file_bytes >> 20} are allowed.",
            )

    def _events(
        self, identity: bytes, peer: Peer, id: str, request: protocol.Events
    ) -> dict[str, Any] | None:
        self.store.job(request.job)
        found = self.store.events(request.job, request.after)
        if found or request.wait <= 0:
            return {"events": found}
        if peer.waiting >= self.limits.waiting:
            raise ProtocolError("too_many_waiting", "Too many requests wait for events already.")
        peer.waiting += 1
        until = time.monotonic() + min(request.wait, 30.0)
        self._waits[request.job].append(_Wait(identity, id, request.after, until))
        return None

    def _tell_waiting(self, job: str, now: float | None = None) -> None:
        """Answers those who wait for a job's events: at `now` those whose time is over too."""
        left = []
        for wait in self._waits.pop(job, []):
            found = self.store.events(job, wait.after)
            if found or (now is not None and wait.until <= now):
                self._send(wait.identity, protocol.encode_answer(wait.id, {"events": found}))
                if wait.identity in self._peers:
                    self._peers[wait.identity].waiting -= 1
            else:
                left.append(wait)
        if left:
            self._waits[job] = left

    def _halt(self, id: str, state: str, peer: Peer) -> dict[str, Any]:
        job = self.store.job(id)
        if job.state == "running":
            for worker in self._workers.values():
                if worker.job == id:
                    worker.stop(state)
        elif job.state in ("waiting", "queued", "paused"):
            self.store.set_state(id, state, f"by {peer.who}")
            self._tell_waiting(id)
        return _public(self.store.job(id))

    def _delete(self, request: protocol.Delete) -> dict[str, Any]:
        job = self.store.job(request.job)
        if job.state == "running":
            raise ProtocolError("running", "The job is running. Cancel it first.")
        self.store.delete(job.id)
        self._tell_waiting(job.id, float("inf"))
        return {}

    # -- chunks

    def _upload(
        self, identity: bytes, peer: Peer, id: str, request: protocol.Upload, chunk: Any
    ) -> dict[str, Any] | None:
        _check_hash(request.hash)
        self._check_size(request.size)
        if self.store.has(request.hash):
            return {"received": request.size}
        offset, size = request.offset, request.size
        if not 0 <= offset < size or offset % CHUNK or len(chunk) != min(CHUNK, size - offset):
            raise ProtocolError("malformed", "A chunk is not where, or not what it should be.")
        self._begin_chunk(peer)
        arriving = self._arriving.get(request.hash)
        if arriving is None:
            left = size - self.store.received(request.hash)
            self.store.make_room(left + sum(a.left for a in self._arriving.values()))
            self._arriving[request.hash] = arriving = _Arriving(size, left, 0)
        elif arriving.size != size:
            raise ProtocolError("bad_value", "A file's size is wrong.", request.hash)
        arriving.seen = time.monotonic()
        peer.under_way += 1

        def work() -> Callable[[], None] | None:
            try:
                received, end = self.disk.write(request, chunk)
            except (OSError, ProtocolError) as error:
                return lambda error=error: failed(error)  # type: ignore[misc]
            if end is None:
                return lambda: done(received, False)
            self.disk.enders.submit(finish, end)
            return None

        def finish(end: Callable[[], None]) -> None:
            try:
                end()
            except OSError as error:
                self._post(lambda error=error: failed(error))  # type: ignore[misc]
            else:
                self._post(lambda: done(size, True))

        def done(received: int, whole: bool) -> None:
            peer.under_way -= 1
            arriving.left = size - received
            if received >= size:
                self._arriving.pop(request.hash, None)
            if whole:
                self._books.append(lambda: self._arrived(request.hash, size))
            self._send(identity, protocol.encode_answer(id, {"received": received}))

        def failed(error: OSError | ProtocolError) -> None:
            peer.under_way -= 1
            self._arriving.pop(request.hash, None)
            if isinstance(error, ProtocolError):
                error.id = id
                self._send(identity, protocol.encode_error(error))
            else:
                self._refuse(
                    identity,
                    id,
                    "no_space",
                    "The server could not keep the file: its "
                    "disk is full, or may not be written to.",
                    str(error),
                )

        self.disk.queue.put(work)
        return None

    def _arrived(self, hash: str, size: int) -> None:
        for id in self.store.arrived(hash, size):
            self._tell_waiting(id)

    def _download(
        self, identity: bytes, peer: Peer, id: str, request: protocol.Download
    ) -> dict[str, Any] | None:
        _check_hash(request.hash)
        if request.offset < 0:
            raise ProtocolError("malformed", "A chunk before the first one.")
        self._begin_chunk(peer)
        peer.under_way += 1

        def work() -> Callable[[], None]:
            try:
                size, chunk = self.disk.read(request)
            except OSError as error:
                return lambda error=error: failed(error)  # type: ignore[misc]
            return lambda: done(size, chunk)

        def done(size: int, chunk: bytes) -> None:
            peer.under_way -= 1
            header = protocol.encode_answer(id, {"offset": request.offset, "size": size})
            self._send(identity, header, chunk)

        def failed(error: OSError) -> None:
            peer.under_way -= 1
            self._refuse(
                identity, id, "no_such_file", "The server has no such file any more.", str(error)
            )

        self.disk.queue.put(work)
        return None

    def _verify(
        self, identity: bytes, peer: Peer, id: str, request: protocol.Verify
    ) -> dict[str, Any] | None:
        _check_hash(request.hash)
        self._begin_chunk(peer)
        peer.under_way += 1

        def work() -> Callable[[], None]:
            path = file_path(self.store.root, request.hash)
            try:
                whole = protocol.file_hash(path)[0] == request.hash
            except OSError:
                whole = False
            return lambda: done(whole)

        def done(whole: bool) -> None:
            peer.under_way -= 1
            if not whole:
                self._books.append(lambda: self.store.forget(request.hash))
            self._send(identity, protocol.encode_answer(id, {"whole": whole}))

        # Not in the disk's thread: a large file would hold up every chunk.
        threading.Thread(target=lambda: self._post(work()), daemon=True).start()
        return None

    def _begin_chunk(self, peer: Peer) -> None:
        if peer.under_way >= CREDIT:
            raise ProtocolError("credit", f"More than {CREDIT} chunks are under way.")

    # -- workers

    def _schedule(self) -> None:
        for lane, kinds, gpu in self._lanes:
            worker = self._workers.get(lane)
            if worker is not None and worker.job:
                continue
            try:
                job = self.store.next(kinds)
                if job is None:
                    continue
                self.store.set_state(job.id, "running")
            except sqlite3.OperationalError:
                return  # the disk is full; later
            if worker is None:
                worker = Worker(lane, gpu, self.store.root, self._post, self._told, self._gone)
                self._workers[lane] = worker
            worker.run(job, self._earlier(job))
            log.info("job starts", extra={"facts": {"job": job.id, "kind": job.kind}})
            self._tell_waiting(job.id)

    def _earlier(self, job: Job) -> dict[int, list[str]]:
        """Hashes, by number, of frames that the newest jobs drew which differ from a render by
        their track alone: after a repair most of them look the same."""
        found: dict[int, list[str]] = {}
        if job.kind != "render":
            return found
        task = protocol.build(protocol.Render, job.task)
        if any(part.path for _, part in protocol.parts(task)):
            return found  # what lies at a path may have changed since
        alike = [
            other
            for other in self.store.jobs()
            if (other.kind, other.state) == ("render", "done")
            and other.id != job.id
            and _but_track(other.task) == _but_track(job.task)
        ]
        for other in alike[:EARLIER]:
            for file in self.store.results(other.id):
                if file["name"] == "frame":
                    found.setdefault(file["number"], []).append(file["hash"])
        return found

    def _told(self, worker: Worker, message: dict[str, Any]) -> None:
        self._books.append(lambda: self._write_down(worker, message))

    def _write_down(self, worker: Worker, message: dict[str, Any]) -> None:
        job, type = message["job"], message["type"]
        message = {k: v for k, v in message.items() if k not in ("job", "type")}
        if worker.job != job:
            return  # the last words about a job that is over
        match type:
            case "started":
                self.device = message["device"]
            case "progress":
                share = message["done"] / message["total"] if message["total"] else 0
                worker.place = f"{message['stage']} {int(20 * share)}"
                self.gpu = message.pop("gpu")
                self.store.event(job, type, message)
            case "file":
                self.store.result(
                    job, message["name"], message["number"], message["hash"], message["size"]
                )
            case "note" | "log":
                self.store.event(job, type, message)
            case "done":
                self.store.event(job, "result", message["facts"])
                self._end(worker, "done")
            case "stopped":
                self._end(worker, worker.then or "queued", "" if worker.then else "server stopped")
            case "failed":
                self._end(worker, "failed", message["message"])
            case "no_space":
                self._end(
                    worker,
                    "paused",
                    f"{message['message']} Free some on the server and resume the job.",
                )
            case "corrupt":
                self.store.event(job, "note", {"text": "a stored file was damaged"})
                self.store.forget(message["hash"])
                self._end(worker, "waiting")
        self._tell_waiting(job)

    def _end(self, worker: Worker, state: str, reason: str = "") -> None:
        job = worker.job
        if state == "waiting" and not self.store.missing(job):
            state = "queued"
        self.store.set_state(job, state, reason)
        if state == "done":
            self.store.clear_folder(job)
        worker.job = ""
        log.info("job ends", extra={"facts": {"job": job, "state": state, "reason": reason}})

    def _gone(self, worker: Worker) -> None:
        self._books.append(lambda: self._bury(worker))

    def _bury(self, worker: Worker) -> None:
        if self._workers.get(worker.lane) is worker:
            del self._workers[worker.lane]
        job, worker.job = worker.job, ""
        if not job:
            return
        how = worker.how_it_died()
        if worker.then:
            self.store.set_state(job, worker.then)
        else:
            deaths = self.store.died(job, worker.place)
            where = worker.place.rpartition(" ")[0] or "the start"
            log.error("worker died", extra={"facts": {"job": job, "how": how, "at": where}})
            self.store.event(job, "note", {"text": f"the worker died at {where} ({how})"})
            if deaths >= DEATHS:
                reason = f"The worker died {deaths} times at {where} ({how})."
                self.store.set_state(job, "failed", reason)
            else:
                self.store.set_state(job, "queued")
        self._tell_waiting(job)

    def _stop_workers(self, poller: zmq.Poller) -> None:
        """Lets workers finish the frame or step that they are at."""
        until = time.monotonic() + STOP_SECONDS
        for worker in self._workers.values():
            if worker.job and not worker.then:
                worker.stop("")
        while any(w.job for w in self._workers.values()) and time.monotonic() < until:
            self._turn(poller, accept=False)


def _but_track(render: dict[str, Any]) -> dict[str, Any]:
    """What a render's frames come of beside the track."""
    return {k: v for k, v in render.items() if k not in ("track", "name", "batch")}


def _public(job: Job) -> dict[str, Any]:
    """What `status` and `list` tell of a job."""
    return {
        name: getattr(job, name)
        for name in ("id", "kind", "state", "reason", "client", "created", "updated", "progress")
    }


def _check_hash(hash: str) -> None:
    if not protocol.HASH.fullmatch(hash):
        raise ProtocolError("malformed", "That is no file's hash.", hash[:80])
