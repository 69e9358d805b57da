"""The measures of a shot: what they mean, when a frame is marked, and the data they are kept in.

A new measure is an entry of `MEASURES` and its value in `core.quality.measure`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from core.solve.latent_space import BETA
from core.solve.latent_track import FrameState

TOP = 5  # most similar pictures of the scan that identity is averaged over (paper, section 4.1)
# A frame stands out if it is this many standard deviations (1.4826 times the median absolute
# deviation) from the shot's median, in shots of at least `FEWEST` frames.
DEVIATIONS = 6.0
FEWEST = 8
# Suggested repairs.
SOLVE_STEPS = 40  # five times those of a first solve
MARGIN = 2  # frames before and after the marked ones that are repaired too
LONGEST = 4  # consecutive frames for which interpolation is suggested


@dataclass(frozen=True)
class Measure:
    """One number per frame, and when it marks a frame."""

    title: str
    unit: str
    meaning: str  # a sentence
    bad: str  # values that mark a frame: "high", "low", "both", or "" for none
    limit: float | None  # absolute limit; None: a frame is marked only if it stands out
    least: float  # distance from the shot's median below which nothing stands out
    reason: str = ""  # for people, where the value is too high
    lower: str = ""  # for people, where it is too low
    # Suggested repair: "interpolate", or what a solve follows again ("all" or one of its parts).
    repair: str = ""


MEASURES: dict[str, Measure] = {
    "landmarks": Measure(
        title="Landmarks",
        unit="px",
        meaning=(
            "Mean distance of the 86 keypoints from the driver's, each facial part "
            "about its own middle, in px of a 192 px face."
        ),
        bad="high",
        limit=4.0,
        least=0.4,
        reason="The face does not follow the driver",
        repair="all",
    ),
    "right_eye": Measure(
        title="Right eye",
        unit="px",
        meaning="The same, of the right eye's lids and iris alone.",
        bad="high",
        limit=2.5,
        least=0.4,
        reason="The right eye's shape differs from the driver's",
        repair="eyes",
    ),
    "left_eye": Measure(
        title="Left eye",
        unit="px",
        meaning="The same, of the left eye's lids and iris alone.",
        bad="high",
        limit=2.5,
        least=0.4,
        reason="The left eye's shape differs from the driver's",
        repair="eyes",
    ),
    "lips": Measure(
        title="Lips",
        unit="px",
        meaning="The same, of the lips alone.",
        bad="high",
        limit=4.0,
        least=0.6,
        reason="The lips' shape differs from the driver's",
        repair="mouth",
    ),
    "head": Measure(
        title="Head outline",
        unit="px",
        meaning="The same, of forehead, chin and sides of the face, in absolute position.",
        bad="high",
        limit=9.0,
        least=1.5,
        reason="The head is not where the driver's is",
        repair="head",
    ),
    "mouth": Measure(
        title="Mouth opening",
        unit="%",
        meaning=(
            "The result's mouth opening less the driver's, in percent of the "
            "distance between the outer eye corners."
        ),
        bad="both",
        limit=8.0,
        least=3.0,
        reason="The mouth is open wider than the driver's",
        lower="The mouth is less open than the driver's",
        repair="mouth",
    ),
    "smile": Measure(
        title="Smile",
        unit="%",
        meaning=(
            "The result's mouth corners above the upper lip, less the driver's, in "
            "percent of the distance between the outer eye corners."
        ),
        bad="both",
        limit=8.0,
        least=3.0,
        reason="It smiles more than the driver",
        lower="It smiles less than the driver",
        repair="mouth",
    ),
    "lids": Measure(
        title="Lids",
        unit="%",
        meaning=(
            "The result's eye opening less the driver's, of that eye that differs more, "
            "in percent of the eye's width."
        ),
        bad="both",
        limit=14.0,
        least=5.0,
        reason="An eye is open wider than the driver's",
        lower="An eye is more shut than the driver's",
        repair="eyes",
    ),
    "gaze": Measure(
        title="Gaze",
        unit="%",
        meaning=(
            "Distance of the irises from where the driver's are, in percent of the eye's width; "
            "none where an eye is shut."
        ),
        bad="high",
        limit=14.0,
        least=5.0,
        reason="It looks elsewhere than the driver",
        repair="eyes",
    ),
    "pose": Measure(
        title="Head pose",
        unit="°",
        meaning="Yaw, pitch and roll from the driver's, together.",
        bad="high",
        limit=8.0,
        least=2.5,
        reason="The head is turned otherwise than the driver's",
        repair="head",
    ),
    "identity": Measure(
        title="Identity",
        unit="",
        meaning=(
            f"Mean cosine with the {TOP} most similar of the scan's frames, as "
            "the generator draws them."
        ),
        bad="low",
        limit=None,
        least=0.02,
        lower="It looks less like the scan",
    ),
    "jitter": Measure(
        title="Jitter",
        unit="px",
        meaning=(
            "Second difference of the keypoints over time, less the driver's own, in px of a "
            "192 px face."
        ),
        bad="high",
        limit=2.0,
        least=0.6,
        reason="It jumps where the driver does not",
        repair="interpolate",
    ),
    "dilation": Measure(
        title="Dilation",
        unit="",
        meaning=(
            "How far the least barycentric weight of the rendered code lies below 0, that is "
            f"outside of the hull of the scan's frames; the solver stays within {BETA}."
        ),
        bad="high",
        limit=1.5 * BETA,
        least=BETA,
        reason="The code lies outside of what the scan spans",
    ),
    "distance": Measure(
        title="Distance to P",
        unit="%",
        meaning=(
            "Distance of the rendered code from the personalised space, in percent of the anchors' "
            "standard deviation; 0 for solved frames."
        ),
        bad="high",
        limit=10.0,
        least=5.0,
        reason="The code is far from the person's own space",
    ),
    "clipping": Measure(
        title="Clipping",
        unit="%",
        meaning="Pixels of the face with a channel at black or white.",
        bad="high",
        limit=5.0,
        least=1.5,
        reason="The face clips to black or white",
    ),
    "sharpness": Measure(
        title="Sharpness",
        unit="x",
        meaning=(
            "Ratio of the face's fine to its coarse detail, relative to the scan's frames as the "
            "generator draws them."
        ),
        bad="low",
        limit=0.6,
        least=0.12,
        lower="It is softer than the scan's faces",
    ),
    "niqe": Measure(
        title="NIQE",
        unit="",
        meaning=(
            "Distance of the picture's statistics from those of good photographs (Mittal et al. "
            "2012); lower is better."
        ),
        bad="high",
        limit=None,
        least=1.5,
        reason="It looks less like a photograph than the rest",
    ),
    "pose_distance": Measure(
        title="Pose distance",
        unit="",
        meaning=(
            "The paper's APD of this frame, times 100: mean square of the head angles' differences."
        ),
        bad="",
        limit=None,
        least=0.01,
    ),
    "expression_distance": Measure(
        title="Expression distance",
        unit="",
        meaning=(
            "The paper's AED of this frame, times 10: mean square of the expression's differences."
        ),
        bad="",
        limit=None,
        least=0.01,
    ),
}

# Curves of driver and result side by side: title, unit, and factor of the measured value.
SIGNALS: dict[str, tuple[str, str, float]] = {
    "jaw": ("Mouth opening", "% of eye distance", 100),
    "smile": ("Smile", "% of eye distance", 100),
    "open_r": ("Right eye opening", "% of eye width", 100),
    "open_l": ("Left eye opening", "% of eye width", 100),
    "gaze_x": ("Gaze, sideways", "% of eye width", 100),
    "gaze_y": ("Gaze, up", "% of eye width", 100),
    "yaw": ("Head yaw", "°", 1),
    "pitch": ("Head pitch", "°", 1),
    "roll": ("Head roll", "°", 1),
}

STATES = {
    FrameState.INTERPOLATED: "The driver's face was not found: interpolated",
    FrameState.HELD: "The driver's face was not found: the nearest solved frame is held",
    FrameState.NO_FACE: "The driver's face was not found in the whole shot",
}


@dataclass(frozen=True)
class Mark:
    """A frame that should be looked at, and why."""

    number: int
    measure: str  # of `MEASURES`, or "state"
    value: float | None
    limit: float | None
    reason: str  # a sentence without a full stop
    excess: float  # distance beyond the limit, relative to the limit: ranks the frames


@dataclass(frozen=True, eq=False)
class Quality:
    """The measures of F frames."""

    numbers: np.ndarray  # [F] int64
    state: np.ndarray  # [F] uint8, FrameState
    cut: np.ndarray  # [F] bool, true on the first frame of a new shot
    measures: Mapping[str, np.ndarray]  # name -> [F] float64; NaN where there is none
    signals: Mapping[str, tuple[np.ndarray, np.ndarray]]  # name -> driver's [F], result's [F]
    bounds: Mapping[str, tuple[float, float]]  # name -> lower and upper limit
    marks: tuple[Mark, ...]  # by frame, the worst mark of each first
    metrics: Mapping[str, str]  # name -> network or proxy, where there is a choice
    jitter: tuple[float, float]  # driver's and result's, px, averaged over the shot
    notes: tuple[str, ...]  # sentences for the user
    cards: Sequence[bytes]  # F JPEGs: driver and result, below them eyes and mouth

    @property
    def marked(self) -> list[int]:
        """Numbers of the marked frames, the worst first."""
        worst: dict[int, float] = {}
        for mark in self.marks:
            worst[mark.number] = worst.get(mark.number, 0) + mark.excess
        return sorted(worst, key=lambda n: (-worst[n], n))
