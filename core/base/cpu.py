"""Settings of the process that let training on the CPU run at full speed."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


@contextmanager
def training() -> Iterator[None]:
    """Flushes denormal numbers to zero while training runs; also usable as a decorator.

    Dying activations leave such numbers behind, and CPUs are many times slower on them.
    """
    _keep_memory()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@cache
def _keep_memory() -> None:
    """Makes glibc's malloc keep large blocks, for the life of the process.

    By default it returns them to the system and requests them again in every step, which at random
    makes steps many times slower.
    """
    mallopt = None
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other libcs have none
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 2**28)
