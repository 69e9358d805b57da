"""Distilling the base generator: aligned draws, latents, and a training that resumes exactly."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_generators import SIZE, random_generator

from core.base import training
from core.base.checkpoints import CheckpointMismatchError
from core.face.alignment import ffhq_quads
from core.face.tracking import track_face
from core.generator import Architecture, Generator
from core.generator.storage import NotAGeneratorError, load_generator, save_generator
from core.synthetic import base, performer
from core.synthetic.distill import __main__ as command
from core.synthetic.distill import mapping, stages
from core.synthetic.distill import pictures as shards
from core.synthetic.distill.evaluation import encoded_psnr
from core.synthetic.distill.losses import picture_loss, pixel_weights
from core.synthetic.distill.pictures import Pictures, latents
from core.synthetic.distill.stages import Recipe, new_generator
from core.synthetic.parameters import INDEX, PARAMETERS, from_normal

RECIPE = Recipe(resolution=128, pictures=16, steps=6)
RATES = (1e-2, 5e-4)
CHANNELS = {4: 64, 8: 64, 16: 64, 32: 32, 64: 16, 128: 8}


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains a quarter of the channels, where it does not matter how good the pictures get."""

    def architecture(recipe: Recipe) -> Architecture:
        return Architecture(recipe.resolution, CHANNELS, mapping_layers=4, mapping_rate=1.0)

    monkeypatch.setattr(Recipe, "architecture", architecture)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration from few pictures."""
    path = tmp_path_factory.mktemp("distill")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "CALIBRATION", 260)
        shards.calibrate(path, seed=3)
    return path


@pytest.fixture(scope="module")
def pictures(folder: Path) -> Pictures:
    normals = shards.draw_normals(5, 16)
    drawn, points = shards.render_aligned(
        from_normal(normals), np.load(folder / "align.npy"), RECIPE.resolution
    )
    return Pictures(
        torch.from_numpy(normals).float(), torch.from_numpy(drawn), torch.from_numpy(points)
    )


def test_pictures_are_aligned_as_clips_are(pictures: Pictures) -> None:
    """Tracking an aligned draw and aligning it again changes little."""
    errors = []
    for picture in pictures.pictures:
        found = track_face([(1, picture.numpy().astype(np.float32) / 255)] * 2)
        if not found.found[1]:
            continue
        quad = ffhq_quads(found.landmarks)[1]
        errors.append(np.abs(quad - [[0, 0], [0, 128], [128, 128], [128, 0]]).mean())
    assert len(errors) >= 14
    assert np.median(errors) < 0.03 * 128


def test_a_mirrored_batch_is_the_mirrored_draw(pictures: Pictures) -> None:
    indices = torch.arange(4)
    plain = pictures.batch(indices, torch.zeros(4, dtype=torch.bool), 64)
    mirrored = pictures.batch(indices, torch.ones(4, dtype=torch.bool), 64)
    torch.testing.assert_close(mirrored[0], plain[0].flip(-1))
    for name in ("yaw", "gaze_x"):
        i = INDEX[name]
        torch.testing.assert_close(mirrored[1][:, i], -plain[1][:, i])
    eyes = mirrored[2][:, :2] * torch.tensor([-1.0, 1]) + torch.tensor([1.0, 0])
    torch.testing.assert_close(eyes, plain[2][:, [1, 0]])


def test_latents_have_the_length_of_normal_ones() -> None:
    normals = torch.randn(64, len(PARAMETERS))
    z = latents(normals)
    torch.testing.assert_close(z[:, : len(PARAMETERS)], normals)
    torch.testing.assert_close(z.square().sum(1), torch.full((64,), 512.0))


def test_loss_looks_at_the_eyes_most(pictures: Pictures) -> None:
    target, _, points = pictures.batch(torch.arange(1), torch.zeros(1, dtype=torch.bool), 128)
    x, y = (points[0, 0] * 128).long().tolist()
    losses = []
    for place in ((y, x), (10, 10)):
        result = target.clone()
        result[..., place[0] - 3 : place[0] + 4, place[1] - 3 : place[1] + 4] += 0.2
        losses.append(float(picture_loss(result, target, points)))
    assert losses[0] > 5 * losses[1]
    assert float(picture_loss(target, target, points)) == 0


@pytest.mark.usefixtures("narrow")
def test_training_resumes_to_the_same_result(
    tmp_path: Path, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after three steps and started again, it ends with the same weights."""

    class Stop(Exception):
        pass

    whole = stages.train_generator(tmp_path / "whole", RECIPE, pictures, pictures)
    assert (tmp_path / "whole" / "pairs.png").exists()
    steps = 0

    def count(*arguments: object) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise Stop
        return original(*arguments)

    original = picture_loss
    # a checkpoint after every step, as if two minutes had passed
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(stages, "picture_loss", count)
    with pytest.raises(Stop):
        stages.train_generator(tmp_path / "parts", RECIPE, pictures, pictures)
    monkeypatch.setattr(stages, "picture_loss", original)
    left = 0

    def after(*arguments: object) -> torch.Tensor:
        nonlocal left
        left += 1
        return original(*arguments)

    monkeypatch.setattr(stages, "picture_loss", after)
    resumed = stages.train_generator(tmp_path / "parts", RECIPE, pictures, pictures)
    assert left == 3  # of six
    monkeypatch.setattr(stages, "picture_loss", original)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    with pytest.raises(CheckpointMismatchError, match="Delete it"):
        stages.train_generator(tmp_path / "parts", replace(RECIPE, steps=9), pictures, pictures)


def test_encoder_learns_to_reconstruct(tmp_path: Path, pictures: Pictures) -> None:
    generator = new_generator(RECIPE)
    generator.mapping.w_avg.copy_(generator.mapping(torch.randn(100, 512)).mean(0).detach())
    before = encoded_psnr(base.WEncoder(128), generator, pictures, count=16)
    encoder = stages.train_encoder(tmp_path, generator, pictures, pictures, 10, 1e-3)
    assert encoded_psnr(encoder, generator, pictures, count=16) > before
    assert encoder(torch.zeros(2, 3, 128, 128)).shape == (2, 512)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("mapped", [0, 4])
def test_the_autoencoder_resumes_to_the_same_result(
    tmp_path: Path, pictures: Pictures, monkeypatch: pytest.MonkeyPatch, mapped: int
) -> None:
    class Stop(Exception):
        pass

    def run(name: str) -> list[torch.Tensor]:
        torch.manual_seed(2)
        generator, encoder = new_generator(RECIPE), base.WEncoder(128)
        before = [p.clone() for p in generator.mapping.parameters()]
        made = stages.train_jointly(
            tmp_path,
            name,
            generator,
            encoder,
            pictures,
            pictures,
            steps=4,
            rates=RATES,
            mapped=mapped,
        )
        after = generator.mapping.parameters()
        same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        if steps is None:
            assert same == (mapped == 0)  # without mapped pictures the mapping stays
        return [t for part in made for t in part.state_dict().values()]

    steps: int | None = None
    whole = run("whole")
    original = picture_loss

    def count(*arguments: object) -> torch.Tensor:
        nonlocal steps
        steps = (steps or 0) + 1
        if steps == 3:
            raise Stop
        return original(*arguments)

    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(stages, "picture_loss", count)
    with pytest.raises(Stop):
        run("parts")
    for a, b in zip(whole, run("parts"), strict=True):
        torch.testing.assert_close(a, b)
    assert steps == 5  # two were kept, two were left
    other = new_generator(replace(RECIPE, seed=9)), base.WEncoder(128)
    with pytest.raises(CheckpointMismatchError, match="Delete it"):
        stages.train_jointly(
            tmp_path, "parts", *other, pictures, pictures, steps=4, rates=RATES, mapped=mapped
        )


@pytest.mark.usefixtures("narrow")
def test_at_rate_zero_the_generator_stays(tmp_path: Path, pictures: Pictures) -> None:
    generator, encoder = new_generator(RECIPE), base.WEncoder(128)
    before = [copy.deepcopy(m.state_dict()) for m in (generator, encoder)]
    made = stages.train_jointly(
        tmp_path, "last", generator, encoder, pictures, pictures, steps=2, rates=(0, 1e-3)
    )
    same = [
        all(torch.equal(old[name], t) for name, t in module.state_dict().items())
        for old, module in zip(before, made, strict=True)
    ]
    assert same == [True, False]


def test_the_metric_is_what_a_step_changes(pictures: Pictures) -> None:
    """Against finite differences of the weighted picture."""
    torch.manual_seed(4)
    generator = random_generator()  # a small one: what is estimated does not depend on it
    with torch.no_grad():
        w = generator.mapping(torch.randn(16, 512))
    metric = mapping.gauss_newton_metric(generator, w, pictures, draws=40)
    weight, _ = pixel_weights(pictures.points, SIZE)
    steps = 0.02 * torch.randn(3, 512)
    for step in steps:
        with torch.no_grad():
            change = (generator.synthesis(w + step) - generator.synthesis(w - step)) / 2
        expected = float((weight * change.square()).sum((1, 2, 3)).mean())
        assert float(step @ metric @ step) == pytest.approx(expected, rel=0.25)


@pytest.mark.usefixtures("narrow")
def test_the_mapping_learns_what_the_encoder_finds(tmp_path: Path, pictures: Pictures) -> None:
    torch.manual_seed(3)
    generator, encoder = new_generator(RECIPE), base.WEncoder(128).eval()
    with torch.no_grad():
        found = encoder(pictures.pictures.permute(0, 3, 1, 2) / 127.5 - 1)

    def error() -> float:
        with torch.no_grad():
            w = generator.mapping(latents(pictures.normals))
        return float(((w - found) / found.std(0)).square().mean())

    before = error()
    mapping.fit_mapping(tmp_path, generator, encoder, pictures, pictures, 60, 2e-2)
    assert error() < 0.5 * before
    kept = [p.clone() for p in generator.mapping.parameters()]
    other = new_generator(RECIPE)
    mapping.fit_mapping(tmp_path, other, encoder, pictures, pictures, 60, 2e-2)  # is done
    for a, b in zip(kept, other.mapping.parameters(), strict=True):
        assert torch.equal(a, b)


def test_cues_say_where_the_face_is(folder: Path, pictures: Pictures) -> None:
    normals = pictures.normals.numpy().astype(np.float64)
    cues = shards.cues(normals, np.load(folder / "align.npy")).numpy()
    count = len(PARAMETERS)
    names = list(performer.landmarks(from_normal(normals)[0]))
    face = dict(
        zip(names, cues[:, count : count + 20].reshape(16, 10, 2).swapaxes(0, 1), strict=True)
    )
    for i, name in enumerate(("eye_r", "eye_l", "mouth_r", "mouth_l")):
        np.testing.assert_allclose(face[name], pictures.points[:, i], atol=0.04)
    assert np.abs(cues[:, :count]).max() <= 1 + 1e-6
    assert np.corrcoef(cues[:, INDEX["yaw"]], normals[:, INDEX["yaw"]])[0, 1] > 0.99


@pytest.mark.parametrize("shape", [(40, 40), (24, 60), (60, 24)])
def test_a_step_is_about_orthogonal(shape: tuple[int, int]) -> None:
    """Against the singular value decomposition."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = left.T @ mapping.orthogonal(matrix) @ right.T
    values = turned.diagonal()
    assert values.min() > 0.3  # the smallest of a square matrix are far from 1 still
    assert values.max() < 1.3
    torch.testing.assert_close(turned, values.diag(), atol=1e-4, rtol=0)


def test_regression_counts_errors_by_the_metric(tmp_path: Path) -> None:
    """Two units in the middle can learn only what counts of four outputs."""
    torch.manual_seed(5)
    x = torch.randn(2000, 4)
    network = mapping.dense_network([4, 2, 4])
    metric = torch.diag(torch.tensor([1.0, 1e-4, 1e-4, 1e-4]))
    mapping.regress(
        tmp_path, "few", network, x, x.roll(1, 1), metric, steps=600, batch=200, rate=2e-2
    )
    with torch.no_grad():
        off = (network(x) - x.roll(1, 1)).square().mean(0)
    assert off[0] < 0.01
    assert off[1:].sum() > 0.5
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").open()]
    assert [line["few"] for line in logged] == [200, 400, 600]
    assert logged[1]["error"] < logged[0]["error"]


def test_a_taught_mapping_starts_from_what_it_knows_and_hears_no_noise(
    folder: Path, tmp_path: Path, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "TAUGHT", 8192)
    (tmp_path / "align.npy").write_bytes((folder / "align.npy").read_bytes())
    made, again, quiet = (copy.deepcopy(base.base_generator()) for _ in range(3))
    quiet.mapping.get_parameter("fc0.weight").data[:, len(PARAMETERS) :] = 0

    def mapped(generator: Generator, seed: int) -> torch.Tensor:
        rng = torch.Generator().manual_seed(seed)
        return generator.mapping(latents(pictures.normals, rng)).detach()

    def teach(generator: Generator, taught_steps: int) -> None:
        mapping.teach_mapping(
            tmp_path,
            generator,
            base.base_encoder(),
            pictures,
            pictures,
            teacher_steps=1,
            taught_steps=taught_steps,
            seed=RECIPE.seed,
        )

    teach(made, 0)
    for seed in (1, 2):
        torch.testing.assert_close(mapped(made, seed), mapped(quiet, 1))
    with pytest.raises(CheckpointMismatchError, match="Delete it"):
        teach(again, 1)
    teach(again, 0)
    for a, b in zip(made.parameters(), again.parameters(), strict=True):  # it was done
        assert torch.equal(a, b)


@pytest.mark.usefixtures("narrow")
def test_all_stages_end_with_a_base_and_its_encoder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD", 8)
    monkeypatch.setattr(shards, "HELD_OUT", 8)
    (tmp_path / "align.npy").write_bytes((folder / "align.npy").read_bytes())
    recipe = Recipe(
        pictures=8,
        early_pictures=8,
        steps=2,
        encoder_steps=2,
        autoencoder_steps=2,
        mapping_steps=2,
        joint_steps=2,
        last_encoder_steps=2,
        teacher_steps=2,
        taught_steps=2,
    )
    monkeypatch.setattr(mapping, "TAUGHT", 8192)
    stages.distill(tmp_path, recipe)
    made, header = load_generator(tmp_path / "base.safetensors")
    assert json.loads(header["recipe"])["joint_steps"] == 2
    z = latents(torch.randn(500, len(PARAMETERS)))
    mean, spread = made.mapping(z).mean(0), made.mapping(z).std()
    assert (made.mapping.w_avg - mean).norm() < spread * 512**0.5  # of the mapping as it is now
    encoder = base.WEncoder(128)
    encoder.load_state_dict(load_file(tmp_path / "encoder.safetensors"))
    logged = [next(iter(json.loads(line))) for line in (tmp_path / "log.jsonl").open()]
    assert logged == [
        "step",
        "encoder_step",
        "autoencoder",
        "mapping",
        "joint",
        "last_encoder",
        "teacher",
        "taught",
        "psnr",
    ]
    before = load_file(tmp_path / "base.safetensors")
    monkeypatch.setattr(stages, "picture_loss", lambda *_: pytest.fail("trained again"))
    stages.distill(tmp_path, recipe)
    after = load_file(tmp_path / "base.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_command_ends_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: Path, recipe: Recipe) -> None:
        assert (folder, recipe) == (tmp_path, Recipe(256))
        raise CheckpointMismatchError("Delete it.")

    monkeypatch.setattr(command, "distill", refused)
    monkeypatch.setattr("sys.argv", ["distill", str(tmp_path), "--resolution", "256"])
    with pytest.raises(SystemExit, match=r"Delete it\."):
        command.main()


def test_generators_survive_storage(tmp_path: Path) -> None:
    generator = new_generator(RECIPE)
    save_generator(tmp_path / "g.safetensors", generator, {"recipe": "test"}, torch.float16)
    loaded, header = load_generator(tmp_path / "g.safetensors")
    assert header["recipe"] == "test"
    assert loaded.architecture == generator.architecture
    for (name, a), b in zip(
        generator.state_dict().items(), loaded.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a.half().float(), b, msg=name)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes((tmp_path / "g.safetensors").read_bytes()[:5000])
    for wrong in (damaged, tmp_path / "absent.safetensors"):
        with pytest.raises(NotAGeneratorError, match=wrong.name):
            load_generator(wrong)


def test_a_missing_base_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(base, "WEIGHTS", tmp_path)
    base.base_generator.cache_clear()
    with pytest.raises(base.BaseMissingError, match=r"core\.synthetic\.distill"):
        base.base_generator()
