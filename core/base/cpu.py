"""What a process needs for training on the CPU to run at its full speed."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


@contextmanager
def training() -> Iterator[None]:
    """While training runs, numbers below the normal range count as zero; also a decorator.

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
    """Tells glibc's malloc to keep large blocks, for as long as the process lives.

    It gives them back to the system and asks for them again in every step, which at random makes
    steps many times slower.
    """
    mallopt = None
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other libcs have none
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 2**28)
