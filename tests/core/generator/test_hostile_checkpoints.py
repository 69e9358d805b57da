"""Small files that ask for much, numbers that are none, and files that are no files."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import socket
import struct
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_mutations import run
from checkpoint_readers import READERS, SECONDS, read_all
from checkpoint_writers import (
    CHANNELS,
    WIDTH,
    Network,
    Persistent,
    nvidia,
    persistent,
    randomised,
    registered,
    tensorflow,
)
from limited import limited
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from core.base import container
from core.base.errors import ReenactError
from core.base.text import printable
from core.edit.directions import NotDirectionsError, load_directions
from core.generator import Architecture, Generator
from core.generator.checkpoints import load_any, read_checkpoint, save_rosinality
from core.generator.encoders import load_encoder
from core.generator.storage import NotAGeneratorError, load_generator, save_generator
from core.generator.unpickling import UnreadableCheckpointError, read_pickle
from core.personalize import character
from core.solve import latent_track
from core.stylize import style
from server.cli.models import app

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")


def nested(levels: int = 60) -> object:
    """A tuple whose text has 2**levels words."""
    value: object = "ha" * 50
    for _ in range(levels):
        value = (value, value)
    return value


def shared(names: list[str], *shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Tensors of the shapes, in turn, that are views of one storage."""
    largest = torch.zeros(max(math.prod(shape) for shape in shapes))
    views = [largest[: math.prod(shape)].reshape(shape) for shape in shapes]
    return {name: views[i % len(views)] for i, name in enumerate(names)}


def wide(channels: int = 2048, size: int = 1024) -> dict[str, Tensor]:
    """A generator of many channels, all of whose tensors share one storage."""
    sizes = {2**i: channels for i in range(2, size.bit_length())}
    with torch.device("meta"):
        a = Architecture(size, sizes, 512, 512, 1)
        shapes = {k: tuple(v.shape) for k, v in Generator(a).state_dict().items()}
    largest = torch.zeros(max(math.prod(shape) for shape in shapes.values()))
    return {k: largest[: math.prod(shape)].reshape(shape) for k, shape in shapes.items()}


def component_of_itself() -> bytes:
    with registered({"dnnlib.tflib.network.Network": Network}):
        network = Network(components={}, static_kwargs={}, variables=[("lod", 1.0)])
        network.state["components"] = {str(i): network for i in range(1000)}
        return pickle.dumps(network)


def modules(prepare: Callable[[Persistent], None]) -> bytes:
    with nvidia():
        module = Persistent("Generator")
        prepare(module)
        return pickle.dumps({"G_ema": module})


def long_prefixes(module: Persistent) -> None:
    for level in range(13):
        child = Persistent("Block")
        for i in range(100):
            child.__dict__["_parameters"][f"{level}{i}"] = nn.Parameter(torch.zeros(1))
        module._modules["x" * 1_000_000 + str(level)] = child
        module = child


def shared_table(module: Persistent) -> None:
    leaf = Persistent("Leaf")
    leaf.__dict__["_parameters"] = dict.fromkeys(
        map(str, range(40_000)), nn.Parameter(torch.zeros(1))
    )
    for i in range(100):
        branch = Persistent("Branch")
        branch.__dict__["_modules"] = {str(k): leaf for k in range(100)}
        module._modules[str(i)] = branch


def saved(content: object, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def storage_over_and_over() -> bytes:
    """One storage within a pickle, made into a new one as often as the file has bytes for it."""
    inner = saved(torch.zeros(4).untyped_storage(), legacy=True)
    head = b"\x80\x04](ctorch.storage\n_load_from_bytes\nq\0B" + struct.pack("<I", len(inner))
    return head + inner + b"\x85q\1" + b"h\0h\1R" * 60_000 + b"e."


def copies(name: bytes, length: int) -> bytes:
    """The same list of pairs passed to a call again and again."""
    many = b"\x80\x04](" + b"K\1K\2\x86" * length + b"e\x94c" + name + b"\n\x94"
    return many + b"](" + b"h\1h\0\x85R" * 50_000 + b"e."


def safetensors(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


def many_entries() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        for i in range(60_000):
            archive.writestr(f"x/{i}", b"")
    return file.getvalue()


def exponential_tables() -> dict:
    table: dict = {"smile": torch.ones(16)}
    for _ in range(40):
        table = {"a": table, "b": table}
    return table


def itself() -> dict:
    table: dict = {}
    table["g_ema"] = table["state_dict"] = table["a"] = table
    return table


BOMBS: dict[str, Callable[[], bytes]] = {
    "nested class name": lambda: pickle.dumps({"G_ema": 0}).replace(
        b"K\0", modules_of_name(nested())
    ),
    "nested options": lambda: saved(
        {"state_dict": {"encoder.a": torch.zeros(1)}, "opts": {"encoder_type": nested()}}
    ),
    "nested rate": lambda: saved({"g_ema": small_state(), "reenact": {"mapping_rate": nested()}}),
    "nested clamp": lambda: saved({"g_ema": small_state(), "reenact": {"conv_clamp": nested()}}),
    "nested activation": lambda: tensorflow(nonlinearity=nested())[0],
    "nested label size": lambda: tensorflow(label_size=nested())[0],
    "nested kernel": lambda: tensorflow(resample_kernel=nested())[0],
    "a component of itself": component_of_itself,
    "long prefixes": lambda: modules(long_prefixes),
    "a shared table": lambda: modules(shared_table),
    "layers that share": lambda: saved(
        small_state() | shared([f"style.{i}.weight" for i in range(1, 61)], (2048, 2048))
    ),
    "60,000 mapping layers": lambda: saved(
        small_state() | shared([f"style.{i}.weight" for i in range(1, 60_001)], (1, 1))
    ),
    "60,000 layers of NVIDIA's": lambda: saved(
        wide(8, 8) | shared([f"mapping.fc{i}.weight" for i in range(60_000)], (1, 1))
    ),
    "60,000 layers of w+": lambda: saved(
        shared([f"encoder.styles.{i}.linear.bias" for i in range(19_000)], (1,))
        | shared(
            [
                *(f"encoder.body.{i}.res_layer.1.weight" for i in range(24)),
                *(f"encoder.body.{i}.res_layer.5.fc1.weight" for i in range(24)),
                "encoder.input_layer.0.weight",
            ],
            (1, 1, 1, 1),
        )
    ),
    "2,048 channels, zip": lambda: saved(wide()),
    "2,048 channels, legacy": lambda: saved(wide(1024, 1024), legacy=True),
    "a storage over and over": storage_over_and_over,
    "copied tables": lambda: copies(b"collections\nOrderedDict", 5_000),
    "copied lists": lambda: copies(b"torch\nSize", 50_000),
    "copied paths": lambda: copies(b"pathlib\nPosixPath", 50_000),
    "colliding keys": lambda: pickle.dumps({i << 40: None for i in range(60_000)}),
    "much text": lambda: b"\x80\x04](" + (b"X\xff\x0f\0\0" + b"x" * 4095) * 20_000 + b"e.",
    "a long import": lambda: (
        b"\x80\x04X\0\0\x10\0" + b"x" * (1 << 20) + b"q\0(" + b"h\0h\0\x93" * 9
    ),
    "many entries": many_entries,
    "deep header": lambda: safetensors(b'{"a":' + b"[" * 900_000),
    "a wide header": lambda: safetensors(b'{"a":[' + b"[]," * 2_500_000 + b"[]]}"),
    "many arrays": lambda: safetensors(
        json.dumps(
            {str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(30_000)}
        ).encode()
    ),
    "a header of a long number": lambda: safetensors(b'{"a":' + b"9" * 1_000_000 + b"}"),
    "tables of tables": lambda: saved(exponential_tables()),
    "a table of itself": lambda: saved(itself()),
}


def modules_of_name(name: object) -> bytes:
    """The instructions that make an object of NVIDIA's with a class of that name."""
    body = pickle.dumps({"class_name": name, "state": {}}, 2)
    return b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n" + body[2:-1] + b"\x85R"


def small_state() -> dict[str, Tensor]:
    """A state dict of rosinality's, without its mapping."""
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"reenact_small_{os.getpid()}.pt"
    save_rosinality(folder, randomised())
    state: dict[str, Tensor] = torch.load(folder, weights_only=True)["g_ema"]
    folder.unlink()
    return {name: value for name, value in state.items() if not name.startswith("style.")}


def limited_reading(path: Path) -> str:
    """Returns what reading a file says, within the limits of time and memory."""
    return limited(read_all, path, seconds=len(READERS) * SECONDS)


@pytest.mark.parametrize("bomb", BOMBS)
def test_small_files_take_little_time_and_memory(tmp_path: Path, bomb: str) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(BOMBS[bomb]())
    said = limited_reading(path)
    assert said.endswith((".", ")"))
    assert "in a way that is not known" not in said


def test_sparse_files_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    heads = {
        "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 4 << 30),
        "text": b"\x80\x04\x8d" + struct.pack("<Q", 4 << 30),
        "parts": b"\x80\x04](" + b"B" + struct.pack("<I", 0xFFFFFFF0),
        "header": struct.pack("<Q", 4 << 30) + b"{",
        "array": safetensors(
            json.dumps(
                {
                    "synthesis.b4.const": {
                        "dtype": "F32",
                        "shape": [2048, 4, 1 << 17],
                        "data_offsets": [0, 4 << 30],
                    }
                }
            ).encode()
        ),
    }
    for kind, head in heads.items():
        with path.open("wb") as file:
            file.write(head)
            file.truncate(len(head) + (4 << 30))
        assert limited_reading(path), kind


# -- numbers that are none ----------------------------------------------------------------------


def sentence(path: Path, reader: Callable = load_any) -> str:
    with pytest.raises(ReenactError) as caught:
        reader(path)
    said = str(caught.value)
    assert str(path) in said
    assert "in a way that is not known" not in said
    return said


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0, 1e300, 1e-300, "text", True, [1]])
@pytest.mark.parametrize("option", ["mapping_rate", "conv_clamp"])
def test_options_that_make_no_sense_are_refused(tmp_path: Path, value: object, option: str) -> None:
    g = randomised()
    save_rosinality(tmp_path / "x.pt", g)
    content = torch.load(tmp_path / "x.pt", weights_only=True)
    content["reenact"][option] = value
    torch.save(content, tmp_path / "x.pt")
    assert "rate" in sentence(tmp_path / "x.pt") or "clamp" in sentence(tmp_path / "x.pt")
    (tmp_path / "x.pkl").write_bytes(
        tensorflow(**{"mapping_lrmul" if option == "mapping_rate" else option: value})[0]
    )
    sentence(tmp_path / "x.pkl")
    with nvidia():
        module: Any = persistent(g)
        for layer in (module.mapping.fc0, module.mapping.fc1, module.mapping.fc2):
            layer.bias_gain = value if option == "mapping_rate" else 0.01
        for name, part in module.synthesis.named_modules():
            if option == "conv_clamp" and name.endswith(("conv0", "conv1", "torgb")):
                part.conv_clamp = value
        (tmp_path / "n.pkl").write_bytes(pickle.dumps({"G_ema": module}))
    if not isinstance(value, list):  # which is no attribute that counts
        sentence(tmp_path / "n.pkl")
    if isinstance(value, float):
        with pytest.raises(ValueError, match=r"rate|clamp"):
            Architecture(64, CHANNELS, WIDTH, WIDTH, 3, **{option: value})


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300, 1e20, -1e300])
def test_weights_that_no_generator_has_are_refused_in_and_out(tmp_path: Path, value: float) -> None:
    g = randomised()
    state = {k: v.double().contiguous() for k, v in g.state_dict().items()}
    state["synthesis.b16.conv1.weight"][0, 0, 0, 0] = value
    torch.save(state, tmp_path / "x.pt")
    save_file(state, tmp_path / "x.safetensors")
    for name in ("x.pt", "x.safetensors"):
        assert "synthesis.b16.conv1.weight" in sentence(tmp_path / name)
    with torch.no_grad():
        weight = g.get_parameter("synthesis.b16.conv1.weight")
        weight[0, 0, 0, 0] = torch.tensor(value).item()  # infinite where float32 can't hold it
    for write, name in ((save_generator, "out.safetensors"), (save_rosinality, "out.pt")):
        with pytest.raises(NotAGeneratorError, match="not written"):
            write(tmp_path / name, g)
        assert not (tmp_path / name).exists()


def changed(path: Path, change: Callable[[dict, dict], None]) -> None:
    """Writes a generator of Reenact's with another header: entries and architecture."""
    save_generator(path, randomised())
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    table = json.loads(raw[8 : 8 + length])
    architecture = json.loads(table["__metadata__"]["architecture"])
    change(table, architecture)
    if "architecture" in table["__metadata__"]:
        table["__metadata__"]["architecture"] = json.dumps(architecture)
    path.write_bytes(safetensors(json.dumps(table).encode()) + raw[8 + length :])


@pytest.mark.parametrize(
    "change",
    [
        lambda table, a: a.update(mapping_rate=math.nan),
        lambda table, a: a.update(mapping_rate=0),
        lambda table, a: a.update(conv_clamp="text"),
        lambda table, a: a.update(conv_clamp=-1),
        lambda table, a: a.update(mapping_layers=10**9),
        lambda table, a: a.update(mapping_layers="3"),
        lambda table, a: a.update(resolution=2**40),
        lambda table, a: a.update(resolution=None),
        lambda table, a: a.update(z_dim=0),
        lambda table, a: a.update(z_dim=10**12),
        lambda table, a: a.update(channels={}),
        lambda table, a: a["channels"].update({"4": 0}),
        lambda table, a: table["__metadata__"].update(notes="[" * 100_000),
        lambda table, a: table["__metadata__"].update(notes='{"a": 1}'),
        lambda table, a: table["__metadata__"].update(notes='["a", 1]'),
        lambda table, a: table["__metadata__"].update(version="9" * 5000),
        lambda table, a: table["__metadata__"].update(version="x"),
        lambda table, a: table["__metadata__"].update(version=1),
        lambda table, a: table["__metadata__"].pop("architecture"),
        lambda table, a: table["mapping.w_avg"].update(dtype="F4"),
        lambda table, a: table["mapping.w_avg"].update(dtype="F6_E2M3"),
        lambda table, a: table["mapping.w_avg"].update(dtype="F8_E4M3"),
        lambda table, a: table["mapping.w_avg"].update(dtype=["F32"]),
        lambda table, a: table["mapping.w_avg"].update(shape=[2**62, 2**62]),
        lambda table, a: table["mapping.w_avg"].update(shape=[-1, -16]),
        lambda table, a: table["mapping.w_avg"].update(data_offsets=[0, 2**70]),
        lambda table, a: table.update({"a\x1b[2J\n": table.pop("mapping.w_avg")}),
        lambda table, a: table.update({"x" * 5000: table.pop("mapping.w_avg")}),
    ],
)
def test_damaged_headers_of_ours_are_sentences(
    tmp_path: Path, change: Callable[[dict, dict], None]
) -> None:
    path = tmp_path / "x.safetensors"
    changed(path, change)
    for reader in (load_any, load_generator):
        said = limited(reader, path)
        if "notes" not in path.read_text("latin1") or reader is load_any:
            assert str(path) in said
        assert "\x1b" not in said
        assert "in a way that is not known" not in said


@pytest.mark.parametrize(
    "shapes",
    [
        {"style.1.weight": (WIDTH, 0)},
        {"style.1.weight": (0, WIDTH)},
        {"style.1.weight": ()},
        {"conv1.conv.weight": (1, 0, 0, 3, 3)},
        {"conv1.conv.modulation.weight": (12, 0)},
        {"conv1.conv.modulation.weight": ()},
        {"input.input": (1, 0, 4, 4)},
        {"noises.noise_0": (1, 1, 0, 0)},
        {"latent_avg": (0,)},
        {"latent_avg": (0, WIDTH)},
        {"latent_avg": (3, 0)},
        {"latent_avg": ()},
    ],
)
def test_sizes_of_zero_are_sentences(tmp_path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    save_rosinality(tmp_path / "x.pt", randomised())
    content = torch.load(tmp_path / "x.pt", weights_only=True)
    for name, shape in shapes.items():
        (content if name == "latent_avg" else content["g_ema"])[name] = torch.zeros(shape)
    torch.save(content, tmp_path / "x.pt")
    sentence(tmp_path / "x.pt")


def test_deep_names_are_sentences(tmp_path: Path) -> None:
    deep = ()
    for _ in range(5000):
        deep = (deep,)
    name = b"X\1\0\0\0n" + b")" + b"\x85" * 5000
    for data in (
        b"\x80\x02ctorch_utils.persistence\n_reconstruct_persistent_obj\n}(X\x0a\0\0\0class_name)"
        + b"\x85" * 5000
        + b"X\5\0\0\0state}u\x85R.",
        b"\x80\x02}(X\4\0\0\0opts}" + name + b"sX\5\0\0\0g_ema}u.",
    ):
        (tmp_path / "x.pkl").write_bytes(data)
        sentence(tmp_path / "x.pkl")


def test_linear_convolutions_are_refused(tmp_path: Path) -> None:
    """They were drawn with the usual leaky ReLU."""
    with nvidia():
        module: Any = persistent(randomised())
        module.synthesis.b8.conv0.activation = "linear"
        (tmp_path / "x.pkl").write_bytes(pickle.dumps({"G_ema": module}))
    assert "activation is linear" in sentence(tmp_path / "x.pkl")
    with nvidia():
        module = persistent(randomised())
        module.synthesis.b8.conv0.affine.activation = "lrelu"
        (tmp_path / "x.pkl").write_bytes(pickle.dumps({"G_ema": module}))
    assert "activation is lrelu" in sentence(tmp_path / "x.pkl")


def test_mapping_rates_that_differ_are_refused(tmp_path: Path) -> None:
    with nvidia():
        module: Any = persistent(randomised())
        module.mapping.fc1.bias_gain = 1.0
        (tmp_path / "x.pkl").write_bytes(pickle.dumps({"G_ema": module}))
    assert "mapping rates differ" in sentence(tmp_path / "x.pkl")


# -- what good files keep -----------------------------------------------------------------------


def test_large_files_of_protocol_2_are_read(tmp_path: Path) -> None:
    """Each tensor is text there; its bytes counted twice against the work allowed."""
    g = randomised(Architecture(64, dict.fromkeys(CHANNELS, 64), WIDTH, WIDTH, 2))
    with nvidia():
        data = pickle.dumps({"G": persistent(g), "G_ema": persistent(g)}, 2)
    (tmp_path / "x.pkl").write_bytes(data)
    loaded, _ = load_any(tmp_path / "x.pkl")
    assert all(
        torch.equal(a, b)
        for a, b in zip(g.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def test_long_strings_stay_in_the_file(tmp_path: Path) -> None:
    data = pickle.dumps({"a": np.arange(10_000, dtype=np.float32), "b": "x" * 10_000}, 2)
    (tmp_path / "x.pkl").write_bytes(data)
    content: Any = read_pickle(tmp_path / "x.pkl")
    np.testing.assert_array_equal(content["a"].load(), np.arange(10_000, dtype=np.float32))
    (tmp_path / "x.pkl").write_bytes(data[:3000])
    with pytest.raises(UnreadableCheckpointError, match="can't be read"):
        content["a"].load()


def test_what_a_state_dict_cannot_tell_is_said(tmp_path: Path) -> None:
    g = randomised()
    torch.save(g.state_dict(), tmp_path / "bare.pt")
    torch.save({"G_ema": g.state_dict()}, tmp_path / "wrapped.pt")
    save_rosinality(tmp_path / "ours.pt", g)
    for name in ("bare.pt", "wrapped.pt"):
        assert any("lr_mlp" in note for note in read_checkpoint(tmp_path / name).notes)
    assert not read_checkpoint(tmp_path / "ours.pt").notes  # it says both


def test_into_w_plus_is_no_w_encoder(tmp_path: Path) -> None:
    save_rosinality(tmp_path / "g.pt", randomised())
    decoder = torch.load(tmp_path / "g.pt", weights_only=True)["g_ema"]
    state = {f"decoder.{k}": v for k, v in decoder.items()} | {
        "encoder.input_layer.0.weight": torch.zeros(4, 3, 3, 3),
        "encoder.output_layer_2.0.weight": torch.zeros(4),
        "encoder.linear.weight": torch.zeros(4 * 18, 4),
    }
    torch.save({"state_dict": state, "latent_avg": torch.zeros(WIDTH)}, tmp_path / "x.pt")
    assert read_checkpoint(tmp_path / "x.pt").encoder == "pSp IntoWPlus"
    assert "IntoWPlus" in sentence(tmp_path / "x.pt", load_encoder)


# -- files that are no files, names that are no names -------------------------------------------


def test_pipes_devices_and_sockets_are_not_waited_for(tmp_path: Path) -> None:
    pipe, unix = tmp_path / "pipe.pt", tmp_path / "s.pt"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(unix))
        readers = (
            *READERS,
            load_generator,
            partial(container.read, format="x", version=1, wrong=NotDirectionsError, kind="file"),
        )
        for path in (pipe, unix, Path("/dev/zero"), tmp_path):
            for reader in readers:
                said = limited(reader, path, wall=10)
                assert str(path) in said


@pytest.mark.parametrize(
    "info",
    ["[" * 100_000, '{"name": 5}', '{"name": ["a"]}', "[1]", '{"name": "", "losses": 3}'],
)
def test_records_of_ours_are_what_they_say(tmp_path: Path, info: str) -> None:
    entries = {"info": info, "architecture": "{}", "track": info}
    for kind, version, load in (
        (style.FORMAT, style.VERSION, style.style_info),
        (character.FORMAT, character.VERSION, character.load_character),
        (latent_track.FORMAT, latent_track.VERSION, latent_track.load_track),
    ):
        path = tmp_path / "x"
        container.write(path, kind, version, entries, {"a": np.zeros(1)})
        assert str(path) in limited(load, path)


HOSTILE_NAME = "b4.\x1b[2J\x1b]0;x\x07\r\n\x9b31m\u202e.weight"


def test_names_never_reach_a_terminal(tmp_path: Path) -> None:
    state = {HOSTILE_NAME: torch.zeros(2)}
    torch.save(state, tmp_path / "a.pt")
    save_file(state, tmp_path / "b.safetensors")
    g = randomised().state_dict()
    torch.save(g | {f"synthesis.{HOSTILE_NAME}": torch.zeros(1)}, tmp_path / "c.pt")
    save_generator(tmp_path / "d.safetensors", randomised(), {"notes": json.dumps([HOSTILE_NAME])})
    (tmp_path / "e.pkl").write_bytes(
        b"\x80\x04X" + struct.pack("<I", 7) + b"\x1b[2J\n\r." + b"X\1\0\0\0x\x93."
    )
    torch.save({HOSTILE_NAME: torch.ones(16)}, tmp_path / "f.pt")
    for path in sorted(tmp_path.iterdir()):
        result = CliRunner().invoke(app, ["inspect", str(path)])
        said = result.output + (str(result.exception) if result.exception else "")
        assert not set(said) & set("\x1b\x07\r\x9b\u202e"), path
        if result.exception:
            assert "\n" not in str(result.exception)
            assert isinstance(result.exception, ReenactError)
    directions = load_directions(tmp_path / "f.pt")
    assert all(printable(name) == name for name in directions.directions)


def test_written_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_generator(tmp_path / "a.safetensors", randomised())
        save_rosinality(tmp_path / "a.pt", randomised())
        container.write(tmp_path / "a.style", "x", 1, {}, {"a": np.zeros(1)})
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o640, path


def test_another_tools_checkpoint_as_a_base_says_what_to_do(tmp_path: Path) -> None:
    with nvidia():
        data = pickle.dumps({"G_ema": persistent(randomised())})
    (tmp_path / "x.pkl").write_bytes(data)
    torch.save(randomised().state_dict(), tmp_path / "x.pt")
    state = {name: tensor.contiguous() for name, tensor in randomised().state_dict().items()}
    save_file(state, tmp_path / "x.safetensors")
    for name in ("x.pkl", "x.pt", "x.safetensors"):
        said = sentence(tmp_path / name, load_generator)
        assert f"reenact models import {tmp_path / name}" in said


# -- a short fuzz; benchmarks/checkpoint_fuzz.py is the long one --------------------------------


def test_mutated_files_open_or_are_refused_in_a_sentence() -> None:
    counts, problems = run(1000, seed=7)
    assert not problems
    assert counts["opened"] > 20
    assert counts["refused"] > 200
    assert counts.total() == 1000
