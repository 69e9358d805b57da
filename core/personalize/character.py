"""Characters (`NAME.character`): a person's generator, its anchors, and a record of its making.

The file is safetensors with a digest (`core.base.container`) of format "reenact.character":
`generator.NAME` for the generator's state, `anchors`, `keypoints` and `thumbnail`, and the
header's entries `architecture` and `info` (the fields of `CharacterInfo` as JSON). Since version 4
it may have detail: `detail.NAME` and the entry `detail`, see `core.personalize.detail`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
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
from core.generator.storage import build, compact, describe
from core.personalize import detail as details
from core.personalize.detail import Detail

FORMAT = "reenact.character"
VERSION = 5
PLAIN_VERSION = 3  # of files without detail
CONSENT = ("who", "when", "scope")

_GENERATOR = "generator."


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
    version: int = PLAIN_VERSION


@dataclass(frozen=True, eq=False)
class Character:
    """A generator tuned to one person, and N codes from which it draws their pictures."""

    generator: Generator
    anchors: Tensor  # [N, w_dim] float32
    keypoints: Tensor  # [N, 86, 3] float32: `detect_keypoints` of the anchors' pictures
    thumbnail: np.ndarray  # [H, W, 3] uint8, sRGB
    info: CharacterInfo
    hash: str = ""  # `character_hash` of the file that it was read from
    detail: Detail | None = None  # what is drawn beyond the generator's resolution

    @property
    def resolution(self) -> int:
        """Side of the pictures that are delivered, px."""
        return self.detail.resolution if self.detail else self.generator.architecture.resolution

    def to(self, device: torch.device | str) -> Character:
        """Moves the networks and anchors to a device, the networks in place."""
        self.generator.to(device)
        if self.detail is not None:
            self.detail.network.to(device)
        return replace(self, anchors=self.anchors.to(device))


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
    _write(path, entries, tensors, character.detail)


def write_with_detail(source: str | Path, path: str | Path, detail: Detail) -> None:
    """Writes a character's file again, with detail; its hash stays, so that its tracks fit both.

    Args:
        source: a `.character` file; detail that it has is replaced.
        path: where it is written, atomically.
        detail: of the same person.

    Raises:
        NotACharacterError: as `load_character`, of the source.
        CharacterNotWrittenError: the file system refuses.
    """
    header, tensors = _read(source)
    entries = {name: header[name] for name in ("architecture", "info")}
    _write(path, entries, _without_detail(tensors), detail)


def _write(
    path: str | Path, entries: dict[str, str], tensors: Mapping[str, Tensor], detail: Detail | None
) -> None:
    version, arrays = PLAIN_VERSION, {name: tensor.numpy() for name, tensor in tensors.items()}
    if detail is not None:
        described, state = details.store(detail)
        version, entries, arrays = VERSION, entries | described, arrays | state
    try:
        container.write(path, FORMAT, version, entries, arrays)
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
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        detail = details.restore(header, arrays, generator.architecture)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotACharacterError(f"{path} is damaged: {error}. Copy or make it again.") from error
    return Character(
        generator.requires_grad_(False),
        tensors["anchors"],
        tensors["keypoints"],
        tensors["thumbnail"].numpy(),
        info,
        _hash(header, tensors),
        detail,
    )


def character_hash(path: str | Path) -> str:
    """Returns the sha256 of a character's header and tensors without detail, in hexadecimal.

    That is what tracks are solved with: a character keeps its hash when it is given detail.

    Raises:
        NotACharacterError: as `load_character`.
    """
    return _hash(*_read(path))


def has_detail(path: str | Path) -> bool:
    """Returns whether a character's file has detail, by its header alone.

    Raises:
        OSError, ValueError: as `core.base.container.read_header`.
    """
    return details.ENTRY in container.read_header(path)[0]


def _hash(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    if details.ENTRY not in header:
        return header["sha256"]
    entries = {name: header[name] for name in ("format", "architecture", "info")}
    arrays = {name: tensor.numpy() for name, tensor in _without_detail(tensors).items()}
    return container.digest(entries | {"version": str(PLAIN_VERSION)}, arrays)


def _without_detail(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(details.PREFIX)}


def _read(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    header, arrays = container.read(
        path, FORMAT, VERSION, NotACharacterError, "character", PLAIN_VERSION
    )
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
