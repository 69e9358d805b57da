"""The user's own networks for identity and expression, as ONNX files.

Convention:
    A recogniser follows ArcFace (Deng et al. 2019): its input is the face warped by five points
    onto a template of 112 px, RGB in [-1, 1]; its vectors are compared by their cosine. A face
    model follows Deep3DFaceRecon (Deng et al. 2019): its input is a square of 224 px around the
    face by the same five points, RGB in [0, 1]; its output are 257 coefficients, of which 80 to 143
    are the expression and 224 to 226 the head's angles in radians. Only these two need onnxruntime.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.base.errors import ReenactError
from core.base.files import file_size
from core.base.text import printable
from core.face.alignment import warp
from core.face.identity import Recogniser
from core.face.keypoints import DLIB_MOUTH_CORNERS, LEFT_EYE, RIGHT_EYE
from core.face.network import aligned_roi, to_picture

EXPRESSION, ANGLES = slice(80, 144), slice(224, 227)

MAX_BYTES = 2 << 30  # of an ONNX file, by its format

_NOSE_TIP = 4
# ArcFace's template: eyes, tip of the nose, mouth corners, px of 112 (insightface).
_TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
_RECOGNITION_SIDE = 112  # px
# The same points of Deep3DFaceRecon's mean face, y down, and the px of its unit.
_FACE = np.array(
    [
        [-0.31148657, -0.29036078, 0.13377953],
        [0.30979887, -0.28972036, 0.13179526],
        [0.0032535, 0.04617932, 0.55244243],
        [-0.25216928, 0.38133916, 0.22405732],
        [0.2484662, 0.38128236, 0.22235769],
    ]
)
_MODEL_SIDE, _UNIT = 224, 102.0
_COEFFICIENTS = 257


class ModelNotUsableError(ReenactError):
    """An ONNX file is missing, or is not a network of the required kind."""


@dataclass(frozen=True)
class FaceModel:
    """Measures a face's expression and pose."""

    name: str
    # Pictures and meshes as for `Recogniser` -> expression `[B, 64]` and angles `[B, 3]`, radians.
    fit: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def load_recogniser(path: str | Path) -> Recogniser:
    """Loads a recogniser of ArcFace's convention.

    Args:
        path: `.onnx` file; input `[B or 1, 3, 112, 112]`, output `[B or 1, D]`.

    Raises:
        ModelNotUsableError: onnxruntime is not installed, no such file, or another kind of network.
    """
    run, name = _load(path, _RECOGNITION_SIDE)

    def embed(pictures: Tensor, landmarks: Tensor) -> Tensor:
        quads = recognition_quads(five_points(landmarks, pictures.shape[-1]))
        return F.normalize(
            run(warp(pictures.float(), quads, _RECOGNITION_SIDE).clamp(-1, 1)), dim=1
        )

    return Recogniser(name, embed)


def load_face_model(path: str | Path) -> FaceModel:
    """Loads a face model of Deep3DFaceRecon's convention.

    Args:
        path: `.onnx` file; input `[B or 1, 3, 224, 224]`, output `[B or 1, 257]`.

    Raises:
        ModelNotUsableError: as `load_recogniser`.
    """
    run, name = _load(path, _MODEL_SIDE)

    def fit(pictures: Tensor, landmarks: Tensor) -> tuple[Tensor, Tensor]:
        quads = model_quads(five_points(landmarks, pictures.shape[-1]))
        crops = warp(pictures.float(), quads, _MODEL_SIDE)
        coefficients = run((crops / 2 + 0.5).clamp(0, 1))
        if coefficients.shape[1] < _COEFFICIENTS:
            raise ModelNotUsableError(
                f"{path} gives {coefficients.shape[1]} numbers for a face, not the "
                f"{_COEFFICIENTS} coefficients of Deep3DFaceRecon. Export that network."
            )
        return coefficients[:, EXPRESSION], coefficients[:, ANGLES]

    return FaceModel(name, fit)


def five_points(landmarks: Tensor, size: int) -> Tensor:
    """Returns eyes, tip of the nose and mouth corners, from the picture's left to its right.

    Args:
        landmarks: `[B, 478, 3]`, px of the 192 px crop.
        size: side of the aligned pictures, px.

    Returns:
        `[B, 5, 2]`, continuous px of the pictures.
    """
    roi = aligned_roi(size, len(landmarks), device=landmarks.device)
    xy = to_picture(landmarks, roi)[..., :2] + 0.5
    eyes = [xy[:, list(eye)].mean(1) for eye in (RIGHT_EYE, LEFT_EYE)]
    return torch.stack([*eyes, xy[:, _NOSE_TIP], *(xy[:, i] for i in DLIB_MOUTH_CORNERS)], 1)


def recognition_quads(points: Tensor) -> Tensor:
    """Returns the squares that ArcFace's template cuts out.

    They are placed by the similarity that fits the points in least squares (Umeyama 1991).

    Args:
        points: `[B, 5, 2]` from `five_points`.

    Returns:
        `[B, 4, 2]` quads, px of the pictures.
    """
    # With points as complex numbers a similarity is z -> a z + b.
    p = torch.view_as_complex(points.double().contiguous())
    q = torch.view_as_complex(torch.from_numpy(_TEMPLATE + 0.5)).to(p.device)
    from_p, from_q = p - p.mean(1, keepdim=True), q - q.mean()
    a = (from_p.conj() * from_q).sum(1, keepdim=True) / (from_p.abs() ** 2).sum(1, keepdim=True)
    corners = torch.view_as_complex(_square(_RECOGNITION_SIDE)).to(p.device)
    return torch.view_as_real((corners - q.mean()) / a + p.mean(1, keepdim=True)).to(points)


def model_quads(points: Tensor) -> Tensor:
    """Returns the upright squares that Deep3DFaceRecon cuts out.

    They are placed by the weak-perspective camera that fits the mean face in least squares.

    Args:
        points: `[B, 5, 2]` from `five_points`.

    Returns:
        `[B, 4, 2]` quads, px of the pictures.
    """
    model = torch.from_numpy(np.concatenate([_FACE, np.ones((5, 1))], 1)).to(points.device)
    camera = torch.linalg.pinv(model) @ points.double()  # [B, 4, 2]
    scale = camera[:, :3].norm(dim=1).mean(1)
    corners = _square(_MODEL_SIDE).to(points.device) - _MODEL_SIDE / 2
    return (camera[:, None, 3] + corners * (scale / _UNIT)[:, None, None]).to(points)


def _square(side: int) -> Tensor:
    """Returns a square's corners in the order of quads, `[4, 2]` float64."""
    return torch.tensor([[0.0, 0.0], [0, side], [side, side], [side, 0]], dtype=torch.float64)


def _load(path: str | Path, side: int) -> tuple[Callable[[Tensor], Tensor], str]:
    """Loads a network.

    Returns:
        What computes its first output `[B, D]` for pictures `[B, 3, side, side]`, and its file's
        name and hash for people.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelNotUsableError(
            f'{path} needs onnxruntime. Install it: pip install "onnxruntime>=1.19".'
        ) from error
    try:
        if file_size(path) > MAX_BYTES:
            raise ModelNotUsableError(f"{path} has over 2 GiB, and ONNX networks can't. Name one.")
        content = Path(path).read_bytes()  # from memory, so that it can refer to no other file
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        available = onnxruntime.get_available_providers()
        preferred = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [p for p in preferred if p in available]
        session = onnxruntime.InferenceSession(content, options, providers)
    except ReenactError:
        raise
    except OSError as error:
        raise ModelNotUsableError(f"{path} can't be read: {error.strerror}.") from error
    except Exception as error:  # onnxruntime's errors have no common base
        raise ModelNotUsableError(
            f"{path} is no ONNX network that can be run here: {printable(str(error))[:200]}. "
            "Export it again, as one file."
        ) from error
    entries = session.get_inputs()
    shape = entries[0].shape if entries else []
    fits = len(entries) == 1 and len(shape) == 4 and entries[0].type == "tensor(float)"
    # A size that is no number may be anything.
    fits = fits and all(
        s == n for s, n in zip(shape, (1, 3, side, side), strict=True) if isinstance(s, int)
    )
    if not fits:
        raise ModelNotUsableError(
            f"{path} takes {printable(str(shape))}, not pictures [B, 3, {side}, {side}] in "
            "float32. Export it with channels first, for one input."
        )
    single = isinstance(shape[0], int)

    def run(pictures: Tensor) -> Tensor:
        try:
            parts = [
                np.asarray(session.run(None, {entries[0].name: part.cpu().numpy()})[0])
                for part in pictures.float().split(1 if single else len(pictures))
            ]
            result = np.concatenate(parts)
        except Exception as error:  # as above
            raise ModelNotUsableError(
                f"{path} can't be run: {printable(str(error))[:200]}. Export it again, as one file."
            ) from error
        if result.ndim != 2 or len(result) != len(pictures):
            raise ModelNotUsableError(
                f"{path} gives {[*result.shape]}, not one vector for each picture."
            )
        return torch.from_numpy(result).to(pictures.device, torch.float32)

    return run, f"{Path(path).name} (sha256 {hashlib.sha256(content).hexdigest()[:12]})"
