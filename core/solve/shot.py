"""Solving a shot: for every driving frame the code with which a character does what it shows.

Latent optimisation as in the paper (section 3.3), many frames at a time:

1. Neutral pass: the keyframes of all shots are solved in a few steps, to find how the two neutral
   faces differ in shape (`neutral`). Left out where that is known.
2. Keyframes and then the frames between them are solved with that offset, in batches (`schedule`,
   `batch`). Each begins at an initial guess (`initial`), which Adam improves (`optimise`).
3. Frames take over solutions that suit them better than their own (`propagate`).
4. Frames without a face are filled in, and a low-pass over time gives the codes to render
   (`smoothing`).

Codes stay barycentric throughout. P+ is convex, so initial guesses, interpolated frames and
low-passed codes never leave it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.base.digest import digest
from core.base.errors import ReenactError
from core.base.progress import Progress, TrainingProgress
from core.face.aligned_clip import NoFaceError
from core.face.temporal import shot_runs
from core.media.numbering import format_numbers
from core.personalize.character import Character
from core.solve.batch import solve_batch
from core.solve.context import SolveContext, prepare
from core.solve.driving import PER_FRAME, Driving
from core.solve.latent_track import (
    CharacterMismatchError,
    FrameState,
    LatentTrack,
    Phase,
    load_track,
    save_track,
)
from core.solve.neutral import estimate_offset, known_neutral_offset, solved_offset
from core.solve.objective import TERMS, Objective, total_loss
from core.solve.observe import DrivingObserver
from core.solve.propagate import propagate_solutions
from core.solve.schedule import choose_keyframes, plan_batches, split_batches
from core.solve.settings import SolveSettings
from core.solve.smoothing import fill_missing, smooth_codes
from core.solve.state import GIVEN, ShotState

SAVE_SECONDS = 20.0  # between writes of a partial track
# Raised whenever the same settings give other codes, or tasks another hash: one shot is not solved
# by two versions.
SOLVER = 7

OnBatch = Callable[[np.ndarray, np.ndarray], None]

_PROPAGATION_SHARE = 0.05  # of all frames, in the reported progress


class TrackExistsError(ReenactError):
    """Another track lies where the result is to go."""


def solve_shot(
    character: Character,
    driving: Driving,
    settings: SolveSettings | None = None,
    *,
    path: str | Path | None = None,
    previous: LatentTrack | None = None,
    progress: Progress | None = None,
    on_solved: TrainingProgress | None = None,
    on_batch: OnBatch | None = None,
) -> LatentTrack:
    """Solves the codes of all driving frames.

    With `path`, the partial track is written there every `SAVE_SECONDS` and when interrupted. The
    same call resumes from there, with the same result to the bit.

    Args:
        character: whose face it will be; its hash goes into the track.
        driving: what the face is to do.
        settings: by default `SolveSettings()`.
        path: `.latents` file to write.
        previous: a track of the shot, of which the driving frames are to be solved again, or to
            which they are to be added. Its other frames stay as they are, and serve as neighbours
            of the initial guess and of the low-pass.
        progress: called with frames done and to do.
        on_solved: called for each frame that was solved, with frames done and to do, `frame`, its
            number, its `loss` (eq. 10) and its `keypoint_error`, px.
        on_batch: called for each batch of frames that was solved, with their numbers `[K]` and
            codes `[K, L, w_dim]`.

    Returns:
        The track of all driving frames, and of the previous track's.

    Raises:
        NoFaceError: the driving frames have none.
        NeutralMissingError: a frame of the neutral pair is missing, or shows no face.
        TrackExistsError: `path` holds the track of another task.
        core.solve.latent_track.CharacterMismatchError: the previous track is of another character.
        ValueError: the driving arrays don't fit together, the previous track is partial, or, with
            `path` or `previous`, the character was not read from its file.
        core.solve.latent_track.TrackNotWrittenError: the file system refused.
    """
    settings = settings or SolveSettings()
    _check(character, driving, settings, previous)
    if (path is not None or previous is not None) and not character.hash:
        raise ValueError("Save the character and load it: its hash says whose codes a file holds.")
    track = _begin(character, driving, settings, previous)
    if path is not None and Path(path).exists():
        track = _resume(path, track)
        if track.complete:
            return track
    shot = ShotState.of(track)
    todo = np.isin(shot.numbers, driving.numbers)
    face = np.isin(shot.numbers, driving.numbers[driving.found])
    runs = shot_runs(shot.numbers, shot.cut, face | np.isin(shot.state, GIVEN))
    keyframes = choose_keyframes(runs, todo, settings)
    propagates = settings.start == "blend" and not settings.keeps_parts
    propagates &= settings.objective.keypoints > 0
    count = int((todo & face).sum())
    propagation = _PROPAGATION_SHARE * count if propagates else 0
    twice = len(keyframes) if shot.phase is Phase.NEUTRAL else 0
    done = int((todo & (shot.state != FrameState.PENDING)).sum())
    work = count + twice + propagation
    steps = _Steps(shot, settings.objective, path, progress, on_solved, done, count, work)
    steps.report()
    try:
        context = prepare(character, settings)
        observer = DrivingObserver(driving, context.anchors)

        def run(batches: list[np.ndarray]) -> None:
            for frames in batches:
                if (shot.state[frames] == FrameState.PENDING).any():
                    solve_batch(context, shot, runs, frames, observer, previous, steps.report)
                    steps.finish(frames)
                    if on_batch is not None:
                        on_batch(shot.numbers[frames], shot.codes[frames])

        if shot.phase is Phase.NEUTRAL:
            _find_neutral_offset(context, shot, keyframes, observer, run)
        run(plan_batches(runs, todo, settings))
        if propagates:
            before = shot.codes
            shot = propagate_solutions(
                context, shot, todo & face, observer, lambda x: steps.report(x * propagation)
            )
            steps.report(propagation)
            changed = np.flatnonzero((shot.codes != before).any((1, 2)) & todo & face)
            steps.show(shot, changed, propagation)
    except BaseException:  # Ctrl-C too
        if path is not None and np.isfinite(shot.codes[todo]).any():
            save_track(path, shot.build_track())
        raise
    fill_missing(shot, todo, character.anchors.detach().cpu().numpy())
    track = shot.build_track()
    smooth = track.smooth.copy()
    smooth[todo] = smooth_codes(track, settings.sigma(driving.fps))[todo]
    track = replace(track, smooth=smooth)
    if path is not None:
        save_track(path, track)
    return track


class _Steps:
    """Reports progress and saves the partial track as batches finish.

    Args:
        shot: that is being solved.
        objective: whose losses are reported.
        path: of the track; None saves nothing.
        progress, on_solved: as for `solve_shot`.
        done: frames solved so far.
        count: frames to do.
        work: frames to solve in all passes, to which `count` is scaled.
    """

    def __init__(
        self,
        shot: ShotState,
        objective: Objective,
        path: str | Path | None,
        progress: Progress | None,
        on_solved: TrainingProgress | None,
        done: int,
        count: int,
        work: float,
    ) -> None:
        self._shot, self._objective = shot, objective
        self._path, self._progress, self._on_solved = path, progress, on_solved
        self._done, self._count, self._scale = done, count, count / work
        self._saved = time.monotonic()

    def report(self, frames: float = 0) -> None:
        """Reports what is done, and the share of what is being done, in frames."""
        if self._progress is not None:
            self._progress((self._done + frames) * self._scale, self._count)

    def show(self, shot: ShotState, frames: np.ndarray, ahead: float = 0) -> None:
        """Reports the figures of solved frames; `ahead` as `frames` of `report`."""
        if self._on_solved is None:
            return
        terms = {name: torch.from_numpy(shot.losses[name][frames]) for name in TERMS}
        losses = total_loss(terms, self._objective).tolist()
        errors = shot.quality["keypoint_error"][frames].tolist()
        done = (self._done + ahead) * self._scale
        for number, loss, error in zip(shot.numbers[frames].tolist(), losses, errors, strict=True):
            self._on_solved(done, self._count, frame=number, loss=loss, keypoint_error=error)

    def finish(self, frames: np.ndarray) -> None:
        """Counts frames as done, reports them, and saves the track if it is time."""
        self._done += len(frames)
        self.report()
        self.show(self._shot, frames)
        if self._path is not None and time.monotonic() - self._saved > SAVE_SECONDS:
            save_track(self._path, self._shot.build_track())
            self._saved = time.monotonic()


def _find_neutral_offset(
    context: SolveContext,
    shot: ShotState,
    keyframes: np.ndarray,
    observer: DrivingObserver,
    run: Callable[[list[np.ndarray]], None],
) -> None:
    """Solves the keyframes in few steps and takes the neutral offset from them.

    The keyframes are pending afterwards, with these codes as their initial guess.
    """
    batch = context.settings.batch
    driving = observer.keypoints(shot.numbers[keyframes], batch)
    shot.neutral_offset = estimate_offset(driving.cpu().numpy(), context.keypoints.cpu().numpy())
    run(split_batches(keyframes, batch))
    offset = solved_offset(context, shot.codes[keyframes], driving)
    shot.state[keyframes] = FrameState.PENDING
    shot.neutral_offset = offset.astype(np.float32)
    shot.phase = Phase.SOLVE  # last: an interrupt may fall in between


def _check(
    character: Character, driving: Driving, settings: SolveSettings, previous: LatentTrack | None
) -> None:
    count = len(driving.numbers)
    if any(len(getattr(driving, name)) != count for name in (*PER_FRAME, "pictures")):
        raise ValueError("Driving arrays are of different lengths.")
    if (np.diff(driving.numbers) <= 0).any():
        raise ValueError("Driving frames must be in order, each once.")
    if not driving.found.any():
        raise NoFaceError("The driving frames show no face. Choose another range.")
    if settings.keeps_parts and (
        previous is None or not np.isin(driving.numbers, previous.numbers).all()
    ):
        raise ValueError("For a part of the face to stay, a previous track must say as what.")
    if previous is None:
        return
    shape = (character.generator.architecture.num_ws, len(character.anchors))
    if previous.character != character.hash or previous.delta.shape[1:] != shape:
        raise CharacterMismatchError(
            "The previous track was solved for another character. Choose that one, or solve the "
            "whole shot."
        )
    if not previous.complete:
        raise ValueError("The previous track is not complete. Finish it first.")


def _begin(
    character: Character,
    driving: Driving,
    settings: SolveSettings,
    previous: LatentTrack | None,
) -> LatentTrack:
    """Returns the track with all driving frames pending."""
    numbers = driving.numbers.astype(np.int64)
    recipe: tuple[dict[str, str], ...] = ()
    if previous is not None:
        recipe = ({"do": "solve", "frames": format_numbers(numbers.tolist())},)
        numbers = np.union1d(numbers, previous.numbers)
    frames, anchors = len(numbers), len(character.anchors)
    layers, width = character.generator.architecture.num_ws, character.anchors.shape[1]

    def empty(*shape: int) -> np.ndarray:
        return np.full((frames, *shape), np.nan, np.float32)

    arrays: dict[str, Any] = {
        "state": np.full(frames, FrameState.PENDING, np.uint8),
        "cut": np.zeros(frames, bool),
        "alpha": empty(anchors),
        "delta": empty(layers, anchors),
        "codes": empty(layers, width),
        "smooth": empty(layers, width),
        "landmarks": empty(478, 3),
        "quads": empty(4, 2).astype(np.float64),
        "amount": np.ones(frames, np.float32),
    }
    losses, quality = {name: empty() for name in TERMS}, {"keypoint_error": empty()}
    now = np.searchsorted(numbers, driving.numbers)
    for name in ("cut", "landmarks", "quads"):
        arrays[name][now] = getattr(driving, name)
    if previous is not None:
        existing = np.searchsorted(numbers, previous.numbers)
        # Also of frames to solve: a part of a shot does not see what comes before it.
        for name in ("cut", "amount"):
            arrays[name][existing] = getattr(previous, name)
        kept = ~np.isin(previous.numbers, driving.numbers)
        for name in ("state", "alpha", "delta", "codes", "smooth", "landmarks", "quads"):
            arrays[name][existing[kept]] = getattr(previous, name)[kept]
        for mine, theirs in ((losses, previous.losses), (quality, previous.quality)):
            for name in mine.keys() & theirs.keys():
                mine[name][existing[kept]] = theirs[name][kept]
    offset = known_neutral_offset(character, driving, settings, previous)
    if offset is None:
        phase, offset = Phase.NEUTRAL, np.zeros(character.keypoints.shape[1:])
    else:
        phase = Phase.SOLVE
    return LatentTrack(
        character=character.hash,
        numbers=numbers,
        **arrays,
        neutral_offset=np.array(offset, np.float32),
        phase=phase,
        losses=losses,
        quality=quality,
        settings=json.loads(json.dumps(asdict(settings))),
        source=driving.source,
        fps=driving.fps,
        plate=driving.plate,
        pixel_aspect=driving.pixel_aspect,
        task=_task(driving, settings, character.hash, previous),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        parent="" if previous is None else previous.hash,
        recipe=recipe,
    )


def _task(
    driving: Driving, settings: SolveSettings, character_hash: str, previous: LatentTrack | None
) -> str:
    """Returns the hash of what is to be solved."""
    arrays = [getattr(driving, name) for name in PER_FRAME]
    if previous is not None:
        arrays += [previous.numbers, previous.state, previous.codes, previous.neutral_offset]
    # With fewer frames at once, for want of memory, it is still the same task.
    return digest(SOLVER, character_hash, replace(settings, batch=0), *arrays, driving.pictures)


def _resume(path: str | Path, track: LatentTrack) -> LatentTrack:
    """Returns the track of the same task that an earlier call left at the path.

    Raises:
        TrackExistsError: the track there is of another task.
    """
    existing = load_track(path)
    if existing.task != track.task:
        raise TrackExistsError(
            f"{path} holds another solve (of other frames, another character, other settings or by "
            "another version). Choose another name, or delete it first."
        )
    return existing
