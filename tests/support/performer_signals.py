"""What MediaPipe's landmarks say about the performer's expression and pose."""

import os

os.environ.setdefault("GLOG_minloglevel", "2")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import mediapipe as mp
import numpy as np

from core.face.measures import measure
from core.synthetic.performer import INDEX, PARAMETERS, from_normal, render


def draws(count: int, seed: int) -> np.ndarray:
    """[count, P] random parameters over everything that the performer can vary."""
    return from_normal(np.random.default_rng(seed).standard_normal((count, len(PARAMETERS))))


# The least correlations, over 500 draws of everything that varies.
GATES = {"jaw": 0.9, "blink_l": 0.9, "blink_r": 0.9, "gaze_x": 0.9, "gaze_y": 0.8, "yaw": 0.98}

# Parameter -> the measure that shows it, and the sign between them.
SHOWN_BY = {
    "jaw": ("jaw", 1),
    "blink_l": ("open_l", -1),
    "blink_r": ("open_r", -1),
    "gaze_x": ("gaze_x", 1),
    "gaze_y": ("gaze_y", 1),
    "yaw": ("yaw", 1),
    "pitch": ("pitch", 1),
    "roll": ("roll", -1),
    "smile": ("smile", 1),
    "mouth_skew": ("skew", 1),
    "brow_raise": ("brow", 1),
}


def correlate(landmarks: np.ndarray, params: np.ndarray) -> dict[str, float]:
    """Each measure of meshes [N, 478, 3] against its parameter [N, P]: correlations.

    Gaze counts where both eyes are at least half open.
    """
    measures = measure(landmarks)
    is_open = (params[:, INDEX["blink_l"]] < 0.5) & (params[:, INDEX["blink_r"]] < 0.5)
    correlation = {}
    for name, (shown, sign) in SHOWN_BY.items():
        rows = is_open if name.startswith("gaze") else np.ones(len(params), bool)
        r = np.corrcoef(measures[shown][rows], params[rows, INDEX[name]])[0, 1]
        correlation[name] = sign * float(r)
    return correlation


def follow(params: np.ndarray, size: int = 256) -> tuple[float, dict[str, float]]:
    """Share of pictures in which MediaPipe finds a face, and how its meshes follow."""
    mesh = mp.solutions.face_mesh.FaceMesh(
        static_image_mode=True, refine_landmarks=True, max_num_faces=1
    )
    found, seen = [], []
    for p in params:
        faces = mesh.process(render(p, size)).multi_face_landmarks
        if faces:
            seen.append(np.array([(q.x, q.y, q.z) for q in faces[0].landmark]) * size)
            found.append(p)
    mesh.close()
    return len(found) / len(params), correlate(np.stack(seen), np.array(found))
