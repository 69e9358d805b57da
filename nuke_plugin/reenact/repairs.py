"""Repairs as an artist lists them, a line each, and the runs that suggest and make them.

    solve 1004-1008 only mouth steps 40  # The mouth is open wider than the driver's
    interpolate 1020-1024, 1030 ease smooth
    hold 1040-1042 from 1039 blend 2
    replace 1050-1052 from 1010-1012
    amount 1060-1070 keys 1060:1:smooth,1070:0

`core/edit/repair.py` says what they do. Nothing of Nuke.
"""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Mapping, Sequence, Tuple

from reenact import protocol
from reenact.client import Client, ServerError, safe_name, write_file
from reenact.runs import Order, Result, between
from reenact.shots import Change, Sender, ShotRun, have_plate, listing
from reenact.tracks import quality

UPSTREAM = "upstream"  # the version of a node that repairs nothing

# Fields of a `Frame` that are as in a `Render`.
DRAWN_ALIKE = ("colour_space", "style", "style_amount", "style_from", "style_to", "sibling")

# What a repair may have beside its frames, and what it must have.
WORDS: Dict[str, Tuple[str, ...]] = {
    "solve": ("only", "steps"),
    "interpolate": ("ease",),
    "hold": ("from", "blend"),
    "replace": ("from", "blend"),
    "amount": ("keys",),
}
NEEDED = {"hold": "from", "replace": "from", "amount": "keys"}

_RANGE = re.compile(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?")


class WrongLine(ValueError):
    """A line that is no repair.

    Args:
        said: what is wrong, and what to do.
        line: its number, from 1; 0 where there is only one.
    """

    def __init__(self, said: str, line: int = 0) -> None:
        super().__init__(f"Line {line}: {said}" if line else said)


# -- the list ------------------------------------------------------------------------------------


def parse(text: str, numbers: Sequence[int]) -> List[Tuple[int, Dict[str, Any]]]:
    """The repairs of a list, each with its line's number.

    Args:
        text: as above; empty lines and what follows a # are for people.
        numbers: the frames of the track.

    Raises:
        WrongLine: the first one that is no repair of these frames.
    """
    listed = []
    for line, said in enumerate(text.splitlines(), 1):
        if said.partition("#")[0].strip():
            try:
                listed.append((line, _entry(said, frozenset(numbers))))
            except WrongLine as wrong:
                raise WrongLine(str(wrong), line) from None
    return listed


def _entry(said: str, numbers: "frozenset[int]") -> Dict[str, Any]:
    plain, _, reason = said.partition("#")
    do, *words = plain.split()
    if do not in WORDS:
        raise WrongLine(f"{do} is no repair. Begin with one of {', '.join(WORDS)}.")
    parts: Dict[str, List[str]] = {"frames": []}
    name = "frames"
    for word in words:
        if any(word in others for others in WORDS.values()):
            if word not in WORDS[do] or word in parts:
                raise WrongLine(f"{do} takes {' and '.join(WORDS[do])}, each once.")
            name = word
            parts[name] = []
        else:
            parts[name].append(word)
    if do == "amount" and not parts["frames"]:
        del parts["frames"]  # all of them
    if do in NEEDED and NEEDED[do] not in parts:
        raise WrongLine(f"{do} needs {NEEDED[do]}.")
    entry: Dict[str, Any] = {"do": do}
    for name, given in parts.items():
        value = " ".join(given)
        if name in ("frames", "from"):
            absent = [n for span in ranges(value) for n in span if n not in numbers]
            if absent:
                there = as_ranges(numbers)
                raise WrongLine(f"frame {absent[0]} is not in the shot above, {there}.")
        if name in ("steps", "blend") and not value.isdecimal():
            raise WrongLine(f"{name} must be a whole number, not {value or 'nothing'}.")
        entry[name] = int(value) if name in ("steps", "blend") else value
    return {**entry, "reason": reason.strip()} if reason.strip() else entry


def as_line(entry: Mapping[str, Any]) -> str:
    """What `parse` reads the same repair from."""
    words = [entry["do"], *([entry["frames"]] if "frames" in entry else [])]
    for name in WORDS[entry["do"]]:
        words += [name, str(entry[name])] if name in entry else []
    reason = entry.get("reason")
    return " ".join(words) + (f"  # {reason}" if reason else "")


def ranges(text: str) -> List[Tuple[int, int]]:
    """First and last frames of text like "1020-1035, 1040".

    Raises:
        WrongLine: it is something else.
    """
    spans = []
    for part in text.split(","):
        found = _RANGE.fullmatch(part)
        if not found or int(found[2] or found[1]) < int(found[1]):
            said = f'"{text}" are no frames' if text else "there are no frames"
            raise WrongLine(f"{said}. Write them as in 1020-1035, 1040.")
        spans.append((int(found[1]), int(found[2] or found[1])))
    return spans


def as_ranges(numbers: Iterable[int]) -> str:
    """What `ranges` reads the same frames from."""
    spans: List[List[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][-1] + 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    return ", ".join("-".join(map(str, span)) for span in spans)


def bad_frames(listed: Iterable[Mapping[str, Any]], marked: str) -> List[int]:
    """Frames to look at: those that are marked, and of repairs that have none of them the first.

    Raises:
        WrongLine: marked are no frames.
    """
    bad = {n for first, last in (ranges(marked) if marked else ()) for n in range(first, last + 1)}
    for entry in listed:
        for first, last in ranges(entry["frames"]) if "frames" in entry else ():
            if bad.isdisjoint(range(first, last + 1)):
                bad.add(first)
    return sorted(bad)


# -- versions ------------------------------------------------------------------------------------


def versions(folder: Path, id: str) -> List[str]:
    """What a node can show: nothing repaired, and the versions that it has made, oldest first."""
    marks = [
        mark for mark in folder.glob(f"*/.node-{id}") if (mark.parent / "track.latents").exists()
    ]
    marks.sort(key=lambda mark: mark.stat().st_mtime_ns)
    return [UPSTREAM, *(mark.parent.name for mark in marks)]


def of_version(folder: Path) -> Result:
    """What a node shows of a version.

    Raises:
        OSError, ValueError, KeyError: it is gone or damaged.
        ServerError: it has no frames.
    """
    plain, track = json.loads((folder / "run.json").read_text()), folder / "track.latents"
    reads = {}
    for read, place, suffix in (("Result", folder, ""), ("Crops", folder / "crops", "_crop")):
        if place.is_dir():
            pattern = (place / f"{folder.name}{suffix}.####.exr").as_posix()
            there = listing(pattern)
            reads[read] = (pattern, there[0], there[-1])
    return Result(_knobs(track, plain), quality(track), reads)


def _knobs(track: Path, plain: Mapping[str, Any]) -> Dict[str, Any]:
    return {"track": track.as_posix(), "character": plain["character"]}


# -- runs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repairs(Change):
    """What a ReenactRepair wants: `kind` is `qc`, `repair`, or `repaired_frame` for a look at one
    frame, which has the whole list done by the very job that `repair` finds done then.

    Attributes:
        lines: number of each repair's line.
    """

    lines: List[int] = field(default_factory=list)


class RepairRun(ShotRun):
    """As `Run`, for `Repairs`."""

    def _begin(self, client: Client, order: Order) -> None:
        assert isinstance(order, Repairs)
        assert order.shot is not None
        above, send = order.shot, Sender(client, self._sending)
        if order.kind == "qc":
            track, character = send(above.track), send(above.character)
            have_plate(client, above.plate, above.source)
            plate = between(above.plate, order.first, order.last)
            name = Path(above.track).parent.name
            self._submit(
                client, order, protocol.Qc(track, character, plate, name=name, **order.settings)
            )
            return
        render, more = self._drawing(client, order, send)
        task = protocol.Repair(render.track, **order.settings)
        solved = [
            number
            for entry in task.repairs
            if entry["do"] == "solve"
            for span in ranges(entry["frames"])
            for number in span
        ]
        if solved:
            plate = between(above.plate, min(solved), max(solved))
            task = dataclasses.replace(task, plate=plate, character=render.character)
        version = self._submit(
            client,
            order,
            task,
            self._key(order, render),
            lines=order.lines,
            render=dataclasses.asdict(render),
            **more,
        )
        mark = version / f".node-{self.id}"
        if order.kind == "repair" and not mark.exists():
            write_file(mark, b"")

    def _go_on(self, client: Client) -> None:
        version = Path(self.folder)
        plain, task = self._asked()
        if isinstance(task, protocol.Qc):
            self._qc(client, version, task)
            return
        try:
            track = self._track(client, task, version / "track.latents")
        except ServerError as error:  # the server counts repairs, the artist lines
            said = re.sub(r"^Repair (\d+)", _line(plain["lines"]), str(error))
            raise ServerError(error.code, said, error.detail) from None
        if track is None:
            return
        if plain["kind"] == "repaired_frame":  # the track stays that of the version that is shown
            render = protocol.build(protocol.Render, plain["render"])
            frame = protocol.Frame(
                track,
                render.character,
                plain["first"],
                render.plate,
                version.name,
                **{name: getattr(render, name) for name in DRAWN_ALIKE},
            )
            self._frames(client, version, frame, "Preview", "")
        else:
            path = version / "track.latents"
            knobs = {**_knobs(path, plain), "version": version.name}
            choices = {"version": versions(version.parent, self.id)}
            self._draw(client, plain, track, Result(knobs, quality(path), choices=choices))

    def _qc(self, client: Client, version: Path, task: protocol.Qc) -> None:
        def place(event: Dict[str, Any]) -> Path:
            return version / safe_name(event["name"], "qc")

        if not self._follow(client, task, place):
            return
        found = json.loads((version / "qc.json").read_text())
        curves = {
            name: {n: v for n, v in zip(found["frames"], values) if v is not None}
            for name, values in found["measures"].items()
        }
        marked = {mark["frame"] for mark in found["marks"]}
        worst = "".join(f", {number} the most" for number in found["summary"]["worst"])
        text = f"{len(marked) or 'None'} of {len(found['frames'])} frames stand out{worst}."
        knobs = {
            "marked": as_ranges(marked),
            "report": (version / "report.html").as_posix(),
            "suggested": "\n".join(map(as_line, found["repairs"])),
        }
        self._say("done", text, result=Result(knobs, curves))


def _line(lines: Sequence[int]) -> "Callable[[re.Match[str]], str]":
    return lambda found: f"Line {lines[int(found[1]) - 1]}"
