"""How fast the method is: ours against a stated baseline in the same run, on one thread.

    python benchmarks/speed.py [ROW ...] [--threads N]

selection: distances of all pairs of 400 frames at 128 px and the 250 most diverse of them, against
    a loop over pairs that runs the same network on both pictures of each. The loop is timed on 40
    pairs and multiplied up to all of them. LPIPS' trunk is random where its weights are not on
    the machine; that changes no times.
tuning: seconds for 200 pictures that the embedded generator is trained on, in batches of 8, against
    the paper's batches of one. One picture of a batch of 8 is not worth one step, so this is about
    throughput alone.
solving, 128 px: seconds a frame for 24 frames of one shot by the embedded generator, against plain
    Adam on one frame at a time: each of four frames from the result of the frame before, until the
    loss is the one that ours reached, 200 steps at most, with the neutral offset, which ours has to
    find first, given to it. The best of four rates counts. A user is not told when to stop: the row
    below is plain Adam at that rate, stopped as ours is, when it gains no more.
solving, 1024 px: the same for a generator of FFHQ's size with random weights: the pictures that
    both drew at 128 px, with and without gradients, times seconds per picture here. Ours draws at
    256 px in batches, plain Adam at 1024 px.
Where the processor is faster in half precision, ours draws in it while it searches, and tuning
learns in it, with either batch.

Rows run in processes of their own; the peak of memory is that of the row, baseline included.
"""

import argparse
import dataclasses
import itertools
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
import torchvision_ops  # noqa: F401

from core.face.keypoints import KEYPOINTS
from core.face.landmarks import Observation, detect_averaged, detect_keypoints, detect_landmarks
from core.face.perceptual import Metric, lpips_metric, metric, trunk_file
from core.generator import Generator, config_f, half_precision
from core.personalize import tuning as tune
from core.personalize.character import Character, CharacterInfo
from core.personalize.selection import farthest_first, pairwise_distances
from core.solve.driving import Driving
from core.solve.latent_space import delta_loss, soften, sum_loss, to_raw, to_weights
from core.solve.objective import picture_losses, total_loss
from core.solve.observe import mean_crop_bias
from core.solve.optimise import converged
from core.solve.settings import MAX_RESOLUTION, SolveSettings
from core.solve.shot import solve_shot
from core.synthetic import performer
from core.synthetic.base import base_generator
from core.synthetic.distill.pictures import latents
from core.synthetic.parameters import MOTION, PARAMETERS


def row(name: str, ours: float, baseline: float, remark: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name:24s} {ours:9.2f} s {baseline:11.2f} s {baseline / ours:8.1f}x "
        f"{peak:7.0f} MiB  {remark}",
        flush=True,
    )


# -- selection ---------------------------------------------------------------------------------

FRAMES, SIDE, CHOSEN, SAMPLE = 400, 128, 250, 40


def selection() -> None:
    motion = performer.self_scan(performer.random_identity(3), FRAMES)
    rendered = np.stack([performer.render(p, SIDE, 1) for p in motion])
    pictures = torch.from_numpy(rendered).permute(0, 3, 1, 2).float() / 127.5 - 1
    embedded = metric("embedded")
    _selection_row(pictures, embedded, embedded.distance, "")

    import lpips  # slow

    here = trunk_file("lpips-alex").is_file()
    network = lpips.LPIPS(net="alex", pnet_rand=not here, verbose=False)
    alex = lpips_metric(network, "lpips-alex")
    _selection_row(pictures, alex, network, "" if here else "random trunk, ")


@torch.no_grad()
def _selection_row(
    pictures: Tensor, ours: Metric, pair: Callable[[Tensor, Tensor], Tensor], remark: str
) -> None:
    """`pair`: distance of one picture `[1, 3, R, R]` to another; for LPIPS the library's own."""
    start = time.perf_counter()
    distances = pairwise_distances(ours, pictures)
    farthest_first(distances, CHOSEN)
    seconds = time.perf_counter() - start

    pairs = list(itertools.combinations(range(len(pictures)), 2))
    sample = [pairs[i] for i in np.linspace(0, len(pairs) - 1, SAMPLE).astype(int)]
    start = time.perf_counter()
    found = [float(pair(pictures[i : i + 1], pictures[j : j + 1])) for i, j in sample]
    naive = (time.perf_counter() - start) / SAMPLE * len(pairs)
    error = max(abs(distances[p] - f) for p, f in zip(sample, found, strict=True))
    remark += f"loop timed on {SAMPLE} of {len(pairs)} pairs; distances agree to {error:.0e}"
    row(f"selection, {ours.name}", seconds, naive, remark)


# -- tuning ------------------------------------------------------------------------------------


def tuning() -> None:
    generator, normals = base_generator(), people(16)
    with torch.no_grad():
        w = generator.mapping(latents(normals))
        pictures = generator.synthesis(w).clamp(-1, 1)
    w = w + 0.1 * torch.randn(w.shape, generator=torch.Generator().manual_seed(0))
    seconds = {}
    half = half_precision("cpu") is not None  # as in personalize
    for batch in (8, 1):
        settings = tune.TuningSettings(steps=200 // batch, batch=batch, half=half)
        tune.tune(
            generator, w, pictures, metric("embedded"), dataclasses.replace(settings, steps=2)
        )
        start = time.perf_counter()
        tune.tune(generator, w, pictures, metric("embedded"), settings)
        seconds[batch] = time.perf_counter() - start
    remark = f"200 pictures; {200 / 8 / seconds[8]:.2f} steps of 8 a second"
    row("tuning, 128 px", seconds[8], seconds[1], remark)


def people(count: int, seed: int = 0) -> Tensor:
    """Normals `[count, P]` of one person in many poses."""
    rng = np.random.default_rng(seed)
    normals = np.tile(rng.standard_normal(len(PARAMETERS)), (count, 1))
    normals[:, MOTION] = rng.standard_normal((count, int(np.sum(MOTION))))
    return torch.from_numpy(normals).float()


# -- solving -----------------------------------------------------------------------------------

SHOT, TRIED, MOST = 24, 4, 200
RATES = (0.15, 0.3, 0.6, 1.2)  # of plain Adam, over the weight of one anchor in the mean


def solving() -> None:
    generator, settings = base_generator(), SolveSettings()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        anchors = generator.mapping(latents(people(64), random))
        poses = generator.mapping(latents(people(5, seed=1), random))
        places = torch.linspace(0, 3.999, SHOT)
        share = (places % 1)[:, None]
        moving = poses[places.long()] * (1 - share) + poses[places.long() + 1] * share
        pictures = generator.synthesis(moving).clamp(-1, 1)
        keypoints = detect_keypoints(generator.synthesis(anchors))
    thumbnail, info = np.zeros((8, 8, 3), np.uint8), CharacterInfo("speed", {})
    character = Character(generator, anchors, keypoints, thumbnail, info)
    driving = Driving(
        np.arange(SHOT),
        pictures,
        np.ones(SHOT, bool),
        np.arange(SHOT) == 0,
        np.zeros((SHOT, 478, 3), np.float32),
        np.zeros((SHOT, 4, 2)),
    )
    drawn = {True: 0, False: 0}  # pictures, by whether gradients are taken

    def counted(module: Generator, arguments: tuple[Tensor]) -> None:
        drawn[torch.is_grad_enabled()] += len(arguments[0])

    counter = generator.synthesis.register_forward_pre_hook(counted)
    start = time.perf_counter()
    track = solve_shot(character, driving, settings)
    ours = (time.perf_counter() - start) / SHOT
    counter.remove()
    terms = {name: torch.from_numpy(values) for name, values in track.losses.items()}
    reached = total_loss(terms, settings.objective)
    bias = mean_crop_bias(character)[list(KEYPOINTS)]  # of the single crops that plain Adam sees
    offset = torch.from_numpy(track.neutral_offset) + bias
    trials = [plain_shot(character, pictures[:TRIED], reached[:TRIED], offset, r) for r in RATES]
    best = min(range(len(RATES)), key=lambda i: (trials[i][2], trials[i][0]))
    seconds, steps, short, _ = trials[best]
    remark = f"a frame; {drawn[True] / SHOT:.0f} steps and {drawn[False] / SHOT:.0f} pictures more"
    remark += f" a frame, plain Adam {steps:.0f} steps"
    remark += f", {short} of {TRIED} never got there" if short else ""
    row("solving, 128 px", ours, seconds / TRIED, remark)
    seconds, alone, _, found = plain_shot(
        character, pictures[:TRIED], torch.full((TRIED,), -torch.inf), offset, RATES[best]
    )
    row(
        "  not told when to stop",
        ours,
        seconds / TRIED,
        f"a frame; plain Adam {alone:.0f} steps, to {found / reached[:TRIED].mean():.2f} of our "
        "loss",
    )

    large = Generator(config_f(1024)).eval().requires_grad_(False)
    with torch.no_grad():
        anchors = large.mapping(torch.randn(64, 512, generator=random))
    batch = settings.batch
    half = half_precision("cpu")
    step, look_only = step_seconds(large, anchors, pictures[:batch], MAX_RESOLUTION, half)
    plain_step, _ = step_seconds(large, anchors, pictures[:1], 1024)
    ours = (drawn[True] * step + drawn[False] * look_only) / batch / SHOT
    row(
        "solving, 1024 px",
        ours,
        plain_step * steps,
        f"a frame; {step:.1f} s a step of {batch}, {plain_step:.1f} s a plain step",
    )


def loss_of(
    generator: Generator,
    anchors: Tensor,
    driving: Observation,
    centre: Observation,
    alpha: Tensor,
    delta: Tensor,
    size: int,
    neutral_offset: Tensor | None = None,
    half: torch.dtype | None = None,
) -> Tensor:
    """Eq. 10 of some frames, `[B]`."""
    objective = SolveSettings().objective
    softened = soften(alpha[:, None] + delta)
    codes = to_weights(softened) @ anchors
    pictures = generator.synthesis(codes, stop_at=size, half=half, half_from=4)
    generated = detect_landmarks(pictures)
    terms = picture_losses(generated, driving, centre, objective, neutral_offset)
    return total_loss(terms | {"delta": delta_loss(delta), "sum": sum_loss(softened)}, objective)


def plain_shot(
    character: Character, pictures: Tensor, goals: Tensor, neutral_offset: Tensor, rate: float
) -> tuple[float, float, int, float]:
    """Runs Adam on one frame after the other until it reaches its goal, or gains no more.

    Returns:
        Seconds, steps per frame, frames that did not get there, mean loss.
    """
    generator, anchors = character.generator, character.anchors
    layers, count = generator.architecture.num_ws, len(anchors)
    size, settings = generator.architecture.resolution, SolveSettings()
    with torch.no_grad():
        centre = detect_landmarks(generator.synthesis(anchors.mean(0, keepdim=True)))
    raw = to_raw(torch.full((1, layers, count), 1 / count))
    steps = short = 0
    reached = 0.0
    start = time.perf_counter()
    for picture, goal in zip(pictures, goals, strict=True):
        alpha = raw.mean(1).requires_grad_()
        delta = (raw - raw.mean(1, keepdim=True)).requires_grad_()
        groups = [
            {"params": [alpha], "share": 1.0},
            {"params": [delta], "share": settings.delta_rate},
        ]
        optimiser = torch.optim.Adam(groups, lr=0.0, betas=(0.9, 0.99))
        with torch.no_grad():
            driving = detect_averaged(picture[None])
        history: list[Tensor] = []
        for step in range(MOST + 1):
            losses = loss_of(
                generator, anchors, driving, centre, alpha, delta, size, neutral_offset
            )
            loss = losses.sum()
            now = loss.detach()[None]
            history.append(torch.minimum(now, history[-1]) if history else now)
            alone = not torch.isfinite(goal) and converged(history, settings)
            if float(now) <= float(goal) or step == MOST or alone:
                short += float(now) > float(goal)
                reached += float(history[-1]) / len(pictures)
                break
            optimiser.zero_grad()
            loss.backward()
            fade = 0.1 + 0.9 * (0.5 + 0.5 * np.cos(np.pi * step / MOST))
            for group in optimiser.param_groups:
                group["lr"] = rate / count * group["share"] * fade
            optimiser.step()
            steps += 1
        raw = (alpha[:, None] + delta).detach()
    return time.perf_counter() - start, steps / len(pictures), short, reached


def step_seconds(
    generator: Generator,
    anchors: Tensor,
    pictures: Tensor,
    size: int,
    half: torch.dtype | None = None,
) -> tuple[float, float]:
    """Seconds of the loss of a batch with gradients, in `half` where that is given, and without, in
    full; the first of three is not counted."""
    layers, count = generator.architecture.num_ws, len(anchors)
    raw = to_raw(torch.full((len(pictures), layers, count), 1 / count))
    alpha, delta = raw.mean(1).requires_grad_(), torch.zeros_like(raw).requires_grad_()
    with torch.no_grad():
        driving = detect_landmarks(pictures)
        centre = detect_landmarks(generator.synthesis(anchors.mean(0, keepdim=True), stop_at=size))
    times: dict[bool, list[float]] = {True: [], False: []}
    for gradients in (True, False) * 3:
        with torch.set_grad_enabled(gradients):
            start = time.perf_counter()
            loss = loss_of(
                generator,
                anchors,
                driving,
                centre,
                alpha,
                delta,
                size,
                half=half if gradients else None,
            )
            if gradients:
                torch.autograd.grad(loss.sum(), [alpha, delta])
            times[gradients].append(time.perf_counter() - start)
    return float(np.mean(times[True][1:])), float(np.mean(times[False][1:]))


ROWS = {"selection": selection, "tuning": tuning, "solving": solving}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    torch.set_num_threads(options.threads)
    if len(options.rows) == 1:
        ROWS[options.rows[0]]()
        return
    print(f"torch {torch.__version__}, {options.threads} thread(s)")
    print(f"{'':24s} {'ours':>11s} {'baseline':>13s} {'faster':>9s} {'peak':>11s}", flush=True)
    for name in options.rows or ROWS:
        command = [sys.executable, __file__, name, "--threads", str(options.threads)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
