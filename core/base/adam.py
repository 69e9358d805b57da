"""Adam without torch's compiler, which its own class loads with the first instance.

That takes each process 2.5 s, and the processes here have often just begun.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam


class Adam:
    """Moves tensors against their gradients, to the bit as `torch.optim.Adam` does.

    Args:
        tensors: which `step` changes in place.
        betas: decay rates of the two moments.
        fused: in one pass over the numbers, which rounds otherwise.
    """

    def __init__(
        self, tensors: Sequence[Tensor], betas: tuple[float, float], fused: bool = False
    ) -> None:
        self._tensors, self._betas, self._fused = tensors, betas, fused
        # Of each tensor the two moments, and the number of steps.
        self.means = [torch.zeros_like(t) for t in tensors]
        self.squares = [torch.zeros_like(t) for t in tensors]
        self.steps = [torch.zeros((), device=t.device if fused else "cpu") for t in tensors]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], rates: Sequence[float]) -> None:
        """Takes a step of each tensor by its gradient, of the same shape, at its learning rate.

        A tensor without a gradient stays as it is.
        """
        for rate, same in groupby(range(len(self._tensors)), key=lambda i: rates[i]):
            moved = [(i, g) for i in same if (g := gradients[i]) is not None]
            if not moved:
                continue
            adam(
                [self._tensors[i] for i, _ in moved],
                [gradient for _, gradient in moved],
                [self.means[i] for i, _ in moved],
                [self.squares[i] for i, _ in moved],
                [],
                [self.steps[i] for i, _ in moved],
                fused=self._fused,
                amsgrad=False,
                beta1=self._betas[0],
                beta2=self._betas[1],
                lr=rate,
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )


class ParameterAdam:
    """Adam for the training loop, which sees it as one of torch's optimisers.

    Args:
        groups: of parameters; `param_groups` has the learning rate of each as "lr".
        betas: decay rates of the two moments.
        fused: in one pass over the numbers, which rounds otherwise.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[nn.Parameter]],
        betas: tuple[float, float],
        fused: bool = False,
    ) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": group, "lr": 0.0} for group in groups]
        self._parameters = [parameter for group in groups for parameter in group]
        self._adam = Adam(self._parameters, betas, fused)

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self) -> None:
        """Takes a step of each parameter that has a gradient."""
        rates = [group["lr"] for group in self.param_groups for _ in group["params"]]
        self._adam.step([parameter.grad for parameter in self._parameters], rates)

    def state_dict(self) -> dict[str, Any]:
        """Returns the moments by the parameters' numbers, named as torch's class names them."""
        each = zip(self._adam.means, self._adam.squares, self._adam.steps, strict=True)
        return {
            "state": {
                number: {"exp_avg": mean, "exp_avg_sq": square, "step": step}
                for number, (mean, square, step) in enumerate(each)
            }
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the moments of `state_dict`, or of one that torch's class has given.

        Raises:
            KeyError, AttributeError, RuntimeError: they are of other parameters.
        """
        for number, parameter in enumerate(self._parameters):
            moments = state["state"].get(number)
            if moments is None:  # torch's class has none where there was never a gradient
                continue
            if moments["exp_avg"].shape != parameter.shape:
                raise RuntimeError(f"The moments of parameter {number} have another shape.")
            self._adam.means[number].copy_(moments["exp_avg"])
            self._adam.squares[number].copy_(moments["exp_avg_sq"])
            self._adam.steps[number].copy_(moments["step"])
