"""Which frames of a self-scan a character is trained on (paper, section 3.2 and Algorithm 1).

First the frames that cannot be used are screened out, with a reason for each; of the others a
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
BLURRED = 0.65  # a frame with less than this share of the clip's median sharpness
# Median sharpness of a clip that is out of focus. Faces in focus had .46 (soft video) to 1.1; with
# a Gaussian of 3 px in 256 over them it is .24 to .40.
_UNFOCUSED = 0.35

_CHUNK = 1 << 14  # columns multiplied in float32 before they are added up in float64
_MEMORY = 1 << 30  # bytes of features kept at a time
_BATCH = 8
# Eyes, nose and mouth in an aligned picture: left, top, right, bottom in fractions of its side.
_FACE = (0.22, 0.36, 0.78, 0.86)

RECORD = (
    "Record 20 to 30 seconds in even light, one person alone: turn the head slowly to all sides, "
    "speak, smile, open the mouth wide, look around, blink and wink."
)


class UnusableScanError(ReenactError):
    """The self-scan has too few usable frames, or they are all alike."""


# -- Algorithm 1 -------------------------------------------------------------------------------


def most_diverse(features: Tensor, count: int) -> np.ndarray:
    """Algorithm 1 on feature vectors.

    Args:
        features: `[M, D]`, whose squared Euclidean distance is the distance.
        count: as for `farthest_first`.

    Returns:
        As `farthest_first`.
    """
    return farthest_first(squared_distances(features), count)


def farthest_first(distances: np.ndarray, count: int) -> np.ndarray:
    """Greedy max-min subset (paper, Algorithm 1; Ravi et al. 1994).

    The first two elements are the farthest apart of all; then, again and again, the one whose
    nearest chosen element is farthest away. Of equals the lowest index is taken.

    Args:
        distances: `[M, M]`, symmetric, not negative.
        count: size of the subset, 2 or more; all M where there are fewer.

    Returns:
        `[min(count, M)]` int64, indices in the order in which they were chosen.

    Raises:
        ValueError: `distances` is not such a matrix, M is less than 2, or `count` is.
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
    np.fill_diagonal(distances, -1)  # below every distance: what is chosen is not chosen again
    chosen = [int(i) for i in np.unravel_index(distances.argmax(), distances.shape)]
    nearest = distances[chosen].min(0)
    while len(chosen) < min(count, size):
        chosen.append(int(nearest.argmax()))
        np.minimum(nearest, distances[chosen[-1]], out=nearest)
    return np.array(chosen, np.int64)


def squared_distances(features: Tensor) -> np.ndarray:
    """Squared Euclidean distances of feature vectors `[M, D]`, as `[M, M]` float64."""
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
    """Every picture's distance to every other by a perceptual metric.

    Features are computed once where all of them fit into `memory`. Otherwise they are kept for
    as many pictures as fit, and those of all later pictures pass by: with K at a time that costs
    about M / 2K passes over the pictures.

    Args:
        metric: the metric.
        pictures: `[M, 3, R, R]` in [-1, 1], any float type, on any device.
        memory: bytes of features that may be kept at a time.
        progress: called with pictures done and to do, each as often as it is passed by.

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

    def features(start: int, stop: int) -> Iterator[tuple[slice, Tensor]]:
        nonlocal done
        for i in range(start, stop, batch):
            rows = slice(i, min(i + batch, stop))
            yield rows, metric.features(pictures[rows].to(metric.device))
            done += rows.stop - rows.start
            progress(done, passes)

    for start in range(0, count, keep):
        stop = min(start + keep, count)
        block = kept[: stop - start]
        for rows, found in features(start, stop):
            block[rows.start - start : rows.stop - start] = found
        distances[start:stop, start:stop] = _cross(block, block, origin)
        for rows, found in features(stop, count):
            distances[start:stop, rows] = _cross(block, found, origin)
    return _symmetric(distances)


def _cross(a: Tensor, b: Tensor, origin: Tensor) -> np.ndarray:
    """Squared distances of rows of `[K, D]` to rows of `[L, D]`, as `[K, L]` float64.

    |a - b|^2 = |a|^2 + |b|^2 - 2ab loses digits where vectors are long and near each other, so
    both are taken from an `origin` `[D]` amidst them.
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

    kept: np.ndarray  # [K] int, indices into the track
    rejected: dict[int, str]  # frame number -> why it cannot be used
    sharpness: np.ndarray  # [T] share of the clip's median sharpness; NaN where there is no face
    usual: float  # that median (`face_sharpness`); NaN without any face


def screen(
    track: FaceTrack,
    pictures: Iterable[Tensor],
    plate: tuple[int, int],
    *,
    progress: Progress = lambda done, total: None,
) -> Screening:
    """Sorts out frames without a face, with a face cut off, with several faces, and blurred ones.

    Faces elsewhere in the plate do no harm; what counts is the aligned picture, which is what the
    generator learns. Blur is measured on the face, against the clip's own median.

    Args:
        track: the face through the T frames of the scan.
        pictures: the T aligned pictures, `[3, R, R]` in [-1, 1], read once and in order; those
            of frames without a face are not looked at.
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
    """[T] bool: every landmark lies in the plate; false where there is no face."""
    xy = landmarks[..., :2]  # a whole number is a pixel's centre
    return ((xy >= -0.5) & (xy <= np.array(plate) - 0.5)).all((1, 2))


def face_sharpness(picture: Tensor) -> float:
    """Fine detail of the face over its coarse detail, so that light and contrast do not count.

    Both are differences of Gaussians whose widths follow the picture's size.
    """
    rgb = picture.float().cpu().permute(1, 2, 0).numpy()
    side = len(rgb)
    left, top, right, bottom = (round(f * side) for f in _FACE)
    grey = np.ascontiguousarray(rgb.mean(2)[top:bottom, left:right])
    sigma = side / 200
    b1, b2, b4, b8 = (cv2.GaussianBlur(grey, (0, 0), sigma * k) for k in (1, 2, 4, 8))
    return float((b1 - b2).std() / ((b4 - b8).std() + 1e-6))


# What a scan should show: how far a measure must range, outliers aside, and what is missing where
# it does not.
_VARIETY = {
    "yaw": (8.0, "the head hardly turns to the sides"),
    "pitch": (5.0, "the head hardly rises and sinks"),
    "jaw": (0.06, "the mouth hardly opens"),
    "open_r": (0.15, "the eyes hardly shut"),
    "gaze_x": (0.06, "the eyes hardly look around"),
}


def check_scan(track: FaceTrack, screening: Screening, minimum: int = MIN_FRAMES) -> list[str]:
    """Whether a screened scan can make a character.

    Args:
        track: the face through the scan.
        screening: of the same scan.
        minimum: usable frames that are needed.

    Returns:
        What the scan does not show and the character will therefore not do or look well, one
        sentence each.

    Raises:
        UnusableScanError: too few usable frames, or the face is the same in all of them.
    """
    kept, total = len(screening.kept), len(track.numbers)
    if kept < minimum:
        counts = Counter(reason.split(" (")[0] for reason in screening.rejected.values())
        why = "".join(f", {n} {reason}" for reason, n in counts.most_common())
        raise UnusableScanError(
            f"Of the scan's {total} frames {kept} can be used{why}; at least {minimum} are "
            f"needed. {RECORD}"
        )
    seen = measure(track.landmarks[screening.kept])
    ranges = {name: np.subtract(*np.percentile(seen[name], (98, 2))) for name in _VARIETY}
    missing = [text for name, (least, text) in _VARIETY.items() if ranges[name] < least]
    if len(missing) == len(_VARIETY):
        raise UnusableScanError(f"The scan's frames are all alike: {', '.join(missing)}. {RECORD}")
    if screening.usual < _UNFOCUSED:
        missing.append("no frame is in focus, and the character will be as soft")
    return [f"In the scan {text}." for text in missing]


def selection_sheet(
    pictures: Tensor, numbers: Sequence[int], chosen: Sequence[int], tile: int = 96
) -> np.ndarray:
    """A contact sheet of the chosen frames, in the clip's order.

    Args:
        pictures: `[M, 3, R, R]` in [-1, 1].
        numbers: `[M]` frame numbers.
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
