"""`reenact style`: from a character to one that is drawn in another style."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from reenact import protocol

from server.cli import options
from server.cli.reporting import Report
from server.cli.running import run_task


@dataclass(frozen=True)
class Options:
    """The parameters of `reenact style`."""

    character: Annotated[Path, typer.Argument(help="NAME.character")]
    output: Annotated[Path, typer.Option("-o", "--output", help="NAME.style to write")]
    program: Annotated[
        str, typer.Option(help="Towards a drawing: sketch, posterise or charcoal")
    ] = ""
    prompt: Annotated[
        str, typer.Option(help="Towards what a sentence says, by CLIP: 'a bronze statue'")
    ] = ""
    source: Annotated[str, typer.Option(help="What the prompt is compared with")] = (
        protocol.Stylize.source
    )
    pictures: Annotated[
        str | None,
        typer.Option(help="Towards example pictures of faces: art.####.png, a still or a movie"),
    ] = None
    clip: Annotated[
        list[str] | None,
        typer.Option(help="CLIP model for prompt or pictures; several: give it several times"),
    ] = None
    adaptive: Annotated[
        int | None,
        typer.Option(min=1, help="With CLIP: layers trained at a time, those that matter most"),
    ] = None
    steps: Annotated[int, typer.Option(min=1, help="Training steps at most")] = (
        protocol.Stylize.steps
    )
    batch: options.Batch = protocol.Stylize.batch
    local: options.Local = False
    json: options.Json = False


@options.takes(Options)
def style(given: Options) -> None:
    """Makes a style of a character: `render --style` then draws any of its tracks so.

    The style so far and NAME_preview.png (the character above, the style below) are written every
    few steps. Ctrl-C keeps them; the same command goes on.
    """
    from core.media.read import open_clip

    report, output = Report(given.json), given.output
    options.check_suffix(output, ".style")
    pictures = None if given.pictures is None else open_clip(given.pictures)
    preview = output.with_name(f"{output.stem}_preview.png")
    report.note(f"{preview} will show the style below the character, renewed during training")
    task = protocol.Stylize(
        protocol.File(),
        output.stem,
        given.program,
        given.prompt,
        given.source,
        None if pictures is None else protocol.Clip(),
        given.clip or [],
        given.adaptive,
        given.steps,
        given.batch,
    )
    facts = run_task(
        task,
        {"character": given.character, "pictures": pictures},
        {"style": output, "preview.png": preview},
        report,
        given.local,
    )
    report.result(
        f"{output}: {facts['steps']} steps, landmarks {facts['alignment']:.2f} px of 192 from "
        "the character's",
        style=str(output),
        **facts,
    )
