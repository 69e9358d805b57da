"""Checks in a real Nuke, which the test suite doesn't have, what the plugin assumes about it.

    Nuke15.1 -t tests/nuke/nuke_acceptance.py report.json          terminal
    Nuke15.1 --nc tests/nuke/nuke_acceptance.py        or from the Script Editor, in the GUI:
        exec(open("/path/to/tests/nuke/nuke_acceptance.py").read())

It needs the installed plugin and a running server; it sends nothing. It writes Nuke's answers as
JSON, and prints REENACT_ACCEPTANCE_OK or how many checks failed. Python 3.9.

Nuke Non-commercial and Indie let Python see ten nodes: each check clears the script and makes at
most nine. It asks about nothing that is said to end Nuke (root while a script loads).
"""

import json
import os
import sys
import tempfile
import traceback

import nuke

NODES = ("ReenactPersonalize", "Reenact", "ReenactEdit", "ReenactStyle", "ReenactRepair")
COMP = "ReenactComp"
_checks = []


def check(call):
    _checks.append(call)
    return call


def made(kind, *sources):
    """Creates a node and connects it; a node of ours is completed as the timer would."""
    node = nuke.createNode(kind, inpanel=False)
    for index, source in enumerate(sources):
        node.setInput(index, source)
    return complete(node)


def complete(node):
    from reenact import nodes

    nodes.SESSION.complete(node)
    return node


def script_path():
    """Returns where a script can be saved: licences of some kinds have endings of their own."""
    ending = "nk"
    for licence, own in (("nc", "nknc"), ("indie", "nkind")):
        if getattr(nuke, "env", {}).get(licence):
            ending = own
    return os.path.join(tempfile.mkdtemp(), "saved." + ending).replace("\\", "/")


def frames(count, grey=0.5):
    """Writes raw EXRs of a grey picture; returns their pattern."""
    constant = made("Constant")
    constant["color"].fromScript(str(grey))
    write = made("Write", constant)
    pattern = os.path.join(tempfile.mkdtemp(), "grey.%04d.exr").replace("\\", "/")
    for knob, value in (("file", pattern), ("file_type", "exr"), ("raw", True)):
        write[knob].setValue(value)
    nuke.execute(write, 1, count)
    nuke.delete(write)
    nuke.delete(constant)
    return pattern


@check
def nodes_are_made_with_all_their_knobs():
    nodes = [made(name) for name in NODES]
    hidden = {n.name(): [k for k in n.knobs() if not n[k].visible()] for n in nodes}
    assert all(n["reenact_id"].value() for n in nodes)
    assert all(n["ready"].value() for n in nodes)
    return {"hidden": hidden}


@check
def a_hidden_button_appears_and_disappears():
    from reenact import host

    node = made("Reenact")
    assert not node["next"].visible()
    host.show(node, "next", "Show log")
    assert node["next"].visible()
    assert node["next"].label() == "Show log"
    host.show(node, "next", "")
    assert not node["next"].visible()


@check
def what_nuke_calls_while_a_script_loads():
    """The plugin relies on nothing of this; the report says how it is."""
    from reenact import nodes

    made("ReenactEdit")["smile"].setValue(1)
    path = script_path()
    nuke.scriptSaveAs(path, 1)
    calls = {"on_create": 0, "knob_changed": 0, "children_at_on_create": 0}
    before = nodes.on_create, nodes.knob_changed

    def on_create(node):
        calls["on_create"] += 1
        calls["children_at_on_create"] = len(node.nodes())
        before[0](node)

    def knob_changed(node, knob):
        calls["knob_changed"] += 1
        before[1](node, knob)

    nodes.on_create, nodes.knob_changed = on_create, knob_changed
    try:
        nuke.scriptClear()
        nuke.scriptOpen(path)
    finally:
        nodes.on_create, nodes.knob_changed = before
    # In the GUI, onScriptLoad has moved the node from the first list to the second.
    calls["not whole, whole"] = [len(nodes.SESSION._created), len(nodes.SESSION._whole)]
    node = nuke.toNode("ReenactEdit1")
    assert not node["ready"].value(), "a knob that is not to be saved was saved"
    assert not nodes.SESSION.live
    return calls


@check
def nuke_says_when_it_calls_knob_changed():
    """The report says what the plugin must not rely on; it works either way."""
    from reenact import nodes

    said, heard = {}, []
    before = nodes.knob_changed
    node = made("Reenact")
    nodes.knob_changed = lambda one, knob: heard.append(knob)
    try:
        node["version"].setValues(["upstream", "a_v001"])
        nuke.Undo.begin("version")  # without, Nuke undoes what was done before: the node is gone
        node["version"].setValue("a_v001")
        nuke.Undo.end()
        said["by a program"] = [heard.count("version"), node["version"].value()]
        heard.clear()
        nuke.undo()
        said["by undo"] = [heard.count("version"), node["version"].value()]
    finally:
        nodes.knob_changed = before
    return said


@check
def a_script_says_whether_it_keeps_the_items_of_menus():
    node = made("Reenact")
    node["version"].setValues(["upstream", "a_v001"])
    node["version"].setValue("a_v001")
    node["characters"].setValues(["on the server...", "Jane Roe (12ab34cd)"])
    path = script_path()
    nuke.scriptSaveAs(path, 1)  # calls what the plugin has set for onScriptSave, in the GUI
    with open(path) as file:
        text = file.read()
    if nuke.GUI:
        assert "Jane Roe" not in text, "the names of characters were saved"
    lines = [line for line in text.splitlines() if " version " in line or "Jane" in line]
    nuke.scriptClear()
    nuke.scriptOpen(path)
    menu = nuke.toNode("Reenact1")["version"]
    return {"lines": lines, "items": menu.values(), "value": menu.value()}


@check
def a_file_has_its_frame_number_as_the_plugin_takes_it():
    from reenact import host
    from reenact.files import Frames

    read = host.inner(made("Reenact"), "Result")
    pattern = frames(2)
    host.show_files(read, Frames(pattern, 1, 2))
    nuke.scriptSaveAs(script_path(), 1)
    host.show_files(read, Frames(pattern, 1, 2))
    assert not nuke.modified(), "the same file was written again"
    read["file"].setValue("/a/b.####.exr")
    return {"value": read["file"].value(), "as saved": read["file"].toScript()}


@check
def nuke_says_that_it_renders_and_whether_it_calls_timers_meanwhile():
    from reenact import host

    write, said = made("Write", made("CheckerBoard2")), []
    path = os.path.join(tempfile.mkdtemp(), "out.%04d.exr").replace("\\", "/")
    for knob, value in (("file", path), ("file_type", "exr"), ("raw", True)):
        write[knob].setValue(value)
    stop = host.every(0.01, lambda: said.append(host.is_rendering())) if nuke.GUI else None
    try:
        nuke.execute(write, 1, 20)
    finally:
        if stop:
            stop()
    assert all(said), "nuke.executing() is False while a Write renders"
    return {"timers called while Nuke renders": len(said)}


@check
def reads_that_are_not_shown_are_disabled():
    node, said = made("Reenact"), {}
    for knob in ("has_result", "has_preview"):
        node[knob].setValue(True)
    for show in ("result", "preview"):
        node["show"].setValue(show)
        reads = [nuke.toNode(node.name() + "." + n) for n in ("Result", "Preview", "Crops")]
        said[show] = [bool(read["disable"].value()) for read in reads]
    assert said == {"result": [False, True, True], "preview": [False, False, True]}, said
    return {"class of disable": type(node["disable"]).__name__}


@check
def our_progress_does_not_modify_a_script():
    from reenact import host

    node = made("Reenact")
    nuke.scriptSaveAs(script_path(), 1)
    host.put(node, "state", "Solving.", quiet=True)
    host.show(node, "next", "Show log")
    assert not nuke.modified()
    host.put(node, "track", "/a.latents")
    assert nuke.modified()


@check
def a_clone_shares_its_knobs():
    node = made("Reenact")
    id = node["reenact_id"].value()
    clone = complete(nuke.clone(node, inpanel=False))
    assert node["reenact_id"].value() == id
    said = {"clones": node.clones(), "same id": clone["reenact_id"].value() == id}
    said["same name"] = clone.name() == node.name()
    path = os.path.join(tempfile.mkdtemp(), "clones.nk").replace("\\", "/")
    node.selectOnly()
    clone.setSelected(True)
    nuke.nodeCopy(path)
    nuke.nodePaste(path)
    pasted = [complete(one) for one in nuke.selectedNodes()]
    ids = [one["reenact_id"].value() for one in pasted]
    assert node["reenact_id"].value() == clone["reenact_id"].value() == id
    assert len(set(ids)) == 1, ids
    assert id not in ids
    said["clones that were pasted"] = [one.clones() for one in pasted]
    with open(path) as file:
        said["as Nuke saves them"] = [line for line in file if "clone" in line]
    return said


@check
def new_nodes_declare_no_layer_that_a_show_may_have():
    from reenact import display, host, older

    names = set(older.LAYERS)
    if names & set(nuke.layers()):
        return {"skipped": "Start Nuke anew: a script of before has declared these layers."}
    node, comp = made("Reenact"), made(COMP)
    declared = set(nuke.layers())
    assert not names & declared, names & declared
    for one, inside in ((node, "Result"), (comp, "face")):
        display.read_older_layers(one, inside)
        last = host.inner(one, older.last_name(inside))
        assert last.inputs() == 2
        assert last["from0"].value() != "none", last["from0"].value()
        assert host.inner(one, inside).dependent(nuke.INPUTS)[0] != last
    assert names <= set(nuke.layers())
    return {"added by new nodes": sorted(declared)}


@check
def the_search_goes_out_of_groups_and_into_them():
    from reenact import display, upstream

    reenact = made("Reenact", made("CheckerBoard2"))
    for knob, value in (("track", "/a/t.latents"), ("shown_version", "a")):
        reenact[knob].setValue(value)
    display.fill_menus(reenact, ["a"])
    group = nuke.createNode("Group", inpanel=False)
    with group:
        first = nuke.createNode("Input", inpanel=False)
        edit = made("ReenactEdit", first)
        last = nuke.createNode("Output", inpanel=False)
        last.setInput(0, edit)
    group.setInput(0, reenact)
    assert upstream.upstream(edit).node == reenact
    edit["track"].setValue("/b/t.latents")
    edit["shown_version"].setValue("b")
    display.fill_menus(edit, ["b"])
    found = upstream.upstream(made("ReenactStyle", group)).node
    assert found == edit, found.fullName()


@check
def of_a_switch_the_input_is_worked_on_that_is_seen():
    from reenact import upstream

    said = {}
    shots, grey = [made("Reenact"), made("Reenact")], [made("Constant"), made("Constant")]
    for number in (0, 1):
        shots[number]["track"].setValue(f"/{number}.latents")
        grey[number]["color"].fromScript(str(0.25 + 0.5 * number))
    seen, switch = made("Switch", *grey), made("Switch", *shots)
    for which in (0, 1, 7, -1):
        for node in (seen, switch):
            node["which"].setValue(which)
        shown = int(seen.sample("red", 1.5, 1.5) > 0.5)
        assert upstream.upstream(switch, [switch]).node == shots[shown], which
        said[which] = shown
    return said


@check
def a_baked_node_is_one_step_of_undo():
    from reenact import host

    node = made(COMP)
    text = "push $cut_paste_input\nBlur {\n name Baked1\n}\n"
    assert host.paste(node, text, None, "Bake CornerPin2D") == "Baked1"
    nuke.undo()
    assert nuke.toNode("Baked1") is None


@check
def an_update_is_one_step_of_undo():
    from reenact import nodes

    node = made("Reenact", made("CheckerBoard2"))
    node["handles"].setValue(7)
    node.readKnobs("addUserKnob {20 User}\naddUserKnob {7 my_gain R 0 4}\nmy_gain {{handles*2}}")
    id = node["reenact_id"].value()
    nodes.update(node)
    nodes.SESSION.drain()  # as the timer does
    new = nuke.toNode("Reenact1")
    assert new["handles"].value() == 7
    assert new["reenact_id"].value() == id
    assert new["my_gain"].value() == 14, "a knob of the artist's"
    assert new.input(0) is not None
    nuke.undo()
    return {"after undo": nuke.toNode("Reenact1") is not None}


@check
def a_preview_is_seen_and_never_rendered():
    from reenact import host
    from reenact.files import Frames

    node = made("Reenact", made("CheckerBoard2"))
    for read, grey in (("Result", 0.25), ("Preview", 0.75)):
        host.show_files(host.inner(node, read), Frames(frames(2, grey), 1, 2))
    for knob in ("has_result", "has_preview"):
        node[knob].setValue(True)
    node["preview_frame"].setValue(1)
    node["show"].setValue("preview")
    nuke.frame(1)
    seen = round(node.sample("red", 1.5, 1.5), 2)
    assert seen == (0.75 if nuke.GUI else 0.25), seen
    write = made("Write", node)
    path = os.path.join(tempfile.mkdtemp(), "out.%04d.exr").replace("\\", "/")
    for knob, value in (("file", path), ("file_type", "exr"), ("raw", True)):
        write[knob].setValue(value)
    nuke.execute(write, 1, 1)
    read = made("Read")
    read["raw"].setValue(True)
    read["file"].setValue(path)
    rendered = round(read.sample("red", 1.5, 1.5), 2)
    assert rendered == 0.25, "the preview was rendered"


@check
def outside_its_range_a_result_is_black():
    from reenact import host
    from reenact.files import Frames

    node = made("Reenact", made("CheckerBoard2"))
    host.show_files(host.inner(node, "Result"), Frames(frames(2), 1, 2, complete=False))
    node["has_result"].setValue(True)
    read = host.inner(node, "Result")
    seen = {}
    for frame in (0, 1, 3):
        nuke.frame(frame)
        seen[frame] = [round(node.sample(c, 1.5, 1.5), 2) for c in ("red", "alpha")]
    nuke.frame(1)
    assert seen[0] == seen[3] == [0, 0], seen
    choices = {k: read[k].values() for k in ("before", "on_error", "localizationPolicy")}
    return {"seen": seen, "choices": choices}


@check
def a_copy_has_an_id_of_its_own():
    node = made("Reenact")
    node.selectOnly()
    path = os.path.join(tempfile.mkdtemp(), "copy.nk").replace("\\", "/")
    nuke.nodeCopy(path)
    copy = complete(nuke.nodePaste(path))
    assert copy["reenact_id"].value() != node["reenact_id"].value()


@check
def undo_brings_the_same_id_back():
    node = made("Reenact")
    name, id = node.name(), node["reenact_id"].value()
    nuke.delete(node)
    nuke.undo()
    back = nuke.toNode(name)
    assert back is not None
    assert back["reenact_id"].value() == id


@check
def our_own_changes_are_no_steps_of_undo():
    from reenact import host

    node = nuke.createNode("Reenact", inpanel=False)
    with host.undo_step("handles"):
        host.put(node, "handles", 3, undo=True)
    host.put(node, "state", "something")
    nuke.undo()
    assert node["state"].value() == "something"
    return {"handles": node["handles"].value()}


@check
def a_script_keeps_everything():
    names = [made(name).name() for name in NODES]
    before = {name: nuke.toNode(name)["reenact_id"].value() for name in names}
    path = script_path()
    nuke.scriptSaveAs(path, 1)
    nuke.scriptClear()
    nuke.scriptOpen(path)
    assert {name: nuke.toNode(name)["reenact_id"].value() for name in names} == before


@check
def knobs_are_what_the_plugin_takes_them_for():
    from reenact import host

    read = nuke.createNode("Read", inpanel=False)
    read["file"].setValue("/plates/shot.####.exr")
    read["first"].setValue(1001)
    read["last"].setValue(1010)
    node = nuke.createNode("Reenact", inpanel=False)
    node.setInput(0, read)
    plate = host.plate(read)
    assert plate is not None
    files = host.read_files(plate.node, [1001, 1002], host.project().views[0])
    assert files == ["/plates/shot.1001.exr", "/plates/shot.1002.exr"], files
    host.put_curve(node, "keypoint_error", {1001: 1.0, 1003: 2.0})
    assert abs(host.get(node, "keypoint_error", 1002) - 1.5) < 1e-6
    merge = nuke.createNode("Merge2", inpanel=False)
    merge.setInput(0, read)
    merge.setInput(1, node)
    assert [n.name() for n in host.above(merge)] == [read.name(), node.name()]
    return [repr(one) for one in (plate, host.project(), host.connected(node))]


@check
def a_plate_is_sent_from_where_nuke_reads_it():
    """Relative to the project's directory, and with variables, which Nuke has from 16 on."""
    from reenact import host

    real, root, said = frames(1), nuke.root(), {}
    folder, name = os.path.split(real)
    read, view = made("Read"), host.project().views[0]
    read["raw"].setValue(True)
    named = {"relative": os.path.basename(folder) + "/" + name}
    root["project_directory"].setValue(os.path.dirname(folder))
    if root.knob("gsv") is not None:
        root["gsv"].setGsvValue("__default__.reenact_dir", folder)
        named["variable"] = "%{reenact_dir}/" + name
    for kind, pattern in named.items():
        read["file"].setValue(pattern)
        files = host.read_files(read, [1], view)
        assert [os.path.realpath(file) for file in files] == [os.path.realpath(real % 1)], files
        said[kind] = [read["file"].evaluate(), round(read.sample("red", 1.5, 1.5), 2)]
        assert said[kind][1] == 0.5, said
    context = nuke.OutputContext()
    context.setFrame(1)
    said["in a context"] = read["file"].evaluate(context)
    said["evaluateGsv"] = hasattr(nuke, "evaluateGsv")
    root["project_directory"].setValue("")
    return said


@check
def the_input_is_rendered_as_raw_half_at_full_size():
    from reenact import host
    from reenact.files import Frames

    source = nuke.createNode("CheckerBoard2", inpanel=False)
    node = nuke.createNode("Reenact", inpanel=False)
    node.setInput(0, source)
    full, said = host.connected(node), {}
    nuke.root()["proxy"].setValue(True)
    assert host.connected(node) == full
    said["width in proxy mode"] = [full.width, source.format().width(), source.width()]
    pattern = os.path.join(tempfile.mkdtemp(), "new", "source.%04d.exr").replace("\\", "/")
    host.render(host.inner(node, "Source"), pattern, 1, 2, host.project().views[0])
    assert nuke.root()["proxy"].value()
    nuke.root()["proxy"].setValue(False)
    assert host.inner(node, "Source")["disable"].value()
    result = host.inner(node, "Result")
    host.show_files(result, Frames(pattern, 1, 2))
    node["has_result"].setValue(True)
    assert node.width() == source.width(), "not at full size"
    return {**said, "metadata": {k: str(v) for k, v in result.metadata().items()}}


@check
def the_comp_leaves_the_plate_as_it_is_at_amount_0_and_renders_with_everything_on():
    plate = nuke.createNode("CheckerBoard2", inpanel=False)
    face = nuke.createNode("Grade", inpanel=False)
    face["add"].fromScript("0.25")
    face.setInput(0, plate)
    node = nuke.createNode(COMP, inpanel=False)
    node.setInput(0, plate)
    node.setInput(1, face)
    for knob, value in (
        ("erode", -3),
        ("soften", 4),
        ("match", 0.5),
        ("edge_blend", 0.5),
        ("shutter", 180),
        ("grain", 1),
        ("mouth_amount", 0.5),
        ("hair_amount", 0.5),
    ):
        node[knob].setValue(value)
    step = plate.width() / 20
    at = [(int(x * step) + 0.5, int(y * step) + 0.5) for x, y in ((3, 3), (8, 7), (15, 4))]

    def seen(of):
        return [of.sample(c, *xy) for c in ("red", "blue", "alpha") for xy in at]

    with_face = seen(node)
    node["amount"].setValue(0)
    assert seen(node) == seen(plate)
    gain = nuke.toNode(node.name() + ".Match")["multiply"].value()
    assert with_face != seen(plate)
    return {"match without metadata": gain}


@check
def a_studios_defaults_are_not_taken_inside():
    """The report says whether a script keeps what our text states and the studio sets otherwise."""
    path = os.path.join(tempfile.mkdtemp(), "comp.nk").replace("\\", "/")
    nuke.knobDefault("Merge2.bbox", "B")
    try:
        plain, node = nuke.createNode("Merge2", inpanel=False), nuke.createNode(COMP, inpanel=False)
        ours = nuke.toNode(node.name() + ".Extended")["bbox"].value()
        node.selectOnly()
        nuke.nodeCopy(path)
    finally:
        nuke.knobDefault("Merge2.bbox", "union")
    assert ours == "union", ours
    with open(path) as file:
        kept = sum(line.strip() == "bbox union" for line in file)
    return {"of a new Merge2": plain["bbox"].value(), "lines that are saved": kept}


@check
def pasted_nodes_are_beside_ours_and_not_inside():
    from reenact import host

    node = nuke.createNode(COMP, inpanel=False)
    with node:  # as a button of the node does
        name = host.paste(node, "push $cut_paste_input\nBlur {\n size 3\n}\n", None, "Bake")
    assert nuke.toNode(name) is not None
    assert nuke.toNode(node.name() + "." + name) is None


@check
def a_tracker_and_a_roto_of_landmarks_have_their_keys_and_are_drawn():
    from reenact import landmarks, shapes

    source = nuke.createNode("CheckerBoard2", inpanel=False)
    width, height = source.width(), source.format().height()
    ring = landmarks.OUTLINES["left_eye"]
    corners = ((-1, -1), (0, -1), (1, -1), (1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0))
    found = {}
    for frame in (1, 2, 4):  # there is no face in frame 3
        points = [(-1000.0, -1000.0)] * landmarks.COUNT
        for i, index in enumerate(ring):  # a square of 20 px around the middle
            x, y = corners[i * len(corners) // len(ring)]
            points[index] = (width / 2 + 10 * x + frame, height / 2 + 10 * y)
        found[frame] = points
    named = {"a point": ring[0], "another one": ring[-1]}
    folder, made = tempfile.mkdtemp(), []
    for text in (
        shapes.tracker(found, range(1, 5), named),
        shapes.roto(found, range(1, 5), (width, height)),
    ):
        path = os.path.join(folder, "node.nk")
        with open(path, "w") as file:
            file.write("push 0\n" + text)
        made.append(nuke.nodePaste(path))
        made[-1].setInput(0, source)
    tracker, roto = made
    tracks, said = tracker["tracks"], {}
    for row, index in enumerate(named.values()):
        for axis in (0, 1):  # the columns track_x and track_y
            assert tracks.getNumKeys(31 * row + 2 + axis) == 3
            for frame in found:
                value = tracks.getValueAt(frame, 31 * row + 2 + axis)
                assert abs(value - found[frame][index][axis]) < 0.001, (row, frame, value)
    said["enabled on frames 1 to 4"] = [tracks.getValueAt(n, 0) for n in range(1, 5)]
    shape = roto["curves"].toElement("left_eye")
    assert len(shape) == len(ring)
    for i, index in enumerate(ring):
        assert sorted(shape[i].center.getControlPointKeyTimes()) == [1, 2, 4], i
        for frame in found:
            at = shape[i].center.getPosition(frame)
            for axis in (0, 1):
                assert abs(at[axis] - found[frame][index][axis]) < 0.001, (i, frame, at)
    drawn = []
    for frame in range(0, 6):
        nuke.frame(frame)
        drawn.append(roto.sample("alpha", width / 2, height / 2))
    said["alpha of the shape on frames 0 to 5"] = drawn
    saved = os.path.join(folder, "saved.nk")  # as Nuke writes both itself
    tracker["selected"].setValue(True)
    roto["selected"].setValue(True)
    nuke.nodeCopy(saved)
    with open(saved) as file:
        said["as Nuke saves them"] = file.read()
    assert [round(a) for a in drawn] == [0, 1, 1, 0, 1, 0], drawn
    return said


@check
def colour_is_what_the_plugin_takes_it_for():
    """The plugin relies on these names and values; the report says what they are."""
    root, read = nuke.root(), made("Read")
    try:
        import PyOpenColorIO

        version = PyOpenColorIO.GetVersion()
    except ImportError as error:
        version = str(error)
    return {
        "ocio": version,
        "managed": nuke.usingOcio(),
        "config": [root["OCIO_config"].value(), root["OCIOConfigPath"].evaluate()],
        "working space": root["workingSpaceLUT"].value(),
        "read": [read["colorspace"].value(), list(read["colorspace"].values())[:3]],
    }


@check
def qt_is_there_in_the_gui():
    if not nuke.GUI:
        return {"skipped": "terminal"}
    from reenact import qt

    return {"qt": qt.QtCore.qVersion()}


def main(path):
    report = {"nuke": nuke.NUKE_VERSION_STRING, "gui": bool(nuke.GUI), "python": sys.version}
    failed = 0
    for call in _checks:
        nuke.scriptClear()
        try:
            report[call.__name__] = {"ok": True, "said": call()}
        except Exception:
            failed += 1
            report[call.__name__] = {"ok": False, "said": traceback.format_exc()}
    with open(path, "w") as file:
        json.dump(report, file, indent=1, default=str)
    print("REENACT_ACCEPTANCE_OK" if not failed else f"{failed} checks failed", path)


main(sys.argv[-1] if sys.argv[-1].endswith(".json") else "reenact_acceptance.json")
