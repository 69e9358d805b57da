"""A worker's jobs in this process, and the store's books."""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import queue
import shutil
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import pytest
from reenact import protocol
from reenact.protocol import ProtocolError
from running_server import FRAMES, inputs, wait_for

from core.base import revision as revisions
from core.media.contact_sheet import LABEL_HEIGHT
from core.solve import preview
from core.solve.latent_track import load_track
from server import blobs, jobs, worker
from server.cli.reporting import Report
from server.frontend import database, scheduler
from server.jobs import registry
from server.jobs.common import Context


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("given")


def stored(root: Path, given: Path) -> protocol.Solve:
    """A quick solve whose files are in a store."""
    character, pattern = inputs(given)
    numbers = list(range(1001, 1001 + FRAMES))
    files = [
        protocol.File(*blobs.add_file(root, Path(pattern.replace("####", str(n))))) for n in numbers
    ]
    clip = protocol.Clip(".png", numbers, files, name="plate")
    return protocol.Solve(clip, protocol.File(*blobs.add_file(root, character)), steps=2)


def said(front: worker.Front) -> list[dict[str, Any]]:
    return [json.loads(line) for line in front._target.getvalue().splitlines()]  # type: ignore


def test_too_little_memory_halves_the_batch_and_then_fails(
    tmp_path: Path, given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = stored(tmp_path, given)
    job = {"id": "a", "kind": "solve", "task": json.loads(json.dumps(task, default=vars))}
    kind, tried = registry.KINDS["solve"], []

    def heavy(task: protocol.Solve, context: Context) -> dict[str, Any]:
        tried.append(task.batch)
        if task.batch > limit:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return kind.run(task, context)

    monkeypatch.setitem(registry.KINDS, "solve", dataclasses.replace(kind, run=heavy))
    limit = 2
    front = worker.Front(io.StringIO(), io.StringIO())
    front._stop = False
    time.sleep(0.1)  # its end of input has been seen
    front._stop = False
    facts = worker.run(tmp_path, job, front, worker.Characters())
    assert tried == [8, 4, 2]
    assert facts["states"] == {"solved": FRAMES}
    notes = [m["text"] for m in said(front) if m["type"] == "note"]
    assert notes[-1] == "too little memory: going on with 2 pictures at once"
    limit = 0
    with pytest.raises(worker.TooLittleMemoryError, match=r"Close what else .*CUDA out of memory"):
        worker.run(tmp_path, job | {"id": "b"}, front, worker.Characters())
    assert tried[3:] == [8, 4, 2, 1]


NEW_KIND = '''
"""Jobs that write a greeting."""

from dataclasses import dataclass

from reenact import protocol

from server.jobs.common import BadOptionError, Context, Kind


@dataclass(frozen=True)
class Greet:
    file: protocol.File
    times: int = 1


def check(task: Greet) -> None:
    if task.times < 1:
        raise BadOptionError("A greeting is said once at least.")


def run(task: Greet, context: Context) -> dict[str, int]:
    text = context.files["file"].read_text() * task.times
    with context.report.stage("greeting") as progress:
        context.outputs["greeting.txt"].write_text(text)
        progress(1, 1)
    context.announce("greeting.txt")
    return {"letters": len(text)}


KIND = Kind("greet", Greet, "live", {"greeting.txt": "greeting.txt"}, run, check)
'''


def test_a_new_kind_of_job_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry finds it, and the worker does it and the command line's process alike."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "greet.py").write_text(NEW_KIND)
    monkeypatch.setattr(jobs, "__path__", [*jobs.__path__, str(tmp_path / "jobs")])
    kinds = registry.find_kinds()
    monkeypatch.delitem(sys.modules, "server.jobs.greet")
    assert kinds.keys() - registry.KINDS.keys() == {"greet"}
    monkeypatch.setattr(registry, "KINDS", kinds)
    (tmp_path / "word").write_text("Hello. ")
    hash, size = blobs.add_file(tmp_path, tmp_path / "word")

    def ended(id: str) -> bool:
        return any(e["job"] == id and e["type"] in ("done", "failed") for e in said(front))

    reader, writer = os.pipe()
    with open(reader) as source, open(writer, "w") as orders:
        front = worker.Front(source, io.StringIO())
        loop = threading.Thread(target=worker.work, args=(tmp_path, front))
        loop.start()
        for id, times in (("a", 3), ("b", 0)):
            task = {"file": {"hash": hash, "size": size}, "times": times}
            order = {"run": {"id": id, "kind": "greet", "task": task}}
            print(json.dumps(order), file=orders, flush=True)
            wait_for(partial(ended, id), 20, id)
        orders.close()  # the front end is gone
        loop.join()
    events = said(front)
    first = [e for e in events if e["job"] == "a"]
    assert [e["type"] for e in first] == ["started", "progress", "progress", "file", "done"]
    assert first[-1]["facts"] == {"letters": 21}
    assert blobs.file_path(tmp_path, first[-2]["hash"]).read_text() == "Hello. Hello. Hello. "
    assert events[-1]["message"] == "A greeting is said once at least."

    here = tmp_path / "here.txt"
    kind = kinds["greet"]
    context = Context(Report(True), {"file": tmp_path / "word"}, {}, {"greeting.txt": here})
    task = kind.task(protocol.File(hash, size), 3)
    assert registry.run_task(task, context) == first[-1]["facts"]
    assert here.read_text() == "Hello. Hello. Hello. "


def test_every_kind_is_on_the_wire_and_names_its_lane() -> None:
    assert {name: kind.task for name, kind in registry.KINDS.items()} == protocol.TASKS
    assert all(name == kind.name for name, kind in registry.KINDS.items())
    assert {kind.lane for kind in registry.KINDS.values()} == {*registry.LANES}


def test_warm_characters_stay_within_their_budget(given: Path, tmp_path: Path) -> None:
    character, _ = inputs(given)
    size = sum(
        t.numel() * t.element_size()
        for t in worker.Characters().get(character, "a").generator.state_dict().values()
    )
    kept = worker.Characters(2 * size)
    a, b = kept.get(character, "a"), kept.get(character, "b")
    assert kept.get(character, "a") is a
    kept.get(character, "c")  # b was used longest ago
    assert kept.get(character, "a") is a
    assert kept.get(character, "b") is not b


def made_store(root: Path, budget: int = 1 << 30) -> database.Database:
    (root / "sent").mkdir(parents=True, exist_ok=True)
    return database.Database(root, budget)


@pytest.mark.parametrize("changed", ["core", "server/jobs"])
def test_changed_code_does_a_job_anew(
    tmp_path: Path, given: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    task, books = stored(tmp_path, given), made_store(tmp_path, 10**9)
    job = books.submit("solve", task, "me")
    assert books.submit("solve", task, "me") == books.find_job("solve", task) == job
    root, copy = Path(__file__).parents[2], tmp_path / "copy"
    shutil.copytree(root / changed, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "__init__.py").write_text("# another comment\n")
    code = {root / changed: copy}

    with monkeypatch.context() as edited:
        edited.setattr(
            registry,
            "revision",
            lambda folder=revisions.CORE: revisions.revision(code.get(folder, folder)),
        )
        assert books.find_job("solve", task) is None
        assert books.submit("solve", task, "me") != job
    assert books.submit("solve", task, "me") == job


def test_events_are_in_order_whatever_the_clock_does(
    tmp_path: Path, given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    books = made_store(tmp_path)
    clock = iter([2e9, 1e9, 3e9, 5e8] * 10)
    monkeypatch.setattr(database.time, "time", lambda: next(clock))
    task = stored(tmp_path, given)
    first = books.submit("solve", task, "me")
    second = books.submit("solve", protocol.Solve(task.plate, task.character, steps=1), "me")
    for file in protocol.files(task):
        books.record_file(file.hash, file.size)
    for i in range(5):
        books.add_event(first, "note", {"text": str(i)})
    events = books.events(first, 0)
    assert [e["n"] for e in events] == list(range(1, len(events) + 1))
    assert [e["text"] for e in events if e["type"] == "note"] == list("01234")
    assert books.events(first, 4)[0]["n"] == 5
    due = books.next_job(("solve",))
    assert due is not None
    assert due.id == first  # who came first, not whose time is lower
    books.set_state(first, "done")
    due = books.next_job(("solve",))
    assert due is not None
    assert due.id == second


def test_room_is_made_of_what_can_be_sent_again_and_of_nothing_else(tmp_path: Path) -> None:
    def put(text: str) -> protocol.File:
        path = tmp_path / "sent" / text
        path.write_bytes(text.encode() * 1000)
        file = protocol.File(*blobs.add_file(tmp_path, path))
        books.record_file(file.hash, file.size)
        return file

    books = made_store(tmp_path)
    old, needed, made, pinned, new = (put(t) for t in ("old", "needed", "made", "pin", "new"))
    character = protocol.File("0" * 64, 1)  # never sent: the job waits
    clip = protocol.Clip(".png", [1], [needed])
    job = books.submit("solve", protocol.Solve(clip, character), "me")
    books.add_result(job, "track.latents", 0, made.hash, made.size)
    assert books.pin(pinned.hash)
    books.budget = books.used() + 100
    books.make_room(2000)
    assert books.size(old.hash) is None  # unused for longest
    assert all(books.size(f.hash) for f in (needed, made, pinned, new))
    with pytest.raises(database.StoreFullError, match="store is full"):
        books.make_room(60_000)
    assert books.size(new.hash) is None
    assert all(books.size(f.hash) for f in (needed, made, pinned))
    books.set_state(job, "cancelled")
    books.make_room(10_000)
    assert books.size(needed.hash) is None
    assert books.size(made.hash)  # what was computed is never lost


def test_what_a_crash_left_is_put_right(tmp_path: Path) -> None:
    books = made_store(tmp_path)
    (tmp_path / "sent" / "a").write_bytes(b"abc")
    clip = protocol.Clip(
        ".png", [1], [protocol.File(*blobs.add_file(tmp_path, tmp_path / "sent" / "a"))]
    )
    books.record_file(clip.files[0].hash, 3)
    job = books.submit("solve", protocol.Solve(clip, clip.files[0]), "me")
    books.set_state(job, "running")
    books.close()
    (tmp_path / "sent" / "b").write_bytes(b"abcd")
    orphan, _ = blobs.add_file(tmp_path, tmp_path / "sent" / "b")  # added, never told
    blobs.file_path(tmp_path, orphan).with_name(f".{orphan}.123").write_bytes(b"torso")
    again = made_store(tmp_path)
    assert again.job(job).state == "queued"
    assert again.size(orphan)
    assert len(list((tmp_path / "files").rglob(".*"))) == 0
    again.close()
    blobs.file_path(tmp_path, clip.files[0].hash).unlink()
    third = made_store(tmp_path)
    assert third.missing(job) == [clip.files[0].hash]
    third.db.execute("PRAGMA user_version=9")
    third.close()
    with pytest.raises(database.SchemaMismatchError, match="format 9"):
        made_store(tmp_path)


def progress(stage: str, done: float, total: float, **figures: object) -> dict[str, Any]:
    return {"stage": stage, "done": done, "total": total, "figures": figures}


def points(books: database.Database, job: str) -> dict[tuple[str, str], list[tuple[float, float]]]:
    return {(c["axis"], c["name"]): c["points"] for c in books.curves(job)}


def test_the_history_of_figures_is_whole_and_bounded(tmp_path: Path) -> None:
    books = made_store(tmp_path)
    (tmp_path / "sent" / "a").write_bytes(b"abc")
    file = protocol.File(*blobs.add_file(tmp_path, tmp_path / "sent" / "a"))
    clip = protocol.Clip(".png", [1], [file])
    job = books.submit("solve", protocol.Solve(clip, file), "me")
    books.db.execute("PRAGMA synchronous=OFF")
    books.add_event(job, "progress", progress("tuning", 0, 0))
    for step in range(1, 3001):
        psnr = {"psnr": 20 + step // 50 / 10} if step >= 50 else {}
        body = progress("tuning", step, 3000, loss=1 / step, seconds_left=3000 - step, **psnr)
        books.add_event(job, "progress", body)
    kept = [e["done"] for e in books.events(job, 0, 5000) if e["type"] == "progress"]
    assert min(kept) > 900  # the events themselves are dropped
    curves = points(books, job)
    assert curves.keys() == {("step", "loss"), ("step", "psnr")}
    loss = curves["step", "loss"]
    assert 200 <= len(loss) <= database.MAX_POINTS
    assert loss[0][0] < 10
    assert loss[-1] == (3000, 1 / 3000)
    gaps = {round(b - a) for (a, _), (b, _) in itertools.pairwise(loss[1:-1])}
    assert gaps == {8}
    assert all(y == 1 / x for x, y in loss)
    assert [x for x, _ in curves["step", "psnr"]] == list(range(50, 3001, 50))  # when it changed

    # A worker was killed: from its checkpoint on the curve is drawn anew.
    books.add_event(job, "progress", progress("tuning", 0, 0))
    books.add_event(job, "progress", progress("tuning", 1201, 3000, loss=7.0, psnr=22.4))
    curves = points(books, job)
    assert curves["step", "loss"][-1] == (1201, 7.0)
    assert curves["step", "psnr"][-1] == (1200, 22.4)
    # The plateau is found: the total is another, the slots stay.
    before = curves["step", "loss"][:-1]
    books.add_event(job, "progress", progress("tuning", 1210, 1300, loss=None, psnr=22.5))
    assert points(books, job)["step", "loss"][:-1] == before
    assert points(books, job)["step", "psnr"][-1] == (1210, 22.5)

    # Frames come in any order, and some a second time.
    for number in (1008, 1001, 1004, 1001):
        body = progress("solving", 3, 8, frame=number, loss=number / 1000, keypoint_error=1.5)
        books.add_event(job, "progress", body)
    assert [x for x, _ in points(books, job)["frame", "loss"]] == [1001, 1004, 1008]
    assert points(books, job)["frame", "keypoint_error"] == [(x, 1.5) for x in (1001, 1004, 1008)]
    assert books.trained_steps(job, "tuning") == 1210
    assert books.trained_steps(job, "solving") == 0
    books.close()
    again = made_store(tmp_path)
    assert points(again, job)["step", "psnr"][-1] == (1210, 22.5)
    again.delete(job)
    assert again.db.execute("SELECT COUNT(*) FROM curves").fetchone()[0] == 0


def test_the_event_of_a_file_goes_when_the_file_is_replaced(tmp_path: Path) -> None:
    """Nobody is sent to what may be removed for want of room."""
    books = made_store(tmp_path)
    (tmp_path / "sent" / "a").write_bytes(b"abc")
    file = protocol.File(*blobs.add_file(tmp_path, tmp_path / "sent" / "a"))
    job = books.submit("solve", protocol.Solve(protocol.Clip(".png", [1], [file]), file), "me")
    for hash in ("1" * 64, "2" * 64, "2" * 64, "3" * 64):
        books.add_result(job, "preview.png", 0, hash, 10)
        books.add_result(job, "frame", 7, "f" * 64, 10)
    told = [(e["name"], e["hash"][0]) for e in books.events(job, 0) if e["type"] == "file"]
    assert told == [("frame", "f"), ("preview.png", "3")]


SCHEMA_1 = """
CREATE TABLE files (
    hash TEXT PRIMARY KEY, size INTEGER NOT NULL, used REAL NOT NULL, pinned INTEGER DEFAULT 0);
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, key TEXT UNIQUE NOT NULL, kind TEXT NOT NULL, task TEXT NOT NULL,
    state TEXT NOT NULL, reason TEXT DEFAULT '', client TEXT NOT NULL, created REAL NOT NULL,
    updated REAL NOT NULL, progress TEXT DEFAULT '{}', deaths INTEGER DEFAULT 0,
    died_at TEXT DEFAULT '', turn INTEGER DEFAULT 0);
CREATE TABLE events (
    job TEXT NOT NULL, n INTEGER NOT NULL, time REAL NOT NULL, type TEXT NOT NULL,
    body TEXT NOT NULL, PRIMARY KEY (job, n)) WITHOUT ROWID;
CREATE TABLE inputs (
    job TEXT NOT NULL, hash TEXT NOT NULL, PRIMARY KEY (job, hash)) WITHOUT ROWID;
CREATE INDEX inputs_hash ON inputs (hash);
CREATE TABLE results (
    job TEXT NOT NULL, name TEXT NOT NULL, number INTEGER NOT NULL, hash TEXT NOT NULL,
    size INTEGER NOT NULL, PRIMARY KEY (job, name, number)) WITHOUT ROWID;
CREATE INDEX results_hash ON results (hash);
INSERT INTO jobs (id, key, kind, task, state, client, created, updated, deaths, died_at, turn)
VALUES ('b', 'k2', 'solve', '{}', 'queued', 'me', 2, 2, 2, 'solving 7', 2),
       ('a', 'k1', 'solve', '{}', 'done', 'me', 1, 1, 0, '', 1);
INSERT INTO events VALUES ('a', 1, 1.5, 'note', '{"text": "hello"}');
PRAGMA user_version = 1;
"""


@pytest.mark.parametrize("version", [1, 0])  # 0: a crash between its tables and its number
def test_a_database_of_the_version_before_opens(tmp_path: Path, version: int) -> None:
    old = sqlite3.connect(tmp_path / "jobs.sqlite")
    old.executescript(SCHEMA_1)
    old.execute(f"PRAGMA user_version = {version}")
    old.close()
    for _ in range(2):  # it is changed once
        books = made_store(tmp_path)
        assert [job.id for job in books.jobs()] == ["b", "a"]
        assert books.job("a").finish is None
        assert (books.job("b").crashes, books.job("b").crashed_at) == (2, "solving 7")
        assert [event["text"] for event in books.events("a", 0)] == ["hello"]
        due = books.next_job(["solve"])
        assert due is not None
        assert due.id == "b"
        assert books.db.execute("PRAGMA user_version").fetchone()[0] == database.SCHEMA
        books.close()
    books = made_store(tmp_path)
    books.record_crash("b", "solving 7", "signal 9", 3)
    assert (books.job("b").crashes, books.job("b").state) == (3, "failed")
    assert "3 times at solving (signal 9)" in books.job("b").reason


def test_a_worker_that_dies_on_a_full_disk_leaves_its_job_queued(tmp_path: Path) -> None:
    books, posted = made_store(tmp_path), queue.SimpleQueue[Callable[[], None]]()
    writes = database.WriteQueue(books)
    job = books.submit("fit_directions", protocol.FitDirections(), "me")
    front = scheduler.Scheduler(books, writes, posted.put, lambda id: None, gpus=0)
    try:
        front.schedule()
        (busy,) = front.workers().values()
        books.db.execute("PRAGMA query_only=ON")  # what can't be written is an OperationalError
        os.kill(busy["pid"], signal.SIGKILL)
        posted.get(timeout=60)()
        writes.flush()
        assert books.job(job).state == "running"
        books.db.execute("PRAGMA query_only=OFF")
        writes.flush()
        assert (books.job(job).state, books.job(job).crashes) == ("queued", 1)
        assert not front.workers()
    finally:
        front.close()


def test_a_stored_file_is_only_given_out_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    file = protocol.File(*blobs.add_file(tmp_path, tmp_path / "a"))
    blobs.materialize(tmp_path, file, tmp_path / "in" / "plate.0001.png")
    assert (tmp_path / "in" / "plate.0001.png").read_bytes() == b"abc"
    with pytest.raises(ProtocolError, match="damaged"):
        blobs.materialize(tmp_path, protocol.File(file.hash, 4), tmp_path / "in" / "b")
    for bad in ("../../etc/passwd", "", "g" * 64, file.hash.upper()):
        with pytest.raises(ValueError, match="no hash"):
            blobs.file_path(tmp_path, bad)


def solved_by_worker(root: Path, task: Any) -> list[dict[str, Any]]:
    """Solves a task in this process as a worker does; returns what it has said."""
    front = worker.Front(io.StringIO(), io.StringIO())
    time.sleep(0.1)
    front._stop = False
    job = {"id": "a", "kind": "solve", "task": json.loads(json.dumps(task, default=vars))}
    worker.run(root, job, front, worker.Characters())
    return said(front)


def test_a_solve_shows_what_it_has_and_its_result_stays_the_same(
    tmp_path: Path, given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(preview, "SHARE", 1.0)
    task = stored(tmp_path, given)
    told = solved_by_worker(tmp_path, task)
    pictures = [m for m in told if m["type"] == "picture"]
    assert len(pictures) > 1
    height, width, _ = cv2.imread(str(tmp_path / "jobs/a/out/progress.png")).shape
    assert height == 2 * (preview.SIDE + LABEL_HEIGHT)
    assert width % preview.SIDE == 0
    assert blobs.file_path(tmp_path, pictures[-1]["hash"]).exists()
    assert [m["name"] for m in told if m["type"] == "file"] == ["track.latents"]
    frames = [m["figures"]["frame"] for m in told if "frame" in m.get("figures", {})]
    assert sorted({*frames}) == list(range(1001, 1001 + FRAMES))

    books = made_store(tmp_path / "books")
    id = books.submit("solve", task, "me")
    for picture in pictures[:2]:
        books.set_picture(id, picture["hash"], picture["size"])
    books.add_result(id, "track.latents", 0, "5" * 64, 10)
    assert [f["name"] for f in books.results(id)] == ["progress.png", "track.latents"]
    assert [e["name"] for e in books.events(id, 0) if e["type"] == "file"] == ["track.latents"]
    books.remove_picture(id)
    assert [f["name"] for f in books.results(id)] == ["track.latents"]


def test_load_track_of_a_solved_job_is_the_workers(tmp_path: Path, given: Path) -> None:
    solved = solved_by_worker(tmp_path, stored(tmp_path, given))
    (told,) = [m for m in solved if m["type"] == "file"]
    track = load_track(blobs.file_path(tmp_path, told["hash"]))
    assert track.source == "plate"  # not where the server keeps it
    assert (track.numbers == range(1001, 1001 + FRAMES)).all()


def test_no_commit_waits_for_the_disk(tmp_path: Path) -> None:
    """A thread moves what the log has into the database; the loop's commits never do."""
    with contextlib.closing(database.Database(tmp_path, 1 << 30)) as store:
        main, log = tmp_path / "jobs.sqlite", tmp_path / "jobs.sqlite-wal"
        before = main.stat().st_size, main.stat().st_mtime_ns
        store.db.execute("CREATE TABLE filler (text)")
        for _ in range(1500):  # SQLite would checkpoint after 1,000 pages
            store.db.execute("INSERT INTO filler VALUES (?)", ["x" * 5000])
        assert (main.stat().st_size, main.stat().st_mtime_ns) == before
        assert log.stat().st_size > 1000 * 4096
        store.fold_log()
        deadline = time.monotonic() + 60
        while main.stat().st_size < 1500 * 5000:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        store.close()
        store._open()
        assert store.db.execute("SELECT count(*) FROM filler").fetchone()[0] == 1500
        # The log begins anew once it was folded: it does not grow for ever.
        for _ in range(3):
            store.fold_log()
            store._folding.join()
            for _ in range(300):
                store.db.execute("INSERT INTO filler VALUES (?)", ["x" * 5000])
        assert log.stat().st_size < 1000 * 4096
