"""Clips in and out: picture sequences, stills and movies, by their real frame numbers.

Pictures go through OpenImageIO, movies through FFmpeg (PyAV). Pixels are float32 RGB in the
clip's own colour space; `core.colour` takes them to the network and back.

The colour space of a clip, unless the caller names it:

    EXR, HDR, float TIFF   the config's scene_linear role; an EXR's chromaticities go before it,
                           and what our own say before both
    DPX, Cineon            the config's compositing_log role; if the header says linear or video,
                           scene_linear or sRGB texture
    PNG, JPEG, other TIFF  sRGB texture
    movies                 sRGB texture: Rec.709 code values are taken for sRGB ones, as players,
                           Nuke's defaults and the data sets of face models do
"""

from __future__ import annotations

import os
import queue
import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import cv2
import numpy as np
import OpenImageIO as oiio
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from core import colour
from core.errors import ReenactError
from core.files import atomic_write

MAX_SIDE = 32768
MAX_PIXELS = 2**27  # 134 million; the largest cinema cameras make 80
MAX_RANGE = 1_000_000  # frames: 11 hours at 24 fps

MOVIES = {".mov": "mov", ".mp4": "mov", ".m4v": "mov", ".mkv": "matroska", ".webm": "matroska"}
PICTURES = {".exr", ".dpx", ".cin", ".tif", ".tiff", ".png", ".jpg", ".jpeg", ".hdr", ".tga"}

SPACE_ATTRIBUTE = "reenact:colourSpace"  # of our EXRs

# x, y of red, green, blue and white -> aliases of the linear space with these primaries.
_D65 = (0.3127, 0.329)
_PRIMARIES = (
    ((0.713, 0.293, 0.165, 0.83, 0.128, 0.044, 0.32168, 0.33767), ("lin_ap1", "ACES - ACEScg")),
    ((0.7347, 0.2653, 0, 1, 0.0001, -0.077, 0.32168, 0.33767), ("lin_ap0", "ACES2065-1")),
    ((0.64, 0.33, 0.3, 0.6, 0.15, 0.06, *_D65), ("lin_rec709", "Utility - Linear - sRGB")),
    ((0.708, 0.292, 0.17, 0.797, 0.131, 0.046, *_D65), ("lin_rec2020",)),
    ((0.68, 0.32, 0.265, 0.69, 0.15, 0.06, *_D65), ("lin_p3d65", "Utility - Linear - P3-D65")),
)

# Attributes that OpenImageIO keeps as types of their own; the others follow from their values.
_ATTRIBUTE_TYPES = {
    "FramesPerSecond": "rational",
    "smpte:TimeCode": "timecode",
    "reenact:matchGain": "vector",  # three floats that every reader of EXRs knows
    "reenact:matchOffset": "vector",
}


class ClipError(ReenactError):
    """Something is wrong with a clip; the message says what, where and what to do."""


class ClipNotFound(ClipError):
    """Nothing at the path, or several sequences where one was meant."""


class ClipNotReadable(ClipError):
    """The path exists, but it may not be read, or is neither picture nor movie."""


class MissingFrames(ClipError):
    """Frames that were asked for do not exist.

    Attributes:
        numbers: the missing frame numbers, sorted.
    """

    def __init__(self, path: str, numbers: Iterable[int], range_there: str) -> None:
        self.numbers = tuple(sorted(numbers))
        super().__init__(
            f"{path} has no frame {format_numbers(self.numbers)}; there are {range_there}. "
            "Render the missing ones or change the range."
        )


class FrameError(ClipError):
    """Trouble with one frame.

    Attributes:
        path: its file.
        number: its frame number; None while writing.
    """

    def __init__(self, path: str | Path, number: int | None, trouble: str) -> None:
        self.path = str(path)
        self.number = number
        super().__init__(f"{'Picture' if number is None else f'Frame {number}'} ({path}) {trouble}")


class UnreadableFrame(FrameError):
    """Truncated, damaged, or gone since the clip was opened."""


class BadPixels(FrameError):
    """NaN or infinite pixels.

    Attributes:
        count: how many pixels have one.
    """

    def __init__(self, path: str | Path, number: int | None, count: int) -> None:
        self.count = count
        super().__init__(
            path,
            number,
            f"has {count} pixel{'s' * (count != 1)} with NaN or infinity. "
            "Clean them upstream, for example by a Clamp or an Expression node.",
        )


class TooLarge(ClipError):
    """A header that claims more pixels, or a range more frames, than any real clip has."""


class UnsupportedChannels(FrameError):
    """No plain RGB (or one luminance channel) in the picture."""


class FormatChange(FrameError):
    """A frame whose size is not that of the clip."""


class WriteFailed(ClipError):
    """The file could not be written; nothing is left behind, and an older file is untouched."""


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels; y points down, the display window's top left pixel is (0, 0)."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Frame:
    """One picture of a clip.

    Attributes:
        number: the real frame number.
        pixels: float32 [H, W, 3], RGB over the display window in the clip's colour space; 0
            outside the data window; what lies outside the display window is left out.
        alpha: float32 [H, W], or None. Pixels are as stored: nothing is multiplied or divided.
        data_window: where the file has pixels; may reach beyond the display window.
        metadata: the file's attributes.
    """

    number: int
    pixels: np.ndarray
    alpha: np.ndarray | None
    data_window: Window
    metadata: dict[str, object]


@dataclass(frozen=True)
class NetworkFrame:
    """One picture of a clip as the networks see it.

    Attributes:
        number: the real frame number.
        srgb: float32 [H, W, 3], display-referred sRGB in 0..1 (the network's space is 2 srgb - 1).
        clipping: what of the plate that space could not hold.
    """

    number: int
    srgb: np.ndarray
    clipping: colour.Clipping


@dataclass(frozen=True)
class Movie:
    """The index of a movie, in presentation order and in units of the stream's time base."""

    pts: tuple[int, ...]  # of frame 1, 2, ...
    keys: tuple[tuple[int, int], ...]  # pts of each key frame, and where to seek for it


@dataclass(frozen=True)
class Clip:
    """What `open_clip` found out without decoding more than one frame.

    Attributes:
        path: pattern ("/plates/shot.####.exr"), still or movie.
        kind: how the path is read.
        numbers: the frames that exist in the asked range, sorted.
        first, last: the asked range, by default that of `numbers`.
        width, height: of the display window, pixels.
        pixel_aspect: width over height of one pixel.
        fps: frames per second; None if the files do not say.
        colour_space: the config's own name of it.
        config: the OCIO config the name belongs to; None for the `OCIO` variable or built-in.
        has_alpha: whether frames carry alpha (judged by the first one).
        notes: what a user should know, as sentences.
        movie: its index, if it is one.
        title: what people know it by, where that is not its path.
    """

    path: str
    kind: Literal["sequence", "still", "movie"]
    numbers: tuple[int, ...]
    first: int
    last: int
    width: int
    height: int
    pixel_aspect: float
    fps: float | None
    colour_space: str
    config: str | None = None
    has_alpha: bool = False
    notes: tuple[str, ...] = ()
    movie: Movie | None = field(default=None, repr=False)
    title: str = ""

    @property
    def shown(self) -> str:
        """Its title, else its path."""
        return self.title or self.path

    def file(self, number: int) -> str:
        """The file that holds frame `number`."""
        return frame_path(self.path, number) if self.kind == "sequence" else self.path


def open_clip(
    path: str | Path,
    first: int | None = None,
    last: int | None = None,
    colour_space: str | None = None,
    config: str | None = None,
) -> Clip:
    """Find a clip's frames, size and colour space.

    Args:
        path: "shot.####.exr", "shot.%04d.exr", one file of a sequence, a folder that holds
            exactly one sequence, a still, a movie (mov, mp4, mkv), or any of these followed by a
            range as Nuke writes it: "shot.####.exr 1001-1050". Movies start at frame 1; a still
            without a number is frame 1.
        first: start of the wanted range; goes before a range in `path`.
        last: its end, inclusive.
        colour_space: name, alias or role of the OCIO config; by default as this module's head says.
        config: OCIO config; None for the `OCIO` variable or the built-in one.

    Raises:
        ClipNotFound, ClipNotReadable: by the path.
        MissingFrames: no frame at all lies in the range. (Gaps are no error: see `missing`.)
        UnreadableFrame, UnsupportedChannels, TooLarge: by the first frame's header.
        core.colour.ColourError: unknown colour space or config.
    """
    text, text_first, text_last = _split_range(str(path).strip())
    first = text_first if first is None else first
    last = text_last if last is None else last
    if first is not None and last is not None and last < first:
        raise ClipError(f"The range {first}-{last} of {text} ends before it starts.")
    if Path(text).suffix.lower() in MOVIES and not os.path.isdir(text):
        return _open_movie(text, first, last, colour_space, config)
    return _open_pictures(text, first, last, colour_space, config)


def with_handles(clip: Clip, count: int) -> Clip:
    """The clip with so many frames more before and after its range, as far as they exist.

    Raises:
        ClipNotFound: the clip has gone since it was opened.
    """
    movie = clip.movie
    existing = _find(clip.path)[1] if movie is None else list(range(1, len(movie.pts) + 1))
    if existing is None:  # a still
        return clip
    first = min(clip.first, max(clip.first - count, existing[0]))
    last = max(clip.last, min(clip.last + count, existing[-1]))
    numbers = tuple(number for number in existing if first <= number <= last)
    return replace(clip, numbers=numbers, first=first, last=last)


def missing(clip: Clip) -> list[int]:
    """The numbers in the clip's range that do not exist; `format_numbers` makes them readable."""
    return sorted(set(range(clip.first, clip.last + 1)) - set(clip.numbers))


def format_numbers(numbers: Iterable[int]) -> str:
    """Frame numbers as a person writes them: [1004, 1010, 1011, 1012] -> "1004, 1010-1012"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def read_frames(
    clip: Clip, numbers: Iterable[int] | None = None, read_ahead: int = 4
) -> Generator[Frame, None, None]:
    """Decode frames one after the other, a few ahead of the caller, in a background thread.

    At most `read_ahead` + 2 frames are in memory. Closing the iterator (or dropping it) stops
    the thread and closes the files. A movie seeks where that saves decoding.

    Args:
        clip: from `open_clip`.
        numbers: which frames, in which order; all of the clip's by default.
        read_ahead: frames to hold ready, at least 1.

    Raises:
        MissingFrames: at once, if a number is not one of the clip's.
        UnreadableFrame, BadPixels, UnsupportedChannels, FormatChange, TooLarge: when the
            iterator comes to that frame; the frames before it have been given.
    """
    wanted = clip.numbers if numbers is None else tuple(numbers)
    absent = set(wanted) - set(clip.numbers)
    if absent:
        raise MissingFrames(clip.path, absent, format_numbers(clip.numbers))
    if read_ahead < 1:
        raise ValueError(f"read_ahead must be at least 1, not {read_ahead}")
    if clip.movie is not None:
        movie = clip.movie
        return _ahead(lambda: _movie_frames(clip, movie, wanted), read_ahead)
    return _ahead(lambda: (_read_picture(clip, number) for number in wanted), read_ahead)


def read_network_frames(clip: Clip, numbers: Iterable[int] | None = None) -> Iterator[NetworkFrame]:
    """`read_frames` in network colour; arguments and errors are the same."""
    with closing(read_frames(clip, numbers)) as frames:
        for frame in frames:
            pixels, clipping = colour.to_network(frame.pixels, clip.colour_space, clip.config)
            yield NetworkFrame(frame.number, pixels * 0.5 + 0.5, clipping)


def read_frame(clip: Clip, number: int) -> Frame:
    """One frame of a clip; errors as for `read_frames`."""
    with closing(read_frames(clip, [number])) as frames:
        return next(frames)


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
    """Write one EXR: scan lines, ZIP, atomically.

    Args:
        path: the file.
        pixels: [H, W, 3 or 4], RGB or RGBA of the data window, finite.
        window: the data window's place; its size must be W x H. By default at (0, 0).
        display: width and height of the display window; by default the data window's size.
        layers: name -> [H, W] or [H, W, 1 to 4] over the same data window. Channels are named
            NAME.A, NAME.u/.v, NAME.R/.G/.B or NAME.R/.G/.B/.A by their count; a name with a dot,
            LAYER.CHANNEL, is that one channel. float32 layers (STMaps) stay float, float16 ones
            half.
        half: whether `pixels` are stored as half (clamped to +-65504) or float.
        attributes: header attributes: str, int, float, or a tuple of floats or ints;
            `Frame.metadata` of an EXR goes through.
        pixel_aspect: width over height of one pixel.

    Raises:
        BadPixels: NaN or infinity.
        WriteFailed: what the file system said.
        ValueError: shapes or layer names that do not fit.
    """
    height, width = pixels.shape[:2]
    window = window or Window(0, 0, width, height)
    display = display or (width, height)
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or 0 in pixels.shape:
        raise ValueError(f"pixels must be [H, W, 3 or 4], not {pixels.shape}")
    if (window.height, window.width) != (height, width):
        raise ValueError(f"the data window {window} does not fit pixels of {width}x{height}")
    names = list("RGBA"[: pixels.shape[2]])
    formats = [oiio.HALF if half else oiio.FLOAT] * len(names)
    planes = [pixels.astype(np.float32, copy=False)]
    for layer, values in (layers or {}).items():
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
    stack = np.concatenate(planes, axis=2)
    _refuse_bad_pixels(stack, path, None)
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
    spec.full_width, spec.full_height = display
    for name, value in (attributes or {}).items():
        if not name.startswith(("openexr:", "oiio:")):  # how another file was stored
            _set_attribute(spec, name, value)
    spec.attribute("PixelAspectRatio", float(pixel_aspect))
    spec.attribute("DateTime", "")  # else OpenImageIO writes now: the same frame, other bytes
    spec.attribute("compression", "zip")  # HTJ2K, new in OpenEXR 3.4, is Greek to older Nukes
    with _writing(path) as temporary:
        _write_exr(temporary, spec, stack)


def copy_exr(source: str | Path, path: str | Path, attributes: Mapping[str, object]) -> bool:
    """Copies an EXR of one part, atomically, every pixel as it is.

    Args:
        source: the file.
        path: the copy.
        attributes: header attributes that the copy has instead, as in `write_exr`.

    Returns:
        Whether the source is whole; of one that is not there is no copy.

    Raises:
        WriteFailed: what the file system said.
    """
    file = oiio.ImageInput.open(str(source))
    pixels = None if file is None else file.read_image(oiio.FLOAT)
    if file is None or pixels is None:
        oiio.geterror()  # else OpenImageIO prints it later
        return False
    spec = file.spec()
    file.close()
    for name, value in attributes.items():
        _set_attribute(spec, name, value)
    spec.attribute("DateTime", "")  # as in `write_exr`
    with _writing(path) as temporary:
        _write_exr(temporary, spec, pixels)
    return True


def attribute(path: str | Path, name: str) -> object | None:
    """One header attribute of a picture; None where there is no such attribute or no picture."""
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


def write_png(path: str | Path, rgb: np.ndarray) -> None:
    """Write an 8-bit PNG, atomically.

    Args:
        path: the file.
        rgb: [H, W, 3], uint8 or float in [0, 1] (clipped), sRGB.

    Raises:
        WriteFailed: what the file system said.
        ValueError: wrong shape.
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
    """Write an H.264 preview (yuv420p, tagged and made as Rec.709 limited range), atomically.

    Args:
        path: .mp4 or .mov.
        frames: [H, W, 3] each, uint8 or float in [0, 1], all of one size. An odd side is made
            even by repeating the last row or column: 4:2:0 has no odd sizes.
        fps: frames per second.

    Raises:
        WriteFailed: what the file system or the encoder said.
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


# Finding files


def _check_file(path: str) -> None:
    """Tell missing, forbidden and damaged files apart; the libraries do not."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait forever
            raise ClipNotReadable(f"{path} is not a file. Choose a picture or a movie.")
        with open(path, "rb"):
            pass
    except FileNotFoundError as error:
        raise ClipNotFound(f"There is no {path}.") from error
    except OSError as error:
        raise ClipNotReadable(
            f"{path} can't be read: {error.strerror}. Ask for the right to read it."
        ) from error


def _split_range(text: str) -> tuple[str, int | None, int | None]:
    """Take Nuke's "shot.####.exr 1001-1050" apart."""
    match = re.fullmatch(r"(.*\S)\s+(-?\d+)(?:-(-?\d+))?", text)
    if match is None or os.path.exists(text):
        return text, None, None
    return match[1], int(match[2]), int(match[3] or match[2])


def frame_path(pattern: str, number: int) -> str:
    """The file of frame `number`: the last run of # holds it, zero-padded as printf does."""
    head, hashes, tail = _split_pattern(pattern)
    return f"{head}{number:0{hashes}d}{tail}"


def _split_pattern(pattern: str) -> tuple[str, int, str]:
    head, hashes, tail = re.fullmatch(r"(.*?)(#+)([^#]*)", pattern, re.DOTALL).groups()  # type: ignore[union-attr]
    return head, len(hashes), tail


def _sequences(folder: Path) -> dict[str, list[int]]:
    """The numbered pictures of a folder: pattern with # -> sorted numbers.

    The number is the last thing before the suffix; "_v002" is a version, not a number.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for name in os.listdir(folder):
        split = _split_number(name)
        if split:
            found.setdefault((split[0], split[2]), []).append(split[1])
    sequences: dict[str, list[int]] = {}
    for (head, tail), texts in found.items():
        # A leading zero tells the padding; other numbers join the widest padding they satisfy.
        padded = sorted({len(text) for text in texts if text.lstrip("-").startswith("0")})
        loose = [len(text) for text in texts if bisect_right(padded, len(text)) == 0]
        for text in texts:
            fits = bisect_right(padded, len(text))
            width = padded[fits - 1] if fits else min(loose)
            sequences.setdefault(f"{head}{'#' * width}{tail}", []).append(int(text))
    return {pattern: sorted(numbers) for pattern, numbers in sorted(sequences.items())}


def _split_number(name: str) -> tuple[str, str, str] | None:
    stem, suffix = os.path.splitext(name)
    if suffix.lower() not in PICTURES or name.startswith("."):
        return None
    match = re.fullmatch(r"(.*?)((?:(?<=[._])-)?\d+)", stem, re.DOTALL)
    if match is None or re.search(r"(?:^|[._-])[vV]$", match[1]):
        return None
    return match[1], match[2], suffix


def _matching(pattern: str) -> list[int]:
    head, width, tail = _split_pattern(os.path.basename(pattern))
    numbers = []
    for name in os.listdir(os.path.dirname(pattern) or "."):
        digits = name[len(head) : len(name) - len(tail)]
        if (
            name.startswith(head)
            and name.endswith(tail)
            and re.fullmatch(r"-?\d+", digits)
            and f"{int(digits):0{width}d}" == digits
        ):
            numbers.append(int(digits))
    return sorted(numbers)


def _find(text: str) -> tuple[str, list[int] | None]:
    """What a path stands for: a pattern with its numbers, or a still (None)."""
    folder, name = os.path.split(text)
    # %04d -> ####, %d -> #
    pattern_name = re.sub(r"%0?(\d*)d", lambda match: "#" * int(match[1] or 1), name)
    try:
        if os.path.isdir(text):
            return _only_sequence(Path(text))
        if os.path.exists(text):
            for pattern, numbers in _sequences(Path(folder or ".")).items():
                if any(frame_path(pattern, number) == name for number in numbers):
                    return os.path.join(folder, pattern), numbers
            return text, None
        if "#" in pattern_name and os.path.isdir(folder or "."):
            pattern = os.path.join(folder, pattern_name)
            numbers = _matching(pattern)
            if numbers:
                return pattern, numbers
        hint = f" {_offer(Path(folder or '.'))}" if os.path.isdir(folder or ".") else ""
    except PermissionError as error:
        raise ClipNotReadable(
            f"{error.filename} may not be read by this user. Ask for access to it."
        ) from error
    raise ClipNotFound(f"There is no {text}.{hint}")


def _only_sequence(folder: Path) -> tuple[str, list[int]]:
    sequences = _sequences(folder)
    if len(sequences) != 1:
        raise ClipNotFound(
            f"The folder {folder} must hold exactly one sequence to be read as a clip. "
            f"{_offer(folder)}"
        )
    ((pattern, numbers),) = sequences.items()
    return str(folder / pattern), numbers


def _offer(folder: Path) -> str:
    there = [f"{name} {format_numbers(numbers)}" for name, numbers in _sequences(folder).items()]
    if not there:
        return "Its folder holds no numbered pictures."
    more = f" and {len(there) - 5} more" if len(there) > 5 else ""
    return f"Its folder holds: {'; '.join(there[:5])}{more}."


def _clip_range(
    path: str, existing: Sequence[int], first: int | None, last: int | None
) -> tuple[tuple[int, ...], int, int]:
    first = existing[0] if first is None else first
    last = existing[-1] if last is None else last
    if last - first >= MAX_RANGE:
        raise TooLarge(
            f"The range {first}-{last} of {path} has more than {MAX_RANGE} frames: name the range "
            "you mean, and look for a stray file with a huge number."
        )
    numbers = tuple(number for number in existing if first <= number <= last)
    if not numbers:
        asked = range(first, max(first, last) + 1)
        raise MissingFrames(path, asked, format_numbers(existing))
    return numbers, first, last


# Pictures


def _open_pictures(
    text: str, first: int | None, last: int | None, colour_space: str | None, config: str | None
) -> Clip:
    path, existing = _find(text)
    if existing is None:
        kind: Literal["sequence", "still"] = "still"
        existing = [1 if first is None else first]
    else:
        kind = "sequence"
    numbers, first, last = _clip_range(path, existing, first, last)
    sample = frame_path(path, numbers[0]) if kind == "sequence" else path
    with _picture(sample, numbers[0]) as picture:
        spec, channels = _choose_channels(picture, sample, numbers[0])
        display, _ = _windows(spec, sample, numbers[0])
        space, notes = _picture_space(picture.format_name(), spec, config, colour_space)
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
        fps=_rate(spec.getattribute("FramesPerSecond")),
        colour_space=space,
        config=config,
        has_alpha=channels.alpha is not None,
        notes=tuple(notes),
    )


def _picture_space(
    kind: str, spec: oiio.ImageSpec, config: str | None, named: str | None
) -> tuple[str, list[str]]:
    if named is not None:
        return colour.resolve(named, config), []
    if kind in ("dpx", "cineon"):
        transfer = str(spec.getattribute("dpx:Transfer") or "")
        if transfer == "Linear":
            return colour.scene_linear_space(config), []
        if re.search(r"709|601|video", transfer, re.IGNORECASE):
            return colour.texture_space(config), []
        space = colour.log_space(config)
        return space, [f"The pictures are taken for log ({space}): name the space if they are not."]
    if kind == "openexr" and (told := spec.getattribute(SPACE_ATTRIBUTE)):
        try:
            return colour.resolve(str(told), config), []
        except colour.ColourError:
            space = colour.scene_linear_space(config)
            return space, [f"The EXR is in {told}, which the config lacks: taken for {space}."]
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
    rgb: tuple[int, ...]  # three indices, or one of luminance
    alpha: int | None


def _choose_channels(
    picture: oiio.ImageInput, path: str, number: int
) -> tuple[oiio.ImageSpec, _Channels]:
    """Seek the first part that has plain RGB or luminance."""
    seen: list[str] = []
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
        seen += [f"{name}{' (deep)' if spec.deep else ''}" for name in spec.channelnames]
        part += 1
    layers = sorted({name.rpartition(".")[0] for name in seen if "." in name})
    found = f"layers {', '.join(layers)}" if layers else f"channels {', '.join(seen)}"
    raise UnsupportedChannels(
        path,
        number,
        f"has no plain R, G, B channels, only {found}. Shuffle the picture into rgba.",
    )


@contextmanager
def _picture(path: str, number: int) -> Iterator[oiio.ImageInput]:
    try:
        _check_file(path)
    except ClipNotFound as error:
        raise UnreadableFrame(path, number, "is gone. Open the clip again.") from error
    as_stored = oiio.ImageSpec()
    as_stored.attribute("oiio:UnassociatedAlpha", 1)
    picture = oiio.ImageInput.open(path, as_stored)
    if picture is None:
        reason = oiio.geterror()
        if "limits:" in reason:
            raise TooLarge(f"Frame {number} ({path}) is refused: {reason.splitlines()[0]}")
        raise UnreadableFrame(path, number, f"can't be read: {_sentence(reason)}")
    try:
        yield picture
    finally:
        picture.close()


def _windows(spec: oiio.ImageSpec, path: str, number: int) -> tuple[Window, Window]:
    """Display and data window, checked before anything is allocated for them."""
    for what, width, height in (
        ("display", spec.full_width, spec.full_height),
        ("data", spec.width, spec.height),
    ):
        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS):
            raise TooLarge(
                f"Frame {number} ({path}) claims a {what} window of {width}x{height} pixels; the "
                f"limit is {MAX_SIDE} a side and {MAX_PIXELS // 10**6} million in all. The header "
                "may be damaged: render the frame again."
            )
    display = Window(0, 0, spec.full_width, spec.full_height)
    return display, Window(spec.x - spec.full_x, spec.y - spec.full_y, spec.width, spec.height)


def _read_picture(clip: Clip, number: int) -> Frame:
    path = clip.file(number)
    with _picture(path, number) as picture:
        spec, channels = _choose_channels(picture, path, number)
        display, window = _windows(spec, path, number)
        if (display.width, display.height) != (clip.width, clip.height):
            raise FormatChange(
                path,
                number,
                f"is {display.width}x{display.height}, the clip {clip.width}x{clip.height}. "
                "Reformat it, or read the two parts as two clips.",
            )
        alpha = channels.alpha
        wanted = [*channels.rgb, *([] if alpha is None else [alpha])]
        begin, end = min(wanted), max(wanted) + 1
        stored = picture.read_image(picture.current_subimage(), 0, begin, end, oiio.FLOAT)
        reason = picture.geterror()  # JPEG and TIFF give grey for lost parts, and an error
    if stored is None or reason:
        raise UnreadableFrame(
            path,
            number,
            f"is truncated or damaged: {_sentence(reason)} Render or copy it again.",
        )
    _refuse_bad_pixels(stored, path, number)
    placed = _place(stored, window, display)
    order = [channel - begin for channel in channels.rgb]
    in_order = order == list(range(order[0], order[0] + 3))
    rgb = placed[..., order[0] : order[0] + 3] if in_order else placed[..., (order * 3)[:3]]
    return Frame(
        number=number,
        pixels=np.ascontiguousarray(rgb),
        alpha=None if alpha is None else np.ascontiguousarray(placed[..., alpha - begin]),
        data_window=window,
        metadata={attribute.name: attribute.value for attribute in spec.extra_attribs},
    )


def _place(stored: np.ndarray, window: Window, display: Window) -> np.ndarray:
    """The part of the data window inside the display window, zero elsewhere."""
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


def _refuse_bad_pixels(pixels: np.ndarray, path: str | Path, number: int | None) -> None:
    finite = np.isfinite(pixels)
    if not finite.all():
        raise BadPixels(path, number, int(np.count_nonzero(~finite.all(axis=2))))


def _rate(value: Any) -> float | None:
    """Frames per second of a header; OpenImageIO gives rationals as (numerator, denominator)."""
    if isinstance(value, tuple):
        value = value[0] / value[1] if value[1] else None
    return float(value) if value and 0 < float(value) < 1e4 else None


# Movies


def _open_movie(
    path: str, first: int | None, last: int | None, colour_space: str | None, config: str | None
) -> Clip:
    if colour_space is None:
        space = colour.texture_space(config)
    else:
        space = colour.resolve(colour_space, config)
    notes = []
    with _movie(path) as (container, stream):
        _check_movie_size(stream, path)
        index, stored, even = _index(container, stream, path)
        if stream.frames > stored:  # the header's count; the packets are what is there
            last = stream.frames if last is None else last
            notes.append(f"The movie is cut off: {stored} of {stream.frames} frames are there.")
        numbers, first, last = _clip_range(path, range(1, len(index.pts) + 1), first, last)
        if not even:
            notes.append("The frame rate varies: every stored picture is one frame.")
        picture = _find_picture(_seek(container, stream, index.keys[0]), path, 1, index.pts[0])
        if picture is None:
            raise UnreadableFrame(path, 1, "can't be decoded. Make the movie again.")
        height, width = (picture.height, picture.width)[:: -1 if picture.rotation % 180 else 1]
        aspect = float(stream.sample_aspect_ratio or 1)
        if picture.color_trc in (16, 18):  # PQ, HLG
            notes.append(
                "The movie is HDR (PQ or HLG): its code values are shown as they are and look "
                "flat. Convert it to Rec.709 for true colours."
            )
        fps = stream.average_rate or stream.guessed_rate
        alpha = _has_alpha(picture)
        rotated = picture.rotation % 180 != 0
    return Clip(
        path=path,
        kind="movie",
        numbers=numbers,
        first=first,
        last=last,
        width=width,
        height=height,
        pixel_aspect=1 / aspect if rotated else aspect,
        fps=float(fps) if fps else None,
        colour_space=space,
        config=config,
        has_alpha=alpha,
        notes=tuple(notes),
        movie=index,
    )


@contextmanager
def _movie(path: str) -> Iterator[tuple[Any, Any]]:
    _check_file(path)
    demuxer = MOVIES[Path(path).suffix.lower()]  # fixed: a playlist in disguise could name files
    try:
        container = av.open(path, format=demuxer, options={"enable_drefs": "0"})
    except (av.FFmpegError, OSError) as error:
        raise ClipNotReadable(
            f"{path} is no movie that can be read: {_sentence(error.strerror)} If it is still "
            "being written or copied, wait for it; else export it again."
        ) from error
    with container:
        if not container.streams.video:
            raise ClipNotReadable(f"{path} has no picture, only sound or data.")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield container, stream


def _check_movie_size(stream: Any, path: str) -> None:
    width, height = stream.codec_context.width, stream.codec_context.height
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        raise TooLarge(f"{path} claims {width}x{height} pixels; the limit is {MAX_SIDE} a side.")


def _index(container: Any, stream: Any, path: str) -> tuple[Movie, int, bool]:
    """Walk the packets (no decoding). Returns the index, the packet count, and if it is even."""
    pts, keys, stored = [], [], 0
    try:
        for packet in container.demux(stream):
            if packet.size == 0:
                continue  # the flush packet at the end
            stored += 1
            if packet.pts is None:
                raise ClipNotReadable(f"{path} has pictures without a time. Export it again.")
            if packet.is_keyframe:
                keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
            if not packet.is_discard:
                pts.append(packet.pts)
    except av.FFmpegError as error:
        raise ClipNotReadable(f"{path} is damaged: {_sentence(error.strerror)}") from error
    if not pts or not keys:
        raise ClipNotReadable(f"{path} holds no pictures that can be decoded. Export it again.")
    movie = Movie(tuple(sorted(set(pts))), tuple(sorted(keys)))
    steps = np.diff(movie.pts)
    return movie, stored, steps.size == 0 or int(steps.max() - steps.min()) <= 1


def _movie_frames(clip: Clip, movie: Movie, numbers: Sequence[int]) -> Generator[Frame, None, None]:
    key_pts = [pts for pts, _ in movie.keys]
    with _movie(clip.path) as (container, stream):
        pictures: Any = iter(())
        here: int | None = None  # pts of the last picture that was wanted
        for number in numbers:
            target = movie.pts[number - 1]
            key = max(bisect_right(key_pts, target) - 1, 0)
            jump = here is None or target <= here or key_pts[key] > here
            if jump:
                pictures = _seek(container, stream, movie.keys[key])
            picture = _find_picture(pictures, clip.path, number, target)
            if picture is None and jump:  # the seek landed too late
                pictures = _seek(container, stream, movie.keys[0])
                picture = _find_picture(pictures, clip.path, number, target)
            if picture is None or picture.is_corrupt:
                raise UnreadableFrame(
                    clip.path, number, "is truncated or damaged. Export the movie again."
                )
            here = target
            yield _movie_frame(clip, number, picture)


def _seek(container: Any, stream: Any, key: tuple[int, int]) -> Any:
    """The decoded pictures from a key frame on."""
    container.seek(key[1], stream=stream)
    return container.decode(stream)


def _find_picture(pictures: Any, path: str, number: int, target: int) -> Any:
    """Decode on to the picture at time `target`; None if it does not come."""
    try:
        for picture in pictures:
            if picture.pts is not None and picture.pts >= target:
                return picture if picture.pts == target else None
    except av.FFmpegError as error:
        raise UnreadableFrame(
            path, number, f"can't be decoded: {_sentence(error.strerror)} Export the movie again."
        ) from error
    return None


def _movie_frame(clip: Clip, number: int, picture: Any) -> Frame:
    alpha = _has_alpha(picture)
    pixels = np.rot90(_movie_pixels(picture, alpha), picture.rotation // 90)
    if pixels.shape[:2] != (clip.height, clip.width):
        raise FormatChange(
            clip.path,
            number,
            f"is {pixels.shape[1]}x{pixels.shape[0]}, the clip {clip.width}x{clip.height}. "
            "Export the movie in one size.",
        )
    return Frame(
        number=number,
        pixels=np.ascontiguousarray(pixels[..., :3]),
        alpha=np.ascontiguousarray(pixels[..., 3]) if alpha else None,
        data_window=Window(0, 0, clip.width, clip.height),
        metadata={"seconds": picture.time, **picture.metadata},
    )


def _movie_pixels(picture: Any, alpha: bool) -> np.ndarray:
    """float32 [H, W, 3 or 4]. Codes below black or above white stay below 0 or above 1.

    FFmpeg only brings the planes to one size. Its own way to RGB clips, and its 16-bit white is
    65280 of 65535; so the matrix is applied here (ITU-R BT.601, BT.709, BT.2020).
    """
    bits = picture.format.components[0].bits
    if picture.format.is_rgb:
        eight, deep = ("rgba", "rgba64le") if alpha else ("rgb24", "rgb48le")
        codes = picture.reformat(format=eight if bits <= 8 else deep).to_ndarray()
        return codes.astype(np.float32) * np.float32(1 / np.iinfo(codes.dtype).max)

    # Equal ranges on both sides make FFmpeg shift n-bit codes up to 16 bits, and no more. Told
    # that both are limited it does so for full range too, except where the pixel format itself
    # says full: there luma is stretched to 65535 if chroma has luma's size (or there is none).
    name = picture.format.name
    declared = ColorRange.JPEG if name.startswith(("yuvj", "gray")) else ColorRange.MPEG
    codes = picture.reformat(
        format="yuva444p16le" if alpha else "yuv444p16le",
        src_colorspace=Colorspace.ITU709,  # the same on both sides: no conversion
        dst_colorspace=Colorspace.ITU709,
        src_color_range=declared,
        dst_color_range=declared,
        interpolation=Interpolation.BILINEAR | Interpolation.ACCURATE_RND,
    ).to_ndarray()
    white = (2**bits - 1) << (16 - bits)
    stretch = white / 65535 if name.startswith(("yuvj444", "gray")) else 1.0
    if picture.color_range == ColorRange.JPEG or name.startswith("yuvj"):
        black, luma, chroma = 0.0, 1 / white, 1 / white
    else:
        black, luma, chroma = 16 << 8, 1 / (219 << 8), 1 / (224 << 8)
    kr, kb = _luma_weights(picture)
    kg = 1 - kr - kb
    from_ycc = np.array(
        [
            [1, 0, 2 * (1 - kr)],
            [1, -2 * (1 - kb) * kb / kg, -2 * (1 - kr) * kr / kg],
            [1, 2 * (1 - kb), 0],
        ]
    )
    matrix = from_ycc * [luma * stretch, chroma, chroma]
    offset = -from_ycc @ [black * luma, chroma * 2**15, chroma * 2**15]
    full = np.zeros((4 if alpha else 3, 5 if alpha else 4))
    full[:3, :3], full[:3, -1] = matrix, offset
    if alpha:
        full[3, 3] = 1 / 65535
    return cv2.transform(codes.astype(np.float32), full.astype(np.float32))


def _has_alpha(picture: Any) -> bool:
    return any(component.is_alpha for component in picture.format.components)


def _luma_weights(picture: Any) -> tuple[float, float]:
    """Kr and Kb by tag; untagged, Rec.709 from 720 lines up and Rec.601 below, as players do."""
    rec709, rec601 = (0.2126, 0.0722), (0.299, 0.114)
    by_tag = {1: rec709, 4: (0.3, 0.11), 5: rec601, 6: rec601, 7: (0.212, 0.087)}
    by_tag |= {9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
    high = picture.width >= 1280 or picture.height >= 720
    return by_tag.get(int(picture.colorspace), rec709 if high else rec601)


# Streaming and writing


def _ahead(
    start: Callable[[], Generator[Frame, None, None]], depth: int
) -> Generator[Frame, None, None]:
    ready: queue.Queue[Frame | BaseException | None] = queue.Queue(depth)
    stop = threading.Event()

    def work() -> None:
        last: BaseException | None = None
        frames = start()
        try:
            for frame in frames:
                ready.put(frame)
                if stop.is_set():
                    break
        except BaseException as error:  # raised again where the frames are consumed
            last = error
        finally:
            frames.close()
            ready.put(last)

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        while thread.is_alive():  # a full queue would hold the thread in put
            try:
                ready.get(timeout=0.01)
            except queue.Empty:
                continue
        thread.join()


@contextmanager
def _writing(path: str | Path) -> Iterator[Path]:
    """`atomic_write` whose errors are sentences."""
    try:
        with atomic_write(path) as temporary:
            yield temporary
    except (OSError, av.FFmpegError) as error:
        raise WriteFailed(
            f"{path} could not be written: {_sentence(error.strerror or str(error))} Check the "
            "free space and your rights in that folder, and run again."
        ) from error


def _write_exr(path: Path, spec: oiio.ImageSpec, pixels: np.ndarray) -> None:
    output = oiio.ImageOutput.create("openexr")
    written = output.open(str(path), spec) and output.write_image(pixels)
    reason = output.geterror()
    if not output.close() or not written:
        raise OSError(None, reason or output.geterror() or "no reason is known")
    # A disk that fills up under the last bytes is no error to OpenImageIO: look at them.
    source = oiio.ImageInput.open(str(path))
    bottom = spec.y + spec.height
    if source is None or source.read_scanlines(0, 0, bottom - 1, bottom, 0, 0, 1) is None:
        raise OSError(None, "the end of the file is lost")
    source.close()


def _set_attribute(spec: oiio.ImageSpec, name: str, value: object) -> None:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, (str, bool, int, float)):
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
    """uint8 of a picture that is uint8 already, or float in 0..1 (clipped, rounded)."""
    if rgb.dtype == np.uint8:
        return rgb
    return np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8)


def _sentence(reason: str | None) -> str:
    first = (reason or "").strip().splitlines()[:1]
    return f"{first[0].rstrip('.')}." if first else "no reason is known."
