"""Pictures of a solve: as often as they may take time, and no oftener."""

from pathlib import Path

import numpy as np
import pytest
from solve_shots import draw, driving, known

from core.personalize.character import Character
from core.solve import preview
from core.solve.preview import SolvePreview


def test_pictures_take_their_share_of_the_time_at_most(
    character: Character, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that we advance: batches of a second, and sheets that need longer and longer."""
    weights = known(6)
    clip = driving(draw(character, weights))
    codes = np.repeat((weights @ character.anchors.numpy())[:, None], 10, 1).astype(np.float32)
    now = [100.0]
    monkeypatch.setattr(preview.time, "monotonic", lambda: now[0])
    written: list[float] = []

    def on_written() -> None:
        now[0] += 0.3 + 0.05 * len(written)
        written.append(now[0])

    path = tmp_path / "progress.png"
    show = SolvePreview(character, clip, path, on_written)
    show(clip.numbers, codes)
    assert not path.exists()  # a short solve has none
    for _ in range(1000):
        now[0] += 1.0
        show(clip.numbers, codes)
    assert path.stat().st_size > 5000
    assert len(written) > 10
    begun = [t - 100 for t in written]
    spent = np.cumsum([0.3 + 0.05 * i for i in range(len(written))])
    # A sheet that takes longer than the one before is paid back before the next one.
    assert (spent <= preview.SHARE * np.array(begun) + 0.05).all()
    assert show.spent == pytest.approx(spent[-1])
