import pytest
import torch
from performer_faces import acted, aligned

from core.face.keypoints import GROUPS, KEYPOINTS
from core.face.landmarks import (
    detect_averaged,
    detect_keypoints,
    detect_landmarks,
    group_keypoints,
    keypoint_error,
)


@pytest.fixture(scope="module")
def faces():
    """Two people, the second with an open mouth; 96 px."""
    moves = ({}, {"jaw": 0.7, "gaze_x": 0.6, "yaw": 8.0})
    return torch.cat([aligned(acted(person, *moves), 96) for person in (3, 11)])


@pytest.fixture(scope="module")
def seen(faces):
    with torch.no_grad():
        return detect_landmarks(faces)


def test_grouping_twice_changes_nothing():
    a = 192 * torch.rand(2, 86, 3, dtype=torch.float64)
    assert torch.allclose(group_keypoints(group_keypoints(a)), group_keypoints(a))


def test_averaged_landmarks_are_the_same_but_steadier(faces, seen):
    """Moved by some px the face stays the same, and so should its keypoints, moved back."""
    averaged = detect_averaged(faces)
    assert averaged.landmarks.shape == seen.landmarks.shape
    assert averaged.pictures.shape == faces.shape
    difference = averaged.landmarks - seen.landmarks
    assert float(difference.abs().mean()) < 0.5
    assert float(difference.mean(1).abs().max()) < 0.5
    moves = {detect_landmarks: [], detect_averaged: []}
    for x, y in ((0, 0), (1, 0), (0, 1), (-1, 0), (0, -1), (2, 1), (-1, 2)):
        moved = faces.roll((y, x), (2, 3))
        for detect, found in moves.items():
            with torch.no_grad():
                found.append(group_keypoints(detect(moved).keypoints)[:, : -len(GROUPS["head"])])
    off = [torch.stack(found).std(0).mean() for found in moves.values()]
    assert off[1] < 0.6 * off[0]


def test_face_keypoints_are_mediapipes_in_the_order_of_the_groups(faces, seen):
    found = detect_keypoints(faces)
    assert found.shape == (4, 86, 3)
    assert torch.equal(found, seen.landmarks[:, list(KEYPOINTS)])


def test_keypoints_do_not_depend_on_the_resolution(faces):
    """Driver and result may differ in size: crop px mean the same in both."""
    large = torch.nn.functional.interpolate(faces, 192, mode="bicubic", align_corners=False)
    assert float(keypoint_error(detect_keypoints(faces), detect_keypoints(large)).max()) < 1
