"""Jobs that make a character of a self-scan."""

from __future__ import annotations

from typing import Any

from reenact import protocol

from core.base.files import work_folder
from server.jobs.common import Context, Kind, device, point


def run(task: protocol.Personalize, context: Context) -> dict[str, Any]:
    """Makes a character, with its pictures and, while it is made, a work folder beside it."""
    from core.generator.encoders import load_encoder
    from core.generator.storage import load_generator
    from core.personalize.pipeline import SCOPE, PersonalizeSettings, add_detail, personalize

    scan, files = context.clips["scan"], context.files
    settings = PersonalizeSettings(
        task.count,
        task.steps,
        task.refine,
        task.metric,
        task.batch,
        task.mask,
        task.resolution,
        task.detail_steps,
    )

    def announce_detail() -> None:
        context.announce("detail.png")

    if "character" in files:
        character = add_detail(
            scan,
            files["character"],
            context.outputs["character"],
            context.report,
            settings=settings,
            at=point(task.at, scan),
            device=device(),
            on_preview=announce_detail,
            end_after=context.end_after,
        )
    else:
        character = personalize(
            scan,
            context.outputs["character"],
            context.report,
            base=load_generator(files["base"])[0] if "base" in files else None,
            encoder=load_encoder(files["encoder"]) if "encoder" in files else None,
            settings=settings,
            consent={"who": task.who, "scope": task.scope or SCOPE},
            name=task.name,
            at=point(task.at, scan),
            device=device(),
            on_preview=lambda: context.announce("reconstruction.png"),
            on_detail_preview=announce_detail,
            end_after=context.end_after,
        )
        context.announce("selection.png")
    context.announce("character")
    return {
        "anchors": len(character.info.selected),
        "metric": character.info.metric,
        "last": character.info.losses[-1:],
        "hash": character.hash,
        "steps": character.info.steps,
        "stopped_early": character.info.stopped_early,
        "resolution": character.resolution,
    }


KIND = Kind(
    name="personalize",
    task=protocol.Personalize,
    lane="long",
    results={
        "character": "result.character",
        "selection.png": "result_selection.png",
        "reconstruction.png": "result_reconstruction.png",
        "detail.png": "result_detail.png",
    },
    run=run,
    removed=lambda outputs: work_folder(outputs["character"]),
)
