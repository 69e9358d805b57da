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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from core.base import container
from core.base.errors import reading
from core.base.files import atomic_write, file_size
from core.base.text import printable
from core.generator import storage
from core.generator.network import MAX_CHANNELS, Architecture, Generator, MappingNetwork
from core.generator.storage import NotAGeneratorError, weight_problem
from core.generator.unpickling import (
    Array,
    Instance,
    Storage,
    StoredTensor,
    UnreadableCheckpointError,
    read_pickle,
)

MAX_MODULES = 2_000
MAX_MEMBERS = 20_000  # tensors and modules that are looked at; no network here has a tenth of it
MAX_DEPTH = 16  # modules within modules
MAX_NAME = 100  # characters of a module's or parameter's own name
SLACK = 1 << 20  # bytes by which a network's tensors may exceed their file: a few may be shared
ROSINALITY_RATE = 0.01  # of its mapping network; its files do not record it
MEAN_SAMPLES = 1 << 14  # latents averaged if a file has no mean of W

_TF_NETWORK = "dnnlib.tflib.network.Network"
_SIZES = "4|8|16|32|64|128|256|512|1024"
_KERNEL = torch.tensor([1.0, 3.0, 3.0, 1.0])
# Attributes of modules that decide what they compute.
_ATTRIBUTES = ("activation", "architecture", "bias_gain", "c_dim", "conv_clamp", "conv_kernel")


T = TypeVar("T")


class NeedsParentError(NotAGeneratorError):
    """The file holds a synthesis network only, and needs its parent's mapping network."""


class _Wrong(Exception):
    """Carries what the file is instead, as a sentence's end, up to where its path is known."""

    def __str__(self) -> str:
        reason = printable(super().__str__())
        if reason.count(". ") or "Unpack" in reason:  # with what to do about it
            return reason
        return f"{reason} Choose a StyleGAN2 generator's checkpoint."


@dataclass(frozen=True)
class _Lazy:
    """A tensor that is still in its file.

    Attributes:
        outline: its shape and type, on the meta device.
        load: reads it.
        storage: the numbers that it is a view of, where others may share them.
    """

    outline: Tensor
    load: Callable[[], Tensor]
    storage: Storage | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "_Lazy":
        """Returns what a function makes of it, still in its file."""
        return _Lazy(change(self.outline), lambda: change(self.load()), self.storage)


_State = Mapping[str, _Lazy]
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "f8": torch.float64,
    "f4": torch.float32,
    "f2": torch.float16,
}


def _lazy(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype | None,
    load: Callable[[], Tensor],
    shared: Storage | None = None,
) -> _Lazy:
    """Raises `_Wrong` for what can't be a part of a network."""
    if max(shape, default=0) > MAX_CHANNELS:
        raise _Wrong(
            f"no generator that can be loaded here: it has over {MAX_CHANNELS} channels "
            f"({name[:60]} is {[*shape]})."
        )
    if min(shape, default=1) < 1 or len(shape) > 8:
        raise _Wrong(f"no generator that can be loaded here: {name[:60]} is {[*shape]}.")
    if dtype is None:
        raise _Wrong(f"no generator that can be loaded here: {name[:60]} has no plain numbers.")
    return _Lazy(torch.empty(shape, dtype=dtype, device="meta"), load, shared)


def _known(name: str, value: object) -> _Lazy:
    """A tensor of a pickle."""
    if isinstance(value, StoredTensor):
        return _lazy(name, value.shape, value.dtype, value.load, value.storage)
    assert isinstance(value, Array)
    assert value.dtype is not None
    array, dtype = value, _DTYPES.get(value.dtype.str[1:])
    return _lazy(name, array.shape, dtype, lambda: torch.tensor(array.load()))


def _small(lazy: _Lazy) -> Tensor:
    """Loads a tensor that decides how others are read, before their sizes are known."""
    if lazy.storage is not None and lazy.storage.nbytes > SLACK:
        raise _Wrong("no generator: its tensors are small parts of what would have to be read.")
    return lazy.load()


def _constant(value: Tensor) -> _Lazy:
    """A tensor that is not in the file."""
    return _Lazy(value.to("meta"), lambda: value)


@dataclass(frozen=True)
class _Described(Generic[T]):
    """What is known of a generator that some tool saved.

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
    tensors: dict[str, T]
    mapping_rate: float = ROSINALITY_RATE
    conv_clamp: float | None = None
    encoder: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint(_Described[Tensor]):
    """A generator as some tool saved it."""

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
    with reading(path, UnreadableCheckpointError):
        try:
            size = file_size(path)
            with path.open("rb") as file:
                head = file.read(1024)
        except OSError as error:
            raise UnreadableCheckpointError(f"{path} can't be read: {error.strerror}.") from error
        try:
            if (kind := _no_checkpoint(head)) is not None:
                raise _Wrong(kind)
            draft = _safetensors(path) if head[8:9] == b"{" else _unpickled(path, read_pickle(path))
            _check_size(draft, size)
            _check(draft)
        except _Wrong as wrong:
            raise NotAGeneratorError(f"{path} is {wrong}") from wrong
        return _loaded(draft)


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


class _Draft(_Described[_Lazy]):
    """A checkpoint whose tensors are still in the file."""

    def outline(self) -> Checkpoint:
        """The checkpoint with tensors on the meta device."""
        return self._with({name: lazy.outline for name, lazy in self.tensors.items()})

    def load(self) -> Checkpoint:
        """The checkpoint with its tensors."""
        return self._with({name: lazy.load() for name, lazy in self.tensors.items()})

    def _with(self, tensors: dict[str, Tensor]) -> Checkpoint:
        return Checkpoint(**{**vars(self), "tensors": tensors})


def _check(draft: _Draft) -> None:
    """Checks by names and shapes that the tensors are those of a whole generator."""
    tensors = {name: lazy.outline for name, lazy in draft.tensors.items()}
    parts = [re.fullmatch(rf"synthesis\.b({_SIZES})\.conv1\.weight", name) for name in tensors]
    sizes = {int(part[1]) for part in parts if part}
    depth = sum(bool(re.fullmatch(r"mapping\.fc\d+\.weight", name)) for name in tensors)
    wanted = {2**i for i in range(2, max(sizes, default=8).bit_length())}
    ends = {"synthesis.b4.conv1.affine.weight", *({"mapping.fc0.weight"} if depth else ())}
    if sizes != wanted or not ends <= tensors.keys():
        raise _Wrong("no complete StyleGAN2 generator: blocks are missing in it.")
    try:
        a = draft.outline().architecture
        expected = storage.expected_shapes(a)
    except (IndexError, TypeError) as error:
        raise _Wrong("no StyleGAN2 generator of the usual shape.") from error
    except ValueError as error:
        raise _Wrong(f"no generator that can be loaded here: {_lower(error)}") from error
    for name, shape in expected.items():
        found = tensors.get(name)
        if found is None:
            if name == "mapping.w_avg" or (name.startswith("mapping.") and not depth):
                continue
            raise _Wrong(f"no complete StyleGAN2 generator: {name} is missing in it.")
        if found.shape != shape:
            raise _Wrong(
                f"no StyleGAN2 generator of the usual shape: {name} is {[*found.shape]} instead of "
                f"{[*shape]}."
            )
    more = sorted(tensors.keys() - expected.keys())
    if more:
        raise _Wrong(f"a variant of StyleGAN2 that is not supported: it has {_some(more)}.")


def _check_size(draft: _Draft, size: int) -> None:
    """Checks that a file of so many bytes may hold the tensors, each for itself."""
    lazies = draft.tensors.values()
    total = sum(lazy.outline.nbytes for lazy in lazies)
    storages = {id(lazy.storage): lazy.storage.nbytes for lazy in lazies if lazy.storage}
    if total > size + SLACK:
        raise _Wrong("no generator: the same numbers are repeated in it, under many names.")
    if sum(storages.values()) > 2 * total + SLACK:
        raise _Wrong("no generator: its tensors are small parts of what would have to be read.")


def _loaded(draft: _Draft) -> Checkpoint:
    """Loads the tensors, and checks that they hold numbers."""
    path = draft.path
    try:
        checkpoint = draft.load()
    except (UnreadableCheckpointError, SafetensorError, OSError) as error:
        raise UnreadableCheckpointError(
            f"{path} can't be read to its end: {printable(str(error))}"
        ) from error
    for name, tensor in checkpoint.tensors.items():
        if (problem := weight_problem(name, tensor)) is not None:
            raise UnreadableCheckpointError(
                f"{path} is damaged: {problem}. Download or copy it again."
            )
    return checkpoint


def _safetensors(path: Path) -> _Draft:
    try:
        header, entries = container.read_header(path)
    except (OSError, ValueError) as error:
        raise UnreadableCheckpointError(
            f"{path} is cut short or damaged ({printable(str(error))}). Download or copy it again."
        ) from error
    ours = header.get("format") == storage.FORMAT
    if not ours and "conv1.conv.weight" not in entries and "synthesis.b4.const" not in entries:
        raise _Wrong(_what(entries))

    def load(name: str) -> Tensor:
        with safe_open(path, "pt") as file:
            return file.get_tensor(name)

    state = {
        name: _lazy(name, entry.shape, _DTYPES.get(entry.dtype), partial(load, name))
        for name, entry in entries.items()
    }
    if not ours:
        return _named(path, state, {})
    a = storage.read_architecture(path, header)
    try:
        notes = container.parse(header.get("notes", "[]"))
        if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
            raise ValueError("its notes are no sentences")
    except ValueError as error:
        raise _Wrong(
            f"a Reenact generator with a damaged header ({error}). Import it again."
        ) from (error)
    draft = _Draft(
        path, "Reenact generator", state, a.mapping_rate, a.conv_clamp, notes=tuple(notes)
    )
    _check(draft)
    if draft.outline().architecture != a:
        raise _Wrong("a Reenact generator whose header is another's. Import it again.")
    return draft


def _unpickled(path: Path, content: object) -> _Draft:
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
    for key in ("g_ema", "G_ema", "state_dict", "g", "G", "generator", "d", "D", "discriminator"):
        if isinstance(content.get(key), dict):
            notes = ()
            if key in ("g", "G"):
                notes = (f"It has no averaged generator ({key}_ema); this is {key}.",)
            return _named(path, _tensors_in(content[key]), content, notes)
    return _named(path, _tensors_in(content), content)


def _is_network(value: object) -> bool:
    return isinstance(value, Instance) and value.kind == _TF_NETWORK


def _tensors_in(state: dict) -> dict[str, StoredTensor]:
    if len(state) > MAX_MEMBERS:
        raise _Wrong(f"no generator's checkpoint: it has {len(state)} entries.")
    tensors = {
        name.removeprefix("module."): value  # DataParallel's prefix
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, StoredTensor)
    }
    if not tensors:
        raise _Wrong("no checkpoint: it holds no tensors by name.")
    if max(map(len, tensors)) > container.MAX_NAME:
        raise _Wrong(
            f"no generator's checkpoint: its names have over {container.MAX_NAME} letters."
        )
    return tensors


def _named(
    path: Path,
    state: Mapping[str, StoredTensor | _Lazy],
    outer: dict,
    notes: tuple[str, ...] = (),
) -> _Draft:
    """Reads a state dict whose names identify its network."""
    encoder = None
    prefixes = ("", "decoder.", "generator.")
    for prefix in prefixes:
        names = dict.fromkeys(k[len(prefix) :] for k in state if k.startswith(prefix))
        if prefix == "decoder." and "encoder.input_layer.0.weight" in state:
            encoder = encoder_kind(state, outer.get("opts"))
        rosinality = "conv1.conv.weight" in names and "input.input" in names
        if not (rosinality or "synthesis.b4.const" in names or "b4.const" in names):
            continue
        found = {name: state[prefix + name] for name in names}
        inside = {k: v if isinstance(v, _Lazy) else _known(k, v) for k, v in found.items()}
        if rosinality:
            return _rosinality(path, inside, outer, encoder, notes)
        if "synthesis.b4.const" not in names:
            inside = {f"synthesis.{k}": v for k, v in inside.items()}
        return _flat(path, "NVIDIA state dict", inside, {}, notes)
    raise _Wrong(_what(state))


def _unrecorded(tensors: Mapping[str, object]) -> tuple[str, ...]:
    """Returns the note on what a state dict can't tell."""
    if "mapping.fc0.weight" not in tensors:
        return ("The file does not record whether activations are clamped: they are not here.",)
    return (
        "The file records neither the mapping network's rate (lr_mlp) nor whether activations are "
        f"clamped: the usual {ROSINALITY_RATE:g} and no clamp were taken. If its pictures look "
        "wrong, it was trained with others.",
    )


def _number(value: object, what: str) -> float:
    """Raises `_Wrong` for an option that is no number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or abs(value) > 1e30:
        raise _Wrong(f"a generator with an impossible {what} ({_short(value)}).")
    return float(value)


def _lower(error: Exception) -> str:
    return str(error)[:1].lower() + str(error)[1:]


def _short(value: object) -> str:
    """A plain value as text; containers may be deep, or exponentially long."""
    if isinstance(value, (str, int, float, type(None))):
        return str(value)[:40]
    return type(value).__name__


# -- NVIDIA's modules ---------------------------------------------------------------------------


def _nvidia(path: Path, module: Instance, format_name: str, notes: tuple[str, ...] = ()) -> _Draft:
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
    tensors = {name: _known(name, value) for name, value in state.items()}
    return _flat(path, format_name, tensors, attributes, notes)


def _flat(
    path: Path,
    format_name: str,
    tensors: dict[str, _Lazy],
    attributes: dict[str, dict],
    notes: tuple[str, ...],
) -> _Draft:
    """Reads tensors under NVIDIA's names, with the attributes of their modules."""
    classes = attributes.get("mapping", {}).get("c_dim", 0)
    if classes or "mapping.embed.weight" in tensors:
        raise _Wrong(
            f"a conditional generator ({_short(classes) if classes else 'with'} classes). Only "
            "generators without classes can be used."
        )
    for name in [n for n in tensors if n.endswith("resample_filter")]:
        _check_kernel(tensors.pop(name))

    def of(pattern: str) -> dict[str, dict]:
        return {k: a for k, a in attributes.items() if re.fullmatch(pattern, k)}

    _only(of(r"synthesis\.b\d+\.conv[01]|mapping\.fc\d+"), "activation", {"lrelu"})
    _only(of(r"synthesis\.b\d+\.\w+\.affine"), "activation", {"linear"})
    blocks = of(r"synthesis\.b\d+.*")
    _only(blocks, "architecture", {"skip"})
    clamp = _same(blocks, "conv_clamp", "clamps", None)
    rate = _same(of(r"mapping\.fc\d+"), "bias_gain", "mapping rates", ROSINALITY_RATE)
    _without_noise(tensors)
    return _Draft(
        path,
        format_name,
        tensors,
        _number(rate, "mapping rate"),
        None if clamp is None else _number(clamp, "clamp"),
        notes=notes if attributes else notes + _unrecorded(tensors),
    )


def _without_noise(tensors: dict[str, _Lazy]) -> None:
    """Adds noise of no strength to a generator that was built without noise."""
    for name in [
        n for n in tensors if re.fullmatch(rf"synthesis\.b({_SIZES})\.conv[01]\.weight", n)
    ]:
        layer = name.removesuffix(".weight")
        if f"{layer}.noise_strength" not in tensors and f"{layer}.noise_const" not in tensors:
            size = int(layer.split(".")[1][1:])
            tensors[f"{layer}.noise_strength"] = _constant(torch.zeros([]))
            tensors[f"{layer}.noise_const"] = _constant(torch.zeros(size, size))


def _values(attributes: dict[str, dict], key: str) -> set:
    return {a[key] for a in attributes.values() if key in a}


def _same(attributes: dict[str, dict], key: str, what: str, default: object) -> object:
    """Returns the one value that an attribute has in all modules."""
    values = _values(attributes, key)
    if len(values) > 1:
        raise _Wrong(f"a variant of StyleGAN2 that is not supported: its {what} differ.")
    return values.pop() if values else default


def _only(attributes: dict[str, dict], key: str, allowed: set[str]) -> None:
    other = _values(attributes, key) - allowed
    if other:
        raise _Wrong(
            f"a variant of StyleGAN2 that is not supported: its {key} is "
            f"{', '.join(sorted(map(_short, other))[:4])}."
        )


def _check_kernel(stored: _Lazy) -> None:
    if stored.outline.shape in ((4,), (4, 4)):
        kernel = _small(stored).float()
        expected = _KERNEL if kernel.ndim == 1 else _KERNEL[:, None] * _KERNEL
        if torch.allclose(kernel / kernel.sum(), expected / expected.sum(), atol=1e-4):
            return
    raise _Wrong("a variant of StyleGAN2 that is not supported: its low-pass is not [1, 3, 3, 1].")


def _flatten(module: Instance) -> tuple[dict[str, StoredTensor], dict[str, dict]]:
    """Collects parameters and buffers by dotted names, and what decides what modules compute."""
    tensors: dict[str, StoredTensor] = {}
    attributes: dict[str, dict] = {}
    endless = "no generator: its modules are nested or repeated without end."
    members_left = MAX_MEMBERS

    def visit(node: Instance, prefix: str, depth: int) -> None:
        nonlocal members_left
        if depth > MAX_DEPTH or len(attributes) >= MAX_MODULES:
            raise _Wrong(endless)
        attributes[prefix.rstrip(".")] = {
            name: node.state[name]
            for name in _ATTRIBUTES
            if name in node.state and isinstance(node.state[name], (str, int, float, type(None)))
        }
        for group in ("_parameters", "_buffers", "_modules"):
            members = node.state.get(group)
            if not isinstance(members, dict):
                continue
            members_left -= len(members)
            if members_left < 0:
                raise _Wrong(endless)
            for name, value in members.items():
                if not isinstance(name, str) or len(name) > MAX_NAME:
                    raise _Wrong("no generator: its modules have no usual names.")
                if isinstance(value, Instance):
                    visit(value, f"{prefix}{name}.", depth + 1)
                elif isinstance(value, StoredTensor):
                    tensors[f"{prefix}{name}"] = value

    visit(module, "", 0)
    return tensors, attributes


# -- the TensorFlow release ---------------------------------------------------------------------


def _tensorflow(path: Path, network: object) -> _Draft:
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
    if not isinstance(kernel, (list, tuple)) or len(kernel) != 4 or [*kernel] != [1, 3, 3, 1]:
        raise _Wrong("a variant of StyleGAN2 that is not supported: its resample_kernel differs.")
    tensors: dict[str, _Lazy] = {}
    for name, value in variables.items():
        if (converted := _tensorflow_name(name)) is not None:
            lazy = (
                _constant(torch.tensor(value)) if isinstance(value, float) else _known(name, value)
            )
            try:
                tensors[converted] = lazy.map(partial(_tensorflow_value, name))
            except (RuntimeError, IndexError) as error:
                raise _Wrong(
                    f"no StyleGAN2 generator of the usual shape: {name[:60]} is "
                    f"{[*lazy.outline.shape]}."
                ) from error
    rate = _number(options.get("mapping_lrmul", ROSINALITY_RATE), "mapping rate")
    clamp = options.get("conv_clamp")
    _without_noise(tensors)
    return _Draft(
        path,
        "TensorFlow pickle",
        tensors,
        rate,
        None if clamp is None else _number(clamp, "clamp"),
    )


def _variables(network: Instance) -> dict[str, Array | float]:
    """Collects a network's variables, its components' under their names and a slash."""
    found: dict[str, Array | float] = {}
    members_left = MAX_MEMBERS

    def visit(node: Instance, prefix: str, depth: int) -> None:
        nonlocal members_left
        pairs, parts = node.state.get("variables"), node.state.get("components")
        pairs = pairs if isinstance(pairs, (list, tuple)) else ()
        parts = parts if isinstance(parts, dict) else {}
        members_left -= 1 + len(pairs) + len(parts)
        if depth > 3 or members_left < 0:
            raise _Wrong("no generator: its networks are nested or repeated without end.")
        for pair in pairs:
            match pair:
                case (str(name), Array() | float() as value) if len(name) <= container.MAX_NAME:
                    if isinstance(value, float) or value.dtype is not None:
                        found[prefix + name] = value
        for name, part in parts.items():
            if _is_network(part) and isinstance(name, str) and len(name) <= MAX_NAME:
                visit(part, f"{prefix}{name}/", depth + 1)

    visit(network, "", 0)
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
            return value if value.is_meta else value + 1  # which has no numbers to add to
        case "weight" if value.ndim == 4:
            flipped = "/Conv0_up/" in name and not value.is_meta
            return (value.flip(0, 1) if flipped else value).permute(3, 2, 0, 1)
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
) -> _Draft:
    depth = sum(bool(re.fullmatch(r"style\.\d+\.weight", name)) for name in state)
    size = 2 ** (2 + sum(bool(re.fullmatch(r"to_rgbs\.\d+\.bias", name)) for name in state))
    if not 8 <= size <= 1024:
        raise _Wrong(
            f"a generator of {size if size < 8 else 'over 1024'} px, which is not supported."
        )
    names = {r: 1 for r in (2**i for i in range(2, size.bit_length()))}
    try:
        given = list(_rosinality_names(Architecture(size, names, mapping_layers=depth)))
    except ValueError as error:
        raise _Wrong(f"no generator that can be loaded here: {_lower(error)}") from error
    known = {theirs for _, theirs, _, _ in given}
    for name, lazy in state.items():
        if name.endswith(("blur.kernel", "upsample.kernel")):
            _check_kernel(lazy)
        elif name not in known and not name.startswith("noises."):
            raise _Wrong(f"a variant of StyleGAN2 that is not supported: it has {name[:80]}.")
    tensors: dict[str, _Lazy] = {}
    for ours, theirs, before, after in given:
        if (stored := state.get(theirs)) is None:
            continue
        shape = stored.outline.shape
        if before + after > len(shape) or any(
            n != 1 for n in (*shape[:before], *shape[len(shape) - after :])
        ):
            raise _Wrong(f"no StyleGAN2 generator of the usual shape: {theirs} is {[*shape]}.")
        inner = shape[before : len(shape) - after]
        tensors[ours] = stored.map(partial(torch.reshape, shape=inner))
    missing = [o for o, t, _, _ in given if o.endswith("noise_const") and t not in state]
    if missing:
        # Files older than rosinality's noise buffers: any fixed noise will do.
        drawn = torch.Generator().manual_seed(0)
        for name in missing:
            side = int(name.split(".")[1][1:])
            tensors[name] = _constant(torch.randn(side, side, generator=drawn))
        notes += ("It has no constant noise; fixed noise was drawn for it.",)
    mean = outer.get("latent_avg")
    if isinstance(mean, StoredTensor):
        means = _small(_known("latent_avg", mean))  # one, or one per layer
        means = means.reshape(-1, means.shape[-1]) if means.ndim else means[None]
        if not torch.equal(means, means[:1].expand_as(means)):
            notes += ("Its mean of W differs by layer; the layers' mean is taken.",)
            means = means.float().mean(0, keepdim=True)
        tensors["mapping.w_avg"] = _constant(means[0])
    if encoder is not None:
        format_name = f"{encoder} checkpoint"
    elif "g_optim" in outer:
        format_name = "rosinality training checkpoint" if "d" in outer else "StyleGAN-NADA child"
    else:
        format_name = "rosinality checkpoint"
    ours_too = outer.get("reenact")
    if not isinstance(ours_too, dict):
        ours_too, notes = {}, notes + _unrecorded(tensors)
    rate, clamp = ours_too.get("mapping_rate", ROSINALITY_RATE), ours_too.get("conv_clamp")
    return _Draft(
        path,
        format_name,
        tensors,
        _number(rate, "mapping rate"),
        None if clamp is None else _number(clamp, "clamp"),
        encoder,
        notes,
    )


def encoder_kind(
    state: Mapping[str, object], options: object
) -> Literal["W encoder", "e4e", "pSp", "pSp IntoWPlus"]:
    """Identifies the encoder of a pSp-like checkpoint: e4e and pSp have the same tensors' names."""
    if isinstance(options, Instance):
        options = options.state
    kind = options.get("encoder_type") if isinstance(options, dict) else None
    if "encoder.output_layer_2.0.weight" in state:
        return "pSp IntoWPlus"
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
        NotAGeneratorError: z and w differ in length, which the format can't express, or it has
            weights that are no numbers.
    """
    a = generator.architecture
    if a.z_dim != a.w_dim:
        raise NotAGeneratorError(
            f"A generator with {a.z_dim} numbers in z and {a.w_dim} in w can't be written as "
            "rosinality .pt, which has one length for both. Keep it as .safetensors."
        )
    ours = {k: v.detach().cpu().contiguous() for k, v in generator.state_dict().items()}
    storage.check_for_writing(path, ours)
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
