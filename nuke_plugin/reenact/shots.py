"""What nodes do with the shot above them: edits and styles of a range.

Nothing here knows Nuke. A version folder that holds a shot says in its `run.json` how it was made:
a node below finds there the plate, where its files were, and the style of the shot.
"""

import dataclasses
import json
import os
import re
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from reenact import protocol
from reenact.client import Client
from reenact.errors import ServerError
from reenact.protocol import STILLS, Clip, File
from reenact.runs import (
    Result,
    Run,
    RunRequest,
    Source,
    clip_between,
    progress_text,
)
from reenact.tracks import numbers, quality
from reenact.transfers import Progress


@dataclass(frozen=True)
class Shot:
    """A shot that a node hands on to those below.

    Attributes:
        track, character: files.
        plate: the clip that the shot was solved on, as the server knows it.
        source: where the plate's files are on this machine.
        first, last: the frames that were delivered.
        numbers: the frames of the track.
        style_fields: the fields of a `protocol.Render` about the shot's style, with the style's
            path as `style`; empty without a style.
    """

    track: str
    character: str
    plate: Clip
    source: Source
    first: int
    last: int
    numbers: List[int]
    style_fields: Dict[str, Any]

    @property
    def directions(self) -> str:
        """The file of the character's directions, which exists once they were fitted."""
        return Path(self.character).with_suffix(".directions").as_posix()


@dataclass(frozen=True)
class ShotRequest(RunRequest):
    """What a node asks for of the shot above it: `kind` is `edit`, `style`, or `stylize` for a new
    style.

    Attributes:
        shot: the shot.
        directions: files of an edit; the character's own file is made if it doesn't exist.
        style_fields: as in `Shot`, of the result.
        pictures: examples for a new style: a still, a movie, or a folder of stills.
    """

    shot: Optional[Shot] = None
    directions: List[str] = field(default_factory=list)
    style_fields: Dict[str, Any] = field(default_factory=dict)
    pictures: str = ""

    @property
    def shot_above(self) -> Shot:
        """The shot, which every request of a node has."""
        assert self.shot is not None
        return self.shot


def read_shot(track: str, character: str) -> Shot:
    """Reads the shot whose track is in a version folder.

    Raises:
        OSError, ValueError, KeyError, TypeError: the version is gone or damaged.
    """
    content = json.loads((Path(track).parent / "run.json").read_text())
    plate = content["plate"] if "plate" in content else content["task"]["plate"]
    return Shot(
        track,
        character,
        protocol.build(Clip, plate),
        Source(**content["source"]),
        int(content["first"]),
        int(content["last"]),
        numbers(track),
        content.get("look", {}),
    )


# -- files ---------------------------------------------------------------------------------------


class Sender:
    """Sends files, each once: remembers by name, time and size which files were sent.

    Args:
        client: a client of this thread.
        progress: as for `Client.send`.
    """

    def __init__(self, client: Client, progress: Optional[Progress] = None) -> None:
        self._client, self._progress = client, progress
        self._sent: Dict[Tuple[str, int, int], File] = {}

    def __call__(self, path: str) -> File:
        """Sends a file unless it was sent before.

        Raises:
            OSError: the file can't be read.
            ServerError: as `Client.send`.
        """
        status = os.stat(path)
        key = path, status.st_mtime_ns, status.st_size
        if key not in self._sent:
            (self._sent[key],) = self._client.send([path], self._progress)
        return self._sent[key]

    def forget(self) -> None:
        """Forgets what was sent, because the server has lost files."""
        self._sent.clear()


def send_missing_frames(client: Client, plate: Clip, source: Source) -> None:
    """Sends the frames of a plate that the server doesn't have any more.

    Raises:
        ServerError: `changed`, the files have other content now.
        OSError: the files are gone.
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


def send_directions(
    client: Client,
    request: ShotRequest,
    character: File,
    send: Callable[[str], File],
    on_status: Callable[[str], None],
) -> List[File]:
    """Sends the directions of an edit; fits the character's own where they don't exist.

    Args:
        client: a client of this thread.
        request: the edit.
        character: of the shot.
        send: sends a file.
        on_status: called with a text for the artist while directions are fitted.

    Raises:
        ServerError: `job`, fitting failed; or as `Client.send`.
    """
    own = request.shot_above.directions
    if own in request.directions and not os.path.exists(own):
        on_status("Finding what this character can be moved along; this is done once.")
        job = client.submit(protocol.FitDirections(character))
        for event in client.follow(job):
            if event["type"] == "file" and event["name"] == "directions":
                client.fetch(File(event["hash"], event["size"]), own)
            elif event["type"] == "progress":
                text = progress_text(event, float(event["time"]), (0.0, 0.0))
                on_status(f"Finding directions, {text[:1].lower()}{text[1:]}")
        check_done(client, job)
    return [send(path) for path in request.directions]


def check_done(client: Client, job: str) -> None:
    """Raises unless a job has succeeded.

    Raises:
        ServerError: `job`.
    """
    status = client.status(job)
    if status["state"] != "done":
        raise ServerError("job", status["reason"] or f"The server's job was {status['state']}.")


def send_style(style_fields: Dict[str, Any], send: Callable[[str], File]) -> Dict[str, Any]:
    """Returns style fields with the style sent, as a task takes them."""
    return {**style_fields, "style": send(style_fields["style"])} if style_fields else {}


def send_examples(client: Client, path: str, progress: Optional[Progress] = None) -> Clip:
    """Sends example pictures: a still, a movie, or the stills in a folder.

    Raises:
        ServerError: `no_frames`, the folder holds no pictures, or pictures of several kinds.
        OSError: a file can't be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        return client.send_clip(path, progress=progress)
    stills = sorted(p for p in folder.iterdir() if p.suffix.lower() in STILLS)
    kinds = sorted({still.suffix.lower() for still in stills})
    if len(kinds) != 1:
        found = f"pictures of several kinds, {', '.join(kinds)}" if kinds else "no pictures"
        raise ServerError("no_frames", f"There are {found} in {path}. Use pictures of one kind.")
    numbered = list(range(1, len(stills) + 1))
    return Clip(kinds[0], numbered, client.send(stills, progress), name=folder.name)


def existing_frames(pattern: str) -> List[int]:
    """Returns the frames that exist of a pattern, `a.##.exr` or `a.%02d.exr`; none for one file.

    Raises:
        ServerError: `no_frames`, no frame exists.
    """
    path = Path(pattern)
    found = re.search(r"#+|%0?\d*d", path.name)
    if not found:
        return []
    expected = re.compile(
        re.escape(path.name[: found.start()]) + r"(\d+)" + re.escape(path.name[found.end() :])
    )
    matches = [expected.fullmatch(p.name) for p in path.parent.iterdir()]
    numbers = sorted({int(match[1]) for match in matches if match})
    if not numbers:
        raise ServerError("no_frames", f"There is no picture {pattern}.")
    return numbers


# -- a range -------------------------------------------------------------------------------------


class ShotRun(Run):
    """Carries out a `ShotRequest`; otherwise as `Run`."""

    def _begin(self, client: Client, request: RunRequest) -> None:
        assert isinstance(request, ShotRequest)
        above, send = request.shot_above, Sender(client, self._on_sent)
        if request.kind == "stylize":
            pictures = None
            if request.pictures:
                pictures = send_examples(client, request.pictures, self._on_sent)
            task = protocol.Stylize(send(above.character), pictures=pictures, **request.settings)
            self._submit(client, request, task)
            return
        render, more = self._render_task(client, request, send)
        if request.kind == "style":
            track = self._submit(client, request, render, **more) / "track.latents"
            if not track.exists():  # the version stays complete if the one above is deleted
                temporary = track.with_name(f".{uuid.uuid4().hex[:8]}")
                shutil.copyfile(above.track, temporary)
                os.replace(temporary, track)
        else:
            files = send_directions(client, request, render.character, send, self._on_status)
            edit = protocol.Edit(render.track, render.character, files, **request.settings)
            self._submit(
                client,
                request,
                edit,
                self._key(request, render),
                render=dataclasses.asdict(render),
                **more,
            )

    def _render_task(
        self, client: Client, request: ShotRequest, send: Sender
    ) -> Tuple[protocol.Render, Dict[str, Any]]:
        """Sends the shot's files.

        Returns:
            The task that renders the shot, and what `run.json` says of it.
        """
        above = request.shot_above
        track, character = send(above.track), send(above.character)
        send_missing_frames(client, above.plate, above.source)
        render = protocol.Render(
            track,
            character,
            clip_between(above.plate, request.first, request.last),
            name=Path(above.track).parent.name,
            colour_space=above.source.working or None,
            **send_style(request.style_fields, send),
        )
        return render, {
            "plate": dataclasses.asdict(above.plate),
            "look": request.style_fields,
            "source": dataclasses.asdict(above.source),
            "character": above.character,
        }

    def _key(self, request: ShotRequest, render: protocol.Render) -> str:
        """Returns a key that separates versions of the same track in different styles."""
        return f" {protocol.task_key('', render)}" if request.style_fields else ""

    def _on_status(self, text: str) -> None:
        self._check_stopped()
        self._update("running", text)

    def _continue(self, client: Client) -> None:
        version = Path(self.folder)
        content, task = self._read_version()
        if isinstance(task, protocol.Stylize):
            self._stylize(client, version, task)
            return
        path = version / "track.latents"
        track = None
        if isinstance(task, protocol.Edit):
            track = self._track(client, task, path)
            if track is None:
                return
        knobs = {"track": path.as_posix(), "character": content["character"]}
        self._update("running", "Rendering.", result=Result(knobs, quality(path)))
        self._render(client, content, track)

    def _render(
        self,
        client: Client,
        content: Dict[str, Any],
        track: Optional[File],
        more: Optional[Result] = None,
    ) -> None:
        """Renders a version.

        Args:
            client: a client of this thread.
            content: of the version's `run.json`.
            track: the version's own track, if it has made one.
            more: what else changes on the node once there are frames.
        """
        version = Path(self.folder)
        render = protocol.build(protocol.Render, content["task" if track is None else "render"])
        if track is not None:
            render = dataclasses.replace(render, track=track, name=version.name)
        if self._frames(client, version, render, "Result", "", more) and content["crops"]:
            crops = dataclasses.replace(render, plate=None)
            self._frames(client, version / "crops", crops, "Crops", "_crop")

    def _stylize(self, client: Client, version: Path, task: protocol.Stylize) -> None:
        style = version / f"{version.name}.style"

        def destination(event: Dict[str, Any]) -> Path:
            return style if event["name"] == "style" else version / "preview.png"

        if self._follow(client, task, destination):
            self._ready(f"{style.name} is ready", Result({"style": style.as_posix()}))
