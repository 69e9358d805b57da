"""The detail of a character: what its scan shows beyond the resolution of its generator.

Detail is the person's own, and it sits on the surface of the face: neural textures are sampled by
the coordinates of `core.face.surface`, joined with the generator's last features, and a few small
convolutions at each doubled size add what the generator's picture lacks. (The idea: Thies et al.
2019, deferred neural rendering; Wang et al. 2023, StyleAvatar.) The generator itself is unchanged,
and so is everything that is solved with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.base import container
from core.base.digest import digest
from core.face.landmarks import detect_averaged
from core.face.network import aligned_roi, to_picture
from core.face.skin import stick
from core.face.surface import (
    MESH_POINTS,
    REFERENCE_SIDE,
    SHELL_POINTS,
    SKIN_ASPECT,
    Atlas,
    SurfaceMap,
    surface_map,
)
from core.generator import Architecture, Generator
from core.generator.network import MAX_CHANNELS
from core.generator.storage import compact

ENTRY, PREFIX = "detail", "detail."  # of detail in files: a header's entry, and arrays' names
RESOLUTIONS = (256, 512, 1024)  # px, that a character may be drawn at
HIDDEN = 32  # features of the convolutions
EXPRESSIONS = 8  # principal components of the anchors that modulate the textures
_SLOPE = 0.2
_REFERENCE = "atlas.reference"


@dataclass(frozen=True)
class DetailShape:
    """The shape of a detail network."""

    base: int  # px of the generator's pictures
    resolution: int  # px of the pictures with detail, twice `base` or more
    features: int  # channels of the generator's last block
    w_dim: int = 512

    def __post_init__(self) -> None:
        sizes = [1 << i for i in range(3, 11)]
        if {self.base, self.resolution} - {*sizes} or self.base >= self.resolution:
            raise ValueError(f"there is no detail of {self.resolution} px on {self.base} px")
        if not (1 <= self.features <= MAX_CHANNELS and 1 <= self.w_dim <= MAX_CHANNELS):
            raise ValueError("the detail has more channels than any generator")

    @property
    def sizes(self) -> list[int]:
        """Sides of the pictures at which something is added, px."""
        steps = int(math.log2(self.resolution // self.base))
        return [self.base << i for i in range(1, steps + 1)]

    @property
    def margin(self) -> int:
        """How much around a part its convolutions reach, px of the base."""
        return 3 if len(self.sizes) < 3 else 4  # 1 + 1, then half of that for each doubled size


@dataclass(frozen=True)
class DetailInfo:
    """Record of how detail was made: plain JSON values."""

    source: str = ""  # the clip that it was learnt from
    steps: int = 0  # done
    losses: list[dict[str, float]] = field(default_factory=list)  # history of the training


class _Level(nn.Module):
    """Doubles the size of features, and adds what the textures have there.

    Args:
        inputs: channels of the features.
        size: of the picture, px.
        deep: whether a second convolution follows.
    """

    def __init__(self, inputs: int, size: int, deep: bool) -> None:
        super().__init__()
        channels = min(16, 4096 // size)  # large textures have few: memory, and Adam's time
        self.skin = nn.Parameter(torch.zeros(channels, int(SKIN_ASPECT * size), size))
        self.head = nn.Parameter(torch.zeros(channels, size, size))
        self.features = nn.Conv2d(inputs, HIDDEN, 3, padding=1)
        self.textures = nn.Conv2d(2 * channels + 1, HIDDEN, 3, padding=1, bias=False)
        self.gates = nn.Linear(EXPRESSIONS, 2 * channels, bias=False)
        nn.init.zeros_(self.gates.weight)
        self.second = nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1) if deep else None

    def forward(self, x: Tensor, maps: Mapping[str, Tensor], expression: Tensor) -> Tensor:
        skin = _sample(self.skin, maps["skin"]) * maps["weight"]
        sampled = torch.cat([skin, _sample(self.head, maps["head"])], 1)
        sampled = sampled * (1 + self.gates(expression))[:, :, None, None]
        x = F.interpolate(self.features(x), scale_factor=2, mode="bilinear")
        x = x + self.textures(torch.cat([sampled, maps["weight"]], 1))
        x = F.leaky_relu(x, _SLOPE)
        return x if self.second is None else F.leaky_relu(self.second(x), _SLOPE)


class DetailNetwork(nn.Module):
    """Adds detail to a generator's pictures.

    Args:
        shape: its sizes.
    """

    centre: Tensor
    components: Tensor

    def __init__(self, shape: DetailShape) -> None:
        super().__init__()
        self.shape = shape
        inputs = shape.features
        for i, size in enumerate(shape.sizes):
            self.add_module(f"d{size}", _Level(inputs, size, deep=i == 0))
            inputs = HIDDEN
        self.rgb = nn.Conv2d(HIDDEN, 3, 3, padding=1)
        nn.init.zeros_(self.rgb.weight)
        nn.init.zeros_(self.rgb.bias)  # type: ignore[arg-type]
        self.register_buffer("centre", torch.zeros(shape.w_dim))
        self.register_buffer("components", torch.zeros(EXPRESSIONS, shape.w_dim))

    def forward(
        self, features: Tensor, picture: Tensor, w: Tensor, maps: Sequence[Mapping[str, Tensor]]
    ) -> Tensor:
        """Draws pictures, or the same part of each.

        Args:
            features: `[B, C, h, w]` of the generator's last block.
            picture: `[B, 3, h, w]`, the generator's, in [-1, 1].
            w: `[B, w_dim]`, or w+ `[B, L, w_dim]`, which is averaged.
            maps: of each of `shape.sizes`, as `stack_maps` makes them.

        Returns:
            `[B, 3, H, W]`, sRGB, nominally in [-1, 1].
        """
        w = w.mean(1) if w.ndim == 3 else w
        expression = torch.tanh((w - self.centre) @ self.components.T / 2)
        x = features
        for size, level in zip(self.shape.sizes, maps, strict=True):
            x = self.get_submodule(f"d{size}")(x, level, expression)
        scale = self.shape.resolution // self.shape.base
        large = F.interpolate(picture, scale_factor=scale, mode="bicubic")
        return large + self.rgb(x)


def _sample(texture: Tensor, at: Tensor) -> Tensor:
    """Samples a texture `[C, h, w]` at coordinates `[B, H, W, 2]` in 0..1: `[B, C, H, W]`."""
    batch, height, width, _ = at.shape
    # As one tall picture: a batch would have a gradient of the whole texture for each of its parts.
    grid = (at * 2 - 1).reshape(1, batch * height, width, 2)
    found = F.grid_sample(texture[None], grid, "bilinear", "border", align_corners=False)
    return found.reshape(-1, batch, height, width).transpose(0, 1)


def stack_maps(maps: Sequence[SurfaceMap], device: torch.device | str) -> dict[str, Tensor]:
    """Collects the maps of a batch: `skin` and `head` `[B, h, w, 2]`, `weight` `[B, 1, h, w]`."""

    def stacked(planes: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(planes)).to(device)

    return {
        "skin": stacked([m.skin for m in maps]),
        "weight": stacked([m.weight for m in maps])[:, None],
        "head": stacked([m.head for m in maps]),
    }


@dataclass(frozen=True, eq=False)
class Detail:
    """A person's detail, or that of a style of theirs."""

    network: DetailNetwork  # evaluation mode, no gradients
    atlas: Atlas
    info: DetailInfo

    @property
    def resolution(self) -> int:
        """Side of the pictures with detail, px."""
        return self.network.shape.resolution

    def can_be_mixed(self, other: Detail | None) -> bool:
        """Whether its weights can be mixed with those of other detail: that of a style of it."""
        return (
            other is not None
            and self.network.shape == other.network.shape
            and digest(self.atlas) == digest(other.atlas)
        )

    def digest(self) -> str:
        """Digest of all that decides the pixels."""
        state = self.network.state_dict()
        return digest(self.network.shape, *state.values(), self.atlas)


def store(detail: Detail) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Returns what a file of `core.base.container` says of detail: its entry, and its arrays."""
    facts = {"shape": asdict(detail.network.shape), "info": asdict(detail.info)}
    state = detail.network.state_dict()
    arrays = {f"{PREFIX}network.{name}": compact(tensor).numpy() for name, tensor in state.items()}
    arrays[f"{PREFIX}atlas.mean"] = detail.atlas.mean
    arrays[f"{PREFIX}atlas.triangles"] = detail.atlas.triangles
    if detail.atlas.reference is not None:
        arrays[f"{PREFIX}{_REFERENCE}"] = detail.atlas.reference
    return {ENTRY: json.dumps(facts, allow_nan=False)}, arrays


def restore(
    header: Mapping[str, str], arrays: Mapping[str, np.ndarray], architecture: Architecture
) -> Detail | None:
    """Builds the detail that a file has.

    Args:
        header: of the file.
        arrays: all of the file's.
        architecture: of the generator in it.

    Returns:
        The detail in float32 on the CPU; None if the file has none.

    Raises:
        KeyError, TypeError, ValueError: it is damaged, or does not fit the generator.
    """
    own = {n.removeprefix(PREFIX): array for n, array in arrays.items() if n.startswith(PREFIX)}
    if ENTRY not in header:
        if own:
            raise ValueError("its detail is not described")
        return None
    facts = container.parse(header[ENTRY])
    shape = container.record(DetailShape, facts["shape"])
    base = architecture.resolution
    if (shape.base, shape.features, shape.w_dim) != (
        base,
        architecture.channels[base],
        architecture.w_dim,
    ):
        raise ValueError(f"its detail belongs to another generator, of {shape.base} px")
    triangles = own["atlas.triangles"]
    reference = own.pop(_REFERENCE, None)  # the first files with detail have none
    if reference is not None and (reference.shape, reference.dtype) != (
        (REFERENCE_SIDE, REFERENCE_SIDE),
        np.uint8,
    ):
        raise ValueError(f"its detail's {_REFERENCE} is {reference.dtype} {[*reference.shape]}")
    found = {name: array.shape for name, array in own.items()}
    if found != _expected_shapes(shape) | {"atlas.triangles": (len(triangles), 3)}:
        raise ValueError("its detail's tensors are not those that it describes")
    if triangles.dtype != np.int32 or not ((triangles >= 0) & (triangles < SHELL_POINTS)).all():
        raise ValueError("its detail's triangles have points that there are not")
    for name, array in own.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"its detail's {name} has values that are no numbers")
    network = DetailNetwork(shape)
    network.load_state_dict(
        {
            name.removeprefix("network."): torch.from_numpy(array).float()
            for name, array in own.items()
            if name.startswith("network.")
        }
    )
    atlas = Atlas(own["atlas.mean"].astype(np.float32), triangles, reference)
    info = container.record(DetailInfo, facts["info"])
    return Detail(network.eval().requires_grad_(False), atlas, info)


def _expected_shapes(shape: DetailShape) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of detail's tensors by name, without making them."""
    with torch.device("meta"):
        state = DetailNetwork(shape).state_dict()
    shapes: dict[str, tuple[int, ...]] = {f"network.{n}": tuple(t.shape) for n, t in state.items()}
    return shapes | {"atlas.mean": (MESH_POINTS, 3)}


@torch.no_grad()
def find_meshes(pictures: Tensor, atlas: Atlas | None = None) -> np.ndarray:
    """Finds the meshes of generated pictures, well enough for textures.

    Args:
        pictures: `[B, 3, R, R]` in [-1, 1].
        atlas: the person's, by whose reference meshes are moved to stick to the skin.

    Returns:
        `[B, 478, 3]` float32, in sides of the picture, the origin its top left corner.
    """
    size = pictures.shape[-1]
    landmarks = detect_averaged(pictures.clamp(-1, 1)).landmarks
    meshes = to_picture(landmarks, aligned_roi(size, len(pictures), device=landmarks.device))
    corner = meshes.new_tensor([0.5, 0.5, 0])  # the mesh has its origin in the first pixel's centre
    found = ((meshes + corner) / size).cpu().numpy()
    return found if atlas is None else stick(atlas, found, pictures.float().cpu().numpy())


@torch.no_grad()
def draw_detailed(
    generator: Generator, detail: Detail, codes: Tensor, meshes: np.ndarray
) -> Tensor:
    """Draws codes with detail.

    Args:
        generator: the character's, or a style's.
        detail: on the same device.
        codes: `[B, w_dim]` or `[B, L, w_dim]`.
        meshes: `[B, 478, 3]`, of the generator's pictures, in their sides.

    Returns:
        `[B, 3, R, R]`, sRGB, nominally in [-1, 1].
    """
    features, picture = generator.synthesis.features(codes)
    shape, pad = detail.network.shape, detail.network.shape.margin
    features, picture = (F.pad(x, [pad] * 4, "replicate") for x in (features, picture))
    maps = []
    for size in shape.sizes:
        edge = pad * size // shape.base
        window = (-edge, -edge, size + 2 * edge, size + 2 * edge)
        maps.append(
            stack_maps(
                [surface_map(detail.atlas, mesh, size, window) for mesh in meshes], picture.device
            )
        )
    edge = pad * shape.resolution // shape.base
    return detail.network(features, picture, codes, maps)[..., edge:-edge, edge:-edge]
