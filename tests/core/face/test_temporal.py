"""Frames that belong together in time."""

import numpy as np

from core.face import temporal


def test_near_in_time_is_a_gaussian_that_ends_at_cuts() -> None:
    numbers, cut = np.array([1, 2, 3, 4, 6, 7, 8]), np.arange(7) == 5
    near, weights = temporal.near_in_time(numbers, cut, 2, 1.2)
    assert near.tolist() == [0, 1, 2, 3, 4]
    gauss = np.exp(-0.5 * ((numbers[:5] - 3) / 1.2) ** 2)
    np.testing.assert_allclose(weights, gauss / gauss.sum())
