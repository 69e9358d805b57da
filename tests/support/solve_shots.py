"""Driving clips that the small character acts, and settings that solve them quickly."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from small_character import MOVES

from core.face.landmarks import detect_averaged, detect_landmarks
from core.personalize.character import Character
from core.solve.driving import Driving
from core.solve.initial import retrieve
from core.solve.latent_track import FrameState, LatentTrack, Phase
from core.solve.objective import TERMS, Objective, total_loss
from core.solve.settings import SolveSettings

QUICK = SolveSettings(secants=1, steps=1, first_steps=1, neutral_steps=1, batch=3)
# The result is the initial guess.
STILL = SolveSettings(secants=0, steps=0, first_steps=0, smoothing=0, batch=8, neutral=None)


def known(count: int) -> np.ndarray:
    """Returns barycentric coordinates `[count, N]` of a motion through several expressions."""
    stops = np.eye(len(MOVES))[[0, 1, 3, 6]] * 0.8 + 0.2 / len(MOVES)
    t = np.linspace(0, len(stops) - 1, count)
    return np.stack([np.interp(t, range(len(stops)), w) for w in stops.T], 1)


def draw(character: Character, weights: np.ndarray) -> torch.Tensor:
    """Draws weights `[F, N]`: pictures `[F, 3, R, R]`."""
    with torch.no_grad():
        codes = torch.from_numpy(weights).float() @ character.anchors
        return character.generator.synthesis(codes).clamp(-1, 1)


def driving(pictures: torch.Tensor, first: int = 1001, **changes: Any) -> Driving:
    """Returns pictures as a driving clip, with some of its fields changed."""
    count = len(pictures)
    rng = np.random.default_rng(0)
    plain = Driving(
        numbers=np.arange(first, first + count),
        pictures=pictures,
        found=np.ones(count, bool),
        cut=np.zeros(count, bool),
        landmarks=rng.random((count, 478, 3)).astype(np.float32),
        quads=rng.random((count, 4, 2)),
        fps=24.0,
        plate=(640, 480),
    )
    return replace(plain, **changes)


def only(clip: Driving, numbers: Iterable[int]) -> Driving:
    """Returns some frames of a clip, by their numbers."""
    keep = np.flatnonzero(np.isin(clip.numbers, list(numbers)))
    names = ("numbers", "pictures", "found", "cut", "landmarks", "quads")
    return replace(clip, **{name: getattr(clip, name)[keep] for name in names})


def bias(character: Character) -> torch.Tensor:
    """Returns the mean error of a single crop over the anchors, `[86, 3]` px."""
    with torch.no_grad():
        own = character.generator.synthesis(character.anchors)
        return (detect_landmarks(own).keypoints - detect_averaged(own).keypoints).mean(0)


def looked_up(character: Character, pictures: torch.Tensor) -> np.ndarray:
    """Returns weights `[F, N]` of the anchors that look like driving pictures."""
    anchors = character.keypoints - bias(character)
    return retrieve(detect_averaged(pictures).keypoints, anchors).numpy()


def same(a: LatentTrack, b: LatentTrack) -> None:
    """Checks that two solves gave the same result to the bit."""
    for name in ("numbers", "state", "cut", "alpha", "delta", "codes", "smooth", "neutral_offset"):
        assert np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True), name
    for name in TERMS:
        assert np.array_equal(a.losses[name], b.losses[name], equal_nan=True), name
    assert (a.task, a.phase) == (b.task, b.phase)


def losses(track: LatentTrack) -> np.ndarray:
    """Computes eq. 10 of every frame."""
    terms = {name: torch.from_numpy(values) for name, values in track.losses.items()}
    return total_loss(terms, Objective()).numpy()


def random_track(frames: int = 5, anchors: int = 7, layers: int = 4, seed: int = 0) -> LatentTrack:
    """Returns a track of random numbers, with a value in every field that a file holds."""
    rng = np.random.default_rng(seed)

    def floats(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    landmarks, quads = floats(frames, 478, 3), rng.standard_normal((frames, 4, 2))
    landmarks[1:2], quads[1:2] = np.nan, np.nan
    return LatentTrack(
        character="ab" * 32,
        numbers=np.arange(1001, 1001 + 2 * frames, 2),
        state=np.full(frames, FrameState.SOLVED, np.uint8),
        cut=np.zeros(frames, bool),
        alpha=floats(frames, anchors),
        delta=floats(frames, layers, anchors),
        codes=floats(frames, layers, 512),
        smooth=floats(frames, layers, 512),
        neutral_offset=floats(86, 3),
        landmarks=landmarks,
        quads=quads,
        amount=rng.random(frames, np.float32),
        losses={"keypoints": floats(frames), "sum": floats(frames)},
        quality={"keypoint_error": floats(frames)},
        phase=Phase.NEUTRAL,
        settings={"steps": 30, "objective": {"mouth": 20.0}, "start": "blend"},
        source="/plates/ä.####.exr",
        fps=23.976,
        plate=(2048, 1152),
        pixel_aspect=2.0,
        task="cd" * 32,
        created="2030-01-01T00:00:00+00:00",
        notes=("One note.",),
        parent="ef" * 32,
        recipe=({"do": "edit", "amounts": {"smile": [[1001, 0.5]]}},),
    )
