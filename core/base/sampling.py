"""Indices spread over a range."""

import numpy as np


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """At most `wanted` indices of `count`, evenly spread, the first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int)).tolist()
