"""The checkpoint store: what is saved is loaded for the same task, and for no other."""

from pathlib import Path

import pytest
import torch

from core.base.checkpoints import (
    CheckpointMismatchError,
    CheckpointNotSavedError,
    load_checkpoint,
    save_checkpoint,
)

STATE = {
    "tensor": torch.tensor([1.0, float("nan"), -0.0]),
    "numbers": [1, 2.5, None, "text", (True, b"\x00\xff\x00")],
    "inner": {"a": [torch.arange(3)]},
}


def test_the_same_task_gets_its_state_back(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "work.checkpoint"
    assert load_checkpoint(path, "task") is None
    save_checkpoint(path, "task", STATE)
    state = load_checkpoint(path, "task")
    assert state is not None
    assert state.keys() == STATE.keys()
    left, right = state["tensor"], STATE["tensor"]
    assert torch.equal(left.view(torch.int32), right.view(torch.int32))  # type: ignore[attr-defined]
    assert state["numbers"] == STATE["numbers"]
    assert torch.equal(state["inner"]["a"][0], torch.arange(3))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_another_task_and_damage_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "work.checkpoint"
    save_checkpoint(path, "task", STATE)
    whole = path.read_bytes()
    with pytest.raises(CheckpointMismatchError, match=r"other inputs or settings\. Delete it"):
        load_checkpoint(path, "other")
    assert path.read_bytes() == whole
    for content in (b"", whole[: len(whole) // 2], b"x" * 1000):
        path.write_bytes(content)
        with pytest.raises(CheckpointMismatchError, match=r"damaged\. Delete it"):
            load_checkpoint(path, "task")
    for other in ([1], {"tensor": torch.zeros(1)}):
        torch.save(other, path)
        with pytest.raises(CheckpointMismatchError, match="damaged"):
            load_checkpoint(path, "task")


class Dangerous:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("was_run"),))


def test_loading_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"task": "task", "state": Dangerous()}, tmp_path / "work.checkpoint")
    with pytest.raises(CheckpointMismatchError, match="damaged"):
        load_checkpoint(tmp_path / "work.checkpoint", "task")
    assert not (tmp_path / "was_run").exists()


def test_a_failed_save_keeps_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "work.checkpoint"
    save_checkpoint(path, "task", {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(path, "task", {"step": lambda: None})
    assert load_checkpoint(path, "task") == {"step": 1}
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointNotSavedError, match="goes on from the last checkpoint"):
        save_checkpoint(tmp_path / "file" / "work.checkpoint", "task", {})
