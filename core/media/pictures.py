"""Reading stills and sequences through OpenImageIO.

Pixels become float32 whatever the file's bit depth: OpenImageIO converts integers to 0..1. A format
that it decodes therefore needs only its suffix in `core.media.clip.PICTURES` and, where sRGB for
integers and scene-linear for floats would be wrong, a rule in `picture_space`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import OpenImageIO as oiio

from core.media import colour
from core.media.clip import MAX_PIXELS, MAX_SIDE, SPACE_ATTRIBUTE, Clip, Frame, Window
from core.media.errors import (
    ClipNotFoundError,
    FormatChangeError,
    TooLargeError,
    UnreadableFrameError,
    UnsupportedChannelsError,
    check_finite,
    first_sentence,
)
from core.media.numbering import frame_path
from core.media.sequences import check_file, clip_range, find_sequence

# Chromaticities x, y of red, green, blue and white -> names of the linear space that has them.
_D65 = (0.3127, 0.329)
_PRIMARIES = (
    ((0.713, 0.293, 0.165, 0.83, 0.128, 0.044, 0.32168, 0.33767), ("lin_ap1", "ACES - ACEScg")),
    ((0.7347, 0.2653, 0, 1, 0.0001, -0.077, 0.32168, 0.33767), ("lin_ap0", "ACES2065-1")),
    ((0.64, 0.33, 0.3, 0.6, 0.15, 0.06, *_D65), ("lin_rec709", "Utility - Linear - sRGB")),
    ((0.708, 0.292, 0.17, 0.797, 0.131, 0.046, *_D65), ("lin_rec2020",)),
    ((0.68, 0.32, 0.265, 0.69, 0.15, 0.06, *_D65), ("lin_p3d65", "Utility - Linear - P3-D65")),
)


def open_pictures(
    text: str, first: int | None, last: int | None, colour_space: str | None, config: str | None
) -> Clip:
    """Opens a sequence or a still; arguments and errors as for `core.media.read.open_clip`."""
    path, existing = find_sequence(text)
    if existing is None:
        kind: Literal["sequence", "still"] = "still"
        existing = [1 if first is None else first]
    else:
        kind = "sequence"
    numbers, first, last = clip_range(path, existing, first, last)
    sample = frame_path(path, numbers[0]) if kind == "sequence" else path
    with _opened(sample, numbers[0]) as picture:
        spec, channels = _choose_channels(picture, sample, numbers[0])
        display, _ = _windows(spec, sample, numbers[0])
        if colour_space is None:
            space, notes = picture_space(picture.format_name(), spec, config)
        else:
            space, notes = colour.resolve(colour_space, config), []
    if len(channels.rgb) == 1:
        notes.append("The pictures have one luminance channel: it is used for red, green and blue.")
    aspect = float(spec.getattribute("PixelAspectRatio") or 1)
    return Clip(
        path=path,
        kind=kind,
        numbers=numbers,
        first=first,
        last=last,
        width=display.width,
        height=display.height,
        pixel_aspect=aspect if 0.1 < aspect < 10 else 1.0,  # DPX headers are often unset
        fps=_frame_rate(spec.getattribute("FramesPerSecond")),
        colour_space=space,
        config=config,
        has_alpha=channels.alpha is not None,
        notes=tuple(notes),
    )


def picture_space(kind: str, spec: oiio.ImageSpec, config: str | None) -> tuple[str, list[str]]:
    """Returns the colour space of a picture by its format and header, and notes for the user.

    Args:
        kind: OpenImageIO's name of the format.
        spec: its header.
        config: OCIO config; None for the `OCIO` variable or the built-in one.
    """
    if kind in ("dpx", "cineon"):
        transfer = str(spec.getattribute("dpx:Transfer") or "")
        if transfer == "Linear":
            return colour.scene_linear_space(config), []
        if re.search(r"709|601|video", transfer, re.IGNORECASE):
            return colour.texture_space(config), []
        space = colour.log_space(config)
        return space, [f"The pictures are taken for log ({space}): name the space if they are not."]
    if kind == "openexr" and (named := spec.getattribute(SPACE_ATTRIBUTE)):
        try:
            return colour.resolve(str(named), config), []
        except colour.ColourError:
            space = colour.scene_linear_space(config)
            return space, [f"The EXR is in {named}, which the config lacks: taken for {space}."]
    if kind == "openexr" and (found := spec.getattribute("chromaticities")) is not None:
        for primaries, names in _PRIMARIES:
            if np.allclose(found, primaries, atol=1e-3):
                for name in names:
                    try:
                        return colour.resolve(name, config), []
                    except colour.ColourError:
                        continue
        space = colour.scene_linear_space(config)
        return space, [f"The EXR's chromaticities fit no space of the config: taken for {space}."]
    if spec.format.basetype in (oiio.HALF, oiio.FLOAT, oiio.DOUBLE):
        return colour.scene_linear_space(config), []
    return colour.texture_space(config), []


@dataclass(frozen=True)
class _Channels:
    """Indices of a picture's channels."""

    rgb: tuple[int, ...]  # three, or one of luminance
    alpha: int | None


def _choose_channels(
    picture: oiio.ImageInput, path: str, number: int
) -> tuple[oiio.ImageSpec, _Channels]:
    """Seeks the first part that has plain RGB or luminance; returns its header and channels."""
    present: list[str] = []
    part = 0
    while picture.seek_subimage(part, 0):
        spec = picture.spec()
        index = {name.lower().removeprefix("rgba."): i for i, name in enumerate(spec.channelnames)}
        alpha = index.get("a", index.get("alpha"))
        for names in (("r", "g", "b"), ("red", "green", "blue")):
            if not spec.deep and all(name in index for name in names):
                return spec, _Channels(tuple(index[name] for name in names), alpha)
        grey = [index[name] for name in ("y", "l", "luminance") if name in index]
        if grey and not spec.deep and set(index) <= {"y", "l", "luminance", "a", "alpha", "z"}:
            return spec, _Channels((grey[0],), alpha)
        present += [f"{name}{' (deep)' if spec.deep else ''}" for name in spec.channelnames]
        part += 1
    layers = sorted({name.rpartition(".")[0] for name in present if "." in name})
    found = f"layers {', '.join(layers)}" if layers else f"channels {', '.join(present)}"
    raise UnsupportedChannelsError(
        path,
        number,
        f"has no plain R, G, B channels, only {found}. Shuffle the picture into rgba.",
    )


@contextmanager
def _opened(path: str, number: int) -> Iterator[oiio.ImageInput]:
    """Opens a picture so that its colours are neither premultiplied nor divided by its alpha."""
    try:
        check_file(path)
    except ClipNotFoundError as error:
        raise UnreadableFrameError(path, number, "is gone. Open the clip again.") from error
    as_stored = oiio.ImageSpec()
    as_stored.attribute("oiio:UnassociatedAlpha", 1)
    picture = oiio.ImageInput.open(path, as_stored)
    if picture is None:
        reason = oiio.geterror()
        if "limits:" in reason:
            raise TooLargeError(f"Frame {number} ({path}) is refused: {reason.splitlines()[0]}")
        raise UnreadableFrameError(path, number, f"can't be read: {first_sentence(reason)}")
    try:
        yield picture
    finally:
        picture.close()


def _windows(spec: oiio.ImageSpec, path: str, number: int) -> tuple[Window, Window]:
    """Returns display and data window, checked before memory is allocated for them."""
    for what, width, height in (
        ("display", spec.full_width, spec.full_height),
        ("data", spec.width, spec.height),
    ):
        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS):
            raise TooLargeError(
                f"Frame {number} ({path}) claims a {what} window of {width}x{height} pixels; the "
                f"limit is {MAX_SIDE} a side and {MAX_PIXELS // 10**6} million in all. The header "
                "may be damaged: render the frame again."
            )
    display = Window(0, 0, spec.full_width, spec.full_height)
    return display, Window(spec.x - spec.full_x, spec.y - spec.full_y, spec.width, spec.height)


def read_picture(clip: Clip, number: int) -> Frame:
    """Decodes one picture of a clip; errors as for `core.media.read.read_frames`."""
    path = clip.file(number)
    with _opened(path, number) as picture:
        spec, channels = _choose_channels(picture, path, number)
        display, window = _windows(spec, path, number)
        if (display.width, display.height) != (clip.width, clip.height):
            raise FormatChangeError(
                path,
                number,
                f"is {display.width}x{display.height}, the clip {clip.width}x{clip.height}. "
                "Reformat it, or read the two parts as two clips.",
            )
        alpha = channels.alpha
        needed = [*channels.rgb, *([] if alpha is None else [alpha])]
        begin, end = min(needed), max(needed) + 1
        stored = picture.read_image(picture.current_subimage(), 0, begin, end, oiio.FLOAT)
        reason = picture.geterror()  # lost parts of JPEG and TIFF are grey, with an error
    if stored is None or reason:
        raise UnreadableFrameError(
            path,
            number,
            f"is truncated or damaged: {first_sentence(reason)} Render or copy it again.",
        )
    check_finite(stored, path, number)
    placed = _in_display_window(stored, window, display)
    order = [channel - begin for channel in channels.rgb]
    in_order = order == list(range(order[0], order[0] + 3))  # a slice is faster than an index list
    rgb = placed[..., order[0] : order[0] + 3] if in_order else placed[..., (order * 3)[:3]]
    return Frame(
        number=number,
        pixels=np.ascontiguousarray(rgb),
        alpha=None if alpha is None else np.ascontiguousarray(placed[..., alpha - begin]),
        data_window=window,
        metadata={attribute.name: attribute.value for attribute in spec.extra_attribs},
    )


def read_attribute(path: str | Path, name: str) -> object | None:
    """Returns a header attribute of a picture; None without such an attribute or picture."""
    if not os.path.isfile(path):
        return None
    file = oiio.ImageInput.open(str(path))
    if file is None:
        oiio.geterror()  # else OpenImageIO prints it later
        return None
    try:
        return file.spec().getattribute(name)
    finally:
        file.close()


def _in_display_window(stored: np.ndarray, window: Window, display: Window) -> np.ndarray:
    """Returns the pixels of the display window: those of the data window, and 0 elsewhere."""
    if window == display:
        return stored
    placed = np.zeros((display.height, display.width, stored.shape[2]), np.float32)
    left, top = max(window.x, 0), max(window.y, 0)
    right = min(window.x + window.width, display.width)
    bottom = min(window.y + window.height, display.height)
    if left < right and top < bottom:
        placed[top:bottom, left:right] = stored[
            top - window.y : bottom - window.y, left - window.x : right - window.x
        ]
    return placed


def _frame_rate(value: Any) -> float | None:
    """Returns frames per second; OpenImageIO gives rationals as (numerator, denominator)."""
    if isinstance(value, tuple):
        value = value[0] / value[1] if value[1] else None
    return float(value) if value and 0 < float(value) < 1e4 else None
