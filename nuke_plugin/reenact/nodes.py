"""What the nodes' buttons and callbacks do; `gizmos/` holds the nodes, `runs.py` does the work.

A node is known by the knob `reenact_id`, its last run by the knob `run`, a version's folder.
Threads put news into a queue; Qt's timer takes them out, here on the main thread, and only here
nodes change. In `nuke -t` nothing starts by itself, and a submission is worked off before it
returns.
"""

import contextlib
import dataclasses
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, cast

from reenact import __version__, host, protocol, repairs, runs, shots, thumbnails, tracks
from reenact import bake as baking
from reenact.client import Client, ServerError
from reenact.host import Node
from reenact.repairs import WrongLine
from reenact.runs import News, Order, Run, Source

POLL_SECONDS = 0.2
SETTLED_SECONDS = 0.25  # without a change, after which a frame is drawn live
RED, PLAIN = 0xAA2222FF, 0x4C5A7AFF  # of the tile
LABELS = {
    "start": "Start server",
    "retry": "Try again",
    "log": "Show log",
    "resume": "Resume",
    "locate": "Locate character",
    "preview": "Try again",
}

# Quality tiers: frames to choose, steps of tuning.
TIERS = {"preview": (60, 300), "production": (250, 2000)}

# Sliders of ReenactEdit, and the directions that they move along.
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

# Knobs whose change is drawn live.
LIVE = {
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

# Measures that a ReenactRepair has limits for.
LIMITED = ("landmarks", "mouth", "lids", "gaze", "pose", "jitter")

_news: "SimpleQueue[News]" = SimpleQueue()
_nodes: Dict[str, Node] = {}  # by id: those that were seen in this session
_runs: Dict[str, Run] = {}  # by id
_errands: List[runs.Errand] = []
_away: Dict[str, List[News]] = {}  # what came for nodes that were deleted; undo brings them back
_opened: List[Node] = []  # nodes that were just made, to be looked at when they are whole
_live: Optional[shots.Live] = None
_followed: Optional[Node] = None  # the node that was last changed of those that draw live
_wished: Optional[float] = None  # when it was, until it is drawn
_frame = 0  # the script's, when that was last looked at
_stop_timer: Optional[Callable[[], None]] = None


class Wrong(Exception):
    """The node can't do that as it is; the message is a sentence for the artist."""


def register() -> None:
    """Called once by the plugin's init.py, in every mode."""
    host.on_script_close(_close)


# -- callbacks, from the nodes' text -------------------------------------------------------------


def on_create(node: Node) -> None:
    """A node was made, pasted, loaded, or brought back by undo."""
    id = str(host.get(node, "reenact_id"))
    before = _nodes.get(id)
    if not id or (before is not None and _is(before, id) and host.name(before) != host.name(node)):
        id = uuid.uuid4().hex  # a new node, or a copy: jobs are the original's
        host.put(node, "reenact_id", id)
        host.put(node, "run", "")
        _show(node, News(id, "", "Not submitted."))
    host.put(
        node,
        "versions",
        f"plugin {__version__}, protocol {protocol.VERSION}, Nuke {host.project().nuke}",
    )
    _nodes[id] = node
    if host.gui():
        _opened.append(node)  # not yet whole: its inside comes later
        _watch()


def on_destroy(node: Node) -> None:
    """A node is deleted: its job goes on."""
    id = str(host.get(node, "reenact_id"))
    if id in _nodes and host.name(_nodes[id]) == host.name(node):
        del _nodes[id]


def knob_changed(node: Node, knob: str) -> None:
    """The artist changed a knob."""
    if knob in LIVE and host.has(node, "live") and host.gui():
        _touched(node)
        return
    if knob == "version" and host.has(node, "repairs"):
        _show_version(node)
        return
    wanted = str(host.get(node, knob)) if knob in ("characters", "styles") else runs.UNCHOSEN
    if wanted == runs.UNCHOSEN:
        return
    host.put(node, knob, runs.UNCHOSEN)
    with _saying(node):
        folder, whose = _folder(node) / knob, _shot(node).character if knob == "styles" else ""
        _send(node, lambda client, id: runs.fetch_made(client, id, knob, whose, wanted, folder))


# -- buttons -------------------------------------------------------------------------------------


def submit(node: Node) -> None:
    """Sends what the node's knobs say; where a run of the same is there, goes on with it."""
    with _saying(node):
        _start(node, _run(node, order(node)))
        _leave_live(node)


def preview(node: Node) -> None:
    """Does the current frame alone."""
    with _saying(node):
        wanted = order(node, host.project().frame)
        if host.has(node, "live"):
            _draw(node, cast("shots.Change", wanted))
        else:
            _start(node, _run(node, wanted))


def make_style(node: Node) -> None:
    """Has a style made of the character, as the node's knobs say."""
    with _saying(node):
        _start(node, _run(node, _new_style(node)))


def measure(node: Node) -> None:
    """Has the shot above measured, which suggests what to repair."""
    with _saying(node):
        shot = _shot(node)
        limits = {name: float(host.get(node, f"limit_{name}")) for name in LIMITED}
        settings = {"limits": {name: limit for name, limit in limits.items() if limit > 0}}
        wanted = repairs.Repairs(
            "qc",
            str(_folder(node)),
            f"{_name(node)}_qc",
            shot.source,
            settings,
            shot.character,
            shot.first,
            shot.last,
            shot=shot,
        )
        _start(node, _run(node, wanted))


def add_repair(node: Node) -> None:
    """Lists what the knobs say."""
    with _saying(node):
        frames = str(host.get(node, "repair_frames")).strip() or str(host.project().frame)
        do, source = (str(host.get(node, f"repair_{knob}")).strip() for knob in ("action", "from"))
        begin = repairs.ranges(frames)[0][0]
        entry = {"do": do, "frames": frames}
        if do == "solve" and host.get(node, "repair_part") != "whole face":
            entry["only"] = str(host.get(node, "repair_part"))
        elif do == "amount":
            entry["keys"] = f"{host.get(node, 'repair_amount'):g}"
        elif do in repairs.NEEDED:
            if do == "replace" and not source:
                raise Wrong("Say which frames replace them, as in 1010-1012.")
            entry["from"] = source or str(begin - 1)
        lines = str(host.get(node, "repairs")).splitlines()
        text = "\n".join([*lines, repairs.as_line(entry)])
        host.put(node, "repairs", text, undo=True)


def clear_repairs(node: Node) -> None:
    """Empties the list."""
    host.put(node, "repairs", "", undo=True)


def next_bad(node: Node) -> None:
    """Goes to the next frame that stands out or is listed, after the last one to the first."""
    with _saying(node):
        listed = repairs.parse(str(host.get(node, "repairs")), _shot(node).numbers)
        marked = str(host.get(node, "marked")).strip()
        bad = repairs.bad_frames([entry for _, entry in listed], marked)
        if not bad:
            raise Wrong("No frame is listed. Measure the shot, or Add frames to the list.")
        here = host.project().frame
        host.go_to(next((number for number in bad if number > here), bad[0]))


def open_report(node: Node) -> None:
    """Shows what was measured last."""
    report = str(host.get(node, "report"))
    with _saying(node):
        if not report:
            raise Wrong("Nothing was measured yet. Press Measure.")
        open_path(Path(report))


def cancel(node: Node) -> None:
    """Stops the node's job; frames that are there stay."""
    run = _runs.get(_id(node))
    if run is not None and run.is_alive():
        run.cancel()
        _show(node, News(_id(node), "running", "Stopping."))


def resume(node: Node) -> None:
    """Goes on with the node's last run, where it stopped."""
    folder = str(host.get(node, "run"))
    if folder:
        _start(node, _run(node, folder=folder, again=True))
    else:
        submit(node)


def next_step(node: Node) -> None:
    """The button that appears when something is to be done."""
    step = str(host.get(node, "step"))
    if step == "start":
        _start_server(node)
    elif step == "retry":
        run = _runs.get(_id(node))
        kind = run.order.kind if run is not None and run.order is not None else ""
        again = {
            "stylize": make_style,
            "qc": measure,
            "preview": preview,
            "repaired_frame": preview,
        }
        again.get(kind, submit)(node)
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


def list_characters(node: Node) -> None:
    """Fills the menu of characters with those that the server has."""
    _send(node, lambda client, id: runs.list_made(client, id, "characters"))


def list_styles(node: Node) -> None:
    """Fills the menu of styles with those that the server has of the shot's character."""
    with _saying(node):
        whose = _shot(node).character
        _send(node, lambda client, id: runs.list_made(client, id, "styles", whose))


def input_range(node: Node) -> None:
    """Sets the range to that of the input."""
    found = host.connected(node)
    if found is not None:
        host.put(node, "first", found.first)
        host.put(node, "last", found.last)


def open_results(node: Node) -> None:
    """Shows the folder of the last run."""
    run = str(host.get(node, "run"))
    with _saying(node):
        open_path(Path(run) if run else _folder(node))


def open_sheet(node: Node) -> None:
    """Shows the pictures that a character was made of."""
    run = str(host.get(node, "run"))
    if run:
        open_path(Path(run) / "selection.png")


def bake(node: Node, kind: str) -> None:
    """Makes a native node with keys beside a ReenactComp: one of `reenact.bake.KINDS`."""
    try:
        sources = host.above(node)
        if len(sources) < 2:
            raise Wrong("Connect plate and face.")
        path = Path(upstream(node, [sources[1]]).track)
        crop = str(host.get(node, "bake_from")) == "the aligned crop"
        frame, inverse = host.project().frame, bool(host.get(node, "stabilise"))
        try:
            places = tracks.places(path)
            moves = baking.way(places, frame, crop, inverse)
        except (OSError, ValueError) as error:
            raise Wrong(f"The latent track can't be read: {error}") from error
        except KeyError:
            raise Wrong(f"There is no face in frame {frame}. Go to another one.") from None
        if kind == "transform" and places.pixel_aspect != 1:
            raise Wrong("A Transform takes pixels for squares. Make a CornerPin2D.")
        under: Optional[Node] = sources[0]
        if crop and not inverse and kind != "stmap":
            under = sources[2] if len(sources) > 2 else None
        made = host.paste(node, "push $cut_paste_input\n" + baking.KINDS[kind](moves), under)
        first, last = min(places.corners), max(places.corners)
        said = f"{made}: keys from {first} to {last}."
    except Wrong as wrong:
        said = str(wrong)
    host.put(node, "baked", said)


def of_jobs() -> Dict[str, Tuple[str, Optional[Path]]]:
    """The nodes of this script by their jobs' ids, those of this session: each one's name, and
    where its character's picture is, if one was made."""
    return {
        job: (host.name(_nodes[id]), _picture(_nodes[id]))
        for id, run in _runs.items()
        if id in _nodes and _is(_nodes[id], id)
        for job in run.jobs
    }


def _picture(node: Node) -> Optional[Path]:
    character = str(host.get(node, "character")) if host.has(node, "character") else ""
    return thumbnails.path_of(character) if character else None


def reveal(job: str) -> None:
    """Shows the node that a job belongs to."""
    for id, run in _runs.items():
        if job in run.jobs and id in _nodes and _is(_nodes[id], id):
            host.reveal(_nodes[id])


def open_path(path: Path) -> None:
    """Has the desktop show a file or a folder."""
    import webbrowser

    webbrowser.open(path.resolve().as_uri())


# -- what a node wants ---------------------------------------------------------------------------


def order(node: Node, only: Optional[int] = None) -> Order:
    """What a node's knobs ask for; renders its input where its files can't be used.

    Args:
        node: one of ours.
        only: one frame, for a preview.

    Raises:
        Wrong: something is missing.
    """
    if host.has(node, "repairs"):
        return _repairs(node, only)
    if host.has(node, "live"):
        return _change(node, only)
    personal = host.has(node, "who")
    name = _name(node)
    folder = _folder(node)
    first, last = (only, only) if only is not None else _range(node)
    settings: Dict[str, Any] = {}
    x, y = host.get(node, "at")
    if x or y:  # Nuke counts from the bottom
        settings["at"] = [float(x), _connected(node).height - float(y)]
    if personal:
        who = str(host.get(node, "who")).strip()
        if not who or not host.get(node, "agreed"):
            raise Wrong("Name the person and tick that they agreed to be scanned.")
        count, steps = TIERS[str(host.get(node, "quality"))]
        settings.update(
            name=name,
            who=who,
            scope=str(host.get(node, "scope")),
            count=int(host.get(node, "count")) or count,
            steps=int(host.get(node, "steps")) or steps,
            refine=int(host.get(node, "refine")) or None,
        )
        source = _source(node, name, folder, first, last)
        return Order("personalize", str(folder), name, source, settings, first=first, last=last)
    character = str(host.get(node, "character"))
    if not character:
        raise Wrong("Choose a character: a .character file, or one of the server's.")
    settings.update(preset=str(host.get(node, "preset")), neutral=_neutral(node))
    if host.get(node, "steps"):
        settings["steps"] = int(host.get(node, "steps"))
    handles = int(host.get(node, "handles")) if only is None else 0
    source = _source(node, name, folder, first, last, handles)
    kind, crops = ("preview", False) if only is not None else ("reenact", host.get(node, "crops"))
    version = f"{name}_preview" if only is not None else name
    return Order(kind, str(folder), version, source, settings, character, first, last, bool(crops))


def _source(node: Node, name: str, folder: Path, first: int, last: int, handles: int = 0) -> Source:
    """The input's own files, or what Nuke renders of it."""
    found = _connected(node)
    begin = min(first, max(first - handles, found.first))
    numbers = list(range(begin, max(last, min(last + handles, found.last)) + 1))
    if begin < 0:
        raise Wrong("Frames before 0 can't be used. Move the clip, or choose a later first frame.")
    project, plate = host.project(), host.plate(node)
    how, view = str(host.get(node, "source")), str(host.get(node, "view")) or project.views[0]
    if view not in project.views:
        raise Wrong(f"There is no view {view}. There are: {', '.join(project.views)}.")
    if how == "render":
        plate = None
    elif how == "files" and plate is None:
        raise Wrong("The input is no plain Read. Set the source to auto, or to render.")
    config = "" if project.config == "nuke-default" else project.config
    facts = {"working": project.space, "view": view if len(project.views) > 1 else ""}
    if plate is not None:
        inside = [n for n in numbers if plate.first <= n <= plate.last]
        space = plate.space or project.space
        if not config:
            space = NUKE_SPACES.get(space, "")
        if inside and (space or how == "files"):
            files = host.plate_files(plate, inside, view)
            return Source(files, inside, space, config, files[0], **facts)
    where = folder / "sources" / f"{name}_{_id(node)[:8]}"
    where.mkdir(parents=True, exist_ok=True)
    pattern = (where / f"{name}.%04d.exr").as_posix()
    try:
        host.render(host.inner(node, "Source"), pattern, numbers[0], numbers[-1], view)
    except RuntimeError as error:
        raise Wrong(f"The input could not be rendered: {error}") from error
    files = [pattern % n for n in numbers]
    return Source(files, numbers, project.space, config, host.name(node), **facts)


# Nuke's own colour spaces (Project Settings, colour management: Nuke) in the server's config.
NUKE_SPACES = {"lin_rec709": "lin_rec709", "linear": "lin_rec709", "sRGB": "srgb_tx"}


def _connected(node: Node) -> host.Extent:
    found = host.connected(node)
    if found is None:
        raise Wrong("Connect the input.")
    return found


def _range(node: Node) -> Tuple[int, int]:
    first, last = int(host.get(node, "first")), int(host.get(node, "last"))
    if not first and not last:  # not set: all of the input
        found = _connected(node)
        first, last = found.first, found.last
    if last < first:
        raise Wrong(f"The range {first}-{last} ends before it starts.")
    return first, last


def _neutral(node: Node) -> str:
    how = str(host.get(node, "neutral"))
    if how != "pair":
        return how
    return f"{int(host.get(node, 'neutral_driving'))}:{int(host.get(node, 'neutral_scan'))}"


def _name(node: Node) -> str:
    """Of the versions; the node's own unless the artist gave one."""
    given = str(host.get(node, "result_name")).strip() or host.name(node)
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in given)


def _folder(node: Node) -> Path:
    folder = Path(str(host.get(node, "folder")))
    if not folder.is_absolute():
        raise Wrong("Save the script first, or choose a folder for the results.")
    return folder


# -- what comes down the pipe --------------------------------------------------------------------


@dataclass(frozen=True)
class Upstream:
    """The shot that a node goes on with.

    Attributes:
        node: who hands it on: a Reenact, ReenactEdit, ReenactStyle or ReenactRepair.
        track: file of the latent track.
        character: file of the character that it was solved for.
    """

    node: Node
    track: str
    character: str


def upstream(node: Node, ways: Optional[List[Node]] = None) -> Upstream:
    """The nearest latent track above a node, by all of its inputs or by the given ways.

    A node hands on the track of its own last result, in its knob `track`, whatever it shows at the
    moment; the version folder that the file lies in says how the result was made. The way up leads
    through every other node, of several inputs through the first before the next, and past those
    of ours that are disabled, or whose version is what they are given.

    Raises:
        Wrong: there is none, or it does not have a track yet.
    """
    ways, seen = list(host.above(node) if ways is None else ways), set()
    while ways:
        one = ways.pop(0)
        name = host.name(one)
        if name in seen:
            continue
        seen.add(name)
        ours = host.has(one, "reenact_id") and host.has(one, "track")
        same = host.has(one, "version") and host.get(one, "version") == repairs.UPSTREAM
        if not ours or same or host.get(one, "disable"):
            ways = host.above(one) + ways
            continue
        track, character = (str(host.get(one, knob)) for knob in ("track", "character"))
        if not track:
            raise Wrong(f"{name} has no latent track yet. Submit it first, or disable it.")
        return Upstream(one, track, character)
    raise Wrong("There is no Reenact node above. Connect one: this node works on its track.")


def _shot(node: Node) -> shots.Shot:
    above = upstream(node)
    try:
        return shots.shot(above.track, above.character)
    except (OSError, ValueError, KeyError, TypeError):
        text = f"The result of {host.name(above.node)} is gone or damaged, {above.track}."
        raise Wrong(f"{text} Submit it again.") from None


def _change(node: Node, only: Optional[int] = None) -> shots.Change:
    """What a ReenactEdit or ReenactStyle wants of the shot above it."""
    shot, name, folder = _shot(node), _name(node), _folder(node)
    first, last = (int(host.get(node, knob)) for knob in ("first", "last"))
    if only is not None:
        first = last = only
        name, folder = f"{name}_live", folder / "live" / f"{name}_{_id(node)[:8]}"
    elif not first and not last:
        first, last = shot.first, shot.last
    _check_inside(shot, first, last)
    change = shots.Change(
        "edit",
        str(folder),
        name,
        shot.source,
        {},
        shot.character,
        first,
        last,
        bool(host.get(node, "crops")),
        shot,
        look=shot.look,
    )
    if host.has(node, "style"):
        return dataclasses.replace(change, kind="style", look=_look(node, shot))
    files = [str(host.get(node, "directions")) or shot.directions]
    moves: List[protocol.Move] = []
    sliders = dict(SLIDERS)
    extra = str(host.get(node, "extra_file"))
    if extra:
        files.append(extra)
        sliders["extra"] = str(host.get(node, "extra_name")) or Path(extra).stem
    rows = str(host.get(node, "rows"))
    for knob, direction in sliders.items():
        amounts = shots.keyframes(shot.numbers, _values(node, knob, shot))
        moves += [protocol.Move(direction, amount, rows) for amount in amounts if amount != "0"]
    settings = {
        "moves": moves,
        "edge": str(host.get(node, "edge")),
        "limit": float(host.get(node, "limit")),
    }
    return dataclasses.replace(change, settings=settings, directions=files)


def _check_inside(shot: shots.Shot, first: int, last: int) -> None:
    if not any(first <= n <= last for n in shot.plate.numbers or shot.numbers):
        wanted = f"Frame {first} is" if first == last else f"The frames {first}-{last} are"
        begin, end = shot.numbers[0], shot.numbers[-1]
        raise Wrong(f"{wanted} not in the shot above, {begin}-{end}.")


def _repairs(node: Node, only: Optional[int] = None) -> repairs.Repairs:
    """What a ReenactRepair wants of the shot above it."""
    shot, name = _shot(node), _name(node)
    listed = repairs.parse(str(host.get(node, "repairs")), shot.numbers)
    if not listed:
        raise Wrong("The list is empty. Measure the shot, or Add what is to be repaired.")
    wanted = repairs.Repairs(
        "repair",
        str(_folder(node)),
        name,
        shot.source,
        {"repairs": [entry for _, entry in listed]},
        shot.character,
        shot.first,
        shot.last,
        bool(host.get(node, "crops")),
        shot,
        look=shot.look,
        lines=[line for line, _ in listed],
    )
    if only is None:
        return wanted
    _check_inside(shot, only, only)
    return dataclasses.replace(
        wanted, kind="repaired_frame", name=f"{name}_preview", first=only, last=only, crops=False
    )


def _show_version(node: Node) -> None:
    """Shows the version that was chosen, or what comes in."""
    with _saying(node):
        version = str(host.get(node, "version"))
        result = runs.Result({"track": ""}, {"keypoint_error": {}})
        if version != repairs.UPSTREAM:
            try:
                result = repairs.of_version(_folder(node) / version)
            except (OSError, ValueError, KeyError, ServerError):
                raise Wrong(f"There is no {version} in {_folder(node)} any more.") from None
        _show(node, News(_id(node), "", f"Shows {version}.", result=result))
        host.put(node, "show", "result")


def _look(node: Node, shot: shots.Shot) -> Dict[str, Any]:
    style = str(host.get(node, "style"))
    if not style:
        raise Wrong("Choose a style: a .style file, or have one made.")
    ends = {knob: str(host.get(node, knob)) for knob in ("style_from", "style_to")}
    values = [min(max(value, 0.0), 1.0) for value in _values(node, "style_amount", shot)]
    for near in (shots.NEAR, 1e-4, 1e-3, 1e-2):  # what nobody sees
        amount, *more = shots.keyframes(shot.numbers, values, near)
        if not more:
            break
    else:
        raise Wrong("The curve of the amount has more keys than can be sent. Make it smoother.")
    return {
        "style": style,
        "style_amount": amount,
        "sibling": bool(host.get(node, "sibling")),
        **{knob: None if value == "all" else int(value) for knob, value in ends.items()},
    }


def _values(node: Node, knob: str, shot: shots.Shot) -> List[float]:
    """A slider's values over the shot."""
    return [float(host.get(node, knob, number)) for number in shot.numbers]


def _new_style(node: Node) -> shots.Change:
    """The style that a ReenactStyle is to have made."""
    shot, name = _shot(node), f"{_name(node)}_style"
    how = {knob: str(host.get(node, knob)).strip() for knob in ("program", "prompt", "pictures")}
    if how["program"] == "none":
        how["program"] = ""
    if sum(map(bool, how.values())) != 1:
        raise Wrong("Say what the style is to look like: by a program, a prompt or pictures.")
    pictures = how.pop("pictures")
    settings = {"name": name, "steps": int(host.get(node, "steps")), **how}
    return shots.Change(
        "stylize",
        str(_folder(node)),
        name,
        shot.source,
        settings,
        shot.character,
        shot=shot,
        pictures=pictures,
    )


# -- runs ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _saying(node: Node) -> Iterator[None]:
    """Says on the node what is wrong with it."""
    try:
        yield
    except (Wrong, WrongLine) as wrong:
        text = str(wrong)
        _show(node, News(_id(node), "failed", text[:1].upper() + text[1:]))
    except KeyError as error:
        text = f"{error} is gone from inside this node. Make a new one."
        _show(node, News(_id(node), "failed", text))


def _run(node: Node, wanted: Optional[Order] = None, **how: Any) -> Run:
    kind = shots.ShotRun if host.has(node, "live") else Run
    if host.has(node, "repairs"):
        kind = repairs.RepairRun
    return kind(_id(node), _news.put, wanted, **how)


def _start(node: Node, run: Run) -> None:
    """Has a run work for a node: in its thread, or in a terminal here and now."""
    before = _runs.get(run.id)
    if before is not None and before.is_alive():
        before.leave()
    _nodes[run.id] = node
    _runs[run.id] = run
    if host.gui():
        _show(node, News(run.id, "sending", "Sending."))
        run.start()
        _watch()
    else:
        run._tell = _now
        run.run()


def _start_server(node: Node) -> None:
    """Starts a server, and goes on with what it is needed for."""
    folder, run = str(host.get(node, "run")), _runs.get(_id(node))
    if run is not None and not run.is_alive() and run.order is not None and not run.folder:
        _start(node, _run(node, run.order, start=True))
    elif folder and (run is None or not run.is_alive()):
        _start(node, _run(node, folder=folder, start=True))
    else:  # nothing was submitted, or it waits for the server and finds it
        _send(node, runs.started)


def _send(node: Node, work: Callable[[Client, str], News]) -> None:
    """Sends somebody to the server for a node."""
    _nodes[_id(node)] = node
    if host.gui():
        errand = runs.Errand(_id(node), _news.put, work)
        _errands.append(errand)
        errand.start()
        _watch()
    else:
        runs.Errand(_id(node), _now, work).run()


# -- frames that are drawn live ------------------------------------------------------------------


def _touched(node: Node) -> None:
    """The artist changed something that shows: once nothing changes any more, it is drawn."""
    global _followed, _wished, _frame
    if not host.get(node, "live"):
        _followed = None
        return
    _followed, _wished, _frame = node, time.monotonic(), host.project().frame
    _watch()


def _follow() -> None:
    """Draws what was changed last, and, while its preview is shown, every frame that is gone to."""
    global _followed, _wished, _frame
    node, now = _followed, time.monotonic()
    if node is None:
        return
    if not host.name(node):
        _followed = None
        return
    frame = host.project().frame
    if frame != _frame:
        _frame = frame
        if _wished is not None or host.get(node, "show") == "preview":
            _wished = now
    if _wished is None or now - _wished < SETTLED_SECONDS:
        return
    _wished = None
    try:
        _draw(node, _change(node, frame))
    except Wrong as wrong:
        _show(node, News(_id(node), "", str(wrong)))


def _draw(node: Node, wanted: shots.Change) -> None:
    """Has a frame drawn: beside what else the node does, or in a terminal here and now."""
    global _live
    _nodes[_id(node)] = node
    if not host.gui():
        _send(node, lambda client, id: shots.draw_now(client, id, wanted))
        return
    if _live is None:
        _live = shots.Live()
        _live.start()
    _live.want(_id(node), wanted)
    _watch()


def _leave_live(node: Node) -> None:
    """What a node was to draw live, its job draws now: it must not take the result's place."""
    global _wished
    if _live is not None:
        _live.drop(_id(node))
    if _followed is not None and _is(_followed, _id(node)):
        _wished = None


def _drawn(news: News) -> None:
    run = _runs.get(news.id)
    if run is not None and run.is_alive() and news.id in _nodes:  # its state is what is told
        text = str(host.get(_nodes[news.id], "state")) if _is(_nodes[news.id], news.id) else ""
        news = dataclasses.replace(news, state="", text=text)
    _now(news)


# -- the main thread's timer ---------------------------------------------------------------------


def _watch() -> None:
    global _stop_timer
    if _stop_timer is None:
        _stop_timer = host.every(POLL_SECONDS, drain)


def drain() -> None:
    """Shows on the nodes what has happened; never waits. The timer calls it."""
    global _stop_timer
    while _opened:
        _look_at(_opened.pop(0))
    with contextlib.suppress(Empty):
        while True:
            _now(_news.get_nowait())
    _follow()
    for news in _live.drain() if _live is not None else ():
        _drawn(news)
    busy = any(thread.is_alive() for thread in (*_runs.values(), *_errands))
    busy = busy or _followed is not None or (_live is not None and _live.busy())
    if not busy and _news.empty() and _stop_timer is not None:
        _stop_timer()
        _stop_timer = None
        _errands.clear()


def _look_at(node: Node) -> None:
    """A node that has come with a script, a paste or undo: is there something to wait for?"""
    if not host.name(node):
        return
    id, folder = _id(node), str(host.get(node, "run"))
    for news in _away.pop(id, []):
        _show(node, news)
    alive = id in _runs and _runs[id].is_alive()
    if folder and str(host.get(node, "job_state")) in runs.BUSY and not alive:
        _start(node, _run(node, folder=folder))
    elif str(host.get(node, "job_state")) in runs.BUSY and not alive:
        text = "Not submitted: the script was closed before everything was sent."
        _show(node, News(id, "cancelled", text, "retry"))


def _now(news: News) -> None:
    node = _nodes.get(news.id)
    if node is not None and _is(node, news.id):
        _show(node, news)
    else:
        _away.setdefault(news.id, []).append(news)


def _show(node: Node, news: News) -> None:
    """Puts news on a node."""
    if "suggested" in news.result.knobs:
        news = _suggested(node, news)
    for knob, choices in news.result.choices.items():
        host.put_choices(node, knob, choices)
    for read, (pattern, first, last) in news.result.reads.items():
        with contextlib.suppress(KeyError):
            host.show_files(host.inner(node, read), pattern, first, last)
    for knob, values in news.result.curves.items():
        if host.has(node, knob):
            host.put_curve(node, knob, values)
    for knob, value in news.result.knobs.items():
        if host.has(node, knob):  # a node of an older script may lack it
            host.put(node, knob, value)
    if str(host.get(node, "state")) != news.text:
        host.put(node, "state", news.text)
    if not news.state:
        return
    host.put(node, "job_state", news.state)
    host.put(node, "step", news.step)
    host.show(node, "next", LABELS.get(news.step, ""))
    if news.state in ("failed", "lost"):
        host.put(node, "tile_color", RED)
    elif host.get(node, "tile_color") == RED:  # else it is the artist's
        host.put(node, "tile_color", PLAIN)
    if not host.gui():
        host.say(f"{host.name(node)}: {news.text}")


def _suggested(node: Node, news: News) -> News:
    """Has what was suggested listed, unless the artist has worked on the list."""
    listed, before = (str(host.get(node, knob)).strip() for knob in ("repairs", "suggested"))
    if listed not in ("", before):
        text = f"{news.text} Your list stays; Clear it and Measure again to have what is suggested."
        return dataclasses.replace(news, text=text)
    knobs = {**news.result.knobs, "repairs": news.result.knobs["suggested"]}
    return dataclasses.replace(news, result=dataclasses.replace(news.result, knobs=knobs))


def _close() -> None:
    """The script is closed: jobs go on, and are found again when it is opened."""
    global _live, _followed
    for run in _runs.values():
        run.leave()
    if _live is not None:
        _live.close()
    _live = _followed = None
    for known in (_runs, _nodes, _away, _opened):
        known.clear()


def _id(node: Node) -> str:
    return str(host.get(node, "reenact_id"))


def _is(node: Node, id: str) -> bool:
    return bool(host.name(node)) and host.get(node, "reenact_id") == id
