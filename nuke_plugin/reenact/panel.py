"""A panel for Nuke: lists the servers' jobs, and shows the chosen one while it works."""

import contextlib
import dataclasses
import os
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

from reenact import launcher, nodes, protocol, qt
from reenact.address import server_at
from reenact.client import Client, home
from reenact.errors import NodeError, ServerError
from reenact.graph import Curve, Graph, Sheet
from reenact.protocol import FINISHED, TRAINING, File
from reenact.runs import CONNECT_SECONDS, unexpected

COLUMNS = ("Node", "Job", "State", "Progress", "Last change", "Server")
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


Job = Dict[str, Any]  # as the server lists it
Content = Union[List[Job], Detail, Refusal, str]  # a text: why there is no list
Answer = Tuple[str, Content]  # and which server it is from, as a node names it
Request = Tuple[str, str]  # a command of the client's, or "" to look at a job; and the job's id
Asked = Tuple["SimpleQueue[Request]", Event]  # what a thread is to do, and whether it ends


class Jobs(qt.QtWidgets.QWidget):  # type: ignore[misc]  # Qt has no types here
    """Lists the servers' jobs, newest first, and shows figures and pictures of the chosen one.

    The servers are those that the script's nodes use. A thread for each asks it while the panel is
    shown; nothing here waits.
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
        self.graph, self.sheet = Graph(), Sheet(self._open)
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
        self._lists: Dict[str, Union[List[Job], str]] = {}  # by server: its jobs, or why not
        self._rows: List[Tuple[str, Job]] = []  # of the table: a server and its job
        self._detail = Detail("", [])
        self._refused = ""  # why the server did not do the last command
        self._answers: "SimpleQueue[Answer]" = SimpleQueue()
        self._asked: Dict[str, Asked] = {}  # by server
        self._timer = qt.QtCore.QTimer(self)
        self._timer.timeout.connect(self.drain)
        self.table.itemSelectionChanged.connect(self._choose)
        self._show_detail()

    def showEvent(self, event: Any) -> None:
        """Qt: the panel is shown; starts asking the servers."""
        self._ask_servers()
        self._timer.start(300)

    def hideEvent(self, event: Any) -> None:
        """Qt: the panel is hidden; stops asking the servers."""
        self._timer.stop()
        for server in list(self._asked):
            self._forget(server)

    def _ask_servers(self) -> None:
        """Asks the servers that the script's nodes use by now, and no others."""
        servers = nodes.SESSION.servers()
        for server in [server for server in self._asked if server not in servers]:
            self._forget(server)
        for server in [server for server in servers if server not in self._asked]:
            requests, closed = self._asked[server] = SimpleQueue(), Event()
            if self._chosen_row()[0] == server:
                requests.put(("", self.chosen()))
            arguments = (server, self._answers, requests, closed)
            Thread(target=_work, args=arguments, daemon=True, name="jobs").start()

    def _forget(self, server: str) -> None:
        requests, closed = self._asked.pop(server)
        closed.set()
        requests.put(("", ""))  # wakes the thread

    def drain(self) -> None:
        """Shows the newest answers; never waits."""
        self._ask_servers()
        gone = [server for server in self._lists if server not in self._asked]
        for server in gone:
            del self._lists[server]
        news = bool(gone)
        with contextlib.suppress(Empty):
            while True:
                server, answer = self._answers.get_nowait()
                if server not in self._asked:
                    continue  # it was asked before the nodes named another one
                if isinstance(answer, Refusal):
                    self._refused = answer.text
                elif isinstance(answer, Detail):
                    before = self._detail
                    if answer.sheet is None and answer.job == before.job:  # it has gone meanwhile
                        answer = dataclasses.replace(answer, sheet=before.sheet, image=before.image)
                    self._detail = answer
                else:
                    self._lists[server], news = answer, True
        if news:
            self._show_jobs()
        self._show_detail()

    # -- the table

    def _show_jobs(self) -> None:
        job_nodes, (chosen_server, chosen) = nodes.SESSION.job_nodes(), self._chosen_row()
        rows = _merged(self._lists, job_nodes)
        troubles = {name: text for name, text in self._lists.items() if isinstance(text, str)}
        texts = []
        if len(troubles) < len(self._lists):
            texts.append(_counted(len(rows), len(self._lists) - len(troubles)))
        for server, trouble in sorted(troubles.items()):
            texts.append(f"{server}: {trouble}" if server else trouble)
        self.message.setText(" ".join([*texts, self._refused]).rstrip())
        self.table.setColumnHidden(COLUMNS.index("Server"), len(self._lists) < 2)
        self.table.blockSignals(True)  # rows move below the selection: nothing else is chosen
        self._rows = rows
        self.table.clearSelection()
        self.table.setRowCount(len(rows))
        for row, (server, job) in enumerate(rows):
            when = time.strftime("%d %b %H:%M", time.localtime(job["updated"]))
            name, picture = job_nodes.get((server, job["id"]), ("", None))
            cells = (name, job["kind"], job["state"], _progress(job), when, _shown_name(server))
            for column, text in enumerate(cells):
                item = qt.QtWidgets.QTableWidgetItem(text)
                item.setToolTip(job["reason"] or text)
                if column == 0 and picture is not None and picture.is_file():
                    item.setIcon(qt.QtGui.QIcon(str(picture)))
                if column == 2 and job["state"] in COLOURS:
                    item.setForeground(qt.QtGui.QColor(COLOURS[job["state"]]))
                self.table.setItem(row, column, item)
            if (server, job["id"]) == (chosen_server, chosen.get("id")):
                self.table.selectRow(row)
        self.table.blockSignals(False)

    def chosen(self) -> str:
        """Returns the id of the selected job; empty if none is selected."""
        return str(self._chosen_row()[1].get("id", ""))

    def _chosen_row(self) -> Tuple[str, Job]:
        """Returns the server and the job of the selected row; both are empty for none."""
        rows = self.table.selectionModel().selectedRows()
        return self._rows[rows[0].row()] if rows and rows[0].row() < len(self._rows) else ("", {})

    def _choose(self) -> None:
        """Another job was selected."""
        self._detail = Detail("", [])  # two servers may give a job the same id
        self._request("")
        self._show_detail()

    # -- the chosen job

    def _show_detail(self) -> None:
        """Shows what is known of the chosen job, and which buttons make sense for it."""
        job = self._chosen_row()[1]
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
        nodes.SESSION.reveal(self._chosen_row()[0], self.chosen())

    def cancel(self) -> None:
        """Stops the selected job."""
        self._request("cancel")

    def resume(self) -> None:
        """Resumes the selected job."""
        self._request("resume")

    def finish(self) -> None:
        """Stops the selected job's training, and keeps a whole result of what it has."""
        self._request("finish")

    def _open(self, path: Path) -> None:
        """Opens the pictures in the desktop's viewer."""
        try:
            launcher.open_path(path)
        except (NodeError, OSError) as error:
            self._refused = str(error)
            self._show_jobs()

    def _request(self, command: str) -> None:
        """Has a command carried out on the selected job; with an empty one, it is looked at."""
        self._refused = ""
        chosen, job = self._chosen_row()
        for server, (requests, _) in self._asked.items():
            if server == chosen and job:
                requests.put((command, job["id"]))
            elif not command:
                requests.put(("", ""))  # its job is not looked at any more


# -- the thread ----------------------------------------------------------------------------------


def _work(
    server: str, answers: "SimpleQueue[Answer]", requests: "SimpleQueue[Request]", closed: Event
) -> None:
    """Asks a server for its jobs and the chosen one repeatedly, and carries out commands."""
    chosen, shown = "", None
    while not closed.is_set():
        try:
            with Client("nuke", CONNECT_SECONDS, server_at(server)) as client:
                while not closed.is_set():
                    for command, job in _taken(requests):
                        if command:
                            refused = _carry_out(client, command, job)
                            if refused is not None:
                                answers.put((server, refused))
                        else:
                            chosen, shown = job, None
                    if closed.is_set():
                        return
                    jobs = client.jobs()
                    answers.put((server, jobs))
                    found = [job for job in jobs if job["id"] == chosen]
                    now = {k: v for k, v in found[0].items() if k != "reason"} if found else None
                    if now is not None and now != shown:
                        answers.put((server, _look(client, now)))
                        shown = now
        except ServerError as error:
            answers.put((server, str(error)))
            closed.wait(POLL_SECONDS)
        except Exception as error:
            traceback.print_exc()
            answers.put((server, unexpected(error)))
            closed.wait(POLL_SECONDS)


def _taken(requests: "SimpleQueue[Request]") -> List[Request]:
    """Returns what was requested, after waiting for it as long as a list may be shown."""
    taken: List[Request] = []
    with contextlib.suppress(Empty):
        taken.append(requests.get(timeout=POLL_SECONDS))
        while True:
            taken.append(requests.get_nowait())
    return taken


def _carry_out(client: Client, command: str, job: str) -> Optional[Refusal]:
    """Carries out a command of the client's on a job; returns why the server refused it.

    Raises:
        ServerError: the server does not answer.
    """
    try:
        getattr(client, command)(job)
    except ServerError as error:
        if error.code == "no_server":
            raise
        return Refusal(str(error))
    return None


def _look(client: Client, job: Job) -> Detail:
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


def _newest_sheet(client: Client, job: Job) -> Optional[Path]:
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


def _merged(
    lists: Dict[str, Union[List[Job], str]], job_nodes: Mapping[Tuple[str, str], Any]
) -> List[Tuple[str, Job]]:
    """Returns the jobs of all servers, newest first.

    A server that nodes name in two ways lists its jobs twice: each is shown once, under the name
    that its node uses.
    """
    rows: Dict[Tuple[str, float], Tuple[str, Job]] = {}
    for server, jobs in lists.items():
        for job in jobs if isinstance(jobs, list) else ():
            key = job["id"], job["created"]
            if key not in rows or (server, job["id"]) in job_nodes:
                rows[key] = server, job
    return sorted(rows.values(), key=lambda row: -row[1]["created"])


def _shown_name(server: str) -> str:
    return server or os.environ.get("REENACT_SERVER") or "this machine"


def _counted(jobs: int, servers: int) -> str:
    where = "the server" if servers == 1 else f"{servers} servers"
    return f"{jobs} job{'s' * (jobs != 1)} on {where}."


def _progress(job: Job) -> str:
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
