"""Detail: what it draws, what it learns, and that nothing of its training is lost."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from performer_faces import acted, aligned
from repository import ROOT, SUPPORT

from core.base.checkpoints import CheckpointMismatchError
from core.face.skin import lay_out
from core.face.surface import fit_atlas, surface_map
from core.generator import Architecture, Generator
from core.personalize import detail_training
from core.personalize.detail import (
    Detail,
    DetailInfo,
    DetailNetwork,
    DetailShape,
    draw_detailed,
    find_meshes,
)
from core.personalize.detail_training import (
    DetailSettings,
    Examples,
    keep_pictures,
    measure,
    train_detail,
)
from core.render.drawing import draw_frames
from core.synthetic.base import base_encoder, base_generator

BASE, SIZE, COUNT = 32, 64, 6
SETTINGS = DetailSettings(steps=20, batch=3, check_every=5)


def a_generator() -> Generator:
    torch.manual_seed(0)
    channels = {4: 16, 8: 16, 16: 16, 32: 8}
    generator = Generator(Architecture(BASE, channels, mapping_layers=1))
    generator.eval().requires_grad_(False)
    for name, parameter in generator.named_parameters():
        if "torgb.weight" in name:
            parameter.mul_(0.2)  # pictures well within their range
    return generator


def some_meshes() -> np.ndarray:
    """Meshes of a face that moves and turns a little: a performer's."""
    rng = np.random.default_rng(0)
    mesh = find_meshes(aligned(acted(3, {"jaw": 0.5}), 128))[0]
    moved = [mesh + np.array([*rng.normal(0, 0.02, 2), 0]) for _ in range(COUNT)]
    return np.stack(moved).astype(np.float32)


@pytest.fixture(scope="module")
def examples() -> Examples:
    """Pictures that are the generator's, with a pattern on the skin that it does not draw."""
    generator, meshes = a_generator(), some_meshes()
    torch.manual_seed(2)
    w = torch.randn(512) + 0.1 * torch.randn(COUNT, 512)  # one person
    features, generated = generator.synthesis.features(w)
    atlas = fit_atlas(meshes)
    pictures = F.interpolate(generated, (SIZE, SIZE), mode="bicubic")
    stripes = [np.sin(30 * surface_map(atlas, mesh, SIZE).skin.sum(-1)) for mesh in meshes]
    pictures = (pictures + 0.3 * torch.from_numpy(np.stack(stripes))[:, None]).clamp(-1, 1)
    return Examples(
        w,
        pictures.half().numpy(),
        features.half().numpy(),
        generated.half().numpy(),
        meshes,
        torch.ones(COUNT, 1, 16, 16),
    )


def part(examples: Examples, chosen: slice) -> Examples:
    return Examples(**{name: values[chosen] for name, values in vars(examples).items()})


def learnt(examples: Examples, folder: Path | None = None, **more: object) -> Detail:
    settings = more.pop("settings", SETTINGS)
    assert isinstance(settings, DetailSettings)
    return train_detail(
        a_generator(),
        part(examples, slice(4)),
        part(examples, slice(4, None)),
        fit_atlas(examples.meshes[:4]),
        settings,
        folder=folder,
        **more,  # type: ignore[arg-type]
    )


def same(a: Detail, b: Detail) -> bool:
    states = (a.network.state_dict(), b.network.state_dict())
    return all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_untrained_detail_adds_nothing(examples: Examples) -> None:
    generator = a_generator()
    network = DetailNetwork(DetailShape(BASE, SIZE, 8)).eval().requires_grad_(False)
    detail = Detail(network, fit_atlas(examples.meshes), DetailInfo())
    drawn = draw_detailed(generator, detail, examples.w, examples.meshes)
    plain = F.interpolate(generator.synthesis(examples.w), scale_factor=2, mode="bicubic")
    # The border is the only difference: there the picture is repeated before it is enlarged.
    assert (drawn - plain)[..., 4:-4, 4:-4].abs().max() < 1e-5


def test_what_is_on_the_skin_is_learnt_and_drawn_on_other_frames(examples: Examples) -> None:
    detail = learnt(examples, settings=replace(SETTINGS, steps=80, check_every=40))
    figures = [entry["psnr"] for entry in detail.info.losses]
    assert figures[-1] > figures[0] + 8, "dB on frames that it has not seen"
    assert detail.info.losses[0]["step"] == 0
    held_out = part(examples, slice(4, None))
    settings = replace(SETTINGS, steps=80, check_every=40)
    found = measure(a_generator(), detail, held_out, settings)
    last = {name: detail.info.losses[-1][name] for name in found}
    assert found == pytest.approx(last, abs=1e-3)


def test_detail_that_lies_elsewhere_in_each_frame_is_as_strong(examples: Examples) -> None:
    """Pixels alone are nearest to where there is none."""
    generator = a_generator()
    atlas = fit_atlas(examples.meshes)
    pictures = F.interpolate(torch.from_numpy(examples.generated).float(), (SIZE, SIZE))
    for i, mesh in enumerate(examples.meshes):
        skin = torch.from_numpy(surface_map(atlas, mesh, SIZE).skin.sum(-1))
        pictures[i] += 0.15 * torch.sin(150 * skin + 1.3 * i)
    moving = replace(examples, pictures=pictures.clamp(-1, 1).half().numpy())

    def energy(of: torch.Tensor) -> float:
        inner = of[..., 20:-20, 20:-20]
        return float((inner - F.avg_pool2d(inner, 5, 1, 2)).square().mean().sqrt())

    def strength(weight: float) -> float:
        settings = replace(SETTINGS, steps=60, check_every=60, strength=weight)
        detail = learnt(moving, settings=settings)
        drawn = draw_detailed(generator, detail, moving.w, moving.meshes)
        return energy(drawn) / energy(torch.from_numpy(moving.pictures).float())

    without, with_it = strength(0), strength(SETTINGS.strength)
    assert without < 0.5, "as strong as the generator's own"
    assert 0.7 < with_it < 1.1, without


def test_a_batch_is_drawn_as_each_frame_alone(examples: Examples) -> None:
    detail, generator = learnt(examples), a_generator()
    together = draw_detailed(generator, detail, examples.w, examples.meshes)
    for i in range(len(together)):
        one = slice(i, i + 1)
        alone = draw_detailed(generator, detail, examples.w[one], examples.meshes[one])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-4)
    layers = generator.architecture.num_ws
    wide = examples.w[:, None].expand(-1, layers, -1)
    torch.testing.assert_close(draw_detailed(generator, detail, wide, examples.meshes), together)


def test_a_break_changes_nothing(examples: Examples, tmp_path: Path) -> None:
    whole = learnt(examples)

    def stop(done: float, total: float, **figures: float) -> None:
        if done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learnt(examples, tmp_path, progress=stop)
    steps: list[float] = []
    again = learnt(examples, tmp_path, progress=lambda done, total, **figures: steps.append(done))
    assert steps[0] == 13
    assert same(whole, again)
    assert [e["psnr"] for e in again.info.losses] == [e["psnr"] for e in whole.info.losses]


def test_it_ends_early_as_asked_and_goes_on(examples: Examples, tmp_path: Path) -> None:
    early = learnt(examples, tmp_path, end_after=lambda: 8)
    assert early.info.steps == 8
    assert same(learnt(examples, tmp_path), learnt(examples))


def test_other_examples_are_not_taken_for_these(examples: Examples, tmp_path: Path) -> None:
    learnt(examples, tmp_path, end_after=lambda: 5)
    with pytest.raises(CheckpointMismatchError):
        learnt(replace(examples, w=examples.w + 1), tmp_path)


def test_it_ends_when_held_out_frames_gain_no_more(
    examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detail_training, "measure", lambda *_: {"held_out": 0.1, "psnr": 30.0})
    detail = learnt(examples, settings=replace(SETTINGS, steps=200))
    assert detail.info.steps == 5 * (3 + 2)


SCRIPT = """
import sys, torch
sys.path[:0] = {paths}
torch.set_num_threads(1)
import core.base.training
core.base.training.CHECKPOINT_SECONDS = 0.0
import test_detail
def told(done, total, **figures):
    print(done, flush=True)
found = torch.load({examples!r}, weights_only=False)
print(test_detail.learnt(test_detail.Examples(**found), {folder!r}, progress=told).digest())
"""


def test_a_killed_run_goes_on_to_the_same_bits(examples: Examples, tmp_path: Path) -> None:
    torch.save(vars(examples), tmp_path / "examples.pt")

    def start(folder: str) -> subprocess.Popen[str]:
        """Both runs have processes of their own: kernels differ with the threads there were."""
        code = SCRIPT.format(
            paths=[str(SUPPORT), str(Path(__file__).parent), str(ROOT)],
            examples=str(tmp_path / "examples.pt"),
            folder=str(tmp_path / folder),
        )
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)

    with start("whole") as process, start("parts") as killed:
        assert killed.stdout is not None
        for line in killed.stdout:
            if float(line) >= 8:
                break
        killed.kill()
        *_, whole = process.communicate()[0].split()
    with start("parts") as process:
        first, *_, parts = process.communicate()[0].split()
    assert float(first) > 8
    assert parts == whole


def test_pictures_are_kept_in_a_file(tmp_path: Path) -> None:
    pictures = torch.rand(3, 3, 8, 8) * 2 - 1
    order = np.array([2, 0, 1])
    kept = keep_pictures(iter(pictures), 3, 8, tmp_path / "a" / "p.npy", order)
    for i, place in enumerate(order):
        assert np.array_equal(kept[place], pictures[i].half().numpy())
    assert np.array_equal(np.load(tmp_path / "a" / "p.npy"), kept)


FULL = """
import sys, torch
from pathlib import Path
sys.path[:0] = {paths}
from core.base.checkpoints import CheckpointNotSavedError
from core.personalize.detail_training import keep_pictures
try:
    keep_pictures(iter(torch.zeros(8, 3, 512, 512)), 8, 512, Path({path!r}))
except CheckpointNotSavedError as error:
    print(error)
"""


def test_a_full_disk_is_said_and_kills_nothing(tmp_path: Path) -> None:
    """A page that has no room on the disk would end the process when it is written."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        code = FULL.format(paths=[str(ROOT)], path=str(tmp_path / "work" / "p.npy"))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        left = [*(tmp_path / "work").iterdir()]
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
    assert done.returncode == 0, done.stderr
    assert "No space left on device. Free some space" in done.stdout
    assert left == []


@pytest.mark.parametrize("shape", [(128, 128), (256, 128), (100, 200), (128, 2048), (0, 256)])
def test_impossible_shapes_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="detail of"):
        DetailShape(*shape, features=8)


def drawn(codes: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return base_generator().synthesis(codes)


def test_meshes_of_a_slow_shot_do_not_tremble() -> None:
    """So they need no steadying, which would smear what is fast."""
    size = base_generator().architecture.resolution
    moves = ({}, {"smile": 1.0, "yaw": 15.0}, {"yaw": -15.0}, {"jaw": 0.5}, {"pitch": 10.0})
    with torch.no_grad():
        codes = base_encoder()(aligned(acted(3, *moves), size))
    anchors = drawn(codes)
    atlas = lay_out(find_meshes(anchors), anchors.numpy())
    shares = torch.arange(8)[:, None] / 60  # two and a half seconds from face to face
    pictures = drawn(torch.lerp(codes[:1], codes[1:2], shares))
    for found in (find_meshes(pictures), find_meshes(pictures, atlas)):
        meshes = found[:, :468, :2] * 512
        assert np.median(np.linalg.norm(meshes[-1] - meshes[0], axis=1)) > 1
        trembling = np.linalg.norm(np.diff(meshes, 2, axis=0), axis=-1)
        # px of 512, of which one is six of noise
        assert np.sqrt(np.square(trembling).mean()) < 0.15


def test_a_still_driver_gives_a_still_picture() -> None:
    generator = base_generator()
    architecture = generator.architecture
    size, w_dim = architecture.resolution, architecture.w_dim
    meshes = find_meshes(aligned(acted(3, {}, {"jaw": 1.0}), size))
    torch.manual_seed(0)
    network = DetailNetwork(DetailShape(size, 2 * size, architecture.channels[size], w_dim))
    for parameter in network.parameters():
        parameter.data.normal_(std=0.1)
    network.eval().requires_grad_(False)
    detail = Detail(network, fit_atlas(meshes), DetailInfo())
    codes = np.zeros((3, architecture.num_ws, w_dim), np.float32)
    first, second, alone = draw_frames(generator, codes, detail=detail, batch=2)
    assert first.shape == (3, 2 * size, 2 * size)
    assert torch.equal(first, second)
    assert float((first - alone).abs().max()) < 2e-3  # of another batch, which rounds otherwise
    blurred = F.interpolate(first[None], scale_factor=0.5, mode="area")
    blurred = F.interpolate(blurred, scale_factor=2.0, mode="bicubic")
    assert float((first - blurred).abs().mean()) > 0.01, "there is detail that could move"


@pytest.mark.parametrize("size", [64, 128, 256])
def test_the_border_of_the_picture_is_drawn_as_its_middle(
    size: int, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What convolutions find beyond a picture, nothing, doesn't reach into it."""
    generator = a_generator()
    torch.manual_seed(0)
    network = DetailNetwork(DetailShape(BASE, size, 8))
    for parameter in network.parameters():
        parameter.data.normal_(std=0.2)
    network.eval().requires_grad_(False)
    detail = Detail(network, fit_atlas(examples.meshes), DetailInfo())
    drawn = draw_detailed(generator, detail, examples.w[:1], examples.meshes[:1])
    monkeypatch.setattr(DetailShape, "margin", 8)
    wide = draw_detailed(generator, detail, examples.w[:1], examples.meshes[:1])
    assert float((drawn - wide).abs().max() / wide.abs().max()) < 1e-4
