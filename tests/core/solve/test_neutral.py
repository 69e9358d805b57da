from dataclasses import replace

import numpy as np
import pytest
import torch
from performer_faces import acted, aligned
from scipy.spatial.transform import Rotation
from small_character import MOVES, SIZE
from solve_shots import QUICK, STILL, draw, driving, known, only

from core.face.keypoints import INNER_LIPS, KEYPOINTS, OUTER_LIPS
from core.face.landmarks import detect_averaged, detect_landmarks, group_keypoints, keypoint_error
from core.solve.neutral import (
    TURNS,
    NeutralMissingError,
    head_neutral_offset,
    head_turns,
    mouth_neutral_offset,
)
from core.solve.shot import solve_shot


def test_the_neutral_offset_is_found_without_a_pair(character):
    """Another person does what the character can do: the residual is how their shapes differ."""
    acting = known(7)
    clip = driving(aligned(acting @ acted(31, *MOVES), SIZE))
    own, other = (
        detect_landmarks(draw(character, acting)).keypoints,
        detect_averaged(clip.pictures).keypoints,
    )
    truth = group_keypoints((own - other).mean(0))
    track = solve_shot(character, clip)
    found = group_keypoints(torch.from_numpy(track.neutral_offset))
    assert float((found - truth).norm()) < 0.7 * float(truth.norm())
    part = only(clip, [1001])
    assert not solve_shot(character, part, replace(QUICK, neutral=None)).neutral_offset.any()


HEAD = slice(-4, None)  # of the 86 keypoints


def turned(shape: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Keypoints `[86, 3]` about the origin, turned by yaw, pitch and roll `[F, 3]`, degrees."""
    turns = Rotation.from_euler("yxz", angles, degrees=True).as_matrix()
    return 96 + np.einsum("fij,kj->fki", turns, shape)


@pytest.fixture(scope="module")
def own(character) -> np.ndarray:
    """The character's keypoints on average, about the origin, `[86, 3]`."""
    mean = character.keypoints.mean(0).numpy().astype(np.float64)
    return mean - mean[HEAD].mean(0)


@pytest.fixture(scope="module")
def heads(own) -> np.ndarray:
    """Anchors that only turn, evenly to all sides."""
    angles = np.random.default_rng(0).normal(0, [8, 5, 3], (32, 3))
    return turned(own, np.concatenate([angles, -angles]))


def pitch(keypoints: np.ndarray) -> float:
    return float(np.median(head_turns(keypoints)[:, TURNS.index("pitch")]))


def test_a_turned_head_is_not_taken_for_its_shape(own, heads):
    driving = turned(own, np.array([[12.0, 0, 4], [14, 0, 6], [16, 0, 5]]))
    unturned = np.abs(heads.mean(0) - driving.mean(0))[HEAD].max()
    found = head_neutral_offset(driving, heads)
    assert np.abs(found[HEAD]).max() < 0.12 * unturned
    assert not found[: HEAD.start].any()


def test_the_shape_of_a_head_is_found_however_it_is_turned(own, heads):
    broad = own * [1.15, 1, 1]
    angles = np.array([[10.0, 0, 3], [12, 0, 5], [14, 0, 4]])
    truth = (turned(own, angles) - turned(broad, angles)).mean(0)[HEAD]
    found = head_neutral_offset(turned(broad, angles), heads)[HEAD]
    assert np.linalg.norm(found - truth) < 0.3 * np.linalg.norm(truth)


@pytest.mark.parametrize(("degrees", "taken"), [(-6, -3), (6, 3), (20, 5)])
def test_half_of_a_pitch_is_taken_for_the_shape_but_no_more_than_five_degrees(
    own, heads, degrees, taken
):
    driving = turned(own, np.array([[0.0, degrees, 0]]))
    sign = np.sign(pitch(turned(own, np.array([[0.0, 1, 0]]))) - pitch(own[None]))
    assert pitch(driving) - pitch(own[None]) == pytest.approx(sign * degrees, abs=0.5)
    left = pitch(driving + head_neutral_offset(driving, heads))
    assert pitch(driving) - left == pytest.approx(sign * taken, abs=1)


def test_driving_frames_that_no_mesh_was_found_in_dont_count(own, heads):
    driving = turned(own, np.array([[5.0, 2, 0]] * 3))
    some = driving.copy()
    some[1] = np.nan
    np.testing.assert_allclose(
        head_neutral_offset(some, heads), head_neutral_offset(driving, heads), atol=1e-6
    )
    assert not head_neutral_offset(driving * np.nan, heads).any()


MOUTH = [KEYPOINTS.index(point) for point in INNER_LIPS]


LIPS = [KEYPOINTS.index(point) for point in INNER_LIPS + OUTER_LIPS]


def mouths(own: np.ndarray, widths: list[float], gaps: list[float]) -> np.ndarray:
    """Faces `[F, 86, 3]` with inner lips so wide and so far apart, over the eyes' distance."""
    span = np.linalg.norm(np.diff(own[[KEYPOINTS.index(33), KEYPOINTS.index(263)]], axis=0))
    # From the right corner along the lower lip to the left one, and back along the upper lip.
    turn = np.pi + np.arange(20) * np.pi / 10
    around = np.stack([np.cos(turn), -np.sin(turn), np.cos(2 * turn)], 1) / 2
    faces = np.tile(own, (len(widths), 1, 1))
    size = np.stack([widths, gaps, np.full(len(widths), 0.1)], 1)
    faces[:, MOUTH] = span * size[:, None] * around
    return faces


def test_mouths_are_compared_where_they_are_neutral(own):
    """However long the driver smiles, and more broadly than the character ever does."""
    anchors = mouths(own, [0.41, 0.46, 0.5, 0.52, 0.56, 0.61] * 2, [0.0] * 6 + [0.2] * 6)
    driving = mouths(own, [0.51] * 3 + [0.72] * 9, [0.01] * 3 + [0.17] * 9)
    assert np.abs(mouth_neutral_offset(driving, anchors)).max() < 0.5
    thick = np.random.default_rng(0).normal(0, 1, (40, 3)) * [0, 1, 1]
    thick[[INNER_LIPS.index(i) for i in (78, 308, 13, 14)]] = 0  # they say what is neutral
    shaped = driving.copy()
    shaped[:, LIPS] += thick
    shaped[1] = np.nan
    found = mouth_neutral_offset(shaped, anchors) - mouth_neutral_offset(driving, anchors)
    np.testing.assert_allclose(found, thick.mean(0) - thick, atol=1e-4)


def test_without_a_neutral_mouth_none_is_compared(own):
    rests, smiles = mouths(own, [0.51] * 4, [0.0] * 4), mouths(own, [0.7] * 4, [0.15] * 4)
    assert mouth_neutral_offset(rests, rests) is not None
    assert mouth_neutral_offset(smiles, rests) is None
    assert mouth_neutral_offset(rests, smiles) is None
    assert mouth_neutral_offset(rests * np.nan, rests) is None


def test_a_part_is_compared_as_the_whole_was(character):
    clip = driving(draw(character, known(4)))
    whole = solve_shot(character, clip, QUICK)
    part = only(clip, [1002])
    same_offset = solve_shot(character, part, QUICK, previous=whole).neutral_offset
    assert (same_offset == whole.neutral_offset).all()
    other = solve_shot(character, part, replace(QUICK, neutral=None), previous=whole)
    assert not other.neutral_offset.any()


def test_the_neutral_pair_is_taken_out_of_the_comparison(character):
    """The driver's neutral face stands for the character's: nothing is left to solve."""
    # The driver's neutral face is an open jaw, which no processor's arithmetic mistakes.
    rest = np.eye(len(MOVES))[[1, 0]]
    clip = driving(draw(character, rest))
    settings = replace(STILL, start="centre", neutral=(1001, 0))
    track = solve_shot(character, clip, settings)
    pictures = draw(
        character, np.stack([np.full(len(MOVES), 1 / len(MOVES)), np.eye(len(MOVES))[0]])
    )
    centre, at_rest = detect_averaged(pictures).keypoints
    assert track.quality["keypoint_error"][0] == pytest.approx(
        float(keypoint_error(centre, at_rest)), abs=0.05
    )
    looked_up = solve_shot(character, clip, replace(settings, start="retrieval"))
    assert looked_up.alpha[0].argmax() == 0
    assert solve_shot(character, clip, replace(STILL, start="retrieval")).alpha[0].argmax() == 1


@pytest.mark.parametrize(
    ("neutral", "words"),
    [((1002, 0), "Frame 1002, the neutral driving"), ((1001, 12), "nearest that are: 0, 10, 20")],
)
def test_a_neutral_pair_that_is_not_there(character, neutral, words):
    clip = driving(draw(character, known(2)), found=np.array([True, False]))
    with pytest.raises(NeutralMissingError, match=words):
        solve_shot(character, clip, replace(QUICK, neutral=neutral))


def test_a_neutral_frame_of_broken_pixels_is_refused(character):
    pictures = draw(character, known(2))
    pictures[0] = torch.nan
    with pytest.raises(NeutralMissingError, match="Frame 1001, the neutral driving"):
        solve_shot(character, driving(pictures), replace(QUICK, neutral=(1001, 0)))
