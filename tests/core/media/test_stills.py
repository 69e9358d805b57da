"""Stills as people have them: turned, grey, with any text in their headers and under any name."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import OpenImageIO as oiio
import pytest

from core.media.clip import Window
from core.media.errors import UnreadableFrameError, UnsupportedChannelsError
from core.media.numbering import as_pattern
from core.media.pictures import read_attribute
from core.media.read import open_clip, read_frame, with_handles
from core.media.write import copy_exr, write_exr, write_png

UPRIGHT = np.arange(1, 7, dtype=np.uint8).reshape(2, 3) * 40  # no two pixels alike
LATIN, NO_TEXT = b"Jos\xe9 Mu\xf1oz\0", b"\xff" * 11 + b"\0"


# Files, written byte by byte


def png(path: Path, pixels: np.ndarray, depth: int, colour: int, **chunks: bytes) -> None:
    """Writes a PNG of `[H, W, ...]` integers of 8 or 16 bits, with further chunks by name."""
    size = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(f">u{depth // 8}").tobytes() for row in pixels)
    data = b"\x89PNG\r\n\x1a\n"
    parts = {"IHDR": size, **chunks, "IDAT": zlib.compress(rows), "IEND": b""}
    for name, body in parts.items():
        named = name.encode() + body
        data += struct.pack(">I", len(body)) + named + struct.pack(">I", zlib.crc32(named))
    path.write_bytes(data)


def tags(entries: dict[int, tuple[int, bytes]], data: bytes = b"", end: int = 0) -> bytes:
    """Returns a little-endian TIFF of tags (type, value) and one strip of data."""
    sizes = {2: 1, 3: 2, 4: 4}
    if data:
        entries = {**entries, 273: (4, bytes(4)), 279: (4, struct.pack("<I", len(data)))}
    behind = 8 + 2 + 12 * len(entries) + 4
    directory, values = struct.pack("<H", len(entries)), b""
    for tag, (kind, value) in sorted(entries.items()):
        directory += struct.pack("<HHI", tag, kind, len(value) // sizes[kind])
        if tag == 273:
            strip = len(directory)
        if len(value) <= 4:
            directory += value.ljust(4, b"\0")
        else:
            directory += struct.pack("<I", behind + len(values))
            values += value + bytes(len(value) % 2)
    if data:
        at = struct.pack("<I", behind + len(values))
        directory = directory[:strip] + at + directory[strip + 4 :]
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", end) + values + data


def shorts(*values: int) -> tuple[int, bytes]:
    return 3, struct.pack(f"<{len(values)}H", *values)


def tiff(path: Path, pixels: np.ndarray, photometric: int, more=None) -> None:
    """Writes a TIFF of `[H, W]` or `[H, W, C]` integers."""
    height, width = pixels.shape[:2]
    channels, bits = pixels[0, 0].size, pixels.itemsize * 8
    entries = {
        256: shorts(width),
        257: shorts(height),
        258: shorts(*[bits] * channels),
        259: shorts(1),
        262: shorts(photometric),
        277: shorts(channels),
        278: shorts(height),
    }
    path.write_bytes(tags(entries | (more or {}), pixels.astype(f"<u{bits // 8}").tobytes()))


def jpeg(path: Path, pixels: np.ndarray, exif: dict[int, tuple[int, bytes]]) -> None:
    """Writes a JPEG of a grey picture with EXIF tags."""
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 100])
    body = b"Exif\0\0" + tags(exif)
    data = encoded.tobytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:])


def exr_with(path: Path, name: bytes, value: bytes) -> None:
    """Gives an EXR of scan lines one more attribute of type string, byte by byte."""
    data = path.read_bytes()
    added = name + b"\0string\0" + struct.pack("<I", len(value)) + value
    at, end = 8, data.index(b"\0", 8)
    while end > at:  # to the end of the header
        kind = data.index(b"\0", end + 1)
        at = kind + 5 + struct.unpack("<I", data[kind + 1 : kind + 5])[0]
        end = data.index(b"\0", at)
    height = oiio.ImageInput.open(str(path)).spec().height
    chunks = -(-height // 16)  # of ZIP: their offsets move with what was added
    offsets = struct.unpack(f"<{chunks}Q", data[at + 1 : at + 1 + 8 * chunks])
    moved = struct.pack(f"<{chunks}Q", *[offset + len(added) for offset in offsets])
    path.write_bytes(data[:at] + added + b"\0" + moved + data[at + 1 + 8 * chunks :])


def dpx_with(path: Path, filler: bytes) -> None:
    """Writes a DPX whose texts are filled with a byte, as unset fields are."""
    spec = oiio.ImageSpec(3, 2, 3, oiio.UINT8)
    output = oiio.ImageOutput.create("dpx")
    assert output.open(str(path), spec)
    assert output.write_image(np.repeat(UPRIGHT[..., None], 3, 2))
    assert output.close()
    data = bytearray(path.read_bytes())
    # Creator, project, copyright; source file, device, serial number; film and television fields.
    for begin, size in ((160, 500), (1432, 124), (1556, 76), (1664, 24), (1712, 156)):
        data[begin : begin + size] = filler * size
    path.write_bytes(bytes(data))


def stored_as(orientation: int) -> np.ndarray:
    """Returns how `UPRIGHT` is stored, from the words of the EXIF standard: where the first row and
    the first column of the stored picture lie in the upright one."""
    first_row, first_column = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]
    height, width = UPRIGHT.shape
    sideways = first_row in ("left", "right")
    stored = np.zeros((width, height) if sideways else (height, width), np.uint8)
    for i in range(stored.shape[0]):
        for j in range(stored.shape[1]):
            along = {first_row: i, first_column: j}
            y = along["top"] if "top" in along else height - 1 - along["bottom"]
            x = along["left"] if "left" in along else width - 1 - along["right"]
            stored[i, j] = UPRIGHT[y, x]
    return stored


# Turned pictures


@pytest.mark.parametrize("orientation", range(1, 9))
def test_stills_are_turned_as_their_headers_say(tmp_path: Path, orientation: int) -> None:
    stored = stored_as(orientation)
    tag = {274: shorts(orientation)}
    big = np.kron(stored, np.ones((16, 16), np.uint8))
    jpeg(tmp_path / "a.jpg", big, tag)
    tiff(tmp_path / "a.tif", stored, 1, tag)
    png(tmp_path / "a.png", stored, 8, 0, eXIf=tags(tag))
    for name, size in (("a.jpg", 16), ("a.tif", 1), ("a.png", 1)):
        clip = open_clip(tmp_path / name)
        assert (clip.width, clip.height) == (3 * size, 2 * size), name
        frame = read_frame(clip, 1)
        upright = np.rint(frame.pixels[size // 2 :: size, size // 2 :: size, 0] * 255)
        assert np.abs(upright - UPRIGHT).max() <= (2 if size > 1 else 0), name
        assert frame.pixels.flags.c_contiguous
        assert frame.metadata.get("Orientation", 1) == 1  # what is written of it is upright
        assert frame.data_window == Window(0, 0, clip.width, clip.height)
        assert any("turned upright" in note for note in clip.notes) == (orientation != 1)


def test_nonsense_orientations_are_none(tmp_path: Path) -> None:
    for orientation in (0, 9, 65535):
        tiff(tmp_path / "a.tif", UPRIGHT, 1, {274: shorts(orientation)})
        clip = open_clip(tmp_path / "a.tif")
        assert np.array_equal(np.rint(read_frame(clip, 1).pixels[..., 0] * 255), UPRIGHT)


def test_the_pixel_aspect_turns_with_the_picture(tmp_path: Path) -> None:
    spec = oiio.ImageSpec(2, 3, 1, oiio.UINT8)
    spec.attribute("Orientation", 6)
    spec.attribute("PixelAspectRatio", 2.0)
    output = oiio.ImageOutput.create("tiff")
    assert output.open(str(tmp_path / "a.tif"), spec)
    assert output.write_image(stored_as(6)[..., None])
    assert output.close()
    clip = open_clip(tmp_path / "a.tif")
    assert clip.pixel_aspect == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("line", "orientation"),
    [
        ("-Y 2 +X 3", 1),
        ("-Y 2 -X 3", 2),
        ("+Y 2 -X 3", 3),
        ("+Y 2 +X 3", 4),
        ("+X 3 -Y 2", 5),
        ("-X 3 -Y 2", 6),
        ("-X 3 +Y 2", 7),
        ("+X 3 +Y 2", 8),
    ],
)
def test_radiance_pictures_are_turned(tmp_path: Path, line: str, orientation: int) -> None:
    body = b"".join(bytes([v, v, v, 128]) for v in stored_as(orientation).ravel())
    head = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n" + line.encode() + b"\n"
    (tmp_path / "a.hdr").write_bytes(head + body)
    clip = open_clip(tmp_path / "a.hdr")
    assert np.array_equal(np.rint(read_frame(clip, 1).pixels[..., 0] * 256), UPRIGHT)


# Text that is not UTF-8


@pytest.mark.parametrize("text", [LATIN, NO_TEXT])
def test_no_text_in_a_header_stops_a_clip(tmp_path: Path, text: bytes) -> None:
    write_exr(tmp_path / "a.exr", np.ones((2, 3, 3), np.float32))
    for name in (b"artist", b"reenact:colourSpace", b"na\xefve"):
        exr_with(tmp_path / "a.exr", name, text)
    jpeg(tmp_path / "a.jpg", np.full((16, 16), 99, np.uint8), {315: (2, text), 270: (2, text)})
    tiff(tmp_path / "a.tif", UPRIGHT, 1, {315: (2, text), 270: (2, text), 305: (2, text)})
    png(
        tmp_path / "a.png", UPRIGHT, 8, 0, tEXt=b"Author\0" + text[:-1], eXIf=tags({315: (2, text)})
    )
    dpx_with(tmp_path / "a.dpx", text[3:4])
    for name in ("a.exr", "a.jpg", "a.tif", "a.png", "a.dpx"):
        frame = read_frame(open_clip(tmp_path / name), 1)
        assert frame.pixels.size
        assert frame.metadata, name  # what can be read is there
    assert read_frame(open_clip(tmp_path / "a.exr"), 1).metadata["compression"] == "zip"
    assert read_attribute(tmp_path / "a.exr", "artist") is None
    assert copy_exr(tmp_path / "a.exr", tmp_path / "b.exr", {"reenact:task": "1"})
    assert read_attribute(tmp_path / "b.exr", "reenact:task") == "1"


def test_channels_of_any_name_do_not_stop_an_exr(tmp_path: Path) -> None:
    layers = {"matte": np.zeros((2, 3), np.float16)}
    write_exr(tmp_path / "a.exr", np.ones((2, 3, 3), np.float32), layers=layers)
    path = tmp_path / "a.exr"
    path.write_bytes(path.read_bytes().replace(b"matte.A\0", b"mat\xe9e.A\0"))
    assert read_frame(open_clip(path), 1).pixels.min() == 1


# Kinds that can't be read


def compressed_as(path: Path, number: int) -> None:
    """Writes an EXR that calls its compression by a number, as newer versions have more of them."""
    write_exr(path, np.ones((40, 8, 3), np.float32))
    mark = b"compression\0compression\0\1\0\0\0"
    at = path.read_bytes().index(mark) + len(mark)
    data = path.read_bytes()
    path.write_bytes(data[:at] + bytes([number]) + data[at + 1 :])


@pytest.mark.parametrize("number", [10, 11, 12, 13, 200])
def test_newer_compressions_are_one_sentence(
    tmp_path: Path, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    compressed_as(tmp_path / "a.exr", number)
    with pytest.raises(UnreadableFrameError, match="Write it with ZIP, PIZ or DWAA") as caught:
        open_clip(tmp_path / "a.exr")
    assert ("HTJ2K" in str(caught.value)) == (number < 12)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # the library was not even asked


def test_a_deep_exr_says_how_to_flatten_it(tmp_path: Path) -> None:
    spec = oiio.ImageSpec(4, 3, 5, oiio.FLOAT)
    spec.channelnames = ("R", "G", "B", "A", "Z")
    spec.deep = True
    deep = oiio.DeepData()
    deep.init(12, 5, (oiio.TypeDesc("float"),) * 5, spec.channelnames)
    output = oiio.ImageOutput.create("openexr")
    assert output.open(str(tmp_path / "a.exr"), spec)
    assert output.write_deep_image(deep)
    assert output.close()
    with pytest.raises(UnsupportedChannelsError, match="is deep"):
        open_clip(tmp_path / "a.exr")


# Grey and indexed pictures


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_grey_pictures_are_exact(tmp_path: Path, kind: type) -> None:
    largest = np.iinfo(kind).max
    grey = np.array([[0, 1, largest // 3], [largest // 2, largest - 1, largest]], kind)
    both = np.dstack([grey, grey[::-1]])
    depth = grey.itemsize * 8
    png(tmp_path / "grey.png", grey, depth, 0)
    png(tmp_path / "both.png", both, depth, 4)
    tiff(tmp_path / "grey.tif", grey, 1)
    tiff(tmp_path / "white.tif", largest - grey, 0)  # 0 is white
    for extra, name in ((1, "premultiplied"), (2, "both")):
        tiff(tmp_path / f"{name}.tif", both, 1, {338: shorts(extra)})
    tiff(tmp_path / "unknown.tif", both, 1, {338: shorts(0)})
    inverted = np.dstack([largest - grey, grey[::-1]])
    tiff(tmp_path / "white_both.tif", inverted, 0, {338: shorts(2)})
    spec = oiio.ImageSpec(3, 2, 1, "uint8" if depth == 8 else "uint16")
    output = oiio.ImageOutput.create("dpx")
    assert output.open(str(tmp_path / "grey.dpx"), spec)
    assert output.write_image(grey[..., None])
    assert output.close()
    for path in sorted(tmp_path.iterdir()):
        frame = read_frame(open_clip(path), 1)
        for channel in range(3):
            error = np.abs(frame.pixels[..., channel] - grey / np.float64(largest)).max()
            assert error < 1e-7, path.name
        assert (frame.alpha is None) == (path.stem in ("grey", "white", "unknown"))
        if frame.alpha is not None:
            assert np.abs(frame.alpha - grey[::-1] / np.float64(largest)).max() < 1e-7, path.name


def test_indexed_pictures_are_exact(tmp_path: Path) -> None:
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    clear = np.arange(256, dtype=np.uint8)[::-1].copy()
    index = np.array([[0, 1, 200], [255, 7, 128]], np.uint8)
    png(tmp_path / "a.png", index, 8, 3, PLTE=palette.tobytes())
    png(tmp_path / "b.png", index, 8, 3, PLTE=palette.tobytes(), tRNS=clear.tobytes())
    table = palette.T.astype("<u2") * 257
    tiff(tmp_path / "a.tif", index, 3, {320: (3, table.tobytes())})
    for name in ("a.png", "b.png", "a.tif"):
        frame = read_frame(open_clip(tmp_path / name), 1)
        assert np.abs(frame.pixels - palette[index] / 255.0).max() < 1e-7, name
    frame = read_frame(open_clip(tmp_path / "b.png"), 1)
    assert frame.alpha is not None
    assert np.abs(frame.alpha - clear[index] / 255.0).max() < 1e-7


# Names


def test_a_named_file_is_opened_alone_and_a_note_names_the_others(tmp_path: Path) -> None:
    for number in (2, 16):  # photographs, of different sizes
        write_png(tmp_path / f"IMG_{number:04d}.png", np.zeros((number, 8, 3)))
    clip = open_clip(tmp_path / "IMG_0016.png")
    assert (clip.numbers, clip.height) == ((16,), 16)
    assert clip.notes == (
        "IMG_0016.png is one of 2 numbered pictures, and the only one used. For all of them, name "
        "IMG_####.png.",
    )
    assert with_handles(clip, 20).numbers == (2, 16)
    assert open_clip(f"{tmp_path}/IMG_0016.png 2-16").numbers == (2, 16)
    assert open_clip(tmp_path / "IMG_####.png").notes == ()
    (tmp_path / "IMG_0002.png").unlink()
    assert open_clip(tmp_path / "IMG_0016.png").notes == ()


@pytest.mark.parametrize("way", ["shot.1002.beauty.png", "shot.####.beauty.png", "", "%04d"])
def test_the_number_may_stand_in_the_middle_of_a_name(tmp_path: Path, way: str) -> None:
    for number in (1001, 1002):
        write_png(tmp_path / f"shot.{number}.beauty.png", np.full((4, 4, 3), number % 5 / 5))
    clip = open_clip(tmp_path / way.replace("%04d", "shot.%04d.beauty.png"))
    assert clip.path == str(tmp_path / "shot.####.beauty.png")
    assert clip.numbers[-1] == 1002
    assert read_frame(clip, 1002).pixels[0, 0, 0] == pytest.approx(0.4)


def test_blanks_of_a_name_stay_and_those_pasted_with_it_go(tmp_path: Path) -> None:
    for folder in (" lead", "sp ace ", "new\nline"):
        write_exr(tmp_path / folder / "p.0007.exr", np.zeros((4, 4, 3), np.float32))
        for text in ("p.####.exr", "p.####.exr \n", "p.####.exr 7-8", "p.%04d.exr"):
            assert open_clip(f"{tmp_path}/{folder}/{text}").numbers == (7,)
    assert open_clip(f"  {tmp_path}/ lead/p.####.exr").numbers == (7,)
    assert open_clip(f"{tmp_path}/sp ace ").numbers == (7,)


def test_a_number_has_no_million_digits() -> None:
    assert as_pattern("p.%99999999d.exr") == "p.%99999999d.exr"


def test_a_hash_in_the_name_of_a_folder_is_no_number(tmp_path: Path) -> None:
    folder = tmp_path / "cut#2" / "##"
    for number in (1, 2):
        write_exr(folder / f"a.{number:02d}.exr", np.full((2, 2, 3), number, np.float32))
    for way in ("a.##.exr", "a.%02d.exr", "a.02.exr", ""):
        clip = open_clip(folder / way)
        assert clip.file(2) == str(folder / "a.02.exr")
        assert read_frame(clip, 2).pixels.max() == 2
    write_png(folder / "b.png", np.zeros((2, 2, 3)))
    assert open_clip(folder / "b.png").kind == "still"
    write_png(folder / "take#1.png", np.zeros((2, 2, 3)))
    assert open_clip(folder / "take#1.png").kind == "still"
    assert open_clip(folder).numbers == (1, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all names are Unicode")
def test_folders_need_not_be_unicode(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"b\xe9b")
    for number in (1, 2):
        write_exr(folder / f"a.{number}.exr", np.full((2, 2, 3), number, np.float32))
    clip = open_clip(folder / "a.#.exr")
    assert read_frame(clip, 2).pixels.max() == 2
    assert copy_exr(folder / "a.1.exr", folder / "b.exr", {"reenact:task": "1"})
    assert read_attribute(folder / "b.exr", "reenact:task") == "1"
    write_png(folder / "c.png", np.zeros((2, 2, 3)))
    assert read_frame(open_clip(folder / "c.png"), 1).pixels.max() == 0
    (folder / "d.png").write_bytes(b"no picture")
    with pytest.raises(UnreadableFrameError):
        open_clip(folder / "d.png")
