"""pSp-like encoders against their definition, written out as plain function calls."""

import argparse
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.generator.encoders import NotAnEncoderError, load_encoder
from core.generator.unpickling import UnreadableCheckpointError

WIDTHS = [4] * 3 + [6] * 4 + [8] * 14 + [12] * 3  # of the 24 units
STRIDES = [2, 1, 1, 2, 1, 1, 1, 2, *[1] * 13, 2, 1, 1]
W_DIM = WIDTHS[-1]
ROWS = 10


def encoder_state(kind: str, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the names of the real checkpoints."""
    r = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def normal(name: str, *shape: int) -> None:
        fan_in = math.prod(shape[1:])
        state[f"encoder.{name}"] = torch.randn(*shape, generator=r) / math.sqrt(fan_in)

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            drawn = torch.rand(channels, generator=r) + 0.5
            state[f"encoder.{name}.{part}"] = drawn
        state[f"encoder.{name}.num_batches_tracked"] = torch.tensor(7)

    normal("input_layer.0.weight", 4, 3, 3, 3)
    norm("input_layer.1", 4)
    state["encoder.input_layer.2.weight"] = torch.rand(4, generator=r)
    inputs = 4
    for i, width in enumerate(WIDTHS):
        unit = f"body.{i}"
        norm(f"{unit}.res_layer.0", inputs)
        normal(f"{unit}.res_layer.1.weight", width, inputs, 3, 3)
        state[f"encoder.{unit}.res_layer.2.weight"] = torch.rand(width, generator=r)
        normal(f"{unit}.res_layer.3.weight", width, width, 3, 3)
        norm(f"{unit}.res_layer.4", width)
        normal(f"{unit}.res_layer.5.fc1.weight", 2, width, 1, 1)
        normal(f"{unit}.res_layer.5.fc2.weight", width, 2, 1, 1)
        if inputs != width:
            normal(f"{unit}.shortcut_layer.0.weight", width, inputs, 1, 1)
            norm(f"{unit}.shortcut_layer.1", width)
        inputs = width

    def linear(name: str) -> None:
        state[f"encoder.{name}.weight"] = torch.randn(W_DIM, W_DIM, generator=r)
        state[f"encoder.{name}.bias"] = torch.randn(W_DIM, generator=r)

    if kind == "W encoder":
        linear("linear")
        return state
    for row in range(ROWS):
        for i in range(4 if row < 3 else 5 if row < 7 else 6):
            normal(f"styles.{row}.convs.{2 * i}.weight", W_DIM, W_DIM, 3, 3)
            normal(f"styles.{row}.convs.{2 * i}.bias", W_DIM)
        linear(f"styles.{row}.linear")
    for name, width in (("latlayer1", 8), ("latlayer2", 6)):
        normal(f"{name}.weight", W_DIM, width, 1, 1)
        normal(f"{name}.bias", W_DIM)
    return state


class Definition:
    """The networks' forward passes, in float64."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.p = {k.removeprefix("encoder."): v.double() for k, v in state.items()}

    def norm(self, name: str, x: Tensor) -> Tensor:
        p, shape = self.p, (1, -1, 1, 1)
        scale = p[f"{name}.weight"] / torch.sqrt(p[f"{name}.running_var"] + 1e-5)
        shifted = x - p[f"{name}.running_mean"].reshape(shape)
        return shifted * scale.reshape(shape) + p[f"{name}.bias"].reshape(shape)

    def prelu(self, name: str, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, x * self.p[f"{name}.weight"].reshape(1, -1, 1, 1))

    def unit(self, name: str, x: Tensor, stride: int) -> Tensor:
        p = self.p
        y = F.conv2d(
            self.norm(f"{name}.res_layer.0", x), p[f"{name}.res_layer.1.weight"], padding=1
        )
        y = self.prelu(f"{name}.res_layer.2", y)
        y = F.conv2d(y, p[f"{name}.res_layer.3.weight"], stride=stride, padding=1)
        y = self.norm(f"{name}.res_layer.4", y)
        gate = y.mean((2, 3), keepdim=True)
        gate = F.conv2d(gate, p[f"{name}.res_layer.5.fc1.weight"]).clamp(min=0)
        y = y * (1 / (1 + torch.exp(-F.conv2d(gate, p[f"{name}.res_layer.5.fc2.weight"]))))
        if f"{name}.shortcut_layer.0.weight" not in p:
            return y + x[:, :, ::stride, ::stride]
        x = F.conv2d(x, p[f"{name}.shortcut_layer.0.weight"], stride=stride)
        return y + self.norm(f"{name}.shortcut_layer.1", x)

    def linear(self, name: str, x: Tensor) -> Tensor:
        weight = self.p[f"{name}.weight"] / math.sqrt(W_DIM)
        return x @ weight.T + self.p[f"{name}.bias"]

    def style(self, row: int, x: Tensor) -> Tensor:
        i = 0
        while f"styles.{row}.convs.{i}.weight" in self.p:
            name = f"styles.{row}.convs.{i}"
            x = F.conv2d(x, self.p[f"{name}.weight"], self.p[f"{name}.bias"], 2, 1)
            x = torch.where(x > 0, x, 0.01 * x)
            i += 2
        assert x.shape[2:] == (1, 1)
        return self.linear(f"styles.{row}.linear", x[:, :, 0, 0])

    def features(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.conv2d(pictures.double(), self.p["input_layer.0.weight"], padding=1)
        x = self.prelu("input_layer.2", self.norm("input_layer.1", x))
        taken = {}
        for i, stride in enumerate(STRIDES):
            x = taken[i] = self.unit(f"body.{i}", x, stride)
        assert [taken[i].shape[2] for i in (6, 20, 23)] == [64, 32, 16]
        return taken[6], taken[20], taken[23]

    def w(self, pictures: Tensor) -> Tensor:
        return self.linear("linear", self.features(pictures)[2].mean((2, 3)))

    def w_plus(self, pictures: Tensor, offsets: bool) -> Tensor:
        p = self.p
        fine, middle, coarse = self.features(pictures)

        def add(small: Tensor, lateral: Tensor, name: str) -> Tensor:
            lateral = F.conv2d(lateral, p[f"{name}.weight"], p[f"{name}.bias"])
            size = lateral.shape[2:]
            return F.interpolate(small, size, mode="bilinear", align_corners=True) + lateral

        middle = add(coarse, middle, "latlayer1")
        fine = add(middle, fine, "latlayer2")
        levels = [coarse] * 3 + [middle] * 4 + [fine] * (ROWS - 7)
        rows = [self.style(i, level) for i, level in enumerate(levels)]
        if offsets:
            rows = [rows[0], *(rows[0] + row for row in rows[1:])]
        return torch.stack(rows, 1)


PICTURES = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(1)) * 2 - 1


def written(path: Path, kind: str, options: object, mean: Tensor | None) -> Definition:
    state = encoder_state(kind)
    decoder = {"decoder.input.input": torch.zeros(1)}
    content = {"state_dict": state | decoder, "opts": options}
    torch.save(content | ({} if mean is None else {"latent_avg": mean}), path)
    return Definition(state)


def close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert (got.double() - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("mean_rows", [0, 1, 18])
def test_w_encoders(tmp_path: Path, mean_rows: int) -> None:
    mean = torch.randn(W_DIM)
    stored = mean.repeat(mean_rows, 1) if mean_rows else mean
    options = {"start_from_latent_avg": False}  # HyperStyle adds the mean whatever this says
    definition = written(tmp_path / "w.pt", "W encoder", options, stored)
    encoder = load_encoder(tmp_path / "w.pt")
    assert encoder.kind == "W encoder"
    close(encoder(PICTURES), definition.w(PICTURES) + mean)
    with pytest.raises(NotAnEncoderError, match="one w for all layers"):
        encoder.w_plus(PICTURES)


@pytest.mark.parametrize("starts", [True, False])
def test_e4e(tmp_path: Path, starts: bool) -> None:
    mean = torch.randn(W_DIM).repeat(ROWS, 1)
    options = {"encoder_type": "Encoder4Editing", "start_from_latent_avg": starts}
    definition = written(tmp_path / "e4e.pt", "e4e", options, mean)
    encoder = load_encoder(tmp_path / "e4e.pt")
    expected = definition.w_plus(PICTURES, offsets=True) + mean * starts
    close(encoder.w_plus(PICTURES), expected)
    close(encoder(PICTURES), expected[:, 0])


def test_psp(tmp_path: Path) -> None:
    mean = torch.randn(ROWS, W_DIM)
    options = argparse.Namespace(encoder_type="GradualStyleEncoder", start_from_latent_avg=True)
    definition = written(tmp_path / "psp.pt", "pSp", options, mean)
    encoder = load_encoder(tmp_path / "psp.pt")
    close(encoder.w_plus(PICTURES), definition.w_plus(PICTURES, offsets=False) + mean)
    with pytest.raises(NotAnEncoderError, match="do not lie in W"):
        encoder(PICTURES)


def test_other_sizes_are_resized(tmp_path: Path) -> None:
    """A smooth picture gives the same code at 512 px as at 256."""
    written(tmp_path / "w.pt", "W encoder", {}, None)
    encoder = load_encoder(tmp_path / "w.pt")
    small = F.interpolate(PICTURES[:1, :, :8, :8], (256, 256), mode="bicubic")
    large = F.interpolate(PICTURES[:1, :, :8, :8], (512, 512), mode="bicubic")
    other = F.interpolate(PICTURES[1:, :, :8, :8], (256, 256), mode="bicubic")
    difference = (encoder(small) - encoder(large)).abs().max()
    assert difference < 0.02 * (encoder(small) - encoder(other)).abs().max()


def test_other_files_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"g_ema": {"a": torch.zeros(1)}}, path)
    with pytest.raises(NotAnEncoderError, match="is missing"):
        load_encoder(path)
    torch.save([1], path)
    with pytest.raises(NotAnEncoderError, match="no encoder's tensors"):
        load_encoder(path)
    state = encoder_state("e4e")
    six = dict(state)  # ReStyle's, which look at the picture so far as well
    six["encoder.input_layer.0.weight"] = torch.zeros(4, 6, 3, 3)
    torch.save({"state_dict": six}, path)
    with pytest.raises(NotAnEncoderError, match=r"input_layer\.0\.weight is \[4, 6, 3, 3\]"):
        load_encoder(path)
    torch.save({"state_dict": state, "latent_avg": torch.zeros(3, W_DIM)}, path)
    with pytest.raises(NotAnEncoderError, match="latent_avg"):
        load_encoder(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UnreadableCheckpointError):
        load_encoder(path)
