"""The face mesh against MediaPipe itself, finite differences, and naive restatements."""

import math

import cv2
import mediapipe_reference as reference
import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mediapipe.python.solutions import face_mesh_connections as connections

from core.face import keypoints
from core.face.network import (
    CROP,
    FaceMesh,
    ModelsMissingError,
    aligned_roi,
    crop_roi,
    face_detector,
    face_mesh,
    model_path,
    roi_from_landmarks,
    to_picture,
)
from core.face.tflite_graph import (
    UnsupportedModelError,
    landmarks_to_matrix,
    load_tflite,
    sample_patch,
    transform_landmarks,
)
from core.synthetic import performer


def tensor(picture: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 [H, W, 3] -> [1, 3, H, W] in 0..1."""
    return torch.from_numpy(picture).permute(2, 0, 1)[None].to(dtype) / 255


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """The astronaut, and 40 draws of the performer in everything that varies."""
    draws = performer.from_normal(
        np.random.default_rng(7).standard_normal((40, len(performer.PARAMETERS)))
    )
    return [skimage.data.astronaut(), *(performer.render(p, 256) for p in draws)]


@pytest.mark.parametrize("attention", [True, False])
def test_network_equals_mediapipes_on_the_same_crop(
    pictures: list[np.ndarray], attention: bool
) -> None:
    detect, network = reference.Graph(attention), reference.CropGraph(attention)
    errors = []
    for picture in pictures:
        whole = detect(picture)
        if whole is None:
            continue
        crop = reference.crop(picture, whole.roi, CROP)
        with torch.no_grad():
            mesh = face_mesh(attention)(tensor(crop))
        assert mesh.score > 0.5
        errors.append(np.abs(mesh.landmarks[0].numpy() - network(crop)))
    assert len(errors) >= 40
    assert np.max(errors) < 1e-3  # px of 192


@pytest.mark.parametrize("attention", [True, False])
def test_pipeline_equals_mediapipes(pictures: list[np.ndarray], attention: bool) -> None:
    """Detection, our torch crop, mesh and projection, against MediaPipe's whole graph."""
    graph, mesh, detector = reference.Graph(attention), face_mesh(attention), face_detector()
    errors = []
    for picture in pictures:
        expected = graph(picture)
        if expected is None:
            continue
        image = tensor(picture)
        roi = detector(image).roi[:1]
        with torch.no_grad():
            landmarks = to_picture(mesh(crop_roi(image, roi)).landmarks, roi)[0].numpy()
        errors.append(np.abs(landmarks - expected.landmarks)[:, :2] * CROP / expected.roi[2])
    assert len(errors) >= 40
    assert np.mean(errors) < 0.05  # px of 192
    assert np.max(errors) < 0.3


def test_detector_finds_mediapipes_roi(pictures: list[np.ndarray]) -> None:
    graph, detector = reference.Graph(), face_detector()
    compared = 0
    for picture in pictures:
        expected = graph(picture)
        if expected is None:
            continue
        found = detector(tensor(picture))
        side = expected.roi[2]
        np.testing.assert_allclose(found.roi[0, :4], expected.roi[:4], atol=2e-3 * side)
        assert float(found.roi[0, 4]) == pytest.approx(expected.roi[4], abs=2e-3)
        compared += 1
    assert compared >= 40


def test_detector_finds_a_small_face_in_a_large_plate() -> None:
    plate = np.full((1080, 1920, 3), 90, np.uint8)
    face = cv2.resize(
        skimage.data.astronaut()[:256, 96:352], (128, 128), interpolation=cv2.INTER_AREA
    )
    plate[700:828, 1500:1628] = face
    found = face_detector()(tensor(plate))
    assert len(found.roi) == 1
    x, y = found.roi[0, :2].tolist()
    assert 1500 < x < 1628
    assert 700 < y < 828


def test_gradients_equal_finite_differences() -> None:
    picture = skimage.data.astronaut()
    roi = torch.tensor(reference.Graph()(picture).roi, dtype=torch.float64)[None]
    mesh = FaceMesh().double()
    image = tensor(picture, torch.float64)
    weights = torch.randn(478, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(image: torch.Tensor, roi: torch.Tensor) -> torch.Tensor:
        out = mesh(crop_roi(image, roi))
        return (to_picture(out.landmarks, roi)[0] * weights).sum() + out.score.sum()

    image.requires_grad_()
    roi.requires_grad_()
    loss(image, roi).backward()
    rng = torch.Generator().manual_seed(2)
    step = 1e-8  # the network is piecewise linear: a small step rarely crosses a kink
    for variable in (image, roi):
        for _ in range(4):
            direction = torch.randn(variable.shape, generator=rng, dtype=torch.float64)
            with torch.no_grad():
                ahead, behind = (
                    [v + s * direction if v is variable else v for v in (image, roi)]
                    for s in (step, -step)
                )
                numeric = (loss(*ahead) - loss(*behind)) / (2 * step)
            exact = (variable.grad * direction).sum()
            assert float(exact) == pytest.approx(float(numeric), rel=1e-4)


def test_batch_equals_singles(pictures: list[np.ndarray]) -> None:
    crops = torch.cat([tensor(cv2.resize(p, (CROP, CROP))) for p in pictures[:5]])
    mesh = face_mesh()
    with torch.no_grad():
        together = mesh(crops)
        alone = [mesh(c[None]) for c in crops]
    torch.testing.assert_close(
        together.landmarks, torch.cat([a.landmarks for a in alone]), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(together.score, torch.cat([a.score for a in alone]))


@pytest.mark.parametrize(
    ("dtype", "px"), [(torch.float64, 1e-3), (torch.float16, 1.0), (torch.bfloat16, 6.0)]
)
def test_other_float_types(dtype: torch.dtype, px: float) -> None:
    picture = skimage.data.astronaut()
    crop = tensor(reference.crop(picture, reference.Graph()(picture).roi, CROP))
    with torch.no_grad():
        expected = face_mesh()(crop).landmarks
        out = FaceMesh().to(dtype)(crop.to(dtype))
    assert out.landmarks.dtype == dtype
    assert out.score > 0.5
    assert (out.landmarks.float() - expected)[..., :2].abs().max() < px


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_crops_of_large_pictures_in_half_precision(dtype: torch.dtype) -> None:
    picture = cv2.resize(skimage.data.astronaut(), (1024, 1024), interpolation=cv2.INTER_AREA)
    roi = torch.tensor([[450.3, 270.8, 400, 400, 0.2]])
    exact = crop_roi(tensor(picture), roi)
    half = crop_roi(tensor(picture).to(dtype), roi)
    assert half.dtype == dtype
    assert (half.float() - exact).abs().max() < 0.01  # rounding of the pixels, not of places


def test_compiles_without_graph_breaks() -> None:
    mesh = FaceMesh()
    compiled = torch.compile(mesh, fullgraph=True, backend="aot_eager")
    crop = torch.rand(2, 3, CROP, CROP, requires_grad=True)
    compiled(crop).landmarks.sum().backward()
    got, crop.grad = crop.grad, None
    mesh(crop).landmarks.sum().backward()
    torch.testing.assert_close(got, crop.grad, rtol=1e-3, atol=1e-4)


# -- geometry ----------------------------------------------------------------------------------

angles = st.floats(-math.pi, math.pi)


@settings(max_examples=50, deadline=None)
@given(st.floats(50, 200), st.floats(50, 200), st.floats(40, 300), angles)
def test_roi_of_landmarks_follows_a_similarity(
    x: float, y: float, side: float, turn: float
) -> None:
    """A turned, scaled and moved face has a turned, scaled and moved ROI."""
    rng = np.random.default_rng(3)
    face = rng.uniform(-0.5, 0.5, (1, 478, 2))
    face[0, :4] = [[-0.5, 0], [0.5, 0], [0, -0.5], [0, 0.5]]  # a box of side 1 when upright
    face[0, 33], face[0, 263] = [-0.2, -0.1], [0.2, -0.1]
    upright = roi_from_landmarks(torch.tensor(face * side + [x, y]))[0]
    np.testing.assert_allclose(upright, [x, y, 1.5 * side, 1.5 * side, 0], atol=1e-9)
    c, s = math.cos(turn), math.sin(turn)
    turned = face @ np.array([[c, s], [-s, c]]) * side + [x, y]
    assert math.remainder(
        float(roi_from_landmarks(torch.tensor(turned))[0, 4]) - turn, 2 * math.pi
    ) == pytest.approx(0, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.floats(65, 134), st.floats(65, 134), st.floats(40, 90), angles)
def test_crop_and_to_picture_are_inverse(x: float, y: float, side: float, turn: float) -> None:
    """A ramp of coordinates, cropped, says where each crop pixel came from.

    Every corner of the crop, half a diagonal or 64 px away, lies in the picture.
    """
    columns, rows = torch.meshgrid(torch.arange(200.0), torch.arange(200.0), indexing="xy")
    ramp = torch.stack([columns, rows, columns * 0], 0)[None].double()
    roi = torch.tensor([[x, y, side, side, turn]], dtype=torch.float64)
    crop = crop_roi(ramp, roi, CROP)
    i, j = torch.meshgrid(torch.arange(CROP), torch.arange(CROP), indexing="xy")
    points = torch.stack([i, j, i * 0], -1).reshape(1, -1, 3).double()
    expected = to_picture(points, roi)[0, :, :2]
    torch.testing.assert_close(crop[0, :2].reshape(2, -1).T, expected, atol=1e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(angles, st.floats(0.3, 2.5), st.floats(-3, 14), st.floats(-3, 14))
def test_sample_patch_is_bilinear_with_hard_edges(
    turn: float, scale: float, dx: float, dy: float
) -> None:
    rng = np.random.default_rng(5)
    features = rng.standard_normal((2, 11, 13))
    c, s = scale * math.cos(turn), scale * math.sin(turn)
    matrix = np.array([[c, -s, 0, dx], [s, c, 0, dy], [0, 0, 1, 0], [0, 0, 0, 1]])
    expected = np.zeros((2, 6, 7))
    for v in range(6):
        for u in range(7):
            x, y = (matrix[:2, :2] @ [u + 0.5, v + 0.5]) + matrix[:2, 3] - 0.5
            if min(x, y, 12 - x, 10 - y) < 1e-9:
                if min(x, y, 12 - x, 10 - y) > -1e-9:
                    return  # on the edge itself rounding decides
                continue
            i, j = int(x), int(y)
            fx, fy = x - i, y - j
            for k, weight in (
                ((j, i), (1 - fx) * (1 - fy)),
                ((j, i + 1), fx * (1 - fy)),
                ((j + 1, i), (1 - fx) * fy),
                ((j + 1, i + 1), fx * fy),
            ):
                if weight:
                    expected[:, v, u] += weight * features[:, k[0], k[1]]
    got = sample_patch(torch.tensor(features)[None], torch.tensor(matrix)[None], 6, 7)
    np.testing.assert_allclose(got[0], expected, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(angles, st.floats(2, 20), st.floats(2, 20))
def test_landmark_matrix_frames_the_rotated_box(turn: float, w: float, h: float) -> None:
    """The patch's corners land on the corners of the box, enlarged 1.5 times."""
    box = np.array([[-w / 2, 0], [w / 2, 0], [0, -h / 2], [0, h / 2]])
    c, s = math.cos(turn), math.sin(turn)
    rotation = np.array([[c, -s], [s, c]])
    points = np.zeros((1, 4, 3))
    points[0, :, :2] = box @ rotation.T + [20, 24]
    matrix = landmarks_to_matrix(torch.tensor(points), [0, 1, 2, 3], 0, 1, 0.0, 1.5, 1.5, 16, 16)
    corners = torch.tensor([[[0, 0, 7], [16, 0, 7], [16, 16, 7], [0, 16, 7]]], dtype=torch.float64)
    got = transform_landmarks(corners, matrix)[0]
    expected = np.array([[-w, -h], [w, -h], [w, h], [-w, h]]) * 0.75 @ rotation.T + [20, 24]
    np.testing.assert_allclose(got[:, :2], expected, atol=1e-9)
    np.testing.assert_array_equal(got[:, 2], 7)


def test_aligned_roi_scales_with_the_picture() -> None:
    np.testing.assert_allclose(aligned_roi(256, 3)[2], [128, 153.6, 245.76, 245.76, 0], rtol=1e-6)


# -- keypoints ---------------------------------------------------------------------------------


def test_keypoints_are_the_papers_66_points_and_outer_lips() -> None:
    def points(*lists: frozenset[tuple[int, int]]) -> set[int]:
        return {i for connection in lists for edge in connection for i in edge}

    assert len(keypoints.KEYPOINTS) == len(set(keypoints.KEYPOINTS)) == 66 + 20
    assert set(keypoints.RIGHT_EYE) == points(connections.FACEMESH_RIGHT_EYE)
    assert set(keypoints.LEFT_EYE) == points(connections.FACEMESH_LEFT_EYE)
    assert set(keypoints.RIGHT_IRIS) - {468} == points(connections.FACEMESH_RIGHT_IRIS) - {468}
    assert set(keypoints.LEFT_IRIS) - {473} == points(connections.FACEMESH_LEFT_IRIS) - {473}
    lips = set(keypoints.INNER_LIPS) | set(keypoints.OUTER_LIPS)
    assert lips == points(connections.FACEMESH_LIPS)
    assert not set(keypoints.INNER_LIPS) & set(keypoints.OUTER_LIPS)
    assert set(keypoints.FACE_OVAL) == points(connections.FACEMESH_FACE_OVAL)
    assert set(keypoints.HEAD_FRAME) <= set(keypoints.FACE_OVAL)
    assert set(keypoints.RIGHT_EYEBROW) == points(connections.FACEMESH_RIGHT_EYEBROW)
    assert set(keypoints.LEFT_EYEBROW) == points(connections.FACEMESH_LEFT_EYEBROW)


def test_sides_are_the_subjects_own() -> None:
    found = reference.Graph()(skimage.data.astronaut())
    x = found.landmarks[:, 0]
    for right, left in (
        (keypoints.RIGHT_EYE, keypoints.LEFT_EYE),
        (keypoints.RIGHT_IRIS, keypoints.LEFT_IRIS),
        (keypoints.RIGHT_EYEBROW, keypoints.LEFT_EYEBROW),
    ):
        assert x[[*right]].max() < x[[*left]].min()  # the subject's right is on the image's left


# -- errors ------------------------------------------------------------------------------------


def test_wrong_files_are_named(tmp_path) -> None:
    path = tmp_path / "picture.tflite"
    path.write_bytes(b"\x89PNG not a model")
    with pytest.raises(UnsupportedModelError, match=r"picture\.tflite is not"):
        load_tflite(path)
    with pytest.raises(ModelsMissingError, match="mediapipe==0"):
        model_path("face_landmark/no_such_model.tflite")


def test_wrong_crop_is_refused() -> None:
    with pytest.raises(ValueError, match="192"):
        face_mesh()(torch.rand(1, 3, 256, 256))
    with pytest.raises(ValueError, match="one picture"):
        face_detector()(torch.rand(2, 3, 256, 256))
