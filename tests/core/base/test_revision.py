from pathlib import Path

import pytest

from core.base.revision import CORE, revision


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_bytes(b"")
    (folder / "inner/code.py").write_bytes(b"RATE = 2\nSTEPS = 3\n")
    (folder / "inner/weights.npz").write_bytes(bytes(range(256)))
    return folder


def copied(folder: Path, to: Path) -> Path:
    for path in folder.rglob("*.*"):
        other = to / path.relative_to(folder)
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes(path.read_bytes())
    return to


def test_it_depends_on_nothing_but_the_package(package: Path, tmp_path: Path) -> None:
    other = copied(package, tmp_path / "elsewhere/of/another/name")
    (other / "__pycache__").mkdir()
    (other / "__pycache__/code.cpython-311.pyc").write_bytes(b"compiled")
    code = other / "inner/code.py"
    code.write_bytes(code.read_bytes().replace(b"\n", b"\r\n"))
    assert revision(other) == revision(package)
    assert len(revision()) == len(revision(package)) == 64
    assert revision() == revision(CORE) != revision(package)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("inner/code.py", b"RATE = 3\nSTEPS = 3\n"),
        ("inner/weights.npz", bytes(range(255)) + b"\0"),
        ("__init__.py", b"# new"),
        ("inner/other.py", b""),
    ],
)
def test_every_change_counts(package: Path, tmp_path: Path, name: str, content: bytes) -> None:
    other = copied(package, tmp_path / "changed")
    (other / name).write_bytes(content)
    assert revision(other) != revision(package)


def test_a_byte_that_moves_to_the_next_file_counts(package: Path, tmp_path: Path) -> None:
    (package / "a.py").write_bytes(b"xy")
    (package / "b.py").write_bytes(b"z")
    other = copied(package, tmp_path / "changed")
    (other / "a.py").write_bytes(b"x")
    (other / "b.py").write_bytes(b"yz")
    assert revision(other) != revision(package)
