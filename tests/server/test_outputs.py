"""No output is ever an input: every command, each of its outputs over each of its inputs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import typer
from command_line import reenact_here
from small_shot import small_shot

from core.media.write import write_exr, write_movie
from core.solve.latent_track import load_track, save_track
from server.cli.main import app

# Commands that write no file of the user's choice.
WITHOUT_OUTPUTS = {
    "inspect",
    "job",
    "keys list",
    "keys revoke",
    "logs",
    "models inspect",
    "serve",
    "status",
    "store collect",
    "store pin",
    "store show",
}
ELSEWHERE = {"demo", "keys add"}  # commands that tests of their own are about

# Files by name; sequences by one of their frames.
INPUTS = {
    "shot": "shot.latents",
    "who": "small.character",
    "plate": "plate.1003.png",
    "exr": "film.0002.exr",
    "movie": "driver.mp4",
    "net": "net.safetensors",
    "moves": "moves.json",
    "repairs": "repairs.json",
    "directions": "own.directions",
    "npy": "smile.npy",
}
PATTERNS = {"plate": "plate.####.png", "exr": "film.####.exr"}


@dataclass(frozen=True)
class Command:
    """How a command is called.

    Attributes:
        arguments: with names of `INPUTS` as {name}; without outputs.
        reads: what it reads, of `INPUTS`, by parameter.
        writes: the files that come of `o`, by option.
        says: parameters that name no file.
        needs: an output without which it can't be called.
    """

    arguments: str
    reads: dict[str, str]
    writes: dict[str, list[str]]
    says: set[str] = field(default_factory=set)
    needs: str = ""

    def words(self, option: str, output: str) -> list[str]:
        """Returns the arguments with one output."""
        names = {key: PATTERNS.get(key, file) for key, file in INPUTS.items()}
        words = self.arguments.format(**names).split()
        if option not in self.needs:
            words += self.needs.split()
        return [*words, *option.split(), output]


COMMANDS = {
    "track": Command("{plate}", {"clip": "plate"}, {"--sheet": ["o.png"]}, {"at", "colour_space"}),
    "models import": Command(
        "{net} --parent {who}",
        {"file": "net", "parent": "who"},
        {"--output": ["o.safetensors"]},
    ),
    "models export": Command(
        "--parent {who} {net}", {"file": "net", "parent": "who"}, {"": ["o.pt"]}
    ),
    "models sample": Command(
        "{net} --parent {who}", {"file": "net", "parent": "who"}, {"--output": ["o.png"]}
    ),
    "personalize": Command(
        "{plate} --consent me --base {net} --encoder {npy} --local",
        {"scan": "plate", "base": "net", "encoder": "npy"},
        {"-o": ["o.character", "o_selection.png", "o_reconstruction.png", "o_detail.png"]},
        {"consent", "metric", "scope", "at", "colour_space", "resolution", "add_detail"},
    ),
    "solve": Command(
        "{plate} --character {who} --previous {shot} --local",
        {"plate": "plate", "character": "who", "previous": "shot"},
        {"-o": ["o.latents"]},
        {"preset", "neutral", "at", "colour_space"},
    ),
    "render": Command(
        "{shot} --plate {movie} --character {who} --truth {exr} --style {net} --local",
        {"latents": "shot", "plate": "movie", "character": "who", "truth": "exr", "style": "net"},
        {"-o": ["o.0001.exr", "o.12345.exr"], "--movie": ["o.mp4"], "--sheet": ["o.png"]},
        {"layers", "style_amount", "colour_space", "output_space"},
        needs="-o p.####.exr",
    ),
    "directions": Command(
        "{npy} --local", {"source": "npy"}, {"-o": ["o.directions"], "--sheet": ["o.png"]}
    ),
    "edit": Command(
        "{shot} --character {who} --directions {directions} --moves {moves} --local",
        {"latents": "shot", "character": "who", "directions": "directions", "moves": "moves"},
        {"-o": ["o.latents"]},
        {"set_", "edge"},
    ),
    "repair": Command(
        "{shot} --list {repairs} --plate {plate} --character {who} --local",
        {"latents": "shot", "list_": "repairs", "plate": "plate", "character": "who"},
        {"-o": ["o.latents"]},
        {"do", "frames", "source", "only", "ease", "weight", "keys", "colour_space"},
    ),
    "qc": Command(
        "{shot} --plate {plate} --rendered {exr} --character {who} --recogniser {net} "
        "--face-model {npy} --table --local",
        {
            "latents": "shot",
            "plate": "plate",
            "rendered": "exr",
            "character": "who",
            "recogniser": "net",
            "face_model": "npy",
        },
        {
            "-o": [
                *[f"o/shot_qc/{name}" for name in ("report.html", "qc.csv", "qc.json")],
                *["o/shot_qc/repairs.json", "o/qc_table.csv", "o/qc_table.json"],
            ]
        },
        {"limit", "colour_space"},
    ),
    "style": Command(
        "{who} --pictures {plate} --local",
        {"character": "who", "pictures": "plate"},
        {"-o": ["o.style", "o_preview.png"]},
        {"program", "prompt", "source", "clip"},
    ),
}
# The parameters of options that are not called like them; what is given so that `o` is written.
PARAMETERS = {"-o": "output", "": "output"}
GIVEN = {"render -o": "o.####.exr", "qc -o": "o"}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for each of `INPUTS`."""
    folder = tmp_path_factory.mktemp("inputs")
    small_shot(folder)
    picture = np.zeros((16, 16, 3), np.float32)
    for number in (1, 2):
        write_exr(folder / f"film.{number:04d}.exr", picture)
    write_movie(folder / "driver.mp4", [picture] * 2, 24)
    moves = [{"direction": "smile", "keys": [[1001, 0.5, "linear"]], "rows": ""}]
    (folder / "moves.json").write_text(json.dumps(moves))
    (folder / "repairs.json").write_text(json.dumps([{"do": "solve", "frames": "1003"}]))
    for name in ("net.safetensors", "own.directions"):
        (folder / name).write_text(name)
    np.save(folder / "smile.npy", np.ones(512, np.float32))
    return folder


@pytest.fixture
def folder(originals: Path, tmp_path: Path) -> Path:
    """The inputs, for a test that would change them."""
    return Path(shutil.copytree(originals, tmp_path / "in"))


def listed(folder: Path) -> dict[str, bytes | None]:
    """Returns everything below a folder: files with their bytes, and folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def refused(words: str | list[str], folder: Path) -> str:
    """Runs a command that is refused and changes nothing, and returns what it says."""
    before = listed(folder)
    words = words.split() if isinstance(words, str) else words
    done = reenact_here(*words, cwd=folder)
    said = " ".join(done.stderr.replace("│", " ").split())
    assert done.returncode in (1, 2), said
    assert listed(folder) == before
    return said


def commands(group: typer.Typer, before: str = "") -> Iterator[tuple[str, dict[str, object]]]:
    """Yields the name of every command, and the types of its parameters."""
    for command in group.registered_commands:
        called = command.callback
        assert called is not None
        name = command.name or called.__name__.rstrip("_")
        hints = get_type_hints(called)
        hints.pop("return", None)
        yield before + name, hints
    for part in group.registered_groups:
        assert part.typer_instance is not None
        yield from commands(part.typer_instance, f"{part.name} ")


def test_every_parameter_that_may_name_a_file_is_known_here() -> None:
    found = dict(commands(app))
    assert found.keys() == COMMANDS.keys() | WITHOUT_OUTPUTS | ELSEWHERE
    for name, known in COMMANDS.items():
        texts = {
            parameter
            for parameter, kind in found[name].items()
            if "str" in str(kind) or "Path" in str(kind)
        }
        writes = {PARAMETERS.get(option, option.lstrip("-")) for option in known.writes}
        assert texts == known.reads.keys() | writes | known.says, name


@pytest.mark.parametrize(
    ("command", "option", "name", "source", "link"),
    [
        pytest.param(
            *(command, option, name, source, (os.link, os.symlink)[(i + j) % 2]),
            id=f"{command} {name} {source}",
        )
        for command, known in COMMANDS.items()
        for option, names in known.writes.items()
        for i, name in enumerate(names)
        for j, source in enumerate(known.reads.values())
    ],
)
def test_no_output_is_an_input(
    folder: Path,
    command: str,
    option: str,
    name: str,
    source: str,
    link: Callable[[Path, Path], None],
) -> None:
    """Each place that an output goes to is a link to an input, which would be replaced."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    link(folder / INPUTS[source], folder / name)
    known = COMMANDS[command]
    given = GIVEN.get(f"{command} {option}", known.writes[option][0])
    said = refused([*command.split(), *known.words(option, given)], folder)
    shown = given if "#" in given else name
    assert f"{shown} would overwrite {PATTERNS.get(source, INPUTS[source])}, the " in said


@pytest.mark.parametrize("command", COMMANDS)
def test_places_that_cannot_be_written_are_said_before_the_work(folder: Path, command: str) -> None:
    (folder / "file").write_text("no folder")
    known = COMMANDS[command]
    for option, (first, *_) in known.writes.items():
        place = f"file/deep/{GIVEN.get(f'{command} {option}', first)}"
        said = refused([*command.split(), *known.words(option, place)], folder)
        assert "can't be written" in said
        assert "file is a file" in said


@pytest.mark.parametrize(
    "words",
    [
        "render shot.latents -o film.####.exr --plate film.####.exr --local",
        "render shot.latents -o film.%04d.exr --plate film.0001.exr --local",
        "render shot.latents -o ../in/film.##.exr --truth film.####.exr --local",
        "render shot.latents -o o.####.exr --plate driver.mp4 --movie ./driver.mp4 --local",
        "track plate.1003.png --sheet plate.1003.png",
        "track . --sheet plate.1003.png",
        "track plate.####.png --sheet plate.0001.png",  # a number that it lacks
        "edit shot.latents --directions own.directions -o shot.latents --set smile=1 --local",
        "solve plate.####.png --character small.character --previous shot.latents -o shot.latents "
        "--local",
        "repair shot.latents --do hold --frames 1005 --from 1004 -o ./shot.latents --local",
        "models import net.safetensors",  # its own default
    ],
)
def test_names_of_inputs_are_refused_in_every_spelling(folder: Path, words: str) -> None:
    if words.startswith("track ."):
        for path in folder.glob("film.*"):
            path.unlink()
    assert "which is read. Choose another place." in refused(words, folder)


def test_a_server_is_not_asked_either(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REENACT_HOME", str(tmp_path / "home"))
    words = "render shot.latents -o film.####.exr --plate film.####.exr"
    assert "film.####.exr would overwrite film.####.exr, the plate" in refused(words, folder)
    assert not (tmp_path / "home").exists()


def test_crops_do_not_overwrite_the_plate_that_the_track_was_solved_on(folder: Path) -> None:
    track = replace(load_track(folder / "shot.latents"), source=str(folder / "film.####.exr"))
    save_track(folder / "shot.latents", track)
    words = "render shot.latents -o film.####.exr --local"
    assert "the driving clip of the track" in refused(words, folder)


@pytest.mark.parametrize(
    "words", ["-o o.####.exr --movie p.mp4 --sheet p.mp4/x.png", "-o o.png/##.exr --sheet o.png"]
)
def test_two_outputs_are_two_places(folder: Path, words: str) -> None:
    given = f"render shot.latents --plate plate.####.png {words} --local"
    assert "both be written in one place" in refused(given, folder)


def test_work_that_is_removed_holds_no_input(folder: Path) -> None:
    work = folder / "new.style.work"
    work.mkdir()
    for path in folder.glob("plate.*.png"):
        path.rename(work / path.name)
    words = "style small.character -o new.style --pictures new.style.work --local"
    assert "which is removed when the work is done" in refused(words, folder)


def test_the_demo_keeps_pictures_that_it_has_not_filmed(tmp_path: Path) -> None:
    write_exr(tmp_path / "driving" / "driving.1001.exr", np.zeros((4, 4, 3), np.float32))
    assert "is not of an earlier demo" in refused("demo --folder . --local", tmp_path)
    for name in ("sheet.png", "preview.mp4", "out/out.1001.exr", "sketch/sketch.1001.exr"):
        own = tmp_path / "own" / name
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_bytes(b"somebody's")
        assert f"{name} is not of an earlier demo" in refused("demo --folder own --local", tmp_path)
        assert own.read_bytes() == b"somebody's"
        shutil.rmtree(tmp_path / "own")
    (tmp_path / "file").write_text("no folder")
    assert "can't be written" in refused("demo --folder file --local", tmp_path)


def test_a_key_that_was_handed_over_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "them.key").write_text("their key")
    assert "reenact keys add them them.key" in refused("keys add them", tmp_path)


def test_a_pattern_may_be_printf_s_and_a_folder_may_have_a_hash(folder: Path) -> None:
    words = ["render", "shot.latents", "--plate"]
    frames = "plate.####.png 1001-1002"
    write_exr(folder / "a#b" / "o.1001.exr", np.zeros((4, 4, 3), np.float32))  # somebody's
    for replaced in (True, False):
        done = reenact_here(*words, frames, "-o", "a#b/o.%03d.exr", "--local", cwd=folder)
        assert done.returncode == 0, done.stderr
        note = "1 frame was replaced that Reenact had not written: a#b/o.1001.exr"
        assert (note in done.stdout) == replaced
    assert sorted(p.name for p in (folder / "a#b").iterdir()) == ["o.1001.exr", "o.1002.exr"]
    said = refused([*words, frames, "-o", "a#b/out.exr", "--local"], folder)
    assert "-o needs a pattern like out.####.exr, not a#b/out.exr" in said
