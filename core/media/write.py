"""Writing EXR, PNG and movies, atomically."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import OpenImageIO as oiio
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from core.base.files import atomic_write
from core.base.text import printable
from core.media.clip import Window
from core.media.errors import WriteFailedError, check_finite, first_sentence
from core.media.headers import encoded, last_error

# Attributes that OpenImageIO stores as types of their own; others follow from their values.
_ATTRIBUTE_TYPES = {
    "FramesPerSecond": "rational",
    "smpte:TimeCode": "timecode",
    "reenact:matchGain": "vector",  # three floats, a type that every EXR reader knows
    "reenact:matchOffset": "vector",
}


def write_exr(
    path: str | Path,
    pixels: np.ndarray,
    *,
    window: Window | None = None,
    display: tuple[int, int] | None = None,
    layers: Mapping[str, np.ndarray] | None = None,
    half: bool = True,
    attributes: Mapping[str, object] | None = None,
    pixel_aspect: float = 1.0,
) -> None:
    """Writes an EXR of scan lines with ZIP compression, atomically.

    Args:
        path: the file.
        pixels: `[H, W, 3 or 4]`, RGB or RGBA of the data window, finite.
        window: position of the data window; its size must be W x H. By default at (0, 0).
        display: width and height of the display window; by default the data window's size.
        layers: name -> `[H, W]` or `[H, W, 1 to 4]` over the same data window. Channels are named
            NAME.A, NAME.u/.v, NAME.R/.G/.B or NAME.R/.G/.B/.A by their count; a name with a dot,
            LAYER.CHANNEL, is that one channel. float32 layers (STMaps) stay float, float16 ones
            half.
        half: whether `pixels` are stored as half (clamped to +-65504) or float.
        attributes: header attributes: str, int, float, or a tuple of strings, floats or ints.
            `Frame.metadata` of an EXR can be passed on.
        pixel_aspect: width over height of one pixel.

    Raises:
        BadPixelsError: NaN or infinity.
        WriteFailedError: the file system's reason.
        ValueError: shapes or layer names that do not fit.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from core.media.pictures import read_attribute
        >>> with TemporaryDirectory() as folder:
        ...     path = f"{folder}/patch.1001.exr"
        ...     window = Window(100, 50, 40, 30)  # in a plate of 1920 x 1080
        ...     write_exr(
        ...         path,
        ...         np.zeros((30, 40, 4), np.float32),
        ...         window=window,
        ...         display=(1920, 1080),
        ...         layers={"matte.face": np.zeros((30, 40), np.float16)},
        ...         attributes={"reenact:match": 0.5},
        ...     )
        ...     read_attribute(path, "reenact:match")
        0.5
    """
    height, width = pixels.shape[:2]
    window = window or Window(0, 0, width, height)
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or 0 in pixels.shape:
        raise ValueError(f"pixels must be [H, W, 3 or 4], not {pixels.shape}")
    if (window.height, window.width) != (height, width):
        raise ValueError(f"the data window {window} does not fit pixels of {width}x{height}")
    names, formats, stack = _channels(pixels, layers or {}, half)
    check_finite(stack, path, None)
    for channel, stored in enumerate(formats):
        if stored == oiio.HALF:
            np.clip(stack[..., channel], -65504, 65504, out=stack[..., channel])

    spec = oiio.ImageSpec(width, height, len(names), formats[0])
    spec.channelnames = tuple(names)
    if len(set(formats)) > 1:  # OpenImageIO is half as fast with a format per channel
        spec.channelformats = tuple(formats)
    spec.alpha_channel = 3 if pixels.shape[2] == 4 else -1
    spec.x, spec.y = window.x, window.y
    spec.full_x = spec.full_y = 0
    spec.full_width, spec.full_height = display or (width, height)
    for name, value in (attributes or {}).items():
        if not name.startswith(("openexr:", "oiio:")):  # they describe how another file was stored
            _set_attribute(spec, name, value)
    spec.attribute("PixelAspectRatio", float(pixel_aspect))
    spec.attribute("DateTime", "")  # else OpenImageIO writes the time: other bytes on every run
    spec.attribute("compression", "zip")  # older Nukes cannot read HTJ2K, new in OpenEXR 3.4
    with _writing(path) as temporary:
        _write_exr(temporary, spec, stack)


def _channels(
    pixels: np.ndarray, layers: Mapping[str, np.ndarray], half: bool
) -> tuple[list[str], list[Any], np.ndarray]:
    """Returns the channels' names, their OpenImageIO formats and their values `[H, W, C]`."""
    height, width = pixels.shape[:2]
    names = list("RGBA"[: pixels.shape[2]])
    formats = [oiio.HALF if half else oiio.FLOAT] * len(names)
    planes = [pixels.astype(np.float32, copy=False)]
    for layer, values in layers.items():
        values = values[..., None] if values.ndim == 2 else values
        if values.shape[:2] != (height, width) or not 1 <= values.shape[2] <= 4:
            raise ValueError(f"layer {layer} must be [{height}, {width}, 1-4], not {values.shape}")
        if not re.fullmatch(r"[A-Za-z]\w*(\.[A-Za-z]\w*)?", layer):
            raise ValueError(f'layer name "{layer}" must be LAYER or LAYER.CHANNEL')
        if "." in layer and values.shape[2] != 1:
            raise ValueError(f"layer {layer} must have one channel, not {values.shape[2]}")
        channels = ("A", "uv", "RGB", "RGBA")[values.shape[2] - 1]
        names += [layer] if "." in layer else [f"{layer}.{channel}" for channel in channels]
        formats += [oiio.HALF if values.dtype == np.float16 else oiio.FLOAT] * values.shape[2]
        planes.append(values.astype(np.float32, copy=False))
    return names, formats, np.concatenate(planes, axis=2)


def copy_exr(source: str | Path, path: str | Path, attributes: Mapping[str, object]) -> bool:
    """Copies a single-part EXR with every pixel unchanged, atomically.

    Args:
        source: the file.
        path: the copy.
        attributes: header attributes that the copy gets in place of the source's, as in
            `write_exr`.

    Returns:
        False without a copy, where the source can't be read as a whole.

    Raises:
        WriteFailedError: the file system's reason.
    """
    file = oiio.ImageInput.open(encoded(source))
    pixels = None if file is None else file.read_image(oiio.FLOAT)
    if file is None or pixels is None:
        last_error(oiio)  # else OpenImageIO prints it later
        return False
    spec = file.spec()
    file.close()
    for name, value in attributes.items():
        _set_attribute(spec, name, value)
    spec.attribute("DateTime", "")  # as in `write_exr`
    with _writing(path) as temporary:
        _write_exr(temporary, spec, pixels)
    return True


def write_png(path: str | Path, rgb: np.ndarray) -> None:
    """Writes an 8-bit PNG, atomically.

    Args:
        path: the file.
        rgb: `[H, W, 3]` sRGB, uint8 or float in [0, 1] (clipped).

    Raises:
        WriteFailedError: the file system's reason.
        ValueError: another shape.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"rgb must be [H, W, 3], not {rgb.shape}")
    # Encoded in memory: OpenImageIO reports no error when the disk fills up under a PNG.
    encoded, data = cv2.imencode(".png", np.ascontiguousarray(to_bytes(rgb)[..., ::-1]))
    if not encoded:
        raise ValueError(f"{path}: a picture of {rgb.shape} can't be made into a PNG")
    with _writing(path) as temporary:
        temporary.write_bytes(data.tobytes())


def write_movie(path: str | Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Writes an H.264 preview, atomically: yuv420p in limited range, encoded and tagged as Rec.709.

    Args:
        path: .mp4 or .mov.
        frames: `[H, W, 3]` each, uint8 or float in [0, 1], all of one size. The last row or column
            of an odd size is repeated, because 4:2:0 needs even sizes.
        fps: frames per second.

    Raises:
        WriteFailedError: the file system's or the encoder's reason.
        ValueError: no frames, or frames of different sizes.
    """
    with _writing(path) as temporary, av.open(str(temporary), "w") as container:
        stream = None
        size: tuple[int, ...] = ()
        for rgb in frames:
            if stream is None:
                size = rgb.shape
                rate = Fraction(fps).limit_denominator(1001)
                stream = container.add_stream("libx264", rate, {"crf": "16", "preset": "fast"})
                stream.height, stream.width = (side + side % 2 for side in size[:2])
                stream.pix_fmt = "yuv420p"
                for tag in ("colorspace", "color_primaries", "color_trc", "color_range"):
                    setattr(stream.codec_context, tag, 1)  # Rec.709, MPEG range
            if rgb.shape != size or rgb.ndim != 3 or rgb.shape[2] != 3:
                raise ValueError(f"frames must be [H, W, 3] of one size, not {size}, {rgb.shape}")
            even = np.pad(to_bytes(rgb), ((0, size[0] % 2), (0, size[1] % 2), (0, 0)), mode="edge")
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), "rgb24").reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
            )
            container.mux(stream.encode(picture))
        if stream is None:
            raise ValueError("a movie needs at least one frame")
        container.mux(stream.encode(None))


@contextmanager
def _writing(path: str | Path) -> Iterator[Path]:
    """Runs `atomic_write` and turns its errors into `WriteFailedError`."""
    try:
        with atomic_write(path) as temporary:
            yield temporary
    except (OSError, av.FFmpegError) as error:
        raise WriteFailedError(
            f"{path} could not be written: {first_sentence(error.strerror or str(error))} Check "
            "the free space and your rights in that folder, and run again."
        ) from error


def _write_exr(path: Path, spec: oiio.ImageSpec, pixels: np.ndarray) -> None:
    output = oiio.ImageOutput.create("openexr")
    written = output.open(encoded(path), spec) and output.write_image(pixels)
    reason = last_error(output)
    if not output.close() or not written:
        raise OSError(None, reason or last_error(output) or "no reason is known")
    # OpenImageIO reports no error when the disk fills up under the last bytes: read them back.
    source = oiio.ImageInput.open(encoded(path))
    bottom = spec.y + spec.height
    if source is None or source.read_scanlines(0, 0, bottom - 1, bottom, 0, 0, 1) is None:
        raise OSError(None, "the end of the file is lost")
    source.close()


def _set_attribute(spec: oiio.ImageSpec, name: str, value: object) -> None:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str):  # names of files need not be Unicode
        spec.attribute(name, printable(value, lines=True))
    elif isinstance(value, (bool, int, float)):
        spec.attribute(name, int(value) if isinstance(value, bool) else value)
    elif name in _ATTRIBUTE_TYPES:
        spec.attribute(name, oiio.TypeDesc(_ATTRIBUTE_TYPES[name]), value)
    elif isinstance(value, (tuple, list)) and value:
        if all(isinstance(item, str) for item in value):
            of = "string"
        else:
            of = "int" if all(isinstance(item, int) for item in value) else "float"
        kind = oiio.TypeDesc(f"{of}[{len(value)}]")
        spec.attribute(name, kind, tuple(value))
    else:
        raise ValueError(
            f"attribute {name} must be text, a number, or several of them, not {value!r}"
        )


def to_bytes(rgb: np.ndarray) -> np.ndarray:
    """Returns a picture as uint8: as it is, or from floats in 0..1, clipped and rounded."""
    if rgb.dtype == np.uint8:
        return rgb
    return np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8)
