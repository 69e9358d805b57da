"""What the commands' options share."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec, TypeVar

import typer

from core.base.errors import ReenactError
from server.jobs import common

if TYPE_CHECKING:
    from core.media.clip import Clip

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
TrackCharacter = Annotated[
    Path | None, typer.Option(help="Default: the one of the track, beside it or here")
]

P = ParamSpec("P")
T = TypeVar("T")


class CharacterMissingError(ReenactError):
    """The character that a track was solved for is not where it is looked for."""


def takes(options: Callable[P, T]) -> Callable[[Callable[[T], None]], Callable[P, None]]:
    """Makes a command of a function that takes a dataclass, whose fields become its parameters.

    Args:
        options: the dataclass; its fields are annotated as typer's parameters are.
    """

    def decorate(command: Callable[[T], None]) -> Callable[P, None]:
        @functools.wraps(command)
        def called(*args: P.args, **kwargs: P.kwargs) -> None:
            command(options(*args, **kwargs))

        hints = typing.get_type_hints(options, include_extras=True)
        parameters = [
            parameter.replace(annotation=hints[parameter.name])
            for parameter in inspect.signature(options).parameters.values()
        ]
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = hints
        return called

    return decorate


def find_character(wanted: str, track: Path) -> Path:
    """Returns the character file of a hash, from the track's folder or the current one.

    Of several, one with detail is taken.

    Raises:
        CharacterMissingError: it is in neither.
    """
    from core.personalize.character import NotACharacterError, character_hash, has_detail

    folders = list(dict.fromkeys([track.resolve().parent, Path.cwd()]))
    for folder in folders:
        found = []
        for path in sorted(folder.glob("*.character")):
            with suppress(NotACharacterError):
                if character_hash(path) == wanted:
                    found.append(path)
        if found:
            return max(found, key=has_detail)
    raise CharacterMissingError(
        f"The character of {track} (hash {wanted[:12]}) is not in "
        f"{' or '.join(map(str, folders))}. Say where it is with --character."
    )


def check_suffix(path: Path | None, suffix: str, option: str = "-o") -> None:
    """Refuses an output that would not be known by its name; None is no output.

    Raises:
        typer.BadParameter: another suffix.
    """
    if path is not None and path.suffix != suffix:
        raise typer.BadParameter(f"{option} must name a {suffix} file, not {path}")


def check_sheet(path: Path | None) -> None:
    """
    Raises:
        typer.BadParameter: the path of a --sheet is no .png file's.
    """
    if path is not None and path.suffix.lower() != ".png":
        raise typer.BadParameter(f"--sheet must name a .png file, not {path}")


def named_numbers(option: str, texts: list[str]) -> dict[str, float]:
    """Returns what a repeatable option gives as NAME=NUMBER."""
    values = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            values[name] = float(value)
        except ValueError:
            raise typer.BadParameter(f"{option} needs NAME=NUMBER, not {text!r}") from None
    return values


def point(text: str | None, clip: Clip) -> list[float] | None:
    """Returns the point of an --at option, px of the plate."""
    if text is None:
        return None
    try:
        x, y = (float(v) for v in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"--at needs X,Y in plate px, not {text!r}") from None
    common.point([x, y], clip)
    return [x, y]
