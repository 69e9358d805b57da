"""Following one face through a clip, like MediaPipe's tracking.

The first face is searched; from then on the ROI comes from the landmarks of the frame before. A
search runs again only after a cut, or when the mesh network finds no face in the ROI. A frame
without a face is a state, not an error.

A thorough search takes ten times as long as a simple one, so without a face it is made at the start
of a shot, then at every sixteenth frame, and at its end. What it finds is followed back through the
frames between.
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

from core.face.network import MESH_SCORE, face_detector, face_mesh, roi_from_landmarks
from core.face.search import SURE_SCORE, Face, Target, find_face, read_mesh
from core.media.write import to_bytes

# A frame starts a new shot if its thumbnail, normalised in brightness and contrast, differs from
# the frames before by more than `CUT_DIFFERENCE` (mean absolute difference in standard deviations),
# so does the frame after it, and the difference is `CUT_RATIO` times that of neighbouring frames.
# Flashing or flickering lights and fast pans are no cuts.
CUT_DIFFERENCE = 0.3
CUT_RATIO = 2.0
# In a shot with several faces a lost one is searched within one ROI side of its last position, and
# this many sides further per frame, so that it is not confused with another.
REACH_GROWTH = 1 / 6
# Frames without a face of which one is searched thoroughly. As many are held in memory, as bytes.
THOROUGH_EVERY = 16
_THUMBNAIL = (48, 27)  # px
_RECENT = 8  # frames over which a shot's usual difference is averaged


class FaceState(IntEnum):
    """How the face in a frame was found."""

    NONE = 0  # not found
    DETECTED = 1  # by the detector: first frame, after a loss or a cut
    TRACKED = 2  # in the ROI of the frame before, or of the frame after it, if found there first


@dataclass(frozen=True)
class FaceTrack:
    """One face through T frames. Arrays are NaN where there is no face."""

    numbers: np.ndarray  # [T] int, real frame numbers
    state: np.ndarray  # [T] FaceState
    score: np.ndarray  # [T] float, the mesh network's probability of a face, 0..1
    landmarks: np.ndarray  # [T, 478, 3] float32, plate px (z on the scale of x)
    roi: np.ndarray  # [T, 5] float32, ROI of each frame in square pixels
    cut: np.ndarray  # [T] bool, true on the first frame of a new shot
    faces: np.ndarray  # [T] int, number of faces that the detector found; -1 where it did not run

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

    At the start of a shot it takes the face nearest to `at`, or else the largest; after a loss, the
    one nearest to the face's last position, in a crowd within a distance that grows with time.

    Args:
        pictures: frame numbers and `[H, W, 3]` float32 sRGB in 0..1, in order; iterated once.
        at: a point in plate px that selects the person where there are several.
        pixel_aspect: width of a pixel over its height.
        device: torch device that runs the networks.

    Returns:
        The track, with one entry per picture.

    Raises:
        ValueError: a picture that is not `[H, W, 3]`.
    """
    follower = _Follower(at and (at[0] * pixel_aspect, at[1]), pixel_aspect, device)
    numbers, cuts = [], []
    for number, picture, cut in _with_cuts(pictures):
        if cut:
            follower.end_shot()
        numbers.append(number)
        cuts.append(cut)
        follower.follow(picture)
    follower.end_shot()
    observations = follower.observations
    landmarks = np.array([o.landmarks for o in observations], np.float32).reshape(-1, 478, 3)
    landmarks[..., 0] = (landmarks[..., 0] + 0.5) / pixel_aspect - 0.5
    return FaceTrack(
        numbers=np.array(numbers, int),
        state=np.array([o.state for o in observations], np.uint8),
        score=np.array([o.score for o in observations], np.float32),
        landmarks=landmarks,
        roi=np.array([o.roi for o in observations], np.float32).reshape(-1, 5),
        cut=np.array(cuts, bool),
        faces=np.array([o.faces for o in observations], int),
    )


def _with_cuts(
    pictures: Iterable[tuple[int, np.ndarray]],
) -> Iterator[tuple[int, np.ndarray, bool]]:
    """Yields number, picture, and whether it starts a new shot; reads one picture ahead."""
    recent: deque[float] = deque(maxlen=_RECENT)
    before: deque[np.ndarray] = deque(
        maxlen=3
    )  # thumbnails of several frames, because the last may be a flash
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
                smallest = min(over, *(_difference(b, now[2]) for b in before))
                usual = max(float(np.mean(recent)) if recent else 0.0, next_step)
                cut = smallest > CUT_DIFFERENCE and step > CUT_RATIO * usual
                if not cut:
                    recent.append(step)
            yield now[0], now[1], cut
            before.append(now[2])
        now = after


def _thumbnail(picture: np.ndarray) -> np.ndarray:
    """Returns a small picture with normalised brightness and contrast."""
    small = cv2.resize(picture, _THUMBNAIL, interpolation=cv2.INTER_AREA)
    small = small - small.mean((0, 1))
    return small / (small.std() + 0.02)  # does not amplify a flat picture


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).mean())


class _Observation(NamedTuple):
    """The face in one frame, in square pixels."""

    state: FaceState
    score: float
    roi: np.ndarray
    landmarks: np.ndarray
    faces: int


class _Follower:
    """Follows one face; keeps its last position from frame to frame."""

    def __init__(self, at: tuple[float, float] | None, pixel_aspect: float, device: str) -> None:
        self.at = at
        self.pixel_aspect = pixel_aspect
        self.device = device
        self.mesh = face_mesh(device=device)
        self.detector = face_detector(device)
        self.observations: list[_Observation] = []  # of all frames so far
        self.forget()

    def forget(self) -> None:
        """Starts again, as at the first frame of a shot."""
        self.roi: torch.Tensor | None = None  # where the face is expected in the next frame
        self.target = self.at  # the point at which it is searched
        self.side = 0.0  # of the last ROI, px
        self.lost = 0  # frames since the last ROI
        self.crowd = False  # whether several faces were found in this shot
        self.started = False  # whether any frame of this shot was searched
        # The last frames if they have no face and were not searched thoroughly, as bytes.
        self.unsearched: list[np.ndarray] = []

    def follow(self, picture: np.ndarray) -> None:
        """Observes the next frame `[H, W, 3]`."""
        image = self._tensor(picture)
        observation = self._track(image) if self.roi is not None else None
        thorough = not self.started
        self.started = True
        if observation is None:
            observation = self._search(image, thorough)
        self.observations.append(observation)
        if observation.state != FaceState.NONE:
            self.unsearched.clear()
        elif not thorough:
            self.unsearched.append(to_bytes(picture))
            if len(self.unsearched) == THOROUGH_EVERY:
                self._search_back()

    def end_shot(self) -> None:
        """Ends the shot; the next frame starts another."""
        if self.unsearched:
            self._search_back()
        self.forget()

    def _track(self, image: torch.Tensor) -> _Observation | None:
        """Observes the face where it is expected."""
        assert self.roi is not None
        face = read_mesh(self.mesh, image, self.roi)
        return self._found(FaceState.TRACKED, face, -1) if face.score > MESH_SCORE else None

    def _search(self, image: torch.Tensor, thorough: bool) -> _Observation:
        """Searches a frame that is not tracked."""
        near = self.crowd and self.side > 0
        reach = self.side * (1 + self.lost * REACH_GROWTH) if near else math.inf
        target = Target(self.target, reach) if self.target else None
        found = find_face(image, self.mesh, self.detector, target, thorough)
        self.crowd |= found.faces > 1
        if found.face is not None:
            return self._found(FaceState.DETECTED, found.face, found.faces)
        self.roi = None
        self.lost += 1
        nan = np.float32(np.nan)
        return _Observation(
            FaceState.NONE, found.score, np.full(5, nan), np.full((478, 3), nan), found.faces
        )

    def _search_back(self) -> None:
        """Searches the last frame thoroughly, and follows its face back to where it appeared."""
        first = len(self.observations) - len(self.unsearched)
        pictures, self.unsearched = self.unsearched, []
        observation = self._search(self._tensor(pictures.pop() / np.float32(255)), True)
        if observation.state == FaceState.NONE:
            self.lost -= 1  # the frame was counted before
            return
        self.observations[-1] = observation
        roi = roi_from_landmarks(torch.from_numpy(observation.landmarks)[None].to(self.device))
        for i in reversed(range(len(pictures))):
            image = self._tensor(pictures[i] / np.float32(255))
            face = read_mesh(self.mesh, image, roi)
            if face.score < SURE_SCORE:
                break
            faces = self.observations[first + i].faces
            self.observations[first + i] = _observation(FaceState.TRACKED, face, faces)
            roi = roi_from_landmarks(face.landmarks)

    def _found(self, state: FaceState, face: Face, faces: int) -> _Observation:
        self.roi = roi_from_landmarks(face.landmarks)
        x, y, self.side = self.roi[0, :3].tolist()
        self.target, self.lost = (x, y), 0
        return _observation(state, face, faces)

    def _tensor(self, picture: np.ndarray) -> torch.Tensor:
        """Converts a picture to `[1, 3, H, W]` with square pixels."""
        if self.pixel_aspect != 1:
            width = max(round(picture.shape[1] * self.pixel_aspect), 1)
            size = (width, picture.shape[0])
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
        image = torch.from_numpy(np.ascontiguousarray(picture, np.float32)).to(self.device)
        return image.permute(2, 0, 1)[None]


def _observation(state: FaceState, face: Face, faces: int) -> _Observation:
    roi, landmarks = face.roi[0].cpu().numpy(), face.landmarks[0].cpu().numpy()
    return _Observation(state, face.score, roi, landmarks, faces)
