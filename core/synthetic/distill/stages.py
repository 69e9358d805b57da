"""The stages of the distillation; see `core.synthetic.distill` for what each does."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from core.base.digest import digest
from core.base.files import atomic_write
from core.base.training import Run, cosine, train
from core.generator import Architecture, Generator, half_precision
from core.generator.network import autocast
from core.generator.storage import save_generator
from core.media.write import write_png
from core.synthetic.base import WEncoder
from core.synthetic.distill.evaluation import encoded_psnr, log_regularly, pair_sheet, score
from core.synthetic.distill.losses import landmark_loss, picture_loss
from core.synthetic.distill.mapping import fit_mapping, teach_mapping
from core.synthetic.distill.pictures import (
    Z_DIM,
    Pictures,
    latents,
    load_pictures,
    render_shards,
)
from core.synthetic.parameters import NAMES, PARAMETERS

_FLOOR = 0.02  # share of the rate at the end


@dataclass(frozen=True)
class Recipe:
    """All that decides a base generator; written into its header."""

    resolution: int = 128
    pictures: int = 81_920
    early_pictures: int = 20_480  # of them, for stages 1 and 2
    autoencoder_pictures: int = 40_960  # for stage 3
    steps: int = 22_000  # of stage 1
    encoder_steps: int = 3_200  # stage 2
    autoencoder_steps: int = 14_000  # stage 3
    mapping_steps: int = 8_000  # stage 4
    joint_steps: int = 6_000  # stage 5
    last_encoder_steps: int = 2_500  # stage 6
    teacher_steps: int = 1_200  # stage 7, of 768 pictures
    taught_steps: int = 3_000  # also stage 7, of 1024 draws
    seed: int = 1
    rate: float = 5e-2  # the mapping network needs it: at 1e-2 it ends 1 dB lower at 32 px
    ema: float = 0.998  # decay of the moving average

    def architecture(self) -> Architecture:
        """The generator's shape: narrower than configuration F, as the performer needs less."""
        sizes = {4: 256, 8: 256, 16: 256, 32: 128, 64: 64, 128: 32, 256: 32}
        channels = {r: c for r, c in sizes.items() if r <= self.resolution}
        return Architecture(self.resolution, channels, mapping_layers=4, mapping_rate=1.0)

    def stages(self) -> list[tuple[float, int, int]]:
        """Stage 1 as (share of the steps, resolution, batch): coarse first, at cheap steps."""
        if self.resolution == 128:
            return [(0.36, 32, 16), (0.28, 64, 12), (0.36, 128, 8)]
        return [(0.2, 32, 16), (0.2, 64, 16), (0.25, 128, 16), (0.35, 256, 16)]


def distill(folder: Path, recipe: Recipe) -> None:
    """Renders, trains all stages and writes `base.safetensors` and `encoder.safetensors`.

    The same call goes on where it was stopped.

    Args:
        folder: for pictures, checkpoints, the log, sheets and the results.
        recipe: what to make.

    Raises:
        core.base.checkpoints.CheckpointMismatchError: a checkpoint in the folder is of another
            recipe, or of a stage whose predecessor was made again.
    """
    shards = render_shards(folder, recipe.seed, recipe.pictures, recipe.resolution)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    held_out, data = load_pictures(shards[:1]).to(device), load_pictures(shards[1:]).to(device)
    early = data.first(recipe.early_pictures)
    generator = train_generator(folder, recipe, early, held_out)
    rng = torch.Generator().manual_seed(0)
    z = latents(torch.randn(10_000, len(PARAMETERS), generator=rng), rng).to(device)
    _measure_mean(generator, z)
    encoder = train_encoder(folder, generator, early, held_out, recipe.encoder_steps, 1e-3)
    generator, encoder = train_jointly(
        folder,
        "autoencoder",
        generator,
        encoder,
        data.first(recipe.autoencoder_pictures),
        held_out,
        steps=recipe.autoencoder_steps,
        rates=(2e-2, 1e-3),
    )
    fit_mapping(folder, generator, encoder, data, held_out, recipe.mapping_steps, 4e-2)
    generator, encoder = train_jointly(
        folder,
        "joint",
        generator,
        encoder,
        data,
        held_out,
        steps=recipe.joint_steps,
        rates=(4e-3, 2e-4),
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
        steps=recipe.last_encoder_steps,
        rates=(0, 3e-4),
    )
    teach_mapping(
        folder,
        generator,
        encoder,
        data,
        held_out,
        teacher_steps=recipe.teacher_steps,
        taught_steps=recipe.taught_steps,
        seed=recipe.seed,
    )
    write_png(folder / "pairs.png", pair_sheet(generator, held_out))
    _measure_mean(generator, z)
    header = {"recipe": json.dumps(asdict(recipe)), "parameters": json.dumps(NAMES)}
    save_generator(folder / "base.safetensors", generator, header, torch.float16)
    tensors = {k: v.half().cpu().contiguous() for k, v in encoder.state_dict().items()}
    with atomic_write(folder / "encoder.safetensors") as temporary:
        temporary.write_bytes(save(tensors))


@torch.no_grad()
def _measure_mean(generator: Generator, z: Tensor) -> None:
    """Sets the mapping network's mean of W to that of latents `[N, 512]`."""
    generator.mapping.w_avg.copy_(generator.mapping(z).mean(0))


# -- stage 1: the generator --------------------------------------------------------------------


def new_generator(recipe: Recipe) -> Generator:
    """Makes a fresh generator whose mapping network hears the parameters and hardly the noise."""
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
    """Returns resolution and batch of a step of stage 1."""
    end = 0.0
    for share, resolution, batch in recipe.stages():
        end += share * recipe.steps
        if step < end:
            return resolution, batch
    return resolution, batch


def train_generator(folder: Path, recipe: Recipe, data: Pictures, held_out: Pictures) -> Generator:
    """Trains the generator from z to picture.

    Args:
        folder: keeps `checkpoint.pt`, from which it goes on, and the sheet `pairs.png`.
        recipe: says how.
        data: pictures.
        held_out: pictures for the log and the sheet.

    Returns:
        The moving average of the generator.
    """
    device = data.points.device
    half = half_precision(device)
    generator = new_generator(recipe).to(device)
    average = copy.deepcopy(generator).eval().requires_grad_(False)
    folder.mkdir(parents=True, exist_ok=True)

    def loss(step: int) -> Tensor:
        resolution, batch = stage_of(recipe, step)
        rng = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)  # as when resumed
        indices = torch.randint(len(data.normals), (batch,), generator=rng)
        mirrored = torch.rand(batch, generator=rng) < 0.5
        target, normals, points = data.batch(indices, mirrored, resolution)
        w = generator.mapping(latents(normals, rng))
        generated = generator.synthesis(w, stop_at=resolution, half=half, half_from=4)
        return picture_loss(generated.float(), target, points)

    def line(loss: float, milliseconds: int) -> dict[str, float]:
        write_png(folder / "pairs.png", pair_sheet(average, held_out))
        resolution, _ = stage_of(recipe, run.step - 1)
        return {
            "step": run.step,
            "resolution": resolution,
            "loss": loss,
            "ms": milliseconds,
            **score(average, held_out, resolution),
        }

    optimiser = torch.optim.Adam(generator.parameters(), lr=recipe.rate, betas=(0.9, 0.99))
    run = Run(generator, optimiser, recipe.steps, average, recipe.ema)
    train(
        run,
        loss,
        lambda run: [
            recipe.rate * min(1, (run.step + 1) / 100) * cosine(run.step, recipe.steps, _FLOOR)
        ],
        report=log_regularly(folder, run, line),
        path=folder / "checkpoint.pt",
        task=digest(
            recipe.resolution, recipe.steps, recipe.seed, recipe.rate, recipe.ema, data.normals
        ),
    )
    return average


# -- stage 2: the encoder ----------------------------------------------------------------------


def train_encoder(
    folder: Path, generator: Generator, data: Pictures, held_out: Pictures, steps: int, rate: float
) -> WEncoder:
    """Trains an encoder from picture to w, first towards the w that the pictures were made from,
    then towards their reconstruction by the generator.

    Args:
        folder: keeps `encoder.pt`, from which it goes on.
        generator: stays as it is.
        data: pictures.
        held_out: pictures for the log.
        steps: of 16 pictures, then of 8.
        rate: Adam's.

    Returns:
        The moving average of the encoder.
    """
    device = data.points.device
    size = generator.architecture.resolution
    torch.manual_seed(0)
    # On a CPU with bfloat16, channels_last and autocast together make a step 2.5 times faster.
    encoder = WEncoder(size).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        std = generator.mapping(latents(data.normals[:2000])).std(0)
    encoder.w_avg.copy_(generator.mapping.w_avg)
    average = copy.deepcopy(encoder).eval().requires_grad_(False)
    generator.requires_grad_(False)

    def loss(step: int) -> Tensor:
        reconstruct = step >= 0.6 * steps  # the costlier part comes last
        rng = torch.Generator().manual_seed(7_000_003 + step)
        count = 8 if reconstruct else 16
        indices = torch.randint(len(data.normals), (count,), generator=rng)
        target, normals, points = data.batch(indices, torch.rand(count, generator=rng) < 0.5, size)
        w = generator.mapping(latents(normals, rng))
        with autocast(device):
            guess = encoder(target.to(memory_format=torch.channels_last)).float()
        error = ((guess - w) / std).abs().mean()
        if reconstruct:
            half = half_precision(device)
            generated = generator.synthesis(guess, half=half, half_from=4).float()
            error = 0.2 * error + picture_loss(generated, target, points)
        return error

    def line(loss: float, milliseconds: int) -> dict[str, float]:
        psnr = round(encoded_psnr(average, generator, held_out), 2)
        return {"encoder_step": run.step, "loss": loss, "psnr": psnr}

    optimiser = torch.optim.Adam(encoder.parameters(), lr=rate, betas=(0.9, 0.99))
    run = Run(encoder, optimiser, steps, average)
    train(
        run,
        loss,
        lambda run: [rate * cosine(run.step, steps, _FLOOR)],
        report=log_regularly(folder, run, line),
        path=folder / "encoder.pt",
        task=digest(steps, rate, data.normals, *generator.state_dict().values()),
    )
    return average


# -- stages 3, 5 and 6: generator and encoder --------------------------------------------------


def train_jointly(
    folder: Path,
    name: str,
    generator: Generator,
    encoder: WEncoder,
    data: Pictures,
    held_out: Pictures,
    *,
    steps: int,
    rates: tuple[float, float],
    mapped: int = 0,
    landmarks: float = 0,
) -> tuple[Generator, WEncoder]:
    """Trains generator and encoder together, as an autoencoder of the rendered pictures.

    A step's pictures are generated from the encoder's w, some of them from the mapping network's.

    Args:
        folder: keeps `NAME.pt`, from which it goes on.
        name: of this stage.
        generator: to start from.
        encoder: to start from.
        data: pictures.
        held_out: pictures for the log.
        steps: of 8 pictures.
        rates: Adam's, of the generator and of the encoder; at 0 the generator stays as it is.
        mapped: how many of the 8 pictures come from the mapping network.
        landmarks: weight of `landmark_loss`.

    Returns:
        The moving averages of both.
    """
    device, size = data.points.device, generator.architecture.resolution
    generator.requires_grad_(rates[0] > 0).train()
    encoder.requires_grad_(True).train()
    if not mapped:
        generator.mapping.requires_grad_(False)
    both = nn.ModuleList([generator, encoder])
    task = digest(steps, rates, mapped, landmarks, data.normals, *both.state_dict().values())
    mean_generator, mean_encoder = copy.deepcopy(generator), copy.deepcopy(encoder)
    average = nn.ModuleList([mean_generator, mean_encoder]).eval().requires_grad_(False)

    def loss(step: int) -> Tensor:
        rng = torch.Generator().manual_seed(7_000_003 + step)
        indices = torch.randint(len(data.normals), (8,), generator=rng)
        target, normals, points = data.batch(indices, torch.rand(8, generator=rng) < 0.5, size)
        with autocast(device):
            w = encoder(target[mapped:].to(memory_format=torch.channels_last)).float()
        if mapped:
            w = torch.cat([generator.mapping(latents(normals[:mapped], rng)), w])
        generated = generator.synthesis(w, half=half_precision(device), half_from=4).float()
        error = picture_loss(generated, target, points)
        if landmarks:
            error = error + landmarks * landmark_loss(generated, target)
        return error

    def line(loss: float, milliseconds: int) -> dict[str, float]:
        encoded = round(encoded_psnr(mean_encoder, mean_generator, held_out), 2)
        figures = score(mean_generator, held_out, size) if mapped else {}
        return {name: run.step, "loss": loss, "ms": milliseconds, "encoded": encoded, **figures}

    def faded(run: Run) -> list[float]:
        fade = min(1, (run.step + 1) / 100) * cosine(run.step, steps, _FLOOR)
        return [rate * fade for rate in rates]

    trained = [p for p in generator.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(
        [{"params": trained}, {"params": list(encoder.parameters())}], betas=(0.9, 0.99)
    )
    run = Run(both, optimiser, steps, average)
    train(
        run,
        loss,
        faded,
        report=log_regularly(folder, run, line),
        path=folder / f"{name}.pt",
        task=task,
    )
    return mean_generator, mean_encoder
