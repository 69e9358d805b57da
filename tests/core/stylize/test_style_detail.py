"""A style's own detail: learnt from the program, mixed with the character's, kept in the file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_character import small_character
from torch import Tensor

from core.face.skin import lay_out
from core.generator import Generator
from core.personalize.character import Character, load_character, save_character
from core.personalize.detail import (
    Detail,
    DetailInfo,
    DetailNetwork,
    DetailShape,
    draw_detailed,
    find_meshes,
)
from core.render.drawing import draw_frames, draw_pictures
from core.stylize.pixel_programs import run_program
from core.stylize.style import Style, load_style, mix
from core.stylize.training import Program, StylizeSettings, sample_codes, stylize

SETTINGS = StylizeSettings(steps=16, samples=8, rate=5e-3, check_every=16, metric="embedded")


class Quiet:
    """A report that may stop the work at a step of its detail."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop

    def note(self, text: str) -> None:
        pass

    @contextmanager
    def stage(self, title: str) -> Iterator[Callable[..., None]]:
        def progress(done: float, total: float, **figures: float) -> None:
            if title == "detail" and done == self.stop:
                raise KeyboardInterrupt

        yield progress


@pytest.fixture(scope="module")
def who(tmp_path_factory: pytest.TempPathFactory) -> Character:
    """The small character, drawn at twice its generator's size."""
    plain = small_character()
    a = plain.generator.architecture
    torch.manual_seed(0)
    network = DetailNetwork(DetailShape(a.resolution, 128, a.channels[a.resolution]))
    for name, parameter in network.eval().requires_grad_(False).named_parameters():
        if name.startswith(("rgb", "d128.skin")):
            parameter.copy_(0.05 * torch.randn_like(parameter))
    pictures = plain.generator.synthesis(plain.anchors)
    atlas = lay_out(find_meshes(pictures), pictures.numpy())
    path = tmp_path_factory.mktemp("who") / "who.character"
    save_character(path, replace(plain, detail=Detail(network, atlas, DetailInfo())))
    return load_character(path)


@pytest.fixture(scope="module")
def made(who: Character, tmp_path_factory: pytest.TempPathFactory) -> Style:
    folder = tmp_path_factory.mktemp("style")
    return stylize(who, Program("posterise"), folder / "p.style", Quiet(), settings=SETTINGS)


def drawn(generator: Generator, detail: Detail | None, who: Character, codes: Tensor) -> Tensor:
    assert detail is not None
    meshes = find_meshes(who.generator.synthesis(codes), detail.atlas)
    return draw_detailed(generator, detail, codes, meshes).clamp(-1, 1)


def test_it_draws_what_the_program_makes_of_the_characters_pictures(
    who: Character, made: Style
) -> None:
    codes = sample_codes(who.anchors, 6, seed=99)
    wanted = run_program("posterise", drawn(who.generator, who.detail, who, codes)).float()
    errors = [
        float((drawn(made.generator, detail, who, codes) - wanted).square().mean())
        for detail in (who.detail, made.detail)
    ]
    assert errors[1] < 0.9 * errors[0]
    assert made.detail is not None
    assert made.detail.resolution == 128
    assert made.detail.info.losses[-1]["psnr"] > made.detail.info.losses[0]["psnr"]


def test_a_break_in_it_changes_nothing(who: Character, made: Style, tmp_path: Path) -> None:
    path = tmp_path / "p.style"
    with pytest.raises(KeyboardInterrupt):
        stylize(who, Program("posterise"), path, Quiet(stop=5), settings=SETTINGS)
    assert not load_style(path, who).info.complete
    again = stylize(who, Program("posterise"), path, Quiet(), settings=SETTINGS)
    assert again.info.complete
    assert again.detail is not None
    assert made.detail is not None
    assert again.detail.digest() == made.detail.digest()
    assert not (tmp_path / "p.style.work").exists()


def test_mixes_with_detail_are_exact_at_both_ends(who: Character, made: Style) -> None:
    layers = who.generator.architecture.num_ws
    codes = sample_codes(who.anchors, 3, seed=5)
    wide = codes[:, None].expand(-1, layers, -1).numpy().copy()
    blend = mix(made, range(3), "0:0,2:1")
    first, between, last = draw_frames(who.generator, wide, detail=who.detail, mix=blend)
    (plain,) = draw_frames(who.generator, wide[:1], detail=who.detail)
    assert torch.equal(first, plain)
    assert torch.allclose(last, drawn(made.generator, made.detail, who, codes[2:])[0], atol=1e-4)
    near = mix(made, range(3), "0:0,1:.5001,2:1")
    _, other, _ = draw_frames(who.generator, wide, detail=who.detail, mix=near)
    assert 0 < (between - other).abs().max() < 0.01


def test_a_style_without_detail_keeps_the_characters(who: Character, made: Style) -> None:
    layers = who.generator.architecture.num_ws
    codes = sample_codes(who.anchors, 1, seed=5)
    wide = codes[:, None].expand(-1, layers, -1).numpy().copy()
    bare = replace(made, detail=None)
    (picture,) = draw_frames(who.generator, wide, detail=who.detail, mix=mix(bare, [1]))
    assert torch.allclose(picture, drawn(made.generator, who.detail, who, codes)[0], atol=1e-4)
    # Nor has one whose character was given other detail since.
    assert who.detail is not None
    moved = replace(who.detail.atlas, mean=who.detail.atlas.mean + np.float32(0.01))
    other = replace(who.detail, atlas=moved)
    assert not other.can_be_mixed(made.detail)
    # A character without detail is drawn at its generator's size.
    (small,) = draw_frames(who.generator, wide, mix=mix(made, [1]))
    assert torch.equal(small, next(draw_pictures(made.generator, wide)))
