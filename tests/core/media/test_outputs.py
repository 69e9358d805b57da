"""No output is an input, whatever it is called."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from core.media.clip import Clip
from core.media.outputs import OverwritesInputError, check_outputs
from core.media.read import open_clip
from core.media.write import write_png


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
