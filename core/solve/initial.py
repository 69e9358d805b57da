"""The initial guess of a frame: weights near which the optimiser begins."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from core.face.landmarks import keypoint_error
from core.solve.context import SolveContext, Target, weighted_differences
from core.solve.latent_space import nearest_weights
from core.solve.objective import keypoint_loss
from core.solve.observe import detect_corrected, single_crop_error
from core.solve.settings import SolveSettings
from core.solve.smoothing import interpolate_weights
from core.solve.state import GIVEN, ShotState

# Retrieval: how fast an anchor's share falls with its distance, as a fraction of the distance of
# the NEAR-th nearest.
_SHARPNESS = 0.12
_NEAR = 4


def retrieve(target: Tensor, keypoints: Tensor) -> Tensor:
    """Mixes the anchors that look like each frame.

    Args:
        target: `[B, 86, 3]` px, keypoints to show.
        keypoints: `[N, 86, 3]` px, those of the anchors.

    Returns:
        Weights `[B, N]`: softmax of minus the mean distance of grouped keypoints.
    """
    distance = keypoint_error(target[:, None], keypoints[None])
    near = distance.sort(1).values[:, min(_NEAR, len(keypoints)) - 1, None]
    return torch.softmax(-distance / (_SHARPNESS * near).clamp(min=1e-6), 1)


def neighbour_weights(
    shot: ShotState, runs: list[np.ndarray], frame: int, settings: SolveSettings
) -> np.ndarray | None:
    """Interpolates a frame's weights `[L, N]` from the solved frames around it.

    Args:
        shot: solved in part.
        runs: frames with a face, by shot; neighbours are of the same one.
        frame: to be solved.
        settings: say which neighbours count.

    Returns:
        None where no neighbour is solved, or the settings use none.
    """
    if settings.start in ("retrieval", "centre"):
        return None
    run = next(run for run in runs if run[0] <= frame <= run[-1])
    solved = run[np.isin(shot.state[run], GIVEN)]
    before, after = solved[solved < frame][-1:], solved[solved > frame][:1]
    if settings.start == "previous":
        return interpolate_weights(shot, frame, before)
    ends = np.concatenate([before, after])
    distance = np.abs(shot.numbers[ends] - shot.numbers[frame])
    return interpolate_weights(shot, frame, ends[distance <= settings.keyframe_every])


def initial_weights(
    context: SolveContext, target: Target, neighbours: list[np.ndarray | None]
) -> Tensor:
    """Returns weights `[B, L, N]` from retrieval and from neighbours' weights `[L, N]` or None."""
    count, layers = len(context.anchors), context.character.generator.architecture.num_ws
    start = context.settings.start
    if start in ("previous", "centre"):
        alone = context.anchors.new_full((len(neighbours), count), 1 / count)
    else:
        alone = retrieve(target.keypoints, context.keypoints)
    weights = alone[:, None].repeat(1, layers, 1)
    for i, neighbour in enumerate(neighbours):
        if neighbour is not None:
            share = 0.5 if start == "blend" else 1.0
            weights[i].lerp_(torch.from_numpy(neighbour).to(weights), share)
    return weights


def secant_refine(context: SolveContext, target: Target, start: Tensor) -> tuple[Tensor, Tensor]:
    """Moves weights `[B, L, N]` towards the target keypoints along secants, without gradients.

    A linear model of how keypoints change from anchor to anchor gives each step; what is drawn
    there gives the residual of the next one. A step that does not lower eq. 2 is halved.

    Returns:
        The best weights `[B, L, N]`, and the error of a single crop there, `[B, 478, 3]` px.
    """
    objective = context.settings.objective
    steps = context.settings.secants if objective.keypoints else 0
    wanted = target.keypoints
    lowest = start.new_full((len(start),), torch.inf)
    share = torch.ones_like(lowest)
    residual = start.new_zeros(len(start), len(context.secants))
    trial = best = start.clone()
    for step in range(steps + 1):
        if step:
            move = share[:, None] * (residual @ context.secants)
            trial = nearest_weights(best + move[:, None])
        generated = detect_corrected(context.character, trial @ context.anchors, context.crop_bias)
        if not step:
            seen = generated
        now = keypoint_loss(generated.keypoints, wanted, objective)
        better = now < lowest  # never, where it is NaN
        lowest = torch.where(better, now, lowest)
        missed = weighted_differences(wanted - generated.keypoints, objective)
        residual = torch.where(better[:, None], missed, residual)
        share = torch.where(better, share, share / 2)
        for kept, new in zip((best, *seen), (trial, *generated), strict=True):
            kept[better] = new[better]
    return best, context.crop_bias + single_crop_error(seen)


def add_noise(raw: Tensor, numbers: np.ndarray, settings: SolveSettings) -> None:
    """Adds the settings' noise to raw coordinates `[B, L, N]`, in place.

    Each frame number has a seed of its own, so that resuming gives the same numbers.
    """
    if not settings.noise:
        return
    for i, number in enumerate(numbers):
        seed = settings.seed * 1_000_003 + int(number)
        random = torch.Generator().manual_seed(seed % 2**63)
        noise = torch.randn(raw.shape[-1], generator=random)
        raw[i] += settings.noise * noise.to(raw)
