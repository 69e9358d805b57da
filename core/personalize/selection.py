"""Selects the frames of a self-scan to train a character on (paper, section 3.2, Algorithm 1).

First the frames that can't be used are screened out, with a reason for each; from the others a
subset is chosen greedily, so that its frames differ from one another as much as possible.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from core.base.errors import ReenactError
from core.base.progress import Progress
from core.face.measures import measure
from core.face.network import face_detector
from core.face.perceptual import Metric
from core.face.tracking import FaceTrack
from core.media.contact_sheet import contact_sheet
from core.media.write import to_bytes

MIN_FRAMES = 16  # a scan with fewer usable frames makes no character
BLURRED = 0.65  # a frame below this share of the clip's median sharpness is blurred
# A clip of less median sharpness is out of focus. Faces in focus measured .46 (soft video) to 1.1;
# blurred by a Gaussian of 3 px in 256 they measured .24 to .40.
_UNFOCUSED = 0.35

_CHUNK = 1 << 14  # columns multiplied in float32 before they are added up in float64
_MEMORY = 1 << 30  # bytes of features kept at a time
_BATCH = 8
# Box around eyes, nose and mouth of an aligned picture: left, top, right, bottom in fractions.
_FACE = (0.22, 0.36, 0.78, 0.86)

RECORD = (
    "Record 20 to 30 seconds in even light, one person alone: turn the head slowly to all sides, "
    "speak, smile, open the mouth wide, look around, blink and wink."
)


class UnusableScanError(ReenactError):
    """The self-scan has too few usable frames, or they are all alike."""


# -- Algorithm 1 -------------------------------------------------------------------------------


def most_diverse(features: Tensor, count: int) -> np.ndarray:
    """Runs Algorithm 1 on feature vectors.

    Args:
        features: `[M, D]`; they are compared by their squared Euclidean distance.
        count: as for `farthest_first`.

    Returns:
        As `farthest_first`.
    """
    return farthest_first(squared_distances(features), count)


def farthest_first(distances: np.ndarray, count: int) -> np.ndarray:
    """Chooses a subset by greedy max-min distance (paper, Algorithm 1; Ravi et al. 1994).

    The first two elements are the farthest apart of all; each next one is the element whose nearest
    chosen element is farthest away. Ties go to the lowest index.

    Args:
        distances: `[M, M]`, symmetric, not negative.
        count: size of the subset, 2 or more; all M elements if there are fewer.

    Returns:
        `[min(count, M)]` int64, indices in the order in which they were chosen.

    Raises:
        ValueError: `distances` is no such matrix, or M or `count` is less than 2.
    """
    size = len(distances)
    if distances.shape != (size, size) or size < 2 or count < 2:
        raise ValueError(
            f"A subset of {count} by distances {distances.shape}: both need at least 2 elements, "
            "and distances a square matrix."
        )
    if not (np.isfinite(distances).all() and (distances >= 0).all()):
        raise ValueError("Distances must be finite and not negative.")
    distances = distances.copy()
    np.fill_diagonal(distances, -1)  # below every distance: nothing is chosen twice
    chosen = [int(i) for i in np.unravel_index(distances.argmax(), distances.shape)]
    nearest = distances[chosen].min(0)
    while len(chosen) < min(count, size):
        chosen.append(int(nearest.argmax()))
        np.minimum(nearest, distances[chosen[-1]], out=nearest)
    return np.array(chosen, np.int64)


def squared_distances(features: Tensor) -> np.ndarray:
    """Computes squared Euclidean distances of vectors `[M, D]`, `[M, M]` float64."""
    distances = _cross(features, features, features[0])
    return _symmetric(distances)


@torch.no_grad()
def pairwise_distances(
    metric: Metric,
    pictures: Tensor,
    *,
    memory: int = _MEMORY,
    progress: Progress = lambda done, total: None,
) -> np.ndarray:
    """Computes every picture's distance to every other by a perceptual metric.

    Features are computed once if all of them fit into `memory`. Otherwise those of K pictures, as
    many as fit, are kept at a time, and the features of all later pictures are computed again: this
    costs about M / 2K passes over the pictures.

    Args:
        metric: the metric.
        pictures: `[M, 3, R, R]` in [-1, 1], any float type, on any device.
        memory: bytes of features that may be kept at a time.
        progress: called with pictures done and to do, over all passes.

    Returns:
        `[M, M]` float64, symmetric, zero on the diagonal.
    """
    count = len(pictures)
    distances = np.zeros((count, count))
    if not count:
        return distances
    origin = metric.features(pictures[:1].to(metric.device))[0]
    keep = min(max(memory // (origin.numel() * origin.element_size()), 1), count)
    batch = min(_BATCH, keep)
    kept = origin.new_empty(keep, origin.numel())
    passes = sum(count - start for start in range(0, count, keep))
    done = 0

    def batches(start: int, stop: int) -> Iterator[tuple[slice, Tensor]]:
        nonlocal done
        for i in range(start, stop, batch):
            part = slice(i, min(i + batch, stop))
            yield part, metric.features(pictures[part].to(metric.device))
            done += part.stop - part.start
            progress(done, passes)

    for start in range(0, count, keep):
        stop = min(start + keep, count)
        block = kept[: stop - start]
        for part, features in batches(start, stop):
            block[part.start - start : part.stop - start] = features
        distances[start:stop, start:stop] = _cross(block, block, origin)
        for part, features in batches(stop, count):
            distances[start:stop, part] = _cross(block, features, origin)
    return _symmetric(distances)


def _cross(a: Tensor, b: Tensor, origin: Tensor) -> np.ndarray:
    """Computes squared distances of vectors `[K, D]` to vectors `[L, D]`, `[K, L]` float64.

    |a - b|^2 = |a|^2 + |b|^2 - 2ab loses digits if vectors are long and near each other, so both
    are taken relative to an `origin` `[D]` among them.
    """
    result = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    for i in range(0, a.shape[1], _CHUNK):
        columns = slice(i, i + _CHUNK)
        x, y = a[:, columns] - origin[columns], b[:, columns] - origin[columns]
        lengths = x.square().sum(1)[:, None].double() + y.square().sum(1).double()
        result += lengths - 2 * (x @ y.T).double()
    return result.clamp(min=0).cpu().numpy()


def _symmetric(distances: np.ndarray) -> np.ndarray:
    upper = np.triu(distances, 1)
    return upper + upper.T


# -- screening ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Screening:
    """Which frames of a scan can be used."""

    kept: np.ndarray  # [K] int64, indices into the track
    rejected: dict[int, str]  # frame number -> why it can't be used
    sharpness: np.ndarray  # [T] relative to the clip's median; NaN where there is no face
    usual: float  # that median of `face_sharpness`; NaN without any face


def screen(
    track: FaceTrack,
    pictures: Iterable[Tensor],
    plate: tuple[int, int],
    *,
    progress: Progress = lambda done, total: None,
) -> Screening:
    """Rejects frames without a face, with a face cut off, with several faces, and blurred ones.

    Faces elsewhere in the plate do no harm: only the aligned picture counts, which is what the
    generator learns. Blur is measured on the face, against the clip's own median.

    Args:
        track: the face through the T frames of the scan.
        pictures: the T aligned pictures, `[3, R, R]` in [-1, 1], read once and in order; those
            of frames without a face are ignored.
        plate: width and height of the frames that were tracked, px.
        progress: called with frames done and to do.

    Raises:
        ValueError: not as many pictures as tracked frames.
    """
    reasons: dict[int, str] = {}  # by index
    sharpness = np.full(len(track.numbers), np.nan)
    inside = _inside(track.landmarks, plate)
    for i, picture in zip(range(len(track.numbers)), pictures, strict=True):
        if not track.found[i]:
            reasons[i] = "no face"
        else:
            sharpness[i] = face_sharpness(picture)
            faces = len(face_detector(str(picture.device))(picture[None].float() / 2 + 0.5).score)
            if not inside[i]:
                reasons[i] = "face cut off by the edge of the frame"
            elif faces > 1:
                reasons[i] = f"{faces} faces"
        progress(i + 1, len(track.numbers))
    usual = float(np.nanmedian(sharpness)) if track.found.any() else np.nan
    sharpness /= usual
    for i in np.flatnonzero(sharpness < BLURRED):
        reasons.setdefault(int(i), f"blurred ({sharpness[i]:.0%} of the clip's usual sharpness)")
    return Screening(
        kept=np.array([i for i in range(len(sharpness)) if i not in reasons], np.int64),
        rejected={int(track.numbers[i]): reasons[i] for i in sorted(reasons)},
        sharpness=sharpness,
        usual=usual,
    )


def _inside(landmarks: np.ndarray, plate: tuple[int, int]) -> np.ndarray:
    """Whether every landmark lies in the plate, `[T]` bool; False where there is no face."""
    xy = landmarks[..., :2]  # a whole number is a pixel's centre
    return ((xy >= -0.5) & (xy <= np.array(plate) - 0.5)).all((1, 2))


def face_sharpness(picture: Tensor) -> float:
    """Measures sharpness: fine detail of the face over coarse, so light and contrast don't count.

    Both are standard deviations of differences of Gaussians, whose widths follow the picture's
    size.

    Args:
        picture: `[3, R, R]` in [-1, 1], aligned.

    Returns:
        0 without detail; .5 to 1 for a face in focus.
    """
    rgb = picture.float().cpu().permute(1, 2, 0).numpy()
    side = len(rgb)
    left, top, right, bottom = (round(f * side) for f in _FACE)
    grey = np.ascontiguousarray(rgb.mean(2)[top:bottom, left:right])
    sigma = side / 200
    b1, b2, b4, b8 = (cv2.GaussianBlur(grey, (0, 0), sigma * k) for k in (1, 2, 4, 8))
    return float((b1 - b2).std() / ((b4 - b8).std() + 1e-6))


# What a scan should show: the least range of a measure, outliers aside, and the advice if it is
# smaller.
_VARIETY = {
    "yaw": (8.0, "the head hardly turns to the sides"),
    "pitch": (5.0, "the head hardly rises and sinks"),
    "jaw": (0.06, "the mouth hardly opens"),
    "open_r": (0.15, "the eyes hardly shut"),
    "gaze_x": (0.06, "the eyes hardly look around"),
}


def check_scan(track: FaceTrack, screening: Screening, minimum: int = MIN_FRAMES) -> list[str]:
    """Checks whether a screened scan can make a character.

    Args:
        track: the face through the scan.
        screening: of the same scan.
        minimum: usable frames that are needed.

    Returns:
        What the scan lacks and the character will therefore not do well, one sentence each.

    Raises:
        UnusableScanError: too few usable frames, or the face is the same in all of them.
    """
    kept, total = len(screening.kept), len(track.numbers)
    if kept < minimum:
        counts = Counter(reason.split(" (")[0] for reason in screening.rejected.values())
        why = ", ".join(f"{reason}: {n}" for reason, n in counts.most_common())
        raise UnusableScanError(
            f"Of the scan's {total} frames {kept} can be used{why and f' ({why})'}; at least "
            f"{minimum} are needed. {RECORD}"
        )
    measures = measure(track.landmarks[screening.kept])
    ranges = {name: np.subtract(*np.percentile(measures[name], (98, 2))) for name in _VARIETY}
    missing = [text for name, (least, text) in _VARIETY.items() if ranges[name] < least]
    if len(missing) == len(_VARIETY):
        raise UnusableScanError(f"The scan's frames are all alike: {', '.join(missing)}. {RECORD}")
    if screening.usual < _UNFOCUSED:
        missing.append("no frame is in focus, and the character will be as soft")
    return [f"In the scan {text}." for text in missing]


def selection_sheet(
    pictures: Tensor, numbers: Sequence[int], chosen: Sequence[int], tile: int = 96
) -> np.ndarray:
    """Makes a contact sheet of the chosen frames, in the clip's order.

    Args:
        pictures: `[M, 3, R, R]` in [-1, 1].
        numbers: M frame numbers.
        chosen: indices into both, in the order in which they were chosen.
        tile: side of a picture in the sheet, px.

    Returns:
        `[H, W, 3]` uint8, each picture labelled with its frame number and its rank.
    """
    rank = {int(index): i + 1 for i, index in enumerate(chosen)}
    tiles, labels = [], []
    for index in sorted(rank):
        rgb = pictures[index].float().cpu().permute(1, 2, 0).numpy() / 2 + 0.5
        tiles.append(to_bytes(cv2.resize(rgb, (tile, tile), interpolation=cv2.INTER_AREA)))
        labels.append(f"{numbers[index]} #{rank[index]}")
    return contact_sheet(tiles, labels, columns=16)
