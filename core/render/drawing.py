"""Drawing the codes of a track: by a generator, with a person's detail, in a style."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from core.generator import Generator
from core.personalize.detail import Detail, draw_detailed, find_meshes
from core.stylize.style import Mix


def draw_pictures(
    generator: Generator, codes: np.ndarray, batch: int = 8, size: int | None = None
) -> Iterator[Tensor]:
    """Draws codes at the generator's resolution or below, in order, on its device.

    Args:
        generator: in evaluation mode.
        codes: `[F, L, 512]` w+.
        batch: pictures drawn at once; fewer need less memory.
        size: a lower resolution at which the generator stops, px.

    Yields:
        `[3, R, R]` sRGB in [-1, 1].
    """
    device = next(generator.parameters()).device
    for start in range(0, len(codes), batch):
        part = torch.from_numpy(codes[start : start + batch]).to(device)
        with torch.no_grad():  # left before yielding: two such iterators may end in any order
            drawn = generator.synthesis(part, stop_at=size).clamp(-1, 1)
        yield from drawn


def draw_frames(
    generator: Generator,
    codes: np.ndarray,
    *,
    detail: Detail | None = None,
    mix: Mix | None = None,
    batch: int = 8,
) -> Iterator[Tensor]:
    """Draws codes as they are delivered, in order.

    Args:
        generator: the character's, a style's parent.
        codes: `[F, L, 512]` w+.
        detail: the character's, if it has any; on the generator's device.
        mix: the amount of a style in each of the F frames; frames of one amount are drawn together.
        batch: pictures drawn at once.

    Yields:
        `[3, R, R]` sRGB in [-1, 1].
    """
    runs = [(slice(0, len(codes)), generator, detail)]
    for frames, drawing, own in runs if mix is None else mix.networks(generator, detail):
        if own is None:
            yield from draw_pictures(drawing, codes[frames], batch)
            continue
        device = next(drawing.parameters()).device
        for start in range(frames.start, frames.stop, batch):
            part = codes[start : min(start + batch, frames.stop)]
            # Not steadied over time: of codes near each other a generator draws pictures so alike
            # that meshes tremble by a tenth of a pixel of 512, and an average smears blinks.
            plain = torch.stack([*draw_pictures(generator, part, batch)])
            meshes = find_meshes(plain, own.atlas)
            drawn = draw_detailed(drawing, own, torch.from_numpy(part).to(device), meshes)
            yield from drawn.clamp(-1, 1)
