"""What the nodes' callbacks and buttons call: `reenact.nodes.NAME(nuke.thisNode())`.

The gizmos' text calls these functions by name, and scripts that artists have saved contain that
text. So names and parameters here stay, and each function is called on the main thread.
`session.py` does the work, `requests.py` builds what a node asks for.
"""

import uuid
from pathlib import Path
from typing import Optional

from reenact import __version__, host, protocol, queries, repairs, runs, shapes, tracks
from reenact import bake as baking
from reenact import landmarks as marks
from reenact.display import errors_on, show_update
from reenact.errors import NodeError, ServerError
from reenact.host import Node
from reenact.kinds import REPAIR, kind_of, node_id
from reenact.requests import (
    SLIDERS,
    build_request,
    new_entry,
    new_style_request,
    qc_request,
    results_folder,
)
from reenact.runs import NodeUpdate, Result
from reenact.session import Session
from reenact.shots import ShotRequest
from reenact.upstream import face_read, shot_above, upstream

# Knobs whose change is rendered live.
LIVE_KNOBS = {
    *SLIDERS,
    "extra",
    "extra_file",
    "extra_name",
    "directions",
    "rows",
    "edge",
    "limit",
    "live",
    "style",
    "style_amount",
    "style_from",
    "style_to",
    "sibling",
}

SESSION = Session()


def register() -> None:
    """Called once by the plugin's init.py, in every mode."""
    host.on_script_close(SESSION.close_script)


# -- callbacks -----------------------------------------------------------------------------------


def on_create(node: Node) -> None:
    """A node was created, loaded, pasted, or restored by undo."""
    if not node_id(node) or SESSION.is_copy(node):
        id = uuid.uuid4().hex  # jobs belong to the node that was copied
        host.put(node, "reenact_id", id)
        host.put(node, "run", "")
        show_update(node, NodeUpdate(id, "", "Not submitted."))
    host.put(
        node,
        "versions",
        f"plugin {__version__}, protocol {protocol.VERSION}, Nuke {host.project().nuke}",
    )
    SESSION.add(node)


def on_destroy(node: Node) -> None:
    """A node is deleted."""
    SESSION.remove(node)


def knob_changed(node: Node, knob: str) -> None:
    """A knob was changed."""
    kind = kind_of(node)
    if knob in LIVE_KNOBS and kind.is_live and host.gui():
        SESSION.follow(node)
    elif knob == "version" and kind is REPAIR:
        _show_version(node)
    elif knob in ("characters", "styles"):
        label = str(host.get(node, knob))
        if label != queries.NO_CHOICE:
            host.put(node, knob, queries.NO_CHOICE)
            _fetch(node, knob, label)


def _fetch(node: Node, kind: str, label: str) -> None:
    with errors_on(node):
        folder = results_folder(node) / kind
        character = shot_above(node).character if kind == "styles" else ""
        SESSION.query(
            node,
            lambda client, id: queries.fetch_file(client, id, kind, character, label, folder),
        )


def _show_version(node: Node) -> None:
    """Shows the chosen version, or what comes in."""
    with errors_on(node):
        version = str(host.get(node, "version"))
        result = Result({"track": ""}, {"keypoint_error": {}})
        if version != repairs.UPSTREAM:
            folder = results_folder(node)
            try:
                result = repairs.version_result(folder / version)
            except (OSError, ValueError, KeyError, ServerError):
                raise NodeError(f"There is no {version} in {folder} any more.") from None
        show_update(node, NodeUpdate(node_id(node), "", f"Shows {version}.", result=result))
        host.put(node, "show", "result")


# -- buttons: jobs -------------------------------------------------------------------------------


def submit(node: Node) -> None:
    """Submits what the node's knobs ask for; continues a version that was submitted before."""
    with errors_on(node):
        SESSION.start(node, build_request(node))
        SESSION.drop_live(node)


def preview(node: Node) -> None:
    """Renders the current frame only."""
    with errors_on(node):
        request = build_request(node, host.project().frame)
        if kind_of(node).is_live and isinstance(request, ShotRequest):
            SESSION.request_frame(node, request)
        else:
            SESSION.start(node, request)


def make_style(node: Node) -> None:
    """Makes the style that the knobs of a ReenactStyle describe."""
    with errors_on(node):
        SESSION.start(node, new_style_request(node))


def measure(node: Node) -> None:
    """Measures the shot above a ReenactRepair, which suggests repairs."""
    with errors_on(node):
        SESSION.start(node, qc_request(node))


def cancel(node: Node) -> None:
    """Stops the node's job; finished frames stay."""
    run = SESSION.run_of(node)
    if run is not None and run.is_alive():
        run.cancel()
        show_update(node, NodeUpdate(node_id(node), "running", "Stopping."))


def resume(node: Node) -> None:
    """Continues the node's last run where it stopped."""
    folder = str(host.get(node, "run"))
    if folder:
        SESSION.start(node, folder=folder, resume=True)
    else:
        submit(node)


def next_step(node: Node) -> None:
    """Does what the button that appears with a state is labelled with."""
    step = str(host.get(node, "step"))
    if step == "start":
        _start_server(node)
    elif step == "retry":
        _retry(node)
    elif step == "resume":
        resume(node)
    elif step == "preview":
        preview(node)
    elif step == "log":
        open_path(runs.log_file(str(host.get(node, "run"))))
    elif step == "locate":
        found = host.choose_file("Locate the character", "*.character")
        if found:
            host.put(node, "character", found)
            submit(node)


def _retry(node: Node) -> None:
    run = SESSION.run_of(node)
    kind = run.request.kind if run is not None and run.request is not None else ""
    buttons = {
        "stylize": make_style,
        "qc": measure,
        "preview": preview,
        "repaired_frame": preview,
    }
    buttons.get(kind, submit)(node)


def _start_server(node: Node) -> None:
    """Starts a server, and continues what the node needs it for."""
    folder, run = str(host.get(node, "run")), SESSION.run_of(node)
    if run is not None and not run.is_alive() and run.request is not None and not run.folder:
        SESSION.start(node, run.request, start_server=True)
    elif folder and (run is None or not run.is_alive()):
        SESSION.start(node, folder=folder, start_server=True)
    else:  # nothing was submitted, or a run waits for the server and will find it
        SESSION.query(node, queries.start_server)


# -- buttons: repairs ----------------------------------------------------------------------------


def add_repair(node: Node) -> None:
    """Adds the repair that the knobs describe to the list."""
    with errors_on(node):
        entry = new_entry(node, host.project().frame)
        lines = str(host.get(node, "repairs")).splitlines()
        text = "\n".join([*lines, repairs.format_entry(entry)])
        host.put(node, "repairs", text, undo=True)


def clear_repairs(node: Node) -> None:
    """Empties the list of repairs."""
    host.put(node, "repairs", "", undo=True)


def next_bad(node: Node) -> None:
    """Goes to the next frame that stands out or is listed; after the last one to the first."""
    with errors_on(node):
        listed = repairs.parse(str(host.get(node, "repairs")), shot_above(node).numbers)
        marked = str(host.get(node, "marked")).strip()
        bad = repairs.bad_frames([entry for _, entry in listed], marked)
        if not bad:
            raise NodeError("No frame is listed. Measure the shot, or Add frames to the list.")
        current = host.project().frame
        host.go_to(next((number for number in bad if number > current), bad[0]))


def open_report(node: Node) -> None:
    """Opens the report of the last measurement."""
    report = str(host.get(node, "report"))
    with errors_on(node):
        if not report:
            raise NodeError("Nothing was measured yet. Press Measure.")
        open_path(Path(report))


# -- buttons: files and menus --------------------------------------------------------------------


def list_characters(node: Node) -> None:
    """Fills the menu of characters with those that the server has."""
    SESSION.query(node, lambda client, id: queries.list_files(client, id, "characters"))


def list_styles(node: Node) -> None:
    """Fills the menu of styles with those that the server has of the shot's character."""
    with errors_on(node):
        character = shot_above(node).character
        SESSION.query(node, lambda client, id: queries.list_files(client, id, "styles", character))


def input_range(node: Node) -> None:
    """Sets the range to that of the input."""
    extent = host.connected(node)
    if extent is not None:
        host.put(node, "first", extent.first)
        host.put(node, "last", extent.last)


def open_results(node: Node) -> None:
    """Opens the folder of the last run."""
    run = str(host.get(node, "run"))
    with errors_on(node):
        open_path(Path(run) if run else results_folder(node))


def open_sheet(node: Node) -> None:
    """Opens the picture of the frames that a character was made from."""
    run = str(host.get(node, "run"))
    if run:
        open_path(Path(run) / "selection.png")


def open_path(path: Path) -> None:
    """Has the desktop open a file or a folder."""
    import webbrowser

    webbrowser.open(path.resolve().as_uri())


def bake(node: Node, kind: str) -> None:
    """Makes a native node with keys beside a ReenactComp.

    Args:
        node: the ReenactComp.
        kind: one of `reenact.bake.KINDS`, or `tracker` or `roto`.
    """
    try:
        text = _bake_points(node, kind) if kind in ("tracker", "roto") else _bake(node, kind)
    except NodeError as error:
        text = str(error)
    host.put(node, "baked", text)


def _bake(node: Node, kind: str) -> str:
    sources = host.above(node)
    if len(sources) < 2:
        raise NodeError("Connect plate and face.")
    track = upstream(node, [sources[1]]).track
    crop = str(host.get(node, "bake_from")) == "the aligned crop"
    frame, inverse = host.project().frame, bool(host.get(node, "stabilise"))
    try:
        quads = tracks.face_quads(track)
        warp = baking.face_warp(quads, frame, crop, inverse)
    except (OSError, ValueError) as error:
        raise NodeError(f"The latent track can't be read: {error}") from error
    except KeyError:
        raise NodeError(f"There is no face in frame {frame}. Go to another one.") from None
    if kind == "transform" and quads.pixel_aspect != 1:
        raise NodeError("A Transform is right for square pixels only. Make a CornerPin2D.")
    under: Optional[Node] = sources[0]
    if crop and not inverse and kind != "stmap":
        under = sources[2] if len(sources) > 2 else None
    name = host.paste(node, "push $cut_paste_input\n" + baking.KINDS[kind](warp), under)
    return f"{name}: keys from {min(quads.corners)} to {max(quads.corners)}."


def _bake_points(node: Node, kind: str) -> str:
    sources = host.above(node)
    if len(sources) < 2:
        raise NodeError("Connect plate and face.")
    read = face_read(sources[1])
    first, last = (int(host.get(read, knob)) for knob in ("first", "last"))
    frames = range(first, last + 1)
    plate = host.Plate(read, "", first, last)
    files = host.plate_files(plate, list(frames), host.project().views[0])
    try:
        landmarks, size = marks.read_landmarks(dict(zip(frames, files)))
    except (OSError, ValueError) as error:
        raise NodeError(f"The frames of the face can't be read: {error}") from error
    if not landmarks:
        text = "These frames hold no landmarks."
        raise NodeError(f"{text} Submit the face again if an older version rendered them.")
    if kind == "tracker":
        points = marks.named_points(str(host.get(node, "bake_points")))
        text = shapes.tracker(landmarks, frames, points)
    else:
        text = shapes.roto(landmarks, frames, size)
    name = host.paste(node, "push $cut_paste_input\n" + text, sources[0])
    return f"{name}: keys from {min(landmarks)} to {max(landmarks)}."
