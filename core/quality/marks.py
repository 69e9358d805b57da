"""Marks of frames that fall outside their limits, and the repairs they suggest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import groupby
from typing import Any

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
    """Finds the frames that somebody should look at.

    Args:
        numbers: `[F]`.
        state: `[F]`, FrameState.
        amount: `[F]`: frames with 0 show the plate alone, and are never marked.
        measures: of `MEASURES`, `[F]` each.
        limits: as in `measure_shot`.

    Returns:
        Below and above what each measure marks a frame (infinite where never), and the marks.
    """
    bounds = {
        name: _ends(MEASURES[name].bad, limits[name])
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
                # One frame that jumps leaves its neighbours half as far from their middle.
                if name == "jitter" and value < np.nanmax(values[max(i - 1, 0) : i + 2]):
                    continue
                limit, said = (high, m.reason) if value > high else (low, m.lower)
                unit = f" {m.unit}" if m.unit not in ("", "%", "°", "x") else m.unit
                reason = f"{said} ({value:.3g}{unit}, limit {limit:.3g}{unit})"
                excess = abs(value - limit) / max(abs(limit), m.least)
                found.append(Mark(number, name, value, limit, reason, excess))
        marks += sorted(found, key=lambda m: -m.excess)
    return bounds, tuple(marks)


def mark_bounds(m: Measure, values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    low, high = (-math.inf, math.inf) if m.limit is None else _ends(m.bad, m.limit)
    if len(known) >= FEWEST:
        middle = float(np.median(known))
        usual = 1.4826 * float(np.median(np.abs(known - middle)))
        reach = max(DEVIATIONS * usual, m.least)
        high = min(high, middle + reach) if m.bad in ("high", "both") else high
        low = max(low, middle - reach) if m.bad in ("low", "both") else low
    return low, high


def _ends(bad: str, limit: float) -> tuple[float, float]:
    """Below and above what a limit marks."""
    low = {"low": limit, "both": -limit}.get(bad, -math.inf)
    return low, limit if bad in ("high", "both") else math.inf


def suggested_repairs(quality: Quality) -> list[dict[str, Any]]:
    """A repair list that the marks suggest, plain JSON.

    Entries are `{"do": "solve", "frames": "1018-1025", "steps": 40, "only": "mouth", "reason": …}`
    without `only` where more than one part is wrong, and `{"do": "interpolate", "frames": …,
    "reason": …}` for frames that jump. Frames without a face, and what no solve mends, are left to
    people.

    Ranges reach `MARGIN` frames beyond the marked ones, as far as the shot does. The low-pass over
    time mixed those frames with the wrong ones, and a repair leaves what it does not name as it
    is: repaired alone, one frame would pop.
    """
    asked: list[tuple[int, str]] = []  # index of a frame, and what is to be done
    reasons: dict[int, list[str]] = {}
    solvable = {*FrameState} - {*STATES, FrameState.PENDING}
    for i, number in enumerate(quality.numbers):
        here = [m for m in quality.marks if m.number == number and m.measure in MEASURES]
        kinds = {MEASURES[m.measure].repair for m in here} - {""}
        reasons[i] = [m.reason.partition(" (")[0] for m in here if MEASURES[m.measure].repair]
        follow = kinds - {"interpolate"}
        if follow and quality.state[i] in solvable:
            asked.append((i, "all" if len(follow) > 1 else follow.pop()))
        elif kinds == {"interpolate"}:
            asked.append((i, "interpolate"))
    wrong = {i for i, _ in asked}
    shot = np.cumsum(quality.cut)

    def run(item: tuple[int, tuple[int, str]]) -> tuple[int, int, str]:
        place, (i, kind) = item
        return int(quality.numbers[i]) - place, int(shot[i]), kind

    spans: list[tuple[str, range, list[str]]] = []  # what is to be done, where, and why
    for (*_, kind), items in groupby(enumerate(asked), run):
        rows = [i for _, (i, _) in items]
        inside = np.flatnonzero(shot == shot[rows[0]])
        # Interpolation needs a frame on either side.
        first, last = inside[[0, -1]] + ([1, -1] if kind == "interpolate" else [0, 0])
        too_long = kind == "interpolate" and len(rows) > LONGEST
        if too_long or not first <= rows[0] <= rows[-1] <= last:
            continue
        begin, end = rows[0], rows[-1]
        for _ in range(MARGIN):  # what is to be done to other frames stays theirs
            begin -= begin > first and begin - 1 not in wrong
            end += end < last and end + 1 not in wrong
        wide = range(begin, end + 1)
        why = [reason for i in rows for reason in reasons[i]]
        if spans and spans[-1][0] == kind and wide.start < spans[-1][1].stop:
            _, before, said = spans.pop()
            wide, why = range(before.start, wide.stop), said + why
        spans.append((kind, wide, why))
    entries: list[dict[str, Any]] = []
    for kind, wide, why in spans:
        entry: dict[str, Any] = {
            "do": "interpolate" if kind == "interpolate" else "solve",
            "frames": format_numbers(quality.numbers[wide.start : wide.stop].tolist()),
        }
        if kind != "interpolate":
            entry |= {"steps": SOLVE_STEPS} | ({} if kind == "all" else {"only": kind})
        entries.append({**entry, "reason": "; ".join(dict.fromkeys(why))})
    return entries
