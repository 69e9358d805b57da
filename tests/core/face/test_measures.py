"""Measures of a face, against faces turned and changed in known ways."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.face.measures import MEASURES, measure

# A stylised face looking at the camera: x right, y down, z away from the camera.
POINTS = {
    33: (-45, 0, 0), 133: (-15, 0, 0), 362: (15, 0, 0), 263: (45, 0, 0),
    159: (-30, -5, 0), 145: (-30, 5, 0), 386: (30, -4, 0), 374: (30, 4, 0),
    158: (-24, -5, 0), 153: (-24, 5, 0), 160: (-36, -5, 0), 144: (-36, 5, 0),
    385: (24, -4, 0), 380: (24, 4, 0), 387: (36, -4, 0), 373: (36, 4, 0),
    468: (-30, 0, 0), 473: (30, 0, 0), 105: (-32, -20, 0), 334: (32, -20, 0),
    61: (-22, 60, 0), 291: (22, 60, 0), 0: (0, 52, 0), 13: (0, 57, 0), 14: (0, 66, 0),
    10: (0, -70, 0), 152: (0, 110, 0),
}  # fmt: skip


def face(**moved: tuple[float, float, float]) -> np.ndarray:
    points = np.zeros((1, 478, 3))
    for i, xyz in POINTS.items():
        points[0, i] = np.add(xyz, moved.get(f"p{i}", (0, 0, 0)))
    return points


def test_of_a_known_face() -> None:
    m = {k: float(v[0]) for k, v in measure(face()).items()}
    assert tuple(m) == MEASURES
    assert m["jaw"] == pytest.approx(9 / 90)
    assert m["smile"] == pytest.approx(-8 / 90)
    assert m["open_r"] == pytest.approx(10 / 30)
    assert m["open_l"] == pytest.approx(8 / 30)
    assert m["lids"] == pytest.approx(9 / 30)
    assert m["wink"] == pytest.approx(-2 / 30)
    assert m["brow"] == pytest.approx(20 / 90)
    for name in ("skew", "gaze_x", "gaze_y", "yaw", "pitch", "roll"):
        assert m[name] == pytest.approx(0)


def test_signs() -> None:
    looks = measure(face(p468=(3, -2, 0), p473=(3, -2, 0)))
    assert looks["gaze_x"][0] == pytest.approx(0.1)
    assert looks["gaze_y"][0] == pytest.approx(2 / 30)
    assert measure(face(p291=(0, -9, 0)))["skew"][0] == pytest.approx(0.1)
    smiles = measure(face(p61=(0, -9, 0), p291=(0, -9, 0)))
    assert smiles["smile"][0] > measure(face())["smile"][0]


@settings(deadline=None)
@given(st.floats(-40, 40))
def test_angles_of_a_turned_face(degrees: float) -> None:
    a = math.radians(degrees)
    c, s = math.cos(a), math.sin(a)
    # the nose is at -z: turning it to the image's right moves -z towards +x
    yaw = face() @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]]).T
    assert measure(yaw)["yaw"][0] == pytest.approx(degrees, abs=1e-6)
    pitch = face() @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]).T
    assert measure(pitch)["pitch"][0] == pytest.approx(degrees, abs=1e-6)
    roll = face() @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]).T
    assert measure(roll)["roll"][0] == pytest.approx(degrees, abs=1e-6)


@settings(deadline=None)
@given(st.floats(-1, 1), st.floats(0.2, 9), st.floats(-99, 99))
def test_expression_does_not_depend_on_roll_scale_or_place(r: float, k: float, t: float) -> None:
    c, s = math.cos(r), math.sin(r)
    moved = face() @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]).T * k + [t, -t, t]
    before, after = measure(face()), measure(moved)
    for name in set(MEASURES) - {"roll"}:
        assert after[name][0] == pytest.approx(before[name][0], abs=1e-6)


def test_no_face_has_no_measures() -> None:
    assert all(np.isnan(v).all() for v in measure(np.full((2, 478, 3), np.nan)).values())
