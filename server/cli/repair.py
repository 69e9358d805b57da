"""`reenact repair`: parts of a latent track done again, as a new version of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from reenact import protocol

from core.base.files import next_version
from core.media.outputs import check_outputs
from server.cli import options
from server.cli.reporting import Report
from server.cli.running import run_task

if TYPE_CHECKING:  # torch loads in the commands that need it
    import numpy as np

    from core.media.clip import Clip
    from core.solve.latent_track import LatentTrack


@dataclass(frozen=True)
class Options:
    """The parameters of `reenact repair`."""

    latents: Annotated[Path, typer.Argument(help="NAME.latents")]
    list_: Annotated[
        Path | None,
        typer.Option("--list", help="Repair list, JSON; or a track, whose repairs are made again"),
    ] = None
    do: Annotated[
        str | None,
        typer.Option(help="Instead of a list: solve, interpolate, hold, replace or amount"),
    ] = None
    frames: Annotated[
        str | None, typer.Option("--frames", help='Frames to repair: "1020-1035, 1040"')
    ] = None
    source: Annotated[
        str | None, typer.Option("--from", help="hold, replace: frames whose codes are taken")
    ] = None
    blend: Annotated[
        int | None, typer.Option(min=0, help="hold, replace: frames eased at either end")
    ] = None
    ease: Annotated[
        str | None, typer.Option(help="interpolate: linear (default), smooth or hold")
    ] = None
    only: Annotated[
        str | None, typer.Option(help="solve: parts that follow the driver: eyes, mouth, head")
    ] = None
    weight: Annotated[
        list[str] | None, typer.Option(help="solve: of the objective, as mouth=40; repeatable")
    ] = None
    steps: Annotated[int | None, typer.Option(min=1, help="solve: per frame at most")] = None
    keys: Annotated[
        str | None, typer.Option(help="amount: of the face over the plate, 1001:0:smooth,1010:1")
    ] = None
    plate: Annotated[
        str | None, typer.Option(help="solve: the driving clip that the track was solved on")
    ] = None
    character: Annotated[
        Path | None, typer.Option(help="solve; default: the one of the track, beside it or here")
    ] = None
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Default: the track's next _vNNN")
    ] = None
    colour_space: options.ColourSpace = None
    batch: options.Batch = 8
    local: options.Local = False
    json: options.Json = False


@options.takes(Options)
def repair(given: Options) -> None:
    """Repairs parts of a track and writes a new version; what is not repaired stays bit for bit.

    Ctrl-C keeps what is done; the same command goes on.
    """
    from core.edit import repair as shot
    from core.solve.latent_track import load_track

    if (given.list_ is None) == (given.do is None):
        raise typer.BadParameter("Give --list, or one repair with --do.")
    report, latents = Report(given.json), given.latents
    entries = [_entry(given)] if given.list_ is None else shot.read_list(given.list_)
    track = load_track(latents)
    solved = [r.frames for r in shot.check(entries, track) if isinstance(r, shot.Solve)]
    output = given.output or next_version(latents)
    options.check_suffix(output, ".latents")
    plate = character = None
    if solved:
        plate = _open_plate(given, track, solved)
        character = given.character or options.find_character(track.character, latents)
    inputs = {"track": latents, "plate": plate, "character": character}
    check_outputs({"track": output}, {**inputs, "list": given.list_})
    shot.existing_repair(output, track, entries)
    task = protocol.Repair(protocol.File(), entries, batch=given.batch)
    facts = run_task(
        task,
        inputs,
        {"track.latents": output},
        report,
        given.local,
        {"list": given.list_},
    )
    report.result(
        f"{output}: repaired {facts['repaired'] or 'no codes'}", track=str(output), **facts
    )


def _entry(given: Options) -> dict[str, Any]:
    """Returns the entry of a repair list that the options of --do ask for."""
    from core.base import keyframes

    keys, weight = given.keys, given.weight
    entry = {
        "do": given.do,
        "frames": given.frames,
        "from": given.source,
        "blend": given.blend,
        "ease": given.ease,
        "only": given.only,
        "weights": options.named_numbers("--weight", weight) if weight else None,
        "steps": given.steps,
        "keys": [list(key) for key in keyframes.parse(keys, "--keys")] if keys else None,
    }
    return {name: value for name, value in entry.items() if value is not None}


def _open_plate(given: Options, track: LatentTrack, solved: Sequence[np.ndarray]) -> Clip:
    """Opens the plate, limited to the frames that are solved: no more is read, or sent.

    Args:
        given: the options.
        track: that is repaired.
        solved: indices of frames that are solved again, of each repair.

    Raises:
        typer.BadParameter: no plate was given.
    """
    import numpy as np

    from core.edit import repair as shot
    from core.media.read import open_clip

    if given.plate is None:
        raise typer.BadParameter("To solve frames again, give the driving clip with --plate")
    wanted = [int(track.numbers[index]) for indices in solved for index in indices]
    clip = open_clip(given.plate, colour_space=given.colour_space)
    within = (max(min(wanted), clip.first), min(max(wanted), clip.last))
    if within[0] <= within[1]:
        clip = open_clip(clip.path, *within, given.colour_space)
    shot.check_plate(clip, track, np.concatenate(solved))
    return clip
