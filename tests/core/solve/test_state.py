from dataclasses import replace

import numpy as np
import torch
from solve_shots import random_track

from core.solve.latent_track import FrameState, LatentTrack, Phase
from core.solve.state import ShotState


def contents(track: LatentTrack) -> list[bytes]:
    """What solving changes."""
    arrays = [track.state, track.alpha, track.delta, track.codes, track.neutral_offset]
    return [a.tobytes() for a in (*arrays, *track.losses.values(), *track.quality.values())]


def test_a_state_shares_nothing_with_the_tracks_it_comes_from_and_gives():
    track = replace(random_track(), phase=Phase.SOLVE)
    before = contents(track)
    shot = ShotState.of(track)
    built, other = shot.build_track(), shot.copy()
    assert contents(built) == before
    assert np.array_equal(shot.weights, track.weights)
    terms = {name: torch.zeros(1) for name in (*track.losses, *track.quality)}
    layers, anchors = track.delta.shape[1:]
    shot.store(np.array([0]), torch.ones(1, layers, anchors), torch.ones(anchors, 512), terms)
    shot.state[0], shot.neutral_offset[0] = FrameState.PENDING, 1
    shot.phase = Phase.NEUTRAL
    changed = shot.build_track()
    assert all(a != b for a, b in zip(contents(changed), before, strict=True))
    assert contents(track) == contents(built) == contents(other.build_track()) == before
    assert (changed.phase, built.phase, other.phase) == (Phase.NEUTRAL, Phase.SOLVE, Phase.SOLVE)
