"""What a command says while it works: bars for people, lines of JSON for machines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment

from core.base.text import printable

OnProgress = Callable[..., None]  # called with (done, total, **figures)

JSON_SECONDS = 1.0  # between progress lines
ESTIMATE_SECONDS = 4.0  # after which the rest is estimated where no bar can move


class Terminal(Console):
    """A console that shows what files hold, and never obeys it: no escape sequences get through."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:  # rich's own
                yield segment
            else:
                yield Segment(printable(segment.text, lines=True), segment.style)


class Report:
    """Where a command's messages go.

    With `machine`, every line on standard output is one JSON object: `{"stage", "done", "total"}`
    while it works, `{"note"}` for remarks, and `{"result"}` at the end; errors are `{"error"}`.
    Where no terminal shows a moving bar, a line says how long a longer stage will take.
    """

    def __init__(self, machine: bool = False) -> None:
        self.machine = machine
        # A wrapped path can't be copied.
        self.console = Terminal(highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Shows a remark, as a sentence."""
        if self.machine:
            self._line({"note": text})
        else:
            self.console.print(f"  {escape(printable(text))}")

    def result(self, text: str, **facts: object) -> None:
        """Shows what came out: a sentence for people, the facts for machines."""
        if self.machine:
            self._line({"result": facts})
        else:
            self.console.print(escape(text))

    @contextmanager
    def stage(self, title: str) -> Iterator[OnProgress]:
        """Shows a bar during a stage of the work; yields what is called with (done, total)."""
        if self.machine:
            yield self._machine_progress(title)
            return
        columns = (
            TextColumn("  {task.description:<12}"),
            BarColumn(24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Progress(*columns, console=self.console) as bars:
            bar = bars.add_task(title, total=None, figures="")
            began: list[tuple[float, float]] = []
            told = self.console.is_terminal

            def on_progress(done: float, total: float, **figures: float) -> None:
                nonlocal told
                figures.pop("seconds_left", None)  # the bar has its own
                if not told:
                    told = self._estimate(title, began, done, total)
                bars.update(bar, completed=done, total=total)
                if figures:  # else the last ones stay
                    text = "  ".join(f"{k} {v:.4g}" for k, v in figures.items())
                    bars.update(bar, figures=text)

            yield on_progress

    def _estimate(
        self, title: str, began: list[tuple[float, float]], done: float, total: float
    ) -> bool:
        """Says how long a stage will take, once that can be told; returns whether it was.

        Args:
            title: of the stage.
            began: when the first part of the work was done, and how much that was; it is filled
                in here. That part is left out of the rate: it is slow, caches and all.
            done: of the work.
            total: of the work.
        """
        now = time.monotonic()
        if not began and done > 0:
            began.append((now, done))
        if not began or now - began[0][0] < ESTIMATE_SECONDS or done <= began[0][1]:
            return False
        left = (now - began[0][0]) * (total - done) / (done - began[0][1])
        self.console.print(f"  {title}: about {left:.0f} s left")
        return True

    def _machine_progress(self, title: str) -> OnProgress:
        last = -JSON_SECONDS

        def on_progress(done: float, total: float, **figures: float) -> None:
            nonlocal last
            now = time.monotonic()
            if done >= total or now - last >= JSON_SECONDS:
                last = now
                self._line({"stage": title, "done": done, "total": total, **figures})

        return on_progress

    def _line(self, value: dict[str, object]) -> None:
        print(json.dumps(value), file=sys.stdout, flush=True)
