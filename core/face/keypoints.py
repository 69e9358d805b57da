"""Named subsets of MediaPipe's 478 face-mesh points.

Convention:
    Indices are those of MediaPipe's canonical face mesh: 468 surface points, then five points per
    iris. "Left" and "right" are the subject's own, so the subject's left eye is on the image's
    right. Tuples are in MediaPipe's drawing order, along each ring of lids or lips.

The eye, iris and lip subsets are the vertices of MediaPipe's `face_mesh_connections`. The groups
follow the paper, section 3.3 (eq. 2), except for the outer lips, which it does not use.
"""

RIGHT_EYE = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
LEFT_EYE = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)
RIGHT_IRIS = (468, 469, 470, 471, 472)  # the first is the centre
LEFT_IRIS = (473, 474, 475, 476, 477)
INNER_LIPS = (
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324,
    308, 415, 310, 311, 312, 13, 82, 81, 80, 191,
)  # fmt: skip
OUTER_LIPS = (
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375,
    291, 409, 270, 269, 267, 0, 37, 39, 40, 185,
)  # fmt: skip

# Extreme points of FACEMESH_FACE_OVAL: forehead, chin, and both sides in front of the ears.
HEAD_FRAME = (10, 152, 234, 454)

# An iris is in one group with its lids: a group of its own, made zero-mean, would lose the gaze.
GROUPS: dict[str, tuple[int, ...]] = {
    "right_eye": RIGHT_EYE + RIGHT_IRIS,
    "left_eye": LEFT_EYE + LEFT_IRIS,
    "mouth": INNER_LIPS,
    "outer_lips": OUTER_LIPS,  # not in the paper; only they show pouting lips
    "head": HEAD_FRAME,  # the only group compared in absolute position
}
KEYPOINTS: tuple[int, ...] = tuple(i for group in GROUPS.values() for i in group)  # 86 points

# Boxes of the pixel loss (paper, appendix C.2): bounding rectangles of these points.
MOUTH_BOX = OUTER_LIPS
RIGHT_EYE_BOX = RIGHT_IRIS
LEFT_EYE_BOX = LEFT_IRIS

# dlib's 68-point eye contours and outer mouth corners, from which FFHQ's alignment is computed.
DLIB_RIGHT_EYE = (33, 160, 158, 133, 153, 144)  # dlib 36..41
DLIB_LEFT_EYE = (362, 385, 387, 263, 373, 380)  # dlib 42..47
DLIB_MOUTH_CORNERS = (61, 291)  # dlib 48, 54

FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288,
    397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150, 136,
    172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
RIGHT_EYEBROW = (70, 63, 105, 66, 107, 55, 65, 52, 53, 46)
LEFT_EYEBROW = (300, 293, 334, 296, 336, 285, 295, 282, 283, 276)
