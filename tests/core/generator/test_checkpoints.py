"""Checkpoints of other tools: written here as those tools write them, and attacked."""

from __future__ import annotations

import argparse
import builtins
import collections
import hashlib
import io
import math
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpoint_writers import (
    CANARY,
    CHANNELS,
    DEPTH,
    FIR,
    MALICIOUS,
    SIZES,
    SMALL,
    WIDTH,
    EasyDict,
    Network,
    Persistent,
    nvidia,
    persistent,
    randomised,
    registered,
    tensorflow,
    tiny_files,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from core.base.errors import ReenactError
from core.generator import Architecture, Generator, checkpoints
from core.generator.checkpoints import (
    NeedsParentError,
    load_any,
    mean_w,
    read_checkpoint,
    save_rosinality,
)
from core.generator.storage import NotAGeneratorError, load_generator, save_generator
from core.generator.unpickling import Instance, RefusedPickleError, UnreadableCheckpointError
from server.cli.models import app


@pytest.fixture(autouse=True)
def canary() -> Iterator[None]:
    """No test may ever run what is in a pickle: all of them try to create this file."""
    CANARY.unlink(missing_ok=True)
    yield
    assert not CANARY.exists()


@pytest.fixture(scope="module")
def generator() -> Generator:
    return randomised()


def same(a: Generator, b: Generator) -> None:
    """Bit for bit."""
    assert a.architecture == b.architecture
    mine, theirs = a.state_dict(), b.state_dict()
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name


# -- the textbook forward pass, one grouped convolution per sample ------------------------------


class Layer:
    """One modulated convolution: OIHW weight as a correlation, or as what each pixel scatters."""

    def __init__(
        self,
        weight: Tensor,
        affine: Tensor,
        affine_bias: Tensor,
        bias: Tensor,
        strength: Tensor | float = 0.0,
        noise: Tensor | float = 0.0,
    ) -> None:
        self.weight, self.bias = weight.double(), bias.double().reshape(1, -1, 1, 1)
        self.affine, self.affine_bias = affine.double(), affine_bias.double()
        self.noise = torch.as_tensor(strength * noise).double()

    def convolve(self, x: Tensor, w: Tensor, demodulate: bool, up: bool) -> Tensor:
        n, i, h, _ = x.shape
        o, _, k, _ = self.weight.shape
        style = w @ self.affine.T / math.sqrt(w.shape[1]) + self.affine_bias
        weight = self.weight / math.sqrt(i * k * k) * style[:, None, :, None, None]
        if demodulate:
            weight = weight * torch.rsqrt((weight**2).sum((2, 3, 4), keepdim=True) + 1e-8)
        x = x.reshape(1, n * i, h, h)
        if not up:
            x = F.conv2d(x, weight.reshape(n * o, i, k, k), padding=k // 2, groups=n)
            return x.reshape(n, o, h, h)
        weight = weight.transpose(1, 2).reshape(n * i, o, k, k)
        x = F.conv_transpose2d(x, weight, stride=2, groups=n)
        x = x.reshape(n * o, 1, 2 * h + 1, 2 * h + 1)
        return F.conv2d(x, FIR.double()[None, None], padding=1).reshape(n, o, 2 * h, 2 * h)

    def styled(self, x: Tensor, w: Tensor, up: bool) -> Tensor:
        x = self.convolve(x, w, True, up) + self.noise + self.bias
        return F.leaky_relu(x, 0.2) * math.sqrt(2)


def textbook(
    z: Tensor, dense: list[tuple[Tensor, Tensor]], const: Tensor, layer: Callable[[int, str], Layer]
) -> Tensor:
    """Pictures from z; `layer(resolution, "up" | "conv" | "rgb")` gives the layers."""
    x = z.double()
    x = x * torch.rsqrt((x**2).mean(1, keepdim=True) + 1e-8)
    for weight, bias in dense:
        x = F.linear(x, weight.double() * 0.01 / math.sqrt(x.shape[1]), bias.double() * 0.01)
        x = F.leaky_relu(x, 0.2) * math.sqrt(2)
    w, image = x, None
    x = const.double().reshape(1, -1, 4, 4).expand(len(z), -1, -1, -1)
    for r in SIZES:
        if r > 4:
            x = layer(r, "up").styled(x, w, True)
        x = layer(r, "conv").styled(x, w, False)
        rgb = layer(r, "rgb").convolve(x, w, False, False) + layer(r, "rgb").bias
        if image is not None:
            wide = torch.zeros(len(z), 3, r + 3, r + 3, dtype=torch.float64)
            wide[:, :, 2 : r + 2 : 2, 2 : r + 2 : 2] = image
            rgb = rgb + F.conv2d(
                wide.reshape(-1, 1, r + 3, r + 3), FIR.double()[None, None]
            ).reshape(rgb.shape)
        image = rgb
    assert image is not None
    return image


def same_pictures(generator: Generator, expected: Callable[[Tensor], Tensor]) -> None:
    z = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        picture, wanted = generator(z).double(), expected(z)
    assert (picture - wanted).abs().max() < 1e-5 * wanted.abs().max()


# -- rosinality ---------------------------------------------------------------------------------


def rosinality(seed: int = 1) -> dict[str, Tensor]:
    """A state dict as rosinality's Generator(64, 16, 3) with these channels has it."""
    r = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        return torch.randn(*shape, generator=r) * scale + mean

    state: dict[str, Tensor] = collections.OrderedDict()
    for i in range(1, DEPTH + 1):
        state[f"style.{i}.weight"] = normal(WIDTH, WIDTH, scale=100)
        state[f"style.{i}.bias"] = normal(WIDTH, scale=10)
    state["input.input"] = normal(1, CHANNELS[4], 4, 4)

    def modulated(name: str, i: int, o: int, kernel: int) -> None:
        state[f"{name}.conv.weight"] = normal(1, o, i, kernel, kernel)
        state[f"{name}.conv.modulation.weight"] = normal(i, WIDTH)
        state[f"{name}.conv.modulation.bias"] = normal(i, scale=0.3, mean=1)

    def styled(name: str, i: int, o: int, up: bool = False) -> None:
        modulated(name, i, o, 3)
        if up:
            state[f"{name}.conv.blur.kernel"] = FIR.clone()
        state[f"{name}.noise.weight"] = normal(1)
        state[f"{name}.activate.bias"] = normal(o)

    def rgb(name: str, i: int) -> None:
        modulated(name, i, 3, 1)
        state[f"{name}.bias"] = normal(1, 3, 1, 1)

    styled("conv1", CHANNELS[4], CHANNELS[4])
    rgb("to_rgb1", CHANNELS[4])
    state["noises.noise_0"] = normal(1, 1, 4, 4)
    for k, size in enumerate(SIZES[1:]):
        styled(f"convs.{2 * k}", CHANNELS[size // 2], CHANNELS[size], up=True)
        styled(f"convs.{2 * k + 1}", CHANNELS[size], CHANNELS[size])
        state[f"to_rgbs.{k}.upsample.kernel"] = FIR.clone()
        rgb(f"to_rgbs.{k}", CHANNELS[size])
        state[f"noises.noise_{2 * k + 1}"] = normal(1, 1, size, size)
        state[f"noises.noise_{2 * k + 2}"] = normal(1, 1, size, size)
    return state


def rosinality_pictures(state: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    def layer(size: int, kind: str) -> Layer:
        k = SIZES.index(size)  # 0 at 4x4
        names = {
            "up": f"convs.{2 * k - 2}",
            "conv": f"convs.{2 * k - 1}" if k else "conv1",
            "rgb": f"to_rgbs.{k - 1}" if k else "to_rgb1",
        }
        name = names[kind]
        conv = [state[f"{name}.conv.{part}"] for part in ("modulation.weight", "modulation.bias")]
        weight = state[f"{name}.conv.weight"][0]
        if kind == "rgb":
            return Layer(weight, *conv, state[f"{name}.bias"])
        noise = state[f"noises.noise_{2 * k - (kind == 'up')}"]
        return Layer(
            weight, *conv, state[f"{name}.activate.bias"], state[f"{name}.noise.weight"], noise
        )

    dense = [(state[f"style.{i}.weight"], state[f"style.{i}.bias"]) for i in range(1, DEPTH + 1)]
    return lambda z: textbook(z, dense, state["input.input"], layer)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_rosinality_checkpoints_give_the_same_pictures(tmp_path: Path, zipped: bool) -> None:
    state, mean = rosinality(), torch.randn(WIDTH)
    path = tmp_path / "checkpoint.whatever"
    torch.save({"g_ema": state, "latent_avg": mean}, path, _use_new_zipfile_serialization=zipped)
    loaded, header = load_any(path)
    same_pictures(loaded, rosinality_pictures(state))
    assert torch.equal(loaded.mapping.w_avg, mean)
    assert loaded.architecture == SMALL
    assert "lr_mlp" in header.pop("notes")  # such files can't tell it
    assert header == {"source": path.name, "source_format": "rosinality checkpoint"}


def test_training_checkpoints_give_the_averaged_generator(tmp_path: Path) -> None:
    """With optimiser states, a Namespace of arguments, and prefixes of DataParallel."""
    averaged, raw = rosinality(1), rosinality(2)
    parameters = [nn.Parameter(torch.randn(3))]
    optimiser = torch.optim.Adam(parameters)
    parameters[0].sum().backward()
    optimiser.step()
    content = {
        "g": raw,
        "d": {"final_linear.0.weight": torch.zeros(1)},
        "g_ema": {f"module.{k}": v for k, v in averaged.items()},
        "g_optim": optimiser.state_dict(),
        "d_optim": optimiser.state_dict(),
        "args": argparse.Namespace(size=64, path=Path("lmdb"), lr=0.002),
        "ada_aug_p": 0.5,
    }
    torch.save(content, tmp_path / "550000.pt")
    checkpoint = read_checkpoint(tmp_path / "550000.pt")
    assert checkpoint.format == "rosinality training checkpoint"
    loaded, header = load_any(tmp_path / "550000.pt")
    same_pictures(loaded, rosinality_pictures(averaged))
    # The mean of W is not in the file: ours is within its own sampling error of a longer one.
    with torch.no_grad():
        ws = loaded.mapping(torch.randn(20000, WIDTH))
    assert torch.equal(loaded.mapping.w_avg, mean_w(loaded.mapping))
    error = ws.std(0) * math.sqrt(1 / 20000 + 1 / 2**14)
    assert ((ws.mean(0) - loaded.mapping.w_avg).abs() < 5 * error).all()
    assert "mean of W was measured" in header["notes"]


def test_nada_children_take_the_mean_of_their_parent(tmp_path: Path) -> None:
    state, parent = rosinality(), randomised()
    torch.save({"g_ema": state, "g_optim": {"state": {}}}, tmp_path / "child.pt")
    assert read_checkpoint(tmp_path / "child.pt").format == "StyleGAN-NADA child"
    loaded, _ = load_any(tmp_path / "child.pt", parent)
    same_pictures(loaded, rosinality_pictures(state))
    assert torch.equal(loaded.mapping.w_avg, parent.mapping.w_avg)


def test_a_child_without_mapping_needs_its_parent(tmp_path: Path) -> None:
    state, parent = rosinality(), randomised()
    child = {k: v for k, v in state.items() if not k.startswith("style.")}
    torch.save({"g_ema": child}, tmp_path / "child.pt")
    with pytest.raises(NeedsParentError, match="--parent"):
        load_any(tmp_path / "child.pt")
    loaded, _ = load_any(tmp_path / "child.pt", parent)
    same(loaded_mapping(loaded), loaded_mapping(parent))
    dense = [
        (parent.mapping.get_parameter(f"fc{i}.weight"), parent.mapping.get_parameter(f"fc{i}.bias"))
        for i in range(DEPTH)
    ]
    for i, (weight, bias) in enumerate(dense):
        state[f"style.{i + 1}.weight"], state[f"style.{i + 1}.bias"] = weight, bias
    same_pictures(loaded, rosinality_pictures(state))
    other = randomised(Architecture(64, CHANNELS, 16, 24, 2))
    with pytest.raises(NotAGeneratorError, match="parent it was fine-tuned from"):
        load_any(tmp_path / "child.pt", other)


def loaded_mapping(g: Generator) -> Generator:
    """A generator of which only the mapping is g's, to compare that alone."""
    torch.manual_seed(0)
    bare = Generator(SMALL)
    bare.mapping.load_state_dict(g.mapping.state_dict())
    return bare


@pytest.mark.parametrize(
    ("encoder", "options", "expected"),
    [
        ({"encoder.linear.weight": (4, 4), "encoder.linear.bias": (4,)}, {}, "W encoder"),
        ({"encoder.styles.0.linear.weight": (4, 4)}, {"encoder_type": "Encoder4Editing"}, "e4e"),
        (
            {"encoder.styles.0.linear.weight": (4, 4)},
            argparse.Namespace(encoder_type="GradualStyleEncoder"),
            "pSp",
        ),
    ],
)
def test_encoders_carry_a_generator(
    tmp_path: Path, encoder: dict, options: object, expected: str
) -> None:
    state, row = rosinality(), torch.randn(WIDTH)
    content = {
        "state_dict": {"encoder.input_layer.0.weight": torch.zeros(64, 3, 3, 3)}
        | {k: torch.zeros(v) for k, v in encoder.items()}
        | {f"decoder.{k}": v for k, v in state.items()},
        "opts": options,
        "latent_avg": row.repeat(10, 1),
    }
    torch.save(content, tmp_path / "encoder.pt")
    checkpoint = read_checkpoint(tmp_path / "encoder.pt")
    assert checkpoint.encoder == expected
    loaded, _ = load_any(tmp_path / "encoder.pt")
    same_pictures(loaded, rosinality_pictures(state))
    assert torch.equal(loaded.mapping.w_avg, row)


def test_old_rosinality_files_without_noise_load_reproducibly(tmp_path: Path) -> None:
    state = {k: v for k, v in rosinality().items() if not k.startswith("noises.")}
    torch.save({"g_ema": state, "latent_avg": torch.zeros(WIDTH)}, tmp_path / "old.pt")
    (one, header), (two, _) = load_any(tmp_path / "old.pt"), load_any(tmp_path / "old.pt")
    same(one, two)
    assert "noise" in header["notes"]


# -- TensorFlow ---------------------------------------------------------------------------------


def tensorflow_pictures(variables: dict[str, np.ndarray]) -> Callable[[Tensor], Tensor]:
    """In TensorFlow's terms: HWIO kernels, flipped before they scatter; styles have 1 added."""
    v = {k: torch.from_numpy(np.asarray(x)) for k, x in variables.items()}

    def layer(r: int, kind: str) -> Layer:
        conv = {"up": "Conv0_up", "conv": "Conv1" if r > 4 else "Conv", "rgb": "ToRGB"}[kind]
        name = f"synthesis/{r}x{r}/{conv}"
        weight = v[f"{name}/weight"]
        if kind == "up":
            weight = weight.flip(0, 1)
        affine, affine_bias = v[f"{name}/mod_weight"].T, v[f"{name}/mod_bias"] + 1
        weight = weight.permute(3, 2, 0, 1)
        if kind == "rgb":
            return Layer(weight, affine, affine_bias, v[f"{name}/bias"])
        number = {"up": 2 * SIZES.index(r) - 1, "conv": 2 * SIZES.index(r)}[kind]
        return Layer(
            weight,
            affine,
            affine_bias,
            v[f"{name}/bias"],
            v[f"{name}/noise_strength"],
            v[f"synthesis/noise{number}"],
        )

    dense = [(v[f"mapping/Dense{i}/weight"].T, v[f"mapping/Dense{i}/bias"]) for i in range(DEPTH)]
    return lambda z: textbook(z, dense, v["synthesis/4x4/Const/const"], layer)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensorflow_pickles_give_the_same_pictures(tmp_path: Path, protocol: int) -> None:
    data, variables = tensorflow(protocol=protocol)
    (tmp_path / "stylegan2.pkl").write_bytes(data)
    assert read_checkpoint(tmp_path / "stylegan2.pkl").format == "TensorFlow pickle"
    loaded, _ = load_any(tmp_path / "stylegan2.pkl")
    same_pictures(loaded, tensorflow_pictures(variables))
    np.testing.assert_array_equal(loaded.mapping.w_avg, variables["dlatent_avg"])


# -- NVIDIA's modules ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pickled(generator: Generator) -> bytes:
    """A whole NVIDIA pickle: G, D and G_ema."""
    with nvidia():
        d = Persistent("Discriminator")
        d.b64 = Persistent("DiscriminatorBlock")
        d.b64.fromrgb = Persistent("Conv2dLayer")
        d.b64.fromrgb.weight = nn.Parameter(torch.zeros(8, 3, 1, 1))
        content = {
            "G": persistent(randomised(seed=8)),
            "D": d,
            "G_ema": persistent(generator),
            "training_set_kwargs": EasyDict(path="x", resolution=64),
            "augment_pipe": None,
        }
        return pickle.dumps(content)


def test_nvidia_pickles_give_the_same_generator(
    tmp_path: Path, pickled: bytes, generator: Generator
) -> None:
    (tmp_path / "ffhq.txt").write_bytes(pickled)
    loaded, _ = load_any(tmp_path / "ffhq.txt")
    same(loaded, generator)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_clamp_rate_and_every_protocol(tmp_path: Path, protocol: int) -> None:
    g = randomised(Architecture(64, CHANNELS, 24, 16, 2, 0.02, 256.0))
    with nvidia():
        data = pickle.dumps({"G_ema": persistent(g)}, protocol)
    if protocol == 3:  # how numpy 2 spells it
        assert b"cnumpy.core.multiarray\n" in data
        data = data.replace(b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n")
    (tmp_path / "g.pkl").write_bytes(data)
    same(load_any(tmp_path / "g.pkl")[0], g)


def test_pti_and_stit_modules(tmp_path: Path, generator: Generator) -> None:
    with nvidia():
        torch.save(persistent(generator), tmp_path / "pti.pt")
        stit = {
            "generator": persistent(generator),
            "pivots": torch.zeros(2, 10, WIDTH),
            "quads": [np.zeros((4, 2))],
        }
        torch.save(stit, tmp_path / "stit.pt")
    for name in ("pti", "stit"):
        checkpoint = read_checkpoint(tmp_path / f"{name}.pt")
        assert checkpoint.format == f"{name.upper()} module"
        same(load_any(checkpoint.path)[0], generator)


def test_mystyle_synthesis_takes_the_mapping_of_its_parent(
    tmp_path: Path, generator: Generator
) -> None:
    with nvidia():
        torch.save(persistent(generator).synthesis, tmp_path / "mystyle_model.pt")
    assert read_checkpoint(tmp_path / "mystyle_model.pt").format == "MyStyle synthesis module"
    with pytest.raises(NeedsParentError, match="fine-tuned from"):
        load_any(tmp_path / "mystyle_model.pt")
    loaded, _ = load_any(tmp_path / "mystyle_model.pt", generator)
    same(loaded, generator)


def test_generators_trained_without_noise(tmp_path: Path, generator: Generator) -> None:
    state = {k: v for k, v in generator.state_dict().items() if ".noise_" not in k}
    torch.save(state, tmp_path / "quiet.pt")
    loaded, _ = load_any(tmp_path / "quiet.pt")
    w = torch.randn(1, WIDTH)
    assert torch.equal(loaded.synthesis(w), generator.synthesis(w, noise="none"))


# -- out ----------------------------------------------------------------------------------------


def test_the_way_round_is_exact(tmp_path: Path, generator: Generator) -> None:
    for g in (generator, randomised(Architecture(64, CHANNELS, 16, 16, 2, 0.02, 256.0))):
        notes = save_rosinality(tmp_path / "out.pt", g)
        assert any("channels" in note for note in notes)
        assert any("clamp" in note for note in notes) == (g.architecture.conv_clamp is not None)
        back, header = load_any(tmp_path / "out.pt")
        same(back, g)
        save_generator(tmp_path / "out.safetensors", back, header)
        again, _ = load_any(tmp_path / "out.safetensors")
        same(again, g)


def test_the_export_is_what_rosinality_reads(tmp_path: Path, generator: Generator) -> None:
    """Plain tensors under exactly its names and shapes, and its forward pass gives our pictures."""
    save_rosinality(tmp_path / "out.pt", generator)
    content = torch.load(tmp_path / "out.pt", weights_only=True)
    expected = rosinality()
    assert content["g_ema"].keys() == expected.keys()
    for name, value in expected.items():
        assert content["g_ema"][name].shape == value.shape, name
    torch.testing.assert_close(content["g_ema"]["convs.0.conv.blur.kernel"], FIR)
    same_pictures(generator, rosinality_pictures(content["g_ema"]))


def test_what_rosinality_cannot_hold_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(NotAGeneratorError, match="24 numbers in z and 16 in w"):
        save_rosinality(tmp_path / "out.pt", Generator(Architecture(64, CHANNELS, 24, 16, 2)))
    assert not list(tmp_path.iterdir())


# -- wrong files --------------------------------------------------------------------------------


def wrong(path: Path) -> str:
    with pytest.raises(NotAGeneratorError) as caught:
        load_any(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["final_linear.0.weight", "convs.0.0.weight"], "discriminator"),
        (["b64.fromrgb.weight", "b4.fc.weight"], "discriminator"),
        (["conditioner.embedders.1.model.x", "model.diffusion_model.input_blocks.0"], "SDXL"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "Stable Diffusion"),
        (["down_blocks.0.resnets.0.norm1.weight"], "diffusion"),
        (["lora_unet_down_blocks_0.lora_up.weight"], "LoRA"),
        (["synthesis.L0_36_512.weight", "synthesis.input.freqs"], "StyleGAN3"),
        (["generator.progression.0.conv1.weight"], "StyleGAN1"),
        (["encoder.input_layer.0.weight", "encoder.body.0.weight"], "encoder without"),
        (["input_layer.0.weight", "body.0.weight"], "face recognition"),
        (["lin0.model.1.weight"], "LPIPS"),
        (["features.0.weight", "classifier.1.bias"], "classifier"),
        (["some.thing.weight"], "some.thing.weight"),
    ],
)
def test_wrong_networks_are_named(tmp_path: Path, names: list[str], said: str) -> None:
    state = {name: torch.zeros(2) for name in names}
    torch.save(state, tmp_path / "bare.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "wrapped.ckpt")
    save_file(state, tmp_path / "file.safetensors")
    for name in ("bare.pt", "wrapped.ckpt", "file.safetensors"):
        assert said in wrong(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\n <!DOCTYPE html><html>Sign in", "web page"),
        (b"<html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
        (b"\x1f\x8b" + b"0" * 99, "Unpack"),
        (b"\x89PNG\r\n", "picture"),
        (b"GGUF1234", "language model"),
        (b"hello", "neither a pickle"),
    ],
)
def test_files_that_are_no_checkpoints_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "stylegan2-ffhq.pkl").write_bytes(content)
    assert said in wrong(tmp_path / "stylegan2-ffhq.pkl")


def test_a_missing_file_and_a_folder_are_no_tracebacks(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pkl", tmp_path):
        with pytest.raises(UnreadableCheckpointError, match="can't be read"):
            load_any(path)


@pytest.mark.parametrize(("kernel", "letter"), [(3, "-T"), (1, "-R")])
def test_stylegan3_is_named(tmp_path: Path, kernel: int, letter: str) -> None:
    layer = Persistent("SynthesisLayer", conv_kernel=kernel)
    layer.weight = nn.Parameter(torch.zeros(2, 2, kernel, kernel))
    network = Persistent("SynthesisNetwork", L0_36_512=layer)
    with nvidia():
        content = {"G_ema": Persistent("Generator", synthesis=network)}
        (tmp_path / "s.pkl").write_bytes(pickle.dumps(content))
    assert f"StyleGAN3{letter} generator" in wrong(tmp_path / "s.pkl")


def test_variants_that_would_give_other_pictures_are_refused(
    tmp_path: Path, generator: Generator
) -> None:
    def conditional(g: Persistent) -> None:
        g.mapping.c_dim = 10

    def activation(g: Persistent) -> None:
        g.synthesis.b8.conv0.activation = "relu"

    def architecture(g: Persistent) -> None:
        g.synthesis.b8.architecture = "resnet"

    def kernel(g: Persistent) -> None:
        g.synthesis.b8.conv0.resample_filter = torch.ones(4, 4) / 16

    def clamp(g: Persistent) -> None:
        g.synthesis.b8.conv0.conv_clamp = 4.0

    def grey(g: Persistent) -> None:
        g.synthesis.b8.torgb.weight = nn.Parameter(torch.zeros(1, 10, 1, 1))

    def missing(g: Persistent) -> None:
        del g.synthesis.b16

    def embedding(g: Persistent) -> None:
        g.synthesis.b8.extra = nn.Parameter(torch.zeros(1))

    for change, said in (
        (conditional, "conditional generator (10"),
        (activation, "activation is relu"),
        (architecture, "resnet"),
        (kernel, r"[1, 3, 3, 1]"),
        (clamp, "clamps differ"),
        (grey, "b8.torgb.weight is [1, 10, 1, 1]"),
        (missing, "blocks are missing"),
        (embedding, "b8.extra"),
    ):
        with nvidia():
            module = persistent(generator)
            change(module)
            (tmp_path / "g.pkl").write_bytes(pickle.dumps({"G_ema": module}))
        assert said in wrong(tmp_path / "g.pkl")
    with nvidia():
        (tmp_path / "d.pkl").write_bytes(pickle.dumps({"D": Persistent("Discriminator")}))
    assert "Discriminator" in wrong(tmp_path / "d.pkl")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"label_size": 5}, "conditional"),
        ({"nonlinearity": "relu"}, "nonlinearity"),
        ({"resample_kernel": [1, 2, 1]}, "resample_kernel"),
    ],
)
def test_tensorflow_variants_are_refused(tmp_path: Path, options: dict, said: str) -> None:
    (tmp_path / "g.pkl").write_bytes(tensorflow(**options)[0])
    assert said in wrong(tmp_path / "g.pkl")


def test_tensorflow_variables_are_not_copied_without_end(tmp_path: Path) -> None:
    """One array under many names."""
    array = np.zeros((512, 512), np.float32)
    names = [f"mapping/Dense{i}/weight" for i in range(1000)]
    with registered({"dnnlib.tflib.network.Network": Network}):
        own = Network(
            static_kwargs={},
            components={},
            variables=[
                ("synthesis/8x8/Conv1/mod_weight", array),
                *((name, array) for name in names),
            ],
        )
        (tmp_path / "x.pkl").write_bytes(pickle.dumps((own, own, own)))
    tracemalloc.start()
    assert "repeated" in wrong(tmp_path / "x.pkl")
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    state = rosinality()
    state["convs.3.conv.weight"][0, 0, 0, 0, 0] = math.nan
    torch.save({"g_ema": state}, tmp_path / "nan.pt")
    with pytest.raises(UnreadableCheckpointError, match=r"b16\.conv1\.weight"):
        load_any(tmp_path / "nan.pt")


def test_a_damaged_header_of_ours_is_an_error(tmp_path: Path, generator: Generator) -> None:
    save_generator(tmp_path / "g.safetensors", generator, {"notes": "not json"})
    assert "damaged header" in wrong(tmp_path / "g.safetensors")


# -- hostile files ------------------------------------------------------------------------------


class Runs:
    """Pickles as a call, as exploits do."""

    def __init__(self, function: Callable, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


COMMAND = f"touch {CANARY}"


def refused(path: Path, data: bytes | None = None) -> str:
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(RefusedPickleError) as caught:
        load_any(path)
    assert str(path) in str(caught.value)
    return caught.value.refused


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("attack", "name"),
    [
        (Runs(os.system, COMMAND), "posix.system"),
        (Runs(eval, MALICIOUS), ".eval"),
        (Runs(exec, MALICIOUS), ".exec"),
        (Runs(getattr, os, "system"), None),
        (Runs(getattr, str, "format"), ".getattr"),
        (Runs(__import__, "os"), ".__import__"),
        (Runs(pickle.loads, b""), "pickle.loads"),
        (Runs(torch.load, "x"), "torch.serialization.load"),
        (Runs(np.load, "x"), "numpy.load"),
        (Runs(bytearray, 10**12), "bytes made from int"),
        (Runs(torch.hub.load, "someone/model", "x"), "torch.hub.load"),
    ],
)
def test_calls_are_refused_by_name(
    tmp_path: Path,
    protocol: int,
    attack: Runs,
    name: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name == ".__import__":  # Qt, which other tests load, puts another one in its place
        monkeypatch.setattr(builtins, "__import__", attack.call[0])
    if name is None:  # a module can't be pickled: by hand, as getattr(posix, "system")
        data = b"cposix\nsystem\n(X" + struct.pack("<I", len(COMMAND)) + COMMAND.encode() + b"tR."
        assert refused(tmp_path / "x.pkl", b"\x80" + bytes([protocol]) + data) == "posix.system"
        return
    state = {"g_ema": {"convs.0.weight": torch.zeros(2), "x": [({"deep": attack},)]}}
    path = tmp_path / "x.pkl"
    assert name in refused(path, pickle.dumps(state, protocol))
    for zipped in (True, False):
        torch.save(state, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        assert name in refused(path)
    with nvidia():
        module = Persistent("Generator", attack=attack)
        assert name in refused(path, pickle.dumps({"G_ema": module}, protocol))


def test_a_storage_within_a_pickle_is_not_trusted_either(tmp_path: Path) -> None:
    inner = io.BytesIO()
    torch.save(Runs(os.system, COMMAND), inner, _use_new_zipfile_serialization=False)
    attack = Runs(torch.storage._load_from_bytes, inner.getvalue())
    assert refused(tmp_path / "x.pkl", pickle.dumps(attack)) == "posix.system"
    inner = io.BytesIO()
    torch.save(
        Runs(torch.storage._load_from_bytes, b""), inner, _use_new_zipfile_serialization=False
    )
    attack = Runs(torch.storage._load_from_bytes, inner.getvalue())
    assert "storage within" in refused(tmp_path / "x.pkl", pickle.dumps(attack))


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (b"(iposix\nsystem\n.", "INST"),
        (b"(cposix\nsystem\no.", "posix.system"),
        (b"(]o.", "OBJ"),
        (b"\x82\x01.", "EXT1"),
        (b"\x84\x01\0\0\0.", "EXT4"),
        (b"Pname\n.", "PERSID"),
        (b"NQ.", "outside of the pickle"),
        (b"I1\n.", "INT"),
        (b"\x96\1\0\0\0\0\0\0\0x\x98.", "READONLY_BUFFER"),
        (b"]2.", "DUP"),
        (b"ccollections\nOrderedDict\n}b.", "setting the state of collections.OrderedDict"),
        (b"ccollections\nOrderedDict\n}\x8c\x01aNs.", None),
        (b"]N}\x92.", "NEWOBJ_EX"),
        (b"K\x01)R.", "calling int"),
        (b"cnumpy\nndarray\n)R.", "calling numpy.ndarray"),
        (b"}(]Nu.", "dictionary key of type list"),
        (b"}(ccollections\nOrderedDict\nNu.", "dictionary key of type collections.OrderedDict"),
        (b"\x80\x09N.", "protocol 9"),
        (b"\x93.", None),
        (b"\x8c\x05posix\x8c\x06system\x93.", "posix.system"),
        (b"\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.", "OrderedDict.fromkeys"),
        (b"ctorch.nn.modules.linear\nLinear.__init__\n.", "Linear.__init__"),
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(cargparse\nNamespace\n)C\x01btR.",
            "array of class argparse.Namespace",
        ),
        (b"cnumpy\ndtype\n(X\x02\0\0\0O8\x89\x88tR.", "numpy array of type O8"),
    ],
)
def test_instructions_are_refused_by_name(tmp_path: Path, code: bytes, name: str | None) -> None:
    data = b"\x80\x04" + code
    if name is None:
        (tmp_path / "x.pkl").write_bytes(data)
        with pytest.raises(UnreadableCheckpointError):
            load_any(tmp_path / "x.pkl")
    else:
        assert name in refused(tmp_path / "x.pkl", data)


def test_objects_in_arrays_are_refused(tmp_path: Path) -> None:
    data = pickle.dumps(np.array([Runs(os.system, COMMAND)], dtype=object))
    assert refused(tmp_path / "x.pkl", data) in (
        "numpy array of type O8",
        "a numpy array of type O8",
        "posix.system",
    )
    big = pickle.dumps(np.zeros(2, ">f4"))
    assert refused(tmp_path / "x.pkl", big) == "numbers in big-endian order"
    record = np.zeros(2, dtype=[("a", "f4")])
    assert "numpy array of type V4" in refused(tmp_path / "x.pkl", pickle.dumps(record))


@pytest.mark.parametrize(
    "code",
    [
        b"\x8b\xff\xff\xff\x7f\x01",  # LONG4 of 2 GiB
        b"B\xff\xff\xff\x7fx",  # BINBYTES of 2 GiB
        b"\x8e" + b"\xff" * 7 + b"\x0fx",  # BINBYTES8 of an exabyte
        b"\x8d" + b"\xff" * 7 + b"\x0fx",  # BINUNICODE8
        b"\x96" + b"\xff" * 8 + b"x",  # BYTEARRAY8
        b"\x95" + b"\xff" * 8 + b"N",  # FRAME
        b"Nr\xff\xff\xff\xff",  # LONG_BINPUT at 2**32 - 1
        b"j\0\0\0\0.",  # LONG_BINGET of nothing
        b"(" * 5000,  # open containers
        b"]" * 60_000 + b"a" * 59_999 + b".",  # lists in lists
        b")" + b"\x85" * 60_000 + b".",  # tuples in tuples
        b"}" + b"(" * 3 + b"u" * 3,
        b"N" * 1_100_000 + b".",  # too many values
        b"t" * 9,
        b"a.",
        b"NN.",
        b"(.",
        b"c" + b"x" * 100_000 + b"\n",
    ],
    ids=lambda code: repr(code[:6]),
)
def test_huge_claims_and_nesting_fail_fast_in_little_memory(tmp_path: Path, code: bytes) -> None:
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04" + code)
    tracemalloc.start()
    with pytest.raises((UnreadableCheckpointError, NotAGeneratorError)):
        load_any(tmp_path / "x.pkl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120 * 2**20


def test_deep_keys_never_reach_a_hash(tmp_path: Path) -> None:
    """Hashing a tuple of 200,000 levels overflows C's stack and kills the process."""
    data = b"\x80\x04})" + b"\x85" * 200_000 + b"Ns."
    assert "dictionary key of type tuple" in refused(tmp_path / "x.pkl", data)


def test_copying_the_same_object_over_and_over_is_refused(tmp_path: Path) -> None:
    many = b"\x80\x04](" + b"N" * 50_000 + b"e\x94ctorch\nSize\n\x940"[:-1]
    again = b"".join(b"h\x01h\x00\x85R" for _ in range(50_000))
    data = many + b"\x85(" + again + b"t."
    assert "over and over" in refused(tmp_path / "x.pkl", data)


def cyclic_module(pickler_breadth: int) -> bytes:
    """A module that is its own child, or whose children share children 2**40 times."""
    ordered = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n"

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def module(children: bytes) -> bytes:
        return (
            ordered
            + b"}("
            + text("class_name")
            + text("Generator")
            + text("state")
            + b"}"
            + text("_modules")
            + children
            + b"su\x85R"
        )

    if not pickler_breadth:  # }: memo 0, a dict that comes to hold the module it belongs to
        return b"\x80\x04" + module(b"}q\0") + b"q\x010h\0" + text("again") + b"h\x01s0h\x01."
    data = module(b"}")
    for _ in range(pickler_breadth):
        data = data + b"q\x010" + module(b"}(" + text("a") + b"h\x01" + text("b") + b"h\x01u")
    return b"\x80\x04" + data + b"."


@pytest.mark.parametrize("breadth", [0, 40])
def test_cyclic_and_exploding_modules_end(tmp_path: Path, breadth: int) -> None:
    # POP, which these lean on, is refused; the walk is bounded on its own as well.
    data = cyclic_module(breadth)
    assert refused(tmp_path / "x.pkl", data) == "the instruction POP"
    module = Instance("Generator")
    children: dict = {}
    if breadth:
        leaf = module
        for _ in range(breadth):
            leaf = Instance("Generator", {"_modules": {"a": leaf, "b": leaf}})
        module = leaf
    else:
        module.state = {"_modules": children}
        children["again"] = module
    with pytest.raises(Exception, match="without end"):
        checkpoints._nvidia(tmp_path, module, "x")


def test_cyclic_containers_are_no_generators(tmp_path: Path) -> None:
    loop: list = []
    loop.append(loop)
    table: dict = {"g_ema": {}}
    table["g_ema"]["state_dict"] = table
    for content in (loop, table, {"G_ema": loop}, [table, (loop,)]):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
        wrong(tmp_path / "x.pkl")


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (0, (10**6, 10**6), (0, 0)),  # a terabyte out of one number
        (0, (2**47, 2**47), (1, 1)),
        (-1, (2,), (1,)),
        (3, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2, 2), (1,)),
        (0, (1,) * 20, (1,) * 20),
        (0, (2.0,), (1,)),
        (0, (True, 2), (1, 1)),
    ],
)
def test_tensors_stay_within_their_storage(
    tmp_path: Path, offset: int, shape: tuple, stride: tuple
) -> None:
    storage = torch.storage.TypedStorage(
        wrap_storage=torch.zeros(4).untyped_storage(), dtype=torch.float32, _internal=True
    )
    attack = Runs(torch._utils._rebuild_tensor_v2, storage, offset, shape, stride, False, {})
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"g_ema": {"x": attack}}))
    with pytest.raises(UnreadableCheckpointError, match="tensor"):
        load_any(tmp_path / "x.pkl")


def rezipped(
    source: Path,
    target: Path,
    change: Callable[[str, bytes], bytes | None],
    compression: int = zipfile.ZIP_STORED,
) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            if (data := change(name, old.read(name))) is not None:
                new.writestr(name, data)


def test_zip_files_are_not_trusted(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.pt", tmp_path / "bad.pt"
    torch.save({"g_ema": rosinality()}, good)
    rezipped(good, bad, lambda name, data: data)
    same(load_any(bad)[0], load_any(good)[0])  # the standard library's zip files are fine

    rezipped(good, bad, lambda name, data: data, zipfile.ZIP_DEFLATED)
    assert "compressed" in refused(bad)
    bomb = zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED)
    bomb.writestr("archive/data.pkl", b"\0" * 10**8)
    bomb.close()
    assert "compressed" in refused(bad)

    for change, said in (
        (lambda name, data: data[:-4] if name.endswith("/data/3") else data, "storage 3"),
        (lambda name, data: None if name.endswith("/data/3") else data, "storage 3"),
        (lambda name, data: None if name.endswith("data.pkl") else data, "unpack"),
    ):
        rezipped(good, bad, change)
        with pytest.raises(UnreadableCheckpointError, match=said):
            load_any(bad)
    rezipped(good, bad, lambda name, data: b"big" if name.endswith("byteorder") else data)
    assert "big-endian" in refused(bad)

    with zipfile.ZipFile(good) as archive:
        others = [i for i in archive.infolist() if "/data/" in i.filename]
    raw = bytearray(good.read_bytes())
    for info in others:  # every storage is the largest one: 60 times the size of the file
        at = raw.rfind(info.filename.encode()) - 46
        big = max(others, key=lambda i: i.file_size)
        raw[at + 20 : at + 28] = struct.pack("<II", big.file_size, big.file_size)
        raw[at + 42 : at + 46] = struct.pack("<I", big.header_offset)
    bad.write_bytes(raw)
    assert refused(bad) == "zip entries that overlap"

    raw = bytearray(good.read_bytes())
    end = raw.rfind(b"PK\5\6")
    for field, value in ((12, 2**31), (16, 2**31), (12, 7), (16, 7)):
        damaged = bytearray(raw)
        damaged[end - 20 : end - 16] = b"none"  # no zip64 record
        damaged[end + field : end + field + 4] = struct.pack("<I", value)
        bad.write_bytes(damaged)
        with pytest.raises(UnreadableCheckpointError):
            load_any(bad)
    flipped = bytearray(raw)
    with zipfile.ZipFile(good) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("/data/5"))
    flipped[info.header_offset + 30 + 200] ^= 1
    bad.write_bytes(flipped)
    with pytest.raises(UnreadableCheckpointError):
        load_any(bad)


def test_torchscript_is_named(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    assert refused(tmp_path / "script.pt") == "TorchScript code"


# -- truncation and fuzzing ---------------------------------------------------------------------

FILES = tiny_files()


@pytest.mark.parametrize("kind", FILES)
def test_cut_files_are_errors_at_every_length(tmp_path: Path, kind: str) -> None:
    whole, path = FILES[kind], tmp_path / "cut"
    path.write_bytes(whole)
    load_any(path)
    rng = np.random.default_rng(0)
    lengths = {*rng.integers(0, len(whole), 60).tolist(), *range(24), len(whole) - 1}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        with pytest.raises(ReenactError):
            load_any(path)


@pytest.mark.parametrize("kind", FILES)
@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_files_load_or_are_errors(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    damaged = bytearray(FILES[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    (tmp_path / "x").write_bytes(damaged)
    with suppress(ReenactError):
        load_any(tmp_path / "x")


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_random_instructions_load_or_are_errors(tmp_path: Path, data: st.DataObject) -> None:
    """Programs of whole instructions get further than random bytes do."""
    pieces = st.sampled_from([
        b"N", b"]", b"}", b")", b"(", b"t", b"e", b"u", b"s", b"a", b"\x85", b"\x86", b"R", b"b",
        b"\x81", b"\x94", b"h\0", b"h\1", b"\x93", b"\x90", b"\x8f", b"K\5", b"\x88", b"Q",
        b"\x8c\1a", b"\x8c\6latin1", b"C\2ab", b"X\2\0\0\0f4", b"ccollections\nOrderedDict\n",
        b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\nndarray\n",
        b"cnumpy.core.multiarray\nscalar\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch.storage\n_load_from_bytes\n", b"ctorch\nSize\n", b"c_codecs\nencode\n",
        b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n", b"cargparse\nNamespace\n",
        b"cdnnlib.tflib.network\nNetwork\n", b"cbuiltins\nset\n", b"ctorch\nFloatStorage\n",
    ])  # fmt: skip
    code = b"".join(data.draw(st.lists(pieces, max_size=40)))
    (tmp_path / "x").write_bytes(b"\x80\x04" + code + b".")
    with suppress(ReenactError):
        load_any(tmp_path / "x")


# -- command line -------------------------------------------------------------------------------


def test_models_commands(tmp_path: Path, pickled: bytes, generator: Generator) -> None:
    def run(*args: object) -> str:
        result = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    source, ours, theirs = (tmp_path / n for n in ("ffhq.pkl", "ffhq.safetensors", "ffhq.pt"))
    source.write_bytes(pickled)
    said = run("inspect", source)
    for word in ("NVIDIA pickle", "64 px", "3 layers", "16 numbers", "float32", "not that of"):
        assert word in said
    run("import", source, "--output", ours)
    loaded, header = load_generator(ours)
    same(loaded, generator)
    assert header["source"] == "ffhq.pkl"
    assert header["source_sha256"] == hashlib.sha256(pickled).hexdigest()
    run("export", ours, theirs)
    same(load_any(theirs)[0], generator)
    run("sample", theirs, "--count", 3, "--truncation", 1, "--output", tmp_path / "a.png")
    run("sample", ours, "--count", 3, "--truncation", 1, "--output", tmp_path / "b.png")
    sheet = cv2.imread(str(tmp_path / "a.png"))[..., ::-1]
    np.testing.assert_array_equal(sheet, cv2.imread(str(tmp_path / "b.png"))[..., ::-1])
    z = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    picture = (generator(z)[1].clamp(-1, 1) * 127.5 + 127.5).detach().permute(1, 2, 0).numpy()
    assert np.abs(sheet[:64, 64:128] - picture).max() <= 1
    with pytest.raises(NotAGeneratorError):
        run("import", tmp_path / "a.png", "--output", tmp_path / "no.safetensors")
    assert not (tmp_path / "no.safetensors").exists()
