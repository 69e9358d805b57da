"""Indices spread over a range."""

import numpy as np


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """At most `wanted` indices of `count`, evenly spread, the first and last among them.

    Example:
        >>> evenly_spaced(10, 4)
        [0, 3, 6, 9]
        >>> evenly_spaced(3, 8)
        [0, 1, 2]
    """
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int)).tolist()
