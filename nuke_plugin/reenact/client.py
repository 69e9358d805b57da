"""The client: what Nuke's nodes and pipeline scripts talk to the server with.

    from reenact.client import Client
    from reenact.protocol import Solve

    with Client() as client:
        plate = client.send_clip("/plates/shot.####.exr", range(1001, 1051))
        character = client.send(["anna.character"])[0]
        job = client.submit(Solve(plate, character))
        for event in client.follow(job):
            print(event["type"], event.get("stage"), event.get("done"))
        print(client.collect(job, "/shots/010", "anna"))

It needs the standard library and pyzmq only, and runs in Python 3.9. Calls block until they are
answered or their deadline has passed, so in Nuke they belong in a thread; `Pump` provides one whose
events a GUI's timer can collect. A client belongs to one thread. It finds a server again that has
restarted, also on another port.
"""

import contextlib
import json
import os
import time
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from types import TracebackType
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    Tuple,
    Type,
    Union,
)

from reenact import __version__, protocol, transfers
from reenact.address import find_server, home
from reenact.channel import RESEND_SECONDS, Channel
from reenact.container import PathLike
from reenact.errors import NoServerError, ServerError
from reenact.files import frame_file, safe_name, version_for, write_file
from reenact.protocol import FINISHED, Clip, File, ProtocolError
from reenact.transfers import Progress

# The SDK's public names, wherever they are defined.
__all__ = ["Client", "NoServerError", "Pump", "ServerError", "find_server", "home"]


class Client:
    """A connection to the server.

    Args:
        name: the program's name, for the server's log.
        deadline: seconds that a call waits for its answer, through restarts of the server.
        server: endpoint and public key; None for what `find_server` returns.

    Raises:
        ServerError: `no_pyzmq`, this Python has no pyzmq that loads; `too_many_files`, this program
            can't open more.
    """

    def __init__(
        self,
        name: str = "script",
        deadline: float = 30.0,
        server: Optional[Tuple[str, str]] = None,
    ) -> None:
        self.name = name
        self.channel = Channel(deadline, server)

    def close(self) -> None:
        """Ends the connection; jobs go on."""
        self.channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    # -- requests

    def ask(self, request: protocol.Request, deadline: Optional[float] = None) -> Dict[str, Any]:
        """Sends a request, and returns the body of its answer.

        Raises:
            NoServerError: no answer came before the deadline.
            ServerError: the server refused; `no_key`, this user has no key.
        """
        return self.channel.ask(request, deadline)

    def hello(self) -> Dict[str, Any]:
        """Returns the server's version, limits and device, and its characters and styles."""
        return self.ask(protocol.Hello(f"{self.name} {__version__}", [protocol.VERSION]))

    def submit(self, task: protocol.Task) -> str:
        """Submits a job, whose files must have been sent; the same task twice is one job.

        Returns:
            The job's id.

        Raises:
            ServerError: `missing`, files are not on the server; or the server refused.
        """
        kind = protocol.kind_of(task)
        job = self.ask(protocol.Submit(kind, protocol.plain(task)))
        if job["missing"]:
            raise ServerError(
                "missing",
                "The server lacks files of this job. Send them again.",
                " ".join(job["missing"][:20]),
            )
        return str(job["id"])

    def status(self, job: str) -> Dict[str, Any]:
        """Returns a job's state, its progress, and the files that it has produced so far."""
        return self.ask(protocol.Status(job))

    def jobs(self) -> List[Dict[str, Any]]:
        """Returns all jobs, newest first."""
        return list(self.ask(protocol.List_())["jobs"])

    def cancel(self, job: str) -> None:
        """Stops a job; what it has produced stays."""
        self.ask(protocol.Cancel(job))

    def pause(self, job: str) -> None:
        """Pauses a job until it is resumed."""
        self.ask(protocol.Pause(job))

    def resume(self, job: str) -> None:
        """Resumes a paused, cancelled or failed job, or a training that was stopped early."""
        self.ask(protocol.Resume(job))

    def finish(self, job: str) -> None:
        """Ends a training at its next step, with a whole result of what it has.

        Raises:
            ServerError: `nothing_to_keep`, the job trains nothing, or not yet, or has ended.
        """
        self.ask(protocol.Finish(job))

    def figures(self, job: str) -> List[Dict[str, Any]]:
        """Returns the history of a job's figures: curves of `stage`, `axis`, `name`, `points`."""
        return list(self.ask(protocol.Figures(job))["curves"])

    def delete(self, job: str) -> None:
        """Deletes a job that isn't running; does nothing if it is deleted already."""
        try:
            self.ask(protocol.Delete(job))
        except ServerError as error:
            if error.code != "no_such_job":
                raise

    def events(self, job: str, after: int = 0, wait: float = 0.0) -> List[Dict[str, Any]]:
        """Returns events with numbers above `after`; waits up to `wait` seconds for the first."""
        id = self.channel.send(protocol.Events(job, after, wait))
        return list(self.channel.wait(id, self.channel.deadline + wait)[0]["events"])

    def follow(self, job: str, after: int = 0) -> Iterator[Dict[str, Any]]:
        """Yields events as they happen, until the job is finished or paused."""
        over = False
        while True:
            events = self.events(job, after, 0.0 if over else 10.0)
            for event in events:
                after = event["n"]
                if event["type"] == "state":
                    over = event["state"] in (*FINISHED, "paused")
                yield event
            if not events:
                if over:
                    return
                over = self.status(job)["state"] in (*FINISHED, "paused")

    # -- files

    def send(self, paths: Iterable[PathLike], progress: Optional[Progress] = None) -> List[File]:
        """Uploads files that the server doesn't have; resumes interrupted uploads.

        Args:
            paths: the files.
            progress: called with the bytes done and the bytes in total.

        Raises:
            OSError: a file can't be read.
            ServerError: `empty`, `changed`, or the server refused.
        """
        return transfers.upload(self.channel, paths, progress)

    def send_clip(
        self,
        pattern: PathLike,
        numbers: Iterable[int] = (),
        colour_space: Optional[str] = None,
        progress: Optional[Progress] = None,
        frames: str = "",
    ) -> Clip:
        """Uploads a clip.

        Args:
            pattern: `shot.####.exr` or `shot.%04d.exr`, or a movie.
            numbers: the frames; empty for a movie.
            colour_space: a name in the server's OCIO config; None for the server's default.
            progress: as for `send`.
            frames: the range to use of a movie, such as "1-50".
        """
        numbers = list(numbers)
        paths = [frame_file(str(pattern), n) for n in numbers] or [str(pattern)]
        suffix = Path(paths[0]).suffix.lower()
        return Clip(
            suffix,
            numbers,
            self.send(paths, progress),
            colour_space=colour_space,
            name=str(pattern)[-protocol.MAX_TEXT :],
            frames=frames,
        )

    def receive(
        self, files: Iterable[Tuple[File, PathLike]], progress: Optional[Progress] = None
    ) -> None:
        """Downloads files; each appears complete at its path, or not at all.

        Interrupted downloads are resumed.

        Raises:
            ServerError: the server doesn't have a file, or `corrupt`, it arrived damaged.
            OSError: no space, or no permission.
        """
        transfers.download(self.channel, files, progress)

    def fetch(self, file: File, path: PathLike) -> None:
        """Downloads a file unless it is at the path already; raises as `receive` does."""
        if not os.path.exists(path) or protocol.file_hash(path) != (file.hash, file.size):
            self.receive([(file, path)])

    def collect(
        self,
        job: str,
        folder: PathLike,
        name: str,
        on_event: Callable[[Dict[str, Any]], None] = lambda event: None,
    ) -> Dict[str, Any]:
        """Downloads a job's files as they are produced, into a new version folder.

        Frames become `FOLDER/NAME_vNNN/NAME_vNNN.1001.exr` with their own numbers; other files go
        beside them under their own names. Called again for the same job, it continues in the same
        version.

        Returns:
            The manifest, which is also written to the folder: `job`, `state`, `reason`, `folder`,
            `pattern`, `frames` and `files`.
        """
        version = version_for(Path(folder), name, job)
        pattern = version / f"{version.name}.####.exr"
        manifest: Dict[str, Any] = {
            "job": job,
            "state": "",
            "reason": "",
            "folder": str(version),
            "pattern": str(pattern),
            "frames": [],
            "files": [],
        }
        for event in self.follow(job):
            if event["type"] == "file":
                frame = event["name"] == "frame"
                path = (
                    Path(frame_file(str(pattern), event["number"]))
                    if frame
                    else (version / safe_name(event["name"], name))
                )
                self.fetch(File(event["hash"], event["size"]), path)
                if frame and event["number"] not in manifest["frames"]:
                    manifest["frames"].append(event["number"])
                if str(path) not in manifest["files"]:
                    manifest["files"].append(str(path))
            elif event["type"] == "state":
                manifest["state"], manifest["reason"] = event["state"], event["reason"]
            on_event(event)
        manifest["frames"].sort()
        write_file(version / "manifest.json", json.dumps(manifest, indent=1).encode())
        return manifest


class Pump:
    """Follows jobs in its own thread; a GUI's timer collects the events with `drain`.

    Args:
        name: the program's name, for the server's log.
    """

    def __init__(self, name: str = "nuke") -> None:
        self._name = name
        self._requests: "SimpleQueue[Tuple[str, int]]" = SimpleQueue()
        self._events: "SimpleQueue[Dict[str, Any]]" = SimpleQueue()
        self._end = False
        self._thread = Thread(target=self._run, daemon=True, name="reenact")
        self._thread.start()

    def watch(self, job: str, after: int = 0) -> None:
        """Follows a job, from the event after number `after`, until it is finished."""
        self._requests.put((job, after))

    def drain(self) -> List[Dict[str, Any]]:
        """Returns what has happened since the last call; never waits.

        Returns:
            Events with their `job`, and `{"type": "connection", "up": bool, "message": str}`, whose
            message says why there is no connection.
        """
        return list(_drained(self._events))

    def close(self) -> None:
        """Ends the thread; jobs go on."""
        self._end = True
        self._thread.join(5)

    def _run(self) -> None:
        watched: Dict[str, int] = {}  # number of the last event, by job
        pending: Dict[str, Tuple[str, float]] = {}  # request id and when it was sent, by job
        up: Optional[bool] = None
        try:
            client = Client(self._name)
        except ServerError as error:
            self._connection(up, False, str(error))
            return
        with client:
            channel = client.channel
            while not self._end:
                watched.update(_drained(self._requests))
                now = time.monotonic()
                for job in set(watched) - set(pending):
                    try:
                        request = protocol.Events(job, watched[job], 5.0)
                        pending[job] = channel.send(request), now
                    except ServerError as error:
                        up = self._connection(up, False, str(error))
                with contextlib.suppress(ServerError):
                    channel.poll(0.1)
                for job, (id, sent) in list(pending.items()):
                    answer = channel.take_answer(id)
                    if answer is None:
                        if now - sent > 5.0 + RESEND_SECONDS:
                            channel.forget(id)
                            del pending[job]
                            up = self._connection(up, False, str(NoServerError("", 0)))
                        continue
                    del pending[job]
                    up = self._connection(up, True)
                    if not self._take(job, answer[0], watched):
                        del watched[job]

    def _take(
        self, job: str, body: Union[Dict[str, Any], ProtocolError], watched: Dict[str, int]
    ) -> bool:
        """Queues the events of an answer; returns whether to go on watching the job."""
        if isinstance(body, ProtocolError):
            self._events.put(
                {"job": job, "type": "error", "code": body.code, "message": body.message}
            )
            return False
        for event in body["events"]:
            watched[job] = event["n"]
            self._events.put({"job": job, **event})
        last = body["events"][-1:] or [{}]
        return last[0].get("state") not in FINISHED

    def _connection(self, before: Optional[bool], now: bool, why: str = "") -> bool:
        if before is not now:
            self._events.put({"type": "connection", "up": now, "message": why})
        return now


def _drained(queue: "SimpleQueue[Any]") -> Iterator[Any]:
    with contextlib.suppress(Empty):
        while True:
            yield queue.get_nowait()
