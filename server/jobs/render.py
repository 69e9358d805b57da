"""Jobs that draw a track."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from reenact import __version__, protocol

from core.base.errors import ReenactError
from server.jobs.common import BadOptionError, Context, Kind, device, require_complete

if TYPE_CHECKING:
    import numpy as np

    from core.personalize.character import Character
    from core.render.patch import PatchOptions
    from core.solve.latent_track import LatentTrack
    from core.stylize.style import Mix


class NothingToRenderError(ReenactError):
    """The plate has none of the track's frames."""


def run(task: protocol.Render, context: Context) -> dict[str, Any]:
    """Draws a track, or those of its frames that the plate has; frames that are there are kept.

    Returns:
        The number of frames, and the numbers of those in which no face could be placed.

    Raises:
        NotFinishedError: the track is partial.
        NothingToRenderError: the plate has none of its frames.
    """
    import numpy as np

    from core.media.numbering import format_numbers
    from core.media.write import write_png
    from core.render import preview
    from core.solve.latent_track import load_track

    report, plate = context.report, context.clips.get("plate")
    character = context.load_character(context.files["character"])
    track = load_track(context.files["track"], character.hash)
    require_complete(track, task.name or "The track")
    numbers = [int(n) for n in track.numbers]
    if plate is not None:
        track.check_plate(plate)
        numbers = [n for n in numbers if n in set(plate.numbers)]
    if not numbers:
        raise NothingToRenderError(
            f"The plate has none of the frames of the track, "
            f"{format_numbers(track.numbers.tolist())}. Choose the clip it was solved on."
        )
    if len(numbers) < len(track.numbers):
        others = sorted({*track.numbers.tolist()} - {*numbers})
        report.note(f"not in the plate, not rendered: {format_numbers(others)}")
    mix = style_mix(task, context, track, character)
    with report.stage("rendering") as progress:
        written = 0

        def on_frame(number: int) -> None:
            nonlocal written
            written += 1
            context.announce("frame", number)
            progress(written, len(numbers))

        chosen = np.flatnonzero(np.isin(track.numbers, numbers))
        empty = draw(
            task, context, track, chosen, character, patch_options(task), mix, task.batch, on_frame
        )
    if empty:
        report.note(f"no face: {format_numbers(empty)} (fully transparent)")
    if plate is not None and task.sheet:
        picture = preview.sheet(
            character.generator,
            track,
            plate,
            context.clips.get("truth"),
            detail=character.detail,
            mix=mix,
        )
        write_png(context.outputs["sheet.png"], picture)
    if plate is not None and task.movie:
        pattern, movie = str(context.outputs["frame"]), context.outputs["preview.mp4"]
        with report.stage("preview") as progress:
            preview.movie(pattern, plate, numbers, movie, progress)
    if plate is not None:
        for name, wanted in (("preview.mp4", task.movie), ("sheet.png", task.sheet)):
            if wanted:
                context.announce(name)
    return {"frames": len(numbers), "empty": empty}


def patch_options(task: protocol.Render) -> PatchOptions:
    """Returns how a task's patches are finished.

    Raises:
        BadOptionError: of the layers or their names, or an amount out of its range.
    """
    from core.render.patch import PatchOptions

    if task.layers not in (layers := protocol.CHOICES["layers"]):
        raise BadOptionError(f"layers must be {' or '.join(layers)}, not {task.layers}.")
    check_layer_names(task)
    for name, unit in (("match", ""), ("grain", ""), ("motion_blur", " degrees")):
        amount, greatest = getattr(task, name), protocol.GREATEST[name]
        if not 0 <= amount <= greatest:
            called = name.replace("_", " ")
            raise BadOptionError(f"{called} must be 0 to {greatest}{unit}, not {amount:g}.")
    return PatchOptions(
        "all" if task.layers == "all" else "basic", task.match, task.grain, task.motion_blur
    )


def check_layer_names(task: protocol.Render | protocol.Frame) -> None:
    """
    Raises:
        BadOptionError: there is no such version of the layers' names.
    """
    from core.render.layers import NEWEST, PLAIN

    if task.layer_names not in (PLAIN, NEWEST):
        raise BadOptionError(
            f"layer names must be {PLAIN} or {NEWEST}, not {task.layer_names}. If the plugin is "
            "newer than the server, update the server."
        )


def check(task: protocol.Render) -> None:
    """
    Raises:
        BadOptionError: of the layers, or an amount out of its range.
    """
    patch_options(task)


def style_mix(
    task: protocol.Render | protocol.Frame,
    context: Context,
    track: LatentTrack,
    character: Character,
) -> Mix | None:
    """Returns how much of a style each frame of a track gets; None without a style."""
    from core.stylize.style import load_style, mix

    if "style" not in context.files:
        return None
    style = load_style(context.files["style"], character, task.sibling)
    return mix(style, track.numbers, task.style_amount, task.style_from, task.style_to)


def draw(
    task: protocol.Render | protocol.Frame,
    context: Context,
    track: LatentTrack,
    chosen: np.ndarray,
    character: Character,
    options: PatchOptions,
    mix: Mix | None,
    batch: int,
    on_frame: Callable[[int], None],
) -> list[int]:
    """Draws some frames of a track to the context's `frame` pattern.

    Args:
        task: names the track, and the colour space and the layers' names of the frames.
        context: with the plate, if the faces are placed on one.
        track: complete.
        chosen: indices of the frames in the track.
        character: that the track was solved for.
        options: how the patches are finished.
        mix: of a style, if there is one.
        batch: frames drawn at once.
        on_frame: called with the number of each frame that is written.

    Returns:
        The numbers of the frames in which no face could be placed.
    """
    from core.base.digest import digest
    from core.render.frames import FrameFiles, write_frames

    plate = context.clips.get("plate")
    character = character.to(device())
    where = (plate and (plate.shown, plate.colour_space), task.colour_space)
    named = task if task.plate is None else task.plate
    file = named.config_file  # by its content: its path in the job's folder says nothing
    config = (named.config, file and (file.hash or file.path))
    attributes: dict[str, object] = {
        "reenact:character": track.character,
        "reenact:track": task.name,
        "reenact:consent": f"{character.info.consent.get('who', '')}",
    }
    style = None
    if mix is not None:
        style = mix.digest()
        attributes["reenact:style"] = mix.style.hash
    files = FrameFiles(
        str(context.outputs["frame"]),
        # With the version: frames of one shot must not be drawn by two.
        digest(
            __version__, track.character, where, options, style, *(config if any(config) else ())
        ),
        attributes,
        task.colour_space,
        context.config,
        task.layer_names,
        context.reusable,
    )
    return write_frames(
        character.generator,
        track,
        chosen,
        files,
        plate,
        options,
        detail=character.detail,
        mix=mix,
        batch=batch,
        done=on_frame,
    )


KIND = Kind(
    name="render",
    task=protocol.Render,
    lane="long",
    results={"frame": "out.####.exr", "preview.mp4": "preview.mp4", "sheet.png": "sheet.png"},
    run=run,
    check=check,
)
