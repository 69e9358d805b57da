"""What a file is by its first bytes, whatever it is called."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_START = 1024  # bytes that are looked at

# Name with its article, usual suffix, and first bytes, as a regular expression. The suffix is empty
# where the kind is not read.
_PICTURES = (
    ("an OpenEXR picture", ".exr", rb"v/1\x01"),
    ("a PNG picture", ".png", rb"\x89PNG"),
    ("a JPEG picture", ".jpg", rb"\xff\xd8\xff"),
    ("a TIFF picture", ".tif", rb"II[*+]\0|MM\0[*+]"),
    ("a DPX picture", ".dpx", rb"SDPX|XPDS"),
    ("a Cineon picture", ".cin", rb"\x80\x2a\x5f\xd7|\xd7\x5f\x2a\x80"),
    ("a Radiance HDR picture", ".hdr", rb"#\?(RADIANCE|RGBE)"),
    ("a HEIC or AVIF picture", "", rb".{4}ftyp(hei|hev|mif1|msf1|avi)"),
    ("a JPEG 2000 picture", "", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    ("a Photoshop file", "", rb"8BPS"),
    ("a WebP picture", "", rb"RIFF.{4}WEBP"),
)
_MOVIES = (
    ("a QuickTime movie", ".mov", rb".{4}ftypqt  |.{4}(moov|mdat|wide|pnot|free|skip|moof|styp)"),
    ("an MP4 movie", ".mp4", rb".{4}ftyp"),
    ("a Matroska or WebM movie", ".mkv", rb"\x1a\x45\xdf\xa3"),
    ("an AVI movie", ".avi", rb"RIFF.{4}AVI "),
    ("an MXF movie", ".mxf", rb"\x06\x0e\x2b\x34"),
    # Packets of 188 bytes, or of 192 that start with a time.
    ("an MPEG transport stream", ".ts", rb"G.{187}G.{187}G|.{4}G.{191}G.{191}G"),
    ("an MPEG movie", ".mpg", rb"\0\0\x01\xba"),
    ("a GIF movie", ".gif", rb"GIF8[79]a"),
    ("a Windows Media movie", ".wmv", rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    ("a Flash movie", ".flv", rb"FLV\x01"),
    ("a NUT movie", "", rb"nut/multimedia container"),
    ("an Ogg movie", "", rb"OggS"),
    ("a REDCODE movie", "", rb".{4}RED[12]"),
    ("a RealMedia movie", "", rb"\.RMF"),
    ("a YUV4MPEG stream", "", rb"YUV4MPEG2"),
    ("an IVF movie", "", rb"DKIF"),
    ("a bare MPEG-2 stream", "", rb"\0\0\x01\xb3"),
    ("a bare H.264 or HEVC stream", "", rb"\0\0\0\x01[\x09\x27\x47\x67\x40\x42\x44\x46]"),
)
_OTHERS = (
    ("a ZIP archive", "", rb"PK\x03\x04"),
    ("a gzip archive", "", rb"\x1f\x8b"),
    ("a PDF", "", rb"%PDF"),
    ("a sound file", "", rb"RIFF.{4}WAVE|ID3|fLaC"),
    ("a NumPy array", "", rb"\x93NUMPY"),
    ("a web page", "", rb"\s*<(!doctype html|html)"),
    ("a file of zeros, as where a copy failed", "", rb"\0{256}\0*\Z"),
)


@dataclass(frozen=True)
class Content:
    """What a file is.

    Attributes:
        name: with its article: "an MP4 movie".
        kind: "picture", "movie" or "other".
        suffix: the usual one of what is read here; empty for what is not.
    """

    name: str
    kind: str
    suffix: str = ""


def content_of(path: str | Path) -> Content | None:
    """Returns what a file is; None where its first bytes do not say.

    Raises:
        OSError: it can't be read.
    """
    with open(path, "rb") as file:
        start = file.read(_START)
    if not start:
        return Content("an empty file", "other")
    for kind, known in (("picture", _PICTURES), ("movie", _MOVIES), ("other", _OTHERS)):
        for name, suffix, first in known:
            if re.match(first, start, re.DOTALL | re.IGNORECASE):
                return Content(name, kind, suffix)
    if all(byte >= 32 or byte in b"\t\n\r\f" for byte in start):
        return Content("a text file", "other")
    return None


def mismatch(path: str | Path, wanted: str) -> str | None:
    """Returns what is wrong, and what to do, where a file is not of the kind that its name says.

    Args:
        path: the file.
        wanted: "picture" or "movie".

    Returns:
        The rest of a sentence after the file's name; None where the file is of that kind, or its
        first bytes do not say of which.
    """
    content = content_of(path)
    if content is None or (content.kind == wanted and content.suffix):
        return None
    if content.name == "an empty file":
        return "is empty. If it is still being written or copied, wait for it; else make it again."
    if content.suffix:
        name = Path(path).with_suffix(content.suffix).name
        return f"is {content.name}, no {wanted}. Rename it to {name}, or choose the {wanted}."
    if content.kind == "picture":
        return f"is {content.name}, which is not read here. Write it as EXR, TIFF or PNG."
    if content.kind == "movie":
        return (
            f"is {content.name}, which is not read here. Export EXR frames from it, or a ProRes or "
            "H.264 movie."
        )
    return f"is {content.name}, no {wanted}. Choose the {wanted}, or copy it again."
