"""Characters (`NAME.character`): a person's generator, its anchors, and a record of its making.

The file is safetensors with a digest (`core.base.container`) of format "reenact.character":
`generator.NAME` for the generator's state, `anchors`, `keypoints` and `thumbnail`, and the
header's entries `architecture` and `info` (the fields of `CharacterInfo` as JSON).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.base import container
from core.base.errors import ReenactError
from core.face.keypoints import KEYPOINTS
from core.generator import Generator
from core.generator.storage import build, describe

FORMAT = "reenact.character"
VERSION = 3
CONSENT = ("who", "when", "scope")

_GENERATOR = "generator."
# A tensor is stored in half precision if that changes it by less than this share of its norm
# (rounding takes 2e-4): pictures reconstructed at 35 dB then lose less than .01 dB.
_ROUNDING = 1e-3


class NotACharacterError(ReenactError):
    """The file is not a character that can be loaded here."""


class NoConsentError(ReenactError):
    """The record of consent is not complete: who agreed to be reenacted, when, and to what."""


class CharacterNotWrittenError(ReenactError):
    """The character could not be written; an older file of its name is unchanged."""


@dataclass(frozen=True)
class CharacterInfo:
    """Record of a character's making: plain JSON values."""

    name: str
    consent: dict[str, str]  # who agreed, when (ISO 8601), scope: to what
    base_hash: str = ""  # `core.generator.storage.generator_digest` of the base
    metric: str = ""  # name of the perceptual metric of tuning
    alignment: dict[str, Any] = field(default_factory=dict)  # framing, sigmas in frames
    source: str = ""  # the self-scan
    selected: list[int] = field(default_factory=list)  # frame number of each anchor
    losses: list[dict[str, float]] = field(default_factory=list)  # history of the tuning
    steps: int | None = None  # of tuning, done; None: by a version that didn't say
    asked_steps: int | None = None  # at most, by the settings
    stopped_early: bool = False  # whether tuning was ended before them, as somebody asked
    created: str = field(
        default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds")
    )
    version: int = VERSION


@dataclass(frozen=True, eq=False)
class Character:
    """A generator tuned to one person, and N codes from which it draws their pictures."""

    generator: Generator
    anchors: Tensor  # [N, w_dim] float32
    keypoints: Tensor  # [N, 86, 3] float32: `detect_keypoints` of the anchors' pictures
    thumbnail: np.ndarray  # [H, W, 3] uint8, sRGB
    info: CharacterInfo
    hash: str = ""  # `character_hash` of the file that it was read from


def save_character(path: str | Path, character: Character) -> None:
    """Writes a character, atomically. The same character always gets the same hash.

    Args:
        path: `.character` file.
        character: on any device.

    Raises:
        NoConsentError: the record of consent is not complete.
        ValueError: tensors don't fit together or are not finite; info is no plain JSON.
        CharacterNotWrittenError: the file system refuses.
    """
    consent = character.info.consent
    absent = [e for e in CONSENT if not isinstance(consent.get(e), str) or not consent[e].strip()]
    if absent:
        raise NoConsentError(
            f"The consent record of {character.info.name!r} lacks {', '.join(absent)}: write down "
            "who agreed to become a character, when, and to what."
        )
    weights = character.generator.state_dict()
    tensors = {f"{_GENERATOR}{name}": compact(tensor) for name, tensor in weights.items()} | {
        "anchors": _plain(character.anchors),
        "keypoints": _plain(character.keypoints),
        "thumbnail": torch.from_numpy(np.ascontiguousarray(character.thumbnail)),
    }
    _check(character.info, tensors)
    entries = {
        "architecture": describe(character.generator.architecture),
        "info": json.dumps(asdict(character.info), allow_nan=False),
    }
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    try:
        container.write(path, FORMAT, VERSION, entries, arrays)
    except OSError as error:
        raise CharacterNotWrittenError(
            f"{path} could not be written: {error.strerror or error}. Check the free space and "
            "your rights in that folder, and run again."
        ) from error


def load_character(path: str | Path) -> Character:
    """Reads a character.

    Args:
        path: the file.

    Returns:
        The character in float32 on the CPU; the generator in evaluation mode, its parameters
        without gradients.

    Raises:
        NotACharacterError: no such file, another kind of file, a damaged one, or one of another
            version.
    """
    header, tensors = _read(path)
    try:
        info = container.record(CharacterInfo, container.parse(header["info"]))
        _check(info, tensors)
        generator = build(
            header["architecture"],
            {
                name.removeprefix(_GENERATOR): tensor.float()
                for name, tensor in tensors.items()
                if name.startswith(_GENERATOR)
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotACharacterError(f"{path} is damaged: {error}. Copy or make it again.") from error
    return Character(
        generator.requires_grad_(False),
        tensors["anchors"],
        tensors["keypoints"],
        tensors["thumbnail"].numpy(),
        info,
        header["sha256"],
    )


def character_hash(path: str | Path) -> str:
    """Returns the sha256 of a character's header and tensors, in hexadecimal.

    Raises:
        NotACharacterError: as `load_character`.
    """
    return _read(path)[0]["sha256"]


def _read(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    header, arrays = container.read(path, FORMAT, VERSION, NotACharacterError, "character")
    return header, {name: torch.from_numpy(array) for name, array in arrays.items()}


def _check(info: CharacterInfo, tensors: Mapping[str, Tensor]) -> None:
    """Raises KeyError where a tensor is missing, ValueError where tensors don't fit together."""
    anchors, keypoints, thumbnail = (tensors[n] for n in ("anchors", "keypoints", "thumbnail"))
    if anchors.ndim != 2 or not len(anchors) or anchors.dtype != torch.float32:
        raise ValueError(f"anchors are {anchors.dtype} {[*anchors.shape]}")
    if keypoints.shape != (len(anchors), len(KEYPOINTS), 3) or keypoints.dtype != torch.float32:
        raise ValueError(f"keypoints are {keypoints.dtype} {[*keypoints.shape]}")
    if thumbnail.ndim != 3 or thumbnail.shape[2] != 3 or thumbnail.dtype != torch.uint8:
        raise ValueError(f"the thumbnail is {thumbnail.dtype} {[*thumbnail.shape]}")
    if len(info.selected) != len(anchors):
        raise ValueError(f"there are {len(anchors)} anchors of {len(info.selected)} frames")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} has values that are no numbers")


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()


def compact(tensor: Tensor) -> Tensor:
    """Converts a tensor for a file: on the CPU, in half precision if its range and digits allow."""
    tensor = _plain(tensor)
    half = tensor.half()
    close = (half.float() - tensor).norm() <= _ROUNDING * tensor.norm()  # never where it overflows
    return half if close else tensor
