"""`reenact track`: a face followed through a clip, and shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.markup import escape
from rich.progress import track as progress

from core.media.errors import FrameError
from core.media.numbering import format_numbers
from core.media.outputs import check_outputs
from server.cli import options
from server.cli.reporting import Report, Terminal
from server.jobs import common

if TYPE_CHECKING:
    from core.media.clip import Clip

console = Terminal(highlight=False, soft_wrap=True)  # a wrapped path can't be copied


def track(
    clip: Annotated[str, typer.Argument(help="Movie, still, or sequence: shot.####.exr 1001-1050")],
    sheet: Annotated[
        Path | None, typer.Option(help="Overlay sheet to write; default: CLIP_track.png here")
    ] = None,
    at: Annotated[
        str | None, typer.Option(help="X,Y in plate px of the person to follow, if several")
    ] = None,
    colour_space: options.ColourSpace = None,
) -> None:
    """Follows a face through a clip and writes an overlay sheet of it."""
    from core.media.read import open_clip

    opened = open_clip(clip, colour_space=colour_space)
    sheet = sheet or Path(f"{Path(opened.path).name.split('.')[0]}_track.png")
    options.check_sheet(sheet)
    check_outputs({"sheet": sheet}, {"clip": opened})  # before the work, not after it
    track_clip(opened, sheet, common.point(options.point(at, opened), opened))


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

    Raises:
        core.media.errors.FrameError: a frame can't be read; the sheet shows those before it.
    """
    from core.face.sheets import track_sheet
    from core.face.tracking import track_face
    from core.media.read import read_network_frames
    from core.media.write import write_png

    common.note_clip(clip, Report())
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
        device=common.device(),
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
