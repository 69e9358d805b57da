"""Every pixel format against values computed from its definition, without FFmpeg's conversions."""

from __future__ import annotations

import re
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_movies import encode

from core.media.movie_pixels import to_rgb
from core.media.read import open_clip, read_frame

HEIGHT, WIDTH = 10, 22  # no multiple of FFmpeg's alignment

# Bytes in memory in the order that the name spells ...
PACKED = ["rgb24", "bgr24", "rgba", "bgra", "argb", "abgr", "rgb0", "bgr0", "0rgb", "0bgr"]
PACKED += ["rgb48le", "rgb48be", "bgr48le", "rgba64le", "rgba64be", "bgra64le"]
PACKED += ["ya8", "ya16le", "ya16be", "rgbf32le", "rgbaf16le", "rgbaf32le"]
# ... or planes in that order.
PLANAR = ["gray", "gray9le", "gray10le", "gray10be", "gray12le", "gray14le", "gray16le"]
PLANAR += ["gray16be", "grayf32le", "gbrp", "gbrp9le", "gbrp10le", "gbrp10be", "gbrp12le"]
PLANAR += ["gbrp14le", "gbrp16le", "gbrp16be", "gbrpf32le"]
PLANAR += ["gbrap", "gbrap10le", "gbrap12le", "gbrap14le", "gbrap16le", "gbrapf32le"]
# Numbers whose highest bits are the first letter's.
FIELDS = {"rgb565le": (5, 6, 5), "rgb565be": (5, 6, 5), "rgb555le": (5, 5, 5)}
FIELDS |= {"rgb555be": (5, 5, 5), "bgr555le": (5, 5, 5), "bgr565le": (5, 6, 5)}
FIELDS |= {"rgb444le": (4, 4, 4), "rgb8": (3, 3, 2), "bgr8": (2, 3, 3), "bgr4_byte": (1, 2, 1)}
FIELDS |= {"rgb4_byte": (1, 2, 1), "x2rgb10le": (10, 10, 10), "x2bgr10le": (10, 10, 10)}


def store(picture: av.VideoFrame, index: int, values: np.ndarray) -> None:
    """Fills a plane with rows of numbers."""
    plane = picture.planes[index]
    rows = np.zeros((plane.height, abs(plane.line_size)), np.uint8)
    data = np.ascontiguousarray(values).reshape(plane.height, -1).view(np.uint8)
    rows[:, : data.shape[1]] = data
    plane.update(rows.tobytes())


def letters(name: str) -> str:
    return (
        "y"
        if name.startswith("gray")
        else re.match(r"x?2?([rgbay0]+?)p?(?=[1-9]|f\d|_|$)", name)[1]
    )


def kind_of(name: str) -> tuple[str, int]:
    """Type of a stored number, and how many bits of it count (0: floats)."""
    order = ">" if name.endswith("be") else "<"
    if match := re.search(r"f(16|32)", name):
        return f"{order}f{int(match[1]) // 8}", 0
    per_pixel = int((re.search(r"([1-9]\d*)(?:le|be)?$", name) or [0, 8])[1])
    if name.startswith(("rgb", "bgr")) and per_pixel in (24, 48, 64):
        per_pixel //= len(letters(name))
    return f"{order}u{(per_pixel + 7) // 8}", per_pixel


def made(name: str, seed: int = 0) -> tuple[av.VideoFrame, np.ndarray]:
    """A picture of random codes, and what it shows: `[H, W, 3 or 4]`."""
    rng = np.random.default_rng(seed)
    picture = av.VideoFrame(WIDTH, HEIGHT, name)
    order = letters(name)
    if name in FIELDS:
        bits = FIELDS[name]
        codes = [rng.integers(0, 2**b, (HEIGHT, WIDTH)) for b in bits]
        number = (codes[0] << bits[1] + bits[2]) | (codes[1] << bits[2]) | codes[2]
        size = {True: "u1", False: "u2"}[sum(bits) <= 8] if sum(bits) < 30 else "u4"
        store(picture, 0, number.astype((">" if name.endswith("be") else "<") + size))
        values = {
            letter: code / (2**b - 1) for letter, code, b in zip(order, codes, bits, strict=True)
        }
    else:
        kind, bits = kind_of(name)
        shape = (HEIGHT, WIDTH, len(order))
        whole = rng.integers(0, 2**bits, shape) if bits else rng.uniform(-0.2, 1.5, shape)
        codes = whole.astype(kind)
        if name in PACKED:
            store(picture, 0, codes)
        else:
            for index in range(len(order)):
                store(picture, index, codes[..., index])
        top = 2**bits - 1 if bits else 1
        values = {letter: codes[..., i].astype(float) / top for i, letter in enumerate(order)}
    colours = "yyy" if "y" in order else "rgb"
    return picture, np.stack([values[c] for c in colours + "a" * ("a" in order)], axis=2)


def check(pixels: np.ndarray, alpha: np.ndarray | None, expected: np.ndarray) -> None:
    assert pixels.dtype == np.float32
    assert np.abs(pixels - expected[..., :3]).max() < 1e-6
    assert (alpha is None) == (expected.shape[2] == 3)
    if alpha is not None:
        assert np.abs(alpha - expected[..., 3]).max() < 1e-6


@pytest.mark.parametrize("name", [*PACKED, *PLANAR, *FIELDS])
def test_rgb_and_grey_of_every_depth_are_exact(name: str) -> None:
    picture, expected = made(name)
    check(*to_rgb(picture, "ffv1"), expected)


@pytest.mark.parametrize("name", ["monob", "monow"])
def test_one_bit_pictures_are_black_and_white(name: str) -> None:
    white = np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH)).astype(bool)
    picture = av.VideoFrame(WIDTH, HEIGHT, name)
    store(picture, 0, np.packbits(white if name == "monob" else ~white, axis=1))
    check(*to_rgb(picture, "png"), np.repeat(white[..., None], 3, axis=2).astype(float))


@pytest.mark.parametrize(("name", "told"), [("bayer_rggb8", "sensor"), ("xyz12le", "X'Y'Z'")])
def test_pictures_without_rgb_are_refused(name: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        to_rgb(av.VideoFrame(WIDTH, HEIGHT, name), "rawvideo")


@pytest.mark.parametrize("opaque", [True, False])
def test_palettes_are_exact_and_may_have_alpha(opaque: bool) -> None:
    rng = np.random.default_rng(0)
    table = rng.integers(0, 256, (256, 4))  # A, R, G, B
    table[:200, 0] = 255 if opaque else table[:200, 0]
    table[200:, 0] = 0  # not used
    picture = av.VideoFrame(WIDTH, HEIGHT, "pal8")
    index = rng.integers(0, 200, (HEIGHT, WIDTH)).astype("u1")
    store(picture, 0, index)
    argb = table @ [1 << 24, 1 << 16, 1 << 8, 1]
    picture.planes[1].update(argb.astype(np.uint32).tobytes())
    expected = table[index][..., [1, 2, 3] if opaque else [1, 2, 3, 0]] / 255
    check(*to_rgb(picture, "png"), expected)


@pytest.mark.parametrize("bits", [8, 9, 10, 12, 16])
@pytest.mark.parametrize("size", ["420", "422", "444"])
def test_alpha_of_video_is_exact(bits: int, size: str) -> None:
    if (bits, size) == (12, "420"):
        pytest.skip("no such format")
    picture = av.VideoFrame(WIDTH, HEIGHT, f"yuva{size}p{'' if bits == 8 else f'{bits}le'}")
    codes = np.random.default_rng(0).integers(0, 2**bits, (HEIGHT, WIDTH))
    for index in range(3):
        plane = picture.planes[index]
        store(picture, index, np.full((plane.height, plane.width), 2 ** (bits - 1), kind(bits)))
    store(picture, 3, codes.astype(kind(bits)))
    assert np.abs(to_rgb(picture, "ffv1")[1] - codes / (2**bits - 1)).max() < 1e-6


def kind(bits: int) -> str:
    return "u1" if bits == 8 else "<u2"


@pytest.mark.parametrize("name", ["nv12", "nv21", "p010le", "yuyv422", "uyvy422", "y210le"])
def test_packed_video_shows_what_planar_video_shows(name: str) -> None:
    bits = 10 if "10" in name else 8
    code, shift = np.array([150, 100, 170]) << (bits - 8), 16 - bits if bits > 8 else 0
    planar = av.VideoFrame(32, 16, "yuv444p" if bits == 8 else "yuv444p10le")
    for index in range(3):
        store(planar, index, np.full((16, 32), code[index], kind(bits)))
    packed = av.VideoFrame(32, 16, name)
    y, u, v = code << shift
    if name.startswith(("nv", "p0")):
        store(packed, 0, np.full((16, 32), y, kind(bits)))
        store(
            packed, 1, np.tile(np.array([v, u] if name == "nv21" else [u, v], kind(bits)), (8, 16))
        )
    else:
        row = [u, y, v, y] if name.startswith("u") else [y, u, y, v]
        store(packed, 0, np.tile(np.array(row, kind(bits)), (16, 16)))
    for picture in (planar, packed):
        picture.colorspace, picture.color_range = 1, 1
    assert np.abs(to_rgb(packed, "x")[0] - to_rgb(planar, "x")[0]).max() < 1e-6


@pytest.mark.parametrize(
    ("tag", "codec", "limited"),
    [(1, "ffv1", True), (2, "h264", False), (0, "ffv1", False), (0, "h264", True)],
)
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_range_of_grey_is_its_tag_or_its_codec(tag, codec, limited, bits) -> None:
    picture = av.VideoFrame(WIDTH, HEIGHT, "gray" if bits == 8 else f"gray{bits}le")
    codes = np.random.default_rng(0).integers(0, 2**bits, (HEIGHT, WIDTH))
    store(picture, 0, codes.astype(kind(bits)))
    picture.color_range = tag
    step = 2 ** (bits - 8)
    expected = (codes / step - 16) / 219 if limited else codes / (2**bits - 1)
    assert np.abs(to_rgb(picture, codec)[0] - expected[..., None]).max() < 1e-6


def test_ycgco_is_no_ycbcr() -> None:
    rgb = np.array([0.3, 0.5, 0.7])
    y, cg, co = rgb @ [0.25, 0.5, 0.25], rgb @ [-0.25, 0.5, -0.25], rgb @ [0.5, 0, -0.5]
    picture = av.VideoFrame(16, 16, "yuv444p16le")
    for index, value in enumerate((y, cg + 0.5, co + 0.5)):
        store(picture, index, np.full((16, 16), round(value * 65535), "<u2"))
    picture.colorspace, picture.color_range = 8, 2
    assert np.abs(to_rgb(picture, "h264")[0] - rgb).max() < 1e-4


@pytest.mark.parametrize(
    ("codec", "name", "suffix"),
    [
        ("png", "ya8", "mov"),
        ("png", "gray16be", "mov"),
        ("png", "ya16be", "mov"),
        ("png", "rgb48be", "mov"),
        ("png", "rgba64be", "mov"),
        ("qtrle", "argb", "mov"),
        ("qtrle", "rgb555be", "mov"),
        ("rawvideo", "bgr24", "avi"),
        ("png", "gray", "mov"),
        ("ffv1", "gray10le", "mkv"),
        ("ffv1", "gray12le", "mkv"),
        ("ffv1", "gray16le", "avi"),
        ("ffv1", "gbrp10le", "mkv"),
        ("ffv1", "gbrp12le", "mkv"),
        ("ffv1", "gbrap16le", "mkv"),
        ("ffv1", "rgba64le", "mkv"),
        ("ffv1", "bgr0", "mkv"),
        ("ffvhuff", "gbrap", "avi"),
        ("huffyuv", "bgra", "avi"),
        ("utvideo", "gbrp", "avi"),
        ("libx264rgb", "bgr24", "mp4"),
        ("r210", "gbrp10le", "mov"),
    ],
)
def test_movies_without_loss_are_read_without_loss(tmp_path: Path, codec, name, suffix) -> None:
    picture, expected = made(name)
    options = {"qp": "0"} if codec == "libx264rgb" else {}
    encode(tmp_path / f"a.{suffix}", [picture], codec, options)
    clip = open_clip(tmp_path / f"a.{suffix}")
    frame = read_frame(clip, 1)
    assert clip.has_alpha == (frame.alpha is not None)
    check(frame.pixels, frame.alpha, expected)


def test_a_palette_in_a_movie(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = np.column_stack([np.full(256, 255), rng.integers(0, 256, (256, 3))])
    picture = av.VideoFrame(WIDTH, HEIGHT, "pal8")
    index = rng.integers(0, 256, (HEIGHT, WIDTH)).astype("u1")
    store(picture, 0, index)
    picture.planes[1].update((table @ [1 << 24, 1 << 16, 1 << 8, 1]).astype(np.uint32).tobytes())
    encode(tmp_path / "a.mov", [picture], "png")
    frame = read_frame(open_clip(tmp_path / "a.mov"), 1)
    check(frame.pixels, frame.alpha, table[index][..., 1:] / 255)
