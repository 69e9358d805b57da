"""A measured shot as key figures, JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import numpy as np

from core.media.numbering import format_numbers
from core.quality.definitions import MEASURES, Quality
from core.solve.latent_track import FrameState


def summary(quality: Quality) -> dict[str, Any]:
    """Returns the shot's key figures: those of the paper's Table 1, and the marked frames."""

    def mean(name: str) -> float | None:
        values = quality.measures[name]
        finite = values[np.isfinite(values)]
        return round(float(finite.mean()), 4) if len(finite) else None

    marked = quality.marked
    driver, result = quality.jitter
    return {
        "frames": len(quality.numbers),
        "range": format_numbers(quality.numbers.tolist()),
        "marked": len(marked),
        "worst": marked[:1],
        "ID": mean("identity"),
        "APD": mean("pose_distance"),
        "AED": mean("expression_distance"),
        "NIQE": mean("niqe"),
        "landmarks": mean("landmarks"),
        "jitter": round(result / driver, 3) if driver > 0 else None,
    }


def plain(quality: Quality) -> dict[str, Any]:
    """Returns everything but the pictures as JSON values; null where there is no number."""

    def numbers(values: np.ndarray) -> list[float | None]:
        return [round(float(v), 6) if math.isfinite(v) else None for v in values]

    signals = quality.signals.items()
    return {
        "frames": quality.numbers.tolist(),
        "state": [FrameState(int(s)).name.lower() for s in quality.state],
        "measures": {name: numbers(values) for name, values in quality.measures.items()},
        "units": {name: MEASURES[name].unit for name in quality.measures},
        "titles": {name: MEASURES[name].title for name in quality.measures},
        "limits": {name: numbers(np.array(pair)) for name, pair in quality.bounds.items()},
        "signals": {n: {"driver": numbers(a), "result": numbers(b)} for n, (a, b) in signals},
        "marks": [
            {
                "frame": m.number,
                "measure": m.measure,
                "value": m.value,
                "limit": m.limit,
                "reason": m.reason,
            }
            for m in quality.marks
        ],
        "metrics": dict(quality.metrics),
        "notes": list(quality.notes),
        "summary": summary(quality),
    }


def as_csv(quality: Quality) -> str:
    """Returns a line per frame: its number, its state, every measure, and why it is marked."""
    text = io.StringIO()
    out = csv.writer(text)
    titles = [f"{n} ({m.unit})" if m.unit else n for n, m in MEASURES.items()]
    out.writerow(["frame", "state", *titles, "marks"])
    for i, number in enumerate(quality.numbers):
        values = [quality.measures[name][i] for name in MEASURES]
        why = "; ".join(m.reason for m in quality.marks if m.number == number)
        state = FrameState(int(quality.state[i])).name.lower()
        out.writerow([number, state, *(f"{v:.6g}" if np.isfinite(v) else "" for v in values), why])
    return text.getvalue()
