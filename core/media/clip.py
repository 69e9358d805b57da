"""Clips and their frames: picture sequences, stills and movies, by their real frame numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from core.media import colour
from core.media.numbering import frame_path

# File types by suffix. What a movie is inside is told by its content.
MOVIES = {".mov", ".mp4", ".m4v", ".3gp", ".mkv", ".webm", ".avi", ".mxf"}
MOVIES |= {".mts", ".m2ts", ".ts", ".mpg", ".mpeg", ".gif", ".wmv", ".flv"}
PICTURES = {".exr", ".dpx", ".cin", ".tif", ".tiff", ".png", ".jpg", ".jpeg", ".hdr", ".tga"}

MAX_SIDE = 32768  # px
MAX_PIXELS = 2**27  # 134 million; the largest cinema cameras make 80 million
MAX_RANGE = 1_000_000  # frames: 11 hours at 24 fps

# Header attributes of EXRs that Reenact writes: their colour space, and a hash of what decides
# their pixels.
SPACE_ATTRIBUTE = "reenact:colourSpace"
TASK_ATTRIBUTE = "reenact:task"


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels, px. y points down; the display window's top left pixel is (0, 0)."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Frame:
    """One picture of a clip.

    Attributes:
        number: the real frame number.
        pixels: float32 `[H, W, 3]`, RGB over the display window in the clip's colour space; 0
            outside the data window. Pixels outside the display window are dropped.
        alpha: float32 `[H, W]`, or None. Pixels are neither premultiplied nor divided by it.
        data_window: where the file has pixels; may exceed the display window.
        metadata: the file's attributes.
    """

    number: int
    pixels: np.ndarray
    alpha: np.ndarray | None
    data_window: Window
    metadata: dict[str, object]


@dataclass(frozen=True)
class NetworkFrame:
    """One picture of a clip in network colour.

    Attributes:
        number: the real frame number.
        srgb: float32 `[H, W, 3]`, display-referred sRGB in 0..1 (networks take 2 srgb - 1).
        clipping: counts of plate pixels that lie outside that range.
    """

    number: int
    srgb: np.ndarray
    clipping: colour.Clipping


@dataclass(frozen=True)
class Movie:
    """The index of a movie, in presentation order.

    Attributes:
        pts: of frames 1, 2, ..., in units of the stream's time base; without `keys` their places
            among the decoded pictures, from 0.
        keys: pts of each key frame, and the time to seek to; empty where pictures are counted.
        even: whether the frame rate is constant, as far as the file's times say.
        codec: FFmpeg's name of the codec.
        crop: the part of the stored pictures that is shown, before they are turned; None for all.
        open_end: whether the file is cut off, and its container does not say where the last
            picture should have ended: it is left out.
    """

    pts: tuple[int, ...]
    keys: tuple[tuple[int, int], ...]
    even: bool
    codec: str
    crop: Window | None
    open_end: bool = False


@dataclass(frozen=True)
class Clip:
    """A clip as `open_clip` describes it, with at most one frame decoded.

    Attributes:
        path: pattern ("/plates/shot.####.exr"), still or movie.
        kind: whether it is a sequence, a still or a movie.
        numbers: the existing frames of the requested range, sorted.
        first, last: the requested range, by default that of `numbers`.
        width, height: of the display window, pixels.
        pixel_aspect: width over height of one pixel.
        fps: frames per second; None if the files do not state it.
        colour_space: its name in the config.
        config: the OCIO config of that name; None for the `OCIO` variable or the built-in one.
        has_alpha: whether the first frame carries alpha.
        notes: remarks for the user, as sentences.
        movie: the index of a movie; None for pictures.
        title: a name for people, where the path is not one (a file in the server's store).
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
        """The title, or the path where there is none."""
        return self.title or self.path

    def file(self, number: int) -> str:
        """Returns the file that holds a frame."""
        return frame_path(self.path, number) if self.kind == "sequence" else self.path


def missing_numbers(clip: Clip) -> list[int]:
    """Returns the numbers of the clip's range that have no frame, sorted."""
    return sorted(set(range(clip.first, clip.last + 1)) - set(clip.numbers))
