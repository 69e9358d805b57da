"""Reenact's files as far as Nuke looks into them: the standard library reads safetensors too."""

import contextlib
import json
import os
from typing import Any, Callable, Dict, Iterator, Tuple, Union

PathLike = Union[str, "os.PathLike[str]"]


@contextlib.contextmanager
def opened(path: PathLike, array: str) -> Iterator[Tuple[Dict[str, Any], Callable[[str], bytes]]]:
    """The header of a file, and what reads an array's bytes (little endian) by its name.

    Args:
        path: a latent track, character or style.
        array: one that such a file has.

    Raises:
        OSError: the file can't be read.
        ValueError: it is no such file.
    """
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size)) if 0 < size < 1 << 24 else {}
        if array not in header:
            raise ValueError(f"{path} is no file of Reenact that has {array}.")

        def read(name: str) -> bytes:
            begin, end = header[name]["data_offsets"]
            file.seek(8 + size + begin)
            return file.read(end - begin)

        yield header, read
