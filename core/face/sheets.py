"""Pictures of tracked faces: overlays of the mesh, and contact sheets of a clip."""

import cv2
import numpy as np
import torch

from core.base.sampling import evenly_spaced
from core.face import alignment, keypoints
from core.face.tracking import FaceState, FaceTrack
from core.media.clip import Clip
from core.media.contact_sheet import contact_sheet
from core.media.read import read_network_frames
from core.media.write import to_bytes

# RGB.
_RED, _GREEN, _BLUE, _YELLOW = (255, 70, 60), (70, 230, 90), (90, 160, 255), (250, 220, 70)


def draw_face(picture: np.ndarray, landmarks: np.ndarray, quad: np.ndarray | None) -> np.ndarray:
    """Draws the mesh's contours and irises, and the aligned square, on a copy of a picture.

    Args:
        picture: `[H, W, 3]` uint8.
        landmarks: `[478, 2 or 3]` px of the picture; NaN draws no mesh.
        quad: `[4, 2]` px of the picture; None or NaN draws no square. In both arguments pixel
            centres are whole numbers.

    Returns:
        `[H, W, 3]` uint8.
    """
    picture = np.ascontiguousarray(picture).copy()
    if quad is not None and np.isfinite(quad).all():
        _line(picture, quad, _BLUE)
        _line(picture, quad[[0, 3]], _RED)  # the square's top
    if np.isfinite(landmarks).all():
        for ring, colour in (
            (keypoints.FACE_OVAL, _GREEN),
            (keypoints.RIGHT_EYE, _YELLOW),
            (keypoints.LEFT_EYE, _YELLOW),
            (keypoints.OUTER_LIPS, _RED),
            (keypoints.INNER_LIPS, _RED),
            (keypoints.RIGHT_IRIS[1:], _BLUE),
            (keypoints.LEFT_IRIS[1:], _BLUE),
        ):
            _line(picture, landmarks[[*ring], :2], colour)
        for brow in (keypoints.RIGHT_EYEBROW, keypoints.LEFT_EYEBROW):
            _line(picture, landmarks[[*brow[:5]], :2], _GREEN, closed=False)
    return picture


def _line(
    picture: np.ndarray, points: np.ndarray, colour: tuple[int, int, int], closed: bool = True
) -> None:
    fixed = np.round(points * 16).astype(np.int32)[None]  # cv2's fixed-point coordinates
    cv2.polylines(picture, fixed, closed, colour, 1, cv2.LINE_AA, shift=4)


def track_sheet(clip: Clip, track: FaceTrack, count: int = 24, tile: int = 256) -> np.ndarray:
    """Lays out frames of a tracked clip, evenly spaced: plate with overlay, and aligned face.

    Args:
        clip: the clip that was tracked.
        track: its track.
        count: number of frames.
        tile: height of a picture in the sheet, px.

    Returns:
        `[H, W, 3]` uint8, labelled with frame number, state and score.
    """
    quads = alignment.smooth_quads(
        alignment.ffhq_quads(track.landmarks, clip.pixel_aspect), track.numbers, track.cut
    )
    scale = np.array([clip.pixel_aspect, 1]) * tile / clip.height
    width = max(round(clip.width * scale[0]), 1)
    chosen = evenly_spaced(len(track.numbers), count)
    pictures, labels = [], []
    frames = read_network_frames(clip, [int(track.numbers[i]) for i in chosen])
    for i, frame in zip(chosen, frames, strict=True):
        plate = to_bytes(cv2.resize(frame.srgb, (width, tile), interpolation=cv2.INTER_AREA))
        landmarks = (track.landmarks[i, :, :2] + 0.5) * scale - 0.5
        plate = draw_face(plate, landmarks, quads[i] * scale - 0.5)
        face = np.full((tile, tile, 3), 24, np.uint8)
        if np.isfinite(quads[i]).all():
            image = torch.from_numpy(frame.srgb).permute(2, 0, 1)[None]
            crop = alignment.warp(image, torch.from_numpy(quads[i])[None], tile)[0]
            face = to_bytes(crop.permute(1, 2, 0).numpy())
        pictures.append(np.hstack([plate, face]))
        state = FaceState(int(track.state[i])).name.lower()
        labels.append(f"{frame.number} {state} {track.score[i]:.2f}")
    return contact_sheet(pictures, labels, columns=4 if width <= tile * 1.5 else 3)
