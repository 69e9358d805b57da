"""No output is an input, whatever it is called."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from core.base.files import NotWritableError
from core.media.clip import TASK_ATTRIBUTE, Clip
from core.media.outputs import (
    OverwritesInputError,
    check_outputs,
    foreign_frames,
    replaced_note,
)
from core.media.read import open_clip
from core.media.write import write_exr, write_png


@pytest.fixture
def plate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clip:
    """Frames 1, 2 and 4 below the current folder; `other` leads to their folder."""
    monkeypatch.chdir(tmp_path)
    for number in (1, 2, 4):
        write_png(f"in/p.{number:04d}.png", np.zeros((4, 4, 3)))
    os.symlink("in", "other")
    os.symlink("in/p.0001.png", "link.png")
    os.link("in/p.0002.png", "hard.png")
    os.makedirs("out")
    os.symlink("../in/p.0004.png", "out/q.0004.png")
    return open_clip("in/p.####.png 1-2")


@pytest.mark.parametrize(
    "output",
    [
        "in/p.####.png",
        "in/p.##.png",
        "in/p.0###.png",
        "./in/../in/p.####.png",
        "new/../in/p.####.png",
        "new/deep/../../other/p.0002.png",
        "other/p.####.png",
        "in/p.0001.png",
        "in/p.0003.png",  # a gap of it
        "in/p.0004.png",  # beyond its range
        "other/p.0002.png",
        "link.png",
        "hard.png",
        "out/q.####.png",
    ],
)
@pytest.mark.parametrize("absolute", [False, True])
def test_other_names_of_a_clip_are_told(plate: Clip, output: str, absolute: bool) -> None:
    path = os.path.abspath(output) if absolute else output
    with pytest.raises(OverwritesInputError, match=r"in/p\.####\.png, the plate") as caught:
        check_outputs({"frame": path}, {"plate": plate})
    assert path in str(caught.value)
    for one in (os.path.abspath("in/p.####.png"), "other/p.####.png"):
        with pytest.raises(OverwritesInputError):
            check_outputs({"frame": path}, {"rendered": open_clip(one)})


def test_other_places_are_allowed_beside_the_input(plate: Clip) -> None:
    before = sorted(os.walk("."))
    for path in (
        "in/q.####.png",
        "in/p.png",
        "new/deep/p.####.png",
        "in/p.####.exr",
        "o#1/p.#.png",
    ):
        check_outputs({"frame": path, "sheet": "in/sheet.png", "none": None}, {"plate": plate})
    assert sorted(os.walk(".")) == before


def test_lists_of_files_and_files_with_a_hash_are_told(plate: Clip) -> None:
    Path("a.#.directions").touch()
    files = [Path("link.png"), Path("a.#.directions")]
    with pytest.raises(OverwritesInputError, match="the directions"):
        check_outputs({"track": "./a.#.directions"}, {"directions": files})
    check_outputs({"track": "a.1.directions"}, {"directions": files, "nothing": None})


def test_what_other_outputs_are_is_told(plate: Clip) -> None:
    for one, other in (
        ("out/a.png", "other/../out/a.png"),
        ("new/a.####.png", "new/a.0007.png"),
        ("new/a.####.png", "new/a.#.png"),
        ("a.png", "a.png/b.png"),
        ("link.png", "in/p.0001.png"),
    ):
        with pytest.raises(OverwritesInputError, match="both"):
            check_outputs({"one": one, "other": other}, {})


def test_a_removed_folder_holds_no_input(plate: Clip) -> None:
    with pytest.raises(OverwritesInputError, match="is removed"):
        check_outputs({"frame": "o.####.png"}, {"plate": plate}, [Path("other")])
    check_outputs({"frame": "o.####.png"}, {"plate": plate}, [Path("out")])


def test_other_case_is_told_where_the_disk_ignores_it(
    plate: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_outputs({"frame": "in/P.####.png"}, {"plate": plate})  # this disk tells them apart
    monkeypatch.setattr("core.media.outputs._ignores_case", lambda folder: True)
    for path in ("in/P.####.png", "in/P.0009.PNG"):
        with pytest.raises(OverwritesInputError):
            check_outputs({"frame": path}, {"plate": plate})


def test_a_link_to_nowhere_is_told_wherever_the_way_leads(plate: Clip) -> None:
    Path("gone").symlink_to("nowhere/at/all")
    Path("there").symlink_to("other")
    Path("other/file").touch()
    before = sorted(os.walk("."))
    for path in (
        "gone/../a.png",
        "gone/a.####.png",
        "out/../gone/../new/a.png",
        "gone/../../a.png",
    ):
        with pytest.raises(NotWritableError, match="gone leads nowhere"):
            check_outputs({"frame": path}, {"plate": plate})
    with pytest.raises(NotWritableError, match="file is a file"):
        check_outputs({"frame": "there/../other/file/../a.png"}, {"plate": plate})
    with pytest.raises(NotWritableError, match="is a folder"):
        check_outputs({"frame": "new/../out"}, {})
    for path in ("new/../a.png", "there/../a.png", "new/deep/../../in/a.png", "there/a.png"):
        check_outputs({"frame": path}, {"plate": plate})
    assert sorted(os.walk(".")) == before


def test_frames_of_others_that_are_replaced_are_counted(plate: Clip) -> None:
    black = np.zeros((4, 6, 3), np.float32)
    for number in (1001, 1002, 1004, 1005):
        write_exr(f"out/a.{number}.exr", black)
    write_exr("out/a.1003.exr", black, attributes={TASK_ATTRIBUTE: "hash"})
    outputs = {"frame": "out/a.####.exr", "none": None, "sheet": "out/sheet.png"}
    foreign = foreign_frames(outputs)
    assert replaced_note(foreign) is None
    for number in (1001, 1002, 1003):
        write_exr(f"out/a.{number}.exr", black, attributes={TASK_ATTRIBUTE: "hash"})
    os.remove("out/a.1005.exr")
    note = "2 frames were replaced that Reenact had not written: out/a.1001.exr to a.1002.exr"
    assert replaced_note(foreign) == note
    write_exr("out/a.1004.exr", black, attributes={TASK_ATTRIBUTE: "hash"})
    assert foreign_frames(outputs) == {}
    assert foreign_frames({"frame": "new/a.####.exr"}) == {}
