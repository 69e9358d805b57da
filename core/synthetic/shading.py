"""Rasteriser and shading of the performer: deferred, in linear light, on one thread.

Head and bust fill one buffer; hair fills a second one that is composited over it with soft ends.
What is smaller than the mesh is drawn per sample on top of it: eyes (rays meet the eyeball behind
the lids), teeth (rays meet the dental arch behind the lips), brows, lashes, pores, beard and
strands. `shade_skin` stays one function: divided, its arithmetic would be reordered (fastmath), and
the performer's pictures are the same to the byte everywhere.

numba's cache watches this file alone: touch it after changing a function of head.py used here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from core.base.compiled import compiled
from core.synthetic.head import (
    AO,
    BEARD,
    EYEBALL,
    IRIS,
    LIT,
    NX,
    NY,
    NZ,
    SCALP,
    U,
    V,
    X,
    Y,
    Z,
    bump,
    clip,
    eye_lids,
    mouth_curves,
    smooth,
)

_TILE = 256


def _tile(seed: int, octaves: tuple[tuple[int, float], ...]) -> np.ndarray:
    """Draws periodic band-limited noise [256, 256] of unit variance."""
    rng = np.random.default_rng(seed)
    total = np.zeros((_TILE, _TILE))
    for cells, amplitude in octaves:
        spectrum = np.zeros((_TILE, _TILE), complex)
        h, m = cells // 2, _TILE // 2
        spectrum[m - h : m + h, m - h : m + h] = np.fft.fftshift(
            np.fft.fft2(rng.standard_normal((cells, cells)))
        )
        layer = np.real(np.fft.ifft2(np.fft.ifftshift(spectrum)))
        total += amplitude * layer / layer.std()
    return total / total.std()


NOISE = np.stack(
    [
        _tile(1, ((8, 1), (16, 0.8), (32, 0.6), (64, 0.5), (128, 0.4))),
        _tile(2, ((64, 1), (128, 1), (32, 0.5))),
    ]
).astype(np.float32)


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """Converts sRGB in [0, 1] to linear light (IEC 61966-2-1)."""
    c = np.asarray(srgb, np.float64)
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


TONE_MAX, TONE_STEPS = 4.0, 16384  # brightest value, and entries, of the tone table


def _tone() -> np.ndarray:
    """Tabulates linear light to 8-bit sRGB, with a shoulder that protects highlights."""
    x = np.linspace(0, TONE_MAX, TONE_STEPS)
    y = np.where(x < 0.6, x, 0.6 + 0.4 * (1 - np.exp(-(x - 0.6) / 0.4)))
    s = np.where(y <= 0.0031308, 12.92 * y, 1.055 * np.maximum(y, 1e-9) ** (1 / 2.4) - 0.055)
    return np.clip(np.rint(255 * s), 0, 255).astype(np.uint8)


TONE = _tone()


@compiled(fastmath=True)
def _noise(tiles: np.ndarray, k: int, x: float, y: float) -> float:
    """Looks up periodic noise bilinearly; coordinates in tile pixels."""
    xf = math.floor(x)
    yf = math.floor(y)
    fx = x - xf
    fy = y - yf
    i = int(xf) & 255
    j = int(yf) & 255
    i1 = (i + 1) & 255
    j1 = (j + 1) & 255
    top = tiles[k, j, i] * (1.0 - fx) + tiles[k, j, i1] * fx
    return top + fy * (tiles[k, j1, i] * (1.0 - fx) + tiles[k, j1, i1] * fx - top)


@compiled(fastmath=True)
def rasterize(
    screen: np.ndarray,
    faces: np.ndarray,
    facing: int,
    depth: np.ndarray,
    face: np.ndarray,
    wa: np.ndarray,
    wb: np.ndarray,
) -> None:
    """Draws triangles seen from their outer side (facing 1), inner side (-1) or either (0).

    screen [N, 3] holds pixel x, pixel y (down), distance. Fills depth, the face's number and the
    barycentric weights of its first two corners."""
    height, width = depth.shape
    for t in range(faces.shape[0]):
        a = faces[t, 0]
        b = faces[t, 1]
        c = faces[t, 2]
        x0 = screen[a, 0]
        y0 = screen[a, 1]
        x1 = screen[b, 0]
        y1 = screen[b, 1]
        x2 = screen[c, 0]
        y2 = screen[c, 1]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if abs(area) <= 1e-9 or area * facing < 0.0:
            continue
        left = max(math.ceil(min(x0, x1, x2)), 0)
        right = min(math.floor(max(x0, x1, x2)), width - 1)
        top = max(math.ceil(min(y0, y1, y2)), 0)
        bottom = min(math.floor(max(y0, y1, y2)), height - 1)
        if left > right or top > bottom:
            continue
        inverse = 1.0 / area
        z0 = screen[a, 2]
        z1 = screen[b, 2]
        z2 = screen[c, 2]
        for yy in range(top, bottom + 1):
            for xx in range(left, right + 1):
                w1 = ((xx - x0) * (y2 - y0) - (x2 - x0) * (yy - y0)) * inverse
                w2 = ((x1 - x0) * (yy - y0) - (xx - x0) * (y1 - y0)) * inverse
                w0 = 1.0 - w1 - w2
                if w0 >= -1e-6 and w1 >= -1e-6 and w2 >= -1e-6:
                    d = w0 * z0 + w1 * z1 + w2 * z2
                    if d < depth[yy, xx]:
                        depth[yy, xx] = d
                        face[yy, xx] = t
                        wa[yy, xx] = w0
                        wb[yy, xx] = w1


@compiled(fastmath=True)
def depth_map(screen: np.ndarray, faces: np.ndarray, depth: np.ndarray) -> None:
    """Draws the nearest distance only, for shadows; both sides of a triangle cast them."""
    height, width = depth.shape
    for t in range(faces.shape[0]):
        a = faces[t, 0]
        b = faces[t, 1]
        c = faces[t, 2]
        x0 = screen[a, 0]
        y0 = screen[a, 1]
        x1 = screen[b, 0]
        y1 = screen[b, 1]
        x2 = screen[c, 0]
        y2 = screen[c, 1]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if abs(area) < 1e-6:
            continue
        left = max(math.ceil(min(x0, x1, x2)), 0)
        right = min(math.floor(max(x0, x1, x2)), width - 1)
        top = max(math.ceil(min(y0, y1, y2)), 0)
        bottom = min(math.floor(max(y0, y1, y2)), height - 1)
        inverse = 1.0 / area
        for yy in range(top, bottom + 1):
            for xx in range(left, right + 1):
                w1 = ((xx - x0) * (y2 - y0) - (x2 - x0) * (yy - y0)) * inverse
                w2 = ((x1 - x0) * (yy - y0) - (xx - x0) * (y1 - y0)) * inverse
                w0 = 1.0 - w1 - w2
                if w0 >= 0.0 and w1 >= 0.0 and w2 >= 0.0:
                    d = w0 * screen[a, 2] + w1 * screen[b, 2] + w2 * screen[c, 2]
                    if d < depth[yy, xx]:
                        depth[yy, xx] = d


@compiled(fastmath=True)
def light_received(screen: np.ndarray, depth: np.ndarray, radius: float, attr: np.ndarray) -> None:
    """Computes the share of the key light at each vertex, softened over `radius` map pixels."""
    height, width = depth.shape
    for q in range(screen.shape[0]):
        total = 0.0
        for j in range(-1, 2):
            for i in range(-1, 2):
                x = clip(screen[q, 0] + i * radius, 0.0, width - 1.001)
                y = clip(screen[q, 1] + j * radius, 0.0, height - 1.001)
                xi = int(x)
                yi = int(y)
                fx = x - xi
                fy = y - yi
                z = screen[q, 2] - 0.045
                # a wide ramp in depth, and bilinear weights, keep the edge smooth
                s00 = clip(1.0 - (z - depth[yi, xi]) / 0.06, 0.0, 1.0)
                s01 = clip(1.0 - (z - depth[yi, xi + 1]) / 0.06, 0.0, 1.0)
                s10 = clip(1.0 - (z - depth[yi + 1, xi]) / 0.06, 0.0, 1.0)
                s11 = clip(1.0 - (z - depth[yi + 1, xi + 1]) / 0.06, 0.0, 1.0)
                w = (2.0 if i == 0 else 1.0) * (2.0 if j == 0 else 1.0)
                total += w * (
                    (s00 * (1 - fx) + s01 * fx) * (1 - fy) + (s10 * (1 - fx) + s11 * fx) * fy
                )
        attr[q, LIT] = total / 16.0


@compiled(fastmath=True)
def paint_background(P: np.ndarray, tiles: np.ndarray, base: np.ndarray, out: np.ndarray) -> None:
    """Paints the backdrop on a coarse square grid [n, n, 3], linear light.

    Things come in mirrored pairs of opposite layout, so that negating the layout mirrors the
    picture."""
    p = P[0]
    n = out.shape[0]
    for j in range(n):
        fy = j / (n - 1.0)
        for i in range(n):
            fx = 2.0 * i / (n - 1.0) - 1.0
            g = p.bg_gradient
            v = 1.0 + g * (
                0.22
                - 0.5 * fy
                - 0.30 * fx * fx
                + 0.20 * fx * p.bg_layout
                + 0.05 * (_noise(tiles, 0, abs(fx) * 9.0 + 30.0, fy * 9.0))
            )
            for k in range(3):
                out[j, i, k] = base[k] * max(v, 0.05)
    if p.bg_clutter <= 0.0:
        return
    for shape in range(11):
        a = tiles[0, shape * 11 + 3, 5]
        b = tiles[0, shape * 11 + 3, 60]
        c = tiles[0, shape * 11 + 3, 120]
        for side in (-1.0, 1.0):
            layout = p.bg_layout * side
            cx = side * (0.62 + 0.28 * math.sin(2.1 * a + (1.2 + 0.5 * b) * layout))
            cy = 0.42 + 0.40 * math.sin(3.0 * b + 0.9 * layout)
            half_w = 0.07 + 0.09 * abs(math.sin(5.0 * c + 1.3 * layout))
            half_h = 0.10 + 0.20 * abs(math.sin(4.0 * a - 0.8 * layout))
            tone = 0.85 * math.sin(7.0 * c + 1.6 * layout)
            hue = math.sin(9.0 * b + 1.1 * layout)
            lamp = shape % 4 == 3
            blur = 0.05 if not lamp else 0.09
            i0 = max(int((cx - half_w - blur + 1.0) * 0.5 * (n - 1)), 0)
            i1 = min(int((cx + half_w + blur + 1.0) * 0.5 * (n - 1)) + 2, n)
            j0 = max(int((cy - half_h - blur) * (n - 1)), 0)
            j1 = min(int((cy + half_h + blur) * (n - 1)) + 2, n)
            for j in range(j0, j1):
                y = j / (n - 1.0) - cy
                for i in range(i0, i1):
                    x = 2.0 * i / (n - 1.0) - 1.0 - cx
                    if lamp:
                        m = smooth(half_w + blur, half_w - blur, math.hypot(x, 2.0 * y))
                    else:
                        m = smooth(half_w + blur, half_w - blur, abs(x)) * smooth(
                            half_h + blur, half_h - blur, abs(y)
                        )
                    m *= p.bg_clutter * 0.85
                    books = 1.0
                    if shape % 3 == 0:
                        books += 0.35 * math.sin(60.0 * side * x + 5.0 * c)
                    level = (1.0 + tone) * books
                    if lamp:
                        level = 2.2 + tone
                    r = (0.30 + 0.14 * hue) * level
                    g2 = (0.27 - 0.03 * hue) * level
                    b2 = (0.23 - 0.13 * hue) * level
                    w = 0.55 if not lamp else 0.8
                    out[j, i, 0] += (r * w + base[0] * (1 - w) * level * 0.8 - out[j, i, 0]) * m
                    out[j, i, 1] += (g2 * w + base[1] * (1 - w) * level * 0.8 - out[j, i, 1]) * m
                    out[j, i, 2] += (b2 * w + base[2] * (1 - w) * level * 0.8 - out[j, i, 2]) * m


# Columns of the palette handed to the kernels, one linear colour each.
SKIN, LIP, HAIR, BROW, IRIS_COLOUR, CLOTH, FRAME, KEY, SKY, GROUND, BEARD_COLOUR = range(11)


@compiled(fastmath=True)
def _eye(
    p: Any,
    tiles: np.ndarray,
    pal: np.ndarray,
    x: float,
    y: float,
    z: float,
    dx: float,
    dy: float,
    dz: float,
    side: float,
    opening: float,
    u: float,
    upper: float,
    lower: float,
    light: np.ndarray,
    colour: np.ndarray,
) -> None:
    """Computes the colour of the eyeball seen through the fissure, along a ray with direction d
    (head space) that crosses the lids' surface at (x, y, z)."""
    cx = x - side * p.eye_x
    cz = z - p.eye_z
    b = cx * dx + y * dy + cz * dz
    c = cx * cx + y * y + cz * cz - EYEBALL * EYEBALL
    disc = b * b - c
    s = -b - math.sqrt(disc) if disc > 0.0 else -b
    ex = cx + s * dx
    ey = y + s * dy
    ez = cz + s * dz
    n = 1.0 / math.sqrt(ex * ex + ey * ey + ez * ez + 1e-12)
    nx = ex * n
    ny = ey * n
    nz = ez * n
    # gaze frame
    gx = 0.72 * p.gaze_x
    gy = 0.58 * p.gaze_y
    cgx = math.cos(gx)
    sgx = math.sin(gx)
    cgy = math.cos(gy)
    sgy = math.sin(gy)
    rx = nx * cgx - nz * sgx
    rz = nx * sgx + nz * cgx
    ry = ny * cgy - rz * sgy
    rz = ny * sgy + rz * cgy
    # distance from the iris' centre in its radii; the ball's far side has none
    rr = math.sqrt(rx * rx + ry * ry) * EYEBALL / IRIS if rz > 0.0 else 9.0
    thread = max(_noise(tiles, 1, side * ex * 300.0, ey * 300.0), 0.0)
    vein = 0.10 * smooth(0.5, 1.05, abs(u)) + 0.03 * thread * smooth(0.3, 0.9, abs(u))
    r = 0.68
    g = 0.64 - 1.3 * vein
    bl = 0.61 - 1.4 * vein
    iris = smooth(1.08, 0.93, rr)
    if iris > 0.0:
        ang = math.atan2(ry, side * rx)
        fibre = _noise(tiles, 1, ang * 20.37, 40.0 + 14.0 * rr)
        v = 0.78 + 0.16 * fibre + 0.42 * bump(rr - 0.62, 0.22) - 0.62 * smooth(0.74, 1.02, rr)
        v += 0.45 * smooth(0.2, -0.8, ry * EYEBALL / IRIS) * smooth(1.0, 0.6, rr)
        v = max(v, 0.08)
        warm = 0.5 * bump(rr - 0.45, 0.18)
        r += (pal[IRIS_COLOUR, 0] * (1.0 + 0.6 * warm) * v - r) * iris
        g += (pal[IRIS_COLOUR, 1] * (1.0 + 0.1 * warm) * v - g) * iris
        bl += (pal[IRIS_COLOUR, 2] * v - bl) * iris
        pupil = smooth(0.47, 0.37, rr)
        r *= 1.0 - 0.97 * pupil
        g *= 1.0 - 0.97 * pupil
        bl *= 1.0 - 0.97 * pupil
    # lids shade the ball; it darkens to the corners
    shade = 1.0 - 0.55 * bump(y - upper, 0.036) - 0.18 * bump(y - lower, 0.02)
    shade *= 1.0 - 0.42 * smooth(0.55, 1.0, abs(u))
    # caruncle
    corner = smooth(-0.80, -0.97, u)
    r += (0.55 - r) * corner * 0.8
    g += (0.24 - g) * corner * 0.8
    bl += (0.21 - bl) * corner * 0.8
    diffuse = 0.62 + 0.5 * max(nx * light[0] + ny * light[1] + nz * light[2], 0.0)
    # catch light and the softer one of the room
    h = nx * light[3] + ny * light[4] + nz * light[5]
    glint = smooth(0.989, 0.996, h) * smooth(0.0, 0.03, opening)
    room = 0.06 * smooth(0.90, 0.99, -0.6 * light[0] * nx + 0.45 * ny + 0.82 * nz) * iris
    colour[0] = r * shade * diffuse + 1.3 * glint + room
    colour[1] = g * shade * diffuse + 1.3 * glint + room
    colour[2] = bl * shade * diffuse + 1.3 * glint + room
    # tear line on the lower lid
    wet = 0.25 * bump(y - lower - 0.006, 0.006) * (1.0 - corner)
    colour[0] += wet
    colour[1] += 0.92 * wet
    colour[2] += 0.9 * wet


@compiled(fastmath=True)
def _mouth_inside(
    p: Any,
    tiles: np.ndarray,
    x: float,
    y: float,
    z: float,
    dx: float,
    dy: float,
    dz: float,
    top: float,
    low: float,
    colour: np.ndarray,
) -> None:
    """Computes the colour of teeth, tongue and dark along a ray that crosses the lips' surface."""
    # dental arch: z = front - 3.8 x^2
    front = 0.035
    qa = 3.8 * dx * dx
    qb = dz + 7.6 * x * dx
    qc = z - front + 3.8 * x * x
    if qa > 1e-7:
        disc = max(qb * qb - 4.0 * qa * qc, 0.0)
        s = (-qb - math.sqrt(disc)) / (2.0 * qa)
        alt = 2.0 * qc / (-qb + math.sqrt(disc) + 1e-9)
        s = alt if abs(alt) < abs(s) else s
    else:
        s = -qc / (qb - 1e-9)
    s = clip(s, 0.0, 0.5)
    tx = x + s * dx
    ty = y + s * dy
    gap = top - low
    drop = 0.235 * p.jaw
    edge = p.mouth_y - 0.026 + 0.030 * (tx / 0.2) ** 2 + 0.012 * max(p.smile, 0.0)
    arc = abs(tx) * (1.0 + 1.6 * tx * tx)
    # boundaries: central, lateral, canine, premolars
    w = 0.088
    f = arc / w if arc < w else 1.0 + (arc - w) / 0.07
    fr = f - math.floor(f)
    between = bump(fr, 0.10) + bump(fr - 1.0, 0.10)
    scallop = 0.014 * (1.0 - 4.0 * (fr - 0.5) * (fr - 0.5))
    depth = smooth(0.0, 0.13, arc) * 0.10 + smooth(0.12, 0.30, arc) * 0.6
    ramp = smooth(0.01, 0.14, gap)
    r = 0.075 - 0.05 * ramp
    g = 0.018 - 0.012 * ramp
    b = 0.018 - 0.012 * ramp
    tongue_y = p.mouth_y - 0.09 - drop * 0.82 - 1.2 * tx * tx + 0.03 * smooth(0.3, 0.0, gap)
    tongue = smooth(tongue_y + 0.035, tongue_y - 0.03, ty) * smooth(0.24, 0.16, abs(tx))
    groove = 1.0 - 0.3 * bump(tx, 0.02)
    lit = smooth(tongue_y - 0.16, tongue_y, ty)
    r += (0.40 * groove * (0.5 + 0.5 * lit) - r) * tongue
    g += (0.12 * groove * (0.5 + 0.5 * lit) - g) * tongue
    b += (0.12 * groove * (0.5 + 0.5 * lit) - b) * tongue
    tone = 0.80 * (1.0 - 0.30 * between) * (1.0 - depth)
    upper = smooth(edge - scallop - 0.006, edge - scallop + 0.008, ty) * smooth(0.31, 0.26, abs(tx))
    gum = smooth(0.085, 0.105, ty - edge - 0.6 * scallop)
    shadow = 1.0 - 0.35 * bump(ty - top, 0.03)
    t = 1.08 * tone * shadow
    r += ((t * (1 - gum) + 0.45 * gum * shadow) - r) * upper
    g += ((0.93 * t * (1 - gum) + 0.18 * gum * shadow) - g) * upper
    b += ((0.80 * t * (1 - gum) + 0.17 * gum * shadow) - b) * upper
    rim = edge - 0.008 - drop
    down = smooth(rim + 0.006, rim - 0.008, ty + 0.5 * scallop) * smooth(0.25, 0.20, abs(tx))
    down *= 1.0 - upper
    tone *= 0.72 * (1.0 - 0.35 * bump(ty - low, 0.03))
    r += (tone - r) * down
    g += (0.92 * tone - g) * down
    b += (0.78 * tone - b) * down
    colour[0] = r
    colour[1] = g
    colour[2] = b


@compiled(fastmath=True)
def shade_skin(
    P: np.ndarray,
    tiles: np.ndarray,
    pal: np.ndarray,
    light: np.ndarray,
    eye: np.ndarray,
    fine: float,
    faces: np.ndarray,
    ear_face: int,
    attr: np.ndarray,
    depth: np.ndarray,
    face: np.ndarray,
    wa: np.ndarray,
    wb: np.ndarray,
    background: np.ndarray,
    out: np.ndarray,
) -> None:
    """Fill `out` [H, W, 3] with linear light for head, bust, ears, glasses and backdrop.

    light: key direction and half vector in head space (6) then in camera space (6), ambient,
    key strength. eye: the camera in head space. fine: samples per head unit.
    """
    p = P[0]
    height, width = depth.shape
    nb = background.shape[0]
    colour = np.empty(3)
    v = np.empty(12)
    detail = smooth(40.0, 200.0, fine)
    ambient = light[12]
    key = light[13]
    for yy in range(height):
        gy = yy * (nb - 1.001) / height
        by = int(gy)
        fy = gy - by
        for xx in range(width):
            if depth[yy, xx] > 1e8:
                gx = (xx + 0.5) * (nb - 1.0) / width - 1e-6
                bx = int(gx)
                fx = gx - bx
                for k in range(3):
                    t = background[by, bx, k] * (1 - fx) + background[by, bx + 1, k] * fx
                    w = background[by + 1, bx, k] * (1 - fx) + background[by + 1, bx + 1, k] * fx
                    out[yy, xx, k] = t + fy * (w - t)
                continue
            q = face[yy, xx]
            a = faces[q, 0]
            b = faces[q, 1]
            c = faces[q, 2]
            w0 = wa[yy, xx]
            w1 = wb[yy, xx]
            w2 = 1.0 - w0 - w1
            for k in range(12):
                v[k] = w0 * attr[a, k] + w1 * attr[b, k] + w2 * attr[c, k]
            s = 1.0 / math.sqrt(v[NX] * v[NX] + v[NY] * v[NY] + v[NZ] * v[NZ] + 1e-12)
            nx = v[NX] * s
            ny = v[NY] * s
            nz = v[NZ] * s
            lit = v[LIT]
            ao = v[AO]
            x = v[X]
            y = v[Y]
            z = v[Z]
            u = v[U]
            t = v[V]
            ax = abs(x)
            au = abs(u)
            r = pal[SKIN, 0]
            g = pal[SKIN, 1]
            bl = pal[SKIN, 2]
            gloss = 0.5
            sharp = 0.0  # share that is eye or mouth interior, lit on its own
            front = smooth(-0.55, -0.15, z)
            is_ear = q >= ear_face
            # cloth
            neck = -1.66 + 0.14 * p.collar - 0.10 * bump(x, 0.35) + 0.10 * min(ax, 0.9)
            cloth = 0.0
            ao *= 1.0 - 0.30 * smooth(-1.10, -1.26, t) * smooth(-1.75, -1.40, t)
            if not is_ear and t < -1.2:
                cloth = smooth(0.012, -0.012, t - neck)
            if cloth < 1.0:
                n0 = _noise(tiles, 0, au * 42.0 + 20.0, t * 42.0 + 30.0)
                n1 = _noise(tiles, 1, au * 120.0, t * 120.0 + 7.0)
                blot = 1.0 + p.skin_rough * (0.045 * n0) + 0.010 * n0
                r *= blot
                g *= blot * (1.0 - 0.02 * n0 * p.skin_rough)
                bl *= blot * (1.0 - 0.02 * n0 * p.skin_rough)
                pore = (0.3 + 0.7 * p.skin_rough) * detail * n1
                r *= 1.0 + 0.022 * pore
                g *= 1.0 + 0.028 * pore
                bl *= 1.0 + 0.028 * pore
                gloss *= 1.0 + 0.30 * pore
                nx += 0.018 * pore
                # blood under the skin, and the darker sockets
                ny_ = p.nose_y
                red = (
                    (0.08 + 0.20 * p.blush)
                    * front
                    * (
                        bump(ax - 0.42, 0.2) * bump(y + 0.36, 0.18)
                        + 0.8 * bump(x, 0.15) * bump(y - ny_, 0.11)
                        + 0.3 * bump(x, 0.22) * bump(t - p.chin_y - 0.1, 0.12)
                    )
                )
                if is_ear:
                    red = 0.12 + 0.10 * p.blush
                g *= 1.0 - red
                bl *= 1.0 - 0.9 * red
                if p.freckles > 0.0:
                    spot = smooth(0.7, 1.7, _noise(tiles, 1, au * 120.0 + 90.0, t * 120.0))
                    spot *= p.freckles * 0.8 * front * bump(ax - 0.22, 0.32) * bump(y + 0.26, 0.28)
                    r *= 1.0 - 0.5 * spot
                    g *= 1.0 - 0.8 * spot
                    bl *= 1.0 - 0.9 * spot
                if front > 0.0 and y > -1.3:
                    socket = (
                        0.14 * bump(ax - p.eye_x, 0.19) * bump(y - 0.01, 0.11)
                        + (0.08 + 0.14 * p.age)
                        * bump(ax - p.eye_x + 0.05, 0.13)
                        * bump(y + 0.105, 0.045)
                    ) * front
                    r *= 1.0 - 0.8 * socket
                    g *= 1.0 - 1.1 * socket
                    bl *= 1.0 - socket
                    # nostrils
                    hx = (ax - 0.060 * p.nose_w) / 0.036
                    hy = (y - ny_ + 0.085 - 0.25 * (ax - 0.06)) / 0.020
                    hole = bump(math.hypot(hx, hy), 0.95)
                    ao *= 1.0 - 0.88 * hole * front
                    ao *= (
                        1.0
                        - 0.22
                        * bump(ax - 0.178 * p.nose_w, 0.020)
                        * bump(y - ny_ + 0.030, 0.055)
                        * front
                    )
                    # lines of age and of the working face
                    lines = 0.0
                    if p.age > 0.0 or p.brow_raise > 0.0:
                        amount = 0.65 * p.age + 0.75 * max(p.brow_raise, 0.0) * (0.25 + p.age)
                        wavy = 0.010 * n0 + 0.03 * bump(ax, 0.25)
                        fade = bump(ax, 0.36) * front
                        for k in range(3):
                            lines += amount * bump(t - 0.40 - 0.085 * k + wavy, 0.010) * fade
                        crow = bump(ax - p.eye_x - 0.24, 0.07) * front
                        for k in range(3):
                            slope = 0.05 - 0.055 * k
                            lines += (
                                p.age
                                * (0.5 + 0.6 * max(p.smile, 0.0))
                                * crow
                                * bump(y - slope - (0.35 - 0.45 * k) * (ax - p.eye_x - 0.17), 0.008)
                            )
                        lines += (
                            0.55
                            * p.age
                            * bump(y + 0.115 - 0.9 * (ax - p.eye_x) ** 2, 0.012)
                            * bump(ax - p.eye_x + 0.01, 0.10)
                            * front
                        )
                    if p.frown > 0.0:
                        lines += (
                            0.8
                            * p.frown
                            * bump(ax - 0.055 - 0.05 * (y - 0.2), 0.010)
                            * bump(y - 0.2, 0.065)
                            * front
                        )
                    fold = ax - (0.195 + 0.30 * (ny_ - y)) - 0.03 * max(p.smile, 0.0)
                    crease = 0.10 + 0.55 * p.age + 0.55 * max(p.smile, 0.0)
                    lines += (
                        crease
                        * bump(fold, 0.018)
                        * smooth(ny_ + 0.03, ny_ - 0.06, y)
                        * (smooth(p.mouth_y - 0.12, p.mouth_y + 0.06, y) * front)
                    )
                    ao *= 1.0 - 0.45 * min(lines, 1.0)
                # hair roots, shaved or under the hair
                if v[SCALP] > 0.0 and not is_ear:
                    root = v[SCALP] * (0.22 + 0.73 * p.hair_amount)
                    root = clip(root * (1.0 + 0.03 * n1), 0.0, 0.96)
                    r += (pal[HAIR, 0] - r) * root
                    g += (pal[HAIR, 1] - g) * root
                    bl += (pal[HAIR, 2] - bl) * root
                    gloss *= 1.0 - 0.8 * root
                # beard and moustache: an even tone with fine low-contrast strands
                if (p.beard > 0.0 or p.moustache > 0.0) and not is_ear:
                    strand = _noise(tiles, 1, au * 210.0, t * 60.0)
                    m = v[BEARD] * p.beard**0.7
                    lip_line = 0.5 * (ny_ - 0.10 + p.mouth_y)
                    mo = bump(ax, 0.27) * bump(y - lip_line - 0.005 + 0.35 * ax * ax, 0.042)
                    mo *= max(p.moustache, 0.75 * p.beard) * front
                    m = max(m, min(1.9 * mo, 1.0))
                    m = clip(m * (0.92 + 0.06 * strand), 0.0, 0.93)
                    k2 = 1.0 + 0.18 * strand
                    r += (pal[BEARD_COLOUR, 0] * k2 - r) * m
                    g += (pal[BEARD_COLOUR, 1] * k2 - g) * m
                    bl += (pal[BEARD_COLOUR, 2] * k2 - bl) * m
                    gloss *= 1.0 - 0.8 * m
                # shine: nose, forehead, cheekbones
                gloss *= (
                    0.75
                    + 0.5 * bump(x, 0.1) * bump(y + 0.3, 0.3)
                    + 0.35 * bump(ax - 0.45, 0.15) * bump(y + 0.22, 0.15)
                    + 0.25 * bump(y - 0.5, 0.2)
                )
                # brows
                if front > 0.1 and y > 0.04 and y < 0.52 and ax < 0.62:
                    side = 1.0 if x > 0.0 else -1.0
                    lift = p.brow_raise + 0.5 * p.brow_skew * side
                    w = (ax - 0.115 + 0.035 * p.frown) / 0.40
                    if w > -0.15 and w < 1.12:
                        line = (
                            0.185
                            + p.brow_y
                            + 0.115 * lift
                            + 0.05 * (0.5 + p.brow_arch) * (bump(w - 0.66, 0.55) - 0.2)
                            + 0.020 * w
                            - 0.055 * p.frown * (1.0 - w)
                            - 0.012 * p.frown
                        )
                        thick = (
                            0.040
                            * p.brow_th
                            * (1.0 - 0.60 * smooth(0.45, 1.05, w))
                            * smooth(-0.25, 0.12, w)
                        )
                        d = (y - line) / max(thick, 0.004)
                        if abs(d) < 2.2:
                            slant = 0.9 - 0.9 * w
                            hair = _noise(
                                tiles,
                                1,
                                (ax - slant * (y - line)) * 300.0 + 11.0,
                                (y - line) * 90.0 + 20.0 * w,
                            )
                            m = bump(d, 1.0) * smooth(-0.12, 0.10, w) * smooth(1.10, 0.86, w)
                            m = clip(m * (1.15 + 0.20 * hair) * p.brow_dark, 0.0, 0.90)
                            r += (pal[BROW, 0] - r) * m
                            g += (pal[BROW, 1] - g) * m
                            bl += (pal[BROW, 2] - bl) * m
                            gloss *= 1.0 - m
                # lips
                if ax < 0.45 and front > 0.2 and y < ny_ - 0.04 and y > p.mouth_y - 0.6:
                    m, top, low, upper, lower = mouth_curves(p, x)
                    if abs(m) < 1.25:
                        e = 0.010
                        red = smooth(-e, e, top + upper - y) * smooth(
                            -1.4 * e, 1.4 * e, y - low + lower
                        )
                        red *= smooth(1.0, 0.90, abs(m))
                        if red > 0.0:
                            wrinkle = 1.0 + 0.05 * _noise(tiles, 1, au * 170.0, t * 12.0)
                            dark = 0.80 if y > top - 0.001 else 1.0
                            r += (pal[LIP, 0] * wrinkle * dark - r) * 0.92 * red
                            g += (pal[LIP, 1] * wrinkle * dark - g) * 0.92 * red
                            bl += (pal[LIP, 2] * wrinkle * dark - bl) * 0.92 * red
                            gloss += red * (0.55 if y < low else 0.15)
                        gap = top - low
                        seam = (
                            bump(y - 0.5 * (top + low), 0.011)
                            * smooth(1.05, 0.85, abs(m))
                            * (1.0 - smooth(0.0, 0.03, gap))
                        )
                        ao *= 1.0 - 0.72 * seam
                        corner = bump(abs(m) - 1.0, 0.09) * bump(y - 0.5 * (top + low), 0.022)
                        ao *= 1.0 - 0.45 * corner
                        if gap > 0.003:
                            inside = smooth(-0.004, 0.006, top - y) * smooth(-0.004, 0.006, y - low)
                            inside *= smooth(0.003, 0.012, gap)
                            if inside > 0.0:
                                dx = x - eye[0]
                                dy = y - eye[1]
                                dz = z - eye[2]
                                s = 1.0 / math.sqrt(dx * dx + dy * dy + dz * dz)
                                _mouth_inside(
                                    p, tiles, x, y, z, dx * s, dy * s, dz * s, top, low, colour
                                )
                                sharp = inside
                # eyes
                if front > 0.1 and ax > 0.11 and ax < 0.56 and y > -0.2 and y < 0.24:
                    side = 1.0 if x > 0.0 else -1.0
                    m, top, low, opened, shut = eye_lids(p, side, x)
                    if abs(m) < 1.4:
                        bow = max(1.0 - m * m, 0.0)
                        fold = bump(y - opened - 0.034 - 0.016 * bow - 0.008 * p.gaze_y, 0.012)
                        ao *= 1.0 - (0.12 + 0.38 * p.lid_crease) * fold * smooth(
                            1.35, 0.75, abs(m)
                        ) * (1.0 - 0.65 * shut)
                        ao *= 1.0 - 0.14 * bump(y - low + 0.055, 0.018) * smooth(1.2, 0.5, abs(m))
                        lid = bump(y - top - 0.02, 0.02) * smooth(1.1, 0.8, abs(m))
                        gloss += 0.15 * lid
                        if abs(m) < 1.0:
                            opening = top - low
                            e = 0.0065
                            inside = (
                                smooth(-e, e, top - y)
                                * smooth(-e, e, y - low)
                                * smooth(0.002, 0.02, opening)
                            )
                            if inside > 0.0:
                                dx = x - eye[0]
                                dy = y - eye[1]
                                dz = z - eye[2]
                                s = 1.0 / math.sqrt(dx * dx + dy * dy + dz * dz)
                                _eye(
                                    p,
                                    tiles,
                                    pal,
                                    x,
                                    y,
                                    z,
                                    dx * s,
                                    dy * s,
                                    dz * s,
                                    side,
                                    opening,
                                    m,
                                    top,
                                    low,
                                    light,
                                    colour,
                                )
                                sharp = inside
                        # lash lines, the lower lid's pink rim
                        rim = bump(y - low + 0.009, 0.009) * smooth(1.0, 0.8, abs(m)) * (1 - shut)
                        g *= 1.0 - 0.14 * rim
                        bl *= 1.0 - 0.12 * rim
                        out_side = smooth(-0.6, 0.9, m)
                        comb = 1.0 + 0.25 * _noise(tiles, 1, ax * 260.0 + 30.0 * (y - top), 9.0)
                        lash = bump(
                            y - top - 0.004 - 0.004 * out_side,
                            0.0105 + 0.007 * out_side * comb + 0.002 * shut,
                        ) * smooth(1.10, 0.92, abs(m))
                        lash = clip(1.2 * lash, 0.0, 0.93)
                        low_lash = (
                            0.34
                            * bump(y - low + 0.006, 0.009)
                            * smooth(1.02, 0.75, abs(m))
                            * (0.5 + 0.5 * out_side)
                        )
                        lash = max(lash, low_lash)
                        r *= 1.0 - 0.93 * lash
                        g *= 1.0 - 0.95 * lash
                        bl *= 1.0 - 0.95 * lash
                        sharp *= 1.0 - lash
                        gloss *= 1.0 - lash
            if cloth > 0.0:
                weave = _noise(tiles, 1, au * 90.0, t * 90.0)
                fold = _noise(tiles, 0, au * 7.0 + 3.0, t * 5.0)
                k2 = 1.0 + 0.06 * weave + 0.09 * fold
                k2 *= 1.0 - 0.28 * bump(t - neck + 0.055, 0.010) - 0.22 * bump(t - neck, 0.016)
                r += (pal[CLOTH, 0] * k2 - r) * cloth
                g += (pal[CLOTH, 1] * k2 - g) * cloth
                bl += (pal[CLOTH, 2] * k2 - bl) * cloth
                gloss *= 1.0 - cloth
            # light: wrapped diffuse, red reaching farthest; hemisphere ambient; two shines
            nd = nx * light[6] + ny * light[7] + nz * light[8]
            soft = lit + (1.0 - lit) * 0.16
            dr = max((nd + 0.30) / 1.30, 0.0) * (soft + 0.10 * (1.0 - soft) * (nd > 0.0))
            dg = max((nd + 0.16) / 1.16, 0.0) * soft
            db = max((nd + 0.10) / 1.10, 0.0) * soft
            if cloth > 0.5:
                dr = dg
            half = max(nx * light[9] + ny * light[10] + nz * light[11], 0.0)
            h2 = half * half
            h4 = h2 * h2
            h8 = h4 * h4
            h16 = h8 * h8
            rim = 1.0 - max(nz, 0.0)
            rim = rim * rim * rim
            shine = (
                gloss
                * (0.3 + 0.7 * p.gloss)
                * lit
                * (0.10 * h8 + 0.20 * h16 * h8)
                * (1.0 + 2.0 * rim)
            )
            hemi = 0.5 + 0.5 * ny
            bleed = 1.0 - ao
            ar = ao + 0.22 * bleed * ao
            for k in range(3):
                amb = (pal[GROUND, k] + (pal[SKY, k] - pal[GROUND, k]) * hemi) * ambient
                d = dr if k == 0 else (dg if k == 1 else db)
                albedo = r if k == 0 else (g if k == 1 else bl)
                occ = ar if k == 0 else ao
                # broad fill from the camera's other side keeps shadows readable
                fill = 0.16 * max(-0.5 * light[6] * nx + 0.75 * nz + 0.2 * ny, 0.0)
                value = albedo * (
                    amb * occ
                    + (key * d * pal[KEY, k] + fill) * (0.45 * occ + 0.55 * math.sqrt(occ))
                )
                value += shine * key * pal[KEY, k] * occ
                if sharp > 0.0:
                    inner = colour[k] * (
                        0.55 * amb + 0.62 * key * (0.45 + 0.55 * lit) * pal[KEY, k] + 0.5 * fill
                    )
                    value += (inner - value) * sharp
                out[yy, xx, k] = value


@compiled(fastmath=True)
def shade_glasses(
    P: np.ndarray,
    pal: np.ndarray,
    light: np.ndarray,
    faces: np.ndarray,
    normal: np.ndarray,
    depth: np.ndarray,
    face: np.ndarray,
    wa: np.ndarray,
    wb: np.ndarray,
    skin_depth: np.ndarray,
    out: np.ndarray,
) -> None:
    """Composites the frame over `out`, and leaves its distance in skin_depth for the hair."""
    alpha = smooth(0.0, 1.0, P[0].glasses)
    height, width = depth.shape
    for yy in range(height):
        for xx in range(width):
            if depth[yy, xx] >= skin_depth[yy, xx]:
                continue
            q = face[yy, xx]
            w0 = wa[yy, xx]
            w1 = wb[yy, xx]
            w2 = 1.0 - w0 - w1
            nd = 0.0
            h = 0.0
            for k in range(3):
                m = (
                    w0 * normal[faces[q, 0], k]
                    + w1 * normal[faces[q, 1], k]
                    + w2 * normal[faces[q, 2], k]
                )
                nd += m * light[6 + k]
                h += m * light[9 + k]
                up = m if k == 1 else 0.0
            h = max(h, 0.0) ** 8
            for k in range(3):
                amb = pal[GROUND, k] + (pal[SKY, k] - pal[GROUND, k]) * (0.5 + 0.5 * up)
                value = (
                    pal[FRAME, k] * (amb * light[12] + light[13] * max(nd, 0.0))
                    + 0.25 * h * h * light[13] * pal[KEY, k]
                )
                out[yy, xx, k] += alpha * (value - out[yy, xx, k])
            skin_depth[yy, xx] = depth[yy, xx]


@compiled(fastmath=True)
def shade_hair(
    P: np.ndarray,
    tiles: np.ndarray,
    pal: np.ndarray,
    light: np.ndarray,
    faces: np.ndarray,
    attr: np.ndarray,
    tangent: np.ndarray,
    depth: np.ndarray,
    face: np.ndarray,
    wa: np.ndarray,
    wb: np.ndarray,
    skin_depth: np.ndarray,
    out: np.ndarray,
) -> None:
    """Composites the hair over `out`: strands with two shifted highlights (Kajiya and Kay 1989)
    and ends that thin out strand by strand."""
    p = P[0]
    height, width = depth.shape
    key = light[13]
    v = np.empty(12)
    tan = np.empty(3)
    for yy in range(height):
        for xx in range(width):
            if depth[yy, xx] > 1e8 or depth[yy, xx] > skin_depth[yy, xx]:
                continue
            q = face[yy, xx]
            a = faces[q, 0]
            b = faces[q, 1]
            c = faces[q, 2]
            w0 = wa[yy, xx]
            w1 = wb[yy, xx]
            w2 = 1.0 - w0 - w1
            for k in range(12):
                v[k] = w0 * attr[a, k] + w1 * attr[b, k] + w2 * attr[c, k]
            for k in range(3):
                tan[k] = w0 * tangent[a, k] + w1 * tangent[b, k] + w2 * tangent[c, k]
            t = v[V]
            across = abs(v[U])
            curl = p.hair_curl
            wave = curl * (1.6 * math.sin(t * 34.0 + 9.0 * across) * smooth(0.1, 0.5, t))
            coarse = _noise(tiles, 0, across * 62.0 + wave + 13.0, t * (7.0 + 20.0 * curl))
            strand = _noise(tiles, 1, across * 105.0 + 1.6 * wave, t * (6.0 + 16.0 * curl))
            alpha = smooth(
                1.0, 1.0 - v[SCALP] * 1.8, t + v[SCALP] * (0.32 * strand + 0.32 * coarse) + 0.02
            )
            alpha *= smooth(0.02, 0.45, p.hair_amount * (1.0 + 0.15 * strand))
            if alpha <= 0.003:
                continue
            s = 1.0 / math.sqrt(v[NX] ** 2 + v[NY] ** 2 + v[NZ] ** 2 + 1e-12)
            nx = v[NX] * s
            ny = v[NY] * s
            nz = v[NZ] * s
            inner = 1.0
            if nz < 0.0:
                nx = -nx
                ny = -ny
                nz = -nz
                inner = 0.45
            s = 1.0 / math.sqrt(tan[0] ** 2 + tan[1] ** 2 + tan[2] ** 2 + 1e-12)
            # strands dip in and out of the surface
            shift = 0.16 * strand + 0.12 * coarse + 0.25 * curl * math.sin(t * 34.0 + 9.0 * across)
            tx = tan[0] * s + shift * nx
            ty = tan[1] * s + shift * ny
            tz = tan[2] * s + shift * nz
            s = 1.0 / math.sqrt(tx * tx + ty * ty + tz * tz + 1e-12)
            tx *= s
            ty *= s
            tz *= s
            tl = tx * light[6] + ty * light[7] + tz * light[8]
            th = tx * light[9] + ty * light[10] + tz * light[11]
            nd = nx * light[6] + ny * light[7] + nz * light[8]
            lit = (0.12 + 0.88 * v[LIT]) * smooth(-0.35, 0.45, nd)
            diffuse = math.sqrt(max(1.0 - tl * tl, 0.0)) * lit
            shine = max(1.0 - th * th, 0.0)
            shine2 = shine * shine
            shine4 = shine2 * shine2
            shine16 = shine4 * shine4 * shine4 * shine4
            body = max(0.86 + 0.16 * strand + 0.13 * coarse, 0.4) * v[AO] * inner
            hemi = 0.5 + 0.5 * ny
            for k in range(3):
                amb = (pal[GROUND, k] + (pal[SKY, k] - pal[GROUND, k]) * hemi) * light[12]
                value = (
                    pal[HAIR, k]
                    * body
                    * (0.80 * amb + key * pal[KEY, k] * 0.95 * diffuse + 0.10 * nz)
                )
                gleam = (0.30 * pal[HAIR, k] + 0.012) * shine4 * shine4 + (
                    0.35 * pal[HAIR, k] + 0.035
                ) * shine16
                value += gleam * lit * key * pal[KEY, k] * 1.3 * (0.75 + 0.4 * strand) * inner
                out[yy, xx, k] += (max(value, 0.0) - out[yy, xx, k]) * alpha


@compiled(fastmath=True)
def resolve(
    linear: np.ndarray, factor: int, tone: np.ndarray, scale: float, out: np.ndarray
) -> None:
    """Averages factor x factor samples and looks up display values."""
    last = tone.shape[0] - 1
    norm = scale / (factor * factor)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            for k in range(3):
                total = 0.0
                for j in range(factor):
                    for i in range(factor):
                        total += linear[y * factor + j, x * factor + i, k]
                index = int(total * norm + 0.5)
                out[y, x, k] = tone[index if index < last else last]
