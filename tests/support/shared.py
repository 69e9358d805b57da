"""What takes long to make is made once per run, by whichever worker of pytest-xdist needs it."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from server.locks import exclusive_lock

# Of all workers of a run; set by `conftest.py`.
FOLDER: Path | None = None


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """Returns a folder that `make` has filled; nothing in it may be changed.

    Args:
        name: of what is made, the same in every worker.
        make: receives the empty folder.
    """
    folder = (FOLDER or Path(tempfile.mkdtemp())) / name
    with exclusive_lock(folder.with_suffix(".lock"), f"{name} is still being made.", 280):
        complete = folder / "complete"
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)  # a worker that died left a part
            folder.mkdir(parents=True)
            make(folder)
            complete.touch()
    return folder
