"""The pixel operations of the native nodes in ReenactComp, for the stand-in for Nuke.

Channel arithmetic follows Nuke's reference guide. Filters (Blur, FilterErode, VectorBlur, Reformat,
STMap) have the right size and direction, but other kernels: tests must not depend on the kernel.
Nodes read the text of their knobs, including expressions and keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import cv2
import nuke_shapes
import nuke_standin
import numpy as np
from nk_script import words
from scipy.ndimage import gaussian_filter, grey_dilation, grey_erosion

if TYPE_CHECKING:
    from nuke_standin import Node, Picture

RGB = ("red", "green", "blue")
RGBA = (*RGB, "alpha")
LAYERS = {"rgb": RGB, "rgba": RGBA, "alpha": ("alpha",)}
FUNCTIONS = {
    "clamp": lambda v: np.clip(v, 0, 1),
    "sqrt": np.sqrt,
    "abs": np.abs,
    "max": np.maximum,
    "min": np.minimum,
}


def numbers(node: Node, knob: str, default: str) -> list[float]:
    """Returns the components of a numeric knob at the session's frame."""
    found = []
    for text in words(node[knob]._text() or default):
        part = nuke_standin.Double_Knob(knob)
        part._node = node
        part._set_text(f"{{{text}}}" if not re.fullmatch(r"-?[\d.]+", text) else text)
        found.append(part.value())
    return found


def number(node: Node, knob: str, default: str) -> float:
    return numbers(node, knob, default)[0]


def channels(node: Node, picture: Picture, default: str, knob: str = "channels") -> list[str]:
    """Returns the channels of a picture that a node processes."""
    layer = node[knob].value() or default
    if layer == "all" and knob == "channels":
        return list(picture)
    return [c for c in picture if c in LAYERS.get(layer, ()) or c.rpartition(".")[0] == layer]


def plane(picture: Picture, channel: str = "alpha") -> np.ndarray:
    """Returns a channel; black if the picture doesn't have it."""
    return picture.get(channel.removeprefix("rgba."), np.zeros_like(next(iter(picture.values()))))


def merge(node: Node, under: Picture, over: Picture, mask: Picture | None = None) -> Picture:
    b, a = plane(under), plane(over)
    operations: dict[str, Callable] = {
        "over": lambda A, B: A + B * (1 - a),
        "under": lambda A, B: A * (1 - b) + B,
        "plus": lambda A, B: A + B,
        "minus": lambda A, B: A - B,
        "average": lambda A, B: (A + B) / 2,
    }
    operation = operations[node["operation"].value() or "over"]
    share = np.float32(number(node, "mix", "1"))
    if mask is not None:
        matte = plane(mask, node["maskChannelMask"].value())
        share = share * (1 - matte if node["invert_mask"].value() == "true" else matte)
    made = dict(under)
    both = {**over, **under}
    merged = channels(node, both, "rgba", "output")
    if node["also_merge"].value():
        assert node["also_merge"].value() == "all", "only all layers are meant here"
        merged = list(both)
    for c in merged:
        below = plane(under, c)
        result = operation(plane(over, c), below)
        plain = mask is None and share == 1
        made[c] = result if plain else below + share * (result - below)
    if node["bbox"].value() == "B":
        inside = box(under)
        made = {c: np.where(inside, pixels, np.float32(0)) for c, pixels in made.items()}
    return made


def box(picture: Picture) -> np.ndarray:
    """Returns which pixels the bounding box of a picture has, at least: around what is not 0."""
    used = np.any([pixels != 0 for pixels in picture.values()], 0)
    rows, columns = used.any(1), used.any(0)
    for line in (rows, columns):
        if line.any():
            line[line.argmax() : len(line) - line[::-1].argmax()] = True
    return rows[:, None] & columns


def grade(node: Node, picture: Picture) -> Picture:
    gain, offset = numbers(node, "multiply", "1 1 1 1"), numbers(node, "add", "0 0 0 0")
    mix = np.float32(number(node, "mix", "1"))
    made = dict(picture)
    for c, g, o in zip(RGB, gain * 3, offset * 3, strict=False):  # one number applies to all
        graded = picture[c] * np.float32(g) + np.float32(o)
        if node["black_clamp"].value() != "false":
            graded = np.maximum(graded, 0)
        made[c] = picture[c] + mix * (graded - picture[c])
    return made


def multiply(node: Node, picture: Picture) -> Picture:
    value = np.float32(number(node, "value", "1"))
    return {**picture, **{c: picture[c] * value for c in channels(node, picture, "rgba")}}


def premult(node: Node, picture: Picture) -> Picture:
    return {**picture, **{c: picture[c] * plane(picture) for c in channels(node, picture, "rgb")}}


def unpremult(node: Node, picture: Picture) -> Picture:
    divisor = np.where(plane(picture) == 0, 1, plane(picture))
    return {**picture, **{c: picture[c] / divisor for c in channels(node, picture, "rgb")}}


def crop(node: Node, picture: Picture) -> Picture:
    """Keeps a box of whole pixels, counted from the bottom left; the rest is black."""
    assert node["reformat"].value() in ("", "false"), "the format is to stay"
    assert node["crop"].value() in ("", "true"), "what is outside is to be black"
    left, bottom, right, top = numbers(node, "box", "")
    assert all(float(edge).is_integer() for edge in (left, bottom, right, top))
    height, width = picture["red"].shape
    assert 0 <= left <= right <= width
    assert 0 <= bottom <= top <= height
    inside = np.zeros((height, width), bool)
    inside[height - int(top) : height - int(bottom), int(left) : int(right)] = True
    return {c: np.where(inside, plane, np.float32(0)) for c, plane in picture.items()}


def copy(node: Node, under: Picture, over: Picture) -> Picture:
    made = dict(under)
    for i in range(4):
        if node[f"from{i}"].value():
            target = node[f"to{i}"].value().removeprefix("rgba.")
            made[target] = plane(over, node[f"from{i}"].value())
    return made


def shuffle(node: Node, picture: Picture) -> Picture:
    return {**picture, **{c: plane(picture, node[c].value() or c) for c in RGBA}}


def expression(node: Node, picture: Picture) -> Picture:
    """Evaluates each channel's expression: channels, knobs, and x and y from the bottom left."""
    height, width = picture["red"].shape
    y, x = np.mgrid[:height, :width].astype(np.float64)
    known = {**picture, "x": x, "y": height - 1 - y, "width": width, "height": height}

    def value(name: str) -> object:
        if name in known:
            return known[name]
        where, _, knob = name.rpartition(".")
        if where == "parent":
            return node._parent[knob].value()
        if node.knob(where) is not None:  # a knob of its own, by component
            return numbers(node, where, "")["xyzw".index(knob)]
        if not where and name in node._knobs and node._knobs[name]._definition is not None:
            return node[name].value()  # a user knob
        return plane(picture, name)

    def evaluated(text: str) -> np.ndarray:
        names: dict[str, object] = dict(FUNCTIONS)

        def name(found: re.Match[str]) -> str:
            if found[0] not in FUNCTIONS:
                names[f"v{len(names)}"] = value(found[0])
                return f"v{len(names) - 1}"
            return found[0]

        python = re.sub(r"[a-zA-Z_]\w*(\.\w+)?", name, text)
        choice = re.fullmatch(r"([^?:]+)\?([^?:]+):([^?:]+)", python)
        if choice:
            python = "choose({}, {}, {})".format(*(part.strip() for part in choice.groups()))
            names["choose"] = np.where
        result = eval(python, {"__builtins__": {}}, names)
        return np.broadcast_to(np.asarray(result, np.float32), picture["red"].shape)

    for i in range(4):
        if node[f"temp_name{i}"].value():
            known[node[f"temp_name{i}"].value()] = evaluated(node[f"temp_expr{i}"].value())
    texts = {c: node[f"expr{i}"].value() for i, c in enumerate(RGBA)}
    return {**picture, **{c: evaluated(text) for c, text in texts.items() if text}}


def blur(node: Node, picture: Picture) -> Picture:
    sigma = number(node, "size", "0") / 2
    return {
        **picture,
        **{
            c: gaussian_filter(picture[c], sigma, mode="constant")
            for c in channels(node, picture, "all")
        },
    }


def erode(node: Node, picture: Picture) -> Picture:
    assert node["filter"].value() in ("", "box"), "the matte's edge is to stay as hard as it is"
    size = number(node, "size", "0")
    reach = 2 * round(abs(size)) + 1
    filter = grey_erosion if size > 0 else grey_dilation
    return {
        **picture,
        **{
            c: filter(picture[c], (reach, reach), mode="constant")
            for c in channels(node, picture, "all")
        },
    }


def reformat(node: Node, picture: Picture) -> Picture:
    assert (node["type"].value(), node["resize"].value()) == ("to box", "distort")
    size = int(number(node, "box_width", "0")), int(number(node, "box_height", "0"))
    return {c: cv2.resize(v, size, interpolation=cv2.INTER_LINEAR) for c, v in picture.items()}


def stmap(node: Node, source: Picture, where: Picture) -> Picture:
    u, v = (where[c] for c in channels(node, where, "rgba", "uv")[:2])
    height, width = source["red"].shape
    x, y = (u * width - 0.5).astype(np.float32), ((1 - v) * height - 0.5).astype(np.float32)
    return {
        c: cv2.remap(np.ascontiguousarray(p), x, y, cv2.INTER_LINEAR) for c, p in source.items()
    }


def vector_blur(node: Node, picture: Picture) -> Picture:
    """Averages along `scale` times the vectors. `offset` is where the shutter opens, in lengths of
    that: at -0.5 it is centred on the frame, at 0 it opens there.

    Raises:
        ValueError: a knob is missing whose default is unknown, or differs from what a shutter does.
    """
    for knob in ("scale", "offset", *(["blur_type"] if node._kind == "VectorBlur2" else [])):
        if not node[knob].value():
            raise ValueError(f"{node._kind} has no {knob}: what it does then is not known here")
    if node._kind == "VectorBlur2" and node["blur_type"].value() != "uniform":
        raise ValueError("a gaussian is no shutter")
    if node._kind == "VectorBlur2" and float(node["uv_offset"].value() or 0):
        raise ValueError("the vectors are shifted")
    layer, scale = node["uv"].value(), np.float32(number(node, "scale", ""))
    opens = np.float32(number(node, "offset", ""))
    u, v = (plane(picture, f"{layer}.{c}").astype(np.float32) * scale for c in "uv")
    y, x = np.mgrid[: u.shape[0], : u.shape[1]].astype(np.float32)
    made = dict(picture)
    for c in channels(node, picture, "rgba"):
        made[c] = np.mean(
            [
                cv2.remap(np.ascontiguousarray(picture[c]), x - t * u, y + t * v, cv2.INTER_LINEAR)
                for t in opens + (np.arange(16, dtype=np.float32) + 0.5) / 16
            ],
            0,
        )
    return made


NODES: dict[str, Callable[..., Picture]] = {
    "Merge2": merge,
    "Grade": grade,
    "Multiply": multiply,
    "Premult": premult,
    "Unpremult": unpremult,
    "Copy": copy,
    "Crop": crop,
    "Expression": expression,
    "Blur": blur,
    "FilterErode": erode,
    "Shuffle": shuffle,
    "Reformat": reformat,
    "STMap": stmap,
    "VectorBlur": vector_blur,
    "Roto": nuke_shapes.roto,
    "VectorBlur2": vector_blur,
}
