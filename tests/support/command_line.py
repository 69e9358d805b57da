"""The command line, as a user runs it."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

from server import start


def reenact(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process of its own, and waits for it."""
    command = start.command("server.cli.main", *map(str, arguments))
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def reenact_here(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command in this process: quicker, where only what it says is of interest."""
    from server.cli.main import main  # not needed by those that start processes

    command = ["reenact", *map(str, arguments)]
    out, err, before = io.StringIO(), io.StringIO(), os.getcwd()
    os.chdir(cwd)
    try:
        with patch.object(sys, "argv", command), redirect_stdout(out), redirect_stderr(err):
            main()
        code: object = 0
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        os.chdir(before)
    assert isinstance(code, int)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())
