"""Nuke, as far as Reenact's nodes need it: the only file that imports `nuke`.

At most 25 functions, all to be called from the main thread. A node is a handle that only these
functions look into, so that the logic (`reenact.nodes`) can be read and tested without Nuke.
"""

import contextlib
import os
import tempfile
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Optional, cast

import nuke

Node = nuke.Node


@dataclass(frozen=True)
class Project:
    """What the script's settings say.

    Attributes:
        space: the working space, by the name that the server's config has for it.
        config: the OCIO config it belongs to: a path, a stock name, or `nuke-default`.
        views: the first is the one that is used where none is chosen.
        frame: the current one.
        nuke: the version.
    """

    space: str
    config: str
    views: List[str]
    frame: int
    nuke: str


@dataclass(frozen=True)
class Plate:
    """A Read whose files are what its node shows: nothing between it and us changes pixels.

    Attributes:
        space: its colour space, as its node names it; empty if it is read raw.
        first, last: the frames that it has.
    """

    node: Node
    space: str
    first: int
    last: int


@dataclass(frozen=True)
class Extent:
    """Of a node's output: the frames that it has, and its format's height at full size, px."""

    first: int
    last: int
    height: int


# -- the session ---------------------------------------------------------------------------------


def gui() -> bool:
    """False in `nuke -t` and on a farm."""
    return bool(nuke.GUI)


def say(text: str) -> None:
    """A line in the terminal."""
    nuke.tprint(text)


def choose_file(title: str, pattern: str) -> str:
    """A file that the artist picks; empty if none."""
    return nuke.getFilename(title, pattern) or ""


def every(seconds: float, call: Callable[[], None]) -> Callable[[], None]:
    """Has Qt's event loop call something again and again; returns what ends it."""
    from reenact import qt  # not in `nuke -t`

    timer = qt.QtCore.QTimer()
    timer.timeout.connect(call)
    timer.start(int(seconds * 1000))
    return cast("Callable[[], None]", timer.stop)


def on_script_close(call: Callable[[], None]) -> None:
    nuke.addOnScriptClose(call)


def add_command(path: str, script: str, icon: str = "") -> None:
    """An entry of the node menu: `Reenact/Personalize`."""
    nuke.menu("Nodes").addCommand(path, script, icon=icon)


def add_panel(widget: str, name: str, id: str) -> None:
    """A panel for the panes: `widget` is its class, as Python finds it."""
    from nukescripts import panels  # not in `nuke -t`

    panels.registerWidgetAsPanel(widget, name, id)


def project() -> Project:
    """Read anew with each call."""
    root = nuke.root()
    config = os.environ.get("OCIO") or root["OCIO_config"].value()
    managed = root["colorManagement"].value() == "OCIO" or "OCIO" in os.environ
    if not managed or config == "nuke-default":
        space, config = "lin_rec709", "nuke-default"  # Nuke's own LUTs
    else:
        space = _plain_space(root["workingSpaceLUT"].value())
    if config == "custom":
        config = cast("nuke.File_Knob", root["customOCIOConfigPath"]).evaluate() or ""
    return Project(space, config, nuke.views(), nuke.frame(), str(nuke.NUKE_VERSION_STRING))


def go_to(frame: int) -> None:
    """Moves the playhead."""
    nuke.frame(frame)


# -- nodes and knobs -----------------------------------------------------------------------------


def name(node: Node) -> str:
    """With the groups that it is in; empty once it was deleted, or its script closed."""
    try:
        return node.fullName()
    except ValueError:  # "A PythonObject is not attached to a node"
        return ""


def has(node: Node, knob: str) -> bool:
    return node.knob(knob) is not None


def reveal(node: Node) -> None:
    """Shows it in the graph, and its knobs."""
    node.selectOnly()
    nuke.zoomToFitSelected()
    nuke.show(node)


def get(node: Node, knob: str, at: Optional[int] = None) -> Any:
    """A knob's value; of a file or another line that can hold Tcl, what it comes to; of a number
    at a frame, if one is given, else at the current one."""
    found = node[knob]
    if at is not None:
        return cast("nuke.Array_Knob", found).valueAt(at)
    lines = isinstance(found, nuke.Multiline_Eval_String_Knob)  # a # in them is no frame
    if isinstance(found, nuke.EvalString_Knob) and not lines:
        return found.evaluate() or ""
    return found.value()


def put(node: Node, knob: str, value: Any, undo: bool = False) -> None:
    """Sets a knob: no step of the artist's undo, unless that is asked for."""
    with contextlib.nullcontext() if undo else _no_undo():
        node[knob].setValue(value)


def put_curve(node: Node, knob: str, values: Dict[int, float]) -> None:
    """Sets a knob's keys: one per frame, straight lines between."""
    keys = " ".join(f"x{number} {value:.6g}" for number, value in sorted(values.items()))
    with _no_undo():
        node[knob].fromScript(f"{{curve L {keys}}}" if values else "0")


def put_choices(node: Node, knob: str, choices: List[str]) -> None:
    """What an enumeration offers."""
    with _no_undo():
        cast("nuke.Enumeration_Knob", node[knob]).setValues(choices)


def show(node: Node, knob: str, label: str) -> None:
    """Shows a knob under a label; an empty one hides it."""
    with _no_undo():
        node[knob].setVisible(bool(label))
        if label:
            node[knob].setLabel(label)


def inner(node: Node, name: str) -> Node:
    """A node inside one of ours.

    Raises:
        KeyError: somebody removed it.
    """
    found = cast("nuke.Group", node).node(name)
    if found is None:
        raise KeyError(name)
    return found


def above(node: Node) -> List[Node]:
    """What is connected, in the order of its inputs: B of a Merge, then A."""
    sources = [node.input(i) for i in range(node.inputs())]
    return [source for source in sources if source is not None]


def paste(beside: Node, text: str, under: Optional[Node]) -> str:
    """Makes nodes of their text, next to one of ours and connected to another; the last's name."""
    with tempfile.TemporaryDirectory() as folder, beside.parent() as group:  # else inside ours
        path = os.path.join(folder, "nodes.nk")
        with open(path, "w") as file:
            file.write(text)
        for other in group.nodes():
            other["selected"].setValue(False)
        if under is not None:
            under["selected"].setValue(True)
        made = nuke.nodePaste(path)
        if made is None:
            return ""
        for knob, step in (("xpos", 150), ("ypos", 0)):
            made[knob].setValue(beside[knob].value() + step)
        return made.name()


# -- pictures ------------------------------------------------------------------------------------


def connected(node: Node) -> Optional[Extent]:
    """How far what is connected reaches; None if nothing is."""
    above = node.input(0)
    if above is None:
        return None
    return Extent(above.firstFrame(), above.lastFrame(), above.format().height())


def plate(node: Node) -> Optional[Plate]:
    """The Read that is connected, if its files are what comes out of it."""
    above = node.input(0)
    while above is not None and above.Class() == "Dot":
        above = above.input(0)
    if above is None or above.Class() != "Read" or above["disable"].value():
        return None
    if above["frame_mode"].value() != "expression" or above["frame"].value():
        return None  # shifted in time
    space = "" if above["raw"].value() else _plain_space(above["colorspace"].value())
    return Plate(above, space, int(above["first"].value()), int(above["last"].value()))


def plate_files(plate: Plate, numbers: List[int], view: str) -> List[str]:
    """The file of each frame, in a view."""
    context = nuke.OutputContext()
    context.setView(context.viewFromName(view))
    knob = cast("nuke.File_Knob", plate.node["file"])
    files = []
    for number in numbers:
        context.setFrame(number)
        files.append(str(knob.evaluate(context) or ""))
    return files


def render(write: Node, pattern: str, first: int, last: int, view: str) -> None:
    """Has a Write inside one of our nodes write frames at full size, whatever the proxy is. Both
    are left as they were: a Write that has a file would be rendered with all others.

    Raises:
        RuntimeError: what Nuke says, also where the artist cancels.
    """
    changes = [(nuke.root()["proxy"], False), (write["file"], pattern)]
    before = [knob.value() for knob, _ in changes]
    with _no_undo():
        try:
            for knob, value in changes:
                knob.setValue(value)
            nuke.execute(write, first, last, 1, [view])
        finally:
            for (knob, _), value in zip(changes, before):
                knob.setValue(value)


def show_files(read: Node, pattern: str, first: int, last: int) -> None:
    """Points a Read inside one of our nodes to other files."""
    with _no_undo():
        read["file"].setValue(pattern)
        for knob, number in (
            ("first", first),
            ("origfirst", first),
            ("last", last),
            ("origlast", last),
        ):
            read[knob].setValue(number)
        cast("nuke.Script_Knob", read["reload"]).execute()


# -- on the way ----------------------------------------------------------------------------------


def _plain_space(shown: str) -> str:
    """A colour space as the config names it: menus wrap names, "default (ACES - ACEScg)"."""
    inside = shown[shown.find("(") + 1 : -1]
    roles = ("default", "scene_linear", "compositing_log", "color_picking", "matte_paint")
    wrapped = shown.endswith(")") and shown.partition(" (")[0] in roles
    return inside if wrapped else shown.rpartition("/")[2]


@contextlib.contextmanager
def _no_undo() -> Iterator[None]:
    nuke.Undo.disable()
    try:
        yield
    finally:
        nuke.Undo.enable()
