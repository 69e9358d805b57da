from dataclasses import replace

import numpy as np
import pytest
from solve_shots import STILL, draw, driving, known, losses, same

from core.face.landmarks import detect_averaged
from core.personalize.character import load_character, save_character
from core.solve import initial, shot
from core.solve.driving import Driving
from core.solve.initial import retrieve
from core.solve.latent_track import FrameState, load_track
from core.solve.shot import solve_shot

SOLVED = FrameState.SOLVED


def misled(monkeypatch, character) -> Driving:
    """Nine frames of one face; retrieval goes wrong for all keyframes but the first."""
    clip = driving(draw(character, np.repeat(known(3)[:1], 9, 0)))
    wrong = retrieve(detect_averaged(draw(character, known(3)[2:])).keypoints, character.keypoints)

    def mislead(wanted, keypoints):
        found = retrieve(wanted, keypoints)
        if len(found) == 3:  # frames 1, 5 and 9
            found[1:] = wrong
        return found

    monkeypatch.setattr(initial, "retrieve", mislead)
    return clip


def test_a_better_solution_is_propagated(character, monkeypatch):
    """A face that is held stays held, whatever the initial guesses of its frames were."""
    clip = misled(monkeypatch, character)
    propagated = losses(solve_shot(character, clip, STILL))
    monkeypatch.setattr(shot, "propagate_solutions", lambda context, state, *_: state)
    before = losses(solve_shot(character, clip, STILL))
    assert before.max() > 2 * before.min()
    assert propagated.max() < 1.3 * propagated.min()
    assert (propagated <= before).all()


def test_an_interrupt_during_propagation_loses_nothing(character, monkeypatch, tmp_path):
    save_character(tmp_path / "small.character", character)
    loaded = load_character(tmp_path / "small.character")
    clip, path = misled(monkeypatch, loaded), tmp_path / "shot.latents"
    few = replace(STILL, batch=4)
    shown: list[float] = []
    whole = solve_shot(loaded, clip, few, progress=lambda n, count: shown.append(n / count))
    assert shown == sorted(shown)
    assert shown[-1] == 1
    solved = next(i for i, share in enumerate(shown) if share > 0.95)  # then propagation begins

    def interrupt(n, count):
        shown.append(n / count)
        if len(shown) == solved + 3:  # some have changed
            raise KeyboardInterrupt

    shown.clear()
    with pytest.raises(KeyboardInterrupt):
        solve_shot(loaded, clip, few, path=path, progress=interrupt)
    assert 0.95 < shown[-1] < 1  # in between
    partial = load_track(path)
    assert (partial.state == SOLVED).all()
    assert not partial.complete
    same(solve_shot(loaded, clip, few, path=path), whole)
