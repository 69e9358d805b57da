"""The demo as its users run it, and the command line on what it leaves."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import OpenImageIO as oiio
import pytest
from command_line import reenact, reenact_here

from core.media.write import write_exr
from core.personalize.character import character_hash
from core.solve.latent_track import load_track, save_track

SIZE = 128  # of its plates, px
DEMO = (
    *("demo", "--scan-frames", "24", "--frames", "4", "--size", str(SIZE)),
    *("--steps", "2", "--refine", "0", "--detail-steps", "2"),
)
STYLES = ("--style-steps", "1")
NO_STYLES = ("--style-steps", "0")

pytestmark = pytest.mark.timeout(600)


class Demo(NamedTuple):
    """What a demo leaves."""

    folder: Path
    said: str
    seconds: float  # until its frames were there, before the styles


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """A small demo."""
    folder = tmp_path_factory.mktemp("a demo [of two]")
    begun = time.time()
    done = reenact(*DEMO, *STYLES, cwd=folder)
    assert done.returncode == 0, done.stderr
    drawn = max(path.stat().st_mtime for path in (folder / "demo" / "out").iterdir())
    return Demo(folder, done.stdout, drawn - begun)


def test_the_demo_ends_with_patches_a_track_and_pictures(demo: Demo) -> None:
    folder, said, _ = demo
    assert "perceptual metric: " in said
    assert "4 frames (4 solved)" in said
    out = sorted((folder / "demo" / "out").iterdir())
    assert [p.name for p in out] == [f"out.{n}.exr" for n in range(1001, 1005)]
    for path in out:
        pixels = oiio.ImageBuf(str(path))
        spec = pixels.spec()
        assert (spec.full_width, spec.full_height) == (SIZE, SIZE)
        assert spec.width < SIZE  # the data window is the face
        alpha = pixels.get_pixels()[..., spec.alpha_channel]
        assert alpha.max() > 0.99
        assert alpha[0, 0] == alpha[-1, -1] == 0
    names = {p.suffix for p in (folder / "demo").iterdir()}
    assert names >= {".character", ".latents", ".png", ".mp4"}
    sheet = oiio.ImageBuf(str(folder / "demo" / "sheet.png")).spec()
    assert sheet.height > 3 * SIZE  # driving, reenacted, ground truth
    first = oiio.ImageBuf(str(folder / "demo" / "first.png")).spec()
    assert first.width == 3 * 256 > 2 * first.height  # the same of one frame, side by side
    assert said.index("first picture: ") < said.index("4 frames (4 solved)")
    assert "_reconstruction.png will show" in said
    (character,) = (folder / "demo").glob("*.character")
    for name in ("sketch", "posterise"):
        assert len([*(folder / "demo" / name).glob(f"{name}.*.exr")]) == 4
        sheet = oiio.ImageBuf(str(folder / "demo" / f"sheet_{name}.png")).spec()
        assert sheet.height > 3 * SIZE  # driving, reenacted, styled
        (style,) = (folder / "demo").glob(f"{name}_*.style")
        told = reenact_here("inspect", style, "--json", cwd=folder)
        facts = json.loads(told.stdout)["result"]
        assert facts["parent"] == character_hash(character)
        assert (facts["complete"], facts["steps"], facts["method"]["program"]) == (True, 1, name)


def test_a_demo_run_again_keeps_everything(demo: Demo) -> None:
    folder = demo.folder
    kept = [*(folder / "demo").glob("*.character"), *(folder / "demo").rglob("*.exr")]
    before = [p.stat().st_mtime_ns for p in kept]
    again = reenact(*DEMO, *STYLES, "--json", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert [p.stat().st_mtime_ns for p in kept] == before
    lines = [json.loads(line) for line in again.stdout.splitlines()]  # nothing but JSON
    assert sum("result" in line for line in lines) == 4  # solved, drawn, and drawn in two styles


def test_a_part_is_solved_again_and_the_rest_kept(demo: Demo, tmp_path: Path) -> None:
    folder = demo.folder
    (track,) = (folder / "demo").glob("*.latents")
    (character,) = (folder / "demo").glob("*.character")
    done = reenact(
        "solve",
        folder / "demo/driving/driving.####.exr 1002-1003",
        "--character",
        character,
        "--previous",
        track,
        "--steps",
        3,
        "-o",
        tmp_path / "again.latents",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    old, new = load_track(track), load_track(tmp_path / "again.latents")
    assert new.numbers.tolist() == [1001, 1002, 1003, 1004]
    same = (old.codes == new.codes).all((1, 2))
    assert same.tolist() == [True, False, False, True]


def test_handles_are_solved_too(demo: Demo, tmp_path: Path) -> None:
    folder = demo.folder
    (character,) = (folder / "demo").glob("*.character")
    # All that the server is told must be Unicode; names of files need not be.
    here = tmp_path / (os.fsdecode(b"n\xe9") if sys.platform == "linux" else "n\xe9")
    here.mkdir()
    (here / "driving").symlink_to(folder / "demo/driving")
    plate = here / "driving/driving.####.exr 1003-1003"
    track = here / f"{here.name}.latents"
    solve = ("solve", plate, "--character", character, "--steps", 1, "-o", track)
    done = reenact(*solve, "--handles", 1, "--neutral", "off", cwd=here)
    assert done.returncode == 0, done.stderr
    assert load_track(track).numbers.tolist() == [1002, 1003, 1004]
    assert not load_track(track).neutral_offset.any()
    drawn = reenact(
        "render",
        track,
        "-o",
        "out.####.exr",
        "--plate",
        plate,
        "--character",
        character,
        "--movie",
        "a.mp4",
        "--sheet",
        "a.png",
        "--truth",
        folder / "demo/truth/truth.####.exr 1003-1004",
        cwd=here,
    )
    assert drawn.returncode == 0, drawn.stderr
    assert [p.name for p in here.glob("*.exr")] == ["out.1003.exr"]  # handles are not
    elsewhere = folder / "demo/driving/driving.####.exr 1001-1001"
    nothing = reenact_here(
        "render",
        track,
        "-o",
        "out.####.exr",
        "--plate",
        elsewhere,
        "--character",
        character,
        cwd=here,
    )
    assert nothing.returncode == 1
    assert "1002-1004" in nothing.stderr
    for wrong in (("--handles", 1, "--previous", track), ("--neutral", "1001")):
        refused = reenact_here(*solve, *wrong, cwd=here)
        assert refused.returncode == 2
        assert wrong[0].strip("-") in refused.stderr


def test_what_a_track_does_not_fit_is_said_before_the_work(demo: Demo, tmp_path: Path) -> None:
    folder = demo.folder
    (character,) = (folder / "demo").glob("*.character")
    (path,) = (folder / "demo").glob("*.latents")
    track = load_track(path)
    smooth = track.smooth.copy()
    smooth[-1] = np.nan
    save_track(tmp_path / "partial.latents", replace(track, smooth=smooth))
    save_track(tmp_path / "edited.latents", replace(track, recipe=({"do": "edit"},)))
    kept = np.isin(track.numbers, [1001, 1002])
    arrays = {
        name: getattr(track, name)[kept]
        for name in (
            "numbers",
            "state",
            "cut",
            "alpha",
            "delta",
            "codes",
            "smooth",
            "landmarks",
            "quads",
            "amount",
        )
    }
    tables = {
        name: {term: values[kept] for term, values in getattr(track, name).items()}
        for name in ("losses", "quality")
    }
    save_track(tmp_path / "short.latents", replace(track, **arrays, **tables))
    write_exr(tmp_path / "proxy.1002.exr", np.zeros((50, 50, 3), np.float32))
    plate, proxy = folder / "demo/driving/driving.####.exr", tmp_path / "proxy.####.exr"
    again = ("--character", character, "--local", "-o", "new.latents", "--previous")
    drawn = ("--character", character, "-o", "out.####.exr")
    for arguments, words in (
        (("render", "partial.latents", *drawn), "not complete. Finish its solve"),
        (("render", path, *drawn, "--plate", proxy), "proxy.####.exr is 50x50, the track was"),
        (("solve", plate, *again, "partial.latents"), "not complete. Finish its solve"),
        (("solve", plate, *again, "edited.latents"), "The previous track was edited"),
        (("solve", plate, *again, "short.latents"), "has no 1003-1004, only 1001-1002"),
        (("solve", proxy, *again, path), "is 50x50"),
        (("solve", plate, *again, path, "--at", "3,4"), "--previous needs no --at"),
        (("solve", plate, "--character", character, "-o", "shot.track"), "a .latents file"),
        (("solve", plate, "--character", character, "-o", path / "a.latents"), "is a file"),
        (("render", path, *drawn, "--plate", plate, "--sheet", path / "s.png"), "is a file"),
    ):
        refused = reenact_here(*arguments, "--json", cwd=tmp_path)
        assert refused.returncode in (1, 2), arguments
        assert words in json.loads(refused.stdout.splitlines()[-1])["error"], arguments
    assert not (tmp_path / "new.latents").exists()
    assert not list(tmp_path.glob("out.*"))


def test_render_finds_the_character_beside_the_track(demo: Demo, tmp_path: Path) -> None:
    folder = demo.folder
    (track,) = (folder / "demo").glob("*.latents")
    done = reenact("render", track, "-o", "crop.####.exr", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("crop.*.exr"))) == 4
    alone = tmp_path / "alone.latents"
    alone.write_bytes(track.read_bytes())
    lost = reenact_here("render", alone, "-o", "lost.####.exr", cwd=tmp_path)
    assert lost.returncode == 1
    assert "--character" in lost.stderr


def test_inspect_tells_both_files(demo: Demo) -> None:
    folder = demo.folder
    for pattern, words in (("*.character", "nobody: a synthetic"), ("*.latents", "1001-1004")):
        (path,) = (folder / "demo").glob(pattern)
        done = reenact_here("inspect", path, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert words in done.stdout
    done = reenact_here("inspect", path, "--terms", "--json", cwd=folder)
    terms = json.loads(done.stdout)["result"]["terms"]
    track = load_track(path)
    assert [row["frame"] for row in terms] == track.numbers.tolist()
    for name, values in track.losses.items():
        assert [row[name] for row in terms] == pytest.approx(values.tolist(), abs=1e-4)
    wrong = reenact_here("inspect", folder / "demo" / "sheet.png", "--json", cwd=folder)
    assert wrong.returncode == 1
    assert "sheet.png" in json.loads(wrong.stdout)["error"]


def test_the_server_can_be_looked_at(demo: Demo, tmp_path: Path) -> None:
    (track,) = (demo.folder / "demo").glob("*.latents")
    drawn = reenact("render", track, "-o", "out.####.exr", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr  # with a server, though the demo's be idle and gone
    shown = reenact("status", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert all(word in shown.stdout for word in ("personalize", "solve", "render", "GiB"))
    jobs = json.loads(reenact_here("status", "--json", cwd=tmp_path).stdout)["list"]
    (job,) = [j["id"] for j in jobs if j["kind"] == "personalize" and j["state"] == "done"][:1]
    log = reenact_here("logs", job, cwd=tmp_path).stdout
    assert log.index("queued") < log.index("running") < log.index("perceptual metric")
    assert log.rstrip().endswith("done")
    assert "owner" in reenact_here("keys", "list", cwd=tmp_path).stdout
    refused = reenact_here("store", "collect", cwd=tmp_path)
    assert "A server uses the store" in refused.stderr
    assert reenact("serve", cwd=tmp_path).stderr.startswith("reenact: A server runs")
    assert reenact_here("job", "delete", "nothing", cwd=tmp_path).returncode == 0
    unknown = reenact_here("job", "pause", "nothing", cwd=tmp_path)
    assert "doesn't know this job" in unknown.stderr


def test_a_demo_killed_three_times_ends_with_the_same_frames(demo: Demo, tmp_path: Path) -> None:
    """Each time with its server and workers, wherever they are: early, half-way, late."""
    command = [sys.executable, "-m", "server.cli.main", *DEMO, *NO_STYLES]
    environment = os.environ | {"REENACT_HOME": str(tmp_path / "home")}

    def run(kill_after: float | None = None) -> None:
        with (tmp_path / "log").open("ab") as log:
            demo = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        if kill_after is None:
            assert demo.wait(250) == 0, (tmp_path / "log").read_text()
        else:
            time.sleep(kill_after)
            demo.kill()
            demo.wait()
        kill_all(tmp_path / "home")

    rng = np.random.default_rng(int(time.time()))
    for share in (0.1, 0.3, 0.5):
        run(demo.seconds * (share + float(rng.uniform(0, 0.2))))
    run()
    expected = sorted((demo.folder / "demo" / "out").glob("*.exr"))
    assert [p.name for p in expected] == [f"out.{n}.exr" for n in range(1001, 1005)]
    for path in expected:
        here, there = (oiio.ImageBuf(str(p)) for p in (path, tmp_path / "demo" / "out" / path.name))
        assert here.roi == there.roi
        np.testing.assert_array_equal(here.get_pixels(), there.get_pixels())


def kill_all(folder: Path) -> None:
    """Kills every process that works for a home, as a power cut would."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"REENACT_HOME={folder}\0" in (process / "environ").read_text():
                os.kill(int(process.name), signal.SIGKILL)
