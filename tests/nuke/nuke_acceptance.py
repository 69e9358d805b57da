"""Checks in a real Nuke, which the test suite doesn't have, what the plugin assumes about it.

    Nuke15.1 -t tests/nuke/nuke_acceptance.py report.json          terminal
    Nuke15.1 --nc tests/nuke/nuke_acceptance.py        or from the Script Editor, in the GUI:
        exec(open("/path/to/tests/nuke/nuke_acceptance.py").read())

It needs the installed plugin and a running server; it sends nothing. It writes Nuke's answers as
JSON, and prints REENACT_ACCEPTANCE_OK or how many checks failed. Python 3.9.
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


@check
def nodes_are_made_with_all_their_knobs():
    made = [nuke.createNode(name, inpanel=False) for name in NODES]
    inside = {n.name(): sorted(c.Class() for c in n.nodes()) for n in made}
    hidden = {n.name(): [k for k in n.knobs() if not n[k].visible()] for n in made}
    assert all(n["reenact_id"].value() for n in made), "onCreate did not run"
    return {"inside": inside, "hidden": hidden}


@check
def on_create_of_a_group_sees_its_inside():
    """The plugin relies on neither order; the report says which one it is."""
    seen = []
    nuke.addOnCreate(lambda: seen.append(len(nuke.thisNode().nodes())), nodeClass="Group")
    nuke.createNode("Reenact", inpanel=False)
    return {"children_at_on_create": seen}


@check
def a_copy_has_an_id_of_its_own():
    node = nuke.createNode("Reenact", inpanel=False)
    for other in nuke.allNodes():
        other["selected"].setValue(other is node)
    path = os.path.join(tempfile.mkdtemp(), "copy.nk")
    nuke.nodeCopy(path)
    copy = nuke.nodePaste(path)
    assert copy["reenact_id"].value() != node["reenact_id"].value()


@check
def undo_brings_the_same_id_back():
    node = nuke.createNode("Reenact", inpanel=False)
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
    node["handles"].setValue(3)
    host.put(node, "state", "something")
    nuke.undo()
    return {"state": node["state"].value(), "handles": node["handles"].value()}


@check
def a_script_keeps_everything():
    path = os.path.join(tempfile.mkdtemp(), "saved.nk")
    before = {n.name(): n["reenact_id"].value() for n in nuke.allNodes("Group")}
    nuke.scriptSaveAs(path, 1)
    nuke.scriptClear()
    nuke.scriptOpen(path)
    assert {n.name(): n["reenact_id"].value() for n in nuke.allNodes("Group")} == before


@check
def knobs_are_what_the_plugin_takes_them_for():
    from reenact import host

    read = nuke.createNode("Read", inpanel=False)
    read["file"].setValue("/plates/shot.####.exr")
    read["first"].setValue(1001)
    read["last"].setValue(1010)
    node = nuke.createNode("Reenact", inpanel=False)
    node.setInput(0, read)
    plate = host.plate(node)
    assert plate is not None
    files = host.plate_files(plate, [1001, 1002], host.project().views[0])
    assert files == ["/plates/shot.1001.exr", "/plates/shot.1002.exr"], files
    host.put_curve(node, "keypoint_error", {1001: 1.0, 1003: 2.0})
    assert abs(host.get(node, "keypoint_error", 1002) - 1.5) < 1e-6
    merge = nuke.createNode("Merge2", inpanel=False)
    merge.setInput(0, read)
    merge.setInput(1, node)
    assert [n.name() for n in host.above(merge)] == [read.name(), node.name()]
    host.show(node, "next", "Show log")
    return [repr(one) for one in (plate, host.project(), host.connected(node))]


@check
def the_input_is_rendered_as_raw_half_at_full_size():
    from reenact import host

    source = nuke.createNode("CheckerBoard2", inpanel=False)
    node = nuke.createNode("Reenact", inpanel=False)
    node.setInput(0, source)
    nuke.root()["proxy"].setValue(True)
    pattern = os.path.join(tempfile.mkdtemp(), "new", "source.%04d.exr").replace("\\", "/")
    host.render(host.inner(node, "Source"), pattern, 1, 2, host.project().views[0])
    assert nuke.root()["proxy"].value()
    nuke.root()["proxy"].setValue(False)
    result = host.inner(node, "Result")
    host.show_files(result, pattern, 1, 2)
    node["has_result"].setValue(True)
    assert node.width() == source.width(), "not at full size"
    return {"metadata": {k: str(v) for k, v in result.metadata().items()}}


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
    return {"match without metadata": gain, "classes": sorted({n.Class() for n in node.nodes()})}


@check
def pasted_nodes_are_beside_ours_and_not_inside():
    from reenact import host

    node = nuke.createNode(COMP, inpanel=False)
    inside = len(node.nodes())
    with node:  # as a button of the node does
        made = host.paste(node, "push $cut_paste_input\nBlur {\n size 3\n}\n", None)
    assert nuke.toNode(made) is not None
    assert len(node.nodes()) == inside


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
