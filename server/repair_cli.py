"""`reenact repair`: parts of a latent track done again, as a new version of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from reenact import protocol

from core.base.files import next_version
from core.media.read import open_clip
from server import method_cli, remote, tasks
from server.reporting import Report


def repair(
    latents: Annotated[Path, typer.Argument(help="NAME.latents")],
    list_: Annotated[
        Path | None,
        typer.Option("--list", help="Repair list, JSON; or a track, whose repairs are made again"),
    ] = None,
    do: Annotated[
        str | None,
        typer.Option(help="Instead of a list: solve, interpolate, hold, replace or amount"),
    ] = None,
    where: Annotated[
        str | None, typer.Option("--frames", help='Frames to repair: "1020-1035, 1040"')
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", help="hold, replace: frames whose codes are taken")
    ] = None,
    blend: Annotated[
        int | None, typer.Option(min=0, help="hold, replace: frames eased at either end")
    ] = None,
    ease: Annotated[
        str | None, typer.Option(help="interpolate: linear (default), smooth or hold")
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="solve: parts that follow the driver: eyes, mouth, head")
    ] = None,
    weight: Annotated[
        list[str] | None, typer.Option(help="solve: of the objective, as mouth=40; repeatable")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="solve: per frame at most")] = None,
    keys: Annotated[
        str | None, typer.Option(help="amount: of the face over the plate, 1001:0:smooth,1010:1")
    ] = None,
    plate: Annotated[
        str | None, typer.Option(help="solve: the driving clip that the track was solved on")
    ] = None,
    character: Annotated[
        Path | None, typer.Option(help="solve; default: the one of the track, beside it or here")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Default: the track's next _vNNN")
    ] = None,
    colour_space: method_cli.ColourSpace = None,
    batch: method_cli.Batch = 8,
    local: method_cli.Local = False,
    json: method_cli.Json = False,
) -> None:
    """Repairs parts of a track and writes a new version; what is not repaired stays bit for bit.

    Ctrl-C keeps what is done; the same command goes on.
    """
    import numpy as np

    from core.base import keyframes
    from core.edit import repair as shot
    from core.solve.latent_track import load_track

    if (list_ is None) == (do is None):
        raise typer.BadParameter("Give --list, or one repair with --do.")
    report = Report(json)
    if list_ is not None:
        entries = shot.read_list(list_)
    else:
        entry = {
            "do": do,
            "frames": where,
            "from": source,
            "blend": blend,
            "ease": ease,
            "only": only,
            "weights": method_cli.named_numbers("--weight", weight) if weight else None,
            "steps": steps,
            "keys": [list(key) for key in keyframes.parse(keys, "--keys")] if keys else None,
        }
        entries = [{name: value for name, value in entry.items() if value is not None}]
    track = load_track(latents)
    solved = [r.rows for r in shot.check(entries, track) if isinstance(r, shot.Solve)]
    output = output or next_version(latents)
    method_cli.check_output(output, ".latents")
    shot.made_before(output, track, entries)
    clip = None
    if solved:
        if plate is None:
            raise typer.BadParameter("To solve frames again, give the driving clip with --plate")
        # Of the plate no more is read, or sent, than is solved.
        wanted = [int(track.numbers[row]) for rows in solved for row in rows]
        clip = open_clip(plate, colour_space=colour_space)
        within = (max(min(wanted), clip.first), min(max(wanted), clip.last))
        if within[0] <= within[1]:
            clip = open_clip(clip.path, *within, colour_space)
        shot.check_plate(clip, track, np.concatenate(solved))
        character = character or method_cli.find_character(track.character, latents)
    task = protocol.Repair(protocol.File(), entries, batch=batch)
    if local:
        from core.personalize.character import load_character

        who = load_character(character) if solved and character else None
        facts = tasks.repair(task, latents, output, report, clip, who)
    else:
        with remote.connected(report) as client:
            task = dataclasses.replace(
                task,
                track=remote.file(client, latents),
                plate=None if clip is None else remote.clip(client, clip, report),
                character=remote.file(client, character) if solved and character else None,
            )
            facts = remote.run(client, task, report, lambda name, number: output)
    report.result(
        f"{output}: repaired {facts['repaired'] or 'no codes'}", track=str(output), **facts
    )
