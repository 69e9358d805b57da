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
        self._moments = [[torch.zeros_like(t, requires_grad=False)] for t in tensors]
        self._squares = [[torch.zeros_like(t, requires_grad=False)] for t in tensors]
        self._steps = [[torch.tensor(0.0)] for _ in tensors]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rates: Sequence[float]) -> None:
        """Takes a step of each tensor by its gradient, of the same shape, at its learning rate."""
        for i, (tensor, gradient, rate) in enumerate(
            zip(self._tensors, gradients, rates, strict=True)
        ):
            adam(
                [tensor],
                [gradient],
                self._moments[i],
                self._squares[i],
                [],
                self._steps[i],
                amsgrad=False,
                beta1=self._betas[0],
                beta2=self._betas[1],
                lr=rate,
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )
