"""Solving a batch of frames: initial guess, then optimiser."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from core.face.keypoints import GROUPS, KEYPOINTS
from core.face.landmarks import Observation
from core.solve.context import SolveContext, Target
from core.solve.initial import add_noise, initial_weights, neighbour_weights, secant_refine
from core.solve.latent_space import to_raw
from core.solve.latent_track import FrameState, LatentTrack, Phase
from core.solve.observe import DrivingObserver, observe_codes
from core.solve.optimise import optimise
from core.solve.settings import PARTS
from core.solve.state import ShotState


def solve_batch(
    context: SolveContext,
    shot: ShotState,
    runs: list[np.ndarray],
    frames: np.ndarray,
    observer: DrivingObserver,
    previous: LatentTrack | None,
    progress: Callable[[float], None],
) -> None:
    """Solves some frames, with the steps of the shot's phase, and stores the results.

    Args:
        context: of the character.
        shot: solved in part; its neutral offset is taken out of the comparison.
        runs: frames with a face, by shot; neighbours are of the same one.
        frames: to be solved at once.
        observer: of the driving frames.
        previous: what parts that don't follow the driver do.
        progress: called with the batch's share that is done, in frames.
    """
    settings = context.settings
    neutral_offset = torch.from_numpy(shot.neutral_offset).to(context.keypoints)
    with torch.no_grad():
        target = Target(observer.observe(shot.numbers[frames]), neutral_offset)
        neighbours: list[np.ndarray | None]
        if previous is not None and settings.keeps_parts:
            places = np.searchsorted(previous.numbers, shot.numbers[frames])
            neighbours = [None] * len(frames)  # what the parts did is far from what they are to do
            start = torch.from_numpy(previous.weights[places]).to(context.anchors)
            target = _keep_parts(context, target, start)
        else:
            neighbours = [neighbour_weights(shot, runs, frame, settings) for frame in frames]
            start = initial_weights(context, target, neighbours)
            if settings.start == "blend" and shot.phase is Phase.SOLVE:
                for i, frame in enumerate(frames):
                    if np.isfinite(shot.codes[frame]).all():  # a keyframe of the neutral pass
                        neighbours[i] = shot.weights[frame]
                        start[i] = torch.from_numpy(shot.weights[frame])
        start, crop_error = secant_refine(context, target, start)
    raw = to_raw(start)
    add_noise(raw, shot.numbers[frames], settings)
    if shot.phase is Phase.NEUTRAL:
        steps = settings.neutral_steps
    elif any(weights is None for weights in neighbours):
        steps = settings.first_steps
    else:
        steps = settings.steps
    weights, terms = optimise(context, target, raw, crop_error, steps, progress)
    shot.store(frames, weights, context.anchors, terms)
    shot.state[frames] = FrameState.SOLVED  # last: an interrupt may fall in between


def _keep_parts(context: SolveContext, target: Target, weights: Tensor) -> Target:
    """Replaces the parts that don't follow the driver by what weights `[B, L, N]` show of them."""
    present = observe_codes(context.character, weights @ context.anchors)
    groups = {group for part in context.settings.follow for group in PARTS[part]}
    follows = torch.tensor([name in groups for name, points in GROUPS.items() for _ in points])
    keypoints = torch.where(
        follows.to(context.anchors.device)[:, None],
        target.driving.keypoints,
        present.keypoints - target.neutral_offset,  # which the comparison adds again
    )
    # Of the pixels only the mouth's are compared.
    shown = target.driving if "mouth" in groups else present
    landmarks = shown.landmarks.clone()
    landmarks[:, list(KEYPOINTS)] = keypoints
    return Target(Observation(shown.pictures, landmarks), target.neutral_offset)
