"""The kinds of job: each is a module of this package that declares a `KIND`.

Importing this module loads neither torch nor anything that reads pictures, so the front end may.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import reenact
from reenact import protocol

from core.base.revision import revision
from server import jobs
from server.jobs.common import BadOptionError, Context, Kind

# What an artist waits for never waits for training: each lane has a worker of its own per GPU.
LANES = ("long", "live")


def find_kinds() -> dict[str, Kind]:
    """Returns the kinds that the package's modules declare, by name.

    Raises:
        ValueError: two kinds have one name, or a kind names no lane.
    """
    kinds: dict[str, Kind] = {}
    for module in pkgutil.iter_modules(jobs.__path__, f"{jobs.__name__}."):
        kind = getattr(importlib.import_module(module.name), "KIND", None)
        if kind is None:
            continue
        if kind.name in kinds or kind.lane not in LANES:
            raise ValueError(f"{module.name}: {kind.name} exists already, or {kind.lane} does not")
        kinds[kind.name] = kind
    return kinds


KINDS: Mapping[str, Kind] = find_kinds()


def kind_of(task: Any) -> Kind:
    """Returns the kind of a task."""
    return next(kind for kind in KINDS.values() if kind.task is type(task))


def code() -> str:
    """Returns a text that differs where other code computes the results of jobs."""
    packages = (revision(Path(folder)) for folder in jobs.__path__)
    return " ".join((reenact.__version__, revision(), *packages))


def check_task(task: Any) -> None:
    """Checks a task's options, before any of its files is sent or read.

    Raises:
        BadOptionError: one makes no sense.
    """
    kind_of(task).check(task)


def check_configs(task: Any) -> None:
    """Refuses a task with an OCIO config that is only called by a name or path.

    Raises:
        BadOptionError: the config is neither sent, nor built in, nor this server's own.
    """
    known = ("", os.environ.get("OCIO", ""))
    holders = {name: part for name, part in protocol.parts(task) if isinstance(part, protocol.Clip)}
    if hasattr(task, "config"):
        holders["result"] = task
    for name, holder in holders.items():
        config = holder.config
        if holder.config_file or config in known or config.startswith("ocio://"):
            continue
        raise BadOptionError(
            f"The {name} is in {holder.colour_space or 'a space'} of the OCIO config {config}, "
            "which did not come with the job and is not this server's. Update the plugin, and "
            "submit the shot again; or start the server with OCIO set to that config."
        )


def run_task(task: Any, context: Context) -> dict[str, Any]:
    """Does a task, in a worker or in the command line's process.

    Returns:
        The facts about its result, as plain values.

    Raises:
        ReenactError: the sentence says what is wrong with the task or its files.
    """
    kind = kind_of(task)
    kind.check(task)
    return kind.run(task, context)
