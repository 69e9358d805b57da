"""Edits of a latent track: its codes are moved along directions, by amounts keyed over time.

A personalised generator is trained only within P, so codes are moved in barycentric coordinates
(MyStyle, Nitzan et al. 2022): a direction n of W is replaced by gamma, the nearest change of the
anchors' weights, and an amount a takes weights alpha to alpha + a gamma. In P+ each layer of w+ may
have its own gamma.

MyStyle's gamma = (A A^T)^-1 A n is the least-squares solution over all changes of the weights. If
it changes their sum, the code leaves the plane of P, where nothing was trained. Here only changes
that keep the sum are allowed, which is least squares on the anchors less their mean. For n in that
plane both are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import scipy.linalg
import torch

from core.base import keyframes
from core.base.digest import digest
from core.base.errors import ReenactError
from core.edit.directions import Direction
from core.personalize.character import Character
from core.solve.latent_space import BETA, nearest_weights
from core.solve.latent_track import CharacterMismatchError, LatentTrack

Edge = Literal["continue", "stop", "project"]
EDGES: tuple[Edge, ...] = get_args(Edge)

# Layers of w+ by the size of what they draw, as published: 4 and 8 px, 16 and 32 px, the rest. The
# numbers are the same for every generator; a small one has fewer fine layers. The user's options,
# the protocol and the recipe of a track call them rows.
LAYERS = {"coarse": (0, 3), "middle": (4, 7), "fine": (8, None)}

# Share of the largest singular value below which differences of anchors are float32 noise;
# inverting them would give weights of any size.
_RANK = 1e-6


class EditError(ReenactError):
    """The edit can't be applied to this track; the message says why."""


@dataclass(frozen=True)
class Move:
    """A movement along one direction."""

    direction: str
    keys: tuple[keyframes.Key, ...]  # in units of the direction
    # Layers, under their name in JSON: "coarse", "middle", "fine", "0-5", joined by "+"; or all.
    rows: str = ""


def parse_layers(text: str, count: int) -> np.ndarray:
    """Parses the names of layers of w+.

    Args:
        text: names of `LAYERS` and ranges such as "0-5" or "7", joined by "+"; empty names all.
        count: number of layers, L.

    Returns:
        `[L]` bool.

    Raises:
        EditError: another text, or layers that do not exist.
    """
    chosen = np.full(count, not text)
    for part in text.split("+") if text else []:
        found = re.fullmatch(r"(\d{1,3})(?:-(\d{1,3}))?", part)
        if part in LAYERS:
            first, last = LAYERS[part]
            last = count - 1 if last is None else min(last, count - 1)
        elif found:
            first, last = int(found[1]), int(found[2] or found[1])
        else:
            raise EditError(
                f"{part!r} names no rows. Choose {', '.join(LAYERS)}, or a range like "
                f"0-{count - 1}."
            )
        if not first <= last < count:
            raise EditError(f"There are no rows {part}: this generator has 0-{count - 1}.")
        chosen[first : last + 1] = True
    return chosen


def moves_from_json(value: Any) -> tuple[Move, ...]:
    """Reads moves from JSON.

    The form is `[{"direction", "keys": [[number, value, easing], ...], "rows"}, ...]`. Easings and
    `rows` (the layers) may be left out.

    Raises:
        KeyframeError: invalid keys.
        EditError: anything else that is invalid.
    """
    try:
        return tuple(
            Move(
                str(move["direction"]),
                keyframes.from_plain(move["keys"], str(move["direction"])),
                str(move.get("rows", "")),
            )
            for move in value
        )
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise EditError(
            'Moves are a list like [{"direction": "smile", "keys": [[1001, 0, "smooth"], '
            f'[1010, 0.5]], "rows": ""}}]: {error!r}.'
        ) from error


def coordinates(vector: np.ndarray, anchors: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the change of the anchors' weights nearest to a direction that keeps their sum.

    Args:
        vector: `[512]` or `[L, 512]`, a direction of W or W+.
        anchors: `[N, 512]`.

    Returns:
        gamma, `[N]` or `[L, N]` float64, which adds up to 0 and is the one of least norm; and the
        share of the direction's length that it covers, 0..1.
    """
    vector = np.asarray(vector, np.float64)
    gamma = vector @ _inverse(anchors)
    length = float(np.linalg.norm(vector))
    return gamma, float(np.linalg.norm(gamma @ np.float64(anchors))) / length if length else 0.0


def dilation(weights: np.ndarray) -> np.ndarray:
    """Returns how far weights lie outside of the anchors' hull: the least beta of eq. 6.

    Args:
        weights: `[F, L, N]`.

    Returns:
        `[F]`, 0 inside of the hull. The solver stays below its own beta, 0.02.
    """
    return np.maximum(-weights.min((1, 2)), 0)


def edit(
    track: LatentTrack,
    character: Character,
    directions: Mapping[str, Direction],
    moves: Iterable[Move],
    edge: Edge = "continue",
    limit: float = BETA,
    only: np.ndarray | None = None,
) -> LatentTrack:
    """Moves the codes of a track along directions; returns a new track.

    Codes before and after the low-pass are moved alike, so that keyed jumps stay jumps.

    Args:
        track: complete, of this character.
        character: the track's; gives the anchors.
        directions: by the names that the moves use; see `core.edit.directions.load_directions`.
        moves: applied together; several of one direction add up.
        edge: where a frame's weights would fall below -limit: continue outside of P, stop before
            (all layers of the frame alike), or project onto the nearest point of P.
        limit: beta of eq. 6, the distance by which P extends beyond the hull.
        only: indices of the frames to move, where the others are not needed.

    Returns:
        The new track. In frames whose amounts are not all 0, alpha and delta change, and codes and
        smooth of the moved layers; everything else is bit-identical. `parent` is the old track's
        hash, and `recipe` this edit, for `replay`.

    Raises:
        CharacterMismatchError: the track is another character's.
        KeyframeError: invalid keys.
        EditError: the track is incomplete, a direction is missing or of another shape, or another
            argument is invalid.
    """
    moves = tuple(
        replace(move, keys=keyframes.from_plain(move.keys, move.direction)) for move in moves
    )
    anchors = character.anchors.detach().cpu().numpy().astype(np.float64)
    layers = track.delta.shape[1]
    if track.character != character.hash or track.alpha.shape[1] != len(anchors):
        raise CharacterMismatchError(
            f"The track was solved for the character {track.character[:12]}, not for "
            f"{character.hash[:12]}. Choose the character it belongs to."
        )
    if not track.complete:
        raise EditError("The track has frames that were not solved yet. Finish it first.")
    if edge not in EDGES:
        raise EditError(f"{edge} is no edge policy. Choose one of {', '.join(EDGES)}.")
    if not 0 <= limit < np.inf:
        raise EditError(f"The limit must not be negative: {limit:g}.")
    inverse = _inverse(anchors)
    steps = [_step(move, directions, inverse, layers) for move in moves]
    strengths = [keyframes.at(move.keys, track.numbers) for move in moves]
    changed = {name: getattr(track, name).copy() for name in ("alpha", "delta", "codes", "smooth")}
    moving = np.flatnonzero(np.any(strengths, axis=0)) if moves else np.zeros(0, int)
    for f in moving if only is None else np.intersect1d(moving, only):
        step = sum(strength[f] * gamma for strength, gamma in zip(strengths, steps, strict=True))
        moved = step.any(1)
        weights = track.alpha[f].astype(np.float64) + track.delta[f]
        # The low-pass changed the weights too; that change is recovered from the codes.
        low_pass = (track.smooth[f].astype(np.float64) - track.codes[f]) @ inverse
        before = np.stack([weights, weights + low_pass])[:, moved]
        after = _bounded(before, step[moved], edge, limit)
        weights[moved] = after[0]
        changed["alpha"][f] = weights.mean(0)
        changed["delta"][f] = weights - changed["alpha"][f]
        changed["codes"][f, moved] = after[0] @ anchors
        changed["smooth"][f, moved] += (after[1] - before[1]) @ anchors
    if not np.isfinite(changed["smooth"]).all():
        raise EditError("The amounts are too large for codes to be finite. Use smaller ones.")
    recipe = {
        "do": "edit",
        "moves": [
            {
                "direction": move.direction,
                "hash": direction_hash(directions[move.direction]),
                "keys": [list(key) for key in move.keys],
                "rows": move.rows,
            }
            for move in moves
        ],
        "edge": edge,
        "limit": float(limit),
    }
    return replace(track, **changed, task="", parent=track.hash, recipe=(recipe,), hash="")


def replay(
    track: LatentTrack,
    character: Character,
    directions: Mapping[str, Direction],
    recipe: Mapping[str, Any],
) -> LatentTrack:
    """Applies the edit in a track's recipe to its parent or to another track.

    On the parent, with the same directions, the arrays are bit-identical.

    Raises:
        EditError: the recipe is no edit, or a direction is not the one it was made with.
        CharacterMismatchError: as `edit`.
    """
    if recipe.get("do") != "edit":
        raise EditError(f"This was not made by an edit, but by {recipe.get('do')!r}.")
    check_recipe(recipe, directions)
    moves = moves_from_json(recipe["moves"])
    return edit(track, character, directions, moves, recipe["edge"], recipe["limit"])


def check_recipe(recipe: Mapping[str, Any], directions: Mapping[str, Direction]) -> None:
    """Checks that directions are those an edit was made with.

    Raises:
        EditError: a direction of the same name has other numbers.
    """
    for move in recipe["moves"]:
        found = directions.get(move["direction"])
        if found is not None and direction_hash(found) != move["hash"]:
            raise EditError(
                f"The direction {move['direction']} is not the one that the edit was made with "
                f"({move['hash'][:12]}). Give the file that it came from."
            )


def direction_hash(direction: Direction) -> str:
    """Returns the hash that identifies a direction in a recipe: of its vector."""
    return digest(direction.vector)


def _step(
    move: Move, directions: Mapping[str, Direction], inverse: np.ndarray, layers: int
) -> np.ndarray:
    """Returns the change of the weights at an amount of 1, `[L, N]`; see `coordinates`."""
    if move.direction not in directions:
        raise EditError(
            f"There is no direction {move.direction!r}. There are: {', '.join(sorted(directions))}."
        )
    vector = directions[move.direction].vector
    width = len(inverse)
    if vector.shape[-1] != width or vector.shape[:-1] not in ((), (layers,)):
        raise EditError(
            f"The direction {move.direction} is of a generator with another shape: "
            f"{[*vector.shape]} instead of [{width}] or [{layers}, {width}]."
        )
    gamma = np.float64(vector) @ inverse
    return np.where(parse_layers(move.rows, layers)[:, None], gamma, 0.0)


def _bounded(weights: np.ndarray, step: np.ndarray, edge: Edge, limit: float) -> np.ndarray:
    """Applies a step `[L, N]` to weights `[..., L, N]` under an edge policy."""
    if edge == "stop":
        falling = np.broadcast_to(step < 0, weights.shape)
        room = (weights + limit).clip(0)[falling] / -np.broadcast_to(step, weights.shape)[falling]
        return weights + min(1.0, room.min(initial=1.0)) * step
    moved = weights + step
    if edge == "project":
        return nearest_weights(torch.from_numpy(moved), limit).numpy()
    return moved


def _inverse(anchors: np.ndarray) -> np.ndarray:
    """Returns `[512, N]` float64, from a change of a code to its least-norm change of weights."""
    anchors = np.asarray(anchors, np.float64)
    centred = anchors - anchors.mean(0)
    if not centred.any():
        return np.zeros(centred.T.shape)
    return scipy.linalg.pinv(centred, rtol=_RANK)
