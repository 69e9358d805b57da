"""The personalised latent space P and its extension P+ (paper, appendix B, after MyStyle).

A code of P is a sum of anchors, weighted by barycentric coordinates (weights) that add up to 1 and
are never below -beta (eq. 6). In P+ every row of w+ has weights of its own. Both are convex: what
lies between two codes of P+, or is averaged from several, is in P+ too.

The optimiser works on unbounded numbers, here called raw; `to_weights(soften(raw))` takes them
into P, `to_raw` back.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BETA = 0.02  # dilation of the convex hull (appendix C.3)
SHARPNESS = 100.0  # s of eq. 7

# Least distance of a weight from -beta: softplus ends there, and its inverse is infinite.
_LEAST = 1e-6


def soften(raw: Tensor, beta: float = BETA, sharpness: float = SHARPNESS) -> Tensor:
    """Eq. 7, the shifted softplus: any number -> a number above -beta, large ones unchanged."""
    return F.softplus(raw + beta, beta=sharpness) - beta


def to_weights(softened: Tensor, beta: float = BETA) -> Tensor:
    """Normalises coordinates so that both conditions of eq. 6 hold.

    The distances from -beta are scaled, not the coordinates: divided by their sum, as the paper's
    text has it, coordinates fall below -beta where that is less than 1, and blow up near 0. Where
    the sum is 1 nothing changes either way.

    Args:
        softened: `[..., N]`, from `soften`.
        beta: dilation.

    Returns:
        Weights `[..., N]`: none below -beta, each row adding up to 1.
    """
    positive = (softened + beta).clamp(min=_LEAST)
    return positive * ((1 + softened.shape[-1] * beta) / positive.sum(-1, keepdim=True)) - beta


def to_raw(weights: Tensor, beta: float = BETA, sharpness: float = SHARPNESS) -> Tensor:
    """The inverse of `to_weights(soften(raw))`, for weights `[..., N]` that add up to 1."""
    x = sharpness * (weights + beta).clamp(min=_LEAST)
    return (x + torch.log(-torch.expm1(-x))) / sharpness - beta


def nearest_weights(coordinates: Tensor, beta: float = BETA) -> Tensor:
    """The weights nearest to coordinates: the Euclidean projection onto P.

    Sorted and cut as in Duchi et al. 2008, figure 1, with the simplex moved and widened by beta.

    Args:
        coordinates: `[..., N]`, any.
        beta: dilation.

    Returns:
        Weights `[..., N]`: none below -beta, each row adding up to 1.
    """
    shifted = coordinates + beta
    count = shifted.shape[-1]
    ordered = shifted.sort(-1, descending=True).values
    over = ordered.cumsum(-1) - (1 + count * beta)
    cut = over / torch.arange(1, count + 1, device=shifted.device, dtype=shifted.dtype)
    last = (ordered > cut).sum(-1, keepdim=True) - 1
    return (shifted - cut.gather(-1, last)).clamp(min=0) - beta


def sum_loss(softened: Tensor) -> Tensor:
    """Eq. 8, meant over the rows of P+: `[B, L, N]` from `soften` -> `[B]`."""
    return (softened.sum(-1) - 1).square().mean(-1)


def delta_loss(delta: Tensor) -> Tensor:
    """Eq. 9: the rows' offsets `[B, L, N]` -> sum of their 2-norms `[B]`."""
    # The square root has no gradient at zero, which is where every first step starts.
    return (delta.square().sum(-1) + 1e-10).sqrt().sum(-1)
