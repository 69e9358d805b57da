import cv2
import numpy as np
import pytest
import torch
from performer_faces import acted
from solve_shots import STILL, only

from core.face.aligned_clip import NoFaceError
from core.face.alignment import warp
from core.face.landmarks import detect_landmarks
from core.media.read import open_clip
from core.media.write import write_png
from core.solve.driving import driving_from_clip, driving_from_track
from core.solve.shot import solve_shot
from core.synthetic.performer import render


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Six frames: a person, two empty frames, the person again."""
    folder = tmp_path_factory.mktemp("clip")
    faces = [render(p, 200) for p in acted(5, {}, {"jaw": 0.5}, {"yaw": 5.0}, {"yaw": 8.0})]
    empty = np.full_like(faces[0], 90)
    for number, picture in zip(
        range(1001, 1007), [*faces[:2], empty, empty, *faces[2:]], strict=True
    ):
        write_png(folder / f"a.{number}.png", picture)
        write_png(folder / f"none.{number}.png", empty)
    return open_clip(folder / "a.####.png")


def test_driving_from_a_clip(clip):
    steps: list[float] = []
    d = driving_from_clip(clip, size=96, progress=lambda done, _: steps.append(done))
    assert d.numbers.tolist() == list(range(1001, 1007))
    assert d.found.tolist() == [True, True, False, False, True, True]
    assert d.pictures.shape == (6, 3, 96, 96)
    assert d.plate == (200, 200)
    assert d.source == clip.path
    assert steps == sorted(steps)
    assert steps[-1] == 12  # read twice
    picture = cv2.imread(clip.file(1005))[:, :, ::-1] / np.float32(255)
    plate = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
    crop = warp(plate, torch.from_numpy(d.quads[4:5]).float(), 96)[0] * 2 - 1
    assert (d.pictures[4].float() - crop).abs().max() < 0.01
    # the face stands where FFHQ's alignment puts it, and the two see the same mesh
    mesh = detect_landmarks(d.pictures[4:5].float()).landmarks[0, :, :2].detach().numpy()
    eyes = (mesh[[33, 263]].mean(0) / 192 - 0.5) * 0.96 + [0.5, 0.6]
    assert eyes == pytest.approx([0.5, 0.47], abs=0.05)


def test_a_part_of_a_clip_by_its_track(character, clip):
    d = driving_from_clip(clip, size=96)
    track = solve_shot(character, d, STILL)
    assert track.state.tolist() == [1, 1, 3, 3, 1, 1]  # a grey picture looks like a cut
    part = driving_from_track(clip, track, [1005, 1002, 1004], size=96)
    expected = only(d, [1002, 1004, 1005])
    assert part.numbers.tolist() == [1002, 1004, 1005]
    assert part.found.tolist() == [True, False, True]
    assert torch.equal(part.pictures, expected.pictures)
    assert np.array_equal(part.quads, expected.quads, equal_nan=True)
    with pytest.raises(KeyError):
        driving_from_track(clip, track, [99])


def test_a_clip_without_a_face(clip):
    with pytest.raises(NoFaceError, match="Choose another range"):
        driving_from_clip(open_clip(clip.path.replace("a.", "none.")))
