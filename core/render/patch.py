"""A generated picture in its place in the plate, and merging it over the plate.

A patch is the face alone, in the plate's pixels and a scene-linear colour space, premultiplied by a
soft matte: the compositor merges it over the plate. Its layers have the same data window. No pixel
of the plate is in any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from core.face.alignment import from_square, paste
from core.face.stmap import stmap_to_crop, stmap_to_plate
from core.media import colour
from core.media.clip import Clip, Window
from core.render import colour_match, motion
from core.render import grain as grains
from core.render import matte as mattes
from core.render.colour_match import Match
from core.render.geometry import FaceGeometry
from core.render.grain import Grain


@dataclass(frozen=True)
class PatchOptions:
    """What is done to patches besides placing them.

    By default nothing is baked into the pixels: the compositor can add each effect from its layer,
    but could not take it out.
    """

    layers: Literal["all", "basic"] = "all"  # basic: only the uncomposited render
    match: float = 0.0  # 0..1, share of the match to the plate's skin
    grain: float = 0.0  # amount of the plate's grain; 1 is as much as the plate has
    motion_blur: float = 0.0  # shutter, degrees


@dataclass(frozen=True, eq=False)
class Patch:
    """A generated face in its place in the plate."""

    rgba: np.ndarray  # [h, w, 4] float32, premultiplied
    window: Window
    # Over the same window, by their names in `core.render.layers`, without the files' prefix.
    layers: Mapping[str, np.ndarray] = field(default_factory=dict)


def patch(
    picture: Tensor,
    geometry: FaceGeometry,
    clip: Clip,
    amount: float = 1.0,
    options: PatchOptions = PatchOptions(),
    grain: Grain | None = None,
    number: int = 0,
    colour_space: str | None = None,
) -> Patch | None:
    """Puts a generated picture into its place in a plate.

    Args:
        picture: `[3, R, R]` sRGB in [-1, 1].
        geometry: of its frame.
        clip: the plate; decides the size, and the colour space where none is given.
        amount: factor of the matte, 0..1.
        options: layers and effects.
        grain: the plate's; None adds none.
        number: the frame's number; each has grain of its own.
        colour_space: of the patch; by default `output_space` of the plate.

    Returns:
        The patch, cropped to where its alpha is not 0; None where it lies outside the plate or its
        alpha is 0 everywhere.
    """
    if not np.isfinite(geometry.quad).all():
        return None
    space = colour_space or output_space(clip)
    srgb = picture.permute(1, 2, 0).cpu().numpy() / 2 + 0.5
    head = mattes.cut_out_head(srgb, geometry.head)
    stack = np.dstack([srgb, head.fill, head.matte, head.confidence])
    placed = paste(
        torch.from_numpy(stack).permute(2, 0, 1),
        torch.from_numpy(geometry.quad),
        (clip.width, clip.height),
    )
    if placed is None:
        return None
    window = placed.window
    planes = placed.pixels.clamp(0, 1).permute(1, 2, 0).numpy()
    generated, driving = (
        from_square(points, geometry.quad) for points in (geometry.generated, geometry.driving)
    )
    face = mattes.face_matte(generated, driving, planes[..., 6], window, geometry.side)
    face *= placed.coverage.numpy()
    alpha = face[..., None] * np.float32(amount)
    graded = _graded(planes[..., 3:6], space, clip.config, geometry.match, options.match)
    rgba = np.dstack([graded * alpha, alpha])
    velocity = motion.field(generated, geometry.velocity, window)
    if options.motion_blur:
        rgba = motion.blur(rgba, velocity, options.motion_blur)

    used = np.argwhere(rgba[..., 3] > 0)
    if not len(used):
        return None
    (y0, x0), (y1, x1) = used.min(0), used.max(0) + 1
    inside = np.s_[y0:y1, x0:x1]
    rgba = rgba[inside]
    window = Window(window.x + int(x0), window.y + int(y0), int(x1 - x0), int(y1 - y0))
    render = colour.from_network(2 * planes[inside][..., :3] - 1, space, clip.config)
    half: dict[str, np.ndarray] = {"render": render}
    if grain is not None:
        noise = _premultiplied_grain(grain, rgba, window, number)
        rgba = np.dstack([rgba[..., :3] + np.float32(options.grain) * noise, rgba[..., 3]])
        half["grain"] = noise
    if options.layers == "basic":
        return Patch(rgba, window, {"render": render.astype(np.float16)})
    half |= {
        "matte.face": face[inside],
        "matte.head": planes[inside][..., 6],
        "matte.confidence": planes[inside][..., 7],
        "forward": velocity[inside] * np.array([1, -1], np.float32),  # Nuke's v points up
    }
    parts = mattes.part_mattes(generated, window, geometry.side)
    half |= {f"parts.{name}": values for name, values in parts.items()}
    layers = {name: values.astype(np.float16) for name, values in half.items()}
    return Patch(rgba, window, {**layers, "stmap": stmap_to_plate(geometry.quad, window)})


def crop_layers(
    picture: Tensor, geometry: FaceGeometry, plate: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Returns the layers of a crop: its mattes, and the STMap that cuts it out of the plate.

    Args:
        picture: `[3, R, R]` sRGB in [-1, 1].
        geometry: of its frame.
        plate: width and height, px; 0 without a plate.

    Returns:
        Layers `[R, R]` float16 by name as in `Patch`, and "stmap" `[R, R, 2]` float32, which is -1
        (outside) without a plate or a face.
    """
    size = picture.shape[-1]
    head = mattes.cut_out_head(picture.permute(1, 2, 0).cpu().numpy() / 2 + 0.5, geometry.head)
    window = Window(0, 0, size, size)
    generated, driving = geometry.generated * size, geometry.driving * size
    planes = {
        "matte.face": mattes.face_matte(generated, driving, head.matte, window, size),
        "matte.head": head.matte,
        "matte.confidence": head.confidence,
    }
    parts = mattes.part_mattes(generated, window, size)
    planes |= {f"parts.{name}": values for name, values in parts.items()}
    layers = {name: values.astype(np.float16) for name, values in planes.items()}
    stmap = np.full((size, size, 2), -1, np.float32)
    if all(plate) and np.isfinite(geometry.quad).all():
        stmap = stmap_to_crop(geometry.quad, plate, size)
    return {**layers, "stmap": stmap}


def over(patch: Patch | None, plate: np.ndarray) -> np.ndarray:
    """Merges a patch over plate pixels.

    Args:
        patch: None changes nothing.
        plate: `[H, W, 3]` in the patch's colour space.

    Returns:
        `[H, W, 3]`; pixels where the patch's alpha is 0 are bit for bit the plate's.
    """
    if patch is None:
        return plate
    result = plate.copy()
    w = patch.window
    inside = result[w.y : w.y + w.height, w.x : w.x + w.width]
    alpha = patch.rgba[..., 3:]
    inside[:] = np.where(alpha > 0, inside * (1 - alpha) + patch.rgba[..., :3], inside)
    return result


def output_space(plate: Clip) -> str:
    """Returns the colour space in which patches are merged over a plate.

    That is the plate's own space if it is scene-linear, else the config's scene_linear role, to
    which a compositing program converts such a plate.
    """
    if colour.is_linear(plate.colour_space, plate.config):
        return plate.colour_space
    return colour.scene_linear_space(plate.config)


def plate_pixels(pixels: np.ndarray, plate: Clip, space: str) -> np.ndarray:
    """Converts a plate's pixels `[H, W, 3]` to a colour space; unchanged in the plate's own."""
    if space == plate.colour_space:
        return pixels
    return colour.convert(pixels, plate.colour_space, space, plate.config)


def _graded(
    srgb: np.ndarray, space: str, config: str | None, match: Match, amount: float
) -> np.ndarray:
    """Converts sRGB in 0..1 to a colour space, with a share of a match in scene-linear light."""
    if not amount:
        return colour.from_network(2 * srgb - 1, space, config)
    linear = colour.scene_linear_space(config)
    graded = colour.from_network(2 * srgb - 1, linear, config)
    graded = colour_match.apply(graded, match, amount)
    return colour.convert(graded, linear, space, config)


def _premultiplied_grain(grain: Grain, rgba: np.ndarray, window: Window, number: int) -> np.ndarray:
    """Returns the grain `[h, w, 3]` to add to a premultiplied patch.

    Merging leaves the share 1 - alpha of the plate's own grain; the grain that is added restores
    its variance.
    """
    alpha = rgba[..., 3:]
    strength = grain.strength(rgba[..., :3] / np.maximum(alpha, 1e-6))
    rows, columns = window.y + np.arange(window.height), window.x + np.arange(window.width)
    noise = grains.draw(grain, number, rows, columns)
    return noise * strength * np.sqrt(np.maximum(1 - (1 - alpha) ** 2, 0))
