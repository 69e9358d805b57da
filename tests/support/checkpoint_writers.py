"""Small generators' checkpoints, written as other tools write them."""

from __future__ import annotations

import math
import os
import pickle
import shutil
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from core.generator import Architecture, Generator
from core.generator.checkpoints import save_rosinality
from core.generator.storage import save_generator

SIZES = [4, 8, 16, 32, 64]
CHANNELS = {4: 12, 8: 10, 16: 8, 32: 6, 64: 5}
WIDTH = 16  # of z and w
DEPTH = 3  # mapping layers
SMALL = Architecture(64, CHANNELS, WIDTH, WIDTH, DEPTH)
CANARY = Path(tempfile.gettempdir()) / f"reenact_canary_{os.getpid()}"


FIR = torch.tensor([[1.0, 3, 3, 1]]).T @ torch.tensor([[1.0, 3, 3, 1]]) / 16


def randomised(architecture: Architecture = SMALL, seed: int = 5) -> Generator:
    torch.manual_seed(seed)
    g = Generator(architecture).eval()
    with torch.no_grad():
        for name, parameter in g.named_parameters():
            if name.endswith(("bias", "noise_strength")):
                parameter += 0.3 * torch.randn_like(parameter)
        g.mapping.w_avg.normal_()
    return g


@contextmanager
def registered(names: dict[str, Callable]) -> Iterator[None]:
    """Puts objects under the module names of the real tools, for as long as is pickled."""
    added = []
    for path, value in names.items():
        module, _, name = path.rpartition(".")
        for i in range(module.count(".") + 1):
            parent = ".".join(module.split(".")[: i + 1])
            if parent not in sys.modules:
                sys.modules[parent] = types.ModuleType(parent)
                added.append(parent)
        value.__module__, value.__name__, value.__qualname__ = module, name, name
        setattr(sys.modules[module], name, value)
    try:
        yield
    finally:
        for module in added:
            del sys.modules[module]


class Network:
    def __init__(self, **state: object) -> None:
        self.state = state

    def __getstate__(self) -> dict:
        return self.state


MALICIOUS = f"open({str(CANARY)!r}, 'w')\n"  # stands where these files carry source code


def tensorflow(
    seed: int = 1, protocol: int = 4, **options: object
) -> tuple[bytes, dict[str, np.ndarray]]:
    """A pickle of (G, D, Gs) with 64 px generators, and the variables of Gs."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (rng.normal(size=shape) * scale).astype(np.float32)

    mapping = {}
    for i in range(DEPTH):
        mapping[f"Dense{i}/weight"] = normal(WIDTH, WIDTH, scale=100)
        mapping[f"Dense{i}/bias"] = normal(WIDTH, scale=10)
    synthesis = {"4x4/Const/const": normal(1, CHANNELS[4], 4, 4)}

    def modulated(name: str, i: int, o: int, kernel: int) -> None:
        synthesis[f"{name}/weight"] = normal(kernel, kernel, i, o)
        synthesis[f"{name}/mod_weight"] = normal(WIDTH, i)
        synthesis[f"{name}/mod_bias"] = normal(i, scale=0.3)
        synthesis[f"{name}/bias"] = normal(o)
        if kernel == 3:
            synthesis[f"{name}/noise_strength"] = normal()[()]

    for r in SIZES:
        if r == 4:
            modulated("4x4/Conv", CHANNELS[4], CHANNELS[4], 3)
            synthesis["noise0"] = normal(1, 1, 4, 4)
        else:
            modulated(f"{r}x{r}/Conv0_up", CHANNELS[r // 2], CHANNELS[r], 3)
            modulated(f"{r}x{r}/Conv1", CHANNELS[r], CHANNELS[r], 3)
            for k in (5, 4):
                synthesis[f"noise{int(math.log2(r)) * 2 - k}"] = normal(1, 1, r, r)
        modulated(f"{r}x{r}/ToRGB", CHANNELS[r], 3, 1)
    own = {"lod": np.float32(0), "dlatent_avg": normal(WIDTH)}
    static = {"num_channels": 3, "resolution": 64, "label_size": 0, "fmap_base": 16384} | options

    def network(name: str, variables: dict, **components: Network) -> Network:
        return Network(
            version=4,
            name=name,
            static_kwargs=static,
            components=components,
            build_module_src=MALICIOUS,
            build_func_name="G",
            variables=[*variables.items()],
        )

    parts = {"mapping": network("G_mapping", mapping), "synthesis": network("G_synth", synthesis)}
    with registered({"dnnlib.tflib.network.Network": Network}):
        averaged = network("Gs", own, **parts)
        raw = network("G", {"lod": np.float32(0)})
        discriminator = network("D", {"64x64/FromRGB/weight": normal(1, 1, 3, 8)})
        data = pickle.dumps((raw, discriminator, averaged), protocol)
    flat = own | {f"mapping/{k}": v for k, v in mapping.items()}
    return data, flat | {f"synthesis/{k}": v for k, v in synthesis.items()}


class Persistent(nn.Module):
    """Pickles as objects of a torch_utils.persistence class do."""

    def __init__(self, kind: str, **attributes: object) -> None:
        super().__init__()
        self.kind = kind
        for name, value in attributes.items():
            setattr(self, name, value)

    def __reduce__(self) -> tuple:
        from torch_utils.persistence import _reconstruct_persistent_obj

        state = dict(self.__dict__)
        meta = dict(
            type="class", version=6, module_src=MALICIOUS, class_name=state.pop("kind"), state=state
        )
        return _reconstruct_persistent_obj, (meta,), None


class EasyDict(dict):
    pass


def _reconstruct_persistent_obj(meta: dict) -> None:
    raise AssertionError("only pickled, never unpickled")


KERNEL = FIR / 4  # sums to 1


def persistent(g: Generator, **attributes: object) -> Persistent:
    """A generator as NVIDIA's classes hold it."""
    a, state = g.architecture, g.state_dict()

    def module(kind: str, prefix: str, **more: object) -> Persistent:
        """The tensors directly under a prefix."""
        made = Persistent(kind, **more)
        for name, value in state.items():
            path, _, last = name.rpartition(".")
            if path == prefix:
                if last in ("w_avg", "noise_const"):
                    made.register_buffer(last, value.clone())
                else:
                    made.register_parameter(last, nn.Parameter(value.clone()))
        return made

    mapping = module("MappingNetwork", "mapping", z_dim=a.z_dim, c_dim=0, w_dim=a.w_dim)
    for i in range(a.mapping_layers):
        dense = module(
            "FullyConnectedLayer",
            f"mapping.fc{i}",
            activation="lrelu",
            weight_gain=a.mapping_rate / np.sqrt(a.w_dim),
            bias_gain=a.mapping_rate,
        )
        setattr(mapping, f"fc{i}", dense)
    synthesis = Persistent("SynthesisNetwork", w_dim=a.w_dim, img_resolution=a.resolution)
    for r in a.resolutions:
        block = module("SynthesisBlock", f"synthesis.b{r}", architecture="skip", resolution=r)
        block.register_buffer("resample_filter", KERNEL.clone())
        for layer in ("conv0", "conv1", "torgb"):
            if f"synthesis.b{r}.{layer}.weight" not in state:
                continue
            name = f"synthesis.b{r}.{layer}"
            conv = module(
                "SynthesisLayer", name, activation="lrelu", conv_clamp=a.conv_clamp, **attributes
            )
            conv.affine = module("FullyConnectedLayer", f"{name}.affine", activation="linear")
            if layer != "torgb":
                conv.register_buffer("resample_filter", KERNEL.clone())
                # fp16 blocks keep their weights channels last: strides in the file are no trifle
                conv.weight.data = conv.weight.data.to(memory_format=torch.channels_last)
            setattr(block, layer, conv)
        setattr(synthesis, f"b{r}", block)
    return Persistent(
        "Generator",
        z_dim=a.z_dim,
        c_dim=0,
        mapping=mapping,
        synthesis=synthesis,
        _init_args=(),
        _init_kwargs=EasyDict(conv_clamp=a.conv_clamp),
    )


def nvidia() -> AbstractContextManager[None]:
    return registered(
        {
            "torch_utils.persistence._reconstruct_persistent_obj": _reconstruct_persistent_obj,
            "dnnlib.util.EasyDict": EasyDict,
        }
    )


TINY = Architecture(8, {4: 2, 8: 2}, 3, 3, 1)


def tiny_files() -> dict[str, bytes]:
    """The same small generator in every container."""
    g = randomised(TINY)
    files = {}
    with nvidia():
        files["nvidia"] = pickle.dumps({"G_ema": persistent(g)})
    folder = Path(tempfile.mkdtemp())
    save_rosinality(folder / "x.pt", g)
    files["zip"] = (folder / "x.pt").read_bytes()
    content = torch.load(folder / "x.pt", weights_only=True)
    torch.save(content, folder / "x.pt", _use_new_zipfile_serialization=False)
    files["legacy"] = (folder / "x.pt").read_bytes()
    save_generator(folder / "x.safetensors", g)
    files["safetensors"] = (folder / "x.safetensors").read_bytes()
    shutil.rmtree(folder)
    files["tensorflow"] = tensorflow()[0]
    return files
