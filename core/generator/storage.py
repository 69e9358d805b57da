"""Generators as safetensors files: tensors plus a JSON header, no code.

The header's entries: `format` ("reenact.generator"), `version`, `architecture` (the fields of
`Architecture` as JSON) and any further strings that the writer adds.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from core.base.digest import digest
from core.base.errors import ReenactError
from core.base.files import atomic_write
from core.generator.network import Architecture, Generator

FORMAT = "reenact.generator"
VERSION = 1


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
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, entries)


def load_generator(path: str | Path) -> tuple[Generator, dict[str, str]]:
    """Reads a generator that `save_generator` wrote.

    Args:
        path: the file.

    Returns:
        The generator in float32 on the CPU, in evaluation mode, and the file's header.

    Raises:
        NotAGeneratorError: no such file, another kind of file, a damaged or a newer one.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise NotAGeneratorError(f"{path} can't be read as a generator: {error}") from error
    if header.get("format") != FORMAT:
        raise NotAGeneratorError(f"{path} is a safetensors file, but not a Reenact generator.")
    try:
        if int(header["version"]) > VERSION:
            raise NotAGeneratorError(
                f"{path} was written by a newer Reenact. Update this one to load it."
            )
        generator = build(header["architecture"], tensors)
    except (KeyError, ValueError) as error:
        raise NotAGeneratorError(
            f"{path} is damaged: its header and tensors do not fit."
        ) from error
    return generator, header


def generator_digest(generator: Generator) -> str:
    """Digest of a generator's tensors, by which characters, styles and directions name it."""
    return digest(*generator.state_dict().values())


def describe(architecture: Architecture) -> str:
    """Returns the architecture as JSON, for a header."""
    return json.dumps(asdict(architecture))


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
    try:
        fields = json.loads(description)
        fields["channels"] = {int(k): v for k, v in fields["channels"].items()}
        if fields["mapping_layers"] > len(tensors):
            raise ValueError("there are fewer tensors than layers")
        architecture = Architecture(**fields)
        # Compared before memory is taken: a damaged header may ask for any amount.
        with torch.device("meta"):
            expected = {k: v.shape for k, v in Generator(architecture).state_dict().items()}
        if expected != {k: v.shape for k, v in tensors.items()}:
            raise ValueError("the tensors are not those of the architecture")
        generator = Generator(architecture).eval()
        generator.load_state_dict(dict(tensors))
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{error}") from error
    return generator
