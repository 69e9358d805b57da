"""Measures a shot frame by frame: the result against the driving face and the character.

Driving face and result are observed as the solver observes them: aligned pictures, one fixed ROI,
meshes in px of the landmark network's 192 px crop. Two neutral faces differ in shape, so the
driving mesh is moved by the difference that the track states (`LatentTrack.neutral_offset`). For
points that it does not contain, and for tracks that were solved without it, the median difference
over the shot is used.

A character does not contain its scan. The scan's selected frames are represented by the pictures
that the generator draws of their anchors, which it was tuned to reproduce.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.base.checkpoints import load_checkpoint, save_checkpoint
from core.base.digest import digest
from core.base.errors import ReenactError
from core.base.progress import Progress
from core.base.revision import revision
from core.face.aligned_clip import cut_out
from core.face.alignment import warp
from core.face.identity import Recogniser
from core.face.keypoints import FACE_OVAL, GROUPS, KEYPOINTS
from core.face.landmarks import detect_landmarks, group_keypoints, keypoint_error
from core.face.measures import measure
from core.media import colour
from core.media.clip import Clip, Window
from core.media.numbering import format_numbers
from core.media.read import read_frames
from core.personalize.character import Character
from core.personalize.selection import face_sharpness
from core.quality.cards import card, picture_points
from core.quality.definitions import MEASURES, SIGNALS, TOP, Quality
from core.quality.marks import mark
from core.quality.niqe import MIN_SIDE, niqe
from core.quality.recognition import FaceModel
from core.render.drawing import draw_frames
from core.render.patch import Patch, over, plate_pixels
from core.solve.latent_space import BETA, nearest_weights
from core.solve.latent_track import LatentTrack
from core.solve.settings import MAX_RESOLUTION

POSE_PROXY = "proxy: head angles of the landmarks, radians"
EXPRESSION_PROXY = "proxy: mouth, mouth corners, lids and brows of the landmarks"

_MAX_SIDE = 512  # px of driving pictures
_SHUT = 0.12  # eye opening, in widths of the eye, below which the gaze is hidden
_EXPRESSION = ("jaw", "smile", "skew", "open_r", "open_l", "brow")

Arrays = dict[str, np.ndarray]
Pair = tuple[Tensor | None, Tensor | None]  # aligned pictures [3, R, R] of driving face and result


class NothingToMeasureError(ReenactError):
    """Plate, track and rendered frames share no frames, or belong to different shots."""


@dataclass(frozen=True)
class _Store:
    """Checkpoints of one call's arrays; without a folder nothing is stored."""

    folder: Path | None
    task: str  # digest of everything that decides the arrays

    def path(self, name: object) -> Path | None:
        return self.folder and self.folder / f"measure_{self.task[:16]}_{name}.checkpoint"

    def load(self, name: object) -> Arrays | None:
        path = self.path(name)
        state = None if path is None else load_checkpoint(path, self.task)
        if state is None:
            return None
        return {
            key: value.numpy() if isinstance(value, Tensor) else np.array(value)
            for key, value in state.items()
        }

    def save(self, name: object, arrays: Arrays) -> None:
        path = self.path(name)
        if path is not None:
            state = {
                key: array.tolist() if array.dtype.kind == "S" else torch.from_numpy(array)
                for key, array in arrays.items()
            }
            save_checkpoint(path, self.task, state)


def measure_shot(
    track: LatentTrack,
    character: Character,
    plate: Clip,
    recogniser: Recogniser,
    *,
    rendered: Clip | None = None,
    face_model: FaceModel | None = None,
    limits: Mapping[str, float] = {},
    batch: int = 8,
    work: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> Quality:
    """Measures the frames that a track and its plate share.

    With `work`, an interrupted call continues when it is repeated, with the same result.

    Args:
        track: complete.
        character: the track's, on the device that is used.
        plate: the driving clip.
        recogniser: measures identity.
        rendered: frames of the track as they were rendered, on the plate or as crops; by default
            they are drawn.
        face_model: measures APD and AED; by default they are proxies computed from landmarks.
        limits: by measure, beyond which frames are marked; they replace the measures' own limits.
        batch: pictures processed at once.
        work: folder for intermediate results.
        progress: called with pictures observed and to be observed, the anchors' included.

    Raises:
        NothingToMeasureError: no common frame, or rendered frames of another size.
        ValueError: an incomplete track.
        core.media.errors.ClipError: a frame that can't be read.
        core.base.checkpoints.CheckpointNotSavedError: `work` can't be written.
    """
    if not track.complete:
        raise ValueError("The track is not complete. Finish its solve first.")
    frames = _shared_frames(track, plate, rendered)
    total = len(frames) + len(character.anchors)
    size = character.resolution
    small = min(size, MAX_RESOLUTION)  # the solver's resolution
    device = character.anchors.device
    clips = [c and (c.shown, c.colour_space) for c in (plate, rendered)]
    networks = [recogniser.name, face_model and face_model.name]
    inputs = (track.smooth, track.quads, track.landmarks, frames)
    drawn_with = character.detail and character.detail.digest()
    store = _Store(work, digest(revision(), character.hash, drawn_with, *inputs, clips, networks))

    scan = store.load("scan")
    if scan is None:
        scan = _observe_anchors(character, recogniser, small, batch, lambda n: progress(n, total))
        store.save("scan", scan)
    vectors = torch.from_numpy(scan["vectors"]).to(device)

    def pairs(rest: np.ndarray) -> Iterator[Pair]:
        side = max(MAX_RESOLUTION, min(size, _MAX_SIDE))
        results: Iterator[Tensor | None] = (
            draw_frames(
                character.generator, track.smooth[rest], detail=character.detail, batch=batch
            )
            if rendered is None
            else rendered_pictures(rendered, plate, track, rest, size)
        )
        return zip(_driving_pictures(plate, track, rest, side), results, strict=True)

    parts: list[Arrays] = []
    done = 0
    while done < len(frames) and (part := store.load(done)):
        parts.append(part)
        done += len(part["cards"])
    remaining = pairs(frames[done:])
    while done < len(frames):
        chunk = list(islice(remaining, batch))
        parts.append(_observe_pairs(chunk, device, small, vectors, recogniser, face_model))
        store.save(done, parts[-1])
        done += len(chunk)
        progress(len(character.anchors) + done, total)
    observed = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    observed["sharpness"] /= np.median(scan["sharpness"])
    metrics = _metric_names(recogniser, face_model, size)
    return _judge(track, character, frames, observed, metrics, face_model is not None, limits)


def _shared_frames(track: LatentTrack, plate: Clip, rendered: Clip | None) -> np.ndarray:
    """Returns the indices of the track's frames that all clips have."""
    shared = np.isin(track.numbers, plate.numbers)
    if rendered is not None:
        shared &= np.isin(track.numbers, rendered.numbers)
    frames = np.flatnonzero(shared)
    if not len(frames):
        raise NothingToMeasureError(
            f"The {'rendered frames have' if rendered else 'plate has'} none of the track's frames,"
            f" {format_numbers(track.numbers.tolist())}. Choose the clip of this shot."
        )
    return frames


def _metric_names(
    recogniser: Recogniser, face_model: FaceModel | None, size: int
) -> dict[str, str]:
    """Names the network or proxy of each measure for which there is a choice."""
    names = {
        "identity": recogniser.name,
        "pose_distance": POSE_PROXY if face_model is None else face_model.name,
        "expression_distance": EXPRESSION_PROXY if face_model is None else face_model.name,
        "niqe": "LIVE parameters of 2012",
    }
    if size < MIN_SIDE:
        names["niqe"] += f", pictures enlarged from {size} px: for comparison at this size only"
    return names


def _judge(
    track: LatentTrack,
    character: Character,
    frames: np.ndarray,
    observed: Mapping[str, np.ndarray],
    metrics: Mapping[str, str],
    modelled: bool,
    limits: Mapping[str, float],
) -> Quality:
    """Computes the measures of frames from their observations, and marks them.

    Args:
        track: the frames'.
        character: the track's.
        frames: `[F]` indices.
        observed: arrays of F frames from `_observe_pairs`, sharpness relative to the scan's.
        metrics: names of networks and proxies.
        modelled: whether a face model measured APD and AED.
        limits: as in `measure_shot`.
    """
    driving, generated = observed["driving"], observed["generated"]
    target, notes = _add_neutral_difference(track, driving, generated)
    signals = {
        name: (a * SIGNALS[name][2], b * SIGNALS[name][2])
        for name, a, b in _signals(target, generated)
        if name in SIGNALS
    }
    numbers, cut = track.numbers[frames], track.cut[frames]
    jitters = [jitter(mesh[:, KEYPOINTS, :2], numbers, cut) for mesh in (driving, generated)]
    both = np.isfinite(jitters).all(0)
    mean_jitter = [float(j[both].mean()) if both.any() else math.nan for j in jitters]
    if not both.any():
        notes.append("Jitter needs three consecutive frames.")
    dilation, distance = latent_position(track.smooth[frames], character.anchors)
    measures = {
        **_part_errors(target, generated),
        **_expression_errors(signals),
        "jitter": jitters[1] - jitters[0],
        "dilation": dilation,
        "distance": distance,
        **{name: observed[name] for name in ("identity", "clipping", "sharpness", "niqe")},
        **(_model_distances(observed) if modelled else _landmark_distances(target, generated)),
    }
    measures = {name: measures[name] for name in MEASURES}
    state, amount = track.state[frames], track.amount[frames]
    bounds, marks = mark(numbers, state, amount, measures, limits)
    return Quality(
        numbers=numbers,
        state=state,
        cut=cut,
        measures=measures,
        signals=signals,
        bounds=bounds,
        marks=marks,
        metrics=metrics,
        jitter=(mean_jitter[0], mean_jitter[1]),
        notes=tuple(notes),
        cards=observed["cards"].tolist(),
    )


# -- observing pictures --------------------------------------------------------------------------


def _observe_anchors(
    character: Character,
    recogniser: Recogniser,
    small: int,
    batch: int,
    progress: Callable[[int], None],
) -> Arrays:
    """Draws the anchors; returns their recognition vectors `[N, D]` and sharpness `[N]`."""
    layers = character.generator.architecture.num_ws
    codes = character.anchors[:, None].expand(-1, layers, -1).cpu().numpy()
    drawn = draw_frames(character.generator, codes, detail=character.detail, batch=batch)
    vectors, sharpness = [], []
    for start in range(0, len(codes), batch):
        pictures = torch.stack([next(drawn) for _ in codes[start : start + batch]])
        with torch.no_grad():
            vectors.append(
                recogniser.embed(pictures, detect_landmarks(_resized(pictures, small)).landmarks)
            )
        sharpness += [face_sharpness(p) for p in _resized(pictures, small)]
        progress(start + len(pictures))
    return {"vectors": torch.cat(vectors).cpu().numpy(), "sharpness": np.array(sharpness)}


def _observe_pairs(
    pairs: Sequence[Pair],
    device: torch.device,
    small: int,
    scan_vectors: Tensor,
    recogniser: Recogniser,
    face_model: FaceModel | None,
) -> Arrays:
    """Observes frames one by one.

    Args:
        pairs: B frames; None where there is no picture.
        device: of the networks.
        small: the solver's resolution, px.
        scan_vectors: `[N, D]` of the anchors.
        recogniser: measures identity.
        face_model: fits expressions and angles, if there is one.

    Returns:
        NaN where there is no picture: meshes `[B, 478, 3]` "driving" and "generated"; `[B]`
        "identity", "sharpness", "clipping" and "niqe" of the result; "angles" `[B, 6]` and "faces"
        `[B, 128]` of the face model, first the driving face's; and "cards" `[B]`, JPEGs.
    """
    count = len(pairs)
    observed = {name: np.full((count, 478, 3), np.nan) for name in ("driving", "generated")}
    observed |= {n: np.full(count, np.nan) for n in ("identity", "sharpness", "clipping", "niqe")}
    observed |= {n: np.full((count, width), np.nan) for n, width in (("angles", 6), ("faces", 128))}
    for side, name in enumerate(("driving", "generated")):
        existing = [i for i, pair in enumerate(pairs) if pair[side] is not None]
        if not existing:
            continue
        pictures = [picture for pair in pairs if (picture := pair[side]) is not None]
        batched = torch.stack(pictures).float().to(device)
        with torch.no_grad():
            meshes = detect_landmarks(_resized(batched, small)).landmarks
        observed[name][existing] = meshes.cpu().numpy()
        if name == "generated":
            cosines = recogniser.embed(batched, meshes) @ scan_vectors.T
            observed["identity"][existing] = _mean_of_top(cosines).cpu().numpy()
            for i, picture, mesh in zip(existing, batched, meshes, strict=True):
                for figure, value in _picture_figures(picture, mesh, small).items():
                    observed[figure][i] = value
        if face_model is not None:
            faces, angles = face_model.fit(batched, meshes)
            observed["angles"][existing, 3 * side : 3 * side + 3] = angles.cpu().numpy()
            observed["faces"][existing, 64 * side : 64 * side + 64] = faces.cpu().numpy()
    cards = [
        card(*pair, *meshes)
        for pair, *meshes in zip(pairs, observed["driving"], observed["generated"], strict=True)
    ]
    return {**observed, "cards": np.array(cards)}  # numpy drops trailing zeros; JPEGs have none


def _driving_pictures(
    plate: Clip, track: LatentTrack, frames: np.ndarray, size: int
) -> Iterator[Tensor | None]:
    """Yields the aligned driving picture `[3, size, size]` of each frame; None without a face."""
    placed = np.isfinite(track.quads[frames]).all((1, 2))
    found = np.isfinite(track.landmarks[frames]).all((1, 2)) & placed
    numbers = [int(n) for n in track.numbers[frames[found]]]
    crops = cut_out(plate, numbers, track.quads[frames[found]], size)
    for has_face in found:
        yield next(crops) if has_face else None


def rendered_pictures(
    rendered: Clip, plate: Clip, track: LatentTrack, frames: np.ndarray, size: int
) -> Iterator[Tensor | None]:
    """Turns rendered frames into aligned pictures.

    Crops are used as they are. Patches, which are merged over the plate, and whole frames are cut
    out where the track placed them.

    Args:
        rendered: the rendered frames.
        plate: the driving clip.
        track: their quads.
        frames: `[K]` indices of its frames.
        size: side of the pictures, px.

    Yields:
        `[3, size, size]` in [-1, 1]; None for a frame without a face.

    Raises:
        NothingToMeasureError: the frames are neither of the plate's size nor crops.
    """
    whole = (rendered.width, rendered.height) == (plate.width, plate.height)
    if not whole and rendered.width != rendered.height:
        raise NothingToMeasureError(
            f"{rendered.shown} is {rendered.width}x{rendered.height} and the plate "
            f"{plate.width}x{plate.height}. Choose what was rendered on this plate, or crops."
        )
    numbers = [int(n) for n in track.numbers[frames]]
    behind = read_frames(plate, numbers) if whole and rendered.has_alpha else None
    for index, frame in zip(frames, read_frames(rendered, numbers), strict=True):
        pixels = frame.pixels
        if behind is not None and frame.alpha is not None:
            rgba = np.dstack([pixels, frame.alpha])
            window = Window(0, 0, plate.width, plate.height)
            below = plate_pixels(next(behind).pixels, plate, rendered.colour_space)
            pixels = over(Patch(rgba, window), below)
        picture, _ = colour.to_network(pixels, rendered.colour_space, rendered.config)
        image = torch.from_numpy(picture).permute(2, 0, 1)[None]
        if not whole:
            yield _resized(image, size)[0].clamp(-1, 1)
        elif np.isfinite(track.quads[index]).all():
            quad = torch.from_numpy(track.quads[index]).float()
            yield warp(image, quad[None], size)[0].clamp(-1, 1)
        else:
            yield None


def _resized(pictures: Tensor, size: int) -> Tensor:
    """Resizes square pictures `[B, 3, R, R]`."""
    if pictures.shape[-1] == size:
        return pictures
    return F.interpolate(pictures, (size, size), mode="bilinear", antialias=True)


def _picture_figures(picture: Tensor, mesh: Tensor, small: int) -> dict[str, float]:
    """Measures a result `[3, R, R]` by itself, with its mesh `[478, 3]`."""
    size = picture.shape[-1]
    outline = picture_points(mesh.cpu().numpy()[list(FACE_OVAL)], size)
    face = np.zeros((size, size), np.uint8)
    cv2.fillPoly(face, [np.rint(outline).astype(np.int32)], (1,))
    rgb = picture.permute(1, 2, 0).cpu().numpy()
    clipped = (np.abs(rgb) >= 1 - 1e-3).any(2)[face > 0]
    scale = -(-MIN_SIDE // size)
    enlarged = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    return {
        "sharpness": face_sharpness(_resized(picture[None], small)[0]),
        "clipping": 100 * float(clipped.mean()) if len(clipped) else math.nan,
        "niqe": niqe(np.clip(enlarged / 2 + 0.5, 0, 1)),
    }


def _mean_of_top(cosines: Tensor) -> Tensor:
    """Averages the `TOP` greatest cosines of each row, `[B, N]` -> `[B]`."""
    return cosines.topk(min(TOP, cosines.shape[1]), dim=1).values.mean(1)


# -- comparing meshes ----------------------------------------------------------------------------


def _add_neutral_difference(
    track: LatentTrack, driving: np.ndarray, generated: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Gives the driving meshes the character's neutral shape.

    Args:
        track: states the difference of the two neutral faces, or not.
        driving: `[F, 478, 3]` px of the crop.
        generated: `[F, 478, 3]`.

    Returns:
        `[F, 478, 3]`, the meshes that the result should have, and notes.
    """
    difference = generated - driving
    found = np.isfinite(difference).all((1, 2))
    if not found.any():
        return driving, ["No frame shows the driver's face: nothing can be compared with it."]
    neutral = np.median(difference[found], 0)
    notes = []
    if track.neutral_offset.any():
        neutral[list(KEYPOINTS)] = track.neutral_offset
    else:
        notes.append(
            "The track was solved with the difference of the two neutral faces left in. Here its "
            "median over the shot is subtracted, so that it does not count as an error."
        )
    return driving + neutral, notes


def _part_errors(target: np.ndarray, generated: np.ndarray) -> Arrays:
    """Returns mean keypoint distances `[F]` in px, each facial part about its own middle."""
    a, b = (torch.from_numpy(mesh[:, KEYPOINTS]) for mesh in (generated, target))
    distances = group_keypoints(a - b).norm(dim=-1)
    split = distances.split([len(points) for points in GROUPS.values()], 1)
    parts = dict(zip(GROUPS, split, strict=True))
    parts["lips"] = torch.cat([parts.pop("mouth"), parts.pop("outer_lips")], 1)
    return {"landmarks": keypoint_error(a, b).numpy()} | {
        name: part.mean(1).numpy() for name, part in parts.items()
    }


def _signals(target: np.ndarray, generated: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Returns each of `core.face.measures.MEASURES` of target and result, `[F]` each."""
    a, b = measure(target), measure(generated)
    return [(name, a[name], b[name]) for name in a]


def _expression_errors(signals: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Arrays:
    """Returns the differences `[F]` of mouth, smile, lids, gaze and pose, in the signals' units."""
    difference = {name: b - a for name, (a, b) in signals.items()}
    lids = np.stack([difference["open_r"], difference["open_l"]])
    larger = np.abs(np.nan_to_num(lids)).argmax(0)
    shut = np.minimum(*(np.minimum(*signals[eye]) for eye in ("open_r", "open_l"))) < 100 * _SHUT
    gaze = np.hypot(difference["gaze_x"], difference["gaze_y"])
    return {
        "mouth": difference["jaw"],
        "smile": difference["smile"],
        "lids": np.take_along_axis(lids, larger[None], 0)[0],
        "gaze": np.where(shut, np.nan, gaze),
        "pose": np.sqrt(sum(difference[angle] ** 2 for angle in ("yaw", "pitch", "roll"))),
    }


def _landmark_distances(target: np.ndarray, generated: np.ndarray) -> Arrays:
    """Returns proxies of APD and AED per frame, computed from landmarks."""
    difference = {name: b - a for name, a, b in _signals(target, generated)}
    angles = np.radians([difference[name] for name in ("yaw", "pitch", "roll")])
    faces = np.array([difference[name] for name in _EXPRESSION])
    return {
        "pose_distance": 100 * (angles**2).mean(0),
        "expression_distance": 10 * (faces**2).mean(0),
    }


def _model_distances(fits: Mapping[str, np.ndarray]) -> Arrays:
    """Returns APD and AED per frame: mean squares of a face model's differences (section 4.1)."""
    halves = {name: np.split(fits[name], 2, 1) for name in ("angles", "faces")}
    squares = {name: ((a - b) ** 2).mean(1) for name, (a, b) in halves.items()}
    return {
        "pose_distance": 100 * squares["angles"],
        "expression_distance": 10 * squares["faces"],
    }


def jitter(points: np.ndarray, numbers: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Returns the length of the points' second difference over time.

    Args:
        points: `[F, K, 2]`; NaN where there are none.
        numbers: `[F]` frame numbers, increasing.
        cut: `[F]` bool, true on the first frame of a new shot.

    Returns:
        `[F]`, averaged over the K points. NaN where the frame before or after is missing or belongs
        to another shot.
    """
    result = np.full(len(points), np.nan)
    if len(points) > 2:
        inside = (np.diff(numbers)[:-1] == 1) & (np.diff(numbers)[1:] == 1) & ~cut[1:-1] & ~cut[2:]
        second = np.linalg.norm(np.diff(points, 2, axis=0), axis=2).mean(1)
        result[1:-1] = np.where(inside, second, np.nan)
    return result


def latent_position(codes: np.ndarray, anchors: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Returns where codes lie relative to the personalised space P.

    Weights are the nearest ones of least norm; with no more anchors than dimensions they are
    unique.

    Args:
        codes: `[F, L, D]` w+.
        anchors: `[N, D]`.

    Returns:
        `[F]` the dilation of P that a code needs: how far the least weight of its layers lies below
        0. And `[F]` the distance of its farthest layer to P, at the nearest weights, in percent of
        the anchors' root mean square distance from their mean.
    """
    points = anchors.detach().cpu().double()
    middle = points.mean(0)
    rms = (points - middle).square().sum(1).mean().sqrt()
    given = torch.from_numpy(np.asarray(codes)).double()
    weights = (given - middle) @ torch.linalg.pinv(points - middle, rtol=1e-6) + 1 / len(points)
    inside = nearest_weights(weights, BETA) @ points
    distance = (given - inside).norm(dim=-1).amax(1) / rms
    return (-weights.amin((1, 2))).clamp(min=0).numpy(), 100 * distance.numpy()
