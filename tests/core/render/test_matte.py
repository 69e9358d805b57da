"""Mattes against MediaPipe itself, known composites, and closed forms of areas."""

import cv2
import mediapipe_reference  # noqa: F401  (quiets MediaPipe before it is imported)
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mediapipe.python.solutions.selfie_segmentation import SelfieSegmentation
from performer_faces import acted, aligned

from core.face.keypoints import FACE_OVAL
from core.face.network import model_path
from core.face.tflite_graph import load_tflite
from core.media.clip import Window
from core.render import matte
from core.synthetic import performer
from core.synthetic.parameters import neutral

WHOLE = Window(0, 0, 200, 160)


def disc(centre: tuple[float, float], radius: float, points: int = 96) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.array(centre) + radius * np.stack([np.cos(angle), np.sin(angle)], 1)


def test_the_segmenter_is_mediapipes() -> None:
    picture = performer.render(neutral(), matte.HEAD_SIZE)
    reference = SelfieSegmentation(model_selection=0).process(picture).segmentation_mask
    image = torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)[None]
    with torch.no_grad():
        (found,) = load_tflite(model_path("selfie_segmentation/selfie_segmentation.tflite"))(
            image
        ).values()
    assert 0.2 < reference.mean() < 0.6
    assert np.abs(found[0, ..., 0].numpy() - reference).max() < 1e-3


def test_there_are_no_holes_in_a_face() -> None:
    """What the segmenter takes for a hole at 256 px, such as a white eye, is none."""
    picture = torch.from_numpy(performer.render(neutral(), 256).astype(np.float32) / 127.5 - 1)
    seen = matte.segment(picture.permute(2, 0, 1)[None])
    oval = seen.landmarks[0, [*FACE_OVAL]] * 256.0
    face = (
        matte.fill_polygons(
            [matte.offset_outline(matte.closed_curve(oval), -15)], Window(0, 0, 256, 256), 0
        )
        == 1
    )
    assert face.sum() > 3000
    assert seen.heads[0][face].min() > 250


def composite(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A head with strands of hair over a backdrop: its picture, its alpha, its colours."""
    y, x = np.mgrid[:size, :size] / size
    strands = 0.004 * np.sin(60 * np.arctan2(y - 0.5, x - 0.5))
    inside = 0.3 + strands - np.hypot(x - 0.5, y - 0.5)
    alpha = np.clip(0.5 + inside * 80, 0, 1).astype(np.float32)[..., None]
    head = np.dstack([0.5 + 0.2 * x, 0.35 + 0.1 * y, 0.25 + 0 * x]).astype(np.float32)
    backdrop = np.dstack([0.1 + 0.1 * y, 0.5 + 0.2 * x, 0.7 + 0 * x]).astype(np.float32)
    return head * alpha + backdrop * (1 - alpha), alpha[..., 0], head


def test_the_difference_to_the_backdrop_finds_the_edge_that_the_segmenter_misses() -> None:
    picture, alpha, colours = composite(512)
    y, x = np.mgrid[: matte.HEAD_SIZE, : matte.HEAD_SIZE] / matte.HEAD_SIZE
    mask = np.clip(0.5 + 40 * (0.304 - np.hypot(x - 0.5, y - 0.5)), 0, 1).astype(np.float32)
    head = matte.cut_out_head(picture, mask)
    edge = (alpha > 0.02) & (alpha < 0.98)
    coarse = cv2.resize(mask, (512, 512), interpolation=cv2.INTER_CUBIC)
    assert np.abs(head.matte - alpha)[edge].mean() < 0.04
    assert np.abs(coarse - alpha)[edge].mean() > 0.15  # the test can tell
    assert np.abs(head.matte - alpha)[~edge].max() < 0.15
    # What lies over the plate has the head's colours, not the backdrop's, all along the edge.
    assert np.abs(head.fill - colours)[alpha > 0.02].max() < 0.06
    assert np.abs(picture - colours)[alpha > 0.02].max() > 0.3


def test_an_edge_that_nobody_could_tell_is_the_segmenters_and_not_trusted() -> None:
    picture = np.full((256, 256, 3), 0.4, np.float32)
    mask = np.zeros((256, 256), np.float32)
    mask[60:200, 80:180] = 1
    head = matte.cut_out_head(picture, mask)
    np.testing.assert_allclose(head.matte, mask, atol=0.02)
    assert head.confidence[60, 130] < 0.3
    assert head.confidence[130, 130] > 0.99
    assert head.confidence[20, 20] > 0.99


@settings(max_examples=10, deadline=None)
@given(st.floats(60, 140), st.floats(60, 100), st.floats(3, 50), st.booleans())
def test_areas_and_growth_of_circles(x: float, y: float, radius: float, reverse: bool) -> None:
    polygon = disc((x, y), radius)[:: -1 if reverse else 1]
    covered = matte.fill_polygons([polygon], WHOLE, 0)
    assert covered.sum() == pytest.approx(np.pi * radius**2, rel=0.02, abs=3)
    rows, columns = np.mgrid[:160, :200] + 0.5
    centre = [(covered * axis).sum() / covered.sum() for axis in (columns, rows)]
    np.testing.assert_allclose(centre, [x, y], atol=0.1)
    grown = matte.offset_outline(polygon, 4)
    np.testing.assert_allclose(np.hypot(*(grown - [x, y]).T), radius + 4, rtol=1e-3)


def test_an_area_does_not_depend_on_the_window_it_is_drawn_in() -> None:
    polygons = [disc((70.3, 60.8), 31), disc((110, 70), 20)]
    whole = matte.fill_polygons(polygons, WHOLE, 2.5)
    part = matte.fill_polygons(polygons, Window(60, 50, 80, 40), 2.5)
    np.testing.assert_allclose(part, whole[50:90, 60:140], atol=1e-6)


def test_curves_go_through_their_points() -> None:
    points = disc((50, 40), 20, 12) + np.random.default_rng(0).normal(0, 1, (12, 2))
    curve = matte.closed_curve(points)
    assert len(curve) > 90
    assert np.hypot(*(curve[:, None] - points).transpose(2, 0, 1)).min(0).max() < 1e-9


@pytest.fixture(scope="module")
def faces() -> tuple[torch.Tensor, matte.Segmentation]:
    pictures = aligned(acted(5, {}, {"jaw": 0.9}, {"blink_l": 1.0, "blink_r": 1.0}), 256)
    return pictures, matte.segment(pictures)


def test_parts_are_where_the_mesh_has_them_and_follow_it(
    faces: tuple[torch.Tensor, matte.Segmentation],
) -> None:
    _, seen = faces
    window = Window(0, 0, 256, 256)
    rest, jaw, blink = (matte.part_mattes(m * 256.0, window, 256) for m in seen.landmarks)
    for parts in (rest, jaw, blink):
        assert (parts["inner"] <= parts["mouth"] + 0.1).all()
        assert (parts["iris"] <= parts["eyes"] + 1e-6).all()
    assert jaw["inner"].sum() > 5 * rest["inner"].sum()
    assert blink["eyes"].sum() < 0.5 * rest["eyes"].sum()
    x, y = (seen.landmarks[0, 468] * 256).astype(int)  # the middle of an iris
    assert rest["iris"][y, x] > 0.9
    assert rest["mouth"][y, x] == 0


def test_the_face_covers_a_wider_driver_and_brings_no_backdrop(
    faces: tuple[torch.Tensor, matte.Segmentation],
) -> None:
    _, seen = faces
    window = Window(0, 0, 256, 256)
    generated = seen.landmarks[0] * 256.0
    head = seen.heads[0] / np.float32(255)
    middle = generated[[*FACE_OVAL]].mean(0)
    driving = middle + (generated - middle) * [1.25, 1.0]
    narrow = matte.face_matte(generated, np.full_like(generated, np.nan), head, window, 256)
    wide = matte.face_matte(generated, driving, head, window, 256)
    outline = matte.fill_polygons([matte.closed_curve(driving[[*FACE_OVAL]])], window, 0) > 0.99
    eroded = cv2.erode(outline.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    assert wide[eroded].min() > 0.9
    assert narrow[eroded].min() < 0.3  # the test can tell
    backdrop = (head < 0.01) & (
        matte.fill_polygons(
            [matte.offset_outline(matte.closed_curve(driving[[*FACE_OVAL]]), 6)], window, 0
        )
        == 0
    )
    assert backdrop.mean() > 0.2
    assert wide[backdrop].max() < 0.02
    assert narrow[head < 0.01].max() < 0.02
    assert narrow[generated[1].astype(int)[1], generated[1].astype(int)[0]] > 0.99  # the nose


def test_skin_is_skin(faces: tuple[torch.Tensor, matte.Segmentation]) -> None:
    pictures, seen = faces
    generated = seen.landmarks[1] * 256.0  # the mouth is open
    skin = matte.skin_mask(generated, 256)
    parts = matte.part_mattes(generated, Window(0, 0, 256, 256), 256)
    assert skin.sum() > 5000
    assert not skin[(parts["mouth"] > 0) | (parts["eyes"] > 0)].any()
    srgb = pictures[1].permute(1, 2, 0).numpy()[skin] / 2 + 0.5
    assert (srgb[:, 0] > srgb[:, 2]).mean() > 0.97  # redder than blue, whoever's it is
