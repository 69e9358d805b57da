"""Benchmarks and tools, which no other test runs: what they import is where they look for it."""

import ast
import importlib
import sys
from pathlib import Path

import pytest
from repository import ROOT, SUPPORT

SCRIPTS = sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tools").glob("*.py")])
OURS = ("core", "server", "reenact", *(path.stem for path in SUPPORT.glob("*.py")))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_what_a_script_imports_exists(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        package = node.module.partition(".")[0]
        if package in OURS:
            module = importlib.import_module(node.module)
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                assert hasattr(module, alias.name) or importlib.import_module(name)
        if (SUPPORT / f"{package}.py").exists():
            assert '"tests" / "support"' in text  # it puts the folder on its path


def test_scripts_are_found() -> None:
    assert len(SCRIPTS) > 8
    assert str(ROOT / "tests") not in sys.path  # its folders would pass for packages
