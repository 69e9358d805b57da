"""Uploads and downloads over a `Channel`: in chunks, resumed where they were interrupted.

At most CREDIT chunks are unanswered at a time (`docs/protocol.md`, Files).
"""

import contextlib
import hashlib
import io
import os
import sys
import time
import uuid
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import Any, Callable, Deque, Dict, Iterable, List, Optional, Tuple

from reenact import protocol
from reenact.channel import RESEND_SECONDS, Channel
from reenact.container import PathLike
from reenact.errors import ServerError
from reenact.protocol import CHUNK, CREDIT, File

FILES_AHEAD = 8  # files that are started before earlier ones are complete
HASH_SECONDS = 0.2  # between two reports while a file is hashed
CREDIT_SECONDS = 0.5  # pause after `credit`: the server still works on requests we gave up

Progress = Callable[[int, int], None]  # bytes done, bytes in total
Source = Tuple[Path, File]  # a file to upload


def upload(
    channel: Channel, paths: Iterable[PathLike], progress: Optional[Progress] = None
) -> List[File]:
    """Uploads files that the server doesn't have; hashes them in threads meanwhile.

    `progress` is called while a file is hashed, too, and ends the upload at once by what it raises.

    Raises:
        OSError: a file can't be read.
        ServerError: `empty`, a file has no bytes; `changed`, a file changed while it was sent; or
            the server refused.
    """
    sources = [Path(p) for p in paths]
    total = sum(p.stat().st_size for p in sources)
    files: List[File] = []
    pool, ended = ThreadPoolExecutor(2), Event()
    uploader = _Upload(channel, lambda n: progress and progress(n, total))
    try:
        hashes = [pool.submit(protocol.file_hash, path, ended.is_set) for path in sources]
        waiting: List[Source] = []
        for path, hashed in zip(sources, hashes):
            while not hashed.done():
                if uploader.in_flight:
                    uploader.step()  # instead of idling until the hash is there
                else:
                    wait([hashed], HASH_SECONDS)
                    uploader.report()
            hash, size = hashed.result()
            if not size:
                raise ServerError("empty", f"{path} is empty. Write it again.")
            files.append(File(hash, size))
            waiting.append((path, files[-1]))
            if len(waiting) >= FILES_AHEAD or not uploader.next:
                uploader.add(waiting)
                waiting = []
        uploader.add(waiting)
        uploader.finish()
    finally:
        ended.set()  # Python, and Nuke with it, ends no sooner than the pool's threads
        pool.shutdown(cancel_futures=True)
        uploader.close()
    if progress:
        progress(total, total)
    return files


def download(
    channel: Channel, files: Iterable[Tuple[File, PathLike]], progress: Optional[Progress] = None
) -> None:
    """Downloads files; each appears complete at its path, or not at all.

    Raises:
        ServerError: `corrupt`, a file arrived damaged twice; or the server doesn't have one.
        OSError: no space, or no permission.
    """
    requested = [(file, path) for path, file in {Path(p): f for f, p in files}.items()]
    total = sum(file.size for file, _ in requested)

    def on_received(size: int) -> None:
        if progress:
            progress(min(size, total), total)

    damaged = _Download(channel, on_received).run(requested)
    for file, _ in damaged:
        channel.ask(protocol.Verify(file.hash))
    if damaged:  # perhaps by an earlier partial file: once more from the start
        damaged = _Download(channel, on_received).run(damaged)
    if damaged:
        names = ", ".join(path.name for _, path in damaged)
        raise ServerError("corrupt", f"{names} arrived damaged. Run the job again.")


class _Upload:
    """Files being uploaded.

    Attributes:
        next: offset of the chunk to send next, by file.
        in_flight: file and offset of unanswered chunks, by request id, oldest first.
    """

    def __init__(self, channel: Channel, on_sent: Callable[[int], Any]) -> None:
        self._channel, self._on_sent = channel, on_sent
        self._held: Dict[Source, int] = {}  # bytes that the server has
        self._sent = 0  # their sum
        self.next: Dict[Source, int] = {}
        self.in_flight: Dict[str, Tuple[Source, int]] = {}
        self._open: Optional[Tuple[Path, Any]] = None

    def add(self, files: List[Source]) -> None:
        """Starts files, and works until there is room for more."""
        self._begin(files)
        self._fill()
        while len(self.next) > FILES_AHEAD:
            self.step()

    def finish(self) -> None:
        """Works until everything is sent and answered."""
        while self.next or self.in_flight:
            self.step()

    def step(self) -> None:
        """Sends what credit allows, and waits for the oldest answer."""
        self._fill()
        if not self.in_flight:
            return
        id = next(iter(self.in_flight))
        source, offset = self.in_flight[id]
        try:
            answer, _ = self._channel.wait(id, RESEND_SECONDS)
        except ServerError as error:
            if error.code not in ("no_server", "credit"):
                raise
            if error.code == "credit":
                time.sleep(CREDIT_SECONDS)
            self._restart([k for k, _ in self.in_flight.values()])
            return
        del self.in_flight[id]
        self._count(source, answer["received"])
        if answer["received"] < min(offset + CHUNK, source[1].size):  # it lost earlier chunks
            self._restart([source])

    def report(self) -> None:
        """Reports how much is sent."""
        self._on_sent(self._sent)

    def close(self) -> None:
        """Closes the file that is being read."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _begin(self, files: List[Source]) -> None:
        if not files:
            return
        held = self._channel.ask(protocol.Held([file.hash for _, file in files]))["bytes"]
        for source, have in zip(files, held):
            self._count(source, have)
            if have < source[1].size:
                self.next[source] = have - have % CHUNK

    def _count(self, source: Source, size: int) -> None:
        more = max(size - self._held.get(source, 0), 0)
        self._held[source] = self._held.get(source, 0) + more
        self._sent += more
        self.report()

    def _fill(self) -> None:
        while self.next and len(self.in_flight) < CREDIT:
            source = next(iter(self.next))
            offset, (path, file) = self.next[source], source
            chunk = self._read(path, offset)
            if len(chunk) != min(CHUNK, file.size - offset):
                raise ServerError("changed", f"{path} has changed. Send it again.")
            request = protocol.Upload(file.hash, file.size, offset)
            self.in_flight[self._channel.send(request, chunk)] = source, offset
            self.next[source] = offset + len(chunk)
            if self.next[source] >= file.size:
                del self.next[source]

    def _restart(self, sources: Iterable[Source]) -> None:
        """Drops unanswered chunks of some files, and resumes where the server is."""
        lost = list(dict.fromkeys(sources))
        for id, (source, _) in list(self.in_flight.items()):
            if source in lost:
                del self.in_flight[id]
                self._channel.forget(id)
        for source in lost:
            self.next.pop(source, None)
        self._begin(lost)

    def _read(self, path: Path, offset: int) -> bytes:
        if self._open is None or self._open[0] != path:
            self.close()
            self._open = path, path.open("rb")  # buffered: a read is never short
        self._open[1].seek(offset)
        return bytes(self._open[1].read(CHUNK))


class PartialFile:
    """A file being downloaded; what has arrived lies in a hidden file beside its path.

    Attributes:
        received: bytes that have arrived, or been taken over from an interrupted download.
        requested: offset of the chunk to request next.
    """

    def __init__(self, file: File, path: Path) -> None:
        self.file, self.path = file, path
        path.parent.mkdir(parents=True, exist_ok=True)
        name = f".{path.name}.{file.hash[:12]}"
        self.part, self.target = _open_part(path.with_name(f"{name}.part"))
        self._sha = hashlib.blake2b(digest_size=32)
        self.requested = 0
        while self.requested < file.size and (chunk := self.target.read(CHUNK)):
            if len(chunk) != min(CHUNK, file.size - self.requested):
                break  # an incomplete chunk
            self._sha.update(chunk)
            self.requested += len(chunk)
        self.target.seek(self.requested)
        self.target.truncate()
        self.received = self.requested

    def write(self, chunk: Any) -> None:
        """Appends a chunk."""
        protocol.write_all(self.target, chunk)
        self._sha.update(chunk)

    def finish(self) -> bool:
        """Moves the complete file to its path; returns False if it is damaged, and deletes it."""
        whole = self._sha.hexdigest() == self.file.hash
        if whole:
            os.fsync(self.target.fileno())
        self.target.close()
        if whole:
            try:
                os.replace(self.part, self.path)
            except FileNotFoundError:
                if not self.path.exists():  # otherwise another program was quicker
                    raise
        else:
            self.part.unlink(missing_ok=True)
        return whole


def _open_part(part: Path) -> "Tuple[Path, io.FileIO]":
    """Opens a partial file and locks it; opens one of another name if a program has locked it."""
    while True:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        target = io.FileIO(os.open(part, flags, 0o666), "r+")
        if not _lock(target.fileno()):
            target.close()
            part = part.with_name(f"{part.stem}.{uuid.uuid4().hex[:8]}.part")
            continue
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(part), os.fstat(target.fileno())):
                return part, target
        target.close()  # another program has just moved it to its path


def _lock(file: int) -> bool:
    """Locks an open file until it is closed; returns False if another program has locked it."""
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
    """Files being downloaded: at most CREDIT chunks requested, and as many not yet written."""

    def __init__(self, channel: Channel, on_received: Callable[[int], Any]) -> None:
        self._channel, self._on_received = channel, on_received
        self._received = 0
        self._in_flight: Dict[str, Tuple[PartialFile, int]] = {}
        self._writer = ThreadPoolExecutor(1)  # chunks are written and hashed in order
        self._finisher = ThreadPoolExecutor(2)
        self._writing: "Deque[Future[None]]" = deque()

    def run(self, files: List[Tuple[File, Path]]) -> List[Tuple[File, Path]]:
        """Downloads files; returns those that arrived damaged."""
        waiting = deque(files)
        parts: Deque[PartialFile] = deque()
        finishing: "List[Tuple[PartialFile, Future[bool]]]" = []
        last_answer = time.monotonic()
        try:
            while waiting or parts:
                while waiting and len(parts) < FILES_AHEAD:
                    parts.append(PartialFile(*waiting.popleft()))
                    self._received += parts[-1].received
                self._request(parts)
                if parts[0].received >= parts[0].file.size:
                    part = parts.popleft()
                    written = self._writer.submit(lambda: None)  # runs after all of its chunks
                    finishing.append((part, self._finisher.submit(self._finish, part, written)))
                    continue
                last_answer = self._take_chunk(parts, last_answer)
            return [(p.file, p.path) for p, whole in finishing if not whole.result()]
        finally:
            for id in self._in_flight:
                self._channel.forget(id)
            self._writer.shutdown()
            self._finisher.shutdown()
            for part in parts:
                part.target.close()

    @staticmethod
    def _finish(part: PartialFile, written: "Future[None]") -> bool:
        written.result()
        return part.finish()

    def _request(self, parts: "Deque[PartialFile]") -> None:
        for part in parts:
            while part.requested < part.file.size and len(self._in_flight) < CREDIT:
                request = protocol.Download(part.file.hash, part.requested)
                self._in_flight[self._channel.send(request)] = part, part.requested
                part.requested += CHUNK

    def _take_chunk(self, parts: "Deque[PartialFile]", last_answer: float) -> float:
        """Waits for the oldest chunk, and requests all again if it doesn't come.

        Returns:
            When the last answer came, by `time.monotonic`.
        """
        id = next(iter(self._in_flight))
        part, offset = self._in_flight[id]
        try:
            _, chunk = self._channel.wait(id, RESEND_SECONDS)
        except ServerError as error:
            late = time.monotonic() - last_answer > self._channel.deadline
            if late or error.code not in ("no_server", "credit"):
                raise
            if error.code == "credit":
                time.sleep(CREDIT_SECONDS)
            for id in self._in_flight:
                self._channel.forget(id)
            self._in_flight = {}
            for part in parts:
                part.requested = part.received
            self._channel.ask(protocol.Ping())
            return last_answer
        del self._in_flight[id]
        if chunk is None or len(chunk) != min(CHUNK, part.file.size - offset):
            raise ServerError("corrupt", f"{part.path.name} arrived damaged.", part.file.hash)
        part.received += len(chunk)
        self._received += len(chunk)
        self._writing.append(self._writer.submit(part.write, chunk))
        while self._writing and (self._writing[0].done() or len(self._writing) > CREDIT):
            self._writing.popleft().result()
        self._on_received(self._received)
        return time.monotonic()
