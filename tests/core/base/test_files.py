"""Places that can't be written are told before the work; JSON of any editor is read."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from core.base.files import NotWritableError, check_writable, read_json


def test_a_place_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    before = tmp_path.stat().st_mtime_ns
    check_writable(tmp_path / "a.png")
    check_writable(tmp_path / "new" / "deep" / "a.png")
    assert not list(tmp_path.iterdir())
    assert sys.platform != "linux" or tmp_path.stat().st_mtime_ns == before


def test_what_can_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.symlink("nowhere", tmp_path / "link")
    os.symlink("loop", tmp_path / "loop")
    for path, said in (
        ("", "is a folder"),
        ("file/a.png", "is a file"),
        ("file/new/deep/a.png", "is a file"),
        ("link/a.png", "leads nowhere"),
        ("loop/a.png", "leads nowhere"),
        (f"{'a' * 300}.png", "too long"),
        (f"{'a' * 245}.png", "too long"),  # with what is added while it is written
        (f"new/{'b' * 300}/a.png", "too long"),
    ):
        with pytest.raises(NotWritableError, match=said):
            check_writable(tmp_path / path)


@pytest.mark.skipif(sys.platform != "linux", reason="/sys")
def test_a_disk_that_takes_no_files_is_told() -> None:
    with pytest.raises(NotWritableError, match="can't be written in /sys"):
        check_writable("/sys/new/a.png")


@pytest.mark.skipif(sys.platform != "linux", reason="rights of other users")
def test_a_folder_without_rights_is_told() -> None:
    code = (
        "import os, sys\n"
        "from core.base.files import NotWritableError, check_writable\n"
        "if os.getuid() == 0: os.setuid(65534)\n"  # root has all rights
        "for name in ('a.png', 'b/a.png'):\n"
        "    try: check_writable(f'{sys.argv[1]}/{name}')\n"
        "    except NotWritableError as error: print(error)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        command = [sys.executable, "-c", code, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("Permission denied. Choose another place.") == 2


def test_json_of_any_editor_is_read_and_no_pipe_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_text('["é"]', encoding=encoding)
        assert read_json(path) == ["é"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OSError, match="it is a pipe"):
            read_json(tmp_path / "pipe")
