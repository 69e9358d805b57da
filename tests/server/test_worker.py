"""A worker's jobs in this process, and the store's books."""

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from reenact import protocol
from reenact.protocol import ProtocolError
from running_server import FRAMES, inputs

from core.solve.latent_track import load_track
from server import store, tasks, worker


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("given")


def stored(root: Path, given: Path) -> protocol.Solve:
    """A solve whose files are in a store."""
    character, pattern = inputs(given)
    numbers = list(range(1001, 1001 + FRAMES))
    files = [
        protocol.File(*store.add_file(root, Path(pattern.replace("####", str(n))))) for n in numbers
    ]
    clip = protocol.Clip(".png", numbers, files, name="plate")
    return protocol.Solve(clip, protocol.File(*store.add_file(root, character)))


def said(front: worker.Front) -> list[dict[str, Any]]:
    return [json.loads(line) for line in front._target.getvalue().splitlines()]  # type: ignore


def test_too_little_memory_halves_the_batch_and_then_fails(
    tmp_path: Path, given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = stored(tmp_path, given)
    job = {"id": "a", "kind": "solve", "task": json.loads(json.dumps(task, default=vars))}
    solve, tried = tasks.solve, []

    def heavy(task: protocol.Solve, *rest: Any) -> Any:
        tried.append(task.batch)
        if task.batch > limit:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return solve(task, *rest)

    monkeypatch.setattr(tasks, "solve", heavy)
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
    with pytest.raises(worker.TooLittleMemory, match=r"Close what else .*CUDA out of memory"):
        worker.run(tmp_path, job | {"id": "b"}, front, worker.Characters())
    assert tried[3:] == [8, 4, 2, 1]


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


def made_store(root: Path, budget: int = 1 << 30) -> store.Store:
    (root / "sent").mkdir(parents=True, exist_ok=True)
    return store.Store(root, budget)


def test_another_version_of_the_program_does_a_job_anew(
    tmp_path: Path, given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, books = stored(tmp_path, given), made_store(tmp_path, 10**9)
    job = books.submit("solve", task, "me")
    assert books.submit("solve", task, "me") == books.known("solve", task) == job
    monkeypatch.setattr(store, "program", lambda: "of tomorrow")
    assert books.known("solve", task) is None
    assert books.submit("solve", task, "me") != job


def test_events_are_in_order_whatever_the_clock_does(
    tmp_path: Path, given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    books = made_store(tmp_path)
    clock = iter([2e9, 1e9, 3e9, 5e8] * 10)
    monkeypatch.setattr(store.time, "time", lambda: next(clock))
    task = stored(tmp_path, given)
    first = books.submit("solve", task, "me")
    second = books.submit("solve", protocol.Solve(task.plate, task.character, steps=1), "me")
    for file in protocol.files(task):
        books.arrived(file.hash, file.size)
    for i in range(5):
        books.event(first, "note", {"text": str(i)})
    events = books.events(first, 0)
    assert [e["n"] for e in events] == list(range(1, len(events) + 1))
    assert [e["text"] for e in events if e["type"] == "note"] == list("01234")
    assert books.events(first, 4)[0]["n"] == 5
    due = books.next(("solve",))
    assert due is not None
    assert due.id == first  # who came first, not whose time is lower
    books.set_state(first, "done")
    due = books.next(("solve",))
    assert due is not None
    assert due.id == second


def test_room_is_made_of_what_can_be_sent_again_and_of_nothing_else(tmp_path: Path) -> None:
    def put(text: str) -> protocol.File:
        path = tmp_path / "sent" / text
        path.write_bytes(text.encode() * 1000)
        file = protocol.File(*store.add_file(tmp_path, path))
        books.arrived(file.hash, file.size)
        return file

    books = made_store(tmp_path)
    old, needed, made, pinned, new = (put(t) for t in ("old", "needed", "made", "pin", "new"))
    character = protocol.File("0" * 64, 1)  # never sent: the job waits
    clip = protocol.Clip(".png", [1], [needed])
    job = books.submit("solve", protocol.Solve(clip, character), "me")
    books.result(job, "track.latents", 0, made.hash, made.size)
    assert books.pin(pinned.hash)
    books.budget = books.used() + 100
    books.make_room(2000)
    assert not books.has(old.hash)  # unused for longest
    assert all(books.has(f.hash) for f in (needed, made, pinned, new))
    with pytest.raises(store.StoreFull, match="store is full"):
        books.make_room(60_000)
    assert not books.has(new.hash)
    assert all(books.has(f.hash) for f in (needed, made, pinned))
    books.set_state(job, "cancelled")
    books.make_room(10_000)
    assert not books.has(needed.hash)
    assert books.has(made.hash)  # what was computed is never lost


def test_what_a_crash_left_is_put_right(tmp_path: Path) -> None:
    books = made_store(tmp_path)
    (tmp_path / "sent" / "a").write_bytes(b"abc")
    clip = protocol.Clip(
        ".png", [1], [protocol.File(*store.add_file(tmp_path, tmp_path / "sent" / "a"))]
    )
    books.arrived(clip.files[0].hash, 3)
    job = books.submit("solve", protocol.Solve(clip, clip.files[0]), "me")
    books.set_state(job, "running")
    books.close()
    (tmp_path / "sent" / "b").write_bytes(b"abcd")
    orphan, _ = store.add_file(tmp_path, tmp_path / "sent" / "b")  # added, never told
    store.file_path(tmp_path, orphan).with_name(f".{orphan}.123").write_bytes(b"torso")
    again = made_store(tmp_path)
    assert again.job(job).state == "queued"
    assert again.has(orphan)
    assert len(list((tmp_path / "files").rglob(".*"))) == 0
    again.close()
    store.file_path(tmp_path, clip.files[0].hash).unlink()
    third = made_store(tmp_path)
    assert third.missing(job) == [clip.files[0].hash]
    third.db.execute("PRAGMA user_version=9")
    third.close()
    with pytest.raises(store.StoreInUse, match="format 9"):
        made_store(tmp_path)


def test_a_stored_file_is_only_given_out_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    file = protocol.File(*store.add_file(tmp_path, tmp_path / "a"))
    store.place(tmp_path, file, tmp_path / "in" / "plate.0001.png")
    assert (tmp_path / "in" / "plate.0001.png").read_bytes() == b"abc"
    with pytest.raises(ProtocolError, match="damaged"):
        store.place(tmp_path, protocol.File(file.hash, 4), tmp_path / "in" / "b")
    for bad in ("../../etc/passwd", "", "g" * 64, file.hash.upper()):
        with pytest.raises(ValueError, match="no hash"):
            store.file_path(tmp_path, bad)


def test_load_track_of_a_solved_job_is_the_workers(tmp_path: Path, given: Path) -> None:
    task = stored(tmp_path, given)
    front = worker.Front(io.StringIO(), io.StringIO())
    time.sleep(0.1)
    front._stop = False
    job = {"id": "a", "kind": "solve", "task": json.loads(json.dumps(task, default=vars))}
    worker.run(tmp_path, job, front, worker.Characters())
    (told,) = [m for m in said(front) if m["type"] == "file"]
    track = load_track(store.file_path(tmp_path, told["hash"]))
    assert track.source == "plate"  # not where the server keeps it
    assert (track.numbers == range(1001, 1001 + FRAMES)).all()
