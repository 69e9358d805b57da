"""StyleGAN2 (Karras et al. 2020): mapping and synthesis networks, the skip architecture.

Classes and parameters have the names of NVIDIA's PyTorch code, so its checkpoints load by name. The
same function is computed in another way: the style scales the activations that enter a convolution
and the demodulation those that leave it, so that the batch shares one weight (the paper's section
2.2 scales the weights, which needs a grouped convolution per sample).
"""

import math
from collections.abc import Mapping as Table
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Noise = Literal["const", "random", "none"]

# Bounds of what a file may ask for; every published generator is far inside.
MAX_RESOLUTION = 1024  # px
MAX_CHANNELS = 2048  # of features, and numbers in z and w
MAX_MAPPING_LAYERS = 64
MIN_RATE = 1e-6  # of the mapping network; at most 1
MIN_CLAMP, MAX_CLAMP = 1e-3, 1e6

_GAIN = math.sqrt(2)  # of every leaky ReLU
_SLOPE = 0.2  # of every leaky ReLU
_EPSILON = 1e-8
_FIR = (1 / 8, 3 / 8, 3 / 8, 1 / 8)  # low-pass filter of every up-sampling


@dataclass(frozen=True)
class Architecture:
    """The shape of a generator."""

    resolution: int  # px, a power of two, at least 8
    channels: Table[int, int]  # feature maps by resolution, from 4 up
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 8
    mapping_rate: float = 0.01  # learning-rate multiplier of the mapping network
    conv_clamp: float | None = None  # bound of activations, which float16 needs; None: no bound

    def __post_init__(self) -> None:
        size = self.resolution
        if type(size) is not int:
            raise ValueError(f"The resolution must be a number, not {size!s:.40}.")
        if size < 8 or size & (size - 1):
            raise ValueError(f"The resolution must be a power of two, at least 8, not {size}.")
        if size > MAX_RESOLUTION:
            raise ValueError(f"The resolution must be at most {MAX_RESOLUTION}, not {size}.")
        if sorted(self.channels) != self.resolutions:
            raise ValueError(f"Channels must be given for {self.resolutions}.")
        for name, width in (
            ("z", self.z_dim),
            ("w", self.w_dim),
            *((f"{r} px", c) for r, c in self.channels.items()),
        ):
            if type(width) is not int or not 1 <= width <= MAX_CHANNELS:
                raise ValueError(
                    f"{name} must have 1 to {MAX_CHANNELS} numbers, not {width!s:.40}."
                )
        depth = self.mapping_layers
        if type(depth) is not int or not 0 <= depth <= MAX_MAPPING_LAYERS:
            raise ValueError(
                f"There must be 0 to {MAX_MAPPING_LAYERS} mapping layers, not {depth}."
            )
        rate, clamp = self.mapping_rate, self.conv_clamp
        if not _is_number(rate) or not MIN_RATE <= rate <= 1:
            raise ValueError(f"The mapping rate must be a number up to 1, not {rate!s:.40}.")
        if clamp is not None and not (_is_number(clamp) and MIN_CLAMP <= clamp <= MAX_CLAMP):
            raise ValueError(f"The clamp must be a number above 0 or none, not {clamp!s:.40}.")

    @property
    def resolutions(self) -> list[int]:
        """Returns 4, 8, ... up to the generator's resolution."""
        return [2**i for i in range(2, int(math.log2(self.resolution)) + 1)]

    @property
    def num_ws(self) -> int:
        """Layers of w+: one per convolution, and one for the last ToRGB."""
        return 2 * len(self.resolutions)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def half_precision(device: torch.device | str) -> torch.dtype | None:
    """Returns bfloat16 if a device is faster in it than in single precision, else None.

    Other devices emulate it, many times slower: CPUs without AVX-512 BF16 or AMX, GPUs before
    Ampere.
    """
    if torch.device(device).type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        able = torch.cpu.get_capabilities()
        fast = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return torch.bfloat16 if fast else None


def autocast(device: torch.device) -> torch.autocast:
    """Makes a context in which networks run in half precision, where the device is fast in it."""
    half = half_precision(device)
    return torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None)


def config_f(resolution: int) -> Architecture:
    """Returns NVIDIA's configuration F, that of the published FFHQ generator at 1024 px."""
    sizes = [2**i for i in range(2, int(math.log2(resolution)) + 1)]
    return Architecture(resolution, {r: min(32768 // r, 512) for r in sizes})


class FullyConnectedLayer(nn.Module):
    """Fully connected layer with run-time weight scaling ("equalized learning rate").

    Args:
        inputs: features in.
        outputs: features out.
        bias: initial bias.
        rate: learning-rate multiplier.
        activate: whether a leaky ReLU follows.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: float = 0.0,
        rate: float = 1.0,
        activate: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.weight_gain = rate / math.sqrt(inputs)
        self.bias_gain = rate
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)
        return F.leaky_relu(x, _SLOPE) * _GAIN if self.activate else x


class MappingNetwork(nn.Module):
    """Maps z to w, by fully connected layers `fc0`, `fc1`, ...

    Args:
        architecture: the generator's.
    """

    w_avg: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.layers = architecture.mapping_layers
        sizes = [architecture.z_dim] + [architecture.w_dim] * self.layers
        for i in range(self.layers):
            layer = FullyConnectedLayer(
                sizes[i], sizes[i + 1], rate=architecture.mapping_rate, activate=True
            )
            self.add_module(f"fc{i}", layer)
        self.register_buffer("w_avg", torch.zeros(architecture.w_dim))

    def forward(self, z: Tensor, truncation: float = 1.0) -> Tensor:
        """Maps latents.

        Args:
            z: `[B, z_dim]`, standard normal.
            truncation: psi; 1 leaves w as it is, 0 gives the mean of W.

        Returns:
            w `[B, w_dim]`.
        """
        x = z * torch.rsqrt(z.square().mean(1, keepdim=True) + _EPSILON)
        for i in range(self.layers):
            x = self.get_submodule(f"fc{i}")(x)
        return x if truncation == 1 else torch.lerp(self.w_avg, x, truncation)


class ModulatedConv(nn.Module):
    """A convolution whose input channels are scaled by a style (section 2.2).

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: 1 or 3.
        w_dim: features of w.
        demodulate: divides by the expected standard deviation of the output.
        upsample: doubles the resolution.
    """

    fir: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        w_dim: int,
        *,
        demodulate: bool,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.affine = FullyConnectedLayer(w_dim, inputs, bias=1.0)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.demodulate = demodulate
        self.upsample = upsample
        fir = 2 * torch.tensor(_FIR)
        self.register_buffer("fir", fir[:, None] * fir[None], persistent=False)

    def convolve(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor | None]:
        """Convolves features `[B, I, H, W]` by the style of w `[B, w_dim]`.

        Returns:
            The result before demodulation, `[B, O, H, W]` or twice as large, and the factor of
            demodulation, `[B, O, 1, 1]`; None without.
        """
        style: Tensor = self.affine(w)
        weight: Tensor = self.weight
        fan_in = weight[0].numel()
        demodulation = None
        if not self.demodulate:
            style = style / math.sqrt(fan_in)
        else:
            # Weights are used at their stored scale: the demodulation cancels it.
            epsilon: Tensor | float = _EPSILON * fan_in
            if x.dtype in (torch.float16, torch.bfloat16):
                # It cancels any other scale, too; at the stored one half precision would overflow.
                largest = weight.detach().abs().amax((1, 2, 3), keepdim=True) * math.sqrt(fan_in)
                peak = style.detach().abs().amax(1, keepdim=True)
                weight, style = weight / largest, style / peak
                epsilon = epsilon / largest.flatten().square() / peak.square()
            size = style.square() @ weight.square().sum((2, 3)).T
            demodulation = torch.rsqrt(size + epsilon)[:, :, None, None].to(x.dtype)
        x = x * style[:, :, None, None].to(x.dtype)
        kernel = weight.to(x.dtype)
        if self.upsample:
            x = F.conv_transpose2d(x, kernel.transpose(0, 1), stride=2)
            fir = self.fir.to(x.dtype).expand(x.shape[1], 1, 4, 4)
            x = F.conv2d(x, fir, padding=1, groups=x.shape[1])
        else:
            x = F.conv2d(x, kernel, padding=kernel.shape[2] // 2)
        return x, demodulation


class SynthesisLayer(ModulatedConv):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU.

    Args:
        inputs: channels in.
        outputs: channels out.
        resolution: of the output, px.
        w_dim: features of w.
        clamp: see `Architecture.conv_clamp`.
        upsample: doubles the resolution.
    """

    noise_const: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        resolution: int,
        w_dim: int,
        clamp: float | None,
        upsample: bool = False,
    ) -> None:
        super().__init__(inputs, outputs, 3, w_dim, demodulate=True, upsample=upsample)
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.clamp = clamp

    def forward(self, x: Tensor, w: Tensor, noise: Noise = "const") -> Tensor:
        x, demodulation = self.convolve(x, w)
        assert demodulation is not None
        # The activation's gain is applied before it (it is homogeneous): fewer passes over x.
        bias = (self.bias * _GAIN)[None, :, None, None].to(x.dtype)
        x = torch.addcmul(bias, x, demodulation * _GAIN)
        if noise != "none":
            field = self.noise_const
            if noise == "random":
                field = torch.randn(x.shape[0], 1, *x.shape[2:], device=x.device)
            x = x + (field * (self.noise_strength * _GAIN)).to(x.dtype)
        x = F.leaky_relu(x, _SLOPE)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class ToRGB(ModulatedConv):
    """Converts features to a picture: a modulated 1x1 convolution without demodulation."""

    def __init__(self, inputs: int, w_dim: int, clamp: float | None) -> None:
        super().__init__(inputs, 3, 1, w_dim, demodulate=False)
        self.clamp = clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        x, _ = self.convolve(x, w)
        x = x + self.bias[None, :, None, None].to(x.dtype)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class SynthesisBlock(nn.Module):
    """One resolution: an up-sampling layer (above 4 px), a layer, and its share of the picture.

    Args:
        inputs: channels of the block below; 0 for the first block.
        resolution: px.
        a: the generator's architecture.
    """

    fir: Tensor

    def __init__(self, inputs: int, resolution: int, a: Architecture) -> None:
        super().__init__()
        outputs = a.channels[resolution]
        if inputs:
            self.conv0 = SynthesisLayer(
                inputs, outputs, resolution, a.w_dim, a.conv_clamp, upsample=True
            )
        else:
            self.const = nn.Parameter(torch.randn(outputs, resolution, resolution))
        self.conv1 = SynthesisLayer(outputs, outputs, resolution, a.w_dim, a.conv_clamp)
        self.torgb = ToRGB(outputs, a.w_dim, a.conv_clamp)
        fir = 2 * torch.tensor(_FIR)
        self.register_buffer(
            "fir", (fir[:, None] * fir[None]).expand(3, 1, 4, 4).clone(), persistent=False
        )
        self.first = not inputs

    def forward(
        self, x: Tensor | None, image: Tensor | None, ws: Tensor, dtype: torch.dtype, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Computes features and picture of this block from those of the block below.

        Args:
            x: features `[B, I, R/2, R/2]`; None for the first block.
            image: `[B, 3, R/2, R/2]`; None for the first block.
            ws: w+ from this block's first layer on, `[B, L, w_dim]`.
            dtype: of the features.
            noise: see `SynthesisNetwork.forward`.

        Returns:
            Features `[B, O, R, R]` and picture `[B, 3, R, R]`.
        """
        layer = 0
        if x is None or image is None:
            x = self.const.to(dtype).expand(ws.shape[0], -1, -1, -1)
            x = x.contiguous(memory_format=torch.channels_last)
        else:
            x = self.conv0(x.to(dtype), ws[:, 0], noise)
            image = F.conv_transpose2d(
                image, self.fir.to(image.dtype), stride=2, padding=1, groups=3
            )
            layer = 1
        x = self.conv1(x, ws[:, layer], noise)
        rgb = self.torgb(x, ws[:, layer + 1]).to(ws.dtype)
        return x, rgb if image is None else image + rgb


class SynthesisNetwork(nn.Module):
    """Renders w or w+ as a picture, by blocks `b4`, `b8`, ...

    Args:
        architecture: the generator's.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        inputs = 0
        for resolution in architecture.resolutions:
            self.add_module(f"b{resolution}", SynthesisBlock(inputs, resolution, architecture))
            inputs = architecture.channels[resolution]

    def forward(
        self,
        ws: Tensor,
        *,
        stop_at: int | None = None,
        noise: Noise = "const",
        half: torch.dtype | None = None,
        half_from: int = 32,
        save_memory: bool = False,
    ) -> Tensor:
        """Renders latents.

        Args:
            ws: `[B, w_dim]` or `[B, num_ws, w_dim]`.
            stop_at: a lower resolution at which to stop; its skip picture is returned.
            noise: the checkpoint's constant noise, fresh random noise, or none.
            half: float16 or bfloat16 for the blocks from `half_from` up.
            half_from: resolution of the first block in half precision.
            save_memory: recomputes activations in the backward pass instead of keeping them.

        Returns:
            `[B, 3, R, R]` in the dtype of `ws`, sRGB, nominally in [-1, 1].

        Raises:
            ValueError: `stop_at` is no resolution of this generator, or w+ has other layers.
        """
        return self.features(
            ws,
            stop_at=stop_at,
            noise=noise,
            half=half,
            half_from=half_from,
            save_memory=save_memory,
        )[1]

    def features(
        self,
        ws: Tensor,
        *,
        stop_at: int | None = None,
        noise: Noise = "const",
        half: torch.dtype | None = None,
        half_from: int = 32,
        save_memory: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Renders latents as `forward` does.

        Returns:
            The features of the last block `[B, C, R, R]`, and the picture.
        """
        a = self.architecture
        if ws.ndim == 2:
            ws = ws[:, None].expand(-1, a.num_ws, -1)
        if ws.shape[1:] != (a.num_ws, a.w_dim):
            raise ValueError(f"w+ must be [B, {a.num_ws}, {a.w_dim}], not {[*ws.shape]}.")
        stop_at = stop_at or a.resolution
        if stop_at not in a.channels:
            raise ValueError(f"stop_at must be one of {a.resolutions}, not {stop_at}.")
        x = image = None
        row = 0
        for resolution in a.resolutions[: a.resolutions.index(stop_at) + 1]:
            dtype = half if half is not None and resolution >= half_from else ws.dtype
            block = partial(self.get_submodule(f"b{resolution}"), dtype=dtype, noise=noise)
            if save_memory:
                x, image = checkpoint(block, x, image, ws[:, row:], use_reentrant=False)
            else:
                x, image = block(x, image, ws[:, row:])
            row += 1 if resolution == 4 else 2
        assert x is not None
        assert image is not None
        return x, image


class Generator(nn.Module):
    """The mapping and the synthesis network.

    Args:
        architecture: its shape.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.mapping = MappingNetwork(architecture)
        self.synthesis = SynthesisNetwork(architecture)
        self.synthesis.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, z: Tensor, truncation: float = 1.0) -> Tensor:
        """Renders latents z `[B, z_dim]` as pictures `[B, 3, R, R]`, sRGB in [-1, 1].

        See `SynthesisNetwork.forward` for more control.
        """
        return self.synthesis(self.mapping(z, truncation))
