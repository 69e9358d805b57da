"""How long work reports how far it is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

Progress = Callable[[float, float], None]  # called with what is done, and of how much


class Report(Protocol):
    """Receives notes and the progress of stages; see `server.reporting.Report`."""

    def note(self, text: str) -> None: ...
    def stage(self, title: str) -> AbstractContextManager[Any]: ...
