"""A clip aligned for the generator: one face, tracked, smoothed and cut out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.base.errors import ReenactError
from core.base.progress import Progress
from core.face.alignment import ffhq_quads, smooth_quads, warp
from core.face.tracking import FaceTrack, track_face
from core.media.clip import Clip
from core.media.read import read_network_frames


class NoFaceError(ReenactError):
    """No face was found in any frame of the clip."""


@dataclass(frozen=True, eq=False)
class AlignedClip:
    """The aligned pictures of one face in F frames."""

    clip: Clip
    face: FaceTrack
    quads: np.ndarray  # [F, 4, 2] float64, plate px, smoothed; NaN far from any face
    pictures: Tensor  # [F, 3, R, R] float16 in [-1, 1], on the CPU; 0 without a face


def align_clip(
    clip: Clip,
    size: int,
    *,
    at: tuple[float, float] | None = None,
    device: str = "cpu",
    progress: Progress = lambda done, total: None,
) -> AlignedClip:
    """Tracks the face through a clip, then cuts it out of every frame; reads the clip twice.

    Args:
        clip: from `core.media.read.open_clip`.
        size: side of the aligned pictures, px. 1,000 pictures need 6 GB at 1024, 0.4 GB at 256.
        at: a point in plate px that selects the person where there are several.
        device: torch device of the networks.
        progress: called with frames done and to do; every frame counts twice.

    Raises:
        NoFaceError: no frame shows a face.
        core.media.errors.ClipError: a frame that can't be read.
    """
    total = 2 * len(clip.numbers)

    def pictures() -> Iterator[tuple[int, np.ndarray]]:
        for i, frame in enumerate(read_network_frames(clip)):
            yield frame.number, frame.srgb
            progress(i + 1, total)

    face = track_face(pictures(), at=at, pixel_aspect=clip.pixel_aspect, device=device)
    if not face.found.any():
        raise NoFaceError(
            f"There is no face in {clip.shown}. Choose another range, or crop the plate to the "
            "person if the face is very small."
        )
    quads = ffhq_quads(face.landmarks, clip.pixel_aspect)
    quads = smooth_quads(quads, face.numbers, face.cut)
    found = np.flatnonzero(face.found)
    result = torch.zeros(len(face.numbers), 3, size, size, dtype=torch.float16)
    numbers = [int(n) for n in face.numbers[found]]
    for i, picture in enumerate(cut_out(clip, numbers, quads[found], size)):
        result[found[i]] = picture
        progress(total / 2 * (1 + (i + 1) / len(found)), total)
    return AlignedClip(clip, face, quads, result)


def cut_out(clip: Clip, numbers: Sequence[int], quads: np.ndarray, size: int) -> Iterator[Tensor]:
    """Reads frames and cuts the aligned pictures out of them.

    Args:
        clip: from `core.media.read.open_clip`.
        numbers: of K frames.
        quads: `[K, 4, 2]` plate px, finite.
        size: side of the pictures, px.

    Yields:
        `[3, size, size]` float16 in [-1, 1], 16 times finer than 8 bits.

    Raises:
        core.media.errors.ClipError: a frame that can't be read.
    """
    for quad, frame in zip(quads, read_network_frames(clip, numbers), strict=True):
        plate = torch.from_numpy(frame.srgb).permute(2, 0, 1)[None]
        crop = warp(plate, torch.from_numpy(quad)[None].float(), size)[0]
        yield (crop.clamp(0, 1) * 2 - 1).half()
