"""Jobs that draw one frame of a track at once, as it would be after an edit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reenact import protocol

from server.jobs.common import Context, Kind, NotInTrackError, require_complete
from server.jobs.edit import edit_track, load_named_directions
from server.jobs.render import check_layer_names, draw, style_mix

if TYPE_CHECKING:
    from core.render.patch import PatchOptions


def run(task: protocol.Frame, context: Context) -> dict[str, Any]:
    """Draws one frame of a track, as it would be after the task's edit.

    Raises:
        NotFinishedError: the track is partial.
        NotInTrackError: the track or the plate lacks the frame.
    """
    import numpy as np

    from core.media.numbering import format_numbers
    from core.render.geometry import deciding_frames
    from core.solve.latent_track import load_track

    plate = context.clips.get("plate")
    character = context.load_character(context.files["character"])
    track = load_track(context.files["track"], character.hash)
    require_complete(track, task.name or "The track")
    if plate is not None:
        track.check_plate(plate)
    chosen = np.flatnonzero(track.numbers == task.number)
    if not len(chosen) or (plate is not None and task.number not in plate.numbers):
        raise NotInTrackError(
            f"Frame {task.number} is not in the {'plate' if len(chosen) else 'track'}. The track "
            f"has {format_numbers(track.numbers.tolist())}."
        )
    if task.moves:
        directions = load_named_directions(context.several("directions"))
        only = deciding_frames(track, int(chosen[0]))
        track = edit_track(task, track, character, directions, only)
    mix = style_mix(task, context, track, character)
    draw(
        task,
        context,
        track,
        chosen,
        character,
        patch_options(),
        mix,
        1,
        on_frame=lambda number: None,
    )
    context.announce("frame", task.number)
    return {"frames": 1}


def patch_options() -> PatchOptions:
    """Returns how the patch is finished: not at all, so that it is there at once."""
    from core.render.patch import PatchOptions

    return PatchOptions("basic")


KIND = Kind(
    name="frame",
    task=protocol.Frame,
    lane="live",
    results={"frame": "out.####.exr"},
    run=run,
    check=check_layer_names,
)
