"""Following one face through a clip, as MediaPipe does it.

The first face is detected; from then on the ROI comes from the landmarks of the frame before, and
the detector runs again only when the mesh network no longer sees a face there, or after a cut.
A frame without a face is a state, not an error.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

import cv2
import numpy as np
import torch

from core.facemesh.network import (
    MESH_SCORE,
    crop_roi,
    face_detector,
    face_mesh,
    roi_from_landmarks,
    to_picture,
)

# A frame starts a new shot when its thumbnail differs from the one before by more than this
# (mean absolute sRGB difference), and by this many times more than frames of the shot do.
CUT_DIFFERENCE = 0.06
CUT_RATIO = 3.0
_THUMBNAIL = (48, 27)
_RECENT = 8  # frames over which a shot's usual difference is averaged


class FaceState(IntEnum):
    """What is known of the face in a frame."""

    NONE = 0  # no face was found
    DETECTED = 1  # found by the detector: first frame, after a loss or a cut
    TRACKED = 2  # found where the frame before had it


@dataclass(frozen=True)
class FaceTrack:
    """One face through T frames. Arrays are NaN where there is no face."""

    numbers: np.ndarray  # [T] int, real frame numbers
    state: np.ndarray  # [T] FaceState
    score: np.ndarray  # [T] float, the mesh network's probability of a face, 0..1
    landmarks: np.ndarray  # [T, 478, 3] float32, plate px (z on the scale of x)
    roi: np.ndarray  # [T, 5] float32, ROI of each frame in square pixels
    cut: np.ndarray  # [T] bool, true on the first frame of a new shot
    faces: np.ndarray  # [T] int, faces seen by the detector, -1 where it did not run

    @property
    def found(self) -> np.ndarray:
        """[T] bool: frames that have a face."""
        return self.state != FaceState.NONE


def track(
    pictures: Iterable[tuple[int, np.ndarray]],
    *,
    at: tuple[float, float] | None = None,
    pixel_aspect: float = 1.0,
    device: str = "cpu",
) -> FaceTrack:
    """Follows one face through a clip.

    Where the detector sees several faces, it takes the one nearest to where the face was last
    seen in this shot; else the one nearest to `at`; else the largest.

    Args:
        pictures: frame number and `[H, W, 3]` float32 sRGB in 0..1, in order; read once.
        at: a point in plate px that picks the person, where several are in the picture.
        pixel_aspect: width of a pixel over its height.
        device: torch device that runs the networks.

    Returns:
        The track, with one entry per picture.

    Raises:
        ValueError: no pictures, or one that is not `[H, W, 3]`.
    """
    mesh_net = face_mesh(device=device)
    if at is not None:
        at = (at[0] * pixel_aspect, at[1])
    rows: list[tuple[int, FaceState, float, np.ndarray, np.ndarray, bool, int]] = []
    roi: torch.Tensor | None = None  # where to look in this frame
    last: torch.Tensor | None = None  # where the face was last seen in this shot
    thumbnail: np.ndarray | None = None
    recent: list[float] = []
    nothing = (np.full((478, 3), np.nan, np.float32), np.full(5, np.nan, np.float32))

    for number, picture in pictures:
        if picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"Frame {number} is {picture.shape}, not [height, width, 3].")
        previous, thumbnail = (
            thumbnail,
            cv2.resize(picture, _THUMBNAIL, interpolation=cv2.INTER_AREA),
        )
        cut = previous is not None and _is_cut(previous, thumbnail, recent)
        if cut:
            roi, last = None, None
        image = _tensor(picture, pixel_aspect, device)
        state, score, faces = FaceState.NONE, 0.0, -1
        landmarks, found_roi = nothing
        for source in (FaceState.TRACKED, FaceState.DETECTED):
            if source == FaceState.DETECTED:
                found = face_detector(device)(image)
                faces = len(found.score)
                roi = _pick(found.roi, last, at)
            if roi is None:
                continue
            with torch.no_grad():
                mesh = mesh_net(crop_roi(image, roi))
                points = to_picture(mesh.landmarks, roi)
            score = float(mesh.score)
            if score > MESH_SCORE:
                state, found_roi = source, roi[0].cpu().numpy()
                landmarks = points[0].cpu().numpy().copy()
                landmarks[:, 0] /= pixel_aspect
                roi = last = roi_from_landmarks(points)
                break
            roi = None
        rows.append((number, state, score, landmarks, found_roi, cut, faces))

    if not rows:
        raise ValueError("There are no pictures to track a face in.")
    numbers, states, scores, points_, rois, cuts, counts = zip(*rows, strict=True)
    return FaceTrack(
        numbers=np.array(numbers),
        state=np.array(states, np.uint8),
        score=np.array(scores, np.float32),
        landmarks=np.stack(points_),
        roi=np.stack(rois),
        cut=np.array(cuts, bool),
        faces=np.array(counts),
    )


def _is_cut(previous: np.ndarray, thumbnail: np.ndarray, recent: list[float]) -> bool:
    """Whether a new shot starts; keeps `recent`, the differences within the shot, up to date."""
    difference = float(np.abs(thumbnail - previous).mean())
    usual = float(np.mean(recent)) if recent else 0.0
    if difference > max(CUT_DIFFERENCE, CUT_RATIO * usual):
        recent.clear()
        return True
    recent.append(difference)
    del recent[:-_RECENT]
    return False


def _tensor(picture: np.ndarray, pixel_aspect: float, device: str) -> torch.Tensor:
    """`[1, 3, H, W]` with square pixels."""
    if pixel_aspect != 1:
        width = max(round(picture.shape[1] * pixel_aspect), 1)
        picture = cv2.resize(picture, (width, picture.shape[0]), interpolation=cv2.INTER_LINEAR)
    image = torch.from_numpy(np.ascontiguousarray(picture, np.float32)).to(device)
    return image.permute(2, 0, 1)[None]


def _pick(
    rois: torch.Tensor, last: torch.Tensor | None, at: tuple[float, float] | None
) -> torch.Tensor | None:
    """The face `[1, 5]` to follow among those detected `[N, 5]`, or None."""
    if not len(rois):
        return None
    if last is not None:
        wanted = last[:, :2]
    elif at is not None:
        wanted = rois.new_tensor([at])
    else:
        return rois[rois[:, 2].argmax()][None]
    return rois[(rois[:, :2] - wanted).norm(dim=1).argmin()][None]
