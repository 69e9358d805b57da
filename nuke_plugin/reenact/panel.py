"""A panel for Nuke's panes: the server's jobs, which nodes they belong to, and how far they are."""

import time
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, Dict, List, Union

from reenact import nodes, qt, runs
from reenact.client import Client, ServerError

Seen = Union[List[Dict[str, Any]], str]  # the server's jobs, or why there is no list

COLUMNS = ("Node", "Job", "State", "Progress", "Last change")
THUMBNAIL = 36  # px
ASKED_SECONDS = 2.0  # between two lists
COLOURS = {"failed": "#d05050", "running": "#70b070", "done": "#909090", "cancelled": "#909090"}


class Jobs(qt.QtWidgets.QWidget):  # type: ignore[misc]  # Qt has no types here
    """The server's jobs, the newest first; a thread asks for them while the panel is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.setWindowTitle("Reenact jobs")
        self.said = qt.QtWidgets.QLabel("Asking the server.")
        self.table = qt.QtWidgets.QTableWidget(0, len(COLUMNS))
        self.table.setHorizontalHeaderLabels(COLUMNS)
        self.table.horizontalHeader().setStretchLastSection(True)
        self.table.verticalHeader().hide()
        self.table.verticalHeader().setDefaultSectionSize(THUMBNAIL + 4)
        self.table.setIconSize(qt.QtCore.QSize(THUMBNAIL, THUMBNAIL))
        self.table.setEditTriggers(qt.QtWidgets.QAbstractItemView.NoEditTriggers)
        self.table.setSelectionBehavior(qt.QtWidgets.QAbstractItemView.SelectRows)
        layout = qt.QtWidgets.QVBoxLayout(self)
        layout.addWidget(self.said)
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
        self._seen: "SimpleQueue[Seen]" = SimpleQueue()
        self._closed = Event()
        self._timer = qt.QtCore.QTimer(self)
        self._timer.timeout.connect(self.drain)

    def showEvent(self, event: Any) -> None:
        """Qt: it is in sight."""
        self._closed = Event()
        Thread(target=_ask, args=(self._seen, self._closed), daemon=True, name="jobs").start()
        self._timer.start(300)

    def hideEvent(self, event: Any) -> None:
        """Qt: it is not."""
        self._closed.set()
        self._timer.stop()

    def drain(self) -> None:
        """Shows the newest list; never waits."""
        seen: Seen = ""
        try:
            while True:
                seen = self._seen.get_nowait()
        except Empty:
            if seen == "":
                return
        if isinstance(seen, str):
            self.said.setText(seen)
            return
        count = len(seen)
        self.said.setText(f"{count} job{'s' * (count != 1)} on the server.")
        nodes_of, chosen = nodes.of_jobs(), self.chosen()
        self._ids = [job["id"] for job in seen]
        self.table.setRowCount(count)
        for row, job in enumerate(seen):
            when = time.strftime("%d %b %H:%M", time.localtime(job["updated"]))
            name, picture = nodes_of.get(job["id"], ("", None))
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
        """The id of the job that is selected; empty if none is."""
        rows = self.table.selectionModel().selectedRows()
        return self._ids[rows[0].row()] if rows and rows[0].row() < len(self._ids) else ""

    def show_node(self) -> None:
        """Opens the node that the job belongs to."""
        nodes.reveal(self.chosen())

    def cancel(self) -> None:
        """Stops the job."""
        self._tell("cancel")

    def resume(self) -> None:
        """Has it go on."""
        self._tell("resume")

    def _tell(self, what: str) -> None:
        job = self.chosen()
        if job:
            Thread(target=_command, args=(self._seen, what, job), daemon=True).start()


def _ask(seen: "SimpleQueue[Seen]", closed: Event) -> None:
    """Asks for the jobs again and again: a thread."""
    while not closed.is_set():
        try:
            with Client("nuke", runs.HELLO_SECONDS) as client:
                while not closed.wait(0):
                    seen.put(client.jobs())
                    closed.wait(ASKED_SECONDS)
        except ServerError as error:
            seen.put(str(error))
            closed.wait(ASKED_SECONDS)


def _command(seen: "SimpleQueue[Seen]", what: str, job: str) -> None:
    try:
        with Client("nuke", runs.HELLO_SECONDS) as client:
            getattr(client, what)(job)
            seen.put(client.jobs())
    except ServerError as error:
        seen.put(str(error))


def _progress(job: Dict[str, Any]) -> str:
    progress = job["progress"]
    if job["state"] in ("failed", "paused"):
        return str(job["reason"])
    if not progress or job["state"] in ("done", "cancelled"):
        return ""
    text = str(progress["stage"])
    done = round(progress["done"], 1)
    return f"{text} {done:g}/{progress['total']:g}" if progress["total"] else text
