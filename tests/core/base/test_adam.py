"""Adam against torch's own class."""

import subprocess
import sys

import torch

from core.base.adam import Adam


def test_steps_are_those_of_torchs_class() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(shape, generator=generator) for shape in ((3, 5), (2, 1, 4))]
    theirs = [t.clone().requires_grad_() for t in ours]
    adam = Adam(ours, (0.8, 0.97))
    reference = torch.optim.Adam([{"params": [t]} for t in theirs], betas=(0.8, 0.97))
    for step in range(20):
        gradients = [torch.randn(t.shape, generator=generator) * 10**-step for t in ours]
        rates = [0.1 / (step + 1), 0.03]
        adam.step(gradients, rates)
        for group, gradient, rate in zip(reference.param_groups, gradients, rates, strict=True):
            group["params"][0].grad, group["lr"] = gradient, rate
        reference.step()
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)


def test_torchs_compiler_is_not_loaded() -> None:
    script = """
        import sys, torch
        from core.base.adam import Adam
        Adam([torch.zeros(2)], (0.9, 0.99)).step([torch.ones(2)], [0.1])
        sys.exit("torch._dynamo" in sys.modules)
    """
    lines = "\n".join(line.strip() for line in script.strip().splitlines())
    subprocess.run([sys.executable, "-c", lines], check=True)
