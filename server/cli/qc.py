"""`reenact qc`: what is wrong with a shot, frame by frame, and the paper's table over shots."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from reenact import protocol

from core.base.errors import ReenactError
from core.base.files import atomic_write
from core.base.text import printable
from core.media.errors import ClipError
from core.media.outputs import check_outputs
from server.cli import options
from server.cli.reporting import Report
from server.cli.running import run_task
from server.jobs import common
from server.jobs import qc as job

if TYPE_CHECKING:
    from core.media.clip import Clip

# The paper's Table 1: its name, its direction, and the measure that says by what it was measured.
COLUMNS = {
    "ID": ("ID", "higher is better", "identity"),
    "APD": ("APD x100", "lower is better", "pose_distance"),
    "AED": ("AED x10", "lower is better", "expression_distance"),
    "NIQE": ("NIQE", "lower is better", "niqe"),
}


class PlateMissingError(ReenactError):
    """The clip that a track was solved on is not where it was."""


class RepairListExistsError(ReenactError):
    """A repair list that somebody changed lies where another would be written."""


@dataclass(frozen=True)
class Options:
    """The parameters of `reenact qc`."""

    latents: Annotated[list[Path], typer.Argument(help="NAME.latents, one or several")]
    plate: Annotated[
        list[str] | None,
        typer.Option(help="Driving clip, one for each track; default: where it was when solved"),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for NAME_qc/; default: beside the track"),
    ] = None
    rendered: Annotated[
        list[str] | None,
        typer.Option(help="Frames as rendered, one clip for each track; default: they are drawn"),
    ] = None
    character: options.TrackCharacter = None
    recogniser: Annotated[
        Path | None,
        typer.Option(help="Face recognition network, .onnx of ArcFace's kind; default: a proxy"),
    ] = None
    face_model: Annotated[
        Path | None,
        typer.Option(help="3D face model, .onnx of Deep3DFaceRecon's kind; default: proxies"),
    ] = None
    limit: Annotated[
        list[str] | None,
        typer.Option(help="Beyond which frames are marked, as landmarks=2; repeatable"),
    ] = None
    table: Annotated[
        bool, typer.Option("--table", help="ID, APD, AED and NIQE of all tracks, as in the paper")
    ] = False
    colour_space: options.ColourSpace = None
    batch: options.Batch = 8
    local: options.Local = False
    json: options.Json = False


@options.takes(Options)
def qc(given: Options) -> None:
    """Measures a shot against driver and character: a report for people, figures, a repair list.

    Of every track NAME_qc/ gets report.html, qc.csv, qc.json and repairs.json, which
    `reenact repair` takes once you have looked through it. With --table, qc_table.csv and
    qc_table.json beside these folders hold a line for each track and their mean.
    """
    latents = given.latents
    for name, clips in (("plate", given.plate), ("rendered", given.rendered)):
        if clips and len(clips) != len(latents):
            raise typer.BadParameter(
                f"--{name} is needed once for each track: {len(latents)}, not {len(clips)}"
            )
    folders = [(given.output or path.parent) / f"{path.stem}_qc" for path in latents]
    if len(set(folders)) < len(folders):
        raise typer.BadParameter("two of the tracks have one name: give each its own -o")
    limits = options.named_numbers("--limit", given.limit or [])
    report = Report(given.json)
    table = (given.output or latents[0].parent) / "qc_table"
    # All are opened and checked before the first is measured.
    inputs = [_inputs(given, i, report) for i in range(len(latents))]
    outputs = [{name: folder / name for name in job.FILES} for folder in folders]
    files = {str(path): path for paths in outputs for path in paths.values()}
    if given.table:
        files |= {str(path): path for path in _table_files(table)}
    for read, folder in zip(inputs, folders, strict=True):
        check_outputs(files, read)
        keep_edited(folder)
    shots: list[dict[str, Any]] = []
    for path, read, written in zip(latents, inputs, outputs, strict=True):
        task = protocol.Qc(
            protocol.File(),
            protocol.File(),
            protocol.Clip(),
            name=path.stem,
            limits=limits,
            batch=given.batch,
        )
        facts = run_task(task, read, written, report, given.local)
        shots.append({"shot": printable(path.stem), "report": str(written["report.html"]), **facts})
        if not given.table:
            report.result(_sentence(shots[-1]), **shots[-1])
    if given.table:
        rows = with_mean(shots)
        write_table(table, rows, shots[0]["metrics"])
        report.result(as_text(rows, shots[0]["metrics"], table), shots=shots, mean=rows[-1])


def _inputs(given: Options, i: int, report: Report) -> dict[str, Path | Clip | None]:
    """Returns what one of the tracks is measured with; says what its clip lacks."""
    from core.media.read import open_clip
    from core.solve.latent_track import load_track

    path = given.latents[i]
    track = load_track(path)
    plate = driving(track.source, path, given.plate[i] if given.plate else None, given.colour_space)
    common.note_clip(plate, report)
    return {
        "track": path,
        "character": given.character or options.find_character(track.character, path),
        "plate": plate,
        "rendered": open_clip(given.rendered[i]) if given.rendered else None,
        "recogniser": given.recogniser,
        "face_model": given.face_model,
    }


def driving(source: str, track: Path, given: str | None, colour_space: str | None) -> Clip:
    """Opens the clip that a track was solved on.

    Raises:
        PlateMissingError: none is given, and it is not where it was.
    """
    from core.media.read import open_clip

    if given is not None:
        return open_clip(given, colour_space=colour_space)
    try:
        return open_clip(source, colour_space=colour_space)
    except ClipError as error:
        raise PlateMissingError(
            f"The clip that {track} was solved on is not at {source or 'any known place'}. Say "
            "where it is with --plate."
        ) from error


def keep_edited(folder: Path) -> None:
    """Refuses to write over a repair list that is not as it was suggested.

    Raises:
        RepairListExistsError: it was changed.
    """
    existing = folder / "repairs.json"
    try:
        edited = json.loads(existing.read_text(encoding="utf-8"))
        suggested = json.loads((folder / "qc.json").read_text(encoding="utf-8"))["repairs"]
        changed = edited != suggested
    except FileNotFoundError:
        changed = existing.exists()
    except (ValueError, KeyError, TypeError):
        changed = True
    if changed:
        raise RepairListExistsError(
            f"{existing} was changed since it was suggested. Move it away, or choose another "
            "folder with -o."
        )


def with_mean(shots: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row for each shot, and their mean, in which every shot counts the same."""
    rows = [{name: shot[name] for name in ("shot", "frames", *COLUMNS)} for shot in shots]
    mean: dict[str, Any] = {"shot": "mean", "frames": sum(row["frames"] for row in rows)}
    for name in COLUMNS:
        known = [row[name] for row in rows if row[name] is not None]
        mean[name] = round(sum(known) / len(known), 4) if known else None
    return [*rows, mean]


def _table_files(path: Path) -> tuple[Path, Path]:
    return path.with_suffix(".csv"), path.with_suffix(".json")


def write_table(path: Path, rows: list[dict[str, Any]], metrics: dict[str, str]) -> None:
    """Writes the table beside the reports, as CSV and as JSON."""
    table, facts_file = _table_files(path)
    with (
        atomic_write(table) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        out = csv.writer(file)
        out.writerow(["shot", "frames", *(title for title, *_ in COLUMNS.values())])
        for row in rows:
            out.writerow(["" if value is None else value for value in row.values()])
    with atomic_write(facts_file) as temporary:
        facts = {"shots": rows[:-1], "mean": rows[-1], "metrics": metrics}
        temporary.write_text(json.dumps(facts, indent=2), encoding="utf-8")


def as_text(rows: list[dict[str, Any]], metrics: dict[str, str], where: Path) -> str:
    """Returns the table for a terminal, and what each column was measured by."""
    width = max(len(row["shot"]) for row in rows) + 2
    titles = "".join(f"{title:>12}" for title, *_ in COLUMNS.values())
    lines = [f"{'shot':{width}}{'frames':>8}{titles}"]
    for row in rows:
        cells = "".join(f"{'-' if row[n] is None else f'{row[n]:.4g}':>12}" for n in COLUMNS)
        lines.append(f"{row['shot']:{width}}{row['frames']:>8}{cells}")
    for title, direction, measure in COLUMNS.values():
        lines.append(f"{title}: {direction}; {metrics[measure]}")
    return "\n".join([*lines, f"{where}.csv, {where}.json"])


def _sentence(shot: dict[str, Any]) -> str:
    text = f"{shot['report']}: {shot['marked']} of {shot['frames']} frames marked"
    return text + (f", the worst is {shot['worst'][0]}" if shot["worst"] else "")
