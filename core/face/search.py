"""Finding the face of one picture, at any size and roll, where nothing is known of it.

The detector proposes boxes, and each is looked at again: a weak box of a coarse search may be half
a face off, and one of a face on its side says nothing of its roll. What the detector confirms in a
closer look, level with the face, is a face if the mesh network says so too. The search goes on,
with rolled faces and finer squares, until one is accepted.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from core.face.network import (
    MESH_SCORE,
    SMALLEST_SQUARE,
    Detections,
    FaceDetector,
    FaceMesh,
    Square,
    contain,
    crop_roi,
    roi_from_landmarks,
    search_squares,
    tiling,
    to_picture,
)

# A face is sure if the closer looks of the detector and the mesh network reach these scores. Small
# faces are blurred, but look like faces whichever way they are turned; textures do not.
LOOK_SCORE = 0.8
_SMALL, _SMALL_LOOK_SCORE = 80, 0.7  # ROI side, px
_TURNED_LOOKS_SCORE = 0.65  # mean of the best three of four turns
SURE_SCORE = 0.99
# Upright meshes on faces that are upside down may have a score of 1, too. A mesh is read anew,
# level with the face or where it was seen closer, if its logit is higher there by so much.
BETTER = 3.0
_LEVEL = math.radians(25)
WELL_PLACED = 10.0  # logit of a mesh that is kept if its ROI is level

_COARSE, _FINE, _FINEST = (1, 2), 4, 8  # the picture's shorter side over the squares'
_FINEST_STEP = 0.65  # of the finest squares' sides: what only they find is small beside them
_MAX_BOXES = 4  # of a set of squares; more are texture


class Face(NamedTuple):
    """A face as the mesh network sees it in a ROI; whether it is one, the score says."""

    roi: Tensor  # [1, 5]
    landmarks: Tensor  # [1, 478, 3] picture px
    score: float  # the mesh network's probability of a face, 0..1
    logit: float  # of the score


class Target(NamedTuple):
    """Where a face is expected."""

    point: tuple[float, float]  # picture px
    reach: float = math.inf  # px from the point; what is farther away is somebody else


class Found(NamedTuple):
    """What a search found."""

    face: Face | None
    score: float  # of the face; without one, of the first that was rejected
    faces: int  # that the detector found at once: with the face, or where it first found any


class _Proposal(NamedTuple):
    roi: Tensor  # [1, 5]
    faces: int  # that were detected with it
    at_target: bool  # whether the face was detected where it is expected
    usual: bool  # found upright, in no very small squares: as MediaPipe might


def read_mesh(mesh: FaceMesh, image: Tensor, roi: Tensor) -> Face:
    """Runs the mesh network on the ROI `[1, 5]` of a picture."""
    with torch.no_grad():
        result = mesh(crop_roi(image, roi))
    landmarks = to_picture(result.landmarks, roi)
    return Face(roi, landmarks, float(result.score), float(result.logit))


def find_face(
    image: Tensor,
    mesh: FaceMesh,
    detector: FaceDetector,
    target: Target | None = None,
    thorough: bool = True,
) -> Found:
    """Finds the face of a picture: the largest, or the one at a target.

    Args:
        image: `[1, 3, H, W]`, sRGB in 0..1.
        mesh: the landmark network.
        detector: the detector.
        target: where the face is expected. One elsewhere is taken where the detector sees none
            there.
        thorough: whether to search on, with finer squares and for rolled faces, when nothing that
            the detector proposed first is a face. It takes several times as long.
    """
    unsure: Face | None = None
    score, faces, faces_with_unsure = 0.0, 0, 0
    seen: list[Tensor] = []
    for proposals in _proposals(image, detector, target, thorough):
        for proposal in proposals:
            faces = faces or proposal.faces
            if target is not None and _distance(proposal.roi, target) > target.reach:
                continue
            if any(_alike(proposal.roi, roi) for roi in seen):
                continue
            own = None
            if not seen and proposal.usual:
                own = read_mesh(mesh, image, proposal.roi)
                score = own.score
                if score > MESH_SCORE:  # accepted, as by MediaPipe, unless there is a better one
                    unsure, faces_with_unsure = own, proposal.faces
            seen.append(proposal.roi)
            face = _confirm(image, mesh, detector, proposal.roi, own)
            if face is None or (target and not _meets(face.roi, target, proposal.at_target)):
                continue
            return Found(face, face.score, proposal.faces)
        if not thorough:
            break
    return Found(unsure, score, faces_with_unsure if unsure else faces)


def _confirm(
    image: Tensor, mesh: FaceMesh, detector: FaceDetector, roi: Tensor, own: Face | None
) -> Face | None:
    """Returns the face in the ROI `[1, 5]` that was proposed, the right way up; None for none sure.

    Args:
        image: `[1, 3, H, W]`.
        mesh: the landmark network.
        detector: the detector.
        roi: `[1, 5]`.
        own: the mesh in that ROI, which is returned if it is right.
    """
    turned = roi.repeat(4, 1)
    turned[:, 4] += torch.arange(4, device=roi.device) * (math.pi / 2)
    looks = _looks(image, detector, turned)
    like_face = looks.score.topk(3).values.mean() >= _TURNED_LOOKS_SCORE
    small = (looks.roi[:, 2] < _SMALL) & (looks.score > 0).all()
    enough = torch.where(small, _SMALL_LOOK_SCORE, LOOK_SCORE)
    sure = (looks.score >= enough) & like_face
    if own is None or own.score <= MESH_SCORE:
        best = _best(mesh, image, looks.roi[sure])
        return best if best is not None and best.score >= SURE_SCORE else None
    near = (looks.roi[:, :2] - roi[:, :2]).norm(dim=1) < roi[0, 2] / 2  # else it is another face
    best = _best(mesh, image, looks.roi[near & (looks.score > 0)])
    if best is None:
        return None
    if _level(own, best) and own.logit >= WELL_PLACED:
        return own
    best = _best(mesh, image, looks.roi[near & sure])
    if best is None or best.score < SURE_SCORE:
        return None
    better = max(best, _settled(mesh, image, own), key=lambda face: face.logit)
    return better if better.logit > own.logit + BETTER else own


def _best(mesh: FaceMesh, image: Tensor, rois: Tensor) -> Face | None:
    """Returns the face of ROIs `[N, 5]` that the mesh network is surest of, in its own ROI."""
    faces = [_settled(mesh, image, read_mesh(mesh, image, roi[None])) for roi in rois]
    return max(faces, key=lambda face: face.logit, default=None)


def _settled(mesh: FaceMesh, image: Tensor, face: Face) -> Face:
    """Reads the mesh again, in the ROI of its landmarks."""
    return read_mesh(mesh, image, roi_from_landmarks(face.landmarks))


def _level(face: Face, with_: Face) -> bool:
    """Returns whether the ROI of a face is level with the landmarks of another reading of it."""
    difference = face.roi[0, 4] - roi_from_landmarks(with_.landmarks)[0, 4]
    return abs(math.remainder(float(difference), 2 * math.pi)) < _LEVEL


def _looks(image: Tensor, detector: FaceDetector, roi: Tensor) -> Detections:
    """Looks at ROIs, and at what was seen once more, because a rough ROI costs score."""
    once = detector.look(image, roi)
    seen = once.score > 0
    if not bool(seen.any()):
        return once
    again = detector.look(image, once.roi[seen])
    better = again.score > once.score[seen]
    once.roi[seen] = torch.where(better[:, None], again.roi, once.roi[seen])
    once.score[seen] = torch.where(better, again.score, once.score[seen])
    return once


def _alike(a: Tensor, b: Tensor) -> bool:
    """Returns whether a look at either ROI `[1, 5]` shows the same."""
    smaller, larger = sorted((float(a[0, 2]), float(b[0, 2])))
    return (
        math.dist(a[0, :2].tolist(), b[0, :2].tolist()) < 0.2 * smaller and larger < 1.25 * smaller
    )


def _proposals(
    image: Tensor, detector: FaceDetector, target: Target | None, thorough: bool
) -> Iterator[list[_Proposal]]:
    """Yields what the detector finds in sets of squares, the likeliest first."""
    at_target = False
    for number, stage in enumerate(_stages(image.shape[3], image.shape[2], target, thorough)):
        elsewhere: list[Detections] = []
        for squares, turns in stage:
            found = detector.search(image, squares, turns)
            if not len(found.score):
                continue
            if target is None:
                # The largest first, then those that the detector is surest of.
                rank = found.score.clone()
                rank[found.roi[:, 2].argmax()] = math.inf
                order = rank.argsort(descending=True, stable=True)[:_MAX_BOXES].tolist()
                yield _listed(found, order, False, number)
                continue
            there = contain(found.roi, target.point)
            if not bool(there.any()):
                elsewhere.append(found)
                continue
            at_target = True
            nearest, *others = _nearest_first(found, target)
            yield _listed(found, [nearest, *(i for i in others if there[i])], True, number)
        # Somebody who is there, though the mesh network does not see the face, is not another.
        if target is not None and not at_target:
            for found in elsewhere:
                yield _listed(found, _nearest_first(found, target), False, number)


def _listed(found: Detections, order: list[int], at_target: bool, stage: int) -> list[_Proposal]:
    faces = len(found.score)
    return [_Proposal(found.roi[i][None], faces, at_target, stage == 0) for i in order]


def _nearest_first(found: Detections, target: Target) -> list[int]:
    distance = (found.roi[:, :2] - found.roi.new_tensor([target.point])).norm(dim=1)
    return distance.argsort(stable=True)[:_MAX_BOXES].tolist()


def _distance(roi: Tensor, target: Target) -> float:
    """Returns the distance of a ROI `[1, 5]` from the target, px."""
    return math.dist(roi[0, :2].tolist(), target.point)


def _meets(roi: Tensor, target: Target, at_target: bool) -> bool:
    """Returns whether a ROI `[1, 5]`, found in a closer look, is still the face that is meant."""
    distance = _distance(roi, target)
    return distance <= target.reach and (not at_target or distance < float(roi[0, 2]))


_Stage = Iterator[tuple[list[Square], int]]


def _stages(width: int, height: int, target: Target | None, thorough: bool) -> Iterator[_Stage]:
    """Yields stages of a search: sets of squares with the quarter turns of the faces in them."""
    around = target.point if target else None
    rolled = (1, 3, 2)
    yield ((s, 0) for s in search_squares(width, height, around, (*_COARSE, _FINE)))
    if not thorough:
        return
    yield ((s, k) for k in rolled for s in search_squares(width, height, around, _COARSE))
    fine, finest = (min(width, height) / n for n in (_FINE, _FINEST))
    if finest >= SMALLEST_SQUARE:
        yield iter([(tiling(width, height, finest, _FINEST_STEP), 0)])
    if fine >= SMALLEST_SQUARE:
        yield ((tiling(width, height, fine), k) for k in rolled)
