"""Where results go: no output is an input, or another output, and what is replaced is said."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from core.base.errors import ReenactError
from core.base.files import check_writable
from core.media.numbering import frame_path, is_pattern, matching_numbers, split_pattern

if TYPE_CHECKING:
    from core.media.clip import Clip


class OverwritesInputError(ReenactError):
    """An output would overwrite an input, or another output; nothing was written."""


def check_outputs(
    outputs: Mapping[str, Path | str | None],
    inputs: Mapping[str, Path | Clip | Sequence[Path] | None],
    removed: Iterable[Path] = (),
) -> None:
    """Refuses outputs that are inputs, that are each other, or that can't be written.

    Every command calls it before its work. One file may have several names: relative, through
    links, in other case where the disk ignores it, or as a frame of a pattern. All are recognised.

    Args:
        outputs: where results go, by what they are: files, or patterns with # for frames; None:
            not wanted.
        inputs: what is read, by what it is; None: it is not there.
        removed: folders that are removed when the work is done.

    Raises:
        OverwritesInputError: an output is an input or another output, or an input would be removed.
        core.base.files.NotWritableError: an output can't be written.
    """
    written = {name: _Place(str(path)) for name, path in outputs.items() if path is not None}
    read = list(_places(inputs))
    for output in written.values():
        for name, source in read:
            if output.is_frame_of(source):
                verb = "overwrite" if os.path.lexists(output.path) else "become"
                raise OverwritesInputError(
                    f"{output.path} would {verb} a frame of {source.path}, the {name}, which is "
                    "read. Choose another place."
                )
            if output.overwrites(source):
                raise OverwritesInputError(
                    f"{output.path} would overwrite {source.path}, the {name}, which is read. "
                    "Choose another place."
                )
    for one, other in combinations(written.values(), 2):
        if one.collides(other):
            raise OverwritesInputError(
                f"{one.path} and {other.path} would both be written in one place. Choose another "
                "for one of them."
            )
    for folder in removed:
        for name, source in read:
            if source.lies_in(folder):
                raise OverwritesInputError(
                    f"{source.path}, the {name}, lies in {folder}, which is removed when the work "
                    "is done. Move it to another place."
                )
    for output in written.values():
        check_writable(output.path)


def foreign_frames(outputs: Mapping[str, Path | str | None]) -> dict[str, tuple[int, ...]]:
    """Returns the EXRs at places of frames that Reenact did not write, each with what tells it.

    That changes when the file is replaced.

    Args:
        outputs: as for `check_outputs`.
    """
    from core.media.clip import TASK_ATTRIBUTE
    from core.media.pictures import read_attribute  # slow to import

    found = {}
    for pattern in outputs.values():
        if pattern is None or not is_pattern(str(pattern)):
            continue
        for number in _existing_numbers(str(pattern)):
            path = frame_path(str(pattern), number)
            if Path(path).suffix.lower() == ".exr" and read_attribute(path, TASK_ATTRIBUTE) is None:
                found[path] = _state(path)
    return found


def replaced_note(before: Mapping[str, tuple[int, ...]]) -> str | None:
    """Returns a sentence on those of `foreign_frames` that were replaced since; None for none."""
    paths = sorted(path for path, state in before.items() if _state(path) not in (state, ()))
    if not paths:
        return None
    more = f" to {os.path.basename(paths[-1])}" if len(paths) > 1 else ""
    were = "frame was" if len(paths) == 1 else "frames were"
    return f"{len(paths)} {were} replaced that Reenact had not written: {paths[0]}{more}"


def _existing_numbers(pattern: str) -> list[int]:
    try:
        return matching_numbers(pattern)
    except OSError:  # no such folder yet
        return []


def _state(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _places(
    inputs: Mapping[str, Path | Clip | Sequence[Path] | None],
) -> Iterator[tuple[str, _Place]]:
    """Yields what each input is called, and where it lies."""
    for key, value in inputs.items():
        name = key.replace("_", " ")
        if value is None:
            continue
        if isinstance(value, Path):
            yield name, _Place(str(value), literal=True)
        elif isinstance(value, Sequence):
            for path in value:
                yield name, _Place(str(path), literal=True)
        else:
            yield name, _Place(value.path, literal=value.kind != "sequence")
            if value.config and os.path.isfile(value.config):
                yield f"OCIO config of the {name}", _Place(value.config, literal=True)


@dataclass(frozen=True)
class _Place:
    """A file, or the files of a pattern with # for a number.

    Attributes:
        path: as the user wrote it.
        literal: whether a # in its name stands for itself.
    """

    path: str
    literal: bool = False

    @property
    def is_pattern(self) -> bool:
        return not self.literal and is_pattern(self.path)

    @cached_property
    def real(self) -> str:
        """The path with the folder's real name: "new/../in" is "in", before "new" exists."""
        folder, name = os.path.split(self.path)
        return os.path.join(os.path.realpath(folder), name)

    @cached_property
    def folder(self) -> object:
        """What tells the folder from others, whatever it is called."""
        folder = os.path.dirname(self.real)
        return next(_identity(folder), folder)  # still to be made: by its name

    @cached_property
    def parts(self) -> tuple[str, str]:
        """What stands before and behind the number in a pattern's name, by which disks tell it."""
        head, _, tail = split_pattern(self.name)
        return head, tail

    @cached_property
    def name(self) -> str:
        """The name, by which the disk tells files of one folder."""
        folder, name = os.path.split(self.real)
        return name.casefold() if _ignores_case(folder) else name

    def includes(self, other: _Place) -> bool:
        """Returns whether another place, not a pattern, has the name of one of the pattern's."""
        if not self.is_pattern or other.is_pattern or self.folder != other.folder:
            return False
        head, tail = self.parts
        digits = r"-?\d+"
        return bool(re.fullmatch(re.escape(head) + digits + re.escape(tail), other.name))

    def is_frame_of(self, source: _Place) -> bool:
        """Returns whether a file that need not exist has the name of a frame of a clip."""
        return source.includes(self)

    def same_name(self, other: _Place) -> bool:
        """Returns whether two places have the same name, or patterns that differ in # alone."""
        if self.folder != other.folder:
            return False
        both = self.is_pattern and other.is_pattern
        return self.name == other.name or (both and self.parts == other.parts)

    def overwrites(self, source: _Place) -> bool:
        """Returns whether writing here changes what is read there."""
        if self.same_name(source) or self.includes(source):
            return True
        return bool(self.files) and not self.files.isdisjoint(source.files)

    def collides(self, other: _Place) -> bool:
        """Returns whether two outputs are one, or one is a folder that the other lies in."""
        if self.same_name(other) or self.includes(other) or other.includes(self):
            return True
        links = not (self.is_pattern or other.is_pattern)
        if links and os.path.realpath(self.path) == os.path.realpath(other.path):
            return True
        return self.lies_in(other.path) or other.lies_in(self.path)

    def lies_in(self, folder: str | Path) -> bool:
        """Returns whether it lies in a folder, at any depth."""
        return Path(os.path.realpath(self.path)).parent.is_relative_to(os.path.realpath(folder))

    @cached_property
    def files(self) -> set[tuple[int, int]]:
        """Returns device and inode of each file that exists here, of links of what they lead to."""
        own = set(_identity(self.real))
        if not self.is_pattern:
            return own
        head, _, tail = split_pattern(os.path.basename(self.path))
        expected = re.compile(
            re.escape(head) + r"(-?\d+)" + re.escape(tail), re.DOTALL | re.IGNORECASE
        )
        try:
            names = os.listdir(os.path.dirname(self.real))
        except OSError:
            return own
        found = (expected.fullmatch(name) for name in names)
        paths = {frame_path(self.real, int(match[1])) for match in found if match}
        return own | {identity for path in paths for identity in _identity(path)}


def _identity(path: str) -> Iterator[tuple[int, int]]:
    """Yields device and inode of a file, if it exists."""
    try:
        status = os.stat(path)
    except OSError:
        return
    yield status.st_dev, status.st_ino


def _ignores_case(folder: str) -> bool:
    """Returns whether a disk takes names in other case for the same, as far as can be told.

    Args:
        folder: its real path; it need not exist.
    """
    path = folder
    while not os.path.exists(path) or os.path.basename(path).swapcase() == os.path.basename(path):
        if os.path.dirname(path) == path:
            return False
        path = os.path.dirname(path)
    swapped = os.path.join(os.path.dirname(path), os.path.basename(path).swapcase())
    return os.path.exists(swapped) and os.path.samefile(path, swapped)
