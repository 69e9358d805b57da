"""Node.js, and the packages of the client that the tests run in it."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from server.locks import exclusive_lock

OLDEST = 20
# What npm says where its registry can't be reached.
OFFLINE = (
    "EAI_AGAIN",
    "ECONNREFUSED",
    "ECONNRESET",
    "EHOSTUNREACH",
    "ENETUNREACH",
    "ENOTFOUND",
    "ERR_SOCKET_TIMEOUT",
    "ETIMEDOUT",
)
INSTALL = ("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reenact-tests"


def node_program(sources: Path, folder: Path) -> tuple[str, Path]:
    """Puts a program with its packages into a folder; the test is skipped where that can't be.

    Packages are installed once for each content of `package-lock.json`, and kept for later runs.

    Args:
        sources: the program's folder, with `package.json` and `package-lock.json`.
        folder: of this test; it is made.

    Returns:
        The command of Node.js, and the folder.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("Node.js with npm is not here: install it to run the client in JavaScript")
    version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout.strip()
    if int(version.lstrip("v").partition(".")[0]) < OLDEST:
        pytest.skip(f"Node.js {version} is too old: the client in JavaScript needs {OLDEST}")
    lock = (sources / "package-lock.json").read_bytes()
    packages = CACHE / f"node-{hashlib.sha256(lock).hexdigest()[:16]}"
    with exclusive_lock(packages.with_suffix(".lock"), "npm still installs packages.", 240):
        if not (packages / "complete").exists():
            shutil.rmtree(packages, ignore_errors=True)
            packages.mkdir(parents=True)
            for name in ("package.json", "package-lock.json"):
                shutil.copy(sources / name, packages)
            done = subprocess.run([npm, *INSTALL], cwd=packages, capture_output=True, text=True)
            if done.returncode and any(code in done.stderr for code in OFFLINE):
                pytest.skip("npm's registry can't be reached: the client's packages come from it")
            assert done.returncode == 0, done.stderr
            (packages / "complete").touch()
    shutil.copytree(sources, folder)
    (folder / "node_modules").symlink_to(packages / "node_modules")
    return node, folder
