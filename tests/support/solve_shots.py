"""Driving clips that the small character acts, and settings that solve them quickly."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from small_character import MOVES

from core.face.landmarks import detect_averaged, detect_landmarks
from core.solve.driving import Driving
from core.solve.initial import retrieve
from core.solve.latent_track import LatentTrack
from core.solve.objective import TERMS, Objective, total_loss
from core.solve.settings import SolveSettings

QUICK = SolveSettings(steps=2, first_steps=2, batch=3)


# The result is the start.
STILL = SolveSettings(secants=0, steps=0, first_steps=0, smoothing=0, batch=8, neutral=None)


def known(count: int) -> np.ndarray:
    """[count, N] barycentric coordinates of a motion through several expressions."""
    stops = np.eye(len(MOVES))[[0, 1, 3, 6]] * 0.8 + 0.2 / len(MOVES)
    t = np.linspace(0, len(stops) - 1, count)
    return np.stack([np.interp(t, range(len(stops)), w) for w in stops.T], 1)


def draw(character, weights: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        codes = torch.from_numpy(weights).float() @ character.anchors
        return character.generator.synthesis(codes).clamp(-1, 1)


def driving(pictures: torch.Tensor, first: int = 1001, **changes) -> Driving:
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
    """These frames of it."""
    keep = np.flatnonzero(np.isin(clip.numbers, list(numbers)))
    names = ("numbers", "pictures", "found", "cut", "landmarks", "quads")
    return replace(clip, **{name: getattr(clip, name)[keep] for name in names})


def bias(character) -> torch.Tensor:
    """[86, 3] px: what a single look at the character is off a close one, on average."""
    with torch.no_grad():
        own = character.generator.synthesis(character.anchors)
        return (detect_landmarks(own).keypoints - detect_averaged(own).keypoints).mean(0)


def looked_up(character, pictures: torch.Tensor) -> np.ndarray:
    """[F, N] weights of the anchors that look like driving pictures, all seen closely."""
    anchors = character.keypoints - bias(character)
    return retrieve(detect_averaged(pictures).keypoints, anchors).numpy()


def same(a: LatentTrack, b: LatentTrack) -> None:
    for name in ("numbers", "state", "cut", "alpha", "delta", "codes", "smooth", "neutral_offset"):
        assert np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True), name
    for name in TERMS:
        assert np.array_equal(a.losses[name], b.losses[name], equal_nan=True), name
    assert a.task == b.task


def losses(track: LatentTrack) -> np.ndarray:
    """Eq. 10 of every frame."""
    terms = {name: torch.from_numpy(values) for name, values in track.losses.items()}
    return total_loss(terms, Objective()).numpy()
