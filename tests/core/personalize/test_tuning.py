"""Tuning: what it changes, what it is told to look at, and that breaks leave no trace."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from performer_faces import acted, aligned
from repository import ROOT, SUPPORT
from small_character import small_character
from small_generators import BLOCKS, SIZE, task
from torch import Tensor

from core.base.checkpoints import CheckpointMismatchError, CheckpointNotSavedError
from core.base.training import DivergedError
from core.face.identity import proxy_recogniser
from core.face.landmarks import detect_landmarks
from core.generator import Generator
from core.media.contact_sheet import LABEL_HEIGHT
from core.personalize import tuning
from core.personalize.inversion import reconstruction_loss
from core.personalize.tuning import (
    CHECKPOINT,
    Pairs,
    Tuned,
    TuningSettings,
    face_weights,
    psnr,
    reconstruct,
    reconstruction_sheet,
    tune,
)

PLAIN = TuningSettings(steps=12, batch=2, warm_up=3, features=1, background=1, check_every=4)


def mean_loss(generator: torch.nn.Module, w: Tensor, pictures: Tensor) -> float:
    with torch.no_grad():
        return float(reconstruction_loss(generator.synthesis(w), pictures, BLOCKS).mean())


def same(a: Tuned, b: Tuned) -> bool:
    left, right = a.generator.state_dict(), b.generator.state_dict()
    return a.losses == b.losses and all(torch.equal(left[k], right[k]) for k in left)


def test_learns_with_synthesis_parameters_alone() -> None:
    generator, w, pictures = task()
    before = {k: v.clone() for k, v in generator.state_dict().items()}
    tuned = tune(generator, w, pictures, BLOCKS, replace(PLAIN, steps=60, rate=5e-3))
    assert mean_loss(tuned.generator, w, pictures) < 0.5 * mean_loss(generator, w, pictures)
    assert all(torch.equal(v, before[k]) for k, v in generator.state_dict().items())
    moved = {k for k, v in tuned.generator.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {f"synthesis.{name}" for name, _ in generator.synthesis.named_parameters()}
    assert not any(p.requires_grad for p in tuned.generator.parameters())
    assert tuned.steps == 60
    assert not tuned.plateau


def test_gradient_is_that_of_equation_1() -> None:
    """The first steps' losses are eq. 1's mean over the pictures of each step."""
    generator, w, pictures = task(4)
    settings = replace(PLAIN, steps=2, rate=0.0)
    seen: list[float] = []
    tune(
        generator,
        w,
        pictures,
        BLOCKS,
        settings,
        progress=lambda done, total, **figures: seen.append(figures["loss"]),
    )
    # Both steps together see every picture once, and nothing moves.
    assert np.mean(seen) == pytest.approx(mean_loss(generator, w, pictures), rel=1e-5)


def test_every_picture_is_seen_as_often() -> None:
    settings = replace(PLAIN, batch=4)
    seen = torch.cat([tuning.batch_indices(settings, 7, step) for step in range(14)])
    assert seen.bincount().tolist() == [8] * 7
    assert not torch.equal(seen[:7], seen[7:14])
    assert tuning.batch_indices(replace(settings, batch=9), 7, 3).tolist() != list(range(7))


def test_resumed_is_bit_for_bit_the_same(tmp_path: Path) -> None:
    """Stopped after each of several steps by what a progress callback raises."""
    generator, w, pictures = task()
    held_out = Pairs(w[:2] * 0.9, pictures[:2])

    class Cancelled(Exception):
        pass

    def run(folder: Path | None, stop: int | None) -> Tuned:
        def progress(done: float, total: float, **figures: float) -> None:
            if done == stop:
                raise Cancelled

        return tune(
            generator,
            w,
            pictures,
            BLOCKS,
            PLAIN,
            held_out=held_out,
            folder=folder,
            progress=progress,
        )

    whole = run(None, None)
    for stop in (1, 5, 8):
        with pytest.raises(Cancelled):
            run(tmp_path, stop)
    assert same(run(tmp_path, None), whole)
    assert same(run(tmp_path, None), whole)  # finished: nothing is done again
    assert [entry["step"] for entry in whole.losses] == [4, 8, 12]


SCRIPT = """
import json, sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from core.base import training
from core.personalize import tuning
from small_generators import BLOCKS, task
training.CHECKPOINT_SECONDS = 0.0 if {often!r} else 1e9

def progress(done, total, **figures):
    print(int(done), flush=True)
    if done == 5:
        sys.stdin.readline()  # until the test has sent its signal

settings = tuning.TuningSettings(**{settings!r})
try:
    tuned = tuning.tune(*task(), BLOCKS, settings, folder={folder!r}, progress=progress)
    print(json.dumps(sum(p.double().sum().item() for p in tuned.generator.parameters())))
except KeyboardInterrupt:
    print("interrupted")
"""


def start(folder: Path, often: bool) -> subprocess.Popen[str]:
    text = SCRIPT.format(
        paths=[str(SUPPORT), str(Path(__file__).parent), str(ROOT)],
        folder=str(folder),
        often=often,
        settings=asdict(PLAIN),
    )
    return subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a run without a break prints.

    It has a process of its own, too: which kernels are chosen depends on how many threads there
    once were.
    """
    return start(tmp_path_factory.mktemp("whole"), True).communicate("\n")[0].split()


@pytest.mark.parametrize(("number", "often"), [(signal.SIGKILL, True), (signal.SIGINT, False)])
def test_killed_and_interrupted_runs_go_on(
    whole: list[str], tmp_path: Path, number: signal.Signals, often: bool
) -> None:
    process = start(tmp_path, often)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "5":
            os.kill(process.pid, number)
            break
    rest = process.communicate("\n")[0].split()
    if number == signal.SIGINT:
        assert rest == ["interrupted"]
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 5
    lines = start(tmp_path, often).communicate()[0].split()
    assert lines[0] == "6"  # it does go on
    assert json.loads(lines[-1]) == json.loads(whole[-1])


def test_interrupt_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    tune(*task(), BLOCKS, replace(PLAIN, steps=1))
    assert signal.getsignal(signal.SIGINT) is before


def test_checkpoints_of_others_are_refused(tmp_path: Path) -> None:
    generator, w, pictures = task()
    quick = replace(PLAIN, steps=2)
    tune(generator, w, pictures, BLOCKS, quick, folder=tmp_path)
    path = tmp_path / CHECKPOINT
    whole = path.read_bytes()
    for settings, codes in ((replace(quick, rate=1e-3), w), (quick, w + 1e-3)):
        with pytest.raises(CheckpointMismatchError, match="other inputs or settings"):
            tune(generator, codes, pictures, BLOCKS, settings, folder=tmp_path)
    assert path.read_bytes() == whole
    for damaged in (b"", whole[: len(whole) // 2], b"x" * 1000):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointMismatchError, match="damaged"):
            tune(generator, w, pictures, BLOCKS, quick, folder=tmp_path)


def test_no_place_for_checkpoints_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointNotSavedError, match="goes on from the last checkpoint"):
        tune(*task(), BLOCKS, replace(PLAIN, steps=1), folder=tmp_path / "file" / "folder")


def test_divergence_is_a_sentence() -> None:
    generator, w, pictures = task()
    pictures[3] = float("nan")
    with pytest.raises(DivergedError, match="Lower its rate"):
        tune(generator, w, pictures, BLOCKS, PLAIN)


def test_ends_when_held_out_frames_stop_gaining() -> None:
    generator, w, pictures = task()
    # Without a rate nothing is gained; with one, the same frames gain to the end.
    still = replace(PLAIN, steps=60, check_every=2, patience=3, rate=0.0)
    tuned = tune(generator, w, pictures, BLOCKS, still, held_out=Pairs(w, pictures))
    assert (tuned.plateau, tuned.steps) == (True, 12)  # seen at 8, faded over two more looks
    assert len(tuned.losses) == 6
    moving = replace(still, steps=20, rate=5e-3)
    tuned = tune(generator, w, pictures, BLOCKS, moving, held_out=Pairs(w, pictures))
    assert (tuned.plateau, tuned.steps) == (False, 20)
    assert tuned.losses[-1]["psnr"] > tuned.losses[0]["psnr"]
    wanted = psnr(reconstruct(tuned.generator, w), pictures).mean()
    assert tuned.losses[-1]["psnr"] == pytest.approx(float(wanted), abs=1e-4)


def test_a_break_within_the_fade_changes_nothing(tmp_path: Path) -> None:
    generator, w, pictures = task()
    # What is far from anything that could be learnt gains nothing, though weights move.
    far = Pairs(w, -pictures)
    settings = replace(PLAIN, steps=60, check_every=2, patience=3, rate=1e-3)

    def stop(done: float, total: float, **figures: float) -> None:
        if total < 60 and done == total - 2:
            raise InterruptedError

    whole = tune(generator, w, pictures, BLOCKS, settings, held_out=far)
    assert whole.plateau
    assert whole.steps < 60
    with pytest.raises(InterruptedError):
        tune(generator, w, pictures, BLOCKS, settings, held_out=far, folder=tmp_path, progress=stop)
    assert same(
        tune(generator, w, pictures, BLOCKS, settings, held_out=far, folder=tmp_path), whole
    )


def test_stopped_early_it_keeps_the_average_and_goes_on_as_if_never_stopped(
    tmp_path: Path,
) -> None:
    generator, w, pictures = task()
    held_out = Pairs(w[:2] * 0.9, pictures[:2])
    shown: list[float] = []

    def run(folder: Path | None, asked: dict[int, int] | None = None) -> Tuned:
        """Tunes; `asked` says at which step somebody asks for how many."""
        done = [0]

        def progress(steps: float, total: float, **figures: float) -> None:
            done[0] = int(steps)

        def end_after() -> int | None:
            return max((n for at, n in (asked or {}).items() if done[0] >= at), default=None)

        return tune(
            generator,
            w,
            pictures,
            BLOCKS,
            PLAIN,
            held_out=held_out,
            on_evaluation=lambda average, history: shown.append(history[-1]["step"]),
            end_after=end_after,
            folder=folder,
            progress=progress,
        )

    whole = run(None)
    early = run(tmp_path, {5: 4})  # asked for while the sixth step is done: it ends after the fifth
    assert (early.steps, early.stopped, early.plateau) == (5, True, False)
    assert [entry["step"] for entry in early.losses] == [4, 5]
    assert shown[-2:] == [4, 5]
    left = reconstruct(early.generator, held_out.w)
    assert early.losses[-1]["psnr"] == float(psnr(left, held_out.pictures).mean())
    again = run(tmp_path, {0: 4})  # a worker was killed, and its next one knows of the wish
    assert same(again, early)
    later = run(tmp_path, {0: 7})
    assert (later.steps, later.stopped) == (7, True)
    assert later.losses[-1]["psnr"] > early.losses[-1]["psnr"]
    rest = run(tmp_path)
    assert same(rest, whole)
    assert not rest.stopped
    unborn = run(None, {0: 0})
    assert unborn.steps == 1  # a result without a step would be the base's


def test_identity_is_that_of_the_same_face() -> None:
    """A reconstruction that is the picture has identity 1, that of another expression less."""
    who = small_character()
    drawn = reconstruct(who.generator, who.anchors)
    recogniser = proxy_recogniser()
    figures = [
        tuning.psnr_check(Pairs(who.anchors, pictures), 3, recogniser).measure(who.generator)
        for pictures in (drawn, drawn.roll(1, 0), drawn.flip(-2))
    ]
    assert figures[0] == {"psnr": pytest.approx(100), "identity": pytest.approx(1, abs=1e-4)}
    assert 1 > figures[1]["identity"] > figures[2]["identity"]


def test_half_precision_learns_too() -> None:
    generator, w, pictures = task()
    tuned = tune(generator, w, pictures, BLOCKS, replace(PLAIN, steps=30, rate=5e-3, half=True))
    assert mean_loss(tuned.generator, w, pictures) < 0.8 * mean_loss(generator, w, pictures)


def test_progress_says_what_is_left() -> None:
    seen: list[dict[str, float]] = []

    def progress(done: float, total: float, **figures: float) -> None:
        seen.append({"done": done, "total": total, **figures})
        time.sleep(0.01)

    generator, w, pictures = task()
    tune(generator, w, pictures, BLOCKS, PLAIN, held_out=Pairs(w, pictures), progress=progress)
    assert [s["done"] for s in seen] == list(range(1, 13))
    assert seen[-1]["seconds_left"] == 0 < seen[5]["seconds_left"]
    assert "psnr" not in seen[2]
    assert "psnr" in seen[3]


def test_what_does_not_fit() -> None:
    generator, w, pictures = task()
    for codes, targets in ((w[:3], pictures), (w[:, :100], pictures), (w, pictures[..., :32])):
        with pytest.raises(ValueError, match="must be"):
            tune(generator, codes, targets, BLOCKS, PLAIN)
    with pytest.raises(ValueError, match="at least one"):
        tune(generator, w, pictures, BLOCKS, replace(PLAIN, steps=0))


def test_weights_lie_on_eyes_and_mouth() -> None:
    """Where the mesh network sees them, for a straight and a turned face."""
    pictures = aligned(acted(4, {}, {"yaw": 20.0, "jaw": 0.8}), 128)
    weights = face_weights(pictures.half(), features=5, background=0.2)
    assert weights.shape == (2, 1, 128, 128)
    mesh = detect_landmarks(pictures).landmarks[..., :2]
    at = ((mesh / 192 - 0.5) * 0.96 + torch.tensor([0.5, 0.6])) * 128
    for i in range(2):
        for point in (468, 473, 13, 14):  # iris centres and inner lips
            x, y = at[i, point].round().int().tolist()
            assert weights[i, 0, y, x] > 3
        x, y = at[i, 4].round().int().tolist()  # tip of the nose
        assert 0.9 < weights[i, 0, y, x] < 1.7
        corners = weights[i, 0, [0, 0], [0, -1]]
        assert (corners < 0.35).all()
    assert 0.03 < (weights > 3).float().mean() < 0.2
    assert torch.equal(face_weights(pictures, 1, 1), torch.ones_like(weights))


def test_targets_are_seen_once_where_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, w, pictures = task(5)
    seen: list[int] = []

    def maps(batch: Tensor) -> list[Tensor]:
        seen.append(len(batch))
        return BLOCKS.maps(batch)

    metric = replace(BLOCKS, maps=maps)
    once = tune(generator, w, pictures, metric, PLAIN)
    assert seen == [1, 2, 2, 1] + 12 * [2]  # one, the targets, then what is made at each step
    seen.clear()
    size = sum(m[0].nbytes for m in BLOCKS.maps(pictures))
    monkeypatch.setattr(tuning, "MAPS_BYTES", 5 * size - 1)
    again = tune(generator, w, pictures, metric, PLAIN)
    assert seen == [1] + 24 * [2]
    assert [e["loss"] for e in again.losses] == pytest.approx([e["loss"] for e in once.losses])


def test_weights_decide_where_it_learns() -> None:
    generator, w, pictures = task(2)
    weight = torch.full((2, 1, SIZE, SIZE), 0.1)
    weight[:, :, 16:48, 16:48] = 3.0
    errors = []
    settings = replace(PLAIN, steps=40, rate=5e-3, average=0.0)  # the last weights, not a mean
    for weights in (None, weight):

        def loss(copy: Generator, step: int, weights: Tensor | None = weights) -> Tensor:
            generated = copy.synthesis(w)
            return reconstruction_loss(generated, pictures, BLOCKS, weight=weights).mean()

        tuned = tuning.fine_tune(generator, loss, settings)
        squares = (tuned.generator.synthesis(w) - pictures).square()
        inside = squares[..., 16:48, 16:48].mean()
        errors.append((float(inside), float(squares.mean())))
    assert errors[1][0] < errors[0][0]
    before = (reconstruct(generator, w) - pictures).square().mean()
    assert errors[1][1] < 0.9 * float(before)  # the rest is not forgotten


def test_sheet_shows_inputs_above_reconstructions() -> None:
    generator, w, _ = task(7)
    with torch.no_grad():
        pictures = generator.synthesis(w).clamp(-1, 1)
    sheet = reconstruction_sheet(generator, w, pictures, [1001 + i for i in range(7)], columns=4)
    step = SIZE + LABEL_HEIGHT
    assert sheet.shape == (4 * step, 4 * SIZE, 3)
    for top, columns in ((0, 4), (2 * step, 3)):
        above = sheet[top : top + SIZE, : columns * SIZE]
        assert np.array_equal(above, sheet[top + step : top + step + SIZE, : columns * SIZE])
    assert len(reconstruction_sheet(generator, w, pictures, count=3)) == 2 * step
