"""The measures of a shot and what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from core.solve.latent_space import BETA
from core.solve.latent_track import FrameState

TOP = 5  # most similar pictures of the scan that identity is meant over (paper, section 4.1)
# A frame stands out where it is this many standard deviations (1.4826 times the median absolute
# deviation) from the shot's median, in shots of at least so many frames.
DEVIATIONS = 6.0
FEWEST = 8
SOLVE_STEPS = 40  # of a suggested repair: five times those of a first solve
MARGIN = 2  # frames that a suggested repair reaches beyond what is wrong, either way
LONGEST = 4  # wrong frames on end that interpolation is suggested for


@dataclass(frozen=True)
class Measure:
    """What one number says of a frame."""

    title: str
    unit: str
    meaning: str  # a sentence
    bad: str  # "high", "low", "both", or "" for what is only shown
    limit: float | None  # beyond which a frame is marked anyway; None: only where it stands out
    least: float  # from the shot's median, within which nothing stands out
    reason: str  # for people, where it is too high
    lower: str = ""  # the same, where it is too low
    repair: str = (
        ""  # of `core.edit.repair`'s solve: what is to be followed again; or "interpolate"
    )


MEASURES: dict[str, Measure] = {
    "landmarks": Measure(
        "Landmarks",
        "px",
        "Mean distance of the 86 keypoints from the driver's, each facial part "
        "about its own middle, in px of a 192 px face.",
        "high",
        4.0,
        0.4,
        "The face does not follow the driver",
        repair="all",
    ),
    "right_eye": Measure(
        "Right eye",
        "px",
        "The same, of the right eye's lids and iris alone.",
        "high",
        2.5,
        0.4,
        "The right eye's shape differs from the driver's",
        repair="eyes",
    ),
    "left_eye": Measure(
        "Left eye",
        "px",
        "The same, of the left eye's lids and iris alone.",
        "high",
        2.5,
        0.4,
        "The left eye's shape differs from the driver's",
        repair="eyes",
    ),
    "lips": Measure(
        "Lips",
        "px",
        "The same, of the lips alone.",
        "high",
        4.0,
        0.6,
        "The lips' shape differs from the driver's",
        repair="mouth",
    ),
    "head": Measure(
        "Head outline",
        "px",
        "The same, of forehead, chin and sides of the face, in absolute position.",
        "high",
        9.0,
        1.5,
        "The head is not where the driver's is",
        repair="head",
    ),
    "mouth": Measure(
        "Mouth opening",
        "%",
        "The result's mouth opening less the driver's, in percent of the "
        "distance between the outer eye corners.",
        "both",
        8.0,
        3.0,
        "The mouth is open wider than the driver's",
        "The mouth is less open than the driver's",
        "mouth",
    ),
    "smile": Measure(
        "Smile",
        "%",
        "The result's mouth corners above the upper lip, less the driver's, in "
        "percent of the distance between the outer eye corners.",
        "both",
        8.0,
        3.0,
        "It smiles more than the driver",
        "It smiles less than the driver",
        "mouth",
    ),
    "lids": Measure(
        "Lids",
        "%",
        "The result's eye opening less the driver's, of that eye that differs more, "
        "in percent of the eye's width.",
        "both",
        14.0,
        5.0,
        "An eye is open wider than the driver's",
        "An eye is more shut than the driver's",
        "eyes",
    ),
    "gaze": Measure(
        "Gaze",
        "%",
        "How far apart the irises are from where the driver's are, in percent of the "
        "eye's width; not where an eye is shut.",
        "high",
        14.0,
        5.0,
        "It looks elsewhere than the driver",
        repair="eyes",
    ),
    "pose": Measure(
        "Head pose",
        "°",
        "Yaw, pitch and roll from the driver's, together.",
        "high",
        8.0,
        2.5,
        "The head is turned otherwise than the driver's",
        repair="head",
    ),
    "identity": Measure(
        "Identity",
        "",
        f"Mean cosine with the {TOP} most similar of the scan's frames, as "
        "the generator draws them.",
        "low",
        None,
        0.02,
        "",
        "It looks less like the scan",
    ),
    "jitter": Measure(
        "Jitter",
        "px",
        "How far the keypoints leave the middle of the frames before and after, "
        "less the driver's own, in px of a 192 px face.",
        "high",
        2.0,
        0.6,
        "It jumps where the driver does not",
        repair="interpolate",
    ),
    "dilation": Measure(
        "Dilation",
        "",
        "How far below 0 the least barycentric weight of the rendered code is: "
        f"what the scan's frames span is left, beyond {BETA} the solver never goes.",
        "high",
        1.5 * BETA,
        BETA,
        "The code lies outside of what the scan spans",
    ),
    "distance": Measure(
        "Distance to P",
        "%",
        "How far the rendered code is from the personalised space, in "
        "percent of the anchors' spread; 0 for what was solved.",
        "high",
        10.0,
        5.0,
        "The code is far from the person's own space",
    ),
    "clipping": Measure(
        "Clipping",
        "%",
        "Pixels of the face with a channel at black or white.",
        "high",
        5.0,
        1.5,
        "The face clips to black or white",
    ),
    "sharpness": Measure(
        "Sharpness",
        "x",
        "Fine detail of the face over its coarse detail, as a share of the "
        "scan's frames', as the generator draws them.",
        "low",
        0.6,
        0.12,
        "",
        "It is softer than the scan's faces",
    ),
    "niqe": Measure(
        "NIQE",
        "",
        "How far the picture's statistics are from a good photograph's (Mittal et al. "
        "2012); lower is better.",
        "high",
        None,
        1.5,
        "It looks less like a photograph than the rest",
    ),
    "pose_distance": Measure(
        "Pose distance",
        "",
        "The paper's APD of this frame, times 100: mean square of the head angles' differences.",
        "",
        None,
        0.01,
        "",
    ),
    "expression_distance": Measure(
        "Expression distance",
        "",
        "The paper's AED of this frame, times 10: mean square of the expression's differences.",
        "",
        None,
        0.01,
        "",
    ),
}

# What driver and result do, to be seen side by side: title, unit, and what it is multiplied by.
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
    """A frame that somebody should look at, and why."""

    number: int
    measure: str  # of `MEASURES`, or "state"
    value: float | None
    limit: float | None
    reason: str  # a sentence without its full stop
    excess: float  # how far beyond the limit, over how far it usually may be: what is worst


@dataclass(frozen=True, eq=False)
class Quality:
    """Measures of F frames."""

    numbers: np.ndarray  # [F] int64
    state: np.ndarray  # [F] uint8, FrameState
    cut: np.ndarray  # [F] bool, true on the first frame of a new shot
    measures: Mapping[str, np.ndarray]  # of `MEASURES` -> [F] float64; NaN where there is none
    signals: Mapping[str, tuple[np.ndarray, np.ndarray]]  # of `SIGNALS` -> driver's, result's
    bounds: Mapping[str, tuple[float, float]]  # measure -> below and above which frames are marked
    marks: tuple[Mark, ...]  # by frame, the worst first
    metrics: Mapping[str, str]  # measure -> by which network or proxy, where there is a choice
    jitter: tuple[float, float]  # the driver's and the result's, px, meant over the shot
    notes: tuple[str, ...]  # sentences
    cards: Sequence[bytes]  # F JPEGs for people: driver and result, below them eyes and mouth

    @property
    def marked(self) -> list[int]:
        """Frames with a mark, the worst first."""
        worst: dict[int, float] = {}
        for mark in self.marks:
            worst[mark.number] = worst.get(mark.number, 0) + mark.excess
        return sorted(worst, key=lambda n: (-worst[n], n))
