"""The training loop: learning rates, moving average, evaluation, checkpoints and interruption.

Tuning, stylization and distillation train by it. On a CPU, with the same number of threads, a run
that was stopped and resumed ends with the same bits as one without a break, provided that the loss
of a step depends on nothing but the network and the number of the step.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.base.adam import ParameterAdam
from core.base.checkpoints import damaged, load_checkpoint, save_checkpoint
from core.base.errors import ReenactError

CHECKPOINT_SECONDS = 120.0  # between checkpoints


class DivergedError(ReenactError):
    """The loss is not finite any more."""


@dataclass(eq=False)
class Run:
    """Everything that changes while a network is trained."""

    network: nn.Module
    optimiser: torch.optim.Optimizer | ParameterAdam  # of the parameters that are trained
    steps: int  # at which it ends; an evaluation may lower it
    average: nn.Module | None = None  # copy of the network that becomes its moving average
    decay: float = 0.998  # of the moving average
    step: int = 0  # steps done
    fading: bool = False  # set by an evaluation: the rate falls to zero at the end
    pending: list[float] = field(default_factory=list)  # losses since the last evaluation
    history: list[dict[str, float]] = field(default_factory=list)  # one entry per evaluation


def train(
    run: Run,
    loss: Callable[[int], Tensor],
    rates: Callable[[Run], Sequence[float]],
    *,
    evaluate: Callable[[Run], None] | None = None,
    ended: Callable[[Run], bool] = lambda run: False,
    report: Callable[[float, float], None] | None = None,
    path: str | Path | None = None,
    task: str = "",
) -> None:
    """Trains a network to the end of its run, in place.

    With `path`, the state is saved there every `CHECKPOINT_SECONDS`, at the end, at Ctrl-C and
    when `report` raises; the same call then goes on from there.

    Args:
        run: what is trained, and how far it is.
        loss: called with the number of steps done; returns the loss of the next one.
        rates: learning rate of each of the optimiser's parameter groups for the next step.
        evaluate: called after every step, before its state may be saved; may lower `run.steps`,
            and set `run.fading`. What it changes must depend on the run alone.
        ended: called before every step; True ends the training early, and leaves the run as it
            is: the same call goes on from there once it says False.
        report: called after every step with its loss and the estimated seconds left; may raise.
        path: of the checkpoint.
        task: digest of all that decides the result.

    Raises:
        DivergedError: a loss is not finite.
        core.base.checkpoints.CheckpointMismatchError: `path` is a checkpoint of another task, or
            damaged.
        core.base.checkpoints.CheckpointNotSavedError: the checkpoint can't be written.
    """
    if path is not None:
        _restore(run, path, task)
    started, first, saved = time.monotonic(), run.step, time.monotonic()
    with _deferred_interrupt() as interrupted:
        while run.step < run.steps and not ended(run):
            value = _advance(run, loss(run.step), rates(run))
            if evaluate is not None:
                evaluate(run)
            now = time.monotonic()
            if path is not None and now - saved > CHECKPOINT_SECONDS:
                save_checkpoint(path, task, _state(run))
                saved = now
            try:
                if report is not None:
                    report(value, (run.steps - run.step) * (now - started) / (run.step - first))
                if interrupted():
                    raise KeyboardInterrupt
            except BaseException:
                if path is not None:
                    save_checkpoint(path, task, _state(run))
                raise
    if path is not None and run.step > first:
        save_checkpoint(path, task, _state(run))


def cosine(step: int, steps: int, floor: float = 0.0) -> float:
    """A cosine schedule: 1 at the first of `steps` steps, `floor` after the last one."""
    return floor + (1 - floor) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def fade_on_plateau(
    run: Run, figures: Sequence[float], gain: float, patience: int, steps: int
) -> None:
    """Has a run end soon, its rate fading, if its figure has stopped gaining.

    Args:
        run: being evaluated.
        figures: of all evaluations so far, the last one's included; higher is better.
        gain: the least growth within `patience` evaluations to go on.
        patience: evaluations.
        steps: in which the run then ends.
    """
    if len(figures) > patience and not run.fading:
        run.fading = max(figures[-patience:]) < max(figures[:-patience]) + gain
        if run.fading:
            run.steps = min(run.steps, run.step + steps)


def _advance(run: Run, loss: Tensor, rates: Sequence[float]) -> float:
    """Takes one step down the gradient of a loss; returns the loss."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise DivergedError(
            f"Training diverged at step {run.step + 1}. Lower its rate ({max(rates):g}) and start "
            "again."
        )
    run.optimiser.zero_grad()
    loss.backward()
    for group, rate in zip(run.optimiser.param_groups, rates, strict=True):
        group["lr"] = rate
    run.optimiser.step()
    if run.average is not None:
        keep = min((1 + run.step) / (10 + run.step), run.decay)  # early weights are forgotten
        average: list[Tensor] = [*run.average.parameters()]
        current: list[Tensor] = [*run.network.parameters()]
        with torch.no_grad():
            torch._foreach_lerp_(average, current, 1 - keep)
    run.step += 1
    run.pending.append(value)
    return value


def _state(run: Run) -> dict[str, Any]:
    return {
        "step": run.step,
        "steps": run.steps,
        "fading": run.fading,
        "pending": run.pending,
        "history": run.history,
        "network": run.network.state_dict(),
        "average": None if run.average is None else run.average.state_dict(),
        "optimiser": run.optimiser.state_dict(),
    }


def _restore(run: Run, path: str | Path, task: str) -> None:
    """Takes up the state of a checkpoint, if there is one."""
    state = load_checkpoint(path, task)
    if state is None:
        return
    try:
        run.network.load_state_dict(state["network"])
        if run.average is not None:
            run.average.load_state_dict(state["average"])
        run.optimiser.load_state_dict(state["optimiser"])
        run.step, run.steps, run.fading = state["step"], state["steps"], state["fading"]
        run.pending, run.history = state["pending"], state["history"]
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise damaged(path) from error


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Holds Ctrl-C back until a step is whole; the second one interrupts at once.

    Yields:
        What says whether Ctrl-C was pressed.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set  # only the main thread is ever interrupted
        return

    def handle(number: int, frame: object) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, handle)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)  # None: not set by Python
