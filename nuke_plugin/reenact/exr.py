"""Reads headers of EXR files with the standard library alone."""

import io
import struct
from typing import BinaryIO, Dict, List, Tuple

from reenact.container import PathLike

Attributes = Dict[str, bytes]  # values by name, as the file holds them

_MAGIC = b"\x76\x2f\x31\x01"
_PARTS = 0x1000  # the flag of a file with several parts
_LONGEST = 1 << 20  # bytes of an attribute; longer ones, such as lists of names, are passed over


def headers(path: PathLike) -> List[Attributes]:
    """Returns the attributes of each part of an EXR, of which there is at least one.

    Raises:
        OSError: the file can't be read.
        ValueError: the file is no EXR, or is damaged.
    """
    with open(path, "rb") as file:
        if file.read(4) != _MAGIC:
            raise ValueError(f"{path} is no EXR.")
        (flags,) = struct.unpack("<I", _exactly(file, 4, path))
        parts = [_header(file, path)]
        while flags & _PARTS:
            part = _header(file, path)
            if not part:  # an empty one ends them
                break
            parts.append(part)
    return parts


def views(path: PathLike) -> List[str]:
    """Returns the views that an EXR holds; none where it names none.

    Readers that know no views find the picture of the first one.

    Raises:
        OSError, ValueError: as `headers`.
    """
    parts = headers(path)
    named = [part["view"] for part in parts if "view" in part] or _texts(
        parts[0].get("multiView", b"")
    )
    return [view.decode("utf-8", "replace") for view in dict.fromkeys(named)]


def size(part: Attributes) -> Tuple[int, int]:
    """Returns width and height of a part's display window, px.

    Raises:
        ValueError: it has none.
    """
    window = part.get("displayWindow", b"")
    if len(window) != 16:
        raise ValueError("The EXR has no display window.")
    left, top, right, bottom = struct.unpack("<4i", window)
    return right - left + 1, bottom - top + 1


def _header(file: BinaryIO, path: PathLike) -> Attributes:
    attributes: Attributes = {}
    while True:
        name = _name(file, path)
        if not name:
            return attributes
        _name(file, path)  # its type
        (size,) = struct.unpack("<i", _exactly(file, 4, path))
        if size > _LONGEST:
            file.seek(size, io.SEEK_CUR)
        else:
            attributes[name] = _exactly(file, size, path)


def _name(file: BinaryIO, path: PathLike) -> str:
    """Reads a text that ends with a zero byte."""
    letters = bytearray()
    while not letters.endswith(b"\0"):
        letters += _exactly(file, 1, path)
        if len(letters) > 256:
            raise ValueError(f"{path} is damaged.")
    return letters[:-1].decode("latin-1")


def _texts(value: bytes) -> List[bytes]:
    """Returns the texts of a list, in which the length of each precedes it."""
    texts = []
    while len(value) >= 4:
        end = 4 + int.from_bytes(value[:4], "little")
        texts.append(value[4:end])
        value = value[end:]
    return texts


def _exactly(file: BinaryIO, size: int, path: PathLike) -> bytes:
    content = file.read(size) if size >= 0 else b""
    if len(content) != size:
        raise ValueError(f"{path} is damaged.")
    return content
