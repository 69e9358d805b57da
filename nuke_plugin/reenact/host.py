"""All that Reenact's nodes need of Nuke: the only file that imports `nuke`.

It has at most 25 functions, which are called on the main thread. Other modules treat a node as an
opaque handle that only these functions look into, so they can be read and tested without Nuke.
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
    """The script's settings.

    Attributes:
        space: the working space as its knob has it: a name or a role; empty for Nuke's own.
        config: the OCIO config of `space`, a path or `ocio://NAME`; empty for Nuke's own LUTs.
        views: the views; the first is used where none is chosen.
        frame: the current frame.
        nuke: Nuke's version.
    """

    space: str
    config: str
    views: List[str]
    frame: int
    nuke: str


@dataclass(frozen=True)
class Plate:
    """A Read that is connected so that nothing between it and our node changes pixels or time.

    Attributes:
        node: the Read.
        space: its colour space as the Read's menu has it; empty if it is read raw.
        first, last: its frames.
    """

    node: Node
    space: str
    first: int
    last: int


@dataclass(frozen=True)
class Extent:
    """The frames of a node's output, and the height of its format at full size, px."""

    first: int
    last: int
    height: int


# -- the session ---------------------------------------------------------------------------------


def gui() -> bool:
    """Returns whether Nuke has a GUI; False in `nuke -t` and on a farm."""
    return bool(nuke.GUI)


def say(text: str) -> None:
    """Prints a line in the terminal."""
    nuke.tprint(text)


def choose_file(title: str, pattern: str) -> str:
    """Asks the artist for a file; returns an empty text if none was chosen."""
    return nuke.getFilename(title, pattern) or ""


def every(seconds: float, call: Callable[[], None]) -> Callable[[], None]:
    """Calls a function repeatedly from Qt's event loop; returns a function that stops that."""
    from reenact import qt  # not in `nuke -t`

    timer = qt.QtCore.QTimer()
    timer.timeout.connect(call)
    timer.start(int(seconds * 1000))
    return cast("Callable[[], None]", timer.stop)


def on_script_close(call: Callable[[], None]) -> None:
    """Calls a function whenever a script closes."""
    nuke.addOnScriptClose(call)


def add_command(path: str, script: str, icon: str = "") -> None:
    """Adds an entry to the node menu, such as `Reenact/Personalize`."""
    nuke.menu("Nodes").addCommand(path, script, icon=icon)


def add_panel(widget: str, name: str, id: str) -> None:
    """Adds a panel that can be docked in a pane.

    Args:
        widget: an expression that evaluates to the widget's class; saved layouts contain it.
        name: the panel's title.
        id: its id in saved layouts.
    """
    from nukescripts import panels  # not in `nuke -t`

    panels.registerWidgetAsPanel(widget, name, id)


def project() -> Project:
    """Returns the script's current settings."""
    root, variable = nuke.root(), os.environ.get("OCIO", "")
    stock = str(root["OCIO_config"].value())
    space, config = str(root["workingSpaceLUT"].value()), variable
    if not variable:
        knob = "customOCIOConfigPath" if stock == "custom" else "OCIOConfigPath"
        config = _filtered(cast("nuke.File_Knob", root[knob]).evaluate())
    if not nuke.usingOcio() or (stock == "nuke-default" and not variable):
        space, config = "", ""
    return Project(space, config, nuke.views(), nuke.frame(), str(nuke.NUKE_VERSION_STRING))


def go_to(frame: int) -> None:
    """Moves the playhead."""
    nuke.frame(frame)


# -- nodes and knobs -----------------------------------------------------------------------------


def name(node: Node) -> str:
    """Returns a node's full name; empty if it was deleted or its script was closed."""
    try:
        return node.fullName()
    except ValueError:  # "A PythonObject is not attached to a node"
        return ""


def has(node: Node, knob: str) -> bool:
    """Returns whether a node has a knob."""
    return node.knob(knob) is not None


def reveal(node: Node) -> None:
    """Shows a node in the graph, and opens its properties."""
    node.selectOnly()
    nuke.zoomToFitSelected()
    nuke.show(node)


def get(node: Node, knob: str, at: Optional[int] = None) -> Any:
    """Returns a knob's value.

    Args:
        node: has the knob.
        knob: its name. Tcl in files and single lines is evaluated.
        at: the frame of an animated number; None for the current frame.
    """
    found = node[knob]
    if at is not None:
        return cast("nuke.Array_Knob", found).valueAt(at)
    lines = isinstance(found, nuke.Multiline_Eval_String_Knob)  # a # there is no frame number
    if isinstance(found, nuke.EvalString_Knob) and not lines:
        return found.evaluate() or ""
    return found.value()


def put(node: Node, knob: str, value: Any, undo: bool = False) -> None:
    """Sets a knob; with `undo` as a step of the artist's undo."""
    with contextlib.nullcontext() if undo else _no_undo():
        node[knob].setValue(value)


def put_curve(node: Node, knob: str, values: Dict[int, float]) -> None:
    """Sets a knob's keys, one per frame, with linear interpolation; no values reset it to 0."""
    keys = " ".join(f"x{number} {value:.6g}" for number, value in sorted(values.items()))
    with _no_undo():
        node[knob].fromScript(f"{{curve L {keys}}}" if values else "0")


def put_choices(node: Node, knob: str, choices: List[str]) -> None:
    """Sets the items of an enumeration."""
    with _no_undo():
        cast("nuke.Enumeration_Knob", node[knob]).setValues(choices)


def show(node: Node, knob: str, label: str) -> None:
    """Shows a knob under a label; an empty one hides it."""
    with _no_undo():
        node[knob].setVisible(bool(label))
        if label:
            node[knob].setLabel(label)


def inner(node: Node, name: str) -> Node:
    """Returns a node inside one of ours.

    Raises:
        KeyError: it was removed.
    """
    found = cast("nuke.Group", node).node(name)
    if found is None:
        raise KeyError(name)
    return found


def above(node: Node) -> List[Node]:
    """Returns the connected nodes in the order of the inputs: B of a Merge, then A."""
    sources = [node.input(i) for i in range(node.inputs())]
    return [source for source in sources if source is not None]


def paste(beside: Node, text: str, under: Optional[Node]) -> str:
    """Pastes nodes from text.

    Args:
        beside: a node of ours, next to which the last pasted node is placed.
        text: of a Nuke script.
        under: the node that they are connected to; None for none.

    Returns:
        The name of the last pasted node.
    """
    with tempfile.TemporaryDirectory() as folder, beside.parent() as group:  # not inside ours
        path = os.path.join(folder, "nodes.nk")
        with open(path, "w") as file:
            file.write(text)
        for other in group.nodes():
            other["selected"].setValue(False)
        if under is not None:
            under["selected"].setValue(True)
        pasted = nuke.nodePaste(path)
        if pasted is None:
            return ""
        for knob, step in (("xpos", 150), ("ypos", 0)):
            pasted[knob].setValue(beside[knob].value() + step)
        return pasted.name()


# -- pictures ------------------------------------------------------------------------------------


def connected(node: Node) -> Optional[Extent]:
    """Returns the extent of a node's first input; None if nothing is connected."""
    above = node.input(0)
    if above is None:
        return None
    return Extent(above.firstFrame(), above.lastFrame(), above.format().height())


def plate(node: Node) -> Optional[Plate]:
    """Returns the Read that is connected, if its files can be used instead of rendering it."""
    above = node.input(0)
    while above is not None and above.Class() == "Dot":
        above = above.input(0)
    if above is None or above.Class() != "Read" or above["disable"].value():
        return None
    if above["frame_mode"].value() != "expression" or above["frame"].value():
        return None  # shifted in time
    knob = cast("nuke.Enumeration_Knob", above["colorspace"])
    space = str(knob.value())
    if space == "default":  # the menu's first line says which: "default (sRGB)"
        space = str(knob.values()[0])
    space = "" if above["raw"].value() else space
    return Plate(above, space, int(above["first"].value()), int(above["last"].value()))


def plate_files(plate: Plate, numbers: List[int], view: str) -> List[str]:
    """Returns the source file of each frame, in a view; never a localised copy."""
    context = nuke.OutputContext()
    context.setView(context.viewFromName(view))
    knob = cast("nuke.File_Knob", plate.node["file"])
    policy = plate.node["localizationPolicy"]
    before, files = policy.value(), []
    with _no_undo():
        try:
            if before != "off":  # else the knob evaluates to the copy
                policy.setValue("off")
            for number in numbers:
                context.setFrame(number)
                files.append(_filtered(knob.evaluate(context)))
        finally:
            if before != "off":
                policy.setValue(before)
    return files


def render(write: Node, pattern: str, first: int, last: int, view: str) -> None:
    """Renders frames with a Write inside one of our nodes, at full size also in proxy mode.

    The Write and the proxy mode are restored: a Write that kept its file would be rendered
    together with the artist's.

    Raises:
        RuntimeError: Nuke's message; also if the artist cancels.
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
    """Points a Read inside one of our nodes to files, and reloads it."""
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


# -- helpers -------------------------------------------------------------------------------------


def _filtered(path: Optional[str]) -> str:
    """Returns a path as Nuke opens it, after the filters that the studio has added."""
    call = cast("Callable[[str], Optional[str]]", nuke.filenameFilter)
    return call(path) or path if path else ""


@contextlib.contextmanager
def _no_undo() -> Iterator[None]:
    nuke.Undo.disable()
    try:
        yield
    finally:
        nuke.Undo.enable()
