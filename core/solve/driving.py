"""The driving performance: aligned frames of a clip."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.base.progress import Progress
from core.face.aligned_clip import align_clip, cut_out
from core.media.clip import Clip
from core.solve.latent_track import LatentTrack
from core.solve.settings import MAX_RESOLUTION


@dataclass(frozen=True, eq=False)
class Driving:
    """F aligned frames of a driving performance.

    `cut` divides them into shots; frame numbers may have gaps.
    """

    numbers: np.ndarray  # [F] int64, real frame numbers, increasing
    pictures: Tensor  # [F, 3, R, R] in [-1, 1], any R and float type; ignored without a face
    found: np.ndarray  # [F] bool: the frame has a face
    cut: np.ndarray  # [F] bool, true on the first frame of a new shot
    landmarks: np.ndarray  # [F, 478, 3], plate px; NaN where there is none
    quads: np.ndarray  # [F, 4, 2], plate px; NaN where there is none
    source: str = ""  # the clip's path
    fps: float = 24.0
    plate: tuple[int, int] = (0, 0)  # width, height, px
    pixel_aspect: float = 1.0


# Arrays with a value per frame, besides the pictures.
PER_FRAME = ("numbers", "found", "cut", "landmarks", "quads")


def driving_from_clip(
    clip: Clip,
    *,
    at: tuple[float, float] | None = None,
    size: int = MAX_RESOLUTION,
    device: str = "cpu",
    progress: Progress = lambda done, total: None,
) -> Driving:
    """Tracks the face through a clip and cuts it out, aligned and steadied. Reads the clip twice.

    Args:
        clip: from `core.media.read.open_clip`, limited to the range to solve and its handles.
        at: a point in plate px that chooses the person, where several are in the picture.
        size: side of the aligned pictures, px.
        device: torch device that runs the networks.
        progress: called with frames done and to do; every frame counts twice.

    Raises:
        NoFaceError: no frame shows a face.
        core.media.errors.ClipError: a frame can't be read.
    """
    aligned = align_clip(clip, size, at=at, device=device, progress=progress)
    face = aligned.face
    return _driving(
        clip, face.numbers, aligned.pictures, face.found, face.cut, face.landmarks, aligned.quads
    )


def driving_from_track(
    clip: Clip, track: LatentTrack, numbers: Iterable[int], size: int = MAX_RESOLUTION
) -> Driving:
    """Cuts frames out of a clip as they were tracked and aligned before, to solve them again.

    Args:
        clip: the track's clip.
        track: gives landmarks and aligned squares.
        numbers: frames to solve again.
        size: side of the aligned pictures, px.

    Raises:
        KeyError: the track does not have one of the frames.
        core.media.errors.MissingFramesError: the clip does not have one of the frames.
        core.media.errors.ClipError: a frame can't be read.
    """
    frames = np.array([track.index(n) for n in sorted(set(numbers))], int)
    found = np.isfinite(track.landmarks[frames]).all((1, 2))
    chosen, quads = track.numbers[frames], track.quads[frames]
    pictures = torch.zeros(len(frames), 3, size, size, dtype=torch.float16)
    seen = np.flatnonzero(found)
    numbers = [int(n) for n in chosen[seen]]
    for i, picture in zip(seen, cut_out(clip, numbers, quads[seen], size), strict=True):
        pictures[i] = picture
    cut, landmarks = track.cut[frames], track.landmarks[frames]
    return _driving(clip, chosen, pictures, found, cut, landmarks, quads)


def _driving(
    clip: Clip,
    numbers: np.ndarray,
    pictures: Tensor,
    found: np.ndarray,
    cut: np.ndarray,
    landmarks: np.ndarray,
    quads: np.ndarray,
) -> Driving:
    return Driving(
        numbers,
        pictures,
        found,
        cut,
        landmarks,
        quads,
        clip.shown,
        clip.fps or 24.0,
        (clip.width, clip.height),
        clip.pixel_aspect,
    )
