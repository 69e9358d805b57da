"""The training loop: what it moves, when it ends, and that a break changes nothing."""

import copy
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core.base import training
from core.base.checkpoints import CheckpointMismatchError, load_checkpoint
from core.base.training import DivergedError, Run, cosine, train

STEPS = 10


def new_run(steps: int = STEPS, decay: float = 0.9) -> Run:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    optimiser = torch.optim.Adam(network.parameters())
    return Run(network, optimiser, steps, copy.deepcopy(network).requires_grad_(False), decay)


def go(run: Run, **more: object) -> None:
    def loss(step: int) -> Tensor:
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        return (run.network(x) - x[:, :2]).square().mean()

    train(run, loss, lambda run: [0.1 * cosine(run.step, STEPS)], **more)  # type: ignore[arg-type]


def weights(run: Run) -> list[Tensor]:
    assert run.average is not None
    return [*run.network.parameters(), *run.average.parameters()]


def test_the_average_follows_and_early_weights_are_forgotten() -> None:
    run = new_run(decay=0.5)
    expected = [p.clone() for p in run.average.parameters()]  # type: ignore[union-attr]

    def report(loss: float, seconds_left: float) -> None:
        step = run.step - 1
        keep = min((1 + step) / (10 + step), 0.5)
        for mean, current in zip(expected, run.network.parameters(), strict=True):
            mean.lerp_(current.detach(), 1 - keep)
        assert loss == run.pending[-1]
        assert seconds_left >= 0

    go(run, report=report)
    assert (run.step, len(run.pending)) == (STEPS, STEPS)
    assert run.pending[-1] < run.pending[0]
    for mean, followed in zip(expected, run.average.parameters(), strict=True):  # type: ignore[union-attr]
        torch.testing.assert_close(mean, followed)


def test_a_break_in_a_report_loses_no_step(tmp_path: Path) -> None:
    path = tmp_path / "run.checkpoint"
    whole = new_run()
    go(whole)

    class Stop(Exception):
        pass

    for stop in (1, 4, 9):
        run = new_run()

        def report(loss: float, seconds_left: float, run: Run = run, stop: int = stop) -> None:
            if run.step == stop:
                raise Stop

        with pytest.raises(Stop):
            go(run, report=report, path=path, task="task")
        state = load_checkpoint(path, "task")
        assert state is not None
        assert state["step"] == stop
    resumed = new_run()
    go(resumed, path=path, task="task")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    assert resumed.pending == whole.pending
    finished = path.stat().st_mtime_ns
    again = new_run()
    go(again, report=lambda *_: pytest.fail("trained again"), path=path, task="task")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again), strict=True))
    assert path.stat().st_mtime_ns == finished
    with pytest.raises(CheckpointMismatchError, match="Delete it"):
        go(new_run(), path=path, task="other")


def test_state_is_saved_between_steps_and_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is saved at a step includes that step's evaluation, however the process ends."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    path, run = tmp_path / "run.checkpoint", new_run()

    def evaluate(run: Run) -> None:
        run.history.append({"step": float(run.step)})
        if run.step == 6:
            run.steps, run.fading = 8, True

    def report(loss: float, seconds_left: float) -> None:
        state = load_checkpoint(path, "task")
        assert state is not None
        assert (state["step"], len(state["history"])) == (run.step, run.step)
        assert (state["steps"], state["fading"]) == (run.steps, run.fading)

    go(run, evaluate=evaluate, report=report, path=path, task="task")
    assert (run.step, run.fading) == (8, True)


def test_ctrl_c_waits_for_the_step(tmp_path: Path) -> None:
    path, run, before = tmp_path / "run.checkpoint", new_run(), signal.getsignal(signal.SIGINT)

    def evaluate(run: Run) -> None:
        if run.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        go(run, evaluate=evaluate, path=path, task="task")
    assert signal.getsignal(signal.SIGINT) is before
    state = load_checkpoint(path, "task")
    assert state is not None
    assert state["step"] == 3


def test_damage_and_divergence_are_sentences(tmp_path: Path) -> None:
    path = tmp_path / "run.checkpoint"
    go(new_run(), path=path, task="task")
    state = torch.load(path, weights_only=True)
    for name in ("network", "step"):
        torch.save({k: v for k, v in state.items() if k != name}, path)
        with pytest.raises(CheckpointMismatchError, match="damaged"):
            go(new_run(), path=path, task="task")
    run = new_run()
    with pytest.raises(DivergedError, match=r"step 1\. Lower its rate"):
        train(run, lambda step: torch.tensor(float("nan")), lambda run: [0.1])
    assert run.step == 0


def test_schedule() -> None:
    assert [cosine(step, 4) for step in (0, 2, 4)] == pytest.approx([1, 0.5, 0])
    assert [cosine(step, 4, 0.02) for step in (0, 2, 4)] == pytest.approx([1, 0.51, 0.02])
