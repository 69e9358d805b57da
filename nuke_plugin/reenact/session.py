"""What the nodes of the open script have under way: their runs, queries and live previews."""

import contextlib
import dataclasses
import time
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Callable, Dict, List, Optional, Tuple

from reenact import host, live, thumbnails
from reenact.client import Client
from reenact.display import show_update
from reenact.errors import NodeError
from reenact.host import Node
from reenact.kinds import is_alive, kind_of, node_id
from reenact.live import LivePreview
from reenact.queries import ServerQuery
from reenact.requests import build_request
from reenact.runs import BUSY, NodeUpdate, Run, RunRequest
from reenact.shots import ShotRequest

POLL_SECONDS = 0.2
SETTLE_SECONDS = 0.25  # without a change, after which a frame is rendered live


class Session:
    """The state of the plugin.

    There is one session from the plugin's import to the end of Nuke. Its methods are called on the
    main thread, and never wait. Threads put updates into a queue; while something is under way, a
    timer of Qt calls `drain`, which shows them: nodes are changed only on the main thread. When a
    script closes, `close_script` detaches the session from it; the server's jobs go on, and nodes
    find them again when the script is opened (`on_create`).

    In `nuke -t` there are no threads and no timer: work is done, and its updates are shown, before
    a method returns.

    Attributes:
        runs: the last run of each node in this session, by node id.
        queries: queries that may be under way.
        live: renders live previews, once one was requested.
        updates: what threads report, not yet shown.
    """

    def __init__(self) -> None:
        self.runs: Dict[str, Run] = {}
        self.queries: List[ServerQuery] = []
        self.live: Optional[LivePreview] = None
        self.updates: "SimpleQueue[NodeUpdate]" = SimpleQueue()
        self._nodes: Dict[str, Node] = {}  # by id: those seen in this session
        self._created: List[Node] = []  # to be looked at once they are complete
        self._undelivered: Dict[str, List[NodeUpdate]] = {}  # of deleted nodes, until undo
        self._followed: Optional[Node] = None  # the live node that was changed last
        self._changed_at: Optional[float] = None  # when it was, until it is rendered
        self._frame = 0  # the script's, when that was last looked at
        self._stop_timer: Optional[Callable[[], None]] = None

    # -- nodes

    def is_copy(self, node: Node) -> bool:
        """Returns whether a node has the id of another node that exists."""
        id = node_id(node)
        known = self._nodes.get(id)
        return known is not None and is_alive(known, id) and host.name(known) != host.name(node)

    def add(self, node: Node) -> None:
        """Adds a node that was created, loaded, pasted, or restored by undo."""
        self._nodes[node_id(node)] = node
        if host.gui():
            self._created.append(node)  # not complete yet: Nuke creates its inside later
            self._watch()

    def remove(self, node: Node) -> None:
        """Removes a node that is deleted; its job goes on."""
        id = node_id(node)
        if id in self._nodes and host.name(self._nodes[id]) == host.name(node):
            del self._nodes[id]

    def job_nodes(self) -> Dict[str, Tuple[str, Optional[Path]]]:
        """Returns the nodes of this session's jobs: job id -> the node's name, and the picture of
        its character if it has one."""
        return {
            job: (host.name(self._nodes[id]), _picture(self._nodes[id]))
            for id, run in self.runs.items()
            if self._exists(id)
            for job in run.jobs
        }

    def reveal(self, job: str) -> None:
        """Shows the node that a job belongs to."""
        for id, run in self.runs.items():
            if job in run.jobs and self._exists(id):
                host.reveal(self._nodes[id])

    def _exists(self, id: str) -> bool:
        return id in self._nodes and is_alive(self._nodes[id], id)

    # -- runs and queries

    def start(self, node: Node, request: Optional[RunRequest] = None, **options: Any) -> None:
        """Starts a run for a node, and detaches from the one before.

        Args:
            node: the node.
            request: what is asked for; None where a version folder holds it.
            **options: as for `Run`: `folder`, `resume`, `start_server`.
        """
        id = node_id(node)
        before = self.runs.get(id)
        if before is not None and before.is_alive():
            before.detach()
        on_update = self.updates.put if host.gui() else self._deliver
        run = kind_of(node).run(id, on_update, request, **options)
        self._nodes[id] = node
        self.runs[id] = run
        if host.gui():
            show_update(node, NodeUpdate(id, "sending", "Sending."))
            run.start()
            self._watch()
        else:
            run.run()

    def run_of(self, node: Node) -> Optional[Run]:
        """Returns the last run of a node in this session."""
        return self.runs.get(node_id(node))

    def query(self, node: Node, work: Callable[[Client, str], NodeUpdate]) -> None:
        """Asks the server something for a node."""
        id = node_id(node)
        self._nodes[id] = node
        if host.gui():
            query = ServerQuery(id, self.updates.put, work)
            self.queries.append(query)
            query.start()
            self._watch()
        else:
            ServerQuery(id, self._deliver, work).run()

    # -- live previews

    def request_frame(self, node: Node, request: ShotRequest) -> None:
        """Has a frame rendered beside what else the node does."""
        id = node_id(node)
        self._nodes[id] = node
        if not host.gui():
            self.query(node, lambda client, id: live.render_frame_now(client, id, request))
            return
        if self.live is None:
            self.live = LivePreview()
            self.live.start()
        self.live.request(id, request)
        self._watch()

    def follow(self, node: Node) -> None:
        """Renders a live node's frame once its knobs don't change any more."""
        if not host.get(node, "live"):
            self._followed = None
            return
        self._followed, self._changed_at = node, time.monotonic()
        self._frame = host.project().frame
        self._watch()

    def drop_live(self, node: Node) -> None:
        """Drops a node's live frame: it must not replace the result of the job that starts now."""
        id = node_id(node)
        if self.live is not None:
            self.live.drop(id)
        if self._followed is not None and is_alive(self._followed, id):
            self._changed_at = None

    def _render_followed(self) -> None:
        """Requests the followed node's frame after a change, and after the artist went to another
        frame while the preview is shown."""
        node, now = self._followed, time.monotonic()
        if node is None:
            return
        if not host.name(node):
            self._followed = None
            return
        frame = host.project().frame
        if frame != self._frame:
            self._frame = frame
            if self._changed_at is not None or host.get(node, "show") == "preview":
                self._changed_at = now
        if self._changed_at is None or now - self._changed_at < SETTLE_SECONDS:
            return
        self._changed_at = None
        try:
            request = build_request(node, frame)
        except NodeError as error:
            show_update(node, NodeUpdate(node_id(node), "", str(error)))
        else:
            assert isinstance(request, ShotRequest)
            self.request_frame(node, request)

    def _deliver_live(self, update: NodeUpdate) -> None:
        run = self.runs.get(update.id)
        if run is not None and run.is_alive() and update.id in self._nodes:  # show the run's state
            node = self._nodes[update.id]
            text = str(host.get(node, "state")) if is_alive(node, update.id) else ""
            update = dataclasses.replace(update, state="", text=text)
        self._deliver(update)

    # -- the timer

    def drain(self) -> None:
        """Shows on the nodes what has happened. Called by the timer."""
        while self._created:
            self._restore(self._created.pop(0))
        with contextlib.suppress(Empty):
            while True:
                self._deliver(self.updates.get_nowait())
        self._render_followed()
        for update in self.live.drain() if self.live is not None else ():
            self._deliver_live(update)
        busy = any(thread.is_alive() for thread in (*self.runs.values(), *self.queries))
        busy = busy or self._followed is not None or (self.live is not None and self.live.busy())
        if not busy and self.updates.empty() and self._stop_timer is not None:
            self._stop_timer()
            self._stop_timer = None
            self.queries.clear()

    def close_script(self) -> None:
        """Detaches from the script, which closes; jobs go on."""
        for run in self.runs.values():
            run.detach()
        if self.live is not None:
            self.live.close()
        self.live = self._followed = None
        for state in (self.runs, self._nodes, self._undelivered, self._created):
            state.clear()

    def _watch(self) -> None:
        if self._stop_timer is None:
            self._stop_timer = host.every(POLL_SECONDS, self.drain)

    def _restore(self, node: Node) -> None:
        """Continues what a node waited for when its script was saved, or when it was deleted."""
        if not host.name(node):
            return
        id, folder = node_id(node), str(host.get(node, "run"))
        for update in self._undelivered.pop(id, []):
            show_update(node, update)
        alive = id in self.runs and self.runs[id].is_alive()
        if str(host.get(node, "job_state")) not in BUSY or alive:
            return
        if folder:
            self.start(node, folder=folder)
        else:
            text = "Not submitted: the script was closed before everything was sent."
            show_update(node, NodeUpdate(id, "cancelled", text, "retry"))

    def _deliver(self, update: NodeUpdate) -> None:
        node = self._nodes.get(update.id)
        if node is not None and is_alive(node, update.id):
            show_update(node, update)
        else:
            self._undelivered.setdefault(update.id, []).append(update)


def _picture(node: Node) -> Optional[Path]:
    character = str(host.get(node, "character")) if host.has(node, "character") else ""
    return thumbnails.picture_path(character) if character else None
