"""Latent tracks as far as Nuke looks into them: the standard library reads safetensors as well."""

import array
import json
import math
import os
import sys
from typing import Any, BinaryIO, Dict, List, Union


def numbers(path: Union[str, "os.PathLike[str]"]) -> List[int]:
    """The frames of a track (`core.latent_track`), increasing.

    Raises:
        OSError: the file can't be read.
        ValueError: it is no track.
    """
    with open(path, "rb") as file:
        return list(_values(file, _header(file, path), "numbers", "q"))


def quality(path: Union[str, "os.PathLike[str]"]) -> Dict[str, Dict[int, float]]:
    """Per-frame measures of a track: name -> frame -> value.

    Frames without a value are left out.

    Raises:
        OSError, ValueError: as `numbers`.
    """
    with open(path, "rb") as file:
        header = _header(file, path)
        frames = _values(file, header, "numbers", "q")
        measures = [name for name in header if name.startswith("quality.")]
        return {
            name.partition(".")[2]: {
                number: value
                for number, value in zip(frames, _values(file, header, name, "f"))
                if math.isfinite(value)
            }
            for name in sorted(measures)
        }


def _header(file: BinaryIO, path: Union[str, "os.PathLike[str]"]) -> Dict[str, Any]:
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size)) if 0 < size < 1 << 24 else {}
    if "numbers" not in header:
        raise ValueError(f"{path} is no latent track.")
    return {"": 8 + size, **header}


def _values(file: BinaryIO, header: Dict[str, Any], name: str, kind: str) -> "array.array[Any]":
    begin, end = header[name]["data_offsets"]
    file.seek(header[""] + begin)
    read = array.array(kind)
    read.frombytes(file.read(end - begin))
    if sys.byteorder == "big":
        read.byteswap()
    return read
