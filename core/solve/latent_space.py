"""The personalised latent space P and its extension P+ (paper, appendix B, after MyStyle).

A code of P is a sum of anchors, weighted by barycentric coordinates (weights) that add up to 1 and
are never below -beta (eq. 6). In P+ every layer of w+ has weights of its own. Both are convex: an
interpolation between two codes of P+, or an average of several, is in P+ too.

The optimiser works on unbounded numbers, here called raw; `to_weights(soften(raw))` maps them into
P, and `to_raw` back.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BETA = 0.02  # dilation of the convex hull (appendix C.3)
SHARPNESS = 100.0  # s of eq. 7

# Least distance of a weight from -beta, where softplus ends and its inverse is infinite.
_LEAST = 1e-6


def soften(raw: Tensor, beta: float = BETA, sharpness: float = SHARPNESS) -> Tensor:
    """Applies eq. 7, the shifted softplus: results are above -beta, large numbers unchanged."""
    return F.softplus(raw + beta, beta=sharpness) - beta


def to_weights(softened: Tensor, beta: float = BETA) -> Tensor:
    """Normalises coordinates so that both conditions of eq. 6 hold.

    The distances from -beta are scaled instead of the coordinates. Divided by their sum, as the
    paper's text has it, coordinates fall below -beta where the sum is less than 1, and blow up near
    0. Where the sum is 1, either way changes nothing.

    Args:
        softened: `[..., N]`, from `soften`.
        beta: dilation.

    Returns:
        Weights `[..., N]`: none below -beta, adding up to 1.
    """
    positive = (softened + beta).clamp(min=_LEAST)
    return positive * ((1 + softened.shape[-1] * beta) / positive.sum(-1, keepdim=True)) - beta


def to_raw(weights: Tensor, beta: float = BETA, sharpness: float = SHARPNESS) -> Tensor:
    """Inverts `to_weights(soften(raw))`, for weights `[..., N]` that add up to 1."""
    x = sharpness * (weights + beta).clamp(min=_LEAST)
    return (x + torch.log(-torch.expm1(-x))) / sharpness - beta


def nearest_weights(coordinates: Tensor, beta: float = BETA) -> Tensor:
    """Projects coordinates onto P: the nearest weights by Euclidean distance.

    The algorithm is that of Duchi et al. 2008, figure 1, with the simplex moved and widened by
    beta.

    Args:
        coordinates: `[..., N]`, any.
        beta: dilation.

    Returns:
        Weights `[..., N]`: none below -beta, adding up to 1.
    """
    shifted = coordinates + beta
    count = shifted.shape[-1]
    ordered = shifted.sort(-1, descending=True).values
    over = ordered.cumsum(-1) - (1 + count * beta)
    cut = over / torch.arange(1, count + 1, device=shifted.device, dtype=shifted.dtype)
    last = (ordered > cut).sum(-1, keepdim=True) - 1
    return (shifted - cut.gather(-1, last)).clamp(min=0) - beta


def sum_loss(softened: Tensor) -> Tensor:
    """Computes eq. 8, averaged over the layers: `[B, L, N]` from `soften` -> `[B]`."""
    return (softened.sum(-1) - 1).square().mean(-1)


def delta_loss(delta: Tensor) -> Tensor:
    """Computes eq. 9: the layers' offsets `[B, L, N]` -> sum of their 2-norms `[B]`."""
    # The square root has no gradient at zero, where every search starts.
    return (delta.square().sum(-1) + 1e-10).sqrt().sum(-1)
