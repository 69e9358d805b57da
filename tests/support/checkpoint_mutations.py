"""Damaged and hostile variants of small checkpoints, and what becomes of reading them."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import pickletools
import resource
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from checkpoint_writers import CANARY, tiny_files

from core.base.errors import ReenactError
from core.edit.directions import load_directions
from core.generator.checkpoints import load_any
from core.generator.encoders import load_encoder

SECONDS, MEGABYTES = 2, 500  # of processor time and of memory, for one file
OUTCOMES = ("opened", "refused", "traceback", "over the limit", "code run")

# What a pickle may call for, valid or not, with arguments of every kind.
_PIECES = [
    b"N", b"]", b"}", b")", b"(", b"t", b"e", b"u", b"s", b"a", b"\x85", b"\x86", b"\x87", b"R",
    b"b", b"\x81", b"\x94", b"h\0", b"h\1", b"h\2", b"q\0", b"\x93", b"\x90", b"\x8f", b"\x91",
    b"K\5",
    b"\x88", b"Q", b"J\xff\xff\xff\x7f", b"G\x7f\xf8\0\0\0\0\0\0", b"\x8a\1\xff", b"\x8c\1a",
    b"\x8c\6latin1", b"C\2ab", b"X\2\0\0\0f4", b"\x8c\5state", b"\x8c\nclass_name",
    b"\x8c\5g_ema", b"\x8c\nlatent_avg", b"X\xff\xff\0\0", b"B\0\0\1\0", b"\x8e" + b"\xff" * 8,
    *(f"c{name}\n".encode() for name in (
        "collections\nOrderedDict", "numpy\ndtype", "numpy.core.multiarray\n_reconstruct",
        "numpy\nndarray", "numpy.core.multiarray\nscalar", "torch._utils\n_rebuild_tensor_v2",
        "torch.storage\n_load_from_bytes", "torch\nSize", "_codecs\nencode", "builtins\nset",
        "torch_utils.persistence\n_reconstruct_persistent_obj", "argparse\nNamespace",
        "dnnlib.tflib.network\nNetwork", "torch\nFloatStorage", "torch.nn.modules.linear\nLinear",
        "pathlib\nPosixPath", "os\nsystem", "builtins\neval",
    )),
]  # fmt: skip
_VALUES: list[object] = [
    None, True, -1, 0, 1, 2**62, 10**400, 1e300, -1.5, "", "F4", "F6_E2M3", "F8_E4M3",
    "a\x1b[2J\nb",
    [], [0], [2**40, 2**40], {}, {"a": {"b": []}},
]  # fmt: skip


def bodies() -> dict[str, bytes]:
    """Valid files to start from: every container of a generator, and directions."""
    files = tiny_files()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "smile.pt"
        torch.save({"smile": torch.ones(1, 16), "age": torch.ones(16)}, path)
        files["directions"] = path.read_bytes()
    return files


def mutations(files: dict[str, bytes], seed: int) -> Iterator[bytes]:
    """Yields damaged files without end, always the same ones for a seed."""
    random = np.random.default_rng(seed)
    kinds = sorted(files)
    while True:
        kind = kinds[random.integers(len(kinds))]
        data = bytearray(files[kind])
        choices = [_flip, _cut, _splice, _field]
        choices += [_header] * 6 if kind == "safetensors" else [_instructions, _instructions]
        for _ in range(random.integers(1, 4)):
            data = choices[random.integers(len(choices))](data, random)
        yield bytes(data)


def _flip(data: bytearray, random: np.random.Generator) -> bytearray:
    for _ in range(random.integers(1, 9)):
        if data:
            data[random.integers(len(data))] = random.integers(256)
    return data


def _cut(data: bytearray, random: np.random.Generator) -> bytearray:
    return data[: random.integers(len(data) + 1)]


def _splice(data: bytearray, random: np.random.Generator) -> bytearray:
    """Copies a part to another place, over what is there or between."""
    if not data:
        return data
    start, target = random.integers(len(data), size=2)
    part = data[start : start + random.integers(1, 200)]
    end = target + (len(part) if random.integers(2) else 0)
    return data[:target] + part + data[end:]


def _field(data: bytearray, random: np.random.Generator) -> bytearray:
    """Puts an extreme number where lengths and counts may be."""
    value = [0, 1, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 64) - 1][random.integers(7)]
    size = (1, 2, 4, 8)[random.integers(4)]
    at = random.integers(len(data) + 1)
    data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
    return data


def _instructions(data: bytearray, random: np.random.Generator) -> bytearray:
    """Removes, repeats, swaps or adds whole instructions of the (first) pickle in the file."""
    start = max(bytes(data).find(b"\x80\x02"), bytes(data).find(b"\x80\x04"), 0)
    try:
        places = [at for _, _, at in pickletools.genops(bytes(data[start:]))]
    except Exception:  # damaged already
        return _flip(data, random)
    pieces = [bytes(data[start + a : start + b]) for a, b in itertools.pairwise(places)]
    end = start + places[-1]
    for _ in range(random.integers(1, 5)):
        at = int(random.integers(len(pieces))) if pieces else 0
        match random.integers(4):
            case 0 if pieces:
                del pieces[at]
            case 1 if pieces:
                pieces.insert(at, pieces[random.integers(len(pieces))])
            case 2 if pieces:
                other = random.integers(len(pieces))
                pieces[at], pieces[other] = pieces[other], pieces[at]
            case _:
                added = [_PIECES[i] for i in random.integers(len(_PIECES), size=3)]
                pieces[at:at] = added
    return bytearray(data[:start] + b"".join(pieces) + data[end:])


def _header(data: bytearray, random: np.random.Generator) -> bytearray:
    """Changes an entry of a safetensors header."""
    length = int.from_bytes(data[:8], "little")
    try:
        table = json.loads(bytes(data[8 : 8 + length]))
        names = sorted(table)
        value = _VALUES[random.integers(len(_VALUES))]
        name = names[random.integers(len(names))]
        if random.integers(4) == 0 or not isinstance(table[name], dict):
            table[name] = value
        else:
            fields = sorted(table[name])
            field = fields[random.integers(len(fields))]
            if field == "architecture" and random.integers(3):
                inner = json.loads(table[name][field])
                keys = sorted(inner)
                inner[keys[random.integers(len(keys))]] = value
                value = json.dumps(inner)
            table[name][field] = value if name != "__metadata__" else str(value)
    except (ValueError, TypeError, IndexError, RecursionError):
        return _flip(data, random)
    header = json.dumps(table).encode()
    return bytearray(len(header).to_bytes(8, "little") + header + data[8 + length :])


def read(path: Path) -> str:
    """Reads a file by every reader; returns its outcome, or a traceback."""
    outcome = "refused"
    for reader in (load_any, load_encoder, load_directions):
        try:
            reader(path)
            outcome = "opened"
        except ReenactError as error:
            said = str(error)
            if "\x1b" in said or "\n" in said or not said.rstrip().endswith((".", ")")):
                return f"traceback: no plain sentence: {said!r}"
            if "in a way that is not known" in said:  # the last net: a kind that is to be told
                return f"net: {''.join(traceback.format_exception(error.__cause__)[-3:])}"
        except Exception:
            return f"traceback: {traceback.format_exc(limit=-3)}"
    return outcome


def _serve(seed: int, first: int, last: int, results: Connection) -> None:
    """Reads the mutations of numbers [first, last), and tells what became of each."""
    torch.set_num_threads(1)
    files = bodies()
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEGABYTES * 2**20,) * 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        for data in itertools.islice(mutations(files, seed), first, last):
            path.write_bytes(data)
            began = time.process_time()
            outcome = read(path)
            if (took := time.process_time() - began) > SECONDS:
                outcome = f"over the limit: {took:.1f} s"
            if CANARY.exists():
                outcome = "code run"
                CANARY.unlink()
            results.send(outcome)


def run(count: int, seed: int = 0, keep: Path | None = None) -> tuple[Counter, list[str]]:
    """Reads mutations in child processes with limits of time and memory.

    Args:
        count: of mutations.
        seed: of their sequence.
        keep: a folder for the files that were neither opened nor refused.

    Returns:
        How many had each of `OUTCOMES`, or were told by the last net only ("net"), and what was
        wrong with the rest.
    """
    context = multiprocessing.get_context("fork")
    counts: Counter = Counter()
    problems: dict[int, str] = {}
    number = 0
    while number < count:
        results, ours = context.Pipe(duplex=False)
        child = context.Process(target=_serve, args=(seed, number, count, ours))
        child.start()
        ours.close()
        with suppress(EOFError):
            while number < count and results.poll(60):  # s, of a busy machine's
                outcome = results.recv()
                kind = outcome.partition(":")[0]
                counts[kind] += 1
                if kind not in ("opened", "refused"):
                    problems[number] = outcome
                number += 1
        if number < count:
            counts["over the limit"] += 1
            problems[number] = "the process hung, or died"
            number += 1
        child.kill()
        child.join()
    if keep is not None and problems:
        for i, data in enumerate(itertools.islice(mutations(bodies(), seed), max(problems) + 1)):
            if i in problems:
                (keep / f"{seed}_{i}").write_bytes(data)
    return counts, [f"{seed}/{i}: {problem}" for i, problem in problems.items()]
