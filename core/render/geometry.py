"""Where the generated face and its head are in each frame of a track, steadied over time.

Outlines and head mattes flicker with the networks that find them, so they are averaged over the
frames around; the colour match follows the light and is averaged over a longer time. What a frame
is given never depends on which other frames are requested.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.face.aligned_clip import cut_out
from core.face.alignment import from_square, to_square
from core.face.keypoints import FACE_OVAL
from core.face.temporal import near_in_time
from core.generator import Generator
from core.media import colour
from core.media.clip import Clip
from core.render import colour_match, motion
from core.render import matte as mattes
from core.render.colour_match import Match
from core.render.drawing import draw_pictures
from core.solve.latent_track import LatentTrack

# Sigmas of the averages over time, seconds.
OUTLINE_SECONDS = 0.05  # the face's outline and the head's matte, which move with the head
MATCH_SECONDS = 0.15  # the colour match, which follows the light


@dataclass(frozen=True, eq=False)
class FaceGeometry:
    """Where the face is in one frame, steadied over time."""

    quad: np.ndarray  # [4, 2] plate px
    generated: np.ndarray  # [478, 2] mesh of the generated face, in sides of the aligned square
    driving: np.ndarray  # [478, 2] mesh of the driving face, likewise; NaN without a face
    head: np.ndarray  # [S, S] float32 in 0..1, the generated head; S is `matte.HEAD_SIZE`
    velocity: np.ndarray  # [478, 2] of the generated mesh, plate px per frame
    match: Match = colour_match.IDENTITY

    @property
    def side(self) -> float:
        """The side of the aligned square, plate px."""
        return float(np.linalg.norm(self.quad[3] - self.quad[0]))


@dataclass(frozen=True, eq=False)
class _Observation:
    """What the networks find in one frame by itself; points in sides of the aligned square."""

    generated: np.ndarray  # [478, 2]
    driving: np.ndarray  # [478, 2], NaN without a face
    head: np.ndarray  # [S, S] uint8
    match: Match | None


def track_geometry(
    generator: Generator,
    track: LatentTrack,
    frames: np.ndarray,
    batch: int = 8,
    plate: Clip | None = None,
) -> Iterator[FaceGeometry]:
    """Finds the generated faces of some frames of a track, with the help of the frames around them.

    Args:
        generator: draws the track.
        track: its codes, quads and driving landmarks.
        frames: `[K]` indices of frames, increasing.
        batch: pictures drawn at once.
        plate: to match colours to; None matches none.

    Yields:
        The geometry of each of the K frames.
    """
    match_sigma = MATCH_SECONDS * track.fps
    observed: dict[int, _Observation] = {}
    for start in range(0, len(frames), batch):
        chunk = [int(frame) for frame in frames[start : start + batch]]
        outline = {f: _outline_weights(track, f) for c in chunk for f in _neighbours(track, c)}
        light = {c: near_in_time(track.numbers, track.cut, c, match_sigma) for c in chunk}
        needed = {int(f) for near, _ in outline.values() for f in near}
        if plate is not None:
            needed |= {int(f) for near, _ in light.values() for f in near}
        missing = sorted(needed - set(observed))
        observed = {f: observed[f] for f in needed if f in observed}
        for at in range(0, len(missing), batch):
            observed |= _observe(generator, track, missing[at : at + batch], plate)

        meshes = {f: _steady_mesh(observed, f, *near) for f, near in outline.items()}
        for frame in chunk:
            near, weights = outline[frame]
            before, here, after = (
                from_square(meshes[f], track.quads[f]) if f in _neighbours(track, frame) else None
                for f in (frame - 1, frame, frame + 1)
            )
            assert here is not None
            head = np.tensordot(weights, [observed[int(f)].head for f in near], 1) / 255
            lit, shares = light[frame]
            matches = [observed[int(f)].match if plate is not None else None for f in lit]
            yield FaceGeometry(
                track.quads[frame],
                meshes[frame],
                _finite_mean([observed[int(f)].driving for f in near], weights),
                head.astype(np.float32),
                motion.velocity(before, here, after),
                colour_match.mean(matches, shares),
            )


def deciding_frames(track: LatentTrack, frame: int) -> np.ndarray:
    """Returns the frames whose codes decide how one frame looks, unless colours are matched.

    Args:
        track: any.
        frame: index of a frame.

    Returns:
        `[K]` indices, increasing: the frame itself and those that steady it.
    """
    near = [_outline_weights(track, f)[0] for f in _neighbours(track, frame)]
    return np.unique(np.concatenate(near))


def matching_frames(track: LatentTrack, frame: int) -> np.ndarray:
    """Returns the indices `[K]` of the frames that one frame's colour match is averaged over."""
    return near_in_time(track.numbers, track.cut, frame, MATCH_SECONDS * track.fps)[0]


def _observe(
    generator: Generator,
    track: LatentTrack,
    frames: Sequence[int],
    plate: Clip | None,
) -> dict[int, _Observation]:
    """Draws frames, and finds their faces, their heads and their match to the plate's skin."""
    small = min(generator.architecture.resolution, mattes.HEAD_SIZE)
    drawn = torch.stack([*draw_pictures(generator, track.smooth[frames], len(frames), small)])
    found = mattes.segment(drawn)
    driving = [to_square(track.landmarks[f, :, :2] + 0.5, track.quads[f]) for f in frames]
    matches: dict[int, Match | None] = {}
    if plate is not None:
        existing = set(plate.numbers)
        faces = [
            i
            for i, f in enumerate(frames)
            if np.isfinite(driving[i]).all() and track.numbers[f] in existing
        ]
        numbers = [int(track.numbers[frames[i]]) for i in faces]
        quads = track.quads[[frames[i] for i in faces]]
        for i, crop in zip(faces, cut_out(plate, numbers, quads, small), strict=True):
            matches[frames[i]] = colour_match.fit(
                _skin_pixels(drawn[i], found.landmarks[i], plate),
                _skin_pixels(crop, driving[i], plate),
            )
    return {
        frame: _Observation(
            found.landmarks[i],
            driving[i],
            found.heads[i],
            matches.get(frame),
        )
        for i, frame in enumerate(frames)
    }


def _skin_pixels(picture: Tensor, landmarks: np.ndarray, plate: Clip) -> np.ndarray:
    """Returns the skin `[N, 3]`, scene-linear, of an aligned picture `[3, S, S]` in [-1, 1]."""
    srgb = picture.float().permute(1, 2, 0).cpu().numpy()
    space = colour.scene_linear_space(plate.config)
    linear = colour.from_network(srgb, space, plate.config)
    return linear[mattes.skin_mask(landmarks * len(srgb), len(srgb))]


def _steady_mesh(
    observed: Mapping[int, _Observation], frame: int, near: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Returns a frame's generated mesh `[478, 2]` with its outline averaged over frames near it."""
    mesh = observed[frame].generated.astype(np.float64)
    oval = [*FACE_OVAL]
    mesh[oval] = np.tensordot(weights, [observed[int(f)].generated[oval] for f in near], 1)
    return mesh


def _outline_weights(track: LatentTrack, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the frames that a frame's outline is averaged over, and their weights."""
    return near_in_time(track.numbers, track.cut, frame, OUTLINE_SECONDS * track.fps)


def _neighbours(track: LatentTrack, frame: int) -> list[int]:
    """Returns a frame and those right before and after it in its shot that have a quad."""
    result = [frame]
    for other in (frame - 1, frame + 1):
        if not 0 <= other < len(track.numbers) or track.cut[max(frame, other)]:
            continue
        if abs(track.numbers[other] - track.numbers[frame]) == 1:
            result.append(other)
    return [f for f in result if f == frame or np.isfinite(track.quads[f]).all()]


def _finite_mean(points: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Returns the weighted mean of those `[P, 2]` that are finite; NaN if none is."""
    finite = [i for i, p in enumerate(points) if np.isfinite(p).all()]
    if not finite:
        return np.full_like(points[0], np.nan)
    return np.tensordot(weights[finite] / weights[finite].sum(), [points[i] for i in finite], 1)
