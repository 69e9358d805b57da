"""Encoders from picture to w: the IR-SE-50 networks of pSp, e4e and HyperStyle's checkpoints.

Module names are those of the checkpoints, so that their tensors load by name; every width is
read off the tensors. Sources: Richardson et al. 2021 (pSp), Tov et al. 2021 (e4e), Alaluf et
al. 2022 (HyperStyle's W encoder); the trunk is ArcFace's (Deng et al. 2019) with squeeze and
excitation.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.base.errors import ReenactError, reading
from core.base.files import file_size
from core.base.text import printable
from core.generator.checkpoints import MAX_MEMBERS, SLACK, encoder_kind
from core.generator.network import MAX_CHANNELS, FullyConnectedLayer
from core.generator.storage import weight_problem
from core.generator.unpickling import (
    Instance,
    StoredTensor,
    UnreadableCheckpointError,
    read_pickle,
)

INPUT_SIZE = 256
MAX_LAYERS = 26  # of w+
Kind = Literal["W encoder", "e4e", "pSp"]

_STAGES = (3, 4, 14, 3)  # units per width; the first of each halves the resolution
_FINE, _MIDDLE, _COARSE = 6, 20, 23  # units whose features the pyramid takes
_MIDDLE_LAYER, _FINE_LAYER = 3, 7  # layers of w+ from which on the finer features are taken


class NotAnEncoderError(ReenactError):
    """The file holds no encoder that can be loaded here."""


class _Excite(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1, bias=False)
        self.fc2 = nn.Conv2d(squeezed, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class _Unit(nn.Module):
    def __init__(self, inputs: int, outputs: int, squeezed: int, stride: int) -> None:
        super().__init__()
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            _Excite(outputs, squeezed),
        )
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if inputs != outputs:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut_layer(x) + self.res_layer(x)


class _Style(nn.Module):
    """Features to one layer of w+: convolutions of stride 2 down to one pixel, a linear layer."""

    def __init__(self, channels: int, halvings: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(halvings):
            layers += [nn.Conv2d(channels, channels, 3, 2, 1), nn.LeakyReLU()]
        self.convs = nn.Sequential(*layers)
        self.linear = FullyConnectedLayer(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.convs(x).flatten(1))


class Encoder(nn.Module):
    """A trunk with one linear layer (W), or with a feature pyramid and a head per layer (W+).

    Args:
        kind: of the encoder.
        widths: channels of the input layer and of the four stages.
        squeezed: channels of each unit's squeeze.
        layers: of w+; 0 for a W encoder.
        mean: `[w_dim]` or `[layers, w_dim]`, added to the network's output.
    """

    mean: Tensor

    def __init__(
        self, kind: Kind, widths: Sequence[int], squeezed: Sequence[int], layers: int, mean: Tensor
    ) -> None:
        super().__init__()
        self.kind = kind
        first, *widths = widths
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.PReLU(first)
        )
        units: list[nn.Module] = []
        inputs = first
        for width, count in zip(widths, _STAGES, strict=True):
            for i in range(count):
                units.append(_Unit(inputs, width, squeezed[len(units)], 1 if i else 2))
                inputs = width
        self.body = nn.ModuleList(units)
        if kind == "W encoder":
            self.linear = FullyConnectedLayer(inputs, inputs)
        else:
            halvings = (4 + (i >= _MIDDLE_LAYER) + (i >= _FINE_LAYER) for i in range(layers))
            self.styles = nn.ModuleList(_Style(inputs, n) for n in halvings)
            self.latlayer1 = nn.Conv2d(widths[2], inputs, 1)
            self.latlayer2 = nn.Conv2d(widths[1], inputs, 1)
        self.register_buffer("mean", mean, persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Encodes pictures in W.

        Args:
            pictures: `[B, 3, H, W]`, FFHQ-aligned, sRGB in [-1, 1]; resized to 256 px here.

        Returns:
            w `[B, w_dim]`. Of an e4e encoder the common code, without the offsets per layer.

        Raises:
            NotAnEncoderError: a pSp encoder, whose layers have no common code.
        """
        if self.kind == "pSp":
            raise NotAnEncoderError(
                "This pSp encoder gives w+ codes, which do not lie in W, where anchors must. Use "
                "a W encoder (HyperStyle) or an e4e one."
            )
        *_, coarse = self._features(pictures)
        mean = self.mean if self.mean.ndim == 1 else self.mean[0]
        if self.kind == "e4e":
            return self.styles[0](coarse) + mean
        return self.linear(coarse.mean((2, 3))) + mean

    def w_plus(self, pictures: Tensor) -> Tensor:
        """Encodes pictures in W+.

        Args:
            pictures: as for `forward`.

        Returns:
            w+ `[B, layers, w_dim]`.

        Raises:
            NotAnEncoderError: a W encoder; expand its w instead.
        """
        if self.kind == "W encoder":
            raise NotAnEncoderError("A W encoder gives one w for all layers: call it for that.")
        fine, middle, coarse = self._features(pictures)
        middle = _enlarged(coarse, self.latlayer1(middle))
        fine = _enlarged(middle, self.latlayer2(fine))
        layers = []
        for i, style in enumerate(self.styles):
            level = coarse if i < _MIDDLE_LAYER else middle if i < _FINE_LAYER else fine
            layers.append(style(level))
        codes = torch.stack(layers, 1)
        if self.kind == "e4e":  # later layers are offsets from the first
            codes = torch.cat([codes[:, :1], codes[:, :1] + codes[:, 1:]], 1)
        return codes + self.mean

    def _features(self, pictures: Tensor) -> list[Tensor]:
        size = (INPUT_SIZE, INPUT_SIZE)
        if pictures.shape[2:] != size:
            pictures = F.interpolate(pictures, size, mode="bilinear", antialias=True)
        x = self.input_layer(pictures)
        features = []
        for i, unit in enumerate(self.body):
            x = unit(x)
            if i in (_FINE, _MIDDLE, _COARSE):
                features.append(x)
        return features


def _enlarged(small: Tensor, added: Tensor) -> Tensor:
    size = added.shape[2:]
    return F.interpolate(small, size, mode="bilinear", align_corners=True) + added


def load_encoder(path: str | Path) -> Encoder:
    """Loads the encoder of a pSp, e4e or HyperStyle W encoder checkpoint.

    Args:
        path: the file; no code in it is run.

    Returns:
        The encoder in float32 on the CPU, in evaluation mode.

    Raises:
        NotAnEncoderError: it holds no encoder, or one of another architecture.
        UnreadableCheckpointError: it is missing, cut short or damaged.
        RefusedPickleError: it asks for anything but tensors.
    """
    with reading(path, UnreadableCheckpointError):
        content = read_pickle(path)
        state = content.get("state_dict", content) if isinstance(content, dict) else None
        if not isinstance(content, dict) or not isinstance(state, dict):
            raise NotAnEncoderError(
                f"{path} holds no encoder's tensors. Choose a pSp-like checkpoint."
            )
        return _load(Path(path), content, state)


def _load(path: Path, content: dict, state: dict) -> Encoder:
    if len(state) > MAX_MEMBERS:
        raise NotAnEncoderError(f"{path} has {len(state)} entries, far more than an encoder has.")
    tensors = {
        name.removeprefix("encoder."): value
        for name, value in state.items()
        if isinstance(name, str) and name.startswith("encoder.") and isinstance(value, StoredTensor)
    }
    kind = encoder_kind(state, content.get("opts"))
    if kind == "pSp IntoWPlus":
        raise NotAnEncoderError(
            f"{path} holds pSp's encoder IntoWPlus, whose codes do not lie in W, where anchors "
            "must. Use a W encoder (HyperStyle) or an e4e one."
        )
    encoder = _outline(path, kind, tensors)
    expected = encoder.state_dict()
    w_dim = len(expected["linear.bias" if kind == "W encoder" else "styles.0.linear.bias"])
    layers = 0 if kind == "W encoder" else len(encoder.styles)
    for name in sorted(expected.keys() | tensors.keys()):
        ours, theirs = expected.get(name), tensors.get(name)
        if ours is None or theirs is None or tuple(theirs.shape) != tuple(ours.shape):
            raise NotAnEncoderError(
                f"{path} holds an encoder of another architecture: "
                f"{_difference(printable(name)[:80], ours, theirs)}. Choose a checkpoint of pSp, "
                "e4e or HyperStyle's W encoder."
            )
    total = sum(v.numel() * v.itemsize for v in expected.values())
    storages = {id(v.storage): v.storage.nbytes for v in tensors.values()}
    if total > file_size(path) + SLACK or sum(storages.values()) > 2 * total + SLACK:
        raise NotAnEncoderError(
            f"{path} holds no encoder: the same numbers are repeated in it, under many names."
        )
    loaded = {name: _number_tensor(path, name, value) for name, value in tensors.items()}
    encoder = encoder.to_empty(device="cpu").eval().requires_grad_(False)
    encoder.load_state_dict(loaded)
    encoder.register_buffer("mean", _mean(path, content, kind, w_dim, layers), persistent=False)
    return encoder


def _outline(path: Path, kind: Kind, tensors: Mapping[str, StoredTensor]) -> Encoder:
    """Makes the encoder of the tensors' widths, on the meta device."""
    units = [sum(_STAGES[:i]) for i in range(len(_STAGES))]
    last = "linear.bias" if kind == "W encoder" else "styles.0.linear.bias"

    def width(name: str) -> int:
        if name not in tensors:
            raise NotAnEncoderError(
                f"{path} holds no IR-SE-50 encoder ({name} is missing). Choose a checkpoint of "
                "pSp, e4e or HyperStyle's W encoder."
            )
        shape = tensors[name].shape
        if not shape or not 1 <= shape[0] <= MAX_CHANNELS:
            raise NotAnEncoderError(
                f"{path} holds no IR-SE-50 encoder ({name} is {[*shape]}). Choose a checkpoint of "
                "pSp, e4e or HyperStyle's W encoder."
            )
        return shape[0]

    widths = [width("input_layer.0.weight")]
    widths += [width(f"body.{i}.res_layer.1.weight") for i in units]
    squeezed = [width(f"body.{i}.res_layer.5.fc1.weight") for i in range(sum(_STAGES))]
    width(last)
    layers = sum(bool(re.fullmatch(r"styles\.\d+\.linear\.bias", name)) for name in tensors)
    if layers > MAX_LAYERS:
        raise NotAnEncoderError(
            f"{path} holds an encoder of {layers} layers of w+; {MAX_LAYERS} are the most that any "
            "generator has. Choose a checkpoint of pSp, e4e or HyperStyle's W encoder."
        )
    with torch.device("meta"):
        return Encoder(kind, widths, squeezed, layers, torch.zeros(1))


def _difference(name: str, ours: Tensor | None, theirs: StoredTensor | None) -> str:
    if theirs is None:
        return f"{name} is missing"
    if ours is None:
        return f"it has {name}, {[*theirs.shape]}, which those read here have not"
    return f"{name} is {[*theirs.shape]}, not {[*ours.shape]}"


def _number_tensor(path: Path, name: str, stored: StoredTensor) -> Tensor:
    """Loads a tensor of an encoder, and checks that it holds numbers."""
    tensor = stored.load()
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)  # counts the training's steps; nothing reads it
    problem = weight_problem(name, tensor)
    if problem is None and name.endswith("running_var") and bool((tensor < 0).any()):
        problem = f"{name} has negative variances"
    if problem is not None:
        raise UnreadableCheckpointError(
            f"{path} is damaged: {printable(problem)}. Download or copy it again."
        )
    return tensor.float()


def _mean(path: Path, content: Mapping[str, object], kind: Kind, w_dim: int, layers: int) -> Tensor:
    """Reads what is added to the codes: the mean of W, or 0 if the encoder was trained without."""
    options = content.get("opts")
    options = options.state if isinstance(options, Instance) else options
    starts = not isinstance(options, dict) or options.get("start_from_latent_avg", True)
    stored = content.get("latent_avg")
    if not isinstance(stored, StoredTensor) or not (starts or kind == "W encoder"):
        return torch.zeros(w_dim)
    shape = stored.shape
    rows = 1 if len(shape) < 2 else shape[-2]
    if not shape or shape[-1] != w_dim or len(shape) > 3 or (len(shape) == 3 and shape[0] != 1):
        rows = 0
    if rows == 0 or (rows not in (1, layers) and kind != "W encoder") or rows > MAX_LAYERS:
        raise NotAnEncoderError(
            f"The checkpoint's latent_avg is {[*shape]}, which does not fit its encoder of "
            f"{layers or 1} layers of {w_dim}. Download it again."
        )
    if stored.storage.nbytes > SLACK:
        raise NotAnEncoderError(f"{path} holds no encoder: its latent_avg is part of other data.")
    mean = _number_tensor(path, "latent_avg", stored).reshape(rows, w_dim)
    return mean[0] if rows == 1 or kind == "W encoder" else mean
