"""What a node has the server do, from its frames to its result: files, sockets and threads.

Nothing of Nuke. A run is one version folder, `NAME_vNNN`, that holds what was asked for
(`run.json`), what came of it, and `log.txt`. So it can be followed from there by any program, after
Nuke was closed too.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any, Callable, Dict, List, Optional, Tuple

from reenact import protocol, thumbnails
from reenact.client import (
    Client,
    NoServer,
    ServerError,
    find_server,
    frame_file,
    home,
    version_for,
    write_file,
)
from reenact.protocol import MOVIES, Clip, File
from reenact.tracks import quality

HELLO_SECONDS = 5.0  # after which nobody is there
START_SECONDS = 60.0  # that a server has to start in
TOLD_SECONDS = 0.5  # between two reports of progress

# States that a node can be in while a thread works for it.
BUSY = ("sending", "waiting", "queued", "running", "lost", "starting")


@dataclass(frozen=True)
class Source:
    """Frames to send.

    Attributes:
        paths: the file of each number; of a movie, one for all.
        numbers: the frames, sorted.
        space: their colour space; empty where the server's default is right.
        config: the OCIO config that it is a space of.
        name: what the artist calls them.
        working: the script's working space, which results come back in; empty: scene-linear.
        view: the one that they are of, where the script has several.
    """

    paths: List[str]
    numbers: List[int]
    space: str = ""
    config: str = ""
    name: str = ""
    working: str = ""
    view: str = ""


@dataclass(frozen=True)
class Order:
    """What a node wants.

    Attributes:
        kind: `personalize`, `reenact`, or `preview` (one frame of a reenactment).
        folder: where versions go.
        name: theirs.
        source: the frames.
        settings: fields of the first job's task.
        character: file of the character, for reenactments.
        first, last: the frames to deliver; those of the source around them are handles.
        crops: whether the aligned crops are wanted too.
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


@dataclass(frozen=True)
class Result:
    """What changes on the node.

    Attributes:
        knobs: values.
        curves: values by frame.
        reads: pattern, first and last frame by the name of a Read inside.
        choices: of enumerations.
    """

    knobs: Dict[str, Any] = field(default_factory=dict)
    curves: Dict[str, Dict[int, float]] = field(default_factory=dict)
    reads: Dict[str, Tuple[str, int, int]] = field(default_factory=dict)
    choices: Dict[str, List[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class News:
    """What a node is to show.

    Attributes:
        id: the node's.
        state: a job's, or `sending`, `starting` (the server), `lost` (it does not answer).
        text: for the artist.
        step: what the node's button does next: `start`, `retry`, `log`, `locate`, `resume`.
        result: new on the node.
    """

    id: str
    state: str
    text: str
    step: str = ""
    result: Result = field(default_factory=Result)


# The first job of a kind of run, where it is called otherwise.
FIRST = {"reenact": "solve", "preview": "solve", "style": "render", "repaired_frame": "repair"}

# What to do about an error, by its code; about others, to try again.
STEPS = {
    "no_server": "start",
    "no_character": "locate",
    "job": "log",
    "version": "",
    "no_pyzmq": "",
    "not_made": "",
}


class Stopped(Exception):
    """The artist cancelled before there was a job, or the script was closed."""


class Run(Thread):
    """Has one order done, or follows one that was given before.

    Args:
        id: the node's.
        tell: called with news, from this thread.
        order: what is wanted; None where `folder` says it.
        folder: of a version whose jobs are followed.
        again: has jobs of that version that had stopped go on.
        start: starts a server first.
    """

    def __init__(
        self,
        id: str,
        tell: Callable[[News], None],
        order: Optional[Order] = None,
        folder: str = "",
        again: bool = False,
        start: bool = False,
    ) -> None:
        super().__init__(daemon=True, name=f"reenact {id[:8]}")
        self.id, self.order, self.folder, self.again, self.start_server = (
            id,
            order,
            folder,
            again,
            start,
        )
        self._tell, self._told = tell, 0.0
        self._cancelled, self._left = Event(), Event()
        self._job = self._view = ""
        self.jobs: List[str] = []  # that it has had done so far

    def cancel(self) -> None:
        """Stops the work; what it has made stays. Returns at once."""
        self._cancelled.set()
        if self._job:
            Thread(target=self._cancel_job, args=(self._job,), daemon=True).start()

    def leave(self) -> None:
        """Ends the thread at its next step; jobs go on."""
        self._left.set()

    def run(self) -> None:
        """Works until the result is there, or says why it is not."""
        try:
            with Client("nuke") as client:
                if self.start_server:
                    self._say("starting", "Starting the server.")
                    start_server(client)
                client.ask(protocol.Hello("nuke", [protocol.VERSION]), HELLO_SECONDS)
                if self.order is not None:
                    self._begin(client, self.order)
                self._go_on(client)
        except Stopped:
            if not self._left.is_set():
                kept = "Cancelled: what was done is kept."
                text, step = (kept, "resume") if self.folder else ("Cancelled.", "")
                self._say("cancelled", text, step)
        except ServerError as error:
            self._say("failed", str(error), STEPS.get(error.code, "retry"))
        except OSError as error:
            where = error.filename or "A file"
            self._say("failed", f"{where}: {error.strerror or error}.", "retry")
        except Exception as error:
            self._log(traceback.format_exc())
            self._say("failed", f"Something went wrong in the plugin: {error!r:.200}", "log")

    # -- from the order to the version

    def _begin(self, client: Client, order: Order) -> None:
        """Sends what is needed, submits the first job, and makes the version."""
        clip = self._send_clip(client, order.source)
        task: protocol.Task
        if order.kind == "personalize":
            task = protocol.Personalize(clip, **order.settings)
        else:
            if not Path(order.character).is_file():
                raise ServerError("no_character", f"There is no character {order.character}.")
            (character,) = client.send([order.character], self._sending)
            task = protocol.Solve(clip, character, **order.settings)
        self._submit(client, order, task, source=dataclasses.asdict(order.source))

    def _submit(
        self, client: Client, order: Order, task: protocol.Task, key: str = "", **more: Any
    ) -> Path:
        """Submits the first job, and makes the version: the same one for the same job and key."""
        self._job = client.submit(task)
        version = version_for(Path(order.folder), order.name, self._job + key)
        self.folder, self.again = str(version), True
        plain = {
            "kind": order.kind,
            "first": order.first,
            "last": order.last,
            "crops": order.crops,
            "task": dataclasses.asdict(task),
            **more,
        }
        write_file(version / "run.json", json.dumps(plain).encode())
        self._say("queued", "Submitted.", result=Result({"run": self.folder}))
        return version

    def _send_clip(self, client: Client, source: Source) -> Clip:
        common: Dict[str, Any] = {
            "colour_space": source.space or None,
            "config": source.config,
            "name": source.name[-protocol.MAX_TEXT :],
        }
        numbers, paths = source.numbers, source.paths
        suffix = Path(paths[0]).suffix.lower()
        if suffix in MOVIES:
            files = client.send(paths[:1], self._sending)
            return Clip(suffix, files=files, frames=f"{numbers[0]}-{numbers[-1]}", **common)
        there = [(n, p) for n, p in zip(numbers, paths) if os.path.exists(p)]
        if not there:
            raise ServerError("no_frames", f"There is no file {paths[0]}. Check the input's range.")
        numbers, paths = [n for n, _ in there], [p for _, p in there]
        return Clip(suffix, numbers, client.send(paths, self._sending), **common)

    def _sending(self, done: int, total: int) -> None:
        if self._cancelled.is_set() or self._left.is_set():
            raise Stopped
        self._progress("sending", f"Sending frames: {done * 100 // max(total, 1)} %")

    # -- from the version to the result

    def _asked(self) -> Tuple[Dict[str, Any], protocol.Task]:
        """What a version says was asked for, and its first task."""
        version = Path(self.folder)
        try:
            plain = json.loads((version / "run.json").read_text())
            view = plain.get("source", {}).get("view", "")
            self._view = f", view {view}" if view else ""
            first = FIRST.get(plain["kind"], plain["kind"])
            return plain, protocol.build(protocol.TASKS[first], plain["task"])
        except (OSError, ValueError, KeyError):
            raise ServerError(
                "no_run",
                f"{version} is gone or damaged. Submit again: what is done is not done twice.",
            ) from None

    def _go_on(self, client: Client) -> None:
        version = Path(self.folder)
        plain, task = self._asked()
        if isinstance(task, protocol.Personalize):
            self._personalize(client, version, task)
        elif isinstance(task, protocol.Solve):
            self._reenact(client, version, task, plain)

    def _personalize(self, client: Client, version: Path, task: protocol.Personalize) -> None:
        character = version / f"{version.name}.character"

        def place(event: Dict[str, Any]) -> Path:
            pictures = ("selection.png", "reconstruction.png")
            return version / event["name"] if event["name"] in pictures else character

        if self._follow(client, task, place):
            reads = {
                name.capitalize(): (str(version / f"{name}.png"), 1, 1)
                for name in ("selection", "reconstruction")
            }
            self._say(
                "done",
                f"{character.name} is ready{self._view}.",
                result=Result({**_shown(character), "has_result": True}, reads=reads),
            )

    def _reenact(
        self, client: Client, version: Path, solve: protocol.Solve, plain: Dict[str, Any]
    ) -> None:
        path = version / "track.latents"
        track = self._track(client, solve, path)
        if track is None:
            return
        plate = between(solve.plate, plain["first"], plain["last"])
        name, space = version.name, plain["source"].get("working") or None
        if plain["kind"] == "preview":  # the track stays that of the whole result
            task = protocol.Frame(track, solve.character, plain["first"], plate, name, space)
            self._frames(client, version, task, "Preview", "")
            return
        self._say("running", "Solved.", result=Result({"track": path.as_posix()}, quality(path)))
        render = protocol.Render(track, solve.character, plate, name=name, colour_space=space)
        if self._frames(client, version, render, "Result", "") and plain["crops"]:
            crops = protocol.Render(track, solve.character, name=name, colour_space=space)
            self._frames(client, version / "crops", crops, "Crops", "_crop")

    def _track(self, client: Client, task: protocol.Task, path: Path) -> Optional[File]:
        """Has a track made and fetches it; None where that stopped, which is told."""
        made: List[File] = []

        def place(event: Dict[str, Any]) -> Path:
            made[:] = [File(event["hash"], event["size"])]
            return path

        if not self._follow(client, task, place):
            return None
        return made[0] if made else client.send([path])[0]

    def _frames(
        self,
        client: Client,
        folder: Path,
        task: protocol.Task,
        read: str,
        suffix: str,
        more: Optional[Result] = None,
    ) -> bool:
        """Draws frames into a folder and shows them, as many as there are, and what else changes
        with them; whether all came."""
        pattern = str(folder / f"{Path(self.folder).name}{suffix}.####.exr")
        numbers: List[int] = []

        def place(event: Dict[str, Any]) -> Path:
            numbers.append(event["number"])
            return Path(frame_file(pattern, event["number"]))

        stopped: List[News] = []
        whole = self._follow(client, task, place, stopped.append)
        count = len(set(numbers))
        text = f"{Path(self.folder).name}: {count} frame{'s' * (count != 1)}{self._view}."
        news = News(self.id, "done", text) if whole else stopped[-1]
        if numbers:
            knobs: Dict[str, Any] = {f"has_{read.lower()}": True}
            if read != "Crops":
                knobs["show"] = read.lower()
            reads = {read: (Path(pattern).as_posix(), min(numbers), max(numbers))}
            more = more or Result()
            result = dataclasses.replace(more, knobs={**more.knobs, **knobs}, reads=reads)
            news = dataclasses.replace(news, result=result)
        self._tell(news)
        return whole

    def _follow(
        self,
        client: Client,
        task: protocol.Task,
        place: Callable[[Dict[str, Any]], Path],
        stopped: Optional[Callable[[News], None]] = None,
    ) -> bool:
        """Has a job done and fetches its files; False where it stopped, which is told.

        Raises:
            ServerError: `job`, it failed.
        """
        if self._cancelled.is_set():
            raise Stopped
        job = self._job_of(client, task)
        self.jobs.append(job)
        after, stage, begun, lost = 0, "", (0.0, 0.0), False
        while True:
            try:
                for event in client.follow(job, after):
                    after = event["n"]
                    if self._left.is_set():
                        raise Stopped
                    if lost:
                        lost = False
                        self._say("running", "The server is back.")
                        if self._cancelled.is_set():
                            client.cancel(job)
                    kind = event["type"]
                    if kind == "file":
                        client.fetch(File(event["hash"], event["size"]), place(event))
                    elif kind == "progress":
                        now = float(event["time"])
                        if event["stage"] != stage or event["done"] < begun[1]:
                            stage, begun = event["stage"], (now, event["done"])
                        self._progress("running", progress_text(event, now, begun))
                    elif kind == "state" and event["state"] in ("waiting", "queued", "running"):
                        said = {"queued": "Waiting for its turn.", "running": "Starting."}
                        self._say(event["state"], event["reason"] or said.get(event["state"], ""))
                    elif kind in ("note", "log"):
                        self._log(event["text"])
                status = client.status(job)
                break
            except NoServer:
                if self._left.is_set():
                    raise Stopped from None
                lost = True
                text = "The server does not answer. The job goes on when it does."
                self._say("lost", text, "start")
        self._job = ""
        if status["state"] == "failed":
            self._log(status["reason"])
            raise ServerError("job", status["reason"])
        if status["state"] == "done":
            return True
        text = "Cancelled: what was done is kept." if status["state"] == "cancelled" else "Paused."
        news = News(self.id, status["state"], status["reason"] or text, "resume")
        (stopped or self._tell)(news)
        return False

    def _job_of(self, client: Client, task: protocol.Task) -> str:
        """The id of a task's job, which is submitted unless it is one that had stopped before."""
        kind = next(name for name, made in protocol.TASKS.items() if made is type(task))
        known = Path(self.folder) / f".{kind}"
        job = known.read_text() if known.exists() else ""
        if not self.again and job:
            with contextlib.suppress(ServerError):  # `no_such_job`: it is made again
                client.status(job)
                self._job = job
                return job
        self._job = client.submit(task)
        write_file(known, self._job.encode())
        if self._cancelled.is_set():
            client.cancel(self._job)
        return self._job

    def _cancel_job(self, job: str) -> None:
        try:
            with Client("nuke") as client:
                client.cancel(job)
        except ServerError as error:
            self._say("lost", f"{error} The job could not be cancelled.", "start")

    # -- what is told

    def _say(self, state: str, text: str, step: str = "", result: Optional[Result] = None) -> None:
        self._tell(News(self.id, state, text, step, result or Result()))

    def _progress(self, state: str, text: str) -> None:
        now = time.monotonic()
        if now - self._told > TOLD_SECONDS:
            self._told = now
            self._say(state, text)

    def _log(self, text: str) -> None:
        if self.folder:
            with contextlib.suppress(OSError), log_file(self.folder).open("a") as log:
                log.write(text.rstrip() + "\n")


def between(clip: Clip, first: int, last: int) -> Clip:
    """The part of a clip that lies in a range."""
    if not clip.numbers:
        return dataclasses.replace(clip, frames=f"{first}-{last}")
    inside = [(n, f) for n, f in zip(clip.numbers, clip.files) if first <= n <= last]
    return dataclasses.replace(
        clip, numbers=[n for n, _ in inside], files=[file for _, file in inside]
    )


def progress_text(event: Dict[str, Any], now: float, begun: Tuple[float, float]) -> str:
    """Stage, how far it is, its loss, and the time left by the speed since `begun`: when, where."""
    done, total, figures = event["done"], event["total"], event["figures"]
    text = str(event["stage"]).capitalize()
    if not total:
        return text
    text += f": {round(done, 1):g} of {total:g}"
    if "loss" in figures:
        text += f", loss {figures['loss']:.3g}"
    if done > begun[1] and now > begun[0]:
        left = (total - done) * (now - begun[0]) / (done - begun[1])
        text += f", {left / 60:.0f} min left" if left > 90 else f", {left:.0f} s left"
    return text


def log_file(folder: str) -> Path:
    """Of a version; without one, the server's own."""
    return Path(folder) / "log.txt" if folder else home() / "store" / "logs" / "server.log"


# -- the server ----------------------------------------------------------------------------------


def server_command() -> List[str]:
    """What starts a server: the environment beside the plugin, else the PATH.

    Raises:
        ServerError: `no_command`.
    """
    environment = Path(__file__).resolve().parents[2] / ".venv"
    for place in ("bin/reenact", "Scripts/reenact.exe"):
        if (environment / place).exists():
            return [str(environment / place), "serve"]
    found = shutil.which("reenact")
    if found is None:
        raise ServerError(
            "no_command",
            "Reenact's server is not installed on this machine. Run install.py, or set "
            "REENACT_SERVER to the machine where it runs.",
        )
    return [found, "serve"]


def start_server(client: Client) -> None:
    """Starts the server, unless one answers, and waits for it.

    Raises:
        ServerError: `no_command`, `no_start`.
    """
    log = home() / "store" / "logs" / "server.log"
    if _answers(client):
        return
    if "REENACT_SERVER" in os.environ:
        raise ServerError(
            "no_start",
            f"The server at {os.environ['REENACT_SERVER']} (REENACT_SERVER) does not answer. "
            "Start it there.",
        )
    log.parent.mkdir(parents=True, exist_ok=True)
    foreign = ("PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "QT_PLUGIN_PATH")  # Nuke's own
    environment = {k: v for k, v in os.environ.items() if k not in foreign}
    with log.open("ab") as output:
        process = subprocess.Popen(
            server_command(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=environment,
        )
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if _answers(client):
            return
        if process.poll() is not None and not find_server()[0]:
            break
        time.sleep(0.2)
    raise ServerError("no_start", f"The server does not start. Its log: {log}")


def _answers(client: Client) -> bool:
    if not find_server()[0]:
        return False
    try:
        client.ask(protocol.Hello("nuke", [protocol.VERSION]), 2.0)
    except NoServer:
        return False
    return True


# -- errands -------------------------------------------------------------------------------------

UNCHOSEN = "on the server..."  # what a menu of the server's files shows of itself


class Errand(Thread):
    """Asks the server one thing for a node.

    Args:
        id: the node's.
        tell: called with the news that `work` returns, or with what went wrong, from this thread.
        work: what is to be done.
    """

    def __init__(
        self, id: str, tell: Callable[[News], None], work: Callable[[Client, str], News]
    ) -> None:
        super().__init__(daemon=True, name="reenact errand")
        self.id, self.work, self._tell = id, work, tell

    def run(self) -> None:
        """Does it."""
        try:
            with Client("nuke", HELLO_SECONDS) as client:
                self._tell(self.work(client, self.id))
        except ServerError as error:
            self._tell(News(self.id, "failed", str(error), STEPS.get(error.code, "retry")))
        except OSError as error:
            self._tell(News(self.id, "failed", f"{error}.", "retry"))


def started(client: Client, id: str) -> News:
    """Starts the server."""
    start_server(client)
    return News(id, "", "The server runs.")


def list_made(client: Client, id: str, what: str, character: str = "") -> News:
    """What the server has, for the node's menu.

    Args:
        client: used by this thread.
        id: the node's.
        what: `characters` or `styles`.
        character: the file that they are styles of.
    """
    there = _made(client, what, character)
    count = f"{len(there)} {what if len(there) != 1 else what[:-1]}"
    text = f"{count} of this character on the server." if character else f"{count} on the server."
    return News(id, "", text, result=Result(choices={what: [UNCHOSEN, *map(_label, there)]}))


def fetch_made(
    client: Client, id: str, what: str, character: str, label: str, folder: Path
) -> News:
    """Fetches what was chosen from that menu into a folder; arguments as in `list_made`."""
    for one in _made(client, what, character):
        if _label(one) == label:
            safe = "".join(c if c.isalnum() else "_" for c in one["name"])
            path = folder / f"{safe}_{one['hash'][:8]}.{what[:-1]}"
            client.fetch(File(one["hash"], one["size"]), path)
            knobs = {"style": path.as_posix()} if what == "styles" else _shown(path)
            return News(id, "", f"{path.name} is here.", result=Result(knobs))
    raise ServerError("not_made", f"The server has no {label} any more. Ask it again.")


def _made(client: Client, what: str, character: str) -> List[Dict[str, Any]]:
    there: List[Dict[str, Any]] = client.hello().get(what, [])  # older ones list no styles
    if not character:
        return there
    own = protocol.file_hash(character)[0]
    return [one for one in there if one["character"] == own]


def _shown(character: Path) -> Dict[str, Any]:
    """Knobs that show a character."""
    try:
        picture = thumbnails.make(character)
    except (OSError, ValueError):  # it is as good without
        picture = ""
    return {"character": character.as_posix(), "thumbnail": picture}


def _label(made: Dict[str, Any]) -> str:
    """How the menu calls one."""
    return f"{made['name']} ({made['hash'][:8]})"
