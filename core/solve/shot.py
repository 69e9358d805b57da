"""Solving a whole shot, resumably."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from core.base.digest import digest
from core.base.errors import ReenactError
from core.base.progress import Progress
from core.face.aligned_clip import NoFaceError
from core.face.alignment import shot_runs
from core.media.numbering import format_numbers
from core.personalize.character import Character
from core.solve.driving import PER_FRAME, Driving
from core.solve.latent_track import (
    CharacterMismatchError,
    FrameState,
    LatentTrack,
    load_track,
    save_track,
)
from core.solve.neutral import head_neutral_offset, mouth_neutral_offset, neutral_offset
from core.solve.objective import (
    LIPS,
    TERMS,
)
from core.solve.optimise import _Solver
from core.solve.schedule import choose_keyframes, plan_batches, split_batches
from core.solve.settings import GIVEN, PARTS, PROPAGATION_SHARE, SAVE_SECONDS, SOLVER, SolveSettings
from core.solve.smoothing import fill_missing, smooth_codes


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
) -> LatentTrack:
    """Solves the codes of all driving frames.

    With `path`, what is done is written there every few batches, and when it is interrupted; the
    same call goes on from there, to the same result.

    Args:
        character: whose face it will be; its hash goes into the track.
        driving: what the face is to do.
        settings: defaults to `Settings()`.
        path: `.latents` file to write.
        previous: a track of the shot, of which the driving frames are to be solved again (or to
            which they are to be added). Its other frames stay as they are, and are neighbours to
            start from and to be smoothed with.
        progress: called with frames done and to do.

    Returns:
        The track of all driving frames, and of the previous track's.

    Raises:
        NoFaceError: the driving frames have none.
        NeutralMissingError: a frame of the neutral pair is not there, or shows no face.
        TrackExistsError: `path` holds the track of another task.
        core.solve.latent_track.CharacterMismatchError: the previous track is not this character's.
        ValueError: driving arrays that don't fit together, a previous track that is partial, or,
            with `path` or `previous`, a character that was not read from its file.
        core.solve.latent_track.TrackNotWrittenError: no space, or no rights.
    """
    settings = settings or SolveSettings()
    _check(character, driving, settings, previous)
    if (path is not None or previous is not None) and not character.hash:
        raise ValueError("Save the character and load it: its hash says whose codes a file holds.")
    track = _begin(character, driving, settings, previous)
    if path is not None and Path(path).exists():
        track = _go_on(path, track)
        if track.complete:
            return track
    todo = np.isin(track.numbers, driving.numbers)
    pending = track.state == FrameState.PENDING
    face = np.isin(track.numbers, driving.numbers[driving.found])
    shots = shot_runs(track.numbers, track.cut, face | np.isin(track.state, GIVEN))
    keys = choose_keyframes(shots, todo, settings)
    first = 0 if np.isfinite(track.rest).all() else len(keys)  # frames that are solved twice
    settles = settings.start == "blend" and set(settings.follow) == set(PARTS)
    settles &= settings.objective.keypoints > 0
    count = int((todo & face).sum())
    again = PROPAGATION_SHARE * count if settles else 0
    done = int((todo & ~pending).sum())
    scale = count / (count + first + again)  # shown are frames, whatever they cost
    saved = time.monotonic()

    def tick(frames: float) -> None:
        if progress is not None:
            progress((done + frames) * scale, count)

    def run(batches: list[np.ndarray]) -> None:
        nonlocal done, saved
        for rows in batches:
            if not (track.state[rows] == FrameState.PENDING).any():
                continue
            solver.solve(track, shots, rows, driving, tick)
            done += len(rows)
            tick(0)
            if path is not None and time.monotonic() - saved > SAVE_SECONDS:
                save_track(path, track)
                saved = time.monotonic()

    tick(0)
    try:
        solver = _Solver(character, settings, previous)
        if not np.isfinite(track.rest).all():
            shown = solver.wanted(driving, track.numbers[keys])
            both = shown.cpu().numpy(), solver.keypoints.cpu().numpy()
            mouth = mouth_neutral_offset(*both)
            rest = head_neutral_offset(*both)
            if mouth is not None:
                rest[LIPS] = mouth
            solver.rest = torch.from_numpy(rest).to(solver.keypoints)
            run(split_batches(keys, settings))
            rest = solver.left_over(track.codes[keys], shown)
            if mouth is not None:  # its place is left over, its shape is known
                rest[LIPS] = rest[LIPS].mean(0) + mouth
            track.state[keys] = FrameState.PENDING  # once more, from where they are
            track.rest[:] = rest  # last: an interrupt may fall in between
        solver.rest = torch.from_numpy(track.rest).to(solver.keypoints)
        run(plan_batches(shots, todo, settings))
        if settles:
            track = solver.settle(track, todo & face, driving, lambda x: tick(x * again))
            tick(again)
    except BaseException:  # Ctrl-C too
        if path is not None and np.isfinite(track.codes[todo]).any():
            save_track(path, track)
        raise
    fill_missing(track, todo, character.anchors.detach().cpu().numpy())
    track.smooth[todo] = smooth_codes(track, settings.sigma(driving.fps))[todo]
    if path is not None:
        save_track(path, track)
    return track


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
    if set(settings.follow) < set(PARTS) and (
        previous is None or not np.isin(driving.numbers, previous.numbers).all()
    ):
        raise ValueError("For a part of the face to stay, a previous track must say as what.")
    shape = (character.generator.architecture.num_ws, len(character.anchors))
    if previous is None:
        return
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
    """The track with all driving frames pending."""
    numbers = driving.numbers.astype(np.int64)
    recipe: tuple[dict[str, str], ...] = ()
    if previous is not None:
        recipe = ({"do": "solve", "frames": format_numbers(numbers.tolist())},)
        numbers = np.union1d(numbers, previous.numbers)
    frames, anchors = len(numbers), len(character.anchors)
    rows, width = character.generator.architecture.num_ws, character.anchors.shape[1]

    def empty(*shape: int) -> np.ndarray:
        return np.full((frames, *shape), np.nan, np.float32)

    track = LatentTrack(
        character=character.hash,
        numbers=numbers,
        state=np.full(frames, FrameState.PENDING, np.uint8),
        cut=np.zeros(frames, bool),
        alpha=empty(anchors),
        delta=empty(rows, anchors),
        codes=empty(rows, width),
        smooth=empty(rows, width),
        rest=np.array(neutral_offset(character, driving, settings, previous), np.float32),
        landmarks=empty(478, 3),
        quads=empty(4, 2).astype(np.float64),
        amount=np.ones(frames, np.float32),
        losses={name: empty() for name in TERMS},
        quality={"keypoint_error": empty()},
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
    now = np.searchsorted(numbers, driving.numbers)
    for name in ("cut", "landmarks", "quads"):
        getattr(track, name)[now] = getattr(driving, name)
    if previous is not None:
        there = np.searchsorted(numbers, previous.numbers)
        track.cut[there] = previous.cut  # a part of a shot does not see what comes before it
        kept = ~np.isin(previous.numbers, driving.numbers)
        track.amount[there] = previous.amount
        for name in ("state", "alpha", "delta", "codes", "smooth", "landmarks", "quads"):
            getattr(track, name)[there[kept]] = getattr(previous, name)[kept]
        for mine, theirs in ((track.losses, previous.losses), (track.quality, previous.quality)):
            for name in mine.keys() & theirs.keys():
                mine[name][there[kept]] = theirs[name][kept]
    return track


def _task(
    driving: Driving, settings: SolveSettings, character_hash: str, previous: LatentTrack | None
) -> str:
    """What is to be solved, as a hash."""
    arrays = [getattr(driving, name) for name in PER_FRAME]
    if previous is not None:
        arrays += [previous.numbers, previous.state, previous.codes, previous.rest]
    # With fewer frames at once, for want of memory, it is still the same task.
    return digest(SOLVER, character_hash, replace(settings, batch=0), *arrays, driving.pictures)


def _go_on(path: str | Path, track: LatentTrack) -> LatentTrack:
    """The track of the same task that an earlier call left at the path."""
    there = load_track(path)
    if there.task != track.task:
        raise TrackExistsError(
            f"{path} holds another solve (of other frames, another character, other settings or by "
            "another version). Choose another name, or delete it first."
        )
    return there
