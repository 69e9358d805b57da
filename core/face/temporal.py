"""Frames that belong together in time: runs within a shot, and Gaussian weights around a frame."""

import numpy as np

# Frames without a face that are bridged by interpolation; a longer gap ends the run.
MAX_GAP = 5


def shot_runs(numbers: np.ndarray, cut: np.ndarray, valid: np.ndarray) -> list[np.ndarray]:
    """Splits the valid frames into runs within a shot.

    Args:
        numbers: `[T]` frame numbers, increasing.
        cut: `[T]` bool, true on the first frame of a new shot.
        valid: `[T]` bool.

    Returns:
        Indices of the valid frames, split at cuts and at gaps longer than `MAX_GAP`, one array
        each.
    """
    indices = np.flatnonzero(valid)
    shot = np.cumsum(cut)[indices]
    gap = np.diff(numbers[indices]) - 1
    splits = np.flatnonzero((gap > MAX_GAP) | (np.diff(shot) > 0)) + 1
    return [run for run in np.split(indices, splits) if len(run)]


def near_in_time(
    numbers: np.ndarray, cut: np.ndarray, frame: int, sigma: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the frames around one of them and their Gaussian weights, never across a cut.

    Args:
        numbers: `[T]` frame numbers, increasing; they may have gaps.
        cut: `[T]` bool, true on the first frame of a new shot.
        frame: index of the frame in the middle.
        sigma: of the Gaussian, in frames, positive; it ends at 3 sigma.

    Returns:
        `[K]` their indices, increasing, and `[K]` their weights, which add up to 1.
    """
    shot = np.cumsum(cut)
    distance = numbers - numbers[frame]
    near = np.flatnonzero((shot == shot[frame]) & (np.abs(distance) <= 3 * sigma))
    gauss = np.exp(-0.5 * (distance[near] / sigma) ** 2)
    return near, gauss / gauss.sum()
