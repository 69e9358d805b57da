"""Drawing styles that need no model: functions from picture to picture, by OpenCV.

The programs take and return aligned pictures `[R, R, 3]` float32, sRGB in 0..1. They are
deterministic, and their sizes are fractions of the picture's side. All thresholds are soft, so that
a small change of the picture is a small change of the result, which a generator can learn.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor

_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)


def sketch(rgb: np.ndarray) -> np.ndarray:
    """Pencil on paper: lines where the picture is darker than around, and a little shading."""
    grey = rgb @ _LUMA
    line = np.clip((grey + 0.02) / (_blur(grey, 0.025) + 0.02), 0, 1) ** 2.2
    shade = 0.72 + 0.28 * _ramp(_blur(grey, 0.012), 0.1, 0.6)
    return _between((0.16, 0.17, 0.22), (0.97, 0.95, 0.90), line * shade)


def charcoal(rgb: np.ndarray) -> np.ndarray:
    """Charcoal: broad dark tones, smudged, and strong outlines."""
    grey = rgb @ _LUMA
    tone = _ramp(_blur(grey, 0.02), 0.06, 0.7)
    # Extended difference of Gaussians (Winnemoeller et al. 2012), with a soft threshold.
    edge = 1 - _ramp(-(_blur(grey, 0.006) - 0.97 * _blur(grey, 0.012)), -0.01, 0.03)
    return _between((0.05, 0.05, 0.05), (0.88, 0.87, 0.85), (0.25 + 0.75 * tone) * edge)


def posterise(rgb: np.ndarray) -> np.ndarray:
    """A print in four tones: flat areas of strong colour, dark outlines."""
    side = rgb.shape[0]
    flat = cv2.bilateralFilter(rgb, -1, 0.12, 0.014 * side)
    flat = cv2.bilateralFilter(flat, -1, 0.12, 0.014 * side)
    lab: np.ndarray = cv2.cvtColor(flat, cv2.COLOR_RGB2LAB)
    steps = (lab[..., 0] / 100) ** 0.8 * 4
    low = np.floor(steps)
    lab[..., 0] = (low + _ramp(steps - low, 0.35, 0.65)) * 25
    lab[..., 1:] *= 1.6
    grey = flat @ _LUMA
    edge = 1 - _ramp(_blur(grey, 0.016) - _blur(grey, 0.008), 0.01, 0.05)
    printed = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    return np.clip(printed * (0.25 + 0.75 * edge[..., None]), 0, 1)


PROGRAMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sketch": sketch,
    "posterise": posterise,
    "charcoal": charcoal,
}


def run_program(name: str, pictures: Tensor) -> Tensor:
    """Runs a pixel program on pictures.

    Args:
        name: of `core.stylize.pixel_programs.PROGRAMS`.
        pictures: `[B, 3, R, R]` in [-1, 1], on the CPU.

    Returns:
        `[B, 3, R, R]` float16 in [-1, 1].

    Raises:
        KeyError: no program has this name.
    """
    program = PROGRAMS[name]
    result = torch.empty_like(pictures, dtype=torch.float16)
    for i, picture in enumerate(pictures):
        rgb = picture.float().permute(1, 2, 0).numpy() / 2 + 0.5
        result[i] = torch.from_numpy(program(np.ascontiguousarray(rgb))).permute(2, 0, 1) * 2 - 1
    return result


def _blur(grey: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; sigma in fractions of the picture's side."""
    return cv2.GaussianBlur(grey, (0, 0), sigma * grey.shape[0], borderType=cv2.BORDER_REFLECT)


def _ramp(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Smoothstep: 0 below `low`, 1 above `high`."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _between(
    dark: tuple[float, float, float], light: tuple[float, float, float], tone: np.ndarray
) -> np.ndarray:
    """Maps tones `[R, R]` in 0..1 to colours `[R, R, 3]` between two."""
    a, b = np.array(dark, np.float32), np.array(light, np.float32)
    return a + (b - a) * tone[..., None].astype(np.float32)
