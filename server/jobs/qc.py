"""Jobs that measure a track's frames against the driver and the character."""

from __future__ import annotations

import json
import shutil
from typing import Any

from reenact import __version__, protocol

from core.base.files import atomic_write, work_folder
from server.jobs.common import BadOptionError, Context, Kind, device, require_complete

FILES = ("report.html", "qc.csv", "qc.json", "repairs.json")


def run(task: protocol.Qc, context: Context) -> dict[str, Any]:
    """Measures a track's frames; what is measured so far lies in a work folder meanwhile.

    The work folder is beside the folder of the results, which all lie in one.

    Returns:
        The shot in figures.

    Raises:
        NotFinishedError: the track is partial.
        BadOptionError: a limit makes no sense.
    """
    import torch

    from core.face.identity import proxy_recogniser
    from core.quality import recognition
    from core.quality import report as reports
    from core.quality.export import as_csv, plain, summary
    from core.quality.marks import suggested_repairs
    from core.quality.measure import measure_shot
    from core.solve.latent_track import load_track

    files, plate, rendered = context.files, context.clips["plate"], context.clips.get("rendered")
    character = context.load_character(files["character"])
    track = load_track(files["track"], character.hash)
    limits = checked_limits(task)
    require_complete(track, task.name)
    where = device()
    character = character.to(where)
    folder = context.outputs["qc.json"].parent
    work = work_folder(folder)
    with context.report.stage("measuring") as progress:
        found = measure_shot(
            track,
            character,
            plate,
            recognition.load_recogniser(files["recogniser"])
            if "recogniser" in files
            else proxy_recogniser(where),
            rendered=rendered,
            face_model=recognition.load_face_model(files["face_model"])
            if "face_model" in files
            else None,
            limits=limits,
            batch=task.batch,
            work=work,
            progress=progress,
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
    provenance = reports.provenance(track, character, plate, rendered, versions)
    for name, text in zip(
        FILES,
        (
            reports.page(title, found, provenance),
            as_csv(found),
            json.dumps(facts, allow_nan=False),
            json.dumps(repairs, indent=2, ensure_ascii=False),
        ),
        strict=True,
    ):
        with atomic_write(context.outputs[name]) as temporary:
            # Names of files need not be Unicode.
            temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
    shutil.rmtree(work, ignore_errors=True)
    for name in FILES:
        context.announce(name)
    return {**summary(found), "metrics": dict(found.metrics)}


def checked_limits(task: protocol.Qc) -> dict[str, float]:
    """Returns the limits of a task, by measure.

    Raises:
        BadOptionError: of a measure that does not exist, or no number from 0.
    """
    from core.quality.definitions import MEASURES

    limited = [name for name, measure in MEASURES.items() if measure.bad]
    for name, limit in task.limits.items():
        if name not in limited:
            raise BadOptionError(
                f"There is no measure {name!r} to limit. There are {', '.join(limited)}."
            )
        if type(limit) not in (int, float) or not 0 <= limit <= protocol.MAX_LIMIT:
            raise BadOptionError(f"The limit of {name} must be a number from 0, not {limit!r}.")
    return task.limits


def check(task: protocol.Qc) -> None:
    """
    Raises:
        BadOptionError: a limit makes no sense.
    """
    checked_limits(task)


KIND = Kind(
    name="qc",
    task=protocol.Qc,
    lane="long",
    results={name: name for name in FILES},
    run=run,
    check=check,
    removed=lambda outputs: work_folder(outputs["qc.json"].parent),
)
