"""Chunks of files: uploads, downloads and checks, done by threads other than the loop's."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from reenact import protocol
from reenact.protocol import CHUNK, CREDIT, ProtocolError

from server.blobs import file_path
from server.frontend.database import PARTIAL_SECONDS, UPLOAD_SECONDS, Database, WriteQueue
from server.frontend.peers import Limits, Peer, Reply, check_hash

MAX_BACKLOG = 4 * CREDIT  # tasks that wait for the disk, beyond which no chunk is taken

Callback = Callable[[], None]


# -- the disk's thread ---------------------------------------------------------------------------


@dataclasses.dataclass
class _PartialFile:
    """An upload's file while it grows."""

    file: Any
    sha: Any
    received: int


class Disk:
    """Reads and writes chunks in order, in a thread of its own.

    Args:
        root: the store's folder.
        post: called from the thread with a function that the loop is to call.
    """

    MAX_OPEN = 64  # uploads whose file stays open

    def __init__(self, root: Path, post: Callable[[Callback], None]) -> None:
        self.root, self.post = root, post
        self.queue: queue.SimpleQueue[Callable[[], Callback | None] | None]
        self.queue = queue.SimpleQueue()
        self._partial: collections.OrderedDict[str, _PartialFile] = collections.OrderedDict()
        self._finishing: set[str] = set()
        self.finishers = ThreadPoolExecutor(2, "fsync")
        self._thread = threading.Thread(target=self._work, daemon=True, name="disk")
        self._thread.start()

    def close(self) -> None:
        """Does what is queued, and ends the threads."""
        self.queue.put(None)
        self._thread.join()
        self.finishers.shutdown()
        for partial in self._partial.values():
            partial.file.close()

    def _work(self) -> None:
        while (task := self.queue.get()) is not None:
            if (callback := task()) is not None:
                self.post(callback)

    def write(self, request: protocol.Upload, chunk: Any) -> tuple[int, Callback | None]:
        """Appends a chunk to an upload, if it is the next one.

        Returns:
            Bytes received, and once the file is complete the function that moves it to its place;
            that one waits for the disk, and another thread is to call it.

        Raises:
            ProtocolError: `corrupt`: the content does not match the hash; it is dropped.
            OSError: from the file system.
        """
        if file_path(self.root, request.hash).exists():
            return request.size, None
        if request.hash in self._finishing:
            return request.offset, None  # another client has just sent it; ask again
        partial = self._open(request.hash)
        if partial.received >= request.size:  # complete, but a crash kept it from its place
            self._drop(request.hash)
            partial = self._open(request.hash)
        if request.offset != partial.received:
            return partial.received, None
        try:
            protocol.write_all(partial.file, chunk)
        except OSError:
            self._drop(request.hash, remove=False)
            raise
        partial.sha.update(chunk)
        partial.received += len(chunk)
        if partial.received < request.size:
            return partial.received, None
        if partial.received != request.size or partial.sha.hexdigest() != request.hash:
            self._drop(request.hash)
            raise ProtocolError("corrupt", "A file was damaged on its way. Send it again.")
        del self._partial[request.hash]
        self._finishing.add(request.hash)

        def finish() -> None:
            try:
                with partial.file:
                    os.fsync(partial.file.fileno())
                target = file_path(self.root, request.hash)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.root / "partial" / request.hash, target)
            finally:
                self._finishing.discard(request.hash)

        return request.size, finish

    def _open(self, hash: str) -> _PartialFile:
        if hash in self._partial:
            self._partial.move_to_end(hash)
            return self._partial[hash]
        path = self.root / "partial" / hash
        sha, received = hashlib.blake2b(digest_size=32), 0
        file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        while len(chunk := file.read(CHUNK)) == CHUNK:
            sha.update(chunk)
            received += CHUNK
        file.seek(received)
        file.truncate()  # a chunk that was cut off
        self._partial[hash] = partial = _PartialFile(file, sha, received)
        if len(self._partial) > self.MAX_OPEN:
            self._partial.popitem(last=False)[1].file.close()
        return partial

    def _drop(self, hash: str, remove: bool = True) -> None:
        self._partial.pop(hash).file.close()
        if remove:
            (self.root / "partial" / hash).unlink(missing_ok=True)

    def read(self, request: protocol.Download) -> tuple[int, bytes]:
        """Reads a chunk of a stored file.

        Returns:
            The file's size, and the chunk; none past the end.

        Raises:
            FileNotFoundError: the file is not stored.
        """
        with file_path(self.root, request.hash).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if request.offset >= size:  # perhaps further than a file system counts
                return size, b""
            file.seek(request.offset)
            return size, file.read(CHUNK)


# -- checks --------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Check:
    """A file to be compared with its hash, and who asked for that."""

    hash: str
    askers: list[tuple[Peer, Callable[[bool], None]]]


class Checks:
    """Compares files with their hashes, one after the other, in a thread of its own.

    A file that several clients ask for is read once; one whose askers have all gone is not read any
    further. The next one is that of the client whose last check is longest ago.

    Args:
        root: the store's folder.
        post: called from the thread with a function that the loop is to call.
    """

    def __init__(self, root: Path, post: Callable[[Callback], None]) -> None:
        self._root, self._post = root, post
        self._checks: dict[str, _Check] = {}  # that wait or are being done, by hash
        self._begun: weakref.WeakKeyDictionary[Peer, int] = weakref.WeakKeyDictionary()
        self._count = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._work, daemon=True, name="checks").start()

    def add(self, hash: str, peer: Peer, on_checked: Callable[[bool], None]) -> None:
        """Has a file checked; `on_checked` is called in the loop, with whether it is whole."""
        with self._changed:
            check = self._checks.setdefault(hash, _Check(hash, []))
            check.askers.append((peer, on_checked))
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._checks)
                check = min(self._checks.values(), key=self._last)
                self._count += 1
                for peer, _ in check.askers:
                    self._begun[peer] = self._count
            whole = self._is_whole(check)
            with self._changed:
                if whole is None and self._wanted(check):
                    continue  # somebody else asked in the last moment
                del self._checks[check.hash]
            self._post(lambda check=check, whole=whole: self._finish(check, whole))  # type: ignore[misc]

    def _last(self, check: _Check) -> int:
        return min(self._begun.get(peer, 0) for peer, _ in check.askers)

    @staticmethod
    def _wanted(check: _Check) -> bool:
        return any(not peer.gone for peer, _ in check.askers)

    def _is_whole(self, check: _Check) -> bool | None:
        """Returns whether a file matches its hash; None once nobody wants to know."""
        sha = hashlib.blake2b(digest_size=32)
        try:
            with file_path(self._root, check.hash).open("rb") as file:
                while self._wanted(check):
                    if not (chunk := file.read(CHUNK)):
                        return sha.hexdigest() == check.hash
                    sha.update(chunk)
        except OSError:
            return False
        return None

    @staticmethod
    def _finish(check: _Check, whole: bool | None) -> None:
        for _, on_checked in check.askers:
            on_checked(whole is not False)


# -- requests for chunks -------------------------------------------------------------------------


@dataclasses.dataclass
class _Upload:
    """An upload that is not complete."""

    size: int
    seen: float  # monotonic seconds


class Transfers:
    """The requests that move or check the content of files.

    Args:
        database: knows which files are stored.
        writes: takes what the database is to record.
        post: called from any thread with a function that the loop is to call.
        notify: called with the id of a job that has new events.
        limits: of a file's size.
    """

    def __init__(
        self,
        database: Database,
        writes: WriteQueue,
        post: Callable[[Callback], None],
        notify: Callable[[str], None],
        limits: Limits,
    ) -> None:
        self._database, self._limits, self._writes = database, limits, writes
        self._post, self._notify = post, notify
        self._uploads: dict[str, _Upload] = {}
        self._arriving = 0  # bytes that the disk's thread has yet to write
        self._disk = Disk(database.root, post)
        self._checks = Checks(database.root, post)

    def close(self) -> None:
        """Does what is queued, and ends the threads."""
        self._disk.close()

    @property
    def overloaded(self) -> bool:
        """Whether the disk is so far behind that chunks are to wait."""
        return self._disk.queue.qsize() > MAX_BACKLOG

    def expire(self, now: float) -> None:
        """Forgets uploads that nobody continues, and removes their files when they are old."""
        for hash, upload in list(self._uploads.items()):
            if now - upload.seen > UPLOAD_SECONDS:
                del self._uploads[hash]
        self._database.remove_uploads(PARTIAL_SECONDS, self._uploads)

    def check_size(self, size: int) -> None:
        """Refuses a file that is too large.

        Raises:
            ProtocolError: `too_large`.
        """
        if size > self._limits.file_bytes:
            raise ProtocolError(
                "too_large",
                f"A file has {size >> 20} MiB, {self._limits.file_bytes >> 20} are allowed.",
            )

    def upload(
        self, peer: Peer, reply: Reply, request: protocol.Upload, chunk: Any
    ) -> dict[str, Any] | None:
        """Takes a chunk of a file.

        Returns:
            The answer; None if it comes later, when the chunk is written.

        Raises:
            ProtocolError: the request is refused.
            StoreFullError: there is no room for the file.
        """
        check_hash(request.hash)
        self.check_size(request.size)
        offset, size = request.offset, request.size
        stored = self._database.size(request.hash)
        upload = self._uploads.get(request.hash)
        if size != (stored or (upload.size if upload else size)):
            raise ProtocolError("bad_value", "A file's size is wrong.", request.hash)
        if not 0 <= offset < size or offset % CHUNK or len(chunk) != min(CHUNK, size - offset):
            raise ProtocolError("malformed", "A chunk is not where, or not what it should be.")
        if stored is not None:
            return {"received": size}
        _check_credit(peer)
        if upload is None:
            # What is announced takes no room, but a file that can't fit is not begun.
            if not self._database.can_hold(size - self._database.received(request.hash)):
                raise self._database.full()
            upload = _Upload(size, 0)
        # What has arrived takes room at once, whether or not it is written yet.
        self._database.make_room(self._arriving + len(chunk), self._uploads)
        self._uploads[request.hash] = upload
        upload.seen = time.monotonic()
        peer.chunks += 1
        self._arriving += len(chunk)

        def write() -> Callback | None:
            try:
                received, finish = self._disk.write(request, chunk)
            except (OSError, ProtocolError) as error:
                return lambda error=error: fail(error)  # type: ignore[misc]
            if finish is None:
                return lambda: succeed(received, complete=False)
            self._disk.finishers.submit(wait_for_disk, finish)
            return None

        def wait_for_disk(finish: Callback) -> None:
            try:
                finish()
            except OSError as error:
                self._post(lambda error=error: fail(error))  # type: ignore[misc]
            else:
                self._post(lambda: succeed(size, complete=True))

        def succeed(received: int, complete: bool) -> None:
            peer.chunks -= 1
            self._arriving -= len(chunk)
            self._database.set_partial(request.hash, 0 if received >= size else received)
            if received >= size:
                self._uploads.pop(request.hash, None)
            if complete:
                self._writes.append(lambda: self._record(request.hash, size))
            reply.answer({"received": received})

        def fail(error: OSError | ProtocolError) -> None:
            peer.chunks -= 1
            self._arriving -= len(chunk)
            self._uploads.pop(request.hash, None)
            if isinstance(error, ProtocolError):
                self._database.set_partial(request.hash, 0)
                reply.error(error)
            else:
                reply.refuse(
                    "no_space",
                    "The server could not keep the file: its disk is full, or may not be written "
                    "to.",
                    error.strerror or "",
                )

        self._disk.queue.put(write)
        return None

    def _record(self, hash: str, size: int) -> None:
        self._database.set_partial(hash, 0)
        for job in self._database.record_file(hash, size):
            self._notify(job)

    def download(self, peer: Peer, reply: Reply, request: protocol.Download) -> None:
        """Sends a chunk of a file, once the disk's thread has read it.

        Raises:
            ProtocolError: the request is refused.
        """
        check_hash(request.hash)
        if request.offset < 0:
            raise ProtocolError("malformed", "A chunk before the first one.")
        _check_credit(peer)
        peer.chunks += 1
        peer.unsent += CHUNK  # so that no more are read than the client takes

        def read() -> Callback:
            try:
                size, chunk = self._disk.read(request)
            except OSError as error:
                return lambda error=error: fail(error)  # type: ignore[misc]
            return lambda: succeed(size, chunk)

        def succeed(size: int, chunk: bytes) -> None:
            peer.chunks -= 1
            peer.unsent -= CHUNK
            reply.answer({"offset": request.offset, "size": size}, chunk)

        def fail(error: OSError) -> None:
            peer.chunks -= 1
            peer.unsent -= CHUNK
            reply.refuse("no_such_file", "The server has no such file any more.", request.hash)

        self._disk.queue.put(read)

    def verify(self, peer: Peer, reply: Reply, request: protocol.Verify) -> None:
        """Compares a file with its hash, and removes it if it is damaged.

        Raises:
            ProtocolError: the request is refused.
        """
        check_hash(request.hash)
        _check_credit(peer)
        peer.chunks += 1

        def finish(whole: bool) -> None:
            peer.chunks -= 1
            if not whole:
                self._writes.append(lambda: self._database.remove_file(request.hash))
            reply.answer({"whole": whole})

        self._checks.add(request.hash, peer, finish)


def _check_credit(peer: Peer) -> None:
    if peer.chunks >= CREDIT:
        raise ProtocolError("credit", f"More than {CREDIT} chunks are under way.")
