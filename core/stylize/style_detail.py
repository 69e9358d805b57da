"""A style's own detail: what a pixel program makes of the character's, at full resolution."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.base.progress import EndAfter, Progress, Report
from core.generator import Generator
from core.personalize.detail import Detail, draw_detailed, find_meshes
from core.personalize.detail_training import (
    DetailSettings,
    Examples,
    draw_examples,
    keep_pictures,
    train_detail,
)
from core.personalize.tuning import face_weights
from core.stylize.pixel_programs import run_program

SAMPLES = 48  # codes that it is learnt from, at most: each is drawn at full resolution
HELD_OUT = 4  # codes that it is measured on, at most


def learn_style_detail(
    parent: Generator,
    detail: Detail,
    style: Generator,
    program: str,
    train: Tensor,
    held_out: Tensor,
    *,
    steps: int,
    batch: int,
    folder: Path,
    report: Report,
    end_after: EndAfter,
) -> Detail:
    """Learns to draw, from a style's features, what a program makes of the character's pictures.

    It starts from the character's detail and keeps its atlas, so that both can be mixed.

    Args:
        parent: the character's generator.
        detail: the character's, on the same device.
        style: the tuned generator, on the same device.
        program: of `core.stylize.pixel_programs`.
        train: `[N, w_dim]`, codes that the style was tuned on.
        held_out: `[M, w_dim]`, others.
        steps: at most.
        batch: pictures drawn at once.
        folder: for the pictures and the checkpoint.
        report: receives progress.
        end_after: as in `core.personalize.detail_training.train_detail`.
    """
    device = next(parent.parameters()).device
    sets = {"train": train[:SAMPLES], "check": held_out[:HELD_OUT]}
    total = sum(map(len, sets.values()))

    def examples_of(name: str, progress: Progress, before: int) -> Examples:
        codes, meshes, weights = sets[name], [], []

        def targets() -> Iterator[Tensor]:
            for part in codes.split(batch):
                with torch.no_grad():
                    plain = parent.synthesis(part.to(device))
                meshes.append(find_meshes(plain, detail.atlas))
                weights.append(face_weights(plain, device=device))
                drawn = draw_detailed(parent, detail, part.to(device), meshes[-1])
                yield from run_program(program, drawn.clamp(-1, 1).cpu())
                progress(before + sum(map(len, meshes)), total)

        pictures = keep_pictures(
            targets(), len(codes), detail.resolution, folder / f"pictures_{name}.npy"
        )
        return draw_examples(
            style,
            codes,
            pictures,
            folder / f"features_{name}.npy",
            batch,
            # A drawing may mislead the networks: both are those of the unstyled face.
            meshes=np.concatenate(meshes),
            weights=torch.cat(weights),
        )

    with report.stage("detail: drawing") as progress:
        examples = examples_of("train", progress, 0)
        check = examples_of("check", progress, len(examples.w))
    with report.stage("detail") as progress:
        return train_detail(
            style,
            examples,
            check,
            detail.atlas,
            DetailSettings(steps=steps, check_every=max(-(-steps // 4), 1)),
            start=detail,
            source=program,
            end_after=end_after,
            folder=folder,
            progress=progress,
        )
