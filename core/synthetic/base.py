"""The base generator that is shipped with the package, and its encoder.

Both are made by `core.synthetic.distill` and used unless the user has a generator of real faces.
They were trained on nothing but the performer.
"""

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from core.base.errors import ReenactError
from core.generator import Generator
from core.generator.storage import load_generator

WEIGHTS = Path(__file__).parent / "weights"


class BaseMissingError(ReenactError):
    """The package has no base generator."""


class WEncoder(nn.Module):
    """Encodes pictures to w, for one generator: a small residual network.

    Args:
        resolution: side of the pictures, px.
        w_dim: features of w.
    """

    w_avg: Tensor

    def __init__(self, resolution: int, w_dim: int = 512) -> None:
        super().__init__()
        widths = [32, 48, 96, 192, 256, 256, 256]
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        size, width = resolution, widths[0]
        for next_width in widths[1:]:
            if size == 4:
                break
            self.blocks.append(
                nn.ModuleDict(
                    {
                        "conv0": nn.Conv2d(width, width, 3, padding=1),
                        "conv1": nn.Conv2d(width, next_width, 3, stride=2, padding=1),
                        "skip": nn.Conv2d(width, next_width, 1, bias=False),
                    }
                )
            )
            size, width = size // 2, next_width
        self.out = nn.Linear(width * size * size, w_dim)
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, image: Tensor) -> Tensor:
        """Encodes aligned pictures.

        Args:
            image: `[B, 3, R, R]`, sRGB in [-1, 1].

        Returns:
            w `[B, w_dim]`.
        """
        x = self.stem(image)
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            skip = F.avg_pool2d(block["skip"](x), 2)
            x = block["conv1"](F.leaky_relu(block["conv0"](F.leaky_relu(x, 0.2)), 0.2))
            x = (x + skip) * 0.5**0.5
        return self.w_avg + self.out(x.flatten(1))


@lru_cache(maxsize=1)
def base_generator() -> Generator:
    """Returns the shipped generator: float32, CPU, evaluation mode; shared, so copy to change it.

    Raises:
        BaseMissingError: the weights are not in the package.
    """
    return load_generator(_weights("base.safetensors"))[0]


@lru_cache(maxsize=1)
def base_encoder() -> WEncoder:
    """Returns the shipped generator's encoder: float32, CPU, evaluation mode.

    Raises:
        BaseMissingError: the weights are not in the package.
    """
    encoder = WEncoder(base_generator().architecture.resolution)
    tensors = load_file(_weights("encoder.safetensors"))
    encoder.load_state_dict({k: v.float() for k, v in tensors.items()})
    # Twice as fast on a CPU.
    return encoder.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _weights(name: str) -> Path:
    path = WEIGHTS / name
    if not path.is_file():
        raise BaseMissingError(
            f"{path} is missing: this copy of Reenact has no base generator. Get a complete copy, "
            "or make one with: python -m core.synthetic.distill FOLDER"
        )
    return path
