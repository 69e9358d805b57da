"""Plate colour to network colour and back, by OpenColorIO (through OpenImageIO).

The network sees display-referred sRGB in [-1, 1]. For every source space, scene-linear, log or
display-referred, the way there is

    v = M(x)                   x: plate; v: linear light, Rec.709 primaries, D65 (OCIO)
    v = min(max(v, 0), 1)      the only loss; the clipped pixels are counted
    e = 12.92321 v             where v <= 0.00303993, else 1.055 v^(1/2.4) - 0.055
    n = 2 e - 1

and `from_network` is its inverse, so whatever was not clipped comes back. (The curve is IEC
61966-2-1 in the continuous form that OCIO has; the standard's rounded 12.92 and 0.0031308 differ
by 1e-5.) No exposure, no view transform, no tone mapping: they can't be undone. An sRGB picture
keeps its code values.

OCIO says what a colour space means. Where its conversion turns out to be a matrix, as for every
scene-linear space, that matrix and the curve are applied here (three times as fast, and without
OCIO's approximate powers); other spaces go through OCIO pixel by pixel. The curve is monotone and
keeps 0 and 1, so it makes no difference that clipping and counting come after it.

The config is the one named by the caller, else the `OCIO` variable (which OpenImageIO reads once
per process), else OCIO's built-in ACES config "ocio://default". All functions may be called from
several threads at once. A config file is read once per process; only for spaces that are no matrix
does OpenImageIO parse a named one on every call (10 ms for the built-in one, which setting `OCIO`
avoids).
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import OpenImageIO as oiio

from core.base.errors import ReenactError

# A pixel counts as clipped beyond this, in sRGB code values: 1/40 of an 8-bit step, above the
# rounding of OCIO's fast curve (1e-5) and of its matrices.
TOLERANCE = 1e-4

_BREAK, _SLOPE = np.float32(0.00303993), np.float32(12.92321)  # of the sRGB curve

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
        pixels: [..., W, 3] RGB in `colour_space`, any range, finite.
        colour_space: name, alias or role of the OCIO config.
        config: path or "ocio://" name; None for the `OCIO` variable or the built-in config.

    Returns:
        float32 [..., W, 3] in [-1, 1], and what was clipped.

    Raises:
        ColourError: unknown space or config.

    Example:
        >>> pixels, clipping = to_network(np.array([[0.18, 0.18, 0.18], [4, 4, 4]]), "ACEScg")
        >>> [round(float(value), 2) for value in pixels[:, 0]]
        [-0.08, 1.0]
        >>> clipping.above, clipping.pixels
        (1, 2)
    """
    pixels, space = _rgb(pixels), resolve(colour_space, config)
    if space == texture_space(config):
        encoded = pixels.copy()
    elif (matrix := _to_linear(space, config)) is not None:
        encoded = _encode(_apply(matrix, pixels))
    else:
        encoded = _convert(pixels, space, texture_space(config), config)
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
        pixels: [..., W, 3] sRGB in [-1, 1]; a generator's overshoot beyond that is clipped.
        colour_space: name, alias or role of the OCIO config.
        config: as for `to_network`.

    Returns:
        float32 [..., W, 3] RGB in `colour_space`.

    Raises:
        ColourError: unknown space or config.

    Example:
        >>> plate = np.array([[0.3, 0.4, 0.5]], np.float32)
        >>> pixels, _ = to_network(plate, "ACEScg")
        >>> bool(np.abs(from_network(pixels, "ACEScg") - plate).max() < 1e-5)
        True
    """
    encoded = _rgb(pixels).clip(-1, 1)
    encoded *= 0.5
    encoded += 0.5
    space = resolve(colour_space, config)
    if space == texture_space(config):
        return encoded
    if (matrix := _to_linear(space, config)) is not None:
        return _apply(np.linalg.inv(matrix), _decode(encoded))
    return _convert(encoded, texture_space(config), space, config)


def convert(pixels: np.ndarray, source: str, target: str, config: str | None = None) -> np.ndarray:
    """Pixels of one colour space in another; nothing is clipped.

    Args:
        pixels: [..., W, 3] RGB in `source`, any range, finite.
        source: name, alias or role of the OCIO config.
        target: likewise.
        config: as for `to_network`.

    Returns:
        float32 [..., W, 3].

    Raises:
        ColourError: unknown space or config.
    """
    pixels, here, there = _rgb(pixels), resolve(source, config), resolve(target, config)
    return pixels if here == there else _convert(pixels, here, there, config)


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


@lru_cache(maxsize=8)
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


def _rgb(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim < 2 or pixels.shape[-1] != 3:
        raise ValueError(f"pixels must be [..., W, 3] RGB, not {pixels.shape}")
    return np.ascontiguousarray(pixels, np.float32)


def _rows(pixels: np.ndarray) -> np.ndarray:
    """One picture [-1, W, 3] of a batch [..., W, 3]."""
    return pixels.reshape(-1, *pixels.shape[-2:])


def _apply(matrix: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    return cv2.transform(_rows(pixels), matrix.astype(np.float32)).reshape(pixels.shape)


def _encode(linear: np.ndarray) -> np.ndarray:
    """The sRGB curve; the straight part goes on below 0, the power above 1."""
    curve = np.maximum(linear, _BREAK) ** np.float32(1 / 2.4)
    curve *= 1.055
    curve -= 0.055
    return np.where(linear <= _BREAK, _SLOPE * linear, curve)


def _decode(encoded: np.ndarray) -> np.ndarray:
    curve = np.maximum(encoded, _SLOPE * _BREAK)
    curve += 0.055
    curve /= 1.055
    return np.where(encoded <= _SLOPE * _BREAK, encoded / _SLOPE, curve ** np.float32(2.4))


@lru_cache(maxsize=64)
def _to_linear(space: str, config: str | None) -> np.ndarray | None:
    """The matrix from a space to linear Rec.709, or None if OCIO's conversion is not a matrix."""
    # Read off where the curve is straight, so that its power does not blur the numbers ...
    small = np.float32(1e-4) * np.eye(3, dtype=np.float32)[None]
    texture = texture_space(config)
    matrix = (_convert(small, space, texture, config)[0].T / (_SLOPE * 1e-4)).astype(np.float64)
    # ... and believed if it holds for other colours too, dark, bright and negative.
    probes = np.random.default_rng(0).uniform(-0.5, 2, (1, 64, 3)).astype(np.float32)
    probes[:, :32] *= 0.01
    ocio = _convert(probes, space, texture, config)
    matching = np.allclose(_encode(_apply(matrix, probes)), ocio, rtol=1e-4, atol=5e-5)
    return matrix if matching and abs(np.linalg.det(matrix)) > 1e-6 else None


def is_linear(colour_space: str, config: str | None = None) -> bool:
    """Whether a space is scene-linear: a matrix away from linear Rec.709.

    Raises:
        ColourError: unknown space or config.
    """
    return _to_linear(resolve(colour_space, config), config) is not None


def _convert(pixels: np.ndarray, source: str, target: str, config: str | None) -> np.ndarray:
    # Without a config OpenImageIO uses its shared one, whose processors are cached.
    extra = () if config is None else ("", "", config)
    buffer = oiio.ImageBuf(_rows(pixels))
    converted = oiio.ImageBufAlgo.colorconvert(buffer, source, target, False, *extra)
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
