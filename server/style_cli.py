"""`reenact style`: from a character to another hand that draws it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from reenact import protocol

from core.media.read import open_clip
from server import method_cli, remote, tasks
from server.reporting import Report


def style(
    character: Annotated[Path, typer.Argument(help="NAME.character")],
    output: Annotated[Path, typer.Option("-o", "--output", help="NAME.style to write")],
    program: Annotated[
        str, typer.Option(help="Towards a drawing: sketch, posterise or charcoal")
    ] = "",
    prompt: Annotated[
        str, typer.Option(help="Towards what a sentence says, by CLIP: 'a bronze statue'")
    ] = "",
    source: Annotated[
        str, typer.Option(help="What the prompt is compared with")
    ] = protocol.Stylize.source,
    pictures: Annotated[
        str | None,
        typer.Option(help="Towards example pictures of faces: art.####.png, a still or a movie"),
    ] = None,
    clip: Annotated[
        list[str] | None,
        typer.Option(help="CLIP model for prompt or pictures; several: give it several times"),
    ] = None,
    adaptive: Annotated[
        int | None,
        typer.Option(min=1, help="With CLIP: layers trained at a time, those that matter most"),
    ] = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Training steps at most")
    ] = protocol.Stylize.steps,
    batch: method_cli.Batch = protocol.Stylize.batch,
    local: method_cli.Local = False,
    json: method_cli.Json = False,
) -> None:
    """Makes a style of a character: `render --style` then draws any of its tracks so.

    The style so far and NAME_preview.png (the character above, the style below) are written every
    few steps. Ctrl-C keeps them; the same command goes on.
    """
    report = Report(json)
    method_cli.check_output(output, ".style")
    examples = None if pictures is None else open_clip(pictures)
    task = protocol.Stylize(
        protocol.File(),
        output.stem,
        program,
        prompt,
        source,
        None if examples is None else protocol.Clip(),
        clip or [],
        adaptive,
        steps,
        batch,
    )
    tasks.check_style(task)  # what makes no sense is said before anything is sent
    if local:
        from core.personalize.character import load_character

        who = load_character(character)
        facts = tasks.summarise_style(tasks.stylize(task, who, output, report, examples))
    else:
        with remote.connected(report) as client:
            task = dataclasses.replace(
                task,
                character=remote.file(client, character),
                pictures=None if examples is None else remote.clip(client, examples, report),
            )

            def place(name: str, number: int) -> Path | None:
                return {
                    "style": output,
                    "preview.png": output.with_name(f"{output.stem}_preview.png"),
                }.get(name)

            facts = remote.run(client, task, report, place)
    report.result(
        f"{output}: {facts['steps']} steps, landmarks {facts['alignment']:.2f} px of 192 from "
        "the character's",
        style=str(output),
        **facts,
    )
