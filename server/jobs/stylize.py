"""Jobs that make a style of a character."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reenact import protocol

from core.base.files import work_folder
from server.jobs.common import BadOptionError, Context, Kind, device

if TYPE_CHECKING:
    from core.personalize.character import Character
    from core.stylize.training import Method


def run(task: protocol.Stylize, context: Context) -> dict[str, Any]:
    """Makes a style; its preview and, while it is made, its work folder lie beside it.

    Style and preview are announced each time that they got better.

    Returns:
        The facts about the style that a person asks for first.
    """
    from core.personalize.tuning import evaluation_interval
    from core.stylize import training

    character = context.load_character(context.files["character"])

    def announce() -> None:
        context.announce("style")
        context.announce("preview.png")

    style = training.stylize(
        character,
        style_method(task, context, character),
        context.outputs["style"],
        context.report,
        name=task.name,
        device=device(),
        on_preview=announce,
        end_after=context.end_after,
        settings=training.StylizeSettings(
            task.steps, task.batch, check_every=evaluation_interval(task.steps)
        ),
    )
    announce()
    info = style.info
    return {
        "hash": style.hash,
        "parent": info.parent,
        "method": info.method,
        "steps": info.steps,
        "complete": info.complete,
        "stopped_early": info.stopped_early,
        "alignment": None if info.alignment is None else round(info.alignment, 3),
        "last": info.losses[-1:],
    }


def style_method(task: protocol.Stylize, context: Context, character: Character) -> Method:
    """Returns what the style is trained towards."""
    from core.stylize import training
    from core.stylize.clip_model import DEFAULT, load_clip

    if task.program:
        return training.Program(task.program)
    models = tuple(task.clip) or (DEFAULT if task.prompt else ())
    clips = [load_clip(name, device()) for name in models]
    if task.prompt:
        return training.Prompt(task.prompt, task.source, clips, task.adaptive)
    size = character.generator.architecture.resolution
    examples, without = training.align_examples(context.clips["pictures"], size, device())
    if without:
        context.report.note(f"{without} of the example pictures show no face and are not used")
    return training.Examples(examples, clips, task.adaptive)


def check(task: protocol.Stylize) -> None:
    """
    Raises:
        BadOptionError: the style can't be made.
    """
    from core.stylize.pixel_programs import PROGRAMS

    if sum([bool(task.program), bool(task.prompt), task.pictures is not None]) != 1:
        raise BadOptionError(
            "A style goes towards a program, a prompt or example pictures: give one of them."
        )
    if task.program and task.program not in PROGRAMS:
        raise BadOptionError(
            f"The program must be one of {', '.join(PROGRAMS)}, not {task.program}."
        )
    if task.program and (task.clip or task.adaptive):
        raise BadOptionError(
            "CLIP models and adaptive layers are for prompts and pictures, not for a program."
        )
    if task.adaptive and task.pictures is not None and not task.clip:
        raise BadOptionError("Adaptive layers are chosen by CLIP: name a model of it, too.")


KIND = Kind(
    name="stylize",
    task=protocol.Stylize,
    lane="long",
    results={"style": "result.style", "preview.png": "result_preview.png"},
    run=run,
    check=check,
    removed=lambda outputs: work_folder(outputs["style"]),
)
