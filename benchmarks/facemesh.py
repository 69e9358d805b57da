"""Face mesh: milliseconds per frame against MediaPipe's own runtime, in the same run.

    python benchmarks/facemesh.py [--threads N] [--compile]

Rows are the attention mesh on 192 px crops. MediaPipe runs its mesh stage alone (CPU, XNNPACK),
one crop at a time, which is all it offers; it has no backward pass. On a GPU the same rows follow
in float32 and float16.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from mediapipe_reference import CropGraph

from core.face.network import CROP, FaceMesh
from core.synthetic import performer

BATCHES = (1, 8, 32)


def milliseconds(run: Callable[[], object], device: str, seconds: float = 1.5) -> float:
    """Median time of one run."""
    times: list[float] = []
    run()
    while sum(times) < seconds or len(times) < 5:
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


def row(name: str, batch: int, forward: float, both: float | None) -> None:
    second = f"{both / batch:9.2f}" if both else "        -"
    print(f"{name:34s} {batch:5d} {forward / batch:9.2f} {second}", flush=True)


def ours(name: str, device: str, dtype: torch.dtype, compiled: bool, crop: np.ndarray) -> None:
    mesh: torch.nn.Module = FaceMesh().to(device, dtype).to(memory_format=torch.channels_last)
    if compiled:
        mesh = torch.compile(mesh)
    for batch in BATCHES:
        one = torch.from_numpy(crop).permute(2, 0, 1)[None].to(device, dtype) / 255
        x = one.repeat(batch, 1, 1, 1).contiguous(memory_format=torch.channels_last)

        wanted = x.clone().requires_grad_()
        with torch.no_grad():
            forward = milliseconds(partial(mesh, x), device)
        row(name, batch, forward, milliseconds(partial(both, mesh, wanted), device))


def both(mesh: torch.nn.Module, crops: torch.Tensor) -> None:
    crops.grad = None
    mesh(crops).landmarks.sum().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="also torch.compile (slow start)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    crop = performer.render(performer.random_identity(3), CROP)
    print(f"ms per frame; torch {torch.__version__}, {options.threads} thread(s)")
    print(f"{'':34s} batch   forward fwd+bwd")
    graph = CropGraph()
    row("MediaPipe 0.10.21 (XNNPACK)", 1, milliseconds(lambda: graph(crop), "cpu"), None)
    ours("ours, CPU float32", "cpu", torch.float32, False, crop)
    if options.compile:
        ours("ours, CPU float32, compiled", "cpu", torch.float32, True, crop)
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        for dtype in (torch.float32, torch.float16):
            short = str(dtype).removeprefix("torch.")
            ours(f"ours, {name} {short}", "cuda", dtype, False, crop)
            if options.compile:
                ours(f"ours, {name} {short}, compiled", "cuda", dtype, True, crop)


if __name__ == "__main__":
    main()
