"""Marking frames beyond their limits, and suggesting repairs for them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from core.media.numbering import format_numbers
from core.quality.definitions import (
    DEVIATIONS,
    FEWEST,
    LONGEST,
    MARGIN,
    MEASURES,
    SOLVE_STEPS,
    STATES,
    Mark,
    Measure,
    Quality,
)
from core.solve.latent_track import FrameState


def mark(
    numbers: np.ndarray,
    state: np.ndarray,
    amount: np.ndarray,
    measures: Mapping[str, np.ndarray],
    limits: Mapping[str, float] = {},
) -> tuple[dict[str, tuple[float, float]], tuple[Mark, ...]]:
    """Marks the frames beyond their limits.

    Args:
        numbers: `[F]` frame numbers.
        state: `[F]`, FrameState.
        amount: `[F]` in 0..1; frames with 0 show only the plate and are never marked.
        measures: of `MEASURES`, `[F]` each.
        limits: by measure; they replace the measures' own limits.

    Returns:
        Lower and upper limit of each measure (infinite where there is none), and the marks.
    """
    bounds = {
        name: _interval(MEASURES[name].bad, limits[name])
        if name in limits
        else mark_bounds(MEASURES[name], values)
        for name, values in measures.items()
    }
    marks: list[Mark] = []
    for i, number in enumerate(int(n) for n in numbers):
        if amount[i] == 0:
            continue
        found = []
        if state[i] in STATES:
            found.append(Mark(number, "state", None, None, STATES[FrameState(state[i])], 1.0))
        for name, values in measures.items():
            low, high = bounds[name]
            value, m = float(values[i]), MEASURES[name]
            if value > high or value < low:
                # The neighbours of a frame that jumps have half its jitter: only the frame is
                # marked.
                if name == "jitter" and value < np.nanmax(values[max(i - 1, 0) : i + 2]):
                    continue
                limit, reason = (high, m.reason) if value > high else (low, m.lower)
                unit = f" {m.unit}" if m.unit not in ("", "%", "°", "x") else m.unit
                reason = f"{reason} ({value:.3g}{unit}, limit {limit:.3g}{unit})"
                excess = abs(value - limit) / max(abs(limit), m.least)
                found.append(Mark(number, name, value, limit, reason, excess))
        marks += sorted(found, key=lambda m: -m.excess)
    return bounds, tuple(marks)


def mark_bounds(m: Measure, values: np.ndarray) -> tuple[float, float]:
    """Returns lower and upper limit of a measure: its own, or where a frame stands out."""
    finite = values[np.isfinite(values)]
    low, high = (-math.inf, math.inf) if m.limit is None else _interval(m.bad, m.limit)
    if len(finite) >= FEWEST:
        middle = float(np.median(finite))
        deviation = 1.4826 * float(np.median(np.abs(finite - middle)))
        reach = max(DEVIATIONS * deviation, m.least)
        high = min(high, middle + reach) if m.bad in ("high", "both") else high
        low = max(low, middle - reach) if m.bad in ("low", "both") else low
    return low, high


def _interval(bad: str, limit: float) -> tuple[float, float]:
    """Returns lower and upper limit of a measure whose `bad` values lie beyond `limit`."""
    low = {"low": limit, "both": -limit}.get(bad, -math.inf)
    return low, limit if bad in ("high", "both") else math.inf


def suggested_repairs(quality: Quality) -> list[dict[str, Any]]:
    """Returns the repair list that the marks suggest, as plain JSON (see `core.edit.repair`).

    Entries are `{"do": "solve", "frames": "1018-1025", "steps": 40, "only": "mouth", "reason": …}`,
    without `only` where more than one part is wrong, and `{"do": "interpolate", "frames": …,
    "reason": …}` for frames that jump. Frames without a face, and marks that no solve removes, get
    no entry.

    Ranges extend `MARGIN` frames beyond the marked ones within the shot: the low-pass over time
    mixed those frames with the marked ones, and a repair changes only the frames that it names, so
    a single repaired frame would pop.
    """
    requested, reasons = _requested_repairs(quality)
    shot = np.cumsum(quality.cut)
    spans: list[_Span] = []
    for kind, run in _runs(quality, requested):
        inside = np.flatnonzero(shot == shot[run[0]])
        # Interpolation needs a frame on either side.
        first, last = inside[[0, -1]] + ([1, -1] if kind == "interpolate" else [0, 0])
        too_long = kind == "interpolate" and len(run) > LONGEST
        if too_long or not first <= run[0] <= run[-1] <= last:
            continue
        begin, end = run[0], run[-1]
        for _ in range(MARGIN):  # frames with a repair of their own are left to it
            begin -= begin > first and begin - 1 not in requested
            end += end < last and end + 1 not in requested
        span = _Span(kind, range(begin, end + 1), [reason for i in run for reason in reasons[i]])
        if spans and spans[-1].kind == kind and span.frames.start < spans[-1].frames.stop:
            before = spans.pop()
            joined = range(before.frames.start, span.frames.stop)
            span = _Span(kind, joined, before.reasons + span.reasons)
        spans.append(span)
    entries: list[dict[str, Any]] = []
    for kind, frames, why in spans:
        entry: dict[str, Any] = {
            "do": "interpolate" if kind == "interpolate" else "solve",
            "frames": format_numbers(quality.numbers[frames.start : frames.stop].tolist()),
        }
        if kind != "interpolate":
            entry |= {"steps": SOLVE_STEPS} | ({} if kind == "all" else {"only": kind})
        entries.append({**entry, "reason": "; ".join(dict.fromkeys(why))})
    return entries


class _Span(NamedTuple):
    """Consecutive frames that get one repair."""

    kind: str  # "interpolate", "all", or the part that is solved again
    frames: range  # indices
    reasons: list[str]


def _requested_repairs(quality: Quality) -> tuple[dict[int, str], dict[int, list[str]]]:
    """Returns the kind of repair of each marked frame that has one, and all frames' reasons."""
    requested: dict[int, str] = {}
    reasons: dict[int, list[str]] = {}
    solvable = {*FrameState} - {*STATES, FrameState.PENDING}
    for i, number in enumerate(quality.numbers):
        marks = [m for m in quality.marks if m.number == number and m.measure in MEASURES]
        kinds = {MEASURES[m.measure].repair for m in marks} - {""}
        reasons[i] = [m.reason.partition(" (")[0] for m in marks if MEASURES[m.measure].repair]
        parts = kinds - {"interpolate"}
        if parts and quality.state[i] in solvable:
            requested[i] = "all" if len(parts) > 1 else parts.pop()
        elif kinds == {"interpolate"}:
            requested[i] = "interpolate"
    return requested, reasons


def _runs(quality: Quality, requested: Mapping[int, str]) -> Iterator[tuple[str, list[int]]]:
    """Yields kinds of repair, and the indices of consecutive frames of a shot that share one."""
    shot = np.cumsum(quality.cut)

    def key(item: tuple[int, tuple[int, str]]) -> tuple[int, int, str]:
        position, (i, kind) = item
        return int(quality.numbers[i]) - position, int(shot[i]), kind

    for (*_, kind), items in groupby(enumerate(requested.items()), key):
        yield kind, [i for _, (i, _) in items]
