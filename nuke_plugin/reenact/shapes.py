"""A Tracker4 and a Roto that follow a face's landmarks, as text of a Nuke script.

Both are written as Nuke saves them. A Tracker4 declares its columns before its rows. A Roto's
numbers are single-precision floats in hexadecimal; one of its keys is the time, the value, and
slope and weight of the curve to the left and to the right.
"""

import math
import struct
from typing import Dict, List, Mapping, Sequence, Tuple

from reenact.bake import curve, node_text
from reenact.landmarks import FACE, OUTLINES, Landmarks
from reenact.tracks import Point

_EDGES = ("x", "y", "r", "t")
# The columns of a Tracker4: three numbers that describe a column, its name and its label.
_COLUMNS: Tuple[Tuple[str, str, str], ...] = (
    ("5 1 20", "enable", "e"),
    ("3 1 75", "name", "name"),
    *(("2 1 58", name, name) for name in ("track_x", "track_y")),
    *(("2 1 63", name, name) for name in ("offset_x", "offset_y")),
    *(("4 1 27", name, name) for name in "TRS"),
    ("2 0 45", "error", "error"),
    *(("1 1 0", name, name) for name in ("error_min", "error_max")),
    *(("1 1 0", name, name) for name in (f"pattern_{edge}" for edge in _EDGES)),
    *(("1 1 0", name, name) for name in (f"search_{edge}" for edge in _EDGES)),
    ("2 1 0", "key_track", "key_track"),
    *(("2 1 0", name, name) for name in (f"key_search_{edge}" for edge in _EDGES)),
    *(("2 1 0", name, name) for name in (f"key_track_{edge}" for edge in _EDGES)),
    *(("2 1 0", name, name) for name in ("key_centre_offset_x", "key_centre_offset_y")),
)
_BOXES = "-32 -32 32 32 -22 -22 22 22"  # pattern and search around the point, px: Nuke's own
_NO_KEYS = " {}" * 11  # the columns from key_track on: nothing was tracked by hand

# How far the shape of the face lies outside the mesh, which ends below the hair line: in sides of
# the aligned square, as `core.render.matte` draws the matte of the face.
EDGE_OFFSET = 0.02
FOREHEAD_OFFSET = 0.09


def tracker(landmarks: Landmarks, frames: Sequence[int], points: Mapping[str, int]) -> str:
    """Returns a Tracker4 with a track for each point; it is off on frames without a face.

    Args:
        landmarks: of at least one frame.
        frames: all frames of the shot, increasing.
        points: indices of landmarks, by the names of their tracks.
    """
    first = min(landmarks)
    enabled = " ".join(f"x{n} {shown:d}" for n, shown in _changes(landmarks, frames))
    columns = "\n".join(f"{{ {numbers} {name} {label} 1 }}" for numbers, name, label in _COLUMNS)
    rows = []
    for name, i in points.items():
        x, y = (curve({n: found[i][k] for n, found in landmarks.items()}) for k in (0, 1))
        zero = f"{{curve K x{first} 0}}"
        rows.append(
            f'{{ {{curve K {enabled}}} "{name}" {x} {y} {zero} {zero} 0 0 0 '
            f"{{curve x{first} 0}} 0 0 {_BOXES}{_NO_KEYS} }}"
        )
    table = "\n".join(rows)
    tracks = f"{{ {{ 1 {len(_COLUMNS)} {len(rows)} }}\n{{ {columns}\n}}\n{{\n{table}\n}}\n}}"
    knobs = [f"tracks {tracks}", f"reference_frame {first}", "name FaceTracker1"]
    return node_text("Tracker4", knobs)


def roto(landmarks: Landmarks, frames: Sequence[int], size: Tuple[int, int]) -> str:
    """Returns a Roto with closed Bezier shapes for face, lips and eyes, keyed on every frame.

    Their opacity is 0 where there is no face, also before the first frame and after the last one.

    Args:
        landmarks: of at least one frame.
        frames: all frames of the shot, increasing.
        size: width and height of the plate, px.
    """
    opacity: Dict[int, float] = {}
    before = False
    for number, shown in [*_changes(landmarks, frames), (frames[-1] + 1, False)]:
        if shown != before:
            opacity.setdefault(number - 1, float(before))  # constant up to the frame before
            opacity[number] = float(shown)
            before = shown
    shapes = []
    for name, ring in OUTLINES.items():
        outlines = {n: [points[i] for i in ring] for n, points in landmarks.items()}
        if name == FACE:
            outlines = {n: _around(outlines[n], points) for n, points in landmarks.items()}
        shapes.append(_shape(name, outlines, opacity, size))
    pivot = f"{_hex(size[0] / 2)} {_hex(size[1] / 2)}"
    root = "\n".join([f"{{layer Root\n{{f 2097152}}\n{{t {pivot}}}\n{{a}}", *shapes])
    curves = f"{{{{{{v x3f99999a}}\n{{f 0}}\n{{n\n{root}}}}}}}}}"
    knobs = ["output alpha", "cliptype none", f"curves {curves}", "name FaceRoto1"]
    return node_text("Roto", knobs)


def _changes(landmarks: Landmarks, frames: Sequence[int]) -> List[Tuple[int, bool]]:
    """Returns the first frame and those on which a face comes or goes, with whether it is there."""
    changes: List[Tuple[int, bool]] = []
    for number in frames:
        shown = number in landmarks
        if not changes or changes[-1][1] != shown:
            changes.append((number, shown))
    return changes


# -- shapes --------------------------------------------------------------------------------------


def _shape(
    name: str,
    outlines: Mapping[int, Sequence[Point]],
    opacity: Mapping[int, float],
    size: Tuple[int, int],
) -> str:
    """Returns a closed Bezier shape through the points of its outline in each frame."""
    first = min(outlines)
    knots = {number: _knots(outline) for number, outline in outlines.items()}
    points = []
    for i in range(len(knots[first])):
        x, y = (_animated({n: found[i][axis] for n, found in knots.items()}) for axis in (0, 1))
        points.append(f"{{{x} {y}}}")
    text = "\n".join(points)
    keys = " ".join(f"{{{_hex(n)} {_hex(value)} 0 1 0 1}}" for n, value in sorted(opacity.items()))
    x, y = (_hex(value) for value in _mean(outlines[first]))
    source = "spx {} spy {}".format(*(_hex(side / 2) for side in size))
    return (
        # `idem`: the feather lies on the shape. 8192 is a closed curve, tt the tool for Beziers.
        f"{{curvegroup {name} 512 bezier\n{{{{cc\n{{f 8192}}\n{{p\n{text}}}}} idem}}\n"
        f"{{t {x} {y}}}\n{{a opc {{{keys}}} osw x41200000 osf 0 str 1 {source} sb 1 "
        f"ltn {_hex(first)} ltm {_hex(first)} tt x40800000}}}}"
    )


def _knots(outline: Sequence[Point]) -> List[Point]:
    """Returns three points for each point of a closed outline, as a Roto has them.

    They are the handle towards the point before, the point, and the handle towards the next one.
    Handles are relative to the point; together they make a smooth curve (Catmull-Rom).
    """
    knots: List[Point] = []
    for i, (x, y) in enumerate(outline):
        before, after = outline[i - 1], outline[(i + 1) % len(outline)]
        back, ahead = math.dist(before, (x, y)), math.dist((x, y), after)
        share = 1 / (3 * ((back + ahead) or 1.0))
        dx, dy = (after[0] - before[0]) * share, (after[1] - before[1]) * share
        knots += [(-dx * back, -dy * back), (x, y), (dx * ahead, dy * ahead)]
    return knots


def _around(outline: Sequence[Point], points: Sequence[Point]) -> List[Point]:
    """Returns the outline of the face's matte, around the mesh's own.

    Args:
        outline: of the mesh. Its first point is the uppermost, the one half way round the chin.
        points: the mesh.
    """
    right, left = _mean([points[33], points[133]]), _mean([points[263], points[362]])
    down = math.dist(_mean([right, left]), _mean([points[61], points[291]]))
    side = 2 * max(2 * math.dist(right, left), 1.8 * down)  # of FFHQ's aligned square
    top, chin, middle = outline[0], outline[len(outline) // 2], _mean(outline)
    up = _unit(top[0] - chin[0], top[1] - chin[1])
    raised: List[Point] = []
    for x, y in outline:
        out = _unit(x - middle[0], y - middle[1])
        share = side * FOREHEAD_OFFSET * max(out[0] * up[0] + out[1] * up[1], 0.0) ** 2
        raised.append((x + share * up[0], y + share * up[1]))
    around = list(zip(raised[-1:] + raised[:-1], raised, raised[1:] + raised[:1]))
    area = sum(x * after[1] - y * after[0] for _, (x, y), after in around)
    outwards = side * EDGE_OFFSET * (1 if area > 0 else -1)  # counter-clockwise: to the right
    moved: List[Point] = []
    for before, (x, y), after in around:
        along = _unit(after[0] - before[0], after[1] - before[1])
        moved.append((x + outwards * along[1], y - outwards * along[0]))
    return moved


def _unit(x: float, y: float) -> Point:
    """Returns a vector of length 1; 0 for 0."""
    length = math.hypot(x, y) or 1.0
    return x / length, y / length


def _mean(points: Sequence[Point]) -> Point:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


# -- numbers -------------------------------------------------------------------------------------


def _animated(values: Mapping[int, float]) -> str:
    """Returns the keys of a number by frame; their slopes are those of the frames around."""
    keys = []
    for number, value in sorted(values.items()):
        steps = [value - values[number - 1]] if number - 1 in values else []
        steps += [values[number + 1] - value] if number + 1 in values else []
        slope = _hex(sum(steps) / len(steps) if steps else 0.0)
        keys.append(f"{{{_hex(number)} {_hex(value)} {slope} 1 {slope} 1}}")
    return f"{{{' '.join(keys)}}}"


def _hex(value: float) -> str:
    return f"x{struct.pack('>f', value).hex()}" if value else "0"
