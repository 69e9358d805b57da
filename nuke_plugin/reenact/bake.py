"""Native nodes with keys that follow a face, as Nuke's text.

Each moves what lies in one quad, the source, into another, the target; one of the two is the
aligned square in the plate, frame by frame, the other stays. Coordinates are those of
`tracks.Places`.
"""

import math
from dataclasses import dataclass
from typing import Callable, Dict, Sequence, Tuple

from reenact.tracks import Corners, Places, Point

Moving = Dict[int, Corners]  # by frame


@dataclass(frozen=True)
class Way:
    """What is moved where.

    Attributes:
        face: the aligned square in the plate.
        still: the other quad.
        inverse: from the face to the other one, not to the face.
        size: width and height of the picture that is moved, px.
    """

    face: Moving
    still: Corners
    inverse: bool
    size: Tuple[int, int]


def way(places: Places, frame: int, crop: bool, inverse: bool) -> Way:
    """From an aligned crop, or from the plate at a frame, to the face of each frame; or back.

    Raises:
        KeyError: there is no face in that frame.
    """
    side = float(places.crop)
    square: Corners = ((0.0, 0.0), (side, 0.0), (side, side), (0.0, side))
    still = square if crop else places.corners[frame]
    moved = (places.crop, places.crop) if crop and not inverse else places.plate
    return Way(places.corners, still, inverse, moved)


def corner_pin(way: Way) -> str:
    """A CornerPin2D."""
    lines = [f"to{k + 1} {_keys(_corner(way.face, k))}" for k in range(4)]
    lines += [f"from{k + 1} {{{x:.4f} {y:.4f}}}" for k, (x, y) in enumerate(way.still)]
    return _node("CornerPin2D", [*lines, f"invert {_flag(way.inverse)}", "name FaceCornerPin1"])


def transform(way: Way) -> str:
    """A Transform: exact where pixels are square."""
    middle, side, turn = _middle(way.still), _side(way.still), _turn(way.still)
    turns: Dict[int, float] = {}
    before = 0.0
    for number, corners in sorted(way.face.items()):
        before += (_turn(corners) - turn - before + 180) % 360 - 180  # never the long way round
        turns[number] = before
    middles = {number: _middle(corners) for number, corners in way.face.items()}
    moved = {number: (x - middle[0], y - middle[1]) for number, (x, y) in middles.items()}
    sizes = {number: _side(corners) / side for number, corners in way.face.items()}
    return _node(
        "Transform",
        [
            f"translate {_keys(moved)}",
            f"rotate {{{_curve(turns)}}}",
            f"scale {{{_curve(sizes)}}}",
            f"center {{{middle[0]:.4f} {middle[1]:.4f}}}",
            f"invert_matrix {_flag(way.inverse)}",
            "name FaceTransform1",
        ],
    )


def stmap(way: Way) -> str:
    """An STMap, and above it an Expression that draws its map: u in red, v in green.

    Of each pixel the share of the way along the target's two sides (Cramer's rule), then the place
    as far along the source's.
    """
    still = {number: way.still for number in sorted(way.face)[:1]}
    target, source = (still, way.face) if way.inverse else (way.face, still)
    knobs = ["addUserKnob {20 User}"]
    for name, quad in (("to", target), ("from", source)):
        for k in (0, 1, 3):
            knobs += [
                f"addUserKnob {{12 {name}{k + 1}}}",
                f"{name}{k + 1} {_keys(_corner(quad, k))}",
            ]
    area = "((to2.x-to1.x)*(to4.y-to1.y)-(to2.y-to1.y)*(to4.x-to1.x))"
    right = f"((x+0.5-to1.x)*(to4.y-to1.y)-(y+0.5-to1.y)*(to4.x-to1.x))/{area}"
    up = f"((to2.x-to1.x)*(y+0.5-to1.y)-(to2.y-to1.y)*(x+0.5-to1.x))/{area}"
    for i, axis in enumerate("xy"):
        knobs.append(
            f"expr{i} (from1.{axis}+along*(from2.{axis}-from1.{axis})"
            f"+up*(from4.{axis}-from1.{axis}))/{way.size[i]}"
        )
    knobs += ["temp_name0 along", f"temp_expr0 {right}", "temp_name1 up", f"temp_expr1 {up}"]
    drawn = _node("Expression", [*knobs, "name FaceMap1"])
    return f"{drawn}push 0\n" + _node("STMap", ["inputs 2", "uv rgb", "name FaceSTMap1"])


KINDS: Dict[str, Callable[[Way], str]] = {
    "corner_pin": corner_pin,
    "transform": transform,
    "stmap": stmap,
}


def _node(kind: str, knobs: Sequence[str]) -> str:
    body = "".join(f" {knob}\n" for knob in knobs)
    return f"{kind} {{\n{body}}}\n"


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _corner(moving: Moving, k: int) -> Dict[int, Point]:
    return {number: corners[k] for number, corners in moving.items()}


def _keys(points: Dict[int, Point]) -> str:
    """The value of a knob with two components."""
    x, y = (_curve({number: point[axis] for number, point in points.items()}) for axis in (0, 1))
    return f"{{{x} {y}}}"


def _curve(values: Dict[int, float]) -> str:
    keys = " ".join(f"x{number} {value:.4f}" for number, value in sorted(values.items()))
    return f"{{curve L {keys}}}"


def _middle(corners: Corners) -> Point:
    return sum(x for x, _ in corners) / 4, sum(y for _, y in corners) / 4


def _side(corners: Corners) -> float:
    return math.dist(corners[0], corners[1])


def _turn(corners: Corners) -> float:
    """Degrees, counter-clockwise."""
    (x0, y0), (x1, y1) = corners[:2]
    return math.degrees(math.atan2(y1 - y0, x1 - x0))
