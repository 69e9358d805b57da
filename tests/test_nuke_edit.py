"""ReenactEdit and ReenactStyle in the stand-in for Nuke, with a real server and real pictures."""

import importlib
from collections.abc import Iterator
from types import ModuleType

import nuke_standin
import pytest
from nuke_standin import Node, Session


@pytest.fixture
def session() -> Iterator[Session]:
    with nuke_standin.running() as one:
        yield one


def logic() -> ModuleType:
    """`reenact.nodes` of the Nuke that runs now."""
    return importlib.import_module("reenact.nodes")


def under(session: Session, kind: str, *sources: Node | None) -> Node:
    """A new node with others connected to it."""
    node = session.module.createNode(kind)
    for i, source in enumerate(sources):
        node.setInput(i, source)
    return node


# -- down the pipe -------------------------------------------------------------------------------


def test_a_track_is_found_through_whatever_lies_between(session: Session) -> None:
    plate = under(session, "Read")
    first, second = (under(session, "Reenact", plate) for _ in range(2))
    below = under(session, "Dot", under(session, "Reenact", under(session, "Dot", first)))
    third = below.input(0)
    for node, track in ((first, "/1.latents"), (second, "/2.latents"), (third, "/3.latents")):
        node["track"].setValue(track)
        node["character"].setValue(f"{track}.character")

    def found(*sources: Node | None) -> str:
        end = under(session, "NoOp", *sources)
        seen = logic().upstream(end)
        assert seen.character == f"{seen.track}.character"
        assert seen.node["track"].value() == seen.track
        return str(seen.track)

    assert found(first) == "/1.latents"
    assert found(below) == "/3.latents"  # the nearest
    assert found(under(session, "Merge2", plate, second)) == "/2.latents"  # A over the plate
    assert found(under(session, "Merge2", first, second)) == "/1.latents"  # B before A
    assert found(None, second) == "/2.latents"
    third["disable"].setValue(True)
    assert found(below) == "/1.latents"


def test_without_a_track_above_it_is_said_what_to_do(session: Session) -> None:
    plate = under(session, "Read")
    node = under(session, "Reenact", plate)
    end = under(session, "NoOp")
    for source, sentence in (
        (None, "no Reenact node above"), (plate, "no Reenact node above"),
        (under(session, "ReenactPersonalize", plate), "no Reenact node above"),
        (node, "Reenact1 has no latent track yet. Submit it first, or disable it."),
    ):  # fmt: skip
        end.setInput(0, source)
        with pytest.raises(logic().Wrong, match=sentence):
            logic().upstream(end)


def test_a_diamond_of_nodes_is_walked_once(session: Session) -> None:
    top = under(session, "Read")
    for _ in range(40):  # 2^40 ways lead up
        top = under(session, "Merge2", top, top)
    with pytest.raises(logic().Wrong):
        logic().upstream(top)
