"""The command line, as a user runs it."""

import subprocess
import sys
from pathlib import Path


def reenact(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process of its own, and waits for it."""
    command = [sys.executable, "-m", "server.cli.main", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
