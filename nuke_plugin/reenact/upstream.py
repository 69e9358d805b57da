"""Finds what a node works on: the latent track above it, the shot that it is of, and the plate."""

from dataclasses import dataclass
from typing import List, Optional, Set

from reenact import host, shots
from reenact.errors import NodeError
from reenact.host import Node
from reenact.kinds import REPAIR, kind_of
from reenact.repairs import UPSTREAM
from reenact.shots import Shot


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

    A node hands on the track of its own last result, in its knob `track`, whatever it shows at the
    moment. The search goes through every other node, and through nodes of ours that are disabled
    or whose version is `upstream`; of several inputs, it follows the first one to its end before
    the next.

    Args:
        node: where the search begins.
        inputs: the inputs to search; None for all of the node's.

    Raises:
        NodeError: there is no such node, or it has no track yet.
    """
    pending = list(host.above(node) if inputs is None else inputs)
    seen: Set[str] = set()
    while pending:
        candidate = pending.pop(0)
        name = host.name(candidate)
        if name in seen:
            continue
        seen.add(name)
        kind = kind_of(candidate)
        passes = kind is REPAIR and host.get(candidate, "version") == UPSTREAM
        if not kind.has_track or passes or host.get(candidate, "disable"):
            pending = host.above(candidate) + pending
            continue
        track, character = (str(host.get(candidate, knob)) for knob in ("track", "character"))
        if not track:
            raise NodeError(f"{name} has no latent track yet. Submit it first, or disable it.")
        return Upstream(candidate, track, character)
    raise NodeError("There is no Reenact node above. Connect one: this node works on its track.")


def face_read(node: Node) -> Node:
    """Returns the Read of a face's frames: one of Nuke's, or the one inside a node of ours.

    Args:
        node: what is connected as the face.

    Raises:
        NodeError: there is neither.
    """
    found: Optional[Node] = node
    while found is not None and not kind_of(found).has_track:
        if host.has(found, "origfirst"):  # only a Read has it
            return found
        found = next(iter(host.above(found)), None)
    if found is None:
        raise NodeError("There is no Reenact node and no Read above. Connect one to face.")
    return host.inner(upstream(node, [found]).node, "Result")


def shot_above(node: Node) -> Shot:
    """Returns the shot of the latent track above a node.

    Raises:
        NodeError: there is none, or its version folder is gone or damaged.
    """
    above = upstream(node)
    try:
        return shots.read_shot(above.track, above.character)
    except (OSError, ValueError, KeyError, TypeError):
        text = f"The result of {host.name(above.node)} is gone or damaged, {above.track}."
        raise NodeError(f"{text} Submit it again.") from None


def connected(node: Node) -> host.Extent:
    """Returns the extent of a node's first input.

    Raises:
        NodeError: nothing is connected.
    """
    extent = host.connected(node)
    if extent is None:
        raise NodeError("Connect the input.")
    return extent
