"""Initial weights of a frame."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from core.face.landmarks import keypoint_error
from core.solve.latent_track import (
    LatentTrack,
)
from core.solve.settings import GIVEN, SolveSettings
from core.solve.smoothing import interpolate_weights

# Retrieval: how fast an anchor's share falls with its distance, as a fraction of the distance of
# the NEAR-th nearest.
_SHARPNESS = 0.12
_NEAR = 4


def retrieve(wanted: Tensor, keypoints: Tensor) -> Tensor:
    """The anchors that look like a frame: a first guess without any optimisation.

    Args:
        wanted: `[B, 86, 3]` px, keypoints of driving frames.
        keypoints: `[N, 86, 3]` px, those of the anchors.

    Returns:
        Weights `[B, N]`: softmax of minus the mean distance of grouped keypoints.
    """
    distance = keypoint_error(wanted[:, None], keypoints[None])
    near = distance.sort(1).values[:, min(_NEAR, len(keypoints)) - 1, None]
    return torch.softmax(-distance / (_SHARPNESS * near).clamp(min=1e-6), 1)


def neighbour_weights(
    track: LatentTrack, shots: list[np.ndarray], row: int, settings: SolveSettings
) -> np.ndarray | None:
    """Weights `[L, N]` where the solved frames around a row would have it; None without any."""
    if settings.start in ("retrieval", "centre"):
        return None
    run = next(run for run in shots if run[0] <= row <= run[-1])
    solved = run[np.isin(track.state[run], GIVEN)]
    before, after = solved[solved < row][-1:], solved[solved > row][:1]
    if settings.start == "previous":
        return interpolate_weights(track, row, before)
    ends = np.concatenate([before, after])
    distance = np.abs(track.numbers[ends] - track.numbers[row])
    return interpolate_weights(track, row, ends[distance <= settings.keyframe_every])
