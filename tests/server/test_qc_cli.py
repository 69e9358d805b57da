"""`reenact qc` as its users run it, by itself and through a server."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import reenact, reenact_here
from reenact import protocol
from running_server import wait_for
from small_shot import FIRST, FRAMES, WRONG, small_shot

from core.media.errors import ClipNotFoundError
from server.cli import qc
from server.jobs import registry
from server.jobs.common import BadOptionError


@pytest.fixture(scope="module")
def shot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tracks of one shot, their character and their plate."""
    folder = tmp_path_factory.mktemp("a shot [of two]")
    for path in small_shot(tmp_path_factory.mktemp("small"))[:2]:
        shutil.copyfile(path, folder / path.name)
    shutil.copyfile(folder / "shot.latents", folder / "other.latents")
    return folder


def test_a_table_of_two_tracks_and_a_report_of_each(shot: Path) -> None:
    """The first through the server, the same again without, killed on the way."""
    done = reenact("qc", "shot.latents", "other.latents", "--table", "--json", cwd=shot)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    result = next(line["result"] for line in lines if "result" in line)
    names = [s["shot"] for s in result["shots"]]
    assert names == ["shot", "other"]
    rows = list(csv.reader((shot / "qc_table.csv").read_text().splitlines()))
    assert rows[0] == ["shot", "frames", "ID", "APD x100", "AED x10", "NIQE"]
    assert [row[0] for row in rows[1:]] == ["shot", "other", "mean"]
    assert rows[1][2:] == rows[2][2:] == rows[3][2:]  # the same track twice
    assert json.loads((shot / "qc_table.json").read_text())["metrics"]["identity"].startswith(
        "proxy"
    )
    for name in names:
        folder = shot / f"{name}_qc"
        assert {p.name for p in folder.iterdir()} == set(registry.KINDS["qc"].results)
        assert not folder.with_name(f"{name}_qc.work").exists()
        facts = json.loads((folder / "qc.json").read_text())
        assert facts["frames"] == list(range(FIRST, FIRST + FRAMES))
        assert facts["marks"][0]["frame"] == WRONG
        assert json.loads((folder / "repairs.json").read_text()) == facts["repairs"]
        report = (folder / "report.html").read_text(encoding="utf-8")
        assert f"<h1>{name}</h1>" in report
        assert facts["character"] in report
        assert "nobody: synthetic" in report  # who agreed
    served = json.loads((shot / "shot_qc" / "qc.json").read_text())
    again = (
        "qc",
        "shot.latents",
        "--local",
        "-o",
        "again",
        "--batch",
        "3",
        "--limit",
        "clipping=99",
    )
    killed = subprocess.Popen([sys.executable, "-m", "server.cli.main", *again], cwd=shot)
    kept = shot / "again" / "shot_qc.work"
    wait_for(lambda: list(kept.glob("*_3.checkpoint")), 120, "six frames")
    killed.kill()
    killed.wait()
    done = reenact_here(*again, cwd=shot)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"the worst is {WRONG}" in done.stdout
    here = json.loads((shot / "again" / "shot_qc" / "qc.json").read_text())
    assert here["limits"]["clipping"] == [None, 99]
    assert not kept.exists()
    for name, values in served["measures"].items():
        ours, theirs = (np.array(v, float) for v in (here["measures"][name], values))
        np.testing.assert_allclose(ours, theirs, atol=2e-2, err_msg=name)


def test_a_list_that_somebody_worked_on_is_not_written_over(tmp_path: Path) -> None:
    qc.keep_edited(tmp_path / "none")
    for name, content in (("qc.json", {"repairs": []}), ("repairs.json", [])):
        (tmp_path / name).write_text(json.dumps(content))
    qc.keep_edited(tmp_path)
    (tmp_path / "repairs.json").write_text('[{"do": "hold"}]')
    with pytest.raises(qc.RepairListExistsError, match="Move it away"):
        qc.keep_edited(tmp_path)
    (tmp_path / "repairs.json").write_text("[")
    with pytest.raises(qc.RepairListExistsError):
        qc.keep_edited(tmp_path)
    (tmp_path / "qc.json").unlink()
    with pytest.raises(qc.RepairListExistsError):
        qc.keep_edited(tmp_path)


def test_a_plate_that_is_gone_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(qc.PlateMissingError, match="--plate"):
        qc.driving(str(tmp_path / "gone.####.exr"), Path("a.latents"), None, None)
    with pytest.raises(qc.PlateMissingError, match="any known place"):
        qc.driving("", Path("a.latents"), None, None)
    with pytest.raises(ClipNotFoundError):
        qc.driving("", Path("a.latents"), str(tmp_path / "gone.mov"), None)


def test_the_mean_is_over_what_is_known() -> None:
    shots = [
        {"shot": "a", "frames": 3, "ID": 0.5, "APD": 1.0, "AED": None, "NIQE": None},
        {"shot": "b", "frames": 9, "ID": 0.7, "APD": None, "AED": None, "NIQE": 4.0},
    ]
    mean = qc.with_mean(shots)[-1]
    assert mean == {"shot": "mean", "frames": 12, "ID": 0.6, "APD": 1.0, "AED": None, "NIQE": 4.0}


def test_wrong_calls_say_what_is_needed(shot: Path) -> None:
    done = reenact_here("qc", "shot.latents", "other.latents", "--plate", "x.####.png", cwd=shot)
    assert done.returncode == 2
    assert "once for each track" in " ".join(done.stderr.replace("│", "").split())
    for limits, said in (
        ({"smiles": 1.0}, "There is no measure 'smiles' to limit. There are landmarks, "),
        ({"lips": -1.0}, "The limit of lips must be a number from 0"),
        ({"lips": "2"}, "The limit of lips must be a number from 0"),
    ):
        task = protocol.Qc(protocol.File(), protocol.File(), protocol.Clip(), limits=limits)
        with pytest.raises(BadOptionError, match=said):
            registry.check_task(task)
