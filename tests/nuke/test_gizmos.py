"""Tests the text of the shipped nodes: valid Tcl, Nuke's rules, and ours."""

import ast
import importlib
import re
from pathlib import Path

import nk_script
import nuke_standin
import pytest
from nk_script import BadScript, Statement, words
from nuke_session import STUDIO_DEFAULTS
from nuke_standin import user_knob
from reenact import older, protocol
from repository import ROOT

from core.render.layers import ATTRIBUTE, CHANNELS, NEWEST, NUKES_OWN, PLAIN, PREFIX, in_file
from tools.tool_set import tool_set

FOLDER = ROOT / "gizmos"
GIZMOS = sorted(FOLDER.glob("*.gizmo"))
TOOLSETS = sorted(FOLDER.glob("ToolSets/**/*.nk"))
# What the plugin keeps on nodes with jobs.
HIDDEN_NAMES = {
    *("reenact_kind", "reenact_id", "run", "job_state", "step"),
    *("node_version", "ready", "tile"),
}
CALLBACKS = ("onCreate", "onDestroy", "knobChanged")

# What saved scripts call of `reenact.nodes`: these names stay.
ENTRY_POINTS = {
    *("on_create", "on_destroy", "knob_changed", "submit", "preview", "cancel", "resume"),
    *("next_step", "make_style", "measure", "add_repair", "clear_repairs", "next_bad"),
    *("open_report", "list_characters", "list_styles", "input_range", "open_results"),
    *("open_sheet", "bake", "choose", "finish", "update", "approve", "create_read"),
    *("all_views", "older_frames"),
}
KINDS = {
    "ReenactPersonalize": "personalize",
    "Reenact": "reenact",
    "ReenactRepair": "repair",
    "ReenactEdit": "edit",
    "ReenactStyle": "style",
    "ReenactComp": "comp",
}


def group(path: Path) -> Statement:
    (found,) = nk_script.parse(path.read_text())
    return found


def has_jobs(node: Statement) -> bool:
    """Returns whether a node has jobs on the server; one without needs no callbacks."""
    return any(knob.name() == "reenact_id" for knob in own_knobs(node))


def own_knobs(node: Statement) -> list[nuke_standin.Knob]:
    return [user_knob(value) for name, value in node.knobs if name == "addUserKnob"]


def test_there_are_nodes() -> None:
    assert {p.stem for p in GIZMOS} >= {"Reenact", "ReenactPersonalize", "ReenactComp"}


@pytest.mark.parametrize("path", [*GIZMOS, *TOOLSETS], ids=lambda p: p.stem)
def test_its_text_is_what_nuke_reads(path: Path) -> None:
    nodes = nk_script.parse(path.read_text())
    again = nk_script.parse(nk_script.write(nodes))
    for one, other in zip(flat(nodes), flat(again), strict=True):
        assert [k for k in one.knobs if k[0] != "inputs"] == other.knobs[1:]
    for one in flat(nodes):
        user = {knob.name() for knob in own_knobs(one)}
        for name, _ in one.knobs:
            if name not in user and name != "addUserKnob":
                assert nuke_standin.knows(one.kind, name), f"{one.kind} has no {name}"
    text = path.read_text()
    unwanted = r'[ "]/[a-z]+/|\b[A-Z]:[\\/](?!n)|^ *version |cut_paste_input|^ *selected'
    assert not re.search(unwanted, text, re.M)


def flat(nodes: list[Statement]) -> list[Statement]:
    return [n for one in nodes for n in (one, *flat(one.children))]


@pytest.mark.parametrize("path", GIZMOS, ids=lambda p: p.stem)
def test_it_is_a_group_that_works_without_us(path: Path) -> None:
    """It is embedded in the script, and its callbacks do nothing where the plugin is missing."""
    node = group(path)
    assert (node.kind, node.knob("name")) == ("Group", path.stem)
    assert [c.kind for c in node.children].count("Output") == 1
    names = [c.knob("name") for c in node.children]
    assert len(names) == len(set(names))
    callbacks = [node.knob(name) for name in CALLBACKS if has_jobs(node)]
    assert has_jobs(node) or not any(node.knob(name) for name in CALLBACKS)
    buttons = [k._value for k in own_knobs(node) if isinstance(k, nuke_standin.PyScript_Knob)]
    for script in (*callbacks, *buttons):
        (guarded,) = ast.parse(script).body
        if script in callbacks:  # a farm imports nothing
            assert isinstance(guarded, ast.If)
            assert ast.unparse(guarded.test) == "nuke.GUI"
            if script != callbacks[0]:  # only onCreate imports, which may fail each time
                imported, guarded = guarded.body
                assert ast.unparse(imported) == "import sys"
                assert isinstance(guarded, ast.If)
                assert ast.unparse(guarded.test) == "'reenact.nodes' in sys.modules"
                called = re.search(r"\]\.(\w+)\(", script)
                assert called is not None
                assert called[1] in ENTRY_POINTS
                continue
            (guarded,) = guarded.body
        assert isinstance(guarded, ast.Try)
        assert ast.unparse(guarded.handlers[0].type or ast.Constant("")) == "Exception"
        assert ast.unparse(guarded.body[0]) == "import reenact.nodes"
        (call,) = guarded.orelse
        called = ast.unparse(call).partition("(")[0].removeprefix("reenact.nodes.")
        assert called in ENTRY_POINTS
        with nuke_standin.running():
            import reenact.nodes

            assert callable(getattr(reenact.nodes, called))


def test_what_saved_scripts_call_is_there() -> None:
    with nuke_standin.running():
        nodes = importlib.import_module("reenact.nodes")
        assert all(callable(getattr(nodes, name)) for name in ENTRY_POINTS)


@pytest.mark.parametrize("path", [*GIZMOS, *TOOLSETS], ids=lambda p: p.stem)
def test_a_farm_gets_what_a_render_needs(path: Path) -> None:
    """Black outside the range, no localised copies, nothing that a submitter uploads but frames."""
    for node in flat(nk_script.parse(path.read_text())):
        inside = node not in nk_script.parse(path.read_text())
        if node.kind == "Read" and "label" not in dict(node.knobs) and inside:
            still = node.knob("name") in ("Selection", "Reconstruction")  # one for all frames
            assert node.knob("before") == node.knob("after") == ("" if still else "black")
            assert node.knob("localizationPolicy") == "off"
        if node.kind == "Write":
            assert node.knob("disable") == "true"
        assert not [k for k in own_knobs(node) if isinstance(k, nuke_standin.File_Knob)]
        for name, value in node.knobs:
            if "has_preview" in value and name == "which":
                assert "$gui*parent.has_preview*" in value
                assert "(frame==parent.preview_frame)" in value


@pytest.mark.parametrize("path", GIZMOS, ids=lambda p: p.stem)
def test_what_a_studio_sets_as_default_is_not_taken_inside(path: Path) -> None:
    for node in group(path).children:
        for default in STUDIO_DEFAULTS:
            kind, _, knob = default.partition(".")
            if node.kind == kind and not sheet(node, knob):
                assert node.knob(knob) not in (None, ""), f"{node.knob('name')} has no {knob}"


def sheet(node: Statement, knob: str) -> bool:
    """Returns whether a node is a Read of one picture, whose range is set when it is shown."""
    return node.knob("name") in ("Selection", "Reconstruction") and knob in ("before", "after")


@pytest.mark.parametrize("path", [*GIZMOS, *TOOLSETS], ids=lambda p: p.stem)
def test_no_label_is_longer_than_a_tile(path: Path) -> None:
    """Also of the nodes inside. Labels with Tcl are measured as they are shown, in the stand-in."""
    for node in flat(nk_script.parse(path.read_text())):
        label = node.knob("label")
        if "[" not in label:
            assert all(len(line) < nuke_standin.LABEL_LENGTH for line in label.split("\n")), label


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("path", GIZMOS, ids=lambda p: p.stem)
def test_a_node_says_which_kind_it_is(path: Path, version: int) -> None:
    """Also in scripts that were saved with nodes of version 1, which have no knob for it."""
    text = path.read_text()
    if version == 1:
        text = re.sub(r"^ (addUserKnob \{1 )?reenact_kind .*\n", "", text, flags=re.M)
    assert ("reenact_kind" in text) == (version == 2)
    with nuke_standin.running() as session:
        kinds = importlib.import_module("reenact.kinds")
        session._read_text(text)
        assert kinds.kind_of(session.module.toNode(path.stem)).name == KINDS[path.stem]
        assert kinds.kind_of(session.module.createNode("Read")) is kinds.FOREIGN


def test_a_node_is_given_the_names_of_layers_that_it_reads() -> None:
    with nuke_standin.running() as session:
        kinds = importlib.import_module("reenact.kinds")
        text = (FOLDER.parent / "tests/nuke/scripts/before_layer_names.nk").read_text()
        session._read_text(text)
        for name in ("Reenact1", "ReenactEdit1"):
            assert kinds.layer_names(session.module.toNode(name)) == PLAIN
        for path in GIZMOS:
            if KINDS[path.stem]:
                assert kinds.layer_names(session.module.createNode(path.stem)) == NEWEST
    assert protocol.Render(protocol.File(), protocol.File()).layer_names == PLAIN
    assert protocol.Frame(protocol.File(), protocol.File(), 1).layer_names == PLAIN


def test_a_node_of_a_newer_plugin_says_what_to_update() -> None:
    text = (FOLDER / "Reenact.gizmo").read_text()
    with nuke_standin.running() as session:
        newer = text.replace("reenact_kind reenact\n", "reenact_kind relight\n")
        session._read_text(newer)
        node = session.module.toNode("Reenact")
        session.press(node, "submit")
        assert "Update the plugin." in node["state"].value()


@pytest.mark.parametrize("path", GIZMOS, ids=lambda p: p.stem)
def test_its_knobs_are_like_those_of_the_others(path: Path) -> None:
    node = group(path)
    knobs = own_knobs(node)
    names = [k.name() for k in knobs]
    assert len(names) == len(set(names))
    tabs = [k.label() for k in knobs if isinstance(k, nuke_standin.Tab_Knob)]
    if has_jobs(node):
        everywhere = {"state", "next", "submit", "cancel", "resume", "versions", "update"}
        assert set(names) >= HIDDEN_NAMES | everywhere
        assert tabs[1:] == ["Advanced", "Info"]
    assert (len(tabs), tabs[-1]) == (3, "Info")
    for knob in knobs:
        decoration = isinstance(knob, (nuke_standin.Tab_Knob, nuke_standin.Text_Knob))
        assert decoration or knob.tooltip().endswith("."), f"{knob.name()} has no tooltip"
        assert (knob.name() in HIDDEN_NAMES) <= (not knob.visible())
        if knob.name() == "next":  # it appears with a state
            assert "HIDDEN" in knob._flags
            assert "INVISIBLE" not in knob._flags
    everything = {k for name, k in node.knobs if name == "addUserKnob"}
    for other in GIZMOS:  # a shared knob has the same text
        others = {
            u.name(): v
            for v in (v for n, v in group(other).knobs if n == "addUserKnob")
            for u in [user_knob(v)]
        }
        for text in everything:
            name = user_knob(text).name()
            if name in SHARED and name in others:
                assert others[name] == text, f"{name} differs in {other.stem}"
    children = {c.knob("name"): c for c in node.children}
    for knob in knobs:
        if isinstance(knob, nuke_standin.Link_Knob):
            child, _, target = str(knob._value).partition(".")
            assert nuke_standin.knows(children[child].kind, target)
    for child in node.children:
        for name in re.findall(r"parent\.(\w+)", " ".join(v for _, v in child.knobs)):
            assert name in names, f"{child.knob('name')} asks for {name}"


SHARED = HIDDEN_NAMES | {
    "state",
    "next",
    "first",
    "last",
    "input_range",
    "submit",
    "cancel",
    "resume",
    "source",
    "result_name",
    "folder",
    "at",
    "has_result",
    "version",
    "approve",
    "compare",
    "wipe",
    "create_read",
    *("shown_version", "approved", "has_compare", "compared_version", "read_name"),
    "versions",
    "open_results",
}


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ("Group {\n name a\n}\n", "no end_group"),
        ("Blur {\n inputs 1\n}\n", "takes 1 inputs"),
        ("exec ls\n", "no node"),
        ("Blur {\n size {[exec ls]}\n}\nopen /etc/passwd\n", "no node"),
        ("Blur {\n size 1 name\n}\n", "don't pair up"),
        ("Blur {\n name a\n", "missing close-brace"),
        ("end_group\n", "without a group"),
        ("push $N1\n", "no such variable"),
        ('Blur {\n label "a [b"\n}\n}\n', "no node"),
    ],
)
def test_the_reader_refuses(text: str, trouble: str) -> None:
    with pytest.raises(BadScript, match=trouble):
        nk_script.parse(text)


def test_the_tool_set_has_the_nodes_as_they_are() -> None:
    (path,) = TOOLSETS
    nodes = {n.knob("name").rstrip("1"): n for n in nk_script.parse(path.read_text())}
    for gizmo in (g for g in GIZMOS if g.stem in nodes):
        ours, theirs = group(gizmo), nodes[gizmo.stem]
        changed = {"name", "xpos", "ypos", "inputs"}
        assert [k for k in ours.knobs if k[0] not in changed] == [
            k for k in theirs.knobs if k[0] not in changed
        ]
        assert [c.knobs for c in ours.children] == [c.knobs for c in theirs.children]
    assert nodes["Reenact"].inputs == [nodes["Plate"], nodes["ReenactPersonalize"]]
    assert nodes["ReenactRepair"].inputs == [nodes["Reenact"], nodes["Plate"]]
    assert nodes["ReenactEdit"].inputs == [nodes["ReenactRepair"], nodes["Plate"]]
    assert nodes["ReenactStyle"].inputs == [nodes["ReenactEdit"], nodes["Plate"]]
    assert nodes["ReenactComp"].inputs == [nodes["Plate"], nodes["ReenactStyle"]]
    assert path.read_text() == tool_set(), "Run tools/tool_set.py"


def layers_of(nodes: list[Statement]) -> set[str]:
    """Returns the layers of frames of any version that nodes name."""
    known = {in_file(name, names) for name in CHANNELS for names in (PLAIN, NEWEST)}
    used: set[str] = set()
    for node in nodes:
        own = {knob.name() for knob in own_knobs(node)}
        for knob, value in node.knobs:
            if knob in ("channels", "uv", "in", "out"):
                used |= {value}
            elif knob not in ("addUserKnob", "name", "label", "help", *own):
                used |= {name.partition(".")[0] for name in re.findall(r"\w+\.\w+", value)}
    return used & known


@pytest.mark.parametrize("path", [*GIZMOS, *TOOLSETS], ids=lambda p: p.stem)
def test_the_layers_are_those_of_the_frames(path: Path) -> None:
    """Of layers with the older names, which a show may have, a new node declares and names none."""
    declared: dict[str, str] = {}
    nodes = flat(nk_script.parse(path.read_text(), layers=declared))
    declared.pop("mask", None)  # Nuke's own
    for layer, text in declared.items():
        name = layer.removeprefix(PREFIX)
        assert layer in NUKES_OWN or layer.startswith(PREFIX)
        assert words(text) == [layer, *(f"{layer}.{channel}" for channel in CHANNELS[name])]
    assert layers_of(nodes) == set(declared)


def test_older_layers_are_declared_and_mapped_by_nodes_of_their_own() -> None:
    declared: dict[str, str] = {}
    nodes = nk_script.parse(older.text("Result", 0, 0), layers=declared)
    mapped = [name for name in CHANNELS if name not in NUKES_OWN]
    assert {*declared} == {in_file(name, names) for name in mapped for names in (PLAIN, NEWEST)}
    first, *copies = nodes
    assert (first.knob("name"), first.inputs) == (older.first_name("Result"), [])
    assert copies[-1].knob("name") == older.last_name("Result")
    pairs = {copy.knob(f"from{i}"): copy.knob(f"to{i}") for copy in copies for i in range(4)}
    del pairs[""]
    channels = [f"{name}.{channel}" for name in mapped for channel in CHANNELS[name]]
    assert pairs == {in_file(name, PLAIN): in_file(name) for name in channels}
    for below, copy in zip(nodes, copies, strict=False):
        assert copy.inputs == [below, first]
        assert copy.knob("disable") == "{1-ResultNames.old}"
    assert f"exr/{ATTRIBUTE}]" in first.knob("old")


def test_every_node_has_a_picture_of_its_properties() -> None:
    """As `tools/node_pictures.py` draws it: run that after a change."""
    pictures = sorted((FOLDER.parent / "docs" / "nodes").glob("Reenact*.png"))
    assert [p.stem for p in pictures] == [p.stem for p in GIZMOS]
    assert all(p.stat().st_size < 60_000 for p in pictures)
