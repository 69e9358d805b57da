"""A worker: does one job after the other in a process of its own, and tells the front end.

    python -m server.worker STORE

Both ways one line of JSON is one message. In: `{"run": {"id", "kind", "task", "earlier"}}`, where
`earlier`, if it is there, has hashes of frames by number, among which those may be that the job is
to draw, and `{"stop": id}`; the end of input means that the front end is gone. Out:
`{"job", "type", …}`, types `started`, `progress`, `note`, `file`, `log`, and to end a job one of
`done`, `stopped`, `failed`, `no_space`, `corrupt`.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from reenact import protocol

from core.base.errors import ReenactError
from core.media import read
from core.media.clip import Clip
from core.media.numbering import frame_path
from server import store, tasks
from server.home import only_one

if TYPE_CHECKING:
    from core.personalize.character import Character
    from server.reporting import Tick

TOLD_SECONDS = 0.2  # between messages of progress
CHARACTER_BYTES = 4 << 30  # of warm characters
LEAST_FREE = 1 << 20  # bytes; with less a disk counts as full


class TooLittleMemory(ReenactError):
    """A job does not fit into memory, whatever its batch."""


class Stopped(KeyboardInterrupt):
    """The front end wants the job to stop; like Ctrl-C, it keeps what is done."""


class Front:
    """The other end: what it is told, and what it has said meanwhile."""

    def __init__(self, source: IO[str], target: IO[str]) -> None:
        self._source, self._target = source, target
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._todo: dict[str, Any] | None = None
        self._stop = self._gone = False
        self.job = ""
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self._source:
            message = json.loads(line)
            with self._changed:
                if "run" in message:
                    self._todo, self._stop = message["run"], False
                else:
                    self._stop = True
                self._changed.notify()
        with self._changed:
            self._stop = self._gone = True
            self._changed.notify()

    def next(self) -> dict[str, Any] | None:
        """Waits for a job; None: there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._gone or self._todo is not None)
            job, self._todo = self._todo, None
            return None if self._gone else job

    def tell(self, type: str, **body: object) -> None:
        line = json.dumps({"job": self.job, "type": type, **body}) + "\n"
        with self._lock:
            try:
                self._target.write(line)
                self._target.flush()
            except (BrokenPipeError, ValueError):
                self._stop = True

    def check(self) -> None:
        """
        Raises:
            Stopped: the job is to stop.
        """
        if self._stop:
            raise Stopped


class EventReport:
    """A job's report (`core.base.progress.Report`): progress goes to the front end."""

    def __init__(self, front: Front) -> None:
        self.front = front

    def note(self, text: str) -> None:
        self.front.tell("note", text=text)

    @contextmanager
    def stage(self, title: str) -> Iterator[Tick]:
        last = 0.0

        def tick(done: float, total: float, **figures: float) -> None:
            nonlocal last
            self.front.check()
            now = time.monotonic()
            if now - last >= TOLD_SECONDS or done >= total:
                last = now
                self.front.tell(
                    "progress",
                    stage=title,
                    done=done,
                    total=total,
                    figures=figures,
                    gpu=gpu_memory(),
                )

        self.front.check()
        self.front.tell("progress", stage=title, done=0, total=0, figures={}, gpu=gpu_memory())
        yield tick


def gpu_memory() -> str:
    """What is in use of the GPU's memory, in words; empty without one."""
    import torch

    if not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info()
    return f"{(total - free) / 2**30:.1f} of {total / 2**30:.1f} GiB"


class Characters:
    """Characters that were used last, as far as memory is set aside for them."""

    def __init__(self, budget: int = CHARACTER_BYTES) -> None:
        self.budget = budget
        self._kept: OrderedDict[str, tuple[Character, int]] = OrderedDict()

    def get(self, path: Path, key: str) -> Character:
        """The character of a file, by a key that changes with its content."""
        from core.personalize.character import load_character

        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][0]
        who = load_character(path)
        size = sum(t.numel() * t.element_size() for t in who.generator.state_dict().values())
        self._kept[key] = who, size
        while len(self._kept) > 1 and sum(s for _, s in self._kept.values()) > self.budget:
            self._kept.popitem(last=False)
        return who


def run(root: Path, job: dict[str, Any], front: Front, characters: Characters) -> dict[str, Any]:
    """Does a job, and returns what came out as plain values.

    Raises:
        ReenactError: what is wrong with the input.
        ProtocolError: `corrupt`.
        Stopped: what is done is kept.
    """
    task: protocol.Task = protocol.build(protocol.TASKS[job["kind"]], job["task"])
    folder = root / "jobs" / job["id"]
    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    with only_one(folder / "lock", "Another worker is still busy with this job.", 60):
        here = {
            name: _fetch(root, folder / "in", name, part) for name, part in protocol.parts(task)
        }
        earlier = {
            int(number): [store.file_path(root, hash) for hash in hashes]
            for number, hashes in job.get("earlier", {}).items()
        }
        report = EventReport(front)
        front.tell("started", device=tasks.device())
        batch = getattr(task, "batch", 1)
        while True:
            try:
                return _do(root, task, here, out, report, characters, earlier)
            except (MemoryError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and "memory" not in str(error):
                    raise
                if batch == 1:
                    raise TooLittleMemory(
                        "Too little memory, even for one picture at once. Close what else uses "
                        f"it, on this machine and its GPU, and submit again. ({error!s:.200})"
                    ) from error
                batch = max(batch // 2, 1)
                report.note(f"too little memory: going on with {batch} pictures at once")
                task = dataclasses.replace(task, batch=batch)  # type: ignore[arg-type]


def _do(
    root: Path,
    task: protocol.Task,
    here: dict[str, Path],
    out: Path,
    report: EventReport,
    characters: Characters,
    earlier: dict[int, list[Path]],
) -> dict[str, Any]:
    def made(name: str, path: Path, number: int = 0) -> None:
        hash, size = store.add_file(root, path)
        report.front.tell("file", name=name, number=number, hash=hash, size=size)

    clips = {
        name: open_clip(part, here[name])
        for name, part in protocol.parts(task)
        if isinstance(part, protocol.Clip)
    }
    for name, clip in clips.items():
        tasks.note_clip(clip, report)
        sent, ours = getattr(task, name), os.environ.get("OCIO", "")
        if sent.config not in ("", ours):
            report.note(
                f"The {name} is in {sent.colour_space} of the OCIO config {sent.config}; this "
                f"server takes its own, {ours or 'the built-in ACES config'}."
            )
    if isinstance(task, protocol.Personalize):
        stem = out / "result.character"
        who = tasks.personalize(
            task, clips["scan"], stem, report, here.get("base"), here.get("encoder")
        )
        for name in ("selection", "reconstruction"):
            made(f"{name}.png", out / f"result_{name}.png")
        made("character", stem)
        return {
            "anchors": len(who.info.selected),
            "metric": who.info.metric,
            "last": who.info.losses[-1:],
            "hash": who.hash,
        }
    if isinstance(task, protocol.Repair):
        path = out / "track.latents"
        facts = tasks.repair(
            task,
            here["track"],
            path,
            report,
            clips.get("plate"),
            characters.get(here["character"], task.character.hash or str(here["character"]))
            if task.character
            else None,
        )
        made("track.latents", path)
        return facts
    if isinstance(task, protocol.FitDirections):
        whose = None
        if task.character is not None:
            whose = characters.get(here["character"], task.character.hash or str(here["character"]))
        path = out / "result.directions"
        facts = tasks.fit_directions(task, whose, here.get("base"), path, out / "sheet.png", report)
        made("directions", path)
        made("sheet.png", out / "sheet.png")
        return facts
    who = characters.get(here["character"], task.character.hash or str(here["character"]))
    if isinstance(task, protocol.Solve):
        path = out / "track.latents"
        track = tasks.solve(task, clips["plate"], who, path, report, here.get("previous"))
        made("track.latents", path)
        return tasks.summarise(track)
    if isinstance(task, protocol.Stylize):
        return _stylize(task, who, clips.get("pictures"), out, report, made)
    from core.solve.latent_track import load_track

    track = load_track(here["track"], who.hash)
    directions = [path for name, path in here.items() if name.startswith("directions.")]
    if isinstance(task, protocol.Edit):
        path = out / "track.latents"
        facts = tasks.edit(task, track, who, directions, path, report)
        made("track.latents", path)
        return facts
    pattern = str(out / "out.####.exr")

    def drawn(number: int) -> None:
        made("frame", Path(frame_path(pattern, number)), number)

    if isinstance(task, protocol.Frame):
        tasks.frame(task, track, who, clips.get("plate"), pattern, here.get("style"), directions)
        drawn(task.number)
        return {"frames": 1}
    if isinstance(task, protocol.Qc):
        facts = tasks.qc(
            task,
            track,
            who,
            clips["plate"],
            out,
            report,
            clips.get("rendered"),
            here.get("recogniser"),
            here.get("face_model"),
        )
        for name in tasks.QC_FILES:
            made(name, out / name)
        return facts
    movie = out / "preview.mp4" if task.movie else None
    sheet = out / "sheet.png" if task.sheet else None
    numbers, empty = tasks.render(
        task,
        track,
        who,
        clips.get("plate"),
        pattern,
        report,
        movie,
        sheet,
        clips.get("truth"),
        drawn,
        here.get("style"),
        earlier,
    )
    for extra in (movie, sheet):
        if extra is not None:
            made(extra.name, extra)
    return {"frames": len(numbers), "empty": empty}


def _stylize(
    task: protocol.Stylize,
    who: Character,
    pictures: Clip | None,
    out: Path,
    report: EventReport,
    made: Callable[[str, Path], None],
) -> dict[str, Any]:
    path = out / "result.style"

    def looked() -> None:
        made("style", path)
        made("preview.png", out / "result_preview.png")

    style = tasks.stylize(task, who, path, report, pictures, looked)
    looked()
    return tasks.summarise_style(style)


def open_clip(clip: protocol.Clip, path: Path) -> Clip:
    """The clip that lies at a path, under the name that people know it by."""
    first, _, last = clip.frames.partition("-")
    opened = read.open_clip(
        path,
        int(first) if first else None,
        int(last or first) if first else None,
        clip.colour_space,
    )
    return dataclasses.replace(opened, title=clip.name)


def _fetch(root: Path, folder: Path, name: str, part: protocol.File | protocol.Clip) -> Path:
    """Where a part of a task can be read, after it was put there if need be."""
    if part.path:
        return Path(part.path)  # the front end has checked it
    if isinstance(part, protocol.File):
        path = folder / name
        if not path.exists():
            store.place(root, part, path)
        return path
    if not part.numbers:
        path = folder / f"{name}{part.suffix}"
        if not path.exists():
            store.place(root, part.files[0], path)
        return path
    pattern = folder / name / f"{name}.####{part.suffix}"
    for number, file in zip(part.numbers, part.files, strict=True):
        path = Path(frame_path(str(pattern), number))
        if not path.exists():
            store.place(root, file, path)
    return pattern


def work(root: Path, front: Front) -> None:
    """Does jobs until the front end is gone."""
    characters = Characters()
    while (job := front.next()) is not None:
        front.job = job["id"]
        try:
            facts = run(root, job, front, characters)
            front.tell("done", facts=facts)
        except Stopped:
            front.tell("stopped")
        except protocol.ProtocolError as error:
            front.tell("corrupt", hash=error.detail)
        except (ReenactError, OSError) as error:
            if _no_space(error, root):
                front.tell("no_space", message=str(error))
                continue
            if isinstance(error, OSError):
                front.tell("log", text=traceback.format_exc()[-20_000:])
            front.tell("failed", message=str(error))
        except (Exception, MemoryError) as error:
            front.tell("log", text=traceback.format_exc()[-20_000:])
            front.tell("failed", message=f"Something went wrong inside: {error!r:.300}")


def _no_space(error: BaseException | None, root: Path) -> bool:
    """Whether the disk is full; OpenEXR does not say why it could not write."""
    if shutil.disk_usage(root).free < LEAST_FREE:
        return True
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def main() -> None:
    # Libraries print what they like; the front end reads only what we say.
    target = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    work(Path(sys.argv[1]), Front(sys.stdin, target))


if __name__ == "__main__":
    main()
