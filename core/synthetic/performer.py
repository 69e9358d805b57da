"""The performer: a procedural head that acts, rendered on one CPU thread.

It provides self-scans, driving clips and their ground truth for the embedded default: the same
performance by another identity is only another vector of parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from core.base.compiled import compiled
from core.synthetic import head, shading
from core.synthetic.parameters import (
    HIGH,
    INDEX,
    LOW,
    MOTION,
    NAMES,
    PARAMETERS,
    Parameter,
    check,
    from_normal,
    mirror,
    neutral,
)

__all__ = [
    "INDEX",
    "NAMES",
    "PARAMETERS",
    "Parameter",
    "Pins",
    "follow",
    "from_normal",
    "landmarks",
    "mirror",
    "neutral",
    "performance",
    "pin",
    "random_identity",
    "render",
    "self_scan",
    "transfer",
]

# Camera: distance and width of the picture at the head's pivot, in head units (10 cm).
_DISTANCE, _WINDOW, _CENTRE_Y = 9.0, 3.6, -0.16
_PIVOT = np.array([0.0, -0.45, -0.80])
_NECK = np.array([0.0, -1.7, -0.93])

_SKIN = [
    (0.94, 0.79, 0.71),
    (0.90, 0.72, 0.62),
    (0.84, 0.64, 0.52),
    (0.73, 0.52, 0.40),
    (0.56, 0.38, 0.28),
    (0.43, 0.285, 0.21),
    (0.34, 0.225, 0.17),
]
_HAIR = [
    (0.80, 0.66, 0.45),
    (0.66, 0.49, 0.30),
    (0.52, 0.30, 0.19),
    (0.42, 0.27, 0.18),
    (0.28, 0.18, 0.13),
    (0.13, 0.10, 0.09),
]
_IRIS = [
    (0.38, 0.53, 0.68),
    (0.42, 0.52, 0.46),
    (0.48, 0.42, 0.26),
    (0.44, 0.29, 0.17),
    (0.36, 0.22, 0.14),
    (0.24, 0.15, 0.10),
]
_LIP = [(0.80, 0.42, 0.42), (0.72, 0.20, 0.22), (0.52, 0.20, 0.26), (0.86, 0.46, 0.42)]


def _along(colours: list[tuple[float, float, float]], t: float) -> np.ndarray:
    """Interpolates a ramp of sRGB colours at t in [0, 1]; linear light."""
    ramp = shading.to_linear(np.array(colours))
    x = t * (len(ramp) - 1)
    return np.array([np.interp(x, np.arange(len(ramp)), ramp[:, k]) for k in range(3)])


def _muted(r: float, g: float, b: float) -> np.ndarray:
    """Converts sRGB to linear light with little saturation: few rooms are painted in primaries."""
    c = np.array([r, g, b])
    return shading.to_linear(c.mean() + 0.28 * (c - c.mean()))


def _palette(f: np.void) -> np.ndarray:
    """Returns linear colours `[11, 3]` in the order of shading's column names."""
    skin = _along(_SKIN, f["skin"]) * (1 + f["skin_hue"] * np.array([-0.03, 0.02, -0.12]))
    grey = 0.9 * f["hair_grey"]
    # dark hair and eyes go with dark skin far more often than not
    dark = float(np.clip((f["skin"] - 0.3) / 0.4, 0, 1)) ** 2
    hair = _along(_HAIR, 1 - (1 - f["hair_hue"]) * (1 - 0.75 * dark))
    hair = hair * (1.25 - 0.75 * f["hair_dark"])
    iris = _along(_IRIS, 1 - (1 - f["eye_hue"]) * (1 - 0.7 * dark))
    hair = hair * (1 - grey) + grey * shading.to_linear(
        np.array([0.66, 0.65, 0.64]) * (1.1 - 0.35 * f["hair_dark"])
    )
    lip = skin * np.array([0.80, 0.46, 0.48])
    paint = _along(_LIP, f["lip_col"]) * (0.35 + 0.65 * skin.mean() / 0.5)
    lip = lip + (paint - lip) * 0.75 * f["lip_sat"]
    frame = shading.to_linear(np.array([0.62, 0.50, 0.33])) * (1 - f["glasses_dark"]) + 0.012
    warm = f["light_warm"]
    return np.stack(
        [
            skin,
            lip,
            hair,
            np.minimum(0.42 * hair, 0.30 * skin),
            iris * (0.65 + 0.6 * f["eye_shade"]),
            _muted(f["cloth_r"], f["cloth_g"], f["cloth_b"]) * np.array([0.78, 0.9, 1.0]),
            frame,
            np.array([1 + 0.08 * warm, 1.0, 1 - 0.14 * warm]),
            np.array([0.98, 1.0, 1.05]),
            np.array([0.56, 0.50, 0.47]),
            hair * 0.55 + 0.08 * skin,
        ]
    )


def _rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Returns the rotation of angles in degrees: pitch first, then yaw, then roll."""
    a, b, c = math.radians(yaw), math.radians(pitch), math.radians(roll)
    ry = np.array([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    rx = np.array([[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]])
    rz = np.array([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    return rz @ ry @ rx


def _pose(f: np.void) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rotations of the head, and of the body, which follows a little."""
    yaw, pitch, roll = f["yaw"], f["pitch"], f["roll"]
    return _rotation(yaw, pitch, roll), _rotation(0.12 * yaw, 0.0, 0.08 * roll)


# These are compiled because numpy's matrix product would wake all of BLAS's threads.


@compiled()
def _place(
    points: np.ndarray, share: np.ndarray, rotation: np.ndarray, body: np.ndarray
) -> np.ndarray:
    """Converts points `[N, 3]` from head space to camera space: a blend, by `share` `[N]`, of the
    head's and the body's rigid motion."""
    out = np.empty(points.shape, np.float32)
    for q in range(points.shape[0]):
        w = share[q]
        for k in range(3):
            turned = _PIVOT[k]
            still = _NECK[k]
            for m in range(3):
                turned += rotation[k, m] * (points[q, m] - _PIVOT[m])
                still += body[k, m] * (points[q, m] - _NECK[m])
            out[q, k] = still + (turned - still) * w
    return out


@compiled()
def _turn(
    normals: np.ndarray, share: np.ndarray, rotation: np.ndarray, body: np.ndarray
) -> np.ndarray:
    """Rotates normals `[N, 3]` as `_place` moves their points, without normalising them again."""
    out = np.empty(normals.shape, np.float32)
    for q in range(normals.shape[0]):
        w = share[q]
        for k in range(3):
            total = 0.0
            for m in range(3):
                total += (body[k, m] + w * (rotation[k, m] - body[k, m])) * normals[q, m]
            out[q, k] = total
    return out


@compiled()
def _project(points: np.ndarray, size: int) -> np.ndarray:
    """Projects points `[N, 3]` to pixel x, y (down, centres at integers) and distance."""
    out = np.empty(points.shape, np.float32)
    middle = 0.5 * (size - 1)
    for q in range(points.shape[0]):
        away = _DISTANCE - (points[q, 2] - _PIVOT[2])
        scale = size / _WINDOW * _DISTANCE / away
        out[q, 0] = points[q, 0] * scale + middle
        out[q, 1] = middle - (points[q, 1] - _CENTRE_Y) * scale
        out[q, 2] = away
    return out


_SHADOW = 160  # shadow map side
_SHADOW_SPAN = 4.6  # head units it covers


def _light(f: np.void) -> np.ndarray:
    """Returns the key light's direction in camera space."""
    azimuth, elevation = math.radians(60) * f["light_az"], 0.15 + f["light_el"]
    d = np.array(
        [
            math.sin(azimuth) * math.cos(elevation),
            math.sin(elevation),
            math.cos(azimuth) * math.cos(elevation),
        ]
    )
    return d / np.linalg.norm(d)


@compiled()
def _seen_from(light: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Projects points `[N, 3]` along the light: shadow-map x, y, and distance."""
    flat = math.hypot(light[0], light[2])
    sx, sz = light[2] / flat, -light[0] / flat
    ux, uy, uz = light[1] * sz, light[2] * sx - light[0] * sz, -light[1] * sx
    scale = _SHADOW / _SHADOW_SPAN
    out = np.empty(points.shape, np.float32)
    for q in range(points.shape[0]):
        x, y, z = points[q, 0], points[q, 1] + 0.5, points[q, 2] + 0.8
        out[q, 0] = (sx * x + sz * z) * scale + _SHADOW / 2
        out[q, 1] = (ux * x + uy * y + uz * z) * scale + _SHADOW / 2
        out[q, 2] = -(light[0] * x + light[1] * y + light[2] * z)
    return out


@dataclass(frozen=True)
class _Scene:
    """Meshes and lights of one picture."""

    mesh: head.Head
    rotation: np.ndarray  # of the head
    body: np.ndarray  # rotation of the body
    skin: np.ndarray  # [N, 3] vertices in camera space
    hair: np.ndarray  # [M, 3]
    lights: np.ndarray  # [14] directions and strengths, as the kernels of `shading` take them
    palette: np.ndarray  # [11, 3]
    samples: int  # side of the picture before it is resolved, px

    def buffers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Allocates depth, face numbers and two barycentric weights for the rasteriser."""
        shape = (self.samples, self.samples)
        return (
            np.full(shape, 1e9, np.float32),
            np.zeros(shape, np.int32),
            np.empty(shape, np.float32),
            np.empty(shape, np.float32),
        )


def render(params: np.ndarray, size: int = 256, supersample: int = 2) -> np.ndarray:
    """Renders one picture of the performer. The same parameters give the same bytes.

    Args:
        params: `[P]`, clipped to the bounds of PARAMETERS.
        size: side of the picture, 64 to 1024 px.
        supersample: samples per pixel and axis, 1 to 4.

    Returns:
        `[size, size, 3]` uint8, sRGB.

    Raises:
        ValueError: a wrong number of parameters, a value that is not finite, or a size or
            supersample out of range.
    """
    p = check(params, 1)
    if not 64 <= size <= 1024:
        raise ValueError(f"size is {size}; the performer renders 64 to 1024 pixels.")
    if not 1 <= supersample <= 4:
        raise ValueError(f"supersample is {supersample}; choose 1 to 4.")
    scene = _stage(np.clip(p, LOW, HIGH), int(size) * int(supersample))
    linear = np.empty((scene.samples, scene.samples, 3), np.float32)
    depth = _draw_skin(scene, linear)
    face = scene.mesh.face[0]
    if face["glasses"] > 0.0:
        _draw_glasses(scene, depth, linear)
    if face["hair_amount"] > 0.0:
        _draw_hair(scene, depth, linear)
    out = np.empty((size, size, 3), np.uint8)
    shading.resolve(
        linear, supersample, shading.TONE, (shading.TONE_STEPS - 1) / shading.TONE_MAX, out
    )
    return out


def _stage(params: np.ndarray, samples: int) -> _Scene:
    """Builds the meshes of parameters `[P]`, poses them and casts the key light on them."""
    mesh = head.build(params, shading.NOISE)
    f = mesh.face[0]
    rotation, body = _pose(f)
    skin = _place(mesh.position, mesh.head_share, rotation, body)
    hair = _place(mesh.hair_position, mesh.hair_share, rotation, body)
    mesh.attribute[:, head.NX : head.NZ + 1] = _turn(mesh.normal, mesh.head_share, rotation, body)
    mesh.attribute[:, head.X : head.Z + 1] = mesh.position
    mesh.hair_attribute[:, head.NX : head.NZ + 1] = _turn(
        mesh.hair_normal, mesh.hair_share, rotation, body
    )

    light = _light(f)
    skin_lit, hair_lit = _seen_from(light, skin), _seen_from(light, hair)
    shadow = np.full((_SHADOW, _SHADOW), 1e9, np.float32)
    shading.depth_map(skin_lit, head.CASTER_FACES, shadow)
    if f["hair_amount"] > 0.05:
        # every other triangle: hair lets about half of the light through
        shading.depth_map(hair_lit, head.HAIR_FACES[::2], shadow)
    shading.light_received(skin_lit, shadow, 2.2, mesh.attribute)
    shading.light_received(hair_lit, shadow, 3.0, mesh.hair_attribute)

    half = light + np.array([0, 0, 1.0])
    half /= np.linalg.norm(half)
    ambient = f["light_amb"]
    to_head = rotation.T
    lights = np.concatenate(
        [to_head @ light, to_head @ half, light, half, [ambient * 1.15, 1.35 - 1.0 * ambient]]
    )
    return _Scene(mesh, rotation, body, skin, hair, lights, _palette(f), samples)


def _draw_skin(scene: _Scene, linear: np.ndarray) -> np.ndarray:
    """Draws background, head and bust; returns the depth of every sample."""
    mesh = scene.mesh
    f = mesh.face[0]
    background = np.empty((97, 97, 3))
    shading.paint_background(
        mesh.face, shading.NOISE, _muted(f["bg_r"], f["bg_g"], f["bg_b"]), background
    )
    eye = scene.rotation.T @ (np.array([0, _CENTRE_Y, _DISTANCE + _PIVOT[2]]) - _PIVOT) + _PIVOT
    buffers = scene.buffers()
    shading.rasterize(_project(scene.skin, scene.samples), head.FACES, 1, *buffers)
    shading.shade_skin(
        mesh.face,
        shading.NOISE,
        scene.palette,
        scene.lights,
        eye,
        scene.samples / _WINDOW,
        head.FACES,
        head.EAR_FACE,
        mesh.attribute,
        *buffers,
        background,
        linear,
    )
    return buffers[0]


def _draw_glasses(scene: _Scene, depth: np.ndarray, linear: np.ndarray) -> None:
    """Draws glasses over the picture, where nothing is nearer; updates the depth."""
    wire, wire_normal = head.glasses(scene.mesh.face[0])
    rigid = np.ones(len(wire), np.float32)
    wire = _place(wire, rigid, scene.rotation, scene.body)
    buffers = scene.buffers()
    shading.rasterize(_project(wire, scene.samples), head.GLASS_FACES, 0, *buffers)
    shading.shade_glasses(
        scene.mesh.face,
        scene.palette,
        scene.lights,
        head.GLASS_FACES,
        _turn(wire_normal, rigid, scene.rotation, scene.body),
        *buffers,
        depth,
        linear,
    )


def _draw_hair(scene: _Scene, depth: np.ndarray, linear: np.ndarray) -> None:
    """Draws hair over the picture, where nothing is nearer."""
    grid = scene.hair.reshape(head.HAIR_ROWS, head.HAIR_COLUMNS, 3)
    tangent = np.gradient(grid, axis=0).reshape(-1, 3).astype(np.float32)
    screen = _project(scene.hair, scene.samples)
    # the far curtain's inside first: the near one's thin ends must not punch holes into it
    for facing in (-1, 1):
        buffers = scene.buffers()
        shading.rasterize(screen, head.HAIR_FACES, facing, *buffers)
        shading.shade_hair(
            scene.mesh.face,
            shading.NOISE,
            scene.palette,
            scene.lights,
            head.HAIR_FACES,
            scene.mesh.hair_attribute,
            tangent,
            *buffers,
            depth,
            linear,
        )


_PINNED = 512  # px, side of the pictures in which points are pinned
_HIDDEN = 0.04  # head units behind the skin in front, from which a point counts as hidden

# -- landmarks -------------------------------------------------------------------------------


def landmarks(params: np.ndarray) -> dict[str, np.ndarray]:
    """Computes points of the face analytically; they move smoothly with every parameter.

    Args:
        params: `[P]`.

    Returns:
        By name, `[2]` each, x right and y down in fractions of the picture's side: eye_l, eye_r
        (middle of the fissure), mouth_l, mouth_r (corners), mouth (middle of the opening), nose
        (tip), chin, brow_l, brow_r, crown. "l" is the subject's left.

    Raises:
        ValueError: as `render`.
    """
    p = np.clip(check(params, 1), LOW, HIGH)
    f = head.face_record(p)[0]
    wide = max(f["smile"], 0.0)
    half = 0.252 * f["mouth_w"] * (1 + 0.22 * wide - 0.36 * f["pucker"] - 0.07 * f["jaw"])
    forward = 0.09 * f["pucker"]
    eye_front = f["eye_z"] + head.LID
    points = {}
    for side, name in ((1.0, "l"), (-1.0, "r")):
        smile = f["smile"] + head.SKEW * f["mouth_skew"] * side * min(3 * half, 1.0)
        lift = f["brow_raise"] + 0.5 * f["brow_skew"] * side
        points[f"eye_{name}"] = (side * f["eye_x"], 0.005, eye_front)
        points[f"mouth_{name}"] = (
            0.03 * f["mouth_skew"] + side * half,
            f["mouth_y"] + 0.086 * smile - 0.012,
            -0.02 + forward,
        )
        points[f"brow_{name}"] = (side * f["eye_x"], 0.22 + f["brow_y"] + 0.115 * lift, 0.0)
    points["mouth"] = (0.0, f["mouth_y"] - 0.085 * f["jaw"], 0.09 + forward)
    points["nose"] = (0.0, f["nose_y"], 0.28 * f["nose_p"])
    points["chin"] = (0.0, f["chin_y"] + 0.05 - 0.24 * f["jaw"], 0.02 - 0.10 * f["jaw"])
    points["crown"] = (0.0, 1.15 * f["head_h"], -0.87)
    rotation, body = _pose(f)
    placed = _place(np.array(list(points.values())), np.ones(len(points)), rotation, body)
    xy = (_project(placed, 1024)[:, :2] + 0.5) / 1024
    return dict(zip(points, xy, strict=True))


class Pins(NamedTuple):
    """Points that stick to the skin; by their numbers they are the same on everybody."""

    faces: np.ndarray  # [K, 3] vertices of the triangles that they lie on
    weights: np.ndarray  # [K, 3] of the vertices; NaN for points that missed the skin


def pin(params: np.ndarray, points: np.ndarray) -> Pins:
    """Sticks points of a picture to the skin that is there, under hair and glasses.

    Args:
        params: `[P]` of the picture.
        points: `[K, 2]`, x right and y down in fractions of its side.

    Raises:
        ValueError: as `render`.
    """
    scene = _stage(np.clip(check(params, 1), LOW, HIGH), _PINNED)
    screen = _project(scene.skin, _PINNED)
    buffers = scene.buffers()
    shading.rasterize(screen, head.FACES, 1, *buffers)
    wanted = np.asarray(points, np.float64) * _PINNED - 0.5
    x, y = np.clip(wanted.round().astype(int), 0, _PINNED - 1).T
    faces = head.FACES[buffers[1][y, x]]
    corners = screen[faces, :2].astype(np.float64)
    sides = np.stack([corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]], 2)
    with np.errstate(all="ignore"):
        (a, b), (c, d) = sides.transpose(1, 2, 0)
        px, py = (wanted - corners[:, 0]).T
        second, third = np.stack([d * px - b * py, a * py - c * px]) / (a * d - b * c)
    weights = np.stack([1 - second - third, second, third], 1)
    weights[buffers[0][y, x] > 1e8] = np.nan
    return Pins(faces, weights)


def follow(params: np.ndarray, pins: Pins) -> tuple[np.ndarray, np.ndarray]:
    """Computes where pinned points are in a picture.

    Args:
        params: `[P]` of the picture.
        pins: K of them.

    Returns:
        `[K, 3]`: x, y as for `pin`, and depth in the same unit at the head's distance, negative
        towards the camera; and `[K]` bool, whether no skin hides a point.

    Raises:
        ValueError: as `render`.
    """
    scene = _stage(np.clip(check(params, 1), LOW, HIGH), _PINNED)
    placed = (scene.skin[pins.faces] * pins.weights[..., None]).sum(1)
    screen = _project(placed, _PINNED)
    buffers = scene.buffers()
    shading.rasterize(_project(scene.skin, _PINNED), head.FACES, 1, *buffers)
    x, y = np.clip(np.nan_to_num(screen[:, :2]).round().astype(int), 0, _PINNED - 1).T
    nearest = buffers[0][y, x]
    seen = np.abs(screen[:, 2] - nearest) < _HIDDEN
    depth = (screen[:, 2] - _DISTANCE) / _WINDOW
    return np.column_stack([(screen[:, :2] + 0.5) / _PINNED, depth]), seen


# -- acting ----------------------------------------------------------------------------------


def random_identity(seed: int) -> np.ndarray:
    """Draws a person with appearance, light and background, `[P]`; neutral face, frontal pose."""
    p = from_normal(np.random.default_rng(seed).standard_normal(len(PARAMETERS)))
    p[MOTION] = 0.0
    p[INDEX["glasses"]] = round(p[INDEX["glasses"]])  # a person wears them or does not
    return p


def transfer(motion: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """Lets another identity perform the same expressions and poses.

    Args:
        motion: `[T, P]`, whose expressions and poses are taken.
        identity: `[P]`, of which all else is taken.

    Returns:
        `[T, P]`.
    """
    moves, who = check(motion, 2), check(identity, 1)
    return np.where(MOTION, moves, who)


def _ease(t: np.ndarray, start: float, rise: float, hold: float, fall: float) -> np.ndarray:
    """Eases from 0 up to 1 within `rise` from `start` on, holds, and eases back; seconds."""
    up = np.clip((t - start) / rise, 0, 1)
    down = np.clip((t - start - rise - hold) / fall, 0, 1)
    return up * up * (3 - 2 * up) * (1 - down * down * (3 - 2 * down))


def _drift(rng: np.random.Generator, t: np.ndarray, rate: float) -> np.ndarray:
    """Draws smooth motion of about unit size and `rate` changes of direction a second."""
    out = np.zeros_like(t)
    for octave, weight in ((1.0, 0.8), (2.1, 0.5), (4.3, 0.2)):
        out += weight * np.sin(2 * np.pi * (0.5 * rate * octave * t + rng.random()))
    return out


def _blinks(rng: np.random.Generator, t: np.ndarray, every: float) -> np.ndarray:
    """Draws spontaneous blinks: shut in 70 ms, open again in 120 ms."""
    out = np.zeros_like(t)
    at = rng.uniform(0.4, every)
    while at < t[-1]:
        out = np.maximum(out, _ease(t, at, 0.07, rng.uniform(0.01, 0.05), 0.12))
        at += rng.uniform(0.55, 1.45) * every
    return out


def _saccades(rng: np.random.Generator, t: np.ndarray, std: float, every: float) -> np.ndarray:
    """Draws fixations `[T, 2]` joined by fast jumps (about 50 ms)."""
    out = np.zeros((len(t), 2))
    current = np.zeros(2)
    at = rng.uniform(0.3, every)
    while at < t[-1]:
        target = np.clip(rng.normal(0, std, 2) * (1, 0.7), -1, 1)
        out += np.clip((t - at) / 0.05, 0, 1)[:, None] * (target - current)
        current = target
        at += rng.uniform(0.4, 1.6) * every
    return out


def _start(identity: np.ndarray, frames: int, fps: float) -> tuple[np.ndarray, np.ndarray]:
    who = check(identity, 1)
    if frames < 1 or not fps > 0:
        raise ValueError(
            f"frames is {frames} and fps {fps}; a clip needs at least one frame and "
            "a positive rate."
        )
    clip = np.tile(np.where(MOTION, 0.0, who), (frames, 1))
    return clip, np.arange(frames) / fps


# The phases of a self-scan in order, with their shares of its time.
_SCAN = (
    ("rest", 1.0),
    ("yaw", 2.6),
    ("vowels", 3.2),
    ("pitch", 1.8),
    ("smile", 2.2),
    ("gaze", 2.6),
    ("brows", 2.0),
    ("wink", 0.9),
    ("roll", 1.6),
    ("teeth", 1.4),
    ("puff", 1.1),
    ("jaw", 1.6),
    ("pucker", 1.1),
    ("skew", 1.4),
    ("turned_talk", 3.0),
    ("rest", 0.8),
)


def self_scan(identity: np.ndarray, frames: int, fps: float = 30, seed: int = 0) -> np.ndarray:
    """Makes the motion of a good self-scan.

    It has turns of the head, vowels, smiles, brows, gaze and blinks, and among them exactly one
    wink, one pair of puffed cheeks and one pucker. The programme is stretched over the clip.

    Args:
        identity: `[P]`.
        frames: of the clip.
        fps: of the clip.
        seed: of the random motion.

    Returns:
        `[frames, P]`.
    """
    p, t = _start(identity, frames, fps)
    rng = np.random.default_rng([seed, 1])
    total = sum(share for _, share in _SCAN)
    length = frames / fps
    set_ = {name: p[:, i] for name, i in INDEX.items()}  # views into the clip

    wink_at = (0.0, 0.0)
    gaze = 0.12 * _saccades(rng, t, 0.5, 1.2)
    start = 0.0
    for name, share in _SCAN:
        d = share * length / total
        w = _ease(t, start, 0.12 * d, 0.76 * d, 0.12 * d)
        s = np.clip((t - start) / d, 0, 1)
        once = _ease(t, start + 0.1 * d, 0.3 * d, 0.2 * d, 0.3 * d)
        if name == "yaw":
            set_["yaw"] += 36 * w * np.sin(2 * np.pi * s) * rng.uniform(0.9, 1.05)
            gaze[:, 0] -= 0.35 * w * np.sin(2 * np.pi * s)
        elif name == "pitch":
            set_["pitch"] += 15 * w * np.sin(2 * np.pi * s)
        elif name == "roll":
            set_["roll"] += 11 * w * np.sin(2 * np.pi * s)
        elif name in ("vowels", "turned_talk"):
            beat = np.sin(np.pi * 5 * s) ** 2
            set_["jaw"] += 0.62 * w * beat * (0.6 + 0.4 * np.sin(9 * s))
            set_["smile"] += 0.35 * w * np.maximum(np.sin(np.pi * 5 * s + 2.2), 0)
            set_["teeth"] += 0.5 * w * (1 - beat)
            if name == "turned_talk":
                set_["yaw"] += 22 * w * np.sin(2 * np.pi * s)
                set_["pitch"] += 7 * w * np.sin(4 * np.pi * s)
        elif name == "smile":
            set_["smile"] += 0.9 * once
            set_["teeth"] += _ease(t, start + 0.42 * d, 0.15 * d, 0.15 * d, 0.15 * d)
        elif name == "gaze":
            gaze[:, 0] += 0.9 * w * np.sin(2 * np.pi * s)
            gaze[:, 1] += 0.8 * w * np.sin(4 * np.pi * s)
        elif name == "brows":
            set_["brow_raise"] += 0.9 * _ease(t, start, 0.15 * d, 0.12 * d, 0.13 * d)
            set_["frown"] += 0.9 * _ease(t, start + 0.45 * d, 0.15 * d, 0.15 * d, 0.2 * d)
            set_["brow_skew"] += 0.8 * _ease(t, start + 0.72 * d, 0.1 * d, 0.05 * d, 0.13 * d)
        elif name == "wink":
            eye = "blink_l" if rng.random() < 0.5 else "blink_r"
            wink = _ease(t, start + 0.2 * d, 0.2 * d, 0.25 * d, 0.25 * d)
            wink_at = (start, start + d)
            set_["smile"] += 0.25 * wink
            set_["mouth_skew"] += (0.5 if eye == "blink_l" else -0.5) * wink
        elif name == "teeth":
            set_["teeth"] += once
        elif name == "puff":
            set_["puff"] += once
        elif name == "jaw":
            set_["jaw"] += 0.95 * once
        elif name == "pucker":
            set_["pucker"] += once
        elif name == "skew":
            set_["mouth_skew"] += w * np.sin(2 * np.pi * s)
        start += d
    for name, size in (("yaw", 1.2), ("pitch", 0.8), ("roll", 0.8)):
        set_[name] += size * _drift(rng, t, 0.5)
    p[:, INDEX["gaze_x"]], p[:, INDEX["gaze_y"]] = gaze.T
    # nobody blinks in the middle of a wink
    both = _blinks(rng, t, 3.0) * ((t < wink_at[0]) | (t > wink_at[1]))
    set_["blink_l"][:] = both
    set_["blink_r"][:] = both
    set_[eye][:] = np.maximum(set_[eye], wink)
    return np.clip(p, LOW, HIGH)


def performance(identity: np.ndarray, frames: int, fps: float = 30, seed: int = 0) -> np.ndarray:
    """Makes a talking performance: phrases of syllables (4 to 6 a second) with pauses, blinks,
    saccades, sway of the head and accents of the brows.

    Args:
        identity: `[P]`.
        frames: of the clip.
        fps: of the clip.
        seed: of the random motion.

    Returns:
        `[frames, P]`.
    """
    p, t = _start(identity, frames, fps)
    rng = np.random.default_rng([seed, 2])
    set_ = {name: p[:, i] for name, i in INDEX.items()}
    at = rng.uniform(0.1, 0.4)
    while at < t[-1]:
        phrase_end = at + rng.uniform(1.2, 3.0)
        accent = rng.uniform(at, phrase_end)
        set_["brow_raise"] += rng.uniform(0.2, 0.75) * _ease(t, accent, 0.18, 0.15, 0.35)
        set_["pitch"] += rng.uniform(1.5, 4.0) * _ease(t, accent, 0.15, 0.05, 0.3)
        while at < phrase_end:
            d = rng.uniform(0.16, 0.26)
            open_ = _ease(t, at, 0.45 * d, 0.1 * d, 0.55 * d)
            vowel = rng.random()
            set_["jaw"] += rng.uniform(0.2, 0.75) * open_ * (0.45 if vowel < 0.4 else 1.0)
            if vowel < 0.22:
                set_["pucker"] += rng.uniform(0.35, 0.7) * open_
            elif vowel < 0.5:
                set_["smile"] += rng.uniform(0.15, 0.4) * open_
                set_["teeth"] += rng.uniform(0.3, 0.8) * open_
            at += d
        if rng.random() < 0.5:
            set_["smile"] += rng.uniform(0.3, 0.7) * _ease(t, phrase_end - 0.2, 0.3, 0.3, 0.5)
        at = phrase_end + rng.uniform(0.25, 0.8)
    for name, size in (
        ("yaw", 9.0),
        ("pitch", 3.5),
        ("roll", 3.0),
        ("mouth_skew", 0.12),
        ("brow_skew", 0.15),
    ):
        set_[name] += size * _drift(rng, t, 0.45)
    gaze = _saccades(rng, t, 0.35, 0.9)
    set_["gaze_x"][:] = gaze[:, 0] - 0.015 * set_["yaw"]
    set_["gaze_y"][:] = gaze[:, 1] + 0.01 * set_["pitch"]
    set_["blink_l"][:] = set_["blink_r"][:] = _blinks(rng, t, 2.6)
    return np.clip(p, LOW, HIGH)
