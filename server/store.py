"""Where the server keeps what it was sent and what it made: files by their content, jobs, events.

    HOME/store/jobs.sqlite     jobs, their events, and which files they need and made
    HOME/store/files/ab/ab12…  files, by the BLAKE2b-256 of their content
    HOME/store/partial/ab12…   uploads that are not whole yet
    HOME/store/jobs/ID/        a job's folder while it is not finished

Only the front end opens the database. Workers add files, each by one rename.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reenact import protocol
from reenact.protocol import FINISHED, ProtocolError, file_hash

from core.base.errors import ReenactError

SCHEMA = 1
EVENT_BYTES = 1 << 19  # of one answer with events, about
PARTIAL_SECONDS = 7 * 86_400.0  # that an upload which nobody goes on with is kept
RESERVE = 2 << 20  # bytes set aside, so that a full disk can be written down
PROGRESS_KEPT = 2000  # events of a job; older progress is dropped, all else stays

_TABLES = """
CREATE TABLE IF NOT EXISTS files (
    hash TEXT PRIMARY KEY, size INTEGER NOT NULL, used REAL NOT NULL, pinned INTEGER DEFAULT 0);
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, key TEXT UNIQUE NOT NULL, kind TEXT NOT NULL, task TEXT NOT NULL,
    state TEXT NOT NULL, reason TEXT DEFAULT '', client TEXT NOT NULL, created REAL NOT NULL,
    updated REAL NOT NULL, progress TEXT DEFAULT '{}', deaths INTEGER DEFAULT 0,
    died_at TEXT DEFAULT '', turn INTEGER DEFAULT 0);
CREATE TABLE IF NOT EXISTS events (
    job TEXT NOT NULL, n INTEGER NOT NULL, time REAL NOT NULL, type TEXT NOT NULL,
    body TEXT NOT NULL, PRIMARY KEY (job, n)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS inputs (
    job TEXT NOT NULL, hash TEXT NOT NULL, PRIMARY KEY (job, hash)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS inputs_hash ON inputs (hash);
CREATE TABLE IF NOT EXISTS results (
    job TEXT NOT NULL, name TEXT NOT NULL, number INTEGER NOT NULL, hash TEXT NOT NULL,
    size INTEGER NOT NULL, PRIMARY KEY (job, name, number)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS results_hash ON results (hash);
"""


class StoreFull(ReenactError):
    """The store has reached its limit, or the disk is full."""


class StoreInUse(ReenactError):
    """The store's format is not this version's."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A row of the jobs' table; times are seconds since 1970."""

    id: str
    kind: str
    task: dict[str, Any]
    state: str
    reason: str
    client: str
    created: float
    updated: float
    progress: dict[str, Any]
    deaths: int
    died_at: str


# -- files ---------------------------------------------------------------------------------------


def file_path(root: Path, hash: str) -> Path:
    """Where a file lies, whether it is there or not."""
    if not protocol.HASH.fullmatch(hash):
        raise ValueError(f"no hash: {hash!r}")
    return root / "files" / hash[:2] / hash


def add_file(root: Path, path: Path) -> tuple[str, int]:
    """Puts a file that is whole into the store, without copying where the disk allows it.

    Returns:
        Hash and size.

    Raises:
        OSError: what the file system said.
    """
    hash, size = file_hash(path)
    target = file_path(root, hash)
    if target.exists():
        return hash, size
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{hash}.{uuid.uuid4().hex[:8]}")
    try:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return hash, size


def place(root: Path, file: protocol.File, at: Path) -> None:
    """Makes a stored file appear at a path.

    Raises:
        ProtocolError: `corrupt`, when it is not there, or its content is not what its name says.
        OSError: what the file system said.
    """
    source = file_path(root, file.hash)
    if not source.exists() or file_hash(source) != (file.hash, file.size):
        raise ProtocolError("corrupt", "A stored file was damaged. It is sent again.", file.hash)
    at.parent.mkdir(parents=True, exist_ok=True)
    at.unlink(missing_ok=True)
    try:
        os.link(source, at)
    except OSError:
        shutil.copyfile(source, at)


# -- the store -----------------------------------------------------------------------------------


class Store:
    """Jobs and files of a server; used by one thread.

    Args:
        root: its folder, made if it is not there.
        budget: bytes that files may take.

    Raises:
        StoreInUse: the folder was written by a newer version.
    """

    def __init__(self, root: Path, budget: int) -> None:
        self.root, self.budget = root, budget
        for name in ("files", "partial", "jobs"):
            (root / name).mkdir(parents=True, exist_ok=True)
        self.db = sqlite3.connect(root / "jobs.sqlite", isolation_level=None)
        self.db.row_factory = sqlite3.Row
        self.db.execute("PRAGMA journal_mode=WAL")
        # A power cut may cost the last events, but no file; the job then tells them again.
        self.db.execute("PRAGMA synchronous=NORMAL")
        (version,) = self.db.execute("PRAGMA user_version").fetchone()
        if version not in (0, SCHEMA):
            raise StoreInUse(
                f"{root} was written by another version of Reenact (format {version}, this one "
                f"knows {SCHEMA}). Start that version, or choose another folder with REENACT_HOME."
            )
        self.db.executescript(_TABLES)
        self.db.execute(f"PRAGMA user_version={SCHEMA}")
        self._recover()
        self.reserve()

    def close(self) -> None:
        self.db.close()

    def reserve(self) -> None:
        """Sets some room on the disk aside, if there is any."""
        path = self.root / "reserve"
        if not path.exists() and shutil.disk_usage(self.root).free > 4 * RESERVE:
            with contextlib.suppress(OSError):
                path.write_bytes(b"\1" * RESERVE)

    def release(self) -> bool:
        """Gives that room up; False: there was none."""
        try:
            (self.root / "reserve").unlink()
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    def _recover(self) -> None:
        """After a crash: what ran is to run again, and files that were added are known."""
        with self._transaction():
            self.db.execute("UPDATE jobs SET state='queued' WHERE state='running'")
            there = {}
            for path in (self.root / "files").glob("*/*"):
                if protocol.HASH.fullmatch(path.name):
                    there[path.name] = path.stat().st_size
                else:
                    path.unlink(missing_ok=True)
            known = {row["hash"] for row in self.db.execute("SELECT hash FROM files")}
            self.db.executemany(
                "DELETE FROM files WHERE hash=?", [(hash,) for hash in known - set(there)]
            )
            for hash in set(there) - known:
                self._know(hash, there[hash])

    # -- files

    def _know(self, hash: str, size: int) -> None:
        self.db.execute(
            "INSERT INTO files (hash, size, used) VALUES (?, ?, ?) "
            "ON CONFLICT (hash) DO UPDATE SET used=excluded.used",
            (hash, size, time.time()),
        )

    def arrived(self, hash: str, size: int) -> list[str]:
        """A file is whole. Jobs that waited for nothing else are queued, and returned."""
        queued = []
        with self._transaction():
            self._know(hash, size)
            waiting = self.db.execute(
                "SELECT id FROM jobs JOIN inputs ON job=id WHERE hash=? AND state='waiting'",
                (hash,),
            ).fetchall()
            for (id,) in waiting:
                if not self.missing(id):
                    self._set_state(id, "queued")
                    queued.append(str(id))
        return queued

    def has(self, hash: str) -> bool:
        return self.db.execute("SELECT 1 FROM files WHERE hash=?", (hash,)).fetchone() is not None

    def received(self, hash: str) -> int:
        """Bytes of a file that are here."""
        row = self.db.execute("SELECT size FROM files WHERE hash=?", (hash,)).fetchone()
        if row is not None:
            return int(row["size"])
        try:
            size = (self.root / "partial" / hash).stat().st_size
            return max(size - 1, 0) // protocol.CHUNK * protocol.CHUNK  # the last is never in vain
        except FileNotFoundError:
            return 0

    def missing(self, job: str) -> list[str]:
        """Files that a job needs and that are not here."""
        rows = self.db.execute(
            "SELECT hash FROM inputs WHERE job=? AND hash NOT IN (SELECT hash FROM files)", (job,)
        )
        return [row["hash"] for row in rows]

    def used(self) -> int:
        """Bytes of all files, uploads included."""
        (total,) = self.db.execute("SELECT COALESCE(SUM(size), 0) FROM files").fetchone()
        return int(total) + sum(size for _, size, _ in self._partial())

    def _partial(self) -> Iterator[tuple[Path, int, float]]:
        """Uploads that are not whole, their sizes and when they last grew."""
        for path in (self.root / "partial").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it has just become whole
                stat = path.stat()
                yield path, stat.st_size, stat.st_mtime

    def drop_partial(self, keep: Iterable[str]) -> None:
        """Removes uploads that nobody has gone on with for long."""
        for path, _, grown in self._partial():
            if time.time() - grown > PARTIAL_SECONDS and path.name not in keep:
                path.unlink()

    def make_room(self, size: int) -> None:
        """Sees to it that a file of so many bytes fits into the budget.

        Removed are, the longest unused first, files that clients sent and can send again; never
        what a job made, nor what an unfinished one needs.

        Raises:
            StoreFull: it can't be done.
        """
        over = self.used() + size - self.budget
        if over > 0:
            over -= self._collect(over)
        if over > 0:
            raise StoreFull(
                f"The server's store is full ({self.budget >> 20} MiB). Delete jobs that are no "
                "longer needed, or let its owner allow it more: reenact serve --store-limit."
            )

    def _collect(self, wanted: int) -> int:
        freed = 0
        placeholders = ",".join("?" * len(FINISHED))
        rows = self.db.execute(
            "SELECT hash, size FROM files WHERE NOT pinned "
            "AND hash NOT IN (SELECT hash FROM results) "
            "AND hash NOT IN (SELECT hash FROM inputs JOIN jobs ON id=job "
            f"WHERE state NOT IN ({placeholders})) ORDER BY used",
            FINISHED,
        ).fetchall()
        for row in rows:
            if freed >= wanted:
                break
            self.forget(row["hash"])
            freed += row["size"]
        return freed

    def collect(self) -> int:
        """Removes every file that no unfinished job needs, that is no result, and not pinned.

        Returns:
            Bytes freed.
        """
        return self._collect(1 << 62)

    def forget(self, hash: str) -> None:
        """Removes a file. Jobs that need it wait for it again, finished ones that made it too."""
        with self._transaction():
            self.db.execute("DELETE FROM files WHERE hash=?", (hash,))
            file_path(self.root, hash).unlink(missing_ok=True)
            makers = self.db.execute(
                "SELECT DISTINCT id FROM jobs JOIN results ON job=id WHERE hash=? AND state='done'",
                (hash,),
            ).fetchall()
            self.db.execute("DELETE FROM results WHERE hash=?", (hash,))
            for (id,) in makers:
                self._set_state(id, "waiting" if self.missing(id) else "queued")
            for (id,) in self.db.execute(
                "SELECT id FROM jobs JOIN inputs ON job=id WHERE hash=? "
                "AND state IN ('queued', 'running')",
                (hash,),
            ).fetchall():
                self._set_state(id, "waiting")

    def pin(self, hash: str, pinned: bool = True) -> bool:
        """Keeps a file from being removed for space; False: it is not here."""
        done = self.db.execute("UPDATE files SET pinned=? WHERE hash=?", (int(pinned), hash))
        return done.rowcount == 1

    def pinned(self) -> list[str]:
        return [r["hash"] for r in self.db.execute("SELECT hash FROM files WHERE pinned")]

    # -- jobs

    def submit(self, kind: str, task: protocol.Task, client: str, seen: str = "") -> str:
        """The id of the job that does this: a new one, or the one that was asked for before.

        One that failed, was paused or cancelled is queued again, and goes on where it stopped.
        What another version of the program was asked for was another job: its result may differ.

        Args:
            kind: of job.
            task: what is to be done.
            client: who asks, for people to read.
            seen: the state of files that the task names by path, which may change.
        """
        key = _key(kind, task, seen)
        with self._transaction():
            row = self.db.execute("SELECT id, state FROM jobs WHERE key=?", (key,)).fetchone()
            if row is not None:
                id = str(row["id"])
                if row["state"] in ("failed", "cancelled", "paused"):
                    self._requeue(id)
                return id
            id = uuid.uuid4().hex[:12]
            now = time.time()
            self.db.execute(
                "INSERT INTO jobs (id, key, kind, task, state, client, created, updated, turn) "
                "VALUES (?, ?, ?, ?, 'waiting', ?, ?, ?, "
                "(SELECT COALESCE(MAX(turn), 0) + 1 FROM jobs))",
                (id, key, kind, json.dumps(dataclasses.asdict(task)), client, now, now),
            )
            self.db.executemany(
                "INSERT INTO inputs VALUES (?, ?)", [(id, f.hash) for f in protocol.files(task)]
            )
            self._set_state(id, "waiting" if self.missing(id) else "queued")
        return id

    def known(self, kind: str, task: protocol.Task, seen: str = "") -> str | None:
        """The id of the job that `submit` would return, if there is one."""
        key = _key(kind, task, seen)
        row = self.db.execute("SELECT id FROM jobs WHERE key=?", (key,)).fetchone()
        return None if row is None else str(row["id"])

    def resume(self, id: str) -> None:
        """Queues a job that was paused, failed or cancelled."""
        with self._transaction():
            self._requeue(id)

    def _requeue(self, id: str) -> None:
        self.db.execute("UPDATE jobs SET deaths=0, died_at='' WHERE id=?", (id,))
        self._set_state(id, "waiting" if self.missing(id) else "queued")

    def job(self, id: str) -> Job:
        """
        Raises:
            ProtocolError: `no_such_job`.
        """
        row = self.db.execute("SELECT * FROM jobs WHERE id=?", (id,)).fetchone()
        if row is None:
            raise ProtocolError(
                "no_such_job", "The server doesn't know this job any more. Submit it again.", id
            )
        return _job(row)

    def jobs(self) -> list[Job]:
        """All jobs, the newest first."""
        return [_job(r) for r in self.db.execute("SELECT * FROM jobs ORDER BY turn DESC")]

    def unfinished(self) -> int:
        placeholders = ",".join("?" * len(FINISHED))
        (n,) = self.db.execute(
            f"SELECT COUNT(*) FROM jobs WHERE state NOT IN ({placeholders})", FINISHED
        ).fetchone()
        return int(n)

    def next(self, kinds: Iterable[str]) -> Job | None:
        """The job of some kinds whose turn it is."""
        kinds = list(kinds)
        row = self.db.execute(
            f"SELECT * FROM jobs WHERE state='queued' AND kind IN ({','.join('?' * len(kinds))}) "
            "ORDER BY turn LIMIT 1",
            kinds,
        ).fetchone()
        return None if row is None else _job(row)

    def set_state(self, id: str, state: str, reason: str = "") -> None:
        with self._transaction():
            self._set_state(id, state, reason)

    def _set_state(self, id: str, state: str, reason: str = "") -> None:
        self.db.execute(
            "UPDATE jobs SET state=?, reason=?, updated=? WHERE id=?",
            (state, reason, time.time(), id),
        )
        self._event(id, "state", {"state": state, "reason": reason})

    def died(self, id: str, place: str) -> int:
        """Counts the deaths of a job's worker at one place, and returns them."""
        row = self.db.execute("SELECT deaths, died_at FROM jobs WHERE id=?", (id,)).fetchone()
        deaths = row["deaths"] + 1 if row["died_at"] == place else 1
        self.db.execute("UPDATE jobs SET deaths=?, died_at=? WHERE id=?", (deaths, place, id))
        return int(deaths)

    def delete(self, id: str) -> None:
        """Removes a job, its events and its folder; its files stay until room is needed."""
        with self._transaction():
            for table in ("events", "inputs", "results"):
                self.db.execute(f"DELETE FROM {table} WHERE job=?", (id,))
            self.db.execute("DELETE FROM jobs WHERE id=?", (id,))
        self.clear_folder(id)

    def clear_folder(self, id: str) -> None:
        """Removes a job's folder, after all that it made has been put into the store."""
        shutil.rmtree(self.folder(id), ignore_errors=True)

    def folder(self, id: str) -> Path:
        """A job's folder, which may not exist."""
        return self.root / "jobs" / id

    # -- events

    def event(self, id: str, type: str, body: dict[str, Any]) -> None:
        with self._transaction():
            self._event(id, type, body)

    def _event(self, id: str, type: str, body: dict[str, Any]) -> None:
        (last,) = self.db.execute(
            "SELECT COALESCE(MAX(n), 0) FROM events WHERE job=?", (id,)
        ).fetchone()
        self.db.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?)",
            (id, last + 1, time.time(), type, json.dumps(body)),
        )
        if type == "progress":
            self.db.execute("UPDATE jobs SET progress=? WHERE id=?", (json.dumps(body), id))
            self.db.execute(
                "DELETE FROM events WHERE job=? AND n<=? AND type='progress'",
                (id, last + 1 - PROGRESS_KEPT),
            )

    def result(self, id: str, name: str, number: int, hash: str, size: int) -> None:
        """A job has made a file; told once, however often a job that starts over says so."""
        with self._transaction():
            self._know(hash, size)
            old = self.db.execute(
                "SELECT hash FROM results WHERE job=? AND name=? AND number=?", (id, name, number)
            ).fetchone()
            if old is not None and old["hash"] == hash:
                return
            self.db.execute(
                "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?)",
                (id, name, number, hash, size),
            )
            body = {"name": name, "number": number, "hash": hash, "size": size}
            self._event(id, "file", body)

    def events(self, id: str, after: int, most: int = 500) -> list[dict[str, Any]]:
        """Events with a higher number, in order, at most so many, and few where they are long."""
        rows = self.db.execute(
            "SELECT n, time, type, body FROM events WHERE job=? AND n>? ORDER BY n LIMIT ?",
            (id, after, most),
        )
        found: list[dict[str, Any]] = []
        length = 0
        for r in rows:
            length += len(r["body"]) + 100
            if found and length > EVENT_BYTES:
                break
            found.append(
                {"n": r["n"], "time": r["time"], "type": r["type"], **json.loads(r["body"])}
            )
        return found

    def results(self, id: str) -> list[dict[str, Any]]:
        """The files that a job has made so far."""
        rows = self.db.execute(
            "SELECT name, number, hash, size FROM results WHERE job=? ORDER BY name, number", (id,)
        )
        return [dict(r) for r in rows]


def _key(kind: str, task: protocol.Task, seen: str) -> str:
    """What jobs are told apart by."""
    return protocol.task_key(kind, task) + seen + program()


@functools.cache
def program() -> str:
    """A hash of the program's own files: what comes of a task may change with them."""
    root = Path(__file__).parents[1]
    own = (path for part in ("core", "server") for path in (root / part).rglob("*"))
    sha = hashlib.sha256()
    for path in sorted(path for path in own if path.is_file() and path.suffix != ".pyc"):
        sha.update(path.name.encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()


def _job(row: sqlite3.Row) -> Job:
    values = {f.name: row[f.name] for f in dataclasses.fields(Job)}
    values["task"], values["progress"] = json.loads(row["task"]), json.loads(row["progress"])
    return Job(**values)
