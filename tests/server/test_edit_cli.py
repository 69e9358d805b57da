"""Directions and edits on the command line: through a server, and in its own process."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from OpenImageIO import ImageBuf
from reenact import protocol
from running_server import finish
from small_character import small_character

from core.base.keyframes import KeyframeError
from core.edit.directions import Direction, Directions, load_directions, save_directions
from core.edit.editing import EditError
from core.face.measures import MEASURES
from core.media.outputs import OverwritesInputError
from core.personalize.character import Character, load_character, save_character
from core.render.geometry import deciding_frames
from core.solve.latent_track import LatentTrack, load_track, save_track
from server.cli import edit as edit_cli
from server.cli import remote
from server.cli.directions import directions
from server.cli.inspect import inspect
from server.cli.reporting import Report
from server.jobs import registry
from server.jobs.common import Context
from server.jobs.edit import edit_track, load_named_directions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A character `me`, its directions, and its track `shot` of four frames."""
    folder = tmp_path_factory.mktemp("edits")
    save_character(folder / "me.character", small_character())
    who = load_character(folder / "me.character")
    save_track(folder / "shot.latents", shot(who))
    anchors = who.anchors.numpy()
    found = {
        "grin": Direction((anchors[2] - anchors[0]) / 4),
        "turn": Direction((anchors[3] - anchors[4]) / 8),
    }
    save_directions(folder / "me.directions", Directions(found, owner=who.hash))
    return folder


def shot(who: Character, frames: int = 4) -> LatentTrack:
    count, rows = len(who.anchors), who.generator.architecture.num_ws
    alpha = np.full((frames, count), 1 / count, np.float32)
    codes = np.repeat((alpha @ who.anchors.numpy())[:, None], rows, 1)
    nothing = np.zeros(frames, np.float32)
    return LatentTrack(
        who.hash,
        1001 + np.arange(frames),
        np.ones(frames, np.uint8),
        np.arange(frames) == 0,
        alpha,
        np.zeros((frames, rows, count), np.float32),
        codes,
        codes,
        np.zeros((86, 3), np.float32),
        np.full((frames, 478, 3), np.nan, np.float32),
        np.full((frames, 4, 2), np.nan),
        nothing + 1,
        {"keypoints": nothing},
        {"keypoint_error": nothing},
        {},
    )


def context(folder: Path, track: Path, result: str, path: Path) -> Context:
    """What a job on a track, of the folder's character and directions, runs in."""
    files = {
        "character": folder / "me.character",
        "directions.0": folder / "me.directions",
        "track": track,
    }
    return Context(Report(True), files, {}, {result: path})


def results(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], list[str]]:
    """What a command said with --json: its result, and its notes."""
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (result,) = [line["result"] for line in lines if "result" in line]
    return result, [line["note"] for line in lines if "note" in line]


def test_the_server_edits_as_the_command_line_does(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {
        "latents": folder / "shot.latents",
        "character": folder / "me.character",
        "set_": ["grin@coarse+middle=0.5", "turn=1001:0:smooth,1003:1:hold,1004:-1"],
    }
    edit_cli.edit(**asked, output=tmp_path / "a.latents", local=True, json=True)
    here, notes = results(capsys)
    edit_cli.edit(**asked, output=tmp_path / "b.latents", json=True)
    there, _ = results(capsys)
    assert there == here | {"track": str(tmp_path / "b.latents")}
    assert notes == []
    assert (here["frames"], here["changed"]) == (4, 4)
    assert here["spans"] == {"grin": 1.0, "turn": 1.0}
    assert here["dilation_before"] == 0
    a, b = (load_track(tmp_path / f"{name}.latents") for name in "ab")
    assert a.hash == b.hash  # bit for bit
    parent = load_track(folder / "shot.latents")
    assert a.parent == parent.hash
    grin, turn = load_directions(folder / "me.directions").directions.values()
    moved = a.smooth - parent.smooth
    np.testing.assert_allclose(
        moved[:, 8:, :],
        np.array([0, 0.5, 1, -1])[:, None, None] * np.broadcast_to(turn.vector, (2, 512)),
        atol=1e-5,
    )
    np.testing.assert_allclose(moved[0, :8], np.tile(grin.vector / 2, (8, 1)), atol=1e-5)

    edit_cli.edit(
        folder / "shot.latents",
        tmp_path / "c.latents",
        folder / "me.character",
        moves=tmp_path / "b.latents",
        local=True,
    )
    assert load_track(tmp_path / "c.latents").hash == a.hash  # the recipe replays
    capsys.readouterr()
    inspect(tmp_path / "a.latents", json=True)
    shown, _ = results(capsys)
    assert shown["parent"] == parent.hash
    assert shown["recipe"] == list(a.recipe)


def test_a_frame_is_drawn_edited_without_a_file(folder: Path, tmp_path: Path) -> None:
    move = protocol.Move("grin", "2")
    with remote.connected(Report(True)) as client:  # which starts a server if none runs
        track, character, named = client.send(
            [folder / name for name in ("shot.latents", "me.character", "me.directions")]
        )
        live = protocol.Frame(track, character, 1002, directions=[named], moves=[move])
        job = client.submit(live)
        assert finish(client, job)["state"] == "done"
        (made,) = client.status(job)["files"]
        client.receive([(protocol.File(made["hash"], made["size"]), tmp_path / "live.exr")])
        wrong = client.submit(replace(live, moves=[replace(move, direction="smirk")]))
        status = finish(client, wrong)
        assert (status["state"], "There are: grin, turn" in status["reason"]) == ("failed", True)
    plain = protocol.Frame(protocol.File(), protocol.File(), 1002)
    task = protocol.Edit(protocol.File(), protocol.File(), [], [move])
    shot_path, edited = folder / "shot.latents", tmp_path / "e.latents"
    registry.run_task(task, context(folder, shot_path, "track.latents", edited))
    for name, path in (("shot", shot_path), ("edited", edited)):
        out = tmp_path / f"{name}.####.exr"
        registry.run_task(plain, context(folder, path, "frame", out))
    pixels = {path.name: ImageBuf(str(path)).get_pixels() for path in tmp_path.glob("*.exr")}
    np.testing.assert_array_equal(pixels["live.exr"], pixels["edited.1002.exr"])
    assert np.abs(pixels["live.exr"] - pixels["shot.1002.exr"]).max() > 0.05


def test_a_frame_of_a_long_track_needs_few_frames_to_be_edited(
    folder: Path, tmp_path: Path
) -> None:
    """And comes out as after the whole edit, its steadied mattes too."""
    who = load_character(folder / "me.character")
    square = np.array([[0, 0], [0, 64], [64, 64], [64, 0]], float)
    track = replace(
        shot(who, 60), cut=np.isin(np.arange(60), [0, 28]), quads=np.tile(square, (60, 1, 1))
    )
    plain = protocol.Frame(protocol.File(), protocol.File(), 1031)
    task = replace(plain, moves=[protocol.Move("turn", "1001:-9,1027:2,1033:-4,1060:9")])
    named = load_named_directions([folder / "me.directions"])
    only = deciding_frames(track, 30)
    assert only.tolist() == [*range(28, 35)]  # 3 sigma around its neighbours, but for the cut
    for name, drawn, edited in (
        ("live", task, track),
        ("whole", plain, edit_track(task, track, who, named)),
        ("alone", plain, edit_track(task, track, who, named, np.array([30]))),
    ):
        save_track(tmp_path / "drawn.latents", edited)
        out = tmp_path / f"{name}.####.exr"
        registry.run_task(drawn, context(folder, tmp_path / "drawn.latents", "frame", out))
    live, whole, alone = (
        ImageBuf(str(tmp_path / f"{name}.1031.exr")).get_pixels()
        for name in ("live", "whole", "alone")
    )
    np.testing.assert_array_equal(live, whole)
    assert not np.array_equal(alone, whole)


def test_the_server_finds_directions(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sheet = tmp_path / "me.directions", tmp_path / "sheet.png"
    directions(folder / "me.character", out, sheet, samples=64, json=True)
    said, notes = results(capsys)
    assert said["owner"] == load_character(folder / "me.character").hash
    found = load_directions(out)
    assert [*said["directions"]] == [*found.directions]
    # What else eight faces learnt by heart can do differs from one kind of CPU to the next; it is
    # found or said to be missing.
    assert {"yaw", "pitch"} <= found.directions.keys()
    missing = {note.removeprefix("no direction for ").split(":")[0] for note in found.notes}
    assert found.directions.keys() ^ missing == {*MEASURES}
    assert len(notes) == len(found.notes)
    assert ImageBuf(str(sheet)).spec().width == 10 * 128
    inspect(out)
    assert "+1 of" in capsys.readouterr().out


def test_other_tools_directions_and_what_speaks_against_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(torch.randn(1, 512), tmp_path / "age.pt")
    directions(tmp_path / "age.pt", json=True)
    said, _ = results(capsys)
    assert said["directions"]["age"]["shape"] == [512]
    (age,) = load_directions(tmp_path / "age.directions").directions.values()
    np.testing.assert_array_equal(age.vector, torch.load(tmp_path / "age.pt")[0].numpy())
    for local in (True, False):
        edit_cli.edit(
            folder / "shot.latents",
            tmp_path / "old.latents",
            folder / "me.character",
            [tmp_path / "age.pt"],
            ["age=1"],
            local=local,
            json=True,
        )
        said, _ = results(capsys)
        assert said["spans"]["age"] < 0.5  # most of it lies where nothing was trained
    edit_cli.edit(
        folder / "shot.latents",
        tmp_path / "old.latents",
        folder / "me.character",
        [tmp_path / "age.pt"],
        ["age=1"],
        local=True,
    )
    assert "% of it lies in the span" in capsys.readouterr().out


def test_options_of_an_edit(folder: Path, tmp_path: Path) -> None:
    Move = protocol.Move
    assert edit_cli.setting("smile=-0.8") == Move("smile", "-0.8")
    assert edit_cli.setting("yaw@0-3+fine=1e-1") == Move("yaw", "1e-1", "0-3+fine")
    keyed = "1001:0, 1020:5:smooth,-3:1:hold"
    assert edit_cli.setting(f"yaw@coarse={keyed}") == Move("yaw", keyed, "coarse")
    for wrong in ("smile", "smile=", "=1", "smile@=1"):
        with pytest.raises(typer.BadParameter):
            edit_cli.setting(wrong)
    for wrong in ("x", "nan", "1001:", "a:1", "1:2,3", "1:inf", "1:1e39", "1:1:bounce", "1:1,1:2"):
        with pytest.raises(KeyframeError, match=r"^yaw: "):
            edit_cli.setting(f"yaw={wrong}")
    (tmp_path / "moves.json").write_text(
        '[{"direction": "a", "keys": [[3, 0.1, "hold"], [1, 2]], "rows": "fine"}]'
    )
    assert edit_cli.recalled(tmp_path / "moves.json") == (
        [Move("a", "1:2.0:linear,3:0.1:hold", "fine")],
        None,
    )
    (tmp_path / "moves.json").write_text("{")
    with pytest.raises(EditError, match="JSON"):
        edit_cli.recalled(tmp_path / "moves.json")
    with pytest.raises(EditError, match="not made by an edit"):
        edit_cli.recalled(folder / "shot.latents")


def test_an_edit_that_can_not_be_made_says_what_to_do(folder: Path, tmp_path: Path) -> None:
    given = {
        "latents": folder / "shot.latents",
        "character": folder / "me.character",
        "output": tmp_path / "new.latents",
        "local": True,
    }
    with pytest.raises(typer.BadParameter, match="--set or --moves"):
        edit_cli.edit(**given)
    with pytest.raises(OverwritesInputError, match="the track, which is read"):
        edit_cli.edit(**given | {"output": folder / "shot.latents"}, set_=["grin=1"])
    with pytest.raises(EditError, match="There are: grin, turn"):
        edit_cli.edit(**given, set_=["smirk=1"])
    many = ",".join(f"{number}:0.5" for number in range(1001, 1501))
    with pytest.raises(typer.BadParameter, match="add --local"):
        edit_cli.edit(**given | {"local": False}, set_=[f"grin={many}"])
    save_character(tmp_path / "alone.character", small_character())
    with pytest.raises(edit_cli.DirectionsMissingError, match="reenact directions"):
        edit_cli.edit(**given | {"character": tmp_path / "alone.character"}, set_=["grin=1"])
    with pytest.raises(typer.BadParameter, match=r"\.png"):
        directions(folder / "me.character", sheet=tmp_path / "s.jpg")
    assert [p.name for p in tmp_path.iterdir()] == ["alone.character"]
