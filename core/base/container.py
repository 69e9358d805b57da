"""Safetensors files with a format, a version and a digest that reveals any change.

A file holds arrays and a header of strings: `format`, `version`, the caller's own entries, and
`sha256` over all of it. Characters, styles and latent tracks are such files. The module needs no
torch, and reading runs no code.
"""

from __future__ import annotations

import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from core.base.errors import ReenactError, reading
from core.base.files import atomic_write, file_size
from core.base.text import printable

T = TypeVar("T")

MAX_HEADER = 8 << 20  # bytes; the largest known has a tenth of it
MAX_BRACKETS = 400_000  # of JSON: a few bytes of it take a hundred of memory
MAX_ARRAYS = 20_000
MAX_NAME = 400  # characters of an array's name

_ITEM_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """An array as a safetensors header describes it."""

    dtype: str  # "F32"
    shape: tuple[int, ...]


def read_header(path: str | Path) -> tuple[dict[str, str], dict[str, Entry]]:
    """Reads the header of any safetensors file, within bounds, and none of its arrays.

    Args:
        path: the file.

    Returns:
        Its strings, and its arrays by name.

    Raises:
        OSError: it can't be read, or is no regular file.
        ValueError: it is no safetensors file, or a damaged one; the message says why.
    """
    size = file_size(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError("its header is cut short")
        if length > MAX_HEADER:
            raise ValueError(f"its header has more than {MAX_HEADER >> 20} MiB")
        table = parse(file.read(length).decode("utf-8"))
    if not isinstance(table, dict):
        raise ValueError("its header is no table")
    strings = table.pop("__metadata__", {})
    if not isinstance(strings, dict) or not all(isinstance(s, str) for s in strings.values()):
        raise ValueError("its header's entries are no strings")
    if len(table) > MAX_ARRAYS:
        raise ValueError(f"it has more than {MAX_ARRAYS} arrays")
    entries, spans = {}, []
    for name, value in table.items():
        entries[name], span = _entry(name, value)
        spans.append(span)
    at = 0
    for begin, end in sorted(spans):  # else one part of the file could be many arrays
        if begin != at:
            raise ValueError("its arrays overlap, or leave gaps")
        at = end
    if at != size - 8 - length:
        raise ValueError(f"it has {size - 8 - length} bytes of arrays instead of {at}")
    return strings, entries


def _entry(name: str, value: object) -> tuple[Entry, tuple[int, int]]:
    if len(name) > MAX_NAME:
        raise ValueError(f"an array's name has {len(name)} characters")
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            if len(shape) <= 16 and all(type(n) is int and 0 <= n < 2**48 for n in shape):
                bits = _ITEM_BITS.get(dtype)
                fits = bits is None or math.prod(shape) * bits == 8 * (end - begin)
                if fits and 0 <= begin <= end:
                    return Entry(dtype, tuple(shape)), (begin, end)
    raise ValueError(f"its array {printable(name)[:80]} is not described as it should be")


def parse(text: str) -> Any:
    """Parses JSON that was written with `allow_nan=False`.

    Raises:
        ValueError: it is damaged, holds NaN or infinity, or is nested too deeply.
    """

    def no_number(name: str) -> NoReturn:
        raise ValueError(f"{name} where a number was expected")

    if text.count("[") + text.count("{") > MAX_BRACKETS:
        raise ValueError("it has more lists and tables than any file here has")
    try:
        return json.loads(text, parse_constant=no_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def record(kind: type[T], fields: Mapping[str, Any]) -> T:
    """Makes a dataclass of what a header says.

    Raises:
        TypeError: there are fields that it has not, or some are missing.
        ValueError: a field is of another type than it says.
    """
    made = kind(**fields)
    for name, hint in typing.get_type_hints(kind).items():
        if not _fits(getattr(made, name), hint):
            raise ValueError(f"its {name} is {type(getattr(made, name)).__name__}")
    return made


def _fits(value: object, hint: Any) -> bool:
    """Whether a value is of a type; of what it contains, strings and whole numbers count."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if kind in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is None:
        if hint in (int, float) and isinstance(value, bool):
            return False
        return isinstance(value, (int, float) if hint is float else hint)
    if not isinstance(value, kind):
        return False
    inner = [part for part in parts if part is not Ellipsis]
    if inner[-1] not in (str, int):
        return True
    if kind is tuple and Ellipsis not in parts and len(parts) != len(typing.cast("tuple", value)):
        return False
    members: Any = value.values() if isinstance(value, Mapping) else value
    return all(_fits(member, inner[-1]) for member in members)


def write(
    path: str | Path,
    format: str,
    version: int,
    entries: Mapping[str, str],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Writes a file, atomically. The same contents always get the same digest.

    Args:
        path: the file.
        format: its kind, for the header.
        version: of the format.
        entries: the caller's own, of the header.
        arrays: by name, any shapes and types that safetensors knows.

    Raises:
        OSError: the file system refuses; an older file at `path` is untouched.
    """
    header = {**entries, "format": format, "version": str(version)}
    header["sha256"] = digest(header, arrays)
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(dict(arrays), header))


def read(
    path: str | Path,
    format: str,
    version: int,
    wrong: type[ReenactError],
    kind: str,
    oldest: int | None = None,
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Reads a file, and checks that its contents are those that were written.

    Args:
        path: the file.
        format: that it must have.
        version: the newest one that is accepted.
        wrong: the error to raise for any other file.
        kind: what the file should be, for the error's sentence: "latent track".
        oldest: the oldest version that is accepted; by default `version`.

    Returns:
        Its header and its arrays, as they were written.

    Raises:
        wrong: there is no such file, or it is of another kind, damaged or of another version.
    """
    with reading(path, wrong):
        return _read(path, format, version, wrong, kind, version if oldest is None else oldest)


def _read(
    path: str | Path,
    format: str,
    version: int,
    wrong: type[ReenactError],
    kind: str,
    oldest: int,
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    try:
        read_header(path)
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            if header.get("format") != format:
                raise wrong(f"{path} is a safetensors file, but not a {kind}. Choose another.")
            if not header.get("version", "").isdecimal() or len(header["version"]) > 9:
                raise wrong(f"{path} is damaged: it has no version. Copy or make it again.")
            if int(header["version"]) > version:
                raise wrong(f"{path} was written by a newer Reenact. Update this one to load it.")
            if int(header["version"]) < oldest:
                raise wrong(
                    f"{path} was written by an older Reenact. Make it anew, under another name."
                )
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError, TypeError, AttributeError) as error:
        # the last two: types that numpy does not know, such as bfloat16
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise wrong(
            f"{path} can't be read as a {kind}: {printable(str(reason))}. If it was cut off while "
            "being copied, copy it again."
        ) from error
    if header.get("sha256") != digest(header, arrays):
        raise wrong(
            f"{path} is damaged: its contents are not those that were written. Copy or make it "
            "again."
        )
    return header, arrays


def digest(header: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    """Returns the sha256 over a header (without its own entry) and all arrays, in hexadecimal."""
    entries = {name: entry for name, entry in header.items() if name != "sha256"}
    sha = hashlib.sha256(json.dumps(entries, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        sha.update(f"{name} {array.dtype} {array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()
