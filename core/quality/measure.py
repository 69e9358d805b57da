"""What is wrong with a shot, frame by frame: the result measured against driver and character.

Driver and result are seen as the solver sees them: aligned pictures, one fixed ROI, meshes in px of
the landmark network's 192 px crop. Two faces differ at rest, so the driver's mesh is moved by what
the track says they differ by (`LatentTrack.neutral_offset`); points that it does not name, and
tracks that were solved without, by the shot's median difference.

The scan itself is not in a character. What stands for its selected frames is what the generator
draws of their anchors, the pictures that it was tuned to reproduce.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.base.digest import digest
from core.base.errors import ReenactError
from core.base.files import atomic_write
from core.base.progress import Progress
from core.face.aligned_clip import cut_out
from core.face.alignment import warp
from core.face.keypoints import FACE_OVAL, GROUPS, KEYPOINTS
from core.face.landmarks import detect_landmarks, group_keypoints, keypoint_error
from core.face.measures import measure
from core.media import colour
from core.media.clip import Clip, Window
from core.media.numbering import format_numbers
from core.media.read import read_frames
from core.personalize.character import Character
from core.personalize.selection import face_sharpness
from core.quality.cards import card, pixels
from core.quality.definitions import MEASURES, SIGNALS, TOP, Quality
from core.quality.marks import mark
from core.quality.niqe import MIN_SIDE, niqe
from core.quality.recognition import FaceModel, Recogniser
from core.render import frames
from core.solve.latent_space import BETA, nearest_weights
from core.solve.latent_track import LatentTrack
from core.solve.settings import MAX_RESOLUTION

_SIDE = 512  # of the driver's pictures at most, px
_SHUT = 0.12  # lids nearer than this share of the eye's width hide where it looks


class NothingToMeasureError(ReenactError):
    """Plate, track and rendered frames have no frames in common, or are of different shots."""


_EXPRESSION = ("jaw", "smile", "skew", "open_r", "open_l", "brow")
POSE_PROXY = "proxy: head angles of the landmarks, radians"
EXPRESSION_PROXY = "proxy: mouth, mouth corners, lids and brows of the landmarks"


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

    With `work`, what was interrupted goes on there when the call is repeated, to the same result.

    Args:
        track: complete.
        character: the track's, on the device that is to work.
        plate: the driving clip.
        recogniser: what identity is measured by.
        rendered: frames of the track as they were rendered, on the plate or as crops; by default
            they are drawn.
        face_model: what APD and AED are measured by; by default proxies made of landmarks.
        limits: by measure, beyond which frames are marked in place of where they are by default.
        batch: pictures worked on at once.
        work: folder for what is measured so far.
        progress: called with pictures seen and to be seen, the anchors' among them.

    Raises:
        NothingToMeasureError: no common frame, or rendered frames of another size.
        ValueError: a track that is not complete.
        core.media.errors.ClipError: a frame that can't be read.
    """
    if not track.complete:
        raise ValueError("The track is not complete. Finish its solve first.")
    wanted = np.isin(track.numbers, plate.numbers)
    if rendered is not None:
        wanted &= np.isin(track.numbers, rendered.numbers)
    rows = np.flatnonzero(wanted)
    if not len(rows):
        raise NothingToMeasureError(
            f"The {'rendered frames have' if rendered else 'plate has'} none of the track's frames,"
            f" {format_numbers(track.numbers.tolist())}. Choose the clip of this shot."
        )
    total = len(rows) + len(character.anchors)
    size = character.generator.architecture.resolution
    small = min(size, MAX_RESOLUTION)  # what the solver saw
    device = character.anchors.device
    clips = [c and (c.shown, c.colour_space) for c in (plate, rendered)]
    networks = [recogniser.name, face_model and face_model.name]
    key = digest(character.hash, track.smooth, track.quads, track.landmarks, rows, clips, networks)

    def place(name: object) -> Path | None:
        return work and work / key[:16] / f"{name}.npz"

    scan = _kept(place("scan"))
    if scan is None:
        scan = _anchors(character, recogniser, small, batch, lambda n: progress(n, total))
        _keep(place("scan"), scan)
    known = torch.from_numpy(scan["vectors"]).to(device)
    parts: list[dict[str, np.ndarray]] = []
    start = 0
    while start < len(rows) and (part := _kept(place(start))):
        parts.append(part)
        start += len(part["cards"])
    drivers = _drivers(plate, track, rows[start:], max(MAX_RESOLUTION, min(size, _SIDE)))
    results = (
        frames.pictures(character.generator, track.smooth[rows[start:]], batch)
        if rendered is None
        else delivered(rendered, plate, track, rows[start:], size)
    )
    while start < len(rows):
        pairs = [(next(drivers), next(results)) for _ in rows[start : start + batch]]
        parts.append(_seen(pairs, device, small, known, recogniser, face_model))
        _keep(place(start), parts[-1])
        start += len(pairs)
        progress(len(character.anchors) + start, total)

    own = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    own["sharpness"] /= np.median(scan["sharpness"])
    driven, made = own["driven"], own["made"]
    wanted_mesh, notes = _at_rest(track, driven, made)
    signals = {
        name: (a * SIGNALS[name][2], b * SIGNALS[name][2])
        for name, a, b in _signals(wanted_mesh, made)
        if name in SIGNALS
    }
    numbers, cut = track.numbers[rows], track.cut[rows]
    restless = [jitter(mesh[:, KEYPOINTS, :2], numbers, cut) for mesh in (driven, made)]
    both = np.isfinite(restless).all(0)
    shaking = [float(r[both].mean()) if both.any() else math.nan for r in restless]
    if not both.any():
        notes.append("Jitter needs three frames on end.")
    dilation, distance = position(track.smooth[rows], character.anchors)
    measures = {
        **_parts(wanted_mesh, made),
        **_agreement(signals),
        "identity": own["identity"],
        "jitter": restless[1] - restless[0],
        "dilation": dilation,
        "distance": distance,
        "clipping": own["clipping"],
        "sharpness": own["sharpness"],
        "niqe": own["niqe"],
        **(_distances(wanted_mesh, made) if face_model is None else _model_distances(own)),
    }
    metrics = {
        "identity": recogniser.name,
        "pose_distance": POSE_PROXY if face_model is None else face_model.name,
        "expression_distance": EXPRESSION_PROXY if face_model is None else face_model.name,
        "niqe": "LIVE parameters of 2012",
    }
    if size < MIN_SIDE:
        metrics["niqe"] += f", pictures enlarged from {size} px: for comparison at this size only"
    measures = {name: measures[name] for name in MEASURES}
    state, amount = track.state[rows], track.amount[rows]
    bounds, marks = mark(numbers, state, amount, measures, limits)
    return Quality(
        numbers,
        state,
        cut,
        measures,
        signals,
        bounds,
        marks,
        metrics,
        (shaking[0], shaking[1]),
        tuple(notes),
        own["cards"].tolist(),
    )


def _anchors(
    character: Character,
    recogniser: Recogniser,
    small: int,
    batch: int,
    tick: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """Vectors `[N, D]` of the anchors' pictures, and their sharpness `[N]`."""
    rows = character.generator.architecture.num_ws
    codes = character.anchors[:, None].expand(-1, rows, -1).cpu().numpy()
    drawn = frames.pictures(character.generator, codes, batch)
    vectors, details = [], []
    for start in range(0, len(codes), batch):
        pictures = torch.stack([next(drawn) for _ in codes[start : start + batch]])
        with torch.no_grad():
            vectors.append(
                recogniser.embed(pictures, detect_landmarks(_shrunk(pictures, small)).landmarks)
            )
        details += [face_sharpness(p) for p in _shrunk(pictures, small)]
        tick(start + len(pictures))
    return {"vectors": torch.cat(vectors).cpu().numpy(), "sharpness": np.array(details)}


def _seen(
    pairs: Sequence[tuple[Tensor | None, Tensor | None]],
    device: torch.device,
    small: int,
    known: Tensor,
    recogniser: Recogniser,
    face_model: FaceModel | None,
) -> dict[str, np.ndarray]:
    """What pictures of driver and result say one by one, NaN where there is none: meshes, measures,
    the face model's numbers, and cards."""
    count = len(pairs)
    own = {name: np.full((count, 478, 3), np.nan) for name in ("driven", "made")}
    own |= {n: np.full(count, np.nan) for n in ("identity", "sharpness", "clipping", "niqe")}
    own |= {n: np.full((count, width), np.nan) for n, width in (("angles", 6), ("faces", 128))}
    for side, name in enumerate(("driven", "made")):
        here = [i for i, pair in enumerate(pairs) if pair[side] is not None]
        if not here:
            continue
        pictures = [picture for pair in pairs if (picture := pair[side]) is not None]
        batched = torch.stack(pictures).float().to(device)
        with torch.no_grad():
            seen = detect_landmarks(_shrunk(batched, small)).landmarks
        own[name][here] = seen.cpu().numpy()
        if side:
            own["identity"][here] = _top(recogniser.embed(batched, seen) @ known.T).cpu().numpy()
            for i, picture, mesh in zip(here, batched, seen, strict=True):
                for figure, value in _own(picture, mesh, small).items():
                    own[figure][i] = value
        if face_model is not None:
            faces, angles = face_model.fit(batched, seen)
            own["angles"][here, 3 * side : 3 * side + 3] = angles.cpu().numpy()
            own["faces"][here, 64 * side : 64 * side + 64] = faces.cpu().numpy()
    cards = [
        card(*pair, *meshes)
        for pair, *meshes in zip(pairs, own["driven"], own["made"], strict=True)
    ]
    return {**own, "cards": np.array(cards)}  # no JPEG ends in a 0, which numpy would cut off


def _kept(path: Path | None) -> dict[str, np.ndarray] | None:
    """Arrays that an earlier call kept."""
    if path is None or not path.exists():
        return None
    with np.load(path) as file:
        return dict(file)


def _keep(path: Path | None, arrays: dict[str, np.ndarray]) -> None:
    if path is not None:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)


def _drivers(
    plate: Clip, track: LatentTrack, rows: np.ndarray, size: int
) -> Iterator[Tensor | None]:
    """Of each row the driver's aligned picture, None where it has no face."""
    found = np.isfinite(track.landmarks[rows]).all((1, 2)) & _placed(track, rows)
    numbers = [int(n) for n in track.numbers[rows[found]]]
    crops = cut_out(plate, numbers, track.quads[rows[found]], size)
    for has_face in found:
        yield next(crops) if has_face else None


def _placed(track: LatentTrack, rows: np.ndarray) -> np.ndarray:
    return np.isfinite(track.quads[rows]).all((1, 2))


def delivered(
    rendered: Clip, plate: Clip, track: LatentTrack, rows: np.ndarray, size: int
) -> Iterator[Tensor | None]:
    """Rendered frames as aligned pictures: crops as they are; patches, which are merged over the
    plate, and whole frames are cut out where the track placed them.

    Yields:
        `[3, size, size]` in [-1, 1]; None where a frame has no face.

    Raises:
        NothingToMeasureError: the frames have another size than the plate, and are no crops.
    """
    whole = (rendered.width, rendered.height) == (plate.width, plate.height)
    if not whole and rendered.width != rendered.height:
        raise NothingToMeasureError(
            f"{rendered.shown} is {rendered.width}x{rendered.height} and the plate "
            f"{plate.width}x{plate.height}. Choose what was rendered on this plate, or crops."
        )
    numbers = [int(n) for n in track.numbers[rows]]
    behind = read_frames(plate, numbers) if whole and rendered.has_alpha else None
    for row, frame in zip(rows, read_frames(rendered, numbers), strict=True):
        pixels = frame.pixels
        if behind is not None and frame.alpha is not None:
            rgba = np.dstack([pixels, frame.alpha])
            place = Window(0, 0, plate.width, plate.height)
            below = frames.plate_pixels(next(behind).pixels, plate, rendered.colour_space)
            pixels = frames.over(frames.Patch(rgba, place), below)
        picture, _ = colour.to_network(pixels, rendered.colour_space, rendered.config)
        image = torch.from_numpy(picture).permute(2, 0, 1)[None]
        if not whole:
            yield _shrunk(image, size)[0].clamp(-1, 1)
        elif np.isfinite(track.quads[row]).all():
            quad = torch.from_numpy(track.quads[row]).float()
            yield warp(image, quad[None], size)[0].clamp(-1, 1)
        else:
            yield None


def _shrunk(pictures: Tensor, size: int) -> Tensor:
    """Square pictures `[B, 3, R, R]` at another size."""
    if pictures.shape[-1] == size:
        return pictures
    return F.interpolate(pictures, (size, size), mode="bilinear", antialias=True)


def _own(picture: Tensor, mesh: Tensor, small: int) -> dict[str, float]:
    """What a picture `[3, R, R]` says without the driver's."""
    size = picture.shape[-1]
    outline = pixels(mesh.cpu().numpy()[list(FACE_OVAL)], size)
    face = np.zeros((size, size), np.uint8)
    cv2.fillPoly(face, [np.rint(outline).astype(np.int32)], (1,))
    rgb = picture.permute(1, 2, 0).cpu().numpy()
    clipped = (np.abs(rgb) >= 1 - 1e-3).any(2)[face > 0]
    larger = -(-MIN_SIDE // size)
    enlarged = cv2.resize(rgb, None, fx=larger, fy=larger, interpolation=cv2.INTER_CUBIC)
    return {
        "sharpness": face_sharpness(_shrunk(picture[None], small)[0]),
        "clipping": 100 * float(clipped.mean()) if len(clipped) else math.nan,
        "niqe": niqe(np.clip(enlarged / 2 + 0.5, 0, 1)),
    }


def _top(cosines: Tensor) -> Tensor:
    """The mean of each row's greatest cosines, `[B, N]` -> `[B]`."""
    return cosines.topk(min(TOP, cosines.shape[1]), dim=1).values.mean(1)


def _at_rest(
    track: LatentTrack, driven: np.ndarray, made: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """The driver's meshes with the character's shape at rest, and notes."""
    apart = made - driven
    seen = np.isfinite(apart).all((1, 2))
    if not seen.any():
        return driven, ["No frame shows the driver's face: nothing can be compared with it."]
    rest = np.median(apart[seen], 0)
    notes = []
    if track.neutral_offset.any():
        rest[list(KEYPOINTS)] = track.neutral_offset
    else:
        notes.append(
            "The track was solved with the faces' shapes at rest left in; here their median "
            "difference over the shot is taken out, and is not seen as an error."
        )
    return driven + rest, notes


def _parts(wanted: np.ndarray, made: np.ndarray) -> dict[str, np.ndarray]:
    """Distances of keypoints, each part about its own middle, px."""
    a, b = (torch.from_numpy(mesh[:, KEYPOINTS]) for mesh in (made, wanted))
    apart = group_keypoints(a - b).norm(dim=-1)
    split = apart.split([len(points) for points in GROUPS.values()], 1)
    parts = dict(zip(GROUPS, split, strict=True))
    parts["lips"] = torch.cat([parts.pop("mouth"), parts.pop("outer_lips")], 1)
    return {"landmarks": keypoint_error(a, b).numpy()} | {
        name: part.mean(1).numpy() for name, part in parts.items()
    }


def _signals(wanted: np.ndarray, made: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
    a, b = measure(wanted), measure(made)
    return [(name, a[name], b[name]) for name in a]


def _agreement(signals: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    apart = {name: b - a for name, (a, b) in signals.items()}
    lids = np.stack([apart["open_r"], apart["open_l"]])
    further = np.abs(np.nan_to_num(lids)).argmax(0)
    shut = np.minimum(*(np.minimum(*signals[eye]) for eye in ("open_r", "open_l"))) < 100 * _SHUT
    gaze = np.hypot(apart["gaze_x"], apart["gaze_y"])
    return {
        "mouth": apart["jaw"],
        "smile": apart["smile"],
        "lids": np.take_along_axis(lids, further[None], 0)[0],
        "gaze": np.where(shut, np.nan, gaze),
        "pose": np.sqrt(sum(apart[angle] ** 2 for angle in ("yaw", "pitch", "roll"))),
    }


def _distances(wanted: np.ndarray, made: np.ndarray) -> dict[str, np.ndarray]:
    """APD and AED per frame, of what landmarks say."""
    apart = {name: b - a for name, a, b in _signals(wanted, made)}
    angles = np.radians([apart[name] for name in ("yaw", "pitch", "roll")])
    faces = np.array([apart[name] for name in _EXPRESSION])
    return {
        "pose_distance": 100 * (angles**2).mean(0),
        "expression_distance": 10 * (faces**2).mean(0),
    }


def _model_distances(fits: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """APD and AED per frame (paper, section 4.1): mean squares of a face model's differences."""
    halves = {name: np.split(fits[name], 2, 1) for name in ("angles", "faces")}
    squares = {name: ((a - b) ** 2).mean(1) for name, (a, b) in halves.items()}
    return {
        "pose_distance": 100 * squares["angles"],
        "expression_distance": 10 * squares["faces"],
    }


def jitter(points: np.ndarray, numbers: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """How far points leave the middle between the frames before and after, twice.

    Args:
        points: `[F, K, 2]`; NaN where there are none.
        numbers: `[F]` frame numbers, increasing.
        cut: `[F]` bool, true on the first frame of a new shot.

    Returns:
        `[F]`: the length of the second difference, meant over the points. NaN where the frame
        before or after is missing or of another shot.
    """
    result = np.full(len(points), np.nan)
    if len(points) > 2:
        inside = (np.diff(numbers)[:-1] == 1) & (np.diff(numbers)[1:] == 1) & ~cut[1:-1] & ~cut[2:]
        second = np.linalg.norm(np.diff(points, 2, axis=0), axis=2).mean(1)
        result[1:-1] = np.where(inside, second, np.nan)
    return result


def position(codes: np.ndarray, anchors: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Where codes lie with respect to the personalised space.

    Weights are those of least norm that come nearest; with no more anchors than dimensions there
    are no others.

    Args:
        codes: `[F, L, D]` w+.
        anchors: `[N, D]`.

    Returns:
        `[F]` how far below 0 the least weight of any row is (the dilation of P that it needs), and
        `[F]` distance to the point of P at the nearest weights, of the farthest row, in percent
        of the anchors' root mean square distance from their mean.
    """
    known = anchors.detach().cpu().double()
    middle = known.mean(0)
    spread = (known - middle).square().sum(1).mean().sqrt()
    given = torch.from_numpy(np.asarray(codes)).double()
    weights = (given - middle) @ torch.linalg.pinv(known - middle, rtol=1e-6) + 1 / len(known)
    inside = nearest_weights(weights, BETA) @ known
    away = (given - inside).norm(dim=-1).amax(1) / spread
    return (-weights.amin((1, 2))).clamp(min=0).numpy(), 100 * away.numpy()
