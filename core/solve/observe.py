"""Drawing codes of a character, and detecting what generated and driving pictures show.

A single crop's landmarks are off by more than some movements of a face, gaze above all. Results are
therefore compared by landmarks averaged over several crops (`detect_averaged`). A search cannot
afford that at every step; it detects once and subtracts the error that a single crop had nearby.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from core.face.landmarks import Observation, detect_averaged, detect_landmarks
from core.personalize.character import Character
from core.solve.driving import Driving
from core.solve.schedule import split_batches
from core.solve.settings import MAX_RESOLUTION

_BIAS_ANCHORS = 16  # enough for the mean error of a single crop


def draw_codes(character: Character, codes: Tensor, half: torch.dtype | None = None) -> Tensor:
    """Draws codes `[B, L, 512]` at the resolution that the landmark network needs.

    Returns:
        Pictures `[B, 3, R, R]`, R at most `MAX_RESOLUTION`.
    """
    generator = character.generator
    size = min(MAX_RESOLUTION, generator.architecture.resolution)
    return generator.synthesis(codes, stop_at=size, half=half, half_from=4)


def observe_codes(character: Character, codes: Tensor) -> Observation:
    """Draws codes `[B, L, 512]` in full precision and detects averaged landmarks."""
    return detect_averaged(draw_codes(character, codes))


def detect_corrected(
    character: Character, codes: Tensor, crop_error: Tensor, half: torch.dtype | None = None
) -> Observation:
    """Draws codes and detects once, differentiably, less the error of a single crop.

    Args:
        character: whose generator draws.
        codes: `[B, L, 512]`.
        crop_error: `[478, 3]` or `[B, 478, 3]` px, from `mean_crop_bias` or `single_crop_error`.
        half: precision of the generator; None is full.
    """
    seen = detect_landmarks(draw_codes(character, codes, half))
    return Observation(seen.pictures, seen.landmarks - crop_error)


def single_crop_error(seen: Observation) -> Tensor:
    """Returns how far landmarks of generated pictures are from averaged ones, `[B, 478, 3]` px.

    It changes with the expression, by as much as gaze moves an iris, so it is taken near each
    result.
    """
    return seen.landmarks - detect_averaged(seen.pictures).landmarks


def mean_crop_bias(character: Character) -> Tensor:
    """Returns the mean error of a single crop over the character's anchors, `[478, 3]` px."""
    anchors = character.anchors.detach()
    some = anchors[:: -(-len(anchors) // _BIAS_ANCHORS)]
    with torch.no_grad():
        return torch.cat(
            [
                single_crop_error(detect_landmarks(draw_codes(character, few)))
                for few in some.split(4)
            ]
        ).mean(0)


class DrivingObserver:
    """Averaged landmarks of driving frames, each detected once.

    Args:
        driving: the frames.
        like: gives device and float type.
    """

    def __init__(self, driving: Driving, like: Tensor) -> None:
        self._driving = driving
        self._like = like
        self._landmarks: dict[int, Tensor] = {}  # by frame number

    def observe(self, numbers: np.ndarray) -> Observation:
        """Returns pictures and averaged landmarks of frames by their numbers."""
        places = np.searchsorted(self._driving.numbers, numbers)
        pictures = self._driving.pictures[torch.from_numpy(places)].to(self._like)
        if not self._landmarks.keys() >= set(numbers):
            landmarks = detect_averaged(pictures).landmarks
            self._landmarks |= zip(numbers, landmarks, strict=True)
        return Observation(pictures, torch.stack([self._landmarks[n] for n in numbers]))

    def keypoints(self, numbers: np.ndarray, batch: int) -> Tensor:
        """Returns keypoints `[K, 86, 3]` px of frames, holding at most `batch` pictures at once."""
        return torch.cat([self.observe(few).keypoints for few in split_batches(numbers, batch)])
