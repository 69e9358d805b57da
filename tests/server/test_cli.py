"""The command line, run as its users run it."""

from pathlib import Path

import numpy as np
import OpenImageIO as oiio
import pytest
from command_line import reenact, reenact_here

from core.media.write import write_exr
from core.synthetic import performer
from server.cli import reporting


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six linear EXRs of a performer, 1001-1006 without 1004, some highlights above 1."""
    folder = tmp_path_factory.mktemp("a film [of one]")
    for i, p in enumerate(performer.performance(performer.random_identity(2), 6, seed=2)):
        if i == 3:
            continue
        picture = (performer.render(p, 192) / 255.0).astype(np.float32) ** 2.2
        picture[:8, :8] = 3.0
        write_exr(folder / f"shot.{1001 + i}.exr", picture)
    return folder


def test_without_a_terminal_a_line_says_how_long_a_stage_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reporting, "ESTIMATE_SECONDS", 0.0)
    with reporting.Report().stage("tuning") as progress:
        progress(0, 4)
        progress(1, 4)
        progress(2, 4)
        progress(3, 4)
    assert capsys.readouterr().out.count("tuning: about 0 s left") == 1


def test_a_scan_that_is_too_short_says_what_to_record(film: Path, tmp_path: Path) -> None:
    done = reenact(
        "personalize", film / "shot.####.exr", "-o", "me.character", "--consent", "me", cwd=tmp_path
    )
    assert done.returncode == 1
    assert "20 to 30 seconds" in done.stderr
    assert not list(tmp_path.glob("*.character"))


def test_track_says_what_it_found(film: Path, tmp_path: Path) -> None:
    done = reenact("track", film / "shot.####.exr", "--sheet", "s.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "missing frames: 1004" in done.stdout
    assert "face in 5 of 5 frames (100.0 %)" in done.stdout
    assert "highlights above 1 in 5 frames" in done.stdout
    assert oiio.ImageBuf(str(tmp_path / "s.png")).spec().nchannels == 3


def test_a_broken_frame_keeps_what_was_tracked(film: Path, tmp_path: Path) -> None:
    for plate in film.iterdir():
        data = plate.read_bytes()
        (tmp_path / plate.name).write_bytes(data[:900] if "1005" in plate.name else data)
    done = reenact_here("track", tmp_path / "shot.####.exr", "--sheet", "s.png", cwd=tmp_path)
    assert done.returncode == 1
    assert "shot.1005.exr" in done.stderr
    assert "Traceback" not in done.stderr
    assert "face in 3 of 3 frames" in done.stdout
    assert (tmp_path / "s.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.####.exr"], "There is no nowhere.####.exr"),
        (["FILM", "--at", "900,10"], "lies outside the plate, 192x192"),
        (["FILM", "--at", "nan,nan"], "outside the plate"),
        (["FILM", "--at", "here"], "X,Y in plate px"),
        (["FILM", "--sheet", "s.jpg"], ".png file"),
        (["FILM", "--colour-space", "ACESgc"], "ACEScg"),
    ],
)
def test_wrong_input_is_a_sentence(
    film: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    plates = str(film / "shot.####.exr")
    done = reenact_here("track", *[plates if a == "FILM" else a for a in arguments], cwd=tmp_path)
    assert done.returncode != 0
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
