"""Reads and writes StyleGAN2 checkpoints of other tools.

Read, whatever the file's name:

    NVIDIA .pkl      stylegan2-ada-pytorch, stylegan3's StyleGAN2 (torch_utils.persistence objects)
    TensorFlow .pkl  the original release (dnnlib.tflib.network.Network objects)
    rosinality .pt   converted or trained by stylegan2-pytorch; StyleGAN-NADA's children
    modules          PTI's and STIT's generators, MyStyle's synthesis network
    encoders         pSp, e4e and HyperStyle's W encoder, which carry a generator as decoder
    .safetensors     `core.generator.storage`'s own

Written: Reenact's safetensors, by `storage.save_generator`, and rosinality .pt. No code in a file
is ever run; see `core.generator.unpickling`.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from core.base.files import atomic_write
from core.generator import storage
from core.generator.network import Architecture, Generator, MappingNetwork
from core.generator.storage import NotAGeneratorError
from core.generator.unpickling import (
    Array,
    Instance,
    StoredTensor,
    UnreadableCheckpointError,
    read_pickle,
)

MAX_CHANNELS = 2048
MAX_MODULES = 10_000
MAX_DEPTH = 16  # modules within modules
ROSINALITY_RATE = 0.01  # of its mapping network; its files do not record it
MEAN_SAMPLES = 1 << 14  # latents averaged if a file has no mean of W

_TF_NETWORK = "dnnlib.tflib.network.Network"
_SIZES = "4|8|16|32|64|128|256|512|1024"
_KERNEL = torch.tensor([1.0, 3.0, 3.0, 1.0])
_State = Mapping[str, StoredTensor | Tensor]


class NeedsParentError(NotAGeneratorError):
    """The file holds a synthesis network only, and needs its parent's mapping network."""


class _Wrong(Exception):
    """Carries what the file is instead, as a sentence's end, up to where its path is known."""


@dataclass(frozen=True)
class Checkpoint:
    """A generator as some tool saved it.

    Attributes:
        path: the file.
        format: the tool's format, in words.
        tensors: the generator's tensors under NVIDIA's names; `mapping.*` may be missing.
        mapping_rate: learning-rate multiplier of the mapping network.
        conv_clamp: see `Architecture`.
        encoder: kind of the encoder that the file also holds, in words.
        notes: what a user should know, as sentences.
    """

    path: Path
    format: str
    tensors: dict[str, Tensor]
    mapping_rate: float = ROSINALITY_RATE
    conv_clamp: float | None = None
    encoder: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def has_mapping(self) -> bool:
        return "mapping.fc0.weight" in self.tensors

    @property
    def architecture(self) -> Architecture:
        """The generator's shape, read off its tensors; no mapping layers if it has none."""
        channels = {}
        for name, tensor in self.tensors.items():
            if match := re.fullmatch(rf"synthesis\.b({_SIZES})\.conv1\.weight", name):
                channels[int(match[1])] = len(tensor)
        depth = sum(bool(re.fullmatch(r"mapping\.fc\d+\.weight", n)) for n in self.tensors)
        w_dim = self.tensors["synthesis.b4.conv1.affine.weight"].shape[-1]
        z_dim = self.tensors["mapping.fc0.weight"].shape[-1] if depth else w_dim
        return Architecture(
            max(channels),
            dict(sorted(channels.items())),
            z_dim,
            w_dim,
            depth,
            self.mapping_rate,
            self.conv_clamp,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Type of the stored weights."""
        return self.tensors["synthesis.b4.conv1.weight"].dtype

    @property
    def face_shaped(self) -> bool:
        """Whether it could be an FFHQ face generator: 512-d z and w, 256 px or more."""
        a = self.architecture
        return a.z_dim == a.w_dim == 512 and a.resolution >= 256


# -- reading ------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Identifies a file by its content, and reads the generator in it.

    Args:
        path: the file.

    Returns:
        The generator's tensors and what is known about them.

    Raises:
        NotAGeneratorError: the file is something else; the message says what.
        UnreadableCheckpointError: the file is missing, cut short or damaged.
        RefusedPickleError: a pickle asks for anything but tensors.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise UnreadableCheckpointError(f"{path} can't be read: {error.strerror}.") from error
    try:
        if (kind := _no_checkpoint(head)) is not None:
            raise _Wrong(kind)
        checkpoint = (
            _safetensors(path) if head[8:9] == b"{" else _unpickled(path, read_pickle(path))
        )
        _check(checkpoint)
    except _Wrong as wrong:
        raise NotAGeneratorError(f"{path} is {wrong}") from wrong
    return checkpoint


def load_any(path: str | Path, parent: Generator | None = None) -> tuple[Generator, dict[str, str]]:
    """Loads a generator from any of the formats.

    Args:
        path: the file.
        parent: the generator that this one was fine-tuned from; lends its mapping network, or
            its mean of W, to a file without.

    Returns:
        The generator in float32 on the CPU, in evaluation mode, and a header for
        `storage.save_generator`: `source`, `source_format`, and `notes` if there are any.

    Raises:
        NeedsParentError: a synthesis network without `parent`.
        NotAGeneratorError, UnreadableCheckpointError, RefusedPickleError: as for `read_checkpoint`.
    """
    return build(read_checkpoint(path), parent)


def build(
    checkpoint: Checkpoint, parent: Generator | None = None
) -> tuple[Generator, dict[str, str]]:
    """Builds the generator of a checkpoint; see `load_any`."""
    tensors = dict(checkpoint.tensors)
    notes = list(checkpoint.notes)
    architecture = checkpoint.architecture
    if not checkpoint.has_mapping:
        if parent is None:
            raise NeedsParentError(
                f"{checkpoint.path} holds a synthesis network only. Name the generator that it "
                "was fine-tuned from, too (--parent FILE): its mapping network goes with it."
            )
        if parent.architecture.w_dim != architecture.w_dim:
            raise NotAGeneratorError(
                f"{checkpoint.path} takes {architecture.w_dim} latent numbers, but the parent "
                f"makes {parent.architecture.w_dim}: choose the parent it was fine-tuned from."
            )
        architecture = Architecture(
            architecture.resolution,
            architecture.channels,
            parent.architecture.z_dim,
            architecture.w_dim,
            parent.architecture.mapping_layers,
            parent.architecture.mapping_rate,
            architecture.conv_clamp,
        )
        tensors |= {f"mapping.{k}": v for k, v in parent.mapping.state_dict().items()}
        notes.append("The mapping network is the parent's.")
    elif "mapping.w_avg" not in tensors:
        if parent is not None and parent.architecture.w_dim == architecture.w_dim:
            tensors["mapping.w_avg"] = parent.mapping.w_avg
            notes.append("The mean of W is the parent's.")
        else:
            tensors["mapping.w_avg"] = torch.zeros(architecture.w_dim)
            notes.append(f"The mean of W was measured on {MEAN_SAMPLES} latents.")
    generator = Generator(architecture).eval()
    generator.load_state_dict(tensors)
    if notes and notes[-1].startswith("The mean of W was measured"):
        generator.mapping.w_avg.copy_(mean_w(generator.mapping))
    header = {"source": checkpoint.path.name, "source_format": checkpoint.format}
    if notes:
        header["notes"] = json.dumps(notes)
    return generator, header


@torch.no_grad()
def mean_w(mapping: MappingNetwork) -> Tensor:
    """Averages w over `MEAN_SAMPLES` seeded latents, `[w_dim]`."""
    z_dim = mapping.get_parameter("fc0.weight").shape[1]
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(len(mapping.w_avg), dtype=torch.float64)
    for _ in range(MEAN_SAMPLES // 1024):
        z = torch.randn(1024, z_dim, generator=generator)
        total += mapping(z).double().sum(0)
    return (total / MEAN_SAMPLES).float()


def _check(checkpoint: Checkpoint) -> None:
    """Checks that the tensors are those of a generator, complete and finite."""
    tensors = checkpoint.tensors
    if any(max(t.shape, default=0) > MAX_CHANNELS for t in tensors.values()):
        raise _Wrong(f"no generator that can be loaded here: it has over {MAX_CHANNELS} channels.")
    try:
        a = checkpoint.architecture
        with torch.device("meta"):
            expected = Generator(a).state_dict()
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise _Wrong("no complete StyleGAN2 generator: blocks are missing in it.") from error
    for name, wanted in expected.items():
        found = tensors.get(name)
        if found is None:
            if name == "mapping.w_avg" or (name.startswith("mapping.") and not a.mapping_layers):
                continue
            raise _Wrong(f"no complete StyleGAN2 generator: {name} is missing in it.")
        if found.shape != wanted.shape:
            raise _Wrong(
                f"no StyleGAN2 generator of the usual shape: {name} is {[*found.shape]} instead of "
                f"{[*wanted.shape]}."
            )
        if not found.is_floating_point() or not found.sum(dtype=torch.float64).isfinite():
            raise UnreadableCheckpointError(
                f"{checkpoint.path} is damaged: {name} has values that are no numbers. Download "
                "or copy it again."
            )
    more = sorted(tensors.keys() - expected.keys())
    if more:
        raise _Wrong(f"a variant of StyleGAN2 that is not supported: it has {_some(more)}.")


def _safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            names = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise UnreadableCheckpointError(
            f"{path} is cut short or damaged ({error}). Download or copy it again."
        ) from error
    if header.get("format") == storage.FORMAT:
        try:
            a = storage.load_generator(path)[0].architecture
            notes = tuple(str(note) for note in json.loads(header.get("notes", "[]")))
        except (KeyError, TypeError, ValueError) as error:
            raise _Wrong("a Reenact generator with a damaged header. Import it again.") from error
        with safe_open(path, "pt") as file:  # in the stored precision
            tensors = {name: file.get_tensor(name) for name in names}
        return Checkpoint(
            path, "Reenact generator", tensors, a.mapping_rate, a.conv_clamp, notes=notes
        )
    if "conv1.conv.weight" not in names and "synthesis.b4.const" not in names:
        raise _Wrong(_what(names))
    with safe_open(path, "pt") as file:
        return _named(path, {name: file.get_tensor(name) for name in names}, {})


def _unpickled(path: Path, content: object) -> Checkpoint:
    """Finds the generator in a pickle's content."""
    if isinstance(content, (tuple, list)) and any(_is_network(net) for net in content):
        return _tensorflow(path, content[-1])
    if isinstance(content, Instance):
        if content.kind == _TF_NETWORK:
            return _tensorflow(path, content)
        return _nvidia(path, content, "PTI module")
    if not isinstance(content, dict):
        raise _Wrong("no checkpoint: it holds no tensors by name.")
    for key, format_name in (
        ("G_ema", "NVIDIA pickle"),
        ("G", "NVIDIA pickle"),
        ("generator", "STIT module"),
        ("D", "NVIDIA pickle"),
    ):
        if isinstance(content.get(key), Instance):
            notes = ("It has no averaged generator (G_ema); this is G.",) if key == "G" else ()
            return _nvidia(path, content[key], format_name, notes)
    for key in ("g_ema", "state_dict", "g", "generator", "d", "discriminator"):
        if isinstance(content.get(key), dict):
            notes = ("It has no averaged generator (g_ema); this is g.",) if key == "g" else ()
            return _named(path, _tensors_in(content[key]), content, notes)
    return _named(path, _tensors_in(content), content)


def _is_network(value: object) -> bool:
    return isinstance(value, Instance) and value.kind == _TF_NETWORK


def _tensors_in(state: dict) -> _State:
    tensors = {
        name.removeprefix("module."): value  # DataParallel's prefix
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, StoredTensor)
    }
    if not tensors:
        raise _Wrong("no checkpoint: it holds no tensors by name.")
    return tensors


def _named(path: Path, state: _State, outer: dict, notes: tuple[str, ...] = ()) -> Checkpoint:
    """Reads a state dict whose names identify its network."""
    encoder = None
    prefixes = ("", "decoder.", "generator.")
    for prefix in prefixes:
        inside = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
        if prefix == "decoder." and "encoder.input_layer.0.weight" in state:
            encoder = encoder_kind(state, outer.get("opts"))
        if "conv1.conv.weight" in inside and "input.input" in inside:
            return _rosinality(path, inside, outer, encoder, notes)
        if "synthesis.b4.const" in inside:
            return _flat(path, "NVIDIA state dict", _loaded(inside), {}, notes)
        if "b4.const" in inside:
            named = {f"synthesis.{k}": v for k, v in inside.items()}
            return _flat(path, "NVIDIA state dict", _loaded(named), {}, notes)
    raise _Wrong(_what(state))


def _loaded(state: _State) -> dict[str, Tensor]:
    return {k: v.load() if isinstance(v, StoredTensor) else v for k, v in state.items()}


# -- NVIDIA's modules ---------------------------------------------------------------------------


def _nvidia(
    path: Path, module: Instance, format_name: str, notes: tuple[str, ...] = ()
) -> Checkpoint:
    state, attributes = _flatten(module)
    top = {name.partition(".")[0] for name in state}
    if "mapping" not in top and "b4" in top and "b4.const" in state:
        format_name = "MyStyle synthesis module"
        state = {f"synthesis.{k}": v for k, v in state.items()}
        attributes = {f"synthesis.{k}": v for k, v in attributes.items()}
    if "synthesis.b4.const" not in state:
        kernels = {a.get("conv_kernel") for k, a in attributes.items() if ".L" in k}
        if any(re.match(r"(synthesis\.)?L\d+_\d+_\d+", name) for name in state):
            letter = "-R" if kernels <= {1, None} and 1 in kernels else "-T" if 3 in kernels else ""
            raise _Wrong(_stylegan3(letter))
        raise _Wrong(_what(state, module.kind))
    return _flat(path, format_name, _loaded(state), attributes, notes)


def _flat(
    path: Path,
    format_name: str,
    tensors: dict[str, Tensor],
    attributes: dict[str, dict],
    notes: tuple[str, ...],
) -> Checkpoint:
    """Reads tensors under NVIDIA's names, with the attributes of their modules."""
    classes = attributes.get("mapping", {}).get("c_dim", 0)
    if classes or "mapping.embed.weight" in tensors:
        raise _Wrong(
            f"a conditional generator ({classes or 'with'} classes). Only generators without "
            "classes can be used."
        )
    for name in [n for n in tensors if n.endswith("resample_filter")]:
        _check_kernel(tensors.pop(name))
    convolutions = {k: a for k, a in attributes.items() if k.startswith("synthesis.b")}
    _only(convolutions, "activation", {"lrelu", "linear"})  # linear is that of the affine layers
    _only(
        {k: a for k, a in attributes.items() if k.startswith("mapping.fc")}, "activation", {"lrelu"}
    )
    _only(convolutions, "architecture", {"skip"})
    clamps = _values(convolutions, "conv_clamp")
    clamp = clamps.pop() if clamps else None
    if clamps or not (clamp is None or (isinstance(clamp, (int, float)) and 0 < clamp < 1e6)):
        raise _Wrong("a variant of StyleGAN2 that is not supported: its clamps differ.")
    rate = attributes.get("mapping.fc0", {}).get("bias_gain", ROSINALITY_RATE)
    if not (isinstance(rate, (int, float)) and 0 < rate <= 1):
        raise _Wrong(f"a generator with an impossible mapping rate ({rate}).")
    _without_noise(tensors)
    return Checkpoint(
        path,
        format_name,
        tensors,
        float(rate),
        None if clamp is None else float(clamp),
        notes=notes,
    )


def _without_noise(tensors: dict[str, Tensor]) -> None:
    """Adds noise of no strength to a generator that was built without noise."""
    for name in [
        n for n in tensors if re.fullmatch(rf"synthesis\.b({_SIZES})\.conv[01]\.weight", n)
    ]:
        layer = name.removesuffix(".weight")
        if f"{layer}.noise_strength" not in tensors and f"{layer}.noise_const" not in tensors:
            size = int(layer.split(".")[1][1:])
            tensors[f"{layer}.noise_strength"] = torch.zeros([])
            tensors[f"{layer}.noise_const"] = torch.zeros(size, size)


def _values(attributes: dict[str, dict], key: str) -> set:
    return {a[key] for a in attributes.values() if key in a}


def _only(attributes: dict[str, dict], key: str, allowed: set[str]) -> None:
    other = _values(attributes, key) - allowed
    if other:
        raise _Wrong(
            f"a variant of StyleGAN2 that is not supported: its {key} is "
            f"{', '.join(sorted(str(o)[:40] for o in other))}."
        )


def _check_kernel(kernel: Tensor) -> None:
    if kernel.ndim == 1 or (kernel.ndim == 2 and kernel.shape[0] == kernel.shape[1]):
        expected = _KERNEL if kernel.ndim == 1 else _KERNEL[:, None] * _KERNEL
        kernel = kernel.float()
        if kernel.shape == expected.shape and torch.allclose(
            kernel / kernel.sum(), expected / expected.sum(), atol=1e-4
        ):
            return
    raise _Wrong("a variant of StyleGAN2 that is not supported: its low-pass is not [1, 3, 3, 1].")


def _flatten(module: Instance) -> tuple[dict[str, StoredTensor | Tensor], dict[str, dict]]:
    """Collects parameters and buffers by dotted names, and each module's plain attributes."""
    tensors: dict[str, StoredTensor | Tensor] = {}
    attributes: dict[str, dict] = {}

    def visit(node: Instance, prefix: str, depth: int) -> None:
        if depth > MAX_DEPTH or len(attributes) > MAX_MODULES:
            raise _Wrong("no generator: its modules are nested or repeated without end.")
        attributes[prefix.rstrip(".")] = {
            k: v
            for k, v in node.state.items()
            if isinstance(v, (str, int, float, type(None))) and isinstance(k, str)
        }
        for group in ("_parameters", "_buffers", "_modules"):
            members = node.state.get(group)
            for name, value in members.items() if isinstance(members, dict) else ():
                if isinstance(value, Instance):
                    visit(value, f"{prefix}{name}.", depth + 1)
                elif isinstance(value, StoredTensor):
                    tensors[f"{prefix}{name}"] = value

    visit(module, "", 0)
    return tensors, attributes


# -- the TensorFlow release ---------------------------------------------------------------------


def _tensorflow(path: Path, network: object) -> Checkpoint:
    """Reads the last of (G, D, Gs): the averaged generator."""
    if not isinstance(network, Instance):
        raise _Wrong("no generator: its last network is none.")
    variables = _variables(network)
    options = network.state.get("static_kwargs")
    options = options if isinstance(options, dict) else {}
    names = variables.keys()
    if not any(re.fullmatch(r"synthesis/\d+x\d+/.*mod_weight", name) for name in names):
        if any("FromRGB" in name for name in names):
            raise _Wrong("a discriminator of the TensorFlow release. Choose a generator's file.")
        if any("StyleMod" in name for name in names):
            raise _Wrong("a StyleGAN1 generator. Only StyleGAN2 is supported.")
        raise _Wrong("a TensorFlow network, but no StyleGAN2 generator.")
    if options.get("label_size") or "mapping/LabelEmbed/weight" in variables:
        raise _Wrong("a conditional generator. Only generators without classes can be used.")
    if any("/Skip/" in name for name in names) or any("ToRGB_lod" in name for name in names):
        raise _Wrong("a variant of StyleGAN2 that is not supported: not the skip architecture.")
    for key, usual in (
        ("nonlinearity", "lrelu"),
        ("mapping_nonlinearity", "lrelu"),
        ("normalize_latents", True),
    ):
        if options.get(key, usual) != usual:
            raise _Wrong(f"a variant of StyleGAN2 that is not supported: its {key} differs.")
    kernel = options.get("resample_kernel") or [1, 3, 3, 1]
    if not isinstance(kernel, (list, tuple)) or [*kernel] != [1, 3, 3, 1]:
        raise _Wrong("a variant of StyleGAN2 that is not supported: its resample_kernel differs.")
    if sum(v.nbytes for v in variables.values()) > path.stat().st_size:
        raise _Wrong("no generator: the same variables are repeated in it.")
    tensors: dict[str, Tensor] = {}
    for name, value in variables.items():
        if (converted := _tensorflow_name(name)) is not None:
            tensors[converted] = _tensorflow_value(name, torch.tensor(value))
    rate = options.get("mapping_lrmul", ROSINALITY_RATE)
    clamp = options.get("conv_clamp")
    _without_noise(tensors)
    if not isinstance(rate, (int, float)) or not isinstance(clamp, (int, float, type(None))):
        raise _Wrong("a TensorFlow network whose options are damaged.")
    return Checkpoint(path, "TensorFlow pickle", tensors, float(rate), clamp and float(clamp))


def _variables(network: Instance, prefix: str = "", depth: int = 0) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    pairs = network.state.get("variables")
    for pair in pairs if isinstance(pairs, (list, tuple)) else ():
        match pair:
            case (str(name), Array(value=value)) if value is not None:
                found[prefix + name] = value
            case (str(name), float(number)):
                found[prefix + name] = np.array(number, np.float32)
    parts = network.state.get("components")
    for name, part in parts.items() if isinstance(parts, dict) and depth < 3 else ():
        if _is_network(part) and len(found) < MAX_MODULES:
            found |= _variables(part, f"{prefix}{name}/", depth + 1)
    return found


def _tensorflow_name(name: str) -> str | None:
    """Translates names, such as mapping/Dense0/weight to mapping.fc0.weight; None if unused."""
    if name == "dlatent_avg":
        return "mapping.w_avg"
    if name == "synthesis/4x4/Const/const":
        return "synthesis.b4.const"
    if match := re.fullmatch(r"mapping/Dense(\d+)/(weight|bias)", name):
        return f"mapping.fc{match[1]}.{match[2]}"
    if match := re.fullmatch(r"synthesis/noise(\d{1,2})", name):  # 4x4: 0; 8x8: 1, 2; ...
        index = int(match[1])
        return f"synthesis.b{2 ** ((index + 5) // 2)}.conv{(index + 1) % 2}.noise_const"
    if match := re.fullmatch(r"synthesis/(\d+)x\1/(Conv|Conv0_up|Conv1|ToRGB)/(\w+)", name):
        layer = {"Conv0_up": "conv0", "ToRGB": "torgb"}.get(match[2], "conv1")
        last = {"mod_weight": "affine.weight", "mod_bias": "affine.bias"}.get(match[3], match[3])
        return f"synthesis.b{match[1]}.{layer}.{last}"
    return None


def _tensorflow_value(name: str, value: Tensor) -> Tensor:
    """Converts channels last to first; up-sampling kernels are stored flipped, style biases
    without the 1 that is added to them."""
    match name.rpartition("/")[2]:
        case "const":
            return value[0] if value.ndim == 4 else value
        case "mod_weight":
            return value.T
        case "mod_bias":
            return value + 1
        case "weight" if value.ndim == 4:
            return (value.flip(0, 1) if "/Conv0_up/" in name else value).permute(3, 2, 0, 1)
        case "weight":
            return value.T
        case last if last.startswith("noise") and value.ndim == 4:
            return value[0, 0]
    return value


# -- rosinality's names -------------------------------------------------------------------------


def _rosinality_names(a: Architecture) -> Iterable[tuple[str, str, int, int]]:
    """Yields NVIDIA's name, rosinality's, and the dimensions of length 1 that the latter's tensor
    has before and after."""
    for i in range(a.mapping_layers):
        for part in ("weight", "bias"):
            yield f"mapping.fc{i}.{part}", f"style.{i + 1}.{part}", 0, 0
    yield "synthesis.b4.const", "input.input", 1, 0
    for i, resolution in enumerate(a.resolutions):
        block = f"synthesis.b{resolution}"
        layers = [("conv1", f"convs.{2 * i - 1}", 2 * i)]
        if i == 0:
            layers = [("conv1", "conv1", 0)]
        else:
            layers.insert(0, ("conv0", f"convs.{2 * i - 2}", 2 * i - 1))
        for ours, theirs, noise in layers:
            yield f"{block}.{ours}.weight", f"{theirs}.conv.weight", 1, 0
            yield f"{block}.{ours}.affine.weight", f"{theirs}.conv.modulation.weight", 0, 0
            yield f"{block}.{ours}.affine.bias", f"{theirs}.conv.modulation.bias", 0, 0
            yield f"{block}.{ours}.noise_strength", f"{theirs}.noise.weight", 1, 0
            yield f"{block}.{ours}.bias", f"{theirs}.activate.bias", 0, 0
            yield f"{block}.{ours}.noise_const", f"noises.noise_{noise}", 2, 0
        theirs = f"to_rgbs.{i - 1}" if i else "to_rgb1"
        yield f"{block}.torgb.weight", f"{theirs}.conv.weight", 1, 0
        yield f"{block}.torgb.affine.weight", f"{theirs}.conv.modulation.weight", 0, 0
        yield f"{block}.torgb.affine.bias", f"{theirs}.conv.modulation.bias", 0, 0
        yield f"{block}.torgb.bias", f"{theirs}.bias", 1, 2


def _rosinality(
    path: Path, state: _State, outer: dict, encoder: str | None, notes: tuple[str, ...]
) -> Checkpoint:
    depth = sum(bool(re.fullmatch(r"style\.\d+\.weight", name)) for name in state)
    size = 2 ** (2 + sum(bool(re.fullmatch(r"to_rgbs\.\d+\.bias", name)) for name in state))
    if not 8 <= size <= 1024:
        raise _Wrong(f"a generator of {size} px, which is not supported.")
    names = {r: 1 for r in (2**i for i in range(2, size.bit_length()))}
    given = list(_rosinality_names(Architecture(size, names, mapping_layers=depth)))
    known = {theirs for _, theirs, _, _ in given}
    for name in state:
        if name.endswith(("blur.kernel", "upsample.kernel")):
            _check_kernel(_loaded({name: state[name]})[name])
        elif name not in known and not name.startswith("noises."):
            raise _Wrong(f"a variant of StyleGAN2 that is not supported: it has {name[:80]}.")
    loaded = _loaded({name: state[name] for name in known if name in state})
    tensors: dict[str, Tensor] = {}
    for ours, theirs, before, after in given:
        if (tensor := loaded.get(theirs)) is None:
            continue
        shape = tensor.shape
        if before + after > len(shape) or any(
            n != 1 for n in (*shape[:before], *shape[len(shape) - after :])
        ):
            raise _Wrong(f"no StyleGAN2 generator of the usual shape: {theirs} is {[*shape]}.")
        tensors[ours] = tensor.reshape(shape[before : len(shape) - after])
    missing = [o for o, t, _, _ in given if o.endswith("noise_const") and t not in loaded]
    if missing:
        # Files older than rosinality's noise buffers: any fixed noise will do.
        drawn = torch.Generator().manual_seed(0)
        for name in missing:
            side = int(name.split(".")[1][1:])
            tensors[name] = torch.randn(side, side, generator=drawn)
        notes += ("It has no constant noise; fixed noise was drawn for it.",)
    mean = outer.get("latent_avg")
    if isinstance(mean, StoredTensor):
        means = mean.load()  # one, or one per layer
        means = means.reshape(-1, means.shape[-1]) if means.ndim else means[None]
        if not torch.equal(means, means[:1].expand_as(means)):
            notes += ("Its mean of W differs by layer; the layers' mean is taken.",)
            means = means.mean(0, keepdim=True)
        tensors["mapping.w_avg"] = means[0]
    if encoder is not None:
        format_name = f"{encoder} checkpoint"
    elif "g_optim" in outer:
        format_name = "rosinality training checkpoint" if "d" in outer else "StyleGAN-NADA child"
    else:
        format_name = "rosinality checkpoint"
    ours_too = outer.get("reenact")
    ours_too = ours_too if isinstance(ours_too, dict) else {}
    rate, clamp = ours_too.get("mapping_rate", ROSINALITY_RATE), ours_too.get("conv_clamp")
    if not isinstance(rate, float) or not isinstance(clamp, (float, type(None))):
        raise _Wrong("a checkpoint whose options are damaged.")
    return Checkpoint(path, format_name, tensors, rate, clamp, encoder, notes)


def encoder_kind(
    state: Mapping[str, object], options: object
) -> Literal["W encoder", "e4e", "pSp"]:
    """Identifies the encoder of a pSp-like checkpoint: e4e and pSp have the same tensors' names."""
    if isinstance(options, Instance):
        options = options.state
    kind = options.get("encoder_type") if isinstance(options, dict) else None
    if "encoder.linear.weight" in state:
        return "W encoder"
    return "e4e" if kind == "Encoder4Editing" else "pSp"


def save_rosinality(path: str | Path, generator: Generator) -> list[str]:
    """Writes a generator as rosinality's stylegan2-pytorch reads it, atomically.

    Args:
        path: the .pt file: `{"g_ema": state dict, "latent_avg": [w_dim]}` of plain tensors,
            and under `"reenact"` what that format has no place for.
        generator: to write.

    Returns:
        What other programs must be told about it, as sentences.

    Raises:
        NotAGeneratorError: z and w differ in length, which the format can't express.
    """
    a = generator.architecture
    if a.z_dim != a.w_dim:
        raise NotAGeneratorError(
            f"A generator with {a.z_dim} numbers in z and {a.w_dim} in w can't be written as "
            "rosinality .pt, which has one length for both. Keep it as .safetensors."
        )
    ours = {k: v.detach().cpu().contiguous() for k, v in generator.state_dict().items()}
    state: dict[str, Tensor] = {}
    for name, theirs, before, after in _rosinality_names(a):
        shape = (1,) * before + tuple(ours[name].shape) + (1,) * after
        state[theirs] = ours[name].reshape(shape).clone()
    kernel = _KERNEL[:, None] * _KERNEL / 16
    for i in range(len(a.resolutions) - 1):
        state[f"convs.{2 * i}.conv.blur.kernel"] = kernel.clone()
        state[f"to_rgbs.{i}.upsample.kernel"] = kernel.clone()
    content = {
        "g_ema": state,
        "latent_avg": ours["mapping.w_avg"].clone(),
        "reenact": {"mapping_rate": a.mapping_rate, "conv_clamp": a.conv_clamp},
    }
    with atomic_write(path) as temporary:
        torch.save(content, temporary)
    notes = []
    if a.conv_clamp is not None:
        notes.append(f"Other programs will not clamp its activations at {a.conv_clamp:g}.")
    if not math.isclose(a.mapping_rate, ROSINALITY_RATE):
        notes.append(f"Other programs must be told its mapping rate, lr_mlp={a.mapping_rate:g}.")
    if any(a.channels[r] != min(32768 // r, 512) for r in a.resolutions):
        notes.append(f"Other programs must be given its channels: {dict(a.channels)}.")
    return notes


# -- identifying other files --------------------------------------------------------------------


def _no_checkpoint(head: bytes) -> str | None:
    """Identifies a file that is no checkpoint at all by its first bytes; None if it may be one."""
    if not head:
        return "empty. Download or copy it again."
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        return (
            "a web page, not a checkpoint: the site answered with a page instead of the file. "
            "Open it in a browser to see why, and download the file again."
        )
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself. Fetch it with `git lfs pull`."
    for magic, name in (
        (b"\x1f\x8b", "a gzip archive"),
        (b"\xfd7zXZ", "an xz archive"),
        (b"7z\xbc\xaf", "a 7-Zip archive"),
        (b"Rar!", "a RAR archive"),
        (b"BZh", "a bzip2 archive"),
        (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    ):
        if head.startswith(magic):
            return f"{name}. Unpack it first."
    for magic, name in (
        (b"\x89HDF", "an HDF5 file"),
        (b"\x89PNG", "a picture"),
        (b"\xff\xd8\xff", "a picture"),
        (b"%PDF", "a PDF"),
        (b"GGUF", "a language model (GGUF)"),
        (b"\x93NUMPY", "a numpy array"),
    ):
        if head.startswith(magic):
            return f"{name}, not a generator's checkpoint."
    if not head.startswith((b"PK", b"\x80")) and head[8:9] != b"{":
        return "no checkpoint: neither a pickle nor a torch or safetensors file."
    return None


def _stylegan3(letter: str = "") -> str:
    return (
        f"a StyleGAN3{letter} generator. Only StyleGAN2 is supported: its FFHQ generators are "
        "published under the names stylegan2-ffhq-*."
    )


_OTHERS = (  # patterns of tensors' names, and the network that has them; the first match counts
    (r"conditioner\.embedders\.1\.", "an SDXL checkpoint, a diffusion model"),
    (r"model\.diffusion_model\.|cond_stage_model\.", "a Stable Diffusion checkpoint"),
    (r"lora_(unet|te)|.*lora_(up|down|A|B)\.", "a LoRA of a diffusion model"),
    (
        r"(down|up)_blocks\.\d+\.(resnets|attentions)|.*transformer_blocks\.\d+|time_embed",
        "a diffusion model's network",
    ),
    (r"(synthesis\.)?L\d+_\d+_\d+\.|synthesis\.input\.", _stylegan3()),
    (r"final_linear\.\d|final_conv\.0|b\d+\.fromrgb\.|b4\.out\.", "a discriminator"),
    (r"generator\.progression\.|g_synthesis\.", "a StyleGAN1 generator"),
    (
        r"(encoder\.)?styles\.\d+\.convs\.|encoder\.(input_layer|body)\.",
        "a face encoder without the generator that it belongs to",
    ),
    (r"input_layer\.\d|output_layer\.\d", "a face recognition network (ArcFace, IR-SE-50)"),
    (r"lin\d\.model\.|net\.slice\d\.|lins\.\d", "LPIPS weights"),
    (r"visual\.|text_model\.|transformer\.resblocks", "a CLIP model"),
    (r"features\.\d+\.|classifier\.\d|layer[1-4]\.\d|fc\.weight", "an image classifier"),
)


def _what(names: Iterable[str], kind: str = "") -> str:
    """Returns a sentence's end on the network that has tensors of these names."""
    names = list(names)
    for pattern, name in _OTHERS:
        if any(re.match(pattern, n) for n in names):
            advice = "" if name.endswith(".") else ". Choose a StyleGAN2 generator's checkpoint."
            return name + advice
    return (
        f"{f'a {kind[:80]}' if kind else 'a checkpoint'}, but not of a StyleGAN2 generator: it has "
        f"{_some(sorted(names)) or 'no tensors'}."
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(n[:60] for n in names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")
