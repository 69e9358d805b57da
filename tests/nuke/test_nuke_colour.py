"""Tests that a script's colour spaces and OCIO config reach the server, and that colours return.

Nuke's PyOpenColorIO is the package `opencolorio`; configs are real files, and so is the server.
"""

import dataclasses
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import OpenImageIO as oiio
import PyOpenColorIO as OCIO
import pytest
from nuke_session import read_node, request_of, state, under, until
from nuke_standin import Node, Session
from reenact import ocio, protocol, runs, shots
from reenact.errors import NodeError, ServerError
from running_server import FRAMES, Server, finish, inputs, solve_task

from core.media import colour
from core.media.write import write_exr

FIRST, LAST = 1001, 1000 + FRAMES

# A show's config: roles, an alias, a space of data, and a camera whose curve is a LUT in a file.
CONFIG = """ocio_profile_version: 2.1
environment: {{}}
search_path: luts
strictparsing: true
name: {name}
roles:
  default: raw
  matte_paint: sRGB - Texture
  scene_linear: show_linear
file_rules:
  - !<Rule> {{name: Default, colorspace: default}}
displays:
  sRGB:
    - !<View> {{name: Raw, colorspace: raw}}
colorspaces:
  - !<ColorSpace>
    name: rec709_linear
    aliases: [lin_rec709]
  - !<ColorSpace>
    name: show_linear
    family: Scene
    aliases: [show_lin]
    to_scene_reference: !<MatrixTransform>
      matrix: [{gain}, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
  - !<ColorSpace>
    name: sRGB - Texture
    aliases: [srgb_tx]
    family: Texture
    to_scene_reference: !<ExponentWithLinearTransform> {{gamma: 2.4, offset: 0.055}}
  - !<ColorSpace>
    name: raw
    isdata: true
{more}"""
CAMERA = """  - !<ColorSpace>
    name: Show Camera (v1)
    family: Input/Cameras
    to_scene_reference: !<FileTransform> {src: camera.spi1d, interpolation: linear}
"""
LUT = "Version 1\nFrom 0.0 1.0\nLength 3\nComponents 1\n{\n0.0\n0.1\n1.0\n}\n"


def write_config(folder: Path, name: str = "show", gain: float = 0.5, more: str = "") -> Path:
    """Writes a config; red of its working space is `gain` times that of linear Rec.709."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.ocio"
    path.write_text(CONFIG.format(name=name, gain=gain, more=more))
    if more:
        (folder / "luts").mkdir(exist_ok=True)
        (folder / "luts/camera.spi1d").write_text(LUT)
    OCIO.Config.CreateFromFile(str(path)).validate()
    return path


def use_config(session: Session, path: Path, working: str = "scene_linear") -> None:
    """Sets up the script's colour management as the Project Settings do."""
    root = session.module.root()
    for knob, value in {
        "colorManagement": "OCIO",
        "OCIO_config": "custom",
        "customOCIOConfigPath": path.as_posix(),
        "workingSpaceLUT": working,
    }.items():
        root[knob].setValue(value)


def choose_space(read: Node, item: str) -> None:
    """Chooses an item of a Read's menu of colour spaces."""
    read["colorspace"].setValues([item])
    read["colorspace"].setValue(0)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Returns a character's file and a driving clip's pattern."""
    return inputs(tmp_path_factory.mktemp("given"))


@pytest.fixture
def node(session: Session, given: tuple[Path, str], tmp_path: Path) -> Node:
    """A Reenact below a Read of the driving clip, in a saved script."""
    node = under(session, "Reenact", read_node(session, given[1], FIRST, LAST))
    for knob, value in {
        "character": str(given[0]),
        "first": FIRST,
        "last": FIRST,
        "neutral": "off",
        "steps": 3,
    }.items():
        node[knob].setValue(value)
    session.module.scriptSaveAs(str(tmp_path / "shot.nk"), True)
    return node


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("scene_linear", "show_linear"),
        ("SCENE_LINEAR", "show_linear"),
        ("scene_linear (show_linear)", "show_linear"),
        ("scene_linear\tscene_linear (show_linear)", "show_linear"),
        ("show_lin", "show_linear"),
        ("Scene/show_linear", "show_linear"),
        ("show_linear\tScene/show_linear\t\tshow_lin", "show_linear"),
        ("default (sRGB - Texture)", "sRGB - Texture"),
        ("default (matte_paint)", "sRGB - Texture"),
        ("Show Camera (v1)", "Show Camera (v1)"),
        ("default (Show Camera (v1))", "Show Camera (v1)"),
        ("Input/Cameras/Show Camera (v1)", "Show Camera (v1)"),
        ("raw", ""),
        ("default (raw)", ""),
    ],
)
def test_what_a_knob_shows_becomes_the_configs_own_name(
    label: str, name: str, tmp_path: Path
) -> None:
    path = str(write_config(tmp_path, more=CAMERA))
    assert ocio.space_name(label, path) == name


@pytest.mark.parametrize("label", ["nonsense", "default", "default (custom)", "nothing (raw)", ""])
def test_an_unknown_space_is_named_with_its_config(label: str, tmp_path: Path) -> None:
    for strict in ("true", "false"):  # which must not mean the role `default`
        path = write_config(tmp_path)
        path.write_text(path.read_text().replace("strictparsing: true", f"strictparsing: {strict}"))
        with pytest.raises(NodeError) as error:
            ocio.space_name(label, str(path))
        assert label in str(error.value)
        assert str(path) in str(error.value)


def test_without_ocio_plain_names_pass_and_roles_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, luts = write_config(tmp_path / "a"), write_config(tmp_path / "b", more=CAMERA)
    monkeypatch.setitem(sys.modules, "PyOpenColorIO", None)
    for label in ("ACEScg", "Scene/ACEScg", "scene_linear (ACEScg)", "x\tx (y)"):
        assert ocio.space_name(label, str(plain)) == {"x\tx (y)": "x"}.get(label, "ACEScg")
    assert ocio.space_name("scene_linear\tscene_linear (ACEScg)", str(plain)) == "ACEScg"
    for role in ("scene_linear", "default (matte_paint)"):
        with pytest.raises(NodeError, match="no PyOpenColorIO"):
            ocio.space_name(role, str(plain))
    assert ocio.portable(str(plain), tmp_path) == str(plain)
    with pytest.raises(NodeError, match="no PyOpenColorIO"):
        ocio.portable(str(luts), tmp_path)


# -- the config as a file ------------------------------------------------------------------------


def test_an_archive_holds_the_config_and_its_luts(tmp_path: Path) -> None:
    path = write_config(tmp_path / "show", more=CAMERA)
    (path.parent / "luts/other.spi1d").write_text(LUT)
    sent = ocio.portable(str(path), tmp_path / "sources")
    assert Path(sent).suffix == ".ocioz"
    with zipfile.ZipFile(sent) as archive:
        assert archive.namelist() == ["config.ocio", "luts/camera.spi1d"]
        assert archive.read("config.ocio") == path.read_bytes()
    assert ocio.title(sent) == "show"
    assert ocio.portable(str(path), tmp_path / "sources") == sent
    copied = write_config(tmp_path / "elsewhere", more=CAMERA)
    other = ocio.portable(str(copied), tmp_path / "others")
    assert protocol.file_hash(other) == protocol.file_hash(sent)  # its content decides
    (path.parent / "luts/camera.spi1d").write_text(LUT.replace("0.1", "0.2"))
    changed = ocio.portable(str(path), tmp_path / "sources")
    assert protocol.file_hash(changed) != protocol.file_hash(sent)
    assert ocio.portable(sent, tmp_path) == sent  # an archive is sent as it is


def test_variables_of_the_context_are_sent_with_the_values_that_they_have_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(tmp_path / "show", more=CAMERA)
    for old, new in (
        ("environment: {}", "environment: {SHOT: none}"),
        ("src: camera.spi1d", 'src: "${SHOT}.spi1d"'),
    ):
        path.write_text(path.read_text().replace(old, new))
    (path.parent / "luts/sh010.spi1d").write_text(LUT)
    monkeypatch.setenv("SHOT", "sh010")
    sent = ocio.portable(str(path), tmp_path / "sources")
    monkeypatch.delenv("SHOT")
    pixels = np.full((1, 1, 3), 0.5, np.float32)
    back = through_ocio(Path(sent), pixels, "Show Camera (v1)", "rec709_linear")
    np.testing.assert_allclose(back, 0.1, atol=1e-6)


def test_luts_outside_the_configs_folder_are_refused(tmp_path: Path) -> None:
    write_config(tmp_path / "show", more=CAMERA)
    for search in (tmp_path / "show/luts", "../show/luts"):
        path = write_config(tmp_path / "mine", more=CAMERA)
        (tmp_path / "mine/luts/camera.spi1d").unlink()
        path.write_text(path.read_text().replace("search_path: luts", f"search_path: {search}"))
        with pytest.raises(NodeError, match="outside its own folder") as error:
            ocio.portable(str(path), tmp_path / "sources")
        assert str(path) in str(error.value)


def test_built_in_configs_go_by_name_unless_the_name_means_another_one_later(
    tmp_path: Path,
) -> None:
    assert ocio.portable("ocio://studio-config-v1.0.0_aces-v1.3_ocio-v2.1", tmp_path) == ""
    sent = ocio.portable("ocio://default", tmp_path)
    assert ocio.title(sent) == OCIO.Config.CreateFromFile("ocio://default").getName()
    assert colour.resolve("srgb_tx", sent) == colour.texture_space(sent)


# -- what is asked for ---------------------------------------------------------------------------


def test_a_script_asks_by_names_of_its_config(
    session: Session, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(tmp_path / "show", more=CAMERA)
    use_config(session, path)
    for item, space in {
        "default (matte_paint)": "sRGB - Texture",
        "default\tdefault (Show Camera (v1))": "",  # "default" alone says nothing: rendered
        "raw": "show_linear",
    }.items():
        choose_space(node.input(0), item)
        source = request_of(node).source if space else None
        if source is not None:
            assert (source.space, source.working, source.config) == (
                space,
                "show_linear",
                path.as_posix(),
            )
    node.input(0)["raw"].setValue(True)
    assert request_of(node).source.space == "show_linear"
    node.input(0)["raw"].setValue(False)
    choose_space(node.input(0), "gone")
    session.set(node, "source", "files")
    session.press(node, "submit")
    said = node["state"].value()
    assert "gone" in said
    assert path.as_posix() in said
    session.set(node, "source", "auto")
    use_config(session, path, "compositing_log")  # a role that this config has not
    session.press(node, "submit")
    assert 'no colour space "compositing_log"' in node["state"].value()
    use_config(session, path, "raw")
    session.press(node, "submit")
    assert "means data" in node["state"].value()
    # A stock config is where Nuke says; the OCIO variable takes precedence over both.
    root = session.module.root()
    root["OCIO_config"].setValue("aces_1.2")
    root["OCIOConfigPath"].setValue(path.as_posix())
    root["workingSpaceLUT"].setValue("scene_linear (show_linear)")
    choose_space(node.input(0), "srgb_tx")
    assert request_of(node).source.config == path.as_posix()
    other = write_config(tmp_path / "other")
    monkeypatch.setenv("OCIO", str(other))
    assert request_of(node).source.config == str(other)
    root["colorManagement"].setValue("Nuke")
    choose_space(node.input(0), "default (sRGB)")
    source = request_of(node).source
    assert (source.space, source.working) == ("srgb_tx", "lin_rec709")
    assert source.config.startswith("ocio://cg-config-v1")
    for name in (source.space, source.working):
        colour.resolve(name, source.config)


def test_the_source_of_a_localised_plate_is_sent(
    session: Session, node: Node, given: tuple[Path, str], tmp_path: Path
) -> None:
    session.localised, read = tmp_path / "local", node.input(0)
    real = given[1].replace("####", str(FIRST))
    copy = (
        session.localised / str(Path(real).parent).lstrip("/").replace("/", "_") / Path(real).name
    )
    copy.parent.mkdir(parents=True)
    shutil.copyfile(given[1].replace("####", str(FIRST + 1)), copy)  # a stale one
    assert read["file"].evaluate(FIRST) == str(copy)
    policy = read["localizationPolicy"]
    for pattern in (given[1], given[1].replace("####", "%04d"), given[1].replace("plate", "%V")):
        read["file"]._value = pattern
        with patch.object(policy, "_set", side_effect=AssertionError("the artist's knob")):
            (path,) = request_of(node).source.paths
        assert path == real.replace("plate", "main" if "%V" in pattern else "plate")
    # Only Tcl can say what Tcl means: the policy is lifted for a moment, and nobody sees it.
    read["file"]._value = f"[file dirname {given[1]}]/{Path(given[1]).name}"
    session.module.scriptSaveAs(str(tmp_path / "shot.nk"), True)
    steps = len(session._undo)
    assert read["file"].evaluate(FIRST) == str(copy)
    assert request_of(node).source.paths == [real]
    assert policy.value() == "fromAutoLocalizePath"
    assert (len(session._undo), session.module.modified()) == (steps, False)
    session.module.addFilenameFilter(lambda path: path.replace(str(given[0].parent), "/filtered"))
    assert request_of(node).source.paths == [f"/filtered/plate.{FIRST}.png"]


@pytest.mark.parametrize("policy", ["fromAutoLocalizePath", "off"])
@pytest.mark.parametrize("written", ["%dir", "%{dir}", "%{set.dir}", "%volume", "~"])
def test_a_plate_is_sent_from_where_nuke_reads_it(
    session: Session,
    node: Node,
    given: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    written: str,
) -> None:
    """Variables of the script, as Nuke has from 16 on, and the home folder."""
    folder, name = str(Path(given[1]).parent), Path(given[1]).name
    session.variables.update(dict.fromkeys(("dir", "set.dir", "volume"), folder))
    session.variables.update(dict.fromkeys(("d", "V", "v"), "/nowhere"))  # as ever
    monkeypatch.setenv("HOME", folder)
    read, real = node.input(0), given[1].replace("####", str(FIRST))
    read["localizationPolicy"].setValue(policy)
    for pattern in (f"{written}/{name}", f"{written}/{name.replace('####', '%04d')}"):
        read["file"]._value = pattern
        assert request_of(node).source.paths == [real]


def test_a_relative_plate_begins_in_the_projects_directory(
    session: Session, node: Node, given: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, name = Path(given[1]).parent, Path(given[1]).name
    read, real = node.input(0), given[1].replace("####", str(FIRST))
    read["file"]._value = f"{folder.name}/../{folder.name}/{name}"
    with pytest.raises(RuntimeError, match="No such file"):
        session.look(read, FIRST)
    root = session.module.root()
    root["project_directory"].setValue(str(folder.parent))
    assert request_of(node).source.paths == [real]
    assert session.look(read, FIRST)["red"].any()
    root["project_directory"].setValue(f"[file dirname {folder}]/")
    assert request_of(node).source.paths == [real]
    root["project_directory"].setValue("")
    monkeypatch.chdir(folder.parent)  # Nuke's own, where a script has no directory
    assert request_of(node).source.paths == [real]
    session.set(node, "source", "render")
    (rendered,) = request_of(node).source.paths
    read["file"]._value = os.path.relpath(rendered, folder.parent).replace(str(FIRST), "####")
    read["raw"].setValue(True)
    session.press(node, "submit")
    assert "would be rendered over" in node["state"].value()


# -- what comes back -----------------------------------------------------------------------------


def through_ocio(path: Path, pixels: np.ndarray, source: str, target: str) -> np.ndarray:
    """Converts pixels by OpenColorIO alone."""
    processor = OCIO.Config.CreateFromFile(str(path)).getProcessor(source, target)
    converted = np.ascontiguousarray(pixels, np.float32).copy()
    processor.getDefaultCPUProcessor().applyRGB(converted)
    return converted


def planes(path: Path, *names: str) -> np.ndarray:
    buffer = oiio.ImageBuf(str(path))
    channels = list(buffer.spec().channelnames)
    return buffer.get_pixels()[..., [channels.index(name) for name in names]]


def test_colours_come_back_in_the_working_space_of_a_config_that_the_server_has_not(
    session: Session,
    own_server: Server,
    node: Node,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same shot twice: with configs of the same name and path, but other content.

    The server's own config is a third one of that name.
    """
    monkeypatch.setenv("OCIO", str(write_config(tmp_path / "server", gain=0.1)))
    own_server.start()
    monkeypatch.delenv("OCIO")
    session.set(node, "crops", True)
    path, made = tmp_path / "show/config.ocio", {}
    choose_space(node.input(0), "default (matte_paint)")
    for gain in (0.5, 0.25):
        assert write_config(tmp_path / "show", gain=gain, more=CAMERA) == path
        use_config(session, path)
        node["has_crops"].setValue(False)
        session.press(node, "submit")
        session.pump(lambda: node["has_crops"].value() or state(node) == "failed", 200, "crops")
        assert state(node) != "failed", node["state"].value()
        until(session, node, "done")
        run = Path(node["run"].value())
        made[gain] = run / f"{run.name}.{FIRST}.exr", run / f"crops/{run.name}_crop.{FIRST}.exr"
    assert made[0.5][0].parent != made[0.25][0].parent
    for i in (0, 1):
        half, quarter = (planes(made[gain][i], "R", "G", "B") for gain in (0.5, 0.25))
        for gain in (0.5, 0.25):
            spec = oiio.ImageBuf(str(made[gain][i])).spec()
            assert spec.getattribute("reenact:colourSpace") == "show_linear"
        # One face in linear Rec.709: red of the working space is that divided by the gain.
        back = [
            through_ocio(
                write_config(tmp_path / f"{gain}", gain=gain), p, "show_linear", "lin_rec709"
            )
            for gain, p in ((0.5, half), (0.25, quarter))
        ]
        assert np.abs(half[..., 0] - quarter[..., 0]).max() > 0.1
        np.testing.assert_allclose(back[0], back[1], rtol=2e-3, atol=1e-4)  # half floats


def test_a_plate_in_a_space_of_a_lut_is_read_as_ocio_does(
    session: Session, server: Server, node: Node, tmp_path: Path
) -> None:
    """The LUT comes along: frames that OCIO has converted before give the same result.

    The match of colours, in the header, compares the face with the plate's own pixels.
    """
    path = write_config(tmp_path / "show", more=CAMERA)
    use_config(session, path)
    read = node.input(0)
    for number in range(FIRST, LAST + 1):
        pixels = planes(Path(read["file"].evaluate(number)), "R", "G", "B")
        linear = through_ocio(path, pixels, "Show Camera (v1)", "show_linear")
        write_exr(tmp_path / f"linear.{number}.exr", linear, half=False)
    converted = read_node(session, str(tmp_path / "linear.####.exr"), FIRST, LAST)
    converted["raw"].setValue(True)
    gains, means = [], []
    for source, space in (
        (read, "Show Camera (v1)\tInput/Cameras/Show Camera (v1)"),
        (converted, ""),
        (read, "srgb_tx"),
    ):
        node.setInput(0, source)
        if space:
            choose_space(source, space)
        node["job_state"].setValue("")
        session.press(node, "submit")
        until(session, node, "done")
        run = Path(node["run"].value())
        request = json.loads((run / "run.json").read_text())
        assert request["source"]["config"].endswith(".ocioz")
        spec = oiio.ImageBuf(str(run / f"{run.name}.{FIRST}.exr")).spec()
        assert spec.getattribute("reenact:colourSpace") == "show_linear"
        gains.append(spec.getattribute("reenact:matchGain"))
        rgba = planes(run / f"{run.name}.{FIRST}.exr", "R", "G", "B", "A")
        means.append(rgba[rgba[..., 3] > 0.5].mean(0))
    np.testing.assert_allclose(gains[0], gains[1], rtol=0.02)
    np.testing.assert_allclose(means[0], means[1], rtol=0.02)
    assert np.abs(np.divide(gains[2], gains[0]) - 1).max() > 0.2  # in the wrong space


def test_a_movie_of_a_kind_that_is_not_read_is_never_sent(server: Server, tmp_path: Path) -> None:
    (tmp_path / "A001.R3D").write_bytes(b"REDCODE")
    source = runs.Source([str(tmp_path / "A001.R3D")] * 2, [1, 2], "", "", "plate")
    with server.client() as client, pytest.raises(ServerError, match=r"\.r3d .*ProRes"):
        runs.Run("a", lambda update: None)._send_clip(client, source)


def test_a_config_that_the_server_has_lost_is_sent_again(
    server: Server, given: tuple[Path, str], tmp_path: Path
) -> None:
    config = write_config(tmp_path / "show")
    real = given[1].replace("####", str(FIRST))
    source = runs.Source([real], [FIRST], "srgb_tx", str(config), "plate")
    with server.client() as client:
        plate = runs.Run("a", lambda update: None)._send_clip(client, source)
        assert (plate.config, plate.colour_space) == ("show", "srgb_tx")
        file = plate.config_file
        assert file is not None

        def lose() -> None:
            (stored,) = server.folder.rglob(file.hash)
            stored.write_bytes(b"damaged")
            assert not client.ask(protocol.Verify(file.hash))["whole"]
            assert client.ask(protocol.Held([file.hash]))["bytes"] == [0]

        lose()
        shots.send_missing_frames(client, plate, source)
        assert client.ask(protocol.Held([file.hash]))["bytes"] == [file.size]
        lose()
        config.write_text(config.read_text() + "\n# changed\n")
        with pytest.raises(ServerError, match="has changed since"):
            shots.send_missing_frames(client, plate, source)


# -- what the server refuses ---------------------------------------------------------------------


def test_a_config_that_did_not_come_along_is_refused_before_it_waits(
    server: Server, given: tuple[Path, str]
) -> None:
    with server.client() as client:
        task = solve_task(client, given[0].parent)
        for config in ("aces_1.2", "/show/config.ocio"):
            with pytest.raises(ServerError) as error:
                client.submit(_with_plate(task, colour_space="ACEScg", config=config))
            assert error.value.code == "bad_value"
            assert f"The plate is in ACEScg of the OCIO config {config}" in str(error.value)
            with pytest.raises(ServerError, match="The result is in show_linear"):
                client.submit(
                    protocol.Render(
                        task.character, task.character, colour_space="show_linear", config=config
                    )
                )


def test_errors_of_a_sent_config_name_it_and_the_space(
    server: Server, given: tuple[Path, str], tmp_path: Path
) -> None:
    plain, luts = write_config(tmp_path / "a"), write_config(tmp_path / "b", more=CAMERA)
    packed = ocio.portable(str(luts), tmp_path)
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"PK, but no archive")
    elsewhere = tmp_path / "elsewhere"
    with zipfile.ZipFile(elsewhere, "w") as archive:
        archive.writestr("../escaped.ocio", "")
    with server.client() as client:
        task = solve_task(client, given[0].parent)
        for path, space, said in (
            (plain, "gone", 'There is no colour space "gone" in the OCIO config show.'),
            (packed, "gone", 'There is no colour space "gone" in the OCIO config show.'),
            (damaged, "gone", "The OCIO config is a damaged archive"),
            (elsewhere, "gone", "The OCIO config is an archive without a config.ocio"),
        ):
            file = client.send([path])[0]
            changed = _with_plate(task, colour_space=space, config="show", config_file=file)
            status = finish(client, client.submit(changed))
            assert status["state"] == "failed"
            assert status["reason"].startswith(said)
    (escaped,) = server.folder.rglob("escaped.ocio")  # inside its own folder
    assert escaped.parent.name == "plate.config_file.d"


def test_a_client_that_sends_no_newer_field_is_understood_by_older_servers() -> None:
    """Fields that have their default are left out; older servers refuse those they don't know."""
    file = protocol.File("1" * 64, 7)
    task = protocol.Solve(protocol.Clip(".exr", [1001], [file]), file)
    assert protocol.plain(task) == {
        "plate": {"suffix": ".exr", "numbers": [1001], "files": [{"hash": "1" * 64, "size": 7}]},
        "character": {"hash": "1" * 64, "size": 7},
    }
    assert protocol.read_task(protocol.Submit("solve", protocol.plain(task))) == task
    sent = _with_plate(task, config="show", config_file=file)
    assert protocol.read_task(protocol.Submit("solve", protocol.plain(sent))) == sent
    assert ("plate.config_file", file) in protocol.parts(sent)


def _with_plate(task: protocol.Solve, **fields: Any) -> protocol.Solve:
    return dataclasses.replace(task, plate=dataclasses.replace(task.plate, **fields))
