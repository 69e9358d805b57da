"""The names of the EXR layers.

They start with the product's, and the header says so. Older files have plain names, which collide
with those that shows use for their own layers. `docs/layers.md` says what each channel holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

PLAIN, NEWEST = 1, 2  # versions of the names: `matte.face`, `reenact_matte.face`
ATTRIBUTE = "reenact:layers"  # header attribute: the version of the names; PLAIN files lack it
PREFIX = "reenact_"

# Channels by layer, as Nuke calls them; .red, .green and .blue are .R, .G and .B in the file.
CHANNELS = {
    "render": ("red", "green", "blue"),
    "matte": ("face", "head", "confidence"),
    "parts": ("mouth", "inner", "eyes", "iris"),
    "stmap": ("u", "v"),
    "forward": ("u", "v"),
    "grain": ("red", "green", "blue"),
}
NUKES_OWN = ("forward",)  # keeps its name: Nuke's nodes look for motion vectors there


def in_file(name: str, version: int = NEWEST) -> str:
    """Returns the name that a layer or a channel has in files.

    Args:
        name: one of `CHANNELS`, or LAYER.CHANNEL.
        version: of the names.

    Raises:
        ValueError: there is no such layer, channel or version.

    Example:
        >>> in_file("matte.face"), in_file("matte.face", PLAIN), in_file("forward")
        ('reenact_matte.face', 'matte.face', 'forward')
    """
    layer, dot, channel = name.partition(".")
    if layer not in CHANNELS or (dot and channel not in CHANNELS[layer]):
        raise ValueError(f"there is no layer or channel {name}")
    if version not in (PLAIN, NEWEST):
        raise ValueError(f"there is no version {version} of the layers' names")
    return name if version == PLAIN or layer in NUKES_OWN else PREFIX + name


def named(layers: Mapping[str, T], version: int = NEWEST) -> dict[str, T]:
    """Returns layers by the names that they have in files; raises as `in_file` does."""
    return {in_file(name, version): values for name, values in layers.items()}
