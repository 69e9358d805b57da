"""Reading movies through PyAV (FFmpeg): opening, seeking and exact conversion of their pixels.

Frames are addressed by presentation time: all packets are indexed when a movie is opened, so frame
N is the N-th stored picture even if the frame rate varies. A new pixel format is a case in
`_to_rgb`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from core.media import colour
from core.media.clip import MAX_PIXELS, MAX_SIDE, MOVIES, Clip, Frame, Movie, Window
from core.media.errors import (
    ClipNotReadableError,
    FormatChangeError,
    TooLargeError,
    UnreadableFrameError,
    first_sentence,
)
from core.media.sequences import check_file, clip_range


def open_movie(
    path: str, first: int | None, last: int | None, colour_space: str | None, config: str | None
) -> Clip:
    """Opens a movie; arguments and errors as for `core.media.read.open_clip`."""
    if colour_space is None:
        space = colour.texture_space(config)
    else:
        space = colour.resolve(colour_space, config)
    notes = []
    with _opened(path) as (container, stream):
        _check_movie_size(stream, path)
        index, stored, even = _index(container, stream, path)
        if stream.frames > stored:  # the header's count, against the packets in the file
            last = stream.frames if last is None else last
            notes.append(f"The movie is cut off: {stored} of {stream.frames} frames are there.")
        numbers, first, last = clip_range(path, range(1, len(index.pts) + 1), first, last)
        if not even:
            notes.append("The frame rate varies: every stored picture is one frame.")
        picture = _decode_until(_seek(container, stream, index.keys[0]), path, 1, index.pts[0])
        if picture is None:
            raise UnreadableFrameError(path, 1, "can't be decoded. Make the movie again.")
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
def _opened(path: str) -> Iterator[tuple[Any, Any]]:
    """Opens a movie: PyAV's container and its first video stream."""
    check_file(path)
    demuxer = MOVIES[
        Path(path).suffix.lower()
    ]  # by suffix: a disguised playlist could name other files
    try:
        container = av.open(path, format=demuxer, options={"enable_drefs": "0"})
    except (av.FFmpegError, OSError) as error:
        raise ClipNotReadableError(
            f"{path} is no movie that can be read: {first_sentence(error.strerror)} If it is still "
            "being written or copied, wait for it; else export it again."
        ) from error
    with container:
        if not container.streams.video:
            raise ClipNotReadableError(f"{path} has no picture, only sound or data.")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield container, stream


def _check_movie_size(stream: Any, path: str) -> None:
    width, height = stream.codec_context.width, stream.codec_context.height
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        raise TooLargeError(
            f"{path} claims {width}x{height} pixels; the limit is {MAX_SIDE} a side."
        )


def _index(container: Any, stream: Any, path: str) -> tuple[Movie, int, bool]:
    """Reads all packets without decoding them.

    Returns:
        The index, the number of packets, and whether the frame rate is constant.
    """
    pts, keys, stored = [], [], 0
    try:
        for packet in container.demux(stream):
            if packet.size == 0:
                continue  # the flush packet at the end
            stored += 1
            if packet.pts is None:
                raise ClipNotReadableError(f"{path} has pictures without a time. Export it again.")
            if packet.is_keyframe:
                keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
            if not packet.is_discard:
                pts.append(packet.pts)
    except av.FFmpegError as error:
        raise ClipNotReadableError(
            f"{path} is damaged: {first_sentence(error.strerror)}"
        ) from error
    if not pts or not keys:
        raise ClipNotReadableError(
            f"{path} holds no pictures that can be decoded. Export it again."
        )
    movie = Movie(tuple(sorted(set(pts))), tuple(sorted(keys)))
    steps = np.diff(movie.pts)
    return movie, stored, steps.size == 0 or int(steps.max() - steps.min()) <= 1


def read_movie(clip: Clip, movie: Movie, numbers: Sequence[int]) -> Generator[Frame, None, None]:
    """Decodes frames of a movie in the given order, and seeks only where that saves decoding.

    Errors as for `core.media.read.read_frames`.
    """
    key_pts = [pts for pts, _ in movie.keys]
    with _opened(clip.path) as (container, stream):
        pictures: Any = iter(())
        here: int | None = None  # pts of the last picture that was returned
        for number in numbers:
            target = movie.pts[number - 1]
            key = max(bisect_right(key_pts, target) - 1, 0)
            jump = here is None or target <= here or key_pts[key] > here
            if jump:
                pictures = _seek(container, stream, movie.keys[key])
            picture = _decode_until(pictures, clip.path, number, target)
            if picture is None and jump:  # the seek landed too late
                pictures = _seek(container, stream, movie.keys[0])
                picture = _decode_until(pictures, clip.path, number, target)
            if picture is None or picture.is_corrupt:
                raise UnreadableFrameError(
                    clip.path, number, "is truncated or damaged. Export the movie again."
                )
            here = target
            yield _to_frame(clip, number, picture)


def _seek(container: Any, stream: Any, key: tuple[int, int]) -> Any:
    """Returns an iterator of the decoded pictures from a key frame on."""
    container.seek(key[1], stream=stream)
    return container.decode(stream)


def _decode_until(pictures: Any, path: str, number: int, target: int) -> Any:
    """Decodes up to the picture whose pts is `target`; None if there is no such picture."""
    try:
        for picture in pictures:
            if picture.pts is not None and picture.pts >= target:
                return picture if picture.pts == target else None
    except av.FFmpegError as error:
        raise UnreadableFrameError(
            path,
            number,
            f"can't be decoded: {first_sentence(error.strerror)} Export the movie again.",
        ) from error
    return None


def _to_frame(clip: Clip, number: int, picture: Any) -> Frame:
    alpha = _has_alpha(picture)
    pixels = np.rot90(_to_rgb(picture, alpha), picture.rotation // 90)
    if pixels.shape[:2] != (clip.height, clip.width):
        raise FormatChangeError(
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


def _to_rgb(picture: Any, alpha: bool) -> np.ndarray:
    """Converts a decoded picture to float32 `[H, W, 3 or 4]`, black at 0 and white at 1.

    Codes below black and above white stay below 0 and above 1. FFmpeg only brings the planes to one
    size: its conversion to RGB clips, and its 16-bit white is 65280 of 65535. The matrix is applied
    here (ITU-R BT.601, BT.709, BT.2020).
    """
    bits = picture.format.components[0].bits
    if picture.format.is_rgb:
        eight, deep = ("rgba", "rgba64le") if alpha else ("rgb24", "rgb48le")
        codes = picture.reformat(format=eight if bits <= 8 else deep).to_ndarray()
        return codes.astype(np.float32) * np.float32(1 / np.iinfo(codes.dtype).max)

    # With equal ranges on both sides FFmpeg only shifts n-bit codes up to 16 bits. If both are
    # declared limited, that holds for full range too, except for pixel formats that are full range
    # by name: there luma is stretched to 65535 if chroma has luma's size (or there is none).
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
    """Returns Kr and Kb by tag; untagged, Rec.709 from 720 lines up and Rec.601 below."""
    rec709, rec601 = (0.2126, 0.0722), (0.299, 0.114)
    by_tag = {1: rec709, 4: (0.3, 0.11), 5: rec601, 6: rec601, 7: (0.212, 0.087)}
    by_tag |= {9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
    high = picture.width >= 1280 or picture.height >= 720
    return by_tag.get(int(picture.colorspace), rec709 if high else rec601)
