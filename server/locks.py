"""File locks that the operating system frees when their holder ends, however it ends.

Standard library only: the installer needs them before there is an environment.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.base.errors import ReenactError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


class LockHeldError(ReenactError):
    """Another process holds a lock."""


def try_lock(descriptor: int) -> bool:
    """Locks an open file without waiting.

    Returns:
        Whether the lock was taken; closing the descriptor frees it.
    """
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # past the text: a locked byte is unreadable
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return False
        raise
    return True


def _try_lock(descriptor: int, path: Path) -> bool:
    try:
        return try_lock(descriptor)
    except OSError as error:  # such as a network disk without locks
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextmanager
def exclusive_lock(path: Path, message: str, timeout: float = 0) -> Iterator[None]:
    """Holds a lock file while the block runs.

    Args:
        path: the lock file; it is made if it does not exist.
        message: the sentence of the error.
        timeout: seconds to wait for the lock.

    Raises:
        LockHeldError: another process still holds it after `timeout`.
        OSError: the file can't be written or locked there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        end = time.monotonic() + timeout
        while not _try_lock(descriptor, path):
            if time.monotonic() >= end:
                raise LockHeldError(message)
            time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)
