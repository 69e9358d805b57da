"""The arrays of a shot while it is solved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from core.solve.latent_track import FrameState, LatentTrack, Phase
from core.solve.objective import TERMS

GIVEN = (FrameState.SOLVED, FrameState.REPAIRED)  # frames whose codes their neighbours start from


@dataclass(eq=False)
class ShotState:
    """What solving changes. A track is built from it for each save and at the end.

    The arrays are those of `LatentTrack`. Functions of the solver take and return frames as places
    in them, unlike frame numbers, which may have gaps.
    """

    base: LatentTrack  # all that solving does not change
    phase: Phase
    neutral_offset: np.ndarray
    state: np.ndarray
    alpha: np.ndarray
    delta: np.ndarray
    codes: np.ndarray
    losses: dict[str, np.ndarray]
    quality: dict[str, np.ndarray]

    @classmethod
    def of(cls, track: LatentTrack) -> ShotState:
        """Returns the state that a track holds."""
        return cls(base=track, **_copied(track))

    def copy(self) -> ShotState:
        """Returns a state whose changes leave this one as it is."""
        return replace(self, **_copied(self))

    def build_track(self) -> LatentTrack:
        """Returns the track as far as it is solved; its low-pass is still to be done."""
        return replace(self.base, **_copied(self))

    def store(
        self, frames: np.ndarray, weights: Tensor, anchors: Tensor, terms: dict[str, Tensor]
    ) -> None:
        """Writes results into the arrays.

        Args:
            frames: places of K frames.
            weights: `[K, L, N]`.
            anchors: `[N, 512]`.
            terms: losses and measures, each `[K]`.
        """
        alpha = weights.mean(1)
        self.alpha[frames] = alpha.cpu().numpy()
        self.delta[frames] = (weights - alpha[:, None]).cpu().numpy()
        self.codes[frames] = (weights @ anchors).cpu().numpy()
        for name, values in terms.items():
            table = self.losses if name in TERMS else self.quality
            table[name][frames] = values.cpu().numpy()

    @property
    def numbers(self) -> np.ndarray:
        """[F] int64, frame numbers."""
        return self.base.numbers

    @property
    def cut(self) -> np.ndarray:
        """[F] bool, true on the first frame of a new shot."""
        return self.base.cut

    @property
    def weights(self) -> np.ndarray:
        """[F, L, N] float32, barycentric coordinates of every layer in P+."""
        return self.alpha[:, None] + self.delta


def _copied(source: LatentTrack | ShotState) -> dict[str, Any]:
    """Returns what solving changes, in arrays of its own."""
    copied: dict[str, Any] = {"phase": source.phase}
    for name in ("neutral_offset", "state", "alpha", "delta", "codes"):
        copied[name] = getattr(source, name).copy()
    for table in ("losses", "quality"):
        copied[table] = {name: v.copy() for name, v in getattr(source, table).items()}
    return copied
