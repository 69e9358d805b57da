"""The documents: their links, paths, commands and snippets, held against the repository.

Shell commands stand in blocks of language `sh`. Each is parsed by the program that it calls, so no
document names an option that does not exist; those that need no files of a user are run.
"""

import ast
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import typer
import zmq.auth
from repository import ROOT
from typer.testing import CliRunner

from core.solve.latent_track import FrameState, LatentTrack, save_track

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("benchmarks", "core", "docs", "gizmos", "nuke_plugin", "server", "tests", "tools")
LANGUAGES = {"sh", "python", "json", "text"}
TOOLS = ("ruff", "mypy", "pytest")  # of the development environment
PLACEHOLDER = re.compile(r"\b[A-Z]{3,}\b")  # server/jobs/KIND.py

# Documented commands that are run, with files that the test provides.
RUN = (
    "keys add",
    "keys list",
    "keys revoke",
    "store show",
    "store collect",
    "models inspect",
    "models import",
    "models sample",
    "inspect shot.latents",
    "repair shot.latents --do interpolate",
)


class Block(NamedTuple):
    """A fenced block of a document."""

    document: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.document.name}:{self.line}"


@cache
def blocks(document: Path) -> tuple[Block, ...]:
    """The fenced blocks of a document."""
    found, lines = [], document.read_text(encoding="utf-8").splitlines()
    start = None
    for i, line in enumerate(lines):
        if line.lstrip().startswith("```"):
            if start is None:
                start = i
            else:
                language = lines[start].strip()[3:]
                text = textwrap.dedent("\n".join(lines[start + 1 : i]))
                found.append(Block(document, start + 1, language, text))
                start = None
    assert start is None, f"{document.name}:{start} is never closed"
    return tuple(found)


def prose(document: Path) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)


def inline_code(document: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(document))


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def commands(language: str = "sh") -> Iterator[tuple[str, list[str]]]:
    """Every shell command: its place and its words, without comments."""
    for document in DOCUMENTS:
        for block in blocks(document):
            if block.language != language:
                continue
            for line in re.sub(r"\\\n *", "", block.text).splitlines():
                line = re.sub(r"(^|\s)#\s.*$", "", line).strip()
                if line:
                    yield block.place, shlex.split(line)


# -- README, links, paths ------------------------------------------------------------------------


def test_readme_is_short() -> None:
    assert (ROOT / "README.md").stat().st_size <= 8192


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_relative_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), f"{document.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", prose(path), flags=re.M)
            assert anchor in map(slug, headings), f"{document.name} links to {target}"


def test_every_document_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for document in DOCUMENTS:
        if document.name != "index.md":
            assert f"{document.name})" in index, f"docs/index.md does not list {document.name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_paths_and_modules_in_backticks_exist(document: Path) -> None:
    for code in inline_code(document):
        if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./*@-]*", code) and not PLACEHOLDER.search(
            code
        ):
            assert list(ROOT.glob(code.rstrip("/"))), f"{document.name} names {code}"
        elif re.fullmatch(r"(core|server|reenact)(\.\w+)+(?<!\.json)", code):
            assert is_module_or_name(code), f"{document.name} names {code}"
    for path, names in re.findall(r"`([\w/]+\.py)` \(((?:`\w+`(?:, )?)+)\)", prose(document)):
        text = (ROOT / path).read_text(encoding="utf-8")
        for name in re.findall(r"\w+", names):
            assert re.search(rf"\b{name}\b", text), f"{document.name} says that {path} has {name}"


def is_module_or_name(dotted: str) -> bool:
    """Whether `core.a.b` is a module, or what a module defines."""
    package, *parts = dotted.split(".")
    base = ROOT / ("nuke_plugin/reenact" if package == "reenact" else package)
    for end in range(len(parts), 0, -1):
        place = base.joinpath(*parts[:end])
        source = place.with_suffix(".py") if place.with_suffix(".py").exists() else place
        if source.is_dir():
            return end == len(parts)
        if source.exists():
            return end == len(parts) or parts[end] in names_in(source)
    return False


def names_in(source: Path) -> set[str]:
    """What a module defines at its top level."""
    names = set()
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


# -- blocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_every_block_has_a_language_and_no_command_stands_outside(document: Path) -> None:
    for block in blocks(document):
        assert block.language in LANGUAGES, f"{block.place} has the language {block.language!r}"
    outside = re.search(r"^ {4,}(\.venv/bin/|python3? |reenact |pip ).*$", prose(document), re.M)
    assert outside is None, f"{document.name}: put it into a block of sh: {outside}"


def test_snippets_of_python_compile_and_their_imports_resolve() -> None:
    for document in DOCUMENTS:
        for block in blocks(document):
            if block.language == "json":
                json.loads(block.text)
            elif block.language == "python":
                for node in ast.walk(ast.parse(block.text, block.place)):
                    if isinstance(node, ast.ImportFrom):
                        module = importlib.import_module(str(node.module))
                        for alias in node.names:
                            assert hasattr(module, alias.name), f"{block.place}: {alias.name}"
                    elif isinstance(node, ast.Import):
                        for alias in node.names:
                            importlib.import_module(alias.name)


# -- commands ------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def application() -> Any:
    """The `reenact` command, as pyproject.toml names it."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (name,) = re.findall(r'^reenact = "([\w.]+):main"$', text, flags=re.M)
    return importlib.import_module(name).app


@lru_cache(maxsize=1)
def subcommands() -> dict[str, Any]:
    """Every subcommand of `reenact` by its words, such as `keys add`."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        if not hasattr(command, "commands"):
            yield " ".join(words), command
            return
        for name, below in command.commands.items():
            yield from walk(below, (*words, name))

    return dict(walk(typer.main.get_command(application()), ()))


def subcommand(words: list[str]) -> tuple[str, list[str]]:
    """The name of the subcommand that words call, and its arguments."""
    for count in (2, 1):
        if (name := " ".join(words[:count])) in subcommands():
            return name, words[count:]
    raise AssertionError(f"there is no command reenact {' '.join(words)}")


def check_reenact(words: list[str]) -> None:
    name, arguments = subcommand(words)
    subcommands()[name].make_context(name, arguments)  # parses; raises with a sentence


@cache
def help_of_install(*words: str) -> str:
    command = [sys.executable, str(ROOT / "install.py"), *words, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def check_install(words: list[str]) -> None:
    name, *rest = words or ["install"]
    if name in ("demo", "test"):
        if name == "demo":
            check_reenact(["demo", *rest])
        return
    if name == "nuke":
        text = help_of_install("nuke")
        assert all(w in text for w in rest if w.startswith("--")), rest
        return
    assert name == "install" or f"install.py {name}" in help_of_install(), name
    assert set(rest) <= {"--json"}, rest


@cache
def options_of_script(path: Path) -> set[str]:
    """The options that a script's parser defines."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            found |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return found


def check_python(words: list[str]) -> None:
    if words[0] == "-m":
        module, rest = words[1], words[2:]
        if module in TOOLS:
            return
        assert is_module_or_name(module), f"there is no module {module}"
        path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
        script = path if path.exists() else path.with_suffix("") / "__main__.py"
    else:
        script, rest = ROOT / words[0], words[1:]
        if words[0] == "install.py":
            check_install(rest)
            return
    assert script.exists(), f"there is no {script}"
    for word in rest:
        if word.startswith("--"):
            assert word in options_of_script(script), f"{script.name} has no option {word}"


def check(words: list[str]) -> None:
    """Holds a command against the program that it calls."""
    program, rest = words[0].rpartition("/")[2], words[1:]
    if program == "reenact":
        check_reenact(rest)
    elif re.fullmatch(r"python3?", program):
        check_python(rest)
    elif program == "export":
        name = rest[0].partition("=")[0]
        sources = (ROOT / "nuke_plugin" / "reenact").glob("*.py")
        assert any(f'"{name}"' in s.read_text(encoding="utf-8") for s in sources), name
    else:
        assert program in TOOLS, f"{program} is no program that documents may name"


def test_every_command_is_one_that_its_program_takes() -> None:
    found = list(commands())
    assert len(found) > 40
    for place, words in found:
        try:
            check(words)
        except Exception as error:
            pytest.fail(f"{place}: {' '.join(words)}: {error}")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_options_and_commands_in_prose_exist(document: Path) -> None:
    known = {"--help"} | set(re.findall(r"--[\w-]+", help_of_install("nuke")))
    for command in subcommands().values():
        known |= {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
    for code in inline_code(document):
        words = code.split()
        if words[0] == "reenact" and len(words) > 1:
            name, rest = subcommand(words[1:])
            own = {o for p in subcommands()[name].params for o in (*p.opts, *p.secondary_opts)}
            assert {w for w in rest if w.startswith("--")} <= own, f"{document.name}: {code}"
        elif words[0] in ("python", "python3", ".venv/bin/python"):
            check_python(words[1:])
        elif not code.startswith("python") and not PLACEHOLDER.fullmatch(words[0]):
            options = set(re.findall(r"(?:^|\s)(--[a-z][\w-]*)", code))
            assert options <= known, f"{document.name} names {options - known}"


def test_every_command_is_documented() -> None:
    text = "\n".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    for name in subcommands():
        assert f"reenact {name}" in text, f"no document names reenact {name}"


def test_every_subcommand_has_help() -> None:
    for name in subcommands():
        result = CliRunner().invoke(application(), [*name.split(), "--help"])
        assert result.exit_code == 0, f"reenact {name} --help"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files of a user's names, and a home of its own."""
    monkeypatch.setenv("REENACT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("REENACT_SERVER", raising=False)
    monkeypatch.chdir(tmp_path)
    zmq.auth.create_certificates(tmp_path, "anna")
    for name in ("ffhq.pkl", "ffhq.safetensors"):
        shutil.copyfile(ROOT / "core" / "synthetic" / "weights" / "base.safetensors", name)
    frames, layers, anchors = 20, 4, 3
    alpha = np.full((frames, anchors), 1 / anchors, np.float32)
    codes = np.zeros((frames, layers, 512), np.float32)
    save_track(
        tmp_path / "shot.latents",
        LatentTrack(
            character="0" * 64,
            numbers=np.arange(1030, 1030 + frames),
            state=np.full(frames, FrameState.SOLVED, np.uint8),
            cut=np.arange(frames) == 0,
            alpha=alpha,
            delta=np.zeros((frames, layers, anchors), np.float32),
            codes=codes,
            smooth=codes,
            neutral_offset=np.zeros((86, 3), np.float32),
            landmarks=np.full((frames, 478, 3), np.nan, np.float32),
            quads=np.full((frames, 4, 2), np.nan),
            amount=np.ones(frames, np.float32),
            losses={},
            quality={"keypoint_error": np.ones(frames, np.float32)},
            settings={},
        ),
    )
    return tmp_path


@pytest.mark.usefixtures("workspace")
def test_commands_that_need_nothing_of_a_user_run() -> None:
    ran = set()
    for place, words in commands():
        if words[0].rpartition("/")[2] != "reenact":
            continue
        line = " ".join(words[1:])
        kinds = [kind for kind in RUN if line.startswith(kind)]
        if kinds:
            local = ["--local"] if kinds[0].startswith("repair") else []
            result = CliRunner().invoke(application(), [*words[1:], *local])
            assert result.exit_code == 0, f"{place}: {line}\n{result.output}{result.exception!r}"
            ran |= set(kinds)
    assert ran == set(RUN), f"no document has {set(RUN) - ran}"


def test_the_doctor_runs() -> None:
    command = [sys.executable, str(ROOT / "install.py"), "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert json.loads(done.stdout)["checks"]["python"]["state"] == "ok", done.stderr


# -- architecture.md -----------------------------------------------------------------------------


def test_architecture_names_every_module_and_no_other() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    said = {
        f"{folder}/{name}"
        for folder, table in re.findall(r"^### `([\w/]+)`\n(.*?)(?=^#|\Z)", text, re.M | re.S)
        for name in re.findall(r"^\| `(\w+\.py)` \|", table, flags=re.M)
    }
    folders = (ROOT / "core", ROOT / "server", ROOT / "nuke_plugin" / "reenact")
    existing = {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in folder.rglob("*.py")
        if path.name != "__init__.py" and "vendor" not in path.parts
    }
    assert said - existing == set(), "files that do not exist"
    assert existing - said == set(), "files that are not described"


def test_architecture_gives_the_versions_that_the_code_has() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [\w ]+ \| .* \| (\d+) \| `([\w/]+\.py)` \|$", text, flags=re.M)
    assert len(rows) == 7
    for version, path in rows:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^(VERSION|SCHEMA) = {version}$", source, re.M), path


# -- tools ---------------------------------------------------------------------------------------


def test_the_picture_of_the_flow_is_what_its_tool_draws() -> None:
    code = "import runpy; print(runpy.run_path('tools/flow_picture.py')['picture'](), end='')"
    drawn = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert drawn.stdout == (ROOT / "docs" / "flow.svg").read_bytes()


def test_tools_find_what_they_import() -> None:
    for tool in sorted((ROOT / "tools").glob("*.py")):
        code = f"import runpy; runpy.run_path({str(tool)!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, f"{tool.name}: {done.stderr}"
