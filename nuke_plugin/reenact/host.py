"""All that Reenact's nodes need of Nuke: the only file that imports `nuke`.

Its functions are called on the main thread. Other modules treat a node as an opaque handle that
only these functions look into, so they can be read and tested without Nuke.

While a script loads, root does not exist yet and a node's knobs arrive one after the other. What
Nuke calls then (`nodes.on_create`, `nodes.knob_changed`) uses `is_ready` and `after_this` alone.
"""

import contextlib
import functools
import os
import re
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Callable, Dict, FrozenSet, Iterator, List, Optional, Tuple, Union, cast

import nuke

from reenact.files import FRAME_NUMBER, Frames, digits

Node = nuke.Node

# What `show_files` sets of a Read, apart from what all of ours have.
_FRAMES = ("file", "first", "last", "origfirst", "origlast", "on_error")

# Knobs of nodes inside ours that hold results, or that knobs of ours link to.
_INSIDE = {
    **dict.fromkeys(
        ("Result", "Compare", "Preview", "Crops", "Selection", "Reconstruction"), _FRAMES
    ),
    "Match": ("multiply", "add"),
}

# Nodes that show other frames than those that come in; TimeOffset and TimeClip may.
_RETIMING = ("AppendClip", "FrameHold", "Kronos", "Retime", "TimeWarp")
_BY_VARIABLE = "VariableSwitch"  # shows one of its inputs, from Nuke 16 on

# Knobs that hold no value of a node's own.
_NO_VALUES = (nuke.Script_Knob, nuke.Text_Knob, nuke.Tab_Knob, nuke.Link_Knob)

# Knobs in which Nuke keeps something for itself.
_NUKES_OWN = ("indicators", "panelDropped", "rootNodeUpdated")

READY = "ready"  # a knob that is not saved: whether the node is whole

_ours = 0  # how many changes of ours are under way
_rendering = False  # whether Nuke renders for us


@dataclass(frozen=True)
class Project:
    """The script's settings.

    Attributes:
        space: the working space as its knob has it: a name or a role; empty for Nuke's own.
        config: the OCIO config of `space`, a path or `ocio://NAME`; empty for Nuke's own LUTs.
        views: the views; the first is used where none is chosen.
    """

    space: str
    config: str
    views: List[str]


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
    """The frames of a node's output, and width and height of its format at full size, px."""

    first: int
    last: int
    width: int
    height: int


# -- the session ---------------------------------------------------------------------------------


def gui() -> bool:
    """Returns whether Nuke has a GUI; False in `nuke -t` and on a farm."""
    return bool(nuke.GUI)


def say(text: str) -> None:
    """Prints a line in the terminal."""
    nuke.tprint(text)


def version() -> str:
    """Returns Nuke's version."""
    return str(nuke.NUKE_VERSION_STRING)


def choose_file(title: str, pattern: str = "") -> str:
    """Asks the artist for a file or a folder; returns an empty text if none was chosen."""
    return (nuke.getFilename(title, pattern) or "").replace("\\", "/")


def every(seconds: float, call: Callable[[], None]) -> Callable[[], None]:
    """Calls a function repeatedly from Qt's event loop; returns a function that stops that."""
    from reenact import qt  # not in `nuke -t`

    timer = qt.QtCore.QTimer()
    timer.timeout.connect(call)
    timer.start(int(seconds * 1000))
    return cast("Callable[[], None]", timer.stop)


def on_script_close(call: Callable[[], None]) -> None:
    """Calls a function whenever a script closes; what it raises does not reach Nuke."""
    nuke.addOnScriptClose(guarded(call))


def on_script_load(call: Callable[[], None]) -> None:
    """Calls a function whenever a script is loaded: its nodes are whole, and root exists."""
    nuke.addOnScriptLoad(guarded(call))


def on_script_save(call: Callable[[], None]) -> None:
    """Calls a function before a script is saved."""
    nuke.addOnScriptSave(guarded(call))


_signs: List[Any] = []  # that what `after_this` waits for has not returned


def after_this(call: Callable[[], None]) -> None:
    """Calls a function once what runs now has returned to the event loop that it was called from.

    Neither events that are processed meanwhile nor windows that wait for an answer are taken for
    that, however long they last, as while a script loads: Qt deletes an object no sooner after
    `deleteLater` (https://doc.qt.io/qt-6/qobject.html#deleteLater). Before the program's own event
    loop runs, Qt takes a window's for it: then nothing is called, and `on_script_load` has to do.
    """
    from reenact import qt  # not in `nuke -t`

    early = qt.QtCore.QThread.currentThread().loopLevel() == 0
    sign, timer = qt.QtCore.QObject(), qt.QtCore.QTimer()
    _signs.append((sign, timer))

    def look() -> None:  # Qt looks at what is to be deleted when something is posted
        qt.QtCore.QCoreApplication.postEvent(timer, qt.QtCore.QEvent(qt.QtCore.QEvent.User))

    def returned(*_: Any) -> None:
        timer.stop()
        _signs[:] = [both for both in _signs if both[1] is not timer]
        if not (early and qt.QtWidgets.QApplication.activeModalWidget()):
            call()

    sign.destroyed.connect(guarded(returned))
    timer.timeout.connect(look)
    timer.start(100)
    sign.deleteLater()


def guarded(call: Callable[..., None]) -> Callable[..., None]:
    """Returns a function that prints what `call` raises: Nuke's own work goes on."""

    @functools.wraps(call)
    def run(*arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception:
            say("Reenact: " + traceback.format_exc())

    return run


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
    return Project(space, config, nuke.views())


def frame() -> int:
    """Returns the current frame."""
    return int(nuke.frame())


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


def is_ready(node: Node) -> bool:
    """Returns whether a node is whole, and was not changed by ourselves just now.

    The only thing that may be asked of a node while its script loads.
    """
    knob = node.knob(READY)
    return _ours == 0 and knob is not None and bool(knob.value())


def set_ready(node: Node) -> None:
    """Notes that a node is whole; nodes of older scripts get the knob for it."""
    with _own_change(quiet=True):
        if node.knob(READY) is None:
            knob = nuke.Boolean_Knob(READY, READY)
            knob.setFlag(nuke.INVISIBLE | nuke.DO_NOT_WRITE)
            node.addKnob(knob)
        node[READY].setValue(True)


def is_clone(node: Node) -> bool:
    """Returns whether a node shares its knobs with clones of it (Alt+K)."""
    return node.clones() > 0


def are_clones(node: Node, other: Node) -> bool:
    """Returns whether two nodes of ours are clones of each other: a change shows on both."""
    if not (is_clone(node) and is_clone(other)):
        return False
    knob, seen = node["reenact_id"], other["reenact_id"]
    before = knob.value()
    with _own_change(quiet=True):
        try:
            knob.setValue("cloned?")
            return bool(seen.value() == "cloned?")
        finally:
            knob.setValue(before)


def get(node: Node, knob: str, at: Optional[int] = None, raw: bool = False) -> Any:
    """Returns a knob's value.

    Args:
        node: has the knob.
        knob: its name. Tcl in files and single lines is evaluated. The back slashes of a path that
            was pasted from Windows become slashes, before Tcl takes them for escapes.
        at: the frame of an animated number; None for the current frame.
        raw: returns Tcl as it is.
    """
    found = node[knob]
    if at is not None:
        return cast("nuke.Array_Knob", found).valueAt(at)
    lines = isinstance(found, nuke.Multiline_Eval_String_Knob)  # a # there is no frame number
    if isinstance(found, nuke.EvalString_Knob) and not lines and not raw:
        text = str(found.value() or "")
        if re.search(r"\\(?![\[\]$])", text):
            return text.replace("\\", "/")
        return found.evaluate() or ""
    return found.value()


def put(node: Node, knob: str, value: Any, undo: bool = False, quiet: bool = False) -> None:
    """Sets a knob that has another value.

    Args:
        node: has the knob.
        knob: its name.
        value: a `Path` is written with slashes, and so that Tcl reads it as it is. Frame numbers
            of files are written as `%04d`, which Nuke gives for `####`, too.
        undo: makes it a part of the artist's undo: of the `undo_step` around it.
        quiet: leaves an unmodified script unmodified.
    """
    found = node[knob]
    if isinstance(value, PurePath):
        value = _tcl_path(value)
    if isinstance(found, nuke.File_Knob):
        value = re.sub(r"#+", lambda hashes: f"%0{len(hashes[0])}d", value)
    if found.value() != value or _is_animated(found):
        with _own_change(undo, quiet):
            found.setValue(value)


def _tcl_path(path: Union[str, PurePath]) -> str:
    """Returns a path as a knob takes it: with slashes, and what Tcl would evaluate escaped."""
    return re.sub(r"[\[\]$]", r"\\\g<0>", str(path).replace("\\", "/"))


def put_expression(node: Node, knob: str, expression: str) -> None:
    """Sets a number's expression."""
    with _own_change(quiet=True):
        node[knob].fromScript(f"{{{expression}}}")


def put_curve(node: Node, knob: str, values: Dict[int, float], undo: bool = False) -> None:
    """Sets a knob's keys, one per frame, with linear interpolation; no values reset it to 0."""
    keys = " ".join(f"x{number} {value:.6g}" for number, value in sorted(values.items()))
    with _own_change(undo):
        node[knob].fromScript(f"{{curve L {keys}}}" if values else "0")


def choices(node: Node, knob: str) -> List[str]:
    """Returns the items of an enumeration."""
    return list(cast("nuke.Enumeration_Knob", node[knob]).values())


def put_choices(node: Node, knob: str, choices: List[str], value: str = "") -> None:
    """Sets the items of an enumeration, and which of them is chosen."""
    menu = cast("nuke.Enumeration_Knob", node[knob])
    with _own_change(quiet=True):
        if menu.values() != choices:
            menu.setValues(choices)
        if value in choices and menu.value() != value:
            menu.setValue(value)


def show(node: Node, knob: str, label: str) -> None:
    """Shows a knob under a label; an empty one hides it. The knob has the flag HIDDEN."""
    found = node[knob]
    with _own_change(quiet=True):
        if found.visible() != bool(label):
            found.setVisible(bool(label))
        if label and found.label() != label:
            found.setLabel(label)


def inner(node: Node, name: str) -> Node:
    """Returns a node inside one of ours.

    Raises:
        KeyError: it was removed.
    """
    found = cast("nuke.Group", node).node(name)
    if found is None:
        raise KeyError(name)
    return found


def source(node: Node, index: int) -> Optional[Node]:
    """Returns what an input is connected to, past Dots; None if nothing is connected."""
    found = node.input(index)
    while found is not None and found.Class() == "Dot":
        found = found.input(0)
    return found


def above(node: Node, shown: bool = False, passes: bool = False) -> List[Node]:
    """Returns what a node is connected to in the order of the inputs: B of a Merge, then A.

    Above the Input of a Group is what the Group is connected to there.

    Args:
        node: the node.
        shown: leaves out what its picture is not made of: inputs of a Switch that it does not show
            on the current frame, and all but the first one of a disabled node.
        passes: whether it hands on its first input as it is, like a disabled node.
    """
    if node.Class() == "Input":
        sources = [node.parent().input(int(node["number"].value()))]
    else:
        sources = [node.input(i) for i in range(node.inputs())]
    disable = node.knob("disable")
    if shown and (passes or (disable is not None and disable.value())):
        sources = sources[:1]
    elif shown and node.Class() == "Switch":
        which = min(max(int(node["which"].value()), 0), len(sources) - 1)
        sources = sources[which : which + 1]
    return [source for source in sources if source is not None]


def is_passage(node: Node) -> bool:
    """Returns whether a node hands on one picture as it is: a Dot, or a Group's Input or Output."""
    return node.Class() in ("Dot", "Input", "Output") or bool(inside(node))


def hurdle(node: Node) -> str:
    """Returns why frames of what is above a node are not, or not always, the same ones below it.

    Returns:
        What the node does, as in "changes the time of what comes from"; empty if neither.
    """
    kind = node.Class()
    if kind == "Read" and _is_shifted(node):
        return "shows at other times the frames of"
    if kind not in (*_RETIMING, "TimeOffset", "TimeClip", _BY_VARIABLE) or node["disable"].value():
        return ""
    if kind == _BY_VARIABLE:
        several = len(above(node)) > 1
        return "shows only for some of the script's variables what comes from" if several else ""
    moves = True
    if kind == "TimeOffset":
        moves = bool(node["time_offset"].value() or node["reverse_input"].value())
    elif kind == "TimeClip":
        moves = bool(node["frame"].value() or node["reverse"].value())
    return "changes the time of what comes from" if moves else ""


def inside(group: Node) -> List[Node]:
    """Returns what feeds the Output of a Group; nothing for a disabled one and for other nodes."""
    if not isinstance(group, nuke.Group) or group.Class() == "Precomp":
        return []  # a Precomp may show the frames that were rendered of it; a LiveGroup does not
    output = group.output()
    return [] if output is None or group["disable"].value() else [output]


def selected() -> List[Node]:
    """Returns the selected nodes."""
    return list(nuke.selectedNodes())


def replace(node: Node, gizmo: str, renamed: Dict[str, str], kept: FrozenSet[str]) -> Node:
    """Replaces a node by a new one of a gizmo, with its name, knobs, inner Reads and connections.

    Its properties are opened if those of the old one were.

    Args:
        node: the node, which is deleted. Undo restores it.
        gizmo: the new node's class.
        renamed: old names of knobs and their new ones.
        kept: knobs of the new node that keep their own values.
    """
    with undo_step("Update node"):
        node.selectOnly()
        node.setSelected(False)
        with node.parent():
            made = nuke.createNode(gizmo, inpanel=False)
        ours, added = {*made.knobs(), *renamed}, ""
        for name, value in _written_knobs(node):
            definition = name == "addUserKnob"
            knob = nuke.tcl("lindex", value, "1") if definition else name
            if knob not in ours:  # the artist has added it
                added += f"{name} {nuke.tcl('list', value)}\n"
            elif knob not in kept and knob not in _NUKES_OWN:
                # A knob of ours has no value in a script if that is 0: not the new one's default.
                given, target = node[knob].toScript(), made[renamed.get(knob, knob)]
                if not isinstance(target, _NO_VALUES) and target.toScript() != given:
                    target.fromScript(given)
        made.readKnobs(added)
        for name, settings in _INSIDE.items():
            old, new = (cast("nuke.Group", one).node(name) for one in (node, made))
            if old is not None and new is not None:
                for setting in settings:
                    new[setting].fromScript(old[setting].toScript())
        for index in range(node.inputs()):
            made.setInput(index, node.input(index))
        for below in node.dependent(nuke.INPUTS | nuke.HIDDEN_INPUTS):
            for index in range(below.inputs()):
                if below.input(index) == node:
                    below.setInput(index, made)
        label = str(node["label"].value() or "")
        if "[value state]" not in label and "[value tile]" not in label:  # the artist's
            made["label"].setValue(label)
        made.setXYpos(node.xpos(), node.ypos())
        name, opened = node.name(), gui() and node.shown()
        nuke.delete(node)
        made.setName(name)
        if opened:
            nuke.show(made)
        return made


def _written_knobs(node: Node) -> List[Tuple[str, str]]:
    """Returns the names and values of the knobs that a node has in a saved script.

    The definition of a user knob comes before its value, under the name `addUserKnob`.
    """
    text = node.writeKnobs(nuke.WRITE_USER_KNOB_DEFS | nuke.WRITE_NON_DEFAULT_ONLY | nuke.TO_SCRIPT)
    words = [nuke.tcl("lindex", text, str(i)) for i in range(int(nuke.tcl("llength", text)))]
    return list(zip(words[::2], words[1::2]))


def put_read(above: Node, name: str, is_ours: Callable[[str], bool], label: str) -> str:
    """Puts a Read of a node's result below it, in one step of the artist's undo.

    Args:
        above: one of our nodes.
        name: of the Read that was put there before, which is set again; empty for none.
        is_ours: whether that Read still shows files of ours.
        label: of the Read.

    Returns:
        The Read's name.
    """
    shown = inner(above, "Result")
    read = cast("nuke.Group", above.parent()).node(name) if name else None
    if read is not None and not (read.Class() == "Read" and is_ours(read["file"].value() or "")):
        read = None
    with undo_step("Create Read"):
        if read is None:
            above.selectOnly()
            above.setSelected(False)
            with above.parent():
                read = nuke.createNode("Read", inpanel=False)
            read.setXYpos(above.xpos(), above.ypos() + 100)
        values = {knob: shown[knob].value() for knob in _FRAMES}
        values.update(origset=True, before="black", after="black", raw=True, label=label)
        values["localizationPolicy"] = "off"  # as inside: a new version is no stale local copy
        with _own_change(undo=True):
            for knob, value in values.items():
                read[knob].setValue(value)
        return read.name()


def paste(beside: Node, text: str, under: Optional[Node], step: str) -> str:
    """Pastes nodes from text, in one step of the artist's undo.

    Args:
        beside: a node of ours, next to which the last pasted node is placed.
        text: of a Nuke script.
        under: the node that they are connected to; None for none.
        step: what the artist's undo calls it.

    Returns:
        The name of the last pasted node.
    """
    with tempfile.TemporaryDirectory() as folder, beside.parent(), undo_step(step):
        path = os.path.join(folder, "nodes.nk").replace("\\", "/")
        with open(path, "w", encoding="utf-8") as file:
            file.write("set cut_paste_input [stack 0]\n")
            file.write(f"version {version().replace('v', ' v')}\n{text}")
        # Nuke Indie and Non-commercial let Python see ten nodes: no list of all of them.
        (under or beside).selectOnly()
        if under is None:
            beside.setSelected(False)
        pasted = nuke.nodePaste(path)
        if pasted is None:
            return ""
        for knob, away in (("xpos", 150), ("ypos", 0)):
            pasted[knob].setValue(beside[knob].value() + away)
        return pasted.name()


@contextlib.contextmanager
def undo_step(name: str) -> Iterator[None]:
    """Makes one step of the artist's undo of all changes in the block.

    Outside of one, Nuke keeps no undo of what a program sets.
    """
    nuke.Undo.begin(name)
    try:
        yield
    finally:
        nuke.Undo.end()


def insert(group: Node, above: str, text: str, first: str, last: str) -> None:
    """Puts nodes between a node inside one of ours and what it feeds, unless they are there.

    Args:
        group: one of ours.
        above: name of the node inside.
        text: of the nodes, which are connected with each other.
        first: name of the node that `above` is connected to then.
        last: name of the node that takes its place.
    """
    outside = cast("nuke.Group", group)
    if outside.node(first) is not None:
        return
    read = inner(group, above)
    with _own_change():
        fed = read.dependent(nuke.INPUTS | nuke.HIDDEN_INPUTS)
        with outside:
            nuke.scriptReadText(text)
        for below in fed:
            for index in range(below.inputs()):
                if below.input(index) == read:
                    below.setInput(index, inner(group, last))
        inner(group, first).setInput(0, read)


# -- pictures ------------------------------------------------------------------------------------


def connected(node: Node, index: int = 0) -> Optional[Extent]:
    """Returns the extent of an input of a node; None if nothing is connected."""
    above = node.input(index)
    if above is None:
        return None
    with _full_size():
        size = above.format()
        return Extent(above.firstFrame(), above.lastFrame(), size.width(), size.height())


def is_read(node: Node) -> bool:
    """Returns whether a node is a Read of pictures."""
    return node.Class() == "Read"


def plate(above: Optional[Node]) -> Optional[Plate]:
    """Returns a node as a plate, if it is a Read whose files can be used as they are."""
    if above is None or not is_read(above) or above["disable"].value():
        return None
    if _is_shifted(above):
        return None
    knob = cast("nuke.Enumeration_Knob", above["colorspace"])
    space = str(knob.value())
    if space == "default":  # the menu's first line says which: "default (sRGB)"
        space = str(knob.values()[0])
    space = "" if above["raw"].value() else space
    return Plate(above, space, int(above["first"].value()), int(above["last"].value()))


def read_files(read: Node, numbers: List[int], view: str) -> List[str]:
    """Returns the source file of each frame of a Read, in a view; never a localised copy.

    A Read's file evaluates to the copy where there is one, unless its policy is `off`. So frame,
    view and the script's variables are filled in here. Only what this can't do, such as Tcl, takes
    the policy for a moment.
    """
    knob, policy = cast("nuke.File_Knob", read["file"]), read["localizationPolicy"]
    written = str(knob.value() or "").replace("\\", "/")
    pattern, evaluated = _with_variables(written, read), _evaluated(knob, numbers, view)
    files = [_filled_in(pattern, number, view) for number in numbers]
    names = [os.path.basename(path) for path in files]  # a copy has the same
    unknown = re.search(r"^~|[\[$]", pattern) or any("%" in path for path in files)
    # Whether Nuke knows the variables in a context of ours is not documented.
    if pattern == written:
        unknown = unknown or names != [os.path.basename(path) for path in evaluated]
    if policy.value() == "off" and (unknown or pattern == written):
        files = evaluated
    elif unknown:
        before = policy.value()
        with _own_change(quiet=True):
            try:
                policy.setValue("off")
                files = _evaluated(knob, numbers, view)
            finally:
                policy.setValue(before)
    return [_absolute(_filtered(_with_variables(path, read))) for path in files]


def _evaluated(knob: "nuke.File_Knob", numbers: List[int], view: str) -> List[str]:
    context, files = nuke.OutputContext(), []
    context.setView(context.viewFromName(view))
    for number in numbers:
        context.setFrame(number)
        files.append(str(knob.evaluate(context) or ""))
    return files


def _filled_in(pattern: str, number: int, view: str) -> str:
    """Returns the file of a frame in a view: `####`, `%04d`, `%V` and `%v` are filled in."""
    pattern = pattern.replace("%V", view).replace("%v", view[:1])
    return FRAME_NUMBER.sub(lambda found: digits(found, number), pattern)


def _with_variables(text: str, node: Node) -> str:
    """Fills in the variables of a script, `%shot` or `%{shot}`, as a node sees them.

    Nuke has them from version 16 on; it leaves `%V`, `%v`, `%04d` and unknown names as they are.
    """
    evaluate = getattr(nuke, "evaluateGsv", None)
    return str(evaluate(text, node)) if evaluate is not None and "%" in text else text


def _absolute(path: str) -> str:
    """Returns a path as Nuke opens it: relative ones begin in the project's directory, or without
    one in the current folder."""
    if not path or os.path.isabs(path):
        return path
    folder = cast("nuke.File_Knob", nuke.root()["project_directory"]).evaluate() or ""
    return os.path.abspath(os.path.join(folder, path)).replace("\\", "/")


def render(write: Node, pattern: str, first: int, last: int, view: str) -> None:
    """Renders frames with a Write inside one of our nodes, at full size also in proxy mode.

    The Write and the proxy mode are restored: a Write that stayed enabled would be rendered
    together with the artist's. A Write puts all views that its own knob names into one EXR.

    Raises:
        RuntimeError: Nuke's message; also if the artist cancels.
    """
    changes = [
        (nuke.root()["proxy"], False),
        (write["disable"], False),
        (write["views"], view),
        (write["file"], _tcl_path(pattern)),
    ]
    before = [knob.value() for knob, _ in changes]
    global _rendering
    with _own_change(quiet=True):
        _rendering = True
        try:
            for knob, value in changes:
                knob.setValue(value)
            nuke.execute(write, first, last, 1, [view])
        finally:
            _rendering = False
            for (knob, _), value in zip(changes, before):
                knob.setValue(value)


def is_rendering() -> bool:
    """Returns whether Nuke renders: for `render`, or what the artist has started."""
    return _rendering or bool(nuke.executing())


def show_files(read: Node, frames: Frames, undo: bool = False, quiet: bool = False) -> None:
    """Points a Read inside one of our nodes to files, and reloads it.

    Args:
        read: the Read.
        frames: the files.
        undo: makes it a part of the artist's undo, as `put` does.
        quiet: leaves an unmodified script unmodified.
    """
    knobs = {
        "file": _tcl_path(frames.pattern),
        **dict.fromkeys(("first", "origfirst"), frames.first),
        **dict.fromkeys(("last", "origlast"), frames.last),
        **dict.fromkeys(("before", "after"), "hold" if frames.still else "black"),
        "localizationPolicy": "off",
        # Gaps are black; where every frame exists, one that is lost later is an error.
        "on_error": "error" if frames.complete else "black",
    }
    for knob, value in knobs.items():
        put(read, knob, value, undo, quiet)
    with _own_change(quiet=True):
        cast("nuke.Script_Knob", read["reload"]).execute()


# -- helpers -------------------------------------------------------------------------------------


def _is_shifted(read: Node) -> bool:
    """Returns whether a Read shows its files on other frames than those in their names."""
    same = {
        "expression": ("", "frame"),
        "offset": ("", "0"),
        "start at": (str(read["first"].value()),),
    }
    return str(read["frame"].value()).strip() not in same.get(str(read["frame_mode"].value()), ())


def _filtered(path: Optional[str]) -> str:
    """Returns a path as Nuke opens it, after the filters that the studio has added."""
    call = cast("Callable[[str], Optional[str]]", nuke.filenameFilter)
    return call(path) or path if path else ""


@contextlib.contextmanager
def _full_size() -> Iterator[None]:
    """Turns proxy mode off in the block: whether it changes a node's format is not documented."""
    proxy = nuke.root()["proxy"]
    if not proxy.value():
        yield
        return
    with _own_change(quiet=True):
        try:
            proxy.setValue(False)
            yield
        finally:
            proxy.setValue(True)


def _is_animated(knob: nuke.Knob) -> bool:
    return isinstance(knob, nuke.Array_Knob) and bool(knob.isAnimated())


@contextlib.contextmanager
def _own_change(undo: bool = False, quiet: bool = False) -> Iterator[None]:
    """Marks changes as ours, which `is_ready` tells from the artist's.

    Args:
        undo: makes them a part of the artist's undo, as `put` does.
        quiet: leaves an unmodified script unmodified.
    """
    global _ours
    keep = quiet and not nuke.modified()
    _ours += 1
    if not undo:
        nuke.Undo.disable()
    try:
        yield
    finally:
        if not undo:
            nuke.Undo.enable()
        _ours -= 1
        if keep:
            nuke.modified(False)
