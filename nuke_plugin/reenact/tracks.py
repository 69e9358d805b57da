"""Latent tracks as far as Nuke looks into them: the standard library reads safetensors as well."""

import array
import json
import math
import os
import sys
from typing import Any, Dict, Union


def quality(path: Union[str, "os.PathLike[str]"]) -> Dict[str, Dict[int, float]]:
    """Per-frame measures of a track (`core.latent_track`): name -> frame -> value.

    Frames without a value are left out.

    Raises:
        OSError: the file can't be read.
        ValueError: it is no track.
    """
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size < 1 << 24:
            raise ValueError(f"{path} is no latent track.")
        header = json.loads(file.read(size))

        def values(name: str, kind: str) -> "array.array[Any]":
            begin, end = header[name]["data_offsets"]
            file.seek(8 + size + begin)
            read = array.array(kind)
            read.frombytes(file.read(end - begin))
            if sys.byteorder == "big":
                read.byteswap()
            return read

        if "numbers" not in header:
            raise ValueError(f"{path} is no latent track.")
        numbers = values("numbers", "q")
        measures = [name for name in header if name.startswith("quality.")]
        return {
            name.partition(".")[2]: {
                number: value
                for number, value in zip(numbers, values(name, "f"))
                if math.isfinite(value)
            }
            for name in sorted(measures)
        }
