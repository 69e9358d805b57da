"""Native nodes with keys that follow a face, as text of a Nuke script.

Each node warps what lies in a source quad into a target quad. One of the two is the aligned square
in the plate, keyed frame by frame; the other is constant. Coordinates are those of
`tracks.FaceQuads`.
"""

import math
from dataclasses import dataclass
from typing import Callable, Dict, Mapping, Optional, Sequence, Tuple

from reenact.tracks import Corners, FaceQuads, Point

MovingQuad = Dict[int, Corners]  # by frame


@dataclass(frozen=True)
class Warp:
    """A warp between two quads.

    Attributes:
        face: the aligned square in the plate.
        still: the constant quad.
        inverse: warps the face to the constant quad, instead of the constant quad to the face.
        size: width and height of the picture that is warped, px.
        plate: width and height of the plate, px.
    """

    face: MovingQuad
    still: Corners
    inverse: bool
    size: Tuple[int, int]
    plate: Tuple[int, int]


def face_warp(quads: FaceQuads, frame: int, crop: Optional[Tuple[int, int]], inverse: bool) -> Warp:
    """Returns the warp of the aligned crop to the face of each frame, or of a plate's frame.

    Args:
        quads: where the faces are.
        frame: the frame of the plate that is warped, where `crop` is None.
        crop: width and height of the aligned crop that is warped, px.
        inverse: warps the other warp.

    Raises:
        KeyError: there is no face in that frame.
    """
    if crop is None:
        return Warp(quads.corners, quads.corners[frame], inverse, quads.plate, quads.plate)
    width, height = map(float, crop)
    still: Corners = ((0.0, 0.0), (width, 0.0), (width, height), (0.0, height))
    return Warp(quads.corners, still, inverse, quads.plate if inverse else crop, quads.plate)


def corner_pin(warp: Warp) -> str:
    """Returns a CornerPin2D."""
    lines = [f"to{k + 1} {_keys(_corner(warp.face, k))}" for k in range(4)]
    lines += [f"from{k + 1} {{{x:.4f} {y:.4f}}}" for k, (x, y) in enumerate(warp.still)]
    lines += [f"enable{k + 1} true" for k in range(4)]  # whatever a studio's default is
    return node_text(
        "CornerPin2D", [*lines, f"invert {_flag(warp.inverse)}", "name FaceCornerPin1"]
    )


def transform(warp: Warp) -> str:
    """Returns a Transform, which is exact where pixels are square."""
    centre, side, angle = _centre(warp.still), _side(warp.still), _angle(warp.still)
    angles: Dict[int, float] = {}
    before = 0.0
    for number, corners in sorted(warp.face.items()):
        before += (_angle(corners) - angle - before + 180) % 360 - 180  # the shorter way round
        angles[number] = before
    centres = {number: _centre(corners) for number, corners in warp.face.items()}
    moved = {number: (x - centre[0], y - centre[1]) for number, (x, y) in centres.items()}
    scales = {number: _side(corners) / side for number, corners in warp.face.items()}
    return node_text(
        "Transform",
        [
            f"translate {_keys(moved)}",
            f"rotate {{{curve(angles)}}}",
            f"scale {{{curve(scales)}}}",
            f"center {{{centre[0]:.4f} {centre[1]:.4f}}}",
            f"invert_matrix {_flag(warp.inverse)}",
            "name FaceTransform1",
        ],
    )


def stmap(warp: Warp) -> str:
    """Returns an STMap, and above it an Expression that draws its map: u in red, v in green.

    The Expression computes each pixel's coordinates along two sides of the target (Cramer's rule),
    and from these the point of the source with the same coordinates. In proxy mode its x, y, width
    and height are the proxy's, and the keys are not: a pixel is taken as its share of the plate.
    """
    still = {number: warp.still for number in sorted(warp.face)[:1]}
    target, source = (still, warp.face) if warp.inverse else (warp.face, still)
    knobs = ["addUserKnob {20 User}"]
    for name, quad in (("to", target), ("from", source)):
        for k in (0, 1, 3):
            knobs += [
                f"addUserKnob {{12 {name}{k + 1}}}",
                f"{name}{k + 1} {_keys(_corner(quad, k))}",
            ]
    area = "((to2.x-to1.x)*(to4.y-to1.y)-(to2.y-to1.y)*(to4.x-to1.x))"
    across, above = (f"({a}+0.5)*{n}/{b}" for a, n, b in zip("xy", warp.plate, ("width", "height")))
    right = f"(({across}-to1.x)*(to4.y-to1.y)-({above}-to1.y)*(to4.x-to1.x))/{area}"
    up = f"((to2.x-to1.x)*({above}-to1.y)-(to2.y-to1.y)*({across}-to1.x))/{area}"
    for i, axis in enumerate("xy"):
        knobs.append(
            f"expr{i} (from1.{axis}+along*(from2.{axis}-from1.{axis})"
            f"+up*(from4.{axis}-from1.{axis}))/{warp.size[i]}"
        )
    knobs += ["temp_name0 along", f"temp_expr0 {right}", "temp_name1 up", f"temp_expr1 {up}"]
    drawn = node_text("Expression", [*knobs, "name FaceMap1"])
    return f"{drawn}push 0\n" + node_text("STMap", ["inputs 2", "uv rgb", "name FaceSTMap1"])


KINDS: Dict[str, Callable[[Warp], str]] = {
    "corner_pin": corner_pin,
    "transform": transform,
    "stmap": stmap,
}


def node_text(kind: str, knobs: Sequence[str]) -> str:
    """Returns a node."""
    body = "".join(f" {knob}\n" for knob in knobs)
    return f"{kind} {{\n{body}}}\n"


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _corner(quad: MovingQuad, k: int) -> Dict[int, Point]:
    return {number: corners[k] for number, corners in quad.items()}


def _keys(points: Dict[int, Point]) -> str:
    """Returns the value of a knob with two components."""
    x, y = (curve({number: point[axis] for number, point in points.items()}) for axis in (0, 1))
    return f"{{{x} {y}}}"


def curve(values: Mapping[int, float]) -> str:
    """Returns a component of a knob, with linear keys."""
    keys = " ".join(f"x{number} {value:.4f}" for number, value in sorted(values.items()))
    return f"{{curve L {keys}}}"


def _centre(corners: Corners) -> Point:
    return sum(x for x, _ in corners) / 4, sum(y for _, y in corners) / 4


def _side(corners: Corners) -> float:
    return math.dist(corners[0], corners[1])


def _angle(corners: Corners) -> float:
    """Returns the rotation in degrees, counter-clockwise."""
    (x0, y0), (x1, y1) = corners[:2]
    return math.degrees(math.atan2(y1 - y0, x1 - x0))
