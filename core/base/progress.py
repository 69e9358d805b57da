"""How long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

Progress = Callable[[float, float], None]  # called with the work done and the work in all
# Returns the steps after which a training is to end early and keep what it has; None: it goes on.
EndAfter = Callable[[], int | None]


def never() -> None:
    """An `EndAfter`: the training goes on to its own end."""


class TrainingProgress(Protocol):
    """Receives steps done and to do, and figures worth showing: `loss`, `seconds_left`, ....

    Where there is a figure `frame`, the others are that frame's, not those of the step.
    """

    def __call__(self, done: float, total: float, **figures: float) -> None: ...


class Report(Protocol):
    """Receives notes and the progress of stages; see `server.reporting.Report`."""

    def note(self, text: str) -> None: ...
    def stage(self, title: str) -> AbstractContextManager[Any]: ...
