"""The loss: how well a generated picture reenacts a driving frame (paper, eqs. 2-5 and 10).

Driving and generated pictures are aligned as in FFHQ, and the landmark network gets both through
the same ROIs, so that its biases cancel. Keypoints are px of its 192 px crop, z included.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from core.face.keypoints import (
    HEAD_FRAME,
    INNER_LIPS,
    KEYPOINTS,
    LEFT_EYE,
    LEFT_EYE_BOX,
    LEFT_IRIS,
    MOUTH_BOX,
    OUTER_LIPS,
    RIGHT_EYE,
    RIGHT_EYE_BOX,
    RIGHT_IRIS,
)
from core.face.landmarks import Observation, group_keypoints
from core.face.network import ALIGNED_ROI, CROP

TERMS = ("keypoints", "mouth", "eyes", "delta", "sum")

LIPS = [KEYPOINTS.index(point) for point in INNER_LIPS + OUTER_LIPS]  # among the keypoints

# Rows and columns at which the boxes of the pixel losses are compared.
_MOUTH_SHAPE = (24, 48)
_EYE_SHAPE = (12, 12)
_LEAST_BOX = 0.02  # of the picture's side: no smaller than a shut mouth

# Added under square roots, which would be infinitely steep at zero.
_EPSILON = 1e-10


@dataclass(frozen=True)
class Objective:
    """Weights of the terms; 0 switches one off. The defaults worked best (benchmarks/fidelity.py).

    The names are public: repairs give weights by them (core/edit/repair.py).
    """

    keypoints: float = 1.0  # lambda of eq. 2, px
    eye_points: float = 8.0  # within eq. 2: lids
    iris_points: float = 24.0  # within eq. 2: irises
    mouth_points: float = 5.0  # within eq. 2: inner lips
    lip_points: float = 4.0  # within eq. 2, beyond the paper: outer lips
    head_points: float = 24.0  # within eq. 2: the four points of the head frame
    # Within eq. 2: z of lips, as a factor of x and y. Meshes are least sure of it: results miss it
    # by up to twice as much.
    lip_depth: float = 0.3
    mouth: float = 20.0  # lambda of eq. 3
    eyes: float = 5.0  # lambda of eq. 4
    # lambda of eq. 9. With the paper's 10, where a keypoint counts 1, faces that can't do what the
    # driver does were distorted.
    delta: float = 30.0
    sum: float = 100.0  # lambda of eq. 8
    grouped: bool = True  # False compares all keypoints in absolute position
    norm: Literal["rms", "l2"] = "rms"  # of pixels in 0..1; the paper's sum grows with the crop

    @classmethod
    def paper(cls) -> "Objective":
        """Returns the paper's weights and norms (appendix C.3)."""
        return cls(
            eye_points=1,
            iris_points=1,
            mouth_points=1,
            lip_points=0,
            head_points=1,
            lip_depth=1,
            mouth=1,
            eyes=1,
            delta=10,
            sum=10,
            norm="l2",
        )


def keypoint_loss(a: Tensor, b: Tensor, objective: Objective) -> Tensor:
    """Computes eq. 2, the weighted sum of distances, px.

    Args:
        a: `[..., 86, 3]`, px.
        b: the same; leading dimensions broadcast.
        objective: gives the points' weights.

    Returns:
        `[...]`.
    """
    difference = compared(a - b, objective)
    distance = (difference.square().sum(-1) + _EPSILON).sqrt()
    return (distance * point_weights(objective).to(distance)).sum(-1)


def compared(keypoints: Tensor, objective: Objective) -> Tensor:
    """Returns what eq. 2 takes distances of, linear in the keypoints.

    Args:
        keypoints: `[..., 86, 3]` px, or differences of them.
        objective: says whether positions are relative, and gives the weight of the lips' depth.

    Returns:
        `[..., 86, 3]`.
    """
    if objective.grouped:
        keypoints = group_keypoints(keypoints)
    counts = keypoints.new_ones(keypoints.shape[-2:])
    counts[LIPS, 2] = objective.lip_depth
    return keypoints * counts


def point_weights(objective: Objective) -> Tensor:
    """Returns each keypoint's weight within eq. 2, `[86]`."""
    counts = {
        **dict.fromkeys((*RIGHT_EYE, *LEFT_EYE), objective.eye_points),
        **dict.fromkeys((*RIGHT_IRIS, *LEFT_IRIS), objective.iris_points),
        **dict.fromkeys(INNER_LIPS, objective.mouth_points),
        **dict.fromkeys(OUTER_LIPS, objective.lip_points),
        **dict.fromkeys(HEAD_FRAME, objective.head_points),
    }
    return torch.tensor([counts[point] for point in KEYPOINTS])


def picture_losses(
    generated: Observation,
    driving: Observation,
    centre: Observation,
    objective: Objective,
    neutral_offset: Tensor | None = None,
) -> dict[str, Tensor]:
    """Computes the unweighted terms that depend on the picture: eqs. 2, 3 and 4.

    Args:
        generated: B pictures.
        driving: B frames to follow.
        centre: one picture of the character, from the centre of P (I_c of eq. 4).
        objective: norms and point weights.
        neutral_offset: `[86, 3]` px, added to the driving keypoints; None adds nothing.

    Returns:
        `keypoints`, `mouth` and `eyes`, each `[B]`.
    """
    target = driving.keypoints
    if neutral_offset is not None:
        target = target + neutral_offset
    centre = Observation(*(t.expand(len(generated.pictures), *t.shape[1:]) for t in centre))
    eyes = [
        _box_loss(generated, centre, box, _EYE_SHAPE, objective)
        for box in (LEFT_EYE_BOX, RIGHT_EYE_BOX)
    ]
    return {
        "keypoints": keypoint_loss(generated.keypoints, target, objective),
        "mouth": _box_loss(generated, driving, MOUTH_BOX, _MOUTH_SHAPE, objective),
        "eyes": eyes[0] + eyes[1],
    }


def total_loss(terms: Mapping[str, Tensor], objective: Objective) -> Tensor:
    """Computes eq. 10: the weighted sum of `TERMS`, each `[B]`, -> `[B]`."""
    return torch.stack([getattr(objective, name) * terms[name] for name in TERMS]).sum(0)


def _box_loss(
    a: Observation,
    b: Observation,
    points: tuple[int, ...],
    shape: tuple[int, int],
    objective: Objective,
) -> Tensor:
    """Compares a facial part's pixels, `[B]`, in boxes of a common size (appendix C.2)."""
    (centre_a, size_a), (centre_b, size_b) = (_box(seen, points) for seen in (a, b))
    size = torch.minimum(size_a, size_b).clamp(min=_LEAST_BOX)
    part = _crop(a.pictures, centre_a, size, shape) - _crop(b.pictures, centre_b, size, shape)
    squares = (part / 2).square().flatten(1)
    pooled = squares.mean(1) if objective.norm == "rms" else squares.sum(1)
    return (pooled + _EPSILON).sqrt()


def _box(seen: Observation, points: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Returns centre and size `[B, 2]` of landmarks' bounding box, fractions of the picture.

    Without gradient: the optimiser would slide a box to where the pixels fit.
    """
    x, y, width, height, _ = ALIGNED_ROI
    xy = seen.landmarks[:, points, :2].detach() / CROP - 0.5
    # Landmarks count from pixel centres, fractions from the picture's edge.
    xy = xy * xy.new_tensor([width, height]) + xy.new_tensor([x, y]) + 0.5 / seen.pictures.shape[-1]
    xy = xy.nan_to_num()  # at a NaN the gradient of grid_sample reads outside its memory
    low, high = xy.amin(1), xy.amax(1)
    return (low + high) / 2, high - low


def _crop(pictures: Tensor, centre: Tensor, size: Tensor, shape: tuple[int, int]) -> Tensor:
    """Cuts boxes out of pictures, `[B, 3, *shape]`."""
    down, across = (
        (torch.arange(n, device=centre.device, dtype=centre.dtype) + 0.5) / n - 0.5 for n in shape
    )
    unit = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1)
    grid = 2 * (centre[:, None, None] + unit * size[:, None, None]) - 1
    pictures = pictures.to(torch.promote_types(pictures.dtype, torch.float32))
    return F.grid_sample(
        pictures, grid.to(pictures.dtype), "bilinear", "border", align_corners=False
    )
