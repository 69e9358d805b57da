"""`reenact demo`: the whole product on two synthetic people, with the truth beside the result."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from core.base.errors import ReenactError
from core.media.numbering import frame_path
from core.media.outputs import check_outputs
from server.cli import options
from server.cli.personalize import personalize
from server.cli.render import render
from server.cli.reporting import Report
from server.cli.solve import solve
from server.cli.style import style

FIRST = 1001
FPS = 15.0  # slow film: much happens in few frames
STYLES = ("sketch", "posterise")
FILMS = ("self_scan", "driving", "truth")


class ForeignFilesError(ReenactError):
    """Where the demo writes, there are pictures that it has not made."""


@dataclass(frozen=True)
class Options:
    """The parameters of `reenact demo`."""

    folder: Annotated[Path, typer.Option(help="Where the demo writes")] = Path("demo")
    scan_frames: Annotated[int, typer.Option(min=24, help="Frames of the self-scan")] = 120
    count: Annotated[int, typer.Option("--frames", min=2, help="Driving frames")] = 40
    size: Annotated[int, typer.Option(min=64, max=1024, help="Plate height in px")] = 512
    steps: Annotated[int, typer.Option(min=1, help="Tuning steps")] = 60
    refine: Annotated[int, typer.Option(min=0, help="Steps on each anchor")] = 0
    detail_steps: Annotated[int, typer.Option(min=1, help="Steps in which detail is learnt")] = 200
    style_steps: Annotated[
        int, typer.Option(min=0, help="Training steps of each style; 0: no styles")
    ] = 20
    seed: Annotated[int, typer.Option(help="Another seed, other people")] = 37
    local: options.Local = False
    json: options.Json = False


@options.takes(Options)
def demo(given: Options) -> None:
    """Films two synthetic people, makes a character of one and lets the other drive it.

    Shows one reenacted frame early (first.png). Ends with EXR patches, a latent track, a contact
    sheet (driving, reenacted, ground truth), a preview, and two styles of the character with what
    they make of the same track. What is already there is kept.
    """
    from core.synthetic import performer

    report, folder, seed, size = Report(given.json), given.folder, given.seed, given.size
    check_folder(folder)
    target, driver = (performer.random_identity(seed + i) for i in range(2))
    motion = performer.performance(driver, given.count, fps=FPS, seed=seed)
    scan_motion = performer.self_scan(target, given.scan_frames, seed=seed)
    report.note(f"1/5 filming a self-scan, a driving clip and its ground truth, in {folder}")
    motions = (scan_motion, motion, performer.transfer(motion, target))
    scan, plate, truth = (
        film(name, one, folder, size, report) for name, one in zip(FILMS, motions, strict=True)
    )
    # Another request, other names: nothing that was made before is in the way.
    made_of = f"{seed}_{given.scan_frames}_{size}_{given.steps}_{given.refine}_{given.detail_steps}"
    character = folder / f"target_{made_of}.character"
    latents = folder / f"shot_{made_of}_{given.count}.latents"
    report.note("2/5 making a character of the self-scan")
    if character.exists():
        report.note(f"{character} is there already")
    else:
        personalize(
            scan=scan,
            output=character,
            count=64,
            steps=given.steps,
            refine=given.refine,
            detail_steps=given.detail_steps,
            batch=4,
            consent="nobody: a synthetic person",
            local=given.local,
            json=given.json,
        )
    report.note("3/5 solving and drawing one frame")
    if latents.exists():
        report.note(f"{latents} is there already")
    else:
        # The widest mouth of the shot shows most.
        number = FIRST + int(motion[:, performer.INDEX["jaw"]].argmax())
        _show_first(given, number, plate, truth, character, latents.name, report)
    report.note(f"4/5 solving the shot, and drawing it to {folder / 'out'}")
    solve(plate=plate, character=character, output=latents, local=given.local, json=given.json)
    render(
        latents=latents,
        output=str(folder / "out" / "out.####.exr"),
        plate=plate,
        character=character,
        movie=folder / "preview.mp4",
        sheet=folder / "sheet.png",
        truth=truth,
        local=given.local,
        json=given.json,
    )
    report.note(f"{folder / 'sheet.png'} and preview.mp4 beside it show the shot")
    if given.style_steps:
        report.note("5/5 making two styles of the character, and drawing the shot in them")
    for name in STYLES if given.style_steps else ():
        path = folder / f"{name}_{made_of}_{given.style_steps}.style"
        _draw_in_style(given, name, path, plate, character, latents, report)


def _show_first(
    given: Options,
    number: int,
    plate: str,
    truth: str,
    character: Path,
    name: str,
    report: Report,
) -> None:
    """Solves one frame of the shot by itself, and shows it before the shot is solved."""
    frame, latents = f" {number}-{number}", given.folder / "first" / name
    picture = given.folder / "first.png"
    solve(
        plate=plate + frame,
        character=character,
        output=latents,
        steps=7,  # half as many as in the shot: early, not best
        local=given.local,
        json=given.json,
    )
    render(
        latents=latents,
        output=str(latents.with_name("first.####.exr")),
        plate=plate + frame,
        character=character,
        sheet=picture,
        truth=truth + frame,
        local=given.local,
        json=given.json,
    )
    report.note(f"first picture: {picture}")


def _draw_in_style(
    given: Options,
    name: str,
    path: Path,
    plate: str,
    character: Path,
    latents: Path,
    report: Report,
) -> None:
    """Makes a style of the character, and draws the track in it."""
    from core.stylize.style import style_info

    if path.exists() and style_info(path).complete:
        report.note(f"{path} is there already")
    else:
        style(
            character=character,
            output=path,
            program=name,
            steps=given.style_steps,
            local=given.local,
            json=given.json,
        )
    render(
        latents=latents,
        output=str(given.folder / name / f"{name}.####.exr"),
        plate=plate,
        character=character,
        style=path,
        sheet=given.folder / f"sheet_{name}.png",
        local=given.local,
        json=given.json,
    )


def check_folder(folder: Path) -> None:
    """Refuses a folder with files of somebody's where the demo writes.

    Raises:
        ForeignFilesError: a file there is none of an earlier demo.
        core.base.files.NotWritableError: the folder takes no files.
    """
    from core.media.clip import TASK_ATTRIBUTE
    from core.media.pictures import read_attribute

    check_outputs({name: film_pattern(name, folder) for name in FILMS}, {})
    for name in FILMS:
        for old in film_files(name, folder):
            if read_attribute(old, TASK_ATTRIBUTE) is None:
                raise _foreign(old)
    if film_files(FILMS[0], folder):
        return  # the rest is an earlier demo's too
    frames = [p for n in ("first", "out", *STYLES) for p in (folder / n).glob("*.exr")]
    pictures = [folder / f"{n}.png" for n in ("first", "sheet", *(f"sheet_{s}" for s in STYLES))]
    for path in (*frames, *pictures, folder / "preview.mp4"):
        if path.exists():
            raise _foreign(path)


def _foreign(path: Path) -> ForeignFilesError:
    return ForeignFilesError(
        f"{path} is not of an earlier demo, which would write over it. Choose another place with "
        "--folder."
    )


def film_pattern(name: str, folder: Path) -> str:
    """Returns the pattern of a film's frames."""
    return str(folder / name / f"{name}.####.exr")


def film_files(name: str, folder: Path) -> set[Path]:
    """Returns the frames of a film that exist."""
    return set((folder / name).glob(f"{name}.*.exr"))


def film(name: str, motion: np.ndarray, folder: Path, size: int, report: Report) -> str:
    """Renders a performer's motion `[T, P]` as half-float EXRs in the scene-linear space.

    Frames that an earlier demo filmed of the same motion are kept, others deleted.

    Returns:
        The clip's pattern.
    """
    from core.media import colour
    from core.media.clip import TASK_ATTRIBUTE
    from core.media.pictures import read_attribute
    from core.media.write import write_exr
    from core.synthetic import performer

    pattern = film_pattern(name, folder)
    task = hashlib.sha256(motion.tobytes() + bytes([size % 256, size // 256])).hexdigest()
    wanted = {Path(frame_path(pattern, FIRST + i)) for i in range(len(motion))}
    for old in film_files(name, folder) - wanted:
        old.unlink()  # it would be taken for a frame of this one
    space = colour.scene_linear_space()
    attributes = {TASK_ATTRIBUTE: task, "FramesPerSecond": FPS}

    def draw(i: int) -> None:
        path = Path(frame_path(pattern, FIRST + i))
        if read_attribute(path, TASK_ATTRIBUTE) != task:
            picture = performer.render(motion[i], size).astype(np.float32) / 127.5 - 1
            write_exr(path, colour.from_network(picture, space), attributes=attributes)

    with report.stage(f"film {name}") as on_progress, ThreadPoolExecutor(os.cpu_count()) as pool:
        for i, _ in enumerate(pool.map(draw, range(len(motion)))):
            on_progress(i + 1, len(motion))
    return pattern
