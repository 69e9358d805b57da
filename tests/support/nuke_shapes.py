"""Reads the tracks of a Tracker4 and the shapes of a Roto, and draws shapes.

Written from the grammar of files that Nuke 10.5 to 15 saved and from Foundry's NDK guide ("Curve
serialisation format", "Roto serialisation format"), not from what the plugin writes:

- Tracker4: `{ {1 COLUMNS ROWS} {{n n n NAME LABEL 1} ...} {ROW ...} }`; an animated cell is a
  curve: `curve`, then keys `[K|L] [xFRAME] VALUE`, where a frame without x is the next one and an
  interpolation holds until the next.
- Roto: a tree of lists. A shape is `curvegroup NAME FLAGS bezier {OUTLINE FEATHER} {t ...} {a NAME
  VALUE ...}`. A curve is `cc {f FLAGS} {p POINT ...}`, with three points for each point of a
  Bezier: handle, point, handle. A point is two curves; a curve is a list of keys `{TIME VALUE [LEFT
  SLOPE, WEIGHT, RIGHT SLOPE, WEIGHT]}`. Numbers are decimal, or `x` and eight hexadecimal digits.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from nk_script import BadScript, words

if TYPE_CHECKING:
    from nuke_standin import Node, Picture

CLOSED = 8192  # flag of a closed curve
_SUBPIXELS = 4


@dataclass(frozen=True)
class Track:
    """A row of a Tracker4: its curves by frame."""

    enabled: dict[int, float]  # constant up to the next key
    x: dict[int, float]
    y: dict[int, float]

    def on(self, frame: int) -> bool:
        before = [n for n in self.enabled if n <= frame] or [min(self.enabled)]
        return bool(self.enabled[max(before)])


def read_tracks(text: str) -> dict[str, Track]:
    """Reads the knob `tracks` of a Tracker4."""
    preamble, columns, rows = words(text)
    version, count, length = map(int, words(preamble))
    names = []
    for column in map(words, words(columns)):
        if len(column) != 6 or column[5] != "1":
            raise BadScript(f"no column: {column}")
        names.append(column[3])
    tracks = {}
    for row in map(words, words(rows)):
        if len(row) != len(names):
            raise BadScript(f"{len(row)} cells in a row of {len(names)}")
        cells = dict(zip(names, row, strict=True))
        tracks[cells["name"]] = Track(
            *(_knob_curve(cells[n])[0] for n in ("enable", "track_x", "track_y"))
        )
        if "K" not in _knob_curve(cells["enable"])[1]:
            raise BadScript("a track would come and go softly")
    if (version, count, length) != (1, len(names), len(tracks)):
        raise BadScript(f"the table is not as it says: {preamble}")
    return tracks


def _knob_curve(text: str) -> tuple[dict[int, float], str]:
    """Returns the keys of a knob's curve, and the interpolations that it names."""
    name, *rest = words(text)
    if name != "curve":
        raise BadScript(f"no curve: {text[:40]}")
    keys: dict[int, float] = {}
    named, frame = "", 0
    for word in rest:
        if word in ("K", "L", "S", "R", "C"):
            named += word
        elif word.startswith("x"):
            frame = int(word[1:])
        else:
            keys[frame] = float(word)
            frame += 1
    return keys, named


Keys = dict[int, tuple[float, ...]]  # value and tangents by frame


@dataclass(frozen=True)
class Shape:
    """A Bezier shape of a Roto."""

    knots: list[tuple[Keys, Keys]]  # x and y of handle, point, handle, and so on
    opacity: Keys

    def points(self, frame: int) -> np.ndarray:
        """Returns what the frame's keys hold: `[P, 3, 2]`."""
        flat = [[axis[frame][0] for axis in knot] for knot in self.knots]
        return np.array(flat).reshape(-1, 3, 2)

    def outline(self, frame: int, steps: int = 16) -> np.ndarray:
        """Returns the closed curve of a frame as a polygon `[P * steps, 2]`."""
        points = self.points(frame)
        at = points[:, 1]
        after, before = at + points[:, 2], at + points[:, 0]
        t = (np.arange(steps) / steps)[None, :, None]
        corners = (at, after, np.roll(before, -1, 0), np.roll(at, -1, 0))
        a, b, c, d = (corner[:, None] for corner in corners)
        curve = (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d
        return curve.reshape(-1, 2)

    def alpha(self, frame: float) -> float:
        return value(self.opacity, frame)

    def draw(self, frame: int, width: int, height: int) -> np.ndarray:
        """Returns the filled shape `[height, width]` in 0..1, rows from the top."""
        if not self.alpha(frame):
            return np.zeros((height, width), np.float32)
        outline = self.outline(frame) * [1, -1] + [0, height]
        fine = np.zeros((height * _SUBPIXELS, width * _SUBPIXELS), np.uint8)
        cv2.fillPoly(
            fine, [np.round((outline * _SUBPIXELS - 0.5) * 16).astype(np.int32)], (255,), shift=4
        )
        small = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)
        return small.astype(np.float32) / 255 * self.alpha(frame)


def roto(node: Node, picture: Picture) -> Picture:
    """Draws a Roto's shapes over the alpha of what comes in."""
    height, width = picture["red"].shape
    alpha = np.zeros((height, width), np.float32)
    for shape in read_shapes(node["curves"].toScript()).values():
        alpha += shape.draw(node._session._frame, width, height) * (1 - alpha)
    below = picture.get("alpha", np.zeros_like(alpha))
    return {**picture, "alpha": alpha + below * (1 - alpha)}


def value(keys: Keys, frame: float) -> float:
    """Returns a curve's value: a cubic between keys, constant outside them."""
    at = sorted(keys)
    if frame <= at[0] or frame >= at[-1]:
        return keys[at[0] if frame <= at[0] else at[-1]][0]
    left, right = max(n for n in at if n <= frame), min(n for n in at if n > frame)
    (a, *_, out, _), (b, into, *_) = keys[left], keys[right]
    step = right - left
    t = (frame - left) / step
    return (
        (2 * t**3 - 3 * t**2 + 1) * a
        + (t**3 - 2 * t**2 + t) * step * out
        + (3 * t**2 - 2 * t**3) * b
        + (t**3 - t**2) * step * into
    )


def read_shapes(text: str) -> dict[str, Shape]:
    """Reads the knob `curves` of a Roto; keys must be on whole frames, and shapes closed."""
    (tree,) = words(text)
    parts = {words(part)[0]: words(part)[1:] for part in words(tree)}
    if number(parts["v"][0]) != np.float32(1.2):
        raise BadScript(f"version {parts['v']}")
    (root,) = parts["n"]
    kind, name, *inside = words(root)
    if (kind, name) != ("layer", "Root"):
        raise BadScript(f"{kind} {name}")
    settings = [words(part)[0] for part in inside[:3]]
    if settings != ["f", "t", "a"]:
        raise BadScript(f"a layer with {settings}")
    return dict(map(_shape, inside[3:]))


def _shape(text: str) -> tuple[str, Shape]:
    kind, name, flags, curve, both, transform, attributes = words(text)
    outline, feather = words(both)
    if (kind, curve, feather) != ("curvegroup", "bezier", "idem") or not int(flags) & 512:
        raise BadScript(f"{kind} {name} {flags} {curve}")
    pivot = [number(word) for word in words(transform)[1:]]
    if words(transform)[0] != "t" or len(pivot) != 2:
        raise BadScript(f"{name} is transformed")
    cubic, flag, points = words(outline)
    if cubic != "cc" or words(flag)[0] != "f" or not int(words(flag)[1]) & CLOSED:
        raise BadScript(f"{name} is not closed")
    letter, *knots = words(points)
    if letter != "p" or len(knots) % 3:
        raise BadScript(f"{name} has {len(knots)} knots")
    marker, *flat = words(attributes)
    named = dict(zip(flat[::2], flat[1::2], strict=True))
    if marker != "a":
        raise BadScript(f"{name} has no attributes")
    pairs = []
    for knot in knots:
        x, y = words(knot)
        pairs.append((_keys(x), _keys(y)))
    return name, Shape(pairs, _keys(named["opc"]))


def _keys(text: str) -> Keys:
    keys: Keys = {}
    for key in words(text):
        time, *rest = map(number, words(key))
        if time != int(time) or len(rest) not in (1, 5):
            raise BadScript(f"no key: {key}")
        keys[int(time)] = tuple(rest)
    if list(keys) != sorted(keys):
        raise BadScript("keys are not in order")
    return keys


def number(text: str) -> float:
    """Reads a number of a Roto."""
    if re.fullmatch(r"x[0-9a-f]{8}", text):
        return float(struct.unpack(">f", bytes.fromhex(text[1:]))[0])
    return float(text)
