"""Geometry of the performer: meshes of head and bust, ears, hair and glasses from parameters.

The head is a stack of rings. A few anatomical control rings give the skull, jaw, throat and
shoulders; bumps in the neutral face add sockets, nose, cheeks and chin; expressions then move
the result (the jaw turns about its hinge) and the lips are raised along the mouth's own curves.
Units and axes as in `parameters`; eyes lie at y = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline

from core.base.compiled import compiled
from core.synthetic.parameters import INDEX, NAMES

# The kernels' record: all parameters by name, and what is derived from them once per picture.
FACE = np.dtype(
    [
        (n, np.float64)
        for n in (
            *NAMES,
            "eye_x",
            "eye_z",
            "mouth_y",
            "nose_y",
            "chin_y",
            "ear_x",
            "ear_y",
            "ear_z",
        )
    ]
)

# Per vertex: head-space position, camera-space normal, light reaching it, occlusion,
# x and y of the neutral face (texture), hair root mask, beard mask.
X, Y, Z, NX, NY, NZ, LIT, AO, U, V, SCALP, BEARD = range(12)
ATTRIBUTES = 12

# Control rings: y in front, y behind, z in front, z behind, half width, depth of the widest
# point, squareness, share of the head's rotation, share of the jaw's.
_RINGS = np.array(
    [
        (1.150, 1.150, -0.82, -0.90, 0.015, -0.86, 0.0, 1, 0),  # crown
        (1.10, 1.10, -0.50, -1.28, 0.34, -0.89, 0.0, 1, 0),
        (0.96, 0.95, -0.25, -1.58, 0.545, -0.92, 0.02, 1, 0),
        (0.75, 0.74, -0.10, -1.78, 0.668, -0.94, 0.04, 1, 0),  # hairline
        (0.50, 0.47, -0.025, -1.87, 0.735, -0.94, 0.07, 1, 0),
        (0.24, 0.19, 0.00, -1.86, 0.738, -0.92, 0.09, 1, 0),  # brows
        (0.00, -0.08, -0.045, -1.79, 0.715, -0.88, 0.06, 1, 0),  # eyes
        (-0.26, -0.32, -0.035, -1.64, 0.700, -0.86, 0.02, 1, 0),  # cheekbones
        (-0.52, -0.44, -0.03, -1.50, 0.660, -0.80, -0.02, 1, 1),  # nose base
        (-0.74, -0.50, -0.02, -1.43, 0.612, -0.74, -0.06, 1, 1),  # mouth
        (-0.95, -0.54, -0.05, -1.40, 0.555, -0.70, -0.11, 1, 1),
        (-1.08, -0.58, -0.07, -1.38, 0.490, -0.68, -0.15, 1, 1),  # chin
        (-1.16, -0.66, -0.13, -1.37, 0.430, -0.68, -0.13, 1, 0.95),
        (-1.215, -0.86, -0.30, -1.37, 0.415, -0.76, -0.05, 1, 0.7),  # under the chin
        (-1.30, -1.06, -0.47, -1.37, 0.425, -0.90, 0.0, 0.85, 0.3),
        (-1.55, -1.26, -0.50, -1.37, 0.455, -0.93, 0.0, 0.5, 0),  # throat
        (-1.80, -1.42, -0.46, -1.42, 0.54, -0.93, 0.0, 0.12, 0),
        (-1.95, -1.52, -0.36, -1.56, 0.88, -0.95, 0.0, 0, 0),  # slope to the shoulders
        (-2.10, -1.68, -0.25, -1.62, 1.45, -0.95, 0.05, 0, 0),
        (-2.30, -2.00, -0.15, -1.70, 1.85, -0.93, 0.12, 0, 0),  # shoulders
        (-3.00, -3.00, -0.05, -1.72, 1.98, -0.9, 0.12, 0, 0),
    ]
)
_YF, _YB, _ZF, _ZB, _W, _ZC, _SQUARE, _HEAD, _JAW = range(9)
_BETWEEN = (3, 4, 7, 9, 15, 20, 22, 20, 18, 16, 12, 9, 6, 6, 6, 5, 5, 5, 4, 4)
_KNOT = np.concatenate(
    [np.linspace(i, i + 1, n, endpoint=False) for i, n in enumerate(_BETWEEN)]
    + [[len(_RINGS) - 1.0]]
)
_BASIS = CubicSpline(np.arange(len(_RINGS)), np.eye(len(_RINGS)))(_KNOT)
ROWS = len(_KNOT)
COLUMNS = 144
_u = np.linspace(-1, 1, COLUMNS)
_THETA = np.pi * (0.45 * _u + 0.55 * _u**3)  # densest in front

EAR_ROWS, EAR_COLUMNS = 15, 36
HAIR_ROWS, HAIR_COLUMNS = 48, 192
_THETA_HAIR = np.linspace(-np.pi, np.pi, HAIR_COLUMNS)
_TUBE_SIDES = 6

EYEBALL = 0.125  # radius
LID = 0.138  # radius of the lids' outer skin
IRIS = 0.060
SKEW = 0.6  # smile gained on one side and lost on the other by a one-sided mouth


def _grid(rows: int, columns: int) -> np.ndarray:
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(columns - 1), indexing="ij")
    a = (i * columns + j).ravel()
    return np.concatenate(
        [np.stack([a, a + 1, a + columns + 1], 1), np.stack([a, a + columns + 1, a + columns], 1)]
    )


_HEAD_FACES = _grid(ROWS, COLUMNS).astype(np.int32)
_EAR_FACES = _grid(EAR_ROWS, EAR_COLUMNS).astype(np.int32)
HAIR_FACES = _grid(HAIR_ROWS, HAIR_COLUMNS).astype(np.int32)


# -- small functions shared by the kernels ---------------------------------------------------


@compiled(fastmath=True)
def smooth(a: float, b: float, x: float) -> float:
    """0 below a, 1 above b (or reversed), with zero slope at both."""
    t = (x - a) / (b - a)
    t = 0.0 if t < 0.0 else (1.0 if t > 1.0 else t)
    return t * t * (3.0 - 2.0 * t)


@compiled(fastmath=True)
def bump(d: float, s: float) -> float:
    """exp(-(d/s)^2), replaced by a polynomial that is 0 beyond 2 s."""
    t = 1.0 - 0.25 * (d / s) * (d / s)
    if t <= 0.0:
        return 0.0
    t *= t
    return t * t


@compiled(fastmath=True)
def clip(x: float, a: float, b: float) -> float:
    return a if x < a else (b if x > b else x)


@compiled(fastmath=True)
def mouth_curves(p: Any, x: float) -> tuple[float, float, float, float, float]:
    """Returns, at head-space x: u in [-1, 1] across the mouth, inner upper and lower edge (y), and
    the heights of the upper and the lower lip."""
    smile = p.smile + SKEW * p.mouth_skew * clip(3.0 * x, -1.0, 1.0)
    wide = max(p.smile, 0.0)
    half = 0.252 * p.mouth_w * (1.0 + 0.22 * wide - 0.36 * p.pucker - 0.07 * p.jaw)
    shift = 0.03 * p.mouth_skew
    u = (x - shift) / half
    u2 = min(u * u, 1.0)
    k = 1.0 - u2
    yc = p.mouth_y + 0.115 * smile * (u2 - 0.25) + 0.006 * u2
    rounding = 1.0 - 0.45 * p.pucker
    arch = math.sqrt(k + 1e-9) if abs(u) < 1.0 else 0.0
    dropped = p.jaw * 0.29 * arch * rounding
    bared = p.teeth * (0.034 + 0.048 * wide) * arch * (1.0 - 0.7 * p.pucker) * (1.0 - 0.4 * p.jaw)
    gap = dropped + bared
    thin = 1.0 - 0.28 * wide + 0.25 * p.pucker
    upper = (
        0.066
        * p.lip_u
        * thin
        * k**0.75
        * (1.0 - 0.24 * bump(u, 0.14) + 0.10 * bump(abs(u) - 0.26, 0.18))
    )
    lower = 0.086 * p.lip_l * thin * k**0.7
    open_up = 0.24 * dropped + 0.62 * bared
    return u, yc + open_up, yc + open_up - gap, upper, lower


@compiled(fastmath=True)
def eye_lids(p: Any, side: float, x: float) -> tuple[float, float, float, float, float]:
    """Returns, at head-space x for the eye on `side` (-1 image left): u across the fissure, upper
    and lower lid edge (y), the upper edge if the eye were open, and the blink."""
    blink = p.blink_r if side < 0.0 else p.blink_l
    u = (side * x - p.eye_x) / (0.156 * p.eye_size)
    k = max(1.0 - u * u, 0.0)
    tilt = p.eye_tilt * 0.6 * u * 0.15 + 0.012 * u
    squint = max(p.smile, 0.0) * 0.008 + 0.010 * p.puff
    up = (0.062 + 0.034 * p.gaze_y + 0.005 * max(p.brow_raise, 0.0) - 0.008 * p.frown) * p.eye_size
    down = (0.045 - squint - 0.036 * p.gaze_y) * p.eye_size
    lower = tilt - down * k**0.8
    # The upper lid peaks nearer the nose, the lower one nearer the temple.
    upper = tilt + up * k**0.65 * (1.0 - 0.16 * u * k)
    shut = clip(blink * 1.03, 0.0, 1.0)
    low = lower + 0.25 * shut * down * k
    return u, low + (upper - low) * (1.0 - shut), low, upper, shut


@compiled(fastmath=True)
def hairline(p: Any, a: float) -> float:
    """Returns the lowest y of the hair's roots at angle |theta| = a from the front."""
    front = 0.68 + p.hair_line - 0.03 * bump(a, 0.25)
    y = front + 0.05 * bump(a - 0.55, 0.22)
    y += (0.10 - y) * smooth(0.72, 1.12, a)
    y += (-0.22 - y) * smooth(1.12, 1.34, a)
    y += (0.10 - y) * smooth(1.36, 1.52, a)
    return y + (-0.66 - y) * smooth(1.62, 2.05, a)


@compiled(fastmath=True)
def _ring(p: Any, row: np.ndarray, s: float, c: float) -> tuple[float, float, float]:
    """Returns the point of one ring at the angle with sine s and cosine c."""
    q = row[_SQUARE]
    x = row[_W] * s * (1.0 + q * (1.0 - s * s))
    zc = row[_ZC]
    depth = row[_ZF] - zc if c > 0.0 else zc - row[_ZB]
    z = zc + depth * c * (1.0 + q * (1.0 - c * c))
    y = row[_YF] + (row[_YB] - row[_YF]) * (row[_ZF] - z) / (row[_ZF] - row[_ZB] + 1e-9)
    return x, y, z


@compiled(fastmath=True)
def _relief(p: Any, x: float, y: float, z: float) -> float:
    """Returns the depth that is added to the neutral face at (x, y)."""
    ax = abs(x)
    ex = p.eye_x
    ny = p.nose_y
    my = p.mouth_y
    d = 0.0
    # brow ridge, glabella, sockets
    d += (0.015 + 0.03 * p.brow_ridge) * bump(y - 0.20, 0.13) * bump(ax - 0.25, 0.28)
    d -= 0.025 * bump(x, 0.13) * bump(y - 0.08, 0.14)
    d -= 0.085 * bump(ax - ex + 0.02, 0.18) * bump(y - 0.01, 0.13)
    d -= 0.045 * bump(ax - 0.13, 0.08) * bump(y - 0.04, 0.13)
    # cheekbones, and the hollow below them
    d += (0.03 + 0.05 * p.cheek) * bump(ax - 0.46, 0.17) * bump(y + 0.26, 0.16)
    d -= 0.045 * (1.0 - p.fat) * bump(ax - 0.42, 0.17) * bump(y + 0.62, 0.22)
    d += 0.04 * p.fat * bump(ax - 0.36, 0.2) * bump(y + 0.72, 0.26)
    d -= 0.02 * (0.3 + p.age) * bump(ax - 0.25, 0.10) * bump(y + 0.19, 0.07)
    # nose: bridge, body, tip, wings
    if ax < 0.34 and y < 0.30 and y > ny - 0.2:
        t = clip((0.10 - y) / (0.10 - ny), 0.0, 1.0)
        ridge = (0.035 + 0.195 * t**1.25 + 0.03 * p.nose_bridge * bump(t - 0.45, 0.3)) * p.nose_p
        ridge *= smooth(0.28, 0.02, y)
        under = ny - y
        if under > 0.0:
            ridge *= bump(under, 0.085)
        w = (0.058 + 0.034 * t) * (0.75 + 0.25 * p.nose_w)
        d += ridge * (0.50 * bump(x, w) + 0.50 * bump(x, 2.0 * w))
        tip = math.hypot(x / (0.088 * (0.6 + 0.4 * p.nose_w)), (y - ny + 0.012) / 0.076)
        d += 0.085 * p.nose_p * bump(tip, 1.0)
        wing = math.hypot((ax - 0.120 * p.nose_w) / 0.062, (y - ny + 0.030) / 0.066)
        d += 0.135 * bump(wing, 1.0)
        # nostrils and the crease behind the wings
        hole = math.hypot((ax - 0.062 * p.nose_w) / 0.034, (y - ny + 0.088) / 0.024)
        d -= 0.035 * bump(hole, 1.0)
        d -= 0.018 * bump(ax - 0.20 * p.nose_w, 0.03) * bump(y - ny + 0.02, 0.06)
    # muzzle, philtrum, fold under the lower lip, chin
    d += 0.085 * bump(x, 0.27) * bump(y - my - 0.02, 0.19)
    d -= 0.012 * bump(x, 0.026) * bump(y - 0.5 * (ny + my) + 0.01, 0.05)
    d -= 0.035 * bump(x, 0.17) * bump(y - my + 0.185, 0.05)
    d += (0.075 + 0.03 * p.chin) * bump(x, 0.16 * p.chin_w) * bump(y - p.chin_y - 0.12, 0.13)
    # nasolabial fold
    fold = ax - (0.185 + 0.30 * (ny - y))
    d -= (
        (0.010 + 0.018 * p.age + 0.02 * max(p.smile, 0.0))
        * bump(fold, 0.05)
        * smooth(ny + 0.05, ny - 0.06, y)
        * smooth(my - 0.1, my + 0.06, y)
    )
    return d


@compiled(fastmath=True)
def _build_head(
    P: np.ndarray, rows: np.ndarray, theta: np.ndarray, pos: np.ndarray, attr: np.ndarray
) -> None:
    """Places the vertices of head and bust in head space, with texture coordinates and masks."""
    p = P[0]
    n = theta.shape[0]
    my = p.mouth_y
    angle = 0.25 * p.jaw
    ca = math.cos(angle) - 1.0
    sa = math.sin(angle)
    wide = max(p.smile, 0.0)
    for i in range(rows.shape[0]):
        row = rows[i]
        for j in range(n):
            s = math.sin(theta[j])
            c = math.cos(theta[j])
            x, y, z = _ring(p, row, s, c)
            q = i * n + j
            u = 0.72 * theta[j]
            v = y
            scalp = 0.0
            beard = 0.0
            if row[_HEAD] > 0.9:
                a = abs(theta[j])
                line = hairline(p, a)
                scalp = smooth(-0.06, 0.07, y - line)
            face = smooth(0.02, 0.5, c) * row[_HEAD]
            ax = abs(x)
            if row[_HEAD] > 0.3 and c > -0.2 and y < 0.1:
                a = abs(theta[j])
                edge = (
                    -0.60
                    - 0.23 * bump(a, 0.16)
                    + 0.32 * smooth(0.7, 1.15, a)
                    + 0.25 * smooth(1.12, 1.36, a)
                )
                beard = smooth(edge + 0.07, edge - 0.09, y)
                beard *= smooth(1.60, 1.38, a) * smooth(-1.50, -1.28, y)
            if face > 0.0:
                z += _relief(p, x, y, z) * face
                # lids over the eyeball: smooth maximum with a sphere
                dx = ax - p.eye_x
                r2 = LID * LID - dx * dx - 0.95 * y * y
                if r2 > -0.01:
                    lid = p.eye_z + math.sqrt(max(r2, 0.0))
                    h = clip(0.5 + 0.5 * (lid - z) / 0.035, 0.0, 1.0)
                    z += (lid - z) * h * smooth(-0.01, 0.004, r2) + 0.035 * h * (1.0 - h) * 0.5
            if v < -1.2 and c > 0.0:
                # cords of the neck, larynx, collarbones
                cord = ax - 0.13 - 0.32 * (v + 1.80)
                z += c * (
                    0.030 * bump(cord, 0.07) * smooth(-1.86, -1.72, v) * smooth(-1.2, -1.4, v)
                    + 0.030 * bump(x, 0.08) * bump(v + 1.42, 0.10)
                    + 0.035 * bump(v + 1.86 - 0.10 * ax, 0.05) * bump(ax - 0.45, 0.33)
                )
            # expressions
            if face > 0.0:
                pull = bump(ax - 0.27, 0.16) * bump(y - my, 0.17) * face
                skew = clip(3.0 * x, -1.0, 1.0) * p.mouth_skew
                smile = p.smile + SKEW * skew
                y += 0.075 * smile * pull
                x += math.copysign(0.045 * wide, x) * pull
                apple = bump(ax - 0.40, 0.17) * bump(y + 0.40, 0.16) * face
                y += 0.03 * smile * apple
                z += 0.06 * max(smile, 0.0) * apple
                swell = bump(ax - 0.38, 0.22) * bump(y - my - 0.02, 0.24)
                z += 0.15 * p.puff * swell * face
                x += math.copysign(0.085 * p.puff, x) * swell * smooth(0.05, 0.3, ax)
                z += 0.02 * p.puff * bump(x, 0.2) * bump(y - my, 0.14) * face
                kiss = bump(x, 0.22) * bump(y - my, 0.15) * face
                z += 0.09 * p.pucker * kiss
                x *= 1.0 - 0.22 * p.pucker * kiss
                brow = p.brow_raise + 0.5 * p.brow_skew * clip(4.0 * x, -1.0, 1.0)
                y += 0.05 * brow * bump(y - 0.28, 0.14) * bump(ax - 0.28, 0.3) * face
                z += 0.02 * p.frown * bump(ax - 0.07, 0.05) * bump(y - 0.2, 0.08)
            if row[_JAW] > 0.0 and angle > 0.0:
                line = my - 0.03 + (z + 0.05) * (my + 0.28) / 0.9
                w = row[_JAW] * smooth(-0.02, 0.16 + 0.10 * smooth(0.1, 0.4, ax), line - y)
                hy = y + 0.25
                hz = z + 0.93
                y += w * (ca * hy - sa * hz)
                z += w * (sa * hy + ca * hz)
            # lips, raised along their own curves
            if face > 0.2 and ax < 0.42 and y < my + 0.2 and y > my - 0.55:
                m, top, low, upper, lower = mouth_curves(p, x)
                if abs(m) < 1.0:
                    k = 1.0 - m * m
                    if y > top:
                        z += (
                            (0.042 + 0.012 * p.lip_u)
                            * k
                            * bump(y - top - 0.38 * upper, 0.62 * upper + 0.012)
                        )
                    elif y < low:
                        z += (
                            (0.048 + 0.012 * p.lip_l)
                            * k
                            * bump(y - low + 0.48 * lower, 0.60 * lower + 0.012)
                        )
                    z -= 0.022 * k * (bump(y - top, 0.014) + bump(y - low, 0.014))
            # a full beard has thickness
            thick = 0.045 * smooth(0.55, 1.0, p.beard) * beard
            z += thick * c
            x += thick * s
            y -= 0.5 * thick * smooth(-0.95, -1.15, v)
            pos[q, 0] = x
            pos[q, 1] = y
            pos[q, 2] = z
            attr[q, U] = u
            attr[q, V] = v
            attr[q, SCALP] = scalp
            attr[q, BEARD] = beard


@compiled(fastmath=True)
def _build_ears(P: np.ndarray, base: int, pos: np.ndarray, attr: np.ndarray) -> None:
    p = P[0]
    tilt = 0.24 + 0.36 * p.ear_out
    ct = math.cos(tilt)
    st = math.sin(tilt)
    q = base
    for side in (-1.0, 1.0):
        for i in range(EAR_ROWS):
            r = i / (EAR_ROWS - 1.0)
            for j in range(EAR_COLUMNS):
                # Both ears wind the same way round when seen from outside.
                ang = side * 2.0 * math.pi * j / (EAR_COLUMNS - 1.0)
                ca = math.cos(ang)
                sa = math.sin(ang)
                # outline: wide above, a lobe below; a runs backward, b up
                b = 0.30 * sa
                a = 0.17 * ca * (1.0 + 0.10 * sa - 0.30 * smooth(0.0, -1.0, sa)) + 0.03 * sa
                a *= p.ear_size
                b *= p.ear_size
                behind = smooth(-0.9, 0.3, ca + 0.6 * sa)
                h = 0.070 * smooth(0.28, 0.56, r) * (0.35 + 0.65 * smooth(-0.95, -0.3, sa))
                h -= 0.040 * bump(r - 0.77, 0.10) * behind * smooth(-0.7, 0.0, sa)
                h += 0.034 * bump(r - 0.93, 0.08) * behind
                h -= 0.06 * smooth(0.93, 1.0, r)
                h += 0.07 * bump(r - 0.45, 0.16) * bump(ca + 1.0, 0.40)  # tragus
                a *= r
                b *= r
                out = h + 0.035
                pos[q, 0] = side * (p.ear_x + a * st + out * ct)
                pos[q, 1] = p.ear_y + b
                pos[q, 2] = p.ear_z - a * ct + out * st + 0.10 * b
                attr[q, U] = side * (0.8 + 0.2 * r)
                attr[q, V] = -0.2 + b
                attr[q, AO] = (
                    1.0
                    - 0.55 * smooth(0.50, 0.25, r)
                    - 0.30 * bump(r - 0.77, 0.09) * behind * smooth(-0.7, 0.0, sa)
                )
                attr[q, SCALP] = 0.0
                attr[q, BEARD] = 0.0
                q += 1


@compiled(fastmath=True)
def _build_hair(
    P: np.ndarray,
    rows: np.ndarray,
    theta: np.ndarray,
    noise: np.ndarray,
    pos: np.ndarray,
    attr: np.ndarray,
) -> None:
    """Places the hair's vertices: strands run along the rows, from the crown to their ends.

    attr columns used: U strand coordinate, V share of the way to the end, SCALP softness of the
    end, AO occlusion, BEARD distance hung below the skull.
    """
    p = P[0]
    n = theta.shape[0]
    long = p.hair_long * smooth(0.2, 1.0, p.hair_amount)  # thin hair is worn short
    hang = smooth(0.05, 0.45, long)
    length = np.empty(rows.shape[0])
    widest = 4
    for i in range(rows.shape[0]):
        if rows[i, _W] > rows[widest, _W] and rows[i, _YF] > 0.0:
            widest = i
    for j in range(n):
        th = theta[j]
        a = abs(th)
        m = min(j, n - 1 - j)
        s = math.sin(th)
        c = math.cos(th)
        end = hairline(p, a)
        fringe = p.hair_fringe * smooth(0.95, 0.55, a)
        # a fringe sweeps from the parting
        sweep = 0.10 * p.hair_part * clip(th, -0.8, 0.8)
        end += (0.30 + sweep - end) * fringe * 0.9
        side = smooth(1.02, 1.3, a)
        end += (-0.25 - 1.75 * long + 0.25 * smooth(1.6, 1.1, a) - end) * side * hang
        short_ear = bump(a - 1.62, 0.22) * (1.0 - hang)
        end += 0.04 * short_ear
        end += 0.02 * noise[0, 17, (m * 7) % 256] * (0.4 + hang)
        # length along the skull down to where the hair ends, so that rows lie evenly
        count = 0
        part = 1.0
        px = 0.0
        py = 0.0
        pz = 0.0
        for i in range(rows.shape[0]):
            x, y, z = _ring(p, rows[i], s, c)
            if i == 0:
                length[0] = 0.0
            else:
                step = math.sqrt((x - px) ** 2 + (y - py) ** 2 + (z - pz) ** 2)
                count = i
                if y < end and i > 4:
                    part = clip((py - end) / (py - y + 1e-9), 0.02, 1.0)
                    length[i] = length[i - 1] + step * part
                    break
                length[i] = length[i - 1] + step
            px = x
            py = y
            pz = z
        k = 0
        for i in range(HAIR_ROWS):
            t = i / (HAIR_ROWS - 1.0)
            along = t * length[count]
            while k < count - 1 and length[k + 1] < along:
                k += 1
            w = clip((along - length[k]) / (length[k + 1] - length[k] + 1e-9), 0.0, 1.0)
            if k == count - 1:
                w *= part
            x0, y0, z0 = _ring(p, rows[k], s, c)
            x1, y1, z1 = _ring(p, rows[k + 1], s, c)
            x = x0 + (x1 - x0) * w
            y = y0 + (y1 - y0) * w
            z = z0 + (z1 - z0) * w
            below = 0.0
            if k >= widest:
                xw, yw, zw = _ring(p, rows[widest], s, c)
                below = smooth(0.0, 0.5, yw - y)
                # loose hair falls straight from the widest ring, drawn in a little by its weight
                fall = hang * side * below
                drop = max(yw - y, 0.0)
                pull = 1.0 + 0.03 * drop
                x += (xw * pull - x) * fall
                z += (zw - z) * fall * (1.0 if c < 0.0 else 0.8)
            up = smooth(0.15, 0.95, y)
            root = smooth(0.88, 0.4, t)
            loose = max(fringe, side * hang)
            temple = bump(a - 0.95, 0.4) * smooth(0.3, 0.9, t) * (1.0 - side * hang)
            taper = (root + (1.0 - root) * (0.12 + 0.60 * loose)) * (1.0 - 0.75 * temple)
            taper *= 0.75 + 0.25 * smooth(0.0, 0.2, t)
            crest = 1.0 - 0.30 * bump(th - 0.6 * p.hair_part, 0.16) * smooth(0.15, 0.4, t) * (
                smooth(0.2, 0.7, abs(p.hair_part)) * c if c > 0.0 else 0.0
            )
            vol = (
                0.008
                + 0.012 * loose
                + p.hair_vol
                * p.hair_amount
                * taper
                * (0.10 + 1.0 * up + 0.45 * below * hang * side)
                * crest
            )
            vol += 0.13 * hang * side * smooth(0.35, -0.1, y)
            lump = noise[0, (m * 5) % 256, int(t * 60.0 + 40.0 * a) % 256]
            vol += (
                p.hair_curl
                * (0.035 + 0.25 * p.hair_vol)
                * (0.6 * lump + 0.5)
                * (0.25 + 0.75 * taper)
                * p.hair_amount
            )
            nx = x / 0.75
            ny = (y - 0.25) / 0.95
            nz = (z + 0.92) / 0.95
            if y < 0.25:
                ny *= 0.15
            vol /= math.sqrt(nx * nx + ny * ny + nz * nz + 1e-9)
            q = i * n + j
            pos[q, 0] = x + vol * nx
            pos[q, 1] = y + vol * ny
            pos[q, 2] = z + vol * nz
            attr[q, U] = th - 0.25 * p.hair_part * smooth(1.2, 0.4, a)
            attr[q, V] = t
            attr[q, SCALP] = 0.08 + 0.06 * p.hair_curl + 0.08 * (1.0 - loose) * smooth(1.5, 0.7, a)
            attr[q, BEARD] = below
            attr[q, AO] = 1.0 - 0.25 * smooth(0.2, -0.9, y) * hang


@compiled(fastmath=True)
def _normals(
    pos: np.ndarray, start: int, rows: int, columns: int, closed: bool, normal: np.ndarray
) -> None:
    for i in range(rows):
        i0 = max(i - 1, 0)
        i1 = min(i + 1, rows - 1)
        for j in range(columns):
            j0 = j - 1 if j > 0 else (columns - 2 if closed else 0)
            j1 = j + 1 if j < columns - 1 else (1 if closed else j)
            a = start + i * columns + j0
            b = start + i * columns + j1
            c = start + i0 * columns + j
            d = start + i1 * columns + j
            ax = pos[b, 0] - pos[a, 0]
            ay = pos[b, 1] - pos[a, 1]
            az = pos[b, 2] - pos[a, 2]
            bx = pos[d, 0] - pos[c, 0]
            by = pos[d, 1] - pos[c, 1]
            bz = pos[d, 2] - pos[c, 2]
            nx = by * az - bz * ay
            ny = bz * ax - bx * az
            nz = bx * ay - by * ax
            s = 1.0 / math.sqrt(nx * nx + ny * ny + nz * nz + 1e-20)
            q = start + i * columns + j
            normal[q, 0] = nx * s
            normal[q, 1] = ny * s
            normal[q, 2] = nz * s


@compiled(fastmath=True)
def _hollows(
    pos: np.ndarray, normal: np.ndarray, rows: int, columns: int, attr: np.ndarray
) -> None:
    """Estimates the head's occlusion from how far neighbours rise above the tangent plane."""
    for i in range(rows):
        for j in range(columns):
            q = i * columns + j
            dark = 0.0
            for step, gain in ((2, 0.7), (6, 1.1), (12, 0.9)):
                i0 = max(i - step, 0)
                i1 = min(i + step, rows - 1)
                j0 = (j - step) % (columns - 1)
                j1 = (j + step) % (columns - 1)
                rise = 0.0
                for k in range(4):
                    if k == 0:
                        o = i * columns + j0
                    elif k == 1:
                        o = i * columns + j1
                    elif k == 2:
                        o = i0 * columns + j
                    else:
                        o = i1 * columns + j
                    dx = pos[o, 0] - pos[q, 0]
                    dy = pos[o, 1] - pos[q, 1]
                    dz = pos[o, 2] - pos[q, 2]
                    h = dx * normal[q, 0] + dy * normal[q, 1] + dz * normal[q, 2]
                    rise += h / math.sqrt(dx * dx + dy * dy + dz * dz + 1e-6)
                dark += gain * max(rise * 0.25 + 0.01, 0.0)
            attr[q, AO] = 1.0 / (1.0 + 1.6 * dark)


def _tube(points: np.ndarray, radius: float, closed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns vertices and outward normals [m * sides, 3] of a round wire [m, 3]."""
    if closed:
        tangent = np.roll(points, -1, 0) - np.roll(points, 1, 0)
    else:
        tangent = np.gradient(points, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-9
    side = np.cross(tangent, np.array([0.2, 0.3, 1.0]))
    side /= np.linalg.norm(side, axis=1, keepdims=True) + 1e-9
    other = np.cross(tangent, side)
    angle = np.linspace(0, 2 * np.pi, _TUBE_SIDES + 1)[:, None]
    normal = side[:, None] * np.cos(angle) + other[:, None] * np.sin(angle)
    return (points[:, None] + radius * normal).reshape(-1, 3), normal.reshape(-1, 3)


_LENS_POINTS, _BAR_POINTS = 57, 12
_WIRES = ((_LENS_POINTS, 2), (_BAR_POINTS, 3))  # points per wire, how many of them
_wires = []
_start = 0
for _points, _count in _WIRES:
    for _ in range(_count):
        _wires.append(_grid(_points, _TUBE_SIDES + 1) + _start)
        _start += _points * (_TUBE_SIDES + 1)
GLASS_FACES = np.concatenate(_wires).astype(np.int32)


def glasses(f: np.void) -> tuple[np.ndarray, np.ndarray]:
    """Builds rims, bridge and temples of a FACE record: vertices and normals [n, 3]."""
    radius = 0.009 + 0.005 * f["glasses_dark"]
    angle = np.linspace(0, 2 * np.pi, _LENS_POINTS)
    c, s = np.cos(angle), np.sin(angle)
    power = 1.0 - 0.55 * f["glasses_shape"]
    shape_x = np.sign(c) * np.abs(c) ** power
    shape_y = np.sign(s) * np.abs(s) ** power
    wide, high = 0.26, 0.26 - 0.04 * f["glasses_shape"]
    front = 0.10 + 0.04 * f["nose_p"]
    wires = []
    for side in (-1.0, 1.0):
        x = side * (f["eye_x"] + 0.015 + wide * shape_x)
        y = -0.05 + high * shape_y + 0.02 * shape_x
        z = front - 0.35 * np.abs(x) ** 2
        wires.append(_tube(np.stack([x, y, z], 1), radius, True))
    t = np.linspace(-1, 1, _BAR_POINTS)
    inner = f["eye_x"] + 0.015 - wide
    bridge = np.stack([t * inner, 0.035 + 0.03 * (1 - t * t), front + 0.02 * (1 - t * t)], 1)
    wires.append(_tube(bridge, radius, False))
    outer = f["eye_x"] + 0.015 + wide
    for side in (-1.0, 1.0):
        u = 0.5 * (t + 1)
        bar = np.stack(
            [
                side * (outer + (f["ear_x"] + 0.03 - outer) * u**0.6),
                0.05 + 0 * u,
                (front - 0.35 * outer**2) * (1 - u) + (f["ear_z"] - 0.02) * u,
            ],
            1,
        )
        wires.append(_tube(bar, radius, False))
    points, normals = zip(*wires, strict=True)
    return np.concatenate(points), np.concatenate(normals)


EAR_START = ROWS * COLUMNS
VERTICES = EAR_START + 2 * EAR_ROWS * EAR_COLUMNS
FACES = np.concatenate(
    [_HEAD_FACES, _EAR_FACES + EAR_START, _EAR_FACES + EAR_START + EAR_ROWS * EAR_COLUMNS]
).astype(np.int32)
EAR_FACE = len(_HEAD_FACES)
# Every second vertex of the head is enough to cast soft shadows.
_coarse = (
    np.arange(0, ROWS, 2)[:, None] * COLUMNS
    + np.append(np.arange(0, COLUMNS - 1, 2), COLUMNS - 1)[None]
)
_cg = _grid(*_coarse.shape)
CASTER_FACES = np.concatenate([_coarse.ravel()[_cg], FACES[EAR_FACE:]]).astype(np.int32)


@dataclass
class Head:
    """Meshes of one picture in head space, before the pose is applied."""

    face: np.ndarray  # FACE record, shape [1]
    position: np.ndarray  # [VERTICES, 3] float32
    normal: np.ndarray  # [VERTICES, 3] float32
    attribute: np.ndarray  # [VERTICES, ATTRIBUTES] float32: U, V, AO, SCALP, BEARD filled
    head_share: np.ndarray  # [VERTICES] float32: 1 turns with the head, 0 stays with the body
    hair_position: np.ndarray
    hair_normal: np.ndarray
    hair_attribute: np.ndarray
    hair_share: np.ndarray


def _control_rings(f: np.void) -> np.ndarray:
    """Returns the control rings of one identity [K, 9]."""
    r = _RINGS.copy()
    w, yf, yb = r[:, _W], r[:, _YF], r[:, _YB]
    w[1:6] *= f["head_w"]
    w[6:9] *= f["face_w"]
    w[9:12] *= 0.5 * f["face_w"] + 0.5 * f["jaw_w"] + 0.5 * (f["jaw_w"] - 1) + 0.05 * f["fat"]
    w[12:14] *= f["jaw_w"] + 0.08 * f["fat"]
    w[14:17] *= f["neck_w"]
    r[14:16, _ZF] += 0.08 * (f["neck_w"] - 1) / 0.14
    yf[:5] += np.array([1, 1, 0.85, 0.6, 0.3]) * 1.15 * (f["head_h"] - 1)
    yb[:5] += np.array([1, 1, 0.85, 0.6, 0.3]) * 1.16 * (f["head_h"] - 1)
    drop = 1.2 * (f["face_len"] - 1)
    yf[7:14] *= f["face_len"]
    yf[14:] -= drop * np.array([1, 0.6, 0.3, 0, 0, 0, 0])
    yb[7:15] -= 0.5 * drop
    r[10:13, _ZF] += 0.03 * f["chin"]
    yf[13:15] -= 0.05 * f["fat"]
    return r


def face_record(params: np.ndarray) -> np.ndarray:
    """Converts parameters [P] to a FACE record of shape [1], with the derived fields."""
    face = np.zeros(1, FACE)
    f = face[0]
    for name, i in INDEX.items():
        f[name] = params[i]
    f["eye_x"] = 0.318 * f["eye_dist"]
    w, zf, zc = 0.715 * f["face_w"], _RINGS[6, _ZF], _RINGS[6, _ZC]
    f["eye_z"] = zc + (zf - zc) * math.sqrt(1 - (f["eye_x"] / w) ** 2) - 0.128
    f["mouth_y"] = -0.715 * f["face_len"]
    f["nose_y"] = -0.415 * f["nose_l"] * (0.5 + 0.5 * f["face_len"])
    f["chin_y"] = -1.17 * f["face_len"]
    f["ear_x"] = 0.675 * f["face_w"] + 0.03 * (f["head_w"] - 1)
    f["ear_y"] = -0.20
    f["ear_z"] = -0.90
    return face


def build(params: np.ndarray, noise: np.ndarray) -> Head:
    """Builds the meshes of one parameter vector [P]; `noise` are the shading module's tiles."""
    face = face_record(params)
    rows = _BASIS @ _control_rings(face[0])
    position = np.empty((VERTICES, 3), np.float32)
    normal = np.empty((VERTICES, 3), np.float32)
    attribute = np.zeros((VERTICES, ATTRIBUTES), np.float32)
    _build_head(face, rows, _THETA, position, attribute)
    _build_ears(face, EAR_START, position, attribute)
    _normals(position, 0, ROWS, COLUMNS, True, normal)
    for k in range(2):
        _normals(
            position, EAR_START + k * EAR_ROWS * EAR_COLUMNS, EAR_ROWS, EAR_COLUMNS, True, normal
        )
    _hollows(position, normal, ROWS, COLUMNS, attribute)
    share = np.ones(VERTICES, np.float32)
    share[:EAR_START] = np.repeat(np.clip(rows[:, _HEAD], 0, 1), COLUMNS)

    count = HAIR_ROWS * HAIR_COLUMNS
    hair_position = np.empty((count, 3), np.float32)
    hair_normal = np.empty((count, 3), np.float32)
    hair_attribute = np.zeros((count, ATTRIBUTES), np.float32)
    _build_hair(face, rows, _THETA_HAIR, noise, hair_position, hair_attribute)
    _normals(hair_position, 0, HAIR_ROWS, HAIR_COLUMNS, True, hair_normal)
    t = np.clip((hair_position[:, 1] + 2.1) / 1.4, 0, 1)
    return Head(
        face,
        position,
        normal,
        attribute,
        share,
        hair_position,
        hair_normal,
        hair_attribute,
        (0.35 + 0.65 * t * t * (3 - 2 * t)).astype(np.float32),
    )
