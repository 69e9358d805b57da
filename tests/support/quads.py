"""Quads of aligned squares for tests."""

import math

import numpy as np

SQUARE = np.array([[0, 0], [0, 1], [1, 1], [1, 0]], np.float64)  # TL, BL, BR, TR


def turned_square(x: float, y: float, side: float, turn: float) -> np.ndarray:
    """A quad around (x, y), turned clockwise on screen by `turn` radians."""
    c, s = math.cos(turn), math.sin(turn)
    return (SQUARE - 0.5) * side @ np.array([[c, s], [-s, c]]) + [x, y]
