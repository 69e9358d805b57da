"""The client: what Nuke's nodes and pipeline scripts talk to the server with.

    from reenact.client import Client
    from reenact.protocol import Solve

    with Client() as client:
        plate = client.send_clip("/plates/shot.####.exr", range(1001, 1051))
        character = client.send(["anna.character"])[0]
        job = client.submit(Solve(plate, character))
        for event in client.follow(job):
            print(event["type"], event.get("stage"), event.get("done"))
        print(client.collect(job, "/shots/010", "anna"))

The standard library and pyzmq only; Python 3.9. Calls block until their deadline, so in Nuke they
belong to a thread; `Pump` is the one that a GUI's timer asks for news. A client belongs to one
thread. A server that restarts, on another port even, is found again.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import sys
import time
import uuid
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from types import TracebackType
from typing import (
    Any,
    Callable,
    Deque,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    Tuple,
    Type,
    Union,
)

from reenact import __version__, protocol
from reenact.protocol import CHUNK, CREDIT, FINISHED, Clip, File, ProtocolError

AGAIN_SECONDS = 3.0  # without an answer, after which a request is sent once more
AHEAD = 8  # files that are begun before others have left

PathLike = Union[str, "os.PathLike[str]"]
Progress = Callable[[int, int], None]  # bytes done, of how many


class ServerError(Exception):
    """The server refused, or a job failed: the message is a sentence for the artist.

    Attributes:
        code: one word for programs (`docs/protocol.md`).
        detail: what a TD wants to know.
    """

    def __init__(self, code: str, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.code, self.detail = code, detail


class NoServer(ServerError):
    """Nobody answers."""

    def __init__(self, endpoint: str, seconds: float) -> None:
        super().__init__(
            "no_server",
            f"No Reenact server answers at {endpoint or 'any place'}. Start it: reenact serve.",
            f"waited {seconds:.0f} s",
        )


def home() -> Path:
    """The folder with keys and server address: REENACT_HOME, else ~/.reenact."""
    return Path(os.environ.get("REENACT_HOME") or Path.home() / ".reenact")


def find_server() -> Tuple[str, str]:
    """Endpoint and public key of the server: REENACT_SERVER (`tcp://host:port`, its key being
    `keys/remote.key`), else the one that runs for this folder; empty if there is none.

    Raises:
        ServerError: `no_key`.
    """
    endpoint = os.environ.get("REENACT_SERVER", "")
    if endpoint:
        return endpoint, _key("remote.key")[0].decode()
    try:
        facts = json.loads((home() / "server.json").read_text())
        return str(facts["endpoint"]), str(facts["key"])
    except (OSError, ValueError, KeyError):
        return "", ""


def _key(name: str) -> Tuple[bytes, Optional[bytes]]:
    from reenact.pyzmq import zmq

    path = home() / "keys" / name
    try:
        return zmq.auth.load_certificate(path)
    except (OSError, ValueError):
        raise ServerError(
            "no_key",
            f"There is no key {path}. Whoever runs the server can make one: reenact keys add.",
        ) from None


class Client:
    """A connection to the server.

    Args:
        name: of the program, for the server's log.
        deadline: seconds that a call waits for its answer, through restarts of the server.
        server: its endpoint and public key; by default what `find_server` finds.

    Raises:
        ServerError: there is no key for this user, or no pyzmq (`no_pyzmq`).
    """

    def __init__(
        self,
        name: str = "script",
        deadline: float = 30.0,
        server: Optional[Tuple[str, str]] = None,
    ) -> None:
        try:
            from reenact.pyzmq import zmq  # not before: Nuke's renders need none
        except ImportError as error:
            raise ServerError("no_pyzmq", str(error)) from error
        self._zmq = zmq
        self.name, self.deadline, self.server = name, deadline, server
        self.endpoint = ""
        self._looked = 0.0
        self._socket: Optional[zmq.Socket] = None
        self._answers: Dict[str, Tuple[Any, Optional[memoryview]]] = {}
        self._asked: Dict[str, List[Any]] = {}
        self._context = zmq.Context()

    def close(self) -> None:
        """Ends the connection; jobs go on."""
        if self._socket is not None:
            with contextlib.suppress(self._zmq.ZMQError):
                self._socket.send(protocol.encode(protocol.Bye(), "bye"), self._zmq.DONTWAIT)
            self._socket.setsockopt(self._zmq.LINGER, 200)
            self._socket.close()
            self._socket = None
        self._context.term()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    # -- requests

    def hello(self) -> Dict[str, Any]:
        """Server version, limits, device, and the characters and styles it has."""
        return self.ask(protocol.Hello(f"{self.name} {__version__}", [protocol.VERSION]))

    def ask(self, request: protocol.Request, deadline: Optional[float] = None) -> Dict[str, Any]:
        """One request, and its answer's body.

        Raises:
            NoServer: nobody answered before the deadline.
            ServerError: the server refused.
        """
        return self._wait(self._ask(request), deadline)[0]

    def submit(self, task: protocol.Task) -> str:
        """Hands a job in; the same one twice is one job. Returns its id.

        Its files must have been sent.

        Raises:
            ServerError: refused; `missing` when files are not on the server.
        """
        import dataclasses

        kind = next(k for k, t in protocol.TASKS.items() if t is type(task))
        job = self.ask(protocol.Submit(kind, dataclasses.asdict(task)))
        if job["missing"]:
            raise ServerError(
                "missing",
                "The server lacks files of this job. Send them again.",
                " ".join(job["missing"][:20]),
            )
        return str(job["id"])

    def status(self, job: str) -> Dict[str, Any]:
        """State, progress, and the files it has made so far."""
        return self.ask(protocol.Status(job))

    def jobs(self) -> List[Dict[str, Any]]:
        """All jobs, the newest first."""
        return list(self.ask(protocol.List_())["jobs"])

    def cancel(self, job: str) -> None:
        """Stops a job; what it has made stays."""
        self.ask(protocol.Cancel(job))

    def pause(self, job: str) -> None:
        self.ask(protocol.Pause(job))

    def resume(self, job: str) -> None:
        self.ask(protocol.Resume(job))

    def delete(self, job: str) -> None:
        """Forgets a job that does not run; one that is forgotten already, too."""
        try:
            self.ask(protocol.Delete(job))
        except ServerError as error:
            if error.code != "no_such_job":
                raise

    def events(self, job: str, after: int = 0, wait: float = 0.0) -> List[Dict[str, Any]]:
        """Events with higher numbers; waits so many seconds for the first one."""
        request = protocol.Events(job, after, wait)
        return list(self._wait(self._ask(request), self.deadline + wait)[0]["events"])

    def follow(self, job: str, after: int = 0) -> Iterator[Dict[str, Any]]:
        """Events as they happen, until the job is finished or paused."""
        over = False
        while True:
            events = self.events(job, after, 0.0 if over else 10.0)
            for event in events:
                after = event["n"]
                if event["type"] == "state":
                    over = event["state"] in (*FINISHED, "paused")
                yield event
            if not events:
                if over:
                    return
                over = self.status(job)["state"] in (*FINISHED, "paused")

    # -- files

    def send(self, paths: Iterable[PathLike], progress: Optional[Progress] = None) -> List[File]:
        """Uploads files that the server does not have; they go on where they were cut off.

        Raises:
            OSError: a file can't be read.
            ServerError: refused.
        """
        sources = [Path(p) for p in paths]
        total = sum(p.stat().st_size for p in sources)
        files: List[File] = []
        pool = ThreadPoolExecutor(2)
        upload = _Upload(self, lambda n: progress and progress(n, total))
        try:
            hashes = [pool.submit(protocol.file_hash, path) for path in sources]
            waiting: List[Tuple[Path, File]] = []
            for path, hashed in zip(sources, hashes):
                while upload.under_way and not hashed.done():
                    upload.step()  # rather than to wait for the hash alone
                hash, size = hashed.result()
                if not size:
                    raise ServerError("empty", f"{path} is empty. Write it again.")
                files.append(File(hash, size))
                waiting.append((path, files[-1]))
                if len(waiting) >= AHEAD or not upload.next:
                    upload.add(waiting)
                    waiting = []
            upload.add(waiting)
            upload.finish()
        finally:
            pool.shutdown(cancel_futures=True)
            upload.close()
        if progress:
            progress(total, total)
        return files

    def send_clip(
        self,
        pattern: PathLike,
        numbers: Iterable[int] = (),
        colour_space: Optional[str] = None,
        progress: Optional[Progress] = None,
        frames: str = "",
    ) -> Clip:
        """Uploads a clip.

        Args:
            pattern: `shot.####.exr` or `shot.%04d.exr`, or a movie.
            numbers: of the frames; none for a movie.
            colour_space: of the server's OCIO config, where its default is wrong.
            progress: see `send`.
            frames: of a movie, the range: "1-50".
        """
        numbers = list(numbers)
        paths = [frame_file(str(pattern), n) for n in numbers] or [str(pattern)]
        suffix = Path(paths[0]).suffix.lower()
        return Clip(
            suffix,
            numbers,
            self.send(paths, progress),
            colour_space=colour_space,
            name=str(pattern)[-protocol.MAX_TEXT :],
            frames=frames,
        )

    def receive(
        self, files: Iterable[Tuple[File, PathLike]], progress: Optional[Progress] = None
    ) -> None:
        """Downloads files; each appears whole at its path, or not at all.

        What was cut off goes on where it was.

        Raises:
            ServerError: the server does not have one, or it came damaged.
            OSError: no space, or no rights.
        """
        wanted = [(file, path) for path, file in {Path(p): f for f, p in files}.items()]
        total = sum(file.size for file, _ in wanted)

        def told(size: int) -> None:
            if progress:
                progress(min(size, total), total)

        damaged = _Download(self, told).run(wanted)
        for file, _ in damaged:
            self.ask(protocol.Verify(file.hash))
        if damaged:  # by what was there before, perhaps: once more from the start
            damaged = _Download(self, told).run(damaged)
        if damaged:
            names = ", ".join(path.name for _, path in damaged)
            raise ServerError("corrupt", f"{names} came damaged. Run the job again.")

    def fetch(self, file: File, path: PathLike) -> None:
        """Downloads a file, unless it lies there already; errors are those of `receive`."""
        if not os.path.exists(path) or protocol.file_hash(path) != (file.hash, file.size):
            self.receive([(file, path)])

    def collect(
        self,
        job: str,
        folder: PathLike,
        name: str,
        on_event: Callable[[Dict[str, Any]], None] = lambda event: None,
    ) -> Dict[str, Any]:
        """Downloads all that a job makes while it makes it, into a new version.

        Frames become `FOLDER/NAME_vNNN/NAME_vNNN.1001.exr` with their own numbers; other files lie
        beside them under their names. Called again for the same job it goes on in the same version.

        Returns:
            The manifest, which is also written there: `job`, `state`, `reason`, `folder`,
            `pattern`, `frames` and `files`.
        """
        target = version_for(Path(folder), name, job)
        pattern = target / f"{target.name}.####.exr"
        manifest: Dict[str, Any] = {
            "job": job,
            "state": "",
            "reason": "",
            "folder": str(target),
            "pattern": str(pattern),
            "frames": [],
            "files": [],
        }
        for event in self.follow(job):
            if event["type"] == "file":
                frame = event["name"] == "frame"
                path = (
                    Path(frame_file(str(pattern), event["number"]))
                    if frame
                    else (target / safe_name(event["name"], name))
                )
                self.fetch(File(event["hash"], event["size"]), path)
                if frame and event["number"] not in manifest["frames"]:
                    manifest["frames"].append(event["number"])
                if str(path) not in manifest["files"]:
                    manifest["files"].append(str(path))
            elif event["type"] == "state":
                manifest["state"], manifest["reason"] = event["state"], event["reason"]
            on_event(event)
        manifest["frames"].sort()
        write_file(target / "manifest.json", json.dumps(manifest, indent=1).encode())
        return manifest

    # -- the socket

    def _connect(self) -> None:
        endpoint, key = self.server or find_server()
        if not endpoint:
            return
        zmq = self._zmq
        socket = self._context.socket(zmq.DEALER)
        public, secret = _key("client.key_secret")
        socket.curve_publickey, socket.curve_secretkey = public, secret or b""
        socket.curve_serverkey = key.encode()
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 2 * CREDIT)
        socket.setsockopt(zmq.RCVHWM, 2 * CREDIT)
        socket.setsockopt(zmq.MAXMSGSIZE, max(CHUNK, protocol.MAX_HEADER) + 1024)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        socket.setsockopt(zmq.HEARTBEAT_IVL, 5000)
        socket.connect(endpoint)
        self._socket, self.endpoint = socket, endpoint

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close(0)
            self._socket = None

    def _ask(self, request: protocol.Request, chunk: Optional[bytes] = None) -> str:
        """Sends a request; returns its id."""
        id = uuid.uuid4().hex[:16]
        parts: List[Any] = [protocol.encode(request, id)]
        if len(parts[0]) > protocol.MAX_HEADER:
            raise ServerError("too_large", "The request is too large. Choose a shorter range.")
        if chunk is not None:
            parts.append(chunk)
        self._asked[id] = parts
        self._post(parts)
        return id

    def _post(self, parts: List[Any]) -> None:
        if self._socket is None or self._has_moved():
            self._disconnect()
            self._connect()
        if self._socket is not None:
            with contextlib.suppress(self._zmq.Again):  # not connected for long: it is sent again
                self._socket.send_multipart(parts, self._zmq.DONTWAIT, copy=False)

    def _has_moved(self) -> bool:
        """Whether the server listens elsewhere now; looked up at most once a second."""
        now = time.monotonic()
        if self.server is not None or now - self._looked < 1:
            return False
        self._looked = now
        return find_server()[0] not in ("", self.endpoint)

    def _pump(self, seconds: float) -> bool:
        """Takes in what has arrived, waiting so long for the first; whether anything has."""
        if self._socket is None:
            time.sleep(min(seconds, 0.2))
            return False
        if not self._socket.poll(int(max(seconds, 0) * 1000)):
            return False
        while self._socket.poll(0):
            frames = self._socket.recv_multipart(copy=False)
            try:
                id, body = protocol.decode_answer(frames[0].bytes)
            except ProtocolError as error:
                raise ServerError(error.code, error.message, error.detail) from None
            chunk = frames[1].buffer if len(frames) > 1 else None  # no copy
            if id in self._asked:
                del self._asked[id]
                self._answers[id] = body, chunk
            elif isinstance(body, ProtocolError) and not id and body.code != "rate":
                raise ServerError(body.code, body.message, body.detail)
        return True

    def _wait(
        self, id: str, deadline: Optional[float] = None
    ) -> Tuple[Dict[str, Any], Optional[memoryview]]:
        """The answer to a request, which is sent again where none comes."""
        patience = self.deadline if deadline is None else deadline
        start = last = time.monotonic()
        try:
            while id not in self._answers:
                now = time.monotonic()
                if now - start > patience:
                    raise NoServer(self.endpoint or find_server()[0], now - start)
                self._pump(min(0.5, patience))
                if time.monotonic() - last > AGAIN_SECONDS and id in self._asked:
                    last = time.monotonic()
                    self._post(self._asked[id])
        except BaseException:
            self._asked.pop(id, None)
            raise
        body, chunk = self._answers.pop(id)
        if isinstance(body, ProtocolError):
            raise ServerError(body.code, body.message, body.detail)
        return body, chunk

    def _forget(self, id: str) -> None:
        self._asked.pop(id, None)
        self._answers.pop(id, None)


class _Upload:
    """Files on their way up, at most CREDIT chunks unanswered."""

    def __init__(self, client: Client, progress: Callable[[int], Any]) -> None:
        self.client, self.progress = client, progress
        self.held: Dict[Tuple[Path, File], int] = {}  # bytes that the server has
        self.done = 0  # their sum
        self.next: Dict[Tuple[Path, File], int] = {}  # offset of the chunk to send next
        self.under_way: Dict[str, Tuple[Tuple[Path, File], int]] = {}  # file and offset
        self._open: Optional[Tuple[Path, Any]] = None

    def add(self, files: List[Tuple[Path, File]]) -> None:
        """Begins with files, and goes on until there is room for more."""
        self._begin(files)
        self._fill()
        while len(self.next) > AHEAD:
            self.step()

    def finish(self) -> None:
        while self.next or self.under_way:
            self.step()

    def _begin(self, files: List[Tuple[Path, File]]) -> None:
        if not files:
            return
        held = self.client.ask(protocol.Held([file.hash for _, file in files]))["bytes"]
        for key, have in zip(files, held):
            self._has(key, have)
            if have < key[1].size:
                self.next[key] = have - have % CHUNK

    def _has(self, key: Tuple[Path, File], size: int) -> None:
        more = max(size - self.held.get(key, 0), 0)
        self.held[key] = self.held.get(key, 0) + more
        self.done += more
        self.progress(self.done)

    def _fill(self) -> None:
        """Sends what credit allows."""
        while self.next and len(self.under_way) < CREDIT:
            key = next(iter(self.next))
            offset, (path, file) = self.next[key], key
            chunk = self._read(path, offset)
            if len(chunk) != min(CHUNK, file.size - offset):
                raise ServerError("changed", f"{path} has changed. Send it again.")
            request = protocol.Upload(file.hash, file.size, offset)
            self.under_way[self.client._ask(request, chunk)] = key, offset
            self.next[key] = offset + len(chunk)
            if self.next[key] >= file.size:
                del self.next[key]

    def step(self) -> None:
        """Sends what credit allows, and waits for the oldest answer."""
        self._fill()
        if not self.under_way:
            return
        id = next(iter(self.under_way))
        key, offset = self.under_way[id]
        try:
            answer, _ = self.client._wait(id, AGAIN_SECONDS)
        except ServerError as error:
            if error.code not in ("no_server", "credit"):
                raise
            if error.code == "credit":  # what was given up on is still in the server's hands
                time.sleep(0.5)
            self._again([k for k, _ in self.under_way.values()])
            return
        del self.under_way[id]
        self._has(key, answer["received"])
        if answer["received"] < min(offset + CHUNK, key[1].size):  # it lost what came before
            self._again([key])

    def _again(self, keys: Iterable[Tuple[Path, File]]) -> None:
        """Forgets what is under way of some files, and goes on from where the server is."""
        lost = list(dict.fromkeys(keys))
        for id, (key, _) in list(self.under_way.items()):
            if key in lost:
                del self.under_way[id]
                self.client._forget(id)
        for key in lost:
            self.next.pop(key, None)
        self._begin(lost)

    def _read(self, path: Path, offset: int) -> bytes:
        if self._open is None or self._open[0] != path:
            self.close()
            self._open = path, path.open("rb")  # buffered, a read is never short
        self._open[1].seek(offset)
        return bytes(self._open[1].read(CHUNK))

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None


class _Part:
    """A file on its way down: what has come lies hidden beside its place."""

    def __init__(self, file: File, path: Path) -> None:
        self.file, self.path = file, path
        path.parent.mkdir(parents=True, exist_ok=True)
        name = f".{path.name}.{file.hash[:12]}"
        self.part, self.target = _part_for_us(path.with_name(f"{name}.part"))
        self.sha = hashlib.blake2b(digest_size=32)
        self.asked = 0  # offset of the chunk to ask for next
        while self.asked < file.size and (chunk := self.target.read(CHUNK)):
            if len(chunk) != min(CHUNK, file.size - self.asked):
                break  # cut off
            self.sha.update(chunk)
            self.asked += len(chunk)
        self.target.seek(self.asked)
        self.target.truncate()
        self.come = self.asked

    def write(self, chunk: Any) -> None:
        protocol.write_all(self.target, chunk)
        self.sha.update(chunk)

    def finish(self) -> bool:
        """Puts the whole file into its place; False: it is damaged, and dropped."""
        whole = self.sha.hexdigest() == self.file.hash
        if whole:
            os.fsync(self.target.fileno())
        self.target.close()
        if whole:
            try:
                os.replace(self.part, self.path)
            except FileNotFoundError:
                if not self.path.exists():  # else another program was faster
                    raise
        else:
            self.part.unlink(missing_ok=True)
        return whole


def _part_for_us(part: Path) -> "Tuple[Path, io.FileIO]":
    """Opens what has come of a file; where another program is at it, a part of our own."""
    while True:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        target = io.FileIO(os.open(part, flags, 0o666), "r+")
        if not _locked(target.fileno()):
            target.close()
            part = part.with_name(f"{part.stem}.{uuid.uuid4().hex[:8]}.part")
            continue
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(part), os.fstat(target.fileno())):
                return part, target
        target.close()  # it has just been put into its place


def _locked(file: int) -> bool:
    """Locks an open file, until it is closed; False: another program has."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True  # the file system has no locks
    return True


class _Download:
    """Files on their way down, at most CREDIT chunks unanswered, and as many not yet written."""

    def __init__(self, client: Client, progress: Callable[[int], Any]) -> None:
        self.client, self.progress = client, progress
        self.come = 0
        self.under_way: Dict[str, Tuple[_Part, int]] = {}
        self.writer = ThreadPoolExecutor(1)  # chunks are written and hashed in order
        self.finisher = ThreadPoolExecutor(2)
        self.writing: "Deque[Future[None]]" = deque()

    def run(self, files: List[Tuple[File, Path]]) -> List[Tuple[File, Path]]:
        """Downloads them; returns those that came damaged."""
        waiting = deque(files)
        parts: Deque[_Part] = deque()
        finishing: "List[Tuple[_Part, Future[bool]]]" = []
        heard = time.monotonic()
        try:
            while waiting or parts:
                while waiting and len(parts) < AHEAD:
                    parts.append(_Part(*waiting.popleft()))
                    self.come += parts[-1].come
                self._request(parts)
                if parts[0].come >= parts[0].file.size:
                    done = parts.popleft()
                    last = self.writer.submit(lambda: None)  # all of it has been written then
                    finishing.append((done, self.finisher.submit(self._finish, done, last)))
                    continue
                heard = self._take(parts, heard)
            return [(p.file, p.path) for p, whole in finishing if not whole.result()]
        finally:
            for id in self.under_way:
                self.client._forget(id)
            self.writer.shutdown()
            self.finisher.shutdown()
            for part in parts:
                part.target.close()

    @staticmethod
    def _finish(part: _Part, written: "Future[None]") -> bool:
        written.result()
        return part.finish()

    def _request(self, parts: "Deque[_Part]") -> None:
        for part in parts:
            while part.asked < part.file.size and len(self.under_way) < CREDIT:
                request = protocol.Download(part.file.hash, part.asked)
                self.under_way[self.client._ask(request)] = part, part.asked
                part.asked += CHUNK

    def _take(self, parts: "Deque[_Part]", heard: float) -> float:
        """Waits for the oldest answer; where none comes, asks again. When one came last."""
        id = next(iter(self.under_way))
        part, offset = self.under_way[id]
        try:
            _, chunk = self.client._wait(id, AGAIN_SECONDS)
        except ServerError as error:
            late = time.monotonic() - heard > self.client.deadline
            if late or error.code not in ("no_server", "credit"):
                raise
            if error.code == "credit":  # what was given up on is still in the server's hands
                time.sleep(0.5)
            for id in self.under_way:
                self.client._forget(id)
            self.under_way = {}
            for part in parts:
                part.asked = part.come
            self.client.ask(protocol.Ping())
            return heard
        del self.under_way[id]
        if chunk is None or len(chunk) != min(CHUNK, part.file.size - offset):
            raise ServerError("corrupt", f"{part.path.name} came damaged.", part.file.hash)
        part.come += len(chunk)
        self.come += len(chunk)
        self.writing.append(self.writer.submit(part.write, chunk))
        while self.writing and (self.writing[0].done() or len(self.writing) > CREDIT):
            self.writing.popleft().result()
        self.progress(self.come)
        return time.monotonic()


class Pump:
    """Follows jobs in a thread of its own; a GUI's timer drains what has happened.

    Args:
        name: of the program.
    """

    def __init__(self, name: str = "nuke") -> None:
        self._name = name
        self._said: "SimpleQueue[Tuple[str, int]]" = SimpleQueue()
        self._news: "SimpleQueue[Dict[str, Any]]" = SimpleQueue()
        self._end = False
        self._thread = Thread(target=self._run, daemon=True, name="reenact")
        self._thread.start()

    def watch(self, job: str, after: int = 0) -> None:
        """Follows a job from an event number on, until it is finished."""
        self._said.put((job, after))

    def drain(self) -> List[Dict[str, Any]]:
        """What has happened since: events with their `job`, and `{"type": "connection", "up"}`.
        Never waits."""
        news = []
        with contextlib.suppress(Empty):
            while True:
                news.append(self._news.get_nowait())
        return news

    def close(self) -> None:
        """Ends the thread; jobs go on."""
        self._end = True
        self._thread.join(5)

    def _run(self) -> None:
        watched: Dict[str, int] = {}
        asked: Dict[str, Tuple[str, float]] = {}
        up: Optional[bool] = None
        with Client(self._name) as client:
            while not self._end:
                with contextlib.suppress(Empty):
                    while True:
                        job, after = self._said.get_nowait()
                        watched[job] = after
                now = time.monotonic()
                for job in set(watched) - set(asked):
                    with contextlib.suppress(ServerError):
                        request = protocol.Events(job, watched[job], 5.0)
                        asked[job] = client._ask(request), now
                with contextlib.suppress(ServerError):
                    client._pump(0.1)
                for job, (id, when) in list(asked.items()):
                    if id not in client._answers:
                        if now - when > 5.0 + AGAIN_SECONDS:
                            client._forget(id)
                            del asked[job]
                            up = self._connection(up, False)
                        continue
                    body, _ = client._answers.pop(id)
                    del asked[job]
                    up = self._connection(up, True)
                    if isinstance(body, ProtocolError):
                        del watched[job]
                        self._news.put(
                            {
                                "job": job,
                                "type": "error",
                                "code": body.code,
                                "message": body.message,
                            }
                        )
                        continue
                    for event in body["events"]:
                        watched[job] = event["n"]
                        self._news.put({"job": job, **event})
                    last = body["events"][-1:] or [{}]
                    if last[0].get("state") in FINISHED:
                        del watched[job]

    def _connection(self, before: Optional[bool], now: bool) -> bool:
        if before is not now:
            self._news.put({"type": "connection", "up": now})
        return now


# -- files on this side --------------------------------------------------------------------------


def frame_file(pattern: str, number: int) -> str:
    """The file of a frame: `####` or `%04d` in the pattern's last part stand for its number."""
    folder, name = os.path.split(pattern)
    found = re.search(r"#+|%0?(\d*)d", name)
    if not found:
        return pattern
    width = len(found[0]) if found[0].startswith("#") else int(found[1] or 1)
    return os.path.join(folder, f"{name[: found.start()]}{number:0{width}d}{name[found.end() :]}")


def safe_name(name: str, default: str) -> str:
    """A file name that leads nowhere else, of what a server calls its file."""
    plain = re.sub(r"[^\w.-]", "_", os.path.basename(name)).lstrip(".")
    return f"{default}.character" if plain == "character" else plain or default


def version_for(folder: Path, name: str, job: str) -> Path:
    """A new version's folder, or the one that this job's files are in already."""
    pattern = re.compile(re.escape(name) + r"_v(\d{3,})")
    last = 0
    if folder.is_dir():
        for path in folder.iterdir():
            found = pattern.fullmatch(path.name)
            if found and path.is_dir():
                last = max(last, int(found[1]))
                with contextlib.suppress(OSError):
                    if (path / ".job").read_text() == job:
                        return path
    while True:
        last += 1
        path = folder / f"{name}_v{last:03d}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue  # another client was quicker
        write_file(path / ".job", job.encode())
        return path


def write_file(path: Path, content: bytes) -> None:
    """Writes a file whole, or not at all."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
