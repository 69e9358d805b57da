"""The workers: which job each one does, what it reports, and what happens when it crashes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reenact import protocol

from server import start
from server.frontend.database import Database, Job, WriteQueue
from server.jobs import registry

log = logging.getLogger("reenact")

MAX_CRASHES = 3  # of a worker at one position, before its job fails
STUCK_SECONDS = 8.0  # after which a worker that was asked to stop, and computes nothing, is killed
STEP_SECONDS = 60.0  # after which one that computes is
IDLE = 0.05  # share of that time in which a worker that waits for a disk computes at most
KILL_SECONDS = 3.0  # after which a lane gives up a process that can't even be killed
EARLIER_JOBS = 4  # in which a render looks for frames that it need not draw

Post = Callable[[Callable[[], None]], None]


def gpu_count() -> int:
    """Returns the number of CUDA devices to divide between workers.

    It is 0 where CUDA_VISIBLE_DEVICES is set: the workers inherit it as it is.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return 0
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return listed.stdout.count("GPU ")


def cpu_seconds(pid: int) -> float | None:
    """Returns how long a process has computed; None where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Worker:
    """A worker process, and the job that it does.

    Args:
        lane: its name, and that of its log.
        gpu: the CUDA device that it sees; None: what this process sees.
        root: the store's folder.
        post: called from a thread with a function that the loop is to call.
        on_event: called in the loop with a message of `server.worker`.
        on_exit: called in the loop after the process has ended, and after its last event.
    """

    def __init__(
        self,
        lane: str,
        gpu: int | None,
        root: Path,
        post: Post,
        on_event: Callable[[Worker, dict[str, Any]], None],
        on_exit: Callable[[Worker], None],
    ) -> None:
        self.lane = lane
        self.job = ""  # its id
        self.next_state = self.reason = ""  # the job's, once it has stopped on request
        self.stopped = 0.0  # when it was asked to stop first, monotonic seconds; 0: it was not
        self.killed = 0.0  # when it was killed, as it did not stop
        self._cpu = 0.0  # seconds that the process had computed when it was asked
        self.position = ""  # how far the job is: its stage, and a twentieth of it
        self.log = root / "logs" / f"{lane}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open(
            "ab" if self.log.exists() and self.log.stat().st_size < 1 << 24 else "wb"
        ) as errors:
            self.process = subprocess.Popen(
                start.command("server.worker", str(root)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}),
                start_new_session=True,  # Ctrl-C is the front end's to handle
                creationflags=getattr(subprocess, "BELOW_NORMAL_PRIORITY_CLASS", 0),  # Windows
            )
        self._post, self._on_event, self._on_exit = post, on_event, on_exit
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line, parse_constant=lambda name: None)  # a loss that is NaN
            self._post(lambda event=event: self._on_event(self, event))  # type: ignore[misc]
        self.process.wait()
        self._post(lambda: self._on_exit(self))

    def run(self, job: Job, earlier: dict[int, list[str]]) -> None:
        """Starts a job; `earlier` holds hashes of frames by number, see `server.worker`."""
        self.job, self.next_state, self.position = job.id, "", ""
        self.reason, self.stopped = "", 0.0
        message = {"id": job.id, "kind": job.kind, "task": job.task, "earlier": earlier}
        self._send({"run": message | ({} if job.finish is None else {"finish": job.finish})})

    def end_early(self, steps: int) -> None:
        """Has the job's training end after some steps, and keep what it has."""
        self._send({"finish": steps})

    def stop(self, next_state: str, reason: str) -> None:
        """Asks the process to stop its job, which will then be in another state."""
        self.next_state, self.reason = next_state, reason
        if not self.stopped:
            self.stopped, self._cpu = time.monotonic(), cpu_seconds(self.process.pid) or 0.0
        self._send({"stop": self.job})

    def is_stuck(self, now: float) -> bool:
        """Returns whether it does not stop: it waits in a read, or takes longer than any step."""
        if not (self.job and self.stopped) or now - self.stopped < STUCK_SECONDS:
            return False
        computed = cpu_seconds(self.process.pid)
        idle = computed is not None and computed - self._cpu < IDLE * (now - self.stopped)
        return idle or now - self.stopped > STEP_SECONDS

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it has ended; its listener reports that

    def exit_reason(self) -> str:
        """Returns how the process ended, in words."""
        code = self.process.returncode
        if code is not None and code < 0:
            return f"signal {-code}" + (", out of memory?" if code == -signal.SIGKILL else "")
        return f"exit {code}"


class Scheduler:
    """Gives jobs to workers, one per lane and GPU, and records what they report.

    Args:
        database: holds the jobs.
        writes: takes what the database is to record.
        post: called from any thread with a function that the loop is to call.
        notify: called with the id of a job that has new events.
        gpus: how many to use; None: all.
    """

    def __init__(
        self,
        database: Database,
        writes: WriteQueue,
        post: Post,
        notify: Callable[[str], None],
        gpus: int | None = None,
    ) -> None:
        self._database, self._writes, self._post, self._notify = database, writes, post, notify
        self.device = self.gpu = ""  # as the workers reported them last
        count = gpu_count() if gpus is None else gpus
        # Names of workers, the kinds that they do, and their GPU.
        self._lanes = [
            (
                lane if gpu is None else f"{lane} {gpu}",
                [kind.name for kind in registry.KINDS.values() if kind.lane == lane],
                gpu,
            )
            for gpu in (range(count) if count > 1 else (None,))
            for lane in registry.LANES
        ]
        self._workers: dict[str, Worker] = {}

    def close(self) -> None:
        """Kills the workers."""
        for worker in self._workers.values():
            worker.process.kill()
        for worker in self._workers.values():
            with contextlib.suppress(subprocess.TimeoutExpired):  # its disk hangs
                worker.process.wait(KILL_SECONDS)

    @property
    def busy(self) -> bool:
        """Whether a job runs."""
        return any(worker.job for worker in self._workers.values())

    def workers(self) -> dict[str, dict[str, Any]]:
        """Returns the process number and the job of each worker, by lane."""
        return {w.lane: {"pid": w.process.pid, "job": w.job} for w in self._workers.values()}

    def schedule(self) -> None:
        """Starts the next job of every lane that is idle, and ends workers that do not stop."""
        self.end_stuck()
        for lane, kinds, gpu in self._lanes:
            worker = self._workers.get(lane)
            if worker is not None and (worker.job or worker.killed):
                continue
            try:
                job = self._database.next_job(kinds)
                if job is None:
                    continue
                self._database.set_state(job.id, "running")
            except sqlite3.OperationalError:
                return  # the disk is full; later
            if worker is None:
                root = self._database.root
                worker = Worker(lane, gpu, root, self._post, self._on_event, self._on_exit)
                self._workers[lane] = worker
            worker.run(job, self._earlier_frames(job))
            log.info("job starts", extra={"facts": {"job": job.id, "kind": job.kind}})
            self._notify(job.id)

    def end_stuck(self) -> None:
        """Kills workers that were asked to stop and do not; the jobs keep what they have saved."""
        now = time.monotonic()
        for worker in list(self._workers.values()):
            if worker.killed:
                if now - worker.killed > KILL_SECONDS:  # its disk hangs: the lane goes on without
                    self._on_exit(worker)
            elif worker.is_stuck(now):
                worker.killed = now
                worker.process.kill()
                facts = {"job": worker.job, "lane": worker.lane}
                log.error("worker did not stop and is killed", extra={"facts": facts})

    def stop(self, job: str, next_state: str, reason: str) -> None:
        """Asks whichever worker does a job to stop it; it will then be in another state."""
        for worker in self._workers.values():
            if worker.job == job:
                worker.stop(next_state, reason)

    def end_early(self, job: str, steps: int) -> None:
        """Has whichever worker does a job end its training after some steps."""
        for worker in self._workers.values():
            if worker.job == job:
                worker.end_early(steps)

    def stop_all(self) -> None:
        """Asks all workers to stop after the frame or step that they are at."""
        for worker in self._workers.values():
            if worker.job and not worker.next_state:
                worker.stop("queued", "server stopped")

    def _earlier_frames(self, job: Job) -> dict[int, list[str]]:
        """Returns the hashes, by frame number, of frames that the newest jobs have drawn and that
        differ from a render by their track alone: after a repair most of them look the same."""
        found: dict[int, list[str]] = {}
        if job.kind != "render":
            return found
        task = protocol.build(protocol.Render, job.task)
        if any(part.path for _, part in protocol.parts(task)):
            return found  # the content at a path may have changed since
        similar = [
            other
            for other in self._database.jobs()
            if (other.kind, other.state) == ("render", "done")
            and other.id != job.id
            and _without_track(other.task) == _without_track(job.task)
        ]
        for other in similar[:EARLIER_JOBS]:
            for file in self._database.results(other.id):
                if file["name"] == "frame":
                    found.setdefault(file["number"], []).append(file["hash"])
        return found

    # -- what workers report

    def _on_event(self, worker: Worker, event: dict[str, Any]) -> None:
        self._writes.append(lambda: self._apply_event(worker, event))

    def _on_exit(self, worker: Worker) -> None:
        self._writes.append(lambda: self._apply_exit(worker))

    def _apply_event(self, worker: Worker, event: dict[str, Any]) -> None:
        job, type = event["job"], event["type"]
        body = {k: v for k, v in event.items() if k not in ("job", "type")}
        if worker.job != job:
            return  # the last words about a job that is over
        match type:
            case "started":
                self.device = body["device"]
            case "progress":
                share = body["done"] / body["total"] if body["total"] else 0
                worker.position = f"{body['stage']} {int(20 * share)}"
                self.gpu = body.pop("gpu")
                self._database.add_event(job, type, body)
            case "file":
                self._database.add_result(
                    job, body["name"], body["number"], body["hash"], body["size"]
                )
            case "picture":
                self._database.set_picture(job, body["hash"], body["size"])
            case "note" | "log":
                self._database.add_event(job, type, body)
            case "done":
                facts = body["facts"]
                self._database.add_event(job, "result", facts)
                early = facts["steps"] if facts.get("stopped_early") else None
                self._database.set_finish(job, early)
                self._database.remove_picture(job)
                self._finish(worker, "done")
            case "stopped":
                self._finish(worker, worker.next_state or "queued", worker.reason)
            case "failed":
                self._finish(worker, "failed", body["message"])
            case "no_space":
                reason = f"{body['message']} Free some on the server and resume the job."
                self._finish(worker, "paused", reason)
            case "corrupt":
                self._database.add_event(job, "note", {"text": "a stored file was damaged"})
                self._database.remove_file(body["hash"])
                self._finish(worker, "waiting")
        self._notify(job)

    def _finish(self, worker: Worker, state: str, reason: str = "") -> None:
        job = worker.job
        if state == "waiting" and not self._database.missing(job):
            state = "queued"
        self._database.set_state(job, state, reason)
        if state == "done" and self._database.job(job).finish is None:  # else it can go on
            self._database.clear_folder(job)
        worker.job = ""
        log.info("job ends", extra={"facts": {"job": job, "state": state, "reason": reason}})

    def _apply_exit(self, worker: Worker) -> None:
        job = worker.job
        if job and worker.next_state:
            self._database.set_state(job, worker.next_state, worker.reason)
        elif job:
            how = worker.exit_reason()
            self._database.record_crash(job, worker.position, how, MAX_CRASHES)
            facts = {"job": job, "how": how, "at": worker.position}
            log.error("worker died", extra={"facts": facts})
        worker.job = ""  # after what may fail on a full disk, and is then done again
        if self._workers.get(worker.lane) is worker:
            del self._workers[worker.lane]
        if job:
            self._notify(job)


def _without_track(render: dict[str, Any]) -> dict[str, Any]:
    """Returns what a render's frames depend on beside the track."""
    return {k: v for k, v in render.items() if k not in ("track", "name", "batch")}
