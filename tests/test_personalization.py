"""From a scan to a character: what was computed before a break is not computed again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from core import inversion, personalization
from core.character import NoConsent, load_character
from core.frames import open_clip, write_png
from core.synthetic import performer
from core.tuning import OtherTuning

SETTINGS = personalization.Settings(count=16, steps=4, refine=1)
CONSENT = {"who": "nobody: a synthetic person"}


class Told:
    """A report that remembers, and breaks off at a step of a stage."""

    def __init__(self, stop: str = "", at: int = 0) -> None:
        self.notes: list[str] = []
        self.stages: list[str] = []
        self.stop, self.at = stop, at

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def stage(self, title: str) -> Iterator[Callable[..., None]]:
        self.stages.append(title)

        def tick(done: float, total: float, **figures: float) -> None:
            if title == self.stop and done >= self.at:
                raise KeyboardInterrupt

        yield tick


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("scan")
    motion = performer.self_scan(performer.random_identity(6), 24, seed=6)
    for number, parameters in enumerate(motion, 1):
        write_png(folder / f"scan.{number:04d}.png", performer.render(parameters, 160))
    return str(folder / "scan.####.png")


def test_a_break_while_tuning_costs_neither_anchors_nor_steps(
    scan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(path: Path, report: Told) -> None:
        clip = open_clip(scan)
        personalization.personalize(clip, path, report, consent=CONSENT, settings=SETTINGS)

    made(tmp_path / "whole.character", Told())
    path = tmp_path / "parts.character"
    with pytest.raises(KeyboardInterrupt):
        made(path, Told("tuning", 2))
    assert not path.exists()
    assert {p.name for p in (tmp_path / "parts.character.work").iterdir()} == {
        "pivots.npz",
        "tuning.checkpoint",
    }
    monkeypatch.setattr(inversion, "invert", lambda *_, **__: pytest.fail("inverted again"))
    made(path, Told())
    assert not (tmp_path / "parts.character.work").exists()
    whole, parts = (load_character(tmp_path / f"{n}.character") for n in ("whole", "parts"))
    assert torch.equal(whole.anchors, parts.anchors)
    assert whole.info.selected == parts.info.selected
    for name, tensor in whole.generator.state_dict().items():
        assert torch.equal(tensor, parts.generator.state_dict()[name]), name
    for name in ("selection", "reconstruction"):
        assert (tmp_path / f"parts_{name}.png").stat().st_size > 1000


def test_anchors_of_other_settings_are_not_taken(scan: str, tmp_path: Path) -> None:
    path = tmp_path / "me.character"
    clip = open_clip(scan)
    with pytest.raises(KeyboardInterrupt):
        personalization.personalize(
            clip, path, Told("tuning", 1), consent=CONSENT, settings=SETTINGS
        )
    kept = np.load(tmp_path / "me.character.work" / "pivots.npz")["w"]
    again = Told("tuning", 0)
    with pytest.raises(OtherTuning):  # its checkpoint is of other anchors too
        personalization.personalize(
            clip, path, again, consent=CONSENT,
            settings=personalization.Settings(count=16, steps=4, refine=3),
        )  # fmt: skip
    assert "inverting" in again.stages
    now = np.load(tmp_path / "me.character.work" / "pivots.npz")["w"]
    assert not np.array_equal(kept, now)


def test_nobody_becomes_a_character_without_a_name(scan: str, tmp_path: Path) -> None:
    with pytest.raises(NoConsent):
        personalization.personalize(
            open_clip(scan), tmp_path / "me.character", Told(), consent={"who": " "}
        )
    assert not list(tmp_path.iterdir())
