"""The performer against MediaPipe's own landmarks, its symmetry, and the laws of its motion."""

import subprocess
import sys

import cv2
import mediapipe as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from performer_signals import GATES, draws, follow

from core.synthetic import performer
from core.synthetic.parameters import HIGH, LOW, MOTION
from core.synthetic.performer import INDEX, PARAMETERS, render

P = len(PARAMETERS)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def with_(**values: float) -> np.ndarray:
    p = performer.neutral()
    for name, value in values.items():
        p[INDEX[name]] = value
    return p


def test_mediapipe_finds_and_follows_the_face():
    """500 random draws over everything that varies."""
    found, correlation = follow(draws(500, seed=1))
    assert found >= 0.98
    assert not {name: correlation[name] for name, low in GATES.items() if correlation[name] < low}
    assert min(correlation["pitch"], correlation["roll"]) > 0.85
    for name in ("smile", "brow_raise", "mouth_skew"):
        assert correlation[name] > 0.4, name


def test_analytic_landmarks_lie_on_mediapipes():
    """Within 8 % of the distance between the eyes, on faces turned up to 40 degrees."""
    mesh = mp.solutions.face_mesh.FaceMesh(static_image_mode=True, refine_landmarks=True)
    worst = {}
    for p in draws(40, seed=5):
        faces = mesh.process(render(p)).multi_face_landmarks
        if not faces:
            continue
        there = np.array([(q.x, q.y) for q in faces[0].landmark])
        ours = performer.landmarks(p)
        scale = np.linalg.norm(ours["eye_l"] - ours["eye_r"]) / np.cos(np.radians(p[INDEX["yaw"]]))
        for name, point in {
            "mouth_l": there[291],
            "mouth_r": there[61],
            "chin": there[152],
            "eye_r": there[[33, 133]].mean(0),
            "eye_l": there[[362, 263]].mean(0),
        }.items():
            worst.setdefault(name, []).append(np.linalg.norm(ours[name] - point) / scale)
    mesh.close()
    limits = {"mouth_l": 0.08, "mouth_r": 0.08, "chin": 0.12, "eye_l": 0.06, "eye_r": 0.06}
    medians = {name: float(np.median(v)) for name, v in worst.items()}
    assert all(medians[name] <= limits[name] for name in limits), medians


def test_mirrored_parameters_mirror_the_picture():
    for p in draws(12, seed=3):
        picture, twin = render(p), render(performer.mirror(p))
        assert psnr(twin, picture[:, ::-1]) > 40
    q = draws(1, seed=4)[0]
    assert (performer.mirror(performer.mirror(q)) == q).all()


def test_same_parameters_give_the_same_bytes_in_any_process():
    p = draws(1, seed=8)[0]
    code = (
        "import sys, numpy as np, hashlib; from core.synthetic.performer import render;"
        "p = np.frombuffer(bytes.fromhex(sys.argv[1]));"
        "print(hashlib.sha256(render(p).tobytes()).hexdigest())"
    )
    out = [
        subprocess.run(
            [sys.executable, "-c", code, p.tobytes().hex()],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for _ in range(2)
    ]
    assert out[0] == out[1]
    assert (render(p) == render(p.copy())).all()


@pytest.mark.parametrize("size", [64, 128, 512, 1024])
def test_sizes_show_the_same_picture(size):
    p = draws(1, seed=2)[0]
    reference = render(p, 256)
    shown = cv2.resize(render(p, size), (256, 256), interpolation=cv2.INTER_AREA)
    if size < 256:
        reference = cv2.resize(reference, (size, size), interpolation=cv2.INTER_AREA)
        shown = render(p, size)
    assert psnr(shown, reference) > 30


def test_every_parameter_shows_and_small_steps_change_little():
    """Each parameter changes the picture, and a hundredth of its range changes it far less than
    half of it does: a generator can only be regressed on what varies smoothly."""
    base = with_(
        hair_grey=0.3,
        hair_amount=0.8,
        hair_long=0.4,
        hair_fringe=0.4,
        hair_curl=0.4,
        freckles=0.4,
        glasses=0.7,
        beard=0.5,
        moustache=0.5,
        bg_clutter=0.6,
        brow_raise=0.2,
        lip_sat=0.5,
        age=0.5,
        jaw=0.3,
    )
    still = render(base, 128).astype(float)
    for i, parameter in enumerate(PARAMETERS):
        span = parameter.high - parameter.low
        sign = 1 if base[i] < parameter.low + 0.5 * span else -1
        error = []
        for step in (0.01, 0.5):
            p = base.copy()
            p[i] += sign * step * span
            error.append(np.abs(render(p, 128) - still).mean())
        assert error[1] > 0.008, parameter.name
        assert error[0] < 0.2 * error[1] + 0.02, (parameter.name, error)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float64, (2, P), elements=st.floats(-6, 6)))
def test_normals_map_into_bounds_monotonically(z):
    low, high = np.minimum(*z), np.maximum(*z)
    a, b = performer.from_normal(low), performer.from_normal(high)
    assert (a >= LOW - 1e-12).all()
    assert (b <= HIGH + 1e-12).all()
    assert (a <= b).all()


@settings(max_examples=12, deadline=None)
@given(hnp.arrays(np.float64, P, elements=st.floats(-8, 8)))
def test_any_normals_render(z):
    """Corners of the parameter box included: no NaN reaches the display table."""
    picture = render(performer.from_normal(z), 64, 1)
    assert picture.shape == (64, 64, 3)
    assert picture.std() > 3


def test_resting_faces_are_common():
    p = draws(4000, seed=1)
    for name in ("blink_l", "blink_r"):
        assert (p[:, INDEX[name]] == 0).mean() > 0.4
    assert (p[:, INDEX["jaw"]] == 0).mean() > 0.2


def _episodes(curve: np.ndarray, level: float) -> int:
    """How often a curve rises above a level."""
    above = curve > level
    return int(above[0]) + int((above[1:] & ~above[:-1]).sum())


@pytest.mark.parametrize(("frames", "fps"), [(750, 30), (600, 24), (240, 24)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_self_scan_holds_each_rare_expression_once(frames, fps, seed):
    scan = performer.self_scan(performer.random_identity(seed), frames, fps, seed)
    assert scan.shape == (frames, P)
    assert ((scan >= LOW) & (scan <= HIGH)).all()
    winks = np.abs(scan[:, INDEX["blink_l"]] - scan[:, INDEX["blink_r"]])
    assert _episodes(winks, 0.5) == 1
    assert winks.max() > 0.9
    for name in ("puff", "pucker"):
        assert _episodes(scan[:, INDEX[name]], 0.5) == 1
    assert scan[:, INDEX["yaw"]].max() > 28
    assert scan[:, INDEX["yaw"]].min() < -28
    for name in ("smile", "brow_raise", "jaw", "teeth"):
        assert scan[:, INDEX[name]].max() > 0.7, name
    # one identity throughout
    assert (scan[:, ~MOTION] == scan[0, ~MOTION]).all()


def test_performance_talks_at_syllable_rate_and_blinks():
    fps, seconds = 30, 40
    talk = performer.performance(performer.random_identity(1), fps * seconds, fps, seed=3)
    jaw = talk[:, INDEX["jaw"]] - talk[:, INDEX["jaw"]].mean()
    spectrum = np.abs(np.fft.rfft(jaw)) ** 2
    rate = np.fft.rfftfreq(len(jaw), 1 / fps)
    assert spectrum[(rate > 3) & (rate < 8)].sum() > 0.3 * spectrum[1:].sum()
    blinks = talk[:, INDEX["blink_l"]]
    assert 8 <= _episodes(blinks, 0.5) <= 30
    # half-closed for 60 to 250 ms
    assert 1.5 <= (blinks > 0.5).sum() / _episodes(blinks, 0.5) <= 7.5
    assert np.abs(np.diff(talk[:, INDEX["yaw"]])).max() < 4


def test_transfer_keeps_the_motion_and_swaps_the_person():
    a, b = performer.random_identity(1), performer.random_identity(2)
    talk = performer.performance(a, 30)
    other = performer.transfer(talk, b)
    assert (other[:, MOTION] == talk[:, MOTION]).all()
    assert (other[:, ~MOTION] == b[~MOTION]).all()
    assert (performer.transfer(other, a) == talk).all()


def test_bad_input_is_refused_in_words():
    p = performer.neutral()
    with pytest.raises(ValueError, match="parameters on the last axis"):
        render(p[:-1])
    with pytest.raises(ValueError, match="axes"):
        render(p[None])
    nan = p.copy()
    nan[INDEX["jaw"]] = np.nan
    with pytest.raises(ValueError, match="'jaw'"):
        render(nan)
    for size in (63, 1025):
        with pytest.raises(ValueError, match="64 to 1024"):
            render(p, size)
    with pytest.raises(ValueError, match="supersample"):
        render(p, 64, 0)
    with pytest.raises(ValueError, match="frames"):
        performer.self_scan(p, 0)
    with pytest.raises(ValueError, match="fps"):
        performer.performance(p, 10, 0)


def test_pinned_points_follow_the_skin() -> None:
    """What a picture shows at them stays the same while head and jaw move."""
    still = with_(freckles=1.0, light_amb=1.0)
    pictures, places = [], []
    x, y = np.meshgrid(np.linspace(0.4, 0.6, 16), np.linspace(0.25, 0.7, 36))
    points = np.stack([x.ravel(), y.ravel()], 1)
    pins = performer.pin(still, points)
    for move in ({}, {"yaw": 12.0, "roll": 8.0}, {"jaw": 0.4, "pitch": -8.0}):
        moved = still.copy()
        for name, value in move.items():
            moved[INDEX[name]] = value
        found, seen = performer.follow(moved, pins)
        if not move:
            assert np.abs(found[:, :2] - points).max() < 1e-3
            assert seen.mean() > 0.99
        places.append(found[:, :2])
        pictures.append(render(moved, 256).mean(-1).astype(np.float32))

    def shown(picture: np.ndarray, at: np.ndarray) -> np.ndarray:
        pixels = (at * 256 - 0.5).astype(np.float32)
        return cv2.remap(picture, pixels[None, :, 0], pixels[None, :, 1], cv2.INTER_LINEAR)[0]

    before = shown(pictures[0], places[0])
    for picture, at in zip(pictures[1:], places[1:], strict=True):
        assert np.abs(at - places[0]).max() > 0.02
        followed, unmoved = (np.corrcoef(before, shown(picture, p))[0, 1] for p in (at, places[0]))
        assert followed > 0.9 > unmoved
    outside = performer.pin(still, np.array([[0.02, 0.02]]))
    assert np.isnan(outside.weights).all()
    assert not performer.follow(still, outside)[1].any()
