"""`reenact solve`: from a driving clip to a latent track."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from reenact import protocol

from server.cli import options
from server.cli.reporting import Report
from server.cli.running import run_task
from server.jobs import common


@dataclass(frozen=True)
class Options:
    """The parameters of `reenact solve`."""

    plate: Annotated[str, typer.Argument(help="Driving clip, with a range: plate.####.exr 1-50")]
    character: Annotated[Path, typer.Option(help="NAME.character")]
    output: Annotated[Path, typer.Option("-o", "--output", help="NAME.latents to write")]
    previous: Annotated[
        Path | None,
        typer.Option(
            help="A track of this shot: only PLATE's range is solved again, the rest kept"
        ),
    ] = None
    preset: Annotated[str, typer.Option(help="default, or paper for its literal reading")] = (
        "default"
    )
    neutral: Annotated[
        str | None,
        typer.Option(
            help="How the two neutral faces differ: auto measures it over the shot, off leaves the "
            "difference in, DRIVING:SCAN names a frame of each in which the face is neutral"
        ),
    ] = None
    handles: Annotated[
        int, typer.Option(min=0, help="Frames solved before and after PLATE's range too")
    ] = 0
    steps: Annotated[int | None, typer.Option(min=1, help="Steps per frame at most")] = None
    at: options.At = None
    colour_space: options.ColourSpace = None
    batch: options.Batch = 8
    local: options.Local = False
    json: options.Json = False


@options.takes(Options)
def solve(given: Options) -> None:
    """Finds the character's latent code for every frame of a driving clip.

    Ctrl-C keeps what is done; the same command goes on.
    """
    from core.media.read import open_clip, with_handles

    if given.handles and given.previous:
        raise typer.BadParameter("--previous needs no --handles: its other frames are the handles")
    if given.at and given.previous:
        raise typer.BadParameter("--previous needs no --at: it knows whose face was followed")
    report, output = Report(given.json), given.output
    options.check_suffix(output, ".latents")
    clip = open_clip(given.plate, colour_space=given.colour_space)
    if given.handles:
        clip = with_handles(clip, given.handles)
    common.note_clip(clip, report)
    task = protocol.Solve(
        protocol.Clip(),
        protocol.File(),
        None,
        given.preset,
        given.neutral or "",
        given.steps,
        options.point(given.at, clip),
        given.batch,
    )
    facts = run_task(
        task,
        {"plate": clip, "character": given.character, "previous": given.previous},
        {"track.latents": output},
        report,
        given.local,
    )
    report.result(f"{output}: {_sentence(facts)}", track=str(output), **facts)


def _sentence(facts: dict[str, Any]) -> str:
    states = ", ".join(f"{n} {state.replace('_', ' ')}" for state, n in facts["states"].items())
    text = f"{facts['frames']} frames ({states})"
    if facts["keypoint_error"] is not None:
        text += (
            f", keypoint error {facts['keypoint_error']:.2f} px of 192, "
            f"largest in {facts['worst_frame']}"
        )
    return text
