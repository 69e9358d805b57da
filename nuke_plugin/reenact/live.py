"""Renders single frames of edits and styles at once, beside what else a node does."""

import contextlib
import dataclasses
import os
import traceback
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import Callable, Dict, List, Optional, Tuple

from reenact import protocol
from reenact.address import server_at
from reenact.client import Client
from reenact.errors import ServerError
from reenact.files import Frames
from reenact.protocol import FINISHED, File
from reenact.runs import CONNECT_SECONDS, NodeUpdate, Result, clip_between, unexpected
from reenact.shots import (
    Sender,
    ShotRequest,
    check_done,
    send_directions,
    send_missing_frames,
    send_style,
)

LIVE_FRAMES = 50  # live frames that are kept in a node's folder
EVENT_SECONDS = 0.2  # how often a live frame is checked for having been replaced by a newer one


class LivePreview(Thread):
    """Renders single frames for nodes: the newest that each node has requested.

    A newer request of a node replaces its earlier one: that is cancelled, also on the server, and
    its updates are dropped.

    Args:
        server: `host:port`; empty for the one that is found.
    """

    def __init__(self, server: str = "") -> None:
        super().__init__(daemon=True, name="reenact live")
        self._server = server
        self._lock, self._awake, self._ended = Lock(), Event(), Event()
        self._count = 0
        self._newest: Dict[str, int] = {}  # number of the newest request, by node
        self._waiting: Dict[str, ShotRequest] = {}  # by node
        self.updates: "SimpleQueue[Tuple[int, NodeUpdate]]" = SimpleQueue()  # by request number
        self._working = False
        self._jobs: List[str] = []  # on the server, to be deleted

    def request(self, id: str, request: ShotRequest) -> None:
        """Requests a node's frame, the request's first. Called by the main thread; never waits."""
        with self._lock:
            self._count += 1
            self._newest[id] = self._count
            self._waiting[id] = request
        self._awake.set()

    def drop(self, id: str) -> None:
        """Drops a node's request."""
        with self._lock:
            self._count += 1
            self._newest[id] = self._count
            self._waiting.pop(id, None)

    def drain(self) -> List[NodeUpdate]:
        """Returns updates since the last call, except of replaced requests; never waits."""
        updates: List[NodeUpdate] = []
        while True:
            try:
                number, update = self.updates.get_nowait()
            except Empty:
                return updates
            if self._newest.get(update.id) == number:
                updates.append(update)

    def busy(self) -> bool:
        """Returns whether there are requests or updates."""
        return self._working or bool(self._waiting) or not self.updates.empty()

    def close(self) -> None:
        """Ends the thread at its next step; never waits."""
        self._ended.set()
        self._awake.set()

    def run(self) -> None:
        """Renders until it is closed, or until no client can be made: then the nodes say why."""
        try:
            with Client("nuke", CONNECT_SECONDS, server_at(self._server)) as client:
                self._serve(client)
        except ServerError as error:
            with self._lock:
                for id in self._waiting:
                    failed = NodeUpdate(id, "failed", str(error), "preview")
                    self.updates.put((self._newest[id], failed))
                self._waiting.clear()

    def _serve(self, client: Client) -> None:
        send = Sender(client)
        while not self._ended.is_set():
            self._awake.wait(1.0 if self._jobs else None)
            with self._lock:
                self._awake.clear()
                id, request = self._waiting.popitem() if self._waiting else ("", None)
                number, self._working = self._newest.get(id, 0), request is not None
            if request is not None:
                update = self._render(client, send, id, number, request)
                if update is not None:
                    self.updates.put((number, update))
                self._working = False
                self._awake.set()  # there may be more requests
            self._delete_jobs(client)

    def _render(
        self, client: Client, send: Sender, id: str, number: int, request: ShotRequest
    ) -> Optional[NodeUpdate]:
        def on_status(text: str) -> None:
            self.updates.put((self._newest[id], NodeUpdate(id, "", text)))

        def is_replaced() -> bool:
            return self._ended.is_set() or self._newest[id] != number

        try:
            for again in (False, True):
                try:
                    return render_frame(
                        client, send, id, request, on_status, is_replaced, self._jobs
                    )
                except ServerError as error:
                    if error.code != "missing" or again:
                        raise
                    send.forget()
        except ServerError as error:
            step = "start" if error.code == "no_server" else "preview"
            return NodeUpdate(id, "failed", str(error), step)
        except OSError as error:
            where = error.filename or "A file"
            return NodeUpdate(id, "failed", f"{where}: {error.strerror or error}.", "preview")
        except Exception as error:
            traceback.print_exc()
            return NodeUpdate(id, "failed", unexpected(error), "preview")
        return None

    def _delete_jobs(self, client: Client) -> None:
        """Deletes finished jobs on the server; one that still runs is tried again later."""
        for job in list(self._jobs):
            try:
                client.delete(job)
            except ServerError as error:
                if error.code == "no_server":
                    return
                continue
            self._jobs.remove(job)


def render_frame_now(client: Client, id: str, request: ShotRequest) -> NodeUpdate:
    """Renders one frame, and waits for it; raises as `render_frame` does."""
    update = render_frame(client, Sender(client), id, request, lambda text: None, lambda: False, [])
    assert update is not None
    return update


def render_frame(
    client: Client,
    send: Sender,
    id: str,
    request: ShotRequest,
    on_status: Callable[[str], None],
    is_replaced: Callable[[], bool],
    jobs: List[str],
) -> Optional[NodeUpdate]:
    """Renders the first frame of a request, and fetches it.

    Args:
        client: a client of this thread.
        send: sends files.
        id: the node's.
        request: what is asked for.
        on_status: called with a text for the artist by steps that take long.
        is_replaced: whether nobody waits for the frame any more.
        jobs: receives the ids of the server's jobs.

    Returns:
        The node's update; None if the request was replaced meanwhile.

    Raises:
        ServerError: as a client does; `job`, the job failed.
        OSError: a file can't be read or written.
    """
    above, frame = request.shot_above, request.first
    track, character = send(above.track), send(above.character)
    plate = clip_between(above.plate, frame, frame)
    send_missing_frames(client, plate, above.source)
    task = protocol.Frame(
        track,
        character,
        frame,
        plate,
        above.name,
        above.source.working or None,
        layer_names=request.layer_names,
        **send_style(request.style_fields, send),
    )
    if request.kind == "edit":
        files = send_directions(client, request, character, send, on_status)
        task = dataclasses.replace(task, directions=files, **request.settings)
    if is_replaced():
        return None
    job = client.submit(task)
    jobs.append(job)
    after, state, path = 0, "", Path()
    while state not in (*FINISHED, "paused"):
        if is_replaced():
            client.cancel(job)
            return None
        for event in client.events(job, after, EVENT_SECONDS):
            after = event["n"]
            if event["type"] == "file":
                path = Path(request.folder) / f"{request.name}.{event['hash'][:8]}.{frame:04d}.exr"
                client.fetch(File(event["hash"], event["size"]), path)
            elif event["type"] == "state":
                state = event["state"]
    check_done(client, job)
    _delete_old_frames(Path(request.folder), path)
    knobs = {"has_preview": True, "show": "preview", "preview_frame": frame}
    result = Result(knobs, reads={"Preview": Frames(str(path), frame, frame)})
    return NodeUpdate(id, "done", f"Frame {frame}, live.", result=result)


def _delete_old_frames(folder: Path, newest: Path) -> None:
    """Deletes all but the newest live frames of a node."""
    os.utime(newest)  # it may have existed already
    frames = sorted(folder.glob("*.exr"), key=lambda path: path.stat().st_mtime)
    for path in frames[:-LIVE_FRAMES]:
        with contextlib.suppress(OSError):  # Windows: it is being read
            path.unlink()
