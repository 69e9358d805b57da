"""What nodes do with the shot above them: edits and styles of a range.

Nothing here knows Nuke. A version folder that holds a shot says in its `run.json` how it was made:
a node below finds there the plate, where its files were, and the style of the shot.
"""

import dataclasses
import json
import os
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
    frames_name,
    progress_text,
    version_knobs,
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
        name: the version's, and the view's if it has several.
    """

    track: str
    character: str
    plate: Clip
    source: Source
    first: int
    last: int
    numbers: List[int]
    style_fields: Dict[str, Any]
    name: str

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

    Args:
        track: the track.
        character: used where the version's own character is not where it was.

    Raises:
        OSError, ValueError, KeyError, TypeError: the version is gone or damaged.
    """
    content = json.loads((Path(track).parent / "run.json").read_text(encoding="utf-8"))
    own = str(content.get("character", ""))  # unless it was moved, or the version is older
    character = own if own and os.path.exists(own) else character
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
        content.get("name", Path(track).parent.name),
    )


def tracks_of_views(track: str) -> Dict[str, str]:
    """Returns the latent track of each view of a version.

    Args:
        track: that of the version's first view.

    Returns:
        Tracks by view; of a version without views, that track as the one of the view "".
    """
    folder = Path(track).parent
    try:
        views = json.loads((folder.parent / "run.json").read_text(encoding="utf-8"))["views"]
    except (OSError, ValueError, KeyError):
        return {"": track}
    return {view: str(folder.parent / view / Path(track).name) for view in views}


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
    """Sends the frames of a plate, and its OCIO config, that the server doesn't have any more.

    Raises:
        ServerError: `changed`, the files have other content now.
        OSError: the files are gone.
    """
    paths = dict(zip(source.numbers, source.paths)) if plate.numbers else {}
    known = [paths[n] for n in plate.numbers] if paths else source.paths[:1]
    wanted = list(plate.files)
    if plate.config_file is not None:
        known, wanted = [*known, source.config], [*wanted, plate.config_file]
    held = client.ask(protocol.Held([file.hash for file in wanted]))["bytes"]
    lost = [i for i, file in enumerate(wanted) if held[i] < file.size]
    if lost and client.send([known[i] for i in lost]) != [wanted[i] for i in lost]:
        text = "The plate has changed since the shot above was submitted. Submit that one again."
        raise ServerError("changed", text, known[lost[0]])


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
            self._submit(client, request, render, track_above=above.track, **more)
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
            name=above.name,
            colour_space=above.source.working or None,
            layer_names=request.layer_names,
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
        elif not path.exists():  # the version stays complete if the one above is deleted
            temporary = path.with_name(f".{uuid.uuid4().hex[:8]}")
            shutil.copyfile(content["track_above"], temporary)
            os.replace(temporary, path)
        self._update("running", "Rendering.")
        self._render(client, content, track)

    def _render(self, client: Client, content: Dict[str, Any], track: Optional[File]) -> None:
        """Renders a version.

        Args:
            client: a client of this thread.
            content: of the version's `run.json`.
            track: the version's own track, if it has made one.
        """
        version = Path(self.folder)
        render = protocol.build(protocol.Render, content["task" if track is None else "render"])
        if track is not None:
            render = dataclasses.replace(render, track=track, name=frames_name(version))
        shown = Result(version_knobs(version, content), quality(version / "track.latents"))
        self._results(client, render, shown, content["crops"])

    def _stylize(self, client: Client, version: Path, task: protocol.Stylize) -> None:
        style = version / f"{version.name}.style"

        def destination(event: Dict[str, Any]) -> Path:
            return style if event["name"] == "style" else version / "preview.png"

        if self._follow(client, task, destination):
            self._ready(f"{style.name} is ready", Result({"style": style}))
