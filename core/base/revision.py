"""What computes a result, as part of the keys by which finished results are found again."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

CORE = Path(__file__).parents[1]


@cache
def revision(folder: Path = CORE) -> str:
    """Returns the sha256 of all files of a package, in hexadecimal.

    A number that somebody has to raise after a change is forgotten some day, and results of the
    code before are given out then. Line ends don't count, so it is the same on every system.

    Args:
        folder: the package's. It is read once in a process, whose own code doesn't change either.
    """
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if path.is_file() and "__pycache__" not in path.parts:
            content = path.read_bytes().replace(b"\r\n", b"\n")
            sha.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode())
            sha.update(content)
    return sha.hexdigest()
