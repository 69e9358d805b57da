"""Content-addressed files: each lies in the store under the BLAKE2b-256 hash of its content.

    HOME/store/files/ab/ab12…

The front end and the workers add files, each by one rename, so that no other process ever sees
half of one.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from reenact import protocol
from reenact.protocol import ProtocolError, file_hash


def file_path(root: Path, hash: str) -> Path:
    """Returns the path of a stored file, whether or not the file exists.

    Args:
        root: the store's folder.
        hash: 64 hexadecimal digits.

    Raises:
        ValueError: `hash` is not one, and may not become part of a path.
    """
    if not protocol.HASH.fullmatch(hash):
        raise ValueError(f"no hash: {hash!r}")
    return root / "files" / hash[:2] / hash


def add_file(root: Path, path: Path) -> tuple[str, int]:
    """Adds a complete file to the store, as a hard link where the disk allows it.

    Args:
        root: the store's folder.
        path: the file, which must not change afterwards.

    Returns:
        Hash, and size in bytes.

    Raises:
        OSError: from the file system.
    """
    hash, size = file_hash(path)
    target = file_path(root, hash)
    if target.exists():
        return hash, size
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{hash}.{uuid.uuid4().hex[:8]}")
    try:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return hash, size


def materialize(root: Path, file: protocol.File, destination: Path) -> None:
    """Makes a stored file appear at a path, as a hard link where the disk allows it.

    Args:
        root: the store's folder.
        file: named by hash and size.
        destination: replaced if it exists; missing folders are made.

    Raises:
        ProtocolError: `corrupt`: the file is not stored, or does not match its hash and size.
        OSError: from the file system.
    """
    source = file_path(root, file.hash)
    if not source.exists() or file_hash(source) != (file.hash, file.size):
        raise ProtocolError("corrupt", "A stored file was damaged. It is sent again.", file.hash)
    destination.parent.mkdir(parents=True, exist_ok=True)
    destination.unlink(missing_ok=True)
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)
