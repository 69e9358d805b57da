"""Jobs that move a track's codes along directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from reenact import protocol

from server.jobs.common import Context, Kind

if TYPE_CHECKING:
    import numpy as np

    from core.edit import editing
    from core.edit.directions import Direction
    from core.personalize.character import Character
    from core.solve.latent_track import LatentTrack


def run(task: protocol.Edit, context: Context) -> dict[str, Any]:
    """Edits a track.

    Returns:
        How many frames changed, and how far outside of the anchors' hull the weights lie.
    """
    import numpy as np

    from core.edit.directions import (
        compatibility_notes,
        load_directions,
        merge_directions,
    )
    from core.edit.editing import coordinates, dilation
    from core.solve.latent_track import load_track, save_track

    character = context.load_character(context.files["character"])
    track = load_track(context.files["track"], character.hash)
    files = [load_directions(path) for path in context.several("directions")]
    for file in files:
        for note in compatibility_notes(file, character):
            context.report.note(note)
    directions = merge_directions(files)
    edited = edit_track(task, track, character, directions)
    save_track(context.outputs["track.latents"], edited)
    context.announce("track.latents")
    anchors = character.anchors.cpu().numpy()
    used = {move.direction: directions[move.direction] for move in task.moves}
    changed = (edited.smooth != track.smooth).any((1, 2))
    before, after = (dilation(t.weights) for t in (track, edited))
    return {
        "frames": len(track.numbers),
        "changed": int(changed.sum()),
        "dilation": round(float(after.max(initial=0)), 4),
        "dilation_before": round(float(before.max(initial=0)), 4),
        "worst_frame": int(track.numbers[np.argmax(after)]) if changed.any() else None,
        "spans": {name: round(coordinates(d.vector, anchors)[1], 3) for name, d in used.items()},
    }


def edit_track(
    task: protocol.Edit | protocol.Frame,
    track: LatentTrack,
    character: Character,
    directions: Mapping[str, Direction],
    only: np.ndarray | None = None,
) -> LatentTrack:
    """Returns a track after a task's moves.

    Args:
        task: with moves, and what happens at the edge of what the character was trained on.
        track: stays as it is.
        character: that the track was solved for.
        directions: by the names that the moves call them.
        only: indices of the frames that are edited; None: all.
    """
    from core.base import keyframes
    from core.edit import editing

    moves = [
        editing.Move(m.direction, keyframes.parse(m.amount, m.direction), m.rows)
        for m in task.moves
    ]
    edge = cast("editing.Edge", task.edge)  # checked by the edit
    return editing.edit(track, character, directions, moves, edge, task.limit, only)


def load_named_directions(paths: Sequence[Path]) -> dict[str, Direction]:
    """Returns the directions of several files, by name."""
    from core.edit import directions

    return directions.merge_directions([directions.load_directions(path) for path in paths])


KIND = Kind(
    name="edit",
    task=protocol.Edit,
    lane="live",
    results={"track.latents": "track.latents"},
    run=run,
)
