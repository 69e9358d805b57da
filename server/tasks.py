"""What the jobs do, in whichever process: the command line's own, or a worker of the server.

Each is safe to run again in the same place: what an earlier run finished is kept.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from reenact import __version__, protocol

from core.base.digest import digest
from core.base.errors import ReenactError
from core.base.files import atomic_write
from core.media.clip import Clip, missing_numbers
from core.media.numbering import format_numbers
from core.media.write import write_png

if TYPE_CHECKING:  # torch loads when a task runs
    import numpy as np

    from core.base.progress import Report
    from core.edit import editing
    from core.edit.directions import Direction
    from core.personalize.character import Character
    from core.render.frames import PatchOptions
    from core.solve.latent_track import LatentTrack
    from core.stylize.style import Mix, Style


QC_FILES = ("report.html", "qc.csv", "qc.json", "repairs.json")


class NothingToRender(ReenactError):
    """The plate has none of the track's frames."""


class NotInTrack(ReenactError):
    """A frame that the track does not have."""


class NotFinished(ReenactError):
    """A track with frames that are not solved yet."""


class BadOption(ReenactError):
    """A setting that makes no sense; the message says which do."""


def device() -> str:
    """Where the networks run."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def personalize(
    task: protocol.Personalize,
    scan: Clip,
    output: Path,
    report: Report,
    base: Path | None = None,
    encoder: Path | None = None,
) -> Character:
    """Makes a character; its pictures come beside it, and its work folder while it is made."""
    from core.generator.encoders import load_encoder
    from core.generator.storage import load_generator
    from core.personalize import pipeline
    from core.personalize.pipeline import SCOPE, PersonalizeSettings

    return pipeline.personalize(
        scan,
        output,
        report,
        base=None if base is None else load_generator(base)[0],
        encoder=None if encoder is None else load_encoder(encoder),
        settings=PersonalizeSettings(
            task.count, task.steps, task.refine, task.metric, task.batch, task.mask
        ),
        consent={"who": task.who, "scope": task.scope or SCOPE},
        name=task.name,
        at=point(task.at, scan),
        device=device(),
    )


def solve(
    task: protocol.Solve,
    plate: Clip,
    character: Character,
    output: Path,
    report: Report,
    previous: Path | None = None,
) -> LatentTrack:
    """Solves a shot; the partial track lies at the output while it is solved."""
    from core.solve.driving import driving_from_clip, driving_from_track
    from core.solve.latent_track import load_track
    from core.solve.settings import MAX_RESOLUTION
    from core.solve.shot import solve_shot

    size = min(MAX_RESOLUTION, character.generator.architecture.resolution)
    before: LatentTrack | None = None if previous is None else load_track(previous)
    if before is not None:
        _check_previous(before, plate)
    with report.stage("tracking") as tick:
        if before is None:
            driving = driving_from_clip(
                plate, at=point(task.at, plate), size=size, device=device(), progress=tick
            )
        else:
            driving = driving_from_track(plate, before, plate.numbers, size)
    who = dataclasses.replace(character, generator=character.generator.to(device()))
    with report.stage("solving") as tick:
        return solve_shot(who, driving, settings(task), path=output, previous=before, progress=tick)


def _check_previous(track: LatentTrack, plate: Clip) -> None:
    """Refuses a track of which a clip's frames can't be solved again."""
    from core.edit.repair import edited

    _check_complete(track, "The previous track")
    track.check_plate(plate)
    absent = sorted({*plate.numbers} - {*track.numbers.tolist()})
    if absent:
        raise NotInTrack(
            f"The previous track has no {format_numbers(absent)}, only "
            f"{format_numbers(track.numbers.tolist())}. Give the range to solve again."
        )
    if edited(track):
        raise BadOption(
            "The previous track was edited, which would be lost in what is solved. Give the track "
            "that it was made from, and edit the result again."
        )


def _check_complete(track: LatentTrack, name: str) -> None:
    if not track.complete:
        raise NotFinished(f"{name} is not complete. Finish its solve first.")


def repair(
    task: protocol.Repair,
    track: Path,
    output: Path,
    report: Report,
    plate: Clip | None = None,
    character: Character | None = None,
) -> dict[str, Any]:
    """Repairs a track; what is solved in part lies in the output's work folder meanwhile.

    Returns:
        The facts about the repaired track.
    """
    import shutil

    from core.edit import repair as shot
    from core.solve.latent_track import load_track, save_track

    before = load_track(track)
    repairs = shot.check(task.repairs, before)
    made = shot.made_before(output, before, task.repairs)
    if made is None:
        if character is not None:
            generator = character.generator.to(device())
            character = dataclasses.replace(character, generator=generator)
        work = output.with_name(output.name + ".work")
        with report.stage("repairing") as tick:
            made = shot.repair(
                before,
                task.repairs,
                character=character,
                plate=plate,
                batch=task.batch,
                work=work,
                progress=tick,
            )
        save_track(output, made)
        shutil.rmtree(work, ignore_errors=True)
    shown = shot.still_seen(before, made, repairs)
    if shown:
        report.note(
            f"what was repaired still shows in frames beside it, {format_numbers(shown)}: "
            "they were smoothed together. Repair them too to be rid of it."
        )
    numbers = before.numbers[shot.changed(repairs)].tolist()
    return summarise(made) | {"repaired": format_numbers(numbers)}


def render(
    task: protocol.Render,
    track: LatentTrack,
    character: Character,
    plate: Clip | None,
    pattern: str,
    report: Report,
    movie: Path | None = None,
    sheet: Path | None = None,
    truth: Clip | None = None,
    done: Callable[[int], None] = lambda number: None,
    style: Path | None = None,
    earlier: Mapping[int, Sequence[Path]] = {},
) -> tuple[list[int], list[int]]:
    """Draws a track; `done` is told each frame's number once its file is there. `earlier` are
    frames of other tracks, drawn by an otherwise equal task: those that would be the same are
    copied.

    Returns:
        The frames, and those of them in which no face could be placed.
    """
    import numpy as np

    from core.render import preview

    _check_complete(track, task.name or "The track")
    numbers = [int(n) for n in track.numbers]
    if plate is not None:
        track.check_plate(plate)
        numbers = [n for n in numbers if n in set(plate.numbers)]
    if not numbers:
        raise NothingToRender(
            f"The plate has none of the frames of the track, "
            f"{format_numbers(track.numbers.tolist())}. Choose the clip it was solved on."
        )
    if len(numbers) < len(track.numbers):
        others = sorted({*track.numbers.tolist()} - {*numbers})
        report.note(f"not in the plate, not rendered: {format_numbers(others)}")
    rows = np.isin(track.numbers, numbers)
    mix = mixed(task, track, character, style)
    with report.stage("rendering") as tick:
        written = 0

        def one_more(number: int) -> None:
            nonlocal written
            written += 1
            done(number)
            tick(written, len(numbers))

        empty = _write(
            track,
            rows,
            character,
            plate,
            pattern,
            task.name,
            task.batch,
            one_more,
            finish(task),
            mix,
            task.colour_space,
            earlier,
        )
    if empty:
        report.note(f"no face: {format_numbers(empty)} (fully transparent)")
    if plate is not None and sheet:
        write_png(sheet, preview.sheet(character.generator, track, plate, truth, mix=mix))
    if plate is not None and movie:
        with report.stage("preview") as tick:
            preview.movie(pattern, plate, numbers, movie, tick)
    return numbers, empty


def frame(
    task: protocol.Frame,
    track: LatentTrack,
    character: Character,
    plate: Clip | None,
    pattern: str,
    style: Path | None = None,
    directions: Sequence[Path] = (),
) -> None:
    """Draws one frame of a track, as it would be after the task's edit."""
    _check_complete(track, task.name or "The track")
    if plate is not None:
        track.check_plate(plate)
    rows = track.numbers == task.number
    if not rows.any() or (plate is not None and task.number not in plate.numbers):
        raise NotInTrack(
            f"Frame {task.number} is not in the {'plate' if rows.any() else 'track'}. The track "
            f"has {format_numbers(track.numbers.tolist())}."
        )
    if task.moves:
        from core.render.frames import decisive

        only = decisive(track, int(rows.argmax()))
        track = _edited(task, track, character, named_directions(directions), only)
    _write(
        track,
        rows,
        character,
        plate,
        pattern,
        task.name,
        1,
        lambda number: None,
        finish(task),
        mixed(task, track, character, style),
        task.colour_space,
    )


def mixed(
    task: protocol.Render | protocol.Frame,
    track: LatentTrack,
    character: Character,
    style: Path | None,
) -> Mix | None:
    """How much of a style the frames of a track get; None without one."""
    from core.stylize.style import load_style, mix

    if style is None:
        return None
    loaded = load_style(style, character, task.sibling)
    return mix(loaded, track.numbers, task.style_amount, task.style_from, task.style_to)


def qc(
    task: protocol.Qc,
    track: LatentTrack,
    character: Character,
    plate: Clip,
    output: Path,
    report: Report,
    rendered: Clip | None = None,
    recogniser: Path | None = None,
    face_model: Path | None = None,
) -> dict[str, Any]:
    """Measures a track's frames, and writes `QC_FILES` into a folder; what is measured so far lies
    in the folder's work folder meanwhile.

    Returns:
        The shot in figures.

    Raises:
        NotFinished: the track is partial.
        BadOption: a limit is none.
    """
    import shutil

    import torch

    from core.quality import recognition
    from core.quality import report as reports
    from core.quality.export import as_csv, plain, summary
    from core.quality.marks import suggested_repairs
    from core.quality.measure import measure_shot

    limits = checked_limits(task)
    _check_complete(track, task.name)
    where = device()
    character.generator.to(where)
    who = dataclasses.replace(character, anchors=character.anchors.to(where))
    work = output.with_name(output.name + ".work")
    with report.stage("measuring") as tick:
        found = measure_shot(
            track,
            who,
            plate,
            recognition.load_recogniser(recogniser)
            if recogniser
            else recognition.proxy_recogniser(where),
            rendered=rendered,
            face_model=recognition.load_face_model(face_model) if face_model else None,
            limits=limits,
            batch=task.batch,
            work=work,
            progress=tick,
        )
    versions = {"reenact": __version__, "torch": torch.__version__}
    title = task.name or track.source
    repairs = suggested_repairs(found)
    facts = {
        "name": title,
        "track": track.hash,
        "character": track.character,
        **plain(found),
        "repairs": repairs,
        "versions": versions,
    }
    where_from = reports.provenance(track, character, plate, rendered, versions)
    for name, text in zip(
        QC_FILES,
        (
            reports.page(title, found, where_from),
            as_csv(found),
            json.dumps(facts, allow_nan=False),
            json.dumps(repairs, indent=2, ensure_ascii=False),
        ),
        strict=True,
    ):
        with atomic_write(output / name) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
    shutil.rmtree(work, ignore_errors=True)
    return {**summary(found), "metrics": dict(found.metrics)}


def checked_limits(task: protocol.Qc) -> dict[str, float]:
    """The limits of a task.

    Raises:
        BadOption: of no measure, or no number from 0.
    """
    from core.quality.definitions import MEASURES

    there = [name for name, m in MEASURES.items() if m.bad]
    for name, limit in task.limits.items():
        if name not in there:
            raise BadOption(f"There is no measure {name!r} to limit. There are {', '.join(there)}.")
        if type(limit) not in (int, float) or not 0 <= limit <= 1e6:
            raise BadOption(f"The limit of {name} must be a number from 0, not {limit!r}.")
    return task.limits


def edit(
    task: protocol.Edit,
    track: LatentTrack,
    character: Character,
    directions: Sequence[Path],
    output: Path,
    report: Report,
) -> dict[str, Any]:
    """Edits a track, and says how far outside of the anchors' hull its weights lie then."""
    import numpy as np

    from core.edit.directions import by_name, concerns, load_directions
    from core.edit.editing import coordinates, dilation
    from core.solve.latent_track import save_track

    files = [load_directions(path) for path in directions]
    for file in files:
        for concern in concerns(file, character):
            report.note(concern)
    named = by_name(files)
    edited = _edited(task, track, character, named)
    save_track(output, edited)
    anchors = character.anchors.cpu().numpy()
    used = {move.direction: named[move.direction] for move in task.moves}
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


def _edited(
    task: protocol.Edit | protocol.Frame,
    track: LatentTrack,
    character: Character,
    directions: Mapping[str, Direction],
    only: np.ndarray | None = None,
) -> LatentTrack:
    from core.base import keyframes
    from core.edit import editing

    moves = [
        editing.Move(m.direction, keyframes.parse(m.amount, m.direction), m.rows)
        for m in task.moves
    ]
    edge = cast("editing.Edge", task.edge)  # checked by the edit
    return editing.edit(track, character, directions, moves, edge, task.limit, only)


def named_directions(paths: Sequence[Path]) -> dict[str, Direction]:
    """The directions of several files."""
    from core.edit import directions

    return directions.by_name([directions.load_directions(path) for path in paths])


def fit_directions(
    task: protocol.FitDirections,
    character: Character | None,
    base: Path | None,
    output: Path,
    sheet: Path | None,
    report: Report,
) -> dict[str, Any]:
    """Finds the directions of a character, a base generator or the embedded one."""
    from core.edit import directions
    from core.generator.checkpoints import load_any
    from core.synthetic.base import base_generator

    settings = directions.DirectionSettings(
        task.samples, max(task.samples // 64, 2), max(task.samples // 48, 2), task.seed, task.batch
    )
    if character is not None:
        generator = character.generator.to(device())
        code = character.anchors.mean(0).to(device())
        found = directions.find_in_character(character, report, settings)
    else:
        generator = copy.deepcopy(base_generator()) if base is None else load_any(base)[0]
        generator.to(device())
        code = generator.mapping.w_avg
        name = "the embedded generator" if base is None else "a generator"
        found = directions.find_in_generator(generator, report, settings, name)
    directions.save_directions(output, found)
    if sheet is not None:
        write_png(sheet, directions.sheet(generator, code, found))
    for note in found.notes:
        report.note(note)
    return directions.facts(found)


def _write(
    track: LatentTrack,
    rows: Any,
    character: Character,
    plate: Clip | None,
    pattern: str,
    name: str,
    batch: int,
    done: Callable[[int], None],
    finish: PatchOptions,
    mix: Mix | None,
    space: str | None,
    earlier: Mapping[int, Sequence[Path]] = {},
) -> list[int]:
    import numpy as np

    from core.render import frames

    character.generator.to(device())
    where = (plate and (plate.shown, plate.colour_space), space)
    attributes: dict[str, object] = {
        "reenact:character": track.character,
        "reenact:track": name,
        "reenact:consent": f"{character.info.consent.get('who', '')}",
    }
    style = None
    if mix is not None:
        style = mix.digest()
        attributes["reenact:style"] = mix.style.hash
    return frames.write_frames(
        character.generator,
        track,
        np.flatnonzero(rows),
        pattern,
        # With the version: frames of one shot must not be drawn by two.
        digest(__version__, track.character, where, finish, style),
        attributes,
        plate,
        finish,
        space,
        batch=batch,
        done=done,
        mix=mix,
        earlier=earlier,
    )


def finish(task: protocol.Render | protocol.Frame) -> PatchOptions:
    """`core.render.frames.PatchOptions` of a task, checked."""
    from core.render.frames import PatchOptions

    if isinstance(task, protocol.Frame):
        return PatchOptions("basic")  # at once, and as the face is
    if task.layers not in ("all", "basic"):
        raise BadOption(f"layers must be all or basic, not {task.layers}.")
    for name in ("match", "grain"):
        if not 0 <= getattr(task, name) <= 1:
            raise BadOption(f"{name} must be 0 to 1, not {getattr(task, name):g}.")
    if not 0 <= task.motion_blur <= 720:
        raise BadOption(f"motion blur must be 0 to 720 degrees, not {task.motion_blur:g}.")
    return PatchOptions(
        "all" if task.layers == "all" else "basic", task.match, task.grain, task.motion_blur
    )


def stylize(
    task: protocol.Stylize,
    character: Character,
    output: Path,
    report: Report,
    pictures: Clip | None = None,
    looked: Callable[[], None] = lambda: None,
) -> Style:
    """Makes a style; its preview comes beside it, and its work folder while it is made.

    Args:
        task: what it is to look like.
        character: whose style it is.
        output: `NAME.style`.
        report: told of progress.
        pictures: the example pictures.
        looked: called when there is a better style at the output.
    """
    from core.stylize import training
    from core.stylize.clip_model import DEFAULT, load_clip

    check_style(task)
    method: training.Method
    if task.program:
        method = training.Program(task.program)
    else:
        models = tuple(task.clip) or (DEFAULT if task.prompt else ())
        clips = [load_clip(name, device()) for name in models]
        if task.prompt:
            method = training.Prompt(task.prompt, task.source, clips, task.adaptive)
        else:
            assert pictures is not None
            size = character.generator.architecture.resolution
            examples, without = training.align_examples(pictures, size, device())
            if without:
                report.note(f"{without} of the example pictures show no face and are not used")
            method = training.Examples(examples, clips, task.adaptive)
    return training.stylize(
        character,
        method,
        output,
        report,
        name=task.name,
        device=device(),
        on_preview=looked,
        settings=training.StylizeSettings(task.steps, task.batch),
    )


def summarise_style(style: Style) -> dict[str, Any]:
    """The facts about a style that a person asks for first."""
    i = style.info
    error = None if i.alignment is None else round(i.alignment, 3)
    return {
        "hash": style.hash,
        "parent": i.parent,
        "method": i.method,
        "steps": i.steps,
        "complete": i.complete,
        "alignment": error,
        "last": i.losses[-1:],
    }


def check_style(task: protocol.Stylize) -> None:
    """
    Raises:
        BadOption: a style that can't be made.
    """
    from core.stylize.pixel_programs import PROGRAMS

    if sum([bool(task.program), bool(task.prompt), task.pictures is not None]) != 1:
        raise BadOption(
            "A style goes towards a program, a prompt or example pictures: give one of them."
        )
    if task.program and task.program not in PROGRAMS:
        raise BadOption(f"The program must be one of {', '.join(PROGRAMS)}, not {task.program}.")
    if task.program and (task.clip or task.adaptive):
        raise BadOption(
            "CLIP models and adaptive layers are for prompts and pictures, not for a program."
        )
    if task.adaptive and task.pictures is not None and not task.clip:
        raise BadOption("Adaptive layers are chosen by CLIP: name a model of it, too.")


def point(at: list[float] | None, clip: Clip) -> tuple[float, float] | None:
    """The point that picks a person, plate px, checked."""
    if at is None:
        return None
    x, y = at
    if not (0 <= x < clip.width and 0 <= y < clip.height):
        raise BadOption(f"at {x:g},{y:g} lies outside the plate, {clip.width}x{clip.height}.")
    return x, y


def settings(task: protocol.Solve) -> Any:
    """`core.solve.settings.SolveSettings` of a task."""
    from core.solve.settings import SolveSettings

    if task.preset not in ("default", "paper"):
        raise BadOption(f"The preset must be default or paper, not {task.preset}.")
    changes: dict[str, Any] = {"batch": task.batch}
    if task.neutral:
        changes["neutral"] = _neutral(task.neutral)
    if task.steps is not None:
        changes |= {"steps": task.steps, "first_steps": task.steps}
    plain = SolveSettings.paper() if task.preset == "paper" else SolveSettings()
    return dataclasses.replace(plain, **changes)


def _neutral(text: str) -> Literal["auto"] | tuple[int, int] | None:
    if text in ("auto", "off"):
        return "auto" if text == "auto" else None
    try:
        driving, scan = (int(v) for v in text.split(":"))
    except ValueError:
        raise BadOption(f"neutral must be auto, off or DRIVING:SCAN, not {text}.") from None
    return driving, scan


def summarise(track: LatentTrack) -> dict[str, Any]:
    """The facts about a track that a person asks for first."""
    import numpy as np

    from core.solve.latent_track import FrameState

    states = {s.name.lower(): int((track.state == s).sum()) for s in FrameState}
    error = track.quality["keypoint_error"]
    known = np.isfinite(error)
    worst = int(track.numbers[known][np.argmax(error[known])]) if known.any() else None
    return {
        "character": track.character,
        "source": track.source,
        "frames": len(track.numbers),
        "range": format_numbers(track.numbers.tolist()),
        "states": {k: v for k, v in states.items() if v},
        "keypoint_error": round(float(np.mean(error[known])), 3) if known.any() else None,
        "worst_frame": worst,
        "created": track.created,
    }


def note_clip(clip: Clip, report: Report) -> None:
    """Says what a user should know about a clip before the work."""
    absent = missing_numbers(clip)
    if absent:
        report.note(f"missing frames: {format_numbers(absent)}")
    for note in clip.notes:
        report.note(note)
