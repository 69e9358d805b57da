"""What all batches of a solve share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from core.face.keypoints import KEYPOINTS
from core.face.landmarks import Observation
from core.generator import Generator
from core.personalize.character import Character
from core.solve.objective import Objective, compared, point_weights
from core.solve.observe import mean_crop_bias, observe_codes
from core.solve.settings import SolveSettings

# Adam steps along the principal directions of the weights, each divided by what it moves keypoints
# by. A direction of less than this share of their variance is lengthened no further.
_FLAT = 0.015

# By generator, while it is loaded: the anchors that were observed last, and what they showed.
_observed: WeakKeyDictionary[Generator, tuple[Tensor, Tensor, Observation]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class SolveContext:
    """A character of N anchors, as the search needs it. Nothing in it changes."""

    character: Character
    settings: SolveSettings
    anchors: Tensor  # [N, 512], without gradient
    crop_bias: Tensor  # [478, 3] px, mean error of a single crop
    keypoints: Tensor  # [N, 86, 3] px, the anchors', less that error
    centre: Observation  # of the centre of P: I_c of eq. 4
    secants: Tensor  # [258, N]: weighted differences of keypoints -> change of the weights
    directions: Tensor  # [N, N], in columns; each moves the weighted keypoints by 1 px at most


class Target(NamedTuple):
    """What B generated pictures are compared with."""

    driving: Observation  # averaged landmarks
    neutral_offset: Tensor  # [86, 3] px

    @property
    def keypoints(self) -> Tensor:
        """[B, 86, 3] px: what the generated pictures should show."""
        return self.driving.keypoints + self.neutral_offset


def prepare(character: Character, settings: SolveSettings) -> SolveContext:
    """Observes a character's anchors and derives the steps of the search from them."""
    anchors = character.anchors.detach()
    crop_bias, centre = _observe_anchors(character)
    keypoints = character.keypoints.to(anchors) - crop_bias[list(KEYPOINTS)]
    known = weighted_differences(keypoints - keypoints.mean(0), settings.objective)  # [N, 258]
    # Ridge regression on the anchors.
    gram = known.T @ known
    ridge = gram + gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
    secants = torch.linalg.solve(ridge, known.T)
    values, directions = torch.linalg.eigh(known @ known.T)
    values = values.clamp(min=0)
    directions = directions / (values + _FLAT * values.sum()).clamp(min=1).sqrt()
    return SolveContext(
        character, settings, anchors, crop_bias, keypoints, centre, secants, directions
    )


def _observe_anchors(character: Character) -> tuple[Tensor, Observation]:
    """Returns the mean error of a single crop, and what the centre of P shows.

    Later solves of a character that stays loaded get them at once: an artist solves parts of a shot
    again and again.
    """
    kept = _observed.get(character.generator)
    if kept is None or kept[0] is not character.anchors:
        with torch.no_grad():
            centre = observe_codes(character, character.anchors.mean(0, keepdim=True))
        kept = character.anchors, mean_crop_bias(character), centre
        _observed[character.generator] = kept
    return kept[1:]


def weighted_differences(keypoints: Tensor, objective: Objective) -> Tensor:
    """Returns differences of keypoints `[B, 86, 3]` as eq. 2 weights them, `[B, 258]`."""
    weights = point_weights(objective).to(keypoints)
    return (compared(keypoints, objective) * weights.sqrt()[:, None]).flatten(1)
