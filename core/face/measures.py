"""Expression and pose as numbers measured on a mesh: the axes of edits and of quality checks.

All are ratios or angles, so they do not depend on the picture's size.
"""

import numpy as np

MEASURES = (
    "jaw",
    "smile",
    "skew",
    "open_r",
    "open_l",
    "lids",
    "wink",
    "gaze_x",
    "gaze_y",
    "brow",
    "yaw",
    "pitch",
    "roll",
)

# Pairs of upper and lower lid points, then the corners of the eye.
_RIGHT_LIDS = (((159, 145), (158, 153), (160, 144)), (33, 133))
_LEFT_LIDS = (((386, 374), (385, 380), (387, 373)), (362, 263))


def measure(landmarks: np.ndarray) -> dict[str, np.ndarray]:
    """Measures expression and pose.

    Args:
        landmarks: `[T, 478, 3]`, px (any scale); NaN where there is no face.

    Returns:
        For each name of `MEASURES` an array `[T]` float64. Relative to the distance of the outer
        eye corners: jaw, the gap of the inner lips; smile, the height of the mouth corners above
        the upper lip's middle; skew, the height of the subject's left mouth corner above the right
        one; brow, the height of the brows above the eye corners. Relative to the eye's width in 3D,
        which a turned head does not shorten: open_r and open_l, the opening of the subject's right
        and left eye; lids and wink, their mean, and left less right. Relative to the eye's width in
        the picture: gaze_x and gaze_y, the offset of the irises from the middle of their eyes,
        positive to the image's right and up. In degrees: yaw, pitch and roll, positive when the
        nose points to the image's right, when it points down, and clockwise on screen.
    """
    p = np.asarray(landmarks, np.float64)
    xy = p[..., :2]
    eye_line = xy[:, 263] - xy[:, 33]
    span = np.linalg.norm(p[:, 263] - p[:, 33], axis=1)
    right = eye_line / np.linalg.norm(eye_line, axis=1)[:, None]
    down = np.stack([-right[:, 1], right[:, 0]], 1)

    def along(v: np.ndarray, axis: np.ndarray) -> np.ndarray:
        return (v * axis).sum(1)

    def gaze(iris: int, a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
        corner = xy[:, b] - xy[:, a]
        width = np.linalg.norm(corner, axis=1)
        x = corner / width[:, None]
        y = np.stack([-x[:, 1], x[:, 0]], 1)
        offset = xy[:, iris] - (xy[:, a] + xy[:, b]) / 2
        return along(offset, x) / width, -along(offset, y) / width

    def opening(lids: tuple[tuple[int, int], ...], corners: tuple[int, int]) -> np.ndarray:
        gaps = [np.linalg.norm(xy[:, top] - xy[:, bottom], axis=1) for top, bottom in lids]
        return np.mean(gaps, 0) / np.linalg.norm(p[:, corners[0]] - p[:, corners[1]], axis=1)

    open_r, open_l = opening(*_RIGHT_LIDS), opening(*_LEFT_LIDS)
    gazes = np.array([gaze(468, 33, 133), gaze(473, 362, 263)]).mean(0)
    normal = np.cross(p[:, 263] - p[:, 33], p[:, 152] - p[:, 10])
    corners = (xy[:, 61] + xy[:, 291]) / 2
    brows = (xy[:, 105] + xy[:, 334]) / 2
    eyes = (xy[:, 33] + xy[:, 263]) / 2
    return {
        "jaw": np.linalg.norm(p[:, 13] - p[:, 14], axis=1) / span,
        "smile": along(xy[:, 0] - corners, down) / span,
        "skew": along(xy[:, 61] - xy[:, 291], down) / span,
        "open_r": open_r,
        "open_l": open_l,
        "lids": (open_r + open_l) / 2,
        "wink": open_l - open_r,
        "gaze_x": gazes[0],
        "gaze_y": gazes[1],
        "brow": along(eyes - brows, down) / span,
        "yaw": np.degrees(np.arctan2(-normal[:, 0], np.abs(normal[:, 2]))),
        "pitch": np.degrees(np.arctan2(-normal[:, 1], np.abs(normal[:, 2]))),
        "roll": np.degrees(np.arctan2(right[:, 1], right[:, 0])),
    }
