"""A worker: does one job after the other in a process of its own, and tells the front end.

    python -m server.worker STORE

In both directions one line of JSON is one message.
In: `{"run": {"id", "kind", "task", "earlier", "finish"}}`, where `earlier`, if it is there, has
hashes of frames by number that similar renders drew, and `finish`, if it is there, the steps after
which a training is to end early; `{"finish": steps}`, the same for the job that runs; and
`{"stop": id}`. The end of input means that the front end is gone.
Out: `{"job", "type", …}`, types `started`, `progress`, `note`, `file`, `picture` (which shows the
work while it goes on), `log`, and to end a job one of `done`, `stopped`, `failed`, `no_space`,
`corrupt`.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import traceback
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from reenact import protocol

from core.base.errors import ReenactError
from core.media.outputs import check_outputs
from server import blobs
from server.jobs import common, registry
from server.locks import exclusive_lock

if TYPE_CHECKING:
    from core.media.clip import Clip
    from core.personalize.character import Character

PROGRESS_SECONDS = 0.2  # between messages of progress
CONSTANTLY_MEASURED = ("loss", "seconds_left")  # figures of every step
CHARACTER_BYTES = 4 << 30  # of characters that stay loaded
CONFIG_BYTES = 2 << 30  # of an OCIO config with its LUTs, unpacked
CONFIG_NAME = "config.ocio"  # in an archive
NICE = 5  # who answers clients, and the artist's Nuke on the same machine, come first
LEAST_FREE = 1 << 20  # bytes; a disk with less free counts as full


class TooLittleMemoryError(ReenactError):
    """A job does not fit into memory, whatever its batch."""


class NoFileError(ReenactError):
    """A path names something else than a file."""


class Stopped(KeyboardInterrupt):
    """The front end wants the job to stop; as after Ctrl-C, what is done is kept."""


class Front:
    """The front end, as a worker sees it: what it asks for, and where events are sent.

    Args:
        source: lines from the front end.
        target: lines to it.
    """

    def __init__(self, source: IO[str], target: IO[str]) -> None:
        self._source, self._target = source, target
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._next: dict[str, Any] | None = None
        self._stop = self._gone = False
        self._finish: int | None = None
        self.job = ""
        self.client_text: Callable[[str], str] = str  # of what is said to the client
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self._source:
            message = json.loads(line)
            with self._changed:
                if "run" in message:
                    self._next, self._stop = message["run"], False
                    self._finish = self._next.get("finish")
                elif "finish" in message:
                    self._finish = message["finish"]
                else:
                    self._stop = True
                self._changed.notify()
        with self._changed:
            self._stop = self._gone = True
            self._changed.notify()

    def next(self) -> dict[str, Any] | None:
        """Waits for a job and returns it; None: there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._gone or self._next is not None)
            job, self._next = self._next, None
            return None if self._gone else job

    def send(self, type: str, **body: object) -> None:
        """Sends an event of the job; its `text` or `message` as the client may see it."""
        for name in {"text", "message"} & set(body):
            body[name] = self.client_text(str(body[name]))
        line = json.dumps({"job": self.job, "type": type, **body}) + "\n"
        with self._lock:
            try:
                self._target.write(line)
                self._target.flush()
            except (BrokenPipeError, ValueError):
                self._stop = True

    def end_after(self) -> int | None:
        """Returns the steps after which a training is to end early; None: it is not to."""
        return self._finish

    def check(self) -> None:
        """
        Raises:
            Stopped: the job is to stop.
        """
        if self._stop:
            raise Stopped


class EventReport:
    """A job's report (`core.base.progress.Report`): it goes to the front end."""

    def __init__(self, front: Front) -> None:
        self.front = front

    def note(self, text: str) -> None:
        """Sends a remark."""
        self.front.send("note", text=text)

    @contextmanager
    def stage(self, title: str) -> Iterator[Any]:
        """Yields what is called with (done, total, **figures) during a stage of the work."""
        last = 0.0
        before: dict[str, float] = {}

        def progress(done: float, total: float, **figures: float) -> None:
            nonlocal last, before
            self.front.check()
            now = time.monotonic()
            # What is measured seldom is always sent, and in time.
            seldom = {k: v for k, v in figures.items() if k not in CONSTANTLY_MEASURED}
            new = bool(seldom) and seldom != before
            if now - last >= PROGRESS_SECONDS or done >= total or new:
                last, before = now, seldom or before
                self.front.send(
                    "progress",
                    stage=title,
                    done=done,
                    total=total,
                    figures=figures,
                    gpu=gpu_memory(),
                )

        self.front.check()
        self.front.send("progress", stage=title, done=0, total=0, figures={}, gpu=gpu_memory())
        yield progress


def gpu_memory() -> str:
    """Returns what is in use of the GPU's memory, in words; empty without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info()
    return f"{(total - free) / 2**30:.1f} of {total / 2**30:.1f} GiB"


class Characters:
    """The characters that were used last, as far as they fit into a budget of bytes."""

    def __init__(self, budget: int = CHARACTER_BYTES) -> None:
        self.budget = budget
        self._kept: OrderedDict[str, tuple[Character, int]] = OrderedDict()

    def get(self, path: Path, key: str) -> Character:
        """Returns the character of a file, by a key that changes with its content."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][0]
        character = common.load_character(path)
        networks = [character.generator, *([character.detail.network] if character.detail else [])]
        tensors = [tensor for network in networks for tensor in network.state_dict().values()]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self._kept[key] = character, size
        while len(self._kept) > 1 and sum(s for _, s in self._kept.values()) > self.budget:
            self._kept.popitem(last=False)
        return character


def run(root: Path, job: dict[str, Any], front: Front, characters: Characters) -> dict[str, Any]:
    """Does a job.

    Args:
        root: the store's folder.
        job: `id`, `kind`, `task` and, of a render, `earlier`.
        front: receives progress and results.
        characters: that are loaded already.

    Returns:
        The facts about the result, as plain values.

    Raises:
        ReenactError: the sentence says what is wrong with the input.
        ProtocolError: `corrupt`.
        Stopped: what is done is kept.
    """
    kind = registry.KINDS[job["kind"]]
    task = protocol.build(kind.task, job["task"])
    folder = root / "jobs" / job["id"]
    (folder / "out").mkdir(parents=True, exist_ok=True)
    registry.check_configs(task)  # of jobs from before a server or its OCIO variable changed
    parts = dict(protocol.parts(task))
    with exclusive_lock(folder / "lock", "Another worker is still busy with this job.", 60):
        paths = {name: _fetch(root, folder / "in", name, part) for name, part in parts.items()}
        report = EventReport(front)
        front.send("started", device=common.device())
        keys = {paths[n]: part.hash for n, part in parts.items() if isinstance(part, protocol.File)}

        def add_result(name: str, path: Path, number: int) -> None:
            hash, size = blobs.add_file(root, path)
            front.send("file", name=name, number=number, hash=hash, size=size)

        picture = folder / "out" / protocol.PICTURE

        def add_picture() -> None:
            hash, size = blobs.add_file(root, picture)
            front.send("picture", hash=hash, size=size)

        outputs = {name: folder / "out" / file for name, file in kind.results.items()}
        # What was sent lies in the store, where results may be links to the same content.
        check_outputs(outputs, {name: Path(part.path) for name, part in parts.items() if part.path})

        context = common.Context(
            report,
            files=paths,
            clips={
                name: _open_clip(
                    part,
                    paths[name],
                    _config(part, f"{name}.config_file", paths, folder / "in"),
                    report,
                )
                for name, part in parts.items()
                if isinstance(part, protocol.Clip)
            },
            outputs=outputs,
            on_result=add_result,
            load_character=lambda path: characters.get(path, keys[path] or str(path)),
            picture=picture,
            on_picture=add_picture,
            end_after=front.end_after,
            reusable={
                int(number): [blobs.file_path(root, hash) for hash in hashes]
                for number, hashes in job.get("earlier", {}).items()
            },
            config=_config(task, "config_file", paths, folder / "in"),
        )
        return _run_in_memory(task, context)


def client_text(text: str, root: Path, job: dict[str, Any]) -> str:
    """Returns a text with files called as the client knows them, and no folder of the server's.

    Args:
        text: an error, a note or a stack trace.
        root: the store's folder.
        job: `id`, `kind` and `task`.
    """
    folders = dict.fromkeys(str(path) for path in (root, root.absolute(), root.resolve()))
    titles = {}
    for name, part in protocol.parts(protocol.build(registry.KINDS[job["kind"]].task, job["task"])):
        if isinstance(part, protocol.Clip):
            titles[name], titles[f"{name}.config_file"] = part.name or name, part.config
    titles["config_file"] = job["task"].get("config", "")

    def title(match: re.Match[str]) -> str:
        called = titles.get(match["name"], match["name"])
        if not match["number"]:
            return called or "that was sent"
        first, hashes, last = re.sub(r"%0?\d*d", "####", called).rpartition("####")
        if hashes and match["number"].isdigit():
            return f"{first.rstrip('#')}{match['number']}{last}"
        return called if hashes else f"{called}, frame {match['number']}"

    for folder in folders:
        place = re.escape(os.path.join(folder, "jobs", job["id"]) + os.sep)
        # A frame of a clip; an unpacked config; a movie or another file, with its suffix.
        name = r"(?P<name>\w+(?:\.\d+)?(?:\.config_file)?)"
        text = re.sub(
            rf"{place}in/{name}(?:/(?P=name)\.(?P<number>[0-9]+|#+)\.\w+|\.d/[^\s:'\"]*\w|\.[a-z]\w*)?",
            title,
            text,
        )
        text = re.sub(rf"{place}(?:out/)?", "", text)
    program = Path(__file__).parents[1]
    places = [*folders, *(str(Path(f).parent) for f in folders), str(program), *sys.path]
    places += [sys.prefix, sys.base_prefix]
    for place in sorted({p for p in places if len(p) > 1}, key=len, reverse=True):
        text = text.replace(place + os.sep, "").replace(place, "the server's folder")
    return text.replace(str(Path.home()), "~")


def _run_in_memory(task: Any, context: common.Context) -> dict[str, Any]:
    """Does a task, with smaller and smaller batches where memory is too little.

    Raises:
        TooLittleMemoryError: it does not fit with a batch of one.
    """
    batch = getattr(task, "batch", 1)
    while True:
        try:
            return registry.run_task(task, context)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            if batch == 1:
                raise TooLittleMemoryError(
                    "Too little memory, even for one picture at once. Close what else uses "
                    f"it, on this machine and its GPU, and submit again. ({error!s:.200})"
                ) from error
        batch = max(batch // 2, 1)
        context.report.note(f"too little memory: going on with {batch} pictures at once")
        task = dataclasses.replace(task, batch=batch)


def _open_clip(part: protocol.Clip, path: Path, config: str | None, report: EventReport) -> Clip:
    """Opens a clip that lies at a path, under the name that people know it by."""
    from core.media.read import open_clip

    first, _, last = part.frames.partition("-")
    opened = open_clip(
        path,
        int(first) if first else None,
        int(last or first) if first else None,
        part.colour_space,
        config,
    )
    clip = dataclasses.replace(opened, title=part.name)
    common.note_clip(clip, report)
    return clip


def _config(holder: Any, name: str, paths: dict[str, Path], folder: Path) -> str | None:
    """Returns the OCIO config that a clip or a task names, as `core.media` takes it.

    Args:
        holder: the clip or the task, which `registry.check_configs` has checked.
        name: of its config's file among the task's.
        paths: where the task's files can be read, by their names.
        folder: where archives are unpacked.

    Raises:
        ColourError: as `_unpacked`.
    """
    if name in paths:
        return str(_unpacked(paths[name], folder / f"{name}.d"))
    config = getattr(holder, "config", "")
    return config if config.startswith("ocio://") else None


def _unpacked(file: Path, folder: Path) -> Path:
    """Returns the config in a file; an archive (`.ocioz`) is unpacked into a folder.

    OpenImageIO 3.0's own OCIO crashes when it opens an archive.

    Raises:
        ColourError: the archive is damaged, too large, or holds no config.
    """
    from core.media.colour import ColourError

    with file.open("rb") as opened:
        if opened.read(2) != b"PK":
            return file
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            with zipfile.ZipFile(file) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
                if size > CONFIG_BYTES:
                    raise ColourError(f"The OCIO config has {size} bytes: too many to unpack.")
                archive.extractall(temporary)  # never outside the folder
        except zipfile.BadZipFile as error:
            raise ColourError(f"The OCIO config is a damaged archive: {error}.") from error
        temporary.rename(folder)
    if not (folder / CONFIG_NAME).is_file():
        raise ColourError(f"The OCIO config is an archive without a {CONFIG_NAME}.")
    return folder / CONFIG_NAME


def _fetch(root: Path, folder: Path, name: str, part: protocol.File | protocol.Clip) -> Path:
    """Returns where a part of a task can be read, after it was put there if need be."""
    if part.path:
        path = Path(part.path)  # the front end has checked where it lies
        if path.exists() and not path.is_file():  # a pipe would never end
            raise NoFileError(f"{path} is a folder, a pipe or a device. Name a file.")
        return path
    if isinstance(part, protocol.File):
        path = folder / name
        if not path.exists():
            blobs.materialize(root, part, path)
        return path
    if not part.numbers:
        path = folder / f"{name}{part.suffix}"
        if not path.exists():
            blobs.materialize(root, part.files[0], path)
        return path
    from core.media.numbering import frame_path

    pattern = folder / name / f"{name}.####{part.suffix}"
    for number, file in zip(part.numbers, part.files, strict=True):
        path = Path(frame_path(str(pattern), number))
        if not path.exists():
            blobs.materialize(root, file, path)
    return pattern


def work(root: Path, front: Front) -> None:
    """Does jobs until the front end is gone."""
    characters = Characters()
    while (job := front.next()) is not None:
        front.job = job["id"]
        front.client_text = functools.partial(client_text, root=root, job=job)
        try:
            facts = run(root, job, front, characters)
            front.send("done", facts=facts)
        except Stopped:
            front.send("stopped")
        except protocol.ProtocolError as error:
            front.send("corrupt", hash=error.detail)
        except (ReenactError, OSError) as error:
            if _disk_is_full(error, root):
                front.send("no_space", message=str(error))
                continue
            if isinstance(error, OSError):
                front.send("log", text=traceback.format_exc()[-20_000:])
            front.send("failed", message=str(error))
        except (Exception, MemoryError) as error:
            front.send("log", text=traceback.format_exc()[-20_000:])
            front.send("failed", message=f"Something went wrong inside: {error!r:.300}")


def _disk_is_full(error: BaseException | None, root: Path) -> bool:
    """Whether an error comes of a full disk; OpenEXR does not say why it could not write."""
    if shutil.disk_usage(root).free < LEAST_FREE:
        return True
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def main() -> None:
    """Does the jobs that come on standard input."""
    # Libraries print what they like; the front end reads only what we say.
    target = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if hasattr(os, "nice"):
        os.nice(NICE)
    work(Path(sys.argv[1]), Front(sys.stdin, target))


if __name__ == "__main__":
    main()
