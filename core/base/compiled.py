"""The compiler of kernels: loops over pixels and triangles, in machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Returns numba's decorator, which keeps machine code between runs where it has a place.

    That is beside the sources, else in the user's cache. Where neither may be written to, as in an
    installation of others and without a home, each process compiles anew.

    Args:
        options: numba's, such as `fastmath`.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, nogil=True, **options)(function)
        except (RuntimeError, OSError):  # no locator of a cache fits
            return njit(nogil=True, **options)(function)

    return decorate
