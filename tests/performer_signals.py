"""What MediaPipe's landmarks say about the performer's expression and pose."""

import os

os.environ.setdefault("GLOG_minloglevel", "2")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import mediapipe as mp
import numpy as np

from core.synthetic.performer import INDEX, PARAMETERS, from_normal, render


def draws(count: int, seed: int) -> np.ndarray:
    """[count, P] random parameters over everything that the performer can vary."""
    return from_normal(np.random.default_rng(seed).standard_normal((count, len(PARAMETERS))))


def signals(points: np.ndarray) -> dict[str, float]:
    """Named measures of one face from landmarks [478, 3] in pixels."""

    def apart(a: int, b: int, axes: int = 3) -> float:
        return float(np.linalg.norm(points[a, :axes] - points[b, :axes]))

    between_eyes = apart(33, 263)
    across = points[263, :2] - points[33, :2]
    across = across / np.linalg.norm(across)
    down = np.array([-across[1], across[0]])

    def iris(centre: int, a: int, b: int) -> np.ndarray:
        axis = points[b, :2] - points[a, :2]
        width = np.linalg.norm(axis)
        axis = axis / width
        offset = points[centre, :2] - (points[a, :2] + points[b, :2]) / 2
        return np.array([offset @ axis, -offset @ np.array([-axis[1], axis[0]])]) / width

    gaze = (iris(468, 33, 133) + iris(473, 362, 263)) / 2
    normal = np.cross(points[263] - points[33], points[152] - points[10])
    lids_r = sum(apart(a, b, 2) for a, b in ((159, 145), (158, 153), (160, 144))) / 3
    lids_l = sum(apart(a, b, 2) for a, b in ((386, 374), (385, 380), (387, 373))) / 3
    corners = points[[61, 291], :2]
    return {
        "jaw": apart(13, 14) / between_eyes,
        "blink_l": -lids_l / apart(362, 263),
        "blink_r": -lids_r / apart(33, 133),
        "gaze_x": float(gaze[0]),
        "gaze_y": float(gaze[1]),
        "yaw": -float(np.degrees(np.arctan2(normal[0], abs(normal[2])))),
        "pitch": -float(np.degrees(np.arctan2(normal[1], abs(normal[2])))),
        "roll": -float(np.degrees(np.arctan2(across[1], across[0]))),
        "smile": -float((corners.mean(0) - points[0, :2]) @ down) / between_eyes,
        "mouth_skew": -float((corners[1] - corners[0]) @ down) / between_eyes,
        "brow_raise": float((points[[33, 263], :2].mean(0) - points[[105, 334], :2].mean(0)) @ down)
        / between_eyes,
    }


def follow(params: np.ndarray, size: int = 256) -> tuple[float, dict[str, float]]:
    """Share of pictures in which MediaPipe finds a face, and each measure's correlation with its
    parameter. Gaze counts where both eyes are at least half open."""
    mesh = mp.solutions.face_mesh.FaceMesh(
        static_image_mode=True, refine_landmarks=True, max_num_faces=1)
    found, seen = [], []
    for p in params:
        faces = mesh.process(render(p, size)).multi_face_landmarks
        if faces:
            seen.append(signals(np.array([(q.x, q.y, q.z) for q in faces[0].landmark]) * size))
            found.append(p)
    mesh.close()
    kept = np.array(found)
    is_open = (kept[:, INDEX["blink_l"]] < 0.5) & (kept[:, INDEX["blink_r"]] < 0.5)
    correlation = {}
    for name in seen[0]:
        rows = is_open if name.startswith("gaze") else np.ones(len(kept), bool)
        measured = np.array([s[name] for s in seen])
        correlation[name] = float(np.corrcoef(measured[rows], kept[rows, INDEX[name]])[0, 1])
    return len(found) / len(params), correlation
