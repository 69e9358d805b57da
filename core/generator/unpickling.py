"""Reads the tensors of pickled checkpoints without running anything in them.

A pickle is a program. This is an interpreter for the few instructions that checkpoints need, in
which every imported name is replaced by a stand-in from this module; whatever is not listed is
refused by name. Three containers are read: a bare pickle, torch's zip files, and the files that
torch wrote before 1.6 (several pickles, then the raw storages).

A small program can ask for any amount of work or memory, so one `_Budget` bounds the instructions,
the copies and the text of a whole file, and everything long stays in the file until it is loaded.

Formats: the pickle protocol as `pickletools` documents it, and torch/serialization.py's.
"""

import math
import pickletools
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from core.base.errors import ReenactError, reading
from core.base.files import file_size
from core.base.text import printable

# Several times the values of the largest known checkpoints.
MAX_OPERATIONS = 300_000  # instructions of all pickles in a file, and entries that they copy
MAX_MARKS = 1000  # containers being filled at the same time
MAX_NAME = 400  # characters of an imported name
MAX_INTEGER = 256  # bytes
MAX_SHORT = 4096  # bytes of a string that is kept in memory; longer ones stay in the file
MAX_TEXT = 32 << 20  # bytes of all strings in memory
MAX_INDEX = 32 << 20  # bytes of a zip's directory, and of the pickle in it
MAX_ENTRIES = 50_000  # of a zip's directory
MAX_STORAGE = 320 << 20  # bytes; a convolution of 2,048 channels in float64 has 302 MB
MAX_DIMENSIONS = 16
# Keys beyond are few: as a dictionary's slots follow from its keys, others could all collide.
MAX_KEY, MAX_LARGE_KEYS = 1 << 16, 10_000

TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of torch's old files

_ReadAt = Callable[[int, int], bytearray]  # start, count -> bytes, fewer at the file's end


class UnreadableCheckpointError(ReenactError):
    """The file is cut short, damaged, or not of a kind that is read here."""


class RefusedPickleError(UnreadableCheckpointError):
    """The file asks for something that no checkpoint needs.

    Attributes:
        refused: what it asked for: "os.system", "the instruction INST".
    """

    def __init__(self, path: str | Path, refused: str) -> None:
        self.refused = refused
        super().__init__(
            f"{path} asks for {refused}, which no generator's checkpoint needs, so it was refused; "
            "nothing in it was run. Get the file from its maker, or export its weights as "
            "safetensors where it was made."
        )


class _Refuse(Exception):
    """Carries the name of what is refused up to where the path is known."""


class _Damaged(Exception):
    """Carries the reason up to where the path is known."""


class _Budget:
    """What the pickles of one file may still ask for, all together."""

    def __init__(self, size: int) -> None:
        self.operations = MAX_OPERATIONS
        self.copies = MAX_OPERATIONS  # entries of containers that are passed to a call
        self.text = MAX_TEXT
        self.decoded = 2 * size  # bytes of long strings that are decoded
        self.large_keys = MAX_LARGE_KEYS

    def copy(self, entries: int) -> None:
        self.copies -= entries
        if self.copies < 0:
            raise _Refuse("the same objects to be copied over and over")

    def keep(self, length: int) -> None:
        self.text -= length
        if self.text < 0:
            raise _Refuse(f"more than {MAX_TEXT >> 20} MiB of text")

    def decode(self, length: int) -> None:
        self.decoded -= length
        if self.decoded < 0:
            raise _Refuse("the same objects to be copied over and over")

    def check_key(self, key: object) -> None:
        # Others may be slow or dangerous to hash: deep tuples overflow C's stack.
        if not (
            key is None
            or isinstance(key, (str, bytes, bool))
            or (type(key) is int and abs(key) < 2**60)
        ):
            raise _Refuse(f"a dictionary key of type {_kind(key)}")
        if type(key) is int and not 0 <= key < MAX_KEY:
            self.large_keys -= 1
            if self.large_keys < 0:
                raise _Refuse(f"more than {MAX_LARGE_KEYS} dictionary keys of no use")


# -- what a loaded pickle consists of, beside plain containers ----------------------------------


@dataclass(eq=False)
class Instance:
    """An object of which only the class's name and the state are kept.

    Attributes:
        kind: name of the class, without its module for NVIDIA's persistent objects.
        state: its attributes; empty if the file gave none.
    """

    kind: str
    state: dict = field(default_factory=dict)


@dataclass(eq=False)
class Long:
    """A long string, left in the file.

    Attributes:
        size: bytes in the file.
        text: whether it is text, not bytes.
        encoded: whether its bytes are written as UTF-8 text of the characters 0 to 255, as
            protocol 2 does.
    """

    read_at: _ReadAt
    start: int
    size: int
    text: bool = False
    encoded: bool = False

    def read(self) -> bytearray:
        """Reads its bytes."""
        raw = self.read_at(self.start, self.size)
        if len(raw) != self.size:
            raise _Damaged("the file was changed while it was read")
        return bytearray(raw.decode("utf-8").encode("latin1")) if self.encoded else raw


@dataclass(eq=False)
class Storage:
    """Raw numbers in the file, read on demand."""

    dtype: torch.dtype
    count: int
    read: Callable[[], bytearray]

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize

    @cached_property
    def numbers(self) -> Tensor:
        """`[count]`."""
        if self.nbytes > MAX_STORAGE:
            raise _Damaged(f"one storage has {self.nbytes >> 20} MiB")
        raw = self.read()
        if len(raw) != self.nbytes:
            raise _Damaged(f"a storage has {len(raw)} bytes instead of {self.count} numbers")
        if not raw:
            return torch.empty(0, dtype=self.dtype)
        return torch.frombuffer(raw, dtype=self.dtype)


@dataclass(eq=False)
class StoredTensor:
    """A view of a storage; its shape is checked at once, its numbers are read by `load`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        lengths = (*self.shape, *self.stride, self.offset)
        if len(self.shape) != len(self.stride) or not all(
            type(n) is int and 0 <= n < 2**48 for n in lengths
        ):
            raise _Damaged("a tensor has no valid shape")
        last = self.offset + sum(
            (n - 1) * s for n, s in zip(self.shape, self.stride, strict=True) if n
        )
        numel = math.prod(self.shape)
        if numel and (last >= self.storage.count or numel > self.storage.count):
            raise _Damaged(f"a tensor of shape {[*self.shape]} claims more than its storage holds")

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    def load(self) -> Tensor:
        """Returns the tensor, a view of the storage's numbers.

        Raises:
            UnreadableCheckpointError: the file ends before, or was changed since it was opened.
        """
        try:
            return self.storage.numbers.as_strided(self.shape, self.stride, self.offset)
        except (_Damaged, OSError, ValueError) as error:
            raise UnreadableCheckpointError(
                f"The checkpoint's numbers can't be read: {error}. Download or copy it again."
            ) from error


@dataclass(eq=False)
class Array:
    """A numpy array; a later instruction than the object's own says what is in it."""

    dtype: np.dtype | None = None  # None: nothing is
    shape: tuple[int, ...] = ()
    order: str = "C"
    raw: bytes | Long = b""

    def load(self) -> np.ndarray:
        """Returns the array.

        Raises:
            UnreadableCheckpointError: the file ends before, or was changed since it was opened.
        """
        try:
            raw = self.raw.read() if isinstance(self.raw, Long) else self.raw
            flat = np.frombuffer(raw, self.dtype)
            return flat.reshape(self.shape, order="F" if self.order == "F" else "C")
        except (_Damaged, OSError, ValueError) as error:
            raise UnreadableCheckpointError(
                f"The checkpoint's numbers can't be read: {error}. Download or copy it again."
            ) from error


@dataclass(eq=False)
class _Dtype:
    code: str
    order: str = "<"

    @property
    def numpy(self) -> np.dtype:
        return np.dtype(self.order + self.code)


@dataclass(frozen=True)
class _Global:
    """An imported name, and its stand-in if it may be called."""

    name: str
    make: Callable[..., object] | None = None  # called with the budget and the file's arguments
    dtype: torch.dtype | None = None  # of a storage class


# -- stand-ins for the names that checkpoints import --------------------------------------------


def _kind(value: object) -> str:
    return value.name if isinstance(value, _Global) else type(value).__name__.strip("_")


def _dict(budget: _Budget, pairs: object = (), /) -> dict:
    result = {}
    for pair in _sequence(budget, list(pairs.items()) if isinstance(pairs, dict) else pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise _Damaged(f"{_kind(pair)} where a key and a value were expected")
        budget.check_key(pair[0])
        result[pair[0]] = pair[1]
    return result


def _sequence(_budget: _Budget, value: object, /) -> list:
    if not isinstance(value, (list, tuple, set)):
        raise _Damaged(f"{_kind(value)} where a list was expected")
    return list(value)


def _set(budget: _Budget, items: object = (), /) -> set:
    values = _sequence(budget, items)
    for value in values:
        budget.check_key(value)
    return set(values)


def _bytes(budget: _Budget, value: object = b"", encoding: object = None, /) -> bytes | Long:
    """`bytes(x)`, `bytearray(x)` and `_codecs.encode(x, "latin1")`, never `bytes(10**12)`."""
    if encoding in ("latin1", "latin-1"):
        if isinstance(value, str):
            budget.keep(len(value))
            return value.encode("latin1")
        if isinstance(value, Long) and value.text:
            return Long(value.read_at, value.start, value.size, encoded=True)
    if isinstance(value, bytes) or (isinstance(value, Long) and not value.text):
        return value
    raise _Refuse(f"bytes made from {_kind(value)}")


def _persistent(_budget: _Budget, meta: object, /) -> Instance:
    """Reads NVIDIA's persistent objects; their source code is dropped."""
    if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
        raise _Damaged("a persistent object has no state")
    name = meta.get("class_name")
    return Instance(name[:MAX_NAME] if isinstance(name, str) else "nameless object", meta["state"])


def _tensor(
    _budget: _Budget, storage: object, offset: int, shape: object, stride: object, *_unused: object
) -> StoredTensor:
    if not isinstance(storage, Storage):
        raise _Damaged(f"a tensor is made of {_kind(storage)}")
    lengths = []
    for value in (shape, stride):
        if not isinstance(value, (tuple, list)) or len(value) > MAX_DIMENSIONS:
            raise _Damaged("a tensor has no valid shape")
        lengths.append(tuple(value))
    return StoredTensor(storage, offset, *lengths)


def _parameter(_budget: _Budget, tensor: object, *_unused: object) -> StoredTensor:
    if not isinstance(tensor, StoredTensor):
        raise _Damaged(f"a parameter is made of {_kind(tensor)}")
    return tensor


def _storage_from_bytes(budget: _Budget, raw: object, /) -> Storage:
    """Reads a storage inside a bare pickle, which is a whole old-style torch file of its own."""
    read_at: _ReadAt
    if isinstance(raw, Long) and raw.encoded:
        budget.decode(raw.size)
        whole = raw.read()
        size, read_at = len(whole), lambda start, count: raw.read()[start : start + count]
        inner = _legacy(budget, _Bounded(BytesIO(whole), size, read_at), nested=True)
    elif isinstance(raw, Long) and not raw.text:
        window = _Window(raw)
        inner = _legacy(budget, _Bounded(window, raw.size, window.read_at), nested=True)
    elif isinstance(raw, bytes):
        short = bytearray(raw)
        size, read_at = len(short), lambda start, count: short[start : start + count]
        inner = _legacy(budget, _Bounded(BytesIO(raw), size, read_at), nested=True)
    else:
        raise _Damaged(f"a storage is made of {_kind(raw)}")
    if not isinstance(inner, Storage):
        raise _Damaged(f"a storage's own file holds {_kind(inner)}")
    return inner


def _no_deeper(_budget: _Budget, _raw: object, /) -> None:
    raise _Refuse("a storage within a storage")


def _dtype(_budget: _Budget, code: object, *_flags: object) -> _Dtype:
    if code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"):
        raise _Refuse(
            f"a numpy array of type {code[:40] if isinstance(code, str) else _kind(code)}"
        )
    return _Dtype(str(code))


def _fill(target: Array, raw: object, dtype: object, shape: object, order: object) -> Array:
    if (
        not isinstance(raw, (bytes, Long))
        or (isinstance(raw, Long) and raw.text)
        or not isinstance(dtype, _Dtype)
        or order not in ("C", "F")
    ):
        raise _Refuse("a numpy array that is not made of plain numbers")
    if (
        not isinstance(shape, (tuple, list))
        or len(shape) > MAX_DIMENSIONS
        or not all(type(n) is int and 0 <= n < 2**48 for n in shape)
    ):
        raise _Damaged("a numpy array has no valid shape")
    length = raw.size if isinstance(raw, Long) else len(raw)
    expected = math.prod(shape) * dtype.numpy.itemsize
    if expected != length and not (
        isinstance(raw, Long) and raw.encoded and expected <= length <= 2 * expected
    ):
        raise _Damaged(f"a numpy array of shape {[*shape]} has {length} bytes")
    target.dtype, target.shape, target.order, target.raw = dtype.numpy, (*shape,), str(order), raw
    return target


def _empty_array(_budget: _Budget, cls: object, *_unused: object) -> Array:
    if not (isinstance(cls, _Global) and cls.name == "numpy.ndarray"):
        raise _Refuse(f"a numpy array of class {_kind(cls)}")
    return Array()


def _array(_budget: _Budget, raw: object, dtype: object, shape: object, order: object) -> Array:
    return _fill(Array(), raw, dtype, shape, order)


def _scalar(_budget: _Budget, dtype: object, raw: object) -> object:
    return _fill(Array(), raw, dtype, (), "C").load().item()


_STORAGES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "Untyped": torch.uint8,
}
_CALLABLE: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": _dict,
    "dnnlib.util.EasyDict": _dict,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "_codecs.encode": _bytes,
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.storage._load_from_bytes": _storage_from_bytes,
    "torch.Size": _sequence,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray._reconstruct": _empty_array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _array,
}
_INSTANCES = {
    "argparse.Namespace",
    "dnnlib.tflib.network.Network",
    "torch.device",
    *(
        f"pathlib.{c}"
        for c in (
            "PosixPath",
            "WindowsPath",
            "PurePosixPath",
            "PureWindowsPath",
            "Path",
            "PurePath",
        )
    ),
}
_VALUES = {"numpy.ndarray", *(str(d) for d in _STORAGES.values())}  # names that are only mentioned
_ALIASES = {
    "__builtin__.": "builtins.",
    "numpy._core.": "numpy.core.",
    "torch.cuda.": "torch.",
    "torch.storage.UntypedStorage": "torch.UntypedStorage",
}


def _import(module: object, name: object, *, nested: bool) -> _Global:
    if not isinstance(module, str) or not isinstance(name, str):
        raise _Damaged("an import without a name")
    if len(module) + len(name) > MAX_NAME:
        raise _Refuse(f"an import whose name has {len(module) + len(name)} characters")
    asked = full = f"{module}.{name}"
    for alias, usual in _ALIASES.items():
        if full.startswith(alias):
            full = usual + full[len(alias) :]
    for package in ("torch_utils.", "dnnlib."):  # both are vendored under other packages, too
        if f".{package}" in full:
            full = package + full.split(f".{package}", 1)[1]
    if nested and full == "torch.storage._load_from_bytes":
        return _Global(full, _no_deeper)
    if full in _CALLABLE:
        return _Global(full, _CALLABLE[full])
    if full in _INSTANCES or (full.startswith("torch.nn.modules.") and name.isidentifier()):
        return _Global(full, lambda *_: Instance(full))
    if full in _VALUES:
        return _Global(full)
    dtype = _STORAGES.get(full.removeprefix("torch.").removesuffix("Storage"))
    if dtype is not None and full.startswith("torch.") and full.endswith("Storage"):
        return _Global(full, dtype=dtype)
    raise _Refuse(asked[:200])


# -- the interpreter ----------------------------------------------------------------------------


class _Window:
    """A long string as a stream, read block by block."""

    def __init__(self, raw: Long) -> None:
        self.raw = raw
        self.at = self.start = 0  # where the next byte is, and where the block starts
        self.block = bytearray()

    def read(self, count: int) -> bytearray:
        first = self.at - self.start
        if not 0 <= first <= first + count <= len(self.block):
            self.block, self.start, first = self.read_at(self.at, max(count, MAX_SHORT)), self.at, 0
        data = self.block[first : first + count]
        self.at += len(data)
        return data

    def readline(self, count: int) -> bytearray:
        before = self.at
        data = self.read(count)
        line = data[: data.find(b"\n") + 1] or data
        self.at = before + len(line)
        return line

    def seek(self, count: int, _whence: int) -> None:
        self.at += count

    def read_at(self, start: int, count: int) -> bytearray:
        if not 0 <= start <= self.raw.size:
            return bytearray()
        return self.raw.read_at(self.raw.start + start, min(count, self.raw.size - start))


class _Bounded:
    """A stream that raises where more bytes are requested than it has left.

    Args:
        stream: positioned at its start.
        size: bytes in it.
        read_at: reads a part of it again, at any later time.
    """

    def __init__(self, stream: Any, size: int, read_at: _ReadAt) -> None:
        self.stream = stream
        self.size = self.left = size
        self.read_at = read_at

    def read(self, count: int) -> bytes:
        self._take(count)
        return self.stream.read(count)

    def skip(self, count: int) -> int:
        """Passes over bytes; returns where they start."""
        start = self.size - self.left
        self._take(count)
        self.stream.seek(count, 1)
        return start

    def readline(self) -> bytes:
        line = self.stream.readline(min(self.left, MAX_NAME + 2))
        self.left -= len(line)
        if not line.endswith(b"\n"):
            raise _Damaged("a name in it has no end")
        return line[:-1]

    def _take(self, count: int) -> None:
        if count > self.left:
            raise _Damaged(f"it ends {count - self.left} bytes too early")
        self.left -= count


class _Interpreter:
    """The state of one pickle's program: its stack, its open containers and its memo.

    Args:
        budget: of the file.
        stream: the bytes; positioned behind the pickle afterwards.
        persistent: makes objects of torch's persistent ids; None refuses them.
        nested: whether this pickle is within another.
    """

    def __init__(
        self,
        budget: _Budget,
        stream: _Bounded,
        persistent: Callable[[object], object] | None = None,
        nested: bool = False,
    ) -> None:
        self.budget = budget
        self.stream = stream
        self.persistent = persistent
        self.nested = nested
        self.stack: list = []
        self.marks: list[int] = []  # where in the stack each open container starts
        self.memo: dict[int, object] = {}

    def run(self) -> object:
        """Interprets the pickle, and returns what it makes."""
        stream, read, budget = self.stream, self.stream.stream.read, self.budget
        while True:
            if not stream.left:
                raise _Damaged("it has no end")
            stream.left -= 1
            code = read(1)[0]
            budget.operations -= 1
            if budget.operations < 0:
                raise _Refuse(f"more than {MAX_OPERATIONS} instructions")
            if code == 0x2E:  # STOP
                if self.marks or len(self.stack) != 1:
                    raise _Damaged("it stops in the middle of an object")
                return self.stack.pop()
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                if chr(code) not in _NAMES:
                    raise _Damaged("it has instructions that do not exist")
                raise _Refuse(f"the instruction {_NAMES[chr(code)]}")
            instruction(self)

    # What instructions are made of

    def number(self, size: int) -> int:
        return int.from_bytes(self.stream.read(size), "little")

    def string(self, size: int, text: bool) -> str | bytes | Long:
        length = self.number(size)
        if length > MAX_SHORT:
            return Long(self.stream.read_at, self.stream.skip(length), length, text)
        self.budget.keep(length)
        raw = bytes(self.stream.read(length))
        return raw.decode("utf-8", "surrogatepass") if text else raw

    def pop(self) -> object:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise _Damaged("an instruction finds nothing to work on")
        return self.stack.pop()

    def pop_marked(self) -> list:
        if not self.marks:
            raise _Damaged("the end of a container that was not begun")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise _Refuse(f"changing {_kind(self.stack[-1]) if self.stack else 'nothing'}")
        return self.stack[-1]

    # Values

    def push(self, value: object) -> None:
        self.stack.append(value)

    def integer(self, size: int) -> None:
        length = self.number(size)
        if length > MAX_INTEGER:
            raise _Refuse(f"an integer of more than {MAX_INTEGER} bytes")
        self.push(int.from_bytes(self.stream.read(length), "little", signed=True))

    def protocol(self) -> None:
        if (version := self.number(1)) > 5:
            raise _Refuse(f"pickle protocol {version}")

    # Containers

    def mark(self) -> None:
        if len(self.marks) >= MAX_MARKS:
            raise _Refuse(f"containers nested more than {MAX_MARKS} deep")
        self.marks.append(len(self.stack))

    def tuple_of(self, length: int) -> None:
        items = [self.pop() for _ in range(length)]
        self.push(tuple(items[::-1]))

    def new_dict(self) -> None:
        items = self.pop_marked()
        self.push({})
        self.set_items(items)

    def set_items(self, items: list) -> None:
        target = self.top(dict)
        if len(items) % 2:
            raise _Damaged("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.budget.check_key(key)
            target[key] = value

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def append(self) -> None:
        item = self.pop()
        self.top(list).append(item)

    def extend(self) -> None:
        items = self.pop_marked()
        self.top(list).extend(items)

    def add(self) -> None:
        items = self.pop_marked()
        self.top(set).update(_set(self.budget, items))

    # Memo

    def remember(self, place: int) -> None:
        self.memo[place] = self.top(object)

    def recall(self, place: int) -> None:
        if place not in self.memo:
            raise _Damaged("it refers to an object that it does not hold")
        self.push(self.memo[place])

    # Objects

    def imported(self) -> None:
        module, name = (self.stream.readline().decode("utf-8") for _ in range(2))
        self.push(_import(module, name, nested=self.nested))

    def imported_from_stack(self) -> None:
        name, module = self.pop(), self.pop()
        self.push(_import(module, name, nested=self.nested))

    def call(self) -> None:
        args, callee = self.pop(), self.pop()
        if not isinstance(callee, _Global) or callee.make is None:
            raise _Refuse(f"calling {_kind(callee)}")
        if not isinstance(args, tuple):
            raise _Damaged(f"{callee.name} is called without arguments")
        self.budget.copy(len(args))
        # Each argument may be as large as the file, and the same one may be passed every time.
        self.budget.copy(sum(len(a) for a in args if isinstance(a, (list, tuple, dict, set))))
        try:
            self.push(callee.make(self.budget, *args))
        except TypeError as error:
            raise _Damaged(f"{callee.name} is called with other arguments than usual") from error

    def build(self) -> None:
        state = self.pop()
        _set_state(self.top(object), state)

    def outside(self) -> None:
        if self.persistent is None:
            raise _Refuse("an object kept outside of the pickle")
        self.push(self.persistent(self.pop()))


_NAMES = {opcode.code: opcode.name for opcode in pickletools.opcodes}
_M = _Interpreter
_INSTRUCTIONS: dict[int, Callable[[_M], object]] = {
    ord(code): instruction
    for code, instruction in {
        "\x80": _M.protocol,
        "\x95": lambda m: m.stream.read(8),  # FRAME
        "(": _M.mark,
        # Values
        "N": lambda m: m.push(None),
        "\x88": lambda m: m.push(True),
        "\x89": lambda m: m.push(False),
        "J": lambda m: m.push(struct.unpack("<i", m.stream.read(4))[0]),
        "K": lambda m: m.push(m.number(1)),
        "M": lambda m: m.push(m.number(2)),
        "G": lambda m: m.push(struct.unpack(">d", m.stream.read(8))[0]),
        "\x8a": lambda m: m.integer(1),
        "\x8b": lambda m: m.integer(4),
        "\x8c": lambda m: m.push(m.string(1, True)),
        "X": lambda m: m.push(m.string(4, True)),
        "\x8d": lambda m: m.push(m.string(8, True)),
        "C": lambda m: m.push(m.string(1, False)),
        "B": lambda m: m.push(m.string(4, False)),
        "\x8e": lambda m: m.push(m.string(8, False)),
        "\x96": lambda m: m.push(m.string(8, False)),  # BYTEARRAY8
        # Containers
        ")": lambda m: m.push(()),
        "]": lambda m: m.push([]),
        "}": lambda m: m.push({}),
        "\x8f": lambda m: m.push(set()),
        "\x85": lambda m: m.tuple_of(1),
        "\x86": lambda m: m.tuple_of(2),
        "\x87": lambda m: m.tuple_of(3),
        "t": lambda m: m.push(tuple(m.pop_marked())),
        "l": lambda m: m.push(m.pop_marked()),
        "d": _M.new_dict,
        "\x91": lambda m: m.push(_set(m.budget, m.pop_marked())),  # FROZENSET
        "a": _M.append,
        "e": _M.extend,
        "s": _M.set_item,
        "u": lambda m: m.set_items(m.pop_marked()),
        "\x90": _M.add,
        # Memo
        "q": lambda m: m.remember(m.number(1)),
        "r": lambda m: m.remember(m.number(4)),
        "\x94": lambda m: m.remember(len(m.memo)),
        "h": lambda m: m.recall(m.number(1)),
        "j": lambda m: m.recall(m.number(4)),
        # Objects
        "c": _M.imported,
        "\x93": _M.imported_from_stack,
        "R": _M.call,
        "\x81": _M.call,  # NEWOBJ
        "b": _M.build,
        "Q": _M.outside,
    }.items()
}


def _set_state(target: object, state: object) -> None:
    match target:
        case dict():
            pass  # attributes beside the items, such as a state dict's _metadata
        case Instance() if isinstance(state, dict):
            target.state = state
        case Array() if isinstance(state, tuple) and len(state) == 5:
            _version, shape, dtype, fortran, raw = state
            _fill(target, raw, dtype, shape, "F" if fortran else "C")
        case _Dtype() if isinstance(state, tuple) and len(state) > 2:
            if state[1] == ">":
                raise _Refuse("numbers in big-endian order")
            if state[1] not in ("<", "|", "=") or any(s is not None for s in state[2:5]):
                raise _Refuse("a numpy array of records")
            target.order = state[1]
        case _:
            raise _Refuse(f"setting the state of {_kind(target)}")


# -- the three containers -----------------------------------------------------------------------


def read_pickle(path: str | Path) -> object:
    """Reads a pickled checkpoint as plain containers and this module's stand-ins.

    Args:
        path: a bare pickle, a torch zip file, or an old-style torch file.

    Returns:
        dict, list, tuple, set, str, bytes, numbers, None, `Instance`, `StoredTensor`, `Storage`,
        `Array` and `Long`. It may be cyclic or share parts: walk it with bounds.

    Raises:
        RefusedPickleError: it asks for something that is not on the list.
        UnreadableCheckpointError: the file is missing, cut short, damaged, or of another kind.
    """
    path = Path(path)
    with reading(path, UnreadableCheckpointError):
        try:
            return _read(path, file_size(path))
        except _Refuse as error:
            raise RefusedPickleError(path, printable(str(error))) from error
        except OSError as error:
            raise UnreadableCheckpointError(
                f"{path} can't be read: {error.strerror or error}."
            ) from error
        except (_Damaged, ValueError, struct.error, OverflowError) as error:
            raise UnreadableCheckpointError(
                f"{path} is cut short or damaged ({printable(str(error))[:200]}). Download or copy "
                "it again."
            ) from error


def _read(path: Path, size: int) -> object:
    def read_at(start: int, count: int) -> bytearray:
        # Opened anew: numbers may be read long after the index, or never.
        raw = bytearray(max(min(count, size - start), 0))
        with path.open("rb") as again:
            again.seek(start)
            del raw[again.readinto(raw) :]
        return raw

    budget = _Budget(size)
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
        file.seek(0)
        if zipped:
            return _zipped(budget, file, size, read_at)
        content = _Interpreter(budget, _Bounded(file, size, read_at)).run()
        if type(content) is int and content == TORCH_MAGIC:
            file.seek(0)
            return _legacy(budget, _Bounded(file, size, read_at))
        return content


def _storage_id(pid: object) -> tuple[torch.dtype, str, int]:
    """Reads dtype, key and count of ("storage", class, key, location, count[, view])."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
        raise _Refuse("an object kept outside of the pickle that is no storage")
    _, kind, key, _location, count, *view = pid
    if view and view[0] is not None:
        raise _Refuse("a view of a storage, as torch wrote before 0.4")
    if not isinstance(kind, _Global) or kind.dtype is None:
        raise _Refuse(f"a storage of class {_kind(kind)}")
    if not isinstance(key, str) or type(count) is not int or not 0 <= count < 2**48:
        raise _Damaged("a storage has no valid size")
    return kind.dtype, key, count


def _legacy(budget: _Budget, stream: _Bounded, nested: bool = False) -> object:
    if _Interpreter(budget, stream).run() != TORCH_MAGIC:
        raise _Damaged("it does not start as torch's files do")
    _version, system = (_Interpreter(budget, stream).run() for _ in range(2))
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _Refuse("numbers in big-endian order")
    storages: dict[str, Storage] = {}
    starts: dict[str, int] = {}

    def persistent(pid: object) -> Storage:
        dtype, key, count = _storage_id(pid)
        if key not in storages:
            storages[key] = Storage(
                dtype, count, lambda: stream.read_at(starts[key], count * dtype.itemsize)
            )
        return storages[key]

    content = _Interpreter(budget, stream, persistent, nested).run()
    for key in _sequence(budget, _Interpreter(budget, stream).run()):
        if not isinstance(key, str) or key not in storages or key in starts:
            raise _Damaged("it lists a storage that nothing uses, or twice")
        (count,) = struct.unpack("<q", stream.read(8))
        length = count * storages[key].dtype.itemsize
        if count != storages[key].count or length > stream.left:
            raise _Damaged(f"storage {key[:40]} claims {storages[key].count} numbers")
        starts[key] = stream.skip(length)
    if storages.keys() != starts.keys():
        raise _Damaged("a storage is missing")
    return content


@dataclass(frozen=True)
class _Entry:
    header: int  # where its local header starts
    size: int
    checksum: int
    packed: bool  # compressed or encrypted


def _zipped(budget: _Budget, file: BinaryIO, size: int, read_at: _ReadAt) -> object:
    entries = _zip_entries(file, size)
    folders = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
    if any(name.endswith("/constants.pkl") for name in entries):
        raise _Refuse("TorchScript code")
    for name, entry in entries.items():
        if entry.packed:
            raise _Refuse(f"compressed or encrypted data ({name[:80]}), which torch never writes")
    if len(folders) != 1:
        raise _Damaged("it is a zip archive, but not one of torch's: unpack it first")
    folder = folders[0]

    def content_of(name: str) -> bytearray:
        entry = entries.get(name)
        if entry is None:
            raise _Damaged(f"{name[:80]} is missing in it")
        local = read_at(entry.header, 30)
        if len(local) != 30 or local[:4] != b"PK\3\4":
            raise _Damaged(f"{name[:80]} is not where its directory says")
        start = entry.header + 30 + sum(struct.unpack("<HH", local[26:]))
        raw = read_at(start, entry.size) if start + entry.size <= size else bytearray()
        if len(raw) != entry.size or zlib.crc32(raw) != entry.checksum:
            raise _Damaged(f"{name[:80]} in it is damaged")
        return raw

    order = f"{folder}/byteorder"
    if order in entries and entries[order].size < 16 and content_of(order) != b"little":
        raise _Refuse("numbers in big-endian order")
    storages: dict[str, Storage] = {}

    def persistent(pid: object) -> Storage:
        dtype, key, count = _storage_id(pid)
        if key not in storages:
            name = f"{folder}/data/{key}"
            entry = entries.get(name)
            if entry is None or entry.size != count * dtype.itemsize:
                raise _Damaged(f"storage {key[:40]} claims {count} numbers")
            storages[key] = Storage(dtype, count, lambda: content_of(name))
        return storages[key]

    if entries[f"{folder}/data.pkl"].size > MAX_INDEX:
        raise _Refuse(f"a pickle of more than {MAX_INDEX >> 20} MiB in a zip file")
    raw = content_of(f"{folder}/data.pkl")
    stream = _Bounded(BytesIO(raw), len(raw), lambda start, count: raw[start : start + count])
    return _Interpreter(budget, stream, persistent).run()


def _zip_entries(file: BinaryIO, size: int) -> Mapping[str, _Entry]:
    """Reads the directory of a zip file.

    The standard library's reader accepts any size of directory and any compression.
    """
    tail_start = max(0, size - 65557)
    file.seek(tail_start)
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        raise _Damaged("it begins as a zip file, but its end is missing")
    length, start = struct.unpack("<II", tail[end + 12 : end + 20])
    if end >= 20 and tail[end - 20 : end - 16] == b"PK\6\7":  # zip64
        (at,) = struct.unpack("<Q", tail[end - 12 : end - 4])
        if at > size - 56:
            raise _Damaged("its directory lies behind its end")
        file.seek(at)
        record = file.read(56)
        if record[:4] != b"PK\6\6":
            raise _Damaged("its directory is missing")
        length, start = struct.unpack("<QQ", record[40:56])
    if length > MAX_INDEX:
        raise _Refuse(f"a zip directory of more than {MAX_INDEX >> 20} MiB")
    if start + length > size:
        raise _Damaged("its directory lies behind its end")
    file.seek(start)
    directory = file.read(length)
    entries: dict[str, _Entry] = {}
    at = total = 0
    while at < len(directory):
        if len(entries) >= MAX_ENTRIES:
            raise _Refuse(f"a zip file of more than {MAX_ENTRIES} entries")
        head = directory[at : at + 46]
        if len(head) < 46 or head[:4] != b"PK\1\2":
            raise _Damaged("its directory is damaged")
        flags, method = struct.unpack("<HH", head[8:12])
        checksum, packed, unpacked, name_size, extra_size, note_size = struct.unpack(
            "<IIIHHH", head[16:34]
        )
        (header,) = struct.unpack("<I", head[42:46])
        at += 46
        name = directory[at : at + name_size].decode("utf-8")
        wide = [n for n in (unpacked, packed, header) if n == 0xFFFFFFFF]
        if wide:
            sizes = iter(_zip64(directory[at + name_size : at + name_size + extra_size], len(wide)))
            unpacked, packed, header = (
                next(sizes) if n == 0xFFFFFFFF else n for n in (unpacked, packed, header)
            )
        at += name_size + extra_size + note_size
        if header + packed > size:
            raise _Damaged(f"{name[:80]} in it is cut short")
        if name in entries:
            raise _Damaged(f"it holds {name[:80]} twice")
        changed = method != 0 or flags & 1 != 0 or packed != unpacked
        entries[name] = _Entry(header, unpacked, checksum, changed)
        total += packed
        if total > size:
            raise _Refuse("zip entries that overlap")
    return entries


def _zip64(extra: bytes, count: int) -> tuple[int, ...]:
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack("<HH", extra[at : at + 4])
        if kind == 1 and length >= 8 * count:
            return struct.unpack(f"<{count}Q", extra[at + 4 : at + 4 + 8 * count])
        at += 4 + length
    raise _Damaged("its directory is damaged")
