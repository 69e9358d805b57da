"""Tests several views of a shot in the stand-in for Nuke, with a real server and real pictures."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nuke_standin
import numpy as np
import OpenImageIO as oiio
import pytest
from nuke_session import (
    open_copy,
    plugin,
    read_node,
    request_of,
    state,
    under,
    until,
    until_said,
    work,
)
from nuke_standin import Node, Session
from running_server import Server, inputs

from core.edit.directions import Direction, Directions, save_directions
from core.media.write import write_png
from core.personalize.character import load_character
from core.solve.latent_track import load_track

FIRST, LAST = 1001, 1002
VIEWS = ("left", "right")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Returns a character's file, and a clip's pattern; its right view is the left one mirrored."""
    folder = tmp_path_factory.mktemp("given")
    character, pattern = inputs(folder)
    who = load_character(character)
    smile = Direction((who.anchors[2] - who.anchors[0]).numpy() / 6)
    save_directions(
        character.with_suffix(".directions"), Directions({"smile": smile}, owner=who.hash)
    )
    for view in VIEWS:
        (folder / view).mkdir()
    for number in range(FIRST, LAST + 1):
        path = Path(pattern.replace("####", str(number)))
        shutil.copyfile(path, folder / "left" / path.name)
        pixels = oiio.ImageBuf(str(path)).get_pixels(oiio.UINT8)
        write_png(folder / "right" / path.name, np.ascontiguousarray(pixels[:, ::-1, :3]))
    return character, str(folder / "%V" / "plate.####.png")


@pytest.fixture
def stereo() -> Iterator[Session]:
    with nuke_standin.running(views=VIEWS) as one:
        yield one


def script(session: Session, given: tuple[Path, str], folder: Path, **knobs: object) -> Node:
    """Saves a script with a stereo plate and a Reenact below; returns the Reenact."""
    session.module.frame(FIRST)
    node = under(session, "Reenact", read_node(session, given[1], FIRST, LAST))
    quick = {"character": given[0].as_posix(), "neutral": "off", "steps": 2}
    for knob, value in {**quick, "first": FIRST, "last": LAST, **knobs}.items():
        node[knob].setValue(value)
    session.module.scriptSaveAs(str(folder / "shot.nk"), True)
    return node


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, running: Server, given: tuple[Path, str]
) -> Path:
    """Makes a script whose Reenact has submitted both views at once."""
    folder = tmp_path_factory.mktemp("made")
    with (
        patch.dict(os.environ, {"REENACT_HOME": str(running.folder)}),
        nuke_standin.running(views=VIEWS) as session,
    ):
        node = script(session, given, folder, crops=True)
        session.press(node, "all_views")
        assert node["view"].value() == "all"
        session.press(node, "submit")
        until_said(session, node, "left: ")
        until_said(session, node, "right: ")
        until(session, node, "done")
        assert node["state"].value() == "Reenact1_v001: views left and right."
        session.module.scriptSaveAs(str(folder / "shot.nk"), True)
    return folder


@pytest.fixture
def shot(stereo: Session, made: Path, tmp_path: Path) -> tuple[Node, Path]:
    """Opens the shot in a folder of the test's own; returns the Reenact, and its version."""
    folder = tmp_path / "shot"
    open_copy(stereo, made, folder)
    stereo.module.frame(FIRST)
    node = stereo.module.toNode("Reenact1")
    stereo.pump(lambda: node["ready"].value(), 10, "the node")
    return node, folder / "reenact" / "Reenact1_v001"


def alpha(version: Path, view: str) -> np.ndarray:
    """Returns the alpha of a view's first frame over its data window, from its file."""
    buffer = oiio.ImageBuf(str(version / view / f"{version.name}.{view}.{FIRST}.exr"))
    whole = np.zeros((buffer.roi_full.height, buffer.roi_full.width), np.float32)
    inside = buffer.roi
    whole[inside.ybegin : inside.yend, inside.xbegin : inside.xend] = buffer.get_pixels()[..., 3]
    return whole


def test_each_view_of_an_input_is_rendered_into_files_of_its_own(
    stereo: Session, given: tuple[Path, str], tmp_path: Path
) -> None:
    """Nuke writes all views that a Write's own knob names into one EXR."""
    node = script(stereo, given, tmp_path, last=FIRST, source="render", view="all")
    write = node.node("Source")
    write["views"].setValue("left")  # of a script that had other views when it was made
    for view, request in request_of(node).views.items():
        (path,) = request.source.paths
        shown = stereo.look(node.input(0), FIRST, view)["red"]
        np.testing.assert_allclose(
            oiio.ImageBuf(path).get_pixels()[..., 0], shown, rtol=1e-3, atol=1e-4
        )
    assert write["views"].value() == "left"


@pytest.mark.parametrize("parts", [1, 2])
def test_of_an_exr_with_both_views_each_job_gets_its_own(
    stereo: Session, given: tuple[Path, str], tmp_path: Path, parts: int
) -> None:
    """Nuke writes all views of a Write into one EXR; readers without views find the first one."""
    path = str(tmp_path / f"stereo.{FIRST}.exr")
    grey = [np.full((90, 160, 3), value, np.float32) for value in (0.25, 0.75)]
    specs = [oiio.ImageSpec(160, 90, 6 // parts, oiio.HALF) for _ in range(parts)]
    if parts == 1:
        specs[0].channelnames = (*"RGB", "right.R", "right.G", "right.B")
        specs[0].attribute("multiView", "string[2]", VIEWS)
        specs[0].attribute("manifest", "n" * (1 << 21))  # as long as a Cryptomatte's
        grey = [np.dstack(grey)]
    else:
        for spec, view in zip(specs, VIEWS, strict=True):
            spec.attribute("view", view)
            spec.attribute("oiio:subimagename", f"rgb.{view}")
    output = oiio.ImageOutput.create(path)
    assert output.open(path, tuple(specs))
    for part, pixels in enumerate(grey):
        assert part == 0 or output.open(path, specs[part], "AppendSubimage")
        assert output.write_image(pixels)
    output.close()
    plate = str(tmp_path / "stereo.####.exr")
    node = script(stereo, (given[0], plate), tmp_path, last=FIRST, view="all")
    node.input(0)["raw"].setValue(True)
    sent = {view: request.source.paths[0] for view, request in request_of(node).views.items()}
    assert sent["left"] == path
    for view, value in zip(VIEWS, (0.25, 0.75), strict=True):
        assert oiio.ImageBuf(sent[view]).get_pixels()[..., :3] == pytest.approx(value, abs=1e-3)
    for view, said in (("right", "holds several views"), ("left", "")):
        node["view"].setValue(view)
        node["source"].setValue("files")
        if said:
            stereo.press(node, "submit")
            assert said in node["state"].value()
        else:
            assert request_of(node).source.paths == [path]


def test_both_views_are_one_version_and_each_is_seen_in_its_own(
    stereo: Session, shot: tuple[Node, Path]
) -> None:
    node, version = shot
    assert sorted(p.name for p in version.iterdir() if p.is_dir()) == ["left", "right"]
    file = node.node("Result")["file"].value()
    assert file == f"{version.as_posix()}/%V/Reenact1_v001.%V.%04d.exr"
    assert node["version"].values() == ["upstream", "Reenact1_v001"]
    assert Path(node["track"].value()) == version / "left" / "track.latents"
    for view in VIEWS:
        content = json.loads((version / view / "run.json").read_text())
        assert content["source"]["view"] == view
        assert f"/{view}/plate." in content["source"]["paths"][0]
        assert len(load_track(version / view / "track.latents").numbers) == LAST - FIRST + 1
        np.testing.assert_array_equal(stereo.look(node, FIRST, view)["alpha"], alpha(version, view))
        attribute = oiio.ImageBuf(str(version / view / f"Reenact1_v001.{view}.{LAST}.exr")).spec()
        assert attribute.getattribute("reenact:track") == f"Reenact1_v001.{view}"
    left, right = (stereo.look(node, FIRST, view)["alpha"] for view in VIEWS)
    # The faces are mirrored, so what is drawn of them is on either side.
    middle = [np.average(np.arange(a.shape[1]), weights=a.sum(0)) for a in (left, right)]
    assert abs(middle[0] - (left.shape[1] - 1 - middle[1])) < 3
    stereo.set(node, "output_as", "aligned crop")
    crops = [stereo.look(node, FIRST, view)["red"] for view in VIEWS]
    assert crops[0].shape == crops[1].shape == (64, 64)
    assert not np.array_equal(*crops)


def test_nodes_below_work_on_every_view(
    stereo: Session, server: Server, shot: tuple[Node, Path], tmp_path: Path
) -> None:
    node, version = shot
    edit = under(stereo, "ReenactEdit", node)
    stereo.set(edit, "live", False)
    stereo.set(edit, "smile", 2.0)
    repair = under(stereo, "ReenactRepair", edit)
    stereo.set(repair, "repairs", f"hold {LAST} from {FIRST}")
    for one in (edit, repair):
        stereo.press(one, "submit")
        until(stereo, one, "done")
        assert one["state"].value() == f"{one.name()}_v001: views left and right."
    edited, repaired = (
        version.parent / f"{name}_v001" for name in ("ReenactEdit1", "ReenactRepair1")
    )
    for view in VIEWS:
        first, second, third = (
            load_track(folder / view / "track.latents") for folder in (version, edited, repaired)
        )
        assert (second.parent, third.parent) == (first.hash, second.hash)
        for one, folder in ((edit, edited), (repair, repaired)):
            seen = stereo.look(one, FIRST, view)
            np.testing.assert_array_equal(seen["alpha"], alpha(folder, view))
    assert edit["character"].value() == node["character"].value()
    stereo.module.frame(FIRST)
    stereo.press(edit, "preview")  # of the first view
    until_said(stereo, edit, f"Frame {FIRST}, live.")
    stereo.set(edit, "show", "result")

    # A version of both views is compared, approved and read as one of one view.
    stereo.press(edit, "approve")
    until_said(stereo, edit, "is approved")
    note = json.loads((edited / "approved.json").read_text())
    assert sorted(note["tracks"]) == ["left/track.latents", "right/track.latents"]
    stereo.press(edit, "create_read")
    read = stereo.module.toNode(edit["read_name"].value())
    for view in VIEWS:
        seen, plain = (stereo.look(n, FIRST, view)["red"] for n in (edit, read))
        np.testing.assert_array_equal(seen, plain)
    stereo.press(edit, "create_read")
    assert stereo.module.toNode(edit["read_name"].value()) is read
    stereo.set(node, "compare", "Reenact1_v001")
    assert node.node("Compare")["file"].value() == node.node("Result")["file"].value()
    stereo.set(edit, "version", "upstream")
    np.testing.assert_array_equal(
        stereo.look(edit, FIRST, "right")["red"], stereo.look(node, FIRST, "right")["red"]
    )
    stereo.set(edit, "version", "ReenactEdit1_v001")
    np.testing.assert_array_equal(
        stereo.look(edit, FIRST, "right")["alpha"], alpha(edited, "right")
    )


def test_what_is_upstream_is_rendered_for_every_view(
    stereo: Session, given: tuple[Path, str], tmp_path: Path
) -> None:
    node = script(stereo, given, tmp_path, view="right, left", last=FIRST)
    node.setInput(0, under(stereo, "NoOp", node.input(0)))
    request = request_of(node)
    assert list(request.views) == ["right", "left"]
    pixels = {}
    for view, one in request.views.items():
        (path,) = one.source.paths
        pixels[view] = oiio.ImageBuf(path).get_pixels()
        shown = stereo.look(node.input(0), FIRST, view)
        np.testing.assert_allclose(pixels[view][..., 0], shown["red"], rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(pixels["right"], pixels["left"][:, ::-1])
    assert not request_of(node, FIRST).views  # a preview is of the first
    assert request_of(node, FIRST).source.view == "right"
    for text, said in (("left, middle", "no view middle"), ("", ""), ("left", "")):
        node["view"].setValue(text)
        if said:
            with pytest.raises(Exception, match=said):
                request_of(node)
        else:
            assert not request_of(node).views
            assert request_of(node).source.view == "left"


def test_cancel_stops_all_views_and_resume_goes_on_after_opening(
    stereo: Session, server: Server, given: tuple[Path, str], tmp_path: Path
) -> None:
    node = script(stereo, given, tmp_path, view="all", steps=3000)
    with server.client() as client:
        before = {job["id"] for job in client.jobs()}

        def new() -> list[dict[str, Any]]:
            return [job for job in client.jobs() if job["id"] not in before]

        def solves() -> bool:
            return any(job["progress"].get("stage") == "solving" for job in new())

        stereo.press(node, "submit")
        stereo.pump(solves, 120, "the first view's solve")
        stereo.press(node, "cancel")
        until(stereo, node, "cancelled")
        jobs = new()
        assert len(jobs) == 2

        def states() -> set[str]:
            return {client.status(job["id"])["state"] for job in jobs}

        stereo.pump(lambda: states() == {"cancelled"}, 60, "both to stop")
    assert not node["has_result"].value()
    assert node["next"].label() == "Resume"
    stereo.module.scriptSaveAs(str(tmp_path / "shot.nk"), True)
    stereo.module.scriptOpen(str(tmp_path / "shot.nk"))
    node = stereo.module.toNode("Reenact1")
    stereo.press(node, "resume")
    until_said(stereo, node, "left: ")
    stereo.press(node, "cancel")
    until(stereo, node, "cancelled")
    assert not list((tmp_path / "reenact").glob("*_v002"))


def test_a_script_that_is_closed_meanwhile_finds_both_views_again(
    stereo: Session, server: Server, given: tuple[Path, str], tmp_path: Path
) -> None:
    node = script(stereo, given, tmp_path, view="all", steps=5)
    stereo.press(node, "submit")
    until_said(stereo, node, "left: ")
    stereo.module.scriptSaveAs(str(tmp_path / "shot.nk"), True)
    assert state(node) in plugin("runs").BUSY
    stereo.module.scriptOpen(str(tmp_path / "shot.nk"))
    node = stereo.module.toNode("Reenact1")
    until(stereo, node, "done")
    version = tmp_path / "reenact" / "Reenact1_v001"
    for view in VIEWS:
        np.testing.assert_array_equal(stereo.look(node, FIRST, view)["alpha"], alpha(version, view))
    assert not work().run_of(node).is_alive() or node["has_result"].value()


def test_what_is_wrong_with_a_view_is_said_with_its_name(
    stereo: Session, server: Server, given: tuple[Path, str], tmp_path: Path
) -> None:
    plates = tmp_path / "plates"
    shutil.copytree(Path(given[1]).parents[1] / "left", plates / "left")
    node = script(stereo, given, tmp_path, view="all")
    node.input(0)["file"].setValue((plates / "%V" / "plate.####.png").as_posix())
    stereo.press(node, "submit")
    until(stereo, node, "failed")
    assert node["state"].value().startswith("View right: There is no file")
    assert not (tmp_path / "reenact").exists() or not list((tmp_path / "reenact").iterdir())


def test_the_log_of_a_view_that_failed_is_found(
    stereo: Session, server: Server, given: tuple[Path, str], tmp_path: Path
) -> None:
    plates = tmp_path / "plates"
    shutil.copytree(Path(given[1]).parents[1] / "left", plates / "left")
    (plates / "right").mkdir()
    for path in (plates / "left").iterdir():
        shape = oiio.ImageBuf(str(path)).get_pixels(oiio.UINT8).shape
        write_png(plates / "right" / path.name, np.zeros((*shape[:2], 3), np.uint8))
    node = script(stereo, given, tmp_path, view="all")
    node.input(0)["file"].setValue((plates / "%V" / "plate.####.png").as_posix())
    stereo.press(node, "submit")
    until(stereo, node, "failed")
    assert node["state"].value().startswith("View right: ")
    assert node["next"].label() == "Show log"
    opened: list[Path] = []
    with patch.object(plugin("launcher"), "open_path", opened.append):
        stereo.press(node, "next")
    (log,) = opened
    assert log.parent == Path(node["run"].value())
    said = [line for line in log.read_text(encoding="utf-8").splitlines() if "right: " in line]
    assert any(node["state"].value().removeprefix("View right: ") in line for line in said)
