"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; `path` appears whole, or not at all.

    The temporary file is hidden, keeps the suffix (writers pick their format by it) and lies in
    the same folder, so that the rename is atomic; missing folders are made. On leaving the block
    it is flushed to disk and renamed over `path`; if the block raises, it is removed and what
    stood at `path` before stays. A process killed inside the block leaves only the hidden file.

    Raises:
        OSError: what the file system said; `path` is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not by tempfile: its files are private (0600), and renders are read by other users.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}.tmp{path.suffix}")
    try:
        yield temporary
        _flush(temporary, os.O_RDWR)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # Windows has no handle for a folder
        _flush(path.parent, os.O_RDONLY)


def _flush(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
