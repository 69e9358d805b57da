"""Adam against torch's own class."""

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core.base.adam import Adam, ParameterAdam


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


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2))


def losses(steps: range, network: nn.Module) -> Iterator[Tensor]:
    for step in steps:
        given = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        yield (network[1](network[0](given)) - 1).square().mean()  # type: ignore[index]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("resumed", ["never", "from ours", "from torch's"])
def test_training_is_that_of_torchs_class(fused: bool, resumed: str) -> None:
    """With a group for some parameters, one parameter without a gradient, and after a break."""

    def made(network: nn.Module) -> tuple[ParameterAdam, torch.optim.Adam]:
        groups = [[*network[:1].parameters()], [*network[1:].parameters()]]  # type: ignore[index]
        given = [{"params": group} for group in groups]
        return (
            ParameterAdam(groups, (0.8, 0.97), fused),
            torch.optim.Adam(given, betas=(0.8, 0.97), fused=fused),
        )

    def go(optimiser: ParameterAdam | torch.optim.Adam, steps: range, network: nn.Module) -> None:
        for step, loss in zip(steps, losses(steps, network), strict=True):
            optimiser.zero_grad()
            loss.backward()
            for group, rate in zip(optimiser.param_groups, (0.1 / (step + 1), 0.03), strict=True):
                group["lr"] = rate
            optimiser.step()

    ours, theirs = network(), network()
    (adam, _), (_, reference) = made(ours), made(theirs)
    go(adam, range(6), ours)
    go(reference, range(6), theirs)
    if resumed != "never":
        state = io.BytesIO()
        torch.save((adam if resumed == "from ours" else reference).state_dict(), state)
        state.seek(0)
        (adam, _) = made(ours)
        adam.load_state_dict(torch.load(state))
    go(adam, range(6, 12), ours)
    go(reference, range(6, 12), theirs)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_moments_of_another_network_are_refused() -> None:
    adam = ParameterAdam([[*network().parameters()]], (0.9, 0.99))
    other = ParameterAdam([[*nn.Linear(5, 5).parameters()]], (0.9, 0.99))
    with pytest.raises(RuntimeError, match="another shape"):
        adam.load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    "steps",
    [
        "Adam([torch.zeros(2)], (0.9, 0.99)).step([torch.ones(2)], [0.1])",
        "a = ParameterAdam([[torch.nn.Parameter(torch.zeros(2))]], (0.9, 0.99), fused=True);"
        "a.zero_grad(); a.step(); a.load_state_dict(a.state_dict())",
    ],
)
def test_torchs_compiler_is_not_loaded(steps: str) -> None:
    script = f"""
        import sys, torch
        from core.base.adam import Adam, ParameterAdam
        {steps}
        sys.exit("torch._dynamo" in sys.modules)
    """
    lines = "\n".join(line.strip() for line in script.strip().splitlines())
    subprocess.run([sys.executable, "-c", lines], check=True)


def test_what_users_wait_for_makes_none_of_torchs_optimisers() -> None:
    core = Path(__file__).parents[3] / "core"
    made = {
        path.relative_to(core).as_posix()
        for path in core.rglob("*.py")
        if re.search(r"\boptim\.\w+\(", path.read_text())
    }
    assert {name for name in made if not name.startswith("synthetic/distill/")} == set()
    assert made  # distilling does
