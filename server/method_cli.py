"""`reenact personalize | solve | render | inspect`: the method, from two clips to frames."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from core import frames
from core.errors import ReenactError
from server.reporting import Report

if TYPE_CHECKING:  # torch loads in the commands that need it
    from core.latent_track import LatentTrack

Json = Annotated[bool, typer.Option("--json", help="Lines of JSON instead of bars")]
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


class NothingToRender(ReenactError):
    """The plate has none of the track's frames."""


class CharacterMissing(ReenactError):
    """The character that a track was solved for is not where it is looked for."""


def device() -> str:
    """Where the networks run."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def personalize(
    scan: Annotated[str, typer.Argument(help="Self-scan: movie or sequence, 20 to 30 s")],
    output: Annotated[Path, typer.Option("-o", "--output", help="NAME.character to write")],
    consent: Annotated[
        str,
        typer.Option(help="Name of the person who is scanned and agreed; kept in the character"),
    ],
    count: Annotated[int, typer.Option(min=2, help="Frames to train on, the most diverse")] = 250,
    steps: Annotated[int, typer.Option(min=1, help="Tuning steps at most")] = 2000,
    refine: Annotated[int, typer.Option(min=0, help="Steps on each anchor after the encoder")] = 60,
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
    json: Json = False,
) -> None:
    """Makes a character of a self-scan.

    What is done is kept beside OUTPUT: the same command goes on where it was stopped.
    """
    from core import personalization
    from core.generator.encoders import load_encoder
    from core.generator.storage import load_generator

    report = Report(json)
    clip = frames.open_clip(scan, colour_space=colour_space)
    note_clip(clip, report)
    result = personalization.personalize(
        clip,
        output,
        report,
        base=None if base is None else load_generator(base)[0],
        encoder=None if encoder is None else load_encoder(encoder),
        settings=personalization.Settings(count, steps, refine, metric, batch),
        consent={"who": consent, "scope": scope or personalization.SCOPE},
        at=point(at, clip),
        device=device(),
    )
    report.result(
        f"{output}: {len(result.info.selected)} anchors ({result.info.metric})",
        character=str(output),
        anchors=len(result.info.selected),
        metric=result.info.metric,
        last=result.info.losses[-1:],
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
    json: Json = False,
) -> None:
    """Finds the character's latent code for every frame of a driving clip.

    Ctrl-C keeps what is done; the same command goes on.
    """
    import dataclasses

    from core import reenactment
    from core.character import load_character
    from core.latent_track import load_track

    if preset not in ("default", "paper"):
        raise typer.BadParameter(f"--preset must be default or paper, not {preset}")
    if handles and previous:
        raise typer.BadParameter("--previous needs no --handles: its other frames are the handles")
    report = Report(json)
    clip = frames.open_clip(plate, colour_space=colour_space)
    if handles:
        clip = frames.with_handles(clip, handles)
    note_clip(clip, report)
    settings = reenactment.Settings.paper() if preset == "paper" else reenactment.Settings()
    changes: dict[str, Any] = {"batch": batch}
    if neutral is not None:
        changes["neutral"] = _neutral(neutral)
    if steps is not None:
        changes |= {"steps": steps, "first_steps": steps}
    settings = dataclasses.replace(settings, **changes)
    who = load_character(character)
    size = min(reenactment.MAX_RESOLUTION, who.generator.architecture.resolution)
    before: LatentTrack | None = None
    with report.stage("tracking") as tick:
        if previous is None:
            driving = reenactment.driving_from_clip(
                clip, at=point(at, clip), size=size, device=device(), progress=tick
            )
        else:
            before = load_track(previous)
            driving = reenactment.driving_from_track(clip, before, clip.numbers, size)
    who = dataclasses.replace(who, generator=who.generator.to(device()))
    with report.stage("solving") as tick:
        track = reenactment.solve(
            who, driving, settings, path=output, previous=before, progress=tick
        )
    summary = summarise(track)
    report.result(f"{output}: {_sentence(summary)}", track=str(output), **summary)


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
    colour_space: ColourSpace = None,
    batch: Batch = 8,
    json: Json = False,
) -> None:
    """Draws a latent track: EXR crops, or patches to merge over the plate.

    With a plate, only frames in its range are drawn: handles are not delivered. Frames that are
    already there are kept; the same command goes on after Ctrl-C.
    """
    import numpy as np

    from core import preview, rendering
    from core.character import load_character
    from core.latent_track import load_track

    if "#" not in output or Path(output).suffix.lower() != ".exr":
        raise typer.BadParameter(f"-o needs a pattern like out.####.exr, not {output}")
    if plate is None and (movie or sheet):
        raise typer.BadParameter("--movie and --sheet show the driving plate too: give --plate")
    report = Report(json)
    if character is None:
        track = load_track(latents)
        who = load_character(find_character(track.character, latents))
    else:
        who = load_character(character)
        track = load_track(latents, who.hash)
    clip = None if plate is None else frames.open_clip(plate, colour_space=colour_space)
    who.generator.to(device())
    rows = slice(None) if clip is None else np.isin(track.numbers, clip.numbers)
    numbers = [int(n) for n in track.numbers[rows]]
    if not numbers:
        raise NothingToRender(
            f"{plate} has none of the frames of {latents}: "
            f"{frames.format_numbers(track.numbers.tolist())}. Choose the clip it was solved on."
        )
    if len(numbers) < len(track.numbers):
        others = sorted({*track.numbers.tolist()} - {*numbers})
        report.note(f"not in the plate, not rendered: {frames.format_numbers(others)}")
    task = hashlib.sha256(track.smooth.tobytes() + track.quads.tobytes())
    task.update(repr((track.character, clip and (clip.path, clip.colour_space))).encode())
    attributes: dict[str, object] = {
        "reenact:character": track.character,
        "reenact:track": str(latents),
        "reenact:consent": f"{who.info.consent.get('who', '')}",
    }
    with report.stage("rendering") as tick:
        done = iter(range(1, len(numbers) + 1))
        empty = rendering.write_frames(
            who.generator, track.smooth[rows], track.quads[rows], numbers, output, task.hexdigest(),
            attributes, clip, batch=batch, done=lambda number: tick(next(done), len(numbers)),
        )  # fmt: skip
    if empty:
        report.note(f"no face: {frames.format_numbers(empty)} (fully transparent)")
    known = frames.open_clip(truth) if truth else None
    if clip is not None and sheet:
        frames.write_png(sheet, preview.sheet(who.generator, track, clip, known))
    if clip is not None and movie:
        with report.stage("preview") as tick:
            preview.movie(output, clip, numbers, movie, tick)
    report.result(
        f"{output}: {len(numbers)} frames", frames=len(numbers), pattern=output, empty=empty
    )


def inspect(
    file: Annotated[Path, typer.Argument(help="NAME.character or NAME.latents")],
    terms: Annotated[
        bool, typer.Option("--terms", help="Of a track, every term of the objective by frame")
    ] = False,
    json: Json = False,
) -> None:
    """Says what a character or a latent track holds."""
    import dataclasses

    from core.character import load_character
    from core.latent_track import load_track

    report = Report(json)
    rows: list[dict[str, Any]] = []
    if file.suffix == ".latents":
        track = load_track(file)
        facts: dict[str, Any] = summarise(track)
        rows = frame_terms(track) if terms else []
    else:
        who = load_character(file)
        facts = {"hash": who.hash, **dataclasses.asdict(who.info)}
        facts["resolution"] = who.generator.architecture.resolution
        losses = facts.pop("losses")
        facts["last_losses"] = losses[-1] if losses else None
        facts["selected"] = frames.format_numbers(facts["selected"])
    text = "\n".join(f"{k:16s} {v}" for k, v in facts.items())
    if rows:
        facts["terms"] = rows
        text += "\n\n" + "".join(f"{name:>14s}" for name in rows[0])
        for row in rows:
            text += "\n" + "".join(f"{'-' if v is None else v:>14}" for v in row.values())
    report.result(text, **facts)


def frame_terms(track: LatentTrack) -> list[dict[str, Any]]:
    """Of every frame its number, its state, the terms of eq. 10, unweighted, and the keypoint
    error, px of 192; None where the solver did not see a face."""
    import numpy as np

    from core.latent_track import FrameState

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


def summarise(track: LatentTrack) -> dict[str, Any]:
    """The facts about a track that a person asks for first."""
    import numpy as np

    from core.latent_track import FrameState

    states = {s.name.lower(): int((track.state == s).sum()) for s in FrameState}
    error = track.quality["keypoint_error"]
    known = np.isfinite(error)
    worst = int(track.numbers[known][np.argmax(error[known])]) if known.any() else None
    return {
        "character": track.character,
        "source": track.source,
        "frames": len(track.numbers),
        "range": frames.format_numbers(track.numbers.tolist()),
        "states": {k: v for k, v in states.items() if v},
        "keypoint_error": round(float(np.mean(error[known])), 3) if known.any() else None,
        "worst_frame": worst,
        "created": track.created,
    }


def find_character(wanted: str, track: Path) -> Path:
    """The character file of a hash, in the track's folder or the current one.

    Raises:
        CharacterMissing: it is in neither.
    """
    from core.character import NotACharacter, character_hash

    folders = list(dict.fromkeys([track.resolve().parent, Path.cwd()]))
    for folder in folders:
        for path in sorted(folder.glob("*.character")):
            try:
                if character_hash(path) == wanted:
                    return path
            except NotACharacter:
                continue
    raise CharacterMissing(
        f"The character of {track} (hash {wanted[:12]}) is not in "
        f"{' or '.join(map(str, folders))}. Say where it is with --character."
    )


def point(text: str | None, clip: frames.Clip) -> tuple[float, float] | None:
    """The point of an --at option, plate px."""
    if text is None:
        return None
    try:
        x, y = (float(v) for v in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"--at needs X,Y in plate px, not {text!r}") from None
    if not (0 <= x < clip.width and 0 <= y < clip.height):
        raise typer.BadParameter(f"--at {text} lies outside the plate, {clip.width}x{clip.height}")
    return x, y


def _neutral(text: str) -> Literal["auto"] | tuple[int, int] | None:
    if text == "auto":
        return "auto"
    if text == "off":
        return None
    try:
        driving, scan = (int(v) for v in text.split(":"))
    except ValueError:
        raise typer.BadParameter(
            f"--neutral needs auto, off or DRIVING:SCAN, not {text!r}"
        ) from None
    return driving, scan


def note_clip(clip: frames.Clip, report: Report) -> None:
    """Says what a user should know about a clip before the work."""
    absent = frames.missing(clip)
    if absent:
        report.note(f"missing frames: {frames.format_numbers(absent)}")
    for note in clip.notes:
        report.note(note)


def _sentence(summary: dict[str, Any]) -> str:
    states = ", ".join(f"{n} {state.replace('_', ' ')}" for state, n in summary["states"].items())
    text = f"{summary['frames']} frames ({states})"
    if summary["keypoint_error"] is not None:
        text += (
            f", keypoint error {summary['keypoint_error']:.2f} px of 192, "
            f"largest in {summary['worst_frame']}"
        )
    return text
