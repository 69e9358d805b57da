"""The per-shot solver: for every driving frame the code of a character that does what it shows.

Latent optimisation as in the paper (section 3.3), many frames at a time: first keyframes of all
shots, from starts that are looked up among the anchors, then the frames between them, from starts
that know their neighbours. Some steps along secants between the anchors bring a start near, and
Adam does the rest. Keyframes are solved twice: first with the head as the character has it when it
is turned as the driver's, and the mouth as it is where both rest; what that leaves over on average
is how the two faces differ in shape. Last, frames that another's codes suit better than their own
take after it.
What the paper leaves open is decided in `Settings`; `Settings.paper()` is its literal reading.

Codes stay barycentric throughout. P+ is convex, so starts, interpolation over frames without a
face and the low-pass over time never leave it.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from core.aligned_clip import NoFace, align_clip, cut_out
from core.alignment import MAX_GAP, shot_runs
from core.character import Character
from core.digest import digest
from core.errors import ReenactError
from core.facemesh.keypoints import GROUPS, HEAD_FRAME, KEYPOINTS
from core.facemesh.measures import measure
from core.frames import Clip, format_numbers
from core.generator import half_precision
from core.latent_space import (
    delta_loss,
    nearest_weights,
    soften,
    sum_loss,
    to_raw,
    to_weights,
)
from core.latent_track import FrameState, LatentTrack, OtherCharacter, load_track, save_track
from core.objective import (
    LIPS,
    TERMS,
    Objective,
    View,
    compared,
    keypoint_error,
    keypoint_loss,
    look,
    look_closely,
    picture_losses,
    point_weights,
    total,
)
from core.progress import Progress

MAX_RESOLUTION = 256  # of generated pictures in the loss: the landmark network sees 192 px
SAVE_SECONDS = 20.0  # between writes of a partial track
SOLVER = 6  # raised whenever the same settings give other codes: one shot is not solved by two

# Retrieval: how fast an anchor's share falls with its distance, as a fraction of the distance of
# the NEAR-th nearest.
_SHARPNESS = 0.12
_NEAR = 4

# Parts of the face that follow the driver or not, by the groups of keypoints that they are.
PARTS = {"eyes": ("right_eye", "left_eye"), "mouth": ("mouth", "outer_lips"), "head": ("head",)}

_GIVEN = (FrameState.SOLVED, FrameState.REPAIRED)  # codes that their neighbours may start from

# Of two faces at rest one mesh may look down and the other up, by some four degrees, for they are
# of different shapes. How far a shot's middle pitch is from the scan's is in part that, and in part
# what the driver does. No picture tells them apart: half each, and no more than so many degrees, so
# that who looks down throughout still does.
_SHAPE, _SHAPE_MOST = 0.5, 5.0
_TURNS = ("yaw", "pitch", "roll", "jaw")  # what moves the head frame's points
_PITCH = _TURNS.index("pitch")
_HEAD = [KEYPOINTS.index(point) for point in HEAD_FRAME]
_TURN_RIDGE = 0.01  # of their variance: what is regressed on them must not shrink a turn

# Whoever's mouth it is, at rest its lips are shut and its inner corners about half as far apart as
# the outer eye corners: .49 to .53 of five people filmed, .47 to .56 of sixteen performers.
_REST_WIDTH, _REST_WIDTH_SPREAD, _REST_GAP_SPREAD = 0.51, 0.04, 0.03
_REST_LEAST = 0.5  # frames at rest: with less than that there is none
_EYE_CORNERS, _MOUTH_CORNERS, _MID_LIPS = (
    [KEYPOINTS.index(point) for point in pair] for pair in ((33, 263), (78, 308), (13, 14))
)

# Adam's steps are along the principal directions of the weights, each divided by what it moves
# keypoints by; one of less than this share of their variance is lengthened no further.
_FLAT = 0.015
# It must forget soon, too, when all its steps are a handful: seven so are worth twelve at the usual
# (.9, .99) and half the rate.
_BETAS = (0.5, 0.95)

_BIAS_ANCHORS = 16  # are enough to know a mesh's bias by

# A frame is solved again from another's codes if they are sure to lower its loss to this share.
_SURELY = 0.95
_AGAIN = 0.05  # of all frames; for the progress that is shown

# How much longer Adam's steps are where parts of the face stay: they start at the tip of eq. 2,
# which is as steep there as anywhere, and short steps never leave it.
_FREE = 3.3


class NeutralMissing(ReenactError):
    """A frame of the neutral pair is not there, or shows no face."""


class TrackInTheWay(ReenactError):
    """Another track lies where the result is to go."""


@dataclass(frozen=True)
class Settings:
    """How a shot is solved. Defaults: what worked best (design, section 4)."""

    objective: Objective = field(default_factory=Objective)
    # Where a frame starts: half the codes of its solved neighbours and half those anchors that
    # look like it ("blend"), only the anchors, the frame before (the paper), or the centre of P.
    start: Literal["blend", "retrieval", "previous", "centre"] = "blend"
    noise: float = 0.0  # sigma of Gaussian noise on the start's coordinates
    secants: int = 2  # steps without gradients from there towards the driving keypoints
    steps: int = 7  # of Adam at most, from a start that knows its neighbours
    first_steps: int = 14  # at most, from one that does not
    # Of the solve that finds the shapes at rest. Few: what is fitted away is not left over.
    rest_steps: int = 4
    rate: float = 0.9  # Adam's learning rate: what a step moves the weighted keypoints by, px
    delta_rate: float = 0.8  # that of the rows' own offsets, over the rate
    tolerance: float = 2e-3  # a batch has converged when no frame's loss falls by this share
    patience: int = 4  # within so many steps
    keyframe_every: int = 4  # frames
    batch: int = 8  # frames solved at once; fewer need less memory
    # Sigma of the low-pass over codes, seconds. At .025 the result is as restless as the truth; at
    # .067 blinks and fast mouths are half gone (benchmarks/fidelity.py).
    smoothing: float = 0.025
    smoothing_frames: float | None = None  # the same in frames; goes before it
    # What the two faces' shapes at rest differ by is taken out of the comparison: "auto" compares
    # the heads turned alike, and takes what is left over, on average, when the keyframes have been
    # solved so; a driving frame and a scan frame of faces at rest say it; None leaves it in.
    neutral: Literal["auto"] | tuple[int, int] | None = "auto"
    # Of `PARTS` those that do what the driver does; the others do what they did in the previous
    # track, whose codes are the start then.
    follow: tuple[str, ...] = tuple(PARTS)
    seed: int = 0

    def sigma(self, fps: float) -> float:
        """Of the low-pass over codes, in frames."""
        return self.smoothing * fps if self.smoothing_frames is None else self.smoothing_frames

    @classmethod
    def of(cls, track: LatentTrack) -> Settings:
        """Those that a track was solved with."""
        plain = dict(track.settings)
        plain["objective"] = Objective(**plain.get("objective", {}))
        for name in ("neutral", "follow"):
            if isinstance(plain.get(name), list):
                plain[name] = tuple(plain[name])
        return cls(**plain)

    @classmethod
    def paper(cls) -> Settings:
        """The paper's weights, norms, warm start and low-pass (appendix C.3).

        Optimiser and steps are not in the paper: Adam, and more steps, for there is no help.
        """
        return cls(
            Objective.paper(),
            start="previous",
            noise=0.05,
            smoothing_frames=2.0,
            neutral=None,
            secants=0,
            steps=30,
            first_steps=40,
            rate=0.2,
        )


@dataclass(frozen=True, eq=False)
class Driving:
    """F frames of a driving performance, aligned.

    Several shots are divided by `cut`; numbers may have gaps.
    """

    numbers: np.ndarray  # [F] int64, real frame numbers, increasing
    pictures: Tensor  # [F, 3, R, R] in [-1, 1], any R and float type; not read without a face
    found: np.ndarray  # [F] bool: the frame has a face
    cut: np.ndarray  # [F] bool, true on the first frame of a new shot
    landmarks: np.ndarray  # [F, 478, 3], plate px; NaN where there is none
    quads: np.ndarray  # [F, 4, 2], plate px; NaN where there is none
    source: str = ""  # the clip's path
    fps: float = 24.0
    plate: tuple[int, int] = (0, 0)  # width, height, px
    pixel_aspect: float = 1.0


_PER_FRAME = ("numbers", "found", "cut", "landmarks", "quads")


# -- what drives ---------------------------------------------------------------------------------


def driving_from_clip(
    clip: Clip,
    *,
    at: tuple[float, float] | None = None,
    size: int = MAX_RESOLUTION,
    device: str = "cpu",
    progress: Progress = lambda done, total: None,
) -> Driving:
    """Follows the face through a clip and cuts it out, aligned and steadied. Reads the clip twice.

    Args:
        clip: from `core.frames.open_clip`, limited to the wanted range and its handles.
        at: a point in plate px that picks the person, where several are in the picture.
        size: side of the aligned pictures, px.
        device: torch device that runs the networks.
        progress: called with frames done and to do; every frame counts twice.

    Raises:
        NoFace: in no frame.
        core.frames.ClipError: a frame that can't be read.
    """
    aligned = align_clip(clip, size, at=at, device=device, progress=progress)
    face = aligned.face
    return _driving(
        clip, face.numbers, aligned.pictures, face.found, face.cut, face.landmarks, aligned.quads
    )


def driving_from_track(
    clip: Clip, track: LatentTrack, numbers: Iterable[int], size: int = MAX_RESOLUTION
) -> Driving:
    """Frames of a clip as they were tracked and aligned before: to solve a part of a shot again.

    Args:
        clip: the track's clip.
        track: where landmarks and squares come from.
        numbers: the frames to solve again.
        size: side of the aligned pictures, px.

    Raises:
        KeyError: a frame that the track does not have.
        core.frames.MissingFrames: a frame that the clip does not have.
        core.frames.ClipError: a frame that can't be read.
    """
    rows = np.array([track.index(n) for n in sorted(set(numbers))], int)
    found = np.isfinite(track.landmarks[rows]).all((1, 2))
    chosen, quads = track.numbers[rows], track.quads[rows]
    pictures = torch.zeros(len(rows), 3, size, size, dtype=torch.float16)
    seen = np.flatnonzero(found)
    numbers = [int(n) for n in chosen[seen]]
    for row, picture in zip(seen, cut_out(clip, numbers, quads[seen], size), strict=True):
        pictures[row] = picture
    return _driving(clip, chosen, pictures, found, track.cut[rows], track.landmarks[rows], quads)


def _driving(
    clip: Clip,
    numbers: np.ndarray,
    pictures: Tensor,
    found: np.ndarray,
    cut: np.ndarray,
    landmarks: np.ndarray,
    quads: np.ndarray,
) -> Driving:
    return Driving(
        numbers,
        pictures,
        found,
        cut,
        landmarks,
        quads,
        clip.shown,
        clip.fps or 24.0,
        (clip.width, clip.height),
        clip.pixel_aspect,
    )


# -- solving -------------------------------------------------------------------------------------


def solve(
    character: Character,
    driving: Driving,
    settings: Settings | None = None,
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
        NoFace: the driving frames have none.
        NeutralMissing: a frame of the neutral pair is not there, or shows no face.
        TrackInTheWay: `path` holds the track of another task.
        core.latent_track.OtherCharacter: the previous track is not this character's.
        ValueError: driving arrays that don't fit together, a previous track that is partial, or,
            with `path` or `previous`, a character that was not read from its file.
        core.latent_track.TrackNotWritten: no space, or no rights.
    """
    settings = settings or Settings()
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
    shots = shot_runs(track.numbers, track.cut, face | np.isin(track.state, _GIVEN))
    keys = _keyframes(shots, todo, settings)
    first = 0 if np.isfinite(track.rest).all() else len(keys)  # frames that are solved twice
    settles = settings.start == "blend" and set(settings.follow) == set(PARTS)
    settles &= settings.objective.keypoints > 0
    count = int((todo & face).sum())
    again = _AGAIN * count if settles else 0
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
            mouth = mouth_at_rest(*both)
            rest = head_at_rest(*both)
            if mouth is not None:
                rest[LIPS] = mouth
            solver.rest = torch.from_numpy(rest).to(solver.keypoints)
            run(_batches(keys, settings))
            rest = solver.left_over(track.codes[keys], shown)
            if mouth is not None:  # its place is left over, its shape is known
                rest[LIPS] = rest[LIPS].mean(0) + mouth
            track.state[keys] = FrameState.PENDING  # once more, from where they are
            track.rest[:] = rest  # last: an interrupt may fall in between
        solver.rest = torch.from_numpy(track.rest).to(solver.keypoints)
        run(_plan(shots, todo, settings))
        if settles:
            track = solver.settle(track, todo & face, driving, lambda x: tick(x * again))
            tick(again)
    except BaseException:  # Ctrl-C too
        if path is not None and np.isfinite(track.codes[todo]).any():
            save_track(path, track)
        raise
    _fill(track, todo, character.anchors.detach().cpu().numpy())
    track.smooth[todo] = smooth_codes(track, settings.sigma(driving.fps))[todo]
    if path is not None:
        save_track(path, track)
    return track


class _Solver:
    """What all batches of a solve share."""

    def __init__(
        self, character: Character, settings: Settings, previous: LatentTrack | None
    ) -> None:
        self.settings = settings
        self.previous = previous
        self.character = character
        self.anchors = character.anchors.detach()
        self.bias = _bias(character)
        # What the anchors show, as if seen closely.
        self.keypoints = character.keypoints.to(self.anchors) - self.bias[list(KEYPOINTS)]
        self.rest = torch.zeros_like(self.keypoints[0])  # added to the driving keypoints
        self.watched: dict[int, Tensor] = {}  # landmarks of driving frames, by their numbers
        self.half = half_precision(self.anchors.device)  # while Adam searches, not to report
        with torch.no_grad():
            self.centre = self._closely(self.anchors.mean(0, keepdim=True))
        # How weights must change for keypoints to: ridge regression on the anchors.
        known = self._compared(self.keypoints - self.keypoints.mean(0))  # [N, 258]
        gram = known.T @ known
        ridge = gram + gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
        self.secants = torch.linalg.solve(ridge, known.T)  # [258, N]
        # Principal directions of the weights; each moves the weighted keypoints by 1 px at most.
        values, directions = torch.linalg.eigh(known @ known.T)
        values = values.clamp(min=0)
        self.directions = directions / (values + _FLAT * values.sum()).clamp(min=1).sqrt()  # [N, N]

    def _compared(self, keypoints: Tensor) -> Tensor:
        """Differences of keypoints `[B, 86, 3]` as eq. 2 weights them, `[B, 258]`."""
        objective = self.settings.objective
        weights = point_weights(objective).to(keypoints)
        return (compared(keypoints, objective) * weights.sqrt()[:, None]).flatten(1)

    def _closely(self, codes: Tensor) -> View:
        return look_closely(_draw(self.character, codes))

    def _glance(self, codes: Tensor, off: Tensor, half: torch.dtype | None = None) -> View:
        """A single look, less what it is off, `[478, 3]` or `[B, 478, 3]` px."""
        seen = look(_draw(self.character, codes, half))
        return View(seen.pictures, seen.landmarks - off)

    def watch(self, driving: Driving, numbers: np.ndarray) -> View:
        """Some driving frames, seen closely."""
        pictures = driving.pictures[torch.from_numpy(np.searchsorted(driving.numbers, numbers))]
        pictures = pictures.to(self.anchors)
        if not self.watched.keys() >= set(numbers):  # each once, however often it is asked for
            landmarks = look_closely(pictures).landmarks
            self.watched |= zip(numbers, landmarks, strict=True)
        return View(pictures, torch.stack([self.watched[number] for number in numbers]))

    def wanted(self, driving: Driving, numbers: np.ndarray) -> Tensor:
        """Keypoints `[K, 86, 3]` px of some driving frames, seen closely."""
        some = _batches(numbers, self.settings)  # never all pictures at once
        return torch.cat([self.watch(driving, few).keypoints for few in some])

    def solve(
        self,
        track: LatentTrack,
        shots: list[np.ndarray],
        rows: np.ndarray,
        driving: Driving,
        tick: Callable[[float], None],
    ) -> None:
        """Solves some rows of a track, in place.

        Args:
            track: with NaN in what is not solved yet.
            shots: rows with a face, by shot; neighbours are of the same one.
            rows: to be solved at once.
            driving: what they follow.
            tick: called with the share of the rows that is done, in frames.
        """
        with torch.no_grad():
            shown = self.watch(driving, track.numbers[rows])
            near: list[np.ndarray | None]
            if self.previous is not None and set(self.settings.follow) < set(PARTS):
                there = np.searchsorted(self.previous.numbers, track.numbers[rows])
                near = [None] * len(rows)  # what the parts did is far from what they are to do
                start = torch.from_numpy(self.previous.weights[there]).to(self.anchors)
                shown = self._in_part(shown, start)
            else:
                near = [_neighbours(track, shots, row, self.settings) for row in rows]
                start = self._starts(shown, near)
                if self.settings.start == "blend" and np.isfinite(track.rest).all():
                    for i, row in enumerate(rows):
                        if np.isfinite(track.codes[row]).all():  # a keyframe, for the second time
                            near[i] = track.weights[row]
                            start[i] = torch.from_numpy(track.weights[row])
            start, off = self._approach(shown, start)
        raw = to_raw(start)
        if self.settings.noise:
            for i, row in enumerate(rows):
                seed = self.settings.seed * 1_000_003 + int(track.numbers[row])
                random = torch.Generator().manual_seed(seed % 2**63)  # as when resumed
                noise = torch.randn(raw.shape[-1], generator=random)
                raw[i] += self.settings.noise * noise.to(raw)
        steps = self.settings.steps
        if not np.isfinite(track.rest).all():
            steps = self.settings.rest_steps
        elif any(n is None for n in near):
            steps = self.settings.first_steps
        self._write(track, rows, *self._optimise(shown, raw, off, steps, tick))
        track.state[rows] = FrameState.SOLVED  # last: an interrupt may fall in between

    def settle(
        self,
        track: LatentTrack,
        todo: np.ndarray,
        driving: Driving,
        tick: Callable[[float], None],
    ) -> LatentTrack:
        """Solves frames again from another frame's codes, where those are better than their own.

        A face that can't quite do what the driver does may have two answers, with lips open or
        shut, and which of them a frame finds depends on its start: what the driver holds would
        flicker. So the better one spreads to all frames that ask for nearly the same.

        Eq. 2 is a distance: by another frame's codes keypoints are missed by no more than that
        frame misses its own, and the two are apart.

        Args:
            track: solved.
            todo: `[F]` bool, rows that may change.
            driving: what the rows follow.
            tick: called with the share that is done, as if each sweep took half as long as the one
                before.

        Returns:
            A track of its own: one that is interrupted here begins again, to the same result.
        """
        track = copy.deepcopy(track)
        objective, steps = self.settings.objective, self.settings.steps
        frames = np.flatnonzero(todo)
        wanted = self.wanted(driving, track.numbers[frames])
        changed, sweep = True, 0
        while changed:
            changed, sweep = False, sweep + 1
            losses = {name: torch.from_numpy(track.losses[name]) for name in TERMS}
            loss = total(losses, objective).numpy()
            pairs = []
            for row, keypoints in zip(frames, wanted, strict=True):
                apart = objective.keypoints * keypoint_loss(wanted, keypoints, objective)
                bound = np.nan_to_num(loss[frames] + apart.cpu().numpy(), nan=np.inf)
                if bound.min() < _SURELY * loss[row]:
                    pairs.append((row, frames[bound.argmin()]))
            for done, batch in enumerate(batches := _batches(np.array(pairs), self.settings)):
                tick(1 - (2 - done / len(batches)) / 2**sweep)
                rows, others = batch.T
                start = torch.from_numpy(track.weights[others]).to(self.anchors)
                shown = self.watch(driving, track.numbers[rows])
                with torch.no_grad():
                    start, off = self._approach(shown, start)
                weights, terms = self._optimise(
                    shown, to_raw(start), off, steps, lambda frames: None
                )
                better = total(terms, objective).cpu().numpy() < loss[rows]
                terms = {name: values[better] for name, values in terms.items()}
                self._write(track, rows[better], weights[better], terms)
                changed |= bool(better.any())
        return track

    def _write(
        self, track: LatentTrack, rows: np.ndarray, weights: Tensor, terms: dict[str, Tensor]
    ) -> None:
        """What was found of some rows of a track, in place."""
        alpha = weights.mean(1)
        track.alpha[rows] = alpha.cpu().numpy()
        track.delta[rows] = (weights - alpha[:, None]).cpu().numpy()
        track.codes[rows] = (weights @ self.anchors).cpu().numpy()
        for name, values in terms.items():
            table = track.losses if name in TERMS else track.quality
            table[name][rows] = values.cpu().numpy()

    def left_over(self, codes: np.ndarray, shown: Tensor) -> np.ndarray:
        """What solved codes miss driving keypoints by, on average, `[86, 3]` px, all seen closely.

        What the character can do has been done, so this is what its shape is, not what it does.
        What it can't do is left over too: frames count by the inverse square of what they miss.
        """
        solved = torch.from_numpy(codes).to(self.anchors).split(self.settings.batch)
        with torch.no_grad():
            every = torch.cat([self._closely(some).keypoints for some in solved]) - shown
        seen = every[every.isfinite().all((1, 2))]
        if not len(seen):
            return torch.zeros_like(every[0]).cpu().numpy()
        weight = keypoint_error(seen, torch.zeros_like(seen)).clamp(min=1e-3) ** -2
        return torch.einsum("f,fki->ki", weight / weight.sum(), seen).cpu().numpy()

    def _in_part(self, driving: View, weights: Tensor) -> View:
        """The driving face in the parts that follow it; in the others what weights `[B, L, N]` do.

        It is what `picture_losses` compares with: the shapes at rest are still to be added.
        """
        present = self._closely(weights @ self.anchors)
        groups = {group for part in self.settings.follow for group in PARTS[part]}
        follows = torch.tensor([name in groups for name, points in GROUPS.items() for _ in points])
        keypoints = torch.where(
            follows.to(self.anchors.device)[:, None],
            driving.keypoints,
            present.keypoints - self.rest,
        )
        shown = driving if "mouth" in groups else present  # of its pixels the mouth is compared
        landmarks = shown.landmarks.clone()
        landmarks[:, list(KEYPOINTS)] = keypoints
        return View(shown.pictures, landmarks)

    def _starts(self, driving: View, near: list[np.ndarray | None]) -> Tensor:
        """Where the search begins: weights `[B, L, N]`, from neighbours' `[L, N]` or None."""
        count, rows = len(self.anchors), self.character.generator.architecture.num_ws
        kind = self.settings.start
        if kind in ("previous", "centre"):
            alone = self.anchors.new_full((len(near), count), 1 / count)
        else:
            alone = retrieve(driving.keypoints + self.rest, self.keypoints)
        start = alone[:, None].repeat(1, rows, 1)
        for i, neighbour in enumerate(near):
            if neighbour is not None:
                share = 0.5 if kind == "blend" else 1.0
                start[i].lerp_(torch.from_numpy(neighbour).to(start), share)
        return start

    def _approach(self, driving: View, start: Tensor) -> tuple[Tensor, Tensor]:
        """Moves starts `[B, L, N]` towards the driving keypoints, without gradients.

        From one anchor to another keypoints change by what is known; as if that were linear,
        what a start misses says where to go. What is drawn there says what is still missed.
        A move that does not help is halved.

        Returns:
            Where they are then, and what a single look there is off, `[B, 478, 3]` px.
        """
        objective = self.settings.objective
        secants = self.settings.secants if objective.keypoints else 0
        wanted = driving.keypoints + self.rest
        lowest = start.new_full((len(start),), torch.inf)
        share = torch.ones_like(lowest)
        missed = start.new_zeros(len(start), len(self.secants))
        trial = best = start.clone()
        for step in range(secants + 1):
            if step:
                move = share[:, None] * (missed @ self.secants)
                trial = nearest_weights(best + move[:, None])
            made = self._glance(trial @ self.anchors, self.bias)
            if not step:
                seen = made
            now = keypoint_loss(made.keypoints, wanted, objective)
            better = now < lowest  # never, where it is NaN
            lowest = torch.where(better, now, lowest)
            missed = torch.where(better[:, None], self._compared(wanted - made.keypoints), missed)
            share = torch.where(better, share, share / 2)
            for kept, new in zip((best, *seen), (trial, *made), strict=True):
                kept[better] = new[better]
        return best, self.bias + _off(seen)

    def _optimise(
        self,
        driving: View,
        raw: Tensor,
        off: Tensor,
        steps: int,
        tick: Callable[[float], None],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Adam on alpha and its offsets; frames of the batch don't influence each other.

        By anchors, each step would move all of them alike, and what the larger of the directions
        overshoot would drown gaze, of which keypoints tell least. So steps are by directions.

        Args:
            driving: what to follow, seen closely.
            raw: the start, `[B, L, N]`.
            off: `[B, 478, 3]` px, what a single look at the start is off.
            steps: at most.
            tick: called with the share of the frames that is done, in frames.

        Returns:
            The best weights `[B, L, N]` that were met, and what is told of them, each `[B]`: drawn
            in full precision, and seen closely.
        """
        s = self.settings
        mean = raw.mean(1, keepdim=True)
        rate = s.rate * (_FREE if set(s.follow) < set(PARTS) else 1)
        rates = (rate, rate * s.delta_rate)
        moves = [torch.zeros_like(mean).requires_grad_(), torch.zeros_like(raw).requires_grad_()]
        optimiser = torch.optim.Adam([{"params": [move]} for move in moves], betas=_BETAS)
        best = [move.detach().clone() for move in moves]
        lowest = raw.new_full((len(raw),), torch.inf)
        history: list[Tensor] = []

        def met(moves: list[Tensor]) -> tuple[Tensor, Tensor]:
            alpha, delta = (move @ self.directions.T for move in moves)
            return mean + alpha, raw - mean + delta

        def glance(codes: Tensor) -> View:
            return self._glance(codes, off, self.half)

        for step in range(steps + 1):
            last = step == steps
            with torch.set_grad_enabled(not last):
                loss = total(self._judge(*met(moves), driving, glance)[1], s.objective)
            better = loss.detach() < lowest  # never, where it is NaN
            lowest = torch.where(better, loss.detach(), lowest)
            for kept, move in zip(best, moves, strict=True):
                kept[better] = move.detach()[better]
            history.append(lowest)
            if last or _converged(history, s):
                break
            gradients = torch.autograd.grad(loss.sum(), moves)
            fade = 0.1 + 0.9 * (0.5 + 0.5 * np.cos(np.pi * step / steps))
            for part, gradient, base in zip(optimiser.param_groups, gradients, rates, strict=True):
                part["params"][0].grad = gradient
                part["lr"] = base * fade
            optimiser.step()
            tick(len(raw) * (step + 1) / (steps + 1))
        with torch.no_grad():
            return self._judge(*met(best), driving, self._closely)

    def _judge(
        self, alpha: Tensor, delta: Tensor, driving: View, see: Callable[[Tensor], View]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """How well codes follow the driving frames.

        Args:
            alpha: `[B, 1, N]`, as it is optimised (before eq. 7).
            delta: `[B, L, N]`, what each row adds to it.
            driving: what to follow, seen closely.
            see: draws codes `[B, L, 512]` and looks.

        Returns:
            Weights `[B, L, N]`, and the terms of eq. 10 with the keypoint error, each `[B]`.
        """
        softened = soften(alpha + delta)
        weights = to_weights(softened)
        made = see(weights @ self.anchors)
        terms = picture_losses(made, driving, self.centre, self.settings.objective, self.rest)
        terms |= {"delta": delta_loss(delta), "sum": sum_loss(softened)}
        wanted = driving.keypoints + self.rest
        return weights, terms | {"keypoint_error": keypoint_error(made.keypoints, wanted)}


def _converged(history: list[Tensor], settings: Settings) -> bool:
    """Whether no frame's lowest loss fell noticeably within the last steps."""
    if len(history) <= settings.patience:
        return False
    before, now = history[-1 - settings.patience], history[-1]
    return bool((before - now <= settings.tolerance * now.abs()).all())


def retrieve(wanted: Tensor, keypoints: Tensor) -> Tensor:
    """The anchors that look like a frame: a first guess without any optimisation.

    Args:
        wanted: `[B, 86, 3]` px, keypoints of driving frames.
        keypoints: `[N, 86, 3]` px, those of the anchors.

    Returns:
        Weights `[B, N]`: softmax of minus the mean distance of grouped keypoints.
    """
    distance = keypoint_error(wanted[:, None], keypoints[None])
    near = distance.sort(1).values[:, min(_NEAR, len(keypoints)) - 1, None]
    return torch.softmax(-distance / (_SHARPNESS * near).clamp(min=1e-6), 1)


def head_at_rest(driving: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """How a character's head differs from the driver's when both are turned alike.

    From anchor to anchor the head frame moves with pose and jaw. A ridge regression on them says
    where the character has it when it is turned as the driver, but for that share of the pitch
    which is taken for the shape of the driver's face (`_SHAPE`).

    Args:
        driving: `[F, 86, 3]` px, keypoints of driving frames; NaN ones don't count.
        anchors: `[N, 86, 3]` px.

    Returns:
        `[86, 3]` px float32, to add to driving keypoints; 0 but for the head frame.
    """
    driving = driving[np.isfinite(driving).all((1, 2))]
    known, asked = (_turns(keypoints) for keypoints in (anchors, driving))
    rest = np.zeros(anchors.shape[1:], np.float32)
    if not len(asked) or not np.isfinite(known).all():
        return rest
    apart = np.median(asked[:, _PITCH]) - np.median(known[:, _PITCH])
    asked[:, _PITCH] -= np.clip(_SHAPE * apart, -_SHAPE_MOST, _SHAPE_MOST)
    spread = known.std(0).clip(min=1e-6)
    known, asked = ((turns - known.mean(0)) / spread for turns in (known, asked))
    points = anchors[:, _HEAD].reshape(len(anchors), -1)
    gram = known.T @ known + _TURN_RIDGE * len(known) * np.eye(len(_TURNS))
    moves = np.linalg.solve(gram, known.T @ (points - points.mean(0)))
    turned = points.mean(0) + asked.mean(0) @ moves
    rest[_HEAD] = turned.reshape(-1, 3) - driving[:, _HEAD].mean(0)
    return rest


def mouth_at_rest(driving: np.ndarray, anchors: np.ndarray) -> np.ndarray | None:
    """How a character's mouth at rest differs in shape from the driver's.

    A driver who smiles through most of a shot, more broadly than the character can, would leave
    over that its mouth is narrower, and at rest the character would purse its lips. So both mouths
    are compared where they rest: frames count by how near theirs is to anyone's at rest.

    Args:
        driving: `[F, 86, 3]` px, keypoints of driving frames; NaN ones don't count.
        anchors: `[N, 86, 3]` px.

    Returns:
        `[40, 3]` px float32, to add to the driver's lips, zero on average; None where no
        mouth rests.
    """
    shapes = []
    for keypoints in (anchors, driving):
        keypoints = keypoints[np.isfinite(keypoints).all((1, 2))]
        span, width, gap = (
            np.linalg.norm(np.diff(keypoints[:, pair], axis=1)[:, 0], axis=1)
            for pair in (_EYE_CORNERS, _MOUTH_CORNERS, _MID_LIPS)
        )
        off = (width / span - _REST_WIDTH) / _REST_WIDTH_SPREAD
        rests = np.exp(-0.5 * (off**2 + (gap / span / _REST_GAP_SPREAD) ** 2))
        if rests.sum() < _REST_LEAST:
            return None
        shape = np.einsum("f,fki->ki", rests / rests.sum(), keypoints[:, LIPS])
        shapes.append(shape - shape.mean(0))
    return (shapes[0] - shapes[1]).astype(np.float32)


def _turns(keypoints: np.ndarray) -> np.ndarray:
    """`_TURNS` of keypoints `[F, 86, 3]`, `[F, 4]`."""
    mesh = np.full((len(keypoints), 478, 3), np.nan)
    mesh[:, KEYPOINTS] = keypoints
    measures = measure(mesh)
    return np.stack([measures[name] for name in _TURNS], 1)


def _plan(shots: list[np.ndarray], todo: np.ndarray, settings: Settings) -> list[np.ndarray]:
    """The rows to solve, in batches; each may start from what the batches before it solved."""
    wanted = [run[todo[run]] for run in shots]
    wanted = [run for run in wanted if len(run)]
    if not wanted:
        return []
    if settings.start == "previous":  # one frame of every shot at a time
        longest = max(map(len, wanted))
        levels = [np.array([run[i] for run in wanted if i < len(run)]) for i in range(longest)]
    elif settings.start == "blend":
        keys = _keyframes(shots, todo, settings)
        levels = [keys, np.setdiff1d(np.concatenate(wanted), keys)]
    else:
        levels = [np.concatenate(wanted)]
    return [batch for level in levels for batch in _batches(level, settings)]


def _keyframes(shots: list[np.ndarray], todo: np.ndarray, settings: Settings) -> np.ndarray:
    """Of the rows to solve those that are solved first, because the others lie between them."""
    wanted = [run[todo[run]] for run in shots]
    return np.concatenate(
        [np.union1d(run[:: settings.keyframe_every], run[-1:]) for run in wanted if len(run)]
    )


def _batches(rows: np.ndarray, settings: Settings) -> list[np.ndarray]:
    if not len(rows):
        return []
    return np.array_split(rows, -(-len(rows) // settings.batch))  # even: one alone costs more


def _neighbours(
    track: LatentTrack, shots: list[np.ndarray], row: int, settings: Settings
) -> np.ndarray | None:
    """Weights `[L, N]` where the solved frames around a row would have it; None without any."""
    if settings.start in ("retrieval", "centre"):
        return None
    run = next(run for run in shots if run[0] <= row <= run[-1])
    solved = run[np.isin(track.state[run], _GIVEN)]
    before, after = solved[solved < row][-1:], solved[solved > row][:1]
    if settings.start == "previous":
        return _between(track, row, before)
    ends = np.concatenate([before, after])
    distance = np.abs(track.numbers[ends] - track.numbers[row])
    return _between(track, row, ends[distance <= settings.keyframe_every])


def _between(track: LatentTrack, row: int, solved: np.ndarray) -> np.ndarray | None:
    """Weights `[L, N]` of a row by its number, linear between the 0, 1 or 2 solved rows."""
    if not len(solved):
        return None
    weights = track.weights[solved]
    if len(solved) == 1:
        return weights[0]
    a, b = track.numbers[solved]
    share = np.float32((track.numbers[row] - a) / (b - a))
    return (1 - share) * weights[0] + share * weights[1]


# -- frames without a face, smoothing ------------------------------------------------------------


def _fill(track: LatentTrack, todo: np.ndarray, anchors: np.ndarray) -> None:
    """Codes for the rows of `todo` without a face, in place."""
    shot = np.cumsum(track.cut)
    solved = np.isin(track.state, _GIVEN)
    for row in np.flatnonzero(todo & ~solved):
        around = np.flatnonzero(solved & (shot == shot[row]))
        before, after = around[around < row][-1:], around[around > row][:1]
        ends = np.concatenate([before, after])
        gap = np.diff(track.numbers[ends]) - 1
        if len(ends) == 2 and gap[0] > MAX_GAP:
            ends = ends[[np.abs(track.numbers[ends] - track.numbers[row]).argmin()]]
        weights = _between(track, row, ends)
        if weights is None:
            weights = np.full_like(track.delta[row], 1 / track.alpha.shape[1])
        track.alpha[row] = weights.mean(0)
        track.delta[row] = weights - track.alpha[row]
        track.codes[row] = weights @ anchors
        track.state[row] = (FrameState.NO_FACE, FrameState.HELD, FrameState.INTERPOLATED)[len(ends)]


def smooth_codes(track: LatentTrack, sigma: float) -> np.ndarray:
    """Gaussian low-pass over time, by frame numbers; never across a cut or a long gap.

    At the ends of a shot the weights that are left are scaled up to 1. Held frames stay.

    Args:
        track: with codes.
        sigma: in frames; 0 changes nothing.

    Returns:
        `[F, L, 512]` float32.
    """
    result = track.codes.copy()
    if sigma <= 0:
        return result
    moving = np.isin(track.state, (*_GIVEN, FrameState.INTERPOLATED))
    for run in shot_runs(track.numbers, track.cut, moving):
        numbers = track.numbers[run]
        first = np.searchsorted(numbers, numbers - 4 * sigma)
        last = np.searchsorted(numbers, numbers + 4 * sigma, "right")
        for i, row in enumerate(run):
            near = slice(first[i], last[i])
            gauss = np.exp(-0.5 * ((numbers[near] - numbers[i]) / sigma) ** 2)
            result[row] = np.tensordot(gauss / gauss.sum(), track.codes[run[near]], 1)
    return result


# -- the task ------------------------------------------------------------------------------------


def _check(
    character: Character, driving: Driving, settings: Settings, previous: LatentTrack | None
) -> None:
    count = len(driving.numbers)
    if any(len(getattr(driving, name)) != count for name in (*_PER_FRAME, "pictures")):
        raise ValueError("Driving arrays are of different lengths.")
    if (np.diff(driving.numbers) <= 0).any():
        raise ValueError("Driving frames must be in order, each once.")
    if not driving.found.any():
        raise NoFace("The driving frames show no face. Choose another range.")
    if set(settings.follow) < set(PARTS) and (
        previous is None or not np.isin(driving.numbers, previous.numbers).all()
    ):
        raise ValueError("For a part of the face to stay, a previous track must say as what.")
    shape = (character.generator.architecture.num_ws, len(character.anchors))
    if previous is None:
        return
    if previous.character != character.hash or previous.delta.shape[1:] != shape:
        raise OtherCharacter(
            "The previous track was solved for another character. Choose that one, or solve the "
            "whole shot."
        )
    if not previous.complete:
        raise ValueError("The previous track is not complete. Finish it first.")


def _rest(
    character: Character, driving: Driving, settings: Settings, previous: LatentTrack | None
) -> np.ndarray:
    """How the character's face at rest differs from the driving one, `[86, 3]` px; NaN: to do."""
    if settings.neutral is None:
        return np.zeros(character.keypoints.shape[1:], np.float32)
    plain = json.loads(json.dumps(settings.neutral))
    if previous is not None and previous.settings["neutral"] == plain:
        return previous.rest  # a part of a shot is compared as the whole was
    if settings.neutral == "auto":
        return np.full(character.keypoints.shape[1:], np.nan, np.float32)
    number, scan = settings.neutral
    row = np.flatnonzero(driving.found & (driving.numbers == number))
    if not len(row):
        raise NeutralMissing(
            f"Frame {number}, the neutral driving frame, is not among the driving frames, or has "
            "no face. Choose a frame inside the range in which the face is seen."
        )
    if scan not in character.info.selected:
        near = sorted(character.info.selected, key=lambda n: abs(n - scan))[:3]
        raise NeutralMissing(
            f"Frame {scan}, the neutral scan frame, is not one the character was made of. The "
            f"nearest that are: {', '.join(map(str, sorted(near)))}."
        )
    code = character.anchors[list(character.info.selected).index(scan), None].detach()
    with torch.no_grad():
        at_rest = look_closely(_draw(character, code)).keypoints[0]
    shown = look_closely(driving.pictures[int(row[0]), None].to(code)).keypoints[0]
    return (at_rest - shown).cpu().numpy()


def _bias(character: Character) -> Tensor:
    """What a single look at the character is off, on average, `[478, 3]` px."""
    anchors = character.anchors.detach()
    some = anchors[:: -(-len(anchors) // _BIAS_ANCHORS)]
    with torch.no_grad():
        return torch.cat([_off(look(_draw(character, few))) for few in some.split(4)]).mean(0)


def _off(seen: View) -> Tensor:
    """What a glance at generated pictures is still off a close look, `[B, 478, 3]` px.

    Each step of a search looks once. How much that is off changes with what a face does, by as much
    as gaze moves an iris, so it is taken near each result.
    """
    return seen.landmarks - look_closely(seen.pictures).landmarks


def _draw(character: Character, codes: Tensor, half: torch.dtype | None = None) -> Tensor:
    """Pictures `[B, 3, R, R]` of codes `[B, L, 512]`, no larger than a mesh needs them."""
    generator = character.generator
    size = min(MAX_RESOLUTION, generator.architecture.resolution)
    return generator.synthesis(codes, stop_at=size, half=half, half_from=4)


def _begin(
    character: Character,
    driving: Driving,
    settings: Settings,
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
        rest=np.array(_rest(character, driving, settings, previous), np.float32),
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
    driving: Driving, settings: Settings, character_hash: str, previous: LatentTrack | None
) -> str:
    """What is to be solved, as a hash."""
    arrays = [getattr(driving, name) for name in _PER_FRAME]
    if previous is not None:
        arrays += [previous.numbers, previous.state, previous.codes, previous.rest]
    # With fewer frames at once, for want of memory, it is still the same task.
    return digest(SOLVER, character_hash, replace(settings, batch=0), *arrays, driving.pictures)


def _go_on(path: str | Path, track: LatentTrack) -> LatentTrack:
    """The track of the same task that an earlier call left at the path."""
    there = load_track(path)
    if there.task != track.task:
        raise TrackInTheWay(
            f"{path} holds another solve (of other frames, another character, other settings or by "
            "another version). Choose another name, or delete it first."
        )
    return there
