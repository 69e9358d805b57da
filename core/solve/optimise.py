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
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from core.face.keypoints import GROUPS, KEYPOINTS
from core.face.landmarks import Observation, detect_averaged, detect_landmarks, keypoint_error
from core.generator import half_precision
from core.personalize.character import Character
from core.solve.driving import Driving
from core.solve.initial import neighbour_weights, retrieve
from core.solve.latent_space import (
    delta_loss,
    nearest_weights,
    soften,
    sum_loss,
    to_raw,
    to_weights,
)
from core.solve.latent_track import (
    FrameState,
    LatentTrack,
)
from core.solve.objective import (
    TERMS,
    compared,
    keypoint_loss,
    picture_losses,
    point_weights,
    total_loss,
)
from core.solve.observe import draw_codes, mean_crop_bias, single_crop_error
from core.solve.schedule import split_batches
from core.solve.settings import PARTS, SolveSettings

# Adam's steps are along the principal directions of the weights, each divided by what it moves
# keypoints by; one of less than this share of their variance is lengthened no further.
_FLAT = 0.015
# It must forget soon, too, when all its steps are a handful: seven so are worth twelve at the usual
# (.9, .99) and half the rate.
_BETAS = (0.5, 0.95)

# A frame is solved again from another's codes if they are sure to lower its loss to this share.
_SURELY = 0.95

# How much longer Adam's steps are where parts of the face stay: they start at the tip of eq. 2,
# which is as steep there as anywhere, and short steps never leave it.
_FREE = 3.3


class _Solver:
    """What all batches of a solve share."""

    def __init__(
        self, character: Character, settings: SolveSettings, previous: LatentTrack | None
    ) -> None:
        self.settings = settings
        self.previous = previous
        self.character = character
        self.anchors = character.anchors.detach()
        self.bias = mean_crop_bias(character)
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

    def _closely(self, codes: Tensor) -> Observation:
        return detect_averaged(draw_codes(self.character, codes))

    def _glance(self, codes: Tensor, off: Tensor, half: torch.dtype | None = None) -> Observation:
        """A single look, less what it is off, `[478, 3]` or `[B, 478, 3]` px."""
        seen = detect_landmarks(draw_codes(self.character, codes, half))
        return Observation(seen.pictures, seen.landmarks - off)

    def watch(self, driving: Driving, numbers: np.ndarray) -> Observation:
        """Some driving frames, seen closely."""
        pictures = driving.pictures[torch.from_numpy(np.searchsorted(driving.numbers, numbers))]
        pictures = pictures.to(self.anchors)
        if not self.watched.keys() >= set(numbers):  # each once, however often it is asked for
            landmarks = detect_averaged(pictures).landmarks
            self.watched |= zip(numbers, landmarks, strict=True)
        return Observation(pictures, torch.stack([self.watched[number] for number in numbers]))

    def wanted(self, driving: Driving, numbers: np.ndarray) -> Tensor:
        """Keypoints `[K, 86, 3]` px of some driving frames, seen closely."""
        some = split_batches(numbers, self.settings)  # never all pictures at once
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
                near = [neighbour_weights(track, shots, row, self.settings) for row in rows]
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
            loss = total_loss(losses, objective).numpy()
            pairs = []
            for row, keypoints in zip(frames, wanted, strict=True):
                apart = objective.keypoints * keypoint_loss(wanted, keypoints, objective)
                bound = np.nan_to_num(loss[frames] + apart.cpu().numpy(), nan=np.inf)
                if bound.min() < _SURELY * loss[row]:
                    pairs.append((row, frames[bound.argmin()]))
            for done, batch in enumerate(batches := split_batches(np.array(pairs), self.settings)):
                tick(1 - (2 - done / len(batches)) / 2**sweep)
                rows, others = batch.T
                start = torch.from_numpy(track.weights[others]).to(self.anchors)
                shown = self.watch(driving, track.numbers[rows])
                with torch.no_grad():
                    start, off = self._approach(shown, start)
                weights, terms = self._optimise(
                    shown, to_raw(start), off, steps, lambda frames: None
                )
                better = total_loss(terms, objective).cpu().numpy() < loss[rows]
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

    def _in_part(self, driving: Observation, weights: Tensor) -> Observation:
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
        return Observation(shown.pictures, landmarks)

    def _starts(self, driving: Observation, near: list[np.ndarray | None]) -> Tensor:
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

    def _approach(self, driving: Observation, start: Tensor) -> tuple[Tensor, Tensor]:
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
        return best, self.bias + single_crop_error(seen)

    def _optimise(
        self,
        driving: Observation,
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

        def glance(codes: Tensor) -> Observation:
            return self._glance(codes, off, self.half)

        for step in range(steps + 1):
            last = step == steps
            with torch.set_grad_enabled(not last):
                loss = total_loss(self._judge(*met(moves), driving, glance)[1], s.objective)
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
        self,
        alpha: Tensor,
        delta: Tensor,
        driving: Observation,
        see: Callable[[Tensor], Observation],
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


def _converged(history: list[Tensor], settings: SolveSettings) -> bool:
    """Whether no frame's lowest loss fell noticeably within the last steps."""
    if len(history) <= settings.patience:
        return False
    before, now = history[-1 - settings.patience], history[-1]
    return bool((before - now <= settings.tolerance * now.abs()).all())
