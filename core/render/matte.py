"""Mattes: what of a generated picture is laid over the plate, and the parts of its face.

Three sources, each for what it knows best. MediaPipe's person segmenter says where the head is and
where its backdrop begins (256 px, the picture alone). Along that edge, where hair and skin differ
from the backdrop, their difference says it at the picture's own resolution. The mesh limits the
matte to the face, and draws mouth and eyes.

The driver's face in the plate must not look out beside a narrower one: the matte covers both
outlines, and beyond the generated head its colours are extended (`Head.fill`), so that the backdrop
it was generated with never comes along.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import CubicSpline
from torch import Tensor, nn

from core.face.keypoints import (
    FACE_OVAL,
    INNER_LIPS,
    LEFT_EYE,
    LEFT_IRIS,
    OUTER_LIPS,
    RIGHT_EYE,
    RIGHT_IRIS,
)
from core.face.landmarks import detect_landmarks
from core.face.network import aligned_roi, model_path, to_picture
from core.face.tflite_graph import load_tflite
from core.media.clip import Window

HEAD = 256  # side of the segmenter's pictures, px

# The face matte's edge, in sides of the aligned square: how far beyond the face's outline its
# middle lies, and the sigma of its softness; the same softness of the driver's outline and parts.
GROW = 0.02
FOREHEAD = 0.09  # the mesh ends in the forehead: so much further up, a fringe meets the hair
SOFT = 0.012
DRIVER_SOFT = 0.006
PART_SOFT = 0.002

# Colour distance (sRGB, 0..1, over three channels) at which head and backdrop half differ.
_TELLABLE = 0.08
_UNSURE = 3  # px of the segmenter's pictures that its edge may be off by
_BLED = 1 / 200  # of the side: how far the backdrop's colour bleeds into a generated head
_VISIBLE = 1e-3  # less of a face is none: keeps data windows tight
_STEPS = 4  # sub-pixels per pixel and axis of drawn areas
_CURVE = 8  # points of a drawn curve for each of the mesh's


class Seen(NamedTuple):
    """What the networks see in generated pictures."""

    landmarks: np.ndarray  # [B, 478, 2] float32, in sides of the picture, origin top left
    heads: np.ndarray  # [B, HEAD, HEAD] uint8, 255 where the person is


class Head(NamedTuple):
    """The generated head, as a layer of its own."""

    matte: np.ndarray  # [S, S] float32 in 0..1, head with hair, neck and clothes
    confidence: np.ndarray  # [S, S] float32 in 0..1, less where its edge is hard to tell
    fill: np.ndarray  # [S, S, 3] float32, the picture with the head's colours beyond its edge


def see(pictures: Tensor) -> Seen:
    """Finds faces and heads.

    Args:
        pictures: `[B, 3, R, R]` aligned, sRGB in [-1, 1], any R.
    """
    size = pictures.shape[-1]
    with torch.no_grad():
        roi = aligned_roi(size, len(pictures)).to(pictures.device)
        landmarks = to_picture(detect_landmarks(pictures).landmarks, roi)[..., :2]
        small = F.interpolate(pictures, (HEAD, HEAD), mode="bicubic", antialias=True)
        (heads,) = _segmenter(str(pictures.device))((small * 0.5 + 0.5).clamp(0, 1)).values()
    # The mesh counts from the first pixel's centre.
    points = ((landmarks + 0.5) / size).cpu().numpy().astype(np.float32)
    # Within the face there are no holes, whatever glasses or eyes look like to the segmenter.
    faces = [
        area([grown(curve(p[[*FACE_OVAL]] * HEAD), -GROW * HEAD)], Window(0, 0, HEAD, HEAD), 2)
        for p in points
    ]
    whole = np.maximum(heads[..., 0].cpu().numpy(), faces)
    return Seen(points, np.round(whole * 255).astype(np.uint8))


@lru_cache(maxsize=2)
def _segmenter(device: str) -> nn.Module:
    """`[B, 3, HEAD, HEAD]` sRGB in 0..1 -> one output `[B, HEAD, HEAD, 1]` in 0..1."""
    return load_tflite(model_path("selfie_segmentation/selfie_segmentation.tflite")).to(device)


def head(picture: np.ndarray, seen: np.ndarray) -> Head:
    """Cuts the generated head out of its backdrop.

    Args:
        picture: `[S, S, 3]` float32, sRGB in 0..1.
        seen: `[HEAD, HEAD]`, 0..1, the segmenter's matte.
    """
    size = len(picture)
    small = cv2.resize(picture, (HEAD, HEAD), interpolation=cv2.INTER_AREA)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * _UNSURE + 1, 2 * _UNSURE + 1))
    inside, outside = (np.clip(10 * cv2.erode(m, disc) - 9, 0, 1) for m in (seen, 1 - seen))
    edge = cv2.GaussianBlur(1 - inside - outside, (0, 0), _UNSURE / 2)

    def large(values: np.ndarray) -> np.ndarray:
        return cv2.resize(values, (size, size), interpolation=cv2.INTER_CUBIC)

    foreground, backdrop = (_extended(small, weight) for weight in (inside, outside))
    squares = _extended(small**2, inside) + _extended(small**2, outside)
    spread = (squares - foreground**2 - backdrop**2).clip(0).sum(-1)
    apart = ((foreground - backdrop) ** 2).sum(-1)
    trust = large(apart / (apart + spread + _TELLABLE**2)).clip(0, 1)
    foreground, backdrop = large(foreground), large(backdrop)
    axis = foreground - backdrop
    share = ((picture - backdrop) * axis).sum(-1) / ((axis**2).sum(-1) + 1e-6)
    coarse, edge = large(seen).clip(0, 1), large(edge).clip(0, 1)
    matte = coarse + edge * trust * (share.clip(0, 1) - coarse)
    # The outermost pixels of the head have some of the backdrop in them.
    reach = 2 * max(round(size * _BLED), 1) + 1
    pure = cv2.erode(matte, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
    pure = cv2.blur(pure, (reach, reach))
    fill = foreground + (pure**2)[..., None] * (picture - foreground)
    return Head(matte, 1 - edge * (1 - trust), fill)


def _extended(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Values `[H, W, C]` where their weight `[H, W]` is 1, smoothly extended to where it is 0.

    A pyramid: what a level lacks comes from the next coarser one.
    """
    weight = weight[..., None]
    if len(values) <= 4:
        return np.broadcast_to(
            (values * weight).sum((0, 1)) / max(float(weight.sum()), 1e-6), values.shape
        )
    down = cv2.pyrDown(np.dstack([values * weight, weight]))
    mean = down[..., :-1] / np.maximum(down[..., -1:], 1e-6)
    coarse = _extended(mean, np.minimum(2 * down[..., -1], 1))
    coarse = cv2.pyrUp(np.ascontiguousarray(coarse), dstsize=values.shape[1::-1])
    return coarse + weight * (values - coarse)


def face(
    made: np.ndarray, driver: np.ndarray, head_matte: np.ndarray, window: Window, side: float
) -> np.ndarray:
    """The matte of the generated face over the plate.

    Args:
        made: `[478, 2]` mesh of the generated face, continuous plate px.
        driver: the same of the driving face; NaN where it was not found.
        head_matte: `[h, w]` of the window, `Head.matte` in its place.
        window: of the plate.
        side: of the aligned square, plate px.

    Returns:
        `[h, w]` float32 in 0..1: both outlines, grown and softened, as far as there is generated
        head, or the driver's face to hide.
    """
    ovals = [points[[*FACE_OVAL]] for points in (made, driver) if np.isfinite(points).all()]
    reach = [grown(curve(_raised(oval, FOREHEAD * side)), GROW * side) for oval in ovals]
    hidden = area([curve(oval) for oval in ovals[1:]], window, DRIVER_SOFT * side)
    alpha = area(reach, window, SOFT * side) * np.maximum(head_matte, hidden)
    return np.where(alpha < _VISIBLE, np.float32(0), alpha)


def parts(made: np.ndarray, window: Window, side: float) -> dict[str, np.ndarray]:
    """Mattes of the face's parts, by name, each `[h, w]` float32 in 0..1.

    `mouth` within the outer lips, `inner` between the lips, `eyes` between the lids, `iris` as far
    as the lids show it.

    Args:
        made: `[478, 2]` mesh of the generated face, continuous plate px.
        window: of the plate.
        side: of the aligned square, plate px.
    """
    soft = PART_SOFT * side

    def drawn(*rings: tuple[int, ...]) -> np.ndarray:
        return area([curve(made[[*ring]]) for ring in rings], window, soft)

    eyes = drawn(RIGHT_EYE, LEFT_EYE)
    irises = [_circle(made[[*iris]]) for iris in (RIGHT_IRIS, LEFT_IRIS)]
    return {
        "mouth": drawn(OUTER_LIPS),
        "inner": drawn(INNER_LIPS),
        "eyes": eyes,
        "iris": area(irises, window, soft) * eyes,
    }


def skin(made: np.ndarray, size: int) -> np.ndarray:
    """Where an aligned picture shows skin alone: within the outline, but for mouth and eyes.

    Args:
        made: `[478, 2]` mesh, continuous px of the picture.
        size: its side, px.

    Returns:
        `[size, size]` bool.
    """
    window = Window(0, 0, size, size)
    inner = area([grown(curve(made[[*FACE_OVAL]]), -GROW * size)], window, 0)
    parts = [curve(made[[*ring]]) for ring in (OUTER_LIPS, RIGHT_EYE, LEFT_EYE)]
    others = area([grown(part, GROW * size) for part in parts], window, 0)
    return inner - others > 0.5


def curve(points: np.ndarray) -> np.ndarray:
    """A smooth closed curve through `[P, 2]` points, as a polygon `[8 P, 2]`."""
    closed = np.concatenate([points, points[:1]]).astype(np.float64)
    steps = np.hypot(*np.diff(closed, axis=0).T)
    at = np.concatenate([[0], np.cumsum(np.maximum(steps, 1e-6))])
    spline = CubicSpline(at, closed, bc_type="periodic")
    return spline(np.interp(np.arange(_CURVE * len(points)) / _CURVE, np.arange(len(at)), at))


def _raised(oval: np.ndarray, by: float) -> np.ndarray:
    """The face's oval `[36, 2]`, its upper end moved up by so many px."""
    up = oval[0] - oval[len(oval) // 2]  # from the chin to the forehead
    up = up / np.hypot(*up)
    out = oval - oval.mean(0)
    share = (out @ up / np.hypot(*out.T)).clip(0) ** 2
    return oval + by * share[:, None] * up


def grown(outline: np.ndarray, by: float) -> np.ndarray:
    """A closed polygon `[P, 2]`, moved outwards by so many px."""
    along = np.roll(outline, -1, 0) - np.roll(outline, 1, 0)
    normal = np.stack([along[:, 1], -along[:, 0]], 1)
    normal /= np.maximum(np.hypot(*normal.T), 1e-9)[:, None]
    x, y = outline.T
    clockwise = np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) > 0  # as seen, y points down
    return outline + (by if clockwise else -by) * normal


def area(polygons: Sequence[np.ndarray], window: Window, soft: float) -> np.ndarray:
    """What polygons cover together, anti-aliased.

    Args:
        polygons: `[P, 2]` each, continuous plate px.
        window: of the plate.
        soft: sigma of a Gaussian that softens the edge, px.

    Returns:
        `[h, w]` float32 in 0..1.
    """
    margin = int(np.ceil(4 * soft)) + 1  # the edge beyond the window softens what is in it
    shape = (window.height + 2 * margin, window.width + 2 * margin)
    fine = np.zeros((shape[0] * _STEPS, shape[1] * _STEPS), np.uint8)
    origin = np.array([window.x - margin, window.y - margin])
    for polygon in polygons:
        # Half a sub-pixel less: cv2 paints the outline too.
        inside = grown((polygon - origin) * _STEPS, -0.5) - 0.5
        cv2.fillPoly(fine, [np.round(inside * 16).astype(np.int32)], (255,), shift=4)
    covered: np.ndarray = cv2.resize(fine, shape[::-1], interpolation=cv2.INTER_AREA)
    covered = covered.astype(np.float32) / 255
    if soft:
        covered = cv2.GaussianBlur(covered, (0, 0), soft, borderType=cv2.BORDER_REPLICATE)
    return covered[margin:-margin, margin:-margin]


def _circle(iris: np.ndarray) -> np.ndarray:
    """The iris's edge, from its centre and four points around `[5, 2]`."""
    radius = np.hypot(*(iris[1:] - iris[0]).T).mean()
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return iris[0] + radius * np.stack([np.cos(angle), np.sin(angle)], 1)
