"""MediaPipe's face mesh, differentiable: networks, tracking, and the named keypoints."""

from core.facemesh.network import (
    ALIGNED_ROI,
    Detections,
    FaceDetector,
    FaceMesh,
    Mesh,
    ModelsMissing,
    aligned_roi,
    crop_roi,
    face_detector,
    face_mesh,
    model_path,
    roi_from_landmarks,
    to_picture,
)
from core.facemesh.tracking import FaceState, FaceTrack, track

__all__ = [
    "ALIGNED_ROI",
    "Detections",
    "FaceDetector",
    "FaceMesh",
    "FaceState",
    "FaceTrack",
    "Mesh",
    "ModelsMissing",
    "aligned_roi",
    "crop_roi",
    "face_detector",
    "face_mesh",
    "model_path",
    "roi_from_landmarks",
    "to_picture",
    "track",
]
