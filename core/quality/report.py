"""The quality report: one page for people with a browser and nothing else.

The page holds everything, loads nothing and runs nothing but its own script: names in it are
others' words, and its content security policy names that script by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from core.base.sampling import evenly_spaced
from core.media.clip import Clip
from core.media.numbering import format_numbers
from core.personalize.character import Character
from core.quality.cards import CARD, FACE_TILE, jpeg
from core.quality.definitions import DEVIATIONS, FEWEST, MEASURES, SIGNALS, Quality
from core.quality.export import plain, summary
from core.render.frames import SYNTHETIC
from core.solve.latent_track import FrameState, LatentTrack

MOST_CARDS = 24  # frames in the contact sheet
MOST_THUMBS = 480  # frames with a picture of their own; others show the nearest
_THUMB = (256, 128)  # px: driver and result
_WIDTH, _HEIGHT = 640, 80  # of a curve, in its own units
_DIGITS = {"identity": 4, "dilation": 3, "pose_distance": 3, "expression_distance": 3}
_PAGE = Path(__file__).with_name("report_page")


def page(title: str, quality: Quality, provenance: Sequence[tuple[str, Any]]) -> str:
    """Draws the report of a shot as HTML.

    Args:
        title: what people call the shot.
        quality: measures and marks of its frames.
        provenance: headings with pairs of names and values, from `provenance`.
    """
    script = (_PAGE / "page.js").read_text(encoding="utf-8")
    states = [FrameState(int(s)).name.lower().replace("_", " ") for s in quality.state]
    reasons = {n: [m.reason for m in quality.marks if m.number == n] for n in quality.marked}
    worst = quality.marked[:MOST_CARDS]
    environment = Environment(
        loader=FileSystemLoader(_PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=title,
        style=Markup((_PAGE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        verdict=_verdict(quality),
        figures=_figures(summary(quality), quality),
        notes=quality.notes,
        cards=_cards(quality, worst, states, reasons),
        cards_caption=(
            f"The {len(worst)} worst of {len(quality.marked)} marked frames, the worst first."
            if len(worst) < len(quality.marked)
            else "All marked frames, the worst first."
        ),
        card_size=CARD,
        width=_WIDTH,
        height=_HEIGHT,
        first=int(quality.numbers[0]),
        last=int(quality.numbers[-1]),
        groups=_chart_groups(quality),
        columns=_table_columns(quality),
        rows=_table_rows(quality, states),
        method=[
            {
                "title": m.title,
                "meaning": m.meaning,
                "metric": quality.metrics.get(name, ""),
                "limits": _limits(name, quality.bounds[name]),
            }
            for name, m in MEASURES.items()
        ],
        rule=(
            "A frame is marked beyond a measure's absolute limit, or where it stands out of its "
            f"shot: {DEVIATIONS:g} standard deviations from the median, by the median absolute "
            f"deviation, in shots of {FEWEST} frames and more. The limits above are the tighter "
            "of the two. Left and right are the person's own."
        ),
        provenance=provenance,
        data=_script_data(quality, states, reasons),
    )


def _cards(
    quality: Quality,
    numbers: Sequence[int],
    states: Sequence[str],
    reasons: Mapping[int, Sequence[str]],
) -> list[dict[str, Any]]:
    """The contact sheet: a picture of each of some frames, with the reasons of its marks."""
    index = {int(n): i for i, n in enumerate(quality.numbers)}
    return [
        {
            "number": n,
            "state": states[index[n]],
            "reasons": reasons[n],
            "picture": _uri(quality.cards[index[n]]),
        }
        for n in numbers
    ]


def _chart_groups(quality: Quality) -> list[dict[str, Any]]:
    """The curves: what both faces do, and every measure of their difference."""
    signals = [
        _chart(
            quality,
            f"both {name}",
            SIGNALS[name][0],
            SIGNALS[name][1],
            "",
            {"driver": driver, "result": result},
        )
        for name, (driver, result) in quality.signals.items()
    ]
    measures = [
        _chart(
            quality,
            name,
            _title(quality, name),
            MEASURES[name].unit,
            MEASURES[name].meaning,
            {"result": values},
            quality.bounds[name],
        )
        for name, values in quality.measures.items()
    ]
    return [
        {
            "title": "What driver and result do",
            "legend": [
                ("driver", "driver, with the character's neutral shape"),
                ("result", "result"),
            ],
            "charts": signals,
        },
        {
            "title": "How far they are apart, and what else was measured",
            "legend": [("result", "measured"), ("limit", "limit"), ("mark", "marked")],
            "charts": measures,
        },
    ]


def _table_columns(quality: Quality) -> list[dict[str, str]]:
    return [
        {"title": "Frame", "unit": "", "meaning": "Frame number"},
        {"title": "State", "unit": "", "meaning": "Where the frame's code comes from"},
        *(
            {"title": _title(quality, n), "unit": m.unit, "meaning": m.meaning}
            for n, m in MEASURES.items()
        ),
    ]


def _table_rows(quality: Quality, states: Sequence[str]) -> list[dict[str, Any]]:
    marked, beyond = {*quality.marked}, {(m.number, m.measure) for m in quality.marks}
    return [
        {
            "number": number,
            "state": states[i],
            "marked": number in marked,
            "cells": [
                {"text": _cell(quality, name, i), "bad": (number, name) in beyond}
                for name in MEASURES
            ],
        }
        for i, number in enumerate(map(int, quality.numbers))
    ]


def _script_data(
    quality: Quality, states: Sequence[str], reasons: Mapping[int, Sequence[str]]
) -> dict[str, Any]:
    """What the page's script shows of a frame that is pointed at."""
    values = plain(quality)
    pictured = evenly_spaced(len(states), MOST_THUMBS)
    nearest = np.abs(np.subtract.outer(np.arange(len(states)), pictured)).argmin(1)
    return {
        "frames": values["frames"],
        "states": states,
        "reasons": [reasons.get(int(number), []) for number in quality.numbers],
        "curves": {
            **{f"both {n}": [*both.values()] for n, both in values["signals"].items()},
            **{n: [v] for n, v in values["measures"].items()},
        },
        "thumbs": [_uri(_thumb(quality.cards[i])) for i in pictured],
        "thumb_of": nearest.tolist(),
        "width": _WIDTH,
    }


def provenance(
    track: LatentTrack,
    character: Character,
    plate: Clip,
    rendered: Clip | None,
    versions: Mapping[str, str],
) -> list[tuple[str, list[tuple[str, str]]]]:
    """What a report says of how a shot came about: headings, each with names and values."""
    info = character.info

    def as_text(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return [
        (
            "Consent",
            [
                ("who agreed", info.consent.get("who", "")),
                ("when", info.consent.get("when", "")),
                ("to what", info.consent.get("scope", "")),
                ("mark", SYNTHETIC),
            ],
        ),
        (
            "Latent track",
            [
                ("hash", track.hash),
                ("solved", track.created),
                ("driving clip", track.source),
                ("made from", track.parent or "nothing: it was solved"),
                *((f"step {i}", as_text(dict(step))) for i, step in enumerate(track.recipe, 1)),
                *(("note", note) for note in track.notes),
            ],
        ),
        (
            "Character",
            [
                ("name", info.name),
                ("hash", character.hash),
                ("made", info.created),
                ("scan", info.source),
                ("its frames", f"{len(info.selected)}: {format_numbers(sorted(info.selected))}"),
                ("trained with", info.metric),
                ("base generator", info.base_hash),
            ],
        ),
        (
            "This report",
            [
                ("plate", f"{plate.shown}, {plate.width}x{plate.height}, {plate.colour_space}"),
                ("result", rendered.shown if rendered else "drawn from track and character"),
                ("made", datetime.now(timezone.utc).isoformat(timespec="seconds")),
                *versions.items(),
                ("Python", platform.python_version()),
            ],
        ),
        ("Settings of the solve", [(name, as_text(v)) for name, v in track.settings.items()]),
    ]


def _title(quality: Quality, name: str) -> str:
    proxy = quality.metrics.get(name, "").startswith("proxy")
    return MEASURES[name].title + (" (proxy)" if proxy else "")


def _verdict(quality: Quality) -> str:
    count, marked = len(quality.numbers), quality.marked
    if not marked:
        return f"None of the {count} frames is marked."
    causes = Counter(
        MEASURES[m.measure].title.lower() if m.measure in MEASURES else "no face in the plate"
        for m in quality.marks
    )
    most = ", ".join(f"{title} ({n})" for title, n in causes.most_common(3))
    verb = "is" if len(marked) == 1 else "are"
    return (
        f"{len(marked)} of {count} frames {verb} marked: {format_numbers(sorted(marked))}. "
        f"Most often for {most}. The worst is {marked[0]}."
    )


def _figures(facts: Mapping[str, Any], quality: Quality) -> list[dict[str, str]]:
    def figure(title: str, value: float | None, note: str, digits: int = 3) -> dict[str, str]:
        shown = "-" if value is None else f"{value:.{digits}g}"
        return {"title": title, "value": shown, "note": note}

    metrics = quality.metrics
    return [
        {
            "title": "Frames marked",
            "value": f"{facts['marked']} of {facts['frames']}",
            "note": facts["range"],
        },
        figure("Landmarks", facts["landmarks"], "px of a 192 px face, mean; 0 is best"),
        figure("Identity, ID", facts["ID"], f"1 is best; {metrics['identity']}", 4),
        figure("Pose, APD x100", facts["APD"], f"0 is best; {metrics['pose_distance']}"),
        figure("Expression, AED x10", facts["AED"], f"0 is best; {metrics['expression_distance']}"),
        figure("NIQE", facts["NIQE"], f"lower is better; {metrics['niqe']}"),
        figure("Jitter", facts["jitter"], "times the driver's own; 1 is as steady"),
    ]


def _limits(name: str, bounds: tuple[float, float]) -> str:
    low, high = bounds
    unit = f" {MEASURES[name].unit}".rstrip()
    parts = [f"below {low:.3g}{unit}"] * math.isfinite(low)
    parts += [f"above {high:.3g}{unit}"] * math.isfinite(high)
    return " or ".join(parts) or "never"


def _cell(quality: Quality, name: str, i: int) -> str:
    value = float(quality.measures[name][i])
    return f"{value:.{_DIGITS.get(name, 2)}f}" if math.isfinite(value) else "-"


def _chart(
    quality: Quality,
    name: str,
    title: str,
    unit: str,
    meaning: str,
    lines: Mapping[str, np.ndarray],
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> dict[str, Any]:
    """A curve over frame numbers, in a box of `_WIDTH` by `_HEIGHT`."""
    every = np.concatenate(list(lines.values()))
    finite = every[np.isfinite(every)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    measured = MEASURES.get(name)
    if measured is not None and low >= 0 and measured.bad != "low":
        low = 0.0
    # What would never be marked must not look like much.
    short = (measured.least if measured else 1e-6) - (high - low)
    if short > 0:
        low, high = (0.0, high + short) if low == 0 else (low - short / 2, high + short / 2)
    # A limit that is far from all values would flatten them.
    near = [b for b in bounds if math.isfinite(b) and low - (high - low) < b < 2 * high - low]
    low, high = min([low, *near]), max([high, *near])
    numbers = quality.numbers.astype(float)
    span = numbers[-1] - numbers[0]
    x = (numbers - numbers[0]) / span * _WIDTH if span else np.full(len(numbers), _WIDTH / 2)

    def y(value: float) -> float:
        return round((high - value) / (high - low) * _HEIGHT, 2)

    marked = {m.number for m in quality.marks if m.measure == name}
    only = next(iter(lines.values()))
    return {
        "name": name,
        "title": title,
        "unit": unit,
        "meaning": meaning,
        "top": f"{high:.3g}",
        "bottom": f"{low:.3g}",
        "limits": [y(b) for b in near],
        "lines": [(kind, _path(numbers, x, values, y)) for kind, values in lines.items()],
        "marks": [
            (round(float(x[i]), 2), y(only[i]))
            for i, n in enumerate(quality.numbers)
            if int(n) in marked
        ],
    }


def _path(numbers: np.ndarray, x: np.ndarray, values: np.ndarray, y: Any) -> str:
    """An SVG path through finite values; frames that are missing break it."""
    steps, before = [], -math.inf
    for number, at, value in zip(numbers, x, values, strict=True):
        if math.isfinite(value):
            steps.append(f"{'L' if number - before == 1 else 'M'}{at:.2f} {y(value)}")
            before = number
    return "".join(steps)


def _thumb(card: bytes) -> bytes:
    """The upper part of a card, small."""
    rgb = cv2.imdecode(np.frombuffer(card, np.uint8), cv2.IMREAD_COLOR)[:FACE_TILE, :, ::-1]
    return jpeg(cv2.resize(rgb, _THUMB, interpolation=cv2.INTER_AREA), 78)


def _uri(picture: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode()
