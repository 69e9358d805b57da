"""The kinds of nodes that have the server do something, and how a node is told from others.

A node carries its kind in the hidden knob `reenact_kind`, its identity in `reenact_id`, and the
version of its text in `node_version`.
"""

from dataclasses import dataclass
from typing import Dict, Type

from reenact import host
from reenact.host import Node
from reenact.repairs import RepairRun
from reenact.runs import Run
from reenact.shots import ShotRun
from reenact.versions import UPSTREAM


@dataclass(frozen=True)
class Kind:
    """What sets nodes of a kind apart.

    Attributes:
        name: the value of the knob `reenact_kind`.
        gizmo: the class of its nodes.
        run: carries out the node's requests.
        has_track: whether the node hands a latent track on to nodes below.
        is_live: whether a frame is rendered while its knobs are changed.
    """

    name: str
    gizmo: str
    run: Type[Run]
    has_track: bool = True
    is_live: bool = False


PERSONALIZE = Kind("personalize", "ReenactPersonalize", Run, has_track=False)
REENACT = Kind("reenact", "Reenact", Run)
REPAIR = Kind("repair", "ReenactRepair", RepairRun)
EDIT = Kind("edit", "ReenactEdit", ShotRun, is_live=True)
STYLE = Kind("style", "ReenactStyle", ShotRun, is_live=True)
COMP = Kind("comp", "ReenactComp", Run, has_track=False)  # has no jobs
FOREIGN = Kind("", "", Run, has_track=False)  # every other node of Nuke

KINDS: Dict[str, Kind] = {
    kind.name: kind for kind in (PERSONALIZE, REENACT, REPAIR, EDIT, STYLE, COMP)
}

# Knobs of older nodes that have another name now.
RENAMED = {"output": "output_as"}

# Knobs that say what a node is, and not what the artist has done with it.
IDENTITY = frozenset(
    {
        *("name", "label", "help", "onCreate", "onDestroy", "knobChanged", "reenact_kind"),
        *("node_version", "ready", "tile_color", "selected", "xpos", "ypos", "versions"),
        *("has_preview", "show", "step", "version", "compare"),
    }
)

NODE_VERSION = 6  # of the gizmos beside this plugin

# Knobs that hold files or folders.
PATHS = {
    *("character", "track", "run", "folder", "report", "style", "pictures"),
    *("directions", "extra_file"),
}

# Nodes inside ours that may hand on frames with older layers, by the kind of ours.
OLDER_INSIDE = {
    **dict.fromkeys(
        (kind.name for kind in KINDS.values() if kind.has_track), ("Result", "Compare")
    ),
    COMP.name: ("face",),
}

# Nodes of version 1, in older scripts, don't carry their kind; each has a knob of its own.
VERSION_1_KNOBS = {
    "who": PERSONALIZE,
    "handles": REENACT,
    "repairs": REPAIR,
    "smile": EDIT,
    "style": STYLE,
}


def kind_of(node: Node) -> Kind:
    """Returns the kind of a node; FOREIGN if it isn't one of ours."""
    if host.has(node, "reenact_kind"):
        return KINDS.get(str(host.get(node, "reenact_kind")), FOREIGN)
    if not host.has(node, "reenact_id"):
        return COMP if host.has(node, "bake_from") else FOREIGN  # node version 2
    found = (kind for knob, kind in VERSION_1_KNOBS.items() if host.has(node, knob))
    return next(found, FOREIGN)


def node_version(node: Node) -> int:
    """Returns the version of a node's text: 2 or less before nodes carried it."""
    return int(host.get(node, "node_version")) if host.has(node, "node_version") else 2


def shown_version(node: Node) -> str:
    """Returns the version that a node shows: `upstream` for what comes in, empty for none yet.

    A menu may have lost its items, so this is not what the menu shows.
    """
    shown = ""
    if host.has(node, "shown_version"):
        shown = str(host.get(node, "shown_version"))
    elif kind_of(node) is REPAIR:  # node version 2
        shown = str(host.get(node, "version"))
    return shown or (UPSTREAM if kind_of(node) is REPAIR else "")


def layer_names(node: Node) -> int:
    """Returns the version of the layers' names (`docs/layers.md`) that a node's results have.

    A node of version 2 or before, and the ReenactComp that was made with it, read the older names.
    """
    return 2 if node_version(node) > 2 else 1


def node_id(node: Node) -> str:
    """Returns the id by which a node's jobs find it, also after it was renamed."""
    return str(host.get(node, "reenact_id"))


def is_alive(node: Node, id: str) -> bool:
    """Returns whether a handle still refers to the node of an id."""
    return bool(host.name(node)) and host.get(node, "reenact_id") == id
