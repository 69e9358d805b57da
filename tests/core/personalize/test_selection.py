"""Frame selection: Algorithm 1 against its literal form, screening, and what users are told."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.face.alignment import ffhq_quads, smooth_quads, warp
from core.face.perceptual import Metric, metric
from core.face.tracking import FaceTrack, track_face
from core.personalize.selection import (
    MIN_FRAMES,
    Screening,
    UnusableScanError,
    check_scan,
    farthest_first,
    most_diverse,
    pairwise_distances,
    screen,
    selection_sheet,
    squared_distances,
)
from core.synthetic import performer

PLATE = 320


def literal(distance: np.ndarray, count: int) -> list[int]:
    """Algorithm 1 as the paper writes it, in loops; of equals the first."""
    items = range(len(distance))
    pairs = [(i, j) for i in items for j in items if i < j]
    chosen = list(max(pairs, key=lambda p: distance[p]))
    while len(chosen) < min(count, len(distance)):
        rest = [s for s in items if s not in chosen]
        chosen.append(max(rest, key=lambda s: min(distance[s, t] for t in chosen)))
    return chosen


def loops(features: np.ndarray) -> np.ndarray:
    return np.array([[((a - b) ** 2).sum() for b in features] for a in features.astype(float)])


# -- Algorithm 1 -------------------------------------------------------------------------------


@given(st.data())
@settings(deadline=None)
def test_subsets_are_those_of_the_literal_algorithm(data: st.DataObject) -> None:
    """On small whole numbers, where many distances are equal and all arithmetic is exact."""
    size = data.draw(st.integers(2, 12))
    width = data.draw(st.integers(1, 4))
    rows = st.lists(st.integers(-3, 3), min_size=width, max_size=width)
    features = np.array(data.draw(st.lists(rows, min_size=size, max_size=size)))
    count = data.draw(st.integers(2, size + 2))
    got = most_diverse(torch.from_numpy(features).float(), count)
    assert got.tolist() == literal(loops(features), count)
    assert len(set(got.tolist())) == min(count, size)


@given(st.integers(0, 2**32 - 1), st.integers(3, 30), st.integers(2, 30))
@settings(max_examples=40, deadline=None)
def test_the_first_pair_is_the_farthest_and_gaps_only_shrink(
    seed: int, size: int, count: int
) -> None:
    points = np.random.default_rng(seed).standard_normal((size, 3))
    distance = np.sqrt(loops(points))
    chosen = farthest_first(distance, count)
    assert distance[chosen[0], chosen[1]] == distance.max()
    gaps = [distance[chosen[i], chosen[:i]].min() for i in range(1, len(chosen))]
    assert gaps == sorted(gaps, reverse=True)
    # no element that was left out is farther from the subset than its last element was
    left = np.setdiff1d(np.arange(size), chosen)
    if len(left):
        assert distance[np.ix_(left, chosen)].min(1).max() <= gaps[-1]


@pytest.mark.parametrize("far", [0.0, 1e3])
def test_distances_are_exact_enough_far_from_the_origin(far: float) -> None:
    """Near vectors that are long: the plain formula would lose all digits of their distance."""
    features = torch.randn(40, 70_001, generator=torch.Generator().manual_seed(0)) * 0.01 + far
    expected = np.array([(features - row).double().square().sum(1).numpy() for row in features])
    got = squared_distances(features)
    np.testing.assert_allclose(got, expected, rtol=2e-6)
    assert (np.diag(got) == 0).all()
    np.testing.assert_array_equal(got, got.T)


def test_equal_vectors_have_no_distance() -> None:
    row = torch.randn(1, 40_000, generator=torch.Generator().manual_seed(0))
    other = torch.randn(1, 40_000, generator=torch.Generator().manual_seed(1))
    got = squared_distances(torch.cat([other, row, row]))
    assert got[1, 2] < 1e-6 * got[0, 1]


def test_wrong_distances_are_refused() -> None:
    for distances, count in ((np.zeros((3, 2)), 2), (np.zeros((1, 1)), 2), (np.zeros((3, 3)), 1)):
        with pytest.raises(ValueError, match="at least 2"):
            farthest_first(distances, count)
    for wrong in (np.nan, np.inf, -1.0):
        distances = np.zeros((3, 3))
        distances[0, 2] = wrong
        with pytest.raises(ValueError, match="finite and not negative"):
            farthest_first(distances, 2)


# -- on pictures -------------------------------------------------------------------------------


def aligned(plates: list[np.ndarray]) -> tuple[FaceTrack, Tensor]:
    """The track of plates `[H, W, 3]` in 0..1, and their aligned pictures at 128 px."""
    found = track_face([(1001 + i, plate) for i, plate in enumerate(plates)])
    quads = smooth_quads(ffhq_quads(found.landmarks), found.numbers, found.cut)
    pictures = torch.zeros(len(plates), 3, 128, 128)
    for i in np.flatnonzero(np.isfinite(quads).all((1, 2))):
        image = torch.from_numpy(plates[i]).permute(2, 0, 1)[None]
        pictures[i] = warp(image, torch.from_numpy(quads[i : i + 1]), 128)[0].clamp(0, 1) * 2 - 1
    return found, pictures


def rendered(motion: np.ndarray) -> list[np.ndarray]:
    return [performer.render(p, PLATE, 1).astype(np.float32) / 255 for p in motion]


@pytest.fixture(scope="module")
def plates() -> list[np.ndarray]:
    """A self-scan of 24 frames."""
    return rendered(performer.self_scan(performer.random_identity(5), 24, fps=1.2, seed=1))


@pytest.fixture(scope="module")
def scan(plates: list[np.ndarray]) -> tuple[FaceTrack, Tensor]:
    return aligned(plates)


@pytest.fixture(scope="module")
def embedded() -> Metric:
    return metric("embedded")


@pytest.mark.parametrize("kept", [100, 7, 1])
def test_picture_distances_are_the_metrics_whatever_memory_there_is(
    scan: tuple[FaceTrack, Tensor], embedded: Metric, kept: int
) -> None:
    pictures = scan[1][:9].half()  # as clips are held
    done: list[tuple[float, float]] = []
    memory = kept * 4 * embedded.features(pictures[:1]).shape[1]
    got = pairwise_distances(
        embedded, pictures, memory=memory, progress=lambda *state: done.append(state)
    )
    with torch.no_grad():
        for i, picture in enumerate(pictures):
            expected = embedded.distance(picture.expand_as(pictures), pictures)
            np.testing.assert_allclose(got[i], expected, rtol=1e-4, atol=1e-6)
    assert done == sorted(done)
    assert done[-1][0] == done[-1][1] >= 9


def test_rare_expressions_are_chosen(embedded: Metric) -> None:
    """Among many frames of a face at rest, the wink and the open mouth come first."""
    person = performer.random_identity(5)
    motion = np.repeat(person[None], 30, 0)
    motion[:, performer.INDEX["yaw"]] = np.sin(np.arange(30)) * 0.3
    motion[11, performer.INDEX["blink_l"]] = 1
    motion[23, performer.INDEX["jaw"]] = 0.7
    pictures = aligned(rendered(motion))[1]
    assert {11, 23} <= set(farthest_first(pairwise_distances(embedded, pictures), 3).tolist())


def test_a_wink_is_chosen_though_the_head_turns(embedded: Metric) -> None:
    """One frame of 60: evenly spaced ones would have it one time in five."""
    motion = np.repeat(performer.random_identity(5)[None], 60, 0)
    t = np.linspace(0, 2 * np.pi, 60)
    motion[:, performer.INDEX["yaw"]] = 30 * np.sin(t)
    motion[:, performer.INDEX["pitch"]] = 10 * np.sin(2 * t)
    motion[31, performer.INDEX["blink_l"]] = 1
    pictures = aligned(rendered(motion))[1]
    assert 31 in farthest_first(pairwise_distances(embedded, pictures), 12)


def test_the_sheet_shows_the_chosen_in_the_clips_order(scan: tuple[FaceTrack, Tensor]) -> None:
    found, pictures = scan
    sheet = selection_sheet(pictures, found.numbers.tolist(), [9, 2, 5], tile=64)
    assert sheet.shape[1] == 3 * 64
    for column, i in enumerate((2, 5, 9)):
        rgb = F.interpolate(pictures[i : i + 1], (64, 64), mode="area")[0].permute(1, 2, 0)
        shown = sheet[:64, column * 64 : (column + 1) * 64].astype(float)
        assert np.abs(shown - (rgb.numpy() + 1) * 127.5).max() < 1.5


# -- screening ---------------------------------------------------------------------------------


def smeared(plate: np.ndarray, length: int) -> np.ndarray:
    """Motion blur along the diagonal."""
    return cv2.filter2D(plate, -1, np.eye(length, dtype=np.float32) / length)


def test_a_good_scan_is_kept_whole(scan: tuple[FaceTrack, Tensor]) -> None:
    done: list[tuple[float, float]] = []
    screening = screen(scan[0], scan[1], (PLATE, PLATE), progress=lambda *state: done.append(state))
    assert screening.rejected == {}
    assert screening.kept.tolist() == list(range(24))
    assert np.nanmin(screening.sharpness) > 0.75
    assert done[-1] == (24, 24)
    assert check_scan(scan[0], screening) == []


def test_every_rejected_frame_has_its_reason(plates: list[np.ndarray]) -> None:
    spoiled = [plate.copy() for plate in plates]
    spoiled[4] = smeared(plates[4], 21)
    spoiled[8] = cv2.GaussianBlur(plates[8], (0, 0), 4)
    spoiled[12] = np.full_like(plates[12], 0.4)
    small = cv2.resize(plates[0], (120, 120), interpolation=cv2.INTER_AREA)
    spoiled[16][:100, 200:] = small[10:110]  # somebody at the back
    spoiled[20] = np.roll(plates[20], -110, 1)  # half out of the picture
    spoiled[20][:, 210:] = 0.4
    # slight blur is no reason
    spoiled[22] = cv2.GaussianBlur(plates[22], (0, 0), 1)
    found, pictures = aligned(spoiled)
    screening = screen(found, pictures, (PLATE, PLATE))
    reasons = screening.rejected
    assert list(reasons) == [1005, 1009, 1013, 1017, 1021]
    assert reasons[1005].startswith("blurred")
    assert reasons[1009].startswith("blurred")
    assert reasons[1013] == "no face"
    assert reasons[1017] == "2 faces"
    assert reasons[1021] == "face cut off by the edge of the frame"
    kept = sorted({*range(24)} - {4, 8, 12, 16, 20})
    assert screening.kept.tolist() == kept


def test_exposure_and_a_soft_lens_are_no_blur(plates: list[np.ndarray]) -> None:
    """Blur is relative to the clip's own sharpness, and not to its light."""
    soft = [cv2.GaussianBlur(plate, (0, 0), 1.5) for plate in plates]
    soft[::3] = [plate * 0.4 for plate in soft[::3]]
    found, pictures = aligned(soft)
    assert not any(
        "blurred" in r for r in screen(found, pictures, (PLATE, PLATE)).rejected.values()
    )


@pytest.mark.parametrize(("sigma", "told"), [(1.5, False), (4.0, True)])
def test_a_scan_out_of_focus_is_used_and_said_to_be(
    plates: list[np.ndarray], sigma: float, told: bool
) -> None:
    found, pictures = aligned([cv2.GaussianBlur(plate, (0, 0), sigma) for plate in plates])
    screening = screen(found, pictures, (PLATE, PLATE))
    assert len(screening.kept) == len(plates)
    assert any("in focus" in advice for advice in check_scan(found, screening)) == told


def test_pictures_must_be_those_of_the_track(scan: tuple[FaceTrack, Tensor]) -> None:
    with pytest.raises(ValueError, match="shorter"):
        screen(scan[0], scan[1][:5], (PLATE, PLATE))


def test_too_few_frames_say_how_many_and_what_to_record(plates: list[np.ndarray]) -> None:
    short = [*plates[:3], *[np.full_like(plates[0], 0.4)] * 5]
    found, pictures = aligned(short)
    screening = screen(found, pictures, (PLATE, PLATE))
    with pytest.raises(
        UnusableScanError, match=rf"8 frames 3 .*no face: 5\); at least {MIN_FRAMES}.*20"
    ):
        check_scan(found, screening)
    assert check_scan(found, screening, minimum=3) is not None


def test_a_clip_without_any_face_is_screened_too() -> None:
    found, pictures = aligned([np.full((64, 64, 3), 0.5, np.float32)] * 2)
    screening = screen(found, pictures, (64, 64))
    assert screening.rejected == {1001: "no face", 1002: "no face"}
    with pytest.raises(UnusableScanError, match=r"\(no face: 2\)"):
        check_scan(found, screening)


def everything(found: FaceTrack) -> Screening:
    count = len(found.numbers)
    return Screening(np.arange(count), {}, np.ones(count), 1.0)


def test_frames_that_are_all_alike_are_told_and_what_is_missing_too() -> None:
    person = performer.random_identity(5)
    still = np.repeat(person[None], 16, 0)
    rng = np.random.default_rng(0)
    grain = [p + rng.normal(0, 0.01, p.shape).astype(np.float32) for p in rendered(still)]
    found, _ = aligned(grain)
    with pytest.raises(UnusableScanError, match=r"all alike.*head.*mouth.*eyes.*Record 20 to 30"):
        check_scan(found, everything(found))
    still[:, performer.INDEX["yaw"]] = np.linspace(-20, 20, 16)
    still[:, performer.INDEX["gaze_x"]] = np.linspace(1, -1, 16)
    found, _ = aligned(rendered(still))
    missing = " ".join(check_scan(found, everything(found)))
    assert "mouth hardly opens" in missing
    assert "eyes hardly shut" in missing
    assert "turns" not in missing
    assert "look around" not in missing
