"""Alignment against closed forms and scipy, and there and back on a real picture."""

import math

import cv2
import mediapipe_reference as reference
import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quads import SQUARE, turned_square
from scipy.ndimage import gaussian_filter1d

from core.face import alignment, keypoints
from core.face.tracking import track_face
from core.media.clip import Window
from core.synthetic import performer
from core.synthetic.parameters import neutral


def face(eye_x: float, mouth_x: float, mouth_y: float) -> np.ndarray:
    """Landmarks [1, 478, 2] of an upright face with its eyes at (+-eye_x, 0)."""
    points = np.full((1, 478, 2), 1e6)  # points that the framing must not use
    points[0, [*keypoints.DLIB_RIGHT_EYE]] = [-eye_x, 0]
    points[0, [*keypoints.DLIB_LEFT_EYE]] = [eye_x, 0]
    points[0, [*keypoints.DLIB_MOUTH_CORNERS]] = [[-mouth_x, mouth_y], [mouth_x, mouth_y]]
    return points


@pytest.fixture(scope="module")
def astronaut() -> tuple[torch.Tensor, np.ndarray]:
    """[1, 3, 512, 512] in 0..1 and the FFHQ quad [4, 2] of its face."""
    picture = skimage.data.astronaut()
    found = reference.Graph()(picture)
    assert found is not None
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].double() / 255
    return image, alignment.ffhq_quads(found.landmarks[None])[0]


# -- quads -------------------------------------------------------------------------------------


@given(st.floats(20, 60), st.floats(10, 60), st.floats(20, 120))
def test_framing_of_an_upright_face(eye_x: float, mouth_x: float, mouth_y: float) -> None:
    quad = alignment.ffhq_quads(face(eye_x, mouth_x, mouth_y))[0]
    half = max(2 * 2 * eye_x, 1.8 * mouth_y)
    centre = [0.5, 0.1 * mouth_y + 0.5]  # landmarks count pixel centres as whole, quads as halves
    np.testing.assert_allclose(quad, (SQUARE - 0.5) * 2 * half + centre, atol=1e-9)


@given(st.floats(-3, 3), st.floats(0.2, 5), st.floats(-500, 500), st.floats(-500, 500))
def test_framing_follows_the_face(turn: float, scale: float, x: float, y: float) -> None:
    c, s = scale * math.cos(turn), scale * math.sin(turn)
    matrix = np.array([[c, s], [-s, c]])
    landmarks = face(30, 22, 71)
    moved = alignment.ffhq_quads((landmarks + 0.5) @ matrix + [x, y] - 0.5)[0]
    np.testing.assert_allclose(
        moved, alignment.ffhq_quads(landmarks)[0] @ matrix + [x, y], atol=1e-6
    )


@pytest.mark.parametrize("scale", [2, 4])
def test_framing_does_not_depend_on_the_plates_resolution(scale: int) -> None:
    """The quad of an enlarged picture is the enlarged quad: nothing is half a pixel off."""
    picture = skimage.data.astronaut()
    large = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    quads = []
    for image in (picture, large):
        pictures = [(1, image.astype(np.float32) / 255)] * 4  # the ROI settles in a few frames
        quads.append(alignment.ffhq_quads(track_face(pictures).landmarks)[-1])
    shift = (quads[1] / scale - quads[0]).mean(0)
    assert np.abs(shift).max() < 0.12  # half a pixel would be .25 and .375


def test_anamorphic_plates_are_framed_square_on_screen() -> None:
    landmarks = face(30, 22, 71)
    squeezed = (landmarks + 0.5) / [2, 1] - 0.5
    squeezed = alignment.ffhq_quads(squeezed, pixel_aspect=2.0)
    np.testing.assert_allclose(squeezed * [2, 1], alignment.ffhq_quads(landmarks))


def test_an_aligned_face_is_already_aligned(astronaut: tuple[torch.Tensor, np.ndarray]) -> None:
    image, quad = astronaut
    crop = alignment.warp(image, torch.tensor(quad)[None], 512)[0].clamp(0, 1)
    found = reference.Graph()((crop.permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8))
    assert found is not None
    again = alignment.ffhq_quads(found.landmarks[None])[0]
    assert np.abs(again.mean(0) - 256).max() < 0.015 * 512
    x = again[3] - again[0]
    assert np.hypot(*x) == pytest.approx(512, rel=0.03)
    assert abs(math.degrees(math.atan2(x[1], x[0]))) < 1.5


# -- smoothing ---------------------------------------------------------------------------------


def moving_quads(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 3, (count, 4))
    return np.stack(
        [
            turned_square(100 + 2 * i + a, 80 + b, 150 + c, 0.1 + d / 50)
            for i, (a, b, c, d) in enumerate(noise)
        ]
    )


def test_smoothing_of_movement_is_scipys_on_the_quads_own_axes() -> None:
    t = np.arange(60) / 24
    quads = np.stack(
        [
            turned_square(
                100 + 40 * np.sin(3 * s),
                80 + 30 * np.sin(5 * s),
                150 + 9 * np.sin(4 * s),
                0.1 + 0.2 * np.sin(2 * s),
            )
            for s in t
        ]
    )
    smooth = alignment.smooth_quads(quads, np.arange(1001, 1061), np.zeros(60, bool))
    np.testing.assert_allclose(
        smooth.mean(1), gaussian_filter1d(quads.mean(1), 1.0, axis=0), atol=0.02
    )
    for corner, other in ((3, 0), (1, 0)):
        edge = quads[:, corner] - quads[:, other]
        np.testing.assert_allclose(
            smooth[:, corner] - smooth[:, other], gaussian_filter1d(edge, 3.0, axis=0), atol=0.02
        )
    sides = np.linalg.norm(smooth - np.roll(smooth, 1, axis=1), axis=2)
    np.testing.assert_allclose(sides, sides[:, :1].repeat(4, 1))  # still squares


@pytest.mark.parametrize("noise", [0.1, 0.3, 0.7])
def test_what_rests_but_for_noise_rests(noise: float) -> None:
    rng = np.random.default_rng(1)
    rest = turned_square(100, 80, 150, 0.1)
    quads = np.stack(
        [
            turned_square(100 + a, 80 + b, 150 + c, 0.1 + d / 150)
            for a, b, c, d in rng.normal(0, noise, (72, 4))
        ]
    )
    smooth = alignment.smooth_quads(quads, np.arange(72), np.zeros(72, bool))
    assert np.hypot(*np.diff(smooth, axis=0).T).max() < 0.02 * noise
    assert np.abs(smooth - rest).max() < 0.6 * noise  # sqrt(1 / 72), and some for luck


@pytest.mark.parametrize("hertz", [0.5, 2.0, 4.0])
def test_movement_among_noise_is_followed_without_lag(hertz: float) -> None:
    rng = np.random.default_rng(2)
    path = 20 * np.sin(2 * np.pi * hertz * np.arange(72) / 24)
    jitter = rng.normal(0, 0.2, (72, 2))
    quads = np.stack(
        [
            turned_square(100 + x + a, 80 + b, 150, 0.1)
            for x, (a, b) in zip(path, jitter, strict=True)
        ]
    )
    x = alignment.smooth_quads(quads, np.arange(72), np.zeros(72, bool)).mean(1)[:, 0]
    plain = gaussian_filter1d(quads.mean(1)[:, 0], 1.0)
    truth = 100 + path
    inner = slice(6, -6)

    def error(values: np.ndarray) -> float:
        return float(np.sqrt(np.mean((values - truth)[inner] ** 2)))

    assert error(x) < 1.03 * error(plain) + 0.1
    lags = [np.corrcoef(np.roll(x, k)[inner], truth[inner])[0, 1] for k in (-1, 0, 1)]
    assert np.argmax(lags) == 1


def test_a_head_at_rest_in_a_noisy_film_is_pasted_at_rest() -> None:
    """Sensor noise of 2 %: each frame's own quad trembles, the smoothed one by < 0.05 px."""
    still = performer.render(neutral(), 256).astype(np.float32) / 255
    rng = np.random.default_rng(0)
    film = [
        (i, np.clip(still + rng.normal(0, 0.02, still.shape).astype(np.float32), 0, 1))
        for i in range(20)
    ]
    found = track_face(film)
    quads = alignment.ffhq_quads(found.landmarks)
    smooth = alignment.smooth_quads(quads, found.numbers, found.cut)

    def jitter(q: np.ndarray) -> float:
        return float(np.sqrt((np.diff(q, axis=0) ** 2).sum(-1).mean()))

    assert jitter(quads) > 0.2
    assert jitter(smooth) < 0.05
    assert np.abs(smooth - smooth.mean(0)).max() < 0.25


def test_squares_and_plates_are_inverse() -> None:
    quad = turned_square(60, 40, 30, 0.4)
    np.testing.assert_allclose(
        alignment.from_square(np.array([[0, 0], [0, 1], [1, 1], [1, 0.0]]), quad), quad
    )
    points = np.random.default_rng(0).random((9, 2))
    there = alignment.from_square(points, quad)
    np.testing.assert_allclose(alignment.to_square(there, quad), points, atol=1e-12)


@settings(deadline=None)
@given(st.integers(1, 29))
def test_smoothing_never_looks_across_a_cut(at: int) -> None:
    quads = moving_quads(30)
    quads[at:] += 400
    numbers, cut = np.arange(1, 31), np.arange(30) == at
    smooth = alignment.smooth_quads(quads, numbers, cut)
    none = np.zeros(30, bool)
    apart = [
        alignment.smooth_quads(quads[s], numbers[s], none[s]) for s in (slice(at), slice(at, None))
    ]
    np.testing.assert_array_equal(smooth, np.concatenate(apart))


def test_short_losses_are_bridged_and_long_ones_separate() -> None:
    steady = np.stack([turned_square(100 + 2 * i, 80, 150, 0.1) for i in range(60)])
    lost = steady.copy()
    lost[20:25] = np.nan  # five frames: bridged
    lost[38:46] = np.nan  # eight: not
    lost[:2] = np.nan
    numbers, cut = np.arange(1, 61), np.zeros(60, bool)
    smooth = alignment.smooth_quads(lost, numbers, cut)
    np.testing.assert_allclose(smooth[15:25], steady[15:25], atol=1e-9)
    assert np.isnan(smooth[38:46]).all()
    assert np.isnan(smooth[:2]).all()
    assert np.isfinite(smooth[2:38]).all()
    after = alignment.smooth_quads(steady[46:], numbers[46:], cut[46:])
    np.testing.assert_array_equal(smooth[46:], after)


def test_missing_frame_numbers_count_as_time() -> None:
    """A clip with holes in its numbering gets what the whole clip gets, where motion is linear."""
    steady = np.stack([turned_square(100 + 2 * i, 80, 150, 0.1) for i in range(40)])
    keep = np.array([i for i in range(40) if i not in (11, 12, 20)])
    smooth = alignment.smooth_quads(steady[keep], keep + 1001, np.zeros(37, bool))
    whole = alignment.smooth_quads(steady, np.arange(40) + 1001, np.zeros(40, bool))
    np.testing.assert_allclose(smooth, whole[keep], atol=1e-9)


def test_a_clip_without_faces_has_no_quads() -> None:
    quads = np.full((5, 4, 2), np.nan)
    assert np.isnan(alignment.smooth_quads(quads, np.arange(5), np.zeros(5, bool))).all()


# -- warps -------------------------------------------------------------------------------------


def test_round_trip_of_a_natural_picture(astronaut: tuple[torch.Tensor, np.ndarray]) -> None:
    """Plate -> crop -> plate at matching scale: at least 36 dB inside the face region."""
    image, quad = astronaut
    size = round(float(np.linalg.norm(quad[3] - quad[0])))
    crop = alignment.warp(image, torch.tensor(quad)[None], size)[0]
    placed = alignment.paste(crop, torch.tensor(quad), (512, 512))
    assert placed is not None
    w = placed.window
    plate = image[0, :, w.y : w.y + w.height, w.x : w.x + w.width]
    inside = placed.coverage > 0.999
    assert inside.double().mean() > 0.7
    error = ((placed.pixels - plate) ** 2).mean(0)[inside]
    assert -10 * math.log10(error.mean()) >= 36


def dots(size: tuple[int, int], points: np.ndarray, sigma: float) -> torch.Tensor:
    """[1, 1, H, W]: Gaussian dots at continuous positions [N, 2]."""
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    d2 = (x[None] - points[:, 0, None, None]) ** 2 + (y[None] - points[:, 1, None, None]) ** 2
    return torch.tensor(np.exp(-d2 / (2 * sigma**2)).sum(0))[None, None]


def centroid(image: np.ndarray, near: np.ndarray, radius: float) -> np.ndarray:
    """Where a dot is, by its centre of mass, iterated so that the window centres on it."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    at = near.copy()
    for _ in range(4):
        weight = image * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * (radius / 2) ** 2))
        at = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
    return at


@pytest.mark.parametrize("size", [96, 200, 256, 640])  # shrunk 2.1 times ... enlarged 3.2 times
def test_warps_shift_nothing(size: int) -> None:
    """A dot grid lands within 0.05 px of where the quad says, there and back."""
    quad = turned_square(171.3, 160.7, 200, 0.23)
    grid = np.stack(np.meshgrid([0.2, 0.4, 0.6, 0.8], [0.2, 0.4, 0.6, 0.8]), -1).reshape(-1, 2)
    in_plate = quad[0] + grid[:, :1] * (quad[3] - quad[0]) + grid[:, 1:] * (quad[1] - quad[0])
    plate = dots((340, 320), in_plate, 5.0)
    crop = alignment.warp(plate, torch.tensor(quad)[None], size)[0]
    placed = alignment.paste(crop, torch.tensor(quad), (340, 320))
    assert placed is not None
    origin = np.array([placed.window.x, placed.window.y])
    for in_square, expected in zip(grid, in_plate, strict=True):
        there = centroid(crop[0].numpy(), in_square * size, 15 * size / 200)
        assert np.hypot(*(there - in_square * size)) < 0.05
        back = centroid(placed.pixels[0].numpy(), expected - origin, 15)
        assert np.hypot(*(back + origin - expected)) < 0.05


def test_shrinking_does_not_alias() -> None:
    """Stripes too fine for the crop average out instead of turning into moire."""
    x = torch.arange(1024, dtype=torch.float64)
    plate = (0.5 + 0.5 * torch.sin(x * 2 * math.pi / 5)).expand(1, 1, 1024, 1024)
    crop = alignment.warp(plate, torch.tensor(turned_square(512, 512, 900, 0.0))[None], 128)
    assert (crop - 0.5).abs().max() < 0.02


def test_paste_at_the_plates_edge_and_beyond() -> None:
    crop = torch.rand(3, 64, 64)
    placed = alignment.paste(crop, torch.tensor(turned_square(5.0, 50.0, 80, 0.0)), (200, 100))
    assert placed is not None
    assert placed.window == Window(0, 10, 45, 80)
    assert placed.pixels.shape == (3, 80, 45)
    assert placed.coverage.shape == (80, 45)
    assert (
        alignment.paste(crop, torch.tensor(turned_square(-90.0, 50.0, 80, 0.0)), (200, 100)) is None
    )


def test_broken_quads_are_refused() -> None:
    plate = torch.rand(1, 3, 32, 32)
    for quad in (np.full((4, 2), np.nan), np.array([[0, 0], [0, 9], [30, 12], [9, 0]], float)):
        with pytest.raises(ValueError, match="parallelogram"):
            alignment.warp(plate, torch.tensor(quad)[None], 16)


def test_gradients_reach_the_pasted_picture() -> None:
    crop = torch.rand(1, 12, 12, dtype=torch.float64, requires_grad=True)
    quad = torch.tensor(turned_square(10.0, 9.0, 13.0, 0.3))
    assert torch.autograd.gradcheck(lambda c: alignment.paste(c, quad, (20, 20)).pixels, (crop,))
