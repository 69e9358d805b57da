import numpy as np
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from core.face.temporal import shot_runs
from core.solve.schedule import plan_batches
from core.solve.settings import SolveSettings


@given(
    st.lists(st.tuples(st.integers(1, 8), st.booleans(), st.booleans()), min_size=1, max_size=60),
    st.sampled_from(["blend", "retrieval", "previous", "centre"]),
    st.integers(1, 7),
    st.integers(1, 9),
)
@hypothesis_settings(max_examples=150, deadline=None)
def test_every_frame_is_planned_once_and_after_what_it_starts_from(frames, start, batch, every):
    steps, cut, face = (np.array(column) for column in zip(*frames, strict=True))
    numbers = np.cumsum(steps)
    shots = shot_runs(numbers, cut, face)
    settings = SolveSettings(start=start, batch=batch, keyframe_every=every)
    plan = plan_batches(shots, face.copy(), settings)
    order = [int(row) for rows in plan for row in rows]
    assert sorted(order) == np.flatnonzero(face).tolist()
    assert all(1 <= len(rows) <= batch for rows in plan)
    solved: set[int] = set()
    for rows in plan:
        for row in map(int, rows):
            run = next(run for run in shots if row in run).tolist()
            if start == "previous":
                assert set(run[: run.index(row)]) <= solved
            if start == "blend" and row not in run[::every] and row != run[-1]:
                assert set(run[: run.index(row)]) & solved
                assert set(run[run.index(row) :]) & solved
        solved |= set(map(int, rows))
