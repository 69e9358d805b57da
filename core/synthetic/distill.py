"""Distils the base generator from the performer: a StyleGAN2 that draws what the performer does.

    python -m core.synthetic.distill FOLDER [--resolution 128]

Each picture is a draw of the performer's parameters, aligned as every clip is. The first entries
of a latent z are the parameters' standard normals, the others are noise that the picture does not
depend on, and |z|^2 = 512, so ordinary normal draws of z give ordinary people. Seven stages:

1. The generator learns, supervised, the way from z to the picture.
2. An encoder learns the way back, from a picture to its w.
3. Both go on together as an autoencoder: to find the w of a picture that one sees is so much
   easier than to find it from the parameters that the synthesis learns far more this way.
4. The mapping learns the w that the encoder finds, an error in w counting what it changes in the
   picture.
5. All three go on together, and what the landmark network sees counts too.
6. The encoder alone goes on, now that the generator stays as it is.
7. The mapping learns the encoder's w once more, from a teacher: a network that is told what the
   mapping must find out for itself (`cues`) learns w from fewer pictures than there are draws,
   and any number of draws can be put to it.

Everything is kept in FOLDER: rendered pictures (shards), checkpoints, the log, sheets. Run the
same line again and it goes on where it stopped (stages 4 and 7, some minutes each, start over).
`base.safetensors` and `encoder.safetensors` there are the result.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from core.base import cpu
from core.base.digest import digest
from core.base.files import atomic_write
from core.face.alignment import ffhq_points, quads_from_points, warp
from core.face.landmarks import detect_landmarks
from core.face.network import crop_roi, face_detector, face_mesh, to_picture
from core.generator import Architecture, Generator, half_precision
from core.generator.network import FullyConnectedLayer
from core.generator.storage import save_generator
from core.media.contact_sheet import contact_sheet
from core.media.write import write_png
from core.synthetic import performer
from core.synthetic.base import WEncoder
from core.synthetic.parameters import HIGH, LOW, MOTION, NAMES, PARAMETERS, from_normal, mirror

SHARD = 512  # pictures per file
HELD_OUT = 512  # the first shard is never trained on
Z_DIM = 512
CALIBRATION = 1536  # pictures on which MediaPipe's alignment is learnt

TAUGHT = 983_040  # draws that the mapping is taught the w of

CHECKPOINT_SECONDS = 180

# Anchors of the loss weights: eyes, mouth corners (FFHQ's four points).
_POINTS = 4


@dataclass(frozen=True)
class Recipe:
    """What makes a base generator; written into its header."""

    resolution: int = 128
    pictures: int = 81_920
    early_pictures: int = 20_480  # of them for stages 1 and 2
    autoencoder_pictures: int = 40_960  # for stage 3
    steps: int = 22_000  # of stage 1
    encoder_steps: int = 3_200  # stage 2
    autoencoder_steps: int = 14_000  # stage 3
    mapping_steps: int = 8_000  # stage 4
    joint_steps: int = 6_000  # stage 5
    last_encoder_steps: int = 2_500  # stage 6
    teacher_steps: int = 1_200  # stage 7, of 768 pictures
    taught_steps: int = 3_000  # of 1024 draws
    seed: int = 1
    rate: float = 5e-2  # the mapping needs it: at 1e-2 it ends 1 dB lower at 32 px
    ema: float = 0.998

    def architecture(self) -> Architecture:
        """Narrower than configuration F: the performer needs less than the world's faces."""
        sizes = {4: 256, 8: 256, 16: 256, 32: 128, 64: 64, 128: 32, 256: 32}
        channels = {r: c for r, c in sizes.items() if r <= self.resolution}
        return Architecture(self.resolution, channels, mapping_layers=4, mapping_rate=1.0)

    def stages(self) -> list[tuple[float, int, int]]:
        """(share of the steps, resolution, batch): coarse first, where steps are cheap."""
        if self.resolution == 128:
            return [(0.36, 32, 16), (0.28, 64, 12), (0.36, 128, 8)]
        return [(0.2, 32, 16), (0.2, 64, 16), (0.25, 128, 16), (0.35, 256, 16)]


# -- pictures ----------------------------------------------------------------------------------


def draw_normals(seed: int, count: int) -> np.ndarray:
    """Standard normals `[count, P]` of performer parameters."""
    return np.random.default_rng(seed).standard_normal((count, len(PARAMETERS)))


def _features(params: np.ndarray) -> np.ndarray:
    """What the four alignment points are regressed on: geometry, motion and its products."""
    points = np.array([np.ravel([*performer.landmarks(p).values()]) for p in params])
    unit = ((params - LOW) / (HIGH - LOW) * 2 - 1)[:, MOTION]
    i, j = np.triu_indices(unit.shape[1])
    products = unit[:, i] * unit[:, j]
    return np.concatenate([np.ones((len(params), 1)), points, unit, products], 1)


def calibrate(folder: Path, seed: int, size: int = 256) -> np.ndarray:
    """Learns MediaPipe's alignment points from the performer's parameters.

    Measured on each picture they would jitter with the landmark network's noise, and the target
    would not be a smooth function of z any more.

    Returns:
        Ridge-regression weights `[features, 8]`, picture fractions; kept in `FOLDER/align.npy`.
    """
    path = folder / "align.npy"
    if path.exists():
        return np.load(path)
    params = from_normal(draw_normals(seed, CALIBRATION))
    mesh, detector = face_mesh(), face_detector()
    found, points = [], []
    for i, p in enumerate(params):
        image = torch.from_numpy(performer.render(p, size)).permute(2, 0, 1)[None] / 255
        roi = detector(image).roi[:1]
        if not len(roi):
            continue
        with torch.no_grad():
            landmarks = to_picture(mesh(crop_roi(image, roi)).landmarks, roi).numpy()
        found.append(i)
        points.append(ffhq_points(landmarks)[0] / size)
    x, y = _features(params[found]), np.stack(points).reshape(len(points), -1)
    train = len(x) * 3 // 4
    weights = _ridge(x[:train], y[:train])
    error = np.sqrt(((x[train:] @ weights - y[train:]) ** 2).mean()) * size
    print(f"alignment points: {error:.2f} px of {size} rms on held-out pictures", flush=True)
    weights = _ridge(x, y)
    with atomic_write(path) as temporary:
        np.save(temporary, weights)
    return weights


def _ridge(x: np.ndarray, y: np.ndarray, penalty: float = 1e-2) -> np.ndarray:
    return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)


def render_aligned(
    params: np.ndarray, weights: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Renders draws and aligns them.

    Args:
        params: `[N, P]`.
        weights: of `calibrate`.
        size: side of the pictures.

    Returns:
        Pictures `[N, size, size, 3]` uint8 and alignment points `[N, 4, 2]` in fractions of them.
    """
    # At this size the face is about as large as in the aligned picture.
    plate = round(size * 1.5)
    points, quads = _placed(params, weights)
    inside = _inside(points, quads)
    quads = quads * plate
    pictures = np.empty((len(params), size, size, 3), np.uint8)
    for i, p in enumerate(params):
        image = torch.from_numpy(performer.render(p, plate)).permute(2, 0, 1)[None].float()
        crop = warp(image, torch.from_numpy(quads[i])[None], size)[0]
        pictures[i] = crop.clamp(0, 255).round().permute(1, 2, 0).numpy()
    return pictures, inside.astype(np.float32)


def _placed(params: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Alignment points `[N, 4, 2]` and the squares `[N, 4, 2]` cut out, fractions of the plate."""
    points = (_features(params) @ weights).reshape(-1, _POINTS, 2)
    return points, quads_from_points(points)


def _inside(points: np.ndarray, quads: np.ndarray) -> np.ndarray:
    """Points `[N, K, 2]` in fractions of the squares `[N, 4, 2]`."""
    x, y = quads[:, 3] - quads[:, 0], quads[:, 1] - quads[:, 0]
    offset = points - quads[:, :1]
    return np.stack([(offset * a[:, None]).sum(-1) / (a**2).sum(-1)[:, None] for a in (x, y)], -1)


def cues(normals: np.ndarray, weights: np.ndarray) -> Tensor:
    """What draws look like, in numbers that a network need not find out from their normals.

    Args:
        normals: `[N, P]`.
        weights: of `calibrate`.

    Returns:
        `[N, P + 24]`: the parameters in [-1, 1], ten points of the face in fractions of the aligned
        picture, that picture's upper edge and its upper left corner in fractions of the plate.
    """
    params = from_normal(normals)
    face = np.array([[*performer.landmarks(p).values()] for p in params])
    _, quads = _placed(params, weights)
    edge = quads[:, 3] - quads[:, 0]
    unit = (params - LOW) / (HIGH - LOW) * 2 - 1
    seen = [unit, _inside(face, quads).reshape(len(params), -1), edge, quads[:, 0]]
    return torch.from_numpy(np.concatenate(seen, 1).astype(np.float32))


def _render_shard(folder: Path, index: int, seed: int, size: int) -> None:
    path = folder / f"shard{index:04d}.npz"
    if path.exists():
        return
    torch.set_num_threads(1)
    normals = draw_normals(seed * 100_003 + index, SHARD)
    pictures, points = render_aligned(from_normal(normals), np.load(folder / "align.npy"), size)
    with atomic_write(path) as temporary:
        np.savez(temporary, normals=normals.astype(np.float32), pictures=pictures, points=points)


def render(folder: Path, recipe: Recipe) -> list[Path]:
    """Renders all shards that are not there yet, on every core; the first one is held out."""
    folder.mkdir(parents=True, exist_ok=True)
    calibrate(folder, recipe.seed)
    shards = HELD_OUT // SHARD + -(-recipe.pictures // SHARD)
    start = time.monotonic()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            pool.submit(_render_shard, folder, i, recipe.seed, recipe.resolution)
            for i in range(shards)
        ]
        for i, job in enumerate(jobs):
            job.result()
            seconds = time.monotonic() - start
            print(f"\rrendered {i + 1} of {shards} shards, {seconds:.0f} s", end="", flush=True)
    print()
    return [folder / f"shard{i:04d}.npz" for i in range(shards)]


@dataclass(frozen=True)
class Pictures:
    """Rendered draws in memory."""

    normals: Tensor  # [N, P]
    pictures: Tensor  # [N, H, W, 3] uint8
    points: Tensor  # [N, 4, 2]

    def to(self, device: torch.device | str) -> Pictures:
        return Pictures(self.normals.to(device), self.pictures.to(device), self.points.to(device))

    def first(self, count: int) -> Pictures:
        return Pictures(self.normals[:count], self.pictures[:count], self.points[:count])

    def batch(self, indices: Tensor, mirrored: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Targets `[B, 3, size, size]` in [-1, 1], normals and points; some of them mirrored."""
        indices, mirrored = indices.to(self.points.device), mirrored.to(self.points.device)
        target = self.pictures[indices].permute(0, 3, 1, 2).float() / 127.5 - 1
        target = torch.where(mirrored[:, None, None, None], target.flip(-1), target)
        normals, points = self.normals[indices], self.points[indices]
        flip = torch.from_numpy(mirror(np.eye(len(PARAMETERS)))).to(normals)  # it is linear
        normals = torch.where(mirrored[:, None], normals @ flip, normals)
        swapped = points[:, [1, 0, 3, 2]] * points.new_tensor([-1, 1]) + points.new_tensor([1, 0])
        points = torch.where(mirrored[:, None, None], swapped, points)
        if size < target.shape[-1]:
            target = F.avg_pool2d(target, target.shape[-1] // size)
        return target, normals, points


def load_pictures(paths: list[Path]) -> Pictures:
    """Reads shards."""
    shards = [np.load(p) for p in paths]
    return Pictures(
        *(
            torch.from_numpy(np.concatenate([s[k] for s in shards]))
            for k in ("normals", "pictures", "points")
        )
    )


def latents(normals: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """z `[B, 512]` of draws `[B, P]`, the rest filled with noise so that |z|^2 = 512."""
    noise = torch.randn(len(normals), Z_DIM - normals.shape[1], generator=generator).to(normals)
    # A draw of unusually large normals leaves little for the noise, but never nothing.
    left = (Z_DIM - normals.square().sum(1)).clamp(min=1.0)
    noise = noise * (left / noise.square().sum(1)).sqrt()[:, None]
    return torch.cat([normals, noise], 1)


# -- loss --------------------------------------------------------------------------------------


def weights_at(points: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Loss weights `[B, 1, size, size]`: of every pixel, and of the eyes alone.

    Eyes and mouth are a few percent of a face's pixels and most of what is looked at.
    """
    at = (torch.arange(size, device=points.device) + 0.5) / size

    def bumps(centres: Tensor, width: float, height: float) -> Tensor:
        x = torch.exp(-(((at - centres[..., :1]) / width) ** 2))
        y = torch.exp(-(((at - centres[..., 1:]) / height) ** 2))
        return torch.einsum("bkh,bkw->bhw", y, x)

    eyes, mouth = points[:, :2], points[:, 2:].mean(1, keepdim=True)
    brows = eyes - points.new_tensor([0, 0.07])
    middle = points.mean(1, keepdim=True)
    eye = bumps(eyes, 0.075, 0.05)
    weight = 0.5 + 8 * eye + 4 * bumps(mouth, 0.11, 0.08) + 1.5 * bumps(brows, 0.08, 0.035)
    weight = weight + 0.8 * bumps(middle, 0.28, 0.30)
    return weight[:, None], eye[:, None]


def loss(result: Tensor, target: Tensor, points: Tensor) -> Tensor:
    """Weighted L1 on pixels and on gradients at three scales, and squared error in the eyes."""
    weight, eye = weights_at(points, result.shape[-1])
    error = result - target
    total = (weight * error.abs()).mean() + 6 * (eye * error.square()).mean()
    for _ in range(3):
        dx, dy = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
        total = total + (weight[..., 1:] * dx.abs()).mean() + (weight[..., 1:, :] * dy.abs()).mean()
        if error.shape[-1] <= 16:
            break
        error, weight = F.avg_pool2d(error, 2), F.avg_pool2d(weight, 2)
    return total


def landmark_loss(result: Tensor, target: Tensor) -> Tensor:
    """Mean distance of the meshes that the landmark network sees in pictures `[B, 3, R, R]`, as a
    share of the distance between the outer eye corners."""
    with torch.no_grad():
        wanted = detect_landmarks(target).landmarks[..., :2]
        span = (wanted[:, 263] - wanted[:, 33]).norm(dim=1)
    distance = (detect_landmarks(result).landmarks[..., :2] - wanted).norm(dim=2).mean(1)
    return (distance / span).mean()


# -- training ----------------------------------------------------------------------------------


def new_generator(recipe: Recipe) -> Generator:
    """A fresh generator whose mapping hears the parameters and hardly the noise."""
    torch.manual_seed(recipe.seed)
    generator = Generator(recipe.architecture())
    count = len(PARAMETERS)
    gain = torch.ones(count)
    for i, p in enumerate(PARAMETERS):
        if p.group in ("expression", "pose"):
            gain[i] = 1.5
    with torch.no_grad():
        first = generator.mapping.get_parameter("fc0.weight")
        first[:, count:] *= 0.02
        first[:, :count] *= gain * math.sqrt(Z_DIM / float(gain.square().sum()))
    return generator


def stage_of(recipe: Recipe, step: int) -> tuple[int, int]:
    """Resolution and batch of a step."""
    end = 0.0
    for share, resolution, batch in recipe.stages():
        end += share * recipe.steps
        if step < end:
            return resolution, batch
    return resolution, batch


def train(folder: Path, recipe: Recipe, data: Pictures, held_out: Pictures) -> Generator:
    """Trains to the recipe's end, from the last checkpoint if there is one.

    Returns:
        The moving average of the generator.
    """
    device = data.points.device
    half = half_precision(device)
    generator = new_generator(recipe).to(device)
    average = copy.deepcopy(generator).eval().requires_grad_(False)
    optimiser = torch.optim.Adam(generator.parameters(), lr=recipe.rate, betas=(0.9, 0.99))
    folder.mkdir(parents=True, exist_ok=True)
    path, start = folder / "checkpoint.pt", 0
    task = digest(
        recipe.resolution, recipe.steps, recipe.seed, recipe.rate, recipe.ema, data.normals
    )
    if (state := _restore(path, task, device)) is not None:
        generator.load_state_dict(state["generator"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["step"]
        print(f"goes on at step {start}", flush=True)
    saved = logged = time.monotonic()
    total, count = 0.0, 0
    for step in range(start, recipe.steps):
        rate = recipe.rate * min(1, (step + 1) / 100)
        rate *= _cosine(step, recipe.steps)
        for group in optimiser.param_groups:
            group["lr"] = rate
        resolution, batch = stage_of(recipe, step)
        rng = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)  # as when resumed
        indices = torch.randint(len(data.normals), (batch,), generator=rng)
        mirrored = torch.rand(batch, generator=rng) < 0.5
        target, normals, points = data.batch(indices, mirrored, resolution)
        w = generator.mapping(latents(normals, rng))
        result = generator.synthesis(w, stop_at=resolution, half=half, half_from=4)
        error = loss(result.float(), target, points)
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        _follow(average, generator, step, recipe.ema)
        total, count = total + float(error.detach()), count + 1
        now = time.monotonic()
        last = step + 1 == recipe.steps
        if now - logged > 60 or last:
            line = {
                "step": step + 1,
                "resolution": resolution,
                "loss": round(total / count, 4),
                "ms": round((now - logged) / count * 1e3),
                **score(average, held_out, resolution),
            }
            _log(folder, line)
            total, count, logged = 0.0, 0, time.monotonic()
        if now - saved > CHECKPOINT_SECONDS or last:
            _keep(
                path,
                task,
                step=step + 1,
                generator=generator.state_dict(),
                average=average.state_dict(),
                optimiser=optimiser.state_dict(),
            )
            write_png(folder / "pairs.png", pair_sheet(average, held_out))
            saved = time.monotonic()
    return average


def generate(generator: Generator, data: Pictures, size: int) -> Iterator[tuple[slice, Tensor]]:
    """Pictures of draws, 32 at a time, without gradients."""
    for i in range(0, len(data.normals), 32):
        part = slice(i, i + 32)
        z = latents(data.normals[part], torch.Generator().manual_seed(i))
        with torch.no_grad():
            yield part, generator.synthesis(generator.mapping(z), stop_at=size).clamp(-1, 1)


def score(generator: Generator, data: Pictures, size: int) -> dict[str, float]:
    """Held-out PSNR of the whole picture and of the eyes, dB, at a resolution."""
    whole, eyes = [], []
    some = data.first(256)
    for part, result in generate(generator, some, size):
        indices = torch.arange(part.start, min(part.stop, len(some.normals)))
        target, _, points = data.batch(indices, torch.zeros(len(indices), dtype=torch.bool), size)
        error = ((result - target) / 2).square()
        _, eye = weights_at(points, size)
        whole.append(error.mean((1, 2, 3)))
        eyes.append((error * eye).sum((1, 2, 3)) / eye.sum((1, 2, 3)) / 3)
    names = ("psnr", "eye_psnr")
    return {
        n: round(float((-10 * torch.cat(e).log10()).mean()), 2)
        for n, e in zip(names, (whole, eyes), strict=True)
    }


def _autocast(device: torch.device) -> torch.autocast:
    half = half_precision(device)
    return torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None)


def _cosine(step: int, steps: int) -> float:
    """Share of the rate: from 1 down to 2 %."""
    return 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / steps))


@torch.no_grad()
def _follow(average: nn.Module, module: nn.Module, step: int, decay: float = 0.998) -> None:
    """Moves the moving average, which forgets early weights sooner."""
    keep = min((1 + step) / (10 + step), decay)
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - keep)


def _keep(path: Path, task: str, **state: Any) -> None:
    with atomic_write(path) as temporary:
        torch.save({"task": task, **state}, temporary)


def _restore(path: Path, task: str, device: torch.device) -> dict[str, Any] | None:
    """What `_keep` kept of the same task."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    if state["task"] != task:
        raise SystemExit(
            f"{path} starts from something else: another recipe, or a stage before it was made "
            "again. Delete it to make it anew, or use another folder."
        )
    return state


def _log(folder: Path, line: dict[str, float]) -> None:
    print(json.dumps(line), flush=True)
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")


def pair_sheet(generator: Generator, data: Pictures, count: int = 20) -> np.ndarray:
    """Targets above results."""
    size = generator.architecture.resolution
    some = data.first(count)
    results = torch.cat([r for _, r in generate(generator, some, size)])
    shown = ((results.permute(0, 2, 3, 1).cpu() + 1) * 127.5).round().byte().numpy()
    rows: list[np.ndarray] = []
    for i in range(0, count, 10):
        rows += [*some.pictures[i : i + 10].cpu().numpy(), *shown[i : i + 10]]
    return contact_sheet(rows, columns=10)


# -- encoder -----------------------------------------------------------------------------------


def train_encoder(
    folder: Path, generator: Generator, data: Pictures, held_out: Pictures, steps: int, rate: float
) -> WEncoder:
    """Trains picture -> w on the rendered pictures, first towards the w they were made from, then
    towards what the generator makes of it.

    Returns:
        The moving average of the encoder.
    """
    device = data.points.device
    size = generator.architecture.resolution
    path = folder / "encoder.pt"
    torch.manual_seed(0)
    # On a CPU with bfloat16 both together make a step 2.5 times faster.
    encoder = WEncoder(size).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        spread = generator.mapping(latents(data.normals[:2000])).std(0)
    encoder.w_avg.copy_(generator.mapping.w_avg)
    average = copy.deepcopy(encoder).eval().requires_grad_(False)
    optimiser = torch.optim.Adam(encoder.parameters(), lr=rate, betas=(0.9, 0.99))
    start, task = 0, digest(steps, rate, data.normals, *generator.state_dict().values())
    if (state := _restore(path, task, device)) is not None:
        encoder.load_state_dict(state["encoder"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["step"]
    generator.requires_grad_(False)
    saved = time.monotonic()
    for step in range(start, steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * _cosine(step, steps)
        pictures = step >= 0.6 * steps  # the costlier part comes last
        rng = torch.Generator().manual_seed(7_000_003 + step)
        count = 8 if pictures else 16
        indices = torch.randint(len(data.normals), (count,), generator=rng)
        target, normals, points = data.batch(indices, torch.rand(count, generator=rng) < 0.5, size)
        w = generator.mapping(latents(normals, rng))
        with _autocast(device):
            guess = encoder(target.to(memory_format=torch.channels_last)).float()
        error = ((guess - w) / spread).abs().mean()
        if pictures:
            made = generator.synthesis(guess, half=half_precision(device), half_from=4).float()
            error = 0.2 * error + loss(made, target, points)
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        _follow(average, encoder, step)
        last = step + 1 == steps
        if last or time.monotonic() - saved > 120:
            line = {
                "encoder_step": step + 1,
                "loss": round(float(error.detach()), 4),
                "psnr": round(encoded_psnr(average, generator, held_out), 2),
            }
            _log(folder, line)
            _keep(
                path,
                task,
                step=step + 1,
                encoder=encoder.state_dict(),
                average=average.state_dict(),
                optimiser=optimiser.state_dict(),
            )
            saved = time.monotonic()
    return average


def train_jointly(
    folder: Path,
    name: str,
    generator: Generator,
    encoder: WEncoder,
    data: Pictures,
    held_out: Pictures,
    steps: int,
    rates: tuple[float, float],
    mapped: int = 0,
    landmarks: float = 0,
) -> tuple[Generator, WEncoder]:
    """Trains generator and encoder together, as an autoencoder of the rendered pictures.

    A step's pictures are made from the encoder's w, some of them from the mapping's.

    Args:
        folder: keeps `name`.pt, from which it goes on.
        name: of this stage.
        generator: to start from.
        encoder: to start from.
        data: pictures.
        held_out: pictures that only the log looks at.
        steps: of 8 pictures.
        rates: Adam's, of the generator and of the encoder; at 0 the generator stays as it is.
        mapped: how many of the 8 pictures come from the mapping.
        landmarks: weight of `landmark_loss`.

    Returns:
        The moving averages of both.
    """
    device, size = data.points.device, generator.architecture.resolution
    path, start = folder / f"{name}.pt", 0
    generator.requires_grad_(rates[0] > 0).train()
    encoder.requires_grad_(True).train()
    if not mapped:
        generator.mapping.requires_grad_(False)
    both = nn.ModuleList([generator, encoder])
    task = digest(steps, rates, mapped, landmarks, data.normals, *both.state_dict().values())
    mean_generator, mean_encoder = copy.deepcopy(generator), copy.deepcopy(encoder)
    average = nn.ModuleList([mean_generator, mean_encoder]).eval().requires_grad_(False)
    trained = [p for p in generator.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(
        [{"params": trained}, {"params": list(encoder.parameters())}], betas=(0.9, 0.99)
    )
    if (state := _restore(path, task, device)) is not None:
        both.load_state_dict(state["both"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["step"]
    saved = logged = time.monotonic()
    total, count = 0.0, 0
    for step in range(start, steps):
        fade = min(1, (step + 1) / 100) * _cosine(step, steps)
        for group, base in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = base * fade
        rng = torch.Generator().manual_seed(7_000_003 + step)
        indices = torch.randint(len(data.normals), (8,), generator=rng)
        target, normals, points = data.batch(indices, torch.rand(8, generator=rng) < 0.5, size)
        with _autocast(device):
            w = encoder(target[mapped:].to(memory_format=torch.channels_last)).float()
        if mapped:
            w = torch.cat([generator.mapping(latents(normals[:mapped], rng)), w])
        made = generator.synthesis(w, half=half_precision(device), half_from=4).float()
        error = loss(made, target, points)
        if landmarks:
            error = error + landmarks * landmark_loss(made, target)
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        _follow(average, both, step)
        total, count = total + float(error.detach()), count + 1
        now = time.monotonic()
        last = step + 1 == steps
        if now - logged > 60 or last:
            line = {
                name: step + 1,
                "loss": round(total / count, 4),
                "ms": round((now - logged) / count * 1e3),
                "encoded": round(encoded_psnr(mean_encoder, mean_generator, held_out), 2),
            }
            if mapped:
                line |= score(mean_generator, held_out, size)
            _log(folder, line)
            total, count, logged = 0.0, 0, time.monotonic()
        if now - saved > CHECKPOINT_SECONDS or last:
            _keep(
                path,
                task,
                step=step + 1,
                both=both.state_dict(),
                average=average.state_dict(),
                optimiser=optimiser.state_dict(),
            )
            saved = time.monotonic()
    return mean_generator, mean_encoder


def sensitivity(
    generator: Generator, w: Tensor, data: Pictures, count: int = 1600, draws: int = 3
) -> Tensor:
    """What an error in w changes in the picture: the mean over pictures of J^T D J, `[512, 512]`.

    J is the Jacobian of the synthesis network and D are the pixels' weights in the loss. It is
    estimated: J^T D^(1/2) v has this covariance where v is white noise.

    Args:
        generator: whose synthesis network it is about.
        w: `[N, 512]`, codes of the pictures.
        data: the pictures, for their weights.
        count: of pictures, at most.
        draws: of noise per picture.
    """
    size = generator.architecture.resolution
    rng = torch.Generator().manual_seed(8_000_003)
    total = w.new_zeros(w.shape[1], w.shape[1])
    seen = torch.randperm(len(w), generator=rng)[:count]
    for indices in seen.split(16):
        code = w[indices.to(w.device)].requires_grad_()
        weight, _ = weights_at(data.points[indices.to(w.device)], size)
        made = generator.synthesis(code, half=half_precision(code.device), half_from=4).float()
        for draw in range(draws):
            noise = torch.randn(made.shape, generator=rng).to(made) * weight.sqrt()
            (gradient,) = torch.autograd.grad(
                (made * noise).sum(), code, retain_graph=draw + 1 < draws
            )
            total += gradient.T @ gradient / (len(seen) * draws)
    return total


def encode(encoder: WEncoder, data: Pictures, mirrored: bool) -> tuple[Tensor, Tensor]:
    """Normals `[N, P]` of all pictures, or of their mirrored selves, and w `[N, 512]`."""
    size, normals, found = data.pictures.shape[1], [], []
    for indices in torch.arange(len(data.normals)).split(64):
        picture, normal, _ = data.batch(indices, torch.full((len(indices),), mirrored), size)
        picture = picture.to(memory_format=torch.channels_last)
        with torch.no_grad(), _autocast(picture.device):
            found.append(encoder(picture).float())
        normals.append(normal)
    return torch.cat(normals), torch.cat(found)


def _metric(generator: Generator, w: Tensor, data: Pictures) -> Tensor:
    """`sensitivity` so that knowing no more than the mean of w counts 1, and .01 for all directions
    alike; the first codes are those of the pictures."""
    shown = sensitivity(generator, w[: len(data.normals)], data)
    shown = shown / (shown @ torch.cov(w.T)).trace()
    return shown + torch.diag(0.01 / w.var(0) / w.shape[1])


def fit_mapping(
    folder: Path,
    generator: Generator,
    encoder: WEncoder,
    data: Pictures,
    held_out: Pictures,
    steps: int,
    rate: float,
) -> None:
    """Teaches the mapping, in place, the w that the encoder finds in the rendered pictures.

    Without the synthesis network a step is so cheap that each picture is seen many times. An error
    in w counts by the change of the picture (`sensitivity`): of 512 directions few show.

    Args:
        folder: keeps `mapping.pt`, with which it is done.
        generator: whose mapping starts from what it knows.
        encoder: of that generator.
        data: pictures, each also mirrored.
        held_out: pictures that only the log looks at.
        steps: of 512 pictures.
        rate: Adam's.
    """
    mapping, path = generator.mapping.train().requires_grad_(True), folder / "mapping.pt"
    both = (*generator.state_dict().values(), *encoder.state_dict().values())
    task = digest(steps, rate, data.normals, *both)
    if (state := _restore(path, task, data.points.device)) is not None:
        mapping.load_state_dict(state["mapping"])
        return
    size = generator.architecture.resolution
    halves = [encode(encoder, data, mirrored) for mirrored in (False, True)]
    normal, w = (torch.cat(part) for part in zip(*halves, strict=True))
    metric = _metric(generator, w, data)
    optimiser = torch.optim.AdamW(mapping.parameters(), betas=(0.9, 0.99), weight_decay=5e-4)
    rng = torch.Generator().manual_seed(9_000_003)
    errors = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = (
                rate * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
            )
        indices = torch.randint(len(w), (512,), generator=rng).to(w.device)
        off = mapping(latents(normal[indices], rng)) - w[indices]
        error = ((off @ metric) * off).sum(1).mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        errors.append(float(error.detach()))
        if (step + 1) % 1000 == 0 or step + 1 == steps:
            line = {
                "mapping": step + 1,
                "error": round(float(np.mean(errors)), 4),
                **score(generator, held_out, size),
            }
            errors = []
            _log(folder, line)
    _keep(path, task, mapping=mapping.state_dict())


def _dense(sizes: list[int]) -> nn.Sequential:
    """Layers with leaky ReLUs between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layer = nn.Linear(inputs, outputs)
        nn.init.normal_(layer.weight, std=(2 / inputs) ** 0.5)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def _orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest orthogonal matrix, by Muon's five steps of Newton-Schulz (Jordan 2024).

    torch.optim.Muon takes them in bfloat16: seconds each on a CPU that has none.
    """
    if len(matrix) > matrix.shape[1]:
        return _orthogonal(matrix.T).T
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (2.0315 * square @ square - 4.775 * square) @ x
    return x


def regress(
    folder: Path,
    name: str,
    network: nn.Sequential,
    x: Tensor,
    y: Tensor,
    metric: Tensor,
    steps: int,
    batch: int,
    rate: float,
    decay: float = 0,
) -> None:
    """Teaches a network of dense layers, in place, y of x.

    Matrices move by Muon, biases by Adam.

    Args:
        folder: of the log.
        name: in the log.
        network: to teach.
        x: `[N, X]`.
        y: `[N, Y]`.
        metric: `[Y, Y]`, of errors in y.
        steps: to take.
        batch: of a step.
        rate: of both optimisers.
        decay: share of the matrices, by step and rate, that is forgotten.
    """
    rng = torch.Generator().manual_seed(6_000_003)
    matrices = [p for p in network.parameters() if p.ndim == 2]
    momenta = [torch.zeros_like(m) for m in matrices]
    adam = torch.optim.Adam([p for p in network.parameters() if p.ndim == 1], betas=(0.9, 0.99))
    errors = []
    for step in range(steps):
        now = rate * min(1, (step + 1) / 50) * _cosine(step, steps)
        adam.param_groups[0]["lr"] = now
        indices = torch.randint(len(x), (batch,), generator=rng).to(x.device)
        off = network(x[indices]) - y[indices]
        error = ((off @ metric) * off).sum(1).mean()
        network.zero_grad()
        error.backward()
        adam.step()
        with torch.no_grad():
            for matrix, momentum in zip(matrices, momenta, strict=True):
                assert matrix.grad is not None
                momentum.lerp_(matrix.grad, 0.05)
                way = _orthogonal(matrix.grad.lerp(momentum, 0.95))
                way = way * max(1, len(matrix) / matrix.shape[1]) ** 0.5
                matrix.mul_(1 - decay * now).sub_(way, alpha=now)
        errors.append(float(error.detach()))
        if (step + 1) % 200 == 0 or step + 1 == steps:
            _log(folder, {name: step + 1, "error": round(float(np.mean(errors)), 4)})
            errors = []


def teach_mapping(
    folder: Path,
    generator: Generator,
    encoder: WEncoder,
    data: Pictures,
    held_out: Pictures,
    recipe: Recipe,
) -> None:
    """Teaches the mapping, in place, w of more draws than were ever rendered.

    Mirrored pictures are left out: MediaPipe's alignment is not symmetric, so that a mirrored
    picture lies up to a pixel beside the one that its parameters would be drawn and aligned to.

    Args:
        folder: has `align.npy`; keeps `taught.pt`, with which it is done.
        generator: whose mapping starts from what it knows.
        encoder: of that generator.
        data: pictures, for the teacher.
        held_out: pictures that only the log looks at.
        recipe: says how long.
    """
    mapping, path = generator.mapping.requires_grad_(False), folder / "taught.pt"
    weights = np.load(folder / "align.npy")
    both = (*generator.state_dict().values(), *encoder.state_dict().values())
    steps = (recipe.teacher_steps, recipe.taught_steps)
    task = digest(*steps, TAUGHT, recipe.seed, weights, data.normals, *both)
    if (state := _restore(path, task, data.points.device)) is not None:
        mapping.load_state_dict(state["mapping"])
        return
    device = data.points.device
    normals, w = encode(encoder, data, mirrored=False)
    metric = _metric(generator, w, data)
    known = cues(normals.cpu().numpy().astype(np.float64), weights).to(device)
    mean, spread = known.mean(0), known.std(0)
    torch.manual_seed(recipe.seed)
    teacher = _dense([known.shape[1], 512, 512, w.shape[1]]).to(device)
    centre = w.mean(0)
    regress(
        folder,
        "teacher",
        teacher,
        (known - mean) / spread,
        w - centre,
        metric,
        steps[0],
        768,
        2e-2,
        0.03,
    )

    draws, taught = [normals], [(known - mean) / spread]
    for seed in range(TAUGHT // 8192):
        fresh = draw_normals(recipe.seed * 100_003 + 50_000 + seed, 8192)
        draws.append(torch.from_numpy(fresh.astype(np.float32)).to(device))
        taught.append((cues(fresh, weights).to(device) - mean) / spread)
    with torch.no_grad():
        wanted = torch.cat([centre + teacher(part) for part in taught])

    # The mapping's layers without their gains, and without the noise, which says nothing.
    pupil = _dense([len(PARAMETERS), *[w.shape[1]] * mapping.layers]).append(nn.LeakyReLU(0.2))
    layers = [
        *zip(
            (m for m in mapping.children() if isinstance(m, FullyConnectedLayer)),
            (m for m in pupil.to(device) if isinstance(m, nn.Linear)),
            strict=True,
        )
    ]
    gain = 2**0.5
    with torch.no_grad():
        for layer, dense in layers:
            weight = layer.weight * (layer.weight_gain * gain)
            dense.weight.copy_(weight[:, : dense.in_features])
            dense.bias.copy_(layer.bias * (layer.bias_gain * gain))
    regress(folder, "taught", pupil, torch.cat(draws), wanted, metric, steps[1], 1024, 1e-2)
    with torch.no_grad():
        for layer, dense in layers:
            layer.weight.zero_()
            layer.weight[:, : dense.in_features] = dense.weight / (layer.weight_gain * gain)
            layer.bias.copy_(dense.bias / (layer.bias_gain * gain))
    _log(folder, score(generator, held_out, generator.architecture.resolution))
    _keep(path, task, mapping=mapping.state_dict())


def encoded_psnr(
    encoder: WEncoder, generator: Generator, data: Pictures, count: int = 128
) -> float:
    """Held-out reconstruction through the encoder, dB."""
    results = []
    for indices in torch.arange(min(count, len(data.normals))).split(32):
        plain = torch.zeros(len(indices), dtype=torch.bool)
        target = data.batch(indices, plain, generator.architecture.resolution)[0]
        with torch.no_grad():
            made = generator.synthesis(encoder(target)).clamp(-1, 1)
        results.append(((made - target) / 2).square().mean((1, 2, 3)))
    return float((-10 * torch.cat(results).log10()).mean())


@cpu.training()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resolution", type=int, default=128, choices=(128, 256))
    options = parser.parse_args()
    distill(options.folder, Recipe(options.resolution))


def distill(folder: Path, recipe: Recipe) -> None:
    """Renders, trains all stages and writes `base.safetensors` and `encoder.safetensors`."""
    shards = render(folder, recipe)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    held_out, data = load_pictures(shards[:1]).to(device), load_pictures(shards[1:]).to(device)
    early = data.first(recipe.early_pictures)
    generator = train(folder, recipe, early, held_out)
    rng = torch.Generator().manual_seed(0)
    z = latents(torch.randn(10_000, len(PARAMETERS), generator=rng), rng)
    with torch.no_grad():
        generator.mapping.w_avg.copy_(generator.mapping(z.to(device)).mean(0))
    encoder = train_encoder(folder, generator, early, held_out, recipe.encoder_steps, 1e-3)
    generator, encoder = train_jointly(
        folder,
        "autoencoder",
        generator,
        encoder,
        data.first(recipe.autoencoder_pictures),
        held_out,
        recipe.autoencoder_steps,
        (2e-2, 1e-3),
    )
    fit_mapping(folder, generator, encoder, data, held_out, recipe.mapping_steps, 4e-2)
    generator, encoder = train_jointly(
        folder,
        "joint",
        generator,
        encoder,
        data,
        held_out,
        recipe.joint_steps,
        (4e-3, 2e-4),
        mapped=4,
        landmarks=5.0,
    )
    generator, encoder = train_jointly(
        folder,
        "last_encoder",
        generator,
        encoder,
        data,
        held_out,
        recipe.last_encoder_steps,
        (0, 3e-4),
    )
    teach_mapping(folder, generator, encoder, data, held_out, recipe)
    write_png(folder / "pairs.png", pair_sheet(generator, held_out))
    with torch.no_grad():
        generator.mapping.w_avg.copy_(generator.mapping(z.to(device)).mean(0))
    header = {"recipe": json.dumps(asdict(recipe)), "parameters": json.dumps(NAMES)}
    save_generator(folder / "base.safetensors", generator, header, torch.float16)
    tensors = {k: v.half().cpu().contiguous() for k, v in encoder.state_dict().items()}
    with atomic_write(folder / "encoder.safetensors") as temporary:
        save_file(tensors, temporary)


if __name__ == "__main__":
    main()
