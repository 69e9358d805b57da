"""Safetensors files with a format, a version and a digest that reveals any change.

A file holds arrays and a header of strings: `format`, `version`, the caller's own entries, and
`sha256` over all of it. Characters, styles and latent tracks are such files. The module needs no
torch, and reading runs no code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from core.base.errors import ReenactError
from core.base.files import atomic_write


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
    header["sha256"] = _digest(header, arrays)
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
    try:
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            if header.get("format") != format:
                raise wrong(f"{path} is a safetensors file, but not a {kind}. Choose another.")
            if not header.get("version", "").isdecimal():
                raise wrong(f"{path} is damaged: it has no version. Copy or make it again.")
            if int(header["version"]) > version:
                raise wrong(f"{path} was written by a newer Reenact. Update this one to load it.")
            if int(header["version"]) < (version if oldest is None else oldest):
                raise wrong(
                    f"{path} was written by an older Reenact. Make it anew, under another name."
                )
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError, AttributeError) as error:  # the latter: bfloat16
        raise wrong(
            f"{path} can't be read as a {kind}: {error}. If it was cut off while being copied, "
            "copy it again."
        ) from error
    if header.get("sha256") != _digest(header, arrays):
        raise wrong(
            f"{path} is damaged: its contents are not those that were written. Copy or make it "
            "again."
        )
    return header, arrays


def _digest(header: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    """Computes the sha256 over the header (without its own entry) and all arrays."""
    entries = {name: entry for name, entry in header.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
