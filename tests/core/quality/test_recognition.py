"""The user's networks see what they were taught on: against other fits, and in known pictures."""

import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from performer_faces import acted, aligned
from skimage.transform import SimilarityTransform
from small_networks import coefficient_network, pooling_network

from core.face.identity import proxy_recogniser
from core.face.landmarks import detect_landmarks
from core.quality import recognition
from core.quality.recognition import (
    ModelNotUsableError,
    load_face_model,
    load_recogniser,
)


def test_networks_of_other_inputs_are_sentences(tmp_path: Path) -> None:
    entry = helper.make_tensor_value_info("input", TensorProto.DOUBLE, [1, 3, 112, 112])
    result = helper.make_tensor_value_info("output", TensorProto.DOUBLE, [1, 3, 112, 112])
    node = helper.make_node("Identity", ["input"], ["output"])
    constant = helper.make_tensor("c", TensorProto.FLOAT, [1], [1.0])
    single = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1])
    for name, graph in (
        ("double", helper.make_graph([node], "x", [entry], [result])),
        (
            "none",
            helper.make_graph(
                [helper.make_node("Constant", [], ["output"], value=constant)], "x", [], [single]
            ),
        ),
    ):
        path = tmp_path / f"{name}.onnx"
        opset = [helper.make_opsetid("", 13)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
        with pytest.raises(ModelNotUsableError, match="not pictures"):
            load_recogniser(path)
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ModelNotUsableError, match="a pipe"):
        load_recogniser(tmp_path / "pipe.onnx")


@pytest.fixture(scope="module")
def faces() -> tuple[torch.Tensor, torch.Tensor]:
    """Two people, each at rest, talking, and turned: pictures and meshes."""
    moves: tuple[dict[str, float], ...] = ({}, {"jaw": 0.8, "smile": 0.6}, {"yaw": 14.0})
    pictures = torch.cat([aligned(acted(i, *moves), 160) for i in (5, 8)])
    with torch.no_grad():
        return pictures, detect_landmarks(pictures).landmarks


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the old name of what newer scikit-image has
def test_the_five_points_come_to_lie_on_the_template(
    faces: tuple[torch.Tensor, torch.Tensor],
) -> None:
    pictures, landmarks = faces
    points = recognition.five_points(landmarks, pictures.shape[-1])
    quads = recognition.recognition_quads(points).double().numpy()
    template = recognition._TEMPLATE + 0.5
    for found, quad in zip(points.double().numpy(), quads, strict=True):
        reference = SimilarityTransform()
        assert reference.estimate(found, template)
        corners = reference.inverse(np.array([[0, 0], [0, 112], [112, 112], [112, 0.0]]))
        np.testing.assert_allclose(quad, corners, atol=1e-3)
        assert np.abs(reference(found) - template).max() < 9  # it is a face
    # A template that lies elsewhere, turned and larger, is found exactly.
    move = SimilarityTransform(scale=1.7, rotation=0.4, translation=(31, -12))
    quad = recognition.recognition_quads(torch.from_numpy(move(template))[None])[0].numpy()
    np.testing.assert_allclose(quad, move(np.array([[0, 0], [0, 112], [112, 112], [112, 0.0]])))


def test_a_recogniser_gets_rgb_from_minus_1_to_1_where_the_template_says(
    faces: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    _, landmarks = faces
    known = load_recogniser(pooling_network(tmp_path / "a.onnx", 112, 16))
    # Red says where a pixel lies from left to right, green from top to bottom; blue is black.
    size = 160
    at = (torch.arange(size) + 0.5) / size * 2 - 1
    ramps = torch.stack(
        [at.expand(size, size), at[:, None].expand(size, size), torch.full((size, size), -1.0)]
    )
    pictures = ramps[None].repeat(len(landmarks), 1, 1, 1)
    seen = known.embed(pictures, landmarks).reshape(-1, 3, 7, 7)
    quads = recognition.recognition_quads(recognition.five_points(landmarks, size))
    middle = quads.mean(1) / size * 2 - 1  # of the square, in the ramps' own values
    raw = torch.cat([middle, -torch.ones(len(middle), 1)], 1)
    # Vectors have length 1: compare with blue, which is -1 everywhere.
    found = seen[:, :, 3, 3] / -seen[:, 2:, 3, 3]
    torch.testing.assert_close(found, raw, atol=2e-3, rtol=0)
    assert (seen.flatten(1).norm(dim=1) - 1).abs().max() < 1e-5
    across = seen[:, 0, 3, -1] - seen[:, 0, 3, 0]
    assert (across > 0).all()  # not mirrored


def test_one_picture_at_a_time_gives_the_same(
    faces: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    many = load_recogniser(pooling_network(tmp_path / "many.onnx", 112, 16))
    single = load_recogniser(pooling_network(tmp_path / "single.onnx", 112, 16, batch=1))
    torch.testing.assert_close(many.embed(*faces), single.embed(*faces))


def test_a_face_models_square_is_the_weak_perspective_fit(
    faces: tuple[torch.Tensor, torch.Tensor],
) -> None:
    pictures, landmarks = faces
    points = recognition.five_points(landmarks, pictures.shape[-1]).double()
    quads = recognition.model_quads(points).numpy()
    # The published way: eight unknowns, y up.
    up = recognition._FACE * [1, -1, 1]
    for found, quad in zip(points.numpy(), quads, strict=True):
        matrix, wanted = np.zeros((10, 8)), np.zeros(10)
        matrix[0::2, :3], matrix[0::2, 3] = up, 1
        matrix[1::2, 4:7], matrix[1::2, 7] = up, 1
        wanted[0::2], wanted[1::2] = found[:, 0], -found[:, 1]
        k = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
        scale = (np.linalg.norm(k[:3]) + np.linalg.norm(k[4:7])) / 2
        half = 112 * scale / 102
        centre = np.array([k[3], -k[7]])
        expected = centre + half * np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]])
        np.testing.assert_allclose(quad, expected, atol=1e-6)


def test_coefficients_are_taken_from_their_places(
    faces: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    _, landmarks = faces
    model = load_face_model(coefficient_network(tmp_path / "face.onnx"))
    grey = torch.full((len(landmarks), 3, 160, 160), 0.5)  # .75 in 0..1
    expression, angles = model.fit(grey, landmarks)
    torch.testing.assert_close(expression[0], 0.75 * torch.arange(80.0, 144.0))
    torch.testing.assert_close(angles[0], 0.75 * torch.arange(224.0, 227.0))


def test_the_proxy_mostly_tells_a_person_from_another(
    faces: tuple[torch.Tensor, torch.Tensor],
) -> None:
    proxy = proxy_recogniser()
    assert proxy.proxy
    pictures, landmarks = faces
    vectors = proxy.embed(pictures, landmarks)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    cosines = vectors @ vectors.T
    same = torch.eye(2).repeat_interleave(3, 0).repeat_interleave(3, 1).bool()
    assert cosines[same].mean() > cosines[~same].mean() + 0.005
    cosines.fill_diagonal_(-1)
    nearest = cosines.argmax(1)
    assert (nearest // 3 == torch.arange(6) // 3).sum() >= 5  # it is no recogniser


def test_the_proxy_looks_at_the_face_and_not_behind_it(
    faces: tuple[torch.Tensor, torch.Tensor],
) -> None:
    pictures, landmarks = faces
    proxy = proxy_recogniser()
    size = pictures.shape[-1]
    edge = torch.ones(size, size, dtype=torch.bool)
    edge[:, size // 5 : -size // 5] = False
    edge[: size // 10] = True
    before = proxy.embed(pictures, landmarks)
    behind = proxy.embed(pictures.masked_fill(edge, 0.9), landmarks)
    other = proxy.embed(pictures, landmarks).roll(3, 0)
    assert ((before * behind).sum(1) > (before * other).sum(1)).all()


def test_files_that_are_no_such_network(
    tmp_path: Path, faces: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelNotUsableError, match="can't be read"):
        load_recogniser(tmp_path / "none.onnx")
    (tmp_path / "noise.onnx").write_bytes(b"not a network")
    with pytest.raises(ModelNotUsableError, match="no ONNX network"):
        load_recogniser(tmp_path / "noise.onnx")
    whole = pooling_network(tmp_path / "whole.onnx", 112, 16).read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelNotUsableError, match="no ONNX network"):
        load_recogniser(tmp_path / "half.onnx")
    with pytest.raises(ModelNotUsableError, match=r"takes \['B', 3, 112, 112\], not"):
        load_face_model(tmp_path / "whole.onnx")
    with pytest.raises(ModelNotUsableError, match="not pictures"):
        load_recogniser(pooling_network(tmp_path / "grey.onnx", 112, 16, channels=1))
    few = load_face_model(pooling_network(tmp_path / "few.onnx", 224, 56))
    with pytest.raises(ModelNotUsableError, match="gives 48 numbers"):
        few.fit(*faces)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelNotUsableError, match="pip install"):
        load_recogniser(tmp_path / "whole.onnx")
