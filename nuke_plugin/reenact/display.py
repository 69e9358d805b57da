"""Shows on a node what has happened: its state, its button, its results, and errors.

What is shown and handed on is in hidden knobs (`shown_version`, `compared_version`): whether a
script keeps the items of the menus `version` and `compare` is not documented.
"""

import contextlib
import dataclasses
import re
from typing import Iterator, List

from reenact import host, older
from reenact.errors import NodeError
from reenact.host import Node
from reenact.kinds import OLDER_INSIDE, kind_of, node_id, node_version, shown_version
from reenact.repairs import RepairLineError
from reenact.runs import BUSY, NodeUpdate, Result
from reenact.versions import NOTHING, UPSTREAM

RED, PLAIN = 0xAA2222FF, 0x4C5A7AFF  # tile colours

# Labels of the node's button, by the update's step.
LABELS = {
    "start": "Start server",
    "retry": "Try again",
    "log": "Show log",
    "resume": "Resume",
    "locate": "Locate character",
    "preview": "Try again",
}


TILE_LENGTH = 39  # characters of a label; Nuke does not wrap longer ones


def show_update(node: Node, update: NodeUpdate, undo: bool = False) -> None:
    """Puts an update on a node. Its state alone does not make a saved script a modified one.

    An approved version that is shown stays, with its track and curves, beside new ones.

    Args:
        node: the node.
        update: the update.
        undo: makes it steps of the artist's undo.
    """
    if "suggested" in update.result.knobs:
        update = _with_suggestions(node, update)
    made, approved = update.result.version, approved_version(node)
    if made and approved not in ("", made) and approved == shown_version(node):
        update = _beside(approved, update)
    for knob, choices in update.result.choices.items():
        host.put_choices(node, knob, choices)
    for read, frames in update.result.reads.items():
        with contextlib.suppress(KeyError):
            host.show_files(host.inner(node, read), frames, undo, read == "Preview")
            if frames.older and read in OLDER_INSIDE.get(kind_of(node).name, ()):
                read_older_layers(node, read)
    for knob, values in update.result.curves.items():
        if host.has(node, knob):
            host.put_curve(node, knob, values, undo)
    for knob, value in update.result.knobs.items():
        if host.has(node, knob):  # a node of an older script may lack it
            host.put(node, knob, value, undo, "Preview" in update.result.reads)
    if update.result.versions or "shown_version" in update.result.knobs:
        fill_menus(node, update.result.versions, update.result.version)
    if update.text:
        show_text(node, update.text, undo)
    if not update.state:
        return
    host.put(node, "job_state", update.state, quiet=True)
    host.put(node, "step", update.step, quiet=True)
    if host.has(node, "next"):
        host.show(node, "next", LABELS.get(update.step, ""))
    if update.state in ("failed", "lost"):
        host.put(node, "tile_color", RED, quiet=True)
    elif host.get(node, "tile_color") == RED:  # any other colour is the artist's
        host.put(node, "tile_color", PLAIN, quiet=True)
    if not host.gui():
        host.say(f"{host.name(node)}: {update.text}")


def read_older_layers(node: Node, inside: str) -> None:
    """Has a node read frames of earlier versions, whose layers it does not declare by itself.

    Args:
        node: the node; one before version 4 reads them as it is.
        inside: the node inside it that hands the frames on.
    """
    if node_version(node) < 4:
        return
    where = host.inner(node, inside)
    x, y = (int(host.get(where, knob)) for knob in ("xpos", "ypos"))
    names = older.first_name(inside), older.last_name(inside)
    host.insert(node, inside, older.text(inside, x, y), *names)


def approved_version(node: Node) -> str:
    """Returns the version that was approved on a node; empty for none."""
    return str(host.get(node, "approved")) if host.has(node, "approved") else ""


def fill_menus(node: Node, versions: List[str], shown: str = "") -> None:
    """Fills a node's menus of versions.

    Args:
        node: the node.
        versions: those that it has made, oldest first; empty for those that are listed.
        shown: the one that it shows; empty for what the node's hidden knob says.
    """
    if host.has(node, "shown_version") or not shown:  # a node of version 2 has only the menu
        shown = shown_version(node)
    compared = str(host.get(node, "compared_version")) if host.has(node, "compare") else ""
    for knob, first, chosen in (("version", UPSTREAM, shown), ("compare", NOTHING, compared)):
        if host.has(node, knob):
            chosen = chosen or first
            choices = [first, *(versions or host.choices(node, knob)[1:])]
            gone = [] if chosen in choices else [chosen]
            host.put_choices(node, knob, [*choices, *gone], chosen)


def show_text(node: Node, text: str, undo: bool = False) -> None:
    """Shows a text as a node's state, and its beginning on the tile."""
    text = plain_text(text)
    host.put(node, "state", text, undo, quiet=True)
    if host.has(node, "tile"):
        host.put(node, "tile", tile_text(text), undo, quiet=True)


def plain_text(text: str) -> str:
    """Returns a text that Tcl shows as it is: knobs and labels are evaluated."""
    return text.translate(str.maketrans("[]\\", "()/", "$"))


def tile_text(text: str) -> str:
    """Returns a text's first sentence, or its beginning, in at most 39 characters."""
    first = re.split(r"(?<=[.]) ", text, maxsplit=1)[0].rstrip(".")
    if len(first) <= TILE_LENGTH:
        return first
    return first[: TILE_LENGTH - 3].rpartition(" ")[0] + "..."


@contextlib.contextmanager
def errors_on(node: Node) -> Iterator[None]:
    """Shows errors of the block on a node instead of raising them; a job under way stays so."""
    try:
        yield
        return
    except (NodeError, RepairLineError) as error:
        text = str(error)
    except OSError as error:
        text = f"{error.filename or 'A file'}: {error.strerror or error}."
    except KeyError as error:
        text = f"The node {error} inside this one is missing. Make a new one."
    state = "" if host.get(node, "job_state") in BUSY else "failed"
    show_update(node, NodeUpdate(node_id(node), state, text[:1].upper() + text[1:]))


def _beside(approved: str, update: NodeUpdate) -> NodeUpdate:
    """Returns an update without what would take the place of an approved version."""
    made, text = update.result.version, update.text
    if update.state == "done":
        text = f"{made} is ready. The approved {approved} stays: choose {made} under version."
    return dataclasses.replace(update, text=text, result=Result(versions=update.result.versions))


def _with_suggestions(node: Node, update: NodeUpdate) -> NodeUpdate:
    """Has suggested repairs listed unless the artist has changed the list."""
    listed, before = (str(host.get(node, knob)).strip() for knob in ("repairs", "suggested"))
    if listed not in ("", before):
        text = f"{update.text} Your list stays. To use the suggestions, Clear it and Measure again."
        return dataclasses.replace(update, text=text)
    knobs = {**update.result.knobs, "repairs": update.result.knobs["suggested"]}
    return dataclasses.replace(update, result=dataclasses.replace(update.result, knobs=knobs))
