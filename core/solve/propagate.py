"""Propagation of better solutions from frame to frame."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from core.solve.context import SolveContext, Target
from core.solve.initial import secant_refine
from core.solve.latent_space import to_raw
from core.solve.objective import TERMS, keypoint_loss, total_loss
from core.solve.observe import DrivingObserver
from core.solve.optimise import optimise
from core.solve.schedule import split_batches
from core.solve.state import ShotState

# A frame is solved again from another's codes if they are sure to lower its loss to this share.
_SURELY = 0.95


def propagate_solutions(
    context: SolveContext,
    shot: ShotState,
    todo: np.ndarray,
    observer: DrivingObserver,
    progress: Callable[[float], None],
) -> ShotState:
    """Solves frames again from another frame's codes, where those are better than their own.

    A face that can't quite do what the driver does may have two solutions, with lips open or shut,
    and which of them a frame finds depends on its initial guess: what the driver holds would
    flicker. So the better one is passed on to all frames that show nearly the same.

    Eq. 2 is a distance: with another frame's codes, a frame's loss is at most that frame's loss
    plus the distance between the two driving frames. This bound needs no drawing.

    Args:
        context: of the character.
        shot: solved; it stays as it is, so an interrupt begins here again, with the same result.
        todo: `[F]` bool, frames that may change.
        observer: of the driving frames.
        progress: called with the share that is done, as if each sweep took half as long as the one
            before.

    Returns:
        The shot in which no frame would gain by another's codes.
    """
    shot = shot.copy()
    objective, settings = context.settings.objective, context.settings
    neutral_offset = torch.from_numpy(shot.neutral_offset).to(context.keypoints)
    frames = np.flatnonzero(todo)
    driving = observer.keypoints(shot.numbers[frames], settings.batch)
    changed, sweep = True, 0
    while changed:
        changed, sweep = False, sweep + 1
        losses = {name: torch.from_numpy(shot.losses[name]) for name in TERMS}
        loss = total_loss(losses, objective).numpy()
        pairs = []
        for frame, keypoints in zip(frames, driving, strict=True):
            distance = objective.keypoints * keypoint_loss(driving, keypoints, objective)
            bound = np.nan_to_num(loss[frames] + distance.cpu().numpy(), nan=np.inf)
            if bound.min() < _SURELY * loss[frame]:
                pairs.append((frame, frames[bound.argmin()]))
        batches = split_batches(np.array(pairs), settings.batch)
        for done, batch in enumerate(batches):
            progress(1 - (2 - done / len(batches)) / 2**sweep)
            receivers, sources = batch.T
            start = torch.from_numpy(shot.weights[sources]).to(context.anchors)
            target = Target(observer.observe(shot.numbers[receivers]), neutral_offset)
            with torch.no_grad():
                start, crop_error = secant_refine(context, target, start)
            weights, terms = optimise(context, target, to_raw(start), crop_error, settings.steps)
            better = total_loss(terms, objective).cpu().numpy() < loss[receivers]
            terms = {name: values[better] for name, values in terms.items()}
            shot.store(receivers[better], weights[better], context.anchors, terms)
            changed |= bool(better.any())
    return shot
