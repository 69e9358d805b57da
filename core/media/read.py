"""Opening clips and reading their frames."""

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
from core.media.movies import movie_frames, open_movie
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
        ClipNotFoundError, ClipNotReadableError: by the path.
        MissingFramesError: no frame at all lies in the range. (Gaps are no error: see `missing`.)
        UnreadableFrameError, UnsupportedChannelsError, TooLargeError: by the first frame's header.
        core.media.colour.ColourError: unknown colour space or config.
    """
    text, text_first, text_last = split_range(str(path).strip())
    first = text_first if first is None else first
    last = text_last if last is None else last
    if first is not None and last is not None and last < first:
        raise ClipError(f"The range {first}-{last} of {text} ends before it starts.")
    if Path(text).suffix.lower() in MOVIES and not os.path.isdir(text):
        return open_movie(text, first, last, colour_space, config)
    return open_pictures(text, first, last, colour_space, config)


def with_handles(clip: Clip, count: int) -> Clip:
    """The clip with so many frames more before and after its range, as far as they exist.

    Raises:
        ClipNotFoundError: the clip has gone since it was opened.
    """
    movie = clip.movie
    existing = find_sequence(clip.path)[1] if movie is None else list(range(1, len(movie.pts) + 1))
    if existing is None:  # a still
        return clip
    first = min(clip.first, max(clip.first - count, existing[0]))
    last = max(clip.last, min(clip.last + count, existing[-1]))
    numbers = tuple(number for number in existing if first <= number <= last)
    return replace(clip, numbers=numbers, first=first, last=last)


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
        MissingFramesError: at once, if a number is not one of the clip's.
        UnreadableFrameError, BadPixelsError, UnsupportedChannelsError, FormatChangeError,
            TooLargeError: when the iterator comes to that frame; the frames before it have been
            given.

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
    wanted = clip.numbers if numbers is None else tuple(numbers)
    absent = set(wanted) - set(clip.numbers)
    if absent:
        raise MissingFramesError(clip.path, absent, format_numbers(clip.numbers))
    if read_ahead < 1:
        raise ValueError(f"read_ahead must be at least 1, not {read_ahead}")
    if clip.movie is not None:
        movie = clip.movie
        return _ahead(lambda: movie_frames(clip, movie, wanted), read_ahead)
    return _ahead(lambda: (read_picture(clip, number) for number in wanted), read_ahead)


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
