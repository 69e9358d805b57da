"""The `reenact` command line."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track as progress
from typer.exceptions import TyperException

from core.base.errors import ReenactError
from core.media.clip import Clip
from core.media.errors import FrameError
from core.media.numbering import format_numbers
from core.media.read import open_clip, read_network_frames
from core.media.write import write_png
from server import (
    demo,
    edit_cli,
    method_cli,
    models_cli,
    qc_cli,
    repair_cli,
    serve_cli,
    style_cli,
    tasks,
)
from server.reporting import Report

app = typer.Typer(
    help="Facial reenactment through a personalized generator.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(models_cli.app, name="models")
app.add_typer(serve_cli.keys, name="keys")
app.add_typer(serve_cli.store, name="store")
app.command("job")(serve_cli.halt)
for command in (
    method_cli.personalize,
    method_cli.solve,
    method_cli.render,
    method_cli.inspect,
    edit_cli.directions,
    edit_cli.edit,
    repair_cli.repair,
    qc_cli.qc,
    style_cli.style,
    demo.demo,
    serve_cli.serve,
    serve_cli.status,
    serve_cli.logs,
):
    app.command()(command)
console = Console(highlight=False, soft_wrap=True)  # a wrapped path can't be copied


def main() -> None:
    """Runs the command line; an error meant for the user is a sentence, not a traceback."""
    try:
        if "--json" in sys.argv:  # not even what is wrong with an option is shown as a panel
            sys.exit(app(standalone_mode=False) or 0)
        app()
    except TyperException as error:
        _fail(error.format_message(), error.exit_code)
    except typer.Abort:
        sys.exit(130)
    except ReenactError as error:
        _fail(str(error), 2 if isinstance(error, tasks.BadOption) else 1)
    except OSError as error:
        if error.filename is None:
            raise
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            _fail(f"{error.filename}: {error.strerror}.")
        _fail(f"No space left for {error.filename}. Free some and run the same command again.")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        _fail("Too little memory. Run the same command again with a smaller --batch.")


def _fail(message: str, code: int = 1) -> NoReturn:
    if "--json" in sys.argv:
        print(json.dumps({"error": message}), flush=True)
    stderr = Console(stderr=True, highlight=False, soft_wrap=True)
    stderr.print(f"[red]reenact:[/red] {escape(message)}")
    sys.exit(code)


@app.command()
def track(
    clip: Annotated[str, typer.Argument(help="Movie, still, or sequence: shot.####.exr 1001-1050")],
    sheet: Annotated[
        Path | None, typer.Option(help="Overlay sheet to write; default: CLIP_track.png here")
    ] = None,
    at: Annotated[
        str | None, typer.Option(help="X,Y in plate px of the person to follow, if several")
    ] = None,
    colour_space: Annotated[
        str | None, typer.Option(help="Colour space of the clip, where the default is wrong")
    ] = None,
) -> None:
    """Follows a face through a clip and writes an overlay sheet of it."""
    opened = open_clip(clip, colour_space=colour_space)
    sheet = sheet or Path(f"{Path(opened.path).name.split('.')[0]}_track.png")
    # Before the work, not after it.
    if sheet.suffix.lower() != ".png" or sheet.is_dir():
        raise typer.BadParameter(f"--sheet must name a .png file, not {sheet}")
    track_clip(opened, sheet, tasks.point(method_cli.point(at, opened), opened))


def track_clip(
    clip: Clip,
    sheet: Path,
    at: tuple[float, float] | None = None,
) -> None:
    """Tracks a clip, says what was found and writes the overlay sheet.

    Args:
        clip: from `open_clip`.
        sheet: PNG to write; see `core.face.sheets.track_sheet`.
        at: plate px of the person to follow.
    """
    from core.face.sheets import track_sheet
    from core.face.tracking import track_face

    tasks.note_clip(clip, Report())
    clipped: dict[int, float] = {}
    broken: list[FrameError] = []

    def pictures() -> Iterator[tuple[int, np.ndarray]]:
        try:
            for frame in read_network_frames(clip):
                if frame.clipping.above:
                    clipped[frame.number] = frame.clipping.fraction_above
                yield frame.number, frame.srgb
        except FrameError as error:
            broken.append(error)

    found = track_face(
        progress(pictures(), "  tracking", total=len(clip.numbers), console=console),
        at=at,
        pixel_aspect=clip.pixel_aspect,
        device=tasks.device(),
    )
    total, with_face = len(found.numbers), int(found.found.sum())
    share = f" ({100 * with_face / total:.1f} %)" if total else ""
    console.print(
        f"  {clip.width} x {clip.height}, {escape(clip.colour_space)}: "
        f"face in {with_face} of {total} frames{share}"
    )
    for title, numbers in (
        ("no face", found.numbers[~found.found]),
        ("cuts at", found.numbers[found.cut]),
    ):
        if len(numbers):
            console.print(f"  {title}: {format_numbers(numbers.tolist())}")
    if clipped:
        worst = max(clipped, key=clipped.__getitem__)
        console.print(
            f"  highlights above 1 in {len(clipped)} frames, "
            f"most in {worst} ({100 * clipped[worst]:.1f} % of its pixels)"
        )
    if total:
        write_png(sheet, track_sheet(clip, found))
        console.print(f"  overlay sheet: {escape(str(sheet))}")
    if broken:
        raise broken[0]


if __name__ == "__main__":
    main()
