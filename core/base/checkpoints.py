"""Unfinished work on disk: saved under the digest of its inputs, loaded only for the same inputs.

A checkpoint is a file of torch's, `{"task": digest, **state}`. It is written atomically, and
reading it runs no code. A file of another task is refused; where states of several tasks are to be
kept side by side, their paths contain a part of the digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from core.base.errors import ReenactError
from core.base.files import atomic_write


class CheckpointMismatchError(ReenactError):
    """The file is a checkpoint of other work, or it is damaged."""


class CheckpointNotSavedError(ReenactError):
    """A checkpoint could not be written; the previous one is unchanged."""


def save_checkpoint(path: str | Path, task: str, state: Mapping[str, Any]) -> None:
    """Writes the state of unfinished work, atomically.

    Args:
        path: the file; missing folders are made.
        task: digest of all that decides the result, by `core.base.digest`.
        state: tensors, numbers, strings, bytes, None, and lists, tuples and dicts of them; no
            NumPy arrays. The key "task" is taken.

    Raises:
        CheckpointNotSavedError: the file system refuses; an older file at `path` is untouched.
    """
    try:
        with atomic_write(path) as temporary:
            torch.save({"task": task, **state}, temporary)
    except (OSError, RuntimeError) as error:  # RuntimeError is torch's own for a full disk
        raise CheckpointNotSavedError(
            f"{path} could not be written: {error}. Free some space in that folder and start "
            "again: it goes on from the last checkpoint."
        ) from error


def load_checkpoint(path: str | Path, task: str) -> dict[str, Any] | None:
    """Reads the state that `save_checkpoint` wrote for the same task.

    Args:
        path: the file.
        task: the digest that it was saved with.

    Returns:
        The state, its tensors on the CPU; None if there is no such file.

    Raises:
        CheckpointMismatchError: the file belongs to another task, or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = state.pop("task")
    except Exception as error:  # torch raises any kind for a damaged file
        raise damaged(path) from error
    if found != task:
        raise CheckpointMismatchError(
            f"{path} is a checkpoint of other inputs or settings. Delete it to start over, or use "
            "another folder."
        )
    return state


def damaged(path: str | Path) -> CheckpointMismatchError:
    """The error for a file whose state can't be used."""
    return CheckpointMismatchError(f"{path} is damaged. Delete it to start over.")
