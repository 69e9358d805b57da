"""Even sampling of indices."""

import numpy as np


def evenly_spaced(count: int, limit: int) -> list[int]:
    """Samples indices evenly, the first and the last among them.

    Args:
        count: of elements.
        limit: of indices.

    Returns:
        Increasing indices below `count`.

    Example:
        >>> evenly_spaced(10, 4)
        [0, 3, 6, 9]
        >>> evenly_spaced(3, 8)
        [0, 1, 2]
    """
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(int)).tolist()
