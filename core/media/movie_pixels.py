"""Exact RGB of decoded movie pictures, for every pixel format.

RGB, grey and palettes are unpacked here from their stored codes: FFmpeg's conversions between
depths and ranges round, clip, or take grey for video levels. Of Y'CbCr FFmpeg only brings the
planes to one size, and the matrix is applied here. A new packed format is a row of `_PACKED` or
`_FIELDS`.
"""

from __future__ import annotations

import re
from typing import Any

import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation

# Components of one plane in whole bytes: how many there are, bytes of each with "f" for floats, and
# the places of R, G, B (or grey), then of alpha.
_PACKED = {
    "rgb24": (3, "u1", (0, 1, 2)),
    "bgr24": (3, "u1", (2, 1, 0)),
    "rgba": (4, "u1", (0, 1, 2, 3)),
    "bgra": (4, "u1", (2, 1, 0, 3)),
    "argb": (4, "u1", (1, 2, 3, 0)),
    "abgr": (4, "u1", (3, 2, 1, 0)),
    "rgb0": (4, "u1", (0, 1, 2)),
    "bgr0": (4, "u1", (2, 1, 0)),
    "0rgb": (4, "u1", (1, 2, 3)),
    "0bgr": (4, "u1", (3, 2, 1)),
    "rgb48": (3, "u2", (0, 1, 2)),
    "bgr48": (3, "u2", (2, 1, 0)),
    "rgba64": (4, "u2", (0, 1, 2, 3)),
    "bgra64": (4, "u2", (2, 1, 0, 3)),
    "rgbf16": (3, "f2", (0, 1, 2)),
    "rgbaf16": (4, "f2", (0, 1, 2, 3)),
    "rgbf32": (3, "f4", (0, 1, 2)),
    "rgbaf32": (4, "f4", (0, 1, 2, 3)),
    "ya8": (2, "u1", (0, 1)),
    "ya16": (2, "u2", (0, 1)),
    "yaf16": (2, "f2", (0, 1)),
    "yaf32": (2, "f4", (0, 1)),
}

# Components within one number: its bytes, then lowest bit and bits of R, G and B.
_FIELDS = {
    "rgb8": ("u1", (5, 3), (2, 3), (0, 2)),
    "bgr8": ("u1", (0, 3), (3, 3), (6, 2)),
    "rgb4_byte": ("u1", (3, 1), (1, 2), (0, 1)),
    "bgr4_byte": ("u1", (0, 1), (1, 2), (3, 1)),
    "rgb444": ("u2", (8, 4), (4, 4), (0, 4)),
    "bgr444": ("u2", (0, 4), (4, 4), (8, 4)),
    "rgb555": ("u2", (10, 5), (5, 5), (0, 5)),
    "bgr555": ("u2", (0, 5), (5, 5), (10, 5)),
    "rgb565": ("u2", (11, 5), (5, 6), (0, 5)),
    "bgr565": ("u2", (0, 5), (5, 6), (11, 5)),
    "x2rgb10": ("u4", (20, 10), (10, 10), (0, 10)),
    "x2bgr10": ("u4", (0, 10), (10, 10), (20, 10)),
}

# Codecs of camera and delivery video: by their standards untagged grey is limited range.
_VIDEO_LEVELS = {"h264", "hevc", "vvc"}


def to_rgb(picture: Any, codec: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Converts a decoded picture to RGB, black at 0 and white at 1.

    Codes below black and above white stay below 0 and above 1.

    Args:
        picture: `av.VideoFrame` in memory.
        codec: FFmpeg's name of its codec, which decides the range of untagged grey.

    Returns:
        float32 `[H, W, 3]`, and alpha `[H, W]` in 0..1 or None.

    Raises:
        ValueError: a format without RGB: raw sensor pictures, X'Y'Z'. The message names it.
    """
    name = re.sub(r"(le|be)$", "", picture.format.name)
    order = ">" if picture.format.is_big_endian else "<"
    if name.startswith(("bayer", "xyz")):
        raise ValueError("raw sensor pixels" if name.startswith("bayer") else "X'Y'Z' of a DCP")
    if name == "pal8":
        return _from_palette(picture)
    if name in ("monob", "monow"):
        bits = np.unpackbits(_plane(picture, 0, "u1", 1, -(-picture.width // 8))[..., 0], axis=1)
        white = bits[:, : picture.width] == (name == "monob")
        return np.repeat(white[..., None], 3, axis=2).astype(np.float32), None
    if name in _FIELDS:
        return _from_fields(picture, order, *_FIELDS[name]), None

    grey = name.startswith(("gray", "ya")) and not name.startswith("yuva")
    if name in _PACKED:
        count, kind, places = _PACKED[name]
        values = _unit(_plane(picture, 0, order + kind, count), None)[..., places]
    elif match := re.fullmatch(r"(?:gray|gbrp|gbrap)(f?)(\d*)", name):
        depth = int(match[2] or 8)
        kind = f"{order}{'f' if match[1] else 'u'}{(depth + 7) // 8}"
        planes = (2, 0, 1, 3)[: len(picture.planes)] if name.startswith("gbr") else (0,)
        stack = np.concatenate([_plane(picture, plane, kind, 1) for plane in planes], axis=2)
        values = _unit(stack, depth)
    elif picture.format.is_rgb:  # no known format; FFmpeg's conversion is the best there is
        wide = picture.reformat(format="rgba64le" if has_alpha(picture) else "rgb48le")
        values = _unit(wide.to_ndarray(), None)
    else:
        return _from_ycc(picture), _plane_alpha(picture) if has_alpha(picture) else None
    if grey:
        values = values[..., [0, 0, 0, 1][: values.shape[2] + 2]]
        bits = picture.format.components[0].bits
        if bits <= 16 and "f" not in name and _limited_grey(picture, codec):
            values[..., :3] = values[..., :3] * ((2**bits - 1) / 2 ** (bits - 8) / 219) - 16 / 219
    alpha = np.ascontiguousarray(values[..., 3]) if values.shape[2] == 4 else None
    return np.ascontiguousarray(values[..., :3]), alpha


def has_alpha(picture: Any) -> bool:
    """Returns whether a picture's format has alpha; a palette's colours show it only when read."""
    return any(component.is_alpha for component in picture.format.components)


def _plane(
    picture: Any, index: int, kind: str, channels: int, width: int | None = None
) -> np.ndarray:
    """Returns the numbers of a plane `[h, w, channels]`, top row first, without its padding."""
    plane = picture.planes[index]
    width = plane.width if width is None else width
    rows = np.frombuffer(plane, np.uint8).reshape(plane.height, abs(plane.line_size))
    if plane.line_size < 0:  # stored from the bottom up
        rows = rows[::-1]
    size = width * channels * np.dtype(kind).itemsize
    return np.ascontiguousarray(rows[:, :size]).view(kind).reshape(plane.height, width, channels)


def _unit(codes: np.ndarray, bits: int | None) -> np.ndarray:
    """Scales integer codes of some bits (None: all of their type) to 0..1; keeps floats."""
    if codes.dtype.kind == "f":
        return codes.astype(np.float32)
    top = 2 ** (bits or 8 * codes.dtype.itemsize) - 1
    return codes.astype(np.float32) * np.float32(1 / top)


def _from_fields(picture: Any, order: str, kind: str, *fields: tuple[int, int]) -> np.ndarray:
    numbers = _plane(picture, 0, order + kind, 1)
    channels = [_unit((numbers >> low) & (2**bits - 1), bits) for low, bits in fields]
    return np.concatenate(channels, axis=2)


def _from_palette(picture: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Looks colours up; alpha is None where every used colour is opaque."""
    argb = np.frombuffer(picture.planes[1], np.uint32)[:256]
    table = np.stack([(argb >> shift) & 255 for shift in (16, 8, 0, 24)], axis=1)
    codes = table.astype(np.uint8)[_plane(picture, 0, "u1", 1)[..., 0]]
    values = _unit(codes, None)
    alpha = None if codes[..., 3].min() == 255 else np.ascontiguousarray(values[..., 3])
    return np.ascontiguousarray(values[..., :3]), alpha


def _plane_alpha(picture: Any) -> np.ndarray:
    """Returns the alpha of a Y'CbCr picture, 0..1: always full range."""
    bits = picture.format.components[3].bits
    if not re.match(r"yuva4\d\dp", picture.format.name):  # packed
        picture = picture.reformat(format="yuva444p" if bits == 8 else "yuva444p16le")
        bits = 8 if bits == 8 else 16
    order = ">" if picture.format.is_big_endian else "<"
    return _unit(_plane(picture, 3, f"{order}u{(bits + 7) // 8}", 1), bits)[..., 0]


def _limited_grey(picture: Any, codec: str) -> bool:
    if picture.color_range == ColorRange.UNSPECIFIED:
        return codec in _VIDEO_LEVELS
    return bool(picture.color_range == ColorRange.MPEG)


def _from_ycc(picture: Any) -> np.ndarray:
    """Converts Y'CbCr to float32 `[H, W, 3]` (ITU-R BT.601, BT.709, BT.2020)."""
    # With equal ranges on both sides FFmpeg only shifts n-bit codes up to 16 bits. If both are
    # declared limited, that holds for full range too, except for pixel formats that are full range
    # by name: there luma is stretched to 65535 if chroma has luma's size.
    bits = picture.format.components[0].bits
    name = picture.format.name
    declared = ColorRange.JPEG if name.startswith("yuvj") else ColorRange.MPEG
    alpha = has_alpha(picture)
    codes = picture.reformat(
        format="yuva444p16le" if alpha else "yuv444p16le",
        src_colorspace=Colorspace.ITU709,  # the same on both sides: no conversion
        dst_colorspace=Colorspace.ITU709,
        src_color_range=declared,
        dst_color_range=declared,
        interpolation=Interpolation.BILINEAR | Interpolation.ACCURATE_RND,
    ).to_ndarray()
    white = (2**bits - 1) << (16 - bits)
    stretch = white / 65535 if name.startswith("yuvj444") else 1.0
    if picture.color_range == ColorRange.JPEG or name.startswith("yuvj"):
        black, luma, chroma = 0.0, 1 / white, 1 / white
    else:
        black, luma, chroma = 16 << 8, 1 / (219 << 8), 1 / (224 << 8)
    from_ycc = _matrix(picture)
    matrix = from_ycc * [luma * stretch, chroma, chroma]
    offset = -from_ycc @ [black * luma, chroma * 2**15, chroma * 2**15]
    full = np.zeros((3 + alpha, 4 + alpha))  # OpenCV rounds 3 and 4 channels differently
    full[:3, :3], full[:3, -1] = matrix, offset
    return cv2.transform(codes.astype(np.float32), full.astype(np.float32))[..., :3]


def _matrix(picture: Any) -> np.ndarray:
    """Returns Y', Cb, Cr to R', G', B' by tag; untagged, Rec.709 from 720 lines up, 601 below."""
    if int(picture.colorspace) == 8:  # YCgCo (H.273): Cb holds Cg, Cr holds Co
        return np.array([[1, -1, 1], [1, 1, 0], [1, -1, -1]])
    rec709, rec601 = (0.2126, 0.0722), (0.299, 0.114)
    by_tag = {1: rec709, 4: (0.3, 0.11), 5: rec601, 6: rec601, 7: (0.212, 0.087)}
    by_tag |= {9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
    high = picture.width >= 1280 or picture.height >= 720
    kr, kb = by_tag.get(int(picture.colorspace), rec709 if high else rec601)
    kg = 1 - kr - kb
    return np.array(
        [
            [1, 0, 2 * (1 - kr)],
            [1, -2 * (1 - kb) * kb / kg, -2 * (1 - kr) * kr / kg],
            [1, 2 * (1 - kb), 0],
        ]
    )
