"""The neutral offset: how the shapes of two faces differ."""

from __future__ import annotations

import json

import numpy as np
import torch

from core.base.errors import ReenactError
from core.face.keypoints import HEAD_FRAME, KEYPOINTS
from core.face.landmarks import detect_averaged
from core.face.measures import measure
from core.personalize.character import Character
from core.solve.driving import Driving
from core.solve.latent_track import (
    LatentTrack,
)
from core.solve.objective import (
    LIPS,
)
from core.solve.observe import draw_codes
from core.solve.settings import SolveSettings

# Of two faces at rest one mesh may look down and the other up, by some four degrees, for they are
# of different shapes. How far a shot's middle pitch is from the scan's is in part that, and in part
# what the driver does. No picture tells them apart: half each, and no more than so many degrees, so
# that who looks down throughout still does.
_SHAPE, _SHAPE_MOST = 0.5, 5.0
_TURNS = ("yaw", "pitch", "roll", "jaw")  # what moves the head frame's points
_PITCH = _TURNS.index("pitch")
_HEAD = [KEYPOINTS.index(point) for point in HEAD_FRAME]
_TURN_RIDGE = 0.01  # of their variance: what is regressed on them must not shrink a turn

# Whoever's mouth it is, at rest its lips are shut and its inner corners about half as far apart as
# the outer eye corners: .49 to .53 of five people filmed, .47 to .56 of sixteen performers.
_REST_WIDTH, _REST_WIDTH_SPREAD, _REST_GAP_SPREAD = 0.51, 0.04, 0.03
_REST_LEAST = 0.5  # frames at rest: with less than that there is none
_EYE_CORNERS, _MOUTH_CORNERS, _MID_LIPS = (
    [KEYPOINTS.index(point) for point in pair] for pair in ((33, 263), (78, 308), (13, 14))
)


class NeutralMissingError(ReenactError):
    """A frame of the neutral pair is not there, or shows no face."""


def head_neutral_offset(driving: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """How a character's head differs from the driver's when both are turned alike.

    From anchor to anchor the head frame moves with pose and jaw. A ridge regression on them says
    where the character has it when it is turned as the driver, but for that share of the pitch
    which is taken for the shape of the driver's face (`_SHAPE`).

    Args:
        driving: `[F, 86, 3]` px, keypoints of driving frames; NaN ones don't count.
        anchors: `[N, 86, 3]` px.

    Returns:
        `[86, 3]` px float32, to add to driving keypoints; 0 but for the head frame.
    """
    driving = driving[np.isfinite(driving).all((1, 2))]
    known, asked = (head_turns(keypoints) for keypoints in (anchors, driving))
    rest = np.zeros(anchors.shape[1:], np.float32)
    if not len(asked) or not np.isfinite(known).all():
        return rest
    apart = np.median(asked[:, _PITCH]) - np.median(known[:, _PITCH])
    asked[:, _PITCH] -= np.clip(_SHAPE * apart, -_SHAPE_MOST, _SHAPE_MOST)
    spread = known.std(0).clip(min=1e-6)
    known, asked = ((turns - known.mean(0)) / spread for turns in (known, asked))
    points = anchors[:, _HEAD].reshape(len(anchors), -1)
    gram = known.T @ known + _TURN_RIDGE * len(known) * np.eye(len(_TURNS))
    moves = np.linalg.solve(gram, known.T @ (points - points.mean(0)))
    turned = points.mean(0) + asked.mean(0) @ moves
    rest[_HEAD] = turned.reshape(-1, 3) - driving[:, _HEAD].mean(0)
    return rest


def mouth_neutral_offset(driving: np.ndarray, anchors: np.ndarray) -> np.ndarray | None:
    """How a character's mouth at rest differs in shape from the driver's.

    A driver who smiles through most of a shot, more broadly than the character can, would leave
    over that its mouth is narrower, and at rest the character would purse its lips. So both mouths
    are compared where they rest: frames count by how near theirs is to anyone's at rest.

    Args:
        driving: `[F, 86, 3]` px, keypoints of driving frames; NaN ones don't count.
        anchors: `[N, 86, 3]` px.

    Returns:
        `[40, 3]` px float32, to add to the driver's lips, zero on average; None where no
        mouth rests.
    """
    shapes = []
    for keypoints in (anchors, driving):
        keypoints = keypoints[np.isfinite(keypoints).all((1, 2))]
        span, width, gap = (
            np.linalg.norm(np.diff(keypoints[:, pair], axis=1)[:, 0], axis=1)
            for pair in (_EYE_CORNERS, _MOUTH_CORNERS, _MID_LIPS)
        )
        off = (width / span - _REST_WIDTH) / _REST_WIDTH_SPREAD
        rests = np.exp(-0.5 * (off**2 + (gap / span / _REST_GAP_SPREAD) ** 2))
        if rests.sum() < _REST_LEAST:
            return None
        shape = np.einsum("f,fki->ki", rests / rests.sum(), keypoints[:, LIPS])
        shapes.append(shape - shape.mean(0))
    return (shapes[0] - shapes[1]).astype(np.float32)


def head_turns(keypoints: np.ndarray) -> np.ndarray:
    """`_TURNS` of keypoints `[F, 86, 3]`, `[F, 4]`."""
    mesh = np.full((len(keypoints), 478, 3), np.nan)
    mesh[:, KEYPOINTS] = keypoints
    measures = measure(mesh)
    return np.stack([measures[name] for name in _TURNS], 1)


def neutral_offset(
    character: Character, driving: Driving, settings: SolveSettings, previous: LatentTrack | None
) -> np.ndarray:
    """How the character's face at rest differs from the driving one, `[86, 3]` px; NaN: to do."""
    if settings.neutral is None:
        return np.zeros(character.keypoints.shape[1:], np.float32)
    plain = json.loads(json.dumps(settings.neutral))
    if previous is not None and previous.settings["neutral"] == plain:
        return previous.rest  # a part of a shot is compared as the whole was
    if settings.neutral == "auto":
        return np.full(character.keypoints.shape[1:], np.nan, np.float32)
    number, scan = settings.neutral
    row = np.flatnonzero(driving.found & (driving.numbers == number))
    if not len(row):
        raise NeutralMissingError(
            f"Frame {number}, the neutral driving frame, is not among the driving frames, or has "
            "no face. Choose a frame inside the range in which the face is seen."
        )
    if scan not in character.info.selected:
        near = sorted(character.info.selected, key=lambda n: abs(n - scan))[:3]
        raise NeutralMissingError(
            f"Frame {scan}, the neutral scan frame, is not one the character was made of. The "
            f"nearest that are: {', '.join(map(str, sorted(near)))}."
        )
    code = character.anchors[list(character.info.selected).index(scan), None].detach()
    with torch.no_grad():
        at_rest = detect_averaged(draw_codes(character, code)).keypoints[0]
    shown = detect_averaged(driving.pictures[int(row[0]), None].to(code)).keypoints[0]
    return (at_rest - shown).cpu().numpy()
