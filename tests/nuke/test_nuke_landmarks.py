"""Tests the Tracker4 and the Roto that ReenactComp makes of the landmarks of a face.

The texts are read by `nuke_shapes`, which was written from Nuke's grammar, and compared with the
landmarks that went in, with a frame's own mattes, and with where the performer's face is.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import nk_script
import nuke_shapes
import nuke_standin
import numpy as np
import OpenImageIO as oiio
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nuke_session import read_node, under
from nuke_standin import Node, Session
from performer_faces import acted, aligned
from reenact import landmarks as marks
from reenact import shapes
from small_character import MOVES

from core.face import keypoints
from core.face.alignment import ffhq_quads, from_square, to_square
from core.face.network import crop_roi, face_detector, face_mesh, to_picture
from core.generator import Architecture
from core.media.numbering import frame_path
from core.media.read import open_clip
from core.media.write import write_exr
from core.render import matte
from core.render.frames import FrameFiles, write_frames
from core.solve.latent_track import FrameState, LatentTrack
from core.synthetic import performer

FIRST = 1001
NO_FACE, NO_FILE = 1004, 1007
ACTED = (0, 1, 2, 3, 4, 5, 6, 7, 0, 1)  # the face of each frame
FRAMES = range(FIRST, FIRST + len(ACTED))
SHOWN = [n for n in FRAMES if n not in (NO_FACE, NO_FILE)]
WIDTH, HEIGHT, SIDE = 480, 400, 256.0


@dataclass(frozen=True)
class Shot:
    """A rendered shot: its files, its quads, and points of the performer in each frame."""

    plate: str
    face: str
    quads: np.ndarray  # [F, 4, 2] plate px
    truth: list[dict[str, np.ndarray]]  # Nuke's px


class Performer(torch.nn.Module):
    """A generator that draws the performer's faces as they are, so that their points are known.

    A face is chosen by the first number of a code.
    """

    architecture = Architecture(256, {2**i: 1 for i in range(2, 9)})

    def __init__(self, pictures: torch.Tensor) -> None:
        super().__init__()
        self.pictures = torch.nn.Parameter(pictures, requires_grad=False)

    def synthesis(self, codes: torch.Tensor, stop_at: int | None = None) -> torch.Tensor:
        assert stop_at in (None, 256)
        return self.pictures[codes[:, 0, 0].long()]


@pytest.fixture(scope="module")
def shot(tmp_path_factory: pytest.TempPathFactory) -> Shot:
    """Renders the performer's faces, each on a frame of its own, over a moving square."""
    folder = tmp_path_factory.mktemp("landmarks")
    params = acted(5, *MOVES)
    generator = Performer(aligned(params, 256))
    layers = generator.architecture.num_ws
    count = len(ACTED)
    plate = str(folder / "plate.####.exr")
    for number in FRAMES:
        grey = np.full((HEIGHT, WIDTH, 3), 0.2, np.float32)
        write_exr(frame_path(plate, number), grey, half=False)
    i = np.arange(count)[:, None]
    corner = np.array([60.3, 40.7]) + i * [7.1, 3.3]
    across = np.stack([SIDE * np.cos(0.03 * i[:, 0]), SIDE * np.sin(0.03 * i[:, 0])], 1)
    down = np.stack([-across[:, 1], across[:, 0]], 1)
    quads = np.stack([corner, corner + down, corner + down + across, corner + across], 1)
    truth = []
    for frame, face in enumerate(ACTED):
        named, own = performer.landmarks(params[face]), own_quad(params[face])
        truth.append(
            {
                name: from_square(to_square(256 * xy, own), quads[frame]) * [1, -1] + [0, HEIGHT]
                for name, xy in named.items()
            }
        )
    quads[NO_FACE - FIRST] = np.nan
    codes = np.zeros((count, layers, 512), np.float32)
    codes[:, 0, 0] = ACTED
    track = LatentTrack(
        character="",
        numbers=np.array(FRAMES),
        state=np.full(count, FrameState.SOLVED, np.uint8),
        cut=np.ones(count, bool),  # each frame by itself: nothing is steadied
        alpha=np.ones((count, 1), np.float32),
        delta=np.zeros((count, layers, 1), np.float32),
        codes=codes,
        smooth=codes,
        neutral_offset=np.zeros((86, 3), np.float32),
        landmarks=np.full((count, 478, 3), np.nan, np.float32),
        quads=quads,
        amount=np.ones(count, np.float32),
        losses={},
        quality={},
        settings={},
        plate=(WIDTH, HEIGHT),
    )
    face = str(folder / "face.####.exr")
    clip = open_clip(plate)
    assert write_frames(generator, track, np.arange(count), FrameFiles(face, "t"), clip) == [
        NO_FACE
    ]
    Path(frame_path(face, NO_FILE)).unlink()
    return Shot(plate, face, quads, truth)


def own_quad(params: np.ndarray) -> np.ndarray:
    """Returns the square that a face is cut out of, px of its picture of 256 px."""
    image = torch.from_numpy(performer.render(params, 256)).permute(2, 0, 1)[None] / 255
    roi = face_detector()(image).roi[:1]
    with torch.no_grad():
        found = to_picture(face_mesh()(crop_roi(image, roi)).landmarks, roi)
    return ffhq_quads(found.numpy())[0]


def baked(session: Session, shot: Shot, button: str, **knobs: object) -> Node:
    """Presses a Bake button under Reads of plate and face; returns the new node."""
    reads = [read_node(session, p, FRAMES[0], FRAMES[-1]) for p in (shot.plate, shot.face)]
    for read in reads:
        read["raw"].setValue(True)
    node = under(session, "ReenactComp", *reads)
    for name, chosen in knobs.items():
        node[name].setValue(chosen)
    before = set(session._root._children)
    session.press(node, button)
    new = [n for n in session._root._children if n not in before]
    assert new, node["baked"].value()
    assert node["baked"].value() == f"{new[-1].name()}: keys from {SHOWN[0]} to {SHOWN[-1]}."
    assert new[-1].input(0) is reads[0]
    return new[-1]


def written(shot: Shot) -> marks.Landmarks:
    found, size = marks.read_landmarks({n: frame_path(shot.face, n) for n in FRAMES})
    assert size == (WIDTH, HEIGHT)
    return found


def channel(shot: Shot, number: int, name: str) -> np.ndarray:
    """Returns a channel of a frame over the whole plate, whatever its layer's prefix."""
    buffer = oiio.ImageBuf(frame_path(shot.face, number))
    (at,) = [i for i, c in enumerate(buffer.spec().channelnames) if c.endswith(name)]
    plane = np.zeros((HEIGHT, WIDTH), np.float32)
    roi = buffer.roi
    plane[roi.ybegin : roi.yend, roi.xbegin : roi.xend] = buffer.get_pixels()[..., at]
    return plane


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Returns intersection over union of two mattes."""
    return float(np.minimum(a, b).sum() / np.maximum(a, b).sum())


# -- what frames hold ----------------------------------------------------------------------------


def test_frames_hold_the_landmarks_of_the_face_in_nukes_pixels(shot: Shot) -> None:
    found = written(shot)
    assert sorted(found) == SHOWN
    for number, points in found.items():
        inside = to_square(np.array(points) * [1, -1] + [0, HEIGHT], shot.quads[number - FIRST])
        assert len(inside) == 478
        assert 0 < inside[:, 0].min() < inside[:, 0].max() < 1
        assert inside[152, 1] > inside[10, 1] + 0.3  # the chin is below the forehead
        assert inside[33, 0] < inside[263, 0]  # the person's right eye is on the picture's left


def test_files_that_are_no_frames_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.exr"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no EXR"):
        marks.read_landmarks({1: str(path)})
    write_exr(path, np.zeros((8, 9, 3), np.float32), attributes={marks.ATTRIBUTE: "1 2 3"})
    assert marks.read_landmarks({1: str(path)}) == ({}, (9, 8))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"displayWindow\0", b"displayWindox\0"))
    with pytest.raises(ValueError, match="no display window"):
        marks.read_landmarks({1: str(path)})
    for length in (6, 20, 60, 300):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="damaged"):
            marks.read_landmarks({1: str(path)})


def test_names_are_those_of_the_mesh() -> None:
    """Left and right are as in the core, and outlines follow its rings."""
    for name, i in marks.named_points("").items():
        for side, rings in (
            ("left", (keypoints.LEFT_EYE, keypoints.LEFT_IRIS, keypoints.LEFT_EYEBROW)),
            ("right", (keypoints.RIGHT_EYE, keypoints.RIGHT_IRIS, keypoints.RIGHT_EYEBROW)),
        ):
            if any(i in ring for ring in rings):
                assert name.startswith(side), name
    rings = (
        keypoints.FACE_OVAL,
        keypoints.OUTER_LIPS,
        keypoints.INNER_LIPS,
        keypoints.LEFT_EYE,
        keypoints.RIGHT_EYE,
    )
    for outline, ring in zip(marks.OUTLINES.values(), rings, strict=True):
        at = [ring.index(i) for i in outline]
        assert at == sorted(at)
        assert 12 <= len(at) <= 24
        assert {0, len(ring) // 2} <= {*at}
    assert (shapes.EDGE_OFFSET, shapes.FOREHEAD_OFFSET) == (
        matte.EDGE_OFFSET,
        matte.FOREHEAD_OFFSET,
    )
    assert marks.ATTRIBUTE == "reenact:landmarks"


# -- the Tracker4 --------------------------------------------------------------------------------


def test_a_tracker_has_every_point_on_every_frame(session: Session, shot: Shot) -> None:
    found = written(shot)
    node = baked(session, shot, "bake_tracker")
    assert node.Class() == "Tracker4"
    tracks = nuke_shapes.read_tracks(node["tracks"].toScript())
    assert tracks.keys() == marks.named_points("").keys()
    assert len(tracks) > 30
    for name, track in tracks.items():
        i = marks.named_points("")[name]
        assert [*track.x] == [*track.y] == SHOWN
        assert [n for n in FRAMES if track.on(n)] == SHOWN
        for number in SHOWN:
            np.testing.assert_allclose(
                [track.x[number], track.y[number]], found[number][i], atol=1e-3
            )


@pytest.mark.parametrize("choice", marks.POINT_SETS)
def test_a_tracker_has_the_points_of_the_chosen_set(
    session: Session, shot: Shot, choice: str
) -> None:
    node = baked(session, shot, "bake_tracker", bake_points=choice)
    tracks = nuke_shapes.read_tracks(node["tracks"].toScript())
    assert [*tracks] == [*marks.POINT_SETS[choice]]


def test_tracks_follow_the_performers_face(session: Session, shot: Shot) -> None:
    """On a face of 256 px. The chin is a round form, whose lowest point an open jaw moves."""
    node = baked(session, shot, "bake_tracker")
    tracks = nuke_shapes.read_tracks(node["tracks"].toScript())
    for name, own, most in (
        ("right lip corner", "mouth_r", 5),
        ("left lip corner", "mouth_l", 5),
        ("chin", "chin", 10),
    ):
        errors = []
        for number in SHOWN:
            got = np.array([tracks[name].x[number], tracks[name].y[number]])
            errors.append(float(np.linalg.norm(got - shot.truth[number - FIRST][own])))
        print(f"{name}: {np.mean(errors):.1f} px, at most {max(errors):.1f}")
        assert max(errors) < most


# -- the Roto ------------------------------------------------------------------------------------


def test_a_roto_has_every_point_on_every_frame(session: Session, shot: Shot) -> None:
    found = written(shot)
    node = baked(session, shot, "bake_roto")
    assert (node.Class(), node["output"].value()) == ("Roto", "alpha")
    read = nuke_shapes.read_shapes(node["curves"].toScript())
    assert [*read] == ["face", "lips", "inner_lips", "left_eye", "right_eye"]
    for name, shape in read.items():
        for number in range(FRAMES[0] - 3, FRAMES[-1] + 4):
            assert shape.alpha(number) == (number in SHOWN)
        for number in SHOWN:
            at = shape.points(number)[:, 1]
            wanted = np.array([found[number][i] for i in marks.OUTLINES[name]])
            if name == "face":  # around the mesh, further up
                far = np.linalg.norm(at - wanted, axis=1)
                assert far.min() > 0.9 * SIDE * matte.EDGE_OFFSET
                assert far.argmax() == 0
            else:
                np.testing.assert_allclose(at, wanted, atol=1e-3)


def test_shapes_cover_what_the_mattes_do(session: Session, shot: Shot) -> None:
    """Drawn by the node that was made, against each frame's own layers; shut eyes are slits."""
    node = baked(session, shot, "bake_roto")
    whole = session.look(node, SHOWN[0])["alpha"]
    read = nuke_shapes.read_shapes(node["curves"].toScript())
    np.testing.assert_array_equal(whole, read["face"].draw(SHOWN[0], WIDTH, HEIGHT))
    assert session.look(node, NO_FACE)["alpha"].max() == 0
    overlaps: dict[str, list[float]] = {}
    for number in SHOWN:
        drawn = {name: shape.draw(number, WIDTH, HEIGHT) for name, shape in read.items()}
        drawn["eyes"] = np.maximum(drawn["left_eye"], drawn["right_eye"])
        for name, layer in (
            ("face", "matte.face"),
            ("lips", "parts.mouth"),
            ("eyes", "parts.eyes"),
            ("inner_lips", "parts.inner"),
        ):
            own = channel(shot, number, layer)
            if own.sum() > 250:  # px; less is a slit
                overlaps.setdefault(name, []).append(overlap(drawn[name], own))
    for name, least, frames in (
        ("face", 0.9, 8),
        ("lips", 0.9, 8),
        ("eyes", 0.88, 7),
        ("inner_lips", 0.9, 2),
    ):
        print(f"{name}: {min(overlaps[name]):.3f} at least, in {len(overlaps[name])} frames")
        assert min(overlaps[name]) > least
        assert len(overlaps[name]) >= frames


def test_between_frames_shapes_move_evenly() -> None:
    """As motion blur samples them: half way, a point is half way."""
    points = np.random.default_rng(0).uniform(0, 100, (478, 2)).tolist()
    moved = {n: [(x + 3 * n, y - n) for x, y in points] for n in (1, 2, 3, 4)}
    read = read_back(moved, range(1, 5))
    for shape in read.values():
        for x, y in shape.knots[1::3]:
            for axis, step in ((x, 3), (y, -1)):
                for n in (1, 2, 3):
                    assert nuke_shapes.value(axis, n + 0.5) == pytest.approx(axis[n][0] + step / 2)


def read_back(found: marks.Landmarks, frames: range) -> dict[str, nuke_shapes.Shape]:
    """Writes a Roto, has Tcl evaluate it, and reads its shapes."""
    (node,) = nk_script.parse("push 0\n" + shapes.roto(found, frames, (1920, 1080)))
    for name, _ in node.knobs:
        assert nuke_standin.knows(node.kind, name), name
    return nuke_shapes.read_shapes(node.knob("curves"))


@settings(max_examples=20, deadline=None)
@given(
    st.sets(st.integers(-5, 30), min_size=1, max_size=8),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1.0, 100.0, 4000.0]),
)
def test_whatever_the_points_they_come_back(numbers: set[int], seed: int, scale: float) -> None:
    """Gaps, single frames, frames below 0, points that coincide, and points beyond the plate."""
    rng = np.random.default_rng(seed)
    found: marks.Landmarks = {}
    for n in sorted(numbers):
        points = rng.normal(size=(478, 2)) * scale
        points[rng.random(478) < 0.2] = 0
        found[n] = [(float(x), float(y)) for x, y in points]
    frames = range(min(numbers) - 1, max(numbers) + 3)
    for name, shape in read_back(found, frames).items():
        for n in range(frames[0] - 2, frames[-1] + 3):
            assert shape.alpha(n) == (n in numbers)
        for before, after in pairwise(sorted(shape.opacity)):
            half = (before + after) / 2
            assert 0 <= shape.alpha(half) <= 1
        for n in numbers if name != "face" else ():
            wanted = [found[n][i] for i in marks.OUTLINES[name]]
            np.testing.assert_allclose(shape.points(n)[:, 1], wanted, atol=1e-3)
    (node,) = nk_script.parse("push 0\n" + shapes.tracker(found, frames, marks.named_points("")))
    for name, _ in node.knobs:
        assert nuke_standin.knows(node.kind, name), name
    tracks = nuke_shapes.read_tracks(node.knob("tracks"))
    for name, i in marks.named_points("").items():
        assert [n for n in frames if tracks[name].on(n)] == sorted(numbers)
        for n in numbers:
            np.testing.assert_allclose(
                [tracks[name].x[n], tracks[name].y[n]], found[n][i], atol=1e-3
            )


# -- the buttons ---------------------------------------------------------------------------------


def test_a_reenact_node_gives_the_landmarks_of_its_result(session: Session, shot: Shot) -> None:
    """The same text as for a Read of its frames, also through a node in between."""
    plain = baked(session, shot, "bake_roto")["curves"].toScript()
    reenact = session.module.createNode("Reenact")
    reenact["track"].setValue("there.latents")
    for knob, chosen in {"file": shot.face, "first": FRAMES[0], "last": FRAMES[-1]}.items():
        reenact.node("Result")[knob].setValue(chosen)
    blur = under(session, "TimeClip", under(session, "Blur", reenact))
    node = session.module.toNode("ReenactComp1")
    node.setInput(1, blur)
    session.press(node, "bake_roto")
    made = session.module.toNode(node["baked"].value().partition(":")[0])
    assert made["curves"].toScript() == plain


def test_points_and_shapes_follow_the_face_in_a_plate_of_another_size(
    session: Session, shot: Shot, tmp_path: Path
) -> None:
    """The node scales the face to its plate."""
    large = str(tmp_path / "large.####.exr")
    for number in FRAMES:
        grey = np.full((3 * HEIGHT, 2 * WIDTH, 3), 0.2, np.float32)
        write_exr(frame_path(large, number), grey, half=False)
    other = Shot(large, shot.face, shot.quads, shot.truth)
    found = written(shot)
    node = baked(session, other, "bake_tracker")
    tracks = nuke_shapes.read_tracks(node["tracks"].toScript())
    for name, i in marks.named_points("").items():
        for n in SHOWN:
            wanted = np.array(found[n][i]) * [2, 3]
            np.testing.assert_allclose([tracks[name].x[n], tracks[name].y[n]], wanted, atol=1e-3)
    roto = baked(session, other, "bake_roto")["curves"].toScript()
    at = nuke_shapes.read_shapes(roto)["left_eye"].points(FIRST)[:, 1]
    ring = np.array([found[FIRST][i] for i in marks.OUTLINES["left_eye"]])
    np.testing.assert_allclose(at, ring * [2, 3], atol=1e-3)


def test_of_a_switch_the_face_that_is_shown_is_read(session: Session, shot: Shot) -> None:
    plain = baked(session, shot, "bake_roto")["curves"].toScript()
    node = session.module.toNode("ReenactComp1")
    plate, face = node.input(0), node.input(1)
    switch = under(session, "Switch", plate, face)  # the plate's frames have no landmarks
    switch["which"].setValue(1)
    node.setInput(1, switch)
    session.press(node, "bake_roto")
    made = session.module.toNode(node["baked"].value().partition(":")[0])
    assert made["curves"].toScript() == plain


def test_frames_that_a_read_shows_at_other_times_are_refused(session: Session, shot: Shot) -> None:
    baked(session, shot, "bake_roto")
    node = session.module.toNode("ReenactComp1")
    face = node.input(1)
    for mode, text, moved in (
        ("start at", "1", True),
        ("start at", str(FRAMES[0]), False),
        ("offset", "8", True),
        ("offset", "0", False),
        ("expression", "frame+1000", True),
        ("expression", "", False),
    ):
        for knob, value in {"frame_mode": mode, "frame": text}.items():
            face[knob].setValue(value)
        session.press(node, "bake_tracker")
        said = node["baked"].value()
        assert said.startswith("Read2 shows at other times the frames of its files.") == moved, said
        assert (": keys from" in said) == (not moved)


def test_buttons_say_why_not(session: Session, shot: Shot, tmp_path: Path) -> None:
    node = session.module.createNode("ReenactComp")
    for button in ("bake_tracker", "bake_roto"):
        session.press(node, button)
        assert node["baked"].value() == "Connect plate and face."
    plate, face = (read_node(session, p, FRAMES[0], FRAMES[-1]) for p in (shot.plate, shot.plate))
    node.setInput(0, plate)
    node.setInput(1, session.module.createNode("CheckerBoard2"))
    session.press(node, "bake_roto")
    assert node["baked"].value().startswith("There is no Reenact node and no Read above.")
    node.setInput(1, face)  # frames without landmarks, as of the version before
    session.press(node, "bake_tracker")
    assert "Submit the face again" in node["baked"].value()
    node.setInput(1, session.module.createNode("Reenact"))
    session.press(node, "bake_tracker")
    assert node["baked"].value().startswith("Reenact1 has no latent track yet. Submit it first")
    broken = tmp_path / "broken.exr"
    broken.write_bytes(b"nothing")
    node.setInput(1, face)
    face["file"].setValue(str(broken))
    session.press(node, "bake_roto")
    assert "can't be read" in node["baked"].value()
