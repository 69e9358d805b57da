"""Other Pythons of this machine, on which things are to run as well."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

# As this user has it: tests may change HOME.
VERSIONS = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"


def find_interpreter(version: str, needs: str = "sys") -> Path | None:
    """A Python of that version with that module, of pyenv or on PATH; itself, and no shim."""
    code = f"import sys, {needs}; print('%s|%d.%d' % ((sys.executable,) + sys.version_info[:2]))"
    for candidate in [*VERSIONS.glob(f"{version}.*/bin/python"), shutil.which(f"python{version}")]:
        if candidate:
            told = subprocess.run([candidate, "-c", code], capture_output=True, text=True)
            path, _, found = told.stdout.strip().partition("|")
            if found == version:
                return Path(path).resolve()
    return None


def interpreter(version: str, needs: str = "sys") -> Path:
    """The same; without one, the test is skipped."""
    found = find_interpreter(version, needs)
    if found is None:
        pytest.skip(f"no Python {version} with {needs} here")
    return found
