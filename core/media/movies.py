"""Reading movies through PyAV (FFmpeg): opening, seeking, and which picture is which frame.

Frame N is the N-th stored picture that can be decoded, in the order of presentation, even if the
frame rate varies. Where a file's times say which picture is which, frames are addressed by them:
all packets are indexed when it is opened. Elsewhere (`_has_sound_times`) the pictures are counted
from the first on.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from core.media import colour
from core.media.clip import MAX_PIXELS, MAX_SIDE, Clip, Frame, Movie, Window
from core.media.contents import content_of, mismatch
from core.media.errors import (
    ClipNotReadableError,
    FormatChangeError,
    TooLargeError,
    UnreadableFrameError,
    check_finite,
    first_sentence,
)
from core.media.movie_ends import End, ends_open, file_end
from core.media.movie_geometry import Orientation, clean_aperture, orientation
from core.media.movie_pixels import to_rgb
from core.media.sequences import check_file, clip_range

# FFmpeg's demuxers that are tried, whatever the file is called. Playlists and picture patterns are
# not among them: they could name other files.
_DEMUXERS = "mov,matroska,webm,avi,mxf,mpegts,mpeg,gif,asf,flv"

# Of these every picture has its time; other containers leave some of them out, or state others.
_TIMED = ("mov", "matroska", "mpegts", "flv", "gif")

# Movies of these kinds are refused by name.
_NOT_READ = {
    ".r3d": "a REDCODE movie",
    ".braw": "a Blackmagic RAW movie",
    ".ari": "ARRIRAW",
    ".arx": "ARRIRAW",
    ".crm": "a Cinema RAW Light movie",
    ".nev": "an N-RAW movie",
    ".cine": "a Phantom movie",
    ".dv": "a DV stream",
    ".vob": "a DVD movie",
    ".ogv": "an Ogg movie",
    ".f4v": "a Flash movie",
    ".swf": "a Flash movie",
    ".rm": "a RealMedia movie",
    ".y4m": "a YUV4MPEG stream",
    ".h264": "a bare H.264 stream",
    ".264": "a bare H.264 stream",
    ".h265": "a bare HEVC stream",
    ".265": "a bare HEVC stream",
    ".hevc": "a bare HEVC stream",
    ".m2v": "a bare MPEG-2 stream",
    ".apng": "an animated PNG",
}

_PRIMARIES = {  # H.273, table 2
    4: "BT.470 M",
    8: "film",
    9: "Rec.2020",
    10: "XYZ",
    11: "DCI-P3",
    12: "Display P3",
    22: "EBU 3213",
}
_NOTHING_LEFT = "is cut off, and what is there of it can't be read."
_CUT = "If it is still being written or copied, wait for it; else copy or export it again."
_TRANSFERS = {8: "linear", 9: "logarithmic", 10: "logarithmic", 17: "SMPTE 428"}  # table 3


def refuse_unread_movie(path: str) -> None:
    """Refuses a movie of a kind that is not read.

    Raises:
        ClipNotReadableError: by its suffix, it is one.
    """
    kind = _NOT_READ.get(Path(path).suffix.lower())
    if kind is not None:
        raise ClipNotReadableError(
            f"{path} is {kind}, which is not read here. Export EXR frames from it, or a ProRes or "
            "H.264 movie."
        )


def open_movie(
    path: str, first: int | None, last: int | None, colour_space: str | None, config: str | None
) -> Clip:
    """Opens a movie; arguments and errors as for `core.media.read.open_clip`."""
    if colour_space is None:
        space = colour.texture_space(config)
    else:
        space = colour.resolve(colour_space, config)
    with _opened(path) as (container, stream):
        _check_size(stream, path)
        end = file_end(path)
        try:
            found = _find_pictures(container, stream, path, end)
        except (ClipNotReadableError, UnreadableFrameError) as error:
            # MOV and MP4: the header has pictures, but what follows it has none.
            empty = isinstance(error, ClipNotReadableError) and stream.frames
            if end == "whole" and not empty:
                raise
            raise ClipNotReadableError(
                f"{path} is cut off before its first picture ends. {_CUT}"
            ) from error
        tracks = sum(_is_picture_track(each) for each in container.streams.video)
        field_order = stream.codec_context.field_order
        fps = stream.average_rate or stream.guessed_rate
        aspect = float(stream.sample_aspect_ratio or 1)
        # The header's count, which is to be trusted in MOV and MP4 alone.
        promised = stream.frames if container.format.name.startswith("mov") or found.cut else 0
    movie, picture, dropped = found.movie, found.picture, found.dropped
    notes = []
    kept = dropped + len(movie.pts)
    if found.cut or promised > found.stored:
        of_all = f" of {promised - dropped}" if promised >= kept else ""
        notes.append(f"The movie is cut off after frame {len(movie.pts)}{of_all}. {_CUT}")
        last = promised - dropped if last is None and promised > kept else last
    if dropped:
        notes.append(
            f"The movie's first {dropped} picture{'s' * (dropped != 1)} can't be decoded: it was "
            "cut without being encoded again. Frame 1 is the first picture that can."
        )
    numbers, first, last = clip_range(path, range(1, len(movie.pts) + 1), first, last)
    if not movie.even:
        notes.append("The frame rate varies: every stored picture is one frame.")
    if tracks > 1:
        notes.append(f"The movie has {tracks} picture tracks: the default one is read.")

    shown = _shown(picture, movie, path, 1)
    turn = orientation(picture)
    notes += _picture_notes(picture, movie, turn, field_order)
    notes += _colour_notes(picture) if colour_space is None else []
    return Clip(
        path=path,
        kind="movie",
        numbers=numbers,
        first=first,
        last=last,
        width=shown[0].shape[1],
        height=shown[0].shape[0],
        pixel_aspect=1 / aspect if turn.transposed else aspect,
        fps=float(fps) if fps else None,
        colour_space=space,
        config=config,
        has_alpha=shown[1] is not None,
        notes=tuple(notes),
        movie=movie,
    )


def _picture_notes(picture: Any, movie: Movie, turn: Orientation, field_order: int) -> list[str]:
    """Returns what is to be said of how a movie's pictures are shown."""
    notes = []
    if movie.crop is not None:
        notes.append(
            f"Only the clean aperture is read, as players show it: {movie.crop.width}x"
            f"{movie.crop.height} of {picture.width}x{picture.height} pixels. Where your plate in "
            "Nuke shows all of them, export the movie without a clean aperture."
        )
    if turn.note:
        notes.append(turn.note)
    if field_order > 1 or picture.interlaced_frame:
        notes.append(
            "The movie is interlaced: its frames are read as they are, both fields at once. "
            "Deinterlace it first for clean edges."
        )
    return notes


def _colour_notes(picture: Any) -> list[str]:
    """Returns what is to be said of a movie whose code values are taken for sRGB ones."""
    if picture.color_trc in (16, 18):  # PQ, HLG
        return [
            "The movie is HDR (PQ or HLG): its code values are shown as they are and look "
            "flat. Convert it to Rec.709 for true colours."
        ]
    notes = []
    if transfer := _TRANSFERS.get(int(picture.color_trc)):
        notes.append(
            f"The movie's curve is {transfer}: its code values are shown as they are. Convert it "
            "to Rec.709, or name its colour space."
        )
    if primaries := _PRIMARIES.get(int(picture.color_primaries)):
        notes.append(
            f"The movie's colours are {primaries}: its code values are taken for Rec.709 and look "
            "duller. Convert it to Rec.709, or name its colour space."
        )
    return notes


@contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Any]]:
    """Opens a movie: PyAV's container and the video stream that is read."""
    check_file(path)
    options = {"enable_drefs": "0", "format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
    try:
        # "file:", or FFmpeg takes what stands before a colon for a protocol.
        container = av.open(f"file:{path}", options=options, metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise ClipNotReadableError(_why_not_opened(path, error)) from error
    with container:
        try:
            stream = _picture_track(container, path)
        except ClipNotReadableError as error:
            if file_end(path) == "whole":
                raise
            raise ClipNotReadableError(f"{path} {_NOTHING_LEFT} {_CUT}") from error
        stream.thread_type = "AUTO"
        yield container, stream


def _why_not_opened(path: str, error: Any) -> str:
    if other := mismatch(path, "movie"):
        return f"{path} {other}"
    reason = first_sentence(error.strerror)
    content = content_of(path)
    if content is not None and content.suffix in (".mov", ".mp4"):  # readable with all its parts
        reason = "its index is missing, as where a file was cut off."
    elif content is not None and file_end(path) != "whole":
        return f"{path} {_NOTHING_LEFT} {_CUT}"
    elif isinstance(error, ValueError):  # a container that is not on the list
        reason = "it is of no kind that is read here."
    return (
        f"{path} is no movie that can be read: {reason} If it is still being written or copied, "
        "wait for it; else export it again, as ProRes or H.264 in .mov or .mp4."
    )


def _is_picture_track(stream: Any) -> bool:
    aside = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.dependent
    return not stream.disposition & aside


def _picture_track(container: Any, path: str) -> Any:
    """Returns the default picture track: neither a cover nor thumbnails."""
    tracks = [stream for stream in container.streams.video if _is_picture_track(stream)]
    if not tracks:
        raise ClipNotReadableError(
            f"{path} has no picture, only sound or data. Choose the movie with the picture."
        )
    readable = [stream for stream in tracks if stream.codec_context is not None]
    if not readable:
        raise ClipNotReadableError(
            f"{path} is encoded by a codec that is not read here. Export it as ProRes or H.264."
        )
    return max(readable, key=lambda stream: bool(stream.disposition & Disposition.default))


def _check_size(stream: Any, path: str) -> None:
    width, height = stream.codec_context.width, stream.codec_context.height
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        raise TooLargeError(
            f"{path} claims {width}x{height} pixels; the limit is {MAX_SIDE} a side."
        )


@dataclass(frozen=True)
class _Packets:
    """The packets of a movie's track, in the order of the file.

    Attributes:
        pts: of those that are shown; None where the file has no time.
        dts: of the same.
        keys: pts and time to seek to, of the key frames.
        stored: how many there are.
        cut: whether the last one is incomplete, and left out.
    """

    pts: list[int | None]
    dts: list[int | None]
    keys: list[tuple[int, int]]
    stored: int
    cut: bool


def _read_packets(container: Any, stream: Any, path: str, open_end: bool) -> _Packets:
    """Reads all packets without decoding them."""
    pts: list[int | None] = []
    dts: list[int | None] = []
    keys = []
    stored = 0
    container.flags &= ~av.container.Flags.gen_pts.value  # times that FFmpeg guesses
    # These two seek by pts: with a key frame's dts they find the one before.
    by_pts = container.format.name.startswith(("mov", "matroska"))
    hidden = stream.codec_context.name in ("vp8", "libvpx")  # its packets may show nothing
    cut = False
    try:
        for packet, whole in _whole_packets(container, stream, open_end):
            if not whole:
                cut = True
                continue
            if packet.size == 0:
                continue  # the flush packet at the end
            if hidden and not memoryview(packet)[0] & 0x10:  # RFC 6386, 9.1: show_frame
                continue
            stored += 1
            if packet.is_keyframe and packet.pts is not None:
                time = packet.pts if by_pts or packet.dts is None else packet.dts
                keys.append((packet.pts, time))
            if not packet.is_discard:
                pts.append(packet.pts)
                dts.append(packet.dts)
    except av.FFmpegError as error:
        raise ClipNotReadableError(
            f"{path} is damaged: {first_sentence(error.strerror)} Export it again."
        ) from error
    if not pts:
        raise ClipNotReadableError(f"{path} holds no pictures that can be decoded. {_CUT}")
    return _Packets(pts, dts, sorted(keys), stored, cut)


def _whole_packets(container: Any, stream: Any, open_end: bool) -> Iterator[tuple[Any, bool]]:
    """Yields the packets from the current place on, then the empty one that flushes the decoder.

    With each comes whether it is whole. Only the last one is ever said not to be: those that are
    damaged amid the file are the decoder's business.
    """
    held = flush = None
    for packet in container.demux(stream):
        if packet.size == 0:
            flush = packet
            continue
        if held is not None:
            yield held, True
        held = packet
    if held is not None:
        yield held, not (open_end or held.is_corrupt)
    if flush is not None:
        yield flush, True


def _has_sound_times(container: Any, stream: Any, packets: _Packets, end: End) -> bool:
    """Returns whether each picture has one packet with a time of its own."""
    if None in packets.pts or len(set(packets.pts)) < len(packets.pts) or not packets.keys:
        return False
    name, context = container.format.name.split(",")[0], stream.codec_context
    if name == "mxf" and end != "whole":
        return False  # its index comes last: without it times are guessed from sizes
    if name == "mpegts" and context.name == "h264":
        return bool(context.field_order == 1)  # else a packet may be a field
    # Not by the flags: in an AVI without its index every packet passes for a key frame.
    return name in _TIMED or context.codec.intra_only


@dataclass(frozen=True)
class _Found:
    """The pictures of a movie.

    Attributes:
        movie: their index.
        picture: the first one.
        dropped: number of pictures before it that can't be decoded: leading ones of an open GOP,
            whose references were cut off.
        stored: number of packets.
        cut: whether the file's end is missing.
    """

    movie: Movie
    picture: Any
    dropped: int
    stored: int
    cut: bool


def _find_pictures(container: Any, stream: Any, path: str, end: End) -> _Found:
    """Returns the pictures of a movie, those of a cut one up to the first that is missing."""
    open_end = end == "pictures" and ends_open(path)
    packets = _read_packets(container, stream, path, open_end)
    if container.format.name == "mpegts" and end == "whole" and _lacks_pictures(packets):
        container.seek(packets.keys[0][1], stream=stream)
        return _find_pictures(container, stream, path, "pictures")  # cut between two packets
    opened = None
    if _has_sound_times(container, stream, packets, end):
        opened = _open_timed(container, stream, path, packets, end, open_end)
    movie, picture, dropped = opened or _open_counted(path, end, open_end)
    return _Found(movie, picture, dropped, packets.stored, packets.cut or end != "whole")


def _open_timed(
    container: Any, stream: Any, path: str, packets: _Packets, end: End, open_end: bool
) -> tuple[Movie, Any, int] | None:
    """Returns index, first picture, and the number of pictures before it that can't be decoded.

    None where the movie can't be searched.
    """
    pts = sorted(each for each in packets.pts if each is not None)
    if packets.cut or end == "pictures":
        rate = stream.average_rate
        step = float(1 / (rate * stream.time_base)) if rate else math.inf
        pts = _without_gaps(pts, [each for each in packets.dts if each is not None], step)
    try:
        pictures = _seek(container, stream, packets.keys[0], open_end)
    except (av.FFmpegError, OSError):
        return None
    picture = _next_whole(pictures, path)
    if picture.pts not in pts:
        return None
    dropped = pts.index(picture.pts)
    pts = pts[dropped:]
    codec, crop = stream.codec_context.name, _crop(container, stream, picture, path)
    movie = Movie(tuple(pts), tuple(packets.keys), _even(pts), codec, crop, open_end)
    return movie, picture, dropped


def _lacks_pictures(packets: _Packets) -> bool:
    """Returns whether pictures of an even rate are missing between the last ones."""
    pts = sorted(each for each in packets.pts if each is not None)
    dts = [each for each in packets.dts if each is not None]
    if len(dts) < 3 or not packets.keys or not _even(dts):
        return False
    return len(_without_gaps(pts, dts, math.inf)) < len(pts)


def _without_gaps(pts: list[int], dts: list[int], step: float) -> list[int]:
    """Returns the times of a cut movie's pictures up to the first that is missing.

    Pictures are stored in the order of decoding, so that of the last ones some before others are
    missing. Those are decoded, and shown, after the last packet that is there.

    Args:
        pts: times of the pictures, sorted.
        dts: times at which the packets are decoded.
        step: time of one picture by the header's frame rate; infinite where it has none.
    """
    if len(dts) > 1:
        step = min(step, float(np.median(np.diff(sorted(dts)))))
    count = max(bisect_right(pts, max(dts, default=pts[0])), 1)
    while count < len(pts) and pts[count] - pts[count - 1] < 1.5 * step:
        count += 1
    return pts[:count]


def _open_counted(path: str, end: End, open_end: bool) -> tuple[Movie, Any, int]:
    """Decodes a whole movie; returns as `_open_timed`."""
    first: Any = None
    dropped = count = sound = flushed = 0
    with _opened(path) as (container, stream):
        if end != "whole":
            stream.thread_type = "SLICE"  # else pictures are delayed for other reasons as well
        for packet, whole in _whole_packets(container, stream, open_end):
            for picture in _decode(packet) if whole else ():
                count += 1
                flushed += packet.size == 0
                sound = sound if picture.is_corrupt else count
                if first is None and picture.is_corrupt:
                    dropped += 1
                else:
                    first = first or picture
        if first is None:
            raise UnreadableFrameError(path, 1, "can't be decoded. Make the movie again.")
        if end == "pictures":
            # Of the pictures that waited for others, some of those may be missing.
            waited = flushed if stream.codec_context.has_b_frames else 0
            count = max(min(count - waited, sound), dropped + 1)
        codec, crop = stream.codec_context.name, _crop(container, stream, first, path)
    return Movie(tuple(range(dropped, count)), (), True, codec, crop, open_end), first, dropped


def _next_whole(pictures: Iterator[Any], path: str) -> Any:
    """Returns the first picture that is decoded whole."""
    try:
        picture = next((each for each in pictures if not each.is_corrupt), None)
    except av.FFmpegError as error:
        raise _undecodable(path, 1, error) from error
    if picture is None:
        raise UnreadableFrameError(path, 1, "can't be decoded. Make the movie again.")
    return picture


def _even(pts: Sequence[int]) -> bool:
    steps = np.diff(pts)
    return bool(steps.size == 0 or int(steps.max() - steps.min()) <= 1)


def _crop(container: Any, stream: Any, picture: Any, path: str) -> Window | None:
    if not container.format.name.startswith("mov"):
        return None
    return clean_aperture(path, stream.id, picture.width, picture.height)


def read_movie(clip: Clip, movie: Movie, numbers: Sequence[int]) -> Generator[Frame, None, None]:
    """Decodes frames of a movie in the given order, and seeks only where that saves decoding.

    Errors as for `core.media.read.read_frames`.
    """
    decoded = _by_time(clip.path, movie, numbers) if movie.keys else _by_count(clip, movie, numbers)
    for number, picture in decoded:
        if picture is None or picture.is_corrupt:
            raise UnreadableFrameError(
                clip.path, number, "is truncated or damaged. Export the movie again."
            )
        yield _to_frame(clip, movie, number, picture)


def _by_time(path: str, movie: Movie, numbers: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Yields numbers with their pictures, or None where there is no such picture."""
    key_pts = [pts for pts, _ in movie.keys]
    with _opened(path) as (container, stream):
        pictures: Any = iter(())
        here: int | None = None  # pts of the last picture that was returned
        for number in numbers:
            target = movie.pts[number - 1]
            key = max(bisect_right(key_pts, target) - 1, 0)
            jump = here is None or target <= here or key_pts[key] > here
            if jump:
                pictures = _seek(container, stream, movie.keys[key], movie.open_end)
            picture = _decode_until(pictures, path, number, target)
            if picture is None and jump:  # the seek landed too late
                pictures = _seek(container, stream, movie.keys[0], movie.open_end)
                picture = _decode_until(pictures, path, number, target)
            here = target
            yield number, picture


def _by_count(clip: Clip, movie: Movie, numbers: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Yields numbers with their pictures, decoded from the start."""
    with ExitStack() as stack:
        pictures: Any = iter(())
        here: int | None = None  # place of the last picture that was returned
        for number in numbers:
            target = movie.pts[number - 1]
            if here is None or target <= here:
                stack.close()
                opened = stack.enter_context(_opened(clip.path))
                pictures = enumerate(_all_pictures(*opened, movie.open_end))
            picture = next((each for place, each in pictures if place == target), None)
            here = target
            yield number, picture


def _seek(container: Any, stream: Any, key: tuple[int, int], open_end: bool) -> Iterator[Any]:
    """Returns an iterator of the decoded pictures from a key frame on."""
    container.seek(key[1], stream=stream)
    packets = _whole_packets(container, stream, open_end)
    return (picture for packet, whole in packets if whole for picture in packet.decode())


def _all_pictures(container: Any, stream: Any, open_end: bool) -> Iterator[Any]:
    """Yields the pictures from the current place on, without those that can't be decoded."""
    for packet, whole in _whole_packets(container, stream, open_end):
        if whole:
            yield from _decode(packet)


def _decode(packet: Any) -> list[Any]:
    """Returns the pictures that a packet completes; none where it can't be decoded."""
    try:
        return list(packet.decode())
    except av.FFmpegError:
        return []


def _decode_until(pictures: Any, path: str, number: int, target: int) -> Any:
    """Decodes up to the picture whose pts is `target`; None if there is no such picture."""
    try:
        for picture in pictures:
            if picture.pts is not None and picture.pts >= target:
                return picture if picture.pts == target else None
    except av.FFmpegError as error:
        raise _undecodable(path, number, error) from error
    return None


def _undecodable(path: str, number: int, error: Any) -> UnreadableFrameError:
    reason = first_sentence(error.strerror)
    return UnreadableFrameError(path, number, f"can't be decoded: {reason} Export the movie again.")


def _shown(
    picture: Any, movie: Movie, path: str, number: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns RGB and alpha of a picture, cropped and turned as the movie asks."""
    try:
        pixels, alpha = to_rgb(picture, movie.codec)
    except ValueError as error:
        raise UnreadableFrameError(
            path, number, f"has {error}, which are not read here. Convert it to Rec.709 first."
        ) from error
    if "f" in picture.format.name:  # floats, as in gbrpf32le
        check_finite(pixels, path, number)
    crop, turn = movie.crop, orientation(picture)

    def show(plane: np.ndarray) -> np.ndarray:
        if crop is not None:
            plane = plane[crop.y : crop.y + crop.height, crop.x : crop.x + crop.width]
        return np.ascontiguousarray(turn.apply(plane))

    return show(pixels), None if alpha is None else show(alpha)


def _to_frame(clip: Clip, movie: Movie, number: int, picture: Any) -> Frame:
    pixels, alpha = _shown(picture, movie, clip.path, number)
    if pixels.shape[:2] != (clip.height, clip.width):
        raise FormatChangeError(
            clip.path,
            number,
            f"is {pixels.shape[1]}x{pixels.shape[0]}, the clip {clip.width}x{clip.height}. "
            "Export the movie in one size.",
        )
    if alpha is None and clip.has_alpha:  # an opaque palette among transparent ones
        alpha = np.ones(pixels.shape[:2], np.float32)
    return Frame(
        number=number,
        pixels=pixels,
        alpha=alpha,
        data_window=Window(0, 0, clip.width, clip.height),
        metadata={"seconds": picture.time, **_texts(picture)},
    )


def _texts(picture: Any) -> dict[str, str]:
    """Returns a picture's texts; none where they are not UTF-8, as PyAV offers nothing else."""
    try:
        return dict(picture.metadata)
    except UnicodeDecodeError:
        return {}
