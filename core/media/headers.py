"""What the headers of pictures say, also where their text is not UTF-8."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import OpenImageIO as oiio

# Formats whose orientation is applied. What DPX and EXR headers say of it is no part of the picture
# for other tools of the field.
_TURNED = ("jpeg", "tiff", "png", "hdr")
_LARGEST_HEADER = 2**26  # bytes; nothing is looked for beyond


def encoded(path: str | Path) -> Any:
    """Returns a file's name as OpenImageIO takes every name, also one that is not UTF-8."""
    return os.fsencode(path)


def last_error(source: Any) -> str:
    """Returns and clears the last error of OpenImageIO or of one of its files; empty without one.

    Its text is lost where it holds a name that is not UTF-8.
    """
    try:
        return str(source.geterror())
    except UnicodeDecodeError:
        return "it is damaged, or not a picture of its kind"


def attribute(spec: oiio.ImageSpec, name: str) -> Any:
    """Returns a header attribute; None where it is missing, or is text that is not UTF-8."""
    try:
        return spec.getattribute(name)
    except UnicodeDecodeError:
        return None


def metadata(spec: oiio.ImageSpec) -> dict[str, object]:
    """Returns the header's attributes, but for those whose text is not UTF-8."""
    found: dict[str, object] = {}
    for one in spec.extra_attribs:
        with suppress(UnicodeDecodeError):
            found[one.name] = one.value
    return found


def channel_names(picture: oiio.ImageInput, spec: oiio.ImageSpec) -> list[str]:
    """Returns the names of the channels.

    Those that are not UTF-8 are "?". Two channels of a grey TIFF, the second of which it calls
    neither alpha nor anything else, are "Y" and "?".
    """
    names = []
    for i in range(spec.nchannels):
        try:
            names.append(spec.channel_name(i))
        except UnicodeDecodeError:
            names.append("?")
    if names == ["R", "G"] and picture.format_name() == "tiff":
        return ["Y", "?"]
    return names


def orientation_of(kind: str, spec: oiio.ImageSpec) -> int:
    """Returns how a picture is stored, by EXIF's number: 1 is upright.

    Args:
        kind: OpenImageIO's name of the format.
        spec: its header.
    """
    stored = attribute(spec, "Orientation")
    if kind not in _TURNED or stored not in range(1, 9):
        return 1
    if kind == "hdr":  # OpenImageIO takes these two for each other
        return {6: 8, 8: 6}.get(stored, stored)
    return int(stored)


def compressions(path: str) -> Iterator[int]:
    """Yields the compression of each part of an EXR, by the file format's numbers.

    Ends early where a header is damaged, and at once for any other file.
    """
    with open(path, "rb") as file:
        head = file.read(8)
        if len(head) < 8 or head[:4] != b"v/1\x01":
            return
        several = bool(head[5] & 0x10)
        name = _text(file)
        while name:
            while name and file.tell() < _LARGEST_HEADER:
                kind = _text(file)
                size = int.from_bytes(file.read(4), "little", signed=True)
                if not kind or size < 0:
                    return
                if name == b"compression" and kind == b"compression" and size == 1:
                    yield from file.read(1)
                else:
                    file.seek(size, os.SEEK_CUR)
                name = _text(file)
            name = _text(file) if several and not name else b""


def _text(file: IO[bytes]) -> bytes:
    """Reads a text that ends with a zero, as EXR headers have them; empty at the file's end."""
    text = b""
    while (byte := file.read(1)) not in (b"", b"\0") and len(text) < 256:
        text += byte
    return text
