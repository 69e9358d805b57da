"""The command line, run as its users run it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import OpenImageIO as oiio
import pytest
from command_line import reenact, reenact_here
from small_demo import DEMO, SIZE, STYLES, Demo

from core.media.write import write_exr
from core.personalize.character import character_hash
from core.solve.latent_track import load_track, save_track
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
    assert first.width == 3 * 160 > 2 * first.height  # the same of one frame, side by side
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
    plate, track = folder / "demo/driving/driving.####.exr 1003-1003", tmp_path / "shot.latents"
    solve = ("solve", plate, "--character", character, "--steps", 1, "-o", track)
    done = reenact(*solve, "--handles", 1, "--neutral", "off", cwd=tmp_path)
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
        cwd=tmp_path,
    )
    assert drawn.returncode == 0, drawn.stderr
    assert [p.name for p in tmp_path.glob("*.exr")] == ["out.1003.exr"]  # handles are not
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
        cwd=tmp_path,
    )
    assert nothing.returncode == 1
    assert "1002-1004" in nothing.stderr
    for wrong in (("--handles", 1, "--previous", track), ("--neutral", "1001")):
        refused = reenact_here(*solve, *wrong, cwd=tmp_path)
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
    jobs = json.loads(reenact("status", "--json", cwd=tmp_path).stdout)["list"]
    (job,) = [j["id"] for j in jobs if j["kind"] == "personalize" and j["state"] == "done"][:1]
    log = reenact("logs", job, cwd=tmp_path).stdout
    assert log.index("queued") < log.index("running") < log.index("perceptual metric")
    assert log.rstrip().endswith("done")
    assert "owner" in reenact("keys", "list", cwd=tmp_path).stdout
    refused = reenact("store", "collect", cwd=tmp_path)
    assert "A server uses the store" in refused.stderr
    assert reenact("serve", cwd=tmp_path).stderr.startswith("reenact: A server runs")
    assert reenact("job", "delete", "nothing", cwd=tmp_path).returncode == 0
    unknown = reenact_here("job", "pause", "nothing", cwd=tmp_path)
    assert "doesn't know this job" in unknown.stderr


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
    done = reenact("track", tmp_path / "shot.####.exr", "--sheet", "s.png", cwd=tmp_path)
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
