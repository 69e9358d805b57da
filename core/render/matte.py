"""Mattes: the part of a generated picture that is laid over the plate, and the parts of its face.

Three sources, each for what it is best at. MediaPipe's person segmenter finds the head and its edge
to the backdrop (256 px, from the picture alone). Along that edge, where hair and skin differ in
colour from the backdrop, the difference gives the matte at the picture's own resolution. The mesh
limits the matte to the face, and outlines mouth and eyes.

The driving face must not show beside a narrower generated one: the matte covers both outlines, and
beyond the generated head its colours are extended (`HeadCutout.fill`), so that the generated
backdrop is never visible.
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

HEAD_SIZE = 256  # side of the segmenter's pictures and masks, px

# The face matte's edge, in sides of the aligned square.
EDGE_OFFSET = 0.02  # distance of its middle beyond the face's outline
FOREHEAD_OFFSET = 0.09  # further up, because the mesh ends on the forehead, below the hair line
# Softness: sigmas of Gaussians.
EDGE_SIGMA = 0.012  # of the face matte
DRIVING_EDGE_SIGMA = 0.006  # of the area that hides the driving face
PART_EDGE_SIGMA = 0.002  # of mouth, eyes and irises

# Distance of head and backdrop colour (sRGB, 0..1, three channels) at which it is half trusted.
_SEPARABLE_DISTANCE = 0.08
_EDGE_ERROR = 3  # px by which the segmenter's edge may be off
_BLEED = 1 / 200  # share of the side over which the backdrop bleeds into a generated head
_MIN_ALPHA = 1e-3  # smaller values become 0, which keeps data windows tight
_SUBPIXELS = 4  # per pixel and axis of drawn areas
_CURVE_POINTS = 8  # points of a drawn curve for each point of the mesh


class Segmentation(NamedTuple):
    """The faces and heads that the networks find in generated pictures."""

    landmarks: np.ndarray  # [B, 478, 2] float32, in sides of the picture, origin top left
    heads: np.ndarray  # [B, HEAD_SIZE, HEAD_SIZE] uint8, 255 where the person is


class HeadCutout(NamedTuple):
    """The generated head without its backdrop."""

    matte: np.ndarray  # [S, S] float32 in 0..1: head with hair, neck and clothes
    confidence: np.ndarray  # [S, S] float32 in 0..1, low where the edge is uncertain
    fill: np.ndarray  # [S, S, 3] float32, the picture with the head's colours extended


def segment(pictures: Tensor) -> Segmentation:
    """Finds faces and heads in aligned pictures.

    Args:
        pictures: `[B, 3, R, R]` sRGB in [-1, 1], any R.
    """
    size = pictures.shape[-1]
    with torch.no_grad():
        roi = aligned_roi(size, len(pictures)).to(pictures.device)
        landmarks = to_picture(detect_landmarks(pictures).landmarks, roi)[..., :2]
        small = F.interpolate(pictures, (HEAD_SIZE, HEAD_SIZE), mode="bicubic", antialias=True)
        (heads,) = _segmenter(str(pictures.device))((small * 0.5 + 0.5).clamp(0, 1)).values()
    # The mesh has its origin in the first pixel's centre.
    points = ((landmarks + 0.5) / size).cpu().numpy().astype(np.float32)
    # Faces are filled: the segmenter may see holes where there are eyes or glasses.
    faces = [
        fill_polygons(
            [offset_outline(closed_curve(p[[*FACE_OVAL]] * HEAD_SIZE), -EDGE_OFFSET * HEAD_SIZE)],
            Window(0, 0, HEAD_SIZE, HEAD_SIZE),
            2,
        )
        for p in points
    ]
    whole = np.maximum(heads[..., 0].cpu().numpy(), faces)
    return Segmentation(points, np.round(whole * 255).astype(np.uint8))


@lru_cache(maxsize=2)
def _segmenter(device: str) -> nn.Module:
    """Loads the network: `[B, 3, S, S]` sRGB in 0..1 -> one output `[B, S, S, 1]` in 0..1."""
    return load_tflite(model_path("selfie_segmentation/selfie_segmentation.tflite")).to(device)


def cut_out_head(picture: np.ndarray, mask: np.ndarray) -> HeadCutout:
    """Cuts the generated head out of its backdrop.

    Args:
        picture: `[S, S, 3]` float32, sRGB in 0..1.
        mask: `[HEAD_SIZE, HEAD_SIZE]` in 0..1, the segmenter's.
    """
    size = len(picture)
    small = cv2.resize(picture, (HEAD_SIZE, HEAD_SIZE), interpolation=cv2.INTER_AREA)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * _EDGE_ERROR + 1, 2 * _EDGE_ERROR + 1))
    inside, outside = (np.clip(10 * cv2.erode(m, disc) - 9, 0, 1) for m in (mask, 1 - mask))
    edge = cv2.GaussianBlur(1 - inside - outside, (0, 0), _EDGE_ERROR / 2)

    def large(values: np.ndarray) -> np.ndarray:
        return cv2.resize(values, (size, size), interpolation=cv2.INTER_CUBIC)

    # Both sides' colours everywhere, and their variance, from where each side is pure.
    foreground, backdrop = (_extrapolate(small, weight) for weight in (inside, outside))
    squares = _extrapolate(small**2, inside) + _extrapolate(small**2, outside)
    variance = (squares - foreground**2 - backdrop**2).clip(0).sum(-1)
    distance = ((foreground - backdrop) ** 2).sum(-1)
    trust = large(distance / (distance + variance + _SEPARABLE_DISTANCE**2)).clip(0, 1)
    foreground, backdrop = large(foreground), large(backdrop)
    axis = foreground - backdrop
    share = ((picture - backdrop) * axis).sum(-1) / ((axis**2).sum(-1) + 1e-6)
    coarse, edge = large(mask).clip(0, 1), large(edge).clip(0, 1)
    matte = coarse + edge * trust * (share.clip(0, 1) - coarse)
    # The outermost pixels of the head contain some of the backdrop: they count less.
    reach = 2 * max(round(size * _BLEED), 1) + 1
    pure = cv2.erode(matte, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
    pure = cv2.blur(pure, (reach, reach))
    fill = foreground + (pure**2)[..., None] * (picture - foreground)
    return HeadCutout(matte, 1 - edge * (1 - trust), fill)


def _extrapolate(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Extends values `[H, W, C]` smoothly from where their weight `[H, W]` is 1 to where it is 0.

    A pyramid: where a level has no values it takes those of the next coarser one.
    """
    weight = weight[..., None]
    if len(values) <= 4:
        return np.broadcast_to(
            (values * weight).sum((0, 1)) / max(float(weight.sum()), 1e-6), values.shape
        )
    down = cv2.pyrDown(np.dstack([values * weight, weight]))
    mean = down[..., :-1] / np.maximum(down[..., -1:], 1e-6)
    coarse = _extrapolate(mean, np.minimum(2 * down[..., -1], 1))
    coarse = cv2.pyrUp(np.ascontiguousarray(coarse), dstsize=values.shape[1::-1])
    return coarse + weight * (values - coarse)


def face_matte(
    generated: np.ndarray, driving: np.ndarray, head_matte: np.ndarray, window: Window, side: float
) -> np.ndarray:
    """Returns the matte of the generated face over the plate.

    Args:
        generated: `[478, 2]` mesh of the generated face, continuous plate px.
        driving: `[478, 2]` mesh of the driving face, likewise; NaN where it was not found.
        head_matte: `[h, w]`, `HeadCutout.matte` over the window.
        window: part of the plate.
        side: of the aligned square, plate px.

    Returns:
        `[h, w]` float32 in 0..1: both outlines, grown and softened, where there is either generated
        head or a driving face to hide.
    """
    ovals = [points[[*FACE_OVAL]] for points in (generated, driving) if np.isfinite(points).all()]
    outlines = [
        offset_outline(
            closed_curve(_raise_forehead(oval, FOREHEAD_OFFSET * side)), EDGE_OFFSET * side
        )
        for oval in ovals
    ]
    hidden = fill_polygons(
        [closed_curve(oval) for oval in ovals[1:]], window, DRIVING_EDGE_SIGMA * side
    )
    alpha = fill_polygons(outlines, window, EDGE_SIGMA * side) * np.maximum(head_matte, hidden)
    return np.where(alpha < _MIN_ALPHA, np.float32(0), alpha)


def part_mattes(generated: np.ndarray, window: Window, side: float) -> dict[str, np.ndarray]:
    """Returns the mattes of facial parts.

    Args:
        generated: `[478, 2]` mesh of the generated face, continuous plate px.
        window: part of the plate.
        side: of the aligned square, plate px.

    Returns:
        `[h, w]` float32 in 0..1 by name: `mouth` within the outer lips, `inner` between the lips,
        `eyes` between the lids, `iris` as far as the lids leave it visible.
    """
    sigma = PART_EDGE_SIGMA * side

    def drawn(*rings: tuple[int, ...]) -> np.ndarray:
        return fill_polygons([closed_curve(generated[[*ring]]) for ring in rings], window, sigma)

    eyes = drawn(RIGHT_EYE, LEFT_EYE)
    irises = [_iris_outline(generated[[*iris]]) for iris in (RIGHT_IRIS, LEFT_IRIS)]
    return {
        "mouth": drawn(OUTER_LIPS),
        "inner": drawn(INNER_LIPS),
        "eyes": eyes,
        "iris": fill_polygons(irises, window, sigma) * eyes,
    }


def skin_mask(generated: np.ndarray, size: int) -> np.ndarray:
    """Returns where an aligned picture shows only skin: inside the outline, without mouth and eyes.

    Args:
        generated: `[478, 2]` mesh, continuous px of the picture.
        size: its side, px.

    Returns:
        `[size, size]` bool.
    """
    window = Window(0, 0, size, size)
    inner = fill_polygons(
        [offset_outline(closed_curve(generated[[*FACE_OVAL]]), -EDGE_OFFSET * size)], window, 0
    )
    parts = [closed_curve(generated[[*ring]]) for ring in (OUTER_LIPS, RIGHT_EYE, LEFT_EYE)]
    others = fill_polygons([offset_outline(part, EDGE_OFFSET * size) for part in parts], window, 0)
    return inner - others > 0.5


def closed_curve(points: np.ndarray) -> np.ndarray:
    """Returns a smooth closed curve through points `[P, 2]`, as a polygon `[8 P, 2]`."""
    closed = np.concatenate([points, points[:1]]).astype(np.float64)
    steps = np.hypot(*np.diff(closed, axis=0).T)
    at = np.concatenate([[0], np.cumsum(np.maximum(steps, 1e-6))])
    spline = CubicSpline(at, closed, bc_type="periodic")
    return spline(
        np.interp(np.arange(_CURVE_POINTS * len(points)) / _CURVE_POINTS, np.arange(len(at)), at)
    )


def _raise_forehead(oval: np.ndarray, by: float) -> np.ndarray:
    """Moves the upper end of a face's oval `[36, 2]` up by a distance in px."""
    up = oval[0] - oval[len(oval) // 2]  # from the chin to the forehead
    up = up / np.hypot(*up)
    out = oval - oval.mean(0)
    share = (out @ up / np.hypot(*out.T)).clip(0) ** 2
    return oval + by * share[:, None] * up


def offset_outline(outline: np.ndarray, by: float) -> np.ndarray:
    """Moves the edge of a closed polygon `[P, 2]` outwards by a distance in px."""
    along = np.roll(outline, -1, 0) - np.roll(outline, 1, 0)
    normal = np.stack([along[:, 1], -along[:, 0]], 1)
    normal /= np.maximum(np.hypot(*normal.T), 1e-9)[:, None]
    x, y = outline.T
    clockwise = np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) > 0  # on screen: y points down
    return outline + (by if clockwise else -by) * normal


def fill_polygons(polygons: Sequence[np.ndarray], window: Window, sigma: float) -> np.ndarray:
    """Draws the union of polygons, anti-aliased.

    Args:
        polygons: `[P, 2]` each, continuous plate px.
        window: part of the plate.
        sigma: of a Gaussian that softens the edge, px; 0 for none.

    Returns:
        `[h, w]` float32 in 0..1.
    """
    margin = int(np.ceil(4 * sigma)) + 1  # an edge outside the window softens pixels inside
    shape = (window.height + 2 * margin, window.width + 2 * margin)
    fine = np.zeros((shape[0] * _SUBPIXELS, shape[1] * _SUBPIXELS), np.uint8)
    origin = np.array([window.x - margin, window.y - margin])
    for polygon in polygons:
        # Half a sub-pixel smaller, because cv2 paints the outline too.
        inside = offset_outline((polygon - origin) * _SUBPIXELS, -0.5) - 0.5
        cv2.fillPoly(fine, [np.round(inside * 16).astype(np.int32)], (255,), shift=4)
    covered: np.ndarray = cv2.resize(fine, shape[::-1], interpolation=cv2.INTER_AREA)
    covered = covered.astype(np.float32) / 255
    if sigma:
        covered = cv2.GaussianBlur(covered, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return covered[margin:-margin, margin:-margin]


def _iris_outline(iris: np.ndarray) -> np.ndarray:
    """Returns an iris's edge `[48, 2]`, from its centre and four points on it `[5, 2]`."""
    radius = np.hypot(*(iris[1:] - iris[0]).T).mean()
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return iris[0] + radius * np.stack([np.cos(angle), np.sin(angle)], 1)
