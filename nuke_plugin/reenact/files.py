"""File names of frames and versions, and writing files whole or not at all."""

import contextlib
import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, List

from reenact.errors import ServerError

# The number in a pattern: `####`, or `%04d`, which has 99 digits at most.
FRAME_NUMBER = re.compile(r"#+|%0?(\d{0,2})d")


@dataclass(frozen=True)
class Frames:
    """Files of frames, as a Read shows them.

    Attributes:
        pattern: their path, with `####` for the number.
        first, last: their range.
        complete: whether every frame of the range exists.
        still: whether it is one picture for all frames.
        older: whether their layers have the names of earlier versions (`docs/layers.md`).
    """

    pattern: str
    first: int
    last: int
    complete: bool = True
    still: bool = False
    older: bool = False

    @classmethod
    def of(cls, pattern: str, numbers: Iterable[int], older: bool = False) -> "Frames":
        """Returns the frames of some numbers, of which there is at least one."""
        existing = set(numbers)
        first, last = min(existing), max(existing)
        complete = len(existing) == last - first + 1
        return cls(pattern, first, last, complete, older=older)


def frame_file(pattern: str, number: int) -> str:
    """Returns the file of a frame.

    `####` or `%04d` in the last part of the pattern stands for the number; a pattern without
    either is returned as it is.
    """
    folder, name = os.path.split(pattern)
    filled = FRAME_NUMBER.sub(lambda found: digits(found, number), name, count=1)
    return os.path.join(folder, filled) if filled != name else pattern


def digits(found: "re.Match[str]", number: int) -> str:
    """Returns a frame's number as a match of `FRAME_NUMBER` asks for it."""
    width = len(found[0]) if found[0].startswith("#") else int(found[1] or 1)
    return f"{number:0{width}d}"


def existing_frames(pattern: str) -> List[int]:
    """Returns the frames that exist of a pattern, `a.##.exr` or `a.%02d.exr`; none for one file.

    Raises:
        ServerError: `no_frames`, no frame exists.
    """
    path = Path(pattern)
    found = FRAME_NUMBER.search(path.name)
    if not found:
        return []
    expected = re.compile(
        re.escape(path.name[: found.start()]) + r"(\d+)" + re.escape(path.name[found.end() :])
    )
    matches = [expected.fullmatch(p.name) for p in path.parent.iterdir()]
    numbers = sorted({int(match[1]) for match in matches if match})
    if not numbers:
        raise ServerError("no_frames", f"There is no picture {pattern}.")
    return numbers


def safe_name(name: str, default: str) -> str:
    """Turns the name that a server gives a file into a file name without folders or leading dots.

    Args:
        name: the server's name; `character` becomes `DEFAULT.character`.
        default: the name to use where nothing is left of the server's.
    """
    plain = re.sub(r"[^\w.-]", "_", os.path.basename(name)).lstrip(".")
    return f"{default}.character" if plain == "character" else plain or default


def version_for(folder: Path, name: str, job: str) -> Path:
    """Returns the version folder that holds a job's files, `FOLDER/NAME_vNNN`; creates a new one
    where the job has none.
    """
    pattern = re.compile(re.escape(name) + r"_v(\d{3,})")
    last = 0
    if folder.is_dir():
        for path in folder.iterdir():
            found = pattern.fullmatch(path.name)
            if found and path.is_dir():
                last = max(last, int(found[1]))
                with contextlib.suppress(OSError):
                    if (path / ".job").read_text(encoding="utf-8") == job:
                        return path
    while True:
        last += 1
        path = folder / f"{name}_v{last:03d}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue  # another client was quicker
        write_file(path / ".job", job.encode())
        return path


def mark_version(version: Path, id: str) -> None:
    """Notes in a version folder that it belongs to a node."""
    mark = version / f".node-{id}"
    if not mark.exists():  # `versions_of` asks when it was made
        mark.touch()


def is_marked(version: Path, id: str) -> bool:
    """Returns whether a version folder belongs to a node."""
    return (version / f".node-{id}").exists()


def versions_of(folder: Path, id: str) -> List[str]:
    """Returns the names of the versions with frames that a node has made, oldest first."""
    marks = [
        mark
        for mark in folder.glob(f"*/.node-{id}")
        if any(mark.parent.glob("*.exr")) or any(mark.parent.glob("*/*.exr"))  # of views
    ]
    marks.sort(key=lambda mark: mark.stat().st_mtime_ns)
    return [mark.parent.name for mark in marks]


def write_file(path: Path, content: bytes, durable: bool = True) -> None:
    """Writes a file atomically: readers see all of it or none.

    Args:
        path: of the file.
        content: of the file.
        durable: waits until a power cut can't lose it any more, which takes a busy disk seconds.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
