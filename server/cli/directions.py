"""`reenact directions`: what the codes of a character or a generator can be moved along."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from reenact import protocol

from core.media.outputs import check_outputs
from server.cli import options
from server.cli.reporting import Report
from server.cli.running import run_task


@dataclass(frozen=True)
class Options:
    """The parameters of `reenact directions`."""

    source: Annotated[
        Path | None,
        typer.Argument(
            help="NAME.character; a generator; or another tool's directions (.npy, .pt), which are "
            "converted. Default: the embedded generator"
        ),
    ] = None
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Default: NAME.directions beside SOURCE")
    ] = None
    sheet: Annotated[Path | None, typer.Option(help="PNG to write: every direction at -2 to 2")] = (
        None
    )
    samples: Annotated[int, typer.Option(min=64, help="Pictures to fit to")] = 768
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other pictures")] = 0
    batch: options.Batch = 8
    local: options.Local = False
    json: options.Json = False


@options.takes(Options)
def directions(given: Options) -> None:
    """Finds directions: smile, jaw, lids, gaze, brow, yaw, pitch and others, without any labels.

    Ends with a table of what an amount of 1 moves. `reenact inspect` shows it again.
    """
    from core.edit import directions as core_directions

    report, source = Report(given.json), given.source
    output = given.output or Path(source or "base").with_suffix(core_directions.SUFFIX)
    options.check_suffix(output, core_directions.SUFFIX)
    options.check_sheet(given.sheet)
    if source is not None and core_directions.is_foreign(source):
        check_outputs({"directions": output, "sheet": given.sheet}, {"source": source})
        facts = convert(source, output, report)
    else:
        is_character = source is not None and source.suffix == ".character"
        facts = run_task(
            protocol.FitDirections(samples=given.samples, seed=given.seed, batch=given.batch),
            {"character" if is_character else "base": source},
            {"directions": output, "sheet.png": given.sheet},
            report,
            given.local,
        )
    report.result(f"{output}\n{core_directions.table(facts)}", file=str(output), **facts)


def convert(source: Path, output: Path, report: Report) -> dict[str, Any]:
    """Converts another tool's directions, and returns the facts about them."""
    from core.edit import directions as core_directions

    converted = core_directions.load_directions(source)
    core_directions.save_directions(output, converted)
    for note in converted.notes:
        report.note(note)
    return core_directions.facts(converted)
