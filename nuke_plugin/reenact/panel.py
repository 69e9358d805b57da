"""A panel for Nuke's panes that lists the server's jobs, their nodes and their progress."""

import time
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, Dict, List, Union

from reenact import nodes, qt
from reenact.client import Client
from reenact.errors import ServerError
from reenact.runs import CONNECT_SECONDS

Answer = Union[List[Dict[str, Any]], str]  # the server's jobs, or why there is no list

COLUMNS = ("Node", "Job", "State", "Progress", "Last change")
THUMBNAIL = 36  # px
POLL_SECONDS = 2.0  # between two lists
COLOURS = {"failed": "#d05050", "running": "#70b070", "done": "#909090", "cancelled": "#909090"}


class Jobs(qt.QtWidgets.QWidget):  # type: ignore[misc]  # Qt has no types here
    """Lists the server's jobs, newest first; a thread asks for them while the panel is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.setWindowTitle("Reenact jobs")
        self.message = qt.QtWidgets.QLabel("Asking the server.")
        self.table = qt.QtWidgets.QTableWidget(0, len(COLUMNS))
        self.table.setHorizontalHeaderLabels(COLUMNS)
        self.table.horizontalHeader().setStretchLastSection(True)
        self.table.verticalHeader().hide()
        self.table.verticalHeader().setDefaultSectionSize(THUMBNAIL + 4)
        self.table.setIconSize(qt.QtCore.QSize(THUMBNAIL, THUMBNAIL))
        self.table.setEditTriggers(qt.QtWidgets.QAbstractItemView.NoEditTriggers)
        self.table.setSelectionBehavior(qt.QtWidgets.QAbstractItemView.SelectRows)
        layout = qt.QtWidgets.QVBoxLayout(self)
        layout.addWidget(self.message)
        layout.addWidget(self.table)
        row = qt.QtWidgets.QHBoxLayout()
        layout.addLayout(row)
        for label, call in (
            ("Show node", self.show_node),
            ("Cancel", self.cancel),
            ("Resume", self.resume),
        ):
            button = qt.QtWidgets.QPushButton(label)
            button.clicked.connect(call)
            row.addWidget(button)
        row.addStretch()
        self._ids: List[str] = []
        self._answers: "SimpleQueue[Answer]" = SimpleQueue()
        self._closed = Event()
        self._timer = qt.QtCore.QTimer(self)
        self._timer.timeout.connect(self.drain)

    def showEvent(self, event: Any) -> None:
        """Qt: the panel is shown; starts asking for jobs."""
        self._closed = Event()
        Thread(target=_poll, args=(self._answers, self._closed), daemon=True, name="jobs").start()
        self._timer.start(300)

    def hideEvent(self, event: Any) -> None:
        """Qt: the panel is hidden; stops asking for jobs."""
        self._closed.set()
        self._timer.stop()

    def drain(self) -> None:
        """Shows the newest list; never waits."""
        jobs: Answer = ""
        try:
            while True:
                jobs = self._answers.get_nowait()
        except Empty:
            if jobs == "":
                return
        if isinstance(jobs, str):
            self.message.setText(jobs)
            return
        count = len(jobs)
        self.message.setText(f"{count} job{'s' * (count != 1)} on the server.")
        job_nodes, chosen = nodes.SESSION.job_nodes(), self.chosen()
        self._ids = [job["id"] for job in jobs]
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

    def chosen(self) -> str:
        """Returns the id of the selected job; empty if none is selected."""
        rows = self.table.selectionModel().selectedRows()
        return self._ids[rows[0].row()] if rows and rows[0].row() < len(self._ids) else ""

    def show_node(self) -> None:
        """Shows the node that the selected job belongs to."""
        nodes.SESSION.reveal(self.chosen())

    def cancel(self) -> None:
        """Stops the selected job."""
        self._command("cancel")

    def resume(self) -> None:
        """Resumes the selected job."""
        self._command("resume")

    def _command(self, name: str) -> None:
        job = self.chosen()
        if job:
            Thread(target=_command, args=(self._answers, name, job), daemon=True).start()


def _poll(answers: "SimpleQueue[Answer]", closed: Event) -> None:
    """Asks for the jobs repeatedly; runs in a thread."""
    while not closed.is_set():
        try:
            with Client("nuke", CONNECT_SECONDS) as client:
                while not closed.wait(0):
                    answers.put(client.jobs())
                    closed.wait(POLL_SECONDS)
        except ServerError as error:
            answers.put(str(error))
            closed.wait(POLL_SECONDS)


def _command(answers: "SimpleQueue[Answer]", name: str, job: str) -> None:
    """Carries out a command of the client's on a job; runs in a thread."""
    try:
        with Client("nuke", CONNECT_SECONDS) as client:
            getattr(client, name)(job)
            answers.put(client.jobs())
    except ServerError as error:
        answers.put(str(error))


def _progress(job: Dict[str, Any]) -> str:
    progress = job["progress"]
    if job["state"] in ("failed", "paused"):
        return str(job["reason"])
    if not progress or job["state"] in ("done", "cancelled"):
        return ""
    text = str(progress["stage"])
    done = round(progress["done"], 1)
    return f"{text} {done:g}/{progress['total']:g}" if progress["total"] else text
