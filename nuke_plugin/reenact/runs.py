"""What a node has the server do, from its frames to its result: files, sockets and threads.

Nothing here knows Nuke. A run has one version folder, `NAME_vNNN`, which holds the request
(`run.json`), its results, and `log.txt`. Any program can follow the run from that folder, also
after Nuke was closed.
"""

import contextlib
import dataclasses
import json
import os
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

from reenact import launcher, ocio, protocol, thumbnails
from reenact.address import server_at
from reenact.client import Client
from reenact.errors import NodeError, NoServerError, ServerError
from reenact.files import Frames, frame_file, mark_version, version_for, versions_of, write_file
from reenact.protocol import MOVIES, STILLS, Clip, File
from reenact.tracks import quality

CONNECT_SECONDS = 5.0  # how long to wait for a server that may not be there
# Between two updates of a stage: in a large script, a label that changes holds Nuke up for .1 s.
PROGRESS_SECONDS = 2.0
SHOW_SECONDS = 2.0  # between two updates of the frames that have landed
READ_SECONDS = 6.0  # for which progress does not replace an answer to the artist

# States that a node can be in while a thread works for it.
BUSY = ("sending", "waiting", "queued", "running", "lost", "starting")

# The task of a run's first job, where its name differs from the run's kind.
FIRST_TASK = {"reenact": "solve", "preview": "solve", "style": "render", "repaired_frame": "repair"}

# What the node's button does after an error, by the error's code; `retry` after others.
STEPS = {
    "no_server": "start",
    "no_character": "locate",
    "job": "log",
    "version": "",
    "no_pyzmq": "",
    "not_made": "",
}

NO_FRAMES = Frames("", 1, 1)

Destination = Callable[[Dict[str, Any]], Path]  # returns the path for an event's file


@dataclass(frozen=True)
class Source:
    """Frames to send. Stored in `run.json` by these names.

    Attributes:
        paths: the file of each frame; of a movie, one for all.
        numbers: the frames, increasing.
        space: their colour space; empty where the server's default is right.
        config: the OCIO config that `space` belongs to, a path or `ocio://NAME`.
        name: what the artist calls the clip.
        working: the script's working space, in which results come back; empty for scene-linear.
        view: the view of the frames, where the script has several.
    """

    paths: List[str]
    numbers: List[int]
    space: str = ""
    config: str = ""
    name: str = ""
    working: str = ""
    view: str = ""


@dataclass(frozen=True)
class RunRequest:
    """What a node asks for.

    Attributes:
        kind: `personalize`, `reenact`, or `preview` (one frame of a reenactment).
        folder: where version folders go.
        name: the versions' name.
        source: the frames.
        settings: fields of the first job's task.
        character: file of the character, for reenactments.
        first, last: the frames to deliver; frames of the source outside them are handles.
        crops: whether the aligned crops are rendered too.
        views: the request of each view, where several are asked for; this is then the first one's.
        layer_names: version of the names of the frames' layers, as in `protocol.Render`.
    """

    kind: str
    folder: str
    name: str
    source: Source
    settings: Dict[str, Any]
    character: str = ""
    first: int = 0
    last: int = 0
    crops: bool = False
    views: Mapping[str, "RunRequest"] = field(default_factory=dict)
    layer_names: int = 1


@dataclass(frozen=True)
class Result:
    """What changes on a node.

    Attributes:
        knobs: values by knob; files are a `Path`.
        curves: values by frame, by knob.
        reads: files, by the name of a Read inside the node.
        choices: items, by enumeration knob.
        version: the version that all this belongs to; empty if to none.
        versions: the node's versions, oldest first; empty leaves its menus as they are.
    """

    knobs: Dict[str, Any] = field(default_factory=dict)
    curves: Dict[str, Dict[int, float]] = field(default_factory=dict)
    reads: Dict[str, Frames] = field(default_factory=dict)
    choices: Dict[str, List[str]] = field(default_factory=dict)
    version: str = ""
    versions: List[str] = field(default_factory=list)


@dataclass(frozen=True)
class NodeUpdate:
    """What a node is to show.

    Attributes:
        id: the node's.
        state: a job's state, or `sending`, `starting` (the server), `lost` (the server doesn't
            answer); empty leaves it as it is.
        text: for the artist; empty leaves it as it is.
        step: what the node's button does next: `start`, `retry`, `log`, `locate`, `resume`,
            `preview`; empty for no button.
        result: what else changes on the node.
    """

    id: str
    state: str
    text: str
    step: str = ""
    result: Result = field(default_factory=Result)


class StoppedError(Exception):
    """The artist cancelled before there was a job, or the script was closed."""


class Run(Thread):
    """Carries out one request, or follows one that was submitted before.

    Args:
        id: the node's.
        on_update: called with updates, from this thread.
        request: what is asked for; None where `folder` holds it.
        folder: a version folder whose jobs are followed.
        resume: whether jobs of that version that have stopped are submitted again, and trainings
            that were stopped early go on.
        start_server: whether the server is started first.
        server: `host:port`; empty for the one that is found.
        view: the view, where this is a part of a `ViewsRun`, which submits the first job
            (`submit_first`) and gives it a folder (`enter`).
    """

    def __init__(
        self,
        id: str,
        on_update: Callable[[NodeUpdate], None],
        request: Optional[RunRequest] = None,
        folder: str = "",
        resume: bool = False,
        start_server: bool = False,
        server: str = "",
        view: str = "",
    ) -> None:
        super().__init__(daemon=True, name=f"reenact {id[:8]}")
        self.id, self.request, self.folder = id, request, folder
        self._on_update, self._resume, self._start_server = on_update, resume, start_server
        self.server, self._of_view = server, view
        self._train_on = resume
        self._kept_steps: Optional[int] = None  # of the last job's training, if it stopped early
        self._last_progress, self._shown_stage = 0.0, ""
        self._cancelled, self._detached = Event(), Event()
        self._job = self._view = ""
        self._first: Optional[Tuple[protocol.Task, str, Dict[str, Any]]] = None
        self.jobs: List[str] = []  # ids of the server's jobs so far

    def cancel(self) -> None:
        """Stops the work; what is done stays. Returns at once."""
        self._cancelled.set()
        if self._job:
            Thread(target=self._cancel_job, args=(self._job,), daemon=True).start()

    def finish(self) -> None:
        """Ends a training at its next step, with a result of what it has. Returns at once."""
        Thread(target=self._finish_job, args=(self._job,), daemon=True).start()

    def detach(self) -> None:
        """Ends the thread at its next step; the server's jobs go on."""
        self._detached.set()

    def run(self) -> None:
        """Works until the result is there, or an update says why it isn't."""
        try:
            with Client("nuke", server=server_at(self.server)) as client:
                if self._start_server:
                    self._update("starting", "Starting the server.")
                    launcher.start_server(client)
                client.ask(protocol.Hello("nuke", [protocol.VERSION]), CONNECT_SECONDS)
                if self.request is not None:
                    self._begin(client, self.request)
                self._continue(client)
        except StoppedError:
            if not self._detached.is_set():
                kept = "Cancelled: what was done is kept."
                text, step = (kept, "resume") if self.folder else ("Cancelled.", "")
                self._update("cancelled", text, step)
        except ServerError as error:
            self._update("failed", str(error), STEPS.get(error.code, "retry"))
        except NodeError as error:
            self._update("failed", str(error), "retry")
        except OSError as error:
            where = error.filename or "A file"
            self._update("failed", f"{where}: {error.strerror or error}.", "retry")
        except Exception as error:
            traceback.print_exc()  # there may be no log yet
            self._log(traceback.format_exc())
            self._update("failed", unexpected(error), "log" if self.folder else "retry")

    # -- from the request to the version

    def _begin(self, client: Client, request: RunRequest) -> None:
        """Sends files, submits the first job, and creates the version folder."""
        sources = Path(request.folder) / "sources"
        config = ocio.portable(request.source.config, sources) if request.source.config else ""
        source = dataclasses.replace(request.source, config=config or request.source.config)
        clip = self._send_clip(client, source)
        task: protocol.Task
        if request.kind == "personalize":
            task = protocol.Personalize(clip, **request.settings)
        else:
            if not Path(request.character).is_file():
                raise ServerError("no_character", f"There is no character {request.character}.")
            (character,) = client.send([request.character], self._on_sent)
            task = protocol.Solve(clip, character, **request.settings)
        more: Dict[str, Any] = {"source": dataclasses.asdict(source)}
        self._submit(client, request, task, character=request.character, **more)

    def _submit(
        self,
        client: Client,
        request: RunRequest,
        task: protocol.Task,
        key: str = "",
        **more: Any,
    ) -> None:
        """Submits the first job, and creates the version folder.

        Args:
            client: a client of this thread.
            request: the request.
            task: the first job's.
            key: the same job, key and names of layers have the same version folder.
            **more: further entries of `run.json`.
        """
        if request.layer_names != 1:
            key += f" layers {request.layer_names}"
        content: Dict[str, Any] = {
            "kind": request.kind,
            "first": request.first,
            "last": request.last,
            "crops": request.crops,
            "layer_names": request.layer_names,
            "task": dataclasses.asdict(task),
            **more,
        }
        self._first = task, key, content
        if not self._of_view:
            key = self.submit_first(client)
            self.enter(version_for(Path(request.folder), request.name, key))
            self._update("queued", "Submitted.", result=Result({"run": Path(self.folder)}))

    def submit_first(self, client: Client) -> str:
        """Submits the first job; returns the key of the version that it belongs to."""
        assert self._first is not None
        task, key, _ = self._first
        self._job = client.submit(task)
        return self._job + key

    def enter(self, folder: Path, name: str = "") -> None:
        """Writes down what was submitted.

        Args:
            folder: where.
            name: of the frames; empty for the folder's.

        Raises:
            NodeError: the input's files lie there.
        """
        assert self._first is not None
        content = {**self._first[-1], "name": name or folder.name}
        own = Path(os.path.realpath(str(folder)))
        for read in {os.path.dirname(path) for path in content.get("source", {}).get("paths", [])}:
            real = Path(os.path.realpath(read))
            if own in (real, *real.parents):
                raise NodeError(
                    f"The input is read from {read}, where its own result goes. Choose another "
                    "folder or name for the results."
                )
        self.folder, self._resume = str(folder), True
        write_file(folder / "run.json", json.dumps(content).encode())

    def _send_clip(self, client: Client, source: Source) -> Clip:
        common: Dict[str, Any] = {
            "colour_space": source.space or None,
            "config": source.config,
            "name": source.name[-protocol.MAX_TEXT :],
        }
        if source.config and not source.config.startswith("ocio://"):
            (common["config_file"],) = client.send([source.config])
            common["config"] = ocio.title(source.config)
        numbers, paths = source.numbers, source.paths
        suffix = Path(paths[0]).suffix.lower()
        if suffix in MOVIES:
            files = client.send(paths[:1], self._on_sent)
            return Clip(suffix, files=files, frames=f"{numbers[0]}-{numbers[-1]}", **common)
        if suffix not in STILLS:
            raise ServerError("bad_value", protocol.not_read(suffix))
        existing = [(n, p) for n, p in zip(numbers, paths) if os.path.exists(p)]
        if not existing:
            raise ServerError("no_frames", f"There is no file {paths[0]}. Check the input's range.")
        numbers, paths = [n for n, _ in existing], [p for _, p in existing]
        return Clip(suffix, numbers, client.send(paths, self._on_sent), **common)

    def _on_sent(self, done: int, total: int) -> None:
        self._check_stopped()
        self._progress("sending", f"Sending frames: {done * 100 // max(total, 1)} %", "sending")

    def _check_stopped(self) -> None:
        if self._cancelled.is_set() or self._detached.is_set():
            raise StoppedError

    # -- from the version to the result

    def _read_version(self) -> Tuple[Dict[str, Any], protocol.Task]:
        """Returns the content of the version's `run.json`, and the first job's task."""
        version = Path(self.folder)
        try:
            content = json.loads((version / "run.json").read_text(encoding="utf-8"))
            view = content.get("source", {}).get("view", "")
            self._view = f", view {view}" if view else ""
            first = FIRST_TASK.get(content["kind"], content["kind"])
            return content, protocol.build(protocol.TASKS[first], content["task"])
        except (OSError, ValueError, KeyError):
            raise ServerError(
                "no_run",
                f"{version} is gone or damaged. Submit again: what is done is not done twice.",
            ) from None

    def _continue(self, client: Client) -> None:
        version = Path(self.folder)
        content, task = self._read_version()
        if isinstance(task, protocol.Personalize):
            self._personalize(client, version, task)
        elif isinstance(task, protocol.Solve):
            self._reenact(client, version, task, content)

    def _personalize(self, client: Client, version: Path, task: protocol.Personalize) -> None:
        character = version / f"{version.name}.character"

        def destination(event: Dict[str, Any]) -> Path:
            pictures = ("selection.png", "reconstruction.png")
            return version / event["name"] if event["name"] in pictures else character

        if self._follow(client, task, destination):
            reads = {
                name.capitalize(): Frames(str(version / f"{name}.png"), 1, 1, still=True)
                for name in ("selection", "reconstruction")
            }
            knobs = {**thumbnails.character_knobs(character), "has_result": True}
            self._ready(f"{character.name} is ready{self._view}", Result(knobs, reads=reads))

    def _reenact(
        self, client: Client, version: Path, solve: protocol.Solve, content: Dict[str, Any]
    ) -> None:
        path = version / "track.latents"
        track = self._track(client, solve, path)
        if track is None:
            return
        plate = clip_between(solve.plate, content["first"], content["last"])
        finish = {
            "name": frames_name(version),
            "colour_space": content["source"].get("working") or None,
            "layer_names": content.get("layer_names", 1),  # folders of older plugins lack it
        }
        if content["kind"] == "preview":  # the node keeps the track of its whole result
            task = protocol.Frame(track, solve.character, content["first"], plate, **finish)
            self._frames(client, version, task, "Preview", "")
            return
        self._update("running", "Solved.")
        render = protocol.Render(track, solve.character, plate, **finish)
        shown = Result(version_knobs(version, content), quality(path))
        self._results(client, render, shown, content["crops"])

    def _track(self, client: Client, task: protocol.Task, path: Path) -> Optional[File]:
        """Computes a track, and fetches it; returns None if the job stopped, after an update."""
        tracks: List[File] = []

        def destination(event: Dict[str, Any]) -> Path:
            tracks[:] = [File(event["hash"], event["size"])]
            return path

        if not self._follow(client, task, destination):
            return None
        return tracks[0] if tracks else client.send([path])[0]

    def _results(self, client: Client, render: protocol.Render, shown: Result, crops: bool) -> None:
        """Renders a version, and its crops too if they are asked for; then the node is done."""
        version = Path(self.folder)
        state = "running" if crops else "done"
        if self._frames(client, version, render, "Result", "", shown, state) and crops:
            self._frames(client, version / "crops", without_plate(render), "Crops", "_crop")

    def _frames(
        self,
        client: Client,
        folder: Path,
        task: Union[protocol.Render, protocol.Frame],
        read: str,
        suffix: str,
        more: Optional[Result] = None,
        state: str = "done",
    ) -> bool:
        """Renders frames into a folder, and shows them as they land.

        Args:
            client: a client of this thread.
            folder: where the frames go.
            task: renders them.
            read: name of the Read inside the node that shows them; a preview is of no version.
            suffix: of the version's name in the frames' names.
            more: what else changes on the node once there are frames.
            state: of the node once all frames are there.

        Returns:
            Whether all frames were rendered.
        """
        name = frames_name(Path(self.folder))
        pattern = str(folder / f"{name}{suffix}.####.exr")
        numbers: List[int] = []
        versions: List[str] = []  # of the node, once this one has frames
        shown_at = 0.0

        def destination(event: Dict[str, Any]) -> Path:
            return Path(frame_file(pattern, event["number"]))

        def result() -> Result:
            nonlocal more
            knobs: Dict[str, Any] = {f"has_{read.lower()}": True}
            reads = {read: Frames.of(pattern, numbers, older=task.layer_names == 1)}
            both = more or Result()
            more = dataclasses.replace(both, curves={})  # they are shown once
            if read != "Crops":
                knobs["show"] = read.lower()
            if read == "Preview":
                knobs["preview_frame"] = numbers[0]
            else:
                versions[:] = versions or versions_of(Path(self.folder).parent, self.id)
                both = dataclasses.replace(both, version=Path(self.folder).name, versions=versions)
            if read == "Result":
                reads["Crops"] = NO_FRAMES  # those of another version are not this one's
                knobs["has_crops"] = False
            return dataclasses.replace(both, knobs={**both.knobs, **knobs}, reads=reads)

        def landed(event: Dict[str, Any]) -> None:
            nonlocal shown_at
            if read == "Result" and not numbers:
                mark_version(folder, self.id)
            numbers.append(event["number"])
            now = time.monotonic()
            if now - shown_at > SHOW_SECONDS:
                shown_at = now
                self._update("", "", result=result())

        stopped: List[NodeUpdate] = []
        complete = self._follow(client, task, destination, stopped.append, landed)
        count = len(set(numbers))
        text = f"{name}: {count} frame{'s' * (count != 1)}{self._view}."
        update = NodeUpdate(self.id, state, text) if complete else stopped[-1]
        if numbers:
            update = dataclasses.replace(update, result=result())
        self._on_update(update)
        return complete

    def _follow(
        self,
        client: Client,
        task: protocol.Task,
        destination: Destination,
        on_stopped: Optional[Callable[[NodeUpdate], None]] = None,
        on_file: Callable[[Dict[str, Any]], None] = lambda event: None,
    ) -> bool:
        """Submits a job, follows it to its end, and fetches its files.

        Args:
            client: a client of this thread.
            task: the job's.
            destination: returns the path of an event's file.
            on_stopped: called with the update if the job stopped; None for the run's `on_update`.
            on_file: called with the event of each file that was fetched.

        Returns:
            False if the job stopped: it was cancelled or paused.

        Raises:
            ServerError: `job`, it failed.
            StoppedError: the run was cancelled or detached.
        """
        if self._cancelled.is_set():
            raise StoppedError
        job = self._job_of(client, task)
        self.jobs.append(job)
        after, clock, lost = 0, _StageClock(), False
        while True:
            try:
                for event in client.follow(job, after):
                    after = event["n"]
                    if self._detached.is_set():
                        raise StoppedError
                    if lost:
                        lost = False
                        self._update("running", "The server is back.")
                        if self._cancelled.is_set():
                            client.cancel(job)
                    self._on_event(client, event, destination, clock)
                    if event["type"] == "file":
                        on_file(event)
                status = client.status(job)
                break
            except NoServerError:
                if self._detached.is_set():
                    raise StoppedError from None
                lost = True
                text = "The server does not answer. The job goes on when it does."
                self._update("lost", text, "start")
        self._job = ""
        self._kept_steps = status.get("finish")
        if status["state"] == "failed":
            self._log(status["reason"])
            raise ServerError("job", status["reason"])
        if status["state"] == "done":
            return True
        text = "Cancelled: what was done is kept." if status["state"] == "cancelled" else "Paused."
        update = NodeUpdate(self.id, status["state"], status["reason"] or text, "resume")
        (on_stopped or self._on_update)(update)
        return False

    def _on_event(
        self, client: Client, event: Dict[str, Any], destination: Destination, clock: "_StageClock"
    ) -> None:
        kind = event["type"]
        if kind == "file":
            client.fetch(File(event["hash"], event["size"]), destination(event))
        elif kind == "progress":
            start = clock.start_of_stage(event)
            text = progress_text(event, float(event["time"]), start)
            self._progress("running", text, event["stage"])
        elif kind == "state" and event["state"] in ("waiting", "queued", "running"):
            texts = {"queued": "Waiting for its turn.", "running": "Starting."}
            self._update(event["state"], event["reason"] or texts.get(event["state"], ""))
        elif kind in ("note", "log"):
            self._log(event["text"])

    def _job_of(self, client: Client, task: protocol.Task) -> str:
        """Returns the id of a task's job: one that this version has submitted, else a new one."""
        kind = protocol.kind_of(task)
        record = Path(self.folder) / f".{kind}"
        job = record.read_text(encoding="utf-8") if record.exists() else ""
        if not self._resume and job:
            with contextlib.suppress(ServerError):  # `no_such_job`: it is submitted again
                client.status(job)
                self._job = job
                return job
        self._job = client.submit(task)
        write_file(record, self._job.encode())
        if self._train_on:
            client.resume(self._job)
        if self._cancelled.is_set():
            client.cancel(self._job)
        return self._job

    def _cancel_job(self, job: str) -> None:
        try:
            with Client("nuke", server=server_at(self.server)) as client:
                client.cancel(job)
        except ServerError as error:
            self._update("lost", f"{error} The job could not be cancelled.", "start")

    def _finish_job(self, job: str) -> None:
        try:
            if not job:
                raise ServerError("nothing_to_keep", "Nothing is trained yet. Wait, or Cancel.")
            with Client("nuke", server=server_at(self.server)) as client:
                client.finish(job)
            text = "Stopping early: what is trained becomes a whole result."
        except ServerError as error:
            text = str(error)
        self._last_progress = time.monotonic() + READ_SECONDS
        self._log(text)
        self._update("", text)

    # -- updates and the log

    def _ready(self, text: str, result: Result) -> None:
        """Shows the result of a training, and whether it was stopped early."""
        if self._kept_steps is None:
            self._update("done", f"{text}.", result=result)
        else:
            text += f", stopped early after {self._kept_steps} steps. Resume trains it further."
            self._update("done", text, "resume", result)

    def _update(
        self, state: str, text: str, step: str = "", result: Optional[Result] = None
    ) -> None:
        self._on_update(NodeUpdate(self.id, state, text, step, result or Result()))

    def _progress(self, state: str, text: str, stage: str) -> None:
        """Shows progress: of a new stage at once, of the same one every few seconds."""
        now = time.monotonic()
        if now - self._last_progress > (PROGRESS_SECONDS if stage == self._shown_stage else 0):
            self._last_progress, self._shown_stage = now, stage
            self._update(state, text)

    def _log(self, text: str) -> None:
        folder, line = self.folder, f"{text.rstrip()}\n"
        if self._of_view:  # the log that the node shows is its version's
            folder, line = os.path.dirname(folder), f"{self._of_view}: {line}"
        if folder:
            with contextlib.suppress(OSError), log_file(folder).open("ab") as log:
                log.write(line.encode("utf-8", "backslashreplace"))


class _StageClock:
    """Remembers when the current stage of a job began, for the time that is left."""

    def __init__(self) -> None:
        self._stage, self._start = "", (0.0, 0.0)

    def start_of_stage(self, event: Dict[str, Any]) -> Tuple[float, float]:
        """Returns the time at which the stage of a progress event began, and its `done` then."""
        if event["stage"] != self._stage or event["done"] < self._start[1]:
            self._stage, self._start = event["stage"], (float(event["time"]), event["done"])
        return self._start


def frames_name(folder: Path) -> str:
    """Returns what the names of a folder's frames begin with: the version's name, and the view's.

    Raises:
        OSError, ValueError: the folder is gone or damaged.
    """
    content = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return str(content.get("name", folder.name))


def version_knobs(version: Path, content: Mapping[str, Any]) -> Dict[str, Any]:
    """Returns the knobs of a node that shows a version, whose frames come with it.

    Args:
        version: the version's folder.
        content: of its `run.json`.
    """
    first_view = content.get("views", [""])[0]
    knobs = {
        "track": version / first_view / "track.latents",
        "shown_version": version.name,
        "has_result": True,
        "has_crops": False,
    }
    if content["kind"] != "reenact":  # there it is what the artist asks for
        knobs["character"] = Path(content["character"])
    return knobs


def clip_between(clip: Clip, first: int, last: int) -> Clip:
    """Returns the part of a clip that lies in a range of frames."""
    if not clip.numbers:
        return dataclasses.replace(clip, frames=f"{first}-{last}")
    inside = [(n, f) for n, f in zip(clip.numbers, clip.files) if first <= n <= last]
    return dataclasses.replace(
        clip, numbers=[n for n, _ in inside], files=[file for _, file in inside]
    )


def without_plate(render: protocol.Render) -> protocol.Render:
    """Returns the task that renders the aligned crops of a track, in the same colour space."""
    assert render.plate is not None
    config, file = render.plate.config, render.plate.config_file
    return dataclasses.replace(render, plate=None, config=config, config_file=file)


def unexpected(error: Exception) -> str:
    """Returns what a node says of an error that nobody foresaw: no thread ends without a word."""
    return f"Something went wrong in the plugin: {error!r:.200}"


def progress_text(event: Dict[str, Any], now: float, start: Tuple[float, float]) -> str:
    """Describes a progress event: its stage, how far it is, its loss, and the time left.

    Args:
        event: the event.
        now: the time, in seconds.
        start: a time and the `done` of then, from which the speed is measured.
    """
    done, total, figures = event["done"], event["total"], event["figures"]
    text = str(event["stage"]).capitalize()
    if not total:
        return text
    text += f": {round(done, 1):g} of {total:g}"
    if "loss" in figures and "frame" not in figures:
        text += f", loss {figures['loss']:.3g}"
    if done > start[1] and now > start[0]:
        left = (total - done) * (now - start[0]) / (done - start[1])
        text += f", {left / 60:.0f} min left" if left > 90 else f", {left:.0f} s left"
    return text


def log_file(folder: str) -> Path:
    """Returns the log of a version folder; the server's own where there is no folder."""
    return Path(folder) / "log.txt" if folder else launcher.server_log()
