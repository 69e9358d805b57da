"""Aligned clips against the plate's own pixels."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from core.face.aligned_clip import AlignedClip, NoFaceError, align_clip, cut_out
from core.face.keypoints import DLIB_LEFT_EYE, DLIB_RIGHT_EYE
from core.face.network import aligned_roi, crop_roi, face_mesh, to_picture
from core.media.clip import Clip
from core.media.read import open_clip, read_network_frames
from core.media.write import write_png
from core.synthetic import performer
from core.synthetic.parameters import neutral

SIZE = 96
FACELESS = [5, 6, 7]


def film(folder: Path, motion: np.ndarray, hidden: list[int]) -> Clip:
    """A person before a wall of bars, whose face something hides in some frames."""
    bars = np.where(np.arange(640) // 80 % 2, 40, 215).astype(np.uint8)
    for i, parameters in enumerate(motion):
        picture = np.tile(bars[None, :, None], (300, 1, 3))
        picture[50:250, 200:400] = performer.render(parameters, 200)
        if i in hidden:
            picture[90:220, 250:350] = 90
        write_png(folder / f"scan.{1001 + i}.png", picture)
    return open_clip(folder / "scan.####.png")


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> tuple[AlignedClip, list[float]]:
    motion = performer.performance(performer.random_identity(4), 12)
    clip = film(tmp_path_factory.mktemp("scan"), motion, FACELESS)
    shares: list[float] = []
    return align_clip(clip, SIZE, progress=lambda d, t: shares.append(d / t)), shares


def test_every_face_is_framed_as_ffhq_frames_it(filmed: tuple) -> None:
    aligned, _ = filmed
    found = aligned.face.found
    assert np.flatnonzero(~found).tolist() == FACELESS
    pictures = aligned.pictures[torch.from_numpy(found)].float() / 2 + 0.5
    roi = aligned_roi(SIZE, len(pictures))
    with torch.no_grad():
        mesh = to_picture(face_mesh()(crop_roi(pictures, roi)).landmarks, roi)[..., :2].numpy()
    eyes = mesh[:, [*DLIB_RIGHT_EYE, *DLIB_LEFT_EYE]].mean(1) / SIZE
    assert np.abs(eyes[:, 0] - 0.5).max() < 0.03
    assert np.ptp(eyes[:, 1]) < 0.06
    assert not aligned.pictures[~torch.from_numpy(found)].any()


def test_the_pixels_are_the_plates(filmed: tuple) -> None:
    """Against OpenCV's perspective warp of the same quad."""
    aligned, _ = filmed
    row, corners = 9, np.float32([[0, 0], [0, SIZE], [SIZE, SIZE], [SIZE, 0]]) - 0.5
    plate = next(read_network_frames(aligned.clip, [1001 + row])).srgb
    matrix = cv2.getPerspectiveTransform(np.float32(aligned.quads[row] - 0.5), corners)
    reference = cv2.warpPerspective(plate, matrix, (SIZE, SIZE), flags=cv2.INTER_CUBIC)
    picture = aligned.pictures[row].permute(1, 2, 0).float().numpy() / 2 + 0.5
    inside = slice(4, -4)
    error = np.abs(picture - reference.clip(0, 1))[inside, inside]
    assert error.mean() < 0.01  # ours is low-passed where it shrinks


def test_a_short_gap_keeps_its_square(filmed: tuple) -> None:
    aligned, _ = filmed
    centres = aligned.quads.mean(1)
    assert np.isfinite(centres).all()
    steps = np.diff(centres[FACELESS[0] - 1 : FACELESS[-1] + 2], axis=0)
    assert np.ptp(steps, axis=0).max() < 1.5  # evenly from the one side to the other


def test_frames_cut_out_again_are_the_same(filmed: tuple) -> None:
    aligned, _ = filmed
    rows = [0, 11]
    numbers = [1001, 1012]
    again = list(cut_out(aligned.clip, numbers, aligned.quads[rows], SIZE))
    assert torch.equal(torch.stack(again), aligned.pictures[rows])


def test_progress_only_rises_and_ends_at_all(filmed: tuple) -> None:
    _, shares = filmed
    assert (np.diff(shares) >= 0).all()
    assert shares[-1] == 1


def test_a_clip_without_a_face_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoFaceError, match=r"no face in .*scan"):
        align_clip(film(tmp_path, np.tile(neutral(), (3, 1)), [0, 1, 2]), SIZE)
