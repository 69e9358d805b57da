"""Generators and a metric that cost tests nothing."""

import torch
import torch.nn.functional as F
from torch import Tensor

from core.face.perceptual import Metric
from core.generator import Architecture, Generator

SIZE = 64


def random_generator(seed: int = 0) -> Generator:
    """64 px, untrained: its pictures are blotches, but they follow w smoothly."""
    torch.manual_seed(seed)
    channels = {4: 32, 8: 32, 16: 16, 32: 8, 64: 8}
    return Generator(Architecture(SIZE, channels, mapping_layers=2, mapping_rate=1.0)).eval()


def _maps(pictures: Tensor) -> list[Tensor]:
    blocks = F.avg_pool2d(pictures, 4)
    return [blocks, blocks[..., 1:] - blocks[..., :-1]]


BLOCKS = Metric(
    "blocks", _maps, torch.device("cpu")
)  # distance of 4x4 means, and of their differences along rows


def task(count: int = 5) -> tuple[Generator, Tensor, Tensor]:
    """A generator, codes, and smooth pictures that it does not draw yet."""
    generator = random_generator()
    rng = torch.Generator().manual_seed(2)
    w = generator.mapping(torch.randn(count, 512, generator=rng)).detach()
    small = torch.rand(count, 3, 6, 6, generator=rng) * 2 - 1
    return generator, w, F.interpolate(small, (SIZE, SIZE), mode="bilinear")
