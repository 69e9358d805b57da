"""How fast the method is: ours against a stated baseline in the same run, on one thread.

    python benchmarks/speed.py [ROW ...] [--threads N]

selection: distances of all pairs of 400 frames at 128 px and the 250 most diverse of them, against
    a loop over pairs that runs the same network on both pictures of each. The loop is timed on 40
    pairs and multiplied up to all of them. LPIPS' trunk is random where its weights are not on
    the machine; that changes no times.
"""

import argparse
import itertools
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import torchvision_ops  # noqa: F401

from core.perceptual import Metric, lpips_metric, metric, trunk_file
from core.selection import farthest_first, pairwise_distances
from core.synthetic import performer


def row(name: str, ours: float, baseline: float, remark: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:24s} {ours:9.2f} s {baseline:11.2f} s {baseline / ours:8.1f}x "
          f"{peak:7.0f} MiB  {remark}", flush=True)  # fmt: skip


# -- selection ---------------------------------------------------------------------------------

FRAMES, SIDE, CHOSEN, SAMPLE = 400, 128, 250, 40


def selection() -> None:
    motion = performer.self_scan(performer.random_identity(3), FRAMES)
    rendered = np.stack([performer.render(p, SIDE, 1) for p in motion])
    pictures = torch.from_numpy(rendered).permute(0, 3, 1, 2).float() / 127.5 - 1
    embedded = metric("embedded")
    _selection_row(pictures, embedded, embedded.distance, "")

    import lpips  # slow

    here = trunk_file("lpips-alex").is_file()
    network = lpips.LPIPS(net="alex", pnet_rand=not here, verbose=False)
    alex = lpips_metric(network, "lpips-alex")
    _selection_row(pictures, alex, network, "" if here else "random trunk, ")


@torch.no_grad()
def _selection_row(
    pictures: Tensor, ours: Metric, pair: Callable[[Tensor, Tensor], Tensor], remark: str
) -> None:
    """`pair`: distance of one picture `[1, 3, R, R]` to another; for LPIPS the library's own."""
    start = time.perf_counter()
    distances = pairwise_distances(ours, pictures)
    farthest_first(distances, CHOSEN)
    seconds = time.perf_counter() - start

    pairs = list(itertools.combinations(range(len(pictures)), 2))
    sample = [pairs[i] for i in np.linspace(0, len(pairs) - 1, SAMPLE).astype(int)]
    start = time.perf_counter()
    found = [float(pair(pictures[i : i + 1], pictures[j : j + 1])) for i, j in sample]
    naive = (time.perf_counter() - start) / SAMPLE * len(pairs)
    error = max(abs(distances[p] - f) for p, f in zip(sample, found, strict=True))
    remark += f"loop timed on {SAMPLE} of {len(pairs)} pairs; distances agree to {error:.0e}"
    row(f"selection, {ours.name}", seconds, naive, remark)


ROWS = {"selection": selection}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} thread(s)")
    print(f"{'':24s} {'ours':>11s} {'baseline':>13s} {'faster':>9s} {'peak':>11s}")
    for name in options.rows or ROWS:
        ROWS[name]()


if __name__ == "__main__":
    main()
