"""A panel for Nuke: lists the server's jobs, and shows the chosen one while it works."""

import contextlib
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, Dict, List, Optional, Tuple, Union

from reenact import launcher, nodes, protocol, qt
from reenact.client import Client, home
from reenact.errors import ServerError
from reenact.graph import Curve, Graph, Sheet
from reenact.protocol import FINISHED, TRAINING, File
from reenact.runs import CONNECT_SECONDS

COLUMNS = ("Node", "Job", "State", "Progress", "Last change")
THUMBNAIL = 36  # px
POLL_SECONDS = 2.0  # between two lists
COLOURS = {"failed": "#d05050", "running": "#70b070", "done": "#909090", "cancelled": "#909090"}
# The pictures that a kind of job shows while it works, the best first.
SHEETS = {
    "personalize": ("reconstruction.png", "selection.png"),
    "stylize": ("preview.png",),
    "solve": (protocol.PICTURE,),
    "fit_directions": ("sheet.png",),
}
WIDEST = 1600  # px of a sheet in the panel; a click opens the whole
CACHED = 60  # sheets that stay on disk, the newest


@dataclass(frozen=True)
class Detail:
    """What is shown of the chosen job.

    Attributes:
        job: its id.
        curves: its figures.
        sheet: the file of its newest pictures.
        image: these pictures, read and scaled in the thread.
    """

    job: str
    curves: List[Curve]
    sheet: Optional[Path] = None
    image: Any = None


@dataclass(frozen=True)
class Refusal:
    """Why the server did not do what a button asks for."""

    text: str


Answer = Union[List[Dict[str, Any]], Detail, Refusal, str]  # a text: why there is no list
Request = Tuple[str, str]  # a command of the client's, or "" to look at a job; and the job's id


class Jobs(qt.QtWidgets.QWidget):  # type: ignore[misc]  # Qt has no types here
    """Lists the server's jobs, newest first, and shows figures and pictures of the chosen one.

    A thread asks the server while the panel is shown; nothing here waits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setWindowTitle("Reenact jobs")
        self.message = qt.QtWidgets.QLabel("Asking the server.")
        self.message.setWordWrap(True)
        self.table = qt.QtWidgets.QTableWidget(0, len(COLUMNS))
        self.table.setHorizontalHeaderLabels(COLUMNS)
        self.table.horizontalHeader().setStretchLastSection(True)
        self.table.verticalHeader().hide()
        self.table.verticalHeader().setDefaultSectionSize(THUMBNAIL + 4)
        self.table.setIconSize(qt.QtCore.QSize(THUMBNAIL, THUMBNAIL))
        self.table.setEditTriggers(qt.QtWidgets.QAbstractItemView.NoEditTriggers)
        self.table.setSelectionBehavior(qt.QtWidgets.QAbstractItemView.SelectRows)
        self.table.setSelectionMode(qt.QtWidgets.QAbstractItemView.SingleSelection)
        self.graph, self.sheet = Graph(), Sheet(launcher.open_path)
        below = qt.QtWidgets.QSplitter(qt.QtCore.Qt.Horizontal)
        below.addWidget(self.graph)
        below.addWidget(self.sheet)
        parts = qt.QtWidgets.QSplitter(qt.QtCore.Qt.Vertical)
        parts.addWidget(self.table)
        parts.addWidget(below)
        layout = qt.QtWidgets.QVBoxLayout(self)
        layout.addWidget(self.message)
        layout.addWidget(parts, 1)
        row = qt.QtWidgets.QHBoxLayout()
        layout.addLayout(row)
        self.buttons = {}
        for label, call in (
            ("Show node", self.show_node),
            ("Cancel", self.cancel),
            ("Resume", self.resume),
            ("Stop and keep", self.finish),
        ):
            self.buttons[label] = qt.QtWidgets.QPushButton(label)
            self.buttons[label].clicked.connect(call)
            row.addWidget(self.buttons[label])
        row.addStretch()
        self._jobs: List[Dict[str, Any]] = []
        self._detail = Detail("", [])
        self._refused = ""  # why the server did not do the last command
        self._answers: "SimpleQueue[Answer]" = SimpleQueue()
        self._requests: "SimpleQueue[Request]" = SimpleQueue()
        self._closed = Event()
        self._timer = qt.QtCore.QTimer(self)
        self._timer.timeout.connect(self.drain)
        self.table.itemSelectionChanged.connect(self._choose)
        self._show_detail()

    def showEvent(self, event: Any) -> None:
        """Qt: the panel is shown; starts asking the server."""
        self._closed.set()
        self._closed, self._requests = Event(), SimpleQueue()
        arguments = (self._answers, self._requests, self._closed)
        self._requests.put(("", self.chosen()))
        Thread(target=_work, args=arguments, daemon=True, name="jobs").start()
        self._timer.start(300)

    def hideEvent(self, event: Any) -> None:
        """Qt: the panel is hidden; stops asking the server."""
        self._closed.set()
        self._requests.put(("", ""))  # wakes the thread
        self._timer.stop()

    def drain(self) -> None:
        """Shows the newest answers; never waits."""
        jobs: Union[List[Dict[str, Any]], str, None] = None
        with contextlib.suppress(Empty):
            while True:
                answer = self._answers.get_nowait()
                if isinstance(answer, Refusal):
                    self._refused = answer.text
                elif isinstance(answer, Detail):
                    before = self._detail
                    if answer.sheet is None and answer.job == before.job:  # it has gone meanwhile
                        answer = dataclasses.replace(answer, sheet=before.sheet, image=before.image)
                    self._detail = answer
                else:
                    jobs = answer
        if isinstance(jobs, str):
            self.message.setText(jobs)
        elif jobs is not None:
            self._show_jobs(jobs)
        self._show_detail()

    # -- the table

    def _show_jobs(self, jobs: List[Dict[str, Any]]) -> None:
        count = len(jobs)
        text = f"{count} job{'s' * (count != 1)} on the server."
        self.message.setText(f"{text} {self._refused}".rstrip())
        job_nodes, chosen = nodes.SESSION.job_nodes(), self.chosen()
        self.table.blockSignals(True)  # rows move below the selection: nothing else is chosen
        self._jobs = jobs
        self.table.clearSelection()
        self.table.setRowCount(count)
        for row, job in enumerate(jobs):
            when = time.strftime("%d %b %H:%M", time.localtime(job["updated"]))
            name, picture = job_nodes.get(job["id"], ("", None))
            texts = (name, job["kind"], job["state"], _progress(job), when)
            for column, text in enumerate(texts):
                item = qt.QtWidgets.QTableWidgetItem(text)
                item.setToolTip(job["reason"] or text)
                if column == 0 and picture is not None and picture.is_file():
                    item.setIcon(qt.QtGui.QIcon(str(picture)))
                if column == 2 and job["state"] in COLOURS:
                    item.setForeground(qt.QtGui.QColor(COLOURS[job["state"]]))
                self.table.setItem(row, column, item)
            if job["id"] == chosen:
                self.table.selectRow(row)
        self.table.blockSignals(False)

    def chosen(self) -> str:
        """Returns the id of the selected job; empty if none is selected."""
        return str(self._chosen_job().get("id", ""))

    def _chosen_job(self) -> Dict[str, Any]:
        rows = self.table.selectionModel().selectedRows()
        return self._jobs[rows[0].row()] if rows and rows[0].row() < len(self._jobs) else {}

    def _choose(self) -> None:
        """Another job was selected."""
        self._refused = ""
        self._requests.put(("", self.chosen()))
        self._show_detail()

    # -- the chosen job

    def _show_detail(self) -> None:
        """Shows what is known of the chosen job, and which buttons make sense for it."""
        job = self._chosen_job()
        state, kind, early = job.get("state", ""), job.get("kind", ""), job.get("finish")
        self.buttons["Show node"].setEnabled(bool(job))
        self.buttons["Cancel"].setEnabled(bool(job) and state not in FINISHED)
        again = state in ("paused", "failed", "cancelled")
        self.buttons["Resume"].setEnabled(again or (state == "done" and early is not None))
        trains = kind in TRAINING and state not in FINISHED
        self.buttons["Stop and keep"].setEnabled(trains and early is None)
        detail = self._detail
        if not job:
            detail = Detail("", [])
        elif detail.job != job["id"]:
            detail = Detail(job["id"], [])
        stage = str(job["progress"].get("stage", "")) if job else ""
        curves = [curve for curve in detail.curves if curve["stage"] == stage]
        if not curves and detail.curves:  # another stage follows the one with figures
            stage = detail.curves[-1]["stage"]
            curves = [curve for curve in detail.curves if curve["stage"] == stage]
        running = bool(job) and state == "running" and job["progress"].get("stage") == stage
        total = float(job["progress"]["total"]) if running else 0.0
        empty = "No figures yet." if job else "Choose a job to see how it goes."
        if job and not curves and state in FINISHED:
            empty = "This job has no figures."
        self.graph.show_curves(curves, total, empty)
        self.sheet.show_image(detail.sheet, detail.image)

    def show_node(self) -> None:
        """Shows the node that the selected job belongs to."""
        nodes.SESSION.reveal(self.chosen())

    def cancel(self) -> None:
        """Stops the selected job."""
        self._command("cancel")

    def resume(self) -> None:
        """Resumes the selected job."""
        self._command("resume")

    def finish(self) -> None:
        """Stops the selected job's training, and keeps a whole result of what it has."""
        self._command("finish")

    def _command(self, name: str) -> None:
        self._refused = ""
        job = self.chosen()
        if job:
            self._requests.put((name, job))


# -- the thread ----------------------------------------------------------------------------------


def _work(answers: "SimpleQueue[Answer]", requests: "SimpleQueue[Request]", closed: Event) -> None:
    """Asks for the jobs and the chosen one repeatedly, and carries out commands."""
    chosen, shown = "", None
    while not closed.is_set():
        try:
            with Client("nuke", CONNECT_SECONDS) as client:
                while not closed.is_set():
                    for command, job in _taken(requests):
                        if command:
                            _carry_out(client, command, job, answers)
                        else:
                            chosen, shown = job, None
                    if closed.is_set():
                        return
                    jobs = client.jobs()
                    answers.put(jobs)
                    found = [job for job in jobs if job["id"] == chosen]
                    now = {k: v for k, v in found[0].items() if k != "reason"} if found else None
                    if now is not None and now != shown:
                        answers.put(_look(client, now))
                        shown = now
        except ServerError as error:
            answers.put(str(error))
            closed.wait(POLL_SECONDS)


def _taken(requests: "SimpleQueue[Request]") -> List[Request]:
    """Returns what was requested, after waiting for it as long as a list may be shown."""
    taken: List[Request] = []
    with contextlib.suppress(Empty):
        taken.append(requests.get(timeout=POLL_SECONDS))
        while True:
            taken.append(requests.get_nowait())
    return taken


def _carry_out(client: Client, command: str, job: str, answers: "SimpleQueue[Answer]") -> None:
    """Carries out a command of the client's on a job.

    Raises:
        ServerError: the server does not answer.
    """
    try:
        getattr(client, command)(job)
    except ServerError as error:
        if error.code == "no_server":
            raise
        answers.put(Refusal(str(error)))


def _look(client: Client, job: Dict[str, Any]) -> Detail:
    """Asks for a job's figures and its newest pictures, which are downloaded once.

    Raises:
        ServerError: the server does not answer.
    """
    detail = Detail(job["id"], [])
    try:
        detail = dataclasses.replace(detail, curves=client.figures(job["id"]))
        path = _newest_sheet(client, job)
        if path is not None:
            image = qt.QtGui.QImage(str(path))
            if image.width() > WIDEST:
                image = image.scaledToWidth(WIDEST, qt.QtCore.Qt.SmoothTransformation)
            detail = dataclasses.replace(detail, sheet=path, image=image)
    except ServerError as error:
        if error.code == "no_server":
            raise  # else: an older server, or what was asked for has just been replaced
    except OSError:
        pass  # the folder of pictures can't be written to; the rest is shown
    return detail


def _newest_sheet(client: Client, job: Dict[str, Any]) -> Optional[Path]:
    """Returns the file of a job's newest pictures, in the user's folder; None without any."""
    names = SHEETS.get(job["kind"], ())
    if not names:
        return None
    made = {file["name"]: file for file in client.status(job["id"])["files"]}
    file = next((made[name] for name in names if name in made), None)
    if file is None or not protocol.HASH.fullmatch(file["hash"]):
        return None
    folder = home() / "cache" / "sheets"
    path = folder / f"{file['hash']}.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        client.fetch(File(file["hash"], file["size"]), path)
        for old in sorted(folder.glob("*.png"), key=lambda p: p.stat().st_mtime)[:-CACHED]:
            old.unlink()
    return path


def _progress(job: Dict[str, Any]) -> str:
    progress = job["progress"]
    if job["state"] in ("failed", "paused"):
        return str(job["reason"])
    if job["state"] == "done" and job.get("finish") is not None:
        return f"stopped early, {job['finish']} steps"
    if not progress or job["state"] in ("done", "cancelled"):
        return ""
    text = str(progress["stage"])
    done = round(progress["done"], 1)
    text = f"{text} {done:g}/{progress['total']:g}" if progress["total"] else text
    return text if job.get("finish") is None else f"stopping, to keep: {text}"
