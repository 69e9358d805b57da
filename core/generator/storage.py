"""Generators as safetensors files: tensors plus a JSON header, no code.

The header's entries: `format` ("reenact.generator"), `version`, `architecture` (the fields of
`Architecture` as JSON) and any further strings that the writer adds.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from core.base import container
from core.base.digest import digest
from core.base.errors import ReenactError, reading
from core.base.files import atomic_write
from core.base.text import printable
from core.generator.network import Architecture, Generator

FORMAT = "reenact.generator"
VERSION = 1
MAX_WEIGHTS = 1 << 28  # numbers in a generator; the largest published ones have an eighth
MAX_WEIGHT = 1e8  # magnitude; trained ones stay below 1e4, and far larger ones draw nothing


# A tensor is stored in half precision if that changes it by less than this share of its norm
# (rounding takes 2e-4): pictures reconstructed at 35 dB then lose less than .01 dB.
_ROUNDING = 1e-3


class NotAGeneratorError(ReenactError):
    """The file is not a generator that can be loaded here."""


def save_generator(
    path: str | Path,
    generator: Generator,
    header: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes a generator, atomically.

    Args:
        path: `.safetensors` file.
        generator: to write.
        header: further entries for the header.
        dtype: of the stored tensors; float16 halves the file.

    Raises:
        NotAGeneratorError: it has weights that are no numbers; nothing is written.
    """
    entries = {
        **(header or {}),
        "format": FORMAT,
        "version": str(VERSION),
        "architecture": describe(generator.architecture),
    }
    tensors = {
        k: v.detach().to("cpu", dtype).contiguous() for k, v in generator.state_dict().items()
    }
    check_for_writing(path, tensors)
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(tensors, entries))  # save_file's files are private


def load_generator(path: str | Path) -> tuple[Generator, dict[str, str]]:
    """Reads a generator that `save_generator` wrote.

    Args:
        path: the file.

    Returns:
        The generator in float32 on the CPU, in evaluation mode, and the file's header.

    Raises:
        NotAGeneratorError: no such file, another kind of file, a damaged or a newer one.
    """
    with reading(path, NotAGeneratorError):
        header, architecture = read_generator_header(path)
        try:
            with safe_open(path, "pt") as file:
                tensors = {k: file.get_tensor(k).float() for k in expected_shapes(architecture)}
            generator = _filled(architecture, tensors)
        except (OSError, SafetensorError, ValueError) as error:
            raise NotAGeneratorError(
                f"{path} is damaged: its header and tensors do not fit ({printable(str(error))}). "
                "Copy or import it again."
            ) from error
    return generator, header


def read_generator_header(path: str | Path) -> tuple[dict[str, str], Architecture]:
    """Reads what the file of a generator says about it, and checks that its tensors fit.

    Raises:
        NotAGeneratorError: as `load_generator`; of another tool's file, how to convert it.
    """
    try:
        header, entries = container.read_header(path)
    except OSError as error:
        raise NotAGeneratorError(f"{path} can't be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise NotAGeneratorError(_other(path, f"can't be read as a generator: {error}")) from error
    if header.get("format") != FORMAT:
        raise NotAGeneratorError(_other(path, "is not one of Reenact's generators"))
    architecture = read_architecture(path, header)
    try:
        if expected_shapes(architecture) != {k: e.shape for k, e in entries.items()}:
            raise ValueError("the tensors are not those of the architecture")
    except ValueError as error:
        raise NotAGeneratorError(
            f"{path} is damaged: its header and tensors do not fit ({error}). Copy or import it "
            "again."
        ) from error
    return header, architecture


def read_architecture(path: str | Path, header: Mapping[str, str]) -> Architecture:
    """Reads the shape of a generator off the header of its file.

    Raises:
        NotAGeneratorError: the file is damaged, or of a newer version.
    """
    try:
        if int(header["version"]) > VERSION:
            raise NotAGeneratorError(
                f"{path} was written by a newer Reenact. Update this one to load it."
            )
        return _parse(header["architecture"])
    except (KeyError, ValueError) as error:
        raise NotAGeneratorError(
            f"{path} is a Reenact generator with a damaged header ({printable(str(error))[:200]}). "
            "Import it again."
        ) from error


def _other(path: str | Path, reason: str) -> str:
    """Returns the sentence on a file that is no generator of Reenact's."""
    with open(path, "rb") as file:
        head = file.read(9)
    if head.startswith((b"\x80", b"PK")) or head[8:] == b"{":
        return (
            f"{path} is not one of Reenact's generators, but may be another tool's. Convert it "
            f"first (reenact models import {path}), and name the .safetensors that this writes."
        )
    return f"{path} {printable(reason)}. Choose a file that `reenact models import` wrote."


def generator_digest(generator: Generator) -> str:
    """Digest of a generator's tensors, by which characters, styles and directions name it."""
    return digest(*generator.state_dict().values())


def describe(architecture: Architecture) -> str:
    """Returns the architecture as JSON, for a header."""
    return json.dumps(asdict(architecture))


def expected_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a generator's tensors by name, without making it.

    Raises:
        ValueError: it would be larger than any generator is.
    """
    a = architecture
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, inputs: int, outputs: int, *kernel: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs, *kernel), (outputs,)

    for i in range(a.mapping_layers):
        layer(f"mapping.fc{i}", a.w_dim if i else a.z_dim, a.w_dim)
    shapes["mapping.w_avg"] = (a.w_dim,)
    below = 0
    for r in a.resolutions:
        block, channels = f"synthesis.b{r}", a.channels[r]
        for name, inputs in (("conv0", below), ("conv1", channels), ("torgb", channels)):
            if not inputs:  # the first block starts from a constant
                shapes[f"{block}.const"] = (channels, r, r)
                continue
            kernel, outputs = (1, 3) if name == "torgb" else (3, channels)
            layer(f"{block}.{name}", inputs, outputs, kernel, kernel)
            layer(f"{block}.{name}.affine", a.w_dim, inputs)
            if name != "torgb":
                shapes[f"{block}.{name}.noise_strength"] = ()
                shapes[f"{block}.{name}.noise_const"] = (r, r)
        below = channels
    if sum(map(math.prod, shapes.values())) > MAX_WEIGHTS:
        raise ValueError(f"it has more than {MAX_WEIGHTS >> 20} million weights")
    return shapes


def weight_problem(name: str, tensor: Tensor) -> str | None:
    """Returns what is wrong with the numbers of a tensor, as a sentence's end; None if nothing."""
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        return f"{name} has values that are no numbers: {str(tensor.dtype).removeprefix('torch.')}"
    if not tensor.numel():
        return f"{name} holds nothing"
    low, high = (float(v) for v in tensor.aminmax())
    if not -MAX_WEIGHT <= low <= high <= MAX_WEIGHT:
        largest = max(abs(low), abs(high))
        if math.isfinite(largest):
            return f"{name} has values that no generator has, such as {largest:g}"
        return f"{name} has values that are no numbers"
    return None


def check_for_writing(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Checks that a generator's weights are numbers that others can read.

    Raises:
        NotAGeneratorError: they are not.
    """
    for name, tensor in tensors.items():
        if (problem := weight_problem(name, tensor)) is not None:
            raise NotAGeneratorError(
                f"{path} was not written: the generator is damaged, {problem}. Use an earlier one."
            )


def build(description: str, tensors: Mapping[str, Tensor]) -> Generator:
    """Builds the generator of an architecture and tensors that were read from a file.

    Args:
        description: from `describe`.
        tensors: a generator's state, of any floating type.

    Returns:
        The generator in float32 on the CPU, in evaluation mode.

    Raises:
        ValueError: the description is damaged, or the tensors don't fit it.
    """
    architecture = _parse(description)
    # Compared before memory is taken: a damaged header may ask for any amount.
    if expected_shapes(architecture) != {k: tuple(v.shape) for k, v in tensors.items()}:
        raise ValueError("the tensors are not those of the architecture")
    return _filled(architecture, tensors)


def _parse(description: str) -> Architecture:
    try:
        fields = container.parse(description)
        fields["channels"] = {int(k): v for k, v in fields["channels"].items()}
        return Architecture(**fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{error}") from error


def _filled(architecture: Architecture, tensors: Mapping[str, Tensor]) -> Generator:
    for name, tensor in tensors.items():
        if (problem := weight_problem(name, tensor)) is not None:
            raise ValueError(problem)
    generator = Generator(architecture).eval()
    generator.load_state_dict(dict(tensors))
    return generator


def compact(tensor: Tensor) -> Tensor:
    """Converts a tensor for a file: on the CPU, in half precision if its range and digits allow."""
    tensor = tensor.detach().to("cpu", torch.float32).contiguous()
    half = tensor.half()
    close = (half.float() - tensor).norm() <= _ROUNDING * tensor.norm()  # never where it overflows
    return half if close else tensor
