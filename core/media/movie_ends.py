"""Whether a movie's file ends before its container does, as where copying was interrupted.

Containers say how long their parts are, so the last part of a whole file ends where the file does.
Parts are stepped over by their headers; nothing is decoded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import BinaryIO, Literal

from core.media.contents import content_of

End = Literal["whole", "index", "pictures"]

# Name, start of the content, end; None where there is no part.
_Part = tuple[bytes, int, int]
_Header = Callable[[BinaryIO, int], _Part | None]

# Boxes of MOV and MP4 that may come last. What others call their bytes behind them is no box.
_LAST_BOXES = {b"moov", b"mdat", b"moof", b"mfra", b"free", b"skip", b"wide", b"uuid", b"udta"}
_SEGMENT, _CLUSTER = bytes.fromhex("18538067"), bytes.fromhex("1f43b675")  # RFC 9559
# Elements in the file, in a segment and in a cluster; bytes that follow a movie are none.
_ELEMENTS = {bytes.fromhex(each) for each in ("1a45dfa3", "114d9b74", "1549a966", "1654ae6b")}
_ELEMENTS |= {bytes.fromhex(each) for each in ("1c53bb6b", "1941a469", "1043a770", "1254c367")}
_ELEMENTS |= {bytes.fromhex(each) for each in ("e7", "a3", "a0", "a7", "ab", "5854", "ec", "bf")}
_ELEMENTS |= {_SEGMENT, _CLUSTER}
_MXF_KEY = bytes.fromhex("060e2b34")
_FOOTER = bytes.fromhex("060e2b34020501010d01020101")  # SMPTE 377-1: of any partition; then 4
_ASF_INDEXES = (bytes.fromhex("90080033b1e5cf11"), bytes.fromhex("d329e2d6da35d111"))
_SYNC_BYTES = 5  # of a transport stream, by which the size of its packets is told
_TAIL = 1 << 18  # bytes; packs of MPEG movies are shorter


def file_end(path: str) -> End:
    """Returns whether a movie's file is whole, or which part of it the end is missing of.

    Returns:
        "whole", also where the container does not say; "index" where all the pictures are there;
        "pictures" where some may be missing, and the last one may be incomplete.
    """
    content = content_of(path)
    check = _CHECKS.get(content.suffix) if content is not None else None
    if check is None:
        return "whole"
    with open(path, "rb") as file:
        return check(file, os.fstat(file.fileno()).st_size)


def ends_open(path: str) -> bool:
    """Returns whether the container does not say how long a picture is: it ends at the next one."""
    content = content_of(path)
    return content is not None and content.suffix in (".ts", ".mpg", ".gif")


def _bytes(file: BinaryIO, at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)


def _parts(file: BinaryIO, at: int, size: int, header: _Header) -> Iterator[_Part]:
    """Yields the parts from a place on; the last one may end behind the file."""
    while at < size and (part := header(file, at)) is not None:
        yield part
        at = part[2]


def _box(file: BinaryIO, at: int) -> _Part | None:
    """ISO 14496-12, 4.2: a length, a name, and a longer length where the first is 1."""
    head = _bytes(file, at, 16)
    length = int.from_bytes(head[:4], "big")
    if length == 1:
        length = int.from_bytes(head[8:], "big")
    if len(head) < 8 or length < 8:  # 0: it ends where the file does
        return None
    return head[4:8], at + 8, at + length


def _mov(file: BinaryIO, size: int) -> End:
    for name, _, end in _parts(file, 0, size, _box):
        if end > size and name in _LAST_BOXES:
            return "pictures" if name in (b"mdat", b"moof") else "index"
    return "whole"


def _chunk(file: BinaryIO, at: int) -> _Part | None:
    """A chunk of RIFF: a name and a length."""
    head = _bytes(file, at, 8)
    length = int.from_bytes(head[4:], "little")
    return (head[:4], at + 8, at + 8 + length + length % 2) if len(head) == 8 else None


def _avi(file: BinaryIO, size: int) -> End:
    for name, start, end in _parts(file, 0, size, _chunk):
        if name != b"RIFF":
            break
        if end > size and end != size + 8:  # some writers count the chunk's own header
            for part, inside, last in _parts(file, start + 4, size, _chunk):
                if part == b"LIST" and last <= size and _bytes(file, inside, 4) == b"movi":
                    return "index"
            return "pictures"
    return "whole"


def _element(file: BinaryIO, at: int) -> _Part | None:
    """RFC 8794: a name and a length; their first bytes say how long these are."""
    head = _bytes(file, at, 12)
    width = 9 - head[0].bit_length()
    wider = 9 - head[width].bit_length() if width < len(head) else 1
    name, start = head[:width], at + width + wider
    if wider > 8 or name not in _ELEMENTS:
        return None
    marker = 1 << 7 * wider
    length = int.from_bytes(head[width : width + wider], "big") - marker
    if length == marker - 1:  # unknown, as in a live recording: what it holds follows
        return (name, start, start) if name in (_SEGMENT, _CLUSTER) else None
    return name, start, start + max(length, 0)


def _matroska(file: BinaryIO, size: int) -> End:
    return "pictures" if any(e > size for _, _, e in _parts(file, 0, size, _element)) else "whole"


def _klv(file: BinaryIO, at: int) -> _Part | None:
    """SMPTE 336: a key of 16 bytes, and a length of one byte or of as many as that one says."""
    head = _bytes(file, at, 25)
    if not head.startswith(_MXF_KEY[: len(head)]):
        return None
    if len(head) < 25:
        head += bytes(25 - len(head))
    width = head[16] & 0x7F if head[16] & 0x80 else 0
    length = int.from_bytes(head[17 : 17 + width], "big") if width else head[16]
    return head[:16], at + 17 + width, at + 17 + width + length


def _mxf(file: BinaryIO, size: int) -> End:
    footer, at = False, 0
    for name, _, end in _parts(file, 0, size, _klv):
        footer, at = footer or (name.startswith(_FOOTER) and name[13:14] == b"\4"), end
    if at < size:  # bytes that are no key
        return "whole"
    if not footer:
        return "pictures"
    return "index" if at > size else "whole"


def _object(file: BinaryIO, at: int) -> _Part | None:
    """ASF, 1.1: 16 bytes of a name, then the length."""
    head = _bytes(file, at, 24)
    length = int.from_bytes(head[16:], "little") if len(head) == 24 else 24
    return (head[:8], at + 24, at + length) if length >= 24 else None


def _asf(file: BinaryIO, size: int) -> End:
    for name, _, end in _parts(file, 0, size, _object):
        if end > size:
            return "index" if name in _ASF_INDEXES else "pictures"
    return "whole"


def _flv(file: BinaryIO, size: int) -> End:
    """The last four bytes say how long the tag before them is, and so does the tag."""
    length = int.from_bytes(_bytes(file, max(size - 4, 0), 4), "big")
    if not 11 <= length <= size - 4:
        return "pictures"
    tag = _bytes(file, size - 4 - length, 4)
    return "whole" if int.from_bytes(tag[1:], "big") + 11 == length else "pictures"


def _transport(file: BinaryIO, size: int) -> End:
    for first, length in ((0, 188), (4, 192), (0, 204)):
        places = range(first, min(size, _SYNC_BYTES * length), length)
        if all(_bytes(file, place, 1) == b"G" for place in places):
            return "pictures" if size % length else "whole"
    return "whole"


def _pack(file: BinaryIO, at: int) -> _Part | None:
    """ISO 13818-1, 2.5.3: a pack's header, or a packet with its length."""
    head = _bytes(file, at, 14)
    if not head.startswith(b"\0\0\1"[: len(head)]):
        return None
    name = head[3:4]
    if name == b"\xb9":  # the end
        return name, at + 4, at + 4
    if name == b"\xba":
        stuffing = head[13] & 7 if len(head) == 14 else 0
        length = 14 + stuffing if len(head) > 4 and head[4] >> 6 == 1 else 12
    else:
        length = 6 + int.from_bytes(head[4:6], "big")
    return name, at + 4, at + length


def _program(file: BinaryIO, size: int) -> End:
    tail = max(size - _TAIL, 0)
    last = _bytes(file, tail, _TAIL).rfind(b"\0\0\1\xba")
    ends = [end for _, _, end in _parts(file, tail + last, size, _pack)] if last >= 0 else []
    return "pictures" if ends and ends[-1] > size else "whole"


def _gif(file: BinaryIO, size: int) -> End:
    last = _bytes(file, max(size - 64, 0), 64)
    if last.rstrip(b"\0").endswith(b";"):
        return "whole"
    return "index" if last.endswith(b"\0") else "pictures"  # pictures end with a block of none


_CHECKS: dict[str, Callable[[BinaryIO, int], End]] = {
    ".mov": _mov,
    ".mp4": _mov,
    ".avi": _avi,
    ".mkv": _matroska,
    ".mxf": _mxf,
    ".wmv": _asf,
    ".flv": _flv,
    ".ts": _transport,
    ".mpg": _program,
    ".gif": _gif,
}
