"""Clips in and out, against OpenImageIO, FFmpeg, OpenCV and closed forms."""

from __future__ import annotations

import gc
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import OpenImageIO as oiio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numbered_movies import encode, numbered, spelled

from core.base.files import atomic_write
from core.media.clip import Window, missing_numbers
from core.media.colour import ColourError, texture_space
from core.media.errors import (
    BadPixelsError,
    ClipError,
    ClipNotFoundError,
    ClipNotReadableError,
    FormatChangeError,
    MissingFramesError,
    TooLargeError,
    UnreadableFrameError,
    UnsupportedChannelsError,
    WriteFailedError,
)
from core.media.numbering import format_numbers
from core.media.read import open_clip, read_frame, read_frames, with_handles
from core.media.write import write_exr, write_movie, write_png


def picture(seed: int = 0, height: int = 24, width: int = 40, channels: int = 3) -> np.ndarray:
    """Values that half floats hold exactly, some above 1 and some below 0."""
    noise = np.random.default_rng(abs(seed)).uniform(-0.5, 4, (height, width, channels))
    return noise.astype(np.float16).astype(np.float32)


def save(path: Path, pixels: np.ndarray, kind: str, names: str | list[str] = "RGBA", **attributes):
    """Write with OpenImageIO alone, so that reading does not test itself."""
    spec = oiio.ImageSpec(pixels.shape[1], pixels.shape[0], pixels.shape[2], kind)
    spec.channelnames = tuple(names[: pixels.shape[2]])
    for name, value in attributes.items():
        spec.attribute(name.replace("__", ":"), value)
    output = oiio.ImageOutput.create(str(path))
    assert output.open(str(path), spec), output.geterror()
    assert output.write_image(pixels), output.geterror()
    assert output.close()


def load(path: Path) -> tuple[oiio.ImageSpec, np.ndarray]:
    source = oiio.ImageInput.open(str(path))
    spec, pixels = source.spec(), source.read_image(0, 0, 0, source.spec().nchannels, oiio.FLOAT)
    source.close()
    return spec, pixels


def sequence(folder: Path, numbers: list[int], name: str = "shot.{:04d}.exr") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        save(folder / name.format(number), picture(number), "half")
    return folder


# Finding frames


@pytest.mark.parametrize(
    "way",
    ["shot.####.exr", "shot.%04d.exr", "shot.1003.exr 1001-1006", "", "shot.####.exr 1001-1006"],
)
def test_every_way_to_name_a_sequence_finds_its_real_numbers(tmp_path: Path, way: str) -> None:
    sequence(tmp_path, [1001, 1002, 1003, 1006])
    (tmp_path / "notes.txt").write_text("no picture")
    clip = open_clip(str(tmp_path / way) if way else tmp_path)
    assert clip.numbers == (1001, 1002, 1003, 1006)
    assert clip.path == str(tmp_path / "shot.####.exr")
    assert missing_numbers(clip) == [1004, 1005]
    read = {frame.number: frame.pixels for frame in read_frames(clip)}
    assert list(read) == [1001, 1002, 1003, 1006]
    for number, pixels in read.items():
        assert np.array_equal(pixels, picture(number))


def test_a_range_limits_the_clip_and_its_gaps_are_told(tmp_path: Path) -> None:
    sequence(tmp_path, [1001, 1002, 1003, 1006])
    clip = open_clip(tmp_path / "shot.####.exr", 1002, 1008)
    assert clip.numbers == (1002, 1003, 1006)
    assert format_numbers(missing_numbers(clip)) == "1004-1005, 1007-1008"
    assert open_clip(f"{tmp_path}/shot.####.exr 1001-1006", first=1003).numbers == (1003, 1006)
    with pytest.raises(MissingFramesError, match=r"2000-2001; there are 1001-1003, 1006") as caught:
        open_clip(tmp_path / "shot.####.exr", 2000, 2001)
    assert caught.value.numbers == (2000, 2001)
    with pytest.raises(MissingFramesError, match="1004") as caught:
        read_frames(clip, [1003, 1004])
    assert caught.value.numbers == (1004,)


def test_handles_reach_as_far_as_the_frames(tmp_path: Path) -> None:
    sequence(tmp_path, [1001, 1002, 1003, 1004, 1006, 1007])
    clip = open_clip(tmp_path / "shot.####.exr", 1003, 1004)
    assert with_handles(clip, 1).numbers == (1002, 1003, 1004)
    wide = with_handles(clip, 10)
    assert (wide.numbers, wide.first, wide.last) == (
        (1001, 1002, 1003, 1004, 1006, 1007),
        1001,
        1007,
    )
    beyond = open_clip(tmp_path / "shot.####.exr", 1007, 1009)  # 1008 and 1009 stay missing
    assert missing_numbers(with_handles(beyond, 1)) == [1008, 1009]
    assert [f.number for f in read_frames(with_handles(clip, 1))] == [1002, 1003, 1004]


def test_numbers_outgrow_their_padding_and_may_be_negative(tmp_path: Path) -> None:
    sequence(tmp_path / "a", [998, 9999, 10000])
    assert open_clip(tmp_path / "a" / "shot.%04d.exr").numbers == (998, 9999, 10000)
    assert open_clip(tmp_path / "a" / "shot.10000.exr").numbers == (10000,)
    sequence(tmp_path / "b", [8, 9, 10], "s.{}.exr")
    assert open_clip(tmp_path / "b").numbers == (8, 9, 10)
    sequence(tmp_path / "c", [-2, -1, 0, 1])
    assert open_clip(tmp_path / "c").numbers == (-2, -1, 0, 1)
    assert read_frame(open_clip(tmp_path / "c"), -1).number == -1


def test_a_version_is_no_frame_number(tmp_path: Path) -> None:
    for version in (1, 2):
        save(tmp_path / f"plate_v{version:03d}.png", picture(version).clip(0, 1), "uint8")
    clip = open_clip(tmp_path / "plate_v002.png")
    assert (clip.kind, clip.numbers) == ("still", (1,))
    assert open_clip(tmp_path / "plate_v002.png", 1010).numbers == (1010,)


def test_several_sequences_in_a_folder_are_listed(tmp_path: Path) -> None:
    sequence(tmp_path, [1, 2])
    sequence(tmp_path, [7], "other_{:03d}.exr")
    with pytest.raises(ClipNotFoundError, match=r"other_###\.exr 7; shot\.####\.exr 1-2"):
        open_clip(tmp_path)
    with pytest.raises(ClipNotFoundError, match=r"There is no .*shto.*shot\.####\.exr 1-2"):
        open_clip(tmp_path / "shto.####.exr")
    with pytest.raises(ClipNotFoundError, match="no numbered pictures"):
        open_clip(sequence(tmp_path / "empty", []))
    with pytest.raises(ClipNotFoundError):
        open_clip("/nowhere/at/all.####.exr")
    with pytest.raises(ClipNotFoundError):
        open_clip(tmp_path / "gone.mp4")


def test_a_stray_huge_number_does_not_make_a_huge_list(tmp_path: Path) -> None:
    sequence(tmp_path, [1, 2, 99_999_999_999])
    with pytest.raises(TooLargeError, match="range"):
        open_clip(tmp_path)
    assert open_clip(tmp_path, 1, 10).numbers == (1, 2)


@given(st.sets(st.integers(-20, 60)))
def test_formatted_numbers_read_back(numbers: set[int]) -> None:
    text = format_numbers(numbers)
    read: set[int] = set()
    for run in filter(None, text.split(", ")):
        cut = run.find("-", 1)
        first, last = (run, run) if cut < 0 else (run[:cut], run[cut + 1 :])
        read |= set(range(int(first), int(last) + 1))
    assert read == numbers


# Pictures


@pytest.mark.parametrize(
    ("suffix", "kind", "step"),
    [
        ("exr", "half", 2**-11),
        ("exr", "float", 0),
        ("tif", "uint8", 1 / 255),
        ("tif", "float", 0),
        ("png", "uint8", 1 / 255),
        ("png", "uint16", 1 / 65535),
        ("dpx", "uint10", 1 / 1023),
        ("jpg", "uint8", None),
    ],
)
def test_every_format_reads_its_values(tmp_path: Path, suffix: str, kind: str, step) -> None:
    ramp = np.linspace(0, 1, 40 * 24, dtype=np.float32).reshape(24, 40)
    pixels = np.stack([ramp, ramp[::-1], ramp[:, ::-1]], axis=2)
    for number in (1001, 1002):
        save(tmp_path / f"a.{number}.{suffix}", pixels, kind)
    clip = open_clip(tmp_path)
    assert (clip.width, clip.height, clip.numbers) == (40, 24, (1001, 1002))
    frame = read_frame(clip, 1002)
    assert frame.pixels.dtype == np.float32
    assert frame.pixels.flags.c_contiguous
    tolerance = 0.05 if step is None else step / 2 + 1e-6
    assert np.abs(frame.pixels - pixels).max() <= tolerance


@pytest.mark.parametrize(
    "window",
    [Window(-3, -2, 50, 30), Window(5, 4, 20, 10), Window(30, 20, 20, 20), Window(100, 100, 8, 8)],
    ids=["overscan", "cropped", "over a corner", "outside"],
)
def test_data_window_is_placed_in_the_display_window(tmp_path: Path, window: Window) -> None:
    stored = picture(3, window.height, window.width, 4)
    origin = (10, -7)  # a display window that does not start at zero
    spec = oiio.ImageSpec(window.width, window.height, 4, "half")
    spec.x, spec.y = window.x + origin[0], window.y + origin[1]
    spec.full_x, spec.full_y, spec.full_width, spec.full_height = *origin, 40, 24
    output = oiio.ImageOutput.create(str(tmp_path / "a.1001.exr"))
    assert output.open(str(tmp_path / "a.1001.exr"), spec)
    assert output.write_image(stored)
    output.close()

    clip = open_clip(tmp_path)
    frame = read_frame(clip, 1001)
    assert (clip.width, clip.height, clip.has_alpha) == (40, 24, True)
    assert frame.data_window == window
    expected = np.zeros((24, 40, 4), np.float32)
    for y in range(24):
        for x in range(40):
            if 0 <= y - window.y < window.height and 0 <= x - window.x < window.width:
                expected[y, x] = stored[y - window.y, x - window.x]
    assert np.array_equal(frame.pixels, expected[..., :3])
    assert frame.alpha is not None
    assert np.array_equal(frame.alpha, expected[..., 3])


def test_aspect_rate_and_attributes_are_kept(tmp_path: Path) -> None:
    spec = oiio.ImageSpec(8, 6, 3, "half")
    spec.attribute("PixelAspectRatio", 2.0)
    spec.attribute("FramesPerSecond", oiio.TypeDesc("rational"), (24000, 1001))
    spec.attribute("nuke/node_hash", "abc")
    output = oiio.ImageOutput.create(str(tmp_path / "a.exr"))
    assert output.open(str(tmp_path / "a.exr"), spec)
    output.write_image(picture(0, 6, 8))
    output.close()
    clip = open_clip(tmp_path / "a.exr")
    assert clip.pixel_aspect == 2.0
    assert clip.fps == pytest.approx(24000 / 1001)
    assert read_frame(clip, 1).metadata["nuke/node_hash"] == "abc"


def test_stored_pixels_are_not_multiplied_by_alpha(tmp_path: Path) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA))
    frame = read_frame(open_clip(tmp_path / "a.png"), 1)
    assert frame.alpha is not None
    assert np.array_equal(np.rint(frame.pixels * 255), rgba[..., :3])
    assert np.array_equal(np.rint(frame.alpha * 255), rgba[..., 3])


def test_luminance_is_used_for_all_three_channels(tmp_path: Path) -> None:
    grey = picture(0, channels=1)
    save(tmp_path / "y.exr", grey, "half", ["Y"])
    clip = open_clip(tmp_path / "y.exr")
    assert "luminance" in clip.notes[0]
    assert np.array_equal(read_frame(clip, 1).pixels, np.repeat(grey, 3, axis=2))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["R", "G"], "channels R, G"),
        (["Z"], "channels Z"),
        (["beauty.R", "beauty.G", "beauty.B", "depth.Z"], "layers beauty, depth"),
    ],
)
def test_pictures_without_rgb_are_refused_by_name(tmp_path: Path, names, told) -> None:
    save(tmp_path / "a.1001.exr", picture(0, channels=len(names)), "half", names)
    with pytest.raises(UnsupportedChannelsError, match=f"(?s)1001.*{told}"):
        open_clip(tmp_path)


def test_rgb_is_found_among_layers_and_parts(tmp_path: Path) -> None:
    names = ["A", "B", "G", "R", "aaa.R", "depth.Z"]
    stored = picture(1, channels=6)
    save(tmp_path / "a.exr", stored, "half", names)
    frame = read_frame(open_clip(tmp_path / "a.exr"), 1)
    assert np.array_equal(frame.pixels, stored[..., [3, 2, 1]])
    assert np.array_equal(frame.alpha, stored[..., 0])

    depth, rgb = oiio.ImageSpec(40, 24, 1, "float"), oiio.ImageSpec(40, 24, 3, "half")
    depth.channelnames = ("Z",)
    depth.attribute("oiio:subimagename", "depth")
    rgb.attribute("oiio:subimagename", "rgba")
    output = oiio.ImageOutput.create(str(tmp_path / "parts.exr"))
    assert output.open(str(tmp_path / "parts.exr"), (depth, rgb))
    output.write_image(picture(2, channels=1))
    assert output.open(str(tmp_path / "parts.exr"), rgb, "AppendSubimage")
    output.write_image(picture(3))
    output.close()
    assert np.array_equal(read_frame(open_clip(tmp_path / "parts.exr"), 1).pixels, picture(3))


# Faults


def test_nan_and_infinity_are_counted_and_named(tmp_path: Path) -> None:
    sequence(tmp_path, [1001, 1002])
    pixels = picture()
    pixels[3, 4] = np.nan  # three channels, one pixel
    pixels[5, 6, 0] = np.inf
    save(tmp_path / "shot.1002.exr", pixels, "half")
    frames = read_frames(open_clip(tmp_path))
    assert next(frames).number == 1001
    with pytest.raises(BadPixelsError, match=r"Frame 1002 .*shot\.1002\.exr.* 2 pixels") as caught:
        next(frames)
    assert (caught.value.number, caught.value.count) == (1002, 2)


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [("exr", "half"), ("png", "uint8"), ("jpg", "uint8"), ("tif", "uint8"), ("dpx", "uint10")],
)
@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.95])
def test_truncated_pictures_name_file_and_frame(tmp_path, suffix, kind, part) -> None:
    pixels = np.random.default_rng(0).uniform(0, 1, (64, 96, 3)).astype(np.float32)
    for number in (1, 2):
        save(tmp_path / f"a.{number:04d}.{suffix}", pixels, kind)
    broken = tmp_path / f"a.0002.{suffix}"
    broken.write_bytes(broken.read_bytes()[: int(broken.stat().st_size * part)])
    frames = read_frames(open_clip(tmp_path))
    assert next(frames).number == 1
    with pytest.raises(UnreadableFrameError, match=rf"Frame 2 .*a\.0002\.{suffix}") as caught:
        next(frames)
    assert caught.value.number == 2


@pytest.mark.parametrize("side", [40_000, 1_000_000])
@pytest.mark.parametrize("which", [b"dataWindow", b"displayWindow"])
def test_an_absurd_header_is_refused_before_memory_is_taken(tmp_path, side, which) -> None:
    save(tmp_path / "a.1001.exr", picture(), "half")
    data = bytearray((tmp_path / "a.1001.exr").read_bytes())
    for name in {which, b"displayWindow"}:
        place = data.index(name + b"\0box2i\0") + len(name) + 11
        data[place : place + 16] = struct.pack("<4i", 0, 0, side - 1, side - 1)
    (tmp_path / "a.1001.exr").write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TooLargeError, match="1001"):
        open_clip(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_frame_of_another_size_and_a_vanished_one_are_told(tmp_path: Path) -> None:
    sequence(tmp_path, [1, 2, 3])
    clip = open_clip(tmp_path)
    save(tmp_path / "shot.0002.exr", picture(0, 10, 12), "half")
    (tmp_path / "shot.0003.exr").unlink()
    with pytest.raises(FormatChangeError, match=r"12x10, the clip 40x24"):
        read_frame(clip, 2)
    with pytest.raises(UnreadableFrameError, match=r"Frame 3 .* is gone"):
        read_frame(clip, 3)


def test_a_file_that_is_no_picture_or_movie(tmp_path: Path) -> None:
    (tmp_path / "a.exr").write_text("hello")
    with pytest.raises(UnreadableFrameError, match=r"a\.exr"):
        open_clip(tmp_path / "a.exr")
    (tmp_path / "a.mp4").write_text("#EXTM3U\n/etc/passwd\n")
    with pytest.raises(ClipNotReadableError, match=r"a\.mp4"):
        open_clip(tmp_path / "a.mp4")


@pytest.mark.parametrize("name", ["a", "a.exr", "a.png", "a.0001.dpx", "a.jpg", "a.tif", "a.tga"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty. If it is still being written"),
        (b"hello\n" * 9, "text file, no picture. Choose the picture"),
        (b"<html><body>404", "web page, no picture"),
        (b"PK\3\4" + bytes(99), "ZIP archive, no picture"),
        (bytes(2000), "file of zeros"),
        (b"v/1\1" + b"\2\0\0\0", "OpenEXR picture, but damaged.*copy it again"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path: Path, name, content, told) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableFrameError, match=told) as caught:
        open_clip(tmp_path / name)
    assert "OpenImageIO" not in str(caught.value)


def test_pictures_are_read_by_their_content_and_movies_names_stay(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.full((4, 6, 3), 255, np.uint8))
    for name in ("a", "a.exr", "a.0001.dpx", "a.jpg"):
        os.replace(next(tmp_path.iterdir()), tmp_path / name)
        clip = open_clip(tmp_path / name)
        assert clip.colour_space == texture_space(None)
        assert read_frame(clip, 1).pixels.min() == 1
    os.replace(tmp_path / "a.jpg", tmp_path / "a.mov")
    with pytest.raises(ClipNotReadableError, match=r"PNG picture, no movie\. Rename it to a\.png"):
        open_clip(tmp_path / "a.mov")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["a.exr", "a.mp4", "a.0001.exr"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ClipNotReadableError, match="not a file"):
        open_clip(tmp_path / name)


@pytest.mark.parametrize("name", ["a.exr", "a.mp4"])
def test_forbidden_files_are_told(name: str) -> None:
    script = """
        import os, sys
        from core.media.errors import ClipNotReadableError
        from core.media.read import open_clip
        if os.getuid() == 0:
            os.setgid(65534); os.setuid(65534)  # root may read everything
        try:
            open_clip(sys.argv[1])
        except ClipNotReadableError as error:
            print("told", error)
    """
    # pytest's own folder is closed to others, again whenever a pytest begins.
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        sequence(folder, [1], "a.exr")
        write_movie(folder / "a.mp4", [np.zeros((16, 16, 3), np.uint8)], 24)
        (folder / name).chmod(0)
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), str(folder / name)],
            capture_output=True,
            text=True,
        )
    assert run.stdout.startswith("told"), run.stderr
    assert name in run.stdout


def test_colour_space_by_file_type_and_by_name(tmp_path: Path) -> None:
    rgb = picture().clip(0, 1)
    spaces = {}
    for name, kind, more in (
        ("a.exr", "half", {}),
        ("a.png", "uint8", {}),
        ("a.dpx", "uint10", {}),
        ("lin.dpx", "uint10", {"oiio__ColorSpace": "Linear", "dpx__Transfer": "Linear"}),
        ("f.tif", "float", {}),
        ("8.tif", "uint8", {}),
    ):
        save(tmp_path / name, rgb, kind, **more)
        spaces[name] = open_clip(tmp_path / name).colour_space
    texture = "sRGB Encoded Rec.709 (sRGB)"
    assert spaces == {
        "a.exr": "ACEScg",
        "a.png": texture,
        "a.dpx": "ACEScct",
        "lin.dpx": "ACEScg",
        "f.tif": "ACEScg",
        "8.tif": texture,
    }
    for primaries, space in (
        ((0.7347, 0.2653, 0.0, 1.0, 0.0001, -0.077, 0.32168, 0.33767), "ACES2065-1"),
        ((0.64, 0.33, 0.3, 0.6, 0.15, 0.06, 0.3127, 0.329), "Linear Rec.709 (sRGB)"),
    ):
        write_exr(tmp_path / "c.exr", rgb, attributes={"chromaticities": primaries})
        assert open_clip(tmp_path / "c.exr").colour_space == space
    assert open_clip(tmp_path / "c.exr", colour_space="srgb_texture").colour_space == texture
    with pytest.raises(ColourError, match="ACEScg"):
        open_clip(tmp_path / "c.exr", colour_space="ACESgc")


# Streaming


def test_closing_early_stops_the_thread_and_order_is_kept(tmp_path: Path) -> None:
    sequence(tmp_path, list(range(1, 21)))
    clip = open_clip(tmp_path)
    assert [frame.number for frame in read_frames(clip, [7, 3, 3, 20])] == [7, 3, 3, 20]

    def readers() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]

    files = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        frames = read_frames(clip)
        next(frames)
        frames.close()
    frames = read_frames(clip)
    next(frames)
    del frames
    gc.collect()
    assert readers() == []
    assert len(os.listdir("/proc/self/fd")) <= files


def test_no_more_is_read_ahead_than_asked(tmp_path: Path) -> None:
    sequence(tmp_path, list(range(1, 21)))
    clip = open_clip(tmp_path)
    frames = read_frames(clip, read_ahead=2)
    next(frames)
    time.sleep(0.5)  # time enough to decode all twenty
    for number in range(1, 21):  # one given, two waiting, one in the thread's hand
        if number > 4:
            (tmp_path / f"shot.{number:04d}.exr").unlink()
    assert [next(frames).number for _ in range(3)] == [2, 3, 4]
    with pytest.raises(UnreadableFrameError, match="Frame 5"):
        next(frames)


# Writing pictures


def test_exr_is_what_an_independent_reader_expects(tmp_path: Path) -> None:
    rgba = picture(1, 10, 12, 4)
    rgba[0, 0] = 1e6  # beyond half
    matte = np.random.default_rng(2).uniform(0, 1, (10, 12)).astype(np.float16)
    uv = np.random.default_rng(3).uniform(0, 1, (10, 12, 2)).astype(np.float32)
    write_exr(
        tmp_path / "new" / "a.1001.exr",
        rgba,
        window=Window(7, -3, 12, 10),
        display=(64, 48),
        layers={"matte": matte, "parts.mouth": matte, "uv": uv, "raw": picture(4, 10, 12)},
        attributes={"reenact/character": "cafe", "reenact/frame": 1001, "compression": "htj2k"},
        pixel_aspect=2.0,
    )
    assert os.listdir(tmp_path / "new") == ["a.1001.exr"]
    spec, pixels = load(tmp_path / "new" / "a.1001.exr")
    assert (spec.x, spec.y, spec.width, spec.height) == (7, -3, 12, 10)
    assert (spec.full_x, spec.full_y, spec.full_width, spec.full_height) == (0, 0, 64, 48)
    assert spec["compression"] == "zip"
    assert spec["PixelAspectRatio"] == 2.0
    assert (spec["reenact/character"], spec["reenact/frame"]) == ("cafe", 1001)
    assert spec.tile_width == 0
    plane = {name: pixels[..., i] for i, name in enumerate(spec.channelnames)}
    kind = dict(zip(spec.channelnames, spec.channelformats or (), strict=True))
    layers = {"matte.A", "parts.mouth", "uv.u", "uv.v", "raw.R", "raw.G", "raw.B"}
    assert set(plane) == {*"RGBA", *layers}
    assert all(kind[name] == oiio.HALF for name in ("R", "A", "matte.A", "parts.mouth"))
    assert all(kind[name] == oiio.FLOAT for name in ("uv.u", "raw.R"))
    assert plane["R"][0, 0] == 65504
    assert np.array_equal(plane["G"].ravel()[1:], rgba[..., 1].ravel()[1:])
    assert np.array_equal(plane["matte.A"], matte)
    assert np.array_equal(plane["uv.v"], uv[..., 1])


def test_metadata_of_a_plate_goes_through(tmp_path: Path) -> None:
    spec = oiio.ImageSpec(8, 6, 3, "half")
    spec.attribute("FramesPerSecond", oiio.TypeDesc("rational"), (24000, 1001))
    spec.attribute("smpte:TimeCode", oiio.TypeDesc("timecode"), (0x01020304, 0))
    spec.attribute("worldToCamera", oiio.TypeDesc("matrix"), tuple(map(float, range(16))))
    spec.attribute("nuke/node_hash", "abc")
    spec.attribute("compression", "piz")
    output = oiio.ImageOutput.create(str(tmp_path / "plate.exr"))
    assert output.open(str(tmp_path / "plate.exr"), spec)
    output.write_image(picture(0, 6, 8))
    output.close()
    read = read_frame(open_clip(tmp_path / "plate.exr"), 1)
    write_exr(tmp_path / "out.exr", read.pixels, attributes=read.metadata)
    before, after = load(tmp_path / "plate.exr")[0], load(tmp_path / "out.exr")[0]
    for name in ("FramesPerSecond", "smpte:TimeCode", "nuke/node_hash"):
        assert after[name] == before[name]
        assert after.getattribute(name) is not None
    assert after["compression"] == "zip"
    assert after.format.basetype == oiio.HALF
    assert open_clip(tmp_path / "out.exr").fps == pytest.approx(24000 / 1001)


def test_float_exr_is_exact(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).normal(0, 1e5, (5, 6, 3)).astype(np.float32)
    write_exr(tmp_path / "a.exr", pixels, half=False)
    assert np.array_equal(load(tmp_path / "a.exr")[1], pixels)


def test_png_rounds_and_clips(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).uniform(-0.2, 1.2, (5, 6, 3))
    write_png(tmp_path / "a.png", rgb)
    stored = cv2.imread(str(tmp_path / "a.png"))[..., ::-1]
    assert np.array_equal(stored, np.rint(rgb.clip(0, 1) * 255))
    write_png(tmp_path / "a.png", stored)
    assert np.array_equal(cv2.imread(str(tmp_path / "a.png"))[..., ::-1], stored)


def test_bad_arguments_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    nan = picture()
    nan[1, 2] = np.nan
    with pytest.raises(BadPixelsError, match="1 pixel "):
        write_exr(tmp_path / "a.exr", nan)
    for bad in (
        {"pixels": picture(channels=2)},
        {"pixels": picture(), "window": Window(0, 0, 3, 3)},
        {"pixels": picture(), "layers": {"m": np.zeros((2, 2))}},
        {"pixels": picture(), "layers": {"a.b.c": np.zeros((24, 40))}},
        {"pixels": picture(), "layers": {"a.b": np.zeros((24, 40, 2))}},
        {"pixels": picture(), "layers": {"1a": np.zeros((24, 40))}},
        {"pixels": picture(), "attributes": {"x": object()}},
    ):
        with pytest.raises(ValueError, match=r"must|fit"):
            write_exr(tmp_path / "a.exr", **bad)
    with pytest.raises(ValueError, match="at least one frame"):
        write_movie(tmp_path / "a.mp4", [], 24)
    assert os.listdir(tmp_path) == []


LIMITED = """
    import resource, sys
    import numpy as np
    from core.media.errors import WriteFailedError
    from core.media.write import write_exr, write_movie, write_png
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (512, 512, 3), dtype=np.uint8)
    path, limit = sys.argv[1], int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # the disk is full there
    try:
        if path.endswith("exr"):
            write_exr(path, noise / np.float32(255))
        elif path.endswith("png"):
            write_png(path, noise)
        else:
            write_movie(path, (noise for _ in range(20)), 24)
    except WriteFailedError as error:
        print("told", error)
"""


@pytest.mark.parametrize("name", ["a.exr", "a.png", "a.mp4"])
@pytest.mark.parametrize("lost", [400_000, 5_000, 1])
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, name, lost) -> None:
    def run(limit: int) -> str:
        command = [sys.executable, "-c", textwrap.dedent(LIMITED), str(tmp_path / name), str(limit)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run(2**30) == ""
    size = (tmp_path / name).stat().st_size
    (tmp_path / name).write_text("the older version")
    told = run(size - lost)
    assert told.startswith("told")
    assert name in told
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "the older version"


def test_a_killed_writer_leaves_only_whole_files(tmp_path: Path) -> None:
    script = f"""
        import itertools
        import numpy as np
        from core.media.write import write_exr
        noise = np.random.default_rng(0).uniform(0, 1, (400, 400, 3)).astype(np.float32)
        for number in itertools.count():
            write_exr({str(tmp_path)!r} + f"/a.{{number % 5:04d}}.exr", noise)
    """
    for wait in (0.0, 0.05, 0.11):
        writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
        deadline = time.monotonic() + 60
        while not (tmp_path / "a.0002.exr").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(wait)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        frames = list(read_frames(open_clip(tmp_path / "a.####.exr")))
        assert len(frames) >= 3
        for frame in frames:
            (tmp_path / f"a.{frame.number:04d}.exr").unlink()


def test_atomic_write_keeps_the_old_file_when_the_block_fails(tmp_path: Path) -> None:
    (tmp_path / "a.latents").write_text("old")

    def fail() -> None:
        with atomic_write(tmp_path / "a.latents") as path:
            assert path.suffix == ".latents"
            path.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert os.listdir(tmp_path) == ["a.latents"]
    assert (tmp_path / "a.latents").read_text() == "old"
    with atomic_write(tmp_path / "a.latents") as path:
        path.write_text("new")
        assert (tmp_path / "a.latents").read_text() == "old"
    assert (tmp_path / "a.latents").read_text() == "new"
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteFailedError, match="file"):
        write_png(tmp_path / "file" / "a.png", np.zeros((2, 2, 3), np.uint8))


# Movies


@pytest.fixture(scope="module")
def b_frames(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """120 numbered frames with B frames and several key frames, closed and open GOPs."""
    folder = tmp_path_factory.mktemp("movies")
    paths = {}
    for name, more in (("closed.mp4", ""), ("open.mkv", ":open-gop=1"), ("closed.mov", "")):
        options = {"x264-params": f"keyint=30:min-keyint=30:bframes=4:b-pyramid=normal{more}"}
        images = [av.VideoFrame.from_ndarray(numbered(n), "rgb24") for n in range(1, 121)]
        encode(folder / name, [i.reformat(format="yuv420p") for i in images], "libx264", options)
        with av.open(str(folder / name)) as container:
            packets = [p for p in container.demux(video=0) if p.size]
        assert any(p.pts != p.dts for p in packets), "no B frames: the test would test nothing"
        assert sum(p.is_keyframe for p in packets) >= 4
        paths[name] = folder / name
    return paths


@pytest.mark.parametrize("name", ["closed.mp4", "open.mkv", "closed.mov"])
def test_movie_frames_come_in_order_under_their_numbers(b_frames, name) -> None:
    clip = open_clip(b_frames[name])
    assert (clip.kind, clip.numbers, clip.fps) == ("movie", tuple(range(1, 121)), 25)
    for numbers in (None, range(88, 97), [59, 60, 61, 62], [120, 2, 2, 119, 30, 31, 1]):
        read = [(frame.number, spelled(frame.pixels)) for frame in read_frames(clip, numbers)]
        assert read == [(n, n) for n in (clip.numbers if numbers is None else numbers)]
    part = open_clip(b_frames[name], 100, 130)
    assert part.numbers == tuple(range(100, 121))
    assert missing_numbers(part) == list(range(121, 131))
    assert [spelled(frame.pixels) for frame in read_frames(part)] == list(range(100, 121))


def test_a_cut_off_movie_keeps_what_is_there(b_frames, tmp_path: Path) -> None:
    index_first = {"movflags": "faststart"}
    with (
        av.open(str(b_frames["closed.mp4"])) as source,
        av.open(str(tmp_path / "a.mp4"), "w", options=index_first) as target,
    ):
        copy = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(whole[: int(len(whole) * 0.6)])
    clip = open_clip(tmp_path / "a.mp4")
    assert "cut off" in clip.notes[0]
    assert clip.last == 120
    assert 0 < len(clip.numbers) < 120
    assert missing_numbers(clip) == list(range(len(clip.numbers) + 1, 121))
    assert missing_numbers(open_clip(tmp_path / "a.mp4", 1, 5)) == []
    read = []
    try:
        for frame in read_frames(clip):
            read.append((frame.number, spelled(frame.pixels)))
    except UnreadableFrameError as error:
        assert error.number == len(read) + 1  # noqa: PT017
    assert len(read) > 10
    assert all(number == shown for number, shown in read)
    (tmp_path / "a.mp4").write_bytes(b_frames["closed.mp4"].read_bytes()[:-4000])  # index lost
    with pytest.raises(ClipNotReadableError, match="still being written"):
        open_clip(tmp_path / "a.mp4")


def test_variable_rate_counts_stored_pictures(tmp_path: Path) -> None:
    images = []
    for number, time_ms in enumerate((0, 40, 60, 200, 240, 400, 440), start=1):
        image = av.VideoFrame.from_ndarray(numbered(number), "rgb24").reformat(format="yuv420p")
        image.pts, image.time_base = time_ms, Fraction(1, 1000)
        images.append(image)
    encode(tmp_path / "a.mp4", images, "libx264", {"bf": "2"}, rate=1000)
    clip = open_clip(tmp_path / "a.mp4")
    assert "varies" in clip.notes[0]
    read = [(frame.number, spelled(frame.pixels)) for frame in read_frames(clip)]
    assert read == [(n, n) for n in range(1, 8)]
    assert read_frame(clip, 4).metadata["seconds"] == pytest.approx(0.2)


def ycc(rgb: np.ndarray, kr: float, kb: float, bits: int, full: bool) -> np.ndarray:
    """Codes of Y', Cb, Cr by the definition in ITU-R BT.601/709/2020, full range as in JFIF."""
    y = kr * rgb[0] + (1 - kr - kb) * rgb[1] + kb * rgb[2]
    cb, cr = (rgb[2] - y) / (2 - 2 * kb), (rgb[0] - y) / (2 - 2 * kr)
    step, top = 2 ** (bits - 8), 2**bits - 1
    if full:
        return np.array([y * top, cb * top + 128 * step, cr * top + 128 * step])
    return np.array([(219 * y + 16) * step, (224 * cb + 128) * step, (224 * cr + 128) * step])


WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}


@pytest.mark.parametrize(
    ("codec", "form", "bits", "suffix"),
    [
        ("libx264", "yuv420p", 8, "mp4"),
        ("libx264", "yuv444p", 8, "mp4"),
        ("libx264", "gray", 8, "mp4"),
        ("libx264", "yuv420p10le", 10, "mp4"),
        ("libx264", "yuv422p10le", 10, "mov"),
        ("prores_ks", "yuv422p10le", 10, "mov"),
        ("ffv1", "yuv444p12le", 12, "mkv"),
    ],
)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("tag", [1, 5, 9])
def test_matrix_range_and_depth(tmp_path, codec, form, bits, suffix, full, tag) -> None:
    if codec == "prores_ks" and full:
        pytest.skip("ProRes is limited range by definition")
    colours = np.array([[0.2, 0.5, 0.8], [0.9, 0.3, 0.1], [1, 1, 1], [0.1004, 0.1004, 0.1004]])
    if form == "gray":
        colours = colours[:, :1].repeat(3, axis=1)
    image = av.VideoFrame(128, 32, form)
    kind = np.uint8 if bits == 8 else np.uint16
    for index, plane in enumerate(image.planes):
        row = [np.rint(ycc(c, *WEIGHTS[tag], bits, full)[index]) for c in colours]
        values = np.zeros((plane.height, plane.line_size // kind().itemsize), kind)
        values[:, : plane.width] = np.repeat(row, plane.width // 4).astype(kind)
        plane.update(values.tobytes())
    options = {"libx264": {"qp": "0"}, "prores_ks": {"profile": "3", "qscale": "1"}}.get(codec)
    path = tmp_path / f"a.{suffix}"
    image.colorspace = tag  # ProRes takes it from the frame, the others from the context
    encode(path, [image], codec, options, colorspace=tag, color_range=2 if full else 1)
    pixels = read_frame(open_clip(path), 1).pixels
    shown = pixels.reshape(32, 4, 32, 3)[8:24, :, 12:20].mean(axis=(0, 2))
    # Half a code in each of Y', Cb and Cr.
    step = 1.6 / (2**bits - 1) * (3 if codec == "prores_ks" else 1)
    assert np.abs(shown - colours).max() < step


def test_what_a_user_should_know_is_noted(tmp_path: Path) -> None:
    image = av.VideoFrame.from_ndarray(numbered(1), "rgb24").reformat(format="yuv420p")
    for trc, notes in ((1, 0), (16, 1), (18, 1)):  # Rec.709, PQ, HLG
        encode(tmp_path / f"{trc}.mp4", [image], "libx264", color_trc=trc, colorspace=1)
        clip = open_clip(tmp_path / f"{trc}.mp4")
        assert len(clip.notes) == notes
        assert all("HDR" in note for note in clip.notes)


def test_codes_above_white_are_kept(tmp_path: Path) -> None:
    image = av.VideoFrame(64, 48, "gray")
    image.planes[0].update(np.full(image.planes[0].buffer_size, 250, np.uint8).tobytes())
    encode(tmp_path / "a.mp4", [image], "libx264", {"qp": "0"}, color_range=1)
    pixels = read_frame(open_clip(tmp_path / "a.mp4"), 1).pixels
    assert np.abs(pixels - (250 - 16) / 219).max() < 1e-3


def test_sizes_that_are_odd_square_pixels_that_are_not_and_rotation(tmp_path: Path) -> None:
    odd = cv2.resize(numbered(5), (63, 47))
    write_movie(tmp_path / "odd.mp4", [odd] * 3, 24000 / 1001)
    clip = open_clip(tmp_path / "odd.mp4")
    assert (clip.width, clip.height) == (64, 48)
    assert clip.fps == pytest.approx(24000 / 1001)

    corner = np.zeros((48, 64, 3), np.uint8)
    corner[:16, :16] = 255  # top left
    with av.open(str(tmp_path / "turned.mp4"), "w") as container:
        stream = container.add_stream("libx264", 25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.sample_aspect_ratio = Fraction(4, 3)
        stream.set_display_rotation(90)
        for packet in stream.encode(av.VideoFrame.from_ndarray(corner, "rgb24")):
            container.mux(packet)
        container.mux(stream.encode(None))
    clip = open_clip(tmp_path / "turned.mp4")
    capture = cv2.VideoCapture(str(tmp_path / "turned.mp4"))
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    reference = capture.read()[1][..., ::-1] / 255
    pixels = read_frame(clip, 1).pixels
    assert pixels.shape == reference.shape == (64, 48, 3)
    assert np.abs(pixels - reference).mean() < 0.02
    assert clip.pixel_aspect == pytest.approx(3 / 4)


def test_alpha_and_rgb_codecs(tmp_path: Path) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (48, 64, 4), dtype=np.uint8)
    encode(tmp_path / "a.mov", [av.VideoFrame.from_ndarray(rgba, "rgba")], "png")
    frame = read_frame(open_clip(tmp_path / "a.mov"), 1)
    assert frame.alpha is not None
    assert np.array_equal(np.rint(frame.pixels * 255), rgba[..., :3])
    assert np.array_equal(np.rint(frame.alpha * 255), rgba[..., 3])


def test_written_movie_has_tags_and_colours_of_rec709(tmp_path: Path) -> None:
    rgb = np.zeros((64, 128, 3), np.uint8)
    rgb[:, :32], rgb[:, 32:64], rgb[:, 64:96], rgb[:, 96:] = (
        (200, 40, 60),
        (20, 180, 90),
        (30, 60, 220),
        (255, 255, 255),
    )
    write_movie(tmp_path / "a.mp4", (rgb for _ in range(10)), 24)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)
        assert (int(context.color_range), context.pix_fmt, stream.frames) == (1, "yuv420p", 10)
        planes = next(container.decode(stream)).to_ndarray()
    luma = planes[:64].reshape(64, 4, 32)[:, :, 8:24].mean(axis=(0, 2))
    for index, place in enumerate((16, 48, 80, 112)):
        assert luma[index] == pytest.approx(
            ycc(rgb[0, place] / 255, 0.2126, 0.0722, 8, False)[0], abs=1.5
        )
    back = read_frame(open_clip(tmp_path / "a.mp4"), 5).pixels.reshape(64, 4, 32, 3)
    shown = back[:, :, 8:24].mean(axis=(0, 2)) * 255
    assert np.abs(shown - rgb[0, [16, 48, 80, 112]]).max() < 3


def test_movie_bad_input(tmp_path: Path) -> None:
    frames = [np.zeros((16, 16, 3), np.uint8), np.zeros((16, 18, 3), np.uint8)]
    with pytest.raises(ValueError, match="one size"):
        write_movie(tmp_path / "a.mp4", frames, 24)
    assert os.listdir(tmp_path) == []
    with pytest.raises(ClipError, match="ends before it starts"):
        open_clip(tmp_path / "a.mp4", 10, 5)
