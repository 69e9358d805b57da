"""`reenact personalize`: from a self-scan to a character."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from reenact import protocol

from core.media.outputs import check_outputs
from server.cli import options
from server.cli.reporting import Report
from server.cli.running import run_task
from server.jobs import common

PICTURES = ("selection.png", "reconstruction.png", "detail.png")


@dataclass(frozen=True)
class Options:
    """The parameters of `reenact personalize`."""

    scan: Annotated[str, typer.Argument(help="Self-scan: movie or sequence, 20 to 30 s")]
    output: Annotated[Path, typer.Option("-o", "--output", help="NAME.character to write")]
    consent: Annotated[
        str,
        typer.Option(help="Name of the person who is scanned and agreed; kept in the character"),
    ] = ""
    resolution: Annotated[
        str,
        typer.Option(
            help="Side of the delivered pictures: 256, 512, 1024 px; auto: what the scan shows"
        ),
    ] = "auto"
    detail_steps: Annotated[
        int, typer.Option(min=1, help="Steps at most in which detail is learnt")
    ] = 800
    add_detail: Annotated[
        Path | None,
        typer.Option(help="Character of this scan that is given detail, without tuning it again"),
    ] = None
    count: Annotated[int, typer.Option(min=2, help="Frames to train on, the most diverse")] = 250
    steps: Annotated[int, typer.Option(min=1, help="Tuning steps at most")] = 2000
    refine: Annotated[
        int | None,
        typer.Option(min=1, help="Steps on each anchor; default: 60 after an encoder, 150 without"),
    ] = None
    mask: Annotated[
        bool, typer.Option(help="Eyes and mouth count more in tuning, the background less")
    ] = True
    base: Annotated[
        Path | None, typer.Option(help="Generator to start from; default: the embedded one")
    ] = None
    encoder: Annotated[
        Path | None, typer.Option(help="W encoder of that generator (pSp, e4e, HyperStyle)")
    ] = None
    metric: Annotated[
        str | None,
        typer.Option(help="lpips-vgg, lpips-alex or embedded; default: what is installed"),
    ] = None
    scope: Annotated[
        str | None, typer.Option(help="What that person agreed to; kept in the character")
    ] = None
    at: options.At = None
    colour_space: options.ColourSpace = None
    batch: options.Batch = 8
    local: options.Local = False
    json: options.Json = False


@options.takes(Options)
def personalize(given: Options) -> None:
    """Makes a character of a self-scan, or gives detail to an older one (--add-detail).

    What is done is kept: the same command goes on where it was stopped.
    """
    from core.media.read import open_clip

    report, output = Report(given.json), given.output
    options.check_suffix(output, ".character")
    clip = open_clip(given.scan, colour_space=given.colour_space)
    resolution = _resolution(given.resolution)
    if not given.consent and given.add_detail is None:
        raise typer.BadParameter("name who is scanned and agreed to it", param_hint="--consent")
    inputs = {
        "scan": clip,
        "base": given.base,
        "encoder": given.encoder,
        "character": given.add_detail,
    }
    names = ["detail.png"] if given.add_detail else [*PICTURES]
    outputs = {"character": output} | {n: output.with_name(f"{output.stem}_{n}") for n in names}
    check_outputs(outputs, inputs)
    if given.base is not None:
        from core.generator.storage import read_generator_header

        read_generator_header(given.base)  # before the scan is read, and anything is sent
    common.note_clip(clip, report)
    if given.add_detail is None:
        report.note(
            f"{outputs['reconstruction.png']} will show frames of the scan above their "
            "reconstructions, renewed during tuning"
        )
    report.note(f"{outputs['detail.png']} will show frames of the scan, with detail and without it")
    task = protocol.Personalize(
        protocol.Clip(),
        output.stem,
        given.consent,
        given.scope or "",
        given.count,
        given.steps,
        given.refine,
        given.metric,
        at=options.point(given.at, clip),
        batch=given.batch,
        mask=given.mask,
        resolution=resolution,
        detail_steps=given.detail_steps,
    )
    facts = run_task(
        task,
        inputs,
        outputs,
        report,
        given.local,
    )
    early = f", {facts['steps']} of {given.steps} steps" if facts["stopped_early"] else ""
    text = (
        f"{output}: {facts['anchors']} anchors ({facts['metric']}), {facts['resolution']} px{early}"
    )
    report.result(text, character=str(output), **facts)


def _resolution(text: str) -> int | None:
    """Reads a resolution; None for "auto"."""
    if text == "auto":
        return None
    if not text.isdecimal() or len(text) > 4:
        raise typer.BadParameter(f"auto or a number of px, not {text}", param_hint="--resolution")
    return int(text)
