"""Jobs that repair parts of a track."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

from reenact import protocol

from core.base.files import work_folder
from server.jobs.common import Context, Kind, device, summarise_track


def run(task: protocol.Repair, context: Context) -> dict[str, Any]:
    """Repairs a track; what is solved meanwhile lies in a work folder beside the output.

    Returns:
        The facts about the repaired track, and the frames that were repaired.
    """
    from core.edit import repair as shot
    from core.media.numbering import format_numbers
    from core.solve.latent_track import load_track, save_track

    output = context.outputs["track.latents"]
    before = load_track(context.files["track"])
    repairs = shot.check(task.repairs, before)
    repaired = shot.existing_repair(output, before, task.repairs)
    if repaired is None:
        character = None
        if "character" in context.files:
            character = context.load_character(context.files["character"])
            generator = character.generator.to(device())
            character = dataclasses.replace(character, generator=generator)
        work = work_folder(output)
        with context.report.stage("repairing") as progress:
            repaired = shot.repair(
                before,
                task.repairs,
                character=character,
                plate=context.clips.get("plate"),
                batch=task.batch,
                work=work,
                progress=progress,
            )
        save_track(output, repaired)
        shutil.rmtree(work, ignore_errors=True)
    seen = shot.affected_neighbours(before, repaired, repairs)
    if seen:
        context.report.note(
            f"what was repaired still shows in frames beside it, {format_numbers(seen)}: "
            "they were smoothed together. Repair them too to be rid of it."
        )
    context.announce("track.latents")
    numbers = before.numbers[shot.changed_frames(repairs)].tolist()
    return summarise_track(repaired) | {"repaired": format_numbers(numbers)}


KIND = Kind(
    name="repair",
    task=protocol.Repair,
    lane="long",
    results={"track.latents": "track.latents"},
    run=run,
    removed=lambda outputs: work_folder(outputs["track.latents"]),
)
