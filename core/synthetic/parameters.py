"""The performer's parameters: one flat vector of named, bounded numbers.

Head units are 10 cm, x to the image's right, y up, z to the camera; "left" and "right" are the
subject's, so the subject's left eye is the one on the image's right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr


@dataclass(frozen=True)
class Parameter:
    """One entry of the parameter vector."""

    name: str
    low: float
    high: float
    group: str  # "expression" | "pose" | "identity" | "look" | "light" | "background"
    meaning: str  # what the value is


def _group(group: str, *rows: tuple[str, float, float, str]) -> tuple[Parameter, ...]:
    return tuple(Parameter(name, low, high, group, meaning) for name, low, high, meaning in rows)


PARAMETERS: tuple[Parameter, ...] = (
    *_group(
        "expression",
        ("jaw", 0, 1, "jaw opening, 0 shut"),
        ("smile", -0.3, 1, "mouth corners out and up; below 0 down"),
        ("mouth_skew", -1, 1, "one-sided smile; above 0 the subject's left corner is higher"),
        ("teeth", 0, 1, "lips drawn apart while the jaw stays"),
        ("pucker", 0, 1, "lips rounded and pushed forward"),
        ("puff", 0, 1, "cheeks blown up"),
        ("blink_l", 0, 1, "subject's left eye, 1 shut"),
        ("blink_r", 0, 1, "subject's right eye, 1 shut"),
        ("gaze_x", -1, 1, "eyes to the image's right"),
        ("gaze_y", -1, 1, "eyes up"),
        ("brow_raise", -0.35, 1, "both brows up"),
        ("brow_skew", -1, 1, "above 0 the subject's left brow is the higher one"),
        ("frown", 0, 1, "brows drawn together and down"),
    ),
    *_group(
        "pose",
        ("yaw", -40, 40, "degrees, above 0 the nose turns to the image's right"),
        ("pitch", -20, 20, "degrees, above 0 the nose sinks"),
        ("roll", -15, 15, "degrees, above 0 the crown leans to the image's left"),
    ),
    *_group(
        "identity",
        ("head_w", 0.93, 1.08, "skull width"),
        ("head_h", 0.92, 1.10, "skull height above the eyes"),
        ("face_w", 0.92, 1.09, "width across the cheekbones"),
        ("face_len", 0.92, 1.08, "height from eyes to chin"),
        ("jaw_w", 0.86, 1.14, "width of the jaw's angle"),
        ("chin", -1, 1, "chin back or forward"),
        ("chin_w", 0.7, 1.35, "chin width"),
        ("cheek", 0, 1, "cheekbone relief"),
        ("fat", 0, 1, "fullness of the lower face"),
        ("brow_ridge", 0, 1, "relief of the brow ridge"),
        ("eye_size", 0.9, 1.14, "eye opening"),
        ("eye_dist", 0.94, 1.06, "distance between the eyes"),
        ("eye_tilt", -0.06, 0.12, "outer corners up"),
        ("lid_crease", 0, 1, "strength of the upper lid's fold"),
        ("brow_th", 0.6, 1.5, "brow thickness"),
        ("brow_arch", -0.3, 1, "brow arch"),
        ("brow_y", -0.025, 0.03, "brow height"),
        ("nose_w", 0.78, 1.3, "width of the nose's wings"),
        ("nose_l", 0.9, 1.1, "nose length"),
        ("nose_p", 0.75, 1.2, "how far the nose stands out"),
        ("nose_bridge", -1, 1, "bridge from scooped to humped"),
        ("mouth_w", 0.86, 1.14, "mouth width"),
        ("lip_u", 0.65, 1.4, "upper lip height"),
        ("lip_l", 0.7, 1.4, "lower lip height"),
        ("ear_size", 0.85, 1.15, "ear size"),
        ("ear_out", 0, 1, "how far the ears stand out"),
        ("neck_w", 0.86, 1.14, "neck width"),
        ("age", 0, 1, "lines of forehead, eyes and cheeks"),
    ),
    *_group(
        "look",
        ("skin", 0, 1, "skin from light to dark"),
        ("skin_hue", -1, 1, "skin from rosy to yellow"),
        ("skin_rough", 0, 1, "pores and uneven tone"),
        ("gloss", 0, 1, "shine of the skin"),
        ("blush", 0, 1, "red of cheeks and nose"),
        ("freckles", 0, 1, "freckles"),
        ("eye_hue", 0, 1, "iris: blue, green, hazel, brown, dark brown"),
        ("eye_shade", 0, 1, "iris from dark to light"),
        ("brow_dark", 0.4, 1, "density of the brows"),
        ("lip_col", 0, 1, "lip hue: rose, red, wine, coral"),
        ("lip_sat", 0, 1, "lip paint over the natural colour"),
        ("hair_hue", 0, 1, "hair: blond, copper, brown, black"),
        ("hair_dark", 0, 1, "hair shade"),
        ("hair_grey", 0, 1, "greyed hair, brows and beard"),
        ("hair_amount", 0, 1, "from shaved to a full head"),
        ("hair_line", -0.06, 0.12, "hairline height over the forehead"),
        ("hair_vol", 0.03, 0.17, "how far the hair stands off the skull"),
        ("hair_long", 0, 1, "from cropped to over the shoulders"),
        ("hair_fringe", 0, 1, "fringe over the forehead"),
        ("hair_curl", 0, 1, "from straight to curly"),
        ("hair_part", -1, 1, "where the hair is parted"),
        ("beard", 0, 1, "from shaven through stubble to a full beard"),
        ("moustache", 0, 1, "moustache"),
        ("glasses", 0, 1, "0 none; between, the frame is translucent"),
        ("glasses_shape", 0, 1, "from round to rectangular"),
        ("glasses_dark", 0, 1, "frame from thin gold wire to thick black"),
        ("cloth_r", 0.05, 0.85, "clothes, sRGB red (muted)"),
        ("cloth_g", 0.05, 0.85, "clothes, sRGB green (muted)"),
        ("cloth_b", 0.05, 0.85, "clothes, sRGB blue (muted)"),
        ("collar", 0, 1, "from a low round neck to a high one"),
    ),
    *_group(
        "light",
        ("light_az", -1, 1, "key light from the image's right; 1 is 60 degrees"),
        ("light_el", 0, 0.9, "key light's elevation in radians"),
        ("light_amb", 0.3, 0.7, "share of the ambient light"),
        ("light_warm", -1, 1, "key light from cool to warm"),
    ),
    *_group(
        "background",
        ("bg_r", 0.1, 0.85, "backdrop, sRGB red (muted)"),
        ("bg_g", 0.1, 0.85, "backdrop, sRGB green (muted)"),
        ("bg_b", 0.1, 0.85, "backdrop, sRGB blue (muted)"),
        ("bg_gradient", 0, 1, "from flat to shaded"),
        ("bg_clutter", 0, 1, "from nothing to a room full of blurred things"),
        ("bg_layout", -1, 1, "where those things stand"),
    ),
)
NAMES: tuple[str, ...] = tuple(p.name for p in PARAMETERS)
INDEX: dict[str, int] = {name: i for i, name in enumerate(NAMES)}
LOW = np.array([p.low for p in PARAMETERS], np.float64)
HIGH = np.array([p.high for p in PARAMETERS], np.float64)
MOTION = np.array([p.group in ("expression", "pose") for p in PARAMETERS])

# Signed about the subject's midline: a mirrored picture negates them.
_ODD = [
    INDEX[n]
    for n in (
        "mouth_skew",
        "gaze_x",
        "brow_skew",
        "yaw",
        "roll",
        "hair_part",
        "light_az",
        "bg_layout",
    )
]

# name: (share of draws at the low end, share at the high end); the rest is uniform between them.
_RESTING = {
    "jaw": (0.3, 0.0),
    "teeth": (0.25, 0.0),
    "pucker": (0.75, 0.0),
    "puff": (0.85, 0.0),
    "blink_l": (0.5, 0.08),
    "blink_r": (0.5, 0.08),
    "frown": (0.6, 0.0),
    "age": (0.25, 0.0),
    "freckles": (0.6, 0.0),
    "hair_grey": (0.6, 0.05),
    "hair_amount": (0.04, 0.75),
    "hair_long": (0.45, 0.05),
    "hair_fringe": (0.5, 0.0),
    "hair_curl": (0.4, 0.0),
    "beard": (0.55, 0.0),
    "moustache": (0.65, 0.0),
    "glasses": (0.68, 0.22),
    "bg_clutter": (0.65, 0.0),
    "lip_sat": (0.3, 0.0),
}
# Normally distributed about the middle, clipped: standard deviation as a share of the half range.
_BELL = {
    "yaw": 0.4,
    "pitch": 0.36,
    "roll": 0.3,
    "mouth_skew": 0.45,
    "brow_skew": 0.35,
    "eye_tilt": 0.4,
    "head_w": 0.45,
    "head_h": 0.45,
    "face_w": 0.45,
    "face_len": 0.45,
    "jaw_w": 0.45,
    "light_az": 0.45,
    "light_warm": 0.45,
    "nose_bridge": 0.45,
}


def check(params: np.ndarray, ndim: int | None = None) -> np.ndarray:
    """Checks parameters and converts them to float64.

    Args:
        params: `[..., P]`.
        ndim: axes that they must have; None: any number.

    Returns:
        `[..., P]` float64.

    Raises:
        ValueError: another last axis or number of axes, or a value that is not finite.
    """
    p = np.asarray(params, np.float64)
    if p.ndim == 0 or p.shape[-1] != len(PARAMETERS):
        raise ValueError(
            f"The performer takes {len(PARAMETERS)} parameters on the last axis; this "
            f"array has shape {p.shape}. Start from neutral() and set by INDEX."
        )
    if ndim is not None and p.ndim != ndim:
        raise ValueError(f"Expected {ndim} axes, got shape {p.shape}; pass one vector or clip.")
    if not np.isfinite(p).all():
        bad = NAMES[int(np.argwhere(~np.isfinite(p))[0, -1])]
        raise ValueError(f"Parameter '{bad}' is not a finite number; replace NaN and infinity.")
    return p


def from_normal(normal: np.ndarray) -> np.ndarray:
    """Maps standard normals to parameters, each nondecreasing in its own normal.

    Neutral values (jaw shut, eyes open, no glasses) are common, so that a generator distilled from
    such draws knows the neutral face best.

    Args:
        normal: `[..., P]`.

    Returns:
        `[..., P]` float64 within the bounds.

    Raises:
        ValueError: a wrong last axis, or a value that is not finite.
    """
    z = check(normal)
    u = ndtr(z)
    for name, (low, high) in _RESTING.items():
        i = INDEX[name]
        u[..., i] = np.clip((u[..., i] - low) / (1 - low - high), 0, 1)
    for name, sigma in _BELL.items():
        i = INDEX[name]
        u[..., i] = np.clip(0.5 + 0.5 * sigma * z[..., i], 0, 1)
    return LOW + u * (HIGH - LOW)


def neutral() -> np.ndarray:
    """Returns an average adult with a neutral face, looking into the camera, `[P]`."""
    p = 0.5 * (LOW + HIGH)
    p[MOTION] = 0.0
    for name, value in {
        "age": 0.1,
        "freckles": 0,
        "skin": 0.22,
        "hair_grey": 0,
        "hair_amount": 1,
        "hair_hue": 0.6,
        "hair_line": 0.0,
        "hair_vol": 0.09,
        "hair_long": 0,
        "hair_fringe": 0.15,
        "hair_curl": 0.1,
        "hair_part": 0.4,
        "beard": 0,
        "moustache": 0,
        "glasses": 0,
        "lip_sat": 0.1,
        "fat": 0.35,
        "light_az": -0.35,
        "bg_clutter": 0,
        "cloth_r": 0.2,
        "cloth_g": 0.27,
        "cloth_b": 0.36,
    }.items():
        p[INDEX[name]] = value
    return p


def mirror(params: np.ndarray) -> np.ndarray:
    """Returns the parameters of the mirrored picture, left and right exchanged.

    Args:
        params: `[..., P]`.

    Returns:
        `[..., P]` float64.

    Raises:
        ValueError: as `check`.
    """
    p = check(params).copy()
    p[..., _ODD] *= -1
    eyes = [INDEX["blink_l"], INDEX["blink_r"]]
    p[..., eyes] = p[..., eyes[::-1]]
    return p
