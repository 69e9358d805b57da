"""Settings of the solver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from core.solve.latent_track import (
    FrameState,
    LatentTrack,
)
from core.solve.objective import (
    Objective,
)

MAX_RESOLUTION = 256  # of generated pictures in the loss: the landmark network sees 192 px
SAVE_SECONDS = 20.0  # between writes of a partial track
SOLVER = 6  # raised whenever the same settings give other codes: one shot is not solved by two

# Parts of the face that follow the driver or not, by the groups of keypoints that they are.
PARTS = {"eyes": ("right_eye", "left_eye"), "mouth": ("mouth", "outer_lips"), "head": ("head",)}

GIVEN = (FrameState.SOLVED, FrameState.REPAIRED)  # codes that their neighbours may start from
PROPAGATION_SHARE = 0.05  # of all frames; for the progress that is shown


@dataclass(frozen=True)
class SolveSettings:
    """How a shot is solved. Defaults: what worked best (design, section 4)."""

    objective: Objective = field(default_factory=Objective)
    # Where a frame starts: half the codes of its solved neighbours and half those anchors that
    # look like it ("blend"), only the anchors, the frame before (the paper), or the centre of P.
    start: Literal["blend", "retrieval", "previous", "centre"] = "blend"
    noise: float = 0.0  # sigma of Gaussian noise on the start's coordinates
    secants: int = 2  # steps without gradients from there towards the driving keypoints
    steps: int = 7  # of Adam at most, from a start that knows its neighbours
    first_steps: int = 14  # at most, from one that does not
    # Of the solve that finds the shapes at rest. Few: what is fitted away is not left over.
    rest_steps: int = 4
    rate: float = 0.9  # Adam's learning rate: what a step moves the weighted keypoints by, px
    delta_rate: float = 0.8  # that of the rows' own offsets, over the rate
    tolerance: float = 2e-3  # a batch has converged when no frame's loss falls by this share
    patience: int = 4  # within so many steps
    keyframe_every: int = 4  # frames
    batch: int = 8  # frames solved at once; fewer need less memory
    # Sigma of the low-pass over codes, seconds. At .025 the result is as restless as the truth; at
    # .067 blinks and fast mouths are half gone (benchmarks/fidelity.py).
    smoothing: float = 0.025
    smoothing_frames: float | None = None  # the same in frames; goes before it
    # What the two faces' shapes at rest differ by is taken out of the comparison: "auto" compares
    # the heads turned alike, and takes what is left over, on average, when the keyframes have been
    # solved so; a driving frame and a scan frame of faces at rest say it; None leaves it in.
    neutral: Literal["auto"] | tuple[int, int] | None = "auto"
    # Of `PARTS` those that do what the driver does; the others do what they did in the previous
    # track, whose codes are the start then.
    follow: tuple[str, ...] = tuple(PARTS)
    seed: int = 0

    def sigma(self, fps: float) -> float:
        """Of the low-pass over codes, in frames."""
        return self.smoothing * fps if self.smoothing_frames is None else self.smoothing_frames

    @classmethod
    def of(cls, track: LatentTrack) -> SolveSettings:
        """Those that a track was solved with."""
        plain = dict(track.settings)
        plain["objective"] = Objective(**plain.get("objective", {}))
        for name in ("neutral", "follow"):
            if isinstance(plain.get(name), list):
                plain[name] = tuple(plain[name])
        return cls(**plain)

    @classmethod
    def paper(cls) -> SolveSettings:
        """The paper's weights, norms, warm start and low-pass (appendix C.3).

        Optimiser and steps are not in the paper: Adam, and more steps, for there is no help.
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
