"""Figures, sheets and the log of a distillation, on held-out pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.base.training import Run
from core.generator import Generator
from core.media.contact_sheet import contact_sheet
from core.synthetic.base import WEncoder
from core.synthetic.distill.losses import pixel_weights
from core.synthetic.distill.pictures import Pictures, latents

LOG_SECONDS = 60.0  # between lines of the log


def generate(generator: Generator, data: Pictures, size: int) -> Iterator[tuple[slice, Tensor]]:
    """Generates the pictures of draws from z, 32 at a time, without gradients.

    Args:
        generator: on the data's device.
        data: N draws.
        size: resolution at which the generator stops, px.

    Yields:
        Which of the draws, and their pictures `[B, 3, size, size]` in [-1, 1].
    """
    for i in range(0, len(data.normals), 32):
        part = slice(i, i + 32)
        z = latents(data.normals[part], torch.Generator().manual_seed(i))
        with torch.no_grad():
            yield part, generator.synthesis(generator.mapping(z), stop_at=size).clamp(-1, 1)


def score(generator: Generator, data: Pictures, size: int) -> dict[str, float]:
    """Measures what is generated from z at a resolution, on at most 256 pictures.

    Returns:
        PSNR of the whole picture (`psnr`) and of the eyes (`eye_psnr`), dB.
    """
    whole, eyes = [], []
    some = data.first(256)
    for part, generated in generate(generator, some, size):
        indices = torch.arange(part.start, min(part.stop, len(some.normals)))
        target, _, points = data.batch(indices, torch.zeros(len(indices), dtype=torch.bool), size)
        error = ((generated - target) / 2).square()
        _, eye = pixel_weights(points, size)
        whole.append(error.mean((1, 2, 3)))
        eyes.append((error * eye).sum((1, 2, 3)) / eye.sum((1, 2, 3)) / 3)
    names = ("psnr", "eye_psnr")
    return {
        n: round(float((-10 * torch.cat(e).log10()).mean()), 2)
        for n, e in zip(names, (whole, eyes), strict=True)
    }


def encoded_psnr(
    encoder: WEncoder, generator: Generator, data: Pictures, count: int = 128
) -> float:
    """PSNR of the reconstruction through the encoder, of at most `count` pictures, dB."""
    errors = []
    for indices in torch.arange(min(count, len(data.normals))).split(32):
        plain = torch.zeros(len(indices), dtype=torch.bool)
        target = data.batch(indices, plain, generator.architecture.resolution)[0]
        with torch.no_grad():
            generated = generator.synthesis(encoder(target)).clamp(-1, 1)
        errors.append(((generated - target) / 2).square().mean((1, 2, 3)))
    return float((-10 * torch.cat(errors).log10()).mean())


def pair_sheet(generator: Generator, data: Pictures, count: int = 20) -> np.ndarray:
    """Shows targets above the pictures generated from z, ten in a row, `[H, W, 3]` uint8."""
    size = generator.architecture.resolution
    some = data.first(count)
    generated = torch.cat([pictures for _, pictures in generate(generator, some, size)])
    below = ((generated.permute(0, 2, 3, 1).cpu() + 1) * 127.5).round().byte().numpy()
    rows: list[np.ndarray] = []
    for i in range(0, count, 10):
        rows += [*some.pictures[i : i + 10].cpu().numpy(), *below[i : i + 10]]
    return contact_sheet(rows, columns=10)


# -- the log -----------------------------------------------------------------------------------


def log(folder: Path, line: dict[str, float]) -> None:
    """Adds a line to `log.jsonl` in a folder, and prints it."""
    print(json.dumps(line), flush=True)
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def log_regularly(
    folder: Path,
    run: Run,
    line: Callable[[float, int], dict[str, float]],
    every: int | None = None,
) -> Callable[[float, float], None]:
    """Makes a `report` for `core.base.training.train` that logs now and then, and at the end.

    Args:
        folder: of the log.
        run: the one that is trained.
        line: called with the mean loss since the last line and the milliseconds per step.
        every: steps between lines; by default `LOG_SECONDS` pass.
    """
    since, first = time.monotonic(), run.step

    def report(loss: float, seconds_left: float) -> None:
        nonlocal since, first
        now = time.monotonic()
        due = now - since > LOG_SECONDS if every is None else run.step % every == 0
        if due or run.step == run.steps:
            milliseconds = round((now - since) / max(run.step - first, 1) * 1e3)
            log(folder, line(round(float(np.mean(run.pending)), 4), milliseconds))
            run.pending.clear()
            since, first = time.monotonic(), run.step

    return report
