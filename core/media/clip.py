"""Clips in and out: picture sequences, stills and movies, by their real frame numbers.

Pictures go through OpenImageIO, movies through FFmpeg (PyAV). Pixels are float32 RGB in the
clip's own colour space; `core.media.colour` takes them to the network and back.

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

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from core.media import colour
from core.media.errors import BadPixelsError
from core.media.numbering import frame_path

MOVIES = {".mov": "mov", ".mp4": "mov", ".m4v": "mov", ".mkv": "matroska", ".webm": "matroska"}
PICTURES = {".exr", ".dpx", ".cin", ".tif", ".tiff", ".png", ".jpg", ".jpeg", ".hdr", ".tga"}

SPACE_ATTRIBUTE = "reenact:colourSpace"  # of our EXRs


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


def missing_numbers(clip: Clip) -> list[int]:
    """The numbers in the clip's range that do not exist; `format_numbers` makes them readable."""
    return sorted(set(range(clip.first, clip.last + 1)) - set(clip.numbers))


def refuse_bad_pixels(pixels: np.ndarray, path: str | Path, number: int | None) -> None:
    finite = np.isfinite(pixels)
    if not finite.all():
        raise BadPixelsError(path, number, int(np.count_nonzero(~finite.all(axis=2))))
