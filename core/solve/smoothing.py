"""Frames without a face, and the low-pass over time."""

from __future__ import annotations

import numpy as np

from core.face.alignment import MAX_GAP, shot_runs
from core.solve.latent_track import (
    FrameState,
    LatentTrack,
)
from core.solve.settings import GIVEN


def interpolate_weights(track: LatentTrack, row: int, solved: np.ndarray) -> np.ndarray | None:
    """Weights `[L, N]` of a row by its number, linear between the 0, 1 or 2 solved rows."""
    if not len(solved):
        return None
    weights = track.weights[solved]
    if len(solved) == 1:
        return weights[0]
    a, b = track.numbers[solved]
    share = np.float32((track.numbers[row] - a) / (b - a))
    return (1 - share) * weights[0] + share * weights[1]


def fill_missing(track: LatentTrack, todo: np.ndarray, anchors: np.ndarray) -> None:
    """Codes for the rows of `todo` without a face, in place."""
    shot = np.cumsum(track.cut)
    solved = np.isin(track.state, GIVEN)
    for row in np.flatnonzero(todo & ~solved):
        around = np.flatnonzero(solved & (shot == shot[row]))
        before, after = around[around < row][-1:], around[around > row][:1]
        ends = np.concatenate([before, after])
        gap = np.diff(track.numbers[ends]) - 1
        if len(ends) == 2 and gap[0] > MAX_GAP:
            ends = ends[[np.abs(track.numbers[ends] - track.numbers[row]).argmin()]]
        weights = interpolate_weights(track, row, ends)
        if weights is None:
            weights = np.full_like(track.delta[row], 1 / track.alpha.shape[1])
        track.alpha[row] = weights.mean(0)
        track.delta[row] = weights - track.alpha[row]
        track.codes[row] = weights @ anchors
        track.state[row] = (FrameState.NO_FACE, FrameState.HELD, FrameState.INTERPOLATED)[len(ends)]


def smooth_codes(track: LatentTrack, sigma: float) -> np.ndarray:
    """Gaussian low-pass over time, by frame numbers; never across a cut or a long gap.

    At the ends of a shot the weights that are left are scaled up to 1. Held frames stay.

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
        for i, row in enumerate(run):
            near = slice(first[i], last[i])
            gauss = np.exp(-0.5 * ((numbers[near] - numbers[i]) / sigma) ** 2)
            result[row] = np.tensordot(gauss / gauss.sum(), track.codes[run[near]], 1)
    return result
