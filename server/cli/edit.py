"""`reenact edit`: a latent track moved along directions."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from reenact import protocol

from core.base import keyframes
from core.base.errors import ReenactError
from core.base.files import read_json
from server.cli import options
from server.cli.reporting import Report
from server.cli.running import run_task
from server.jobs.edit import load_named_directions


class DirectionsMissingError(ReenactError):
    """There are no directions where they are looked for."""


@dataclass(frozen=True)
class Options:
    """The parameters of `reenact edit`."""

    latents: Annotated[Path, typer.Argument(help="NAME.latents to edit; it stays as it is")]
    output: Annotated[Path, typer.Option("-o", "--output", help="NAME.latents to write")]
    character: options.TrackCharacter = None
    directions: Annotated[
        list[Path] | None,
        typer.Option(
            help="Files of directions, ours or .npy or .pt; may be given several times. Default: "
            "the character's, beside it"
        ),
    ] = None
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="NAME=AMOUNT, such as smile=0.8, or keyframes: yaw=1001:0:smooth,1020:2. "
            "NAME@LAYERS limits it to layers of w+: coarse, middle, fine, 0-5, joined by +",
        ),
    ] = None
    moves: Annotated[
        Path | None, typer.Option(help="JSON list of moves, or a .latents whose edit is repeated")
    ] = None
    edge: Annotated[
        str,
        typer.Option(
            help="Where the character was not trained: continue, stop on the way there, or project "
            "to the nearest place where it was"
        ),
    ] = "continue"
    limit: Annotated[
        float, typer.Option(min=0, help="How far outside of the scan that is (beta)")
    ] = 0.02
    local: options.Local = False
    json: options.Json = False


@options.takes(Options)
def edit(given: Options) -> None:
    """Moves a track along directions: a smile, a turn of the head, a lid.

    The new track remembers what was done and to which track; nothing is solved again.
    """
    from core.edit.editing import check_recipe
    from core.solve.latent_track import load_track

    report, latents, output = Report(given.json), given.latents, given.output
    track = load_track(latents)
    options.check_suffix(output, ".latents")
    character = given.character or options.find_character(track.character, latents)
    files = given.directions or [_beside(character)]
    moves = [setting(text) for text in given.set_ or []]
    edge, limit = given.edge, given.limit
    if given.moves is not None:
        earlier, recipe = recalled(given.moves)
        moves = earlier + moves
        if recipe is not None:
            check_recipe(recipe, load_named_directions(files))
            edge, limit = recipe["edge"], recipe["limit"]
    if not moves:
        raise typer.BadParameter("Say what to change: --set or --moves")
    long = [move.direction for move in moves if len(move.amount) > protocol.MAX_TEXT]
    if long and not given.local:
        raise typer.BadParameter(f"{long[0]} has too many keys for the server: add --local")
    with tempfile.TemporaryDirectory() as folder:
        facts = run_task(
            protocol.Edit(protocol.File(), protocol.File(), [], moves, edge, limit),
            {
                "track": latents,
                "character": character,
                "directions": files if given.local else _converted(files, Path(folder)),
            },
            {"track.latents": output},
            report,
            given.local,
            {"directions": files, "moves": given.moves},
        )
    report.result(f"{output}: {_sentence(facts)}", track=str(output), **facts)


def setting(text: str) -> protocol.Move:
    """Returns the move of a --set option, `NAME[@LAYERS]=AMOUNT`.

    Raises:
        KeyframeError: the amount is neither a number nor keyframes.
    """
    target, equals, amount = text.partition("=")
    name, at, layers = target.strip().partition("@")
    if not (name and equals and amount) or (at and not layers):
        raise typer.BadParameter(f"--set needs NAME=AMOUNT, such as smile=0.8, not {text}")
    keyframes.parse(amount, name)
    return protocol.Move(name, amount, layers)


def recalled(path: Path) -> tuple[list[protocol.Move], Mapping[str, Any] | None]:
    """Returns the moves of a JSON file, or of the edit that made a track; and that edit's recipe.

    Raises:
        EditError: the file holds neither.
        KeyframeError: a move's amount is neither a number nor keyframes.
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
            value = read_json(path)
        except OSError as error:
            raise editing.EditError(f"{path} can't be read: {error.strerror or error}.") from error
        except (ValueError, RecursionError) as error:
            raise editing.EditError(f"{path} can't be read as JSON: {error}.") from error
    moves = [
        protocol.Move(m.direction, keyframes.as_text(m.keys), m.rows)
        for m in editing.moves_from_json(value)
    ]
    return moves, recipe


def _beside(character: Path) -> Path:
    """Returns the directions of a character, where `reenact directions` puts them.

    Raises:
        DirectionsMissingError: they are not there.
    """
    path = character.with_suffix(".directions")
    if not path.exists():
        raise DirectionsMissingError(
            f"There is no {path}. Make it with: reenact directions {character}; or say which "
            "directions to use with --directions."
        )
    return path


def _converted(files: list[Path], folder: Path) -> list[Path]:
    """Returns files in Reenact's own format; others are converted into the folder."""
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
