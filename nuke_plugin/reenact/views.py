"""Runs of several views of a shot: one version, in which each view has a folder.

    NAME_v001/run.json                       # names the views, in their order
    NAME_v001/left/run.json, track.latents, NAME_v001.left.1001.exr
    NAME_v001/right/...

A view's folder is as the version of one view. Reads show all of them, with `%V` for the view.
Nothing here knows Nuke.
"""

import contextlib
import json
from pathlib import Path
from threading import Thread
from typing import Any, Dict, Iterable, Iterator, List, Optional, Type

from reenact.address import server_at
from reenact.client import Client
from reenact.errors import ServerError
from reenact.files import mark_version, version_for, versions_of, write_file
from reenact.runs import NodeUpdate, Result, Run, RunRequest
from reenact.versions import version_result


def has_views(request: Optional[RunRequest], folder: str) -> bool:
    """Returns whether a request, or the version in a folder, is of several views."""
    if request is not None:
        return bool(request.views)
    if not folder:
        return False
    with contextlib.suppress(OSError, ValueError):
        return "views" in json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))
    return False


class ViewsRun(Run):
    """Carries out a request with `views`: submits all of them, and follows them in turn.

    The node shows the version once all its views have frames; a view that is not there yet would
    be an error in its Read.

    Args:
        kind: the run of one view.
        *arguments, **options: as for `Run`.
    """

    def __init__(self, kind: Type[Run], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._kind = kind
        self._parts: Dict[str, Run] = {}  # by view
        self._stopped: List[NodeUpdate] = []

    def cancel(self) -> None:
        """Stops the work on all views; what is done stays. Returns at once."""
        self._cancelled.set()
        jobs = [part._job for part in self._parts.values() if part._job]
        if jobs:
            Thread(target=self._cancel_jobs, args=(jobs,), daemon=True).start()

    def _cancel_jobs(self, jobs: List[str]) -> None:
        try:
            with Client("nuke", server=server_at(self.server)) as client:
                for job in jobs:
                    with contextlib.suppress(ServerError):  # it has ended
                        client.cancel(job)
        except ServerError as error:
            self._update("lost", f"{error} The jobs could not be cancelled.", "start")

    def _part_of(self, view: str, folder: str = "") -> Run:
        """Returns the run of a view; its results are shown with those of the others."""

        def on_update(update: NodeUpdate) -> None:
            if update.state in ("cancelled", "paused"):
                self._stopped.append(update)
            elif update.text:
                state = "running" if update.state == "done" else update.state
                self._update(state, f"{view}: {update.text}", update.step)

        part = self._kind(
            self.id,
            on_update,
            folder=folder,
            resume=self._resume,
            server=self.server,
            view=view,
        )
        part._cancelled, part._detached, part.jobs = self._cancelled, self._detached, self.jobs
        self._parts[view] = part
        return part

    def _begin(self, client: Client, request: RunRequest) -> None:
        """Sends all views, then submits their first jobs, and creates the version's folders."""
        for view, one in request.views.items():
            with _named(view):
                self._part_of(view)._begin(client, one)
        key = " ".join(part.submit_first(client) for part in self._parts.values())
        version = version_for(Path(request.folder), request.name, key)
        for view, part in self._parts.items():
            (version / view).mkdir(exist_ok=True)
            part.enter(version / view, f"{version.name}.{view}")
        content = {
            "kind": request.kind,
            "views": list(self._parts),
            "jobs": [part._job for part in self._parts.values()],
            "character": request.character,
        }
        write_file(version / "run.json", json.dumps(content).encode())
        self.folder, self._resume = str(version), True
        text = f"Submitted: {_listed(self._parts)}."
        self._update("queued", text, result=Result({"run": version}))

    def _continue(self, client: Client) -> None:
        version = Path(self.folder)
        try:
            content = json.loads((version / "run.json").read_text(encoding="utf-8"))
            views, jobs = content["views"], content["jobs"]
        except (OSError, ValueError, KeyError):
            raise ServerError(
                "no_run",
                f"{version} is gone or damaged. Submit again: what is done is not done twice.",
            ) from None
        if not self._parts:
            for view, job in zip(views, jobs):
                self._part_of(view, str(version / view))._job = job
        for view in views:
            with _named(view):
                self._parts[view]._continue(client)
            if self._stopped:
                break
        self._show(version, views)

    def _show(self, version: Path, views: List[str]) -> None:
        """Shows the version, if all views have frames."""
        result = Result()
        try:
            result = version_result(version)
            mark_version(version, self.id)
            result.versions.extend(versions_of(version.parent, self.id))
        except (OSError, ServerError):
            if not self._stopped:
                raise
        if self._stopped:
            why = self._stopped[0]
            self._update(why.state, why.text, "resume", result)
        else:
            self._update("done", f"{version.name}: {_listed(views)}.", result=result)


@contextlib.contextmanager
def _named(view: str) -> Iterator[None]:
    """Has errors of the block say which view they are about."""
    try:
        yield
    except ServerError as error:
        raise ServerError(error.code, f"View {view}: {error}", error.detail) from error


def _listed(views: Iterable[str]) -> str:
    *others, last = views
    return f"views {', '.join(others)} and {last}" if others else f"view {last}"
