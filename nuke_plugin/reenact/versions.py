"""The versions that a node has made: what one of them shows, and which is approved.

A version is a folder `NAME_vNNN`; `files.versions_of` lists those of a node. One of several views
(`ViewsRun`) has a folder for each. Nothing here knows Nuke.
"""

import contextlib
import dataclasses
import errno
import getpass
import json
import time
from pathlib import Path

from reenact import protocol
from reenact.files import Frames, existing_frames, write_file
from reenact.runs import NO_FRAMES, Result, version_knobs
from reenact.tracks import quality

UPSTREAM = "upstream"  # in the menu of versions: what comes in
NOTHING = "nothing"  # in the menu of what a version is compared with

APPROVAL = "approved.json"  # in the folder of an approved version


def version_result(folder: Path) -> Result:
    """Returns what a node shows of a version. Its track and curves are those of the first view.

    Raises:
        OSError, ValueError, KeyError: the version is gone or damaged.
        ServerError: the version has no frames.
    """
    content = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    reads = {"Result": version_frames(folder), "Crops": NO_FRAMES}
    knobs = {**version_knobs(folder, content), "show": "result"}
    if (knobs["track"].parent / "crops").is_dir():
        reads["Crops"] = version_frames(folder, crops=True)
        knobs["has_crops"] = True
    return Result(knobs, quality(knobs["track"]), reads, version=folder.name)


def version_frames(folder: Path, crops: bool = False) -> Frames:
    """Returns the frames of a version; where it has several views, with `%V` for the view.

    Raises:
        OSError, ValueError: the version is gone or damaged.
        ServerError: the version has no frames, or none of a view.
    """
    content = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    views = content.get("views", [])
    if views:
        content = json.loads((folder / views[0] / "run.json").read_text(encoding="utf-8"))
    older = content.get("layer_names", 1) == 1  # folders of older plugins lack it
    below, suffix = ("crops", "_crop") if crops else ("", "")

    def pattern(view: str) -> str:
        name = f"{folder.name}.{view}" if view else folder.name
        return str(folder / view / below / f"{name}{suffix}.####.exr")

    each = [set(existing_frames(pattern(view))) for view in views or [""]]
    frames = Frames.of(pattern("%V" if views else ""), set().union(*each), older)
    same = all(numbers == each[0] for numbers in each)
    return dataclasses.replace(frames, complete=frames.complete and same)


def folder_of(track: str, version: str) -> Path:
    """Returns the folder of a version, from a track or a frame in it.

    Raises:
        KeyError: it is not in that version.
    """
    for folder in Path(track).parents:
        if folder.name == version:
            return folder
    raise KeyError(version)


def approve(folder: Path, node: str, id: str) -> None:
    """Notes in a version folder who has approved it, when, and which tracks these were.

    Args:
        folder: the version's.
        node: the node's name.
        id: the node's.

    Raises:
        OSError: the version is gone, or its folder can't be written to.
    """
    tracks = sorted([*folder.glob("track.latents"), *folder.glob("*/track.latents")])
    if not tracks:
        raise FileNotFoundError(errno.ENOENT, "There is no latent track", str(folder))
    who = ""
    with contextlib.suppress(OSError, KeyError, ImportError):  # this system names no users
        who = getpass.getuser()
    content = {
        "who": who,
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "node": node,
        "node_id": id,
        "tracks": {p.relative_to(folder).as_posix(): protocol.file_hash(p)[0] for p in tracks},
    }
    write_file(folder / APPROVAL, json.dumps(content, indent=1).encode())


def withdraw(folder: Path, id: str) -> None:
    """Withdraws a node's approval of a version; that of another node stays.

    Raises:
        OSError: the folder can't be written to.
    """
    path = folder / APPROVAL
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        if json.loads(path.read_text(encoding="utf-8"))["node_id"] == id:
            path.unlink()
