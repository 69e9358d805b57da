import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from repository import ROOT, SUPPORT
from solve_shots import QUICK, draw, driving, known, same

from core.personalize.character import load_character, save_character
from core.solve.latent_track import FrameState, Phase, load_track
from core.solve.shot import TrackExistsError, solve_shot

SOLVED = FrameState.SOLVED


@pytest.fixture(scope="module")
def solved(character, tmp_path_factory):
    """A character that was read from its file, pictures of eight frames, and their whole track."""
    folder = tmp_path_factory.mktemp("solved")
    save_character(folder / "small.character", character)
    loaded = load_character(folder / "small.character")
    pictures = draw(loaded, known(8))
    torch.save(pictures, folder / "pictures.pt")
    return folder, loaded, pictures, solve_shot(loaded, driving(pictures), QUICK)


_CHILD = """
import os, signal, sys
import torch
torch.set_num_threads(int(sys.argv[4]))
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from solve_shots import QUICK, driving
from core.personalize.character import load_character
from core.solve import shot
shot.SAVE_SECONDS = -1
folder = Path(sys.argv[2])
path = Path(sys.argv[5])
character = load_character(folder / "small.character")
clip = driving(torch.load(folder / "pictures.pt"))
def progress(done, count):
    if done >= float(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
shot.solve_shot(character, clip, QUICK, path=path, progress=progress)
"""


@pytest.mark.parametrize(
    ("killed", "done"),
    [(2.5, 3), (5.5, 3)],  # of 8: after the first pass over the keyframes, and after the second
    ids=["in the neutral pass", "after it"],
)
def test_a_killed_solve_goes_on_to_the_same_track(solved, tmp_path, killed, done):
    folder, loaded, pictures, whole = solved
    path = tmp_path / "shot.latents"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    threads = str(torch.get_num_threads())
    run = subprocess.run(
        [sys.executable, "-c", _CHILD, str(SUPPORT), folder, str(killed), threads, path],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    partial = load_track(path)
    assert not partial.complete
    assert (partial.state == SOLVED).sum() == done
    assert partial.phase is (Phase.SOLVE if killed > 5 else Phase.NEUTRAL)
    told: list[float] = []
    result = solve_shot(
        loaded, driving(pictures), QUICK, path=path, progress=lambda n, _: told.append(n)
    )
    # Of eight frames three are keyframes, which count twice; 5 % are kept for the propagation.
    assert told[0] == pytest.approx(3 * 8 / (8.4 if killed > 5 else 11.4))
    same(result, whole)
    same(result, load_track(path))
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.endswith("latents")) == [path.name]


def test_ctrl_c_keeps_what_is_done(solved, tmp_path):
    _, loaded, pictures, whole = solved
    clip, path = driving(pictures), tmp_path / "shot.latents"

    def stop(done: float, count: int) -> None:
        if done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve_shot(loaded, clip, QUICK, path=path, progress=stop)
    partial = load_track(path)
    assert (partial.state == SOLVED).sum() == 3
    assert np.isfinite(partial.codes[partial.state == SOLVED]).all()
    same(solve_shot(loaded, clip, QUICK, path=path), whole)


def test_a_finished_track_is_not_solved_again(character, tmp_path):
    clip, path = driving(draw(character, known(2))), tmp_path / "shot.latents"
    first = solve_shot(character, clip, QUICK, path=path)
    steps: list[float] = []
    same(
        solve_shot(character, clip, QUICK, path=path, progress=lambda n, _: steps.append(n)), first
    )
    assert not steps


def test_another_track_is_not_overwritten(character, tmp_path):
    clip, path = driving(draw(character, known(2))), tmp_path / "shot.latents"
    solve_shot(character, clip, QUICK, path=path)
    before = path.read_bytes()
    louder = clip.pictures.clone()
    louder[1] *= 0.9
    for changed in (
        lambda: solve_shot(character, clip, replace(QUICK, seed=1), path=path),
        lambda: solve_shot(replace(character, hash="b"), clip, QUICK, path=path),
        lambda: solve_shot(character, driving(louder), QUICK, path=path),
    ):
        with pytest.raises(TrackExistsError, match="delete"):
            changed()
    assert path.read_bytes() == before
