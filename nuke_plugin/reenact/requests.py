"""Builds what a node asks the server for, from its knobs and its inputs."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Set, Tuple, TypeVar

from reenact import exr, host, ocio, protocol, repairs
from reenact.chosen import results_folder
from reenact.errors import NodeError
from reenact.files import frame_file
from reenact.host import Node
from reenact.keyframes import TOLERANCE, keyframes
from reenact.kinds import (
    EDIT,
    PERSONALIZE,
    REENACT,
    REPAIR,
    STYLE,
    kind_of,
    layer_names,
    node_id,
)
from reenact.protocol import MOVIES, STILLS
from reenact.repairs import RepairRequest
from reenact.runs import RunRequest, Source
from reenact.shots import Shot, ShotRequest
from reenact.upstream import character_of, connected, origin, shot_above, shots_above

# Frames to choose and steps of tuning, by the quality of a ReenactPersonalize.
QUALITIES = {"preview": (60, 300), "production": (250, 2000)}

# The direction that each slider of a ReenactEdit moves along.
SLIDERS = {
    "smile": "smile",
    "mouth": "jaw",
    "lids": "lids",
    "gaze_x": "gaze_x",
    "gaze_y": "gaze_y",
    "brow": "brow",
    "yaw": "yaw",
    "pitch": "pitch",
    "roll": "roll",
}

# Measures that a ReenactRepair has limits for.
LIMITED_MEASURES = ("landmarks", "mouth", "lids", "gaze", "pose", "jitter")

# Nuke's own colour spaces (colour management: Nuke) in a built-in config of OCIO, and that config.
NUKE_SPACES = {"linear": "lin_rec709", "sRGB": "srgb_tx"}
NUKE_CONFIG = "ocio://cg-config-v1.0.0_aces-v1.3_ocio-v2.1"

ALL_VIEWS = "all"  # in the knob that names views

Request = TypeVar("Request", bound=RunRequest)

# Tolerances that are tried in turn until a curve fits into one text; none of them is visible.
AMOUNT_TOLERANCES = (TOLERANCE, 1e-4, 1e-3, 1e-2)


def build_request(node: Node, frame: Optional[int] = None) -> RunRequest:
    """Returns what a node's knobs ask for; renders its input where its files can't be used.

    Args:
        node: one of ours.
        frame: the frame of a preview; None for the node's range.

    Raises:
        NodeError: something is missing.
        RepairLineError: a line of a repair list is invalid.
    """
    kind = kind_of(node)
    if kind.name not in BUILDERS:
        raise NodeError("This plugin does not know this kind of node. Update the plugin.")
    request = BUILDERS[kind.name](node, frame)
    if not kind.has_track:
        return request
    names = layer_names(node)
    views = {
        view: dataclasses.replace(one, layer_names=names) for view, one in request.views.items()
    }
    return dataclasses.replace(request, layer_names=names, views=views)


# -- characters and reenactments -----------------------------------------------------------------


def personalize_request(node: Node, frame: Optional[int] = None) -> RunRequest:
    """Returns what a ReenactPersonalize asks for; raises as `build_request` does."""
    name, folder = version_name(node), results_folder(node)
    first, last = _range(node, frame)
    if len(_views(node)) > 1:
        raise NodeError("A character is made from one view. Name one.")
    settings = _face_position(node)
    who = str(host.get(node, "who", raw=True)).strip()  # a name is no Tcl
    if not who or not host.get(node, "agreed"):
        raise NodeError("Enter the person's name, and tick that they agreed to be scanned.")
    count, steps = QUALITIES[str(host.get(node, "quality"))]
    settings.update(
        name=name,
        who=who,
        scope=str(host.get(node, "scope", raw=True)),
        count=int(host.get(node, "count")) or count,
        steps=int(host.get(node, "steps")) or steps,
        refine=int(host.get(node, "refine")) or None,
    )
    if host.has(node, "resolution"):  # nodes before version 6 have none
        resolution = str(host.get(node, "resolution"))
        settings["resolution"] = None if resolution == "auto" else int(resolution)
    source = _source(node, name, folder, (first, last))
    return RunRequest("personalize", str(folder), name, source, settings, first=first, last=last)


def reenact_request(node: Node, frame: Optional[int] = None) -> RunRequest:
    """Returns what a Reenact asks for; raises as `build_request` does."""
    views = _views(node)
    if frame is not None:
        views = views[:1]
    return _of_views(
        {view: _reenact_view(node, frame, view if len(views) > 1 else "") for view in views}
    )


def _reenact_view(node: Node, frame: Optional[int], view: str) -> RunRequest:
    """Returns the request of one of several views; `view` is empty where there is only one."""
    name, folder = version_name(node), results_folder(node)
    first, last = _range(node, frame)
    settings = _face_position(node)
    character = character_of(node)
    settings.update(preset=str(host.get(node, "preset")), neutral=_neutral(node))
    if host.get(node, "steps"):
        settings["steps"] = int(host.get(node, "steps"))
    handles = int(host.get(node, "handles")) if frame is None else 0
    source = _source(node, name, folder, (first, last), handles, view)
    kind, crops = ("reenact", bool(host.get(node, "crops")))
    if frame is not None:
        kind, crops, name = "preview", False, f"{name}_preview"
    return RunRequest(kind, str(folder), name, source, settings, character, first, last, crops)


def _face_position(node: Node) -> Dict[str, Any]:
    """Returns the settings for the point on the face that is meant; empty for the largest face."""
    x, y = host.get(node, "at")
    if not x and not y:
        return {}
    return {"at": [float(x), connected(node).height - float(y)]}  # Nuke counts from the bottom


def _neutral(node: Node) -> str:
    how = str(host.get(node, "neutral"))
    if how != "pair":
        return how
    return f"{int(host.get(node, 'neutral_driving'))}:{int(host.get(node, 'neutral_scan'))}"


def _range(node: Node, frame: Optional[int]) -> Tuple[int, int]:
    if frame is not None:
        return frame, frame
    first, last = int(host.get(node, "first")), int(host.get(node, "last"))
    if not first and not last:  # not set: all of the input
        extent = connected(node)
        first, last = extent.first, extent.last
    if last < first:
        raise NodeError(f"The range {first}-{last} ends before it starts.")
    return first, last


def _views(node: Node) -> List[str]:
    """Returns the views that a node's knob names; the script's first one if it names none."""
    existing, text = host.project().views, str(host.get(node, "view")).strip()
    asked = existing if text == ALL_VIEWS else re.split(r"[,\s]+", text)
    for view in asked if text else ():
        if view not in existing:
            raise NodeError(f"There is no view {view}. There are: {', '.join(existing)}.")
    return list(dict.fromkeys(asked)) if text else existing[:1]


def _of_views(requests: Dict[str, Request]) -> Request:
    """Returns one request for all views."""
    first = next(iter(requests.values()))
    return first if len(requests) == 1 else dataclasses.replace(first, views=requests)


def _source(
    node: Node, name: str, folder: Path, span: Tuple[int, int], handles: int = 0, view: str = ""
) -> Source:
    """Returns the input's own files, or files that Nuke renders of it.

    Args:
        node: the node.
        name: of the versions.
        folder: of the versions.
        span: the first and the last frame.
        handles: frames before and after these.
        view: one of several; empty for the only one.
    """
    first, last = span
    extent = connected(node)
    begin = min(first, max(first - handles, extent.first))
    numbers = list(range(begin, max(last, min(last + handles, extent.last)) + 1))
    if begin < 0:
        raise NodeError(
            "Frames before 0 can't be used. Move the clip, or choose a later first frame."
        )
    project, plate = host.project(), host.plate(origin(node, 0))
    how = str(host.get(node, "source"))
    if view:
        name = f"{name}.{view}"
    view = view or _views(node)[0]
    if how == "render":
        plate = None
    elif how == "files" and plate is None:
        raise NodeError('The input is no plain Read. Set "frames from" to auto or to render.')
    config, working = project.config or NUKE_CONFIG, NUKE_SPACES["linear"]
    if project.config:
        working = ocio.space_name(project.space, project.config)
    if not working:
        raise NodeError(f"The working space {project.space} means data. Choose one with colour.")
    more = {"working": working, "view": view if len(project.views) > 1 else ""}
    if plate is not None:
        inside = [n for n in numbers if plate.first <= n <= plate.last]
        space = _plate_space(plate.space, project.config, working, how == "files")
        if inside and (space or how == "files"):
            files = host.read_files(plate.node, inside, view)
            if _is_second(view, files):
                if how == "files":
                    raise NodeError(
                        f"{files[0]} holds several views, and only Nuke finds {view} in it. Set "
                        '"frames from" to auto or to render.'
                    )
            elif how == "files" or Path(files[0]).suffix.lower() in (*STILLS, *MOVIES):
                return Source(files, inside, space, config, files[0], **more)
    rendered = folder / "sources" / f"{name}_{node_id(node)[:8]}"
    _check_apart(node, rendered, view)
    rendered.mkdir(parents=True, exist_ok=True)
    pattern = (rendered / f"{name}.%04d.exr").as_posix()
    try:
        host.render(host.inner(node, "Source"), pattern, numbers[0], numbers[-1], view)
    except RuntimeError as error:
        raise NodeError(f"The input could not be rendered: {error}") from error
    files = [frame_file(pattern, number) for number in numbers]
    return Source(files, numbers, working, config, host.name(node), **more)


def _is_second(view: str, files: List[str]) -> bool:
    """Returns whether a view lies behind another one in EXRs that hold several: readers that know
    no views, as the server's, find the first one there."""
    existing = next((file for file in files if os.path.isfile(file)), "")
    if not existing.lower().endswith(".exr"):
        return False
    try:
        return view in exr.views(existing)[1:]
    except (OSError, ValueError):  # the server says what is wrong with it
        return False


def _check_apart(node: Node, folder: Path, view: str) -> None:
    """
    Raises:
        NodeError: a Read above reads files from the folder that the node's input is rendered to.
    """
    pending = host.above(node)
    seen: Set[str] = set()
    while pending:
        candidate = pending.pop()
        name = host.name(candidate)
        if name in seen:
            continue
        seen.add(name)
        pending += host.above(candidate)
        if not host.is_read(candidate):
            continue
        (file,) = host.read_files(candidate, [int(host.get(candidate, "first"))], view)
        read = os.path.dirname(file)
        if read and os.path.realpath(read) == os.path.realpath(str(folder)):
            raise NodeError(
                f"{name} reads {read}, which this node's input would be rendered over. Copy these "
                "files to another folder, and read them there."
            )


def _plate_space(label: str, config: str, working: str, required: bool) -> str:
    """Returns the colour space of a Read's files; empty if only Nuke can convert them.

    Args:
        label: as the Read has it; empty if it is raw.
        config: the script's; empty for Nuke's own LUTs.
        working: the working space, which files that are raw or data are taken for.
        required: whether an unknown space of the config is an error.

    Raises:
        NodeError: there is no such space.
    """
    if not label:
        return working
    if not config:
        return NUKE_SPACES.get(ocio.plain_name(label), "")
    try:
        return ocio.space_name(label, config) or working
    except NodeError:
        if required:
            raise
        return ""


# -- edits and styles ----------------------------------------------------------------------------


def edit_request(node: Node, frame: Optional[int] = None) -> ShotRequest:
    """Returns what a ReenactEdit asks for of the shot above; raises as `build_request` does."""
    return _of_views(
        {view: _edit_view(node, frame, shot) for view, shot in _shots(node, frame).items()}
    )


def _shots(node: Node, frame: Optional[int]) -> Dict[str, Shot]:
    """Returns the shot above by view; for a preview that of the first view."""
    return shots_above(node) if frame is None else {"": shot_above(node)}


def _edit_view(node: Node, frame: Optional[int], shot: Shot) -> ShotRequest:
    request = _shot_request(node, frame, shot)
    files = [str(host.get(node, "directions")) or shot.directions]
    moves: List[protocol.Move] = []
    sliders = dict(SLIDERS)
    extra = str(host.get(node, "extra_file"))
    if extra:
        files.append(extra)
        sliders["extra"] = str(host.get(node, "extra_name")) or Path(extra).stem
    layers = str(host.get(node, "rows"))
    for knob, direction in sliders.items():
        amounts = keyframes(shot.numbers, _values(node, knob, shot))
        moves += [protocol.Move(direction, amount, layers) for amount in amounts if amount != "0"]
    settings = {
        "moves": moves,
        "edge": str(host.get(node, "edge")),
        "limit": float(host.get(node, "limit")),
    }
    return dataclasses.replace(request, settings=settings, directions=files)


def style_request(node: Node, frame: Optional[int] = None) -> ShotRequest:
    """Returns what a ReenactStyle asks for of the shot above; raises as `build_request` does."""
    return _of_views(
        {view: _style_view(node, frame, shot) for view, shot in _shots(node, frame).items()}
    )


def _style_view(node: Node, frame: Optional[int], shot: Shot) -> ShotRequest:
    request = _shot_request(node, frame, shot)
    return dataclasses.replace(request, kind="style", style_fields=_style_fields(node, shot))


def new_style_request(node: Node) -> ShotRequest:
    """Returns the request for the style that a ReenactStyle describes.

    Raises:
        NodeError: there is no shot above, or not exactly one description.
    """
    shot, name = shot_above(node), f"{version_name(node)}_style"
    described = {
        knob: str(host.get(node, knob, raw=knob == "prompt")).strip()
        for knob in ("program", "prompt", "pictures")
    }
    if described["program"] == "none":
        described["program"] = ""
    if sum(map(bool, described.values())) != 1:
        raise NodeError("Describe one style: by a program, a prompt or pictures.")
    pictures = described.pop("pictures")
    settings = {"name": name, "steps": int(host.get(node, "steps")), **described}
    return ShotRequest(
        "stylize",
        str(results_folder(node)),
        name,
        shot.source,
        settings,
        shot.character,
        shot=shot,
        pictures=pictures,
    )


def _shot_request(node: Node, frame: Optional[int], shot: Shot) -> ShotRequest:
    """Returns an edit without moves, of the node's range or of one frame."""
    name, folder = version_name(node), results_folder(node)
    first, last = (int(host.get(node, knob)) for knob in ("first", "last"))
    if frame is not None:
        first = last = frame
        name, folder = f"{name}_live", folder / "live" / f"{name}_{node_id(node)[:8]}"
    elif not first and not last:
        first, last = shot.first, shot.last
    _check_inside(shot, first, last)
    return ShotRequest(
        "edit",
        str(folder),
        name,
        shot.source,
        {},
        shot.character,
        first,
        last,
        bool(host.get(node, "crops")),
        shot=shot,
        style_fields=shot.style_fields,
    )


def _style_fields(node: Node, shot: Shot) -> Dict[str, Any]:
    style = str(host.get(node, "style"))
    if not style:
        raise NodeError("Choose a style: a .style file, or have one made.")
    ends = {knob: str(host.get(node, knob)) for knob in ("style_from", "style_to")}
    values = [min(max(value, 0.0), 1.0) for value in _values(node, "style_amount", shot)]
    for tolerance in AMOUNT_TOLERANCES:
        amount, *more = keyframes(shot.numbers, values, tolerance)
        if not more:
            break
    else:
        raise NodeError("The curve of the amount has more keys than can be sent. Make it smoother.")
    return {
        "style": style,
        "style_amount": amount,
        "sibling": bool(host.get(node, "sibling")),
        **{knob: None if value == "all" else int(value) for knob, value in ends.items()},
    }


def _values(node: Node, knob: str, shot: Shot) -> List[float]:
    """Returns a slider's values over the shot."""
    return [float(host.get(node, knob, number)) for number in shot.numbers]


def _check_inside(shot: Shot, first: int, last: int) -> None:
    if not any(first <= n <= last for n in shot.plate.numbers or shot.numbers):
        asked = f"Frame {first} is" if first == last else f"The frames {first}-{last} are"
        begin, end = shot.numbers[0], shot.numbers[-1]
        raise NodeError(f"{asked} not in the shot above, {begin}-{end}.")


# -- repairs -------------------------------------------------------------------------------------


def repair_request(node: Node, frame: Optional[int] = None) -> RepairRequest:
    """Returns what a ReenactRepair asks for of the shot above; raises as `build_request` does."""
    return _of_views(
        {view: _repair_view(node, frame, shot) for view, shot in _shots(node, frame).items()}
    )


def _repair_view(node: Node, frame: Optional[int], shot: Shot) -> RepairRequest:
    name = version_name(node)
    listed = repairs.parse(str(host.get(node, "repairs")), shot.numbers)
    if not listed:
        raise NodeError("The list is empty. Measure the shot, or Add what is to be repaired.")
    request = RepairRequest(
        "repair",
        str(results_folder(node)),
        name,
        shot.source,
        {"repairs": [entry for _, entry in listed]},
        shot.character,
        shot.first,
        shot.last,
        bool(host.get(node, "crops")),
        shot=shot,
        style_fields=shot.style_fields,
        lines=[line for line, _ in listed],
    )
    if frame is None:
        return request
    _check_inside(shot, frame, frame)
    return dataclasses.replace(
        request,
        kind="repaired_frame",
        name=f"{name}_preview",
        first=frame,
        last=frame,
        crops=False,
    )


def qc_request(node: Node) -> RepairRequest:
    """Returns the request to measure the shot above.

    Raises:
        NodeError: there is no shot above.
    """
    shot = shot_above(node)
    limits = {name: float(host.get(node, f"limit_{name}")) for name in LIMITED_MEASURES}
    return RepairRequest(
        "qc",
        str(results_folder(node)),
        f"{version_name(node)}_qc",
        shot.source,
        {"limits": {name: limit for name, limit in limits.items() if limit > 0}},
        shot.character,
        shot.first,
        shot.last,
        shot=shot,
    )


def new_entry(node: Node, frame: int) -> Dict[str, Any]:
    """Returns the repair that the knobs of a ReenactRepair describe.

    Args:
        node: the node.
        frame: is repaired where the knobs name no frames.

    Raises:
        NodeError: the frames to replace them by are missing.
        RepairLineError: the knobs name no valid frames.
    """
    frames = str(host.get(node, "repair_frames")).strip() or str(frame)
    do, source = (str(host.get(node, f"repair_{knob}")).strip() for knob in ("action", "from"))
    begin = repairs.parse_ranges(frames)[0][0]
    entry = {"do": do, "frames": frames}
    if do == "solve" and host.get(node, "repair_part") != "whole face":
        entry["only"] = str(host.get(node, "repair_part"))
    elif do == "amount":
        entry["keys"] = f"{host.get(node, 'repair_amount'):g}"
    elif do in repairs.REQUIRED:
        if do == "replace" and not source:
            raise NodeError("Enter which frames replace them, as in 1010-1012.")
        entry["from"] = source or str(begin - 1)
    return entry


# -- names ---------------------------------------------------------------------------------------


def version_name(node: Node) -> str:
    """Returns the name of a node's versions: the node's own unless the artist gave one."""
    given = str(host.get(node, "result_name")).strip() or host.name(node)
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in given)


BUILDERS: Dict[str, Callable[[Node, Optional[int]], RunRequest]] = {
    PERSONALIZE.name: personalize_request,
    REENACT.name: reenact_request,
    REPAIR.name: repair_request,
    EDIT.name: edit_request,
    STYLE.name: style_request,
}
