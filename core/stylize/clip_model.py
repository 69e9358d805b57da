"""CLIP (Radford et al. 2021) for styles: embeds pictures and sentences as unit vectors.

Models are folders in open_clip's format (`open_clip_config.json`, `open_clip_model.safetensors`),
in `clip` beside torch's other downloads. The user downloads them once (`fetch_line`); nothing here
accesses the network. open_clip itself is optional: `pip install "reenact[styles]"`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from core.base.container import read_header
from core.base.errors import ReenactError
from core.base.text import printable

# Names, and where they are published.
MODELS = {
    "ViT-B-32": "timm/vit_base_patch32_clip_224.openai",
    "ViT-B-16": "timm/vit_base_patch16_clip_224.openai",
    "ViT-L-14": "timm/vit_large_patch14_clip_224.openai",
}
DEFAULT = ("ViT-B-32", "ViT-B-16")  # StyleGAN-NADA's two
FILES = ("open_clip_config.json", "open_clip_model.safetensors")


class ClipMissingError(ReenactError):
    """open_clip or one of its models is not on this machine."""


@dataclass(frozen=True)
class ClipModel:
    """A CLIP model.

    Attributes:
        name: recorded in styles and logs.
        image: pictures `[B, 3, R, R]` in [-1, 1], any R -> `[B, D]` of length 1, differentiable.
        text: T sentences -> `[T, D]` of length 1.
    """

    name: str
    image: Callable[[Tensor], Tensor]
    text: Callable[[Sequence[str]], Tensor]


def root() -> Path:
    """Returns the folder of all models."""
    return Path(torch.hub.get_dir()) / "clip"


def folder(name: str) -> Path:
    """Returns the folder of a model, which may not exist.

    Raises:
        ClipMissingError: `name` is no valid name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
        raise ClipMissingError(f"{name!r} is no name of a CLIP model. Choose {', '.join(MODELS)}.")
    return root() / name


def is_installed(name: str) -> bool:
    """Whether a model's files are on this machine."""
    return all((folder(name) / file).is_file() for file in FILES)


def fetch_line(name: str, python: str = "python") -> str:
    """Returns the command that downloads a model."""
    source = MODELS.get(name, "ORGANISATION/REPOSITORY")
    return (
        f"{python} -c \"from huggingface_hub import snapshot_download; snapshot_download('{source}'"
        f", allow_patterns={list(FILES)}, local_dir=r'{folder(name)}')\""
    )


def load_clip(name: str, device: torch.device | str = "cpu") -> ClipModel:
    """Loads a model from this machine.

    Args:
        name: of its folder; see `MODELS`.
        device: torch device.

    Raises:
        ClipMissingError: open_clip or the model's files are missing or can't be used.
    """
    if not is_installed(name):
        raise ClipMissingError(
            f"The CLIP model {name} is not on this machine. Fetch it once with\n"
            f"  {fetch_line(name)}\n"
            f"(without internet, run it elsewhere and copy the folder to {folder(name)}), or "
            "make a style by --program or --pictures, which need no CLIP."
        )
    try:
        # Imported late: it is slow, and fails beside a torchvision built for another torch.
        import open_clip
    except ImportError as error:
        raise ClipMissingError(
            f'open_clip is not installed ({error}). Run: pip install "open_clip_torch>=3" with '
            "Reenact's constraints.txt (-c)."
        ) from error
    except RuntimeError as error:
        raise ClipMissingError(
            f"open_clip does not load ({error}). Install the torchvision made for torch "
            f"{torch.__version__}."
        ) from error
    try:
        read_header(folder(name) / FILES[1])
        model = open_clip.create_model(f"local-dir:{folder(name)}", device=device)
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder(name)}")
    except Exception as error:  # the library's errors have no common base
        raise ClipMissingError(
            f"The files in {folder(name)} are damaged or no CLIP model "
            f"({printable(str(error))[:200]}). Fetch them again."
        ) from error
    return from_open_clip(name, model, tokenizer)


def from_open_clip(name: str, model: Any, tokenizer: Callable[[list[str]], Tensor]) -> ClipModel:
    """Wraps a model of the `open_clip` library, and freezes it."""
    model = model.eval().requires_grad_(False)
    device = next(model.parameters()).device
    mean, std = (
        torch.tensor(values, device=device)[:, None, None]
        for values in (model.visual.image_mean, model.visual.image_std)
    )
    size = model.visual.image_size
    size = (size, size) if isinstance(size, int) else tuple(size)

    def image(pictures: Tensor) -> Tensor:
        sized = F.interpolate(
            pictures / 2 + 0.5, size, mode="bicubic", antialias=True, align_corners=False
        )
        return F.normalize(model.encode_image((sized - mean) / std), dim=-1)

    @torch.no_grad()
    def text(sentences: Sequence[str]) -> Tensor:
        return F.normalize(model.encode_text(tokenizer([*sentences]).to(device)), dim=-1)

    return ClipModel(name, image, text)
