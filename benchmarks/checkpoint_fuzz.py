"""What becomes of damaged and hostile checkpoints: counts of files opened and refused.

    python benchmarks/checkpoint_fuzz.py [--count 100000] [--processes 2] [--seed 0] [--keep FOLDER]

Small valid checkpoints (NVIDIA, TensorFlow, rosinality as zip and as before torch 1.6, safetensors,
directions) are damaged: bytes changed, files cut, parts copied elsewhere, lengths made extreme,
whole instructions of pickles removed, repeated, swapped or added, JSON headers edited. Every file
is read as a generator, as an encoder and as directions, in a child process that may take 500 MB
more than it has, and 2 s of processor time a file.

opened: one of the readers accepts it. refused: all of them say why, in a sentence. net: refused by
the sentence for what no reader foresaw. traceback: another error. over the limit: of time or
memory. code run: it made the file that the pickles' calls would make.
"""

import argparse
import sys
from collections import Counter
from multiprocessing.pool import ThreadPool
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from checkpoint_mutations import OUTCOMES, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=100_000, help="files")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="another seed, other files")
    parser.add_argument("--keep", type=Path, help="folder for files that were no sentence")
    given = parser.parse_args()
    if given.keep is not None:
        given.keep.mkdir(parents=True, exist_ok=True)
    share = given.count // given.processes
    seeds = range(given.seed, given.seed + given.processes)
    total: Counter = Counter()
    with ThreadPool(given.processes) as pool:
        for counts, problems in pool.imap(lambda seed: run(share, seed, given.keep), seeds):
            total += counts
            print("\n".join(problems), file=sys.stderr)
    for outcome in (*OUTCOMES, "net"):
        print(f"{outcome:>16} {total[outcome]:8d}")


if __name__ == "__main__":
    main()
