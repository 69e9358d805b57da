"""The StyleGAN2 generator."""

from core.generator.network import (
    Architecture,
    Generator,
    Mapping,
    Noise,
    Synthesis,
    config_f,
    half_precision,
)

__all__ = [
    "Architecture",
    "Generator",
    "Mapping",
    "Noise",
    "Synthesis",
    "config_f",
    "half_precision",
]
