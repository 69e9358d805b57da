"""The versions that a node has made: what one of them shows, and which is approved.

A version is a folder `NAME_vNNN`; `files.versions_of` lists those of a node. Nothing here knows
Nuke.
"""

import contextlib
import getpass
import json
import time
from pathlib import Path

from reenact import protocol
from reenact.files import Frames, write_file
from reenact.runs import NO_FRAMES, Result, version_knobs
from reenact.shots import existing_frames
from reenact.tracks import quality

UPSTREAM = "upstream"  # in the menu of versions: what comes in
NOTHING = "nothing"  # in the menu of what a version is compared with

APPROVAL = "approved.json"  # in the folder of an approved version


def version_result(folder: Path) -> Result:
    """Returns what a node shows of a version.

    Raises:
        OSError, ValueError, KeyError: the version is gone or damaged.
        ServerError: the version has no frames.
    """
    content = json.loads((folder / "run.json").read_text())
    reads = {"Result": version_frames(folder), "Crops": NO_FRAMES}
    knobs = {**version_knobs(folder, content), "show": "result"}
    if (folder / "crops").is_dir():
        reads["Crops"] = _frames(folder / "crops", f"{folder.name}_crop")
        knobs["has_crops"] = True
    return Result(knobs, quality(folder / "track.latents"), reads, version=folder.name)


def version_frames(folder: Path) -> Frames:
    """Returns the frames of a version.

    Raises:
        OSError: the version is gone.
        ServerError: the version has no frames.
    """
    return _frames(folder, folder.name)


def _frames(folder: Path, name: str) -> Frames:
    pattern = str(folder / f"{name}.####.exr")
    return Frames.of(pattern, existing_frames(pattern))


def approve(folder: Path, node: str, id: str) -> None:
    """Notes in a version folder who has approved it, when, and which track that was.

    Args:
        folder: the version's.
        node: the node's name.
        id: the node's.

    Raises:
        OSError: the version is gone, or its folder can't be written to.
    """
    hash, size = protocol.file_hash(folder / "track.latents")
    who = ""
    with contextlib.suppress(OSError, KeyError, ImportError):  # this system names no users
        who = getpass.getuser()
    content = {
        "who": who,
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "node": node,
        "node_id": id,
        "track": {"hash": hash, "size": size},
    }
    write_file(folder / APPROVAL, json.dumps(content, indent=1).encode())


def withdraw(folder: Path, id: str) -> None:
    """Withdraws a node's approval of a version; that of another node stays.

    Raises:
        OSError: the folder can't be written to.
    """
    path = folder / APPROVAL
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        if json.loads(path.read_text())["node_id"] == id:
            path.unlink()
