"""What all kinds of job share: their declaration, the context that they run in, and checks.

Importing this module, and that of any kind, loads neither torch nor anything that reads pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.base.errors import ReenactError
from core.base.progress import EndAfter, never

if TYPE_CHECKING:
    from core.base.progress import Report
    from core.media.clip import Clip
    from core.personalize.character import Character
    from core.solve.latent_track import LatentTrack


class BadOptionError(ReenactError):
    """An option of a task has a value that makes no sense; the message says which ones do."""


class NotFinishedError(ReenactError):
    """A track has frames that are not solved yet."""


class NotInTrackError(ReenactError):
    """A track does not have a frame that was asked for."""


def load_character(path: Path) -> Character:
    """Loads a character's file."""
    from core.personalize import character

    return character.load_character(path)


@dataclass(frozen=True)
class Context:
    """What a job reads and writes, and whom it tells.

    Attributes:
        report: receives progress and notes.
        files: paths of the files that the task names, by its fields: `track`, `directions.0`.
        clips: opened clips that the task names, by its fields: `plate`.
        outputs: where results go, by their names in `Kind.results`; what is drawn frame by frame
            has a pattern, `out.####.exr`. A result that is not listed is not wanted.
        on_result: called with a result's name, path and frame number (0 if it has none) each time
            that it is complete on disk.
        load_character: loads a character's file, or returns the one that is loaded already.
        picture: where a PNG may be put that shows the work while it goes on; None: nobody looks.
        on_picture: called whenever that was written.
        end_after: says when a training is to end early and keep what it has.
        reusable: by frame number, frames of similar renders, of which equal ones are copied.
        config: the OCIO config of the task's own colour space, where there is no plate; None for
            the server's.
    """

    report: Report
    files: Mapping[str, Path] = field(default_factory=dict)
    clips: Mapping[str, Clip] = field(default_factory=dict)
    outputs: Mapping[str, Path] = field(default_factory=dict)
    on_result: Callable[[str, Path, int], None] = lambda name, path, number: None
    load_character: Callable[[Path], Character] = load_character
    picture: Path | None = None
    on_picture: Callable[[], None] = lambda: None
    end_after: EndAfter = never
    reusable: Mapping[int, Sequence[Path]] = field(default_factory=dict)
    config: str | None = None

    def several(self, name: str) -> list[Path]:
        """Returns the paths of a field that names a list of files, in its order."""
        return [path for key, path in self.files.items() if key.startswith(f"{name}.")]

    def announce(self, name: str, number: int | None = None) -> None:
        """Says that a result, or one of its frames, is complete on disk, if it is wanted."""
        from core.media.numbering import frame_path

        if name in self.outputs:
            path = self.outputs[name]
            if number is not None:
                path = Path(frame_path(str(path), number))
            self.on_result(name, path, number or 0)


def no_check(task: Any) -> None:
    """The check of a kind whose options are checked when its files have been read."""


@dataclass(frozen=True)
class Kind:
    """A kind of job.

    Attributes:
        name: on the wire.
        task: its dataclass in `reenact.protocol`.
        lane: the worker that does it, one of `server.jobs.registry.LANES`.
        results: files by their names on the wire; with #### where there is one for each frame.
        run: does a task, and returns the facts about its result as plain values. Safe to run again
            with the same outputs: what an earlier run finished is kept.
        check: raises `BadOptionError` where an option makes no sense; reads no file.
        removed: returns the folder, given where results go, that is removed when a job is done.
    """

    name: str
    task: type[Any]
    lane: str
    results: Mapping[str, str]
    run: Callable[[Any, Context], dict[str, Any]]
    check: Callable[[Any], None] = no_check
    removed: Callable[[Mapping[str, Path]], Path] | None = None


def device() -> str:
    """Returns the torch device that the networks run on."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def point(at: list[float] | None, clip: Clip) -> tuple[float, float] | None:
    """Returns the point that picks a person, px of the plate.

    Raises:
        BadOptionError: it lies outside the plate.
    """
    if at is None:
        return None
    x, y = at
    if not (0 <= x < clip.width and 0 <= y < clip.height):
        raise BadOptionError(f"at {x:g},{y:g} lies outside the plate, {clip.width}x{clip.height}.")
    return x, y


def note_clip(clip: Clip, report: Report) -> None:
    """Notes what a user should know about a clip before the work."""
    from core.media.clip import missing_numbers
    from core.media.numbering import format_numbers

    absent = missing_numbers(clip)
    if absent:
        report.note(f"missing frames: {format_numbers(absent)}")
    for note in clip.notes:
        report.note(note)


def require_complete(track: LatentTrack, name: str) -> None:
    """
    Raises:
        NotFinishedError: the track is partial.
    """
    if not track.complete:
        raise NotFinishedError(f"{name} is not complete. Finish its solve first.")


def summarise_track(track: LatentTrack) -> dict[str, Any]:
    """Returns the facts about a track that a person asks for first."""
    import numpy as np

    from core.media.numbering import format_numbers
    from core.solve.latent_track import FrameState

    states = {s.name.lower(): int((track.state == s).sum()) for s in FrameState}
    error = track.quality["keypoint_error"]
    measured = np.isfinite(error)
    worst = None
    if measured.any():
        worst = int(track.numbers[measured][np.argmax(error[measured])])
    return {
        "character": track.character,
        "source": track.source,
        "frames": len(track.numbers),
        "range": format_numbers(track.numbers.tolist()),
        "states": {k: v for k, v in states.items() if v},
        "keypoint_error": round(float(np.mean(error[measured])), 3) if measured.any() else None,
        "worst_frame": worst,
        "created": track.created,
    }
