"""Plate colour to network colour and back, by OpenColorIO (through OpenImageIO).

Convention:
    The network works on display-referred sRGB in [-1, 1]. Every source space, scene-linear, log or
    display-referred, is converted to it by

        v = M(x)                   x: plate; v: linear light, Rec.709 primaries, D65 (OCIO)
        v = min(max(v, 0), 1)      the only loss; clipped pixels are counted
        e = 12.92321 v             where v <= 0.00303993, else 1.055 v^(1/2.4) - 0.055
        n = 2 e - 1

    `from_network` is the inverse, so pixels that were not clipped come back unchanged. The curve is
    that of IEC 61966-2-1 in OCIO's continuous form; the standard's rounded constants 12.92 and
    0.0031308 differ by 1e-5. There is no exposure, view transform or tone mapping, because they
    cannot be undone. An sRGB picture keeps its code values.

Colour spaces are defined by OCIO. Where its conversion is a matrix, as for every scene-linear
space, that matrix and the curve are applied here: three times as fast, and without OCIO's
approximate powers. Other spaces go through OCIO pixel by pixel. The curve is monotone and keeps 0
and 1, so pixels can be clipped and counted after it.

The config is the one that the caller names, else the `OCIO` variable (which OpenImageIO reads once
per process), else OCIO's built-in ACES config "ocio://default". All functions are thread-safe. A
config file is read once per process, but for spaces that are no matrix OpenImageIO parses a named
config on every call (10 ms for the built-in one; setting `OCIO` avoids that).
"""

from __future__ import annotations

import contextlib
import difflib
import os
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import OpenImageIO as oiio

from core.base.errors import ReenactError

# Excess in sRGB code values from which a pixel counts as clipped: 1/40 of an 8-bit step, more than
# the rounding errors of OCIO's fast curve (1e-5) and of its matrices.
TOLERANCE = 1e-4

_BREAK, _SLOPE = np.float32(0.00303993), np.float32(12.92321)  # linear part of the sRGB curve

# Names of the sRGB texture space in common configs.
_TEXTURE = ("sRGB - Texture", "srgb_tx", "Utility - sRGB - Texture", "sRGB")


class ColourError(ReenactError):
    """A colour space or an OCIO config cannot be used."""


@dataclass(frozen=True)
class Clipping:
    """Counts of pixels with a channel outside the network's range."""

    above: int  # brighter than 1: highlights
    below: int  # negative: outside the Rec.709 gamut
    pixels: int  # all pixels of the picture

    @property
    def fraction_above(self) -> float:
        """Share of the pixels that are too bright, 0..1."""
        return self.above / max(self.pixels, 1)

    @property
    def fraction_below(self) -> float:
        """Share of the pixels that are negative, 0..1."""
        return self.below / max(self.pixels, 1)


def to_network(
    pixels: np.ndarray, colour_space: str, config: str | None = None
) -> tuple[np.ndarray, Clipping]:
    """Converts plate pixels to network pixels by the formula in this module's docstring.

    Args:
        pixels: `[..., W, 3]` RGB in `colour_space`, any range, finite.
        colour_space: name, alias or role of the OCIO config.
        config: path or "ocio://" name; None for the `OCIO` variable or the built-in config.

    Returns:
        float32 `[..., W, 3]` in [-1, 1], and counts of the clipped pixels.

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
    """Converts network pixels to plate pixels: the inverse of `to_network` inside [-1, 1].

    Args:
        pixels: `[..., W, 3]` sRGB; a generator's overshoot beyond [-1, 1] is clipped.
        colour_space: name, alias or role of the OCIO config.
        config: as for `to_network`.

    Returns:
        float32 `[..., W, 3]` RGB in `colour_space`.

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
    """Converts pixels from one colour space to another without clipping.

    Args:
        pixels: `[..., W, 3]` RGB in `source`, any range, finite.
        source: name, alias or role of the OCIO config.
        target: likewise.
        config: as for `to_network`.

    Returns:
        float32 `[..., W, 3]`.

    Raises:
        ColourError: unknown space or config.
    """
    pixels, source, target = _rgb(pixels), resolve(source, config), resolve(target, config)
    return pixels if source == target else _convert(pixels, source, target, config)


def resolve(colour_space: str, config: str | None = None) -> str:
    """Returns the config's name of a colour space, given its name, an alias or a role in any case.

    Raises:
        ColourError: no such space (the message lists similar ones), or one for data.
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
    """Returns the scene_linear role, which Nuke assumes for EXRs (ACEScg in ACES configs)."""
    return _role("scene_linear", config)


def log_space(config: str | None = None) -> str:
    """Returns the compositing_log role, which Nuke assumes for log DPX (ACEScct in ACES)."""
    return _role("compositing_log", config)


@lru_cache(maxsize=8)
def texture_space(config: str | None = None) -> str:
    """Returns the sRGB texture space: that of PNG, JPEG, movies, and the network itself.

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
    """Returns the space of a role."""
    name = _open(config).getColorSpaceNameByRole(role)
    if not name:
        raise ColourError(f"{_label(config)} has no {role} role: name the clip's colour space.")
    return name


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """Returns pixels as contiguous float32; ValueError unless they are `[..., W, 3]`."""
    if pixels.ndim < 2 or pixels.shape[-1] != 3:
        raise ValueError(f"pixels must be [..., W, 3] RGB, not {pixels.shape}")
    return np.ascontiguousarray(pixels, np.float32)


def _as_picture(pixels: np.ndarray) -> np.ndarray:
    """Stacks a batch `[..., W, 3]` into one picture `[-1, W, 3]`."""
    return pixels.reshape(-1, *pixels.shape[-2:])


def _apply(matrix: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Multiplies every pixel by a matrix `[3, 3]`."""
    return cv2.transform(_as_picture(pixels), matrix.astype(np.float32)).reshape(pixels.shape)


def _encode(linear: np.ndarray) -> np.ndarray:
    """Applies the sRGB curve; its linear part extends below 0, its power above 1."""
    curve = np.maximum(linear, _BREAK) ** np.float32(1 / 2.4)
    curve *= 1.055
    curve -= 0.055
    return np.where(linear <= _BREAK, _SLOPE * linear, curve)


def _decode(encoded: np.ndarray) -> np.ndarray:
    """Inverts `_encode`."""
    curve = np.maximum(encoded, _SLOPE * _BREAK)
    curve += 0.055
    curve /= 1.055
    return np.where(encoded <= _SLOPE * _BREAK, encoded / _SLOPE, curve ** np.float32(2.4))


@lru_cache(maxsize=64)
def _to_linear(space: str, config: str | None) -> np.ndarray | None:
    """Returns the matrix to linear Rec.709; None if OCIO's conversion is not a matrix."""
    # Measured where the curve is linear, so that its power adds no rounding error ...
    small = np.float32(1e-4) * np.eye(3, dtype=np.float32)[None]
    texture = texture_space(config)
    matrix = (_convert(small, space, texture, config)[0].T / (_SLOPE * 1e-4)).astype(np.float64)
    # ... and accepted if it holds for other colours too: dark, bright and negative.
    probes = np.random.default_rng(0).uniform(-0.5, 2, (1, 64, 3)).astype(np.float32)
    probes[:, :32] *= 0.01
    ocio = _convert(probes, space, texture, config)
    matching = np.allclose(_encode(_apply(matrix, probes)), ocio, rtol=1e-4, atol=5e-5)
    return matrix if matching and abs(np.linalg.det(matrix)) > 1e-6 else None


def is_linear(colour_space: str, config: str | None = None) -> bool:
    """Returns whether a space is scene-linear, that is a matrix away from linear Rec.709.

    Raises:
        ColourError: unknown space or config.
    """
    return _to_linear(resolve(colour_space, config), config) is not None


def _convert(pixels: np.ndarray, source: str, target: str, config: str | None) -> np.ndarray:
    """Converts pixels by OCIO; names are the config's own."""
    # Without a config OpenImageIO uses a shared one, which caches its processors.
    extra = () if config is None else ("", "", config)
    buffer = oiio.ImageBuf(_as_picture(pixels))
    converted = oiio.ImageBufAlgo.colorconvert(buffer, source, target, False, *extra)
    values = None if converted.has_error else converted.get_pixels(oiio.FLOAT)
    if values is None:
        raise ColourError(f"{source} can't be turned into {target}: {converted.geterror()}")
    return values.reshape(pixels.shape)


@lru_cache(maxsize=8)
def _open(config: str | None) -> oiio.ColorConfig:
    """Opens a config, once per process."""
    path = os.environ.get("OCIO", "") if config is None else config
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(2) == b"PK":  # OpenImageIO 3.0's own OCIO crashes on it
            raise ColourError(
                f"{_label(config)} is an archive (.ocioz), which can't be read here: unpack it, "
                "and name the config.ocio inside."
            )
    opened = oiio.ColorConfig() if config is None else oiio.ColorConfig(config)
    error = opened.geterror()
    if error:
        raise ColourError(f"{_label(config)} can't be used: {error}. Mend or unset it.")
    return opened


@lru_cache(maxsize=8)
def _names(config: str | None) -> dict[str, str]:
    """Maps every name, alias and role in lower case to a space's name; names take precedence."""
    opened = _open(config)
    spaces = opened.getColorSpaceNames()
    roles = {role: opened.getColorSpaceNameByRole(role) for role in opened.getRoles()}
    aliases = {alias: space for space in spaces for alias in opened.getAliases(space)}
    everything = {**roles, **aliases, **{space: space for space in spaces}}
    return {name.lower(): space for name, space in everything.items()}


def _label(config: str | None) -> str:
    """Returns how messages call a config."""
    if config is not None:
        return f"the OCIO config {config}"
    variable = os.environ.get("OCIO")
    return f"the OCIO config {variable} (OCIO variable)" if variable else "the built-in ACES config"
