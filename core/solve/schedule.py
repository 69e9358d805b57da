"""The order in which frames are solved."""

from __future__ import annotations

import numpy as np

from core.solve.settings import SolveSettings


def plan_batches(
    shots: list[np.ndarray], todo: np.ndarray, settings: SolveSettings
) -> list[np.ndarray]:
    """The rows to solve, in batches; each may start from what the batches before it solved."""
    wanted = [run[todo[run]] for run in shots]
    wanted = [run for run in wanted if len(run)]
    if not wanted:
        return []
    if settings.start == "previous":  # one frame of every shot at a time
        longest = max(map(len, wanted))
        levels = [np.array([run[i] for run in wanted if i < len(run)]) for i in range(longest)]
    elif settings.start == "blend":
        keys = choose_keyframes(shots, todo, settings)
        levels = [keys, np.setdiff1d(np.concatenate(wanted), keys)]
    else:
        levels = [np.concatenate(wanted)]
    return [batch for level in levels for batch in split_batches(level, settings)]


def choose_keyframes(
    shots: list[np.ndarray], todo: np.ndarray, settings: SolveSettings
) -> np.ndarray:
    """Of the rows to solve those that are solved first, because the others lie between them."""
    wanted = [run[todo[run]] for run in shots]
    return np.concatenate(
        [np.union1d(run[:: settings.keyframe_every], run[-1:]) for run in wanted if len(run)]
    )


def split_batches(rows: np.ndarray, settings: SolveSettings) -> list[np.ndarray]:
    if not len(rows):
        return []
    return np.array_split(rows, -(-len(rows) // settings.batch))  # even: one alone costs more
