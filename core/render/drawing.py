"""Drawing the codes of a track with a generator, or in a style."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from core.generator import Generator
from core.stylize.style import Mix


def draw_pictures(
    generator: Generator, codes: np.ndarray, batch: int = 8, size: int | None = None
) -> Iterator[Tensor]:
    """Draws codes, in order, on the generator's device.

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


def draw_styled(
    generator: Generator, codes: np.ndarray, mix: Mix, batch: int = 8
) -> Iterator[Tensor]:
    """Draws codes in a style, in order.

    Args:
        generator: the character's, the style's parent.
        codes: `[F, L, 512]` w+.
        mix: the amount of the style in each of the F frames; frames of one amount are drawn
            together.
        batch: pictures drawn at once.

    Yields:
        `[3, R, R]` sRGB in [-1, 1].
    """
    for frames, mixed in mix.generators(generator):
        yield from draw_pictures(mixed, codes[frames], batch)
