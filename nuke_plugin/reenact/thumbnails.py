"""The picture of a character, beside its file, as nodes and the panel show it."""

import struct
import zlib
from pathlib import Path
from typing import Any, Dict

from reenact.container import PathLike, open_container
from reenact.files import write_file


def picture_path(character: PathLike) -> Path:
    """Returns where a character's picture is, if one was made."""
    path = Path(character)
    return path.with_name(f"{path.name}.png")  # `anna.png` may be a picture of the artist's


def make_picture(character: PathLike) -> str:
    """Writes a character's picture beside its file.

    Returns:
        HTML that shows it in a text knob of Nuke.

    Raises:
        OSError: the character can't be read, or the picture can't be written.
        ValueError: the file is not a character.
    """
    with open_container(character, "thumbnail") as (header, read):
        height, width, _ = header["thumbnail"]["shape"]
        rgb = read("thumbnail")
    path = picture_path(character)
    write_file(path, _png(width, height, rgb), durable=False)  # it is made again whenever needed
    return f'<img src="{path.as_posix()}" width="128">'


def character_knobs(character: Path) -> Dict[str, Any]:
    """Returns the knobs that show a character; without a picture where none can be made."""
    try:
        picture = make_picture(character)
    except (OSError, ValueError):  # the character is usable without one
        picture = ""
    return {"character": character, "thumbnail": picture}


def _png(width: int, height: int, rgb: bytes) -> bytes:
    """Encodes 8-bit RGB, rows from the top, as PNG."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    rows = b"".join(b"\0" + rgb[i : i + 3 * width] for i in range(0, 3 * width * height, 3 * width))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part)
        for part in ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    )
