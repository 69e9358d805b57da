"""What a process needs for training on the CPU to run at its full speed."""

import ctypes
import sys
from functools import cache

import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


@cache
def prepare() -> None:
    """Sets this process up, for as long as it lives; the first call counts.

    glibc's malloc gives large blocks back to the system and asks for them again in every step,
    which at random makes steps many times slower: it is told to keep them. And numbers too small
    for the normal range, which dying activations leave behind, count as zero.
    """
    torch.set_flush_denormal(True)
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other libcs have none
        if mallopt is not None:
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
            mallopt(_M_TOP_PAD, 2**28)
