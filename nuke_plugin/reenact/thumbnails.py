"""The picture of a character, beside its file: what nodes and the panel show of it."""

import struct
import zlib
from pathlib import Path

from reenact.client import write_file
from reenact.sealed import PathLike, opened


def path_of(character: PathLike) -> Path:
    """Where a character's picture is, if it was made."""
    return Path(character).with_suffix(".png")


def make(character: PathLike) -> str:
    """Writes a character's picture beside it; how a text of Nuke's shows it.

    Raises:
        OSError: the character can't be read, or the picture not be written.
        ValueError: it is no character.
    """
    with opened(character, "thumbnail") as (header, read):
        height, width, _ = header["thumbnail"]["shape"]
        rgb = read("thumbnail")
    path = path_of(character)
    write_file(path, _png(width, height, rgb))
    return f'<img src="{path.as_posix()}" width="128">'


def _png(width: int, height: int, rgb: bytes) -> bytes:
    """Of 8-bit RGB, rows from the top."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    rows = b"".join(b"\0" + rgb[i : i + 3 * width] for i in range(0, 3 * width * height, 3 * width))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part)
        for part in ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    )
