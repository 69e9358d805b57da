"""Learning a character's detail from its scan (see `core.personalize.detail`).

Each step draws parts of a few frames and compares them with the scan at full resolution: eyes and
mouth more often than cheeks, and cheeks more often than the background. The frames and what the
generator draws of them lie in files of the work folder, of which a step reads its parts only: they
take disk, not memory.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.base import cpu
from core.base.adam import ParameterAdam
from core.base.checkpoints import CheckpointNotSavedError
from core.base.digest import digest
from core.base.progress import EndAfter, Progress, TrainingProgress, never
from core.base.sampling import evenly_spaced
from core.base.training import Run, cosine, fade_on_plateau, train
from core.face.skin import lay_out, stick
from core.face.surface import Atlas, surface_map
from core.generator import Generator
from core.media.write import to_bytes
from core.personalize.detail import (
    EXPRESSIONS,
    Detail,
    DetailInfo,
    DetailNetwork,
    DetailShape,
    draw_detailed,
    find_meshes,
    stack_maps,
)
from core.personalize.tuning import face_weights

CHECKPOINT = "detail.checkpoint"

_PART = 160  # px, side of a part of a picture that a step draws
_LEAST_PART = 24  # px of the base, of its side: of smaller ones the margin would be too much
_GAIN = 0.02  # dB that held-out frames must gain to go on
_FADE = 2  # evaluations over which the rates fall to zero after a plateau


@dataclass(frozen=True)
class DetailSettings:
    """How detail is learnt."""

    steps: int = 800  # at most
    batch: int = 4  # parts of pictures a step
    rate: float = 2e-3  # Adam's peak, of the convolutions
    texture_rate: float = 1e-2  # of the textures
    gradient: float = 2.0  # weight of the difference of the pictures' gradients
    strength: float = 0.5  # weight of the difference in how strong fine detail is, place by place
    average: float = 0.99  # decay of the moving average of the weights
    check_every: int = 100  # steps between evaluations on the held-out frames
    patience: int = 2  # evaluations without a gain before the rates fade
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Examples:
    """Frames at full resolution, and what a generator draws of their codes."""

    w: Tensor  # [N, w_dim]
    pictures: np.ndarray  # [N, 3, R, R] float16 in [-1, 1], what is to be drawn
    features: np.ndarray  # [N, C, B, B] float16, of the generator's last block
    generated: np.ndarray  # [N, 3, B, B] float16 in [-1, 1]
    meshes: np.ndarray  # [N, 478, 3] of the generated pictures, in their sides
    weights: Tensor  # [N, 1, M, M], how much each place counts


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Makes a file of float16 in the format of numpy, and maps it into memory.

    Raises:
        core.base.checkpoints.CheckpointNotSavedError: the file system refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mapped = np.lib.format.open_memmap(path, "w+", np.float16, shape)
        if hasattr(os, "posix_fallocate"):  # else the first write to a full disk kills the process
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise CheckpointNotSavedError(
            f"{path} could not be written: {error.strerror or error}. Free some space in that "
            "folder and start again: it goes on from the last checkpoint."
        ) from error
    return mapped


def keep_pictures(
    pictures: Iterable[Tensor], count: int, size: int, path: Path, order: np.ndarray | None = None
) -> np.ndarray:
    """Writes pictures to a file, and maps that into memory.

    Args:
        pictures: `count` of `[3, size, size]`, in [-1, 1].
        count: of pictures.
        size: their side, px.
        path: of the file, in the format of numpy; an older one is replaced.
        order: `[count]`, the place of each in the result; by default as they come.

    Returns:
        `[count, 3, size, size]` float16.

    Raises:
        core.base.checkpoints.CheckpointNotSavedError: the file system refuses.
    """
    kept = _mapped(path, (count, 3, size, size))
    for i, picture in enumerate(pictures):
        kept[i if order is None else order[i]] = picture.half().cpu().numpy()
    return kept


@torch.no_grad()
def draw_examples(
    generator: Generator,
    w: Tensor,
    pictures: np.ndarray,
    path: Path,
    batch: int = 8,
    progress: Progress = lambda done, total: None,
    *,
    atlas: Atlas | None = None,
    meshes: np.ndarray | None = None,
    weights: Tensor | None = None,
) -> Examples:
    """Draws what detail is learnt from.

    Args:
        generator: on any device.
        w: `[N, w_dim]`, the codes of the pictures.
        pictures: `[N, 3, R, R]` in [-1, 1].
        path: of a file that takes the features; an older one is replaced.
        batch: pictures drawn at once.
        progress: called with pictures drawn and to be drawn.
        atlas: the person's, if it is known, that meshes are found with.
        meshes: `[N, 478, 3]` that detail is attached to; by default those of what is drawn.
        weights: `[N, 1, M, M]`, how much each place counts; by default by the pictures' faces.

    Raises:
        core.base.checkpoints.CheckpointNotSavedError: the file system refuses.
    """
    device = next(generator.parameters()).device
    a = generator.architecture
    base, channels = a.resolution, a.channels[a.resolution]
    features = _mapped(path, (len(w), channels, base, base))
    generated = np.empty((len(w), 3, base, base), np.float16)
    found = []
    for start in range(0, len(w), batch):
        x, image = generator.synthesis.features(w[start : start + batch].to(device))
        part = slice(start, start + len(x))
        features[part], generated[part] = x.half().cpu().numpy(), image.half().cpu().numpy()
        if meshes is None:
            found.append(find_meshes(image, atlas))
        progress(part.stop, len(w))
    if meshes is None:
        meshes = np.concatenate(found)
    if weights is None:
        weights = face_weights(torch.from_numpy(pictures), device=device)
    return Examples(w.cpu(), pictures, features, generated, meshes, weights)


def attached(examples: Examples) -> tuple[Atlas, Examples]:
    """Lays out a person's surface by examples of the scan, and puts their meshes right by it.

    Args:
        examples: with the meshes that the network found.

    Returns:
        The atlas, and the examples with meshes that stick to the skin.
    """
    atlas = lay_out(examples.meshes, examples.generated)
    meshes = stick(atlas, examples.meshes, examples.generated)
    return atlas, replace(examples, meshes=meshes)


@cpu.training()
def train_detail(
    generator: Generator,
    examples: Examples,
    held_out: Examples | None,
    atlas: Atlas,
    settings: DetailSettings | None = None,
    *,
    start: Detail | None = None,
    source: str = "",
    on_evaluation: Callable[[Detail], None] = lambda detail: None,
    end_after: EndAfter = never,
    folder: str | Path | None = None,
    progress: TrainingProgress | None = None,
) -> Detail:
    """Learns detail; resumes and ends early as `core.base.training.train` does.

    Args:
        generator: that drew the examples; on its device the detail is trained.
        examples: of which it is learnt.
        held_out: of which nothing is learnt: when they gain no more, the rates fade and training
            ends.
        atlas: of the examples' meshes.
        settings: defaults to `DetailSettings()`.
        start: detail to start from, such as a style's parent's.
        source: of the pictures, for the record.
        on_evaluation: called after each evaluation with the moving average so far.
        end_after: ends the training early; see `core.personalize.tuning.fine_tune`.
        folder: for the checkpoint.
        progress: called after every step with steps done and to do, `loss`, `seconds_left` and,
            once measured, `psnr` of the held-out faces, dB.

    Raises:
        ValueError: the pictures are no larger than the generator's.
        core.base.training.DivergedError: the rates are too high.
        core.base.checkpoints.CheckpointMismatchError: the folder holds a checkpoint of other
            inputs, or a damaged one.
        core.base.checkpoints.CheckpointNotSavedError: the checkpoint can't be written.
    """
    settings = settings or DetailSettings()
    device = next(generator.parameters()).device
    base, size = examples.generated.shape[-1], examples.pictures.shape[-1]
    shape = DetailShape(base, size, examples.features.shape[1], examples.w.shape[1])
    network = _network(shape, examples.w, start, settings.seed).to(device)
    average = copy.deepcopy(network)
    textures = [p for name, p in network.named_parameters() if name.endswith((".skin", ".head"))]
    others = [p for name, p in network.named_parameters() if not name.endswith((".skin", ".head"))]
    run = Run(
        network,
        ParameterAdam([others, textures], (0.9, 0.99), fused=True),
        settings.steps,
        average,
        settings.average,
    )

    def detail() -> Detail:
        info = DetailInfo(source, run.step, run.history)
        return Detail(copy.deepcopy(average).eval().requires_grad_(False), atlas, info)

    def evaluate(run: Run) -> None:
        if run.step % settings.check_every and run.step != run.steps:
            return
        entry = {"step": float(run.step), "loss": math.fsum(run.pending) / len(run.pending)}
        run.pending = []
        if held_out is not None:
            entry |= measure(generator, Detail(average, atlas, DetailInfo()), held_out, settings)
            fade_on_plateau(
                run,
                [-10 * math.log10(max(e["held_out"], 1e-9)) for e in (*run.history[1:], entry)],
                _GAIN,
                settings.patience,
                _FADE * settings.check_every,
            )
        run.history.append(entry)

    def rates(run: Run) -> list[float]:
        factor = min(1.0, (run.step + 1) / 20) * cosine(run.step, settings.steps)
        if run.fading:
            factor *= (run.steps - run.step) / (_FADE * settings.check_every)
        return [settings.rate * factor, settings.texture_rate * factor]

    def ended(run: Run) -> bool:
        steps = end_after()
        return steps is not None and run.step >= max(steps, 1)

    def report(value: float, seconds_left: float) -> None:
        last = run.history[-1] if run.history else {}
        if last.get("step") == run.step:
            on_evaluation(detail())
        if progress is not None:
            figures = {"psnr": last["psnr"]} if "psnr" in last else {}
            progress(run.step, run.steps, loss=value, seconds_left=seconds_left, **figures)

    if held_out is not None:  # at first the network adds nothing
        plain = measure(generator, Detail(average, atlas, DetailInfo()), held_out, settings)
        run.history.append({"step": 0.0} | plain)
    path, task = None, ""
    if folder is not None:
        path = Path(folder) / CHECKPOINT
        task = _task(settings, examples, held_out, network, atlas)
    train(
        run,
        lambda step: _loss(network, atlas, examples, settings, step, device),
        rates,
        evaluate=evaluate,
        ended=ended,
        report=report,
        path=path,
        task=task,
    )
    return detail()


def measure(
    generator: Generator, detail: Detail, examples: Examples, settings: DetailSettings
) -> dict[str, float]:
    """Measures detail on examples' faces.

    Returns:
        `held_out`, the mean of the loss, and `psnr`, the mean PSNR, dB. Where a generator puts a
        face a pixel beside its place, sharper is worse by PSNR, and better by the loss.
    """
    device = next(generator.parameters()).device
    figures, losses = [], []
    for i in range(len(examples.w)):
        drawn = draw_detailed(
            generator, detail, examples.w[i : i + 1].to(device), examples.meshes[i : i + 1]
        ).cpu()
        target = torch.from_numpy(examples.pictures[i : i + 1]).float()
        weights = examples.weights[i : i + 1]
        figures.append(float(face_psnr(drawn, target, weights)))
        losses.append(float(_difference(drawn, target, settings, weights.clamp(max=1))))
    return {
        "held_out": math.fsum(losses) / len(losses),
        "psnr": math.fsum(figures) / len(figures),
    }


def detail_sheet(
    generator: Generator, detail: Detail, examples: Examples, count: int = 3
) -> np.ndarray:
    """Shows frames of the scan, what is drawn of them with detail, and without it, side by side.

    Args:
        generator: the character's.
        detail: on its device.
        examples: frames that can be shown.
        count: shows at most this many, evenly spaced.

    Returns:
        `[count * R, 3 * R, 3]` uint8, at 1:1.
    """
    device = next(generator.parameters()).device
    rows = []
    for i in evenly_spaced(len(examples.w), count):
        one = slice(i, i + 1)
        drawn = draw_detailed(generator, detail, examples.w[one].to(device), examples.meshes[one])
        scan, plain = (
            torch.from_numpy(of[one]).float() for of in (examples.pictures, examples.generated)
        )
        plain = F.interpolate(plain, scan.shape[-2:], mode="bicubic")
        rows.append(torch.cat([scan, drawn.cpu(), plain], -1)[0])
    sheet = torch.cat(rows, -2).permute(1, 2, 0).numpy()
    return to_bytes(sheet / 2 + 0.5)


def face_psnr(drawn: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """PSNR of pictures `[B, 3, R, R]` in [-1, 1], of which the background counts less, dB, `[B]`.

    Args:
        drawn: pictures; values beyond the range are clipped.
        target: of the same shape.
        weights: `[B, 1, M, M]`, from `core.personalize.tuning.face_weights`; at most 1 counts.
    """
    weight = F.interpolate(weights, drawn.shape[-2:], mode="bilinear").clamp(max=1)
    squares = ((drawn.clamp(-1, 1) - target) / 2).square() * weight
    mean = squares.sum((1, 2, 3)) / (3 * weight.sum((1, 2, 3)))
    return -10 * mean.clamp(min=1e-10).log10()


def _network(shape: DetailShape, w: Tensor, start: Detail | None, seed: int) -> DetailNetwork:
    """A network to train: a new one, or a copy of that of other detail."""
    if start is not None:
        return copy.deepcopy(start.network).requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DetailNetwork(shape)
    # How codes differ within the scan: the principal components, of unit variance.
    centre = w.mean(0)
    _, sizes, axes = torch.linalg.svd((w - centre).double(), full_matrices=False)
    count = min(EXPRESSIONS, len(w) - 1)
    std = sizes[:count] / math.sqrt(len(w))
    network.centre.copy_(centre)
    network.components[:count].copy_(axes[:count] / std[:, None].clamp(min=1e-6))
    return network


def _loss(
    network: DetailNetwork,
    atlas: Atlas,
    examples: Examples,
    settings: DetailSettings,
    step: int,
    device: torch.device,
) -> Tensor:
    """The difference of some parts, as it decides one step."""
    shape = network.shape
    scale = shape.resolution // shape.base
    side = min(max(_PART // scale, _LEAST_PART), shape.base)
    rng = np.random.default_rng([settings.seed, step])
    chosen = rng.permutation(len(examples.w))[: settings.batch]
    corners = [_corner(examples.weights[i, 0].numpy(), shape.base, side, rng) for i in chosen]

    def cut(of: np.ndarray, k: int = 1) -> Tensor:
        pieces = [
            of[i, :, k * y : k * (y + side), k * x : k * (x + side)]
            for i, (x, y) in zip(chosen, corners, strict=True)
        ]
        return torch.from_numpy(np.stack(pieces)).to(device, torch.float32)

    maps = []
    for size in shape.sizes:
        k = size // shape.base
        found = [
            surface_map(atlas, examples.meshes[i], size, (k * x, k * y, k * side, k * side))
            for i, (x, y) in zip(chosen, corners, strict=True)
        ]
        maps.append(stack_maps(found, device))
    drawn = network(
        cut(examples.features),
        cut(examples.generated),
        examples.w[torch.from_numpy(chosen)].to(device),
        maps,
    )
    edge = shape.margin * scale
    drawn, target = (
        pictures[..., edge:-edge, edge:-edge] for pictures in (drawn, cut(examples.pictures, scale))
    )
    return _difference(drawn, target, settings)


def _difference(
    drawn: Tensor, target: Tensor, settings: DetailSettings, weights: Tensor | None = None
) -> Tensor:
    """The loss of pictures `[B, 3, h, w]`, of all pixels or by weights `[B, 1, M, M]`.

    Pixels and gradients alone give a blur where detail can't be foretold to the pixel: it is
    nearest to all that may be there. How strong detail is around a place does not depend on that.
    """
    difference = drawn - target
    strengths = _strength(drawn) - _strength(target)
    terms = (
        (1.0, difference),
        (settings.gradient / 2, difference[..., 1:] - difference[..., :-1]),
        (settings.gradient / 2, difference[..., 1:, :] - difference[..., :-1, :]),
        (settings.strength, strengths),
    )
    total = drawn.new_zeros(())
    for factor, values in terms:
        sizes = values.abs().mean(1, keepdim=True)
        if weights is not None:
            weight = F.interpolate(weights, sizes.shape[-2:], mode="bilinear")
            sizes = sizes * (weight / weight.mean())
        total = total + factor * sizes.mean()
    return total


def _strength(pictures: Tensor) -> Tensor:
    """How strong fine detail is around each place, root of its mean square: `[B, 1, h', w']`."""
    fine = pictures - F.avg_pool2d(pictures, 5, 1, 2, count_include_pad=False)
    power = F.avg_pool2d(fine.square().sum(1, keepdim=True), 9, 4)
    return (power + 1e-5).sqrt()  # a root has no gradient at nothing


def _corner(weights: np.ndarray, base: int, side: int, rng: np.random.Generator) -> tuple[int, int]:
    """Draws the corner of a part, px of the base, by weights `[M, M]` of where its centre lies."""
    total = np.cumsum(weights, dtype=np.float64)
    at = min(int(np.searchsorted(total, rng.random() * total[-1])), total.size - 1)
    row, column = divmod(at, weights.shape[1])
    centre = (np.array([column, row]) + rng.random(2)) * (base / weights.shape[1])
    x, y = np.clip((centre - side / 2).round().astype(int), 0, base - side)
    return int(x), int(y)


def _task(
    settings: DetailSettings,
    examples: Examples,
    held_out: Examples | None,
    network: DetailNetwork,
    atlas: Atlas,
) -> str:
    """Digest of all that decides the result."""
    sets = [s for s in (examples, held_out) if s is not None]
    # The pictures by a few of their pixels each: all would be gigabytes.
    data = [x for s in sets for x in (s.w, s.meshes, s.generated, s.pictures[:, :, ::16, ::16])]
    return digest(settings, *data, *network.state_dict().values(), atlas)
