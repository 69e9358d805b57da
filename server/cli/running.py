"""How a command has its task done: by a server or, with --local, in its own process."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.media.outputs import check_outputs, foreign_frames, replaced_note
from server.cli import remote
from server.cli.reporting import Report
from server.jobs import registry
from server.jobs.common import Context

if TYPE_CHECKING:
    from core.media.clip import Clip


def run_task(
    task: Any,
    inputs: Mapping[str, Path | Clip | Sequence[Path] | None],
    outputs: Mapping[str, Path | None],
    report: Report,
    local: bool,
    also_read: Mapping[str, Path | Clip | Sequence[Path] | None] | None = None,
) -> dict[str, Any]:
    """Has a task done.

    Args:
        task: its options; its files are filled in from the inputs.
        inputs: files, clips and lists of files by the task's fields; None: there is none.
        outputs: where results go, by name (`Kind.results`); None: not wanted.
        report: receives progress and notes.
        local: does it in this process.
        also_read: what the command itself read: no output may be one of these either.

    Returns:
        The facts about the result, as plain values.

    Raises:
        BadOptionError: an option makes no sense; nothing was sent or read.
        OverwritesInputError, NotWritableError: of the outputs; nothing was sent or written.
        JobFailedError: the server could not do it.
        ReenactError: the task could not be done here.
    """
    registry.check_task(task)
    given = {name: value for name, value in inputs.items() if value is not None}
    wanted = {name: path for name, path in outputs.items() if path is not None}
    removed = registry.kind_of(task).removed if local else None
    check_outputs(
        wanted, {**given, **(also_read or {})}, [] if removed is None else [removed(wanted)]
    )
    foreign = foreign_frames(wanted)
    try:
        return _do(task, given, wanted, report, local)
    finally:  # also of what was replaced before the work was stopped
        if note := replaced_note(foreign):
            report.note(note)


def _do(
    task: Any,
    given: Mapping[str, Path | Clip | Sequence[Path]],
    wanted: Mapping[str, Path],
    report: Report,
    local: bool,
) -> dict[str, Any]:
    """Has a task done whose inputs and outputs are checked."""
    if local:
        files: dict[str, Path] = {}
        clips: dict[str, Clip] = {}
        for name, value in given.items():
            if isinstance(value, Path):
                files[name] = value
            elif isinstance(value, Sequence):
                files |= {f"{name}.{i}": path for i, path in enumerate(value)}
            else:
                clips[name] = value
        return registry.run_task(task, Context(report, files, clips, wanted))
    with remote.connected(report) as client:
        sent = {name: remote.send(client, value, report) for name, value in given.items()}
        return remote.run(client, dataclasses.replace(task, **sent), report, wanted)
