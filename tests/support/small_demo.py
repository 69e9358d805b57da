"""The demo with as little film, training and solving as it can do with."""

from pathlib import Path
from typing import NamedTuple

SIZE = 128  # of its plates, px
DEMO = (
    *("demo", "--scan-frames", "28", "--frames", "4", "--size", str(SIZE)),
    *("--steps", "8", "--refine", "0"),
)
STYLES = ("--style-steps", "1")
NO_STYLES = ("--style-steps", "0")


class Demo(NamedTuple):
    """What a demo leaves."""

    folder: Path
    said: str
    seconds: float  # until its frames were there, before the styles
