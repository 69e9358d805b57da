"""`reenact inspect`: what one of Reenact's files holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.base.text import printable
from core.media.numbering import format_numbers
from server.cli import options
from server.cli.reporting import Report
from server.jobs.common import summarise_track

if TYPE_CHECKING:  # torch loads in the commands that need it
    from core.solve.latent_track import LatentTrack


def inspect(
    file: Annotated[Path, typer.Argument(help="NAME.character, .latents, .style or .directions")],
    terms: Annotated[
        bool, typer.Option("--terms", help="Of a track, every term of the objective by frame")
    ] = False,
    json: options.Json = False,
) -> None:
    """Says what a character, a latent track, a style or a file of directions holds."""
    from core.edit import directions

    report = Report(json)
    rows: list[dict[str, Any]] = []
    if file.suffix == ".latents":
        from core.solve.latent_track import load_track

        track = load_track(file)
        facts = summarise_track(track)
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
        facts = character_facts(file)
    text = "\n".join(f"{k:16s} {printable(str(v))}" for k, v in facts.items())
    if rows:
        facts["terms"] = rows
        text += "\n\n" + "".join(f"{name:>16s}" for name in rows[0])
        for row in rows:
            text += "\n" + "".join(f"{'-' if v is None else v:>16}" for v in row.values())
    report.result(text, **facts)


def character_facts(file: Path) -> dict[str, Any]:
    """Returns the facts about a character's file, its last losses among them."""
    from core.personalize.character import load_character

    character = load_character(file)
    facts = {"hash": character.hash, **dataclasses.asdict(character.info)}
    facts["resolution"] = character.resolution
    if character.detail is not None:
        facts["generator_resolution"] = character.generator.architecture.resolution
        facts["detail"] = dataclasses.asdict(character.detail.info) | {
            "losses": character.detail.info.losses[-1:]
        }
    losses = facts.pop("losses")
    facts["last_losses"] = losses[-1] if losses else None
    facts["selected"] = format_numbers(facts["selected"])
    return facts


def frame_terms(track: LatentTrack) -> list[dict[str, Any]]:
    """Returns, for every frame, the terms that it was solved by.

    Returns:
        For each its number, its state, the terms of eq. 10, unweighted, and the keypoint error, px
        of 192; None where the solver did not see a face.
    """
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
