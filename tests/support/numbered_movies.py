"""Small movies whose pictures spell their numbers."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def numbered(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A picture that spells its number in eight black or white columns."""
    bits = np.array([(number >> bit) & 1 for bit in range(8)], np.uint8) * 255
    return np.repeat(np.tile(np.repeat(bits, width // 8), (height, 1))[..., None], 3, axis=2)


def spelled(pixels: np.ndarray) -> int:
    columns = pixels.mean(axis=(0, 2)).reshape(8, -1).mean(axis=1) > 0.5
    return int(sum(1 << bit for bit in range(8) if columns[bit]))


def encode(path: Path, pictures: list[av.VideoFrame], codec: str, options=None, rate=25, **context):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate, options=options or {})
        stream.width, stream.height = pictures[0].width, pictures[0].height
        stream.pix_fmt = pictures[0].format.name
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        for image in pictures:
            if image.time_base is not None and image.pts is not None:
                stream.codec_context.time_base = image.time_base
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
