"""Following a face: against MediaPipe's video graph; losses, cuts, crowds, anamorphic plates."""

import cv2
import mediapipe_reference as reference
import numpy as np
import pytest
import skimage.data

from core.face.tracking import FaceState, track_face
from core.synthetic import performer

ASTRONAUT = skimage.data.astronaut()
NONE, DETECTED, TRACKED = FaceState.NONE, FaceState.DETECTED, FaceState.TRACKED


def clip(pictures: list[np.ndarray], first: int = 1001) -> list[tuple[int, np.ndarray]]:
    return [(first + i, p.astype(np.float32) / 255) for i, p in enumerate(pictures)]


def with_face(x: int, y: int, size: int, plate: np.ndarray) -> np.ndarray:
    """The astronaut's head, `size` px, put into a plate."""
    plate = plate.copy()
    head = cv2.resize(ASTRONAUT[:256, 96:352], (size, size), interpolation=cv2.INTER_AREA)
    plate[y : y + size, x : x + size] = head
    return plate


def grey(width: int = 640, height: int = 360) -> np.ndarray:
    return np.full((height, width, 3), 110, np.uint8)


def centre(landmarks: np.ndarray) -> np.ndarray:
    return landmarks[:, :2].mean(0)


def test_follows_as_mediapipe_follows_a_video() -> None:
    motion = performer.performance(performer.random_identity(4), frames=40, seed=4)
    pictures = [performer.render(p, 256) for p in motion]
    result = track_face(clip(pictures))
    graph = reference.Graph(video=True)
    assert result.state.tolist() == [DETECTED] + [TRACKED] * 39
    assert result.numbers.tolist() == list(range(1001, 1041))
    expected = np.stack([graph(picture).landmarks for picture in pictures])
    error = np.abs(result.landmarks - expected)[..., :2] * 192 / result.roi[:, 2, None, None]
    assert error.mean() < 0.1
    # The ROI depends on the frame before, so differences feed back; irises (from 468) are left
    # out, because behind shut lids they are the network's guess.
    assert error[:, :468].max() < 1.5


def test_a_lost_face_is_a_state_and_is_found_again() -> None:
    face = with_face(200, 60, 240, grey())
    moved = with_face(230, 70, 240, grey())
    result = track_face(clip([face, face, grey(), grey(), moved, moved]))
    assert result.state.tolist() == [DETECTED, TRACKED, NONE, NONE, DETECTED, TRACKED]
    assert np.isnan(result.landmarks[2:4]).all()
    assert np.isnan(result.roi[2:4]).all()
    assert result.found.tolist() == [True, True, False, False, True, True]
    np.testing.assert_allclose(
        centre(result.landmarks[5]) - centre(result.landmarks[1]), [30, 10], atol=1.0
    )


def test_a_clip_without_any_face_is_tracked_too() -> None:
    result = track_face(clip([grey(320, 180)] * 3))
    assert result.state.tolist() == [NONE] * 3
    assert result.faces.tolist() == [0] * 3


def test_picks_the_largest_the_nearest_or_the_one_pointed_at() -> None:
    left, right = (170, 170), (520, 230)
    alone = with_face(420, 130, 200, grey())
    crowd = with_face(40, 40, 260, alone)

    def who(landmarks: np.ndarray) -> tuple[int, int]:
        return min(left, right, key=lambda p: np.hypot(*(centre(landmarks) - p)))

    assert who(track_face(clip([crowd])).landmarks[0]) == left
    assert who(track_face(clip([crowd]), at=right).landmarks[0]) == right
    assert who(track_face(clip([crowd]), at=left).landmarks[0]) == left
    # hidden for a while, then beside a larger face that was there all along: stays with the person
    hidden = crowd.copy()
    hidden[130:330, 420:620] = 110
    stays = track_face(clip([crowd, crowd, hidden, crowd, crowd]), at=right)
    assert not stays.cut.any()
    assert stays.state.tolist() == [DETECTED, TRACKED, NONE, DETECTED, TRACKED]
    assert who(stays.landmarks[1]) == who(stays.landmarks[3]) == who(stays.landmarks[4]) == right


def ground(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture, (640, 360), interpolation=cv2.INTER_AREA)


COFFEE, CAT = ground(skimage.data.coffee()), ground(skimage.data.chelsea())


def test_cuts_are_found_and_motion_is_not_one() -> None:
    first = [with_face(20 + 6 * i, 60 + i, 240, COFFEE) for i in range(8)]
    second = [with_face(300 + 6 * i, 60 + i, 240, CAT) for i in range(8)]
    result = track_face(clip([*first, *second]))
    assert np.flatnonzero(result.cut).tolist() == [8]
    assert result.state.tolist() == [DETECTED] + [TRACKED] * 7 + [DETECTED] + [TRACKED] * 7


def test_a_cut_on_the_last_frame_is_one() -> None:
    result = track_face(clip([with_face(20, 60, 240, COFFEE)] * 3 + [with_face(300, 60, 240, CAT)]))
    assert result.cut.tolist() == [False, False, False, True]


def test_a_fast_pan_has_no_cuts() -> None:
    wide = np.concatenate([COFFEE, CAT, COFFEE], 1)
    pan = [with_face(200, 60, 240, wide[:, 90 * i : 90 * i + 640]) for i in range(12)]
    assert not track_face(clip(pan)).cut.any()


@pytest.mark.parametrize("levels", [[1, 1, 1, 2.2, 1, 1, 1], [1, 0.6] * 5, [1, 1, 0.15, 1, 1]])
def test_lights_that_flash_are_no_cuts(levels: list[float]) -> None:
    shot = [with_face(200 + 3 * i, 60, 240, COFFEE).astype(float) for i in range(len(levels))]
    lit = [np.clip(p * k, 0, 255).astype(np.uint8) for p, k in zip(shot, levels, strict=True)]
    assert not track_face(clip(lit)).cut.any()


def test_a_flash_does_not_change_the_person() -> None:
    shot = [
        with_face(400 + 4 * i, 130, 200, with_face(40 + 4 * i, 40, 260, COFFEE)) for i in range(7)
    ]
    shot[3] = np.full_like(shot[3], 255)
    result = track_face(clip(shot), at=(500, 230))
    assert not result.cut.any()
    assert result.state.tolist()[3:5] == [NONE, DETECTED]
    assert all(centre(p)[0] > 400 for p in result.landmarks[4:])


def test_a_face_that_returns_elsewhere_is_found_at_once() -> None:
    """Alone in the shot, it may come back anywhere."""
    hidden = CAT.copy()
    shot = [with_face(10, 60, 200, CAT)] * 3 + [hidden] * 2 + [with_face(430, 100, 200, CAT)] * 3
    result = track_face(clip(shot))
    assert result.state.tolist()[3:] == [NONE, NONE, DETECTED, TRACKED, TRACKED]


def test_anamorphic_plates_are_seen_unsqueezed() -> None:
    plate = with_face(200, 40, 280, grey())
    squeezed = cv2.resize(plate, (320, 360), interpolation=cv2.INTER_AREA)
    expected = track_face(clip([plate] * 3)).landmarks[2]
    got = track_face(clip([squeezed] * 3), pixel_aspect=2.0, at=(170, 180)).landmarks[2]
    difference = np.abs(got * [2, 1, 1] - expected)[:, :2]
    assert difference.mean() < 1.0  # of a face 200 px wide, at half the resolution across


def test_no_pictures_give_an_empty_track() -> None:
    result = track_face([])
    assert result.landmarks.shape == (0, 478, 3)
    assert len(result.numbers) == len(result.roi) == len(result.found) == 0


def test_wrong_pictures_are_named() -> None:
    with pytest.raises(ValueError, match="Frame 7"):
        track_face([(7, np.zeros((10, 10, 4), np.float32))])
