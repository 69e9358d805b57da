"""The order in which frames are solved."""

from __future__ import annotations

import numpy as np

from core.solve.settings import SolveSettings


def plan_batches(
    runs: list[np.ndarray], todo: np.ndarray, settings: SolveSettings
) -> list[np.ndarray]:
    """Divides the frames to solve into batches; each may start from the results of those before.

    Args:
        runs: frames with a face, by shot.
        todo: `[F]` bool, frames to solve.
        settings: start, keyframes and size of a batch.
    """
    pending = [run[todo[run]] for run in runs]
    pending = [run for run in pending if len(run)]
    if not pending:
        return []
    if settings.start == "previous":  # one frame of every shot at a time
        longest = max(map(len, pending))
        levels = [np.array([run[i] for run in pending if i < len(run)]) for i in range(longest)]
    elif settings.start == "blend":
        keyframes = choose_keyframes(runs, todo, settings)
        levels = [keyframes, np.setdiff1d(np.concatenate(pending), keyframes)]
    else:
        levels = [np.concatenate(pending)]
    return [batch for level in levels for batch in split_batches(level, settings.batch)]


def choose_keyframes(
    runs: list[np.ndarray], todo: np.ndarray, settings: SolveSettings
) -> np.ndarray:
    """Returns the frames that are solved first, so that the others lie between them."""
    pending = [run[todo[run]] for run in runs]
    return np.concatenate(
        [np.union1d(run[:: settings.keyframe_every], run[-1:]) for run in pending if len(run)]
    )


def split_batches(frames: np.ndarray, size: int) -> list[np.ndarray]:
    """Divides frames into batches of at most `size`, evenly: a small last one would be slow."""
    if not len(frames):
        return []
    return np.array_split(frames, -(-len(frames) // size))
