"""The neutral offset: how the neutral faces of driver and character differ in shape.

It is added to the driving keypoints, so that the character does what the driver does instead of
taking the driver's shape. Unless a pair of frames gives it, a neutral pass finds it: keyframes are
solved with a first estimate, in which the character's head is that of a regression at the driver's
turn and its mouth is compared where both are neutral; what remains on average is the offset.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from torch import Tensor

from core.base.errors import ReenactError
from core.face.keypoints import HEAD_FRAME, KEYPOINTS
from core.face.landmarks import detect_averaged, keypoint_error
from core.face.measures import measure
from core.personalize.character import Character
from core.solve.context import SolveContext
from core.solve.driving import Driving
from core.solve.latent_track import LatentTrack
from core.solve.objective import LIPS
from core.solve.observe import observe_codes
from core.solve.settings import SolveSettings

# The meshes of two neutral faces may differ in pitch by some four degrees, since the faces differ
# in shape. How far a shot's median pitch is from the scan's is in part that and in part what the
# driver does, and no picture tells them apart: half each, and at most so many degrees of shape, so
# that a driver who looks down throughout still does.
_PITCH_SHARE, _PITCH_MOST = 0.5, 5.0
TURNS = ("yaw", "pitch", "roll", "jaw")  # measures that move the head frame's points
_PITCH = TURNS.index("pitch")
_HEAD = [KEYPOINTS.index(point) for point in HEAD_FRAME]
_TURN_RIDGE = 0.01  # of the turns' variance: small, or the regression would shrink turns

# In a neutral mouth, whoever's it is, the lips are shut and the inner corners are about half as far
# apart as the outer eye corners: .49 to .53 of five people filmed, .47 to .56 of sixteen
# performers. Mean, its standard deviation, and that of the lips' gap.
_NEUTRAL_WIDTH, _NEUTRAL_WIDTH_STD, _NEUTRAL_GAP_STD = 0.51, 0.04, 0.03
_LEAST_NEUTRAL = 0.5  # frames: with fewer, by weight, no mouth is neutral
_EYE_CORNERS, _MOUTH_CORNERS, _MID_LIPS = (
    [KEYPOINTS.index(point) for point in pair] for pair in ((33, 263), (78, 308), (13, 14))
)


class NeutralMissingError(ReenactError):
    """A frame of the neutral pair is missing, or shows no face."""


def known_neutral_offset(
    character: Character, driving: Driving, settings: SolveSettings, previous: LatentTrack | None
) -> np.ndarray | None:
    """Returns the neutral offset `[86, 3]` px where no neutral pass is needed, otherwise None.

    Args:
        character: whose face it will be.
        driving: holds the driving frame of a neutral pair.
        settings: say how it is found.
        previous: a part of a shot takes over the offset of the whole, if that was found alike.

    Raises:
        NeutralMissingError: a frame of the neutral pair is missing, or shows no face.
    """
    if settings.neutral is None:
        return np.zeros(character.keypoints.shape[1:], np.float32)
    plain = json.loads(json.dumps(settings.neutral))
    if previous is not None and previous.settings["neutral"] == plain:
        return previous.neutral_offset
    if settings.neutral == "auto":
        return None
    return _offset_of_pair(character, driving, settings.neutral)


def _offset_of_pair(character: Character, driving: Driving, pair: tuple[int, int]) -> np.ndarray:
    number, scan = pair
    places = np.flatnonzero(driving.found & (driving.numbers == number))
    keypoints = None
    if len(places):
        pictures = driving.pictures[int(places[0]), None].to(character.anchors)
        keypoints = detect_averaged(pictures).keypoints[0]
    if keypoints is None or not keypoints.isfinite().all():
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
        own = observe_codes(character, code).keypoints[0]
    return (own - keypoints).cpu().numpy()


def estimate_offset(driving: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Returns the offset `[86, 3]` px, float32, with which the neutral pass begins.

    Args:
        driving: `[F, 86, 3]` px, keypoints of driving frames; NaN ones don't count.
        anchors: `[N, 86, 3]` px.
    """
    offset = head_neutral_offset(driving, anchors)
    mouth = mouth_neutral_offset(driving, anchors)
    if mouth is not None:
        offset[LIPS] = mouth
    return offset


def solved_offset(context: SolveContext, codes: np.ndarray, driving: Tensor) -> np.ndarray:
    """Returns the offset `[86, 3]` px, float32, that the neutral pass found.

    Args:
        context: of the character.
        codes: `[F, L, 512]`, solved with `estimate_offset`.
        driving: `[F, 86, 3]` px, keypoints of the driving frames.
    """
    offset = _mean_residual(context, codes, driving)
    mouth = mouth_neutral_offset(driving.cpu().numpy(), context.keypoints.cpu().numpy())
    if mouth is not None:  # the residual has its position, and the mouths its shape
        offset[LIPS] = offset[LIPS].mean(0) + mouth
    return offset


def _mean_residual(context: SolveContext, codes: np.ndarray, driving: Tensor) -> np.ndarray:
    """Returns what solved codes miss driving keypoints by, on average, `[86, 3]` px.

    The character has done what it can, so this is its shape rather than its expression. What it
    can't do remains too: frames count by the inverse square of their distance.
    """
    character, batch = context.character, context.settings.batch
    batches = torch.from_numpy(codes).to(context.anchors).split(batch)
    with torch.no_grad():
        residual = torch.cat([observe_codes(character, b).keypoints for b in batches]) - driving
    finite = residual[residual.isfinite().all((1, 2))]
    if not len(finite):
        return torch.zeros_like(residual[0]).cpu().numpy()
    weight = keypoint_error(finite, torch.zeros_like(finite)).clamp(min=1e-3) ** -2
    return torch.einsum("f,fki->ki", weight / weight.sum(), finite).cpu().numpy()


def head_neutral_offset(driving: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Estimates how a character's head differs from the driver's when both are turned alike.

    From anchor to anchor the head frame moves with pose and jaw. A ridge regression on them says
    where the character has it at the driver's turn, but for the share of the pitch that is taken
    for the shape of the driver's face.

    Args:
        driving: `[F, 86, 3]` px, keypoints of driving frames; NaN ones don't count.
        anchors: `[N, 86, 3]` px.

    Returns:
        `[86, 3]` px float32, to add to driving keypoints; 0 but for the head frame.
    """
    driving = driving[np.isfinite(driving).all((1, 2))]
    own, asked = (head_turns(keypoints) for keypoints in (anchors, driving))
    offset = np.zeros(anchors.shape[1:], np.float32)
    if not len(asked) or not np.isfinite(own).all():
        return offset
    apart = np.median(asked[:, _PITCH]) - np.median(own[:, _PITCH])
    asked[:, _PITCH] -= np.clip(_PITCH_SHARE * apart, -_PITCH_MOST, _PITCH_MOST)
    std = own.std(0).clip(min=1e-6)
    own, asked = ((turns - own.mean(0)) / std for turns in (own, asked))
    points = anchors[:, _HEAD].reshape(len(anchors), -1)
    gram = own.T @ own + _TURN_RIDGE * len(own) * np.eye(len(TURNS))
    moves = np.linalg.solve(gram, own.T @ (points - points.mean(0)))
    turned = points.mean(0) + asked.mean(0) @ moves
    offset[_HEAD] = turned.reshape(-1, 3) - driving[:, _HEAD].mean(0)
    return offset


def mouth_neutral_offset(driving: np.ndarray, anchors: np.ndarray) -> np.ndarray | None:
    """Estimates how a character's neutral mouth differs in shape from the driver's.

    A driver who smiles through most of a shot, more broadly than the character can, would leave a
    residual of a narrower mouth, and the character would purse its neutral lips. So both mouths are
    compared where they are neutral: frames count by how near theirs is to anyone's neutral mouth.

    Args:
        driving: `[F, 86, 3]` px, keypoints of driving frames; NaN ones don't count.
        anchors: `[N, 86, 3]` px.

    Returns:
        `[40, 3]` px float32, to add to the driver's lips, zero on average; None where either has
        no neutral mouth.
    """
    shapes = []
    for keypoints in (anchors, driving):
        keypoints = keypoints[np.isfinite(keypoints).all((1, 2))]
        span, width, gap = (
            np.linalg.norm(np.diff(keypoints[:, pair], axis=1)[:, 0], axis=1)
            for pair in (_EYE_CORNERS, _MOUTH_CORNERS, _MID_LIPS)
        )
        off = (width / span - _NEUTRAL_WIDTH) / _NEUTRAL_WIDTH_STD
        weight = np.exp(-0.5 * (off**2 + (gap / span / _NEUTRAL_GAP_STD) ** 2))
        if weight.sum() < _LEAST_NEUTRAL:
            return None
        shape = np.einsum("f,fki->ki", weight / weight.sum(), keypoints[:, LIPS])
        shapes.append(shape - shape.mean(0))
    return (shapes[0] - shapes[1]).astype(np.float32)


def head_turns(keypoints: np.ndarray) -> np.ndarray:
    """Measures `TURNS` of keypoints `[F, 86, 3]`, `[F, 4]`."""
    mesh = np.full((len(keypoints), 478, 3), np.nan)
    mesh[:, KEYPOINTS] = keypoints
    measures = measure(mesh)
    return np.stack([measures[name] for name in TURNS], 1)
