"""Drawing the codes of a track: by a generator, with a person's detail, in a style."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

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
    surfaces: Iterable[np.ndarray] | None = None,
    mix: Mix | None = None,
    batch: int = 8,
) -> Iterator[Tensor]:
    """Draws codes as they are delivered, in order.

    Args:
        generator: the character's, a style's parent.
        codes: `[F, L, 512]` w+.
        detail: the character's, if it has any; on the generator's device.
        surfaces: of each of the F frames the mesh `[478, 3]` of what the generator draws, steadied
            over time, to which detail is attached; by default each frame's own, for stills.
        mix: the amount of a style in each of the F frames; frames of one amount are drawn together.
        batch: pictures drawn at once.

    Yields:
        `[3, R, R]` sRGB in [-1, 1].
    """
    if detail is not None and surfaces is None:
        surfaces = still_surfaces(generator, codes, batch)
    meshes = iter(surfaces or ())
    runs = [(slice(0, len(codes)), generator, detail)]
    for frames, drawing, own in runs if mix is None else mix.networks(generator, detail):
        if own is None:
            yield from draw_pictures(drawing, codes[frames], batch)
            continue
        device = next(drawing.parameters()).device
        for start in range(frames.start, frames.stop, batch):
            part = torch.from_numpy(codes[start : min(start + batch, frames.stop)]).to(device)
            mesh = np.stack([*islice(meshes, len(part))])
            yield from draw_detailed(drawing, own, part, mesh).clamp(-1, 1)


def still_surfaces(generator: Generator, codes: np.ndarray, batch: int = 8) -> Iterator[np.ndarray]:
    """Finds the mesh `[478, 3]` of what a generator draws of each code, by itself."""
    pictures = draw_pictures(generator, codes, batch)
    while part := list(islice(pictures, batch)):
        yield from find_meshes(torch.stack(part))
