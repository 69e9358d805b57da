"""Landmarks of generated faces: reads them from the headers of frames, and names them.

Convention:
    A frame's landmarks are MediaPipe's 478 mesh points, by index. Left and right are the person's
    own, as animators count: the left eye is on the picture's right. Coordinates are Nuke's px of
    the plate: continuous (the centre of the first pixel is 0.5), origin bottom left.
"""

from typing import Dict, List, Mapping, Optional, Tuple

from reenact import exr
from reenact.tracks import Point

Landmarks = Dict[int, List[Point]]  # by frame; frames without a face are absent

ATTRIBUTE = "reenact:landmarks"  # header attribute: x and y of each point, as text
COUNT = 478

# Points by name and index in the mesh, in the groups that the menu of ReenactComp offers.
POINT_SETS: Dict[str, Dict[str, int]] = {
    "eyes": {
        "right eye outer corner": 33,
        "right eye upper lid": 159,
        "right eye inner corner": 133,
        "right eye lower lid": 145,
        "right pupil": 468,
        "left eye outer corner": 263,
        "left eye upper lid": 386,
        "left eye inner corner": 362,
        "left eye lower lid": 374,
        "left pupil": 473,
    },
    "lips": {
        "right lip corner": 61,
        "right upper lip peak": 37,
        "upper lip top": 0,
        "left upper lip peak": 267,
        "left lip corner": 291,
        "lower lip bottom": 17,
        "upper lip inside": 13,
        "lower lip inside": 14,
    },
    "brows": {
        "right brow outer end": 70,
        "right brow middle": 105,
        "right brow inner end": 107,
        "left brow outer end": 300,
        "left brow middle": 334,
        "left brow inner end": 336,
    },
    "nose": {
        "nose bridge": 168,
        "nose tip": 1,
        "nose base": 2,
        "right nose wing": 129,
        "left nose wing": 358,
    },
    "jaw": {
        "right ear front": 234,
        "right jaw corner": 172,
        "right jaw middle": 150,
        "chin": 152,
        "left jaw middle": 379,
        "left jaw corner": 397,
        "left ear front": 454,
    },
}

FACE = "face"
# Closed outlines by the names of their shapes, each in order around its area.
OUTLINES: Dict[str, Tuple[int, ...]] = {
    FACE: (
        *(10, 297, 284, 389, 454, 361, 397, 379, 400),
        *(152, 176, 150, 172, 132, 234, 162, 54, 67),
    ),
    "lips": (61, 91, 84, 17, 314, 321, 291, 270, 267, 0, 37, 40),
    "inner_lips": (78, 88, 87, 14, 317, 318, 308, 310, 312, 13, 82, 80),
    "left_eye": (263, 249, 390, 374, 381, 382, 362, 398, 384, 386, 388, 466),
    "right_eye": (33, 7, 163, 145, 154, 155, 133, 173, 157, 159, 161, 246),
}


def named_points(choice: str) -> Dict[str, int]:
    """Returns the points of a set by name; those of all sets for any other choice."""
    every = {name: i for points in POINT_SETS.values() for name, i in points.items()}
    return POINT_SETS.get(choice, every)


def read_landmarks(files: Mapping[int, str]) -> Tuple[Landmarks, Tuple[int, int]]:
    """Reads the landmarks of frames.

    Args:
        files: the EXR of each frame. Files that don't exist are frames without a face.

    Returns:
        The landmarks by frame, and width and height of the plate, px.

    Raises:
        OSError: a file can't be read.
        ValueError: a file is no EXR, or is damaged.
    """
    found: Landmarks = {}
    size = (0, 0)
    for number, path in sorted(files.items()):
        try:
            header = exr.headers(path)[0]
        except FileNotFoundError:
            continue
        size = exr.size(header)
        points = _points(header.get(ATTRIBUTE, b""))
        if points is not None:
            found[number] = points
    return found, size


def scaled(landmarks: Landmarks, by: Tuple[float, float]) -> Landmarks:
    """Returns landmarks of a plate that is scaled in width and height."""
    return {n: [(by[0] * x, by[1] * y) for x, y in points] for n, points in landmarks.items()}


def _points(text: bytes) -> Optional[List[Point]]:
    """Returns the points that an attribute holds; None where it isn't one of landmarks."""
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        return None
    if len(numbers) != 2 * COUNT:
        return None
    return list(zip(numbers[::2], numbers[1::2]))
