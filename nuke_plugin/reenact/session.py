"""What the nodes of the open script have under way: their runs, queries and live previews."""

import contextlib
import dataclasses
import functools
import re
import time
import traceback
import uuid
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Callable, Dict, List, Optional, Tuple

from reenact import __version__, host, live, protocol, thumbnails
from reenact.chosen import restore_menu, show_chosen
from reenact.client import Client
from reenact.display import show_update
from reenact.errors import NodeError
from reenact.files import mark_version
from reenact.host import Node
from reenact.kinds import NODE_VERSION, is_alive, kind_of, node_id, node_version, shown_version
from reenact.live import LivePreview
from reenact.queries import NO_CHOICE, ServerQuery
from reenact.requests import build_request
from reenact.runs import BUSY, NodeUpdate, Run, RunRequest, unexpected
from reenact.shots import ShotRequest
from reenact.versions import folder_of
from reenact.views import ViewsRun, has_views

POLL_SECONDS = 0.2
SETTLE_SECONDS = 0.25  # without a change, after which a frame is rendered live
IPV6 = re.compile(r"(tcp://)?\[[\da-fA-F.]*:[\da-fA-F:.]*\]")


class Session:
    """The state of the plugin.

    There is one session from the plugin's import to the end of Nuke. Its methods are called on the
    main thread, and never wait. Threads put updates into a queue; while something is under way, a
    timer of Qt calls `drain`, which shows them: nodes are changed only on the main thread. When a
    script closes, `close_script` detaches the session from it; the server's jobs go on, and nodes
    find them again when the script is opened (`complete`).

    In `nuke -t` there are no threads and no timer: work is done, and its updates are shown, before
    a method returns.

    Attributes:
        runs: the last run of each node in this session, by node id.
        queries: queries, and work with files, that may be under way.
        live: what renders live previews, by server.
        updates: what threads report, not yet shown.
    """

    def __init__(self) -> None:
        self.runs: Dict[str, Run] = {}
        self.queries: List[Thread] = []
        self.live: Dict[str, LivePreview] = {}
        self.updates: "SimpleQueue[NodeUpdate]" = SimpleQueue()
        self._nodes: Dict[str, List[Node]] = {}  # by id: those seen in this session, and clones
        self._created: List[Node] = []  # not known to be whole yet
        self._whole: List[Node] = []  # to be completed
        self._deferred: List[Callable[[], None]] = []  # what the timer is to do
        self._undelivered: Dict[str, List[NodeUpdate]] = {}  # of deleted nodes, until undo
        self._followed: Optional[Node] = None  # the live node that was changed last
        self._changed_at: Optional[float] = None  # when it was, until it is rendered
        self._frame = 0  # the script's, when that was last looked at
        self._stop_timer: Optional[Callable[[], None]] = None

    # -- nodes

    def add(self, node: Node) -> None:
        """Adds a node that was created, loaded, pasted, or restored by undo.

        The node is not whole yet, and its script may be loading: it is only noted. It is whole
        once what creates it has returned.
        """
        if host.gui():
            self._created.append(node)
            host.after_this(lambda: self._note_whole([node]))

    def script_loaded(self) -> None:
        """Notes that a script is loaded: the nodes that were created are whole."""
        self._note_whole(list(self._created))

    def _note_whole(self, nodes: List[Node]) -> None:
        self._whole += [node for node in nodes if node in self._created]
        self._created = [node for node in self._created if node not in nodes]
        if self._whole:
            self._watch()

    def complete(self, node: Node) -> None:
        """Prepares a node that is whole: by the timer, or earlier because a button is pressed.

        A new node or a copy gets an id, and a node whose job went on is told what has happened.
        Clones share their knobs, and so they share id and job.
        """
        for waiting in (self._created, self._whole):
            waiting[:] = [other for other in waiting if other != node]
        if not host.name(node) or not host.has(node, "reenact_id"):
            return
        id = node_id(node)
        copied = any(
            is_alive(known, id) and known != node and not host.are_clones(known, node)
            for known in self._nodes.get(id, ())
        )
        if not id or copied:
            id = uuid.uuid4().hex
            host.put(node, "reenact_id", id)
            # Jobs, approval and Read belong to the node that was copied.
            for knob in ("run", "approved", "read_name"):
                if host.has(node, knob):
                    host.put(node, knob, "")
            mark_shown(node)
            host.put(node, "job_state", "")
            show_update(node, NodeUpdate(id, "", "Not submitted."))
        known = self._nodes.setdefault(id, [])
        if node not in known:
            known.append(node)
        if host.has(node, "ready") and host.get(node, "ready"):
            return
        show_chosen(node)
        host.set_ready(node)
        host.put(node, "versions", versions_text(node), quiet=True)
        if node_version(node) < 3 and kind_of(node).has_track:
            # Their previews would be rendered: the switch does not ask where it is evaluated.
            with contextlib.suppress(KeyError):
                shown = "$gui*parent.has_preview*parent.show"
                host.put_expression(host.inner(node, "Show"), "which", shown)
        if host.gui():
            self._restore(node)
        restore_menu(node)

    def forget_files(self) -> None:
        """Empties the menus of the server's files: a script would keep everybody's names."""
        for id in self._nodes:
            node = self._node(id)
            for knob in ("characters", "styles"):
                if node is not None and host.has(node, knob):
                    host.put_choices(node, knob, [NO_CHOICE])

    def defer(self, call: Callable[[], None]) -> None:
        """Calls a function from the timer: not inside a callback of the node that it changes."""
        if host.gui():
            self._deferred.append(call)
            self._watch()
        else:
            call()

    def remove(self, node: Node) -> None:
        """Removes a node that is deleted; its job goes on."""
        for known in self._nodes.values():
            known[:] = [other for other in known if other != node]

    def servers(self) -> List[str]:
        """Returns the names of the servers that the script's nodes use, as far as nodes were seen
        in this session; empty for the one that is found."""
        alive = [node for id in self._nodes if (node := self._node(id)) is not None]
        names = {server_of(node) for node in alive}
        names |= {run.server for id, run in self.runs.items() if self._node(id) is not None}
        return sorted(names) or [""]

    def job_nodes(self) -> Dict[Tuple[str, str], Tuple[str, Optional[Path]]]:
        """Returns the nodes of this session's jobs: server and job id -> the node's name, and the
        picture of its character if it has one."""
        nodes = {id: self._node(id) for id in self.runs}
        return {
            (self.runs[id].server, job): (host.name(node), _picture(node))
            for id, node in nodes.items()
            if node is not None
            for job in self.runs[id].jobs
        }

    def reveal(self, server: str, job: str) -> None:
        """Shows the node that a server's job belongs to."""
        for id, run in self.runs.items():
            node = self._node(id)
            if run.server == server and job in run.jobs and node is not None:
                host.reveal(node)

    def _node(self, id: str) -> Optional[Node]:
        """Returns the node of an id if it exists."""
        return next((node for node in self._nodes.get(id, ()) if is_alive(node, id)), None)

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
        kind: Callable[..., Run] = kind_of(node).run
        if has_views(request, options.get("folder", "")):
            kind = functools.partial(ViewsRun, kind_of(node).run)
        run = kind(id, on_update, request, server=server_of(node), **options)
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
        id, server = node_id(node), server_of(node)
        if host.gui():
            query = ServerQuery(id, self.updates.put, work, server)
            self.queries.append(query)
            query.start()
            self._watch()
        else:
            ServerQuery(id, self._deliver, work, server).run()

    def do(self, node: Node, work: Callable[[], NodeUpdate]) -> None:
        """Does work with files for a node, which a busy disk may hold up for seconds."""
        id = node_id(node)

        def run() -> None:
            try:
                update = work()
            except NodeError as error:
                update = NodeUpdate(id, "failed", str(error))
            except Exception as error:
                traceback.print_exc()
                update = NodeUpdate(id, "failed", unexpected(error))
            self.updates.put(update)

        if host.gui():
            self.queries.append(Thread(target=run, daemon=True, name="reenact files"))
            self.queries[-1].start()
            self._watch()
        else:
            self._deliver(work())

    # -- live previews

    def request_frame(self, node: Node, request: ShotRequest) -> None:
        """Has a frame rendered beside what else the node does."""
        id, server = node_id(node), server_of(node)
        if not host.gui():
            self.query(node, lambda client, id: live.render_frame_now(client, id, request))
            return
        preview = self.live.get(server)
        if preview is not None and preview.is_alive():
            preview.request(id, request)
        else:
            preview = self.live[server] = LivePreview(server)
            preview.request(id, request)  # first: without a client, the thread answers and ends
            preview.start()
        self._watch()

    def follow(self, node: Node) -> None:
        """Renders a live node's frame once its knobs don't change any more."""
        if not host.get(node, "live"):
            if self._followed == node:
                self._followed = None
            return
        self._followed, self._changed_at = node, time.monotonic()
        self._frame = host.frame()
        self._watch()

    def drop_live(self, node: Node) -> None:
        """Drops a node's live frame: it must not replace the result of the job that starts now."""
        id = node_id(node)
        for preview in self.live.values():
            preview.drop(id)
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
        frame = host.frame()
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
        if run is not None and run.is_alive():  # the node shows the run's state
            update = dataclasses.replace(update, state="", text="")
        self._deliver(update)

    # -- the timer

    def drain(self) -> None:
        """Shows on the nodes what has happened. Called by the timer.

        What goes wrong with one node or message is printed, and the others are shown. Nothing is
        changed while Nuke renders, which may call timers: a render is of one state of the script.
        """
        if host.is_rendering():
            return
        for node in list(self._whole):
            host.guarded(self.complete)(node)
        self._whole.clear()
        while self._deferred:
            host.guarded(self._deferred.pop(0))()
        with contextlib.suppress(Empty):
            while True:
                host.guarded(self._deliver)(self.updates.get_nowait())
        host.guarded(self._render_followed)()
        for preview in self.live.values():
            for update in preview.drain():
                host.guarded(self._deliver_live)(update)
        busy = any(thread.is_alive() for thread in (*self.runs.values(), *self.queries))
        busy = busy or bool(self._whole or self._deferred) or self._followed is not None
        busy = busy or any(preview.busy() for preview in self.live.values())
        if not busy and self.updates.empty() and self._stop_timer is not None:
            self._stop_timer()
            self._stop_timer = None
            self.queries.clear()

    def close_script(self) -> None:
        """Detaches from the script, which closes; jobs go on."""
        for run in self.runs.values():
            run.detach()
        for preview in self.live.values():
            preview.close()
        self._followed = None
        for state in (self.runs, self.live, self._nodes, self._undelivered):
            state.clear()
        self._created.clear()
        self._whole.clear()
        self._deferred.clear()

    def _watch(self) -> None:
        if self._stop_timer is None:
            self._stop_timer = host.every(POLL_SECONDS, self.drain)

    def _restore(self, node: Node) -> None:
        """Continues what a node waited for when its script was saved, or when it was deleted."""
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
        node = self._node(update.id)
        if node is not None:
            show_update(node, update)
            if host.gui() and "style" in update.result.knobs and kind_of(node).is_live:
                self.follow(node)  # a style that was made or fetched is drawn at once
        else:
            self._undelivered.setdefault(update.id, []).append(update)


def server_of(node: Node) -> str:
    """Returns the server that a node names; empty for the one that is found."""
    if not host.has(node, "server"):
        return ""
    written = str(host.get(node, "server", raw=True)).strip()
    # Tcl would take the brackets of an IPv6 address for a command.
    return written if IPV6.match(written) else str(host.get(node, "server")).strip()


def mark_shown(node: Node) -> None:
    """Lists the version that a node hands on among the node's own, which may be new to the node."""
    track = str(host.get(node, "track")) if host.has(node, "track") else ""
    # Another artist's folder may be read only: its version is shown, but not listed.
    with contextlib.suppress(OSError, KeyError):
        mark_version(folder_of(track, shown_version(node)), node_id(node))


def versions_text(node: Node) -> str:
    """Returns the versions that matter to whoever helps an artist."""
    text = f"plugin {__version__}, protocol {protocol.VERSION}, Nuke {host.version()}"
    if node_version(node) < NODE_VERSION:
        text += f"; the node is older (version {node_version(node)}): update it"
    return text


def _picture(node: Node) -> Optional[Path]:
    character = str(host.get(node, "character")) if host.has(node, "character") else ""
    return thumbnails.picture_path(character) if character else None
