"""`reenact personalize | solve | render | inspect`: the method, from two clips to frames.

A command hands its job to a server; with --local it does it in its own process.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from reenact import protocol

from core.base import keyframes
from core.base.errors import ReenactError
from core.base.files import check_writable
from core.media.clip import Clip
from core.media.numbering import format_numbers, frame_path
from core.media.read import open_clip, with_handles
from server import remote, tasks
from server.reporting import Report

if TYPE_CHECKING:  # torch loads in the commands that need it
    from core.solve.latent_track import LatentTrack

Json = Annotated[bool, typer.Option("--json", help="Lines of JSON instead of bars")]
Local = Annotated[bool, typer.Option("--local", help="Work in this process, without a server")]
At = Annotated[
    str | None,
    typer.Option(help="X,Y in px of the first frame of the person to follow, if several"),
]
ColourSpace = Annotated[
    str | None, typer.Option(help="Colour space of the clip, where the default is wrong")
]
Batch = Annotated[
    int, typer.Option(min=1, help="Pictures worked on at once; fewer need less memory")
]


class CharacterMissing(ReenactError):
    """The character that a track was solved for is not where it is looked for."""


def personalize(
    scan: Annotated[str, typer.Argument(help="Self-scan: movie or sequence, 20 to 30 s")],
    output: Annotated[Path, typer.Option("-o", "--output", help="NAME.character to write")],
    consent: Annotated[
        str,
        typer.Option(help="Name of the person who is scanned and agreed; kept in the character"),
    ],
    count: Annotated[int, typer.Option(min=2, help="Frames to train on, the most diverse")] = 250,
    steps: Annotated[int, typer.Option(min=1, help="Tuning steps at most")] = 2000,
    refine: Annotated[
        int | None,
        typer.Option(min=1, help="Steps on each anchor; default: 60 after an encoder, 150 without"),
    ] = None,
    mask: Annotated[
        bool, typer.Option(help="Eyes and mouth count more in tuning, the background less")
    ] = True,
    base: Annotated[
        Path | None, typer.Option(help="Generator to start from; default: the embedded one")
    ] = None,
    encoder: Annotated[
        Path | None, typer.Option(help="W encoder of that generator (pSp, e4e, HyperStyle)")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="lpips-vgg, lpips-alex or embedded; default: what is there")
    ] = None,
    scope: Annotated[
        str | None, typer.Option(help="To what that person agreed; kept in the character")
    ] = None,
    at: At = None,
    colour_space: ColourSpace = None,
    batch: Batch = 8,
    local: Local = False,
    json: Json = False,
) -> None:
    """Makes a character of a self-scan.

    What is done is kept: the same command goes on where it was stopped.
    """
    report = Report(json)
    check_output(output, ".character")
    clip = open_clip(scan, colour_space=colour_space)
    tasks.note_clip(clip, report)
    task = protocol.Personalize(
        protocol.Clip(),
        output.stem,
        consent,
        scope or "",
        count,
        steps,
        refine,
        metric,
        at=point(at, clip),
        batch=batch,
        mask=mask,
    )
    if local:
        made = tasks.personalize(task, clip, output, report, base, encoder).info
        facts = {"anchors": len(made.selected), "metric": made.metric, "last": made.losses[-1:]}
    else:
        with remote.connected(report) as client:
            task = dataclasses.replace(
                task,
                scan=remote.clip(client, clip, report),
                base=None if base is None else remote.file(client, base),
                encoder=None if encoder is None else remote.file(client, encoder),
            )

            def place(name: str, number: int) -> Path:
                return output if name == "character" else output.with_name(f"{output.stem}_{name}")

            facts = remote.run(client, task, report, place)
    report.result(
        f"{output}: {facts['anchors']} anchors ({facts['metric']})", character=str(output), **facts
    )


def solve(
    plate: Annotated[str, typer.Argument(help="Driving clip, with a range: plate.####.exr 1-50")],
    character: Annotated[Path, typer.Option(help="NAME.character")],
    output: Annotated[Path, typer.Option("-o", "--output", help="NAME.latents to write")],
    previous: Annotated[
        Path | None,
        typer.Option(
            help="A track of this shot: only PLATE's range is solved again, the rest kept"
        ),
    ] = None,
    preset: Annotated[str, typer.Option(help="default, or paper for its literal reading")] = (
        "default"
    ),
    neutral: Annotated[
        str | None,
        typer.Option(
            help="What the faces' shapes at rest differ by: auto measures it over the shot, off "
            "leaves it in, DRIVING:SCAN are frames in which both are at rest"
        ),
    ] = None,
    handles: Annotated[
        int, typer.Option(min=0, help="Frames solved before and after PLATE's range too")
    ] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps per frame at most")] = None,
    at: At = None,
    colour_space: ColourSpace = None,
    batch: Batch = 8,
    local: Local = False,
    json: Json = False,
) -> None:
    """Finds the character's latent code for every frame of a driving clip.

    Ctrl-C keeps what is done; the same command goes on.
    """
    if handles and previous:
        raise typer.BadParameter("--previous needs no --handles: its other frames are the handles")
    if at and previous:
        raise typer.BadParameter("--previous needs no --at: it knows whose face was followed")
    report = Report(json)
    check_output(output, ".latents")
    clip = open_clip(plate, colour_space=colour_space)
    if handles:
        clip = with_handles(clip, handles)
    tasks.note_clip(clip, report)
    task = protocol.Solve(
        protocol.Clip(), protocol.File(), None, preset, neutral or "", steps, point(at, clip), batch
    )
    tasks.settings(task)  # what makes no sense is said before anything is sent
    if local:
        from core.personalize.character import load_character

        who = load_character(character)
        facts = tasks.summarise(tasks.solve(task, clip, who, output, report, previous))
    else:
        with remote.connected(report) as client:
            task = dataclasses.replace(
                task,
                plate=remote.clip(client, clip, report),
                character=remote.file(client, character),
                previous=None if previous is None else remote.file(client, previous),
            )
            facts = remote.run(client, task, report, lambda name, number: output)
    report.result(f"{output}: {_sentence(facts)}", track=str(output), **facts)


def render(
    latents: Annotated[Path, typer.Argument(help="NAME.latents")],
    output: Annotated[str, typer.Option("-o", "--output", help="EXRs to write: out.####.exr")],
    plate: Annotated[
        str | None, typer.Option(help="Driving clip: the face is placed on it. Default: crops")
    ] = None,
    character: Annotated[
        Path | None, typer.Option(help="Default: the one of the track, beside it or here")
    ] = None,
    movie: Annotated[Path | None, typer.Option(help="Preview to write, .mp4")] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="PNG to write: driving frames above results")
    ] = None,
    truth: Annotated[
        str | None, typer.Option(help="What should come out, if it is known: for the sheet")
    ] = None,
    layers: Annotated[
        str, typer.Option(help="all, or basic: the uncomposited render alone")
    ] = "all",
    match: Annotated[
        float, typer.Option(help="0 to 1: grade towards the plate's skin, by so much")
    ] = 0.0,
    grain: Annotated[float, typer.Option(help="0 to 1: add the plate's grain, by so much")] = 0.0,
    motion_blur: Annotated[
        float, typer.Option(help="Shutter in degrees; 180 is a film camera's")
    ] = 0.0,
    style: Annotated[
        Path | None, typer.Option(help="NAME.style of the character, or StyleGAN-NADA's child.pt")
    ] = None,
    style_amount: Annotated[
        str, typer.Option(help="0 to 1, or keyframes: 1001:0:smooth,1020:1")
    ] = "1",
    style_from: Annotated[
        int | None, typer.Option(help="Coarsest block that takes the style, px: 4, 8, 16, ...")
    ] = None,
    style_to: Annotated[
        int | None, typer.Option(help="Finest block that takes the style, px")
    ] = None,
    sibling: Annotated[
        bool,
        typer.Option("--sibling", help="Take a style of another character of the same base"),
    ] = False,
    colour_space: ColourSpace = None,
    output_space: Annotated[
        str | None, typer.Option(help="Colour space of the EXRs; by default scene-linear")
    ] = None,
    batch: Batch = 8,
    local: Local = False,
    json: Json = False,
) -> None:
    """Draws a latent track: EXR crops, or patches to merge over the plate.

    With a plate, only frames in its range are drawn: handles are not delivered. Frames that are
    already there are kept; the same command goes on after Ctrl-C.
    """
    from core.solve.latent_track import load_track

    if "#" not in output or Path(output).suffix.lower() != ".exr":
        raise typer.BadParameter(f"-o needs a pattern like out.####.exr, not {output}")
    if plate is None and (movie or sheet):
        raise typer.BadParameter("--movie and --sheet show the driving plate too: give --plate")
    report = Report(json)
    for path in (output, movie, sheet):
        if path is not None:
            check_writable(path)
    track = load_track(latents)
    character = character or find_character(track.character, latents)
    clip = None if plate is None else open_clip(plate, colour_space=colour_space)
    known = open_clip(truth) if truth else None
    task = protocol.Render(
        protocol.File(),
        protocol.File(),
        None,
        movie is not None,
        sheet is not None,
        name=latents.name,
        colour_space=output_space,
        batch=batch,
        layers=layers,
        match=match,
        grain=grain,
        motion_blur=motion_blur,
        style_amount=style_amount,
        style_from=style_from,
        style_to=style_to,
        sibling=sibling,
    )
    tasks.finish(task)  # what makes no sense is said before anything is sent
    keyframes.parse(style_amount, "--style-amount")
    if local:
        from core.personalize.character import load_character

        who = load_character(character)
        track = load_track(latents, who.hash)
        numbers, empty = tasks.render(
            task, track, who, clip, output, report, movie, sheet, known, style=style
        )
        facts = {"frames": len(numbers), "empty": empty}
    else:
        with remote.connected(report) as client:
            task = dataclasses.replace(
                task,
                track=remote.file(client, latents),
                character=remote.file(client, character),
                plate=None if clip is None else remote.clip(client, clip, report),
                truth=None if known is None else remote.clip(client, known, report),
                style=None if style is None else remote.file(client, style),
            )

            def place(name: str, number: int) -> Path | None:
                if name == "frame":
                    return Path(frame_path(output, number))
                return {"preview.mp4": movie, "sheet.png": sheet}.get(name)

            facts = remote.run(client, task, report, place)
    report.result(f"{output}: {facts['frames']} frames", pattern=output, **facts)


def inspect(
    file: Annotated[Path, typer.Argument(help="NAME.character, .latents, .style or .directions")],
    terms: Annotated[
        bool, typer.Option("--terms", help="Of a track, every term of the objective by frame")
    ] = False,
    json: Json = False,
) -> None:
    """Says what a character, a latent track, a style or a file of directions holds."""
    from core.edit import directions
    from core.personalize.character import load_character
    from core.solve.latent_track import load_track

    report = Report(json)
    rows: list[dict[str, Any]] = []
    if file.suffix == ".latents":
        track = load_track(file)
        facts: dict[str, Any] = tasks.summarise(track)
        if track.parent:
            facts |= {"parent": track.parent, "recipe": list(track.recipe)}
        rows = frame_terms(track) if terms else []
    elif file.suffix == ".style":
        from core.stylize.style import style_info

        facts = dataclasses.asdict(style_info(file))
        facts["losses"] = facts["losses"][-1:]
    elif file.suffix in (directions.SUFFIX, *directions.FOREIGN):
        facts = directions.facts(directions.load_directions(file))
        report.result(directions.table(facts), **facts)
        return
    else:
        who = load_character(file)
        facts = {"hash": who.hash, **dataclasses.asdict(who.info)}
        facts["resolution"] = who.generator.architecture.resolution
        losses = facts.pop("losses")
        facts["last_losses"] = losses[-1] if losses else None
        facts["selected"] = format_numbers(facts["selected"])
    text = "\n".join(f"{k:16s} {v}" for k, v in facts.items())
    if rows:
        facts["terms"] = rows
        text += "\n\n" + "".join(f"{name:>16s}" for name in rows[0])
        for row in rows:
            text += "\n" + "".join(f"{'-' if v is None else v:>16}" for v in row.values())
    report.result(text, **facts)


def frame_terms(track: LatentTrack) -> list[dict[str, Any]]:
    """Of every frame its number, its state, the terms of eq. 10, unweighted, and the keypoint
    error, px of 192; None where the solver did not see a face."""
    import numpy as np

    from core.solve.latent_track import FrameState

    tables = {**track.losses, **track.quality}
    return [
        {
            "frame": int(number),
            "state": FrameState(int(track.state[i])).name.lower(),
            **{
                name: round(float(values[i]), 4) if np.isfinite(values[i]) else None
                for name, values in tables.items()
            },
        }
        for i, number in enumerate(track.numbers)
    ]


def find_character(wanted: str, track: Path) -> Path:
    """The character file of a hash, in the track's folder or the current one.

    Raises:
        CharacterMissing: it is in neither.
    """
    from core.personalize.character import NotACharacterError, character_hash

    folders = list(dict.fromkeys([track.resolve().parent, Path.cwd()]))
    for folder in folders:
        for path in sorted(folder.glob("*.character")):
            try:
                if character_hash(path) == wanted:
                    return path
            except NotACharacterError:
                continue
    raise CharacterMissing(
        f"The character of {track} (hash {wanted[:12]}) is not in "
        f"{' or '.join(map(str, folders))}. Say where it is with --character."
    )


def check_output(path: Path, suffix: str) -> None:
    """Refuses a file that could not be written, or would not be known by its name.

    Raises:
        typer.BadParameter: another suffix.
        core.base.files.NotWritableError: there is no place for it.
    """
    if path.suffix != suffix:
        raise typer.BadParameter(f"-o must name a {suffix} file, not {path}")
    check_writable(path)


def named_numbers(option: str, texts: list[str]) -> dict[str, float]:
    """What a repeatable option gives as NAME=NUMBER."""
    values = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            values[name] = float(value)
        except ValueError:
            raise typer.BadParameter(f"{option} needs NAME=NUMBER, not {text!r}") from None
    return values


def point(text: str | None, clip: Clip) -> list[float] | None:
    """The point of an --at option, plate px."""
    if text is None:
        return None
    try:
        x, y = (float(v) for v in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"--at needs X,Y in plate px, not {text!r}") from None
    tasks.point([x, y], clip)
    return [x, y]


def _sentence(summary: dict[str, Any]) -> str:
    states = ", ".join(f"{n} {state.replace('_', ' ')}" for state, n in summary["states"].items())
    text = f"{summary['frames']} frames ({states})"
    if summary["keypoint_error"] is not None:
        text += (
            f", keypoint error {summary['keypoint_error']:.2f} px of 192, "
            f"largest in {summary['worst_frame']}"
        )
    return text
