"""The metrics: LPIPS against the library itself; the embedded one against what it must tell."""

import socket
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.face.alignment import ffhq_quads, warp
from core.face.perceptual import LPIPS, Metric, MetricMissingError, lpips_metric, metric, trunk_file
from core.face.tracking import track_face
from core.synthetic import performer

EMBEDDED = metric("embedded")
ALEX = LPIPS["lpips-alex"]


@pytest.fixture(scope="module")
def lpips() -> Any:
    """The library; importing it takes seconds."""
    import torchvision_ops  # noqa: F401

    return pytest.importorskip("lpips")


@pytest.fixture(scope="module")
def alex(lpips: Any) -> Any:
    """LPIPS with the library's trained linear layers on a random trunk."""
    torch.manual_seed(3)
    return lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)


@pytest.fixture
def hub(lpips: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for torchvision's weights, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub"


def smooth_noise(count: int, size: int, seed: int = 0) -> Tensor:
    """Pictures with detail at all scales, in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, 3, size, size)
    for side in (4, 16, size):
        noise = torch.randn(count, 3, side, side, generator=generator)
        total += F.interpolate(noise, (size, size), mode="bilinear")
    return (total / 3).clamp(-1, 1)


def aligned(params: list[np.ndarray], size: int = 256) -> Tensor:
    """Performer pictures, all aligned as the first one is."""
    plates = np.stack([performer.render(p, 320) for p in params]).astype(np.float32) / 255
    quad = torch.from_numpy(ffhq_quads(track_face([(0, plates[0])]).landmarks))
    images = torch.from_numpy(plates).permute(0, 3, 1, 2)
    return warp(images, quad.expand(len(params), -1, -1), size).clamp(0, 1) * 2 - 1


def with_(params: np.ndarray, **values: float) -> np.ndarray:
    params = params.copy()
    for name, value in values.items():
        params[performer.INDEX[name]] = value
    return params


PEOPLE = [performer.random_identity(seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def faces() -> list[Tensor]:
    """Three people at rest `[1, 3, 256, 256]`."""
    return [aligned([p]) for p in PEOPLE]


def distances(base: Tensor, others: Tensor, m: Metric = EMBEDDED) -> list[float]:
    with torch.no_grad():
        return m.distance(base.expand_as(others), others).tolist()


# -- LPIPS -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 100])
def test_lpips_is_a_squared_distance_of_features(alex: Any, size: int) -> None:
    a, b = smooth_noise(4, size), smooth_noise(4, size, seed=1)
    m = lpips_metric(alex, "lpips-alex")
    with torch.no_grad():
        expected = alex(a, b).reshape(4)
        by_features = (m.features(a) - m.features(b)).double().square().sum(1)
        torch.testing.assert_close(m.distance(a, b), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(by_features.float(), expected, atol=1e-5, rtol=1e-5)
    assert expected.min() > 0.01  # there was something to compare


def test_lpips_linear_layers_are_not_negative(lpips: Any) -> None:
    """Their roots scale the features."""
    for trunk, _ in LPIPS.values():
        folder = Path(lpips.__file__).parent / "weights" / "v0.1"
        weights = torch.load(folder / f"{trunk}.pth", map_location="cpu", weights_only=True)
        assert len(weights) == 5
        assert all((w >= 0).all() for w in weights.values())


def test_lpips_gradients_are_the_librarys_where_those_exist(lpips: Any, alex: Any) -> None:
    b = smooth_noise(2, 64, seed=1)
    a = smooth_noise(2, 64).requires_grad_()
    (ours,) = torch.autograd.grad(lpips_metric(alex, "").distance(a, b).sum(), a)
    (expected,) = torch.autograd.grad(alex(a, b).sum(), a)
    torch.testing.assert_close(ours, expected, atol=1e-7, rtol=1e-3)
    # Where a trunk sees nothing at all its features are zero, and so is their gradient.
    silent = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    for bias in (p for name, p in silent.net.named_parameters() if name.endswith("bias")):
        torch.nn.init.constant_(bias, -100.0)
    (flat,) = torch.autograd.grad(lpips_metric(silent, "").distance(a, b).sum(), a)
    assert (flat == 0).all()


def test_without_trunk_weights_the_embedded_metric_runs_and_nothing_is_downloaded(
    hub: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with caplog.at_level("INFO"):
        assert metric().name == "embedded-2"
    assert "embedded-2" in caplog.text
    for name in LPIPS:
        with pytest.raises(MetricMissingError, match=trunk_file(name).name):
            metric(name)
    assert not hub.exists()


@pytest.mark.parametrize("name", ["lpips-vgg", "lpips-alex"])
def test_trunk_weights_are_taken_from_torchvisions_file(lpips: Any, hub: Path, name: str) -> None:
    """Its layer names, on random weights; VGG is preferred by itself."""
    torch.manual_seed(5)
    expected = lpips.LPIPS(net=LPIPS[name][0], pnet_rand=True, verbose=False)
    weights = {}
    for key, value in expected.net.state_dict().items():
        _, layer, kind = key.split(".")
        weights[f"features.{layer}.{kind}"] = value
    path = trunk_file(name)
    assert path.is_relative_to(hub)
    path.parent.mkdir(parents=True)
    torch.save(weights | {"classifier.6.bias": torch.zeros(1000)}, path)
    m = metric() if name == "lpips-vgg" else metric(name)
    assert m.name == name
    a, b = smooth_noise(1, 64), smooth_noise(1, 64, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(m.distance(a, b), expected(a, b).reshape(1))


@pytest.mark.parametrize("damage", ["cut", "foreign", "pickle", "other network"])
def test_damaged_trunk_weights_are_named(hub: Path, damage: str) -> None:
    path = trunk_file("lpips-alex")
    path.parent.mkdir(parents=True)
    good = {"features.0.weight": torch.zeros(64, 3, 11, 11), "features.0.bias": torch.zeros(64)}
    torch.save({"exec": print} if damage == "pickle" else good, path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "foreign":
        path.write_bytes(b"<html>404</html>")
    with pytest.raises(MetricMissingError, match=f"{path.name} is damaged"):
        metric("lpips-alex")


def test_unknown_metrics_are_named() -> None:
    with pytest.raises(MetricMissingError, match=r"ssim.*choose lpips-vgg, lpips-alex, embedded-2"):
        metric("ssim")


# -- embedded ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 101, 128, 256])
def test_features_give_the_distance(faces: list[Tensor], size: int) -> None:
    a, b = (F.interpolate(f, (size, size), mode="bilinear", antialias=True) for f in faces[:2])
    with torch.no_grad():
        difference = EMBEDDED.features(a) - EMBEDDED.features(b)
        expected = difference.double().square().sum(1).float()
        torch.testing.assert_close(EMBEDDED.distance(a, b), expected, rtol=1e-5, atol=1e-7)
        assert EMBEDDED.distance(a, a) == 0
        torch.testing.assert_close(EMBEDDED.distance(a, b), EMBEDDED.distance(b, a))
    assert 0.2 < expected < 0.6  # two people


def test_a_thousand_frames_at_128_px_fit() -> None:
    assert EMBEDDED.features(torch.zeros(1, 3, 128, 128)).shape[1] * 4 * 1000 < 1.5e9


def test_the_largest_pictures_run_and_say_the_same(faces: list[Tensor]) -> None:
    a, b = (F.interpolate(f, (1024, 1024), mode="bicubic").clamp(-1, 1) for f in faces[:2])
    large, small = distances(a, b)[0], distances(*faces[:2])[0]
    assert large == pytest.approx(small, rel=0.15)


def test_pictures_of_a_batch_do_not_touch_and_runs_repeat(faces: list[Tensor]) -> None:
    together = torch.cat(faces)
    with torch.no_grad():
        batch = EMBEDDED.features(together)
        assert torch.equal(batch, EMBEDDED.features(together))
        for i, face in enumerate(faces):
            torch.testing.assert_close(batch[i], EMBEDDED.features(face)[0], atol=1e-5, rtol=1e-4)
        fresh = metric("embedded-2").features(together)
    assert torch.equal(batch, fresh)


def blurred(face: Tensor, sigma: float) -> Tensor:
    picture = cv2.GaussianBlur(face[0].permute(1, 2, 0).numpy(), (0, 0), sigma)
    return torch.from_numpy(picture).permute(2, 0, 1)


@pytest.mark.parametrize("who", range(3))
def test_distance_grows_with_blur_shift_and_noise(faces: list[Tensor], who: int) -> None:
    face = faces[who]
    grain = torch.randn(face.shape, generator=torch.Generator().manual_seed(0))
    for worse in (
        torch.stack([blurred(face, s) for s in (0.5, 1, 2, 4, 8)]),
        torch.cat([face.roll(k, -1) for k in (1, 2, 4, 8)]),
        torch.cat([face.roll(k, -2) for k in (1, 2, 4, 8)]),
        torch.cat([face + k * grain for k in (0.02, 0.05, 0.1, 0.2)]),
    ):
        got = distances(face, worse)
        assert got == sorted(got)
        assert got[0] > 0
        assert got[-1] > 10 * got[0] or got[-1] > 0.3


@pytest.mark.parametrize(
    "change", ["gaze_x", "gaze_y", "blink", "wink", "jaw", "smile", "yaw", "pitch", "brow_raise"]
)
@pytest.mark.parametrize("who", range(3))
def test_distance_grows_with_expression_and_pose(
    faces: list[Tensor], who: int, change: str
) -> None:
    steps = (0.3, 0.6, 1.0)
    names = {"blink": ("blink_l", "blink_r"), "wink": ("blink_l",)}.get(change, (change,))
    scale = {"yaw": 15.0, "pitch": 12.0}.get(change, 1.0)
    moved = [with_(PEOPLE[who], **dict.fromkeys(names, k * scale)) for k in steps]
    got = distances(faces[who], aligned([PEOPLE[who], *moved])[1:])
    assert got == sorted(got)
    # Even the least change is more than what rounding to 8 bits does.
    bits = (faces[who] * 127.5).round() / 127.5
    assert got[0] > 1.5 * distances(faces[who], bits)[0]


def test_expressions_count_as_people_do(faces: list[Tensor]) -> None:
    """Selection is to find both poses and winks, and identities are compared at one expression."""
    for who, face in enumerate(faces):
        acts = ({"jaw": 0.6}, {"smile": 0.9}, {"blink_l": 1.0, "blink_r": 1.0}, {"gaze_x": 1.0})
        own = aligned([PEOPLE[who], *(with_(PEOPLE[who], **act) for act in acts)])[1:]
        others = torch.cat([f for i, f in enumerate(faces) if i != who])
        ratio = max(distances(face, own)) / min(distances(face, others))
        assert 0.5 < ratio < 2


@pytest.mark.parametrize("size", [64, 128])
def test_gradients_are_the_slope_of_the_distance(faces: list[Tensor], size: int) -> None:
    a, b = (F.interpolate(f, (size, size), mode="bilinear", antialias=True) for f in faces[:2])
    a.requires_grad_()
    (gradient,) = torch.autograd.grad(EMBEDDED.distance(a, b).sum(), a)
    assert gradient.isfinite().all()
    # Along the gradient itself and along a smooth direction, in which so little changes that a
    # short step would be lost in float32.
    for direction, step in ((gradient, 1e-3), (smooth_noise(1, size, seed=7), 1e-2)):
        direction = direction / direction.norm()
        with torch.no_grad():
            up, down = EMBEDDED.distance(
                torch.cat([a + step * direction, a - step * direction]), b.expand(2, -1, -1, -1)
            )
        slope = float((gradient * direction).sum())
        assert float(up - down) / (2 * step) == pytest.approx(slope, rel=0.02, abs=1e-4)


def test_gradients_are_sane_where_nothing_is_there() -> None:
    """Flat pictures, and equal ones, where norms are zero."""
    flat = torch.zeros(1, 3, 128, 128, requires_grad=True)
    (gradient,) = torch.autograd.grad(EMBEDDED.distance(flat, smooth_noise(1, 128)).sum(), flat)
    assert gradient.isfinite().all()
    assert 0 < gradient.abs().max() < 0.5
    (gradient,) = torch.autograd.grad(EMBEDDED.distance(flat, flat.detach()).sum(), flat)
    assert (gradient == 0).all()


def test_alone_as_a_loss_it_sharpens_a_blurred_picture(faces: list[Tensor]) -> None:
    target = F.interpolate(faces[0], (64, 64), mode="bilinear", antialias=True)
    start = blurred(target, 1.5)[None]
    picture = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([picture], lr=0.005)
    for _ in range(40):
        optimiser.zero_grad()
        EMBEDDED.distance(picture, target).sum().backward()
        optimiser.step()
    mended = picture.detach()
    assert distances(target, mended)[0] < 0.4 * distances(target, start)[0]
    assert (mended - target).square().mean() < 0.7 * (start - target).square().mean()


def test_wrong_pictures_are_refused() -> None:
    square = torch.zeros(1, 3, 64, 64)
    for wrong in (square[0], square[:, :1], square[..., :60], torch.zeros(1, 3, 32, 32)):
        with pytest.raises(ValueError, match="metric"):
            EMBEDDED.features(wrong)
        with pytest.raises(ValueError, match="metric"):
            EMBEDDED.distance(wrong, wrong)
    with pytest.raises(ValueError, match="two shapes"):
        EMBEDDED.distance(square, torch.zeros(1, 3, 96, 96))
