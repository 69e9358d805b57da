"""Drawing a character and observing what it shows."""

from __future__ import annotations

import torch
from torch import Tensor

from core.face.landmarks import Observation, detect_averaged, detect_landmarks
from core.personalize.character import Character
from core.solve.settings import MAX_RESOLUTION

_BIAS_ANCHORS = 16  # are enough to know a mesh's bias by


def mean_crop_bias(character: Character) -> Tensor:
    """What a single look at the character is off, on average, `[478, 3]` px."""
    anchors = character.anchors.detach()
    some = anchors[:: -(-len(anchors) // _BIAS_ANCHORS)]
    with torch.no_grad():
        return torch.cat(
            [
                single_crop_error(detect_landmarks(draw_codes(character, few)))
                for few in some.split(4)
            ]
        ).mean(0)


def single_crop_error(seen: Observation) -> Tensor:
    """What a glance at generated pictures is still off a close look, `[B, 478, 3]` px.

    Each step of a search looks once. How much that is off changes with what a face does, by as much
    as gaze moves an iris, so it is taken near each result.
    """
    return seen.landmarks - detect_averaged(seen.pictures).landmarks


def draw_codes(character: Character, codes: Tensor, half: torch.dtype | None = None) -> Tensor:
    """Pictures `[B, 3, R, R]` of codes `[B, L, 512]`, no larger than a mesh needs them."""
    generator = character.generator
    size = min(MAX_RESOLUTION, generator.architecture.resolution)
    return generator.synthesis(codes, stop_at=size, half=half, half_from=4)
