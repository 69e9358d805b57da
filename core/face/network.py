"""MediaPipe's face mesh and face detector as torch modules, with their geometry.

The stages are those of MediaPipe's face-landmark graph: detector -> region of interest (ROI) ->
192 px crop -> mesh with refined lips, eyes and irises -> picture. Each is differentiable and
batched, so the paper's keypoint loss (eq. 2) can be propagated through all of them.

Convention:
    A ROI is `(centre x, centre y, width, height, rotation)` in picture pixels and radians,
    clockwise on screen. Picture coordinates are MediaPipe's: pixel `i` has its centre at `i`.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.base.errors import ReenactError
from core.face.keypoints import LEFT_EYE, RIGHT_EYE
from core.face.tflite_graph import load_tflite

CROP = 192  # side of the mesh network's input, px
DETECTOR_CROP = 128
SMALLEST_SQUARE = DETECTOR_CROP / 2  # in which faces are searched, px
ROI_SCALE = 1.5  # ROI side over the longer side of the face box
MESH_SCORE = 0.5  # below this the mesh network says "no face"
LOOK_SCALE = 1.5  # side of the square in which the detector looks again, over the ROI's side
_BATCH = 8  # squares that the detector searches at once on a CPU, whose caches hold no more

Square = tuple[float, float, float]  # centre x, centre y, side; picture px

# The ROI that MediaPipe's tracking gives for FFHQ-aligned pictures, in fractions of their side. It
# replaces detection in optimisation loops, and is the same for driving and generated faces.
ALIGNED_ROI = (0.5, 0.6, 0.96, 0.96, 0.0)

# Mesh points of the outputs of the network's lips and eye heads, in their order.
_LIPS = (
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409,
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 191, 80, 81, 82, 13, 312, 311, 310, 415,
    76, 77, 90, 180, 85, 16, 315, 404, 320, 307, 306, 184, 74, 73, 72, 11, 302, 303, 304, 408,
    62, 96, 89, 179, 86, 15, 316, 403, 319, 325, 292, 183, 42, 41, 38, 12, 268, 271, 272, 407,
)  # fmt: skip
_RIGHT_EYE_REGION = (
    33, 7, 163, 144, 145, 153, 154, 155, 133, 246, 161, 160, 159, 158, 157, 173, 130, 25, 110,
    24, 23, 22, 26, 112, 243, 247, 30, 29, 27, 28, 56, 190, 226, 31, 228, 229, 230, 231, 232,
    233, 244, 113, 225, 224, 223, 222, 221, 189, 35, 124, 46, 53, 52, 65, 143, 111, 117, 118,
    119, 120, 121, 128, 245, 156, 70, 63, 105, 66, 107, 55, 193,
)  # fmt: skip
_LEFT_EYE_REGION = (
    263, 249, 390, 373, 374, 380, 381, 382, 362, 466, 388, 387, 386, 385, 384, 398, 359, 255,
    339, 254, 253, 252, 256, 341, 463, 467, 260, 259, 257, 258, 286, 414, 446, 261, 448, 449,
    450, 451, 452, 453, 464, 342, 445, 444, 443, 442, 441, 413, 265, 353, 276, 283, 282, 295,
    372, 340, 346, 347, 348, 349, 350, 357, 465, 383, 300, 293, 334, 296, 336, 285, 417,
)  # fmt: skip


class ModelsMissingError(ReenactError):
    """mediapipe is not installed, or is a release without bundled .tflite models."""


def model_path(name: str) -> Path:
    """Returns the path of a .tflite model in the installed mediapipe wheel.

    Args:
        name: path below `mediapipe/modules`, such as `face_landmark/face_landmark.tflite`.

    Raises:
        ModelsMissingError: mediapipe is not installed, or has no such model.
    """
    spec = find_spec("mediapipe")  # without importing it, which takes seconds
    locations = list(spec.submodule_search_locations or []) if spec else []
    for location in locations:
        path = Path(location) / "modules" / name
        if path.is_file():
            return path
    raise ModelsMissingError(
        f"{name} is not in the installed mediapipe package. "
        "Install the release that bundles it: pip install mediapipe==0.10.21"
    )


class Mesh(NamedTuple):
    """Face meshes of a batch of crops."""

    landmarks: Tensor  # [B, 478 or 468, 3] px of the crop; z likewise, negative towards the camera
    score: Tensor  # [B] in 0..1, probability that the crop holds a face
    logit: Tensor  # [B] of the score, which is 1 in float32 above some 17


class FaceMesh(nn.Module):
    """The mesh network on 192 px crops.

    Args:
        attention: whether to use the refined mesh of 478 points, with lips, lids and irises from
            heads of their own; else the base mesh of 468 points, which is four times as fast and
            less accurate at the eyes.
    """

    lips: Tensor
    right_eye: Tensor
    left_eye: Tensor
    right_lids: Tensor
    left_lids: Tensor

    def __init__(self, attention: bool = True) -> None:
        super().__init__()
        self.attention = attention
        name = "face_landmark_with_attention" if attention else "face_landmark"
        self.net = load_tflite(model_path(f"face_landmark/{name}.tflite"))
        for region, points in (
            ("lips", _LIPS),
            ("right_eye", _RIGHT_EYE_REGION),
            ("left_eye", _LEFT_EYE_REGION),
            ("right_lids", RIGHT_EYE),
            ("left_lids", LEFT_EYE),
        ):
            self.register_buffer(region, torch.tensor(points), persistent=False)

    def forward(self, crop: Tensor) -> Mesh:
        """Finds the mesh in crops.

        Args:
            crop: `[B, 3, 192, 192]`, sRGB in 0..1.

        Raises:
            ValueError: crops of another shape.
        """
        if crop.ndim != 4 or tuple(crop.shape[1:]) != (3, CROP, CROP):
            raise ValueError(f"The face mesh needs [B, 3, {CROP}, {CROP}], not {[*crop.shape]}.")
        return self.assemble(self.net(crop))

    def assemble(self, out: dict[str, Tensor]) -> Mesh:
        """Assembles the mesh from the network's outputs by their names in the file."""
        if not self.attention:
            mesh, flag = out.values()
            logit = flag.reshape(-1)
            return Mesh(mesh.reshape(-1, 468, 3), torch.sigmoid(logit), logit)
        mesh = out["output_mesh_identity"].reshape(-1, 468, 3)
        xy, z = mesh[..., :2], mesh[..., 2]
        for region, head in (
            (self.lips, "output_lips"),
            (self.right_eye, "output_left_eye"),  # the file's left and right are the viewer's
            (self.left_eye, "output_right_eye"),
        ):
            xy = xy.index_copy(1, region, out[head].reshape(-1, len(region), 2))
        iris_z = [
            z[:, lids].mean(1, keepdim=True).expand(-1, 5)
            for lids in (self.right_lids, self.left_lids)
        ]
        irises = [out[f"output_{s}_iris"].reshape(-1, 5, 2) for s in ("left", "right")]
        landmarks = torch.cat(
            [torch.cat([xy, *irises], 1), torch.cat([z, *iris_z], 1)[..., None]], -1
        )
        logit = out["conv_faceflag"].reshape(-1)
        return Mesh(landmarks, torch.sigmoid(logit), logit)


def crop_roi(image: Tensor, roi: Tensor, size: int = CROP) -> Tensor:
    """Cuts ROIs out of pictures, bilinear and without low-pass, like MediaPipe.

    Args:
        image: `[B, 3, H, W]`, or `[1, 3, H, W]` for several ROIs of one picture.
        roi: `[B, 5]`.
        size: side of the crop, px.

    Returns:
        `[B, 3, size, size]` in the picture's dtype; the picture's edge is repeated outside of it.
        Differentiable with respect to both arguments.
    """
    # Half precision is too coarse for sampling positions.
    dtype = torch.promote_types(torch.promote_types(image.dtype, roi.dtype), torch.float32)
    grid = _roi_grid(roi.to(dtype), size, image.shape[2], image.shape[3])
    pixels = image.to(dtype).expand(len(roi), -1, -1, -1)
    crop = F.grid_sample(pixels, grid, "bilinear", "border", align_corners=False)
    return crop.to(image.dtype)


def _roi_grid(roi: Tensor, size: int, height: int, width: int) -> Tensor:
    """Returns `grid_sample` coordinates `[B, size, size, 2]` of ROIs in a picture."""
    t = torch.arange(size, device=roi.device, dtype=roi.dtype) / size - 0.5
    points = torch.stack([t[None, :].expand(size, -1), t[:, None].expand(-1, size)], -1)
    xy = _from_roi(points.reshape(1, -1, 2), roi).reshape(-1, size, size, 2)
    extent = torch.tensor([width, height], device=roi.device, dtype=roi.dtype)
    return (2 * xy + 1) / extent - 1


def _from_roi(points: Tensor, roi: Tensor) -> Tensor:
    """Maps points `[B, N, 2]`, in fractions of the ROI from its centre, to picture px."""
    offset = points * roi[:, None, 2:4]
    c, s = torch.cos(roi[:, 4])[:, None], torch.sin(roi[:, 4])[:, None]
    x, y = offset[..., 0], offset[..., 1]
    return roi[:, None, :2] + torch.stack([c * x - s * y, s * x + c * y], -1)


def to_picture(landmarks: Tensor, roi: Tensor) -> Tensor:
    """Maps landmarks `[B, N, 3]` in px of the 192 px crop to px of the picture, z included."""
    xy = _from_roi(landmarks[..., :2] / CROP - 0.5, roi)
    return torch.cat([xy, landmarks[..., 2:] / CROP * roi[:, None, 2:3]], -1)


def roi_from_landmarks(landmarks: Tensor) -> Tensor:
    """Returns the ROI in which a face is expected in the next frame.

    Like MediaPipe's: the bounding box of all landmarks, made square by its longer side, enlarged
    1.5 times and rotated so that the outer eye corners (33, 263) are level.

    Args:
        landmarks: `[B, N, 2 or 3]` picture px.

    Returns:
        `[B, 5]`.
    """
    xy = landmarks[..., :2]
    low, high = xy.amin(1), xy.amax(1)
    eyes = xy[:, 263] - xy[:, 33]
    return _square_roi((low + high) / 2, high - low, eyes)


def _square_roi(centre: Tensor, extent: Tensor, level: Tensor) -> Tensor:
    """Returns ROIs `[B, 5]` of boxes, rotated so that the direction `level` `[B, 2]` is level."""
    side = extent.amax(1) * ROI_SCALE
    rotation = torch.atan2(level[:, 1], level[:, 0])
    return torch.stack([centre[:, 0], centre[:, 1], side, side, rotation], 1)


def aligned_roi(
    size: int,
    batch: int = 1,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Returns `ALIGNED_ROI` for aligned pictures of `size` px, as `[batch, 5]`."""
    x, y, w, h, rotation = ALIGNED_ROI
    roi = torch.tensor(
        [[x * size, y * size, w * size, h * size, rotation]], device=device, dtype=dtype
    )
    return roi.expand(batch, -1)


class Detections(NamedTuple):
    """The faces found in one picture, the best first."""

    roi: Tensor  # [N, 5]
    score: Tensor  # [N] in 0..1


class FaceDetector(nn.Module):
    """MediaPipe's short-range detector (BlazeFace), which finds faces as ROIs."""

    MIN_SCORE = 0.5
    MAX_OVERLAP = 0.3
    anchors: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = load_tflite(model_path("face_detection/face_detection_short_range.tflite"))
        # 16x16 cells with two anchors each, then 8x8 cells with six, all centred and of fixed size.
        anchors = [
            ((x + 0.5) / cells, (y + 0.5) / cells)
            for cells, per_cell in ((16, 2), (8, 6))
            for y in range(cells)
            for x in range(cells)
            for _ in range(per_cell)
        ]
        self.register_buffer("anchors", torch.tensor(anchors), persistent=False)

    @torch.no_grad()
    def forward(self, image: Tensor, around: tuple[float, float] | None = None) -> Detections:
        """Finds faces that are about upright.

        The whole picture is searched first, like MediaPipe does. If that finds no face, or none at
        the requested point, smaller and smaller squares are searched, so that a small head in a
        large plate is found too.

        Args:
            image: `[1, 3, H, W]`, sRGB in 0..1.
            around: a point in picture px at which a face is requested.

        Raises:
            ValueError: more than one picture.
        """
        if image.ndim != 4 or image.shape[:2] != (1, 3):
            raise ValueError(f"The detector needs one picture [1, 3, H, W], not {[*image.shape]}.")
        height, width = image.shape[2:]
        elsewhere: Detections | None = None
        for squares in search_squares(width, height, around):
            found = self.search(image, squares)
            if not len(found.roi):
                continue
            if around is None or bool(contain(found.roi, around).any()):
                return found
            elsewhere = elsewhere or found
        return elsewhere or found

    @torch.no_grad()
    def search(self, image: Tensor, squares: list[Square], turns: int = 0) -> Detections:
        """Finds faces in squares of a picture, and merges what overlapping squares found.

        Args:
            image: `[1, 3, H, W]`, sRGB in 0..1.
            squares: where to search.
            turns: quarter turns, clockwise, by which the faces that are searched are rolled. Those
                within some 45 degrees of it are found.
        """
        roi = torch.tensor(
            [[x, y, s, s, turns * math.pi / 2] for x, y, s in squares],
            device=image.device,
            dtype=image.dtype,
        )
        score, rows = self._candidates(image, roi)
        rows = (rows - 0.5) * roi[:, None, None, 2:3]
        for _ in range(turns):
            rows = torch.stack([-rows[..., 1], rows[..., 0]], -1)
        rows = rows + roi[:, None, None, :2]
        keep = score >= self.MIN_SCORE
        return self._merge(rows[keep], score[keep])

    @torch.no_grad()
    def look(self, image: Tensor, roi: Tensor) -> Detections:
        """Looks for the face of each ROI in a square around it, level with it.

        Args:
            image: `[1, 3, H, W]`, sRGB in 0..1.
            roi: `[N, 5]`, rough: the face may be smaller, and away from the centre.

        Returns:
            The best face of each ROI, `[N]`; its score is 0 where there is none.
        """
        square = torch.cat([roi[:, :2], roi[:, 2:4] * LOOK_SCALE, roi[:, 4:]], 1)
        scores, rows = self._candidates(image, square)
        result = Detections(roi.clone(), torch.zeros_like(roi[:, 0]))
        for i, score in enumerate(scores):
            keep = score >= self.MIN_SCORE
            face = self._merge(rows[i][keep], score[keep])
            if len(face.roi):
                best = face.roi[:1]
                result.roi[i, :2] = _from_roi(best[None, :, :2] - 0.5, square[i : i + 1])[0, 0]
                result.roi[i, 2:4] = best[0, 2:4] * square[i, 2]
                result.roi[i, 4] = best[0, 4] + square[i, 4]
                result.score[i] = face.score[0]
        return result

    def _candidates(self, image: Tensor, roi: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the network's boxes in square ROIs `[B, 5]`: scores `[B, N]`, and as rows
        `[B, N, 8, 2]` two corners, then six points, in fractions of the square."""
        parts = []
        for some in roi.split(_BATCH if image.device.type == "cpu" else len(roi)):
            grid = _roi_grid(some, DETECTOR_CROP, image.shape[2], image.shape[3])
            pictures = image.expand(len(some), -1, -1, -1)
            crop = F.grid_sample(pictures, grid, "bilinear", "zeros", align_corners=False)
            out = self.net(crop * 2 - 1)
            parts.append((out["classificators"][..., 0], out["regressors"]))
        logit, regressors = (torch.cat(part) for part in zip(*parts, strict=True))
        values = regressors / DETECTOR_CROP
        centre = values[..., :2] + self.anchors
        extent = values[..., 2:4]
        points = values[..., 4:].reshape(*values.shape[:2], 6, 2) + self.anchors[:, None]
        corners = torch.stack([centre - extent / 2, centre + extent / 2], 2)
        return torch.sigmoid(logit.clamp(-100, 100)), torch.cat([corners, points], 2)

    def _merge(self, rows: Tensor, score: Tensor) -> Detections:
        """Weighted non-maximum suppression: overlapping candidates become their weighted mean.

        Args:
            rows: `[N, 8, 2]`: opposite corners of the box, then six points, the first two of them
                the eyes.
            score: `[N]`.
        """
        rows = torch.cat(
            [rows[:, :2].amin(1)[:, None], rows[:, :2].amax(1)[:, None], rows[:, 2:]], 1
        )
        faces, scores = [], []
        while len(score):
            best = score.argmax()
            low, high = rows[:, 0], rows[:, 1]
            overlap = torch.minimum(high, high[best]) - torch.maximum(low, low[best])
            shared = overlap.clamp(min=0).prod(1)
            area = (high - low).prod(1)
            same = shared / (area + area[best] - shared) > self.MAX_OVERLAP
            same[best] = True
            weight = score[same] / score[same].sum()
            faces.append((rows[same] * weight[:, None, None]).sum(0))
            scores.append(score[best])
            rows, score = rows[~same], score[~same]
        if not faces:
            return Detections(rows.new_zeros(0, 5), score)
        face = torch.stack(faces)
        low, high, right_eye, left_eye = face.unbind(1)[:4]
        roi = _square_roi((low + high) / 2, high - low, left_eye - right_eye)
        return Detections(roi, torch.stack(scores))


def contain(roi: Tensor, point: tuple[float, float]) -> Tensor:
    """Returns `[N]` bool: the face boxes, that is ROIs before their enlargement, with a point.

    Rotations are ignored.
    """
    distance = (roi[:, :2] - roi.new_tensor([point])).abs().amax(1)
    return distance < roi[:, 2] / ROI_SCALE / 2


def search_squares(
    width: int,
    height: int,
    around: tuple[float, float] | None = None,
    parts: Sequence[int] = (1, 2, 4),
) -> Iterator[list[Square]]:
    """Yields sets of squares to search in turn, coarse to fine.

    Args:
        width: of the picture, px.
        height: of the picture, px.
        around: a point in picture px that is searched before the rest of the picture.
        parts: the picture's shorter side over the squares' sides.
    """
    yield [(width / 2, height / 2, float(max(width, height)))]
    sides = [min(width, height) / n for n in parts if min(width, height) / n >= SMALLEST_SQUARE]
    if around is not None:
        yield from ([(*around, side)] for side in sides)
    for side in sides:
        if side < max(width, height):
            yield tiling(width, height, side)


def tiling(width: int, height: int, side: float, step: float = 0.5) -> list[Square]:
    """Returns squares of one size that cover a picture, at most `step` sides apart."""

    def centres(length: int) -> list[float]:
        count = math.ceil((length - side) / (side * step)) + 1
        if count == 1:
            return [length / 2]
        distance = (length - side) / (count - 1)
        return [side / 2 + i * distance for i in range(count)]

    return [(x, y, side) for y in centres(height) for x in centres(width)]


def face_mesh(attention: bool = True, device: str = "cpu") -> FaceMesh:
    """Returns a device's mesh network, which is loaded once and frozen."""
    return _shared_mesh(attention, device)


def face_detector(device: str = "cpu") -> FaceDetector:
    """Returns a device's detector, which is loaded once."""
    return _shared_detector(device)


# Cached separately, because lru_cache treats face_mesh() and face_mesh(True) as different calls.
@lru_cache(maxsize=4)
def _shared_mesh(attention: bool, device: str) -> FaceMesh:
    return FaceMesh(attention).eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@lru_cache(maxsize=2)
def _shared_detector(device: str) -> FaceDetector:
    return FaceDetector().eval().to(device)
