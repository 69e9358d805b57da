"""Jobs that solve a driving clip: a latent code for each of its frames."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from reenact import protocol

from server.jobs.common import (
    BadOptionError,
    Context,
    Kind,
    NotInTrackError,
    device,
    point,
    require_complete,
    summarise_track,
)

if TYPE_CHECKING:
    from core.media.clip import Clip
    from core.solve.latent_track import LatentTrack
    from core.solve.settings import SolveSettings


def run(task: protocol.Solve, context: Context) -> dict[str, Any]:
    """Solves a shot; while it is solved the partial track lies at the output.

    Raises:
        NotFinishedError, NotInTrackError, BadOptionError: the plate's frames of the previous track
            can't be solved again.
    """
    from core.solve.driving import driving_from_clip, driving_from_track
    from core.solve.latent_track import load_track
    from core.solve.preview import SolvePreview
    from core.solve.settings import MAX_RESOLUTION
    from core.solve.shot import solve_shot

    plate = context.clips["plate"]
    character = context.load_character(context.files["character"])
    size = min(MAX_RESOLUTION, character.generator.architecture.resolution)
    previous: LatentTrack | None = None
    if "previous" in context.files:
        previous = load_track(context.files["previous"])
        check_previous(previous, plate)
    with context.report.stage("tracking") as progress:
        if previous is None:
            driving = driving_from_clip(
                plate, at=point(task.at, plate), size=size, device=device(), progress=progress
            )
        else:
            driving = driving_from_track(plate, previous, plate.numbers, size)
    character = dataclasses.replace(character, generator=character.generator.to(device()))
    preview: SolvePreview | None = None
    if context.picture is not None:
        preview = SolvePreview(character, driving, context.picture, context.on_picture)
    with context.report.stage("solving") as progress:
        track = solve_shot(
            character,
            driving,
            settings(task),
            path=context.outputs["track.latents"],
            previous=previous,
            progress=progress,
            on_solved=progress,
            on_batch=preview,
        )
    context.announce("track.latents")
    return summarise_track(track)


def check_previous(track: LatentTrack, plate: Clip) -> None:
    """Refuses a track of which a clip's frames can't be solved again.

    Raises:
        NotFinishedError: it is partial.
        NotInTrackError: it lacks some of the clip's frames.
        BadOptionError: it was edited.
    """
    from core.edit.repair import edited
    from core.media.numbering import format_numbers

    require_complete(track, "The previous track")
    track.check_plate(plate)
    absent = sorted({*plate.numbers} - {*track.numbers.tolist()})
    if absent:
        raise NotInTrackError(
            f"The previous track has no {format_numbers(absent)}, only "
            f"{format_numbers(track.numbers.tolist())}. Give the range to solve again."
        )
    if edited(track):
        raise BadOptionError(
            "The previous track was edited, which would be lost in what is solved. Give the track "
            "that it was made from, and edit the result again."
        )


def settings(task: protocol.Solve) -> SolveSettings:
    """Returns the solver's settings for a task.

    Raises:
        BadOptionError: of the preset, or of `neutral`.
    """
    from core.solve.settings import SolveSettings

    if task.preset not in (presets := protocol.CHOICES["preset"]):
        raise BadOptionError(f"The preset must be {' or '.join(presets)}, not {task.preset}.")
    changes: dict[str, Any] = {"batch": task.batch}
    if task.neutral:
        changes["neutral"] = _neutral(task.neutral)
    if task.steps is not None:
        changes |= {"steps": task.steps, "first_steps": task.steps}
    plain = SolveSettings.paper() if task.preset == "paper" else SolveSettings()
    return dataclasses.replace(plain, **changes)


def check(task: protocol.Solve) -> None:
    """
    Raises:
        BadOptionError: of the preset, or of `neutral`.
    """
    settings(task)


def _neutral(text: str) -> Literal["auto"] | tuple[int, int] | None:
    if text in ("auto", "off"):
        return "auto" if text == "auto" else None
    try:
        driving, scan = (int(v) for v in text.split(":"))
    except ValueError:
        raise BadOptionError(f"neutral must be auto, off or DRIVING:SCAN, not {text}.") from None
    return driving, scan


KIND = Kind(
    name="solve",
    task=protocol.Solve,
    lane="long",
    results={"track.latents": "track.latents"},
    run=run,
    check=check,
)
