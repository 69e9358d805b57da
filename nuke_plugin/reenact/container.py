"""Reads headers and arrays of Reenact's files: safetensors, with the standard library alone."""

import contextlib
import json
import os
from typing import Any, Callable, Dict, Iterator, Tuple, Union

PathLike = Union[str, "os.PathLike[str]"]


@contextlib.contextmanager
def open_container(
    path: PathLike, array: str
) -> Iterator[Tuple[Dict[str, Any], Callable[[str], bytes]]]:
    """Opens a file; yields its header and a function that reads an array's bytes by its name.

    The bytes are little endian.

    Args:
        path: a latent track, character or style.
        array: the name of an array that a file of this kind has.

    Raises:
        OSError: the file can't be read.
        ValueError: the file has no such array, or isn't a safetensors file.
    """
    if not os.path.isfile(path):  # a pipe would be waited for
        raise FileNotFoundError(f"{path} is no file.")
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(size)) if 0 < size < 1 << 24 else {}
        except RecursionError as error:
            raise ValueError(f"{path} is damaged.") from error
        if array not in header:
            raise ValueError(f"{path} is no Reenact file that contains {array}.")

        def read(name: str) -> bytes:
            begin, end = header[name]["data_offsets"]
            file.seek(8 + size + begin)
            return file.read(end - begin)

        yield header, read
