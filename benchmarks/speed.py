"""How fast the method is: ours against a stated baseline in the same run, on one thread.

    python benchmarks/speed.py [ROW ...] [--threads N]

selection: distances of all pairs of 400 frames at 128 px and the 250 most diverse of them, against
    a loop over pairs that runs the same network on both pictures of each. The loop is timed on 40
    pairs and multiplied up to all of them. LPIPS' trunk is random where its weights are not on
    the machine; that changes no times.
tuning: seconds for each 100 pictures that the generator is trained on, in batches of 8, against the
    paper's batches of one; steps per second beside it. One picture of a batch of 8 is not worth one
    step, so this is about throughput alone.
solving: seconds a frame for 24 frames of one shot, against plain Adam from the centre of P on one
    frame at a time at the generator's full resolution, until it reaches the loss that ours reached
    (200 steps at most), on four of the frames. Once for the embedded generator of 128 px and once
    for one of 1024 px of FFHQ's size: the embedded one with blank layers added, so that steps are
    the same; there the baseline's step is timed three times and multiplied by the steps it took.
"""

import argparse
import dataclasses
import itertools
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import torchvision_ops  # noqa: F401

from core import reenactment
from core import tuning as tune
from core.character import Character, CharacterInfo
from core.generator import Generator, config_f
from core.latent_space import delta_loss, soften, sum_loss, to_raw, to_weights
from core.objective import face_keypoints, look, picture_losses, total
from core.perceptual import Metric, lpips_metric, metric, trunk_file
from core.selection import farthest_first, pairwise_distances
from core.synthetic import performer
from core.synthetic.base import base_generator
from core.synthetic.distill import latents
from core.synthetic.parameters import MOTION, PARAMETERS


def row(name: str, ours: float, baseline: float, remark: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:24s} {ours:9.2f} s {baseline:11.2f} s {baseline / ours:8.1f}x "
          f"{peak:7.0f} MiB  {remark}", flush=True)  # fmt: skip


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
    for batch, steps in ((8, 25), (1, 100)):
        settings = tune.Settings(steps=steps, batch=batch)
        tune.tune(
            generator, w, pictures, metric("embedded"), dataclasses.replace(settings, steps=2)
        )
        start = time.perf_counter()
        tune.tune(generator, w, pictures, metric("embedded"), settings)
        seconds[batch] = (time.perf_counter() - start) * 100 / (steps * batch)
    remark = f"per 100 pictures; {100 / 8 / seconds[8]:.2f} steps of 8 a second"
    row("tuning, 128 px", seconds[8], seconds[1], remark)


def people(count: int, seed: int = 0) -> Tensor:
    """Normals `[count, P]` of one person in many poses."""
    rng = np.random.default_rng(seed)
    normals = np.tile(rng.standard_normal(len(PARAMETERS)), (count, 1))
    normals[:, MOTION] = rng.standard_normal((count, int(np.sum(MOTION))))
    return torch.from_numpy(normals).float()


# -- solving -----------------------------------------------------------------------------------

SHOT, TRIED, MOST = 24, 4, 200


def solving() -> None:
    generator = base_generator()
    with torch.no_grad():
        anchors = generator.mapping(latents(people(64)))
        poses = generator.mapping(latents(people(5, seed=1)))
        places = torch.linspace(0, 3.999, SHOT)
        share = (places % 1)[:, None]
        moving = poses[places.long()] * (1 - share) + poses[places.long() + 1] * share
        pictures = generator.synthesis(moving).clamp(-1, 1)
    info = CharacterInfo("speed", {})
    settings = reenactment.Settings()
    steps = 0.0
    for resolution in (128, 1024):
        larger = enlarged(generator, resolution)
        with torch.no_grad():
            seen = larger.synthesis(anchors, stop_at=min(resolution, reenactment.MAX_RESOLUTION))
            keypoints = face_keypoints(seen)
        thumbnail = np.zeros((8, 8, 3), np.uint8)
        character = Character(larger, anchors, keypoints, thumbnail, info)
        driving = reenactment.Driving(
            np.arange(SHOT), pictures, np.ones(SHOT, bool), np.arange(SHOT) == 0,
            np.zeros((SHOT, 478, 3), np.float32), np.zeros((SHOT, 4, 2)),
        )  # fmt: skip
        start = time.perf_counter()
        track = reenactment.solve(character, driving, settings)
        ours = (time.perf_counter() - start) / SHOT
        terms = {name: torch.from_numpy(track.losses[name]) for name in track.losses}
        reached = total(terms, settings.objective)
        if resolution == 128:
            tried = np.linspace(0, SHOT - 1, TRIED).astype(int)
            runs = [plain(character, pictures[i : i + 1], float(reached[i])) for i in tried]
            baseline = float(np.mean([seconds for seconds, _, _ in runs]))
            steps = float(np.mean([count for _, count, _ in runs]))
            short = sum(not there for *_, there in runs)
            remark = f"per frame; plain Adam took {steps:.0f} steps"
            remark += f", {short} of {TRIED} never got there" if short else ""
        else:
            seconds, count, _ = plain(character, pictures[:1], -1.0, most=3)
            baseline = seconds / count * steps
            remark = f"per frame; {seconds / count:.2f} s a step of plain Adam, times {steps:.0f}"
        row(f"solving, {resolution} px", ours, baseline, remark)


def plain(
    character: Character, picture: Tensor, wanted: float, most: int = MOST
) -> tuple[float, int, bool]:
    """Adam on the code of one frame; seconds, steps, and whether it reached the wanted loss."""
    objective, anchors = reenactment.Settings().objective, character.anchors
    rows, count = character.generator.architecture.num_ws, len(anchors)
    start = time.perf_counter()
    with torch.no_grad():
        driving = look(picture)
        centre = look(character.generator.synthesis(anchors.mean(0, keepdim=True)))
        raw = to_raw(torch.full((1, rows, count), 1 / count))
    alpha = raw.mean(1).requires_grad_()
    delta = torch.zeros_like(raw).requires_grad_()
    rate = reenactment.Settings().rate / count
    optimiser = torch.optim.Adam([alpha, delta], lr=rate, betas=(0.9, 0.99))
    for step in range(most):
        softened = soften(alpha[:, None] + delta)
        made = look(character.generator.synthesis(to_weights(softened) @ anchors))
        terms = picture_losses(made, driving, centre, objective)
        terms |= {"delta": delta_loss(delta), "sum": sum_loss(softened)}
        loss = total(terms, objective).sum()
        if float(loss.detach()) <= wanted:
            return time.perf_counter() - start, step + 1, True
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return time.perf_counter() - start, most, False


def enlarged(generator: Generator, resolution: int) -> Generator:
    """The generator with layers of configuration F's width that add nothing, up to a resolution."""
    small = generator.architecture
    wide = config_f(resolution).channels
    channels = {r: small.channels.get(r, c) for r, c in wide.items()}
    large = Generator(dataclasses.replace(small, resolution=resolution, channels=channels))
    large.load_state_dict(generator.state_dict(), strict=False)
    with torch.no_grad():
        for name, parameter in large.named_parameters():
            block = re.search(r"\.b(\d+)\.torgb\.(weight|bias)$", name)
            if block and int(block[1]) > small.resolution:
                parameter.zero_()
    return large.eval().requires_grad_(False)


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
    print(f"torch {torch.__version__}, {options.threads} thread(s)")
    print(f"{'':24s} {'ours':>11s} {'baseline':>13s} {'faster':>9s} {'peak':>11s}")
    for name in options.rows or ROWS:
        ROWS[name]()


if __name__ == "__main__":
    main()
