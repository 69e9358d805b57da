"""The performer: milliseconds per frame on one core, and 500 random draws under MediaPipe.

    python benchmarks/performer.py [--draws N] [--sheet FILE.png]

The baseline is a float32 copy and colour conversion of a picture of the same supersampled size in
numpy: what merely touching those pixels costs on this machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from performer_signals import GATES, draws, follow

from core.synthetic.performer import render


def milliseconds(run: Callable[[int], object], count: int) -> tuple[float, float]:
    """Median wall time and mean processor time of run(0..count-1)."""
    run(0)
    wall = []
    start = time.process_time()
    for i in range(count):
        t = time.perf_counter()
        run(i)
        wall.append(time.perf_counter() - t)
    return 1e3 * float(np.median(wall)), 1e3 * (time.process_time() - start) / count


def touch(size: int) -> None:
    n = 2 * size
    picture = np.ones((n, n, 3), np.float32)
    np.sqrt(picture).reshape(size, 2, size, 2, 3).mean((1, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()

    params = draws(options.draws, seed=123)
    print("size  wall ms  processor ms  baseline ms   (supersample 2, random draws)")
    for size, count in ((128, 40), (256, 40), (512, 12), (1024, 6)):
        wall, cpu = milliseconds(lambda i, s=size: render(params[i % len(params)], s), count)
        base, _ = milliseconds(lambda _, s=size: touch(s), count)
        print(f"{size:4d}  {wall:7.1f}  {cpu:12.1f}  {base:11.1f}")

    found, correlation = follow(params)
    print(f"MediaPipe finds {found:.3f} of {len(params)} (gate .98)")
    for name, value in correlation.items():
        gate = f"  gate {GATES[name]}" if name in GATES else ""
        print(f"  {name:11s} {value:6.3f}{gate}")

    if options.sheet:
        rows = [np.concatenate([render(p) for p in params[i : i + 6]], 1) for i in range(0, 24, 6)]
        cv2.imwrite(str(options.sheet), np.concatenate(rows)[..., ::-1])


if __name__ == "__main__":
    main()
