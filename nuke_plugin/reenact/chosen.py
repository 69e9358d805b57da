"""Shows what a node's menus of versions choose, in one step of the artist's undo.

Nuke calls knobChanged for what an artist chooses. A program may set a menu, and undo may restore
one, without that: so a menu is compared with what is shown wherever that matters (`show_chosen`).
"""

import contextlib
import dataclasses
import re
from pathlib import Path
from typing import Iterator, List

from reenact import host
from reenact.display import errors_on, fill_menus, show_update
from reenact.errors import NodeError, ServerError
from reenact.files import versions_of
from reenact.host import Node
from reenact.kinds import kind_of, node_id, shown_version
from reenact.runs import NodeUpdate, Result
from reenact.versions import NOTHING, UPSTREAM, version_frames, version_result


def show_chosen(node: Node) -> None:
    """Shows what the menus choose, where something else is shown.

    A node that is not whole yet may show the first item of a menu that has lost the others.
    """
    if not kind_of(node).has_track or not host.has(node, "shown_version"):
        return
    compared = str(host.get(node, "compared_version"))
    for knob, shown, first, show in (
        ("compare", compared, NOTHING, compare),
        ("version", shown_version(node), UPSTREAM, show_version),  # which fills both menus
    ):
        chosen = str(host.get(node, knob))
        if chosen != (shown or first) and (chosen != first or host.is_ready(node)):
            show(node)


def show_version(node: Node) -> None:
    """Shows the chosen version, or what comes in."""
    with errors_on(node):
        version = str(host.get(node, "version"))
        nothing = {"track": "", "shown_version": UPSTREAM, "show": "result"}
        result = Result(
            {**nothing, "has_result": False, "has_crops": False}, {"keypoint_error": {}}
        )
        if version != UPSTREAM:
            with _gone_is_said(node, version):
                result = version_result(results_folder(node) / version)
        # Not as a version that was made just now: an approved one does not stay beside it.
        result = dataclasses.replace(result, version="")
        _show(node, f"Shows {version}.", result)


def compare(node: Node) -> None:
    """Shows the chosen version right of the wipe, or nothing there."""
    with errors_on(node):
        version, text = str(host.get(node, "compare")), "Compares with nothing."
        result = Result({"has_compare": False, "compared_version": ""})
        if version != NOTHING:
            with _gone_is_said(node, version):
                frames = version_frames(results_folder(node) / version)
            knobs = {"has_compare": True, "compared_version": version}
            result = Result(knobs, reads={"Compare": frames})
            text = f"Right of the wipe: {version}."
        _show(node, text, result)


@contextlib.contextmanager
def _gone_is_said(node: Node, version: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, ServerError):
        restore_menu(node)
        text = f"There is no {version} in {results_folder(node)} any more. Choose another version."
        raise NodeError(text) from None


def _show(node: Node, text: str, result: Result) -> None:
    with host.undo_step(text.rstrip(".")):
        show_update(node, NodeUpdate(node_id(node), "", text, result=result), undo=True)


def restore_menu(node: Node) -> None:
    """Fills the menus of a node's versions: a script may not keep their items."""
    if host.has(node, "shown_version"):
        listed: List[str] = []
        with contextlib.suppress(NodeError, OSError):  # never saved, or a folder that is gone
            listed = versions_of(results_folder(node), node_id(node))
        fill_menus(node, listed)


def results_folder(node: Node) -> Path:
    """Returns the folder of a node's versions.

    Raises:
        NodeError: the folder is relative to a script that was never saved.
    """
    folder = Path(str(host.get(node, "folder")))
    if not folder.is_absolute():
        raise NodeError("Save the script first, or choose a folder for the results.")
    if re.search(r"#|%0?\d*[dvV]", folder.as_posix()):
        raise NodeError(f"Nuke takes the # or % in {folder} for numbers. Choose another folder.")
    return folder
