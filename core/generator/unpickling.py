"""Reads the tensors of pickled checkpoints without running anything in them.

A pickle is a program. This is an interpreter for the few instructions that checkpoints need, in
which every imported name is replaced by a stand-in from this module; whatever is not listed is
refused by name. Three containers are read: a bare pickle, torch's zip files, and the files that
torch wrote before 1.6 (several pickles, then the raw storages).

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

from core.base.errors import ReenactError

# Ten times the values of the largest known checkpoints.
MAX_OPERATIONS = 1_000_000
MAX_MARKS = 1000  # containers being filled at the same time
MAX_LINE = 1 << 16  # bytes of a name
MAX_INTEGER = 256  # bytes
MAX_PICKLE = 4 << 30  # bytes of a bare pickle; its tensors are inside
MAX_INDEX = 64 << 20  # bytes of a zip's directory and of the pickle in it
MAX_DIMENSIONS = 16

TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of torch's old files


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
class Storage:
    """Raw numbers in the file, read on demand."""

    dtype: torch.dtype
    count: int
    read: Callable[[], bytes]

    @cached_property
    def numbers(self) -> Tensor:
        """`[count]`."""
        raw = self.read()
        if len(raw) != self.count * self.dtype.itemsize:
            raise _Damaged(f"a storage has {len(raw)} bytes instead of {self.count} numbers")
        if not raw:
            return torch.empty(0, dtype=self.dtype)
        return torch.frombuffer(bytearray(raw), dtype=self.dtype)


@dataclass(eq=False)
class StoredTensor:
    """A view of a storage; its shape is checked at once, its numbers are read by `load`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        lengths = (*self.shape, *self.stride, self.offset)
        if (
            len(self.shape) != len(self.stride)
            or len(self.shape) > MAX_DIMENSIONS
            or not all(type(n) is int and 0 <= n < 2**48 for n in lengths)
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
        except (_Damaged, OSError) as error:
            raise UnreadableCheckpointError(
                f"The checkpoint's numbers can't be read: {error}."
            ) from error


@dataclass(eq=False)
class Array:
    """A numpy array; a later instruction than the object's own sets its value."""

    value: np.ndarray | None = None


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
    make: Callable[..., object] | None = None
    dtype: torch.dtype | None = None  # of a storage class


# -- stand-ins for the names that checkpoints import --------------------------------------------


def _check_key(key: object) -> None:
    # Others may be slow or dangerous to hash: deep tuples overflow C's stack.
    if not (
        key is None
        or isinstance(key, (str, bytes, bool))
        or (type(key) is int and abs(key) < 2**60)
    ):
        raise _Refuse(f"a dictionary key of type {_kind(key)}")


def _kind(value: object) -> str:
    return value.name if isinstance(value, _Global) else type(value).__name__.strip("_")


def _dict(pairs: object = (), /) -> dict:
    result = {}
    for key, value in _sequence(pairs.items() if isinstance(pairs, dict) else pairs):
        _check_key(key)
        result[key] = value
    return result


def _sequence(value: object) -> list:
    if not isinstance(value, (list, tuple, set, type({}.items()))):
        raise _Damaged(f"{_kind(value)} where a list was expected")
    return list(value)


def _set(items: object = (), /) -> set:
    values = _sequence(items)
    for value in values:
        _check_key(value)
    return set(values)


def _bytes(value: object = b"", encoding: object = None, /) -> bytes:
    """`bytes(x)`, `bytearray(x)` and `_codecs.encode(x, "latin1")`, never `bytes(10**12)`."""
    if isinstance(value, str) and encoding in ("latin1", "latin-1"):
        return value.encode("latin1")
    if isinstance(value, bytes):
        return value
    raise _Refuse(f"bytes made from {_kind(value)}")


def _persistent(meta: object, /) -> Instance:
    """Reads NVIDIA's persistent objects; their source code is dropped."""
    if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
        raise _Damaged("a persistent object has no state")
    return Instance(str(meta.get("class_name")), meta["state"])


def _tensor(
    storage: object, offset: int, shape: tuple, stride: tuple, *_unused: object
) -> StoredTensor:
    if not isinstance(storage, Storage):
        raise _Damaged(f"a tensor is made of {_kind(storage)}")
    return StoredTensor(storage, offset, tuple(shape), tuple(stride))


def _parameter(tensor: object, *_unused: object) -> StoredTensor:
    if not isinstance(tensor, StoredTensor):
        raise _Damaged(f"a parameter is made of {_kind(tensor)}")
    return tensor


def _storage_from_bytes(raw: object, /) -> Storage:
    """Reads a storage inside a bare pickle, which is a whole old-style torch file of its own."""
    if not isinstance(raw, bytes):
        raise _Damaged(f"a storage is made of {_kind(raw)}")
    inner = _legacy(
        BytesIO(raw), len(raw), lambda start, size: raw[start : start + size], nested=True
    )
    if not isinstance(inner, Storage):
        raise _Damaged(f"a storage's own file holds {_kind(inner)}")
    return inner


def _no_deeper(_raw: object, /) -> None:
    raise _Refuse("a storage within a storage")


def _dtype(code: object, *_flags: object) -> _Dtype:
    if code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"):
        raise _Refuse(f"a numpy array of type {code if isinstance(code, str) else _kind(code)}")
    return _Dtype(str(code))


def _numbers(raw: object, dtype: object, shape: object, order: object) -> np.ndarray:
    if not isinstance(raw, bytes) or not isinstance(dtype, _Dtype) or order not in ("C", "F"):
        raise _Refuse("a numpy array that is not made of plain numbers")
    lengths = _sequence(shape)
    if len(lengths) > MAX_DIMENSIONS or not all(type(n) is int and 0 <= n < 2**48 for n in lengths):
        raise _Damaged("a numpy array has no valid shape")
    if math.prod(lengths) * dtype.numpy.itemsize != len(raw):
        raise _Damaged(f"a numpy array of shape {lengths} has {len(raw)} bytes")
    return np.frombuffer(raw, dtype.numpy).reshape(lengths, order="F" if order == "F" else "C")


def _empty_array(cls: object, *_unused: object) -> Array:
    if not (isinstance(cls, _Global) and cls.name == "numpy.ndarray"):
        raise _Refuse(f"a numpy array of class {_kind(cls)}")
    return Array()


def _array(raw: object, dtype: object, shape: object, order: object) -> Array:
    return Array(_numbers(raw, dtype, shape, order))


def _scalar(dtype: object, raw: object) -> object:
    return _numbers(raw, dtype, (), "C").item()


def _path(*parts: object) -> str:
    return "/".join(p for p in parts if isinstance(p, str))


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
    "torch.device": _path,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray._reconstruct": _empty_array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _array,
    **{
        f"pathlib.{c}": _path
        for c in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
}
_INSTANCES = {"argparse.Namespace", "dnnlib.tflib.network.Network"}
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


class _Bounded:
    """A stream that raises where more bytes are requested than it has left."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream = stream
        self.left = size

    def read(self, count: int) -> bytes:
        if count > self.left:
            raise _Damaged(f"it ends {count - self.left} bytes too early")
        self.left -= count
        return self.stream.read(count)

    def readline(self) -> bytes:
        line = self.stream.readline(min(self.left, MAX_LINE))
        self.left -= len(line)
        return line


def _interpret(
    stream: _Bounded, persistent: Callable[[object], object] | None = None, nested: bool = False
) -> object:
    """Interprets one pickle from the stream, which is positioned after it afterwards.

    One function holds all instructions, since they share the stack, the marks and the memo.

    Args:
        stream: the bytes.
        persistent: makes objects of torch's persistent ids; None refuses them.
        nested: whether this pickle is within another.
    """
    stack: list = []
    marks: list[int] = []  # where in the stack each open container starts
    memo: dict[int, object] = {}
    work = stream.left + MAX_OPERATIONS

    def pop() -> object:
        if len(stack) <= (marks[-1] if marks else 0):
            raise _Damaged("an instruction finds nothing to work on")
        return stack.pop()

    def pop_marked() -> list:
        if not marks:
            raise _Damaged("the end of a container that was not begun")
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def top(kind: type) -> object:
        if not stack or not isinstance(stack[-1], kind):
            raise _Refuse(f"changing {_kind(stack[-1]) if stack else 'nothing'}")
        return stack[-1]

    def set_items(items: list) -> None:
        target = top(dict)
        assert isinstance(target, dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            _check_key(key)
            target[key] = value

    def call(args: object, callee: object) -> object:
        if not isinstance(callee, _Global) or callee.make is None:
            raise _Refuse(f"calling {_kind(callee)}")
        if not isinstance(args, tuple):
            raise _Damaged(f"{callee.name} is called without arguments")
        # Each argument may be as large as the file, and the same one may be passed every time.
        nonlocal work
        work -= sum(len(a) for a in args if isinstance(a, (str, bytes, list, tuple, dict, set)))
        if work < 0:
            raise _Refuse("the same objects to be copied over and over")
        try:
            return callee.make(*args)
        except TypeError as error:
            raise _Damaged(f"{callee.name} is called with other arguments than usual") from error

    arg: Any
    operations = pickletools.genops(stream)  # type: ignore[arg-type]
    for count, (opcode, arg, _) in enumerate(operations):
        if count > MAX_OPERATIONS:
            raise _Refuse(f"more than {MAX_OPERATIONS} instructions")
        match opcode.name:
            case "PROTO":
                if arg > 5:
                    raise _Refuse(f"pickle protocol {arg}")
            case "FRAME":
                pass
            case "STOP":
                if marks or len(stack) != 1:
                    raise _Damaged("it stops in the middle of an object")
                return stack.pop()
            case "MARK":
                if len(marks) >= MAX_MARKS:
                    raise _Refuse(f"containers nested more than {MAX_MARKS} deep")
                marks.append(len(stack))
            # Values
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case "BININT" | "BININT1" | "BININT2" | "BINFLOAT" | "SHORT_BINUNICODE" | "BINUNICODE":
                stack.append(arg)
            case "BINUNICODE8" | "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8":
                stack.append(arg)
            case "BYTEARRAY8":
                stack.append(bytes(arg))
            case "LONG1" | "LONG4":
                if arg.bit_length() > 8 * MAX_INTEGER:
                    raise _Refuse(f"an integer of more than {MAX_INTEGER} bytes")
                stack.append(arg)
            # Containers
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_SET":
                stack.append(set())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [pop() for _ in range(int(opcode.name[-1]))]
                stack.append(tuple(items[::-1]))
            case "TUPLE":
                stack.append(tuple(pop_marked()))
            case "LIST":
                stack.append(pop_marked())
            case "DICT":
                items = pop_marked()
                stack.append({})
                set_items(items)
            case "FROZENSET":
                stack.append(_set(pop_marked()))
            case "APPEND":
                item = pop()
                top(list).append(item)  # type: ignore[attr-defined]
            case "APPENDS":
                items = pop_marked()
                top(list).extend(items)  # type: ignore[attr-defined]
            case "SETITEM":
                value, key = pop(), pop()
                set_items([key, value])
            case "SETITEMS":
                set_items(pop_marked())
            case "ADDITEMS":
                items = pop_marked()
                top(set).update(_set(items))  # type: ignore[attr-defined]
            # Memo
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = top(object)
            case "MEMOIZE":
                memo[len(memo)] = top(object)
            case "BINGET" | "LONG_BINGET":
                if arg not in memo:
                    raise _Damaged("it refers to an object that it does not hold")
                stack.append(memo[arg])
            # Objects
            case "GLOBAL":
                stack.append(_import(*arg.split(" ", 1), nested=nested))
            case "STACK_GLOBAL":
                name, module = pop(), pop()
                stack.append(_import(module, name, nested=nested))
            case "REDUCE" | "NEWOBJ":
                args, callee = pop(), pop()
                stack.append(call(args, callee))
            case "BUILD":
                state = pop()
                _set_state(top(object), state)
            case "BINPERSID":
                if persistent is None:
                    raise _Refuse("an object kept outside of the pickle")
                stack.append(persistent(pop()))
            case other:
                raise _Refuse(f"the instruction {other}")
    raise _Damaged("it has no end")


def _set_state(target: object, state: object) -> None:
    match target:
        case dict():
            pass  # attributes beside the items, such as a state dict's _metadata
        case Instance() if isinstance(state, dict):
            target.state = state
        case Array() if isinstance(state, tuple) and len(state) == 5:
            _version, shape, dtype, fortran, raw = state
            target.value = _numbers(raw, dtype, shape, "F" if fortran else "C")
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
        dict, list, tuple, set, str, bytes, numbers, None, `Instance`, `StoredTensor`, `Storage`
        and `Array`. It may be cyclic or share parts: walk it with bounds.

    Raises:
        RefusedPickleError: it asks for something that is not on the list.
        UnreadableCheckpointError: the file is missing, cut short, damaged, or of another kind.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
            file.seek(0)

            def read_at(start: int, count: int) -> bytes:
                # Opened anew: numbers may be read long after the index, or never.
                with path.open("rb") as again:
                    again.seek(start)
                    return again.read(count)

            if zipped:
                return _zipped(file, size, read_at)
            content = _interpret(_Bounded(file, min(size, MAX_PICKLE)))
            if type(content) is int and content == TORCH_MAGIC:
                file.seek(0)
                return _legacy(file, size, read_at)
            return content
    except _Refuse as error:
        raise RefusedPickleError(path, str(error)) from error
    except OSError as error:
        raise UnreadableCheckpointError(
            f"{path} can't be read: {error.strerror or error}."
        ) from error
    except (_Damaged, ValueError, struct.error, OverflowError) as error:
        # pickletools raises ValueError for unknown instructions, or ones that end early
        raise UnreadableCheckpointError(
            f"{path} is cut short or damaged ({error}). Download or copy it again."
        ) from error


def _storage_id(pid: object) -> tuple[torch.dtype, str, int]:
    """Reads dtype, key and count of ("storage", class, key, location, count[, view])."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
        raise _Refuse("an object kept outside of the pickle that is no storage")
    _, kind, key, _location, count, *view = pid
    if view not in ([], [None]):
        raise _Refuse("a view of a storage, as torch wrote before 0.4")
    if not isinstance(kind, _Global) or kind.dtype is None:
        raise _Refuse(f"a storage of class {_kind(kind)}")
    if not isinstance(key, str) or type(count) is not int or not 0 <= count < 2**48:
        raise _Damaged("a storage has no valid size")
    return kind.dtype, key, count


def _legacy(
    file: BinaryIO, size: int, read_at: Callable[[int, int], bytes], nested: bool = False
) -> object:
    stream = _Bounded(file, size)
    if _interpret(stream) != TORCH_MAGIC:
        raise _Damaged("it does not start as torch's files do")
    _version, system = _interpret(stream), _interpret(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _Refuse("numbers in big-endian order")
    storages: dict[str, Storage] = {}
    starts: dict[str, int] = {}

    def persistent(pid: object) -> Storage:
        dtype, key, count = _storage_id(pid)
        if key not in storages:
            storages[key] = Storage(
                dtype, count, lambda: read_at(starts[key], count * dtype.itemsize)
            )
        return storages[key]

    content = _interpret(stream, persistent, nested)
    for key in _sequence(_interpret(stream)):
        if not isinstance(key, str) or key not in storages:
            raise _Damaged("it lists a storage that nothing uses")
        (count,) = struct.unpack("<q", stream.read(8))
        length = count * storages[key].dtype.itemsize
        if count != storages[key].count or length > stream.left:
            raise _Damaged(f"storage {key[:40]} claims {storages[key].count} numbers")
        starts[key] = size - stream.left
        stream.left -= length
        file.seek(length, 1)
    if storages.keys() != starts.keys():
        raise _Damaged("a storage is missing")
    return content


@dataclass(frozen=True)
class _Entry:
    header: int  # where its local header starts
    size: int
    checksum: int
    packed: bool  # compressed or encrypted


def _zipped(file: BinaryIO, size: int, read_at: Callable[[int, int], bytes]) -> object:
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

    def content_of(name: str) -> bytes:
        entry = entries.get(name)
        if entry is None:
            raise _Damaged(f"{name[:80]} is missing in it")
        local = read_at(entry.header, 30)
        if len(local) != 30 or local[:4] != b"PK\3\4":
            raise _Damaged(f"{name[:80]} is not where its directory says")
        start = entry.header + 30 + sum(struct.unpack("<HH", local[26:]))
        raw = read_at(start, entry.size) if start + entry.size <= size else b""
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
    return _interpret(_Bounded(BytesIO(raw), len(raw)), persistent)


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
        if len(entries) >= MAX_OPERATIONS // 10:
            raise _Refuse(f"a zip file of more than {MAX_OPERATIONS // 10} entries")
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
