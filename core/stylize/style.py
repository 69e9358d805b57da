"""Styles (`NAME.style`): fine-tuned generators that draw a character's codes in another manner.

A style is a synthesis network fine-tuned from a character's, its parent. Mapping and w are the
parent's, and the two stay aligned: any track of the parent can be drawn by the style, and their
weights can be mixed (network interpolation), per resolution and by any amount.

The file is safetensors with a digest (`core.base.container`) of format "reenact.style":
`synthesis.NAME` for the network's state and `thumbnail`, and the header's entries `architecture`
and `info` (the fields of `StyleInfo` as JSON). Since version 2 it may have detail, as characters
have. Reading it runs no code. A StyleGAN-NADA child
(rosinality .pt), or any other checkpoint that `core.generator.checkpoints` reads, can be used as it
is.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.base import container, keyframes
from core.base.digest import digest
from core.base.errors import ReenactError
from core.generator import Architecture, Generator, checkpoints
from core.generator.storage import build, compact, describe, generator_digest
from core.personalize import detail as details
from core.personalize.character import Character
from core.personalize.detail import Detail

FORMAT = "reenact.style"
VERSION = 3
PLAIN_VERSION = 1  # of files without detail

_SYNTHESIS, _MAPPING = "synthesis.", "mapping."


class NotAStyleError(ReenactError):
    """The file is not a style that can be loaded here."""


class ParentMismatchError(ReenactError):
    """The style was made of another character."""


class MixError(ReenactError):
    """Amounts of a style lie outside 0..1, or the generator has no such resolution."""


class StyleNotWrittenError(ReenactError):
    """The style could not be written; an older file of its name is unchanged."""


@dataclass(frozen=True)
class StyleInfo:
    """Record of a style's making: plain JSON values."""

    name: str
    parent: str = ""  # hash of the character's file; empty: unknown (another tool's checkpoint)
    parent_generator: str = ""  # `generator_digest` of the character's generator
    base_hash: str = ""  # the character's
    method: dict[str, Any] = field(default_factory=dict)  # kind, prompts, models, ...
    consent: dict[str, str] = field(default_factory=dict)  # the character's
    settings: dict[str, Any] = field(default_factory=dict)  # `StylizeSettings`
    losses: list[dict[str, float]] = field(default_factory=list)  # history of the training
    steps: int = 0  # done
    complete: bool = True  # False: it was written during training
    stopped_early: bool = False  # whether it was ended before its steps, as somebody asked
    alignment: float | None = None  # mean keypoint distance to the parent, px of the 192 px crop
    task: str = ""  # digest of all that decides it
    created: str = field(
        default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds")
    )
    version: int = PLAIN_VERSION


@dataclass(frozen=True, eq=False)
class Style:
    """A generator that draws a character's codes in another manner."""

    generator: Generator  # with the parent's mapping; evaluation mode, no gradients
    thumbnail: np.ndarray  # [H, W, 3] uint8, sRGB
    info: StyleInfo
    hash: str = ""  # of the file that it was read from
    detail: Detail | None = None  # in its manner, on the character's atlas


@dataclass(frozen=True, eq=False)
class Mix:
    """The amount of a style in each of F frames."""

    style: Style
    amounts: np.ndarray  # [F] float32 in 0..1: 0 is the parent, 1 the style
    resolutions: tuple[int, ...]  # blocks that take the style; the others stay the parent's

    def frames(self, indices: Sequence[int] | np.ndarray) -> Mix:
        """Returns the mix of some of the frames."""
        return replace(self, amounts=self.amounts[indices])

    def digest(self) -> str:
        """Digest of all that decides the pixels."""
        return digest(self.style.hash, self.amounts, self.resolutions)

    def networks(
        self, parent: Generator, detail: Detail | None = None
    ) -> Iterator[tuple[slice, Generator, Detail | None]]:
        """Iterates over runs of frames of one amount, with the networks that draw them.

        Args:
            parent: the character's generator; the mixed one is on its device.
            detail: the character's. It is mixed with the style's where the style takes the finest
                block. A style without detail of its own, or of a character that was given other
                detail since, keeps the character's.

        Yields:
            The frames of a run, the generator and the detail: the same objects each time, with
            other weights. At 0 they are the parent's bit for bit; at 1, in the blocks that take
            it, the style's.
        """
        mixed = copy.deepcopy(parent)
        device = next(parent.parameters()).device
        style = self.style.generator.to(device).synthesis.state_dict()
        tables = [(parent.synthesis.state_dict(), style, mixed.synthesis.state_dict())]
        finest = parent.architecture.resolution in self.resolutions
        if detail is not None and detail.can_be_mixed(self.style.detail) and finest:
            assert self.style.detail is not None
            plain, styled = detail.network, self.style.detail.network.to(device)
            detail = replace(detail, network=copy.deepcopy(plain))
            tables.append((plain.state_dict(), styled.state_dict(), detail.network.state_dict()))
        if not len(self.amounts):
            return
        changes = np.flatnonzero(np.diff(self.amounts)) + 1
        for start, stop in zip([0, *changes], [*changes, len(self.amounts)], strict=True):
            amount = float(self.amounts[start])
            for own, other, result in tables:
                for name, tensor in result.items():
                    if own is tables[0][0] and _resolution(name) not in self.resolutions:
                        continue
                    torch.lerp(own[name], other[name], amount, out=tensor)
            yield slice(int(start), int(stop)), mixed, detail


def mix(
    style: Style,
    numbers: Sequence[int] | np.ndarray,
    amount: str = "1",
    first: int | None = None,
    last: int | None = None,
) -> Mix:
    """Mixes a style into the frames of a track.

    Args:
        style: from `load_style`.
        numbers: F frame numbers.
        amount: keyframes (`core.base.keyframes.parse`) of values in 0..1.
        first: resolution of the first block that takes the style; by default 4, the coarsest.
        last: resolution of the last one; by default the finest.

    Raises:
        MixError: an amount outside 0..1, or a resolution that the generator does not have.
        core.base.keyframes.KeyframeError: `amount` can't be read.
    """
    blocks = style.generator.architecture.resolutions
    first, last = first or blocks[0], last or blocks[-1]
    if not {first, last} <= set(blocks) or first > last:
        raise MixError(
            f"The style can't go from {first} to {last} px. The blocks of this generator are "
            f"{', '.join(map(str, blocks))}."
        )
    amounts = keyframes.at(keyframes.parse(amount, "The style's amount"), numbers)
    if not ((amounts >= 0) & (amounts <= 1)).all():
        raise MixError(
            f"Amounts of a style lie between 0 (the character) and 1 (the style), not {amount}."
        )
    return Mix(style, amounts, tuple(r for r in blocks if first <= r <= last))


def save_style(path: str | Path, style: Style) -> None:
    """Writes a style, atomically. The same style always gets the same hash.

    Args:
        path: `.style` file.
        style: on any device; its mapping network is not written.

    Raises:
        StyleNotWrittenError: the file system refuses.
    """
    weights = style.generator.synthesis.state_dict()
    arrays = {f"{_SYNTHESIS}{name}": compact(tensor).numpy() for name, tensor in weights.items()}
    arrays["thumbnail"] = np.ascontiguousarray(style.thumbnail)
    entries = {
        "architecture": describe(style.generator.architecture),
        "info": json.dumps(asdict(style.info), allow_nan=False),
    }
    version = PLAIN_VERSION
    if style.detail is not None:
        described, state = details.store(style.detail)
        version, entries, arrays = VERSION, entries | described, arrays | state
    try:
        container.write(path, FORMAT, version, entries, arrays)
    except OSError as error:
        raise StyleNotWrittenError(
            f"{path} could not be written: {error.strerror or error}. Check the free space and "
            "your rights in that folder, and run again."
        ) from error


def style_info(path: str | Path) -> StyleInfo:
    """Reads the record of a style's making from its file.

    Raises:
        NotAStyleError: no such file, another kind of file, a damaged one, or one of another
            version.
    """
    header, _ = container.read(path, FORMAT, VERSION, NotAStyleError, "style", PLAIN_VERSION)
    return _info(path, header)


def load_style(path: str | Path, character: Character, sibling: bool = False) -> Style:
    """Reads a style, or another tool's fine-tuned generator, for drawing a character's codes.

    Args:
        path: `.style` file, or a checkpoint: StyleGAN-NADA's .pt, or another format of
            `core.generator.checkpoints`. A checkpoint does not name its parent; the character is
            assumed to be it.
        character: whose codes it will draw; lends its mapping network.
        sibling: also accept a style of another character that was tuned from the same base. It is
            aligned as well, but draws that character.

    Returns:
        The style in float32 on the CPU.

    Raises:
        NotAStyleError: a damaged file, or a generator of another architecture.
        ParentMismatchError: the style of another character.
        core.base.errors.ReenactError: no such file, or no checkpoint.
    """
    if _is_style_file(path):
        return _load_own(path, character, sibling)
    checkpoint = checkpoints.read_checkpoint(path)
    _check_shape(path, checkpoint.architecture, character)
    generator, _ = checkpoints.build(checkpoint, character.generator)
    generator.mapping.load_state_dict(character.generator.mapping.state_dict())
    info = StyleInfo(Path(path).stem, method={"kind": checkpoint.format})
    tensors = generator.synthesis.state_dict().values()
    blank = np.zeros((1, 1, 3), np.uint8)
    return Style(generator.requires_grad_(False), blank, info, digest(*tensors))


def _is_style_file(path: str | Path) -> bool:
    try:
        return container.read_header(path)[0].get("format") == FORMAT
    except (OSError, ValueError):
        return False  # a checkpoint or nothing; its reader reports which


def _load_own(path: str | Path, character: Character, sibling: bool) -> Style:
    header, arrays = container.read(path, FORMAT, VERSION, NotAStyleError, "style", PLAIN_VERSION)
    info = _info(path, header)
    if character.hash != info.parent and generator_digest(character.generator) != (
        info.parent_generator
    ):
        _check_sibling(path, info, character, sibling)
    mapping = character.generator.mapping.state_dict()
    own = {name: array for name, array in arrays.items() if name.startswith(_SYNTHESIS)}
    tensors = {name: torch.from_numpy(array).float() for name, array in own.items()}
    tensors |= {f"{_MAPPING}{name}": tensor for name, tensor in mapping.items()}
    try:
        generator = build(header["architecture"], tensors)
        thumbnail = arrays["thumbnail"]
        detail = details.restore(header, arrays, generator.architecture)
    except (KeyError, TypeError, ValueError) as error:
        raise NotAStyleError(f"{path} is damaged: {error}. Copy or make it again.") from error
    _check_shape(path, generator.architecture, character)
    return Style(generator.requires_grad_(False), thumbnail, info, header["sha256"], detail)


def _info(path: str | Path, header: dict[str, str]) -> StyleInfo:
    try:
        return container.record(StyleInfo, container.parse(header["info"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotAStyleError(f"{path} is damaged: {error}. Copy or make it again.") from error


def _check_sibling(path: str | Path, info: StyleInfo, character: Character, sibling: bool) -> None:
    related = bool(info.base_hash) and info.base_hash == character.info.base_hash
    if related and sibling:
        return
    whose = f"{path} is a style of another character ({info.parent[:12]})"
    if related:
        raise ParentMismatchError(
            f"{whose} than {character.info.name} ({character.hash[:12]}). Both come from the same "
            "base, so they are aligned, but it draws the other person: say so (--sibling) if that "
            "is wanted, or make the style of this character."
        )
    raise ParentMismatchError(
        f"{whose} that was not made from the base of {character.info.name} "
        f"({character.hash[:12]}): its codes mean other pictures there. Make the style of this "
        "character."
    )


def _check_shape(path: str | Path, style: Architecture, character: Character) -> None:
    parent = character.generator.architecture
    if (style.resolution, dict(style.channels), style.w_dim) != (
        parent.resolution,
        dict(parent.channels),
        parent.w_dim,
    ):
        raise NotAStyleError(
            f"{path} is a generator of {style.resolution} px with {style.w_dim} numbers in w and "
            f"channels {dict(style.channels)}, and that of {character.info.name} has "
            f"{parent.resolution} px, {parent.w_dim} and {dict(parent.channels)}. Choose one that "
            "was fine-tuned from this character."
        )


def _resolution(name: str) -> int:
    """Resolution of the block that a tensor of a synthesis network belongs to."""
    return int(name.partition(".")[0][1:])
