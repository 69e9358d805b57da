"""The command line of the distillation; see `core.synthetic.distill`."""

import argparse
import sys
from pathlib import Path

from core.base import cpu
from core.base.errors import ReenactError
from core.synthetic.distill.stages import Recipe, distill


@cpu.training()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m core.synthetic.distill",
        description="Distils the base generator from the performer.",
    )
    parser.add_argument("folder", type=Path, help="for pictures, checkpoints and results")
    parser.add_argument("--resolution", type=int, default=128, choices=(128, 256))
    options = parser.parse_args()
    try:
        distill(options.folder, Recipe(options.resolution))
    except ReenactError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
