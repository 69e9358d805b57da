"""MediaPipe's own face-landmark graph, asked also for the ROI that it used."""

import os

os.environ.setdefault("GLOG_minloglevel", "2")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from typing import NamedTuple

import cv2
import numpy as np
from mediapipe.python.solution_base import SolutionBase


class Reference(NamedTuple):
    landmarks: np.ndarray  # [478 or 468, 3], picture px
    roi: np.ndarray  # [5]


class Graph:
    """One MediaPipe graph; as a video it tracks from picture to picture, else every one is new."""

    def __init__(self, attention: bool = True, video: bool = False) -> None:
        threshold = "facedetectionshortrangecpu__facedetectionshortrange__facedetection"
        self.solution = SolutionBase(
            binary_graph_path="mediapipe/modules/face_landmark/face_landmark_front_cpu.binarypb",
            side_inputs={
                "num_faces": 1,
                "with_attention": attention,
                "use_prev_landmarks": video,
            },
            calculator_params={
                f"{threshold}__TensorsToDetectionsCalculator.min_score_thresh": 0.5,
                "facelandmarkcpu__ThresholdingCalculator.threshold": 0.5,
            },
            outputs=[
                "multi_face_landmarks",
                "face_rects_from_detections",
                "face_rects_from_landmarks",
            ],
        )

    def __call__(self, image: np.ndarray) -> Reference | None:
        """Image `[H, W, 3]` uint8 RGB; the ROI is the detection's, for single pictures."""
        result = self.solution.process({"image": image})
        if result.multi_face_landmarks is None:
            return None
        height, width = image.shape[:2]
        points = result.multi_face_landmarks[0].landmark
        landmarks = np.array([[p.x * width, p.y * height, p.z * width] for p in points])
        rects = result.face_rects_from_detections or result.face_rects_from_landmarks
        q = rects[0]
        # MediaPipe keeps the ROI in single precision; a digit more would move its crop's rounding
        roi = np.float32([q.x_center, q.y_center, q.width, q.height, q.rotation])
        return Reference(landmarks, roi * np.float32([width, height, width, height, 1]))


def crop(image: np.ndarray, roi: np.ndarray, size: int) -> np.ndarray:
    """MediaPipe's CPU crop: OpenCV's perspective warp of the rotated rectangle, uint8."""
    x, y, w, h, rotation = (float(v) for v in roi)
    box = cv2.boxPoints(((x, y), (w, h), np.degrees(rotation)))
    target = np.array([[0, size], [0, 0], [size, 0], [size, size]], np.float32)
    matrix = cv2.getPerspectiveTransform(box, target)
    return cv2.warpPerspective(
        image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
