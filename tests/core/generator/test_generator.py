"""The generator against StyleGAN2 restated from its definition: slow, obvious, in float64."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from core.generator import Architecture, Generator, config_f, half_precision
from core.generator.storage import expected_shapes

SMALL = Architecture(64, {4: 24, 8: 20, 16: 16, 32: 12, 64: 8}, z_dim=32, w_dim=40)


@pytest.fixture(scope="module")
def generator() -> Generator:
    """A small generator in which every parameter matters."""
    torch.manual_seed(3)
    g = Generator(SMALL)
    with torch.no_grad():
        for name, parameter in g.named_parameters():
            if name.endswith(("bias", "noise_strength")):
                parameter += 0.3 * torch.randn_like(parameter)
    return g.eval()


# -- the definition ----------------------------------------------------------------------------


def lrelu(x: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, x, 0.2 * x) * math.sqrt(2)


def dense(p: dict[str, np.ndarray], x: np.ndarray, rate: float = 1.0) -> np.ndarray:
    weight = p["weight"] * rate / math.sqrt(p["weight"].shape[1])
    return weight @ x + p["bias"] * rate


def convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlation of [I, H, W] with [O, I, k, k], "valid"."""
    k = kernel.shape[2]
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))
    return np.einsum("ihwyx,oiyx->ohw", windows, kernel)


def upfir(x: np.ndarray, kernel: np.ndarray, pad: tuple[int, int]) -> np.ndarray:
    """Zero-insertion, padding, then true convolution of each channel with a 2-D kernel."""
    c, h, w = x.shape
    wide = np.zeros((c, 2 * h, 2 * w))
    wide[:, ::2, ::2] = x
    wide = np.pad(wide, ((0, 0), pad, pad))
    return np.stack([convolve(m[None], kernel[None, None, ::-1, ::-1])[0] for m in wide])


FIR = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64 * 4


def modulated(p: dict, x: np.ndarray, w: np.ndarray, demodulate: bool, up: bool) -> np.ndarray:
    style = dense(p["affine"], w)
    weight = p["weight"] / math.sqrt(p["weight"][0].size) * style[None, :, None, None]
    if demodulate:
        weight = weight / np.sqrt((weight**2).sum((1, 2, 3), keepdims=True) + 1e-8)
    if not up:
        k = weight.shape[2] // 2
        return convolve(np.pad(x, ((0, 0), (k, k), (k, k))), weight)
    # transposed convolution: spread each pixel by the kernel, stride 2
    o, k = weight.shape[0], weight.shape[2]
    out = np.zeros((o, 2 * x.shape[1] + 1, 2 * x.shape[2] + 1))
    for r in range(x.shape[1]):
        for s in range(x.shape[2]):
            out[:, 2 * r : 2 * r + k, 2 * s : 2 * s + k] += np.einsum(
                "oiyx,i->oyx", weight, x[:, r, s]
            )
    out = np.pad(out, ((0, 0), (1, 1), (1, 1)))
    return np.stack([convolve(m[None], FIR[None, None])[0] for m in out])


def tree(state: dict[str, torch.Tensor]) -> dict:
    nested: dict = {}
    for name, value in state.items():
        *path, last = name.split(".")
        at = nested
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value.double().numpy()
    return nested


def reference_mapping(p: dict, z: np.ndarray, a: Architecture) -> np.ndarray:
    x = z / math.sqrt((z**2).mean() + 1e-8)
    for i in range(a.mapping_layers):
        x = lrelu(dense(p["mapping"][f"fc{i}"], x, a.mapping_rate))
    return x


def reference_synthesis(p: dict, ws: np.ndarray, a: Architecture) -> dict[int, np.ndarray]:
    """Skip pictures of every resolution."""
    pictures: dict[int, np.ndarray] = {}
    x, image, row = None, None, 0
    for resolution in a.resolutions:
        block = p["synthesis"][f"b{resolution}"]
        for name in ("conv0", "conv1"):
            if name == "conv0" and x is None:
                x = block["const"]
                continue
            layer = block[name]
            x = modulated(layer, x, ws[row], True, name == "conv0")
            x = x + layer["noise_const"] * layer["noise_strength"]
            x = lrelu(x + layer["bias"][:, None, None])
            row += 1
        rgb = modulated(block["torgb"], x, ws[row], False, False)
        rgb = rgb + block["torgb"]["bias"][:, None, None]
        image = rgb if image is None else upfir(image, FIR, (2, 1)) + rgb
        pictures[resolution] = image
    return pictures


# -- tests -------------------------------------------------------------------------------------


def relative(got: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.abs(got.detach().double().numpy() - expected).max() / np.abs(expected).max())


def test_mapping_is_the_definition(generator: Generator) -> None:
    z = torch.randn(3, SMALL.z_dim)
    w = generator.mapping(z)
    p = tree(generator.state_dict())
    for got, latent in zip(w, z, strict=True):
        assert relative(got, reference_mapping(p, latent.double().numpy(), SMALL)) < 1e-5


def test_synthesis_is_the_definition(generator: Generator) -> None:
    """Float32 against float64, w+ with every row different, at every resolution, in a batch."""
    ws = torch.randn(2, SMALL.num_ws, SMALL.w_dim)
    p = tree(generator.state_dict())
    for i in range(2):
        expected = reference_synthesis(p, ws[i].double().numpy(), SMALL)
        for resolution, picture in expected.items():
            got = generator.synthesis(ws, stop_at=resolution)[i]
            assert relative(got, picture) < 1e-5


def test_w_is_w_plus_with_equal_rows(generator: Generator) -> None:
    w = torch.randn(2, SMALL.w_dim)
    rows = w[:, None].expand(-1, SMALL.num_ws, -1)
    assert torch.equal(generator.synthesis(w), generator.synthesis(rows))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 0.02), (torch.bfloat16, 0.12)])
def test_half_precision_is_close(generator: Generator, dtype: torch.dtype, error: float) -> None:
    ws = torch.randn(2, SMALL.w_dim)
    full = generator.synthesis(ws)
    half = generator.synthesis(ws, half=dtype, half_from=4)
    assert half.dtype == torch.float32
    assert (half - full).abs().max() / full.abs().max() < error


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="what a processor can do: of Linux")
def test_half_precision_where_the_processor_has_it() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    able = not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)
    assert half_precision("cpu") == (torch.bfloat16 if able else None)


def test_half_precision_survives_weights_that_would_overflow(generator: Generator) -> None:
    """Styles and weights of any size cancel in the demodulation; float16 ends at 65504."""
    huge = Generator(SMALL)
    huge.load_state_dict(generator.state_dict())
    with torch.no_grad():
        for name, parameter in huge.synthesis.named_parameters():
            if name.endswith(("conv0.weight", "conv1.weight")):
                parameter *= 3e4
    ws = torch.randn(2, SMALL.w_dim)
    picture = huge.synthesis(ws, half=torch.float16, half_from=4)
    expected = generator.synthesis(ws)
    assert (picture - expected).abs().max() / expected.abs().max() < 0.02


def test_gradient_to_w_equals_finite_differences(generator: Generator) -> None:
    g = Generator(SMALL).double()
    g.load_state_dict(generator.state_dict())
    g.requires_grad_(False)
    ws = torch.randn(1, SMALL.num_ws, SMALL.w_dim, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    (g.synthesis(ws) * weights).sum().backward()
    for seed in range(4):
        direction = torch.randn(ws.shape, generator=torch.Generator().manual_seed(seed)).double()
        with torch.no_grad():
            ahead, behind = (
                (g.synthesis(ws + s * direction) * weights).sum() for s in (1e-8, -1e-8)
            )
        numeric = float(ahead - behind) / 2e-8  # small: piecewise linear layers
        assert float((ws.grad * direction).sum()) == pytest.approx(numeric, rel=1e-5)


def test_saving_memory_changes_nothing(generator: Generator) -> None:
    grads = []
    for save in (False, True):
        ws = torch.randn(2, SMALL.w_dim, generator=torch.Generator().manual_seed(1))
        ws.requires_grad_()
        generator.synthesis(ws, save_memory=save).square().sum().backward()
        grads.append(ws.grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_noise(generator: Generator) -> None:
    w = torch.randn(1, SMALL.w_dim)
    const = generator.synthesis(w)
    assert torch.equal(const, generator.synthesis(w))
    assert not torch.equal(generator.synthesis(w, noise="random"), const)
    silent = Generator(SMALL)
    silent.load_state_dict(generator.state_dict())
    with torch.no_grad():
        for name, parameter in silent.named_parameters():
            if name.endswith("noise_strength"):
                parameter.zero_()
    torch.testing.assert_close(silent.synthesis(w), generator.synthesis(w, noise="none"))


def test_truncation_pulls_towards_the_mean(generator: Generator) -> None:
    z = torch.randn(2, SMALL.z_dim)
    generator.mapping.w_avg.normal_()
    w, mean = generator.mapping(z), generator.mapping.w_avg
    torch.testing.assert_close(generator.mapping(z, 0.7), mean + 0.7 * (w - mean))
    torch.testing.assert_close(generator.mapping(z, 0.0), mean.expand(2, -1))


def test_clamp_bounds_every_layer() -> None:
    a = Architecture(16, {4: 8, 8: 8, 16: 8}, z_dim=8, w_dim=8, conv_clamp=0.5)
    g = Generator(a)
    seen: list[float] = []
    for name, module in g.synthesis.named_modules():
        if name.endswith(("conv0", "conv1", "torgb")):
            module.register_forward_hook(lambda _m, _i, out: seen.append(out.abs().max().item()))
    g(torch.randn(4, 8) * 5)
    assert len(seen) == 8
    assert max(seen) == 0.5


def test_compiles_without_graph_breaks() -> None:
    """With one block of each kind: the first, and one that up-samples."""
    generator = Generator(Architecture(8, {4: 24, 8: 20}, z_dim=32, w_dim=40)).eval()
    ws = torch.randn(1, SMALL.w_dim)
    compiled = torch.compile(generator.synthesis, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ws), generator.synthesis(ws))


def test_config_f_is_the_published_one() -> None:
    """28.27 M synthesis parameters and 143 GMAC at 1024 (MobileStyleGAN's count).

    That count takes up-sampling convolutions at their output resolution; a transposed one skips
    the inserted zeros and does a quarter of it.
    """
    with torch.device("meta"):
        g = Generator(config_f(1024))
        with FlopCounterMode(display=False) as counter:
            g.synthesis(torch.empty(1, 512))
    parameters = sum(p.numel() for p in g.synthesis.parameters())
    assert round(parameters / 1e6, 2) == 28.27
    published = skipped = 0.0
    for resolution in g.architecture.resolutions:
        block = g.synthesis.get_submodule(f"b{resolution}")
        for name, layer in block.named_children():
            work = layer.weight.numel() * resolution**2
            if name == "conv0":
                skipped += work * 3 / 4
                work += 16 * layer.weight.shape[0] * resolution**2  # low-pass
            published += work
    assert published / 1e9 == pytest.approx(143.15, rel=0.01)
    assert counter.get_total_flops() / 2 == pytest.approx(published - skipped, rel=0.01)
    assert g.architecture.num_ws == 18


def test_wrong_shapes_are_named(generator: Generator) -> None:
    with pytest.raises(ValueError, match=r"\[B, 10, 40\]"):
        generator.synthesis(torch.randn(1, 18, 40))
    with pytest.raises(ValueError, match="stop_at"):
        generator.synthesis(torch.randn(1, 40), stop_at=48)
    with pytest.raises(ValueError, match="power of two"):
        Architecture(100, {4: 8})
    with pytest.raises(ValueError, match="Channels"):
        Architecture(16, {4: 8, 8: 8})


@pytest.mark.parametrize("resolution", [8, 64, 256])
def test_the_shapes_of_a_generator_are_known_without_it(resolution: int) -> None:
    sizes = [2**i for i in range(2, resolution.bit_length())]
    a = Architecture(resolution, {r: 3 + i for i, r in enumerate(sizes)}, 5, 7, 2)
    state = Generator(a).state_dict()
    assert expected_shapes(a) == {name: tuple(value.shape) for name, value in state.items()}
