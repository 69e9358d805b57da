"""Jobs that find the directions of a character or a generator."""

from __future__ import annotations

import copy
from typing import Any

from reenact import protocol

from server.jobs.common import Context, Kind, device


def run(task: protocol.FitDirections, context: Context) -> dict[str, Any]:
    """Finds the directions of a character, of a generator or of the embedded one."""
    from core.edit import directions
    from core.generator.checkpoints import load_any
    from core.media.write import write_png
    from core.synthetic.base import base_generator

    files, report = context.files, context.report
    settings = directions.DirectionSettings(
        task.samples, max(task.samples // 64, 2), max(task.samples // 48, 2), task.seed, task.batch
    )
    if "character" in files:
        character = context.load_character(files["character"])
        generator = character.generator.to(device())
        code = character.anchors.mean(0).to(device())
        found = directions.find_in_character(character, report, settings)
    else:
        base = files.get("base")
        generator = copy.deepcopy(base_generator()) if base is None else load_any(base)[0]
        generator.to(device())
        code = generator.mapping.w_avg
        name = "the embedded generator" if base is None else "a generator"
        found = directions.find_in_generator(generator, report, settings, name)
    directions.save_directions(context.outputs["directions"], found)
    if "sheet.png" in context.outputs:
        write_png(context.outputs["sheet.png"], directions.sheet(generator, code, found))
    for note in found.notes:
        report.note(note)
    for name in ("directions", "sheet.png"):
        context.announce(name)
    return directions.facts(found)


KIND = Kind(
    name="fit_directions",
    task=protocol.FitDirections,
    lane="long",
    results={"directions": "result.directions", "sheet.png": "sheet.png"},
    run=run,
)
