"""What is wrong with a shot, frame by frame: the result measured against driver and character.

Driver and result are seen as the solver sees them: aligned pictures, one fixed ROI, meshes in px of
the landmark network's 192 px crop. Two faces differ at rest, so the driver's mesh is moved by what
the track says they differ by (`LatentTrack.rest`); points that it does not name, and tracks that
were solved without, by the shot's median difference.

The scan itself is not in a character. What stands for its selected frames is what the generator
draws of their anchors, the pictures that it was tuned to reproduce.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core import colour, rendering
from core.aligned_clip import cut_out
from core.alignment import warp
from core.character import Character
from core.digest import digest
from core.errors import ReenactError
from core.facemesh import aligned_roi, to_picture
from core.facemesh.keypoints import FACE_OVAL, GROUPS, KEYPOINTS, LEFT_EYE, OUTER_LIPS, RIGHT_EYE
from core.facemesh.measures import measure
from core.files import atomic_write
from core.frames import Clip, Window, format_numbers, read_frames, to_bytes
from core.latent_space import BETA, nearest_weights
from core.latent_track import FrameState, LatentTrack
from core.niqe import MIN_SIDE, niqe
from core.objective import group, keypoint_error, look
from core.progress import Progress
from core.recognition import FaceModel, Recogniser
from core.reenactment import MAX_RESOLUTION
from core.selection import face_sharpness

TOP = 5  # most similar pictures of the scan that identity is meant over (paper, section 4.1)
# A frame stands out where it is this many standard deviations (1.4826 times the median absolute
# deviation) from the shot's median, in shots of at least so many frames.
DEVIATIONS = 6.0
FEWEST = 8
SOLVE_STEPS = 40  # of a suggested repair: five times those of a first solve
MARGIN = 2  # frames that a suggested repair reaches beyond what is wrong, either way
_LONGEST = 4  # wrong frames on end that interpolation is suggested for
_SIDE = 512  # of the driver's pictures at most, px
_SHUT = 0.12  # lids nearer than this share of the eye's width hide where it looks


class NothingToMeasure(ReenactError):
    """Plate, track and rendered frames have no frames in common, or are of different shots."""


@dataclass(frozen=True)
class Measure:
    """What one number says of a frame."""

    title: str
    unit: str
    meaning: str  # a sentence
    bad: str  # "high", "low", "both", or "" for what is only shown
    limit: float | None  # beyond which a frame is marked anyway; None: only where it stands out
    least: float  # from the shot's median, within which nothing stands out
    reason: str  # for people, where it is too high
    lower: str = ""  # the same, where it is too low
    repair: str = ""  # of `core.repair`'s solve: what is to be followed again; or "interpolate"


MEASURES: dict[str, Measure] = {
    "landmarks": Measure(
        "Landmarks",
        "px",
        "Mean distance of the 86 keypoints from the driver's, each facial part "
        "about its own middle, in px of a 192 px face.",
        "high",
        4.0,
        0.4,
        "The face does not follow the driver",
        repair="all",
    ),
    "right_eye": Measure(
        "Right eye",
        "px",
        "The same, of the right eye's lids and iris alone.",
        "high",
        2.5,
        0.4,
        "The right eye's shape differs from the driver's",
        repair="eyes",
    ),
    "left_eye": Measure(
        "Left eye",
        "px",
        "The same, of the left eye's lids and iris alone.",
        "high",
        2.5,
        0.4,
        "The left eye's shape differs from the driver's",
        repair="eyes",
    ),
    "lips": Measure(
        "Lips",
        "px",
        "The same, of the lips alone.",
        "high",
        4.0,
        0.6,
        "The lips' shape differs from the driver's",
        repair="mouth",
    ),
    "head": Measure(
        "Head outline",
        "px",
        "The same, of forehead, chin and sides of the face, in absolute position.",
        "high",
        9.0,
        1.5,
        "The head is not where the driver's is",
        repair="head",
    ),
    "mouth": Measure(
        "Mouth opening",
        "%",
        "The result's mouth opening less the driver's, in percent of the "
        "distance between the outer eye corners.",
        "both",
        8.0,
        3.0,
        "The mouth is open wider than the driver's",
        "The mouth is less open than the driver's",
        "mouth",
    ),
    "smile": Measure(
        "Smile",
        "%",
        "The result's mouth corners above the upper lip, less the driver's, in "
        "percent of the distance between the outer eye corners.",
        "both",
        8.0,
        3.0,
        "It smiles more than the driver",
        "It smiles less than the driver",
        "mouth",
    ),
    "lids": Measure(
        "Lids",
        "%",
        "The result's eye opening less the driver's, of that eye that differs more, "
        "in percent of the eye's width.",
        "both",
        14.0,
        5.0,
        "An eye is open wider than the driver's",
        "An eye is more shut than the driver's",
        "eyes",
    ),
    "gaze": Measure(
        "Gaze",
        "%",
        "How far apart the irises are from where the driver's are, in percent of the "
        "eye's width; not where an eye is shut.",
        "high",
        14.0,
        5.0,
        "It looks elsewhere than the driver",
        repair="eyes",
    ),
    "pose": Measure(
        "Head pose",
        "°",
        "Yaw, pitch and roll from the driver's, together.",
        "high",
        8.0,
        2.5,
        "The head is turned otherwise than the driver's",
        repair="head",
    ),
    "identity": Measure(
        "Identity",
        "",
        f"Mean cosine with the {TOP} most similar of the scan's frames, as "
        "the generator draws them.",
        "low",
        None,
        0.02,
        "",
        "It looks less like the scan",
    ),
    "jitter": Measure(
        "Jitter",
        "px",
        "How far the keypoints leave the middle of the frames before and after, "
        "less the driver's own, in px of a 192 px face.",
        "high",
        2.0,
        0.6,
        "It jumps where the driver does not",
        repair="interpolate",
    ),
    "dilation": Measure(
        "Dilation",
        "",
        "How far below 0 the least barycentric weight of the rendered code is: "
        f"what the scan's frames span is left, beyond {BETA} the solver never goes.",
        "high",
        1.5 * BETA,
        BETA,
        "The code lies outside of what the scan spans",
    ),
    "distance": Measure(
        "Distance to P",
        "%",
        "How far the rendered code is from the personalised space, in "
        "percent of the anchors' spread; 0 for what was solved.",
        "high",
        10.0,
        5.0,
        "The code is far from the person's own space",
    ),
    "clipping": Measure(
        "Clipping",
        "%",
        "Pixels of the face with a channel at black or white.",
        "high",
        5.0,
        1.5,
        "The face clips to black or white",
    ),
    "sharpness": Measure(
        "Sharpness",
        "x",
        "Fine detail of the face over its coarse detail, as a share of the "
        "scan's frames', as the generator draws them.",
        "low",
        0.6,
        0.12,
        "",
        "It is softer than the scan's faces",
    ),
    "niqe": Measure(
        "NIQE",
        "",
        "How far the picture's statistics are from a good photograph's (Mittal et al. "
        "2012); lower is better.",
        "high",
        None,
        1.5,
        "It looks less like a photograph than the rest",
    ),
    "pose_distance": Measure(
        "Pose distance",
        "",
        "The paper's APD of this frame, times 100: mean square of the head angles' differences.",
        "",
        None,
        0.01,
        "",
    ),
    "expression_distance": Measure(
        "Expression distance",
        "",
        "The paper's AED of this frame, times 10: mean square of the expression's differences.",
        "",
        None,
        0.01,
        "",
    ),
}

# What driver and result do, to be seen side by side: title, unit, and what it is multiplied by.
SIGNALS: dict[str, tuple[str, str, float]] = {
    "jaw": ("Mouth opening", "% of eye distance", 100),
    "smile": ("Smile", "% of eye distance", 100),
    "open_r": ("Right eye opening", "% of eye width", 100),
    "open_l": ("Left eye opening", "% of eye width", 100),
    "gaze_x": ("Gaze, sideways", "% of eye width", 100),
    "gaze_y": ("Gaze, up", "% of eye width", 100),
    "yaw": ("Head yaw", "°", 1),
    "pitch": ("Head pitch", "°", 1),
    "roll": ("Head roll", "°", 1),
}

_STATES = {
    FrameState.INTERPOLATED: "The driver's face was not found: interpolated",
    FrameState.HELD: "The driver's face was not found: the nearest solved frame is held",
    FrameState.NO_FACE: "The driver's face was not found in the whole shot",
}
_EXPRESSION = ("jaw", "smile", "skew", "open_r", "open_l", "brow")
POSE_PROXY = "proxy: head angles of the landmarks, radians"
EXPRESSION_PROXY = "proxy: mouth, mouth corners, lids and brows of the landmarks"


@dataclass(frozen=True)
class Mark:
    """A frame that somebody should look at, and why."""

    number: int
    measure: str  # of `MEASURES`, or "state"
    value: float | None
    limit: float | None
    reason: str  # a sentence without its full stop
    excess: float  # how far beyond the limit, over how far it usually may be: what is worst


@dataclass(frozen=True, eq=False)
class Quality:
    """Measures of F frames."""

    numbers: np.ndarray  # [F] int64
    state: np.ndarray  # [F] uint8, FrameState
    cut: np.ndarray  # [F] bool, true on the first frame of a new shot
    measures: Mapping[str, np.ndarray]  # of `MEASURES` -> [F] float64; NaN where there is none
    signals: Mapping[str, tuple[np.ndarray, np.ndarray]]  # of `SIGNALS` -> driver's, result's
    bounds: Mapping[str, tuple[float, float]]  # measure -> below and above which frames are marked
    marks: tuple[Mark, ...]  # by frame, the worst first
    metrics: Mapping[str, str]  # measure -> by which network or proxy, where there is a choice
    jitter: tuple[float, float]  # the driver's and the result's, px, meant over the shot
    notes: tuple[str, ...]  # sentences
    cards: Sequence[bytes]  # F JPEGs for people: driver and result, below them eyes and mouth

    @property
    def marked(self) -> list[int]:
        """Frames with a mark, the worst first."""
        worst: dict[int, float] = {}
        for mark in self.marks:
            worst[mark.number] = worst.get(mark.number, 0) + mark.excess
        return sorted(worst, key=lambda n: (-worst[n], n))


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
        NothingToMeasure: no common frame, or rendered frames of another size.
        ValueError: a track that is not complete.
        core.frames.ClipError: a frame that can't be read.
    """
    if not track.complete:
        raise ValueError("The track is not complete. Finish its solve first.")
    wanted = np.isin(track.numbers, plate.numbers)
    if rendered is not None:
        wanted &= np.isin(track.numbers, rendered.numbers)
    rows = np.flatnonzero(wanted)
    if not len(rows):
        raise NothingToMeasure(
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
        rendering.pictures(character.generator, track.smooth[rows[start:]], batch)
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


# -- pictures ------------------------------------------------------------------------------------


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
    drawn = rendering.pictures(character.generator, codes, batch)
    vectors, details = [], []
    for start in range(0, len(codes), batch):
        pictures = torch.stack([next(drawn) for _ in codes[start : start + batch]])
        with torch.no_grad():
            vectors.append(recogniser.embed(pictures, look(_shrunk(pictures, small)).landmarks))
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
            seen = look(_shrunk(batched, small)).landmarks
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
        NothingToMeasure: the frames have another size than the plate, and are no crops.
    """
    whole = (rendered.width, rendered.height) == (plate.width, plate.height)
    if not whole and rendered.width != rendered.height:
        raise NothingToMeasure(
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
            below = rendering.plate_pixels(next(behind).pixels, plate, rendered.colour_space)
            pixels = rendering.over(rendering.Patch(rgba, place), below)
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
    outline = _pixels(mesh.cpu().numpy()[list(FACE_OVAL)], size)
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


def _pixels(landmarks: np.ndarray, size: int) -> np.ndarray:
    """Landmarks `[K, 3]` in px of the 192 px crop -> `[K, 2]` px of a picture."""
    points = torch.from_numpy(np.asarray(landmarks, np.float32))[None]
    return to_picture(points, aligned_roi(size))[0, :, :2].numpy()


# -- measures ------------------------------------------------------------------------------------


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
    if track.rest.any():
        rest[list(KEYPOINTS)] = track.rest
    else:
        notes.append(
            "The track was solved with the faces' shapes at rest left in; here their median "
            "difference over the shot is taken out, and is not seen as an error."
        )
    return driven + rest, notes


def _parts(wanted: np.ndarray, made: np.ndarray) -> dict[str, np.ndarray]:
    """Distances of keypoints, each part about its own middle, px."""
    a, b = (torch.from_numpy(mesh[:, KEYPOINTS]) for mesh in (made, wanted))
    apart = group(a - b).norm(dim=-1)
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


# -- marks ---------------------------------------------------------------------------------------


def mark(
    numbers: np.ndarray,
    state: np.ndarray,
    amount: np.ndarray,
    measures: Mapping[str, np.ndarray],
    limits: Mapping[str, float] = {},
) -> tuple[dict[str, tuple[float, float]], tuple[Mark, ...]]:
    """Finds the frames that somebody should look at.

    Args:
        numbers: `[F]`.
        state: `[F]`, FrameState.
        amount: `[F]`: frames with 0 show the plate alone, and are never marked.
        measures: of `MEASURES`, `[F]` each.
        limits: as in `measure_shot`.

    Returns:
        Below and above what each measure marks a frame (infinite where never), and the marks.
    """
    bounds = {
        name: _ends(MEASURES[name].bad, limits[name])
        if name in limits
        else _bounds(MEASURES[name], values)
        for name, values in measures.items()
    }
    marks: list[Mark] = []
    for i, number in enumerate(int(n) for n in numbers):
        if amount[i] == 0:
            continue
        found = []
        if state[i] in _STATES:
            found.append(Mark(number, "state", None, None, _STATES[FrameState(state[i])], 1.0))
        for name, values in measures.items():
            low, high = bounds[name]
            value, m = float(values[i]), MEASURES[name]
            if value > high or value < low:
                # One frame that jumps leaves its neighbours half as far from their middle.
                if name == "jitter" and value < np.nanmax(values[max(i - 1, 0) : i + 2]):
                    continue
                limit, said = (high, m.reason) if value > high else (low, m.lower)
                unit = f" {m.unit}" if m.unit not in ("", "%", "°", "x") else m.unit
                reason = f"{said} ({value:.3g}{unit}, limit {limit:.3g}{unit})"
                excess = abs(value - limit) / max(abs(limit), m.least)
                found.append(Mark(number, name, value, limit, reason, excess))
        marks += sorted(found, key=lambda m: -m.excess)
    return bounds, tuple(marks)


def _bounds(m: Measure, values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    low, high = (-math.inf, math.inf) if m.limit is None else _ends(m.bad, m.limit)
    if len(known) >= FEWEST:
        middle = float(np.median(known))
        usual = 1.4826 * float(np.median(np.abs(known - middle)))
        reach = max(DEVIATIONS * usual, m.least)
        high = min(high, middle + reach) if m.bad in ("high", "both") else high
        low = max(low, middle - reach) if m.bad in ("low", "both") else low
    return low, high


def _ends(bad: str, limit: float) -> tuple[float, float]:
    """Below and above what a limit marks."""
    low = {"low": limit, "both": -limit}.get(bad, -math.inf)
    return low, limit if bad in ("high", "both") else math.inf


def repairs(quality: Quality) -> list[dict[str, Any]]:
    """A repair list that the marks suggest, plain JSON.

    Entries are `{"do": "solve", "frames": "1018-1025", "steps": 40, "only": "mouth", "reason": …}`
    without `only` where more than one part is wrong, and `{"do": "interpolate", "frames": …,
    "reason": …}` for frames that jump. Frames without a face, and what no solve mends, are left to
    people.

    Ranges reach `MARGIN` frames beyond the marked ones, as far as the shot does. The low-pass over
    time mixed those frames with the wrong ones, and a repair leaves what it does not name as it
    is: repaired alone, one frame would pop.
    """
    asked: list[tuple[int, str]] = []  # index of a frame, and what is to be done
    reasons: dict[int, list[str]] = {}
    solvable = {*FrameState} - {*_STATES, FrameState.PENDING}
    for i, number in enumerate(quality.numbers):
        here = [m for m in quality.marks if m.number == number and m.measure in MEASURES]
        kinds = {MEASURES[m.measure].repair for m in here} - {""}
        reasons[i] = [m.reason.partition(" (")[0] for m in here if MEASURES[m.measure].repair]
        follow = kinds - {"interpolate"}
        if follow and quality.state[i] in solvable:
            asked.append((i, "all" if len(follow) > 1 else follow.pop()))
        elif kinds == {"interpolate"}:
            asked.append((i, "interpolate"))
    wrong = {i for i, _ in asked}
    shot = np.cumsum(quality.cut)

    def run(item: tuple[int, tuple[int, str]]) -> tuple[int, int, str]:
        place, (i, kind) = item
        return int(quality.numbers[i]) - place, int(shot[i]), kind

    spans: list[tuple[str, range, list[str]]] = []  # what is to be done, where, and why
    for (*_, kind), items in groupby(enumerate(asked), run):
        rows = [i for _, (i, _) in items]
        inside = np.flatnonzero(shot == shot[rows[0]])
        # Interpolation needs a frame on either side.
        first, last = inside[[0, -1]] + ([1, -1] if kind == "interpolate" else [0, 0])
        too_long = kind == "interpolate" and len(rows) > _LONGEST
        if too_long or not first <= rows[0] <= rows[-1] <= last:
            continue
        begin, end = rows[0], rows[-1]
        for _ in range(MARGIN):  # what is to be done to other frames stays theirs
            begin -= begin > first and begin - 1 not in wrong
            end += end < last and end + 1 not in wrong
        wide = range(begin, end + 1)
        why = [reason for i in rows for reason in reasons[i]]
        if spans and spans[-1][0] == kind and wide.start < spans[-1][1].stop:
            _, before, said = spans.pop()
            wide, why = range(before.start, wide.stop), said + why
        spans.append((kind, wide, why))
    entries: list[dict[str, Any]] = []
    for kind, wide, why in spans:
        entry: dict[str, Any] = {
            "do": "interpolate" if kind == "interpolate" else "solve",
            "frames": format_numbers(quality.numbers[wide.start : wide.stop].tolist()),
        }
        if kind != "interpolate":
            entry |= {"steps": SOLVE_STEPS} | ({} if kind == "all" else {"only": kind})
        entries.append({**entry, "reason": "; ".join(dict.fromkeys(why))})
    return entries


# -- figures -------------------------------------------------------------------------------------


def summary(quality: Quality) -> dict[str, Any]:
    """The shot in figures: the paper's Table 1, and what a person asks for first."""

    def mean(name: str) -> float | None:
        values = quality.measures[name]
        known = values[np.isfinite(values)]
        return round(float(known.mean()), 4) if len(known) else None

    marked = quality.marked
    driver, result = quality.jitter
    return {
        "frames": len(quality.numbers),
        "range": format_numbers(quality.numbers.tolist()),
        "marked": len(marked),
        "worst": marked[:1],
        "ID": mean("identity"),
        "APD": mean("pose_distance"),
        "AED": mean("expression_distance"),
        "NIQE": mean("niqe"),
        "landmarks": mean("landmarks"),
        "jitter": round(result / driver, 3) if driver > 0 else None,
    }


def plain(quality: Quality) -> dict[str, Any]:
    """Everything but the pictures, as JSON values; null where there is no number."""

    def numbers(values: np.ndarray) -> list[float | None]:
        return [round(float(v), 6) if math.isfinite(v) else None for v in values]

    shown = quality.signals.items()
    return {
        "frames": quality.numbers.tolist(),
        "state": [FrameState(int(s)).name.lower() for s in quality.state],
        "measures": {name: numbers(values) for name, values in quality.measures.items()},
        "units": {name: MEASURES[name].unit for name in quality.measures},
        "titles": {name: MEASURES[name].title for name in quality.measures},
        "limits": {name: numbers(np.array(pair)) for name, pair in quality.bounds.items()},
        "signals": {n: {"driver": numbers(a), "result": numbers(b)} for n, (a, b) in shown},
        "marks": [
            {
                "frame": m.number,
                "measure": m.measure,
                "value": m.value,
                "limit": m.limit,
                "reason": m.reason,
            }
            for m in quality.marks
        ],
        "metrics": dict(quality.metrics),
        "notes": list(quality.notes),
        "summary": summary(quality),
    }


def as_csv(quality: Quality) -> str:
    """A line per frame: its number, its state, every measure, and why it is marked."""
    text = io.StringIO()
    out = csv.writer(text)
    titles = [f"{n} ({m.unit})" if m.unit else n for n, m in MEASURES.items()]
    out.writerow(["frame", "state", *titles, "marks"])
    for i, number in enumerate(quality.numbers):
        values = [quality.measures[name][i] for name in MEASURES]
        why = "; ".join(m.reason for m in quality.marks if m.number == number)
        state = FrameState(int(quality.state[i])).name.lower()
        out.writerow([number, state, *(f"{v:.6g}" if np.isfinite(v) else "" for v in values), why])
    return text.getvalue()


# -- cards ---------------------------------------------------------------------------------------

CARD = (448, 400)  # px, width and height
FACE_TILE = 224  # px: the card's upper part is two of them, driver and result
_STRIPS = ((RIGHT_EYE + LEFT_EYE, 1.35, 72), (OUTER_LIPS, 1.0, 104))  # points, width, height in px


def card(
    driver: Tensor | None, result: Tensor | None, driven: np.ndarray, made: np.ndarray
) -> bytes:
    """A frame for people: driver and result side by side, below them their eyes and mouths.

    Args:
        driver: `[3, R, R]` in [-1, 1], any R; None for a blank.
        result: as `driver`.
        driven: the driver's mesh `[478, 3]`, px of the 192 px crop.
        made: the result's.

    Returns:
        A JPEG of `CARD` px.
    """
    sheet = np.full((CARD[1], CARD[0], 3), 40, np.uint8)
    spans = [float(np.linalg.norm(m[263, :2] - m[33, :2])) for m in (driven, made)]
    span = np.nanmax(spans) if np.isfinite(spans).any() else 0.0
    for left, picture, mesh in ((0, driver, driven), (FACE_TILE, result, made)):
        if picture is None:
            continue
        rgb = to_bytes(picture.permute(1, 2, 0).float().cpu().numpy() / 2 + 0.5)
        size = len(rgb)
        tile = (FACE_TILE, FACE_TILE)
        kind = cv2.INTER_AREA if size > FACE_TILE else cv2.INTER_CUBIC
        sheet[:FACE_TILE, left : left + FACE_TILE] = cv2.resize(rgb, tile, interpolation=kind)
        top = FACE_TILE
        for points, width, height in _STRIPS:
            if np.isfinite(mesh).all():
                x, y = _pixels(mesh[list(points)], size).mean(0)
                # Both pictures at one scale, about the part's own middle.
                scale = FACE_TILE / (span * width * _pixels_per_unit(size))
                move = [[scale, 0, FACE_TILE / 2 - scale * x], [0, scale, height / 2 - scale * y]]
                strip = cv2.warpAffine(
                    rgb,
                    np.array(move),
                    (FACE_TILE, height),
                    flags=cv2.INTER_CUBIC,
                    borderMode=cv2.BORDER_REPLICATE,
                )
                sheet[top : top + height, left : left + FACE_TILE] = strip
            top += height
    return jpeg(sheet, 88)


def _pixels_per_unit(size: int) -> float:
    ends = _pixels(np.array([[0, 0, 0], [1, 0, 0]]), size)
    return float(ends[1, 0] - ends[0, 0])


def jpeg(rgb: np.ndarray, quality: int) -> bytes:
    """A JPEG of `[H, W, 3]` uint8."""
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality]
    return cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]), flags)[1].tobytes()
