"""Movies as people have them: which picture is which frame, how it is shown, what is said."""

from __future__ import annotations

import os
import random
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from numbered_movies import encode, numbered, spelled

from core.media.clip import MOVIES, Clip
from core.media.errors import ClipError, ClipNotReadableError, UnreadableFrameError
from core.media.read import open_clip, read_frame, read_frames

X264 = "keyint=8:min-keyint=8:scenecut=0:bframes=3:b-pyramid=normal"
X265 = "log-level=none:keyint=8:min-keyint=8:scenecut=0:bframes=3"
INTERLACED = 1 << 18 | 1 << 29  # FFmpeg's flags ildct and ilme


def pictures(count: int, form: str = "yuv420p") -> list[av.VideoFrame]:
    images = []
    for number in range(1, count + 1):
        image = av.VideoFrame.from_ndarray(numbered(number), "rgb24").reformat(format=form)
        image.pts, image.time_base = number - 1, Fraction(1, 25)
        images.append(image)
    return images


def copy(source: Path, target: Path, first: int = 0, change=None, **options: str) -> None:
    """Copies the packets from one on, without encoding them again."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for place, packet in enumerate(p for p in old.demux(video=0) if p.size):
            if place >= first:
                changed = change(place, packet) if change else packet
                changed.stream = stream
                new.mux(changed)


def shown(clip: Clip, numbers: list[int] | None = None) -> list[int]:
    return [spelled(frame.pixels) for frame in read_frames(clip, numbers)]


def check_any_order(clip: Clip, sequence: list[int]) -> None:
    """Frames alone, backwards and at random are those of reading from the first to the last."""
    order = list(clip.numbers)
    random.Random(0).shuffle(order)
    for numbers in (order, list(clip.numbers)[::-1]):
        assert shown(clip, numbers) == [sequence[number - 1] for number in numbers]
    middle = clip.numbers[len(clip.numbers) // 2]
    assert spelled(read_frame(clip, middle).pixels) == sequence[middle - 1]


# Kinds of movies


@pytest.mark.parametrize(
    ("suffix", "codec", "form", "options"),
    [
        ("avi", "mjpeg", "yuvj420p", {}),
        ("avi", "libx264", "yuv420p", {"x264-params": X264}),
        ("avi", "mpeg4", "yuv420p", {"bf": "2", "g": "8"}),
        ("avi", "ffv1", "yuv420p", {"g": "8"}),
        ("mxf", "libx264", "yuv420p", {"x264-params": X264}),
        ("mxf", "mpeg2video", "yuv420p", {"bf": "2", "g": "8"}),
        ("mxf", "prores_ks", "yuv422p10le", {}),
        ("ts", "libx264", "yuv420p", {"x264-params": f"{X264}:open-gop=1"}),
        ("m2ts", "libx265", "yuv420p", {"x265-params": f"{X265}:open-gop=1"}),
        ("mts", "mpeg2video", "yuv420p", {"bf": "2", "g": "8"}),
        ("mpg", "mpeg2video", "yuv420p", {"bf": "2", "g": "8"}),
        ("mpeg", "mpeg1video", "yuv420p", {"bf": "2", "g": "8"}),
        ("wmv", "wmv2", "yuv420p", {"g": "8"}),
        ("flv", "libx264", "yuv420p", {"x264-params": X264}),
        ("gif", "gif", "rgb8", {}),
        ("webm", "libvpx-vp9", "yuv420p", {"g": "8", "cpu-used": "8", "lag-in-frames": "8"}),
        ("mkv", "libx265", "yuv420p", {"x265-params": f"{X265}:open-gop=1"}),
        ("3gp", "mpeg4", "yuv420p", {"bf": "2", "g": "8"}),
    ],
)
def test_every_kind_of_movie_is_read_in_any_order(tmp_path, suffix, codec, form, options) -> None:
    path = tmp_path / f"a.{suffix}"
    encode(path, pictures(20, form), codec, options)
    clip = open_clip(path)
    assert (clip.numbers, clip.fps, clip.notes) == (tuple(range(1, 21)), 25, ())
    assert shown(clip) == list(range(1, 21))
    check_any_order(clip, list(range(1, 21)))


def test_content_counts_and_not_the_suffix(tmp_path: Path) -> None:
    for suffix, codec, form in (("webm", "libvpx", "yuv420p"), ("avi", "mjpeg", "yuvj420p")):
        encode(tmp_path / f"a.{suffix}", pictures(4, form), codec)
        os.rename(tmp_path / f"a.{suffix}", tmp_path / f"{suffix}.mp4")
        assert shown(open_clip(tmp_path / f"{suffix}.mp4")) == [1, 2, 3, 4]


def test_a_colon_in_a_name_is_no_protocol(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    encode(Path("a.mov"), pictures(2), "libx264")
    os.rename("a.mov", "http:take 2.mov")
    assert shown(open_clip("http:take 2.mov")) == [1, 2]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.ts", b"export const answer = 42;\n" * 20, "text file"),
        ("a.mp4", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "text file"),
        ("a.mov", b"", "empty"),
        ("a.mov", b"\x89PNG\r\n\x1a\n" + bytes(100), "PNG picture"),
        ("a.mov", b"\xff\xd8\xff\xe0" + bytes(100), "JPEG picture"),
        ("a.avi", bytes(1000), "no movie"),
        ("a.gif", b"GIF89a" + bytes(3), "cut off"),
        ("A001_C002.R3D", b"\0\0\0\0RED2", "REDCODE.*EXR"),
        ("a.braw", b"anything", "Blackmagic RAW.*EXR"),
    ],
)
def test_what_is_no_movie_is_named(tmp_path: Path, name, content, told) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ClipNotReadableError, match=rf"(?s){name}.*({told})"):
        open_clip(tmp_path / name)


def test_no_playlist_is_followed(tmp_path: Path) -> None:
    encode(tmp_path / "secret.ts", pictures(2), "libx264")
    lists = {
        "hls": b"\xef\xbb\xbf#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n",
        "concat": b"ffconcat version 1.0\nfile secret.ts\n",
        "dash": b'<?xml version="1.0"?><MPD><BaseURL>secret.ts</BaseURL></MPD>',
    }
    for name, text in lists.items():
        for suffix in sorted(MOVIES):
            (tmp_path / f"{name}{suffix}").write_bytes(text + bytes(1))
            with pytest.raises(ClipError):
                open_clip(tmp_path / f"{name}{suffix}")


def test_sound_alone_and_unknown_codecs_are_named(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        add_sound(container)
    with pytest.raises(ClipNotReadableError, match="only sound"):
        open_clip(tmp_path / "sound.mp4")
    encode(tmp_path / "a.mov", pictures(2), "libx264")
    data = (tmp_path / "a.mov").read_bytes().replace(b"avc1", b"zzz1")
    (tmp_path / "a.mov").write_bytes(data)
    with pytest.raises(ClipNotReadableError, match="codec that is not read"):
        open_clip(tmp_path / "a.mov")


def add_sound(container, stream=None) -> None:
    stream = stream or container.add_stream("aac", 48000)
    silence = av.AudioFrame("fltp", "stereo", 1024)
    silence.sample_rate = 48000
    for plane in silence.planes:
        plane.update(bytes(plane.buffer_size))
    container.mux(stream.encode(silence))
    container.mux(stream.encode(None))


# Text


def test_text_that_is_no_utf8_stops_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w", metadata_encoding="latin-1") as container:
        container.metadata["title"] = "Grüße"
        stream = container.add_stream("libx264", 25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.metadata["handler_name"] = "Müller"
        chapter = {"id": 1, "start": 0, "end": 9, "time_base": Fraction(1, 25)}
        container.set_chapters([{**chapter, "metadata": {"title": "Auftritt Käthe"}}])
        for image in pictures(3):
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
    assert "Grüße".encode("latin-1") in path.read_bytes()
    assert shown(open_clip(path)) == [1, 2, 3]


def test_text_of_a_frame_that_is_no_utf8_stops_nothing(tmp_path: Path) -> None:
    text = b"tEXtAuthor\0M\xfcller"
    png = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))

    def with_text(_: int, packet: av.Packet) -> av.Packet:
        data = bytes(packet)
        changed = av.Packet(data[:33] + png + data[33:])  # after the signature and IHDR
        changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
        changed.duration, changed.is_keyframe = packet.duration, True
        return changed

    encode(tmp_path / "a.mov", pictures(2, "rgb24"), "png")
    copy(tmp_path / "a.mov", tmp_path / "b.mov", change=with_text)
    clip = open_clip(tmp_path / "b.mov")
    assert shown(clip) == [1, 2]
    assert read_frame(clip, 2).metadata["seconds"] == pytest.approx(0.04)


# Geometry


CORNERS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def stored(path: Path, matrix: list[float] | None, pixels: np.ndarray = CORNERS) -> Path:
    """A movie of one picture with a display matrix `[a, b, c, d]`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", 25)
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt = "rgb24"
        if matrix is not None:
            a, b, c, d = (round(value * 65536) for value in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    return path


def moved(pixels: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """Each pixel (x, y) at (ax + cy, bx + dy), in the smallest frame that holds them all."""
    places = {(a * x + c * y, b * x + d * y): pixels[y, x] for y, x in np.ndindex(pixels.shape[:2])}
    columns, rows = (sorted({place[axis] for place in places}) for axis in (0, 1))
    return np.array([[places[x, y] for x in columns] for y in rows])


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1)])
@pytest.mark.parametrize("transposed", [False, True])
def test_all_eight_orientations(tmp_path: Path, matrix, transposed) -> None:
    a, b, c, d = (matrix[1], matrix[0], matrix[3], matrix[2]) if transposed else matrix
    clip = open_clip(stored(tmp_path / "a.mov", [a, b, c, d]))
    assert clip.notes == ()
    pixels = read_frame(clip, 1).pixels
    assert pixels.shape[:2] == (clip.height, clip.width)
    assert np.array_equal(np.rint(pixels * 255), moved(CORNERS, a, b, c, d))


@pytest.mark.parametrize("degrees", [10, 80, 100, 170, -10, -80, 200, 0.4, 90.4])
@pytest.mark.parametrize("mirrored", [False, True])
def test_odd_angles_are_the_nearest_right_one(tmp_path: Path, degrees, mirrored) -> None:
    angle, nearest = np.radians(degrees), np.radians(90 * round(degrees / 90))
    sides = -1 if mirrored else 1
    found, right = (
        [sides * np.cos(t), sides * np.sin(t), -np.sin(t), np.cos(t)] for t in (angle, nearest)
    )
    clip = open_clip(stored(tmp_path / "a.mov", found))
    expected = moved(CORNERS, *(round(value) for value in right))
    assert np.array_equal(np.rint(read_frame(clip, 1).pixels * 255), expected)
    assert any("off a right angle" in note for note in clip.notes) == (degrees % 1 == 0)


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 1), (1, 1, 1, 1.01)])
def test_a_matrix_that_shows_nothing_is_ignored(tmp_path: Path, matrix) -> None:
    clip = open_clip(stored(tmp_path / "a.mov", list(matrix)))
    assert np.array_equal(np.rint(read_frame(clip, 1).pixels * 255), CORNERS)
    assert ["damaged" in note for note in clip.notes] == [True]


def insert_clap(path: Path, *numbers: int) -> None:
    """Puts a clean aperture into the track of a movie whose `moov` box comes last."""
    data = bytearray(path.read_bytes())
    moov = data.rindex(b"moov")
    entry = data.index(b"stsd", moov) + 12
    (size,) = struct.unpack(">I", data[entry : entry + 4])
    box = struct.pack(">I4s4IiIiI", 40, b"clap", *numbers)
    data[entry + size : entry + size] = box
    places = [data.index(name, moov) for name in (b"trak", b"mdia", b"minf", b"stbl", b"stsd")]
    for place in (moov - 4, *(place - 4 for place in places), entry):
        (old,) = struct.unpack(">I", data[place : place + 4])
        data[place : place + 4] = struct.pack(">I", old + len(box))
    path.write_bytes(data)


def test_the_clean_aperture_is_read_then_turned(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for matrix in ([1, 0, 0, 1], [0, 1, -1, 0], [-1, 0, 0, 1]):
        path = stored(tmp_path / "a.mov", matrix, pixels)
        insert_clap(path, 22, 1, 20, 2, 2, 1, -3, 2)  # 22x10, its centre at +2, -1.5
        clip = open_clip(path)
        left, top = 4 + 2, 5 - 1  # half a pixel goes down
        expected = moved(pixels[top : top + 10, left : left + 22], *matrix)
        assert (clip.width, clip.height) == expected.shape[1::-1]
        assert np.array_equal(np.rint(read_frame(clip, 1).pixels * 255), expected)
        assert "clean aperture" in clip.notes[0]
        assert "22x10 of 30x20" in clip.notes[0]


@pytest.mark.parametrize(
    "numbers",
    [
        (30, 1, 20, 1, 0, 1, 0, 1),  # all of the picture
        (40, 1, 20, 1, 0, 1, 0, 1),
        (0, 1, 0, 1, 0, 1, 0, 1),
        (10, 0, 10, 0, 0, 0, 0, 0),
        (10, 1, 10, 1, 500, 1, 0, 1),
    ],
)
def test_an_aperture_that_makes_no_sense_is_ignored(tmp_path: Path, numbers) -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    insert_clap(stored(tmp_path / "a.mov", None, pixels), *numbers)
    clip = open_clip(tmp_path / "a.mov")
    assert (clip.width, clip.height, clip.notes) == (30, 20, ())


# Tracks, times, cuts


def test_the_default_track_is_read(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        sound = container.add_stream("aac", 48000)
        tracks = [container.add_stream("libx264", 25) for _ in range(2)]
        for track, size in zip(tracks, ((32, 32), (64, 48)), strict=True):
            (track.width, track.height), track.pix_fmt = size, "yuv420p"
        tracks[0].disposition, tracks[1].disposition = Disposition(0), Disposition.default
        small = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
        for image in pictures(4):
            container.mux(tracks[0].encode(small))
            container.mux(tracks[1].encode(image))
        for track in tracks:
            container.mux(track.encode(None))
        add_sound(container, sound)
    clip = open_clip(tmp_path / "a.mov")
    assert shown(clip) == [1, 2, 3, 4]
    assert "2 picture tracks" in clip.notes[0]


def test_a_cover_is_no_movie(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.m4v"), "w", format="mp4") as container:
        cover = container.add_stream("png", 25)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "rgb24"
        cover.disposition = Disposition.attached_pic
        stream = container.add_stream("libx264", 25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(cover.encode(av.VideoFrame.from_ndarray(CORNERS.repeat(3, 0), "rgb24")))
        for image in pictures(4):
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
    clip = open_clip(tmp_path / "a.m4v")
    assert (shown(clip), clip.notes) == ([1, 2, 3, 4], ())


@pytest.mark.parametrize(
    ("codec", "options", "lost"),
    [
        ("libx264", {"x264-params": f"{X264}:open-gop=1:repeat-headers=1"}, 3),
        ("libx265", {"x265-params": f"{X265}:open-gop=1:repeat-headers=1"}, 3),
        ("libx265", {"x265-params": f"{X265}:open-gop=0:radl=2:repeat-headers=1"}, 0),
        ("mpeg2video", {"bf": "2", "g": "8"}, 2),
        ("libx264", {"x264-params": f"{X264}:repeat-headers=1"}, 0),
    ],
    ids=["h264", "cra", "radl", "mpeg2", "closed"],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_cut_at_a_key_frame_starts_at_the_first_picture_that_is_whole(
    tmp_path: Path, codec, options, lost, suffix
) -> None:
    encode(tmp_path / "whole.ts", pictures(24), codec, options)
    with av.open(str(tmp_path / "whole.ts")) as container:
        keys = [p.is_keyframe for p in container.demux(video=0) if p.size]
    second = keys.index(True, 1)
    more = {"use_editlist": "0"} if suffix == "mp4" else {}
    copy(tmp_path / "whole.ts", tmp_path / f"cut.{suffix}", second, **more)
    clip = open_clip(tmp_path / f"cut.{suffix}")
    sequence = shown(clip)
    assert sequence == list(range(25 - len(sequence), 25))  # none is missing, none comes twice
    assert len(sequence) == 24 - second - lost
    assert [f"first {lost} pictures" in note for note in clip.notes] == [True] * (lost > 0)
    check_any_order(clip, sequence)


@pytest.mark.parametrize("suffix", ["mp4", "ts"])
def test_a_cut_within_a_group_starts_at_the_next_key_frame(tmp_path: Path, suffix) -> None:
    encode(
        tmp_path / "whole.ts", pictures(24), "libx264", {"x264-params": f"{X264}:repeat-headers=1"}
    )
    copy(tmp_path / "whole.ts", tmp_path / f"cut.{suffix}", 3)
    clip = open_clip(tmp_path / f"cut.{suffix}")
    sequence = shown(clip)
    assert sequence == list(range(9, 25))
    assert "can't be decoded" in clip.notes[0]
    check_any_order(clip, sequence)


@pytest.mark.parametrize("suffix", ["mov", "mkv"])
def test_damage_stays_in_its_group(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    encode(path, pictures(24), "libx264", {"x264-params": X264})
    with av.open(str(path)) as container:
        packet = [p for p in container.demux(video=0) if p.size][11]
        place, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    start = data.index(bytes(packet)[4:], place) if suffix == "mkv" else place + 4
    data[start : start + size - 4] = b"\xaa" * (size - 4)
    path.write_bytes(data)
    clip = open_clip(path)
    with pytest.raises(UnreadableFrameError, match="Export the movie again"):
        shown(clip)
    whole = [*range(1, 9), *range(17, 25)]
    for number in whole:
        assert spelled(read_frame(clip, number).pixels) == number


@pytest.mark.parametrize(
    ("codec", "options"), [("flv", {"g": "8"}), ("mpeg4", {"bf": "2", "g": "8"}), ("mjpeg", {})]
)
def test_an_avi_without_its_index_is_read_in_any_order(tmp_path: Path, codec, options) -> None:
    form = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    encode(tmp_path / "a.avi", pictures(24, form), codec, options)
    data = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(data[: data.rindex(b"idx1")])
    clip = open_clip(tmp_path / "a.avi")
    assert shown(clip) == list(range(1, 25))
    check_any_order(clip, list(range(1, 25)))


def test_hidden_pictures_are_no_frames(tmp_path: Path) -> None:
    def hide(place: int, packet: av.Packet) -> av.Packet:
        if place not in (3, 7):
            return packet
        data = bytes(packet)
        hidden = av.Packet(bytes([data[0] & ~0x10]) + data[1:])  # VP8's show_frame
        hidden.pts, hidden.dts, hidden.time_base = packet.pts, packet.dts, packet.time_base
        return hidden

    encode(tmp_path / "a.webm", pictures(12), "libvpx", {"g": "12"})
    copy(tmp_path / "a.webm", tmp_path / "b.webm", change=hide)
    clip = open_clip(tmp_path / "b.webm")
    sequence = [1, 2, 3, 5, 6, 7, 9, 10, 11, 12]
    assert shown(clip) == sequence
    check_any_order(clip, sequence)


def test_pictures_of_one_time_are_all_read(tmp_path: Path) -> None:
    def same(place: int, packet: av.Packet) -> av.Packet:
        packet.pts = packet.dts = place // 2 * 40
        packet.time_base = Fraction(1, 1000)
        return packet

    encode(tmp_path / "a.mkv", pictures(6, "yuvj420p"), "mjpeg")
    copy(tmp_path / "a.mkv", tmp_path / "b.mkv", change=same)
    clip = open_clip(tmp_path / "b.mkv")
    assert shown(clip) == [1, 2, 3, 4, 5, 6]
    check_any_order(clip, [1, 2, 3, 4, 5, 6])


# What is said


@pytest.mark.parametrize(
    ("suffix", "codec", "form", "options"),
    [
        ("mp4", "libx264", "yuv420p", {"x264-params": "tff=1"}),
        ("mov", "libx264", "yuv420p", {"x264-params": "bff=1"}),
        ("ts", "libx264", "yuv420p", {"x264-params": f"{X264}:tff=1"}),
        ("mxf", "mpeg2video", "yuv420p", {}),
        ("mov", "prores_ks", "yuv422p10le", {}),
        ("avi", "mpeg4", "yuv420p", {}),
    ],
)
def test_interlaced_movies_are_noted(tmp_path: Path, suffix, codec, form, options) -> None:
    encode(tmp_path / f"a.{suffix}", pictures(10, form), codec, options, flags=INTERLACED)
    clip = open_clip(tmp_path / f"a.{suffix}")
    assert any("interlaced" in note and "Deinterlace" in note for note in clip.notes)
    assert shown(clip) == list(range(1, 11))


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        ({"color_primaries": 12}, "Display P3"),
        ({"color_primaries": 11}, "DCI-P3"),
        ({"color_primaries": 9, "color_trc": 14}, "Rec.2020"),
        ({"color_primaries": 9, "color_trc": 16}, "HDR"),
        ({"color_trc": 8}, "linear"),
        ({"color_primaries": 1, "color_trc": 1}, None),
        ({"color_primaries": 5, "color_trc": 6}, None),  # cameras of 601: so near that nobody sees
        ({"color_primaries": 1, "color_trc": 13}, None),
    ],
)
def test_colours_that_are_not_handled_are_noted(tmp_path: Path, tags, told) -> None:
    image = pictures(1)[0]
    encode(tmp_path / "a.mp4", [image], "libx264", colorspace=1, **tags)
    clip = open_clip(tmp_path / "a.mp4")
    assert [told in note for note in clip.notes] == [True] * (told is not None)
    named = open_clip(tmp_path / "a.mp4", colour_space="Linear Rec.709 (sRGB)")
    assert named.notes == ()  # the user knows


def test_a_movie_whose_index_is_cut_off_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "whole.mp4"
    pictures = [av.VideoFrame.from_ndarray(numbered(n), format="rgb24") for n in range(1, 9)]
    encode(path, [picture.reformat(format="yuv420p") for picture in pictures], "libx264")
    path.write_bytes(path.read_bytes()[:-400])  # moov is written last
    with pytest.raises(ClipNotReadableError, match="its index is missing"):
        open_clip(path)


# Cut off


CONTAINERS = [
    ("mp4", "libx264", {"x264-params": X264}),
    ("mp4", "libvpx-vp9", {"g": "8", "cpu-used": "8", "lag-in-frames": "8"}),
    ("mp4", "mjpeg", {}),
    ("mov", "libx264", {"x264-params": X264}),
    ("mov", "prores_ks", {}),
    ("mov", "mpeg4", {"bf": "2", "g": "8"}),
    ("avi", "libx264", {"x264-params": X264}),
    ("avi", "mpeg4", {"bf": "2", "g": "8"}),
    ("avi", "mjpeg", {}),
    ("mkv", "libx264", {"x264-params": X264}),
    ("mkv", "prores_ks", {}),
    ("webm", "libvpx-vp9", {"g": "8", "cpu-used": "8", "lag-in-frames": "8"}),
    ("ts", "libx264", {"x264-params": X264}),
    ("ts", "mpeg2video", {"bf": "2", "g": "8"}),
    ("mxf", "libx264", {"x264-params": X264}),
    ("mxf", "dnxhd", {"profile": "dnxhr_lb"}),
    ("mxf", "mpeg2video", {"bf": "2", "g": "8"}),
    ("mpg", "mpeg2video", {"bf": "2", "g": "8"}),
    ("wmv", "wmv2", {"g": "8"}),
    ("flv", "libx264", {"x264-params": X264}),
    ("gif", "gif", {}),
]
FORMS = {"prores_ks": "yuv422p10le", "dnxhd": "yuv422p", "mjpeg": "yuvj420p", "gif": "rgb8"}


def noisy(count: int, codec: str) -> list[av.VideoFrame]:
    """Numbered pictures whose packets are long enough to be cut within."""
    rng = np.random.default_rng(0)
    side = (128, 256) if codec == "dnxhd" else (48, 64)
    images = []
    for number in range(1, count + 1):
        pixels = numbered(number, *side) * 0.5 + rng.integers(0, 120, (*side, 3))
        image = av.VideoFrame.from_ndarray(pixels.astype(np.uint8), "rgb24")
        image = image.reformat(format=FORMS.get(codec, "yuv420p"))
        image.pts, image.time_base = number - 1, Fraction(1, 25)
        images.append(image)
    return images


def whole_movie(path: Path, codec: str, options: dict[str, str]) -> bytes:
    """A movie of 12 pictures, with its index first where the container has one."""
    container = {"movflags": "faststart"} if path.suffix in (".mp4", ".mov") else {}
    images = noisy(12, codec)
    with av.open(str(path), "w", options=container) as target:
        stream = target.add_stream(codec, 25, options=options)
        stream.width, stream.height = images[0].width, images[0].height
        stream.pix_fmt = images[0].format.name
        for image in images:
            target.mux(stream.encode(image))
        target.mux(stream.encode(None))
    assert open_clip(path).notes == ()
    return path.read_bytes()


@pytest.mark.parametrize(("suffix", "codec", "options"), CONTAINERS)
def test_a_movie_cut_anywhere_gives_what_it_promises(tmp_path, suffix, codec, options) -> None:
    data = whole_movie(tmp_path / f"a.{suffix}", codec, options)
    path = tmp_path / f"b.{suffix}"
    counts = []
    for cut in (*(len(data) * percent // 100 for percent in range(7, 100, 7)), len(data) - 1):
        path.write_bytes(data[:cut])
        try:
            clip = open_clip(path)
        except ClipNotReadableError as error:
            assert "cut off" in str(error)  # noqa: PT017
            continue
        count = len(clip.numbers)
        assert shown(clip) == list(range(1, count + 1))
        notes = [note for note in clip.notes if "cut" in note]
        assert len(notes) == 1
        assert f"cut off after frame {count}" in notes[0]
        counts.append(count)
    assert counts == sorted(counts)
    assert len(set(counts)) > 4
    assert counts[-1] >= 10  # nearly all of it is there; the last pictures wait for one another


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_a_movie_cut_in_its_header_is_called_cut_off(tmp_path: Path, suffix: str) -> None:
    data = whole_movie(tmp_path / f"a.{suffix}", "libx264", {"x264-params": X264})
    start, end = data.index(b"moov"), data.index(b"mdat")
    for cut in range(start + 9, end, (end - start) // 12):
        (tmp_path / f"a.{suffix}").write_bytes(data[:cut])
        with pytest.raises(
            ClipNotReadableError, match=r"cut off.*copy or export it again|index is"
        ):
            open_clip(tmp_path / f"a.{suffix}")


def test_sound_behind_the_cut_picture_changes_nothing(tmp_path: Path) -> None:
    for suffix in ("mp4", "mkv", "avi", "ts"):
        path = tmp_path / f"a.{suffix}"
        with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", 25, options={"x264-params": X264})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            sound = container.add_stream("mp2" if suffix in ("avi", "ts") else "aac", 48000)
            sound.codec_context.open()
            for image in noisy(12, "libx264"):
                container.mux(stream.encode(image))
                silence = av.AudioFrame(sound.format.name, "stereo", sound.frame_size or 1024)
                silence.sample_rate = 48000
                for plane in silence.planes:
                    plane.update(bytes(plane.buffer_size))
                container.mux(sound.encode(silence))
            container.mux(stream.encode(None))
        data = path.read_bytes()
        for percent in range(40, 100, 5):
            path.write_bytes(data[: len(data) * percent // 100])
            try:
                clip = open_clip(path)
            except ClipNotReadableError as error:
                assert "cut off" in str(error)  # noqa: PT017
                continue
            assert shown(clip) == list(range(1, len(clip.numbers) + 1))


def test_a_damaged_packet_amid_a_stream_is_not_taken_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    data = bytearray(whole_movie(path, "libx264", {"x264-params": X264}))
    del data[188 * (len(data) // 188 // 2) :][:188]  # one packet is lost
    middle = 188 * (len(data) // 188 // 2)
    path.write_bytes(data[:middle] + data[middle + 188 :])
    clip = open_clip(path)
    assert len(clip.numbers) == 12
    assert not any("cut" in note for note in clip.notes)
    assert spelled(read_frame(clip, 1).pixels) == 1


@pytest.mark.parametrize("junk", [bytes(100), b"SEFT and what a phone adds" * 9])
def test_bytes_behind_a_whole_movie_are_no_cut(tmp_path: Path, junk: bytes) -> None:
    for suffix, codec in (("mov", "libx264"), ("avi", "mjpeg"), ("mkv", "libx264")):
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(whole_movie(path, codec, {}) + junk)
        clip = open_clip(path)
        assert clip.notes == ()
        assert shown(clip) == list(range(1, 13))


# What is called something else


KINDS = [("avi", "mjpeg", "AVI"), ("mp4", "libx264", "MP4"), ("mkv", "libx264", "Matroska")]
KINDS += [("ts", "libx264", "transport"), ("mxf", "mpeg2video", "MXF"), ("gif", "gif", "GIF")]


@pytest.mark.parametrize(("suffix", "codec", "told"), KINDS)
def test_a_movie_that_is_called_no_movie_is_named(tmp_path: Path, suffix, codec, told) -> None:
    encode(tmp_path / f"a.{suffix}", pictures(2, FORMS.get(codec, "yuv420p")), codec)
    for name in ("take", "take.nut", "take.exr", "take.0001.png", "take.hdr"):
        os.replace(next(tmp_path.iterdir()), tmp_path / name)
        with pytest.raises(ClipError, match=rf"{told}.*Rename it to take[.01]*\.{suffix}"):
            open_clip(tmp_path / name)


def test_a_movie_that_is_not_read_is_named_by_its_content(tmp_path: Path) -> None:
    encode(tmp_path / "a.nut", pictures(2), "libx264")
    for name in ("a.nut", "a", "a.mov", "a.exr"):
        os.replace(next(tmp_path.iterdir()), tmp_path / name)
        with pytest.raises(ClipError, match=r"NUT movie, which is not read here\. Export EXR"):
            open_clip(tmp_path / name)
