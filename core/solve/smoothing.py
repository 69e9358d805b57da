"""Codes of frames without a face, and the low-pass over time."""

from __future__ import annotations

import numpy as np

from core.face.temporal import MAX_GAP, shot_runs
from core.solve.latent_track import FrameState, LatentTrack
from core.solve.state import GIVEN, ShotState


def interpolate_weights(shot: ShotState, frame: int, solved: np.ndarray) -> np.ndarray | None:
    """Interpolates a frame's weights `[L, N]` linearly by frame numbers.

    Args:
        shot: solved in part.
        frame: to be interpolated.
        solved: none, one or two solved frames; with one its weights are held, with none there is
            no result.
    """
    if not len(solved):
        return None
    weights = shot.weights[solved]
    if len(solved) == 1:
        return weights[0]
    a, b = shot.numbers[solved]
    share = np.float32((shot.numbers[frame] - a) / (b - a))
    return (1 - share) * weights[0] + share * weights[1]


def fill_missing(shot: ShotState, todo: np.ndarray, anchors: np.ndarray) -> None:
    """Fills in codes of frames without a face, in place.

    A short gap is interpolated. In a long one, and at the ends of a shot, the nearest solved frame
    is held; a shot without a face gets the centre of P.

    Args:
        shot: with all frames solved that have a face.
        todo: `[F]` bool, frames that may change.
        anchors: `[N, 512]`.
    """
    index = np.cumsum(shot.cut)  # of the shot that a frame is in
    solved = np.isin(shot.state, GIVEN)
    for frame in np.flatnonzero(todo & ~solved):
        around = np.flatnonzero(solved & (index == index[frame]))
        before, after = around[around < frame][-1:], around[around > frame][:1]
        ends = np.concatenate([before, after])
        gap = np.diff(shot.numbers[ends]) - 1
        if len(ends) == 2 and gap[0] > MAX_GAP:
            ends = ends[[np.abs(shot.numbers[ends] - shot.numbers[frame]).argmin()]]
        weights = interpolate_weights(shot, frame, ends)
        if weights is None:
            weights = np.full_like(shot.delta[frame], 1 / shot.alpha.shape[1])
        shot.alpha[frame] = weights.mean(0)
        shot.delta[frame] = weights - shot.alpha[frame]
        shot.codes[frame] = weights @ anchors
        how = (FrameState.NO_FACE, FrameState.HELD, FrameState.INTERPOLATED)
        shot.state[frame] = how[len(ends)]


def smooth_codes(track: LatentTrack, sigma: float) -> np.ndarray:
    """Applies a Gaussian low-pass over time, by frame numbers.

    It never mixes across a cut or a long gap. Near the ends of a shot the remaining weights are
    scaled to a sum of 1. Held frames stay as they are.

    Args:
        track: with codes.
        sigma: in frames; 0 changes nothing.

    Returns:
        `[F, L, 512]` float32.
    """
    result = track.codes.copy()
    if sigma <= 0:
        return result
    moving = np.isin(track.state, (*GIVEN, FrameState.INTERPOLATED))
    for run in shot_runs(track.numbers, track.cut, moving):
        numbers = track.numbers[run]
        first = np.searchsorted(numbers, numbers - 4 * sigma)
        last = np.searchsorted(numbers, numbers + 4 * sigma, "right")
        for i, frame in enumerate(run):
            near = slice(first[i], last[i])
            gauss = np.exp(-0.5 * ((numbers[near] - numbers[i]) / sigma) ** 2)
            result[frame] = np.tensordot(gauss / gauss.sum(), track.codes[run[near]], 1)
    return result
