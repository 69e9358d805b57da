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
from core.media.clip import MAX_PIXELS, MAX_SIDE, PICTURES, SPACE_ATTRIBUTE, Clip, Frame, Window
from core.media.contents import content_of, mismatch
from core.media.errors import (
    ClipNotFoundError,
    FormatChangeError,
    TooLargeError,
    UnreadableFrameError,
    UnsupportedChannelsError,
    check_finite,
    first_sentence,
)
from core.media.headers import (
    attribute,
    channel_names,
    compressions,
    encoded,
    last_error,
    metadata,
    orientation_of,
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

# How stored pixels become upright ones, by EXIF's number: rows and columns are exchanged, then
# columns reversed, then rows.
_ORIENTATIONS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
_GREY = {"y", "l", "luminance", "a", "alpha", "z", "?"}  # channels of a picture without colour
# Compressions of EXRs that came with OpenEXR 3.4 and later. None of them can be read.
_FIRST_NEW_COMPRESSION, _HTJ2K = 10, (10, 11)


def open_pictures(
    text: str, first: int | None, last: int | None, colour_space: str | None, config: str | None
) -> Clip:
    """Opens a sequence or a still; arguments and errors as for `core.media.read.open_clip`."""
    found = find_sequence(text)
    path, existing = found.path, found.numbers
    if existing is None:
        kind: Literal["sequence", "still"] = "still"
        existing = [1 if first is None else first]
    else:
        kind = "sequence"
        if first is None and last is None and found.named is not None:
            first = last = found.named
    numbers, first, last = clip_range(path, existing, first, last)
    sample = frame_path(path, numbers[0]) if kind == "sequence" else path
    with _opened(sample, numbers[0]) as picture:
        spec, channels = _choose_channels(picture, sample, numbers[0])
        display, _ = _windows(spec, sample, numbers[0])
        if colour_space is None:
            space, notes = picture_space(picture.format_name(), spec, config)
        else:
            space, notes = colour.resolve(colour_space, config), []
        orientation = orientation_of(picture.format_name(), spec)
    if len(channels.rgb) == 1:
        notes.append("The pictures have one luminance channel: it is used for red, green and blue.")
    if orientation != 1:
        notes.append(
            f"The pictures are turned upright, as their headers say (orientation {orientation})."
        )
    if found.named is not None and first == last == found.named and len(existing) > 1:
        notes.append(
            f"{os.path.basename(text)} is one of {len(existing)} numbered pictures, and the only "
            f"one used. For all of them, name {os.path.basename(path)}."
        )
    aspect = float(attribute(spec, "PixelAspectRatio") or 1)
    aspect = aspect if 0.1 < aspect < 10 else 1.0  # DPX headers are often unset
    width, height = display.width, display.height
    if _ORIENTATIONS[orientation][0]:
        width, height, aspect = height, width, 1 / aspect
    return Clip(
        path=path,
        kind=kind,
        numbers=numbers,
        first=first,
        last=last,
        width=width,
        height=height,
        pixel_aspect=aspect,
        fps=_frame_rate(attribute(spec, "FramesPerSecond")),
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
        transfer = str(attribute(spec, "dpx:Transfer") or "")
        if transfer == "Linear":
            return colour.scene_linear_space(config), []
        if re.search(r"709|601|video", transfer, re.IGNORECASE):
            return colour.texture_space(config), []
        space = colour.log_space(config)
        return space, [f"The pictures are taken for log ({space}): name the space if they are not."]
    if kind == "openexr" and (named := attribute(spec, SPACE_ATTRIBUTE)):
        try:
            return colour.resolve(str(named), config), []
        except colour.ColourError:
            space = colour.scene_linear_space(config)
            return space, [f"The EXR is in {named}, which the config lacks: taken for {space}."]
    if kind == "openexr" and (found := attribute(spec, "chromaticities")) is not None:
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
    part, deep = 0, False
    while picture.seek_subimage(part, 0):
        spec = picture.spec()
        names_of_all = channel_names(picture, spec)
        index = {name.lower().removeprefix("rgba."): i for i, name in enumerate(names_of_all)}
        alpha = index.get("a", index.get("alpha"))
        for names in (("r", "g", "b"), ("red", "green", "blue")):
            if not spec.deep and all(name in index for name in names):
                return spec, _Channels(tuple(index[name] for name in names), alpha)
        grey = [index[name] for name in ("y", "l", "luminance") if name in index]
        if grey and not spec.deep and set(index) <= _GREY:
            return spec, _Channels((grey[0],), alpha)
        present += names_of_all
        deep = deep or spec.deep
        part += 1
    if deep:
        raise UnsupportedChannelsError(
            path,
            number,
            "is deep. Flatten it first, in Nuke by a DeepToImage, and write a plain EXR.",
        )
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
    _check_compression(path, number)
    as_stored = oiio.ImageSpec()
    as_stored.attribute("oiio:UnassociatedAlpha", 1)
    picture = oiio.ImageInput.open(encoded(path), as_stored)  # bytes: any name is taken
    if picture is None:
        reason = last_error(oiio)
        if "limits:" in reason:
            raise TooLargeError(f"Frame {number} ({path}) is refused: {reason.splitlines()[0]}")
        raise UnreadableFrameError(path, number, _why_not_opened(path, reason))
    try:
        yield picture
    finally:
        picture.close()


def _why_not_opened(path: str, reason: str) -> str:
    """Returns why OpenImageIO did not open a file; by itself it does not say what that one is."""
    if other := mismatch(path, "picture"):
        return other
    content = content_of(path)
    suffix = Path(path).suffix.lower()
    if content is None and suffix not in PICTURES:
        return (
            "is no picture or movie of a kind that is read here. Choose one, or export it as EXR."
        )
    what = f"is {content.name}, but damaged" if content else f"is damaged, or no {suffix} picture"
    # Where the name misleads it, OpenImageIO speaks of the format of the name.
    named = content is None or content.suffix == suffix
    return (
        f"{what}{f': {first_sentence(reason)}' if named else '.'} If it is still being written or "
        "copied, wait for it; else render or copy it again."
    )


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
        orientation = orientation_of(picture.format_name(), spec)
        width, height = display.width, display.height
        if _ORIENTATIONS[orientation][0]:
            width, height = height, width
        if (width, height) != (clip.width, clip.height):
            raise FormatChangeError(
                path,
                number,
                f"is {width}x{height}, the clip {clip.width}x{clip.height}. "
                "Reformat it, or read the two parts as two clips.",
            )
        alpha = channels.alpha
        needed = [*channels.rgb, *([] if alpha is None else [alpha])]
        begin, end = min(needed), max(needed) + 1
        stored = picture.read_image(picture.current_subimage(), 0, begin, end, oiio.FLOAT)
        reason = last_error(picture)  # lost parts of JPEG and TIFF are grey, with an error
    if stored is None or reason:
        raise UnreadableFrameError(
            path,
            number,
            f"is truncated or damaged: {first_sentence(reason)} Render or copy it again.",
        )
    check_finite(stored, path, number)
    _correct_white_is_zero(stored, spec, channels, begin)
    placed = _upright(_in_display_window(stored, window, display), orientation)
    order = [channel - begin for channel in channels.rgb]
    in_order = order == list(range(order[0], order[0] + 3))  # a slice is faster than an index list
    rgb = placed[..., order[0] : order[0] + 3] if in_order else placed[..., (order * 3)[:3]]
    return Frame(
        number=number,
        pixels=np.ascontiguousarray(rgb),
        alpha=None if alpha is None else np.ascontiguousarray(placed[..., alpha - begin]),
        data_window=_upright_window(window, display, orientation),
        metadata=metadata(spec) | ({} if orientation == 1 else {"Orientation": 1}),
    )


def read_attribute(path: str | Path, name: str) -> object | None:
    """Returns a header attribute of a picture; None without such an attribute or picture."""
    if not os.path.isfile(path):
        return None
    file = oiio.ImageInput.open(encoded(path))
    if file is None:
        last_error(oiio)  # else OpenImageIO prints it later
        return None
    try:
        return attribute(file.spec(), name)
    finally:
        file.close()


def _check_compression(path: str, number: int) -> None:
    """Refuses an EXR of a newer kind, of which OpenEXR would say no more than that it is damaged.

    Raises:
        UnreadableFrameError: one of its parts has a compression that can't be read.
    """
    newest = max(compressions(path), default=0)
    if newest >= _FIRST_NEW_COMPRESSION:
        name = "HTJ2K" if newest in _HTJ2K else f"a newer kind (number {newest})"
        raise UnreadableFrameError(
            path,
            number,
            f"has the compression {name}, which can't be read. Write it with ZIP, PIZ or DWAA "
            "instead.",
        )


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Returns pixels `[H, W, C]`, or `[W, H, C]` of a picture on its side, as they are shown."""
    exchanged, columns, rows = _ORIENTATIONS[orientation]
    if exchanged:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if rows else 1, :: -1 if columns else 1]


def _upright_window(window: Window, display: Window, orientation: int) -> Window:
    """Returns where a window of a stored picture lies in the upright one."""
    x, y, width, height = window.x, window.y, window.width, window.height
    full_width, full_height = display.width, display.height
    exchanged, columns, rows = _ORIENTATIONS[orientation]
    if exchanged:
        x, y, width, height = y, x, height, width
        full_width, full_height = full_height, full_width
    if columns:
        x = full_width - x - width
    if rows:
        y = full_height - y - height
    return Window(x, y, width, height)


def _correct_white_is_zero(
    stored: np.ndarray, spec: oiio.ImageSpec, channels: _Channels, begin: int
) -> None:
    """Inverts, in place, what OpenImageIO does not of a grey TIFF in which 0 is white.

    It inverts all channels of pictures with up to 8 bits, and none of others.

    Args:
        stored: `[H, W, C]`.
        spec: the picture's header.
        channels: which of its channels are used.
        begin: the first channel of `stored`.
    """
    if attribute(spec, "tiff:PhotometricInterpretation") != 0 or len(channels.rgb) != 1:
        return
    wrong = channels.alpha if spec.format.basetype == oiio.UINT8 else channels.rgb[0]
    integers = (oiio.UINT8, oiio.UINT16, oiio.UINT32)
    if wrong is not None and spec.format.basetype in integers:
        stored[..., wrong - begin] = 1 - stored[..., wrong - begin]


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
