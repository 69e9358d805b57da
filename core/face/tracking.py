"""Following one face through a clip, as MediaPipe does it.

The first face is detected; from then on the ROI comes from the landmarks of the frame before, and
the detector runs again only when the mesh network no longer sees a face there, or after a cut.
A frame without a face is a state, not an error.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain
from typing import NamedTuple

import cv2
import numpy as np
import torch

from core.face.network import (
    MESH_SCORE,
    crop_roi,
    face_detector,
    face_mesh,
    roi_from_landmarks,
    to_picture,
)

# A frame starts a new shot when its thumbnail, evened out in brightness and contrast, differs from
# the frames before by more than this (mean absolute difference in standard deviations), the frame
# after it does too, and its neighbours' differences are this many times smaller. Lights that flash
# or flicker and fast pans are no cuts.
CUT_DIFFERENCE = 0.3
CUT_RATIO = 2.0
# Where a shot has shown several faces, a lost one is looked for within one ROI side of where it
# was, and this much further for every frame that passes, so that nobody else is taken for it.
REACH_GROWTH = 1 / 6
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


def track_face(
    pictures: Iterable[tuple[int, np.ndarray]],
    *,
    at: tuple[float, float] | None = None,
    pixel_aspect: float = 1.0,
    device: str = "cpu",
) -> FaceTrack:
    """Follows one face through a clip.

    At the start of a shot it takes the face nearest to `at`, else the largest; after a loss, the
    one nearest to where the face was last seen (in a crowd: within a reach that grows with time).

    Args:
        pictures: frame number and `[H, W, 3]` float32 sRGB in 0..1, in order; read once.
        at: a point in plate px that picks the person, where several are in the picture.
        pixel_aspect: width of a pixel over its height.
        device: torch device that runs the networks.

    Returns:
        The track, with one entry per picture (none for no pictures).

    Raises:
        ValueError: a picture that is not `[H, W, 3]`.
    """
    follower = _Follower(at and (at[0] * pixel_aspect, at[1]), device)
    numbers, cuts, sightings = [], [], []
    for number, picture, cut in _with_cuts(pictures):
        if cut:
            follower.forget()
        numbers.append(number)
        cuts.append(cut)
        sightings.append(follower.look(_tensor(picture, pixel_aspect, device)))
    landmarks = np.array([s.landmarks for s in sightings], np.float32).reshape(-1, 478, 3)
    landmarks[..., 0] = (landmarks[..., 0] + 0.5) / pixel_aspect - 0.5
    return FaceTrack(
        numbers=np.array(numbers, int),
        state=np.array([s.state for s in sightings], np.uint8),
        score=np.array([s.score for s in sightings], np.float32),
        landmarks=landmarks,
        roi=np.array([s.roi for s in sightings], np.float32).reshape(-1, 5),
        cut=np.array(cuts, bool),
        faces=np.array([s.faces for s in sightings], int),
    )


def _with_cuts(
    pictures: Iterable[tuple[int, np.ndarray]],
) -> Iterator[tuple[int, np.ndarray, bool]]:
    """Number, picture, and whether it starts a new shot; looks one picture ahead."""
    recent: deque[float] = deque(maxlen=_RECENT)
    before: deque[np.ndarray] = deque(maxlen=3)  # thumbnails, to see over a flash
    now: tuple[int, np.ndarray, np.ndarray] | None = None
    for item in chain(pictures, [None]):
        after = None
        if item is not None:
            number, picture = item
            if picture.ndim != 3 or picture.shape[2] != 3:
                raise ValueError(f"Frame {number} is {picture.shape}, not [height, width, 3].")
            after = (number, picture, _thumbnail(picture))
        if now is not None:
            cut = False
            if before:
                step = _difference(before[-1], now[2])
                next_step = _difference(now[2], after[2]) if after else 0.0
                over = _difference(before[-1], after[2]) if after else step
                least = min(over, *(_difference(b, now[2]) for b in before))
                usual = max(float(np.mean(recent)) if recent else 0.0, next_step)
                cut = least > CUT_DIFFERENCE and step > CUT_RATIO * usual
                if not cut:
                    recent.append(step)
            yield now[0], now[1], cut
            before.append(now[2])
        now = after


def _thumbnail(picture: np.ndarray) -> np.ndarray:
    """A small picture with its brightness and contrast taken out."""
    small = cv2.resize(picture, _THUMBNAIL, interpolation=cv2.INTER_AREA)
    small = small - small.mean((0, 1))
    return small / (small.std() + 0.02)  # a flat picture stays flat


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).mean())


class _Sighting(NamedTuple):
    """What one frame shows, in square pixels."""

    state: FaceState
    score: float
    roi: np.ndarray
    landmarks: np.ndarray
    faces: int


class _Follower:
    """What is remembered of a face from frame to frame."""

    def __init__(self, at: tuple[float, float] | None, device: str) -> None:
        self.at = at
        self.mesh = face_mesh(device=device)
        self.detector = face_detector(device)
        self.forget()

    def forget(self) -> None:
        """Starts over, as at the first frame of a shot."""
        self.roi: torch.Tensor | None = None  # where the next frame should have the face
        self.wanted = self.at  # a point at which to detect it
        self.side = 0.0  # of the last ROI
        self.lost = 0  # frames since then
        self.crowd = False  # whether this shot has shown several faces

    def look(self, image: torch.Tensor) -> _Sighting:
        """Finds the face in the next frame `[1, 3, H, W]`."""
        score, faces = 0.0, -1
        if self.roi is not None:
            score, landmarks = self._mesh(image, self.roi)
            if score > MESH_SCORE:
                return self._seen(FaceState.TRACKED, score, self.roi, landmarks, faces)
        found = self.detector(image, self.wanted)
        faces = len(found.score)
        self.crowd |= faces > 1
        near = self.crowd and self.side > 0
        reach = self.side * (1 + self.lost * REACH_GROWTH) if near else math.inf
        roi = _pick(found.roi, self.wanted, reach)
        if roi is not None:
            score, landmarks = self._mesh(image, roi)
            if score > MESH_SCORE:
                return self._seen(FaceState.DETECTED, score, roi, landmarks, faces)
        self.roi = None
        self.lost += 1
        nan = np.float32(np.nan)
        return _Sighting(FaceState.NONE, score, np.full(5, nan), np.full((478, 3), nan), faces)

    @torch.no_grad()
    def _mesh(self, image: torch.Tensor, roi: torch.Tensor) -> tuple[float, torch.Tensor]:
        mesh = self.mesh(crop_roi(image, roi))
        return float(mesh.score), to_picture(mesh.landmarks, roi)

    def _seen(
        self,
        state: FaceState,
        score: float,
        roi: torch.Tensor,
        landmarks: torch.Tensor,
        faces: int,
    ) -> _Sighting:
        self.roi = roi_from_landmarks(landmarks)
        x, y, self.side = self.roi[0, :3].tolist()
        self.wanted, self.lost = (x, y), 0
        return _Sighting(state, score, roi[0].cpu().numpy(), landmarks[0].cpu().numpy(), faces)


def _tensor(picture: np.ndarray, pixel_aspect: float, device: str) -> torch.Tensor:
    """`[1, 3, H, W]` with square pixels."""
    if pixel_aspect != 1:
        width = max(round(picture.shape[1] * pixel_aspect), 1)
        picture = cv2.resize(picture, (width, picture.shape[0]), interpolation=cv2.INTER_LINEAR)
    image = torch.from_numpy(np.ascontiguousarray(picture, np.float32)).to(device)
    return image.permute(2, 0, 1)[None]


def _pick(
    rois: torch.Tensor, wanted: tuple[float, float] | None, reach: float
) -> torch.Tensor | None:
    """The face `[1, 5]` to follow among those detected `[N, 5]`, or None."""
    if not len(rois):
        return None
    if wanted is None:
        return rois[rois[:, 2].argmax()][None]
    distance = (rois[:, :2] - rois.new_tensor([wanted])).norm(dim=1)
    nearest = distance.argmin()
    return rois[nearest][None] if distance[nearest] <= reach else None
