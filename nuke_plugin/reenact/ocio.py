"""Colour spaces of the script's OCIO config, and that config as one file that can be sent.

Nuke has PyOpenColorIO. Where a Python lacks it, plain names pass as they are, and what needs the
config is refused.
"""

import hashlib
import io
import os
import posixpath
import re
import zipfile
from pathlib import Path
from typing import Any, Dict, List

from reenact.errors import NodeError
from reenact.files import write_file

# Roles of OCIO and of common configs: each stands for a colour space that only its config knows.
ROLES = {
    "aces_interchange",
    "cie_xyz_d65_interchange",
    "color_picking",
    "color_timing",
    "compositing_linear",
    "compositing_log",
    "data",
    "default",
    "matte_paint",
    "reference",
    "rendering",
    "scene_linear",
    "texture_paint",
}

PROJECT_SETTINGS = "in the Project Settings, under Color"

# A file in a config as OCIO writes it, `src: half.spi1d`; spaces have `src` too, but are no files.
_SOURCE = re.compile(r'\bsrc: (?:"((?:[^"\\]|\\.)*)"|([^,}\n]+))')
_VARIABLE = re.compile(r"\$\{?(\w+)\}?|%(\w+)%")


def space_name(label: str, config: str) -> str:
    """Returns the name of a colour space in a config.

    Args:
        label: what a knob holds or its menu shows: a name, an alias, a role, `ROLE (NAME)`,
            `default (NAME)` or `FAMILY/NAME`, also with more after a tab.
        config: a path, or a built-in `ocio://NAME`.

    Returns:
        The name; empty for data without colour, which Nuke reads as it is.

    Raises:
        NodeError: the config can't be opened, it has no such space, or this Python has no
            PyOpenColorIO to resolve a role.
    """
    opened = _open(config)
    if opened is None:
        name = plain_name(label)
        if name.lower() in ROLES:
            raise NodeError(
                f"This Nuke has no PyOpenColorIO, so nobody can tell which colour space {name} "
                f"stands for. Choose the space by its own name, {PROJECT_SETTINGS}."
            )
        return name
    text, _, more = label.partition("\t")
    texts = [text.strip(), text.rpartition("/")[2].strip()]
    for wrapped in (text.strip(), more.rpartition("\t")[2].strip()):
        outside, _, inside = wrapped.partition(" (")
        if wrapped.endswith(")") and (outside.lower() in ROLES or opened.hasRole(outside)):
            texts += [inside[:-1], inside[:-1].rpartition("/")[2]]
    for name in texts:
        # Alone, the default of a Read is not the role of that name.
        space = opened.getColorSpace(name) if name and name != "default" else None
        if space is not None:
            return "" if space.isData() else str(space.getName())
    raise NodeError(
        f'There is no colour space "{text}" in the OCIO config {config}. Choose one that it has.'
    )


def plain_name(label: str) -> str:
    """Returns the name in a label as far as that is possible without the config."""
    text, _, more = label.partition("\t")
    for wrapped in (text.strip(), more.rpartition("\t")[2].strip()):
        outside, _, inside = wrapped.partition(" (")
        if wrapped.endswith(")") and outside.lower() in ROLES:
            text = inside[:-1]
            break
    return text.rpartition("/")[2].strip()


# -- the config as a file ------------------------------------------------------------------------


def portable(config: str, folder: Path) -> str:
    """Returns one file that holds all of a config.

    That is the config's own file; an archive (`.ocioz`) where the config takes LUTs from files; a
    copy of a built-in config whose content depends on OCIO's version.

    Args:
        config: a path, or a built-in `ocio://NAME`.
        folder: where archives and copies are written; one that exists is used again.

    Returns:
        The file's path; empty for a built-in config that is the same everywhere.

    Raises:
        NodeError: the config takes files from outside its own folder, or this Python has no
            PyOpenColorIO to find its files.
        OSError: it can't be read, or the folder can't be written.
    """
    if config.startswith("ocio://"):
        if not re.search("default|latest", config):
            return ""
        content = _opened(config).serialize().encode()
        path = folder / f"ocio_{_digest(content)}.ocio"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_file(path, content)
        return path.as_posix()
    content = Path(config).read_bytes()
    if content.startswith(b"PK") or b"<FileTransform>" not in content:
        return config
    opened = _opened(config)
    members = _files(opened, config)
    if _fix_variables(opened, content.decode("utf-8", "replace")):
        content = opened.serialize().encode()
    states = [(name, os.stat(file)) for name, file in sorted(members.items())]
    listed = "".join(f"{name} {s.st_size} {s.st_mtime_ns}\n" for name, s in states)
    path = folder / f"ocio_{_digest(content + listed.encode())}.ocioz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, _archive(content, members))
    return path.as_posix()


def title(path: str) -> str:
    """Returns the name that a config's file gives itself; its content decides, not its path."""
    content = Path(path).read_bytes()
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            content = archive.read("config.ocio")
    found = re.search(r"^name: *[\"']?(.+?)[\"']?\s*$", content.decode("utf-8", "replace"), re.M)
    return found[1][:200] if found else "of the script"


def _open(config: str) -> Any:
    """Opens a config; returns None where this Python has no PyOpenColorIO.

    Raises:
        NodeError: it can't be opened.
    """
    try:
        import PyOpenColorIO
    except ImportError:
        return None
    try:
        return PyOpenColorIO.Config.CreateFromFile(config)
    except PyOpenColorIO.Exception as error:
        raise NodeError(
            f"The OCIO config {config or 'of the script'} can't be used: "
            f"{str(error).rstrip('. ')}. Choose another {PROJECT_SETTINGS}."
        ) from error


def _opened(config: str) -> Any:
    opened = _open(config)
    if opened is None:
        raise NodeError(
            f"This Nuke has no PyOpenColorIO, which finds the files of the OCIO config {config}. "
            f"Submit from Nuke's window, or choose a config without files {PROJECT_SETTINGS}."
        )
    return opened


def _files(opened: Any, config: str) -> Dict[str, str]:
    """Returns the files that a config refers to, by their paths relative to it.

    Raises:
        NodeError: one lies outside the config's folder.
    """
    folder, context = os.path.dirname(os.path.abspath(config)), opened.getCurrentContext()
    searched: List[str] = [context.resolveStringVar(p) for p in opened.getSearchPaths()] or [""]
    found = {}
    for quoted, bare in sorted(set(_SOURCE.findall(opened.serialize()))):
        source = context.resolveStringVar(quoted or bare.strip()).replace("\\", "/")
        for path in searched:
            name = posixpath.normpath(posixpath.join(path.replace("\\", "/"), source))
            file = os.path.join(folder, name)
            if not os.path.isfile(file):
                continue
            if os.path.isabs(name) or name.startswith("../"):
                raise NodeError(
                    f"The OCIO config {config} takes {file} from outside its own folder, so it "
                    "can't be sent. Put config and LUTs into one folder with a relative "
                    f"search_path, and choose that config {PROJECT_SETTINGS}."
                )
            found[name] = file
            break
    return found


def _fix_variables(opened: Any, text: str) -> bool:
    """Gives the context variables of a config the values that they have here.

    Returns:
        Whether there are any.
    """
    context, fixed = opened.getCurrentContext(), False
    for first, second in set(_VARIABLE.findall(text)):
        name = first or second
        value = context.resolveStringVar(f"${{{name}}}")
        if value != f"${{{name}}}":
            opened.addEnvironmentVar(name, value)
            fixed = True
    return fixed


def _archive(config: bytes, members: Dict[str, str]) -> bytes:
    """Returns an OCIO archive; the same content always makes the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in [("config.ocio", None), *sorted(members.items())]:
            content = config if file is None else Path(file).read_bytes()
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return buffer.getvalue()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
