"""What nodes do with the shot above them: edits and styles, of a range and of one frame at once.

Nothing of Nuke. A version that holds a shot says in its `run.json` what it was made with; whoever
goes on with the shot finds there the plate, where its files lay, and the style it is drawn in.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from reenact import protocol, runs
from reenact.client import Client, ServerError
from reenact.protocol import FINISHED, STILLS, Clip, File
from reenact.runs import HELLO_SECONDS, News, Order, Result, Run, Source, between, progress_text
from reenact.tracks import numbers, quality

LIVE_KEPT = 50  # frames drawn live that stay in a node's folder
EVENT_SECONDS = 0.2  # after which a frame that was overtaken is given up
NEAR = 1e-5  # how far keyframes may be from the curve that they stand for
KEYS = 150  # for which there is room in one text, whatever their numbers


@dataclass(frozen=True)
class Shot:
    """A shot that a node hands on.

    Attributes:
        track, character: files.
        plate: the clip that it was solved on, as the server knows it.
        source: where the plate's files lie here.
        first, last: the frames that were delivered.
        numbers: the frames of the track.
        look: fields of a `protocol.Render` that say in which style it is drawn; the style by its
            path.
    """

    track: str
    character: str
    plate: Clip
    source: Source
    first: int
    last: int
    numbers: List[int]
    look: Dict[str, Any]

    @property
    def directions(self) -> str:
        """Where the directions of its character lie, once they were found."""
        return Path(self.character).with_suffix(".directions").as_posix()


@dataclass(frozen=True)
class Change(Order):
    """What a node wants of the shot above it: `kind` is `edit` or `style`, or `stylize` for a style
    that is to be made.

    Attributes:
        shot: the shot.
        directions: files of an edit; the character's own are found if there are none yet.
        look: as in `Shot`: that of the result.
        pictures: examples of a style: a still, a movie, or a folder of stills.
    """

    shot: Optional[Shot] = None
    directions: List[str] = field(default_factory=list)
    look: Dict[str, Any] = field(default_factory=dict)
    pictures: str = ""


def shot(track: str, character: str) -> Shot:
    """The shot whose track lies in a version.

    Raises:
        OSError, ValueError, KeyError: it is gone or damaged.
    """
    plain = json.loads((Path(track).parent / "run.json").read_text())
    plate = plain["plate"] if "plate" in plain else plain["task"]["plate"]
    return Shot(
        track,
        character,
        protocol.build(Clip, plate),
        Source(**plain["source"]),
        int(plain["first"]),
        int(plain["last"]),
        numbers(track),
        plain.get("look", {}),
    )


def keyframes(frames: Sequence[int], values: Sequence[float], near: float = NEAR) -> List[str]:
    """Keyframes, as the protocol has them, of values at frames: texts whose values add up to them,
    one if there is room for all keys.

    Args:
        frames: increasing.
        values: one each.
        near: how far from them the keys' straight lines may go.
    """
    corners = _corners(frames, values, near)
    if len({values[i] for i in corners}) == 1:
        return [f"{values[0]:.6g}"]
    texts, first = [], 0
    for start in range(0, len(corners), KEYS):
        part = corners[start : start + KEYS]
        keys = {frames[i]: values[i] for i in (first, *part)}
        if start:
            keys[frames[first] - 1] = 0.0
        if start + KEYS < len(corners):
            keys[frames[part[-1]] + 1] = 0.0
        texts.append(",".join(f"{number}:{keys[number]:.6g}" for number in sorted(keys)))
        first = part[-1] + 1
    return texts


def _corners(frames: Sequence[int], values: Sequence[float], near: float) -> List[int]:
    """Indices of values between which straight lines come near to all of them."""
    kept, low, high = [0], float("-inf"), float("inf")
    for i in range(1, len(frames)):
        base = kept[-1]
        run, rise = frames[i] - frames[base], values[i] - values[base]
        if not low <= rise / run <= high:
            base = i - 1
            kept.append(base)
            run, rise = frames[i] - frames[base], values[i] - values[base]
            low, high = float("-inf"), float("inf")
        low, high = max(low, (rise - near) / run), min(high, (rise + near) / run)
    return kept + [len(frames) - 1] * (len(frames) > 1)


# -- files ---------------------------------------------------------------------------------------


class Sender:
    """Sends files that were not sent yet, by their dates: for frames that follow one another."""

    def __init__(self, client: Client, told: Callable[[int, int], None]) -> None:
        self.client, self._told = client, told
        self._sent: Dict[Tuple[str, int, int], File] = {}

    def __call__(self, path: str) -> File:
        """
        Raises:
            OSError: there is no such file.
        """
        facts = os.stat(path)
        key = path, facts.st_mtime_ns, facts.st_size
        if key not in self._sent:
            (self._sent[key],) = self.client.send([path], self._told)
        return self._sent[key]

    def forget(self) -> None:
        """The server has lost files."""
        self._sent.clear()


def have_plate(client: Client, plate: Clip, source: Source) -> None:
    """Sends those frames of a plate that the server does not have any more.

    Raises:
        ServerError: `changed`, they are others now.
        OSError: they are not there any more.
    """
    held = client.ask(protocol.Held([file.hash for file in plate.files]))["bytes"]
    lost = [i for i, file in enumerate(plate.files) if held[i] < file.size]
    if not lost:
        return
    paths = dict(zip(source.numbers, source.paths)) if plate.numbers else {}
    files = [paths[plate.numbers[i]] if paths else source.paths[0] for i in lost]
    if client.send(files) != [plate.files[i] for i in lost]:
        text = "The plate has changed since the shot above was submitted. Submit that one again."
        raise ServerError("changed", text, files[0])


def directions(
    client: Client,
    order: Change,
    character: File,
    send: Callable[[str], File],
    told: Callable[[str], None],
) -> List[File]:
    """The files that an edit takes; those of its character are found where there are none yet.

    Raises:
        ServerError: `job`, they could not be.
    """
    assert order.shot is not None
    own = order.shot.directions
    if own in order.directions and not os.path.exists(own):
        told("Finding what this character can be moved along, once for all.")
        job = client.submit(protocol.FitDirections(character))
        for event in client.follow(job):
            if event["type"] == "file" and event["name"] == "directions":
                client.fetch(File(event["hash"], event["size"]), own)
            elif event["type"] == "progress":
                text = progress_text(event, float(event["time"]), (0.0, 0.0))
                told(f"Finding directions, {text[:1].lower()}{text[1:]}")
        _check(client, job)
    return [send(path) for path in order.directions]


def _check(client: Client, job: str) -> None:
    status = client.status(job)
    if status["state"] != "done":
        raise ServerError("job", status["reason"] or f"The server's job was {status['state']}.")


def _looked(look: Dict[str, Any], send: Callable[[str], File]) -> Dict[str, Any]:
    """The fields of a task for a look."""
    return {**look, "style": send(look["style"])} if look else {}


def examples(client: Client, path: str, told: Callable[[int, int], None]) -> Clip:
    """Sends example pictures: a still, a movie, or the stills in a folder.

    Raises:
        ServerError: `no_frames`, there are none, or of several kinds.
        OSError: what the file system said.
    """
    folder = Path(path)
    if not folder.is_dir():
        return client.send_clip(path, progress=told)
    stills = sorted(p for p in folder.iterdir() if p.suffix.lower() in STILLS)
    kinds = sorted({still.suffix.lower() for still in stills})
    if len(kinds) != 1:
        found = f"pictures of several kinds, {', '.join(kinds)}" if kinds else "no pictures"
        raise ServerError("no_frames", f"There are {found} in {path}. Put those of one kind there.")
    numbered = list(range(1, len(stills) + 1))
    return Clip(kinds[0], numbered, client.send(stills, told), name=folder.name)


def listing(pattern: str) -> List[int]:
    """The frames that there are of a pattern, `a.##.exr` or `a.%02d.exr`; none for one file.

    Raises:
        ServerError: `no_frames`, there is none.
    """
    path = Path(pattern)
    found = re.search(r"#+|%0?\d*d", path.name)
    if not found:
        return []
    wanted = re.compile(
        re.escape(path.name[: found.start()]) + r"(\d+)" + re.escape(path.name[found.end() :])
    )
    listed = [wanted.fullmatch(p.name) for p in path.parent.iterdir()]
    numbers = sorted({int(match[1]) for match in listed if match})
    if not numbers:
        raise ServerError("no_frames", f"There is no picture {pattern}.")
    return numbers


# -- of a range ----------------------------------------------------------------------------------


class ShotRun(Run):
    """As `Run`, for a `Change`."""

    def _begin(self, client: Client, order: Order) -> None:
        assert isinstance(order, Change)
        assert order.shot is not None
        above, send = order.shot, Sender(client, self._sending)
        if order.kind == "stylize":
            pictures = None
            if order.pictures:
                pictures = examples(client, order.pictures, self._sending)
            task = protocol.Stylize(send(above.character), pictures=pictures, **order.settings)
            self._submit(client, order, task)
            return
        render, more = self._drawing(client, order, send)
        if order.kind == "style":
            copied = self._submit(client, order, render, **more) / "track.latents"
            if not copied.exists():  # the version is whole, whatever happens to the one above
                temporary = copied.with_name(f".{uuid.uuid4().hex[:8]}")
                shutil.copyfile(above.track, temporary)
                os.replace(temporary, copied)
        else:
            files = directions(client, order, render.character, send, self._finding)
            edit = protocol.Edit(render.track, render.character, files, **order.settings)
            self._submit(
                client,
                order,
                edit,
                self._key(order, render),
                render=dataclasses.asdict(render),
                **more,
            )

    def _drawing(
        self, client: Client, order: Change, send: Sender
    ) -> Tuple[protocol.Render, Dict[str, Any]]:
        """How the shot is drawn, its files being sent; and what the version says of it."""
        assert order.shot is not None
        above = order.shot
        track, character = send(above.track), send(above.character)
        have_plate(client, above.plate, above.source)
        name = Path(above.track).parent.name
        plate = between(above.plate, order.first, order.last)
        render = protocol.Render(
            track,
            character,
            plate,
            name=name,
            colour_space=above.source.working or None,
            **_looked(order.look, send),
        )
        return render, {
            "plate": dataclasses.asdict(above.plate),
            "look": order.look,
            "source": dataclasses.asdict(above.source),
            "character": above.character,
        }

    def _key(self, order: Change, render: protocol.Render) -> str:
        """Sets versions apart whose tracks are the same and that are drawn in other styles."""
        return f" {protocol.task_key('', render)}" if order.look else ""

    def _finding(self, text: str) -> None:
        if self._cancelled.is_set() or self._left.is_set():
            raise runs.Stopped
        self._say("running", text)

    def _go_on(self, client: Client) -> None:
        version = Path(self.folder)
        plain, task = self._asked()
        if isinstance(task, protocol.Stylize):
            self._stylize(client, version, task)
            return
        path = version / "track.latents"
        track = None
        if isinstance(task, protocol.Edit):
            track = self._track(client, task, path)
            if track is None:
                return
        knobs = {"track": path.as_posix(), "character": plain["character"]}
        self._say("running", "Drawing.", result=Result(knobs, quality(path)))
        self._draw(client, plain, track)

    def _draw(
        self,
        client: Client,
        plain: Dict[str, Any],
        track: Optional[File],
        shown: Optional[Result] = None,
    ) -> None:
        """Draws a version; its own track, if it has made one.

        Args:
            client: used by this thread.
            plain: what the version says.
            track: that was made.
            shown: what changes on the node once frames are there.
        """
        version = Path(self.folder)
        render = protocol.build(protocol.Render, plain["task" if track is None else "render"])
        if track is not None:
            render = dataclasses.replace(render, track=track, name=version.name)
        if self._frames(client, version, render, "Result", "", shown) and plain["crops"]:
            crops = dataclasses.replace(render, plate=None)
            self._frames(client, version / "crops", crops, "Crops", "_crop")

    def _stylize(self, client: Client, version: Path, task: protocol.Stylize) -> None:
        style = version / f"{version.name}.style"

        def place(event: Dict[str, Any]) -> Path:
            return style if event["name"] == "style" else version / "preview.png"

        if self._follow(client, task, place):
            result = Result({"style": style.as_posix()})
            self._say("done", f"{style.name} is ready.", result=result)


# -- of one frame --------------------------------------------------------------------------------


class Live(Thread):
    """Draws single frames for nodes: the newest that each one wants. What it overtakes is given up,
    here and on the server, and is not told any more."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="reenact live")
        self._lock, self._awake, self._ended = Lock(), Event(), Event()
        self._count = 0
        self._newest: Dict[str, int] = {}  # wish by node
        self._waiting: Dict[str, Change] = {}
        self._told: "SimpleQueue[Tuple[int, News]]" = SimpleQueue()
        self._at_work = False
        self._jobs: List[str] = []  # on the server, to be deleted

    def want(self, id: str, change: Change) -> None:
        """Wishes for a frame, the change's first, from the main thread. Returns at once."""
        with self._lock:
            self._count += 1
            self._newest[id] = self._count
            self._waiting[id] = change
        self._awake.set()

    def drop(self, id: str) -> None:
        """A node does not wait for its frame any more."""
        with self._lock:
            self._count += 1
            self._newest[id] = self._count
            self._waiting.pop(id, None)

    def drain(self) -> List[News]:
        """What has come since, of wishes that nothing has overtaken. Never waits."""
        news: List[News] = []
        while True:
            try:
                number, one = self._told.get_nowait()
            except Empty:
                return news
            if self._newest.get(one.id) == number:
                news.append(one)

    def busy(self) -> bool:
        """Whether something is wanted, or there is news."""
        return self._at_work or bool(self._waiting) or not self._told.empty()

    def close(self) -> None:
        """Ends it at its next step. Returns at once."""
        self._ended.set()
        self._awake.set()

    def run(self) -> None:
        """Draws, until it is closed."""
        with Client("nuke", HELLO_SECONDS) as client:
            send = Sender(client, lambda done, total: None)
            while not self._ended.is_set():
                self._awake.wait(1.0 if self._jobs else None)
                with self._lock:
                    self._awake.clear()
                    id, change = self._waiting.popitem() if self._waiting else ("", None)
                    number, self._at_work = self._newest.get(id, 0), change is not None
                if change is not None:
                    news = self._drawn(client, send, id, number, change)
                    if news is not None:
                        self._told.put((number, news))
                    self._at_work = False
                    self._awake.set()  # there may be more
                self._forget(client)

    def _drawn(
        self, client: Client, send: Sender, id: str, number: int, change: Change
    ) -> Optional[News]:
        def say(text: str) -> None:
            self._told.put((self._newest[id], News(id, "", text)))

        def overtaken() -> bool:
            return self._ended.is_set() or self._newest[id] != number

        try:
            for again in (False, True):
                try:
                    return draw(client, send, id, change, say, overtaken, self._jobs)
                except ServerError as error:
                    if error.code != "missing" or again:
                        raise
                    send.forget()
        except ServerError as error:
            step = "start" if error.code == "no_server" else "preview"
            return News(id, "failed", str(error), step)
        except OSError as error:
            where = error.filename or "A file"
            return News(id, "failed", f"{where}: {error.strerror or error}.", "preview")
        return None

    def _forget(self, client: Client) -> None:
        """Has the server forget frames that are done with; one that still runs, later."""
        for job in list(self._jobs):
            try:
                client.delete(job)
            except ServerError as error:
                if error.code == "no_server":
                    return
                continue
            self._jobs.remove(job)


def draw_now(client: Client, id: str, change: Change) -> News:
    """Has one frame drawn, and waits for it; raises as `draw`."""
    send = Sender(client, lambda done, total: None)
    news = draw(client, send, id, change, lambda text: None, lambda: False, [])
    assert news is not None
    return news


def draw(
    client: Client,
    send: Sender,
    id: str,
    change: Change,
    say: Callable[[str], None],
    overtaken: Callable[[], bool],
    jobs: List[str],
) -> Optional[News]:
    """Has one frame drawn, and fetches it; None where it was overtaken meanwhile.

    Args:
        client: used by this thread.
        send: sends files.
        id: the node's.
        change: what is wanted; its first frame.
        say: told what takes longer.
        overtaken: whether nobody waits for it any more.
        jobs: gets the server's jobs.

    Raises:
        ServerError: as a client does; `job`, it failed.
        OSError: a file is not there, or can't be written.
    """
    above, frame = change.shot, change.first
    assert above is not None
    track, character = send(above.track), send(above.character)
    plate = between(above.plate, frame, frame)
    have_plate(client, plate, above.source)
    task = protocol.Frame(
        track,
        character,
        frame,
        plate,
        Path(above.track).parent.name,
        above.source.working or None,
        **_looked(change.look, send),
    )
    if change.kind == "edit":
        files = directions(client, change, character, send, say)
        task = dataclasses.replace(task, directions=files, **change.settings)
    if overtaken():
        return None
    job = client.submit(task)
    jobs.append(job)
    after, state, shown = 0, "", Path()
    while state not in (*FINISHED, "paused"):
        if overtaken():
            client.cancel(job)
            return None
        for event in client.events(job, after, EVENT_SECONDS):
            after = event["n"]
            if event["type"] == "file":
                shown = Path(change.folder) / f"{change.name}.{event['hash'][:8]}.{frame:04d}.exr"
                client.fetch(File(event["hash"], event["size"]), shown)
            elif event["type"] == "state":
                state = event["state"]
    _check(client, job)
    _thin_out(Path(change.folder), shown)
    knobs = {"has_preview": True, "show": "preview"}
    result = Result(knobs, reads={"Preview": (shown.as_posix(), frame, frame)})
    return News(id, "done", f"Frame {frame}, live.", result=result)


def _thin_out(folder: Path, newest: Path) -> None:
    """Removes the oldest frames that were drawn live."""
    os.utime(newest)  # it may be one that was there
    frames = sorted(folder.glob("*.exr"), key=lambda path: path.stat().st_mtime)
    for path in frames[:-LIVE_KEPT]:
        with contextlib.suppress(OSError):  # Windows: it is being read
            path.unlink()
