"""Adam for searches that last seconds, in processes that have just begun."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam


class Adam:
    """Moves tensors against their gradients, to the bit as `torch.optim.Adam` does.

    That class loads torch's compiler with its first instance, which takes each process 2.5 s.

    Args:
        tensors: which `step` changes in place.
        betas: decay rates of the two moments.
    """

    def __init__(self, tensors: Sequence[Tensor], betas: tuple[float, float]) -> None:
        self._tensors, self._betas = tensors, betas
        # Of each the two moments, and the number of steps.
        self._state = [
            ([torch.zeros_like(t)], [torch.zeros_like(t)], [torch.tensor(0.0)]) for t in tensors
        ]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rates: Sequence[float]) -> None:
        """Takes a step of each tensor by its gradient, of the same shape, at its learning rate."""
        each = zip(self._tensors, gradients, rates, self._state, strict=True)
        for tensor, gradient, rate, (means, squares, steps) in each:
            adam(
                [tensor],
                [gradient],
                means,
                squares,
                [],
                steps,
                amsgrad=False,
                beta1=self._betas[0],
                beta2=self._betas[1],
                lr=rate,
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )
