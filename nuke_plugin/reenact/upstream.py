"""Finds what a node works on: the latent track above it, the shot that it is of, and the plate."""

from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

from reenact import host, shots
from reenact.chosen import show_chosen
from reenact.errors import NodeError
from reenact.host import Node
from reenact.kinds import FOREIGN, PERSONALIZE, REENACT, kind_of, shown_version
from reenact.shots import Shot
from reenact.versions import UPSTREAM


@dataclass(frozen=True)
class Upstream:
    """A latent track that a node hands on.

    Attributes:
        node: a Reenact, ReenactEdit, ReenactStyle or ReenactRepair.
        track: file of the latent track.
        character: file of the character that it was solved for.
    """

    node: Node
    track: str
    character: str


def upstream(node: Node, inputs: Optional[List[Node]] = None) -> Upstream:
    """Returns the nearest latent track above a node.

    A node hands on the track of the version that it shows, in its knob `track`. The search goes
    through every other node, out of Groups and into them, and through nodes of ours that are
    disabled or whose version is `upstream`. It takes the way of the picture: of a Switch the input
    that is shown, of a disabled node the first one. Where several inputs make the picture, it
    follows the first one to its end before the next.

    Args:
        node: where the search begins.
        inputs: the inputs to search; None for all of the node's.

    Raises:
        NodeError: there is no such node, it has no track yet, its frames come in at other times
            (keys and results below would be of other frames), or the script's variables choose it.
    """
    first = host.above(node) if inputs is None else inputs
    pending: List[Tuple[Node, Optional[Node]]] = [(one, None) for one in first]
    seen: List[Node] = []  # clones have the same name
    passed = ""  # a Reenact that could have a track
    while pending:
        candidate, hurdle = pending.pop(0)
        if candidate in seen:
            continue
        seen.append(candidate)
        hurdle = candidate if host.hurdle(candidate) else hurdle
        name, kind = host.name(candidate), kind_of(candidate)
        show_chosen(candidate)
        passes = kind.has_track and shown_version(candidate) == UPSTREAM
        if passes and kind is REENACT:
            passed = name
        if not kind.has_track or passes or host.get(candidate, "disable"):
            pending = [(one, hurdle) for one in _feeding(candidate, passes)] + pending
            continue
        _check_way(hurdle, name)
        track, character = (str(host.get(candidate, knob)) for knob in ("track", "character"))
        if not track:
            raise NodeError(f"{name} has no latent track yet. Submit it first, or disable it.")
        return Upstream(candidate, track, character)
    if passed:
        raise NodeError(f"{passed} shows what comes in. Choose one of its versions.")
    raise NodeError("There is no Reenact node above. Connect one: this node works on its track.")


def _check_way(hurdle: Optional[Node], name: str) -> None:
    """Refuses what comes in through a hurdle.

    Raises:
        NodeError: frames of the node `name` above it are not, or not always, the same ones below.
    """
    if hurdle is not None:
        where = host.name(hurdle)
        raise NodeError(f"{where} {host.hurdle(hurdle)} {name}. Connect this node above {where}.")


def _feeding(node: Node, passes: bool = False) -> List[Node]:
    """Returns what a node takes its picture from: of a Group first what is in it.

    Args:
        node: the node.
        passes: as for `host.above`.
    """
    inside = host.inside(node) if kind_of(node) is FOREIGN else []
    return inside + host.above(node, shown=True, passes=passes)


def origin(node: Node, index: int) -> Optional[Node]:
    """Returns the node whose picture comes in at an input, past Dots, out of Groups and into them.

    Returns:
        None if nothing is connected.
    """
    found = host.source(node, index)
    while found is not None and kind_of(found) is FOREIGN and host.is_passage(found):
        found = next(iter(_feeding(found)), None)
    return found


def face_read(node: Node) -> Node:
    """Returns the Read of a face's frames: one of Nuke's, or the one inside a node of ours.

    Args:
        node: what is connected as the face.

    Raises:
        NodeError: there is neither, its frames come in at other times, or the script's variables
            choose it.
    """
    found: Optional[Node] = node
    hurdle: Optional[Node] = None
    while found is not None and not kind_of(found).has_track:
        if host.is_read(found):
            name, why = host.name(found), host.hurdle(found)
            _check_way(hurdle, name)
            if why:
                text = f"{name} {why} its files. Set its frame mode to expression, without any."
                raise NodeError(text)
            return found
        hurdle = found if host.hurdle(found) else hurdle
        found = next(iter(_feeding(found)), None)
    if found is None:
        raise NodeError("There is no Reenact node and no Read above. Connect one to face.")
    _check_way(hurdle, host.name(found))
    return host.inner(upstream(node, [found]).node, "Result")


def character_of(reenact: Node) -> str:
    """Returns the file of a Reenact's character: its own, else that of its input `character`.

    Raises:
        NodeError: there is none yet.
    """
    given = str(host.get(reenact, "character"))
    if given:
        return given
    source = origin(reenact, 1)
    if source is None or kind_of(source) is not PERSONALIZE:
        raise NodeError(
            "Choose a character: a .character file, one of the server's, or connect a "
            "ReenactPersonalize."
        )
    made = str(host.get(source, "character"))
    if not made:
        raise NodeError(f"{host.name(source)} has no character yet. Submit it first.")
    return made


def shot_above(node: Node) -> Shot:
    """Returns the shot of the latent track above a node; of several views the first one's.

    Raises:
        NodeError: there is none, or its version folder or character is gone or damaged.
    """
    return next(iter(shots_above(node).values()))


def shots_above(node: Node) -> Dict[str, Shot]:
    """Returns the shot of the latent track above a node for each view; raises as `shot_above`.

    A shot of one view is that of the view "".
    """
    above = upstream(node)
    name = host.name(above.node)
    try:
        found = {
            view: shots.read_shot(track, above.character)
            for view, track in shots.tracks_of_views(above.track).items()
        }
    except (OSError, ValueError, KeyError, TypeError):
        text = f"The result of {name} is gone or damaged, {above.track}. Submit it again."
        raise NodeError(text) from None
    if not all(shot.character for shot in found.values()):
        raise NodeError(f"The character of {name} is gone. Submit that node again.")
    return found


def connected(node: Node) -> host.Extent:
    """Returns the extent of a node's first input.

    Raises:
        NodeError: nothing is connected.
    """
    extent = host.connected(node)
    if extent is None:
        raise NodeError("Connect the input.")
    return extent
