"""The store's database: jobs, their events, and the files that they need and have made.

    HOME/store/jobs.sqlite     this database
    HOME/store/files/          stored files, see `server.blobs`
    HOME/store/partial/ab12…   uploads that are not complete yet
    HOME/store/jobs/ID/        a job's folder, until the job is finished
    HOME/store/reserve         space that is given up when the disk is full

Only the front end opens the database, and only one of its threads uses it.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import logging
import math
import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reenact import protocol
from reenact.protocol import FINISHED, ProtocolError

from core.base.errors import ReenactError
from server.blobs import file_path
from server.jobs import registry

log = logging.getLogger("reenact")

SCHEMA = 3
MAX_EVENT_BYTES = 1 << 19  # of the events in one answer, approximately
PARTIAL_SECONDS = 7 * 86_400.0  # for which an abandoned upload is kept, if there is room
UPLOAD_SECONDS = 600.0  # after which an upload counts as given up
LEAST_FREE = 1 << 14  # bytes; with less, the database's errors are those of a full disk
RESERVE_BYTES = 2 << 20  # set aside so that a full disk can still be written down
MAX_PROGRESS_EVENTS = 2000  # of a job; older ones are dropped, other types stay
MAX_POINTS = 400  # of a figure over a job's steps or frames; a longer curve is thinned evenly

_TABLES = """
CREATE TABLE IF NOT EXISTS files (
    hash TEXT PRIMARY KEY, size INTEGER NOT NULL, used REAL NOT NULL, pinned INTEGER DEFAULT 0);
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, key TEXT UNIQUE NOT NULL, kind TEXT NOT NULL, task TEXT NOT NULL,
    state TEXT NOT NULL, reason TEXT DEFAULT '', client TEXT NOT NULL, created REAL NOT NULL,
    updated REAL NOT NULL, progress TEXT DEFAULT '{}', crashes INTEGER DEFAULT 0,
    crashed_at TEXT DEFAULT '', queue_order INTEGER DEFAULT 0, finish INTEGER);
CREATE TABLE IF NOT EXISTS events (
    job TEXT NOT NULL, n INTEGER NOT NULL, time REAL NOT NULL, type TEXT NOT NULL,
    body TEXT NOT NULL, PRIMARY KEY (job, n)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS curves (
    job TEXT NOT NULL, stage TEXT NOT NULL, axis TEXT NOT NULL, name TEXT NOT NULL,
    slot REAL NOT NULL, x REAL NOT NULL, y REAL NOT NULL,
    PRIMARY KEY (job, stage, axis, name, slot)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS inputs (
    job TEXT NOT NULL, hash TEXT NOT NULL, PRIMARY KEY (job, hash)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS inputs_hash ON inputs (hash);
CREATE TABLE IF NOT EXISTS results (
    job TEXT NOT NULL, name TEXT NOT NULL, number INTEGER NOT NULL, hash TEXT NOT NULL,
    size INTEGER NOT NULL, PRIMARY KEY (job, name, number)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS results_hash ON results (hash);
"""
# Columns of `jobs` that schema 1 called otherwise.
_RENAMED_COLUMNS = {"deaths": "crashes", "died_at": "crashed_at", "turn": "queue_order"}


class StoreFullError(ReenactError):
    """The store has reached its limit."""


class DatabaseUnusableError(ReenactError):
    """The database is damaged, or can't be written to."""


class SchemaMismatchError(ReenactError):
    """The database was written by a version of Reenact that this one does not know."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A row of the table of jobs; times are seconds since 1970."""

    id: str
    kind: str
    task: dict[str, Any]
    state: str
    reason: str
    client: str
    created: float
    updated: float
    progress: dict[str, Any]
    crashes: int  # of its worker, in a row at `crashed_at`
    crashed_at: str
    finish: int | None  # steps after which its training is to end early, or did


def _advice(path: Path, error: sqlite3.DatabaseError) -> str:
    """Returns what to do about an error that opening the database gave."""
    if "full" in str(error) or shutil.disk_usage(path.parent).free < LEAST_FREE:
        return f"No space left for {path}. Free some and start the server again."
    if isinstance(error, sqlite3.OperationalError):
        return (
            f"{path} can't be used ({error}). Make it and its folder writable for you, or set "
            "REENACT_HOME to another folder."
        )
    return (
        f"{path} is damaged ({error}). Move it, and jobs.sqlite-wal and -shm where they are, to "
        "another folder: the server then begins a new list of jobs, and keeps the stored files."
    )


class Database:
    """The jobs and files of a server.

    Args:
        root: the store's folder; it is made if it does not exist.
        budget: bytes that files may take.

    Raises:
        SchemaMismatchError: the database was written by a newer version.
        DatabaseUnusableError: it is damaged, or can't be written to.
        OSError: a folder of the store can't be made.
    """

    def __init__(self, root: Path, budget: int) -> None:
        self.root, self.budget = root, budget
        for name in ("files", "partial", "jobs"):
            (root / name).mkdir(parents=True, exist_ok=True)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            raise DatabaseUnusableError(_advice(root / "jobs.sqlite", error)) from error
        self._folding = threading.Thread()
        self.reserve_space()

    def _open(self) -> None:
        root = self.root
        self.db = sqlite3.connect(root / "jobs.sqlite", isolation_level=None)
        self.db.row_factory = sqlite3.Row
        self.db.execute("PRAGMA journal_mode=WAL")
        # A power cut may cost the last events, but no file; the job then reports them again.
        self.db.execute("PRAGMA synchronous=NORMAL")
        self.db.execute("PRAGMA wal_autocheckpoint=0")  # see `fold_log`
        (version,) = self.db.execute("PRAGMA user_version").fetchone()
        if not 0 <= version <= SCHEMA:
            raise SchemaMismatchError(
                f"{root} was written by another version of Reenact (format {version}, this one "
                f"knows {SCHEMA}). Start that version, or choose another folder with REENACT_HOME."
            )
        self._sizes: dict[str, int] = {}  # of stored files
        self._stored = 0  # their sum
        self._migrate()
        self.db.executescript(_TABLES)
        self.db.execute(f"PRAGMA user_version={SCHEMA}")
        self._recover()
        self._load_index()
        self._partial: dict[str, tuple[int, float]] = {}  # bytes of uploads, and when they grew
        for path in (root / "partial").iterdir():
            stat = path.stat()
            self._partial[path.name] = stat.st_size, stat.st_mtime

    def close(self) -> None:
        """Closes the database."""
        if self._folding.ident is not None:
            self._folding.join()
        self.db.close()

    def fold_log(self) -> None:
        """Has a thread write what the log has into the database, unless one is at it.

        SQLite would do so in the middle of a commit, and wait for the disk: clients with it.
        """
        if not self._folding.is_alive():
            self._folding = threading.Thread(target=self._fold_log, name="fold log", daemon=True)
            self._folding.start()

    def _fold_log(self) -> None:
        with (
            contextlib.suppress(sqlite3.Error),  # the disk is full: the log stays as it is
            contextlib.closing(sqlite3.connect(self.root / "jobs.sqlite", timeout=0)) as db,
        ):
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def reserve_space(self) -> None:
        """Sets some space on the disk aside, if there is enough."""
        path = self.root / "reserve"
        if not path.exists() and shutil.disk_usage(self.root).free > 4 * RESERVE_BYTES:
            with contextlib.suppress(OSError):
                path.write_bytes(b"\1" * RESERVE_BYTES)

    def release_space(self) -> bool:
        """Gives the reserved space up; returns False if there was none."""
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
            with contextlib.suppress(sqlite3.Error):
                self._load_index()
            raise
        self.db.execute("COMMIT")

    def _migrate(self) -> None:
        """Brings a database of an older schema up to date, in place."""
        with self._transaction():
            columns = {row["name"] for row in self.db.execute("PRAGMA table_info(jobs)")}
            for old, new in _RENAMED_COLUMNS.items():
                if old in columns:
                    self.db.execute(f"ALTER TABLE jobs RENAME COLUMN {old} TO {new}")
            if columns and "finish" not in columns:  # before schema 3
                self.db.execute("ALTER TABLE jobs ADD COLUMN finish INTEGER")

    def _recover(self) -> None:
        """Repairs what a crash left: queues jobs that ran, and records files that were added."""
        with self._transaction():
            self.db.execute("UPDATE jobs SET state='queued' WHERE state='running'")
            existing = {}
            for path in (self.root / "files").glob("*/*"):
                if path.is_dir():
                    continue  # nothing of ours
                if protocol.HASH.fullmatch(path.name):
                    existing[path.name] = path.stat().st_size
                else:
                    path.unlink(missing_ok=True)
            recorded = {row["hash"] for row in self.db.execute("SELECT hash FROM files")}
            self.db.executemany(
                "DELETE FROM files WHERE hash=?", [(hash,) for hash in recorded - set(existing)]
            )
            for hash in set(existing) - recorded:
                self._record_file(hash, existing[hash])

    # -- files

    def _load_index(self) -> None:
        """Reads which files there are: clients ask for thousands at a time."""
        self._sizes = dict(self.db.execute("SELECT hash, size FROM files").fetchall())
        self._stored = sum(self._sizes.values())

    def _record_file(self, hash: str, size: int) -> None:
        self.db.execute(
            "INSERT INTO files (hash, size, used) VALUES (?, ?, ?) "
            "ON CONFLICT (hash) DO UPDATE SET used=excluded.used",
            (hash, size, time.time()),
        )
        if hash not in self._sizes:
            self._sizes[hash] = size
            self._stored += size

    def record_file(self, hash: str, size: int) -> list[str]:
        """Records a complete file, and queues the jobs that waited for nothing else.

        Returns:
            The ids of these jobs.
        """
        queued = []
        with self._transaction():
            self._record_file(hash, size)
            waiting = self.db.execute(
                "SELECT id FROM jobs JOIN inputs ON job=id WHERE hash=? AND state='waiting'",
                (hash,),
            ).fetchall()
            for (id,) in waiting:
                if not self.missing(id):
                    self._set_state(id, "queued")
                    queued.append(str(id))
        return queued

    def size(self, hash: str) -> int | None:
        """Returns a stored file's size in bytes; None if it is not stored, or not completely."""
        return self._sizes.get(hash)

    def received(self, hash: str) -> int:
        """Returns how many bytes of a file are stored."""
        if hash in self._sizes:
            return self._sizes[hash]
        size, _ = self._partial.get(hash, (0, 0.0))
        # The last chunk is always sent: it is what completes the file.
        return max(size - 1, 0) // protocol.CHUNK * protocol.CHUNK

    def set_partial(self, hash: str, size: int) -> None:
        """Notes how much of an upload has arrived; 0: there is no file of it any more."""
        if size and hash not in self._sizes:
            self._partial[hash] = size, time.time()
        else:
            self._partial.pop(hash, None)

    def missing(self, job: str) -> list[str]:
        """Returns the hashes of the files that a job needs and that are not stored."""
        rows = self.db.execute(
            "SELECT hash FROM inputs WHERE job=? AND hash NOT IN (SELECT hash FROM files)", (job,)
        )
        return [row["hash"] for row in rows]

    def used(self) -> int:
        """Returns the bytes that all files take, uploads included."""
        return self._stored + sum(size for size, _ in self._partial.values())

    def remove_uploads(self, seconds: float, keep: Container[str]) -> int:
        """Removes uploads that have not grown for some seconds, but for some hashes.

        Returns:
            Bytes freed.
        """
        freed = 0
        for hash, (size, grown) in list(self._partial.items()):
            if time.time() - grown > seconds and hash not in keep:
                (self.root / "partial" / hash).unlink(missing_ok=True)
                del self._partial[hash]
                freed += size
        return freed

    def make_room(self, size: int, keep: Container[str] = ()) -> None:
        """Makes room in the budget for `size` bytes that have arrived.

        What clients can send again is removed: first uploads that were given up, then files, the
        longest unused first; never results, nor the inputs of unfinished jobs.

        Args:
            size: bytes.
            keep: hashes of uploads that are going on.

        Raises:
            StoreFullError: there is not enough to remove.
        """
        excess = self.used() + size - self.budget
        if excess > 0:
            excess -= self.remove_uploads(UPLOAD_SECONDS, keep)
        if excess > 0:
            excess -= self._collect(excess)
        if excess > 0:
            raise self.full()

    def full(self) -> StoreFullError:
        """Returns the error that says that there is no room."""
        return StoreFullError(
            f"The server's store is full ({self.budget >> 20} MiB). Delete jobs that are no "
            "longer needed, or let its owner allow it more: reenact serve --store-limit."
        )

    def can_hold(self, size: int) -> bool:
        """Returns whether there could be room for `size` bytes, if all were removed that may be."""
        excess = self.used() + size - self.budget
        return excess <= 0 or excess <= sum(row["size"] for row in self._removable())

    def _removable(self) -> list[sqlite3.Row]:
        placeholders = ",".join("?" * len(FINISHED))
        return self.db.execute(
            "SELECT hash, size FROM files WHERE NOT pinned "
            "AND hash NOT IN (SELECT hash FROM results) "
            "AND hash NOT IN (SELECT hash FROM inputs JOIN jobs ON id=job "
            f"WHERE state NOT IN ({placeholders})) ORDER BY used",
            FINISHED,
        ).fetchall()

    def _collect(self, size: int) -> int:
        freed = 0
        for row in self._removable():
            if freed >= size:
                break
            self.remove_file(row["hash"])
            freed += row["size"]
        return freed

    def collect(self) -> int:
        """Removes every file that is neither pinned, nor a result, nor an unfinished job's input.

        Returns:
            Bytes freed.
        """
        return self._collect(1 << 62)

    def remove_file(self, hash: str) -> None:
        """Removes a file, and sends back the jobs that depend on it.

        Unfinished jobs that need it wait for it; finished ones that made it run again. It stays
        recorded as their result, so that it is not told of again when they have made it.
        """
        with self._transaction():
            self.db.execute("DELETE FROM files WHERE hash=?", (hash,))
            self._stored -= self._sizes.pop(hash, 0)
            file_path(self.root, hash).unlink(missing_ok=True)
            makers = self.db.execute(
                "SELECT DISTINCT id FROM jobs JOIN results ON job=id WHERE hash=? AND state='done'",
                (hash,),
            ).fetchall()
            for (id,) in makers:
                self._set_state(id, "waiting" if self.missing(id) else "queued")
            for (id,) in self.db.execute(
                "SELECT id FROM jobs JOIN inputs ON job=id WHERE hash=? "
                "AND state IN ('queued', 'running')",
                (hash,),
            ).fetchall():
                self._set_state(id, "waiting")

    def pin(self, hash: str, pinned: bool = True) -> bool:
        """Protects a file from removal for want of room, or ends that.

        Returns:
            False if the file is not stored.
        """
        done = self.db.execute("UPDATE files SET pinned=? WHERE hash=?", (int(pinned), hash))
        return done.rowcount == 1

    def pinned(self) -> list[str]:
        """Returns the hashes of the pinned files."""
        return [r["hash"] for r in self.db.execute("SELECT hash FROM files WHERE pinned")]

    # -- jobs

    def submit(self, kind: str, task: protocol.Task, client: str, path_state: str = "") -> str:
        """Returns the id of the job that does a task: a new one, or the one submitted before.

        An earlier job that failed, was paused or cancelled is queued again, and continues where it
        stopped. One that was stopped early stays as it is: its `finish` says so.

        Args:
            kind: of job, a key of `registry.KINDS`.
            task: what to do.
            client: name of the key that submits it, for people to read.
            path_state: the state of the files that the task names by path, which may change.
        """
        key = job_key(kind, task, path_state)
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
                "INSERT INTO jobs "
                "(id, key, kind, task, state, client, created, updated, queue_order) "
                "VALUES (?, ?, ?, ?, 'waiting', ?, ?, ?, "
                "(SELECT COALESCE(MAX(queue_order), 0) + 1 FROM jobs))",
                (id, key, kind, json.dumps(dataclasses.asdict(task)), client, now, now),
            )
            self.db.executemany(
                "INSERT INTO inputs VALUES (?, ?)", [(id, f.hash) for f in protocol.files(task)]
            )
            self._set_state(id, "waiting" if self.missing(id) else "queued")
        return id

    def find_job(self, kind: str, task: protocol.Task, path_state: str = "") -> str | None:
        """Returns the id of the job that `submit` would return, None if it would make one."""
        key = job_key(kind, task, path_state)
        row = self.db.execute("SELECT id FROM jobs WHERE key=?", (key,)).fetchone()
        return None if row is None else str(row["id"])

    def resume(self, id: str) -> None:
        """Queues a job that was paused, failed, cancelled or stopped early."""
        with self._transaction():
            self._requeue(id)

    def set_finish(self, id: str, steps: int | None, note: str = "") -> None:
        """Sets after how many steps a job's training ends early; None: it does not.

        Args:
            id: the job's.
            steps: at least one.
            note: an event that says so; empty for none.
        """
        with self._transaction():
            self.db.execute("UPDATE jobs SET finish=? WHERE id=?", (steps, id))
            if note:
                self._add_event(id, "note", {"text": note})

    def _requeue(self, id: str) -> None:
        self.db.execute("UPDATE jobs SET crashes=0, crashed_at='' WHERE id=?", (id,))
        self._set_state(id, "waiting" if self.missing(id) else "queued")

    def job(self, id: str) -> Job:
        """Returns a job.

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
        """Returns all jobs, the newest first."""
        return [_job(r) for r in self.db.execute("SELECT * FROM jobs ORDER BY queue_order DESC")]

    def unfinished(self) -> int:
        """Returns the number of jobs that are not finished."""
        placeholders = ",".join("?" * len(FINISHED))
        (n,) = self.db.execute(
            f"SELECT COUNT(*) FROM jobs WHERE state NOT IN ({placeholders})", FINISHED
        ).fetchone()
        return int(n)

    def next_job(self, kinds: Iterable[str]) -> Job | None:
        """Returns the first queued job of some kinds."""
        kinds = list(kinds)
        row = self.db.execute(
            f"SELECT * FROM jobs WHERE state='queued' AND kind IN ({','.join('?' * len(kinds))}) "
            "ORDER BY queue_order LIMIT 1",
            kinds,
        ).fetchone()
        return None if row is None else _job(row)

    def set_state(self, id: str, state: str, reason: str = "") -> None:
        """Sets a job's state, and adds an event that says so."""
        with self._transaction():
            self._set_state(id, state, reason)

    def _set_state(self, id: str, state: str, reason: str = "") -> None:
        self.db.execute(
            "UPDATE jobs SET state=?, reason=?, updated=? WHERE id=?",
            (state, reason, time.time(), id),
        )
        self._add_event(id, "state", {"state": state, "reason": reason})

    def record_crash(self, id: str, position: str, how: str, most: int) -> None:
        """Counts a crash of a job's worker, and queues the job again or lets it fail.

        Args:
            id: the job's.
            position: how far the job was, its stage first; crashes are counted as long as it stays
                the same.
            how: the worker ended, in words.
            most: crashes at one position with which the job fails.
        """
        where = position.rpartition(" ")[0] or "the start"
        with self._transaction():  # on a full disk all of it is done again later, or nothing
            row = self.db.execute(
                "SELECT crashes, crashed_at FROM jobs WHERE id=?", (id,)
            ).fetchone()
            crashes = row["crashes"] + 1 if row["crashed_at"] == position else 1
            self.db.execute(
                "UPDATE jobs SET crashes=?, crashed_at=? WHERE id=?", (crashes, position, id)
            )
            self._add_event(id, "note", {"text": f"the worker died at {where} ({how})"})
            if crashes >= most:
                reason = f"The worker died {crashes} times at {where} ({how})."
                self._set_state(id, "failed", reason)
            else:
                self._set_state(id, "queued")

    def delete(self, id: str) -> None:
        """Removes a job, its events and its folder; its files stay until room is needed."""
        with self._transaction():
            for table in ("events", "curves", "inputs", "results"):
                self.db.execute(f"DELETE FROM {table} WHERE job=?", (id,))
            self.db.execute("DELETE FROM jobs WHERE id=?", (id,))
        self.clear_folder(id)

    def clear_folder(self, id: str) -> None:
        """Removes a job's folder, after all of its results have been stored."""
        shutil.rmtree(self.folder(id), ignore_errors=True)

    def folder(self, id: str) -> Path:
        """Returns a job's folder, which may not exist."""
        return self.root / "jobs" / id

    # -- events and results

    def add_event(self, id: str, type: str, body: dict[str, Any]) -> None:
        """Adds an event to a job."""
        with self._transaction():
            self._add_event(id, type, body)

    def _add_event(self, id: str, type: str, body: dict[str, Any]) -> None:
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
                (id, last + 1 - MAX_PROGRESS_EVENTS),
            )
            self._add_points(id, body)

    def _add_points(self, id: str, progress: dict[str, Any]) -> None:
        """Adds the figures of a progress event to the curves of its job.

        Points of neighbouring steps share a slot, of which the last one stays. A job that begins
        again at an earlier step draws anew what came after it.
        """
        figures = {k: v for k, v in progress["figures"].items() if v is not None}  # None: was NaN
        figures.pop("seconds_left", None)
        if not figures:
            return
        frame = figures.pop("frame", None)
        stage, axis = progress["stage"], "step" if frame is None else "frame"
        x = progress["done"] if frame is None else frame
        where = "job=? AND stage=? AND axis=?"
        if frame is None:
            self.db.execute(f"DELETE FROM curves WHERE {where} AND x>?", (id, stage, axis, x))
        # A power of two, so that slots stay where they are when the total changes.
        width = 2.0 ** max(math.ceil(math.log2(max(progress["total"], 1) / MAX_POINTS)), 0)
        for name, y in figures.items():
            if frame is None:  # what is measured seldom is repeated in between
                last = self.db.execute(
                    f"SELECT y FROM curves WHERE {where} AND name=? ORDER BY slot DESC LIMIT 1",
                    (id, stage, axis, name),
                ).fetchone()
                if last is not None and last["y"] == y:
                    continue
            self.db.execute(
                "INSERT OR REPLACE INTO curves VALUES (?, ?, ?, ?, ?, ?, ?)",
                (id, stage, axis, name, width * (x // width), x, y),
            )

    def curves(self, id: str) -> list[dict[str, Any]]:
        """Returns the history of a job's figures, over its steps or over frames.

        Returns:
            Curves of `stage`, `axis` (`step` or `frame`), `name` and `points`, pairs of x and y
            with x increasing.
        """
        found: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
        for row in self.db.execute("SELECT * FROM curves WHERE job=? ORDER BY x", (id,)):
            key = (row["stage"], row["axis"], row["name"])
            found.setdefault(key, []).append((row["x"], row["y"]))
        return [
            {"stage": stage, "axis": axis, "name": name, "points": points}
            for (stage, axis, name), points in found.items()
        ]

    def trained_steps(self, id: str, stage: str) -> int:
        """Returns how many steps of a stage a job has reported."""
        (steps,) = self.db.execute(
            "SELECT MAX(x) FROM curves WHERE job=? AND stage=? AND axis='step'", (id, stage)
        ).fetchone()
        return int(steps or 0)

    def add_result(self, id: str, name: str, number: int, hash: str, size: int) -> None:
        """Records a file that a job has made.

        A job that starts over reports its files again; only a changed one is another event, which
        replaces that of the file before: nobody can be sent that one any more.
        """
        with self._transaction():
            self._record_file(hash, size)
            old = self.db.execute(
                "SELECT * FROM results WHERE job=? AND name=? AND number=?", (id, name, number)
            ).fetchone()
            if old is not None and old["hash"] == hash:
                return
            if old is not None:
                before = {k: old[k] for k in ("name", "number", "hash", "size")}
                self.db.execute(
                    "DELETE FROM events WHERE job=? AND type='file' AND body=?",
                    (id, json.dumps(before)),
                )
            self.db.execute(
                "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?)",
                (id, name, number, hash, size),
            )
            body = {"name": name, "number": number, "hash": hash, "size": size}
            self._add_event(id, "file", body)

    def set_picture(self, id: str, hash: str, size: int) -> None:
        """Records the picture that shows a job while it goes on; there is no event of it."""
        with self._transaction():
            self._record_file(hash, size)
            self.db.execute(
                "INSERT OR REPLACE INTO results VALUES (?, ?, 0, ?, ?)",
                (id, protocol.PICTURE, hash, size),
            )

    def remove_picture(self, id: str) -> None:
        """Forgets that picture: it is none of the results."""
        self.db.execute("DELETE FROM results WHERE job=? AND name=?", (id, protocol.PICTURE))

    def events(self, id: str, after: int, limit: int = 500) -> list[dict[str, Any]]:
        """Returns a job's events with numbers above `after`, in order.

        There are at most `limit`, and fewer where they are long (`MAX_EVENT_BYTES`).
        """
        rows = self.db.execute(
            "SELECT n, time, type, body FROM events WHERE job=? AND n>? ORDER BY n LIMIT ?",
            (id, after, limit),
        )
        found: list[dict[str, Any]] = []
        length = 0
        for r in rows:
            length += len(r["body"]) + 100
            if found and length > MAX_EVENT_BYTES:
                break
            found.append(
                {"n": r["n"], "time": r["time"], "type": r["type"], **json.loads(r["body"])}
            )
        return found

    def results(self, id: str) -> list[dict[str, Any]]:
        """Returns the files that a job has made so far, and that are still there."""
        rows = self.db.execute(
            "SELECT name, number, hash, size FROM results WHERE job=? "
            "AND hash IN (SELECT hash FROM files) ORDER BY name, number",
            (id,),
        )
        return [dict(r) for r in rows]


class WriteQueue:
    """Writes to the database that can't be refused, in order; while the disk is full they wait."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._writes: collections.deque[Callable[[], None]] = collections.deque()

    def append(self, write: Callable[[], None]) -> None:
        """Adds a write, which `flush` will call."""
        self._writes.append(write)

    def flush(self) -> None:
        """Calls the writes, until one finds the disk full even without the reserved space."""
        while self._writes:
            try:
                self._writes[0]()
            except sqlite3.OperationalError as error:
                log.error("can't write to the database", extra={"facts": {"error": str(error)}})
                if not self._database.release_space():
                    return
                continue
            self._writes.popleft()


def job_key(kind: str, task: protocol.Task, path_state: str) -> str:
    """Returns what distinguishes jobs: the task, its files, and what computes its result."""
    return f"{protocol.task_key(kind, task)} {path_state} {registry.code()}"


def _job(row: sqlite3.Row) -> Job:
    values = {f.name: row[f.name] for f in dataclasses.fields(Job)}
    values["task"], values["progress"] = json.loads(row["task"]), json.loads(row["progress"])
    return Job(**values)
