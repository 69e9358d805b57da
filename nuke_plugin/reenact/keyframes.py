"""Writes curves as the protocol's keyframes."""

from typing import List, Sequence

TOLERANCE = 1e-5  # how far keyframes may be from the curve that they stand for
MAX_KEYS = 150  # keys that fit into one text, whatever their numbers


def keyframes(
    frames: Sequence[int], values: Sequence[float], tolerance: float = TOLERANCE
) -> List[str]:
    """Writes values at frames as the protocol's keyframes.

    Args:
        frames: increasing.
        values: one for each frame.
        tolerance: how far the straight lines between the keys may be from the values.

    Returns:
        Texts whose values add up to the given ones; a single one if it holds all keys.
    """
    corners = _corners(frames, values, tolerance)
    if len({values[i] for i in corners}) == 1:
        return [f"{values[0]:.6g}"]
    texts, first = [], 0
    for start in range(0, len(corners), MAX_KEYS):
        part = corners[start : start + MAX_KEYS]
        keys = {frames[i]: values[i] for i in (first, *part)}
        if start:
            keys[frames[first] - 1] = 0.0
        if start + MAX_KEYS < len(corners):
            keys[frames[part[-1]] + 1] = 0.0
        texts.append(",".join(f"{number}:{keys[number]:.6g}" for number in sorted(keys)))
        first = part[-1] + 1
    return texts


def _corners(frames: Sequence[int], values: Sequence[float], tolerance: float) -> List[int]:
    """Returns indices of values between which straight lines are close to all others."""
    kept, low, high = [0], float("-inf"), float("inf")
    for i in range(1, len(frames)):
        base = kept[-1]
        run, rise = frames[i] - frames[base], values[i] - values[base]
        if not low <= rise / run <= high:
            base = i - 1
            kept.append(base)
            run, rise = frames[i] - frames[base], values[i] - values[base]
            low, high = float("-inf"), float("inf")
        low, high = max(low, (rise - tolerance) / run), min(high, (rise + tolerance) / run)
    return kept + [len(frames) - 1] * (len(frames) > 1)
