"""`reenact render`: from a latent track to frames."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from reenact import protocol

from core.base import keyframes
from core.base.errors import ReenactError
from core.media.numbering import as_pattern, is_pattern
from core.render.layers import NEWEST
from server.cli import options
from server.cli.reporting import Report
from server.cli.running import run_task

if TYPE_CHECKING:
    from core.media.clip import Clip


MOVIES = (".mp4", ".mov", ".m4v", ".mkv")  # that H.264 may lie in


@dataclass(frozen=True)
class Options:
    """The parameters of `reenact render`."""

    latents: Annotated[Path, typer.Argument(help="NAME.latents")]
    output: Annotated[str, typer.Option("-o", "--output", help="EXRs to write: out.####.exr")]
    plate: Annotated[
        str | None, typer.Option(help="Driving clip: the face is placed on it. Default: crops")
    ] = None
    character: options.TrackCharacter = None
    movie: Annotated[Path | None, typer.Option(help="Preview to write, .mp4")] = None
    sheet: Annotated[
        Path | None, typer.Option(help="PNG to write: driving frames above results")
    ] = None
    truth: Annotated[
        str | None, typer.Option(help="What should come out, if it is known: for the sheet")
    ] = None
    layers: Annotated[str, typer.Option(help="all, or basic: the uncomposited render alone")] = (
        "all"
    )
    match: Annotated[
        float, typer.Option(help="0 to 1: how much it is graded towards the plate's skin")
    ] = 0.0
    grain: Annotated[float, typer.Option(help="0 to 1: how much of the plate's grain it gets")] = (
        0.0
    )
    motion_blur: Annotated[
        float, typer.Option(help="Shutter in degrees; 180 is a film camera's")
    ] = 0.0
    style: Annotated[
        Path | None, typer.Option(help="NAME.style of the character, or StyleGAN-NADA's child.pt")
    ] = None
    style_amount: Annotated[
        str, typer.Option(help="0 to 1, or keyframes: 1001:0:smooth,1020:1")
    ] = "1"
    style_from: Annotated[
        int | None, typer.Option(help="Coarsest block that takes the style, px: 4, 8, 16, ...")
    ] = None
    style_to: Annotated[int | None, typer.Option(help="Finest block that takes the style, px")] = (
        None
    )
    sibling: Annotated[
        bool,
        typer.Option("--sibling", help="Take a style of another character of the same base"),
    ] = False
    colour_space: options.ColourSpace = None
    output_space: Annotated[
        str | None, typer.Option(help="Colour space of the EXRs; by default scene-linear")
    ] = None
    batch: options.Batch = 8
    local: options.Local = False
    json: options.Json = False


@options.takes(Options)
def render(given: Options) -> None:
    """Draws a latent track: EXR crops, or patches to merge over the plate.

    With a plate, only frames in its range are drawn: handles are not delivered. Frames that are
    already there are kept; the same command goes on after Ctrl-C.
    """
    from core.media.read import open_clip
    from core.solve.latent_track import load_track

    output = as_pattern(given.output)
    if not is_pattern(output) or Path(output).suffix.lower() != ".exr":
        raise typer.BadParameter(f"-o needs a pattern like out.####.exr, not {output}")
    if given.movie is not None and given.movie.suffix.lower() not in MOVIES:
        raise typer.BadParameter(f"--movie must name a .mp4 file, not {given.movie}")
    options.check_sheet(given.sheet)
    if given.plate is None and (given.movie or given.sheet):
        raise typer.BadParameter("--movie and --sheet show the driving plate too: give --plate")
    report = Report(given.json)
    track = load_track(given.latents)
    character = given.character or options.find_character(track.character, given.latents)
    plate = truth = None
    if given.plate is not None:
        plate = open_clip(given.plate, colour_space=given.colour_space)
    if given.truth:
        truth = open_clip(given.truth)
    task = protocol.Render(
        protocol.File(),
        protocol.File(),
        None,
        given.movie is not None,
        given.sheet is not None,
        name=given.latents.name,
        colour_space=given.output_space,
        batch=given.batch,
        layers=given.layers,
        match=given.match,
        grain=given.grain,
        motion_blur=given.motion_blur,
        style_amount=given.style_amount,
        style_from=given.style_from,
        style_to=given.style_to,
        sibling=given.sibling,
        config=os.environ.get("OCIO", "") if given.output_space else "",
        layer_names=NEWEST,
    )
    keyframes.parse(given.style_amount, "--style-amount")
    facts = run_task(
        task,
        {
            "track": given.latents,
            "character": character,
            "plate": plate,
            "truth": truth,
            "style": given.style,
        },
        {"frame": Path(output), "preview.mp4": given.movie, "sheet.png": given.sheet},
        report,
        given.local,
        # Also where the plate is another, or none: no frame is written over it.
        {"driving clip of the track": _solved_on(track.source)},
    )
    report.result(f"{output}: {facts['frames']} frames", pattern=output, **facts)


def _solved_on(source: str) -> Clip | None:
    """Returns the clip that a track was solved on, if it still is where it was."""
    from core.media.read import open_clip

    try:
        return open_clip(source) if source else None
    except ReenactError:
        return None
