"""Hashes of what a computation starts from, by which kept results are found again."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath

import numpy as np
import torch
from torch import Tensor


def digest(*parts: object) -> str:
    """Returns the sha256 of all parts, in hexadecimal.

    Only values count, so renaming a class or an enum's member changes nothing: dataclasses count by
    the names and values of their fields, enum members by their values, mappings by their items in
    order, arrays and tensors by type, shape and numbers.

    Args:
        parts: strings, bytes, numbers, None, paths, arrays, tensors; tuples, lists, mappings,
            dataclasses and enum members of those.

    Raises:
        TypeError: a part is of another kind, such as a set or a function: its text could differ
            from run to run.

    Example:
        >>> digest("steps", 7) == digest("steps", 7)
        True
        >>> digest(np.zeros(4)) == digest(np.zeros((2, 2)))
        False
    """
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray | Tensor):
            _add_numbers(sha, part)
        else:
            sha.update(f"{_text(part)}\0".encode())
    return sha.hexdigest()


def _add_numbers(sha: hashlib._Hash, array: np.ndarray | Tensor) -> None:
    if isinstance(array, np.ndarray):
        array = torch.from_numpy(np.array(array, order="C"))
    sha.update(f"{array.dtype} {[*array.shape]}".encode())
    flat = array.detach().cpu().contiguous().reshape(-1)
    sha.update(flat.view(torch.uint8).numpy().data)


def _text(value: object) -> str:
    """A value's text: for plain values and containers of them, what `repr` gives."""
    if isinstance(value, Enum):
        return _text(value.value)
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return repr(value)
    for kind in (int, float, str, bytes):
        if isinstance(value, kind):
            return kind.__repr__(value)  # not that of a subclass
    if isinstance(value, PurePath):
        return repr(str(value))
    if isinstance(value, np.ndarray | Tensor):
        sha = hashlib.sha256()
        _add_numbers(sha, value)
        return f"array {sha.hexdigest()}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_text(k)}: {_text(v)}' for k, v in value.items())}}}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = sorted(field.name for field in dataclasses.fields(value))
        return f"<{', '.join(f'{name}={_text(getattr(value, name))}' for name in names)}>"
    raise TypeError(f"A digest can't depend on {type(value).__name__}: its text is not its value.")
