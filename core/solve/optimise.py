"""Latent optimisation of a batch of frames (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from core.base.adam import Adam
from core.face.landmarks import Observation, keypoint_error
from core.generator import half_precision
from core.solve.context import SolveContext, Target
from core.solve.latent_space import delta_loss, soften, sum_loss, to_weights
from core.solve.objective import picture_losses, total_loss
from core.solve.observe import detect_corrected, observe_codes
from core.solve.settings import SolveSettings

# Adam takes a handful of steps and so must forget soon: seven of these are worth twelve at the
# usual (.9, .99) and half the rate.
_BETAS = (0.5, 0.95)

# How much longer Adam's steps are where parts of the face stay. There the search starts at the
# minimum of eq. 2, which is as steep there as anywhere; short steps never leave it.
_KEPT_PARTS_RATE = 3.3


def optimise(
    context: SolveContext,
    target: Target,
    raw: Tensor,
    crop_error: Tensor,
    steps: int,
    progress: Callable[[float], None] = lambda frames: None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Runs Adam on alpha and delta; frames of the batch don't influence each other.

    Steps are along the context's directions. Along anchors, each step would move all of them alike,
    and overshoot in the largest directions would drown gaze, to which keypoints are least
    sensitive.

    Args:
        context: of the character.
        target: to be shown.
        raw: initial coordinates `[B, L, N]`, before eq. 7.
        crop_error: `[B, 478, 3]` px, error of a single crop there.
        steps: at most.
        progress: called with the batch's share that is done, in frames.

    Returns:
        The best weights `[B, L, N]` that were met, and their terms as `evaluate` gives them, drawn
        in full precision and detected averaged.
    """
    settings = context.settings
    half = half_precision(context.anchors.device)
    mean = raw.mean(1, keepdim=True)
    rate = settings.rate * (_KEPT_PARTS_RATE if settings.keeps_parts else 1)
    rates = (rate, rate * settings.delta_rate)
    moves = [torch.zeros_like(mean).requires_grad_(), torch.zeros_like(raw).requires_grad_()]
    optimiser = Adam(moves, _BETAS)
    best = [move.detach().clone() for move in moves]
    lowest = raw.new_full((len(raw),), torch.inf)
    history: list[Tensor] = []

    def coordinates(moves: list[Tensor]) -> tuple[Tensor, Tensor]:
        alpha, delta = (move @ context.directions.T for move in moves)
        return mean + alpha, raw - mean + delta

    def observe(codes: Tensor) -> Observation:
        return detect_corrected(context.character, codes, crop_error, half)

    for step in range(steps + 1):
        last = step == steps
        with torch.set_grad_enabled(not last):
            _, terms = evaluate(context, target, *coordinates(moves), observe)
            loss = total_loss(terms, settings.objective)
        better = loss.detach() < lowest  # never, where it is NaN
        lowest = torch.where(better, loss.detach(), lowest)
        for kept, move in zip(best, moves, strict=True):
            kept[better] = move.detach()[better]
        history.append(lowest)
        if last or converged(history, settings):
            break
        gradients = torch.autograd.grad(loss.sum(), moves)
        fade = 0.1 + 0.9 * (0.5 + 0.5 * np.cos(np.pi * step / steps))
        optimiser.step(gradients, [base * fade for base in rates])
        progress(len(raw) * (step + 1) / (steps + 1))
    with torch.no_grad():
        return evaluate(
            context, target, *coordinates(best), partial(observe_codes, context.character)
        )


def evaluate(
    context: SolveContext,
    target: Target,
    alpha: Tensor,
    delta: Tensor,
    observe: Callable[[Tensor], Observation],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Computes the terms of eq. 10.

    Args:
        context: of the character.
        target: to be shown.
        alpha: `[B, 1, N]`, as it is optimised, before eq. 7.
        delta: `[B, L, N]`, the layers' offsets from it.
        observe: draws codes `[B, L, 512]` and detects landmarks.

    Returns:
        Weights `[B, L, N]`, and the unweighted terms with `keypoint_error`, each `[B]`.
    """
    softened = soften(alpha + delta)
    weights = to_weights(softened)
    generated = observe(weights @ context.anchors)
    terms = picture_losses(
        generated, target.driving, context.centre, context.settings.objective, target.neutral_offset
    )
    terms |= {"delta": delta_loss(delta), "sum": sum_loss(softened)}
    error = keypoint_error(generated.keypoints, target.keypoints)
    return weights, terms | {"keypoint_error": error}


def converged(history: list[Tensor], settings: SolveSettings) -> bool:
    """Returns whether no frame's lowest loss fell noticeably within the last steps.

    Args:
        history: lowest losses so far, `[B]`, after each step.
        settings: tolerance and patience.
    """
    if len(history) <= settings.patience:
        return False
    before, now = history[-1 - settings.patience], history[-1]
    return bool((before - now <= settings.tolerance * now.abs()).all())
