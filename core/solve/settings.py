"""Settings of the solver.

What the paper leaves open is decided by `SolveSettings`; `SolveSettings.paper()` is its literal
reading.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from core.solve.latent_track import LatentTrack
from core.solve.objective import Objective

MAX_RESOLUTION = 256  # of generated pictures in the loss: the landmark network sees 192 px

# Parts of the face that follow the driver or not, and their groups of keypoints.
PARTS = {"eyes": ("right_eye", "left_eye"), "mouth": ("mouth", "outer_lips"), "head": ("head",)}


@dataclass(frozen=True)
class SolveSettings:
    """How a shot is solved. The defaults worked best (benchmarks/fidelity.py)."""

    objective: Objective = field(default_factory=Objective)
    # Initial guess: half the codes of the solved neighbours and half those of the anchors that look
    # like the frame ("blend"), only the anchors, the frame before (the paper), or the centre of P.
    start: Literal["blend", "retrieval", "previous", "centre"] = "blend"
    noise: float = 0.0  # sigma of Gaussian noise on the initial coordinates
    secants: int = 2  # gradient-free steps from there towards the driving keypoints
    steps: int = 7  # of Adam at most, for frames whose initial guess knows their neighbours
    first_steps: int = 14  # at most, for frames whose initial guess does not
    # Of the neutral pass. Few: what is fitted away is missing from the residual.
    neutral_steps: int = 4
    rate: float = 0.9  # Adam's learning rate: what a step moves the weighted keypoints by, px
    delta_rate: float = 0.8  # rate of the layers' own offsets, as a factor of `rate`
    tolerance: float = 2e-3  # a batch has converged when no frame's loss falls by this share
    patience: int = 4  # steps within which it would have to
    keyframe_every: int = 4  # frames
    batch: int = 8  # frames solved at once; fewer need less memory
    # Sigma of the low-pass over codes, seconds. At .025 the result jitters as much as the truth; at
    # .067 blinks and fast mouths are half gone (benchmarks/fidelity.py).
    smoothing: float = 0.025
    smoothing_frames: float | None = None  # the same in frames; takes precedence over seconds
    # How the shapes of the two neutral faces are taken out of the comparison. "auto": a neutral
    # pass solves the keyframes with the heads compared at equal turns, and what remains on average
    # is the difference. A pair: a driving frame and a scan frame that show neutral faces. None: the
    # difference stays in.
    neutral: Literal["auto"] | tuple[int, int] | None = "auto"
    # Those of `PARTS` that follow the driver. The others stay as in the previous track, whose codes
    # are the initial guess then.
    follow: tuple[str, ...] = tuple(PARTS)
    seed: int = 0

    @property
    def keeps_parts(self) -> bool:
        """Whether some parts of the face stay as in the previous track."""
        return set(self.follow) < set(PARTS)

    def sigma(self, fps: float) -> float:
        """Returns the sigma of the low-pass over codes, in frames."""
        return self.smoothing * fps if self.smoothing_frames is None else self.smoothing_frames

    @classmethod
    def of(cls, track: LatentTrack) -> SolveSettings:
        """Returns the settings that a track was solved with."""
        plain = dict(track.settings)
        plain["objective"] = Objective(**plain.get("objective", {}))
        for name in ("neutral", "follow"):
            if isinstance(plain.get(name), list):
                plain[name] = tuple(plain[name])
        return cls(**plain)

    @classmethod
    def paper(cls) -> SolveSettings:
        """Returns the paper's weights, norms, warm start and low-pass (appendix C.3).

        The paper names neither optimiser nor steps: Adam, with more steps than by default, since
        there are no secants.
        """
        return cls(
            Objective.paper(),
            start="previous",
            noise=0.05,
            smoothing_frames=2.0,
            neutral=None,
            secants=0,
            steps=30,
            first_steps=40,
            rate=0.2,
        )
