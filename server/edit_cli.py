"""`reenact directions | edit`: what a generator can be moved along, and tracks that are."""

from __future__ import annotations

import dataclasses
import json as json_
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from reenact import protocol

from core.base import keyframes
from core.base.errors import ReenactError
from server import remote, tasks
from server.method_cli import Batch, Json, Local, check_output, find_character
from server.reporting import Report


class DirectionsMissing(ReenactError):
    """There are no directions where they are looked for."""


def directions(
    source: Annotated[
        Path | None,
        typer.Argument(
            help="NAME.character; a generator; or another tool's directions (.npy, .pt), which are "
            "converted. Default: the embedded generator"
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Default: NAME.directions beside SOURCE")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="PNG to write: every direction at -2 to 2")
    ] = None,
    samples: Annotated[int, typer.Option(min=64, help="Pictures to fit to")] = 768,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other pictures")] = 0,
    batch: Batch = 8,
    local: Local = False,
    json: Json = False,
) -> None:
    """Finds directions: smile, jaw, lids, gaze, brow, yaw, pitch and others, without any labels.

    Ends with a table of what an amount of 1 moves. `reenact inspect` shows it again.
    """
    from core.edit import directions as core_directions

    report = Report(json)
    output = output or Path(source or "base").with_suffix(core_directions.SUFFIX)
    check_output(output, core_directions.SUFFIX)
    if sheet is not None and (sheet.suffix.lower() != ".png" or sheet.is_dir()):
        raise typer.BadParameter(f"--sheet must name a .png file, not {sheet}")
    if source is not None and core_directions.is_foreign(source):
        converted = core_directions.load_directions(source)
        core_directions.save_directions(output, converted)
        for note in converted.notes:
            report.note(note)
        facts = core_directions.facts(converted)
        report.result(f"{output}\n{core_directions.table(facts)}", file=str(output), **facts)
        return
    task = protocol.FitDirections(samples=samples, seed=seed, batch=batch)
    character = source if source is not None and source.suffix == ".character" else None
    base = source if character is None else None
    if local:
        from core.personalize.character import load_character

        who = None if character is None else load_character(character)
        facts = tasks.fit_directions(task, who, base, output, sheet, report)
    else:
        with remote.connected(report) as client:
            task = dataclasses.replace(
                task,
                character=None if character is None else remote.file(client, character),
                base=None if base is None else remote.file(client, base),
            )

            def place(name: str, number: int) -> Path | None:
                return output if name == "directions" else sheet

            facts = remote.run(client, task, report, place)
    report.result(f"{output}\n{core_directions.table(facts)}", file=str(output), **facts)


def edit(
    latents: Annotated[Path, typer.Argument(help="NAME.latents to edit; it stays as it is")],
    output: Annotated[Path, typer.Option("-o", "--output", help="NAME.latents to write")],
    character: Annotated[
        Path | None, typer.Option(help="Default: the one of the track, beside it or here")
    ] = None,
    directions: Annotated[
        list[Path] | None,
        typer.Option(
            help="Files of directions, ours or .npy or .pt; may be given several times. Default: "
            "the character's, beside it"
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="NAME=AMOUNT, such as smile=0.8, or keyframes: yaw=1001:0:smooth,1020:2. "
            "NAME@ROWS limits it to rows of w+: coarse, middle, fine, 0-5, joined by +",
        ),
    ] = None,
    moves: Annotated[
        Path | None, typer.Option(help="JSON list of moves, or a .latents whose edit is repeated")
    ] = None,
    edge: Annotated[
        str,
        typer.Option(
            help="Where the character was not trained: continue, stop on the way there, or project "
            "to the nearest place where it was"
        ),
    ] = "continue",
    limit: Annotated[
        float, typer.Option(min=0, help="How far outside of the scan that is (beta)")
    ] = 0.02,
    local: Local = False,
    json: Json = False,
) -> None:
    """Moves a track along directions: a smile, a turn of the head, a lid.

    The new track remembers what was done and to which track; nothing is solved again.
    """
    from core.edit.editing import check_recipe
    from core.solve.latent_track import load_track

    report = Report(json)
    track = load_track(latents)
    check_output(output, ".latents")
    if output.resolve() == latents.resolve():
        raise typer.BadParameter(f"-o would overwrite the track that is edited, {latents}")
    character = character or find_character(track.character, latents)
    files = directions or [_beside(character)]
    asked = [setting(text) for text in set_ or []]
    if moves is not None:
        before, made = recalled(moves)
        asked = before + asked
        if made is not None:
            check_recipe(made, tasks.named_directions(files))
            edge, limit = made["edge"], made["limit"]
    if not asked:
        raise typer.BadParameter("Say what to change: --set or --moves")
    task = protocol.Edit(protocol.File(), protocol.File(), [], asked, edge, limit)
    long = [move.direction for move in asked if len(move.amount) > protocol.MAX_TEXT]
    if long and not local:
        raise typer.BadParameter(f"{long[0]} has too many keys for the server: add --local")
    if local:
        from core.personalize.character import load_character

        who = load_character(character)
        track = load_track(latents, who.hash)
        facts = tasks.edit(task, track, who, files, output, report)
    else:
        with tempfile.TemporaryDirectory() as folder, remote.connected(report) as client:
            task = dataclasses.replace(
                task,
                track=remote.file(client, latents),
                character=remote.file(client, character),
                directions=client.send(_ours(files, Path(folder))),
            )
            facts = remote.run(client, task, report, lambda name, number: output)
    report.result(f"{output}: {_sentence(facts)}", track=str(output), **facts)


def setting(text: str) -> protocol.Move:
    """The move of a --set option, `NAME[@ROWS]=AMOUNT`.

    Raises:
        KeyframeError: the amount is neither a number nor keyframes.
    """
    target, equals, amount = text.partition("=")
    name, at, rows = target.strip().partition("@")
    if not (name and equals and amount) or (at and not rows):
        raise typer.BadParameter(f"--set needs NAME=AMOUNT, such as smile=0.8, not {text}")
    keyframes.parse(amount, name)
    return protocol.Move(name, amount, rows)


def recalled(path: Path) -> tuple[list[protocol.Move], Mapping[str, Any] | None]:
    """The moves of a JSON file, or of the edit that made a track; and that edit's recipe.

    Raises:
        EditError: the file holds neither.
        KeyframeError: a move's keys are none.
    """
    from core.edit import editing
    from core.solve.latent_track import load_track

    recipe = None
    if path.suffix == ".latents":
        recipe = next((step for step in load_track(path).recipe if step["do"] == "edit"), None)
        if recipe is None:
            raise editing.EditError(f"{path} was not made by an edit.")
        value = recipe["moves"]
    else:
        try:
            value = json_.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise editing.EditError(f"{path} can't be read: {error.strerror or error}.") from error
        except ValueError as error:
            raise editing.EditError(f"{path} can't be read as JSON: {error}.") from error
    moves = [
        protocol.Move(m.direction, keyframes.as_text(m.keys), m.rows)
        for m in editing.moves_from_json(value)
    ]
    return moves, recipe


def _beside(character: Path) -> Path:
    """The directions of a character, where `reenact directions` puts them."""
    path = character.with_suffix(".directions")
    if not path.exists():
        raise DirectionsMissing(
            f"There is no {path}. Make it with: reenact directions {character}; or say which "
            "directions to use with --directions."
        )
    return path


def _ours(files: list[Path], folder: Path) -> list[Path]:
    """The files in Reenact's own format; others are converted into the folder."""
    from core.edit import directions

    paths = []
    for i, path in enumerate(files):
        if directions.is_foreign(path):
            converted = folder / f"{i}{directions.SUFFIX}"
            directions.save_directions(converted, directions.load_directions(path))
            path = converted
        paths.append(path)
    return paths


def _sentence(facts: dict[str, Any]) -> str:
    text = f"{facts['changed']} of {facts['frames']} frames changed"
    if facts["changed"]:
        text += (
            f"; dilation {facts['dilation']:.3f} in {facts['worst_frame']} (before: "
            f"{facts['dilation_before']:.3f} at most)"
        )
    partly = {name: share for name, share in facts["spans"].items() if share < 0.99}
    for name, share in partly.items():
        text += f"\n  {name}: {100 * share:.0f} % of it lies in the span of this character's scan"
    return text
