"""Opening clips and reading their frames.

Pictures go through OpenImageIO (`pictures`), movies through FFmpeg (`movies`). Pixels are float32
RGB in the clip's own colour space; `core.media.colour` converts them to network colour and back.

The colour space of a clip, unless the caller names it:

    EXR, HDR, float TIFF   the config's scene_linear role; an EXR's chromaticities take precedence
                           over it, and the space named in the header of a Reenact EXR over both
    DPX, Cineon            the config's compositing_log role; scene_linear or sRGB texture where the
                           header says linear or video
    PNG, JPEG, other TIFF  sRGB texture
    movies                 sRGB texture: Rec.709 code values are taken for sRGB ones, as players,
                           Nuke's defaults and the data sets of face models do
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from core.media import colour
from core.media.clip import MOVIES, Clip, Frame, NetworkFrame
from core.media.errors import ClipError, MissingFramesError
from core.media.movies import open_movie, read_movie, refuse_unread_movie
from core.media.numbering import format_numbers, split_range
from core.media.pictures import open_pictures, read_picture
from core.media.sequences import find_sequence


def open_clip(
    path: str | Path,
    first: int | None = None,
    last: int | None = None,
    colour_space: str | None = None,
    config: str | None = None,
) -> Clip:
    """Finds a clip's frames, size and colour space.

    Args:
        path: "shot.####.exr", "shot.%04d.exr", one file of a sequence, a folder that holds
            exactly one sequence, a still, a movie (`core.media.clip.MOVIES`), or any of these
            followed by a range as Nuke writes it: "shot.####.exr 1001-1050". One file of a sequence
            is that frame alone, unless a range follows. Movies start at frame 1; a still without a
            number is frame 1.
        first: start of the range; takes precedence over a range in `path`.
        last: its end, inclusive.
        colour_space: name, alias or role of the OCIO config; by default as this module's docstring
            says.
        config: OCIO config; None for the `OCIO` variable or the built-in one.

    Raises:
        ClipNotFoundError, ClipNotReadableError: the path.
        MissingFramesError: no frame at all lies in the range. (Gaps are no error: see
            `core.media.clip.missing_numbers`.)
        UnreadableFrameError, UnsupportedChannelsError, TooLargeError: the first frame's header.
        core.media.colour.ColourError: unknown colour space or config.
    """
    text, text_first, text_last = split_range(_without_blanks(str(path)))
    first = text_first if first is None else first
    last = text_last if last is None else last
    if first is not None and last is not None and last < first:
        raise ClipError(f"The range {first}-{last} of {text} ends before it starts.")
    if Path(text).suffix.lower() in MOVIES and not os.path.isdir(text):
        return open_movie(text, first, last, colour_space, config)
    if os.path.isfile(text):
        refuse_unread_movie(text)
    return open_pictures(text, first, last, colour_space, config)


def _without_blanks(path: str) -> str:
    """Returns a path without the blanks around it that were pasted with it: no names have them."""
    if os.path.exists(path):
        return path
    inside = os.path.isdir(os.path.dirname(path))
    return path.rstrip() if inside else path.strip()


def with_handles(clip: Clip, count: int) -> Clip:
    """Returns the clip with up to `count` more frames before and after its range.

    Raises:
        ClipNotFoundError: the clip has gone since it was opened.
    """
    movie = clip.movie
    existing: list[int] | None
    if movie is not None:
        existing = list(range(1, len(movie.pts) + 1))
    else:
        existing = find_sequence(clip.path).numbers
    if existing is None:  # a still
        return clip
    first = min(clip.first, max(clip.first - count, existing[0]))
    last = max(clip.last, min(clip.last + count, existing[-1]))
    numbers = tuple(number for number in existing if first <= number <= last)
    return replace(clip, numbers=numbers, first=first, last=last)


def read_frames(
    clip: Clip, numbers: Iterable[int] | None = None, read_ahead: int = 4
) -> Generator[Frame, None, None]:
    """Decodes frames one after the other, a few ahead of the caller, in a background thread.

    At most `read_ahead` + 2 frames are in memory. Closing or dropping the iterator stops the thread
    and closes the files. Movies seek where that saves decoding.

    Args:
        clip: from `open_clip`.
        numbers: which frames, in which order; all of the clip's by default.
        read_ahead: frames to hold ready, at least 1.

    Raises:
        MissingFramesError: at once, if a number is not one of the clip's.
        UnreadableFrameError, BadPixelsError, UnsupportedChannelsError, FormatChangeError,
            TooLargeError: when the iterator reaches that frame, after the frames before it.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import numpy as np
        >>> from core.media.write import write_exr
        >>> with TemporaryDirectory() as folder:
        ...     for number in (1001, 1002, 1004):
        ...         pixels = np.full((4, 6, 3), number % 10, np.float32)
        ...         write_exr(f"{folder}/shot.{number}.exr", pixels)
        ...     clip = open_clip(f"{folder}/shot.####.exr")
        ...     print(clip.width, clip.height, format_numbers(clip.numbers))
        ...     for frame in read_frames(clip, [1001, 1004]):
        ...         print(frame.number, frame.pixels.shape, float(frame.pixels.max()))
        6 4 1001-1002, 1004
        1001 (4, 6, 3) 1.0
        1004 (4, 6, 3) 4.0
    """
    requested = clip.numbers if numbers is None else tuple(numbers)
    absent = set(requested) - set(clip.numbers)
    if absent:
        raise MissingFramesError(clip.path, absent, format_numbers(clip.numbers))
    if read_ahead < 1:
        raise ValueError(f"read_ahead must be at least 1, not {read_ahead}")
    if clip.movie is not None:
        movie = clip.movie
        return _ahead(lambda: read_movie(clip, movie, requested), read_ahead)
    return _ahead(lambda: (read_picture(clip, number) for number in requested), read_ahead)


def read_network_frames(clip: Clip, numbers: Iterable[int] | None = None) -> Iterator[NetworkFrame]:
    """Reads frames in network colour; arguments and errors as for `read_frames`."""
    with closing(read_frames(clip, numbers)) as frames:
        for frame in frames:
            pixels, clipping = colour.to_network(frame.pixels, clip.colour_space, clip.config)
            yield NetworkFrame(frame.number, pixels * 0.5 + 0.5, clipping)


def read_frame(clip: Clip, number: int) -> Frame:
    """Reads one frame of a clip; errors as for `read_frames`."""
    with closing(read_frames(clip, [number])) as frames:
        return next(frames)


def _ahead(
    start: Callable[[], Generator[Frame, None, None]], depth: int
) -> Generator[Frame, None, None]:
    """Runs an iterator in a thread, up to `depth` items ahead of the caller."""
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
