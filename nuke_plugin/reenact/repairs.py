"""Repairs as an artist lists them, one per line, and the runs that suggest and make them.

    solve 1004-1008 only mouth steps 40  # The mouth is open wider than the driver's
    interpolate 1020-1024, 1030 ease smooth
    hold 1040-1042 from 1039 blend 2
    replace 1050-1052 from 1010-1012
    amount 1060-1070 keys 1060:1:smooth,1070:0

`core/edit/repair.py` defines what they do. Nothing here knows Nuke.
"""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Mapping, Sequence, Tuple

from reenact import protocol
from reenact.client import Client
from reenact.errors import ServerError
from reenact.files import safe_name
from reenact.runs import Result, RunRequest, clip_between, frames_name
from reenact.shots import Sender, ShotRequest, ShotRun, send_missing_frames

# Fields of a `Frame` that are as in a `Render`.
RENDER_FIELDS = (
    "colour_space",
    "style",
    "style_amount",
    "style_from",
    "style_to",
    "sibling",
    "layer_names",
)

# Options of a repair, and the option that it requires.
OPTIONS: Dict[str, Tuple[str, ...]] = {
    "solve": ("only", "steps"),
    "interpolate": ("ease",),
    "hold": ("from", "blend"),
    "replace": ("from", "blend"),
    "amount": ("keys",),
}
REQUIRED = {"hold": "from", "replace": "from", "amount": "keys"}

_RANGE = re.compile(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?")


class RepairLineError(ValueError):
    """A line that is not a repair.

    Args:
        message: what is wrong, and what to do.
        line: the line's number, from 1; 0 where there is only one.
    """

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(f"Line {line}: {message}" if line else message)


# -- the list ------------------------------------------------------------------------------------


def parse(text: str, numbers: Sequence[int]) -> List[Tuple[int, Dict[str, Any]]]:
    """Parses a list of repairs.

    Args:
        text: as above; empty lines and text after a # are ignored.
        numbers: the frames of the track.

    Returns:
        The number of each repair's line, and the repair.

    Raises:
        RepairLineError: for the first line that is not a repair of these frames.
    """
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.partition("#")[0].strip():
            try:
                entries.append((number, _entry(line, frozenset(numbers))))
            except RepairLineError as error:
                raise RepairLineError(str(error), number) from None
    return entries


def _entry(line: str, numbers: "frozenset[int]") -> Dict[str, Any]:
    plain, _, reason = line.partition("#")
    do, *words = plain.split()
    if do not in OPTIONS:
        raise RepairLineError(f"{do} is no repair. Begin with one of {', '.join(OPTIONS)}.")
    parts: Dict[str, List[str]] = {"frames": []}
    name = "frames"
    for word in words:
        if any(word in options for options in OPTIONS.values()):
            if word not in OPTIONS[do] or word in parts:
                raise RepairLineError(f"{do} takes {' and '.join(OPTIONS[do])}, each once.")
            name = word
            parts[name] = []
        else:
            parts[name].append(word)
    if do == "amount" and not parts["frames"]:
        del parts["frames"]  # it means all of them
    if do in REQUIRED and REQUIRED[do] not in parts:
        raise RepairLineError(f"{do} needs {REQUIRED[do]}.")
    entry: Dict[str, Any] = {"do": do}
    for name, words in parts.items():
        value = " ".join(words)
        if name in ("frames", "from"):
            absent = [n for span in parse_ranges(value) for n in span if n not in numbers]
            if absent:
                existing = format_ranges(numbers)
                raise RepairLineError(f"frame {absent[0]} is not in the shot above, {existing}.")
        if name in ("steps", "blend") and not value.isdecimal():
            raise RepairLineError(f"{name} must be a whole number, not {value or 'nothing'}.")
        entry[name] = int(value) if name in ("steps", "blend") else value
    return {**entry, "reason": reason.strip()} if reason.strip() else entry


def format_entry(entry: Mapping[str, Any]) -> str:
    """Returns the line that `parse` reads a repair from."""
    words = [entry["do"], *([entry["frames"]] if "frames" in entry else [])]
    for name in OPTIONS[entry["do"]]:
        words += [name, str(entry[name])] if name in entry else []
    reason = entry.get("reason")
    return " ".join(words) + (f"  # {reason}" if reason else "")


def parse_ranges(text: str) -> List[Tuple[int, int]]:
    """Returns first and last frames of text like "1020-1035, 1040".

    Raises:
        RepairLineError: the text is something else.
    """
    spans = []
    for part in text.split(","):
        found = _RANGE.fullmatch(part)
        if not found or int(found[2] or found[1]) < int(found[1]):
            problem = f'"{text}" is not a list of frames' if text else "the frames are missing"
            raise RepairLineError(f"{problem}. Write them as in 1020-1035, 1040.")
        spans.append((int(found[1]), int(found[2] or found[1])))
    return spans


def format_ranges(numbers: Iterable[int]) -> str:
    """Returns text that `parse_ranges` reads the same frames from."""
    spans: List[List[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][-1] + 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    return ", ".join("-".join(map(str, span)) for span in spans)


def bad_frames(entries: Iterable[Mapping[str, Any]], marked: str) -> List[int]:
    """Returns the frames to look at, increasing: marked ones, and the first frame of each range of
    a repair that contains no marked one.

    Args:
        entries: the repairs.
        marked: ranges of frames; may be empty.

    Raises:
        RepairLineError: `marked` is not a list of frames.
    """
    spans = parse_ranges(marked) if marked else ()
    bad = {n for first, last in spans for n in range(first, last + 1)}
    for entry in entries:
        for first, last in parse_ranges(entry["frames"]) if "frames" in entry else ():
            if bad.isdisjoint(range(first, last + 1)):
                bad.add(first)
    return sorted(bad)


# -- runs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RepairRequest(ShotRequest):
    """What a ReenactRepair asks for.

    `kind` is `qc`, `repair`, or `repaired_frame` for a preview of one frame: that repairs the whole
    list in a job which a later `repair` finds done.

    Attributes:
        lines: number of each repair's line.
    """

    lines: List[int] = field(default_factory=list)


class RepairRun(ShotRun):
    """Carries out a `RepairRequest`; otherwise as `Run`."""

    def _begin(self, client: Client, request: RunRequest) -> None:
        assert isinstance(request, RepairRequest)
        above, send = request.shot_above, Sender(client, self._on_sent)
        if request.kind == "qc":
            track, character = send(above.track), send(above.character)
            send_missing_frames(client, above.plate, above.source)
            plate = clip_between(above.plate, request.first, request.last)
            task = protocol.Qc(track, character, plate, name=above.name, **request.settings)
            self._submit(client, request, task)
            return
        render, more = self._render_task(client, request, send)
        repair = protocol.Repair(render.track, **request.settings)
        solved = [
            number
            for entry in repair.repairs
            if entry["do"] == "solve"
            for span in parse_ranges(entry["frames"])
            for number in span
        ]
        if solved:
            plate = clip_between(above.plate, min(solved), max(solved))
            repair = dataclasses.replace(repair, plate=plate, character=render.character)
        self._submit(
            client,
            request,
            repair,
            self._key(request, render),
            lines=request.lines,
            render=dataclasses.asdict(render),
            **more,
        )

    def _continue(self, client: Client) -> None:
        version = Path(self.folder)
        content, task = self._read_version()
        if isinstance(task, protocol.Qc):
            self._qc(client, version, task)
            return
        try:
            track = self._track(client, task, version / "track.latents")
        except ServerError as error:  # the server counts repairs, the artist counts lines
            message = re.sub(r"^Repair (\d+)", _line_name(content["lines"]), str(error))
            raise ServerError(error.code, message, error.detail) from None
        if track is None:
            return
        if content["kind"] == "repaired_frame":  # the node keeps the track of the shown version
            render = protocol.build(protocol.Render, content["render"])
            frame = protocol.Frame(
                track,
                render.character,
                content["first"],
                render.plate,
                frames_name(version),
                **{name: getattr(render, name) for name in RENDER_FIELDS},
            )
            self._frames(client, version, frame, "Preview", "")
        else:
            self._render(client, content, track)

    def _qc(self, client: Client, version: Path, task: protocol.Qc) -> None:
        def destination(event: Dict[str, Any]) -> Path:
            return version / safe_name(event["name"], "qc")

        if not self._follow(client, task, destination):
            return
        report = json.loads((version / "qc.json").read_text(encoding="utf-8"))
        curves = {
            name: {n: v for n, v in zip(report["frames"], values) if v is not None}
            for name, values in report["measures"].items()
        }
        marked = {mark["frame"] for mark in report["marks"]}
        worst = "".join(f", {number} the most" for number in report["summary"]["worst"])
        text = f"{len(marked) or 'None'} of {len(report['frames'])} frames stand out{worst}."
        knobs = {
            "marked": format_ranges(marked),
            "report": version / "report.html",
            "suggested": "\n".join(map(format_entry, report["repairs"])),
        }
        self._update("done", text, result=Result(knobs, curves))


def _line_name(lines: Sequence[int]) -> "Callable[[re.Match[str]], str]":
    return lambda found: f"Line {lines[int(found[1]) - 1]}"
