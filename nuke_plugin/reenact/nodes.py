"""What the nodes' callbacks and buttons call: `reenact.nodes.NAME(nuke.thisNode())`.

The gizmos' text calls these functions by name, and scripts that artists have saved contain that
text. So names and parameters here stay, and each function is called on the main thread.
`session.py` does the work, `requests.py` builds what a node asks for.
"""

import contextlib
import functools
import re
from pathlib import Path, PurePath
from typing import Callable, Optional, Tuple

from reenact import bake as baking
from reenact import host, launcher, queries, repairs, runs, shapes, thumbnails, tracks, versions
from reenact import landmarks as marks
from reenact.chosen import results_folder, show_chosen, show_version
from reenact.display import (
    PLAIN,
    RED,
    approved_version,
    errors_on,
    plain_text,
    read_older_layers,
    show_text,
    show_update,
)
from reenact.errors import NodeError
from reenact.files import is_marked
from reenact.host import Node
from reenact.kinds import (
    IDENTITY,
    NODE_VERSION,
    OLDER_INSIDE,
    PATHS,
    REENACT,
    RENAMED,
    REPAIR,
    kind_of,
    node_id,
    node_version,
    shown_version,
)
from reenact.requests import (
    ALL_VIEWS,
    SLIDERS,
    build_request,
    new_entry,
    new_style_request,
    qc_request,
)
from reenact.runs import NodeUpdate, Result
from reenact.session import Session, mark_shown
from reenact.shots import ShotRequest, read_shot
from reenact.upstream import Upstream, connected, face_read, shot_above, upstream

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
    """Called once by the plugin's menu.py, where Nuke has a GUI."""
    host.on_script_close(SESSION.close_script)
    host.on_script_load(SESSION.script_loaded)
    host.on_script_save(SESSION.forget_files)


# -- callbacks -----------------------------------------------------------------------------------


@host.guarded
def on_create(node: Node) -> None:
    """A node was created, loaded, pasted, or restored by undo; it is not whole yet."""
    SESSION.add(node)


@host.guarded
def on_destroy(node: Node) -> None:
    """A node is deleted."""
    SESSION.remove(node)


@host.guarded
def knob_changed(node: Node, knob: str) -> None:
    """A knob was changed; while a script loads, and by ourselves, that means nothing."""
    if not host.is_ready(node):
        return
    kind = kind_of(node)
    if knob in PATHS:
        raw = str(host.get(node, knob, raw=True))
        host.put(node, knob, re.sub(r"\\(?![\[\]$])", "/", raw))
    if knob == "character" and kind is REENACT:
        SESSION.defer(lambda: _show_person(node))
    if knob in LIVE_KNOBS and kind.is_live and host.gui():
        SESSION.follow(node)
    elif knob in ("version", "compare") and host.has(node, "shown_version"):
        show_chosen(node)
    elif knob == "version" and kind.has_track:  # node version 2
        show_version(node)
    elif knob in ("characters", "styles"):
        label = str(host.get(node, knob))
        if label != queries.NO_CHOICE:
            host.put_choices(node, knob, [queries.NO_CHOICE])
            _fetch(node, knob, label)


def _fetch(node: Node, kind: str, label: str) -> None:
    with errors_on(node):
        folder = results_folder(node) / kind
        character = shot_above(node).character if kind == "styles" else ""
        SESSION.query(
            node,
            lambda client, id: queries.fetch_file(client, id, kind, character, label, folder),
        )


Button = Callable[[Node], None]


def _button(press: Button) -> Button:
    """Completes the node first, which may be so new that the timer hasn't, and shows what its
    menus choose; shows errors on it."""

    @functools.wraps(press)
    def run(node: Node) -> None:
        SESSION.complete(node)
        with errors_on(node):
            show_chosen(node)
            press(node)

    return run


# -- buttons: the node itself --------------------------------------------------------------------


def update(node: Node) -> None:
    """Replaces a node by that of the installed plugin; knobs, connections and results stay."""
    SESSION.defer(lambda: _update(node))  # not while its own button is pressed


def _update(node: Node) -> None:
    SESSION.complete(node)
    show_chosen(node)
    kind, refusal = kind_of(node), ""
    if not kind.gizmo or node_version(node) > NODE_VERSION:
        refusal = "The node is newer than the plugin. Update the plugin."
    elif host.is_clone(node):
        refusal = "Declone the node first: clones share their knobs."
    if refusal:
        host.put(node, "state" if host.has(node, "state") else "baked", refusal)
        return
    older = node_version(node) < 4  # its text declares the older layers
    renamed = node_version(node) < 3  # its next frames have other names of layers
    shown = shown_version(node)
    has_result = host.has(node, "has_result") and bool(host.get(node, "has_result"))
    if kind.has_track and not host.has(node, "shown_version"):  # node version 2
        if kind is REPAIR:
            has_result = shown != versions.UPSTREAM
        elif has_result:
            shown = Path(str(host.get(node, "track"))).parent.name
    colour = host.get(node, "tile_color")
    made = host.replace(node, kind.gizmo, RENAMED, IDENTITY)
    if colour not in (RED, PLAIN):  # the artist's
        host.put(made, "tile_color", colour)
    if host.has(made, "thumbnail") and host.get(made, "character"):
        _show_person(made)
    if older:
        for inside in OLDER_INSIDE.get(kind.name, ()):  # it may show frames with older layers
            read_older_layers(made, inside)
    if kind.has_track:
        host.put(made, "shown_version", shown)
        host.put(made, "has_result", has_result)
        if has_result:
            mark_shown(made)
    SESSION.complete(made)
    if kind.has_track and renamed:
        show_text(made, "Updated. Update ReenactComp nodes below it, too.")


def update_selected() -> None:
    """Updates the selected nodes; the menu calls it, for older nodes have no button for it."""
    for node in host.selected():
        if kind_of(node).gizmo:
            update(node)


# -- buttons: jobs -------------------------------------------------------------------------------


@_button
def submit(node: Node) -> None:
    """Submits what the node's knobs ask for; continues a version that was submitted before."""
    SESSION.start(node, build_request(node))
    SESSION.drop_live(node)


@_button
def preview(node: Node) -> None:
    """Renders the current frame only."""
    request = build_request(node, host.frame())
    if kind_of(node).is_live and isinstance(request, ShotRequest):
        SESSION.request_frame(node, request)
    else:
        SESSION.start(node, request)


@_button
def make_style(node: Node) -> None:
    """Makes the style that the knobs of a ReenactStyle describe."""
    SESSION.start(node, new_style_request(node))


@_button
def measure(node: Node) -> None:
    """Measures the shot above a ReenactRepair, which suggests repairs."""
    SESSION.start(node, qc_request(node))


@_button
def cancel(node: Node) -> None:
    """Stops the node's job; finished frames stay."""
    run = SESSION.run_of(node)
    if run is not None and run.is_alive():
        run.cancel()
        show_update(node, NodeUpdate(node_id(node), "running", "Stopping."))
    else:
        show_update(node, NodeUpdate(node_id(node), "", "There is nothing to cancel."))


@_button
def finish(node: Node) -> None:
    """Stops the node's training at its next step, and keeps a whole result of what it has."""
    run = SESSION.run_of(node)
    if run is not None and run.is_alive():
        run.finish()
        text = "Stopping early, to keep what is trained."
    else:
        text = "Nothing is trained here at the moment."
    show_update(node, NodeUpdate(node_id(node), "", text))


@_button
def resume(node: Node) -> None:
    """Continues the node's last run where it stopped."""
    folder = str(host.get(node, "run"))
    if folder:
        SESSION.start(node, folder=folder, resume=True)
    else:
        submit(node)


@_button
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
        launcher.open_path(runs.log_file(str(host.get(node, "run"))))
    elif step == "locate":
        found = host.choose_file("Locate the character", "*.character")
        if found:
            with host.undo_step("Locate character"):
                host.put(node, "character", PurePath(found), undo=True)
                _show_person(node, undo=True)
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


# -- buttons: versions ---------------------------------------------------------------------------


@_button
def approve(node: Node) -> None:
    """Approves the version that is shown: new ones do not take its place. Withdraws it if it is."""
    shown, before = _shown_here(node), approved_version(node)
    folder = versions.folder_of(str(host.get(node, "track")), shown)
    name, id = host.name(node), node_id(node)

    def work() -> NodeUpdate:
        try:
            if before != shown:
                versions.approve(folder, name, id)
            if before:
                versions.withdraw(folder.parent / before, id)
        except OSError as error:
            raise NodeError(f"{error.filename}: {error.strerror}. Nothing was approved.") from None
        text = f"{shown} is approved: new versions leave it in its place."
        if before == shown:
            text = f"{shown} is not approved any more."
        return NodeUpdate(
            id, "", text, result=Result({"approved": "" if before == shown else shown})
        )

    SESSION.do(node, work)


@_button
def create_read(node: Node) -> None:
    """Puts a Read of the shown version below the node, or sets the one that it has put there."""
    shown, id = _shown_here(node), node_id(node)
    name = host.put_read(
        node,
        str(host.get(node, "read_name")),
        lambda file: any(is_marked(folder, id) for folder in Path(file).parents),
        f"{host.name(node)}\n{shown}",
    )
    host.put(node, "read_name", name)
    text = f"{name} reads {shown}. Press Create Read again to set it to another version."
    show_update(node, NodeUpdate(node_id(node), "", text))


def _shown_here(node: Node) -> str:
    """Returns the version that is shown.

    Raises:
        NodeError: the node shows what comes in.
    """
    shown = shown_version(node)
    if not host.get(node, "has_result") or shown in ("", versions.UPSTREAM):
        raise NodeError("No version is shown. Submit the node, or choose a version.")
    return shown


# -- buttons: repairs ----------------------------------------------------------------------------


@_button
def add_repair(node: Node) -> None:
    """Adds the repair that the knobs describe to the list."""
    entry = new_entry(node, host.frame())
    lines = str(host.get(node, "repairs")).splitlines()
    text = "\n".join([*lines, repairs.format_entry(entry)])
    with host.undo_step("Add repair"):
        host.put(node, "repairs", text, undo=True)


@_button
def clear_repairs(node: Node) -> None:
    """Empties the list of repairs."""
    with host.undo_step("Clear repairs"):
        host.put(node, "repairs", "", undo=True)


@_button
def next_bad(node: Node) -> None:
    """Goes to the next frame that stands out or is listed; after the last one to the first."""
    listed = repairs.parse(str(host.get(node, "repairs")), shot_above(node).numbers)
    marked = str(host.get(node, "marked")).strip()
    bad = repairs.bad_frames([entry for _, entry in listed], marked)
    if not bad:
        raise NodeError("No frame is listed. Measure the shot, or Add frames to the list.")
    current = host.frame()
    host.go_to(next((number for number in bad if number > current), bad[0]))


@_button
def open_report(node: Node) -> None:
    """Opens the report of the last measurement."""
    report = str(host.get(node, "report"))
    if not report:
        raise NodeError("Nothing was measured yet. Press Measure.")
    launcher.open_path(Path(report))


# -- buttons: files and menus --------------------------------------------------------------------


def choose(node: Node, knob: str) -> None:
    """Asks for the file or folder of a knob."""
    name = knob.replace("_", " ")
    found = host.choose_file(f"Choose the {name}")
    if found:
        with host.undo_step(f"Choose {name}"):
            host.put(node, knob, PurePath(found), undo=True)
            if knob == "character":
                _show_person(node, undo=True)
        if knob in LIVE_KNOBS:
            SESSION.follow(node)


def _show_person(node: Node, undo: bool = False) -> None:
    """Shows the picture of a Reenact's character: never that of another person."""
    path = str(host.get(node, "character"))
    knobs = thumbnails.character_knobs(Path(path)) if path else {"thumbnail": ""}
    host.put(node, "thumbnail", knobs["thumbnail"], undo)


@_button
def list_characters(node: Node) -> None:
    """Fills the menu of characters with those that the server has."""
    SESSION.query(node, lambda client, id: queries.list_files(client, id, "characters"))


@_button
def list_styles(node: Node) -> None:
    """Fills the menu of styles with those that the server has of the shot's character."""
    character = shot_above(node).character
    SESSION.query(node, lambda client, id: queries.list_files(client, id, "styles", character))


@_button
def all_views(node: Node) -> None:
    """Has Submit work on every view of the script."""
    with host.undo_step("All views"):
        host.put(node, "view", ALL_VIEWS, undo=True)


@_button
def input_range(node: Node) -> None:
    """Sets the range to that of the input."""
    extent = connected(node)
    with host.undo_step("Input range"):
        host.put(node, "first", extent.first, undo=True)
        host.put(node, "last", extent.last, undo=True)


@_button
def open_results(node: Node) -> None:
    """Opens the folder of the last run."""
    run = str(host.get(node, "run"))
    folder = Path(run) if run else results_folder(node)
    if not run and not folder.exists():
        raise NodeError("There are no results yet. Press Submit.")
    launcher.open_path(folder)


@_button
def open_sheet(node: Node) -> None:
    """Opens the picture of the frames that a character was made from."""
    run = str(host.get(node, "run"))
    sheet = Path(run) / "selection.png"
    if not run or not sheet.exists():
        raise NodeError("No frames were chosen yet. Submit the node, and wait until they are.")
    launcher.open_path(sheet)


SQUARE = 1e-3  # how far from 1 the aspect of pixels is taken for 1

# What the artist's undo calls a baked node.
BAKES = {
    "corner_pin": "Bake CornerPin2D",
    "transform": "Bake Transform",
    "stmap": "Bake STMap",
    "tracker": "Bake Tracker4",
    "roto": "Bake Roto",
}


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
    except KeyError as error:
        text = f"The node {error} inside the face's node is missing. Make a new one."
    host.put(node, "baked", plain_text(text))


def older_frames(node: Node) -> None:
    """Has a ReenactComp read frames of earlier versions, whose layers have other names."""
    text = "The node reads frames of earlier versions, too."
    try:
        read_older_layers(node, "face")
    except KeyError as error:
        text = f"The node {error} inside this one is missing. Make a new one."
    host.put(node, "baked", plain_text(text))


def _size(comp: Node) -> Tuple[int, int]:
    """Returns width and height of a ReenactComp's plate, px."""
    extent = connected(comp)
    return extent.width, extent.height


def _crop_size(comp: Node, above: Upstream, quads: tracks.FaceQuads) -> Tuple[int, int]:
    """Returns width and height of the aligned crop that is to follow a face, px.

    Args:
        comp: the ReenactComp. Its crop has the size; without one, it is that of the crops that
            belong to the track.
        above: the track.
        quads: the track's.
    """
    extent = host.connected(comp, 2)
    if extent is not None:
        return extent.width, extent.height
    side: Optional[int] = None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        character = read_shot(above.track, above.character).character
        side = tracks.crop_side(above.track, character)
    return side or quads.crop, side or quads.crop


def _plate_and_face(comp: Node) -> Tuple[Node, Node]:
    plate, face = (host.source(comp, index) for index in (0, 1))
    if plate is None or face is None:
        raise NodeError("Connect plate and face.")
    return plate, face


def _bake(node: Node, kind: str) -> str:
    plate, face = _plate_and_face(node)
    above = upstream(node, [face])
    of_crop = str(host.get(node, "bake_from")) == "the aligned crop"
    frame, inverse = host.frame(), bool(host.get(node, "stabilise"))
    try:
        # The face is scaled to the plate, so what follows it is, too.
        quads = tracks.face_quads(above.track).scaled_to(_size(node))
        crop = _crop_size(node, above, quads) if of_crop else None
        warp = baking.face_warp(quads, frame, crop, inverse)
    except (OSError, ValueError) as error:
        raise NodeError(f"The latent track can't be read: {error}") from error
    except KeyError:
        raise NodeError(f"There is no face in frame {frame}. Go to another one.") from None
    aspect = quads.pixel_aspect * (crop[0] / crop[1] if crop else 1)
    if kind == "transform" and abs(aspect - 1) > SQUARE:
        raise NodeError("A Transform is right for square pixels only. Make a CornerPin2D.")
    under: Optional[Node] = plate
    if of_crop and not inverse and kind != "stmap":
        under = host.source(node, 2)
    text = "push $cut_paste_input\n" + baking.KINDS[kind](warp)
    name = host.paste(node, text, under, BAKES[kind])
    return f"{name}: keys from {min(quads.corners)} to {max(quads.corners)}."


def _bake_points(node: Node, kind: str) -> str:
    under, face = _plate_and_face(node)
    read = face_read(face)
    first, last = (int(host.get(read, knob)) for knob in ("first", "last"))
    frames = range(first, last + 1)
    files = host.read_files(read, list(frames), host.project().views[0])
    try:
        landmarks, size = marks.read_landmarks(dict(zip(frames, files)))
    except (OSError, ValueError) as error:
        raise NodeError(f"The frames of the face can't be read: {error}") from error
    if not landmarks:
        text = "These frames hold no landmarks."
        raise NodeError(f"{text} Submit the face again if an older version rendered them.")
    plate = _size(node)
    landmarks = marks.scaled(landmarks, (plate[0] / size[0], plate[1] / size[1]))
    if kind == "tracker":
        points = marks.named_points(str(host.get(node, "bake_points")))
        text = shapes.tracker(landmarks, frames, points)
    else:
        text = shapes.roto(landmarks, frames, plate)
    name = host.paste(node, "push $cut_paste_input\n" + text, under, BAKES[kind])
    return f"{name}: keys from {min(landmarks)} to {max(landmarks)}."
