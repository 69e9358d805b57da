"""From a scan to a character: what was computed before a break is not computed again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from performer_faces import film_scan
from small_character import small_character

from core.face.aligned_clip import align_clip
from core.media.read import open_clip
from core.media.write import to_bytes, write_png
from core.personalize import inversion, pipeline, tuning
from core.personalize.character import NoConsentError, load_character, save_character
from core.personalize.pipeline import (
    EncoderWithoutBaseError,
    PersonalizeSettings,
    ResolutionError,
    WrongScanError,
    _at_resolution,
    add_detail,
    detail_resolution,
    personalize,
)

SETTINGS = PersonalizeSettings(count=8, steps=4, refine=1, batch=3, detail_steps=2)
CONSENT = {"who": "nobody: a synthetic person"}


class Recorder:
    """A report that records what it receives, and interrupts at a step of a stage."""

    def __init__(self, stop: str = "", at: int = 0) -> None:
        self.notes: list[str] = []
        self.stages: list[str] = []
        self.done: dict[str, list[float]] = {}
        self.stop, self.at = stop, at

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def stage(self, title: str) -> Iterator[Callable[..., None]]:
        self.stages.append(title)

        def progress(done: float, total: float, **figures: float) -> None:
            self.done.setdefault(title, []).append(done)
            if title == self.stop and done >= self.at:
                raise KeyboardInterrupt

        yield progress


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> str:
    return film_scan(tmp_path_factory.mktemp("scan"), 24)


@pytest.fixture(autouse=True)
def few_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures on two pictures."""
    monkeypatch.setattr(pipeline, "HELD_OUT", 2)


def test_a_break_while_tuning_costs_neither_anchors_nor_steps(
    scan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = small_character().generator
    settings = replace(SETTINGS, resolution=base.architecture.resolution)

    def made(path: Path, report: Recorder) -> None:
        clip = open_clip(scan)
        personalize(clip, path, report, consent=CONSENT, settings=settings, base=base)

    made(tmp_path / "whole.character", Recorder())
    path = tmp_path / "parts.character"
    with pytest.raises(KeyboardInterrupt):
        made(path, Recorder("tuning", 2))
    assert not path.exists()
    kept = [p.name.split("_")[0] for p in (tmp_path / "parts.character.work").iterdir()]
    assert sorted(kept) == ["pivots", "tuning"]
    monkeypatch.setattr(inversion, "invert", lambda *_, **__: pytest.fail("inverted again"))
    again = Recorder()
    made(path, again)
    assert again.done["tuning"] == [3, 4]
    assert not (tmp_path / "parts.character.work").exists()
    whole, parts = (load_character(tmp_path / f"{n}.character") for n in ("whole", "parts"))
    assert torch.equal(whole.anchors, parts.anchors)
    assert whole.info.selected == parts.info.selected
    for name, tensor in whole.generator.state_dict().items():
        assert torch.equal(tensor, parts.generator.state_dict()[name]), name
    for name in ("selection", "reconstruction"):
        assert (tmp_path / f"parts_{name}.png").stat().st_size > 1000


def test_other_settings_leave_what_was_kept(scan: str, tmp_path: Path) -> None:
    path, clip = tmp_path / "me.character", open_clip(scan)
    for refine in (1, 3):
        report = Recorder("tuning", 1)
        with pytest.raises(KeyboardInterrupt):
            personalize(
                clip, path, report, consent=CONSENT, settings=replace(SETTINGS, refine=refine)
            )
    work = tmp_path / "me.character.work"
    first, second = (torch.load(p, weights_only=True)["w"] for p in work.glob("pivots_*"))
    assert not torch.equal(first, second)
    assert len(list(work.glob("tuning_*/*"))) == 2


def test_anchors_are_searched_for_and_tuned_on_as_told(
    scan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, clip, work = small_character().generator, open_clip(scan), tmp_path / "me.character.work"
    searched, tuned = [], []

    def descend(loss: Any, start: torch.Tensor, steps: int, *_: Any) -> tuple[torch.Tensor, ...]:
        searched.append(steps)
        return start, torch.zeros(len(start))

    def tune(*given: Any, **_: Any) -> None:
        tuned.append(given[4])
        raise KeyboardInterrupt

    monkeypatch.setattr(inversion, "_descend", descend)
    monkeypatch.setattr(tuning, "tune", tune)
    for encoder in (None, MeanEncoder(base.mapping(torch.zeros(1, 512))[0])):
        with pytest.raises(KeyboardInterrupt):
            personalize(
                clip,
                tmp_path / "me.character",
                Recorder(),
                consent=CONSENT,
                base=base,
                encoder=encoder,
                settings=replace(SETTINGS, refine=None, mask=encoder is None),
            )
    assert {*searched[: len(searched) // 2]} == {150}
    assert {*searched[len(searched) // 2 :]} == {60}
    assert [(how.features, how.background) for how in tuned] == [(5, 0.2), (1, 1)]
    # What was found without the encoder is not taken for what is found with it.
    assert len([*work.glob("pivots*")]) == 2


def test_what_is_trained_on_is_cut_out_as_large_as_it_is_drawn(scan: str) -> None:
    clip, rows = open_clip(scan, 1, 4), np.array([3, 0, 2])
    small, large = (align_clip(clip, size) for size in (64, 96))
    assert torch.equal(_at_resolution(small, rows, 96), large.pictures[rows])
    assert torch.equal(_at_resolution(small, rows, 64), small.pictures[rows])


class MeanEncoder(torch.nn.Module):
    """Gives everyone the same code."""

    def __init__(self, w: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("w", w)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.w.expand(len(pictures), -1)  # type: ignore[operator]


def test_an_encoder_needs_its_generator(scan: str, tmp_path: Path) -> None:
    with pytest.raises(EncoderWithoutBaseError, match="--base"):
        personalize(
            open_clip(scan),
            tmp_path / "me.character",
            Recorder(),
            consent=CONSENT,
            encoder=MeanEncoder(torch.zeros(512)),
        )


def test_nobody_becomes_a_character_without_a_name(scan: str, tmp_path: Path) -> None:
    with pytest.raises(NoConsentError):
        personalize(open_clip(scan), tmp_path / "me.character", Recorder(), consent={"who": " "})
    assert not list(tmp_path.iterdir())


def test_detail_is_added_later_and_the_character_stays(scan: str, tmp_path: Path) -> None:
    """It keeps its hash, a break costs no step, and another scan is refused."""
    who, plain, sharp = (
        small_character(),
        tmp_path / "plain.character",
        tmp_path / "sharp.character",
    )
    save_character(plain, who)
    before, size = load_character(plain), who.generator.architecture.resolution
    # Its scan, as far as it is known: frames that look as its anchors do, and others between.
    numbers = who.info.selected
    drawn = tuning.reconstruct(who.generator, who.anchors) / 2 + 0.5
    for number in range(numbers[-1] + 1):
        picture = drawn[max(i for i, n in enumerate(numbers) if n <= number)]
        if number in numbers or number % 10 == 5:
            large = F.interpolate(picture[None], (160, 160), mode="bicubic")[0]
            write_png(tmp_path / f"own.{number:04d}.png", to_bytes(large.permute(1, 2, 0).numpy()))
    clip, asked = open_clip(str(tmp_path / "own.####.png")), replace(SETTINGS, resolution=256)
    with pytest.raises(KeyboardInterrupt):
        add_detail(clip, plain, sharp, Recorder("detail", 1), settings=asked)
    assert not sharp.exists()
    report = Recorder()
    after = add_detail(clip, plain, sharp, report, settings=asked)
    assert report.done["detail"] == [2]
    assert after.hash == before.hash
    assert (before.resolution, after.resolution) == (size, 256)
    assert after.detail is not None
    assert after.detail.info.source == clip.shown
    assert (tmp_path / "sharp_detail.png").stat().st_size > 1000
    assert not (tmp_path / "sharp.character.work").exists()

    with pytest.raises(ResolutionError, match="drawn at"):
        add_detail(clip, plain, sharp, Recorder(), settings=replace(SETTINGS, resolution=size))
    wrong = tmp_path / "own.0000.png"
    for number in numbers:  # all frames show what only the first should
        (tmp_path / f"own.{number:04d}.png").write_bytes(wrong.read_bytes())
    with pytest.raises(WrongScanError, match="differ from the character's pictures"):
        add_detail(open_clip(clip.shown), plain, sharp, Recorder(), settings=asked)
    with pytest.raises(WrongScanError, match="no face in its frames"):
        add_detail(open_clip(scan), plain, sharp, Recorder(), settings=asked)


@pytest.mark.parametrize(
    ("side", "base", "asked", "expected"),
    [
        (130.0, 128, None, 256),
        (300.0, 128, None, 256),
        (390.0, 128, None, 512),
        (900.0, 128, None, 1024),
        (5000.0, 128, None, 1024),
        (300.0, 512, None, 512),
        (300.0, 128, 128, 128),
        (300.0, 128, 1024, 1024),
    ],
)
def test_the_resolution_is_what_the_scan_supports(
    side: float, base: int, asked: int | None, expected: int
) -> None:
    quads = np.array([[[0, 0], [0, side], [side, side], [side, 0]]])
    report = Recorder()
    assert detail_resolution(asked, quads, base, report) == expected
    assert f"{side:.0f} px" in report.notes[0]
    assert ("soft" in report.notes[0]) == (expected > 2 * side)


@pytest.mark.parametrize(("base", "asked"), [(128, 64), (256, 128), (128, 300), (128, 2048)])
def test_impossible_resolutions_name_the_possible_ones(base: int, asked: int) -> None:
    with pytest.raises(ResolutionError, match=f"Choose auto, {base}"):
        detail_resolution(asked, np.ones((1, 4, 2)) * [[1], [2], [3], [4]], base, Recorder())
