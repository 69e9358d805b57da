"""What each request does: dispatch, limits, and requests for events that are answered later."""

from __future__ import annotations

import collections
import dataclasses
import glob
import hashlib
import logging
import os
import re
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import reenact
from reenact import protocol
from reenact.protocol import CREDIT, FINISHED, TRAINING, ProtocolError

from core.base.errors import ReenactError
from server.frontend.database import Database, Job, StoreFullError
from server.frontend.peers import Limits, Message, Peer, Peers, Reply, check_hash
from server.frontend.scheduler import Scheduler
from server.frontend.transfers import Transfers
from server.jobs import registry

log = logging.getLogger("reenact")

MAX_WAIT_SECONDS = 30.0  # that a request for events may wait
MAX_LOOKING = 8  # threads that look at files named by path, at once
MAX_LISTED = 500  # jobs, characters or styles in one answer


@dataclasses.dataclass
class _Poll:
    peer: Peer
    reply: Reply
    after: int
    until: float  # monotonic seconds


class EventPolls:
    """Requests for events that wait until there are some (long polling)."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._polls: dict[str, list[_Poll]] = collections.defaultdict(list)  # by job

    def add(self, peer: Peer, reply: Reply, request: protocol.Events) -> None:
        """Holds a request's answer back."""
        peer.polls += 1
        until = time.monotonic() + min(request.wait, MAX_WAIT_SECONDS)
        self._polls[request.job].append(_Poll(peer, reply, request.after, until))

    def notify(self, job: str) -> None:
        """Answers those who wait for a job's events, if there are new ones."""
        self._answer(job, -float("inf"))

    def end(self, job: str) -> None:
        """Answers all who wait for a job's events, of which there will be no more."""
        self._answer(job, float("inf"))

    def expire(self, now: float) -> None:
        """Answers those who have waited long enough."""
        for job, polls in list(self._polls.items()):
            if any(poll.until <= now for poll in polls):
                self._answer(job, now)

    def _answer(self, job: str, now: float) -> None:
        left = []
        for poll in self._polls.pop(job, []):
            if poll.peer.gone:
                poll.peer.polls -= 1
                continue
            if not poll.peer.reads:
                poll.until = min(poll.until, now)  # as soon as it takes what it was sent before
                left.append(poll)
                continue
            events = self._database.events(job, poll.after)
            if events or poll.until <= now:
                poll.reply.answer({"events": events})
                poll.peer.polls -= 1
            else:
                left.append(poll)
        if left:
            self._polls[job] = left


class Requests:
    """Answers requests.

    Args:
        database: holds the jobs and knows the files.
        limits: of what a client may ask for.
        allow_paths: prefixes under which a task may name files by path.
        peers: the connections.
        polls: takes requests for events that wait.
        scheduler: does the jobs.
        transfers: takes requests for chunks.
        post: called from any thread with a function that the loop is to call.
    """

    def __init__(
        self,
        database: Database,
        limits: Limits,
        allow_paths: Sequence[Path],
        peers: Peers,
        polls: EventPolls,
        scheduler: Scheduler,
        transfers: Transfers,
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        self._post = post
        self._looking = 0  # threads that look at files named by path
        self._database, self._limits = database, limits
        self._allow_paths = [path.resolve() for path in allow_paths]
        self._peers, self._polls = peers, polls
        self._scheduler, self._transfers = scheduler, transfers
        self._started = time.monotonic()

    def handle(self, reply: Reply, message: Message) -> None:
        """Answers a request; whatever it is, nothing is raised.

        Args:
            reply: the way back, without the request's id.
            message: the request.
        """
        peer, parts = reply.peer, message.parts
        try:
            self._peers.admit(peer)
            if peer.overrun:
                peer.overrun = False
                reply.refuse("rate", "More requests at once than are kept. Slow down.")
            if len(parts) not in (1, 2):
                raise ProtocolError("malformed", "The request has too many parts.")
            id, request = protocol.decode(bytes(parts[0]))
            if not peer.begin(id, message.place):
                return  # a repeat
            reply = dataclasses.replace(reply, id=id)
            if (len(parts) == 2) != isinstance(request, protocol.Upload):
                raise ProtocolError("malformed", "The request has a chunk too many or too few.")
            if message.no_room:
                raise ProtocolError("credit", f"More than {CREDIT} chunks are under way.")
        except ProtocolError as error:
            reply.error(error)
            return
        chunk = parts[1] if len(parts) == 2 else None
        self._answer(reply, lambda: self._dispatch(peer, reply, request, chunk))

    def _answer(self, reply: Reply, function: Callable[[], dict[str, Any] | None]) -> None:
        """Answers with what a function returns, if not None, or with the error that it raises."""
        try:
            body = function()
            if body is not None:
                reply.answer(body)
        except ProtocolError as error:
            reply.error(error)
        except StoreFullError as error:
            reply.refuse("store_full", str(error))
        except sqlite3.OperationalError as error:
            reply.refuse("no_space", "The server's disk is full.", str(error))
        except Exception as error:  # no client's message ends the server
            log.exception("a request went wrong inside", extra={"facts": {"key": reply.peer.name}})
            reply.refuse(
                "internal",
                "Something went wrong inside the server; see its log.",
                type(error).__name__,
            )

    def _dispatch(
        self, peer: Peer, reply: Reply, request: protocol.Request, chunk: Any
    ) -> dict[str, Any] | None:
        """Returns the answer's body; None if it comes later."""
        match request:
            case protocol.Hello():
                return self._hello(request, peer)
            case protocol.Ping():
                return {"time": time.time()}
            case protocol.Bye():
                self._peers.dismiss(peer)
                peer.end(reply.id)
                return None
            case protocol.Health():
                return self._health()
            case protocol.List_():
                return {"jobs": [_public(job) for job in self._database.jobs()[:MAX_LISTED]]}
            case protocol.Submit():
                return self._submit(peer, reply, request)
            case protocol.Status():
                job = self._database.job(request.job)
                return {
                    **_public(job),
                    "missing": self._database.missing(job.id),
                    "files": self._database.results(job.id),
                }
            case protocol.Events():
                return self._events(peer, reply, request)
            case protocol.Cancel():
                return self._control_job(request.job, "cancelled", peer)
            case protocol.Pause():
                return self._control_job(request.job, "paused", peer)
            case protocol.Resume():
                return self._resume(request)
            case protocol.Finish():
                return self._finish(request, peer)
            case protocol.Figures():
                self._database.job(request.job)
                return {"curves": self._database.curves(request.job)}
            case protocol.Delete():
                return self._delete(request)
            case protocol.Held():
                for hash in request.hashes:
                    check_hash(hash)
                return {"bytes": [self._database.received(h) for h in request.hashes]}
            case protocol.Upload():
                return self._transfers.upload(peer, reply, request, chunk)
            case protocol.Download():
                self._transfers.download(peer, reply, request)
            case protocol.Verify():
                self._transfers.verify(peer, reply, request)
        return None

    # -- the server

    def _hello(self, request: protocol.Hello, peer: Peer) -> dict[str, Any]:
        if protocol.VERSION not in request.versions:
            older = "plugin" if max(request.versions, default=0) < protocol.VERSION else "server"
            raise ProtocolError(
                "version",
                f"Plugin and server don't speak the same protocol. Update the {older}.",
                f"server {protocol.VERSION}, client {request.versions[:9]}",
            )
        log.info("hello", extra={"facts": {"client": request.client[:100], "key": peer.name}})
        results = [
            (job.task, f, {"name": job.task["name"][:200], "hash": f["hash"], "size": f["size"]})
            for job in self._database.jobs()
            if job.kind in ("personalize", "stylize") and job.state == "done"
            for f in self._database.results(job.id)
        ]
        characters = [
            facts | {"who": task["who"][:200]}
            for task, f, facts in results
            if f["name"] == "character"
        ]
        styles = [
            facts | {"character": task["character"]["hash"]}
            for task, f, facts in results
            if f["name"] == "style"
        ]
        return {
            "server": reenact.__version__,
            "version": protocol.VERSION,
            "limits": dataclasses.asdict(self._limits),
            "paths": [str(p) for p in self._allow_paths],
            "device": self._scheduler.device,
            "characters": characters[:MAX_LISTED],
            "styles": styles[:MAX_LISTED],
        }

    def _health(self) -> dict[str, Any]:
        states = collections.Counter(job.state for job in self._database.jobs())
        return {
            "server": reenact.__version__,
            "seconds": round(time.monotonic() - self._started, 1),
            "clients": len(self._peers),
            "jobs": dict(states),
            "workers": self._scheduler.workers(),
            "device": self._scheduler.device,
            "gpu": self._scheduler.gpu,
            "store_bytes": self._database.used(),
            "store_limit": self._limits.store_bytes,
        }

    # -- jobs

    def _submit(self, peer: Peer, reply: Reply, request: protocol.Submit) -> dict[str, Any] | None:
        task = protocol.read_task(request)
        protocol.check_values(task)
        try:
            registry.check_configs(task)
        except ReenactError as error:
            raise ProtocolError("bad_value", str(error)) from None
        for name, part in protocol.parts(task):
            if isinstance(part, protocol.Clip) and len(part.files) > self._limits.frames:
                raise ProtocolError(
                    "too_large",
                    f"{name} has {len(part.files)} frames, {self._limits.frames} are allowed. "
                    "Choose a shorter range.",
                )
        for file in protocol.files(task):
            self._transfers.check_size(file.size)
            if self._database.size(file.hash) not in (None, file.size):
                raise ProtocolError("bad_value", "A file's size is wrong.", file.hash)
        paths = [part.path for _, part in protocol.parts(task) if part.path]
        if not paths:
            return self._add_job(peer, request.kind, task, "")
        if self._looking >= MAX_LOOKING:
            raise ProtocolError(
                "path",
                "The disks that hold the files do not answer the server. Try again later, or send "
                "the files.",
            )
        self._looking += 1

        def look() -> None:
            try:
                state = "".join(path_state(path, self._allow_paths) for path in paths)
            except ProtocolError as error:
                self._post(lambda error=error: finish(error))  # type: ignore[misc]
            else:
                self._post(lambda: finish(state))

        def finish(found: str | ProtocolError) -> None:
            self._looking -= 1
            if isinstance(found, ProtocolError):
                reply.error(found)
            else:
                self._answer(reply, lambda: self._add_job(peer, request.kind, task, found))

        # A network disk that hangs holds up nobody else.
        threading.Thread(target=look, daemon=True, name="paths").start()
        return None

    def _add_job(
        self, peer: Peer, kind: str, task: protocol.Task, path_state: str
    ) -> dict[str, Any]:
        existing = self._database.find_job(kind, task, path_state)
        if existing is None or self._database.job(existing).state in ("failed", "cancelled"):
            self._check_jobs()
        id = self._database.submit(kind, task, peer.name, path_state)
        self._polls.notify(id)
        return {**_public(self._database.job(id)), "missing": self._database.missing(id)}

    def _check_jobs(self) -> None:
        """
        Raises:
            ProtocolError: `too_many_jobs`, there may be no further unfinished one.
        """
        if self._database.unfinished() >= self._limits.jobs:
            raise ProtocolError(
                "too_many_jobs",
                f"{self._limits.jobs} jobs are waiting or running, more are not allowed. Let some "
                "finish, or cancel them.",
            )

    def _events(self, peer: Peer, reply: Reply, request: protocol.Events) -> dict[str, Any] | None:
        if request.after < 0 or request.wait < 0:
            raise ProtocolError("malformed", "Events before the first one, or a wait below 0.")
        self._database.job(request.job)
        events = self._database.events(request.job, request.after)
        if events or request.wait <= 0:
            return {"events": events}
        if peer.polls >= self._limits.waiting:
            raise ProtocolError("too_many_waiting", "Too many requests wait for events already.")
        self._polls.add(peer, reply, request)
        return None

    def _control_job(self, id: str, state: str, peer: Peer) -> dict[str, Any]:
        """Pauses or cancels a job; one that runs gets its state when the worker has stopped."""
        job = self._database.job(id)
        if state == "cancelled" and job.state not in FINISHED:
            self._database.set_finish(id, None)  # when it is resumed it is to train on
        reason = f"by {peer.name}"
        if job.state == "running":
            self._scheduler.stop(id, state, reason)
        elif job.state in ("waiting", "queued", "paused") and job.state != state:
            self._database.set_state(id, state, reason)
            self._polls.notify(id)
        return _public(self._database.job(id))

    def _resume(self, request: protocol.Resume) -> dict[str, Any]:
        job = self._database.job(request.job)
        if job.state in ("failed", "cancelled") or (job.state == "done" and job.finish is not None):
            self._check_jobs()
        if job.state == "done" and job.finish is not None:
            note = f"it was stopped early after {job.finish} steps, and goes on"
            self._database.set_finish(job.id, None, note)
            self._database.resume(job.id)
            self._polls.notify(job.id)
        elif job.state in ("paused", "failed", "cancelled"):
            self._database.resume(job.id)
            self._polls.notify(job.id)
        return _public(self._database.job(request.job))

    def _finish(self, request: protocol.Finish, peer: Peer) -> dict[str, Any]:
        """Has a training end at the steps that it has now; the wish outlives workers and server.

        Raises:
            ProtocolError: `nothing_to_keep`.
        """
        job = self._database.job(request.job)
        if job.finish is None:
            steps = self._steps_to_keep(job)
            note = f"to be stopped early and kept, {steps} steps or a few more, by {peer.name}"
            self._database.set_finish(job.id, steps, note)
            if job.state == "paused":
                self._database.resume(job.id)
            self._scheduler.end_early(job.id, steps)
            self._polls.notify(job.id)
        return _public(self._database.job(job.id))

    def _steps_to_keep(self, job: Job) -> int:
        """Returns how many steps a job has trained.

        Raises:
            ProtocolError: `nothing_to_keep`: there are none, or it can't be stopped early.
        """
        if job.kind not in TRAINING:
            text = "Only what trains a character or a style can be stopped and kept. Cancel it: "
            raise ProtocolError("nothing_to_keep", text + "what it has done stays.", job.kind)
        if job.state in FINISHED:
            more = "It is whole." if job.state == "done" else "Resume it, then stop and keep it."
            raise ProtocolError("nothing_to_keep", f"The job is {job.state} already. {more}")
        steps = self._database.trained_steps(job.id, TRAINING[job.kind])
        if not steps:
            raise ProtocolError(
                "nothing_to_keep",
                "Nothing is trained yet, so there is nothing to keep. Wait for its first steps, or "
                "cancel it.",
            )
        return steps

    def _delete(self, request: protocol.Delete) -> dict[str, Any]:
        job = self._database.job(request.job)
        if job.state == "running":
            raise ProtocolError("running", "The job is running. Cancel it first.")
        self._database.delete(job.id)
        self._polls.end(job.id)
        return {}


def path_state(path: str, allowed: Sequence[Path]) -> str:
    """Returns a hash of the names, sizes and times of the files that a path or pattern names.

    Args:
        path: of a file, or of a sequence (`####`, `%04d`).
        allowed: folders under which the files must lie, links resolved.

    Raises:
        ProtocolError: `path`: a file lies elsewhere; `bad_value`: it is none.
    """
    named = Path(path)
    real = Path(os.path.realpath(named.parent)) / named.name
    if (
        not named.is_absolute()
        or named.name in ("", "..")
        or not any(real.is_relative_to(prefix) for prefix in allowed)
    ):
        raise ProtocolError(
            "path",
            "The server may not read files there. Send them, or ask its owner to allow the "
            "folder: reenact serve --allow-path.",
            path[:200],
        )
    name = glob.escape(re.sub(r"%0?\d*d|#+", "\0", named.name)).replace("\0", "*")
    pattern = os.path.join(glob.escape(str(named.parent)), name)
    sha = hashlib.blake2b(digest_size=16)
    for found in sorted(glob.glob(pattern)):
        if not any(Path(os.path.realpath(found)).is_relative_to(p) for p in allowed):
            raise ProtocolError("path", "A link leads out of the allowed folders.", found[:200])
        try:
            facts = os.stat(found)
        except OSError as error:
            why = f"The server can't read {found[:200]}: {error.strerror}."
            raise ProtocolError("bad_value", why) from None
        if not stat.S_ISREG(facts.st_mode):
            raise ProtocolError(
                "bad_value", f"{found[:200]} is a folder, a pipe or a device. Name a file."
            )
        sha.update(f"{found}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
    return sha.hexdigest()


def _public(job: Job) -> dict[str, Any]:
    """Returns what requests tell of a job."""
    return {
        name: getattr(job, name)
        for name in (
            "id",
            "kind",
            "state",
            "reason",
            "client",
            "created",
            "updated",
            "progress",
            "finish",
        )
    }
