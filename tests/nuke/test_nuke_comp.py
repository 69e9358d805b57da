"""Tests ReenactComp's text, drawn by the stand-in for Nuke, against the core and closed forms."""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import nk_script
import nuke_pixels
import nuke_standin
import numpy as np
import OpenImageIO as oiio
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nuke_session import STUDIO_DEFAULTS, plugin, read_node, under, whole, work
from nuke_standin import Node, Picture, Session
from reenact import bake, protocol, tracks
from reenact.files import Frames
from reenact.runs import Source
from repository import ROOT
from scipy.ndimage import binary_erosion
from small_character import small_character

from core.face.alignment import from_square, warp
from core.face.keypoints import FACE_OVAL, INNER_LIPS, LEFT_EYE, OUTER_LIPS, RIGHT_EYE
from core.face.stmap import corner_pin, stmap_to_crop, stmap_to_plate
from core.face.surface import Atlas
from core.media.clip import Clip, Window
from core.media.numbering import frame_path
from core.media.read import open_clip, read_frame
from core.media.write import write_exr
from core.personalize.character import save_character
from core.personalize.detail import Detail, DetailInfo, DetailNetwork, DetailShape
from core.render import colour_match, grain, layers
from core.render.colour_match import Match
from core.render.frames import SYNTHETIC
from core.render.geometry import FaceGeometry
from core.render.layers import NEWEST, PLAIN, in_file
from core.render.patch import PatchOptions, patch
from core.solve.latent_track import FrameState, LatentTrack, save_track

FIRST, LAST = 1001, 1002
MATCHES = (
    Match(np.array([1.2, 0.9, 0.8]), np.array([0.02, -0.5, 0.03])),
    Match(np.array([0.7, 1.1, 1.3]), np.array([-0.02, 0.01, 0.0])),
)
GRAIN = grain.Grain(
    (np.array([0.0, 1.0]),) * 3,
    (np.array([0.03, 0.05]),) * 3,
    np.pad(np.ones((3, 1, 1)), ((0, 0), (4, 4), (4, 4))),
    np.eye(3),
)
RGB = ("red", "green", "blue")


@dataclass(frozen=True)
class Made:
    """Files of two frames: a plate, and the face that the core renders for it, slightly changed."""

    plate: str
    face: str
    quad: np.ndarray
    crop: torch.Tensor
    geometry: FaceGeometry
    clip: Clip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("comp")
    rng = np.random.default_rng(0)
    width, height = 150, 110
    linear = cv2.resize(rng.uniform(0.05, 0.8, (4, 5, 3)), (width, height)).astype(np.float32)
    plate = str(folder / "plate.####.exr")
    for number in (FIRST, LAST):
        write_exr(frame_path(plate, number), linear, half=False)
    across, down = np.array([80.0, 9.0]), np.array([-9.0, 80.0])
    quad = np.array([40.0, 10.0]) + np.array([0 * down, down, down + across, across])
    face = face_points()
    y, x = np.mgrid[:256, :256] / 256
    head = (np.hypot((x - 0.5) / 0.42, (y - 0.5) / 0.48) < 1).astype(np.float32)
    crop = cv2.resize(rng.uniform(-0.9, 0.9, (6, 6, 3)), (96, 96)).astype(np.float32)
    still = np.full((478, 2), [6.0, 0.0])
    made = Made(
        plate,
        str(folder / "face.####.exr"),
        quad,
        torch.from_numpy(crop).permute(2, 0, 1),
        FaceGeometry(quad, face, face, head, still),
        open_clip(plate),
    )
    for number, match in zip((FIRST, LAST), MATCHES, strict=True):
        write_patch(made, made.face, number, match, PatchOptions())
    return made


def face_points() -> np.ndarray:
    """Returns a mesh `[478, 2]`, in sides of the square; outline, eyes and lips are ellipses."""
    points = np.random.default_rng(1).normal(0.5, 0.1, (478, 2))
    for ring, x, y, w, h in (
        (FACE_OVAL, 0.5, 0.5, 0.3, 0.36),
        (RIGHT_EYE, 0.36, 0.4, 0.07, 0.035),
        (LEFT_EYE, 0.64, 0.4, 0.07, 0.035),
        (OUTER_LIPS, 0.5, 0.68, 0.13, 0.07),
        (INNER_LIPS, 0.5, 0.68, 0.09, 0.03),
    ):
        turn = np.linspace(0, 2 * np.pi, len(ring), endpoint=False)
        points[[*ring]] = np.stack([x + w * np.sin(turn), y - h * np.cos(turn)], 1)
    return points


def write_patch(
    made: Made,
    pattern: str,
    number: int,
    match: Match,
    options: PatchOptions,
    names: int = NEWEST,
    foreign: bool = False,
) -> None:
    """Writes a patch as `core.render.frames.write_frames` does.

    Args:
        made: gives the plate, the picture and its place.
        pattern: of the file.
        number: of the frame.
        match: of the frame.
        options: of the patch.
        names: version of the layers' names.
        foreign: whether a show's own layers are in the file too, called as ours once were.
    """
    geometry = replace(made.geometry, match=match)
    placed = patch(made.crop, geometry, made.clip, 1.0, options, GRAIN, number)
    assert placed is not None
    theirs = {}
    if foreign:
        rng = np.random.default_rng(2)
        theirs = {
            name: rng.uniform(size=values.shape).astype(values.dtype)
            for name, values in placed.layers.items()
            if in_file(name) != name
        }
    write_exr(
        frame_path(pattern, number),
        placed.rgba,
        window=placed.window,
        display=(made.clip.width, made.clip.height),
        layers={**layers.named(placed.layers, names), **theirs},
        attributes={
            "reenact:syntheticMedia": SYNTHETIC,
            **({layers.ATTRIBUTE: names} if names != PLAIN else {}),
            "reenact:matchGain": tuple(match.gain.tolist()),
            "reenact:matchOffset": tuple(match.offset.tolist()),
        },
    )


def read(session: Session, pattern: str) -> Node:
    node = read_node(session, pattern, FIRST, LAST)
    node["raw"].setValue(True)
    return node


def comp(session: Session, plate: str, face: str, **knobs: object) -> Node:
    node = under(session, "ReenactComp", read(session, plate), read(session, face))
    for name, value in knobs.items():
        node[name].setValue(value)
    return node


def merged(plate: Picture, face: Picture) -> np.ndarray:
    """Merges premultiplied, in float64."""
    keep = 1 - face["alpha"].astype(np.float64)
    return rgb(plate) * keep[..., None] + rgb(face)


def rgb(picture: Picture) -> np.ndarray:
    return np.dstack([picture[c] for c in RGB]).astype(np.float64)


EVERYTHING = {
    "erode": -3,
    "soften": 4,
    "mouth_amount": 0.5,
    "hair_amount": 0.5,
    "parts_grow": 3,
    "parts_soften": 2,
    "match": 0.7,
    "edge_blend": 0.6,
    "edge_width": 5,
    "shutter": 180,
    "grain": 0.8,
}


def test_amount_0_is_the_plate_bit_for_bit(session: Session, made: Made, tmp_path: Path) -> None:
    """Also of a plate with alpha and another layer, which the face doesn't change."""
    rgb = read_frame(made.clip, FIRST).pixels
    more = np.random.default_rng(0).uniform(size=rgb.shape[:2]).astype(np.float32)
    path = tmp_path / "rich.1001.exr"
    write_exr(path, np.dstack([rgb, more]), layers={"depth": more}, half=False)
    node = comp(session, str(path), made.face, **EVERYTHING)
    plate, shown = session.look(node.input(0), FIRST), session.look(node, FIRST)
    assert not np.array_equal(shown["red"], plate["red"])
    np.testing.assert_array_equal(shown["alpha"], plate["alpha"])
    node["amount"].setValue(0)
    shown = session.look(node, FIRST)
    assert shown.keys() == plate.keys()  # without the face's layers
    for channel, values in plate.items():
        np.testing.assert_array_equal(shown[channel], values)


def test_as_it_comes_it_is_a_plain_over(session: Session, made: Made) -> None:
    node = comp(session, made.plate, made.face)
    plate, face = (session.look(node.input(i), FIRST) for i in (0, 1))
    assert 0.05 < (face["alpha"] > 0.9).mean() < 0.9
    np.testing.assert_allclose(rgb(session.look(node, FIRST)), merged(plate, face), atol=1e-6)
    node["output_as"].setValue("RGBA premultiplied")
    alone = session.look(node, FIRST)
    np.testing.assert_array_equal(alone["alpha"], face["alpha"])
    np.testing.assert_allclose(rgb(alone), rgb(face), atol=1e-6)
    node["output_as"].setValue("matte")
    np.testing.assert_array_equal(session.look(node, FIRST)["green"], face["alpha"])


def test_amount_follows_its_keys(session: Session, made: Made) -> None:
    node = comp(session, made.plate, made.face)
    node["amount"].fromScript("{curve L x1001 0.25 x1002 1}")
    plate, face = (session.look(node.input(i), FIRST) for i in (0, 1))
    quarter = {c: face[c] / 4 for c in (*RGB, "alpha")}
    np.testing.assert_allclose(rgb(session.look(node, FIRST)), merged(plate, quarter), atol=1e-6)
    face = session.look(node.input(1), LAST)
    np.testing.assert_allclose(rgb(session.look(node, LAST)), merged(plate, face), atol=1e-6)


def test_the_match_is_the_measured_one_of_each_frame_and_can_be_taken_out(
    session: Session, made: Made
) -> None:
    node = comp(session, made.plate, made.face, output_as="RGBA premultiplied")
    for number, match in zip((FIRST, LAST), MATCHES, strict=True):
        plain = session.look(node, number)
        alpha = plain["alpha"][..., None]
        skin = alpha[..., 0] > 0.01
        straight = rgb(plain)[skin] / alpha[skin]
        for amount in (0.5, 1.0):
            node["match"].setValue(amount)
            wanted = colour_match.apply(straight, match, amount) * alpha[skin]
            assert (wanted < 0).any() == (number == FIRST)  # nothing is clamped
            np.testing.assert_allclose(rgb(session.look(node, number))[skin], wanted, atol=2e-5)
            np.testing.assert_array_equal(session.look(node, number)["alpha"], plain["alpha"])
        node["match"].setValue(0)
        np.testing.assert_array_equal(rgb(session.look(node, number)), rgb(plain))
    # A Read of another file: there is no measured match, and nothing breaks.
    other = comp(session, made.plate, made.plate, match=1)
    other.node("Match")["mix"]._set_text("1")
    picture = session.look(other.node("Match"), FIRST)
    np.testing.assert_array_equal(rgb(picture), rgb(session.look(other.node("Source"), FIRST)))


@pytest.mark.parametrize("text", ["1.5 -0.25 1e-05", "{1.5 -0.25 1e-05}", "1.5, -0.25, 1e-05", ""])
def test_metadata_is_understood_however_nuke_writes_three_numbers(text: str) -> None:
    (group,) = nk_script.parse((ROOT / "gizmos/ReenactComp.gizmo").read_text())
    (match,) = [c for c in group.children if c.knob("name") == "Match"]
    facts = {"exr/reenact:matchGain": text, "exr/reenact:matchOffset": text}
    for knob, default in (("multiply", 1.0), ("add", 0.0)):
        *three, _ = nk_script.words(match.knob(knob))
        said = [nk_script.substitute(nk_script.words(e)[0], {}, facts) for e in three]
        assert [float(s) for s in said] == ([1.5, -0.25, 1e-05] if text else [default] * 3)


def test_grain_is_the_same_as_the_core_lays_on(
    session: Session, made: Made, tmp_path: Path
) -> None:
    baked = str(tmp_path / "baked.####.exr")
    write_patch(made, baked, FIRST, MATCHES[0], PatchOptions(grain=1))
    node = comp(session, made.plate, made.face, grain=1)
    ours = rgb(session.look(node, FIRST))
    theirs = rgb(session.look(comp(session, made.plate, baked), FIRST))
    plain = rgb(session.look(comp(session, made.plate, made.face), FIRST))
    assert (theirs - plain).std() > 0.003
    np.testing.assert_allclose(ours, theirs, atol=1e-3)  # half float
    # Half the face: sqrt(1 - (1 - a)^2) of the noise keeps the plate's variance.
    node["amount"].setValue(0.5)
    node["grain"].setValue(0)
    half = rgb(session.look(node, FIRST))
    node["grain"].setValue(1)
    solid = session.look(node.input(1), FIRST)["alpha"] > 0.999
    ratio = (rgb(session.look(node, FIRST)) - half)[solid].std() / (theirs - plain)[solid].std()
    assert ratio == pytest.approx(np.sqrt(0.75), abs=0.01)


def test_motion_blur_is_centred_on_the_frame(session: Session, made: Made, tmp_path: Path) -> None:
    baked = str(tmp_path / "baked.####.exr")
    write_patch(made, baked, FIRST, MATCHES[0], PatchOptions(motion_blur=360))
    looks = []
    for face, shutter in ((made.face, 0), (made.face, 360), (baked, 0)):
        node = comp(session, made.plate, face, shutter=shutter, output_as="RGBA premultiplied")
        looks.append(session.look(node, FIRST))
    plain, ours, theirs = looks
    changed = np.abs(rgb(theirs) - rgb(plain)).mean()
    assert changed > 0.002
    assert np.abs(rgb(ours) - rgb(theirs)).mean() < 0.1 * changed
    x = np.arange(plain["alpha"].shape[1])
    centres = [(p["alpha"] * x).sum() / p["alpha"].sum() for p in (plain, ours)]
    assert centres[0] == pytest.approx(centres[1], abs=0.05)  # not 1.5 px off


@pytest.mark.parametrize("kind", ["VectorBlur", "VectorBlur2"])
def test_a_blur_without_an_offset_is_not_known_here(
    session: Session, made: Made, kind: str
) -> None:
    """The older node's default is not published: a text that relies on it is wrong."""
    node = under(session, kind, read(session, made.face))
    settings = {"uv": "forward", "scale": "1", "blur_type": "uniform"}
    for knob in ("uv", "scale", *(["blur_type"] if kind == "VectorBlur2" else [])):
        node[knob].setValue(settings[knob])
    with pytest.raises(ValueError, match="has no offset"):
        session.look(node, FIRST)
    plain, blurred = session.look(node.input(0), FIRST)["alpha"], {}
    for offset in ("-1", "-0.5", "0"):
        node["offset"].setValue(offset)
        blurred[offset] = session.look(node, FIRST)["alpha"]
    x = np.arange(plain.shape[1])
    before, centred, after = ((a * x).sum() / a.sum() for a in blurred.values())
    assert centred == pytest.approx((plain * x).sum() / plain.sum(), abs=0.05)
    assert after - before == pytest.approx(6, abs=1)  # the face's motion in a frame, px


# -- names of layers -----------------------------------------------------------------------------

# A plate, Reenact, ReenactEdit and ReenactComp as the last plugin with plain names wrote them.
OLD_SCRIPT = ROOT / "tests/nuke/scripts/before_layer_names.nk"
OLD_KNOBS = {name: value for name, value in EVERYTHING.items() if name != "shutter"}  # of its comp


def open_old_script(session: Session, made: Made, folder: Path) -> None:
    """Opens it on frames of that release; their pixels are `made`'s."""
    for number, match in zip((FIRST, LAST), MATCHES, strict=True):
        write_patch(made, str(folder / "face.####.exr"), number, match, PatchOptions(), PLAIN)
        image = read_frame(made.clip, number).pixels
        write_exr(folder / f"plate.{number}.exr", image, half=False)
    (folder / "before.nk").write_text(OLD_SCRIPT.read_text().replace("FOLDER", folder.as_posix()))
    session.module.scriptOpen(str(folder / "before.nk"))


def same(a: Picture, b: Picture) -> None:
    for channel in RGB:
        np.testing.assert_array_equal(a[channel], b[channel])


def test_a_script_with_older_names_renders_as_before(
    session: Session, made: Made, tmp_path: Path
) -> None:
    new = comp(session, made.plate, made.face, **OLD_KNOBS)
    wanted = {number: session.look(new, number) for number in (FIRST, LAST)}
    face = session.look(new.input(1), FIRST)
    assert np.abs(rgb(wanted[FIRST]) - merged(session.look(new.input(0), FIRST), face)).max() > 0.1
    open_old_script(session, made, tmp_path)
    for number, picture in wanted.items():
        same(session.look(session.module.toNode("ReenactComp1"), number), picture)
    for node in ("Reenact1", "ReenactEdit1", "ReenactComp1"):
        session.module.toNode(node).setSelected(True)
    plugin("nodes").update_selected()
    session.pump(lambda: not work()._deferred, 10, "the update")
    for number, picture in wanted.items():  # and so do the nodes that they are updated to
        same(session.look(session.module.toNode("ReenactComp1"), number), picture)
    reenact = session.module.toNode("Reenact1")
    reenact["output_as"].setValue("render")
    shown = session.look(reenact, FIRST)
    assert shown["red"].any()
    for channel in RGB:
        np.testing.assert_array_equal(shown[channel], face[in_file(f"render.{channel}")])


# A plate, a Reenact and a ReenactComp as the plugin with node version 3 wrote them: their text
# reads frames with either names of layers.
VERSION_3 = ROOT / "tests/nuke/scripts/node_version_3.nk"
VERSION_3_KNOBS = {
    **{"erode": 1.5, "soften": 2.0, "mouth_amount": 0.7, "eyes_amount": 0.4, "hair_amount": 0.3},
    **{"parts_grow": 2.0, "grain": 0.8, "match": 0.6},
}
SHOWS_OWN = {"matte", "parts", "stmap", "grain", "render"}  # layers that shows have, too


@pytest.mark.parametrize("names", [PLAIN, NEWEST])
def test_a_script_of_node_version_3_renders_as_before_and_so_do_updated_nodes(
    session: Session, made: Made, tmp_path: Path, names: int
) -> None:
    new = comp(session, made.plate, made.face, **VERSION_3_KNOBS)
    wanted = [session.look(new, number) for number in (FIRST, LAST)]
    face = session.look(new.input(1), FIRST)
    open_old_script(session, made, tmp_path)
    for number, match in zip((FIRST, LAST), MATCHES, strict=True):
        pattern = str(tmp_path / "face.####.exr")
        write_patch(made, pattern, number, match, PatchOptions(), names)
    path = tmp_path / "version_3.nk"
    path.write_text(VERSION_3.read_text().replace("FOLDER", tmp_path.as_posix()))
    nuke = session.module

    def check() -> None:
        reenact = nuke.toNode("Reenact1")
        for number, picture in zip((FIRST, LAST), wanted, strict=True):
            same(session.look(nuke.toNode("ReenactComp1"), number), picture)
        reenact["output_as"].setValue("render")
        shown = session.look(reenact, FIRST)
        reenact["output_as"].setValue("RGBA premultiplied")
        for channel in RGB:
            np.testing.assert_array_equal(shown[channel], face[in_file(f"render.{channel}", 2)])

    nuke.scriptOpen(str(path))
    check()
    for name in ("Reenact1", "ReenactComp1"):
        nuke.toNode(name).setSelected(True)
    plugin("nodes").update_selected()
    session.pump(lambda: not work()._deferred, 10, "the update")
    assert nuke.toNode("Reenact1")["node_version"].value() == 6
    check()
    nuke.scriptSaveAs(str(path), True)
    nuke.scriptOpen(str(path))
    check()


def deliver(session: Session, node: Node, read: str, frames: Frames) -> None:
    """Shows frames on a node, as a version that was chosen does."""
    runs = plugin("runs")
    knobs = {"has_result": True} if read == "Result" else {"has_compare": True}
    result = runs.Result(knobs, reads={read: frames})
    work().updates.put(runs.NodeUpdate(node["reenact_id"].value(), "", "", result=result))
    work().drain()


@pytest.mark.parametrize("kind", ["Reenact", "ReenactEdit", "ReenactStyle", "ReenactRepair"])
def test_a_new_node_declares_older_layers_only_for_frames_that_have_them(
    session: Session, made: Made, tmp_path: Path, kind: str
) -> None:
    """A show's own `matte` and `render` stay the show's, and 1,023 channels are not many."""
    plate, old = read(session, made.plate), str(tmp_path / "old.####.exr")
    for number, match in zip((FIRST, LAST), MATCHES, strict=True):
        write_patch(made, old, number, match, PatchOptions(), PLAIN)
    node = under(session, kind, plate)
    below = under(session, "ReenactComp", plate, node)
    for knob, value in VERSION_3_KNOBS.items():
        below[knob].setValue(value)
    deliver(session, node, "Result", Frames(made.face, FIRST, LAST))
    wanted = session.look(below, FIRST)
    node["output_as"].setValue("render")
    drawn = session.look(node, FIRST)
    assert drawn["red"].any()
    assert not session.layers.keys() & SHOWS_OWN

    deliver(session, node, "Result", Frames(old, FIRST, LAST, older=True))
    assert session.layers.keys() > SHOWS_OWN
    path = str(tmp_path / "saved.nk")
    for _ in range(2):  # before and after saving
        same(session.look(node, FIRST), drawn)
        node["output_as"].setValue("RGBA premultiplied")
        same(session.look(below, FIRST), wanted)
        node["output_as"].setValue("render")
        session.module.scriptSaveAs(path, True)
        session.module.scriptOpen(path)
        node, below = (session.module.toNode(f"{name}1") for name in (kind, "ReenactComp"))
    whole(session, node)
    count = len(node.nodes())
    deliver(session, node, "Result", Frames(made.face, FIRST, LAST))
    same(session.look(node, FIRST), drawn)
    deliver(session, node, "Result", Frames(old, FIRST, LAST, older=True))
    same(session.look(node, FIRST), drawn)
    assert len(node.nodes()) == count


@pytest.mark.parametrize("newer", ["Result", "Compare"])
def test_a_wipe_between_older_and_newer_frames_has_a_picture_on_both_sides(
    session: Session, made: Made, tmp_path: Path, newer: str
) -> None:
    old = str(tmp_path / "old.####.exr")
    write_patch(made, old, FIRST, MATCHES[0], PatchOptions(), PLAIN)
    node = under(session, "Reenact", read(session, made.plate))
    for name in ("Result", "Compare"):
        pattern = made.face if name == newer else old
        deliver(session, node, name, Frames(pattern, FIRST, FIRST, older=pattern == old))
    seen = {}
    node["output_as"].setValue("render")
    for wipe in (0.0, 0.5, 1.0):
        node["wipe"].setValue(wipe)
        seen[wipe] = session.look(node, FIRST)
    assert seen[0.0]["red"].any()
    same(seen[0.0], seen[1.0])  # the frames differ in the names of their layers alone
    same(seen[0.5], seen[1.0])


@pytest.mark.parametrize("source", ["ReenactEdit1", "Read"])
def test_a_new_comp_reads_older_frames_once_it_is_told_to(
    session: Session, made: Made, tmp_path: Path, source: str
) -> None:
    def looks(face: Node) -> list[Picture]:
        node = under(session, "ReenactComp", read(session, made.plate), face)
        node.setInput(2, read(session, made.plate))
        if face.name() == source or face["file"].toScript() != made.face:
            for _ in range(2):
                session.press(node, "older_frames")
            assert node["baked"].value() == "The node reads frames of earlier versions, too."
        for knob, value in EVERYTHING.items():
            node[knob].setValue(value)
        found = [session.look(node, number) for number in (FIRST, LAST)]
        node["use_crop"].setValue(True)
        return [*found, session.look(node, FIRST)]

    wanted = looks(read(session, made.face))
    assert np.abs(wanted[0]["red"] - wanted[2]["red"]).max() > 0.05
    open_old_script(session, made, tmp_path)
    old = session.module.toNode(source) or read(session, str(tmp_path / "face.####.exr"))
    for found, picture in zip(looks(old), wanted, strict=True):
        same(found, picture)


@pytest.mark.parametrize("header", [True, False])
def test_a_shows_own_layers_change_nothing(
    session: Session, made: Made, tmp_path: Path, header: bool
) -> None:
    """Nor do they in frames whose header another program has dropped."""
    wanted = session.look(comp(session, made.plate, made.face, **{**EVERYTHING, "match": 0}), FIRST)
    pattern = str(tmp_path / "mixed.####.exr")
    write_patch(made, pattern, FIRST, MATCHES[0], PatchOptions(), foreign=True)
    if not header:
        path = frame_path(pattern, FIRST)
        buffer = oiio.ImageBuf(path)
        for name in [a.name for a in buffer.spec().extra_attribs if a.name.startswith("reenact:")]:
            buffer.specmod().erase_attribute(name)
        buffer.write(str(tmp_path / "bare.1001.exr"))
        pattern = str(tmp_path / "bare.####.exr")
    face = read(session, pattern)
    assert "matte.face" in session.look(face, FIRST)
    node = under(session, "ReenactComp", read(session, made.plate), face)
    for knob, value in {**EVERYTHING, "match": 0}.items():
        node[knob].setValue(value)
    same(session.look(node, FIRST), wanted)


def test_regions_choose_what_of_the_face_is_laid_over(session: Session, made: Made) -> None:
    node = comp(session, made.plate, made.face, face_amount=0, eyes_amount=0)
    plate, face = (session.look(node.input(i), FIRST) for i in (0, 1))
    mouth, eyes = (face[in_file(f"parts.{part}")] for part in ("mouth", "eyes"))
    whole = merged(plate, face)
    assert (mouth > 0.99).sum() > 20
    assert (eyes > 0.99).sum() > 5
    only = rgb(session.look(node, FIRST))
    np.testing.assert_array_equal(only[mouth == 0], rgb(plate)[mouth == 0])
    inside = mouth == 1
    np.testing.assert_allclose(only[inside], whole[inside], atol=1e-5)
    node["parts_grow"].setValue(2)
    grown = np.abs(rgb(session.look(node, FIRST)) - rgb(plate)).sum(-1) > 1e-6
    assert grown.sum() > (np.abs(only - rgb(plate)).sum(-1) > 1e-6).sum() + 20
    for name, value in {"face_amount": 1, "mouth_amount": 0, "parts_grow": 0}.items():
        node[name].setValue(value)
    without = rgb(session.look(node, FIRST))
    np.testing.assert_array_equal(without[inside], rgb(plate)[inside])
    outside = (mouth == 0) & (eyes == 0)
    np.testing.assert_allclose(without[outside], whole[outside], atol=1e-6)


def test_the_edge_of_the_hair_can_be_left_to_the_plate(session: Session, made: Made) -> None:
    node = comp(session, made.plate, made.face, output_as="matte", hair_amount=0.25)
    face = session.look(node.input(1), FIRST)
    alpha, unsure = face["alpha"], 1 - face[in_file("matte.confidence")]
    assert (alpha * unsure > 0.2).sum() > 5
    assert (alpha * (1 - unsure) > 0.9).sum() > 500
    wanted = np.where(face[in_file("matte.head")] > 0, alpha * (1 - 0.75 * unsure), alpha)
    np.testing.assert_allclose(session.look(node, FIRST)["red"], wanted, atol=1e-6)
    # Frames without that layer are merged unchanged.
    node.setInput(1, read(session, made.plate))
    node["output_as"].setValue("RGBA premultiplied")
    node["hair_amount"].setValue(1)
    before = session.look(node, FIRST)
    node["hair_amount"].setValue(0)
    for channel, values in session.look(node, FIRST).items():
        np.testing.assert_array_equal(values, before[channel])


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Writes a plate of one colour, and a face of the same colour in its middle."""
    folder = tmp_path_factory.mktemp("flat")
    height, width = 60, 80
    shade = np.float32([0.5, 0.25, 0.125])
    y, x = np.mgrid[:height, :width]
    alpha = np.clip(1.4 - np.hypot(x - 40, y - 30) / 18, 0, 1).astype(np.float32)
    striped = (alpha * (x % 7 < 3)).astype(np.float16)
    plate, face = str(folder / "plate.1001.exr"), str(folder / "face.1001.exr")
    write_exr(plate, np.tile(shade, (height, width, 1)), half=False)
    write_exr(
        face,
        np.dstack([alpha[..., None] * shade, alpha]),
        half=False,
        layers=layers.named({"parts.mouth": striped, "parts.eyes": striped}),
    )
    return plate, face


@settings(max_examples=16, deadline=None)
@example(0, 0.0, 1.0, 1.0, 1.0, 1.0, 8.0, 0)  # the edge's colours come from the face alone
@given(
    st.integers(-8, 8),
    st.floats(0, 6),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(1, 10),
    st.integers(0, 5),
)
def test_no_knob_of_the_matte_makes_a_dark_edge(
    flat: tuple[str, str],
    erode: int,
    soften: float,
    face: float,
    mouth: float,
    amount: float,
    blend: float,
    width: float,
    grow: int,
) -> None:
    """A face of the plate's colour is invisible, whatever is done to its matte."""
    with nuke_standin.running(gui=False) as session:
        node = comp(
            session,
            *flat,
            erode=erode,
            soften=soften,
            face_amount=face,
            amount=amount,
            mouth_amount=mouth,
            edge_blend=blend,
            edge_width=width,
            parts_grow=grow,
        )
        plate, shown = session.look(node.input(0), FIRST), session.look(node, FIRST)
        np.testing.assert_allclose(rgb(shown), rgb(plate), atol=1e-5)


def test_a_studios_defaults_change_no_picture(
    session: Session, made: Made, shot: tuple[str, np.ndarray]
) -> None:
    """Neither of the comp, whose matte grows beyond the frames' bounding box, nor of a wipe."""

    def pictures() -> list[Picture]:
        node = comp(session, made.plate, made.face, **EVERYTHING)
        faces = under(session, "Reenact", node.input(0))
        for read, pattern in (("Result", made.face), ("Compare", made.face)):
            shown = Frames.of(pattern, [FIRST, LAST])
            plugin("host").show_files(plugin("host").inner(faces, read), shown)
        for knob in ("has_result", "has_compare"):
            faces[knob].setValue(True)
        return [session.look(one, FIRST) for one in (node, faces)]

    usual = pictures()
    for default, value in STUDIO_DEFAULTS.items():
        session.module.knobDefault(default, value)
    for before, after in zip(usual, pictures(), strict=True):
        assert sorted(before) == sorted(after)
        for channel, pixels in before.items():
            np.testing.assert_array_equal(after[channel], pixels)
    quads = tracks.face_quads(shot[0])
    text = bake.corner_pin(bake.face_warp(quads, FIRST, (CROP, CROP), False))
    (pin,) = nk_script.parse(text)
    assert [pin.knob(f"enable{corner}") for corner in range(1, 5)] == ["true"] * 4


def test_the_matte_shrinks_and_grows(session: Session, made: Made) -> None:
    node = comp(session, made.plate, made.face, output_as="matte")
    areas = []
    for size in (4, 0, -4):
        node["erode"].setValue(size)
        areas.append(session.look(node, FIRST)["red"].sum())
    assert areas[0] < areas[1] - 100
    assert areas[1] < areas[2] - 100


def test_the_edge_takes_the_plates_colour_and_the_middle_keeps_its_own(
    session: Session, made: Made
) -> None:
    node = comp(session, made.plate, made.face, edge_width=4)
    plate, face = (session.look(node.input(i), FIRST) for i in (0, 1))
    plain = rgb(session.look(node, FIRST))
    node["edge_blend"].setValue(1)
    blended = rgb(session.look(node, FIRST))
    alpha = face["alpha"]
    edge = (alpha > 0.3) & (alpha < 0.7)

    def apart(picture: np.ndarray) -> float:
        return float(np.abs((picture - rgb(plate))[edge]).mean())

    assert apart(blended) < 0.5 * apart(plain)
    solid = alpha > 0.999
    reach = binary_erosion(solid, np.ones((21, 21)))
    assert reach.sum() > 50
    np.testing.assert_allclose(blended[reach], plain[reach], atol=0.02)


def test_a_larger_crop_is_put_into_its_place(session: Session, made: Made, tmp_path: Path) -> None:
    image = read_frame(made.clip, FIRST).pixels
    large = warp(
        torch.from_numpy(image).permute(2, 0, 1)[None],
        torch.from_numpy(made.quad)[None].float(),
        256,
    )[0]
    path = tmp_path / "crop.1001.exr"
    write_exr(path, large.permute(1, 2, 0).numpy().copy(), half=False)
    node = comp(session, made.plate, made.face, use_crop=True)
    node.setInput(2, read(session, str(path)))
    plate, shown = session.look(node.input(0), FIRST), session.look(node, FIRST)
    face = session.look(node.input(1), FIRST)
    assert (face["alpha"] > 0.9).sum() > 500
    # The plate's own pixels, cut out and pasted back: no visible difference.
    error = np.mean((rgb(shown) - rgb(plate)) ** 2)
    assert error < 0.01 * np.mean((merged(plate, face) - rgb(plate)) ** 2)


def test_a_plate_of_another_size_gets_the_face_in_the_same_place(
    session: Session, made: Made, tmp_path: Path
) -> None:
    image = read_frame(made.clip, FIRST).pixels
    twice = image.repeat(2, 0).repeat(2, 1)
    path = tmp_path / "twice.1001.exr"
    write_exr(path, twice, half=False)
    large, small, sharp = (
        rgb(session.look(comp(session, plate, made.face, shutter=shutter), FIRST))
        for plate, shutter in ((str(path), 360), (made.plate, 360), (made.plate, 0))
    )
    assert large.shape == (2 * small.shape[0], 2 * small.shape[1], 3)
    halved = large.reshape(small.shape[0], 2, small.shape[1], 2, 3).mean((1, 3))
    assert np.abs(halved - small).mean() < 0.05 * np.abs(small - image).mean()
    face = session.look(session.module.toNode("ReenactComp1").input(1), FIRST)["alpha"]
    edge = (face > 0.05) & (face < 0.95)  # where a blur of half the length would show
    assert np.abs(halved - small)[edge].mean() < 0.3 * np.abs(small - sharp)[edge].mean()


def test_a_farm_without_the_plugin_renders_the_same(made: Made, tmp_path: Path) -> None:
    with nuke_standin.running() as session:
        node = comp(session, made.plate, made.face, **EVERYTHING)
        shown = rgb(session.look(node, LAST))
        session.module.scriptSaveAs(str(tmp_path / "shot.nk"), True)
    with nuke_standin.running(gui=False) as farm, pytest.MonkeyPatch.context() as patch:
        patch.setitem(nuke_standin.sys.modules, "reenact.nodes", None)
        nuke = farm.module
        farm.plugin_path.clear()
        nuke.scriptOpen(str(tmp_path / "shot.nk"))
        write = nuke.createNode("Write")
        for knob, value in {
            "file": str(tmp_path / "out.%04d.exr"),
            "file_type": "exr",
            "raw": True,
        }.items():
            write[knob].setValue(value)
        write.setInput(0, nuke.toNode("ReenactComp1"))
        nuke.execute(write, FIRST, LAST)
        out = read_frame(open_clip(str(tmp_path / "out.####.exr")), LAST).pixels
        np.testing.assert_allclose(out, shown, rtol=1e-3, atol=1e-4)  # half float


# -- nodes with keys -----------------------------------------------------------------------------

ROWS, CROP, PLATE = 10, 64, (240, 160)  # ten layers of codes are 64 px


@pytest.fixture(scope="module")
def shot(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, np.ndarray]:
    """Saves a track whose square moves, turns past 180 degrees and grows; 1003 has no face."""
    turns, sides = np.radians([170, 178, 0, 190, 200]), np.array([50, 60, 1, 70, 85.5])
    x = np.stack([np.cos(turns), np.sin(turns)], 1) * sides[:, None]
    y = np.stack([-x[:, 1], x[:, 0]], 1)
    corner = np.array([[150.25, 120], [151, 121], [0, 0], [149, 118], [152, 125.5]])
    quads = np.stack([corner, corner + y, corner + x + y, corner + x], 1)
    quads[2] = np.nan
    count = len(quads)
    path = tmp_path_factory.mktemp("track") / "track.latents"
    plates = {
        "plate": PLATE,
        "twice": (2 * PLATE[0], 2 * PLATE[1]),
        "wide": (2 * PLATE[0], PLATE[1]),
    }
    for name, (width, height) in plates.items():
        write_exr(path.with_name(f"{name}.1001.exr"), np.zeros((height, width, 3), np.float32))
    save_track(
        path,
        LatentTrack(
            character="",
            numbers=np.arange(FIRST, FIRST + count),
            state=np.full(count, FrameState.SOLVED, np.uint8),
            cut=np.arange(count) == 0,
            alpha=np.ones((count, 1), np.float32),
            delta=np.zeros((count, ROWS, 1), np.float32),
            codes=np.zeros((count, ROWS, 512), np.float32),
            smooth=np.zeros((count, ROWS, 512), np.float32),
            neutral_offset=np.zeros((86, 3), np.float32),
            landmarks=np.zeros((count, 478, 3), np.float32),
            quads=quads,
            amount=np.ones(count, np.float32),
            losses={},
            quality={},
            settings={},
            plate=PLATE,
        ),
    )
    return str(path), quads


def test_places_are_those_of_the_core(shot: tuple[str, np.ndarray]) -> None:
    quads = tracks.face_quads(shot[0])
    assert (quads.crop, quads.plate, quads.pixel_aspect) == (CROP, PLATE, 1.0)
    assert sorted(quads.corners) == [1001, 1002, 1004, 1005]
    wanted = corner_pin(shot[1], PLATE[1])
    for number, corners in quads.corners.items():
        np.testing.assert_array_equal(corners, wanted[number - FIRST])


def baked(
    session: Session,
    made: Made,
    shot: tuple[str, np.ndarray],
    button: str,
    plate: str = "plate",
    **knobs: object,
) -> Node:
    """Presses a Bake button in a script of Read, Reenact and ReenactComp; returns the new node."""
    pattern = str(Path(shot[0]).with_name(f"{plate}.####.exr"))
    node = comp(session, pattern, made.face, **knobs)
    node.input(0)["last"].setValue(FIRST)
    reenact = session.module.createNode("Reenact")
    reenact["track"].setValue(shot[0])
    node.setInput(1, reenact)
    session.module.frame(1002)
    before = set(session._root._children)
    session.press(node, button)
    new = [n for n in session._root._children if n not in before]
    assert new, node["baked"].value()
    assert node["baked"].value() == f"{new[-1].name()}: keys from 1001 to 1005."
    assert session._contexts == []
    return new[-1]


def points(node: Node, knob: str, frame: int) -> np.ndarray:
    node._session._frame = frame
    return np.array(nuke_pixels.numbers(node, knob, ""))


def test_a_corner_pin_has_the_cores_corners(
    session: Session, made: Made, shot: tuple[str, np.ndarray]
) -> None:
    wanted = corner_pin(shot[1], PLATE[1])
    node = baked(session, made, shot, "bake_corner_pin")
    assert (node.Class(), node["invert"].value()) == ("CornerPin2D", "false")
    assert node.input(0) is None  # a crop belongs here
    square = [[0, 0], [CROP, 0], [CROP, CROP], [0, CROP]]
    for k in range(4):
        np.testing.assert_allclose(points(node, f"from{k + 1}", 1001), square[k])
        for number in (1001, 1002, 1004, 1005):
            got = points(node, f"to{k + 1}", number)
            np.testing.assert_allclose(got, wanted[number - FIRST][k], atol=1e-4)
    node = baked(session, made, shot, "bake_corner_pin", bake_from="this frame", stabilise=True)
    assert (node.input(0).Class(), node["invert"].value()) == ("Read", "true")
    np.testing.assert_allclose(points(node, "from3", 1001), wanted[1][2], atol=1e-4)


def test_a_transform_moves_as_the_corner_pin_does(
    session: Session, made: Made, shot: tuple[str, np.ndarray]
) -> None:
    wanted = corner_pin(shot[1], PLATE[1])
    square = np.array([[0, 0], [CROP, 0], [CROP, CROP], [0, CROP]], float)
    for source, still in (("the aligned crop", square), ("this frame", wanted[1])):
        node = baked(session, made, shot, "bake_transform", bake_from=source)
        turns = []
        for number in (1001, 1002, 1004, 1005):
            translate, center = (points(node, k, number) for k in ("translate", "center"))
            (rotate,), (scale,) = (points(node, k, number) for k in ("rotate", "scale"))
            cos, sin = scale * np.cos(np.radians(rotate)), scale * np.sin(np.radians(rotate))
            matrix = np.array([[cos, sin], [-sin, cos]])  # rows: counter-clockwise
            np.testing.assert_allclose(
                (still - center) @ matrix + center + translate, wanted[number - FIRST], atol=2e-2
            )
            turns.append(rotate)
        assert np.ptp(turns) == pytest.approx(30, abs=0.01)  # and not 330


def test_an_stmap_is_the_cores(session: Session, made: Made, shot: tuple[str, np.ndarray]) -> None:
    node = baked(session, made, shot, "bake_stmap")
    assert (node.Class(), node["uv"].value(), node.input(0)) == ("STMap", "rgb", None)
    drawn = node.input(1)
    for number in (1001, 1005):
        session._frame = number
        picture = nuke_pixels.expression(drawn, {c: np.zeros(PLATE[::-1]) for c in RGB})
        wanted = stmap_to_plate(shot[1][number - FIRST], Window(0, 0, *PLATE))
        np.testing.assert_allclose(picture["red"], wanted[..., 0], atol=1e-4)
        np.testing.assert_allclose(picture["green"], wanted[..., 1], atol=1e-4)
        # In proxy mode a node's pixels, width and height are the proxy's; keys are not.
        width, height = PLATE[0] // 2, PLATE[1] // 2
        proxy = nuke_pixels.expression(drawn, {c: np.zeros((height, width)) for c in RGB})
        for channel, full in zip(("red", "green"), np.moveaxis(wanted, -1, 0), strict=True):
            halved = full.reshape(height, 2, width, 2).mean((1, 3))
            np.testing.assert_allclose(proxy[channel], halved, atol=1e-4)
    other = baked(session, made, shot, "bake_stmap", stabilise=True).input(1)
    assert other.input(0).Class() == "Read"
    session._frame = 1004
    picture = nuke_pixels.expression(other, {c: np.zeros(PLATE[::-1]) for c in RGB})
    wanted = stmap_to_crop(shot[1][3], PLATE, CROP)
    rows, columns = min(CROP, PLATE[1]), min(CROP, PLATE[0])  # from the bottom left
    for i, channel in enumerate(("red", "green")):
        drawn = picture[channel][-rows:, :columns]
        np.testing.assert_allclose(drawn, wanted[-rows:, :columns, i], atol=1e-4)


@pytest.mark.parametrize("proxy", [False, True])
def test_what_is_baked_follows_the_face_in_a_plate_of_another_size(
    session: Session, made: Made, shot: tuple[str, np.ndarray], proxy: bool
) -> None:
    """The node scales the face to its plate."""
    session.module.root()["proxy"].setValue(proxy)
    wanted = 2 * corner_pin(shot[1], PLATE[1])
    node = baked(session, made, shot, "bake_corner_pin", "twice")
    for k in range(4):
        np.testing.assert_allclose(points(node, f"to{k + 1}", 1002), wanted[1][k], atol=1e-4)
    np.testing.assert_allclose(points(node, "from3", 1001), [CROP, CROP])
    node = baked(session, made, shot, "bake_transform", "twice", bake_from="this frame")
    np.testing.assert_allclose(points(node, "center", 1001), wanted[1].mean(0), atol=1e-4)
    drawn = baked(session, made, shot, "bake_stmap", "twice").input(1)
    session._frame = 1001
    picture = nuke_pixels.expression(
        drawn, {c: np.zeros((2 * PLATE[1], 2 * PLATE[0])) for c in RGB}
    )
    full = stmap_to_plate(2 * shot[1][0], Window(0, 0, 2 * PLATE[0], 2 * PLATE[1]))
    np.testing.assert_allclose(picture["red"], full[..., 0], atol=1e-4)
    np.testing.assert_allclose(picture["green"], full[..., 1], atol=1e-4)
    node = baked(session, made, shot, "bake_corner_pin", "wide", bake_from="this frame")
    across = wanted[1] * [1, 0.5]
    np.testing.assert_allclose(points(node, "from2", 1001), across[1], atol=1e-4)
    node = session.module.toNode("ReenactComp4")
    session.press(node, "bake_transform")
    assert "square pixels only" in node["baked"].value()
    assert session.module.root()["proxy"].value() is proxy


def test_what_is_baked_takes_crops_in_the_size_that_they_have(
    session: Session, made: Made, shot: tuple[str, np.ndarray], tmp_path: Path
) -> None:
    """A character with detail draws larger pictures than its generator; crops may be enlarged."""
    who, version = small_character(), tmp_path / "Reenact1_v001"
    sizes = who.generator.architecture
    shape = DetailShape(sizes.resolution, 4 * CROP, sizes.channels[sizes.resolution])
    network = DetailNetwork(shape).eval().requires_grad_(False)
    atlas = Atlas(np.ones((478, 3), np.float32), np.zeros((900, 3), np.int32))
    save_character(tmp_path / "plain.character", who)
    sharp = replace(who, detail=Detail(network, atlas, DetailInfo()))
    save_character(tmp_path / "sharp.character", sharp)
    (version / "crops").mkdir(parents=True)
    shutil.copyfile(shot[0], version / "track.latents")
    corners = corner_pin(shot[1], PLATE[1])

    def square(button: str = "bake_corner_pin", crop: Node | None = None, **knobs) -> Node:
        node = comp(session, str(Path(shot[0]).with_name("plate.####.exr")), made.face, **knobs)
        reenact = session.module.createNode("Reenact")
        reenact["track"].setValue((version / "track.latents").as_posix())
        node.setInput(1, reenact)
        node.setInput(2, crop)
        session.press(node, button)
        assert ": keys from" in node["baked"].value(), node["baked"].value()
        return session.module.toNode(node["baked"].value().partition(":")[0])

    for name, side in (("plain", CROP), ("sharp", 4 * CROP)):
        content = {
            "character": str(tmp_path / f"{name}.character"),
            "plate": asdict(protocol.Clip()),
            "source": asdict(Source([], [])),
            "first": FIRST,
            "last": LAST,
        }
        (version / "run.json").write_text(json.dumps(content))
        np.testing.assert_allclose(points(square(), "from3", FIRST), [side, side])
    image = np.zeros((96, 96, 3), np.float32)
    write_exr(version / "crops" / "Reenact1_v001_crop.1001.exr", image)
    np.testing.assert_allclose(points(square(), "from3", FIRST), [96, 96])
    for name, shape in (("large", (200, 200, 3)), ("wide", (100, 200, 3))):
        write_exr(tmp_path / f"{name}.1001.exr", np.zeros(shape, np.float32))
    large, wide = (read(session, str(tmp_path / f"{n}.1001.exr")) for n in ("large", "wide"))
    baked = square(crop=large)
    assert baked.input(0) is large
    np.testing.assert_allclose(points(baked, "from3", FIRST), [200, 200])
    moved = square("bake_transform", large)
    (scale,) = points(moved, "scale", FIRST)
    assert scale == pytest.approx(np.linalg.norm(corners[0][1] - corners[0][0]) / 200, abs=1e-4)
    np.testing.assert_allclose(points(square(crop=wide), "from3", FIRST), [200, 100])
    node = session.module.toNode("ReenactComp1")
    node.setInput(2, wide)
    session.press(node, "bake_transform")
    assert "square pixels only" in node["baked"].value()


def test_what_is_baked_is_text_that_nuke_reads(shot: tuple[str, np.ndarray]) -> None:
    quads = tracks.face_quads(shot[0])
    for crop in ((CROP, CROP), None):
        for kind, make in bake.KINDS.items():
            text = make(bake.face_warp(quads, 1002, crop, crop is None))
            for node in nk_script.parse(f"push 0\n{text}"):
                own = {"to1", "to2", "to4", "from1", "from2", "from4"} if kind == "stmap" else set()
                for name, _ in node.knobs:
                    known = name in own | {"addUserKnob"} or nuke_standin.knows(node.kind, name)
                    assert known, f"{node.kind} has no {name}"


def test_buttons_say_why_not(
    session: Session, made: Made, shot: tuple[str, np.ndarray], tmp_path: Path
) -> None:
    node = comp(session, made.plate, made.face)
    session.press(node, "bake_corner_pin")
    assert node["baked"].value().startswith("There is no Reenact node above.")
    reenact = session.module.createNode("Reenact")
    node.setInput(1, reenact)
    session.press(node, "bake_corner_pin")
    assert node["baked"].value().startswith("Reenact1 has no latent track yet. Submit it first")
    reenact["track"].setValue(shot[0])
    session.module.frame(1003)
    node["bake_from"].setValue("this frame")
    session.press(node, "bake_stmap")
    assert node["baked"].value() == "There is no face in frame 1003. Go to another one."
    broken = tmp_path / "broken.latents"
    broken.write_bytes(b"nothing")
    reenact["track"].setValue(str(broken))
    session.press(node, "bake_transform")
    assert "can't be read" in node["baked"].value()
    node.setInput(0, None)
    session.press(node, "bake_transform")
    assert node["baked"].value() == "Connect plate and face."
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(nuke_standin.sys.modules, "reenact.nodes", None)
        session.press(node, "bake_transform")
    assert session.messages[-1].startswith("Reenact's plugin does not load: ")


def test_the_square_of_the_face_is_the_patchs_own(made: Made) -> None:
    """The STMap layer of a patch and the corners of a track refer to the same pixels."""
    exr = read_frame(open_clip(made.face), FIRST)
    corners = corner_pin(made.quad[None], made.clip.height)[0]
    middle = from_square(np.array([0.5, 0.5]), made.quad)
    assert exr.pixels.shape[:2] == (made.clip.height, made.clip.width)
    np.testing.assert_allclose(corners.mean(0), [middle[0], made.clip.height - middle[1]])
