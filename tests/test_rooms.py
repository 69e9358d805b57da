"""Who may import whom: `ALLOWED` is the rule, for imports in functions too.

A room is a package or a module. A module belongs to the room with the longest name that begins its
own; inside its room it may import what it likes, and of the project's other modules those below
one of the names in the room's row.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    "core": ROOT / "core",
    "server": ROOT / "server",
    "reenact": ROOT / "nuke_plugin/reenact",
}

ALLOWED: dict[str, set[str]] = {
    "core.base": set(),
    "core.media": {"core.base"},
    "core.generator": {"core.base"},
    "core.face": {"core.base", "core.media", "core.generator"},
    "core.synthetic": {"core.base", "core.media", "core.generator", "core.face"},
    "core.personalize": {
        "core.base",
        "core.media",
        "core.generator",
        "core.face",
        "core.synthetic.base",
    },
    "core.solve": {"core.base", "core.media", "core.generator", "core.face", "core.personalize"},
    "core.stylize": {
        "core.base",
        "core.media",
        "core.generator",
        "core.face",
        "core.synthetic.base",
        "core.personalize",
    },
    "core.edit": {
        "core.base",
        "core.media",
        "core.generator",
        "core.face",
        "core.synthetic",
        "core.personalize",
        "core.solve",
    },
    "core.render": {
        "core.base",
        "core.media",
        "core.generator",
        "core.face",
        "core.personalize.detail",
        "core.solve",
        "core.stylize",
    },
    "core.quality": {
        "core.base",
        "core.media",
        "core.face",
        "core.personalize",
        "core.solve",
        "core.render",
    },
    # It runs before anything of Reenact's is on the path.
    "server.start": set(),
    "reenact": set(),  # the plugin: Nuke's Python has nothing of the server's
    # The installer needs it before there is an environment.
    "server.locks": {"core.base.errors"},
    "server.blobs": {"reenact.protocol"},
    "server.jobs": {"core", "reenact"},
    "server.worker": {"core", "reenact.protocol", "server.blobs", "server.jobs", "server.locks"},
    # It reads no picture and loads no torch, nor does the registry.
    "server.frontend": {
        "core.base.errors",
        "core.base.files",
        "reenact",
        "server.blobs",
        "server.jobs.registry",
        "server.locks",
        "server.start",
    },
    "server.cli": {
        "core",
        "reenact.address",
        "reenact.client",
        "reenact.errors",
        "reenact.launcher",
        "reenact.protocol",
        "server.frontend.database",  # the store's commands, while no server runs
        "server.frontend.home",
        "server.frontend.service",
        "server.jobs",
        "server.locks",
        "server.start",
    },
    "server.install": {
        "core.stylize.clip_model",
        "core.base.files",
        "reenact.client",
        "reenact.protocol",
        "server.locks",
    },
}


@cache
def modules() -> dict[str, Path]:
    """The project's modules by name."""
    found = {}
    for package, folder in SOURCES.items():
        for path in folder.rglob("*.py"):
            if "vendor" in path.parts:  # the plugin's pyzmq
                continue
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def imports(name: str) -> set[str]:
    """The project's modules that a module imports."""
    path = modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) + 1 - node.level]
                source = ".".join((*above, *filter(None, [source])))
            for alias in node.names:  # a name of a module, or a module
                whole = f"{source}.{alias.name}"
                found.add(whole if whole in modules() else source)
    return {one for one in found if one.partition(".")[0] in SOURCES}


def below(name: str, prefix: str) -> bool:
    """Whether a module is another one, or in it."""
    return f"{name}.".startswith(f"{prefix}.")


def room(name: str) -> str:
    """The room of a module; empty: it is in none."""
    return max((one for one in ALLOWED if below(name, one)), key=len, default="")


def crossings() -> Iterator[tuple[str, str]]:
    """Modules of rooms, and what each imports from outside its room."""
    for name in modules():
        if room(name):
            for imported in imports(name):
                if room(imported) != room(name):
                    yield name, imported


def test_every_import_is_allowed() -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, imported in crossings()
        if not any(below(imported, one) for one in ALLOWED[room(name)])
    ]
    assert not wrong


def test_no_permission_is_idle() -> None:
    used = {
        (room(name), one)
        for name, imported in crossings()
        for one in ALLOWED[room(name)]
        if below(imported, one)
    }
    assert used == {(name, one) for name, row in ALLOWED.items() for one in row}


def test_every_module_is_in_a_room() -> None:
    assert {n for n in modules() if not room(n)} == {"core", "server"}


def test_rooms_are_no_circle() -> None:
    ahead = {name: {room(one) for one in row} - {""} for name, row in ALLOWED.items()}
    while ahead:
        free = {name for name, needs in ahead.items() if not needs & ahead.keys()}
        assert free, f"a circle among {sorted(ahead)}"
        ahead = {name: needs for name, needs in ahead.items() if name not in free}


def test_imports_are_found_wherever_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "one.py"
    path.write_text(
        "import core.base.errors\n"
        "def f():\n"
        "    from core.base import files\n"
        "    from core.base.files import atomic_write\n"
        "    from . import blobs\n"
        "    from .frontend import home as h, database\n"
        "    import json\n"
    )
    monkeypatch.setitem(modules(), "server.one", path)
    assert imports("server.one") == {
        "core.base.errors",
        "core.base.files",
        "server.blobs",
        "server.frontend.database",
        "server.frontend.home",
    }


def loaded(module: str, *options: str) -> set[str]:
    """What is loaded after a module has been imported by a fresh interpreter."""
    code = f"import sys, {module}; print(*sys.modules)"
    path = os.pathsep.join([str(ROOT), str(ROOT / "nuke_plugin")])
    command = [sys.executable, *options, "-c", code]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_the_front_end_loads_nothing_that_reads_pictures_or_computes() -> None:
    heavy = {"torch", "numpy", "OpenImageIO", "av", "cv2", "safetensors"}
    assert not loaded("server.frontend.service") & heavy


def test_commands_load_what_reads_pictures_or_computes_when_they_need_it() -> None:
    """`reenact serve` and `reenact status` never do."""
    heavy = {"torch", "OpenImageIO", "av", "cv2", "scipy", "numba"}
    assert not loaded("server.cli.main") & heavy


def test_the_installer_needs_the_standard_library_alone() -> None:
    without_packages = "-S"
    assert "zmq" not in loaded("server.install.installer", without_packages)
