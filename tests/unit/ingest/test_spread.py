"""Some of many examples, from all over."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingest.spread import spread


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_as_many_different_examples_as_asked_for_in_order(count: int, available: int) -> None:
    rows = spread(count, available)
    assert len(rows) == min(count, available)
    assert (np.diff(rows) > 0).all()
    assert not len(rows) or (rows[0] >= 0 and rows[-1] < available)


@given(st.integers(17, 3000), st.integers(1, 40))
def test_they_reach_from_end_to_end_in_short_runs(count: int, times: int) -> None:
    available = count * (times + 1)
    rows = spread(count, available)
    assert (rows[0], rows[-1]) == (0, available - 1)
    ends = np.flatnonzero(np.diff(rows) > 1)
    runs = np.diff([-1, *ends, count - 1])
    assert runs.max() <= 16
    assert np.diff(rows).max() < 2 * available / len(runs) + 16, "no part of the dataset is left out"


def test_validation_does_not_look_at_one_long_recording() -> None:
    """Ten recordings of 2,000 windows: the first 256 windows would be of one of them."""
    assert set(spread(256, 20_000) // 2000) == set(range(10))
