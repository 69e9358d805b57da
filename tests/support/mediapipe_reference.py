"""MediaPipe's own face-landmark graph, asked also for the ROI that it used."""

import os

os.environ.setdefault("GLOG_minloglevel", "2")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from pathlib import Path
from typing import NamedTuple

import cv2
import mediapipe as mp
import numpy as np
from mediapipe.framework.formats import rect_pb2
from mediapipe.python import packet_creator, packet_getter
from mediapipe.python._framework_bindings import resource_util
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


class CropGraph:
    """MediaPipe's mesh stage alone, given a 192 px crop and told that all of it is the ROI."""

    CONFIG = """
        input_stream: "image"
        input_stream: "roi"
        input_side_packet: "attention"
        output_stream: "landmarks"
        node {
          calculator: "FaceLandmarkCpu"
          input_stream: "IMAGE:image"
          input_stream: "ROI:roi"
          input_side_packet: "WITH_ATTENTION:attention"
          output_stream: "LANDMARKS:landmarks"
        }
    """

    def __init__(self, attention: bool = True) -> None:
        # a solution would say where the models are; a bare graph must be told
        resource_util.set_resource_dir(str(Path(mp.__file__).parents[1]))
        self.graph = mp.CalculatorGraph(graph_config=self.CONFIG)
        self.time = 0
        self.landmarks: np.ndarray | None = None
        self.graph.observe_output_stream("landmarks", self._keep)
        self.graph.start_run({"attention": packet_creator.create_bool(attention)})

    def _keep(self, _name: str, packet: mp.Packet) -> None:
        points = packet_getter.get_proto(packet).landmark
        self.landmarks = np.array([[p.x, p.y, p.z] for p in points]) * 192

    def __call__(self, crop: np.ndarray) -> np.ndarray | None:
        """Landmarks [478 or 468, 3] in crop px of a crop `[192, 192, 3]` uint8, if it is a face."""
        self.landmarks, self.time = None, self.time + 1
        picture = packet_creator.create_image_frame(image_format=mp.ImageFormat.SRGB, data=crop)
        whole = rect_pb2.NormalizedRect(x_center=0.5, y_center=0.5, width=1, height=1, rotation=0)
        self.graph.add_packet_to_input_stream("image", picture.at(self.time))
        roi = packet_creator.create_proto(whole)
        self.graph.add_packet_to_input_stream("roi", roi.at(self.time))
        self.graph.wait_until_idle()
        return self.landmarks


def crop(image: np.ndarray, roi: np.ndarray, size: int) -> np.ndarray:
    """MediaPipe's CPU crop: OpenCV's perspective warp of the rotated rectangle, uint8."""
    x, y, w, h, rotation = (float(v) for v in roi)
    box = cv2.boxPoints(((x, y), (w, h), np.degrees(rotation)))
    target = np.array([[0, size], [0, 0], [size, 0], [size, size]], np.float32)
    matrix = cv2.getPerspectiveTransform(box, target)
    return cv2.warpPerspective(
        image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
