"""The StyleGAN2 generator."""

from core.generator.network import (
    Architecture,
    Generator,
    MappingNetwork,
    Noise,
    SynthesisNetwork,
    config_f,
    half_precision,
)

__all__ = [
    "Architecture",
    "Generator",
    "MappingNetwork",
    "Noise",
    "SynthesisNetwork",
    "config_f",
    "half_precision",
]
