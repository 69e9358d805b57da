"""Plate colour to network colour and back, by OpenColorIO (through OpenImageIO).

The network sees display-referred sRGB in [-1, 1]. For every source space, scene-linear, log or
display-referred, the way there is

    v = M(x)                   x: plate; v: linear light, Rec.709 primaries, D65 (OCIO)
    v = min(max(v, 0), 1)      the only loss; the clipped pixels are counted
    e = 12.92 v                where v <= 0.0031308, else 1.055 v^(1/2.4) - 0.055
    n = 2 e - 1

(IEC 61966-2-1), and `from_network` is its inverse, so whatever was not clipped comes back.
No exposure, no view transform, no tone mapping: they can't be undone. An sRGB picture keeps its
code values. OCIO does M and the curve in one conversion to the config's sRGB texture space; the
curve is monotone and keeps 0 and 1, so clipping after it is clipping before it.

The config is the one named by the caller, else the `OCIO` variable (which OpenImageIO reads once
per process), else OCIO's built-in ACES config "ocio://default". All functions may be called from
several threads at once. A named config is parsed again by OpenImageIO on every call (10 ms for
the built-in one): give it frames in batches, or set `OCIO` before the start.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import OpenImageIO as oiio

from core.errors import ReenactError

# A pixel counts as clipped beyond this, in sRGB code values: 1/40 of an 8-bit step, above the
# rounding of OCIO's fast curve (1e-5) and of its matrices.
TOLERANCE = 1e-4

_TEXTURE = ("sRGB - Texture", "srgb_tx", "Utility - sRGB - Texture", "sRGB")


class ColourError(ReenactError):
    """A colour space or OCIO config that can't be used."""


@dataclass(frozen=True)
class Clipping:
    """How many pixels of a picture the network space can't hold (in any of their channels)."""

    above: int  # brighter than 1: highlights
    below: int  # negative: outside the Rec.709 gamut
    pixels: int  # all pixels looked at

    @property
    def fraction_above(self) -> float:
        return self.above / max(self.pixels, 1)

    @property
    def fraction_below(self) -> float:
        return self.below / max(self.pixels, 1)


def to_network(
    pixels: np.ndarray, colour_space: str, config: str | None = None
) -> tuple[np.ndarray, Clipping]:
    """Turn plate pixels into network pixels (formula: see this module's head).

    Args:
        pixels: [..., 3] RGB in `colour_space`, any range, finite.
        colour_space: name, alias or role of the OCIO config.
        config: path or "ocio://" name; None for the `OCIO` variable or the built-in config.

    Returns:
        float32 [..., 3] in [-1, 1], and what was clipped.

    Raises:
        ColourError: unknown space or config.
    """
    encoded = _convert(pixels, resolve(colour_space, config), texture_space(config), config)
    r, g, b = encoded[..., 0], encoded[..., 1], encoded[..., 2]
    clipping = Clipping(
        above=int(np.count_nonzero(np.maximum(np.maximum(r, g), b) > 1 + TOLERANCE)),
        below=int(np.count_nonzero(np.minimum(np.minimum(r, g), b) < -TOLERANCE)),
        pixels=r.size,
    )
    np.clip(encoded, 0, 1, out=encoded)
    encoded *= 2
    encoded -= 1
    return encoded, clipping


def from_network(pixels: np.ndarray, colour_space: str, config: str | None = None) -> np.ndarray:
    """Turn network pixels into plate pixels: the inverse of `to_network` inside [-1, 1].

    Args:
        pixels: [..., 3] sRGB in [-1, 1]; a generator's overshoot beyond that is clipped.
        colour_space: name, alias or role of the OCIO config.
        config: as for `to_network`.

    Returns:
        float32 [..., 3] RGB in `colour_space`.

    Raises:
        ColourError: unknown space or config.
    """
    encoded = np.clip(np.asarray(pixels, np.float32), -1, 1) * np.float32(0.5) + np.float32(0.5)
    return _convert(encoded, texture_space(config), resolve(colour_space, config), config)


def resolve(colour_space: str, config: str | None = None) -> str:
    """The config's own name of a colour space, given its name, an alias or a role (any case).

    Raises:
        ColourError: no such space (the message lists near ones), or one that holds data.
    """
    names = _names(config)
    name = names.get(colour_space.strip().lower())
    if name is None:
        near = difflib.get_close_matches(colour_space.strip().lower(), names, 12, 0.4)
        offered = list(dict.fromkeys(names[match] for match in near))[:5]
        if not offered:
            offered = list(dict.fromkeys(names.values()))
        raise ColourError(
            f'There is no colour space "{colour_space}" in {_label(config)}. '
            f"Choose one of: {', '.join(offered)}."
        )
    if name == _open(config).getColorSpaceNameByRole("data"):
        raise ColourError(
            f'"{colour_space}" means data without colour in {_label(config)}: name the space the '
            "pixels were made in, for example the one your Read node shows."
        )
    return name


def scene_linear_space(config: str | None = None) -> str:
    """The config's scene_linear role: what Nuke takes an EXR for (ACEScg in ACES configs)."""
    return _role("scene_linear", config)


def log_space(config: str | None = None) -> str:
    """The config's compositing_log role: what Nuke takes log DPX for (ACEScct in ACES configs)."""
    return _role("compositing_log", config)


def texture_space(config: str | None = None) -> str:
    """The config's sRGB texture space: PNG, JPEG, movies, and the network itself.

    Raises:
        ColourError: the config has none.
    """
    names = _names(config)
    for candidate in (*_TEXTURE, _open(config).resolve("sRGB")):
        if candidate.lower() in names:
            return names[candidate.lower()]
    raise ColourError(
        f'{_label(config)} has no sRGB texture space (looked for "{_TEXTURE[0]}" and "sRGB"): '
        "add one with the alias srgb_tx, or use another config."
    )


def _role(role: str, config: str | None) -> str:
    name = _open(config).getColorSpaceNameByRole(role)
    if not name:
        raise ColourError(f"{_label(config)} has no {role} role: name the clip's colour space.")
    return name


def _convert(pixels: np.ndarray, source: str, target: str, config: str | None) -> np.ndarray:
    pixels = np.ascontiguousarray(pixels, np.float32)
    if pixels.ndim < 2 or pixels.shape[-1] != 3:
        raise ValueError(f"pixels must be [..., 3] RGB, not {pixels.shape}")
    rows = pixels.reshape(-1, pixels.shape[-2], 3)
    # Without a config OpenImageIO uses its shared one, whose processors are cached.
    extra = () if config is None else ("", "", config)
    converted = oiio.ImageBufAlgo.colorconvert(oiio.ImageBuf(rows), source, target, False, *extra)
    values = None if converted.has_error else converted.get_pixels(oiio.FLOAT)
    if values is None:
        raise ColourError(f"{source} can't be turned into {target}: {converted.geterror()}")
    return values.reshape(pixels.shape)


@lru_cache(maxsize=8)
def _open(config: str | None) -> oiio.ColorConfig:
    opened = oiio.ColorConfig() if config is None else oiio.ColorConfig(config)
    error = opened.geterror()
    if error:
        raise ColourError(f"{_label(config)} can't be used: {error}. Mend or unset it.")
    return opened


@lru_cache(maxsize=8)
def _names(config: str | None) -> dict[str, str]:
    """Every name, alias and role in lower case -> the space's own name; names win."""
    opened = _open(config)
    spaces = opened.getColorSpaceNames()
    roles = {role: opened.getColorSpaceNameByRole(role) for role in opened.getRoles()}
    aliases = {alias: space for space in spaces for alias in opened.getAliases(space)}
    everything = {**roles, **aliases, **{space: space for space in spaces}}
    return {name.lower(): space for name, space in everything.items()}


def _label(config: str | None) -> str:
    if config is not None:
        return f"the OCIO config {config}"
    variable = os.environ.get("OCIO")
    return f"the OCIO config {variable} (OCIO variable)" if variable else "the built-in ACES config"
