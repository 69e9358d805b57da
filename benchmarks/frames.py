"""Reading, writing and colour: time per frame against a plain loop, and memory over 2,000 frames.

    python benchmarks/frames.py [rows: memory reading colour writing]

Files are made in a temporary folder; a long clip is 16 different pictures under 2,000 names, each
decoded for real.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import OpenImageIO as oiio

from core.media.colour import from_network, resolve, texture_space, to_network
from core.media.read import open_clip, read_frames
from core.media.write import write_exr, write_movie

LENGTH = 2000
MARKS = (100, 1000, LENGTH)


def plate(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Scene-linear [H, W, 3] with soft shapes and grain, so that ZIP works as hard as on film."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 1.2, (9, 16, 3))
    soft = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return (soft + rng.normal(0, 0.01, soft.shape)).clip(0).astype(np.float32)


def movie(folder: Path, width: int, height: int, length: int = LENGTH) -> Path:
    pictures = [plate(width, height, seed).clip(0, 1) for seed in range(16)]
    write_movie(folder / "shot.mp4", (pictures[i % 16] for i in range(length)), 24)
    return folder / "shot.mp4"


def long_sequence(folder: Path, width: int, height: int) -> Path:
    for index in range(LENGTH):
        path = folder / f"shot.{1001 + index}.exr"
        if index < 16:
            write_exr(path, plate(width, height, index))
        else:
            os.link(folder / f"shot.{1001 + index % 16}.exr", path)
    return folder / "shot.####.exr"


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def watch(path: str) -> None:
    """Read a whole clip in this process and print its memory at the marks."""
    clip = open_clip(path)
    start, total, cells = time.perf_counter(), 0.0, []
    for count, frame in enumerate(read_frames(clip), start=1):
        total += float(frame.pixels[0, 0, 0])
        if count in MARKS:
            cells.append(f"{resident_mib():6.0f} MiB at {count}")
    each = (time.perf_counter() - start) / count * 1e3
    print(f"{', '.join(cells)}; {each:.2f} ms a frame")


def memory() -> None:
    for width, height in ((640, 360), (1280, 720)):
        for name, make in (("EXR", long_sequence), ("mp4", movie)):
            with tempfile.TemporaryDirectory() as folder:
                path = make(Path(folder), width, height)
                print(f"memory   {name} {width}x{height}, {LENGTH} frames: ", end="", flush=True)
                subprocess.run([sys.executable, __file__, "watch", str(path)], check=True)


def milliseconds(work: Callable[[], object], repeats: int = 7) -> float:
    """Median of several runs, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1e3)
    return float(np.median(times))


def row(what: str, ours: float, baseline: str, theirs: float) -> None:
    print(f"{what:44s} {ours:8.1f} ms   {baseline}: {theirs:8.1f} ms   x{theirs / ours:.2f}")


def reading() -> None:
    """48 frames with 15 ms of the consumer's own work each, with and without read-ahead."""

    def consume(pixels: np.ndarray) -> None:
        end = time.perf_counter() + 0.015
        while time.perf_counter() < end:
            cv2.GaussianBlur(pixels[:256, :256], (0, 0), 2)

    with tempfile.TemporaryDirectory() as name:
        for number in range(1001, 1049):
            write_exr(Path(name) / f"a.{number}.exr", plate(1280, 720, number))
        clip = open_clip(name)

        def ours() -> None:
            for frame in read_frames(clip):
                consume(frame.pixels)

        def plain() -> None:
            for number in clip.numbers:
                source = oiio.ImageInput.open(clip.file(number))
                consume(source.read_image(0, 0, 0, 3, oiio.FLOAT))
                source.close()

        row(
            "read  EXR 1280x720 + 15 ms work, a frame",
            milliseconds(ours, 3) / 48,
            "OpenImageIO loop",
            milliseconds(plain, 3) / 48,
        )

        path = movie(Path(name), 1280, 720, 240)
        clip = open_clip(path)

        def decode() -> None:
            for _ in read_frames(clip):
                pass

        def capture() -> None:
            source = cv2.VideoCapture(str(path))
            while source.read()[0]:
                pass

        row(
            "read mp4 1280x720, a frame",
            milliseconds(decode, 3) / 240,
            "cv2, 8 bits, no matrix",
            milliseconds(capture, 3) / 240,
        )


def colour() -> None:
    """OCIO against the same formula in numpy."""
    pixels = plate(1920, 1080)
    scene, texture = resolve("scene_linear"), texture_space()
    basis = oiio.ImageBufAlgo.colorconvert(
        oiio.ImageBuf(np.eye(3, dtype=np.float32)[None]), scene, resolve("lin_rec709"), False
    ).get_pixels(oiio.FLOAT)[0]

    def by_numpy() -> np.ndarray:
        linear = (pixels @ basis).clip(0, 1)
        curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        return 2 * curve - 1

    network, _ = to_network(pixels, scene)
    print(f"colour largest difference to numpy: {np.abs(network - by_numpy()).max():.1e}")
    theirs = milliseconds(by_numpy)
    row(
        "colour ACEScg -> network, 1920x1080",
        milliseconds(lambda: to_network(pixels, scene)),
        "numpy",
        theirs,
    )
    row(
        "colour ... by a config's name",
        milliseconds(lambda: to_network(pixels, scene, "ocio://default")),
        "numpy",
        theirs,
    )
    row(
        "colour sRGB -> network", milliseconds(lambda: to_network(pixels, texture)), "numpy", theirs
    )
    row(
        "colour network -> ACEScg",
        milliseconds(lambda: from_network(network, scene)),
        "numpy (other way)",
        theirs,
    )


def writing() -> None:
    pixels = np.dstack([plate(1920, 1080), np.ones((1080, 1920), np.float32)])
    with tempfile.TemporaryDirectory() as folder:

        def plain() -> None:
            spec = oiio.ImageSpec(1920, 1080, 4, oiio.HALF)
            spec.attribute("compression", "zip")
            output = oiio.ImageOutput.create("openexr")
            output.open(f"{folder}/plain.exr", spec)
            output.write_image(pixels)
            output.close()

        row(
            "write EXR half RGBA 1920x1080, atomic, synced",
            milliseconds(lambda: write_exr(f"{folder}/ours.exr", pixels)),
            "OpenImageIO alone",
            milliseconds(plain),
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["watch"]:
        watch(sys.argv[2])
    else:
        for part in sys.argv[1:] or ["memory", "reading", "colour", "writing"]:
            {"memory": memory, "reading": reading, "colour": colour, "writing": writing}[part]()
