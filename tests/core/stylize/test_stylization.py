"""Styles: what training moves and what it leaves alone, breaks, files, mixing with the parent."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from performer_faces import acted, aligned
from reenact.protocol import File, Frame
from repository import ROOT, SUPPORT
from small_character import small_character
from small_generators import random_generator
from torch import Tensor

from core.base.keyframes import KeyframeError
from core.face.keypoints import KEYPOINTS
from core.generator import checkpoints
from core.generator.storage import generator_digest
from core.media.pictures import read_attribute
from core.media.read import open_clip, read_frame
from core.media.write import write_png
from core.personalize.character import Character, CharacterInfo, load_character, save_character
from core.personalize.tuning import reconstruct
from core.render.drawing import draw_frames, draw_pictures
from core.solve.latent_track import LatentTrack, save_track
from core.stylize import clip_model, training
from core.stylize.clip_model import ClipMissingError, ClipModel
from core.stylize.pixel_programs import PROGRAMS
from core.stylize.style import (
    MixError,
    NotAStyleError,
    ParentMismatchError,
    Style,
    StyleInfo,
    load_style,
    mix,
    save_style,
    style_info,
)
from core.stylize.training import (
    Examples,
    Program,
    Prompt,
    StyleExistsError,
    StylizeSettings,
    alignment,
    choose_layers,
    convolutions,
    patch_distance,
    sample_codes,
    stylize,
    text_direction,
)
from server.cli.reporting import Report
from server.jobs import registry
from server.jobs.common import Context


class Quiet:
    """A report that may stop the work."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.notes = stop, list[str]()

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def stage(self, title: str) -> Iterator[Callable[..., None]]:
        def progress(done: float, total: float, **figures: float) -> None:
            if title == "stylizing" and done == self.stop:
                raise KeyboardInterrupt

        yield progress


def character(folder: Path, made: Character | None = None, name: str = "a") -> Character:
    path = folder / f"{name}.character"
    save_character(path, made or small_character())
    return load_character(path)


def blotches(base_hash: str = "b" * 64) -> Character:
    """A character that takes no time to make: no face, but all the parts."""
    generator = random_generator().requires_grad_(False)
    rng = torch.Generator().manual_seed(1)
    anchors = generator.mapping(torch.randn(5, 512, generator=rng))
    consent = {"who": "nobody", "when": "2030-01-01", "scope": "tests"}
    info = CharacterInfo("Blotches", consent, base_hash=base_hash, selected=[*range(5)])
    keypoints = torch.zeros(5, len(KEYPOINTS), 3)
    return Character(generator, anchors, keypoints, np.zeros((8, 8, 3), np.uint8), info)


def codes_of(who: Character, count: int = 8) -> Tensor:
    return sample_codes(who.anchors, count, seed=99)


def both(who: Character, made: Style) -> tuple[Tensor, Tensor]:
    """The anchors' pictures by a character and by its style."""
    return reconstruct(who.generator, who.anchors), reconstruct(made.generator, who.anchors)


def colour(drawn: Tensor) -> Tensor:
    """Mean of each channel, in -1..1."""
    return drawn.float().mean((0, 2, 3))


# -- pixel programs ------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def face() -> np.ndarray:
    rgb = aligned(acted(5, {"smile": 0.9, "teeth": 0.8}), 128)[0].permute(1, 2, 0).numpy()
    return np.ascontiguousarray(rgb / 2 + 0.5)


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_are_steady(name: str) -> None:
    program = PROGRAMS[name]
    drawn = program(face())
    assert (drawn.shape, drawn.dtype) == (face().shape, np.float32)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert np.array_equal(drawn, program(face()))
    assert np.abs(drawn - face()).mean() > 0.05
    # Film grain of one 8-bit step, and a picture that moved by one pixel.
    grain = np.random.default_rng(0).normal(0, 1 / 255, face().shape).astype(np.float32)
    assert np.abs(program(np.clip(face() + grain, 0, 1)) - drawn).mean() < 0.02
    moved = np.roll(program(np.roll(face(), 1, 1)), -1, 1)
    assert np.abs(moved - drawn)[16:-16, 16:-16].mean() < 0.002
    # Twice the size is the same drawing.
    twice = np.kron(face(), np.ones((2, 2, 1), np.float32))
    half = program(twice).reshape(128, 2, 128, 2, 3).mean((1, 3))
    assert np.abs(half - drawn).mean() < 0.04


def test_programs_are_what_they_are_called() -> None:
    spread = {}
    for name, program in PROGRAMS.items():
        drawn = program(face())
        spread[name] = float((drawn.max(2) - drawn.min(2)).mean())
    assert spread["sketch"] < 0.1  # no colours
    assert spread["charcoal"] < 0.05
    assert spread["posterise"] > float((face().max(2) - face().min(2)).mean())  # stronger ones
    assert PROGRAMS["sketch"](face()).mean() > PROGRAMS["charcoal"](face()).mean() + 0.05


# -- what is trained -----------------------------------------------------------------------------


def test_samples_are_blends_of_few_anchors() -> None:
    weights = sample_codes(torch.eye(9), 300, seed=1)  # the codes are their own weights
    assert weights.min() >= 0
    assert torch.allclose(weights.sum(1), torch.ones(300))
    assert (weights > 0).sum(1).max() <= 4
    assert (weights.max(1).values > 0.9).float().mean() > 0.1  # some are nearly an anchor
    assert (weights.sum(0) > 10).all()  # none is left out
    assert torch.equal(weights, sample_codes(torch.eye(9), 300, seed=1))
    assert not torch.equal(weights, sample_codes(torch.eye(9), 300, seed=2))


def test_a_program_is_learnt_and_the_face_stays(tmp_path: Path) -> None:
    who = character(tmp_path)
    before = {k: v.clone() for k, v in who.generator.state_dict().items()}
    settings = StylizeSettings(steps=20, samples=16, rate=5e-3, check_every=10, metric="embedded")
    looks: list[bool] = []

    def looked() -> None:
        looks.append(style_info(tmp_path / "print.style").complete)
        assert (tmp_path / "print_preview.png").exists()

    method = Program("posterise")
    made = stylize(
        who, method, tmp_path / "print.style", Quiet(), settings=settings, on_preview=looked
    )
    assert looks == [False, False, True]
    assert all(torch.equal(v, before[k]) for k, v in who.generator.state_dict().items())
    plain, drawn = both(who, made)
    wanted = training.run_program("posterise", plain).float()
    error = [float((p - wanted).square().mean()) for p in (plain, drawn)]
    assert error[1] < 0.6 * error[0]
    # Aligned with the parent: each is nearest to the drawing of its own code, and landmarks move
    # less than between two faces, and than the program itself makes the mesh believe.
    apart = (drawn[:, None] - wanted[None]).square().mean((2, 3, 4))
    assert apart.argmin(1).tolist() == [*range(len(drawn))]
    moved = alignment(drawn, plain)
    assert moved < alignment(wanted, plain)
    assert moved < 0.8 * alignment(plain.roll(1, 0), plain)
    assert made.info.alignment == pytest.approx(moved, abs=1.5)  # of other codes
    assert made.info.losses[-1]["psnr"] > made.info.losses[0]["psnr"]
    assert made.info.consent == who.info.consent
    assert (made.info.parent, made.info.steps, made.info.complete) == (who.hash, 20, True)
    assert not (tmp_path / "print.style.work").exists()
    # The same call: nothing is done again. Another one: nothing is lost.
    again = stylize(who, method, tmp_path / "print.style", Quiet(stop=0), settings=settings)
    assert again.hash == made.hash
    for other, changed in ((Program("charcoal"), settings), (method, replace(settings, steps=2))):
        with pytest.raises(StyleExistsError, match="choose another name"):
            stylize(who, other, tmp_path / "print.style", Quiet(), settings=changed)
    assert style_info(tmp_path / "print.style") == made.info


# -- CLIP ----------------------------------------------------------------------------------------


def colours(weight: Tensor, red: tuple[float, ...] = (1, -1, -1)) -> ClipModel:
    """A model that sees mean colours of a picture, and knows what two words look like.

    Linear and exact, so that what must move is known: towards `red`, as this model calls it.
    """

    def image(pictures: Tensor) -> Tensor:
        seen = torch.cat([pictures.mean((2, 3)), torch.ones(len(pictures), 1)], 1)
        return F.normalize(seen @ weight, dim=1)

    def text(sentences: Any) -> Tensor:
        word = torch.tensor([red]) / 3
        rows = [word if "red" in s else torch.zeros(1, 3) for s in sentences]
        seen = torch.cat([torch.cat(rows), torch.ones(len(rows), 1)], 1)
        return F.normalize(seen @ weight, dim=1)

    return ClipModel("colours", image, text)


def test_a_known_target_is_reached_and_the_face_stays(tmp_path: Path) -> None:
    who = character(tmp_path)
    model = colours(torch.eye(4))
    settings = StylizeSettings(steps=12, samples=16, rate=3e-3, check_every=6)
    made = stylize(
        who,
        Prompt("something red", "something", [model]),
        tmp_path / "red.style",
        Quiet(),
        settings=settings,
    )
    plain, drawn = both(who, made)
    moved = colour(drawn) - colour(plain)
    assert moved[0] - moved[1:].max() > 0.1  # towards red, and not just brighter
    assert made.info.losses[-1]["direction"] > 0.8
    assert alignment(drawn, plain) < 0.8 * alignment(plain.roll(1, 0), plain)
    assert made.info.method == {
        "kind": "prompt",
        "prompt": "something red",
        "source": "something",
        "clip": ["colours"],
        "layers": None,
    }
    # As published, neither the mapping nor any toRGB learns.
    before, after = who.generator.state_dict(), made.generator.state_dict()
    changed = {k for k in after if (after[k] - before[k]).abs().max() > 2e-3}
    assert changed
    assert not any("torgb" in name or "mapping" in name for name in changed)


def test_every_clip_model_is_followed(tmp_path: Path) -> None:
    """Two that understand one word differently meet at what is right for both."""
    who = character(tmp_path)
    models = [colours(torch.eye(4)), colours(torch.eye(4), (-1, -1, 1))]
    settings = StylizeSettings(steps=12, samples=16, rate=3e-3, check_every=12)
    made = stylize(
        who, Prompt("red", "grey", models), tmp_path / "two.style", Quiet(), settings=settings
    )
    plain, drawn = both(who, made)
    red, green, blue = (colour(drawn) - colour(plain)).tolist()
    assert min(red, blue) - green > 0.05
    assert made.info.method["clip"] == ["colours", "colours"]


def test_pictures_give_a_direction_too(tmp_path: Path) -> None:
    who = character(tmp_path)
    plain = reconstruct(who.generator, who.anchors)
    warm = (plain + torch.tensor([0.4, -0.2, -0.2])[:, None, None]).clamp(-1, 1)
    settings = StylizeSettings(steps=12, samples=16, rate=5e-3, check_every=6)
    made = stylize(
        who,
        Examples(warm, [colours(torch.eye(4))]),
        tmp_path / "w.style",
        Quiet(),
        settings=settings,
    )
    plain, drawn = both(who, made)
    moved = colour(drawn) - colour(plain)
    # toRGB does not learn, and blue and green can't fall as far as the pictures' do.
    assert moved[0] - moved[1:].max() > 0.05
    assert made.info.losses[-1]["direction"] > 0.4


def test_layers_are_those_that_move_most(tmp_path: Path) -> None:
    """Against the difference that each row alone makes, and nothing else is trained."""
    who = character(tmp_path, blotches())
    model = colours(torch.eye(4))
    target = model.text(["red"])[0]
    codes = codes_of(who, 3).double()
    generator = who.generator.double()
    slopes = []
    for row in range(len(convolutions(generator))):
        w = codes[:, None].repeat(1, generator.architecture.num_ws, 1)
        part = w[:, row].clone().requires_grad_(True)
        made = generator.synthesis(torch.cat([w[:, :row], part[:, None], w[:, row + 1 :]], 1))
        seen = torch.cat([made.mean((2, 3)), torch.ones(3, 1, dtype=torch.float64)], 1)
        (1 - F.cosine_similarity(seen, target.double()[None]).mean()).backward()
        assert part.grad is not None
        slopes.append(float(part.grad.abs().mean()))
    wanted = sorted(np.argsort(slopes)[::-1][:2].tolist())
    generator.float()
    assert choose_layers(generator, codes.float(), [model], [target], 2) == wanted
    method = Prompt("red", "grey", [model], layers=1)
    made = stylize(
        who,
        method,
        tmp_path / "one.style",
        Quiet(),
        settings=StylizeSettings(steps=1, samples=8, rate=1e-2),
    )
    before, after = who.generator.state_dict(), made.generator.state_dict()
    changed = {k for k in after if (after[k] - before[k]).abs().max() > 2e-3}
    assert len({tuple(name.split(".")[:3]) for name in changed if "conv" in name}) == 1
    assert all("conv" in name or name == "synthesis.b4.const" for name in changed)


def tiny_clip(folder: Path) -> None:
    """A randomly initialised CLIP of open_clip's own code, as its published models are kept."""
    import torchvision_ops  # noqa: F401

    open_clip = pytest.importorskip("open_clip")
    sizes: dict[str, Any] = {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32,
            "layers": 2,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 1,
        },
    }
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(**sizes["vision_cfg"])
    model = open_clip.CLIP(32, vision, open_clip.CLIPTextCfg(**sizes["text_cfg"]))
    folder.mkdir(parents=True)
    config = {"model_cfg": sizes, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    from safetensors.torch import save_file

    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")


def test_open_clip_leads_a_style(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    tiny_clip(clip_model.folder("tiny"))
    model = clip_model.load_clip("tiny")
    assert clip_model.is_installed("tiny")
    direction = text_direction(model, "a photo", "a bronze statue")
    assert float(direction.norm()) == pytest.approx(1)
    assert float(direction @ text_direction(model, "a bronze statue", "a photo")) < -0.999
    who = character(tmp_path, blotches())
    made = stylize(
        who,
        Prompt("a bronze statue", "a photo", [model], layers=6),
        tmp_path / "x.style",
        Quiet(),
        settings=StylizeSettings(steps=16, samples=16, rate=1e-2, check_every=4),
    )
    figures = [entry["direction"] for entry in made.info.losses]
    assert figures[-1] > max(0.2, figures[0])
    assert made.info.method["clip"] == ["tiny"]


def test_a_missing_clip_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ClipMissingError, match=r"Fetch it once with\n.*snapshot_download"):
        clip_model.load_clip("ViT-B-32")
    for name in ("../x", "", "a/b"):
        with pytest.raises(ClipMissingError, match="is no name"):
            clip_model.load_clip(name)
    tiny_clip(clip_model.folder("tiny"))
    weights = clip_model.folder("tiny") / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ClipMissingError, match="Fetch them again"):
        clip_model.load_clip("tiny")


# -- patches -------------------------------------------------------------------------------------


def test_distance_of_patches() -> None:
    rng = torch.Generator().manual_seed(0)
    a = F.interpolate(torch.rand(3, 3, 8, 8, generator=rng), (64, 64), mode="bilinear") * 2 - 1
    assert float(patch_distance(a, a.flip(0), 1)) == 0  # sets, not pairs
    steps = [float(patch_distance(a, a + 0.1 * i, 1)) for i in range(4)]
    # Moved as a whole, every projection moves by so much times the sum of the direction.
    assert np.allclose(np.array(steps) / steps[1], [0, 1, 4, 9], rtol=1e-3)
    # A patch knows its place: the same patches elsewhere are others.
    assert float(patch_distance(a, a.flip(3), 1)) > 1e-3
    with pytest.raises(RuntimeError):
        patch_distance(a, a[:, :2], 1)


def test_examples_are_followed_and_the_face_stays(tmp_path: Path) -> None:
    who = character(tmp_path)
    other = aligned(acted(9, {}, {"jaw": 0.5}, {"smile": 0.7}), 64)
    tinted = (0.4 * other + torch.tensor([-0.3, 0.2, 0.6])[:, None, None]).clamp(-1, 1)
    settings = StylizeSettings(
        steps=16, samples=12, batch=2, rate=3e-3, check_every=8, metric="embedded"
    )
    made = stylize(who, Examples(tinted), tmp_path / "e.style", Quiet(), settings=settings)
    plain, drawn = both(who, made)
    before, after = (float((colour(p) - colour(tinted)).norm()) for p in (plain, drawn))
    assert after < 0.8 * before
    assert made.info.losses[-1]["closeness"] > made.info.losses[0]["closeness"]
    assert alignment(drawn, plain) < 0.5 * alignment(plain.roll(1, 0), plain)


def test_examples_of_any_size_are_aligned(tmp_path: Path) -> None:
    from core.synthetic.performer import render

    for i, size in enumerate((160, 256)):
        write_png(tmp_path / f"art.{i + 1:02d}.png", render(acted(3, {})[0], size))
    write_png(tmp_path / "art.03.png", np.full((90, 120, 3), 99, np.uint8))
    found, without = training.align_examples(open_clip(str(tmp_path / "art.##.png")), 64)
    assert (found.shape, without) == ((2, 3, 64, 64), 1)
    assert float((found[0] - found[1]).abs().mean()) < 0.05  # framed alike
    with pytest.raises(training.NoExamplesError, match="no face"):
        training.align_examples(open_clip(str(tmp_path / "art.##.png 3")), 64)


# -- breaks --------------------------------------------------------------------------------------

QUICK = StylizeSettings(steps=6, samples=6, batch=2, rate=1e-2, check_every=2)


def quick() -> Prompt:
    return Prompt("red", "grey", [colours(torch.eye(4))], layers=4)


def test_stopped_and_gone_on_is_the_same_style(tmp_path: Path) -> None:
    who = character(tmp_path, blotches())
    whole = stylize(who, quick(), tmp_path / "whole.style", Quiet(), name="n", settings=QUICK)
    path = tmp_path / "broken.style"
    for stop, at in ((3, 2), (4, 4)):
        with pytest.raises(KeyboardInterrupt):
            stylize(who, quick(), path, Quiet(stop), name="n", settings=QUICK)
        kept = style_info(path)
        assert (kept.steps, kept.complete) == (at, False)
        assert load_style(path, who).info == kept  # it can be tried
    made = stylize(who, quick(), path, Quiet(), name="n", settings=QUICK)
    assert made.info == replace(whole.info, created=made.info.created)
    left, right = (s.generator.state_dict() for s in (made, whole))
    assert all(torch.equal(left[k], right[k]) for k in left)


SCRIPT = """
import sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from core.base import training
from core.personalize.character import load_character
from core.stylize.training import stylize
from test_stylization import QUICK, Quiet, quick
training.CHECKPOINT_SECONDS = 0.0

def run(output):
    def looked():
        print("look", flush=True)
        if {wait!r}: sys.stdin.readline()

    made = stylize(who, quick(), output, Quiet(), name="n", settings=QUICK, on_preview=looked)
    print(sum(p.double().sum().item() for p in made.generator.parameters()), flush=True)

who = load_character({who!r})
for name in {names!r}: run(name)
"""


def test_killed_and_gone_on_is_the_same_style(tmp_path: Path) -> None:
    character(tmp_path, blotches())

    def start(wait: bool, *names: str) -> subprocess.Popen[str]:
        text = SCRIPT.format(
            paths=[str(SUPPORT), str(Path(__file__).parent), str(ROOT)],
            wait=wait,
            who=str(tmp_path / "a.character"),
            names=[str(tmp_path / name) for name in names],
        )
        return subprocess.Popen(
            [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    killed = start(True, "killed.style")
    assert killed.stdout is not None
    assert killed.stdout.readline() == "look\n"
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert (style_info(tmp_path / "killed.style").complete) is False
    lines = start(False, "killed.style", "whole.style").communicate()[0].split()
    # Looks at 2, 4, 6 and the end; the one at 2 came before.
    assert [line == "look" for line in lines] == [*[True] * 3, False, *[True] * 4, False]
    assert lines[3] == lines[-1]


# -- files ---------------------------------------------------------------------------------------


def shifted(who: Character, **changes: Any) -> Style:
    """A style whose weights are the parent's and some more."""
    torch.manual_seed(3)
    generator = random_generator()
    generator.load_state_dict(who.generator.state_dict())
    for parameter in generator.synthesis.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    generator.requires_grad_(False)
    info = StyleInfo("shifted", who.hash, generator_digest(who.generator), who.info.base_hash)
    return Style(generator, np.zeros((4, 4, 3), np.uint8), replace(info, **changes))


def test_a_file_keeps_all_of_a_style(tmp_path: Path) -> None:
    who = character(tmp_path, blotches())
    made = shifted(who, method={"kind": "program"}, losses=[{"step": 1.0, "loss": 2.0}])
    save_style(tmp_path / "s.style", made)
    read = load_style(tmp_path / "s.style", who)
    assert read.info == made.info == style_info(tmp_path / "s.style")
    left, right = read.generator.state_dict(), made.generator.state_dict()
    assert all(torch.allclose(left[k], right[k], rtol=1e-3, atol=1e-3) for k in right)
    assert len(read.hash) == 64
    assert (tmp_path / "s.style").stat().st_size < 2.5 * sum(  # halves, and no mapping
        v.numel() for v in made.generator.synthesis.state_dict().values()
    )
    whole = (tmp_path / "s.style").read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-9] + b"\xff" * 9):
        (tmp_path / "d.style").write_bytes(damaged)
        with pytest.raises(Exception, match="damaged"):
            load_style(tmp_path / "d.style", who)
    with pytest.raises(Exception, match="can't be read"):
        load_style(tmp_path / "none.style", who)
    with pytest.raises(NotAStyleError, match="not a style"):
        style_info(tmp_path / "a.character")


def test_whose_style_it_is(tmp_path: Path) -> None:
    who = character(tmp_path, blotches())
    save_style(tmp_path / "s.style", shifted(who))
    renamed = replace(who, info=replace(who.info, name="Other name"))
    renamed = character(tmp_path, renamed, "renamed")  # another file of the same generator
    assert renamed.hash != who.hash
    load_style(tmp_path / "s.style", renamed)
    generator = shifted(who).generator
    sibling = character(tmp_path, replace(who, generator=generator), "sibling")
    with pytest.raises(ParentMismatchError, match=r"same base.*--sibling"):
        load_style(tmp_path / "s.style", sibling)
    load_style(tmp_path / "s.style", sibling, sibling=True)
    for base in ("c" * 64, ""):
        stranger = replace(sibling, info=replace(sibling.info, base_hash=base))
        with pytest.raises(ParentMismatchError, match="not made from the base"):
            load_style(tmp_path / "s.style", stranger, sibling=True)


def test_a_nada_child_is_a_style(tmp_path: Path) -> None:
    who = character(tmp_path, blotches())
    child = shifted(who).generator
    checkpoints.save_rosinality(tmp_path / "full.pt", child)
    full = torch.load(tmp_path / "full.pt", weights_only=True)
    # As its training script writes it: no mean of W.
    torch.save(
        {"g_ema": full["g_ema"], "g_optim": {}, "reenact": full["reenact"]}, tmp_path / "child.pt"
    )
    read = load_style(tmp_path / "child.pt", who)
    left, right = read.generator.state_dict(), child.state_dict()
    assert all(torch.equal(left[k], right[k]) for k in right)
    assert read.info.method == {"kind": "StyleGAN-NADA child"}
    assert (read.info.parent, len(read.hash)) == ("", 64)
    with pytest.raises(NotAStyleError, match="was fine-tuned from this"):
        load_style(tmp_path / "child.pt", small_character())


# -- mixing --------------------------------------------------------------------------------------


def test_mixes_are_exact_at_both_ends(tmp_path: Path) -> None:
    who = character(tmp_path, blotches())
    made = shifted(who)
    numbers = [1001, 1002, 1003, 1004, 1005, 1006]
    ours, theirs = who.generator.synthesis.state_dict(), made.generator.synthesis.state_dict()
    blend = mix(made, numbers, "1001:0:hold,1003:0,1005:1", first=16, last=32)
    assert blend.amounts.tolist() == [0, 0, 0, 0.5, 1, 1]
    runs = []
    for rows, generator, _ in blend.networks(who.generator):
        runs.append((rows.start, rows.stop))
        amount = float(blend.amounts[rows][0])
        for name, tensor in generator.synthesis.state_dict().items():
            wanted = ours[name]
            if name.startswith(("b16.", "b32.")):
                wanted = {0.0: ours[name], 1.0: theirs[name]}.get(
                    amount, (ours[name] + theirs[name]) / 2
                )
                assert torch.allclose(tensor, wanted, atol=1e-6)
            if amount != 0.5 or not name.startswith(("b16.", "b32.")):
                assert torch.equal(tensor, wanted), name
    assert runs == [(0, 3), (3, 4), (4, 6)]


def test_every_frame_is_drawn_by_its_own_mix(tmp_path: Path) -> None:
    who = character(tmp_path, blotches())
    made = shifted(who)
    codes = codes_of(who, 6)[:, None].repeat(1, who.generator.architecture.num_ws, 1).numpy()
    blend = mix(made, range(6), "0:0,2:0,5:1")
    drawn = torch.stack([*draw_frames(who.generator, codes, mix=blend, batch=2)])
    for row in range(6):
        alone = next(draw_frames(who.generator, codes[[row]], mix=blend.frames([row])))
        assert torch.allclose(drawn[row], alone, atol=1e-5)
    assert torch.equal(drawn[:2], torch.stack([*draw_pictures(who.generator, codes[:2])]))
    assert torch.equal(drawn[5], next(draw_pictures(made.generator, codes[[5]])))
    assert list(draw_frames(who.generator, codes[:0], mix=blend.frames([]))) == []
    assert blend.digest() != mix(made, range(6), "0:0,2:0,5:.9").digest()
    assert blend.digest() != mix(made, range(6), "0:0,2:0,5:1", first=8).digest()


@pytest.mark.parametrize(
    ("amount", "first", "last", "what"),
    [
        ("1.2", None, None, "between 0"),
        ("0:1,9:-.1", None, None, "between 0"),
        ("1", 20, None, "20 to 64"),
        ("1", 32, 8, "32 to 8"),
        ("1", 4, 128, "4 to 128"),
    ],
)
def test_mixes_that_make_no_sense(
    amount: str, first: int | None, last: int | None, what: str
) -> None:
    with pytest.raises(MixError, match=what):
        mix(shifted(blotches()), range(10), amount, first, last)
    with pytest.raises(KeyframeError, match="The style's amount: "):
        mix(shifted(blotches()), range(10), "1:", None, None)


def test_a_frame_is_rendered_by_its_amount(tmp_path: Path) -> None:
    who = character(tmp_path, blotches())
    save_style(tmp_path / "s.style", shifted(who))
    checkpoints.save_rosinality(tmp_path / "child.pt", shifted(who).generator)
    rows, two = who.generator.architecture.num_ws, np.zeros(2, np.float32)
    codes = codes_of(who, 2)[:, None].repeat(1, rows, 1).numpy()
    track = LatentTrack(
        character=who.hash,
        numbers=np.array([1001, 1002]),
        state=np.ones(2, np.uint8),
        cut=np.zeros(2, bool),
        alpha=np.zeros((2, 5), np.float32),
        delta=np.zeros((2, rows, 5), np.float32),
        codes=codes,
        smooth=codes,
        neutral_offset=np.zeros((86, 3), np.float32),
        landmarks=np.full((2, 478, 3), np.nan, np.float32),
        quads=np.full((2, 4, 2), np.nan),
        amount=two + 1,
        losses={},
        quality={},
        settings={},
    )
    save_track(tmp_path / "track.latents", track)
    drawn: dict[tuple[str, int], np.ndarray] = {}
    for name in ("plain", "s.style", "child.pt"):  # a StyleGAN-NADA child is one, too
        for number in track.numbers:
            pattern = str(tmp_path / f"{name}.####.exr")
            task = Frame(File(), File(), int(number), style_amount="1001:0,1002:1")
            files = {"track": tmp_path / "track.latents", "character": tmp_path / "me.character"}
            if name != "plain":
                files["style"] = tmp_path / name
            context = Context(
                Report(True), files, {}, {"frame": Path(pattern)}, load_character=lambda path: who
            )
            registry.run_task(task, context)
            drawn[name, int(number)] = read_frame(open_clip(pattern), int(number)).pixels
    assert np.array_equal(drawn["plain", 1001], drawn["s.style", 1001])
    assert np.abs(drawn["plain", 1002] - drawn["s.style", 1002]).mean() > 0.02
    for number in (1001, 1002):  # a style's weights are half floats
        np.testing.assert_allclose(drawn["child.pt", number], drawn["s.style", number], atol=5e-3)
    for name in ("s.style", "child.pt"):
        told = read_attribute(tmp_path / f"{name}.1002.exr", "reenact:style")
        assert told == load_style(tmp_path / name, who).hash
