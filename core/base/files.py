"""Atomic writing, and names, of files."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.base.errors import ReenactError


class NotWritableError(ReenactError):
    """A file can't be written at its path."""


def check_writable(path: str | Path) -> None:
    """Checks that a file can be written, before work is spent on it; leaves nothing behind.

    Args:
        path: of the file; it and its folders need not exist.

    Raises:
        NotWritableError: the path is a folder, lies below a file or on no disk, or its folder
            takes no files of this user.
    """
    folder, missing = _existing_folder(path)
    name = os.path.basename(path)
    if os.path.isdir(os.path.join(folder, *missing, name)):
        raise NotWritableError(f"{path} is a folder. Name a file.")
    try:
        # Not by the rights alone: some disks refuse what the rights allow.
        with tempfile.TemporaryFile(dir=folder):
            pass
        for each in (*missing, name, _temporary(Path(name)).name):
            with contextlib.suppress(FileNotFoundError):
                os.lstat(os.path.join(folder, each))  # fails if the name is too long
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return  # room may be made before the work is done
        reason = "it takes no files" if error.errno == errno.ENOENT else error.strerror or error
        raise NotWritableError(
            f"{path} can't be written in {folder}: {reason}. Choose another place."
        ) from error


def _existing_folder(path: str | Path) -> tuple[str, list[str]]:
    """Returns the last folder on the way to a file that exists, and the names of those to make.

    The way is followed as the system does: ".." behind a link is beside what the link leads to.

    Raises:
        NotWritableError: there is a file or a link to nowhere on the way.
    """
    anchor, *parts = Path(os.getcwd(), path).parts[:-1] or (os.getcwd(),)
    folder, missing = anchor, list[str]()
    for part in parts:
        if missing and part == "..":
            missing.pop()  # what will be made is no link
            continue
        here = os.path.join(folder, *missing, part)
        if missing or not os.path.lexists(here):
            missing.append(part)
        elif os.path.isdir(here):
            folder = here
        else:
            what = "is a file" if os.path.exists(here) else "leads nowhere"
            raise NotWritableError(f"{path} can't be written: {here} {what}. Choose another place.")
    if not os.path.isdir(folder):
        raise NotWritableError(f"{path} can't be written: there is no {folder}.")
    return folder, missing


def file_size(path: str | Path) -> int:
    """Returns the size of a regular file, in bytes, without opening it.

    Raises:
        OSError: there is none, or it is a pipe, which would wait for a writer for ever, a device
            or a socket; `strerror` says which.
    """
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        kind = "pipe" if stat.S_ISFIFO(status.st_mode) else "device or socket"
        raise OSError(errno.EINVAL, f"it is a {kind}, not a file; name a file", str(path))
    return status.st_size


def read_json(path: str | Path) -> Any:
    """Reads a JSON file that a person may have written: with or without a byte order mark.

    Raises:
        OSError: as `file_size`, or it can't be read.
        ValueError, RecursionError: it is no JSON.
    """
    file_size(path)  # a pipe would be waited for
    return json.loads(Path(path).read_text(encoding="utf-8-sig"))


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Writes a file so that it appears whole, or not at all.

    The temporary file is hidden, keeps the suffix (writers pick their format by it) and lies in
    the same folder, so that the rename is atomic; missing folders are made. On leaving the block
    it is flushed to disk and renamed over `path`; if the block raises, it is removed and `path` is
    unchanged. A process killed inside the block leaves only the hidden file.

    Args:
        path: of the file.

    Yields:
        The temporary path to write to.

    Raises:
        OSError: the file system refuses; `path` is unchanged.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "new" / "note.txt"
        ...     with atomic_write(path) as temporary:
        ...         _ = temporary.write_text("whole")
        ...     print(path.read_text(), len(list(path.parent.iterdir())))
        whole 1
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        _flush(temporary, os.O_RDWR)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # Windows has no handle for a folder
        _flush(path.parent, os.O_RDONLY)


def next_version(path: str | Path) -> Path:
    """Returns the path of a file's next version: `shot_v001.latents` after `shot.latents`.

    Args:
        path: any version of the file, with or without a number.

    Returns:
        A path beside it, one number above the highest that exists.
    """
    path = Path(path)
    stem = re.sub(r"_v\d+$", "", path.stem)
    pattern = re.compile(rf"{re.escape(stem)}_v(\d+){re.escape(path.suffix)}")
    matches = [pattern.fullmatch(other.name) for other in path.absolute().parent.iterdir()]
    last = max((int(match[1]) for match in matches if match), default=0)
    return path.with_name(f"{stem}_v{last + 1:03d}{path.suffix}")


def work_folder(output: Path) -> Path:
    """Returns the folder beside an output that holds its unfinished work, and is removed after."""
    return output.with_name(output.name + ".work")


def _temporary(path: Path) -> Path:
    # Not by tempfile: its files are private (0600), and renders are read by other users.
    return path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}.tmp{path.suffix}")


def _flush(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
