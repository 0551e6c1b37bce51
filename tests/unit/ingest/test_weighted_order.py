"""Weighted draws in order ``blocks``: each row its share, and neighbours together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ingest.weighted import WeightedOrder

BLOCKS = st.lists(st.integers(1, 12), min_size=1, max_size=20)


def order_of(sizes: list[int], weights: np.ndarray, window_blocks: int = 3) -> WeightedOrder:
    bounds = np.cumsum([0, *sizes])
    return WeightedOrder(np.arange(bounds[-1]), weights, 1, "data", "blocks", bounds, window_blocks)


@settings(max_examples=80, deadline=None)
@given(BLOCKS, st.data())
def test_an_epoch_draws_every_row_its_share(sizes: list[int], data: st.DataObject) -> None:
    count = sum(sizes)
    weights = np.array(data.draw(st.lists(st.floats(0.001, 100), min_size=count, max_size=count)))
    order, epoch = order_of(sizes, weights), data.draw(st.integers(0, 3))
    drawn, epochs = order.indices(epoch * count, count), order.epochs(epoch * count, count)
    assert (np.abs(np.bincount(drawn, minlength=count) - weights / weights.sum() * count) < 1 + 1e-6).all()
    assert len(set(zip(drawn.tolist(), epochs.tolist(), strict=True))) == count


@settings(max_examples=60, deadline=None)
@given(BLOCKS, st.integers(0, 300), st.integers(1, 80), st.integers(1, 4))
def test_workers_share_a_batch_whole(sizes: list[int], start: int, count: int, workers: int) -> None:
    weights = np.random.default_rng(count).uniform(0.1, 5, sum(sizes))
    order = order_of(sizes, weights)
    parts = [order.worker_part(start, count, rank, workers) for rank in range(workers)]
    rows, epochs = (np.concatenate([part[of] for part in parts]) for of in (0, 1))
    wanted = zip(order.indices(start, count).tolist(), order.epochs(start, count).tolist(), strict=True)
    assert sorted(zip(rows.tolist(), epochs.tolist(), strict=True)) == sorted(wanted)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_a_window_reads_few_record_batches(share: float) -> None:
    """Two datasets of 40 record batches of 16 rows, one drawn more often: a window of 4 needs little more than 4."""
    sizes, rows = [16] * 80, 80 * 16
    weights = np.where(np.arange(rows) < rows // 2, share, 1 - share)
    order = order_of(sizes, weights, window_blocks=4)
    drawn = order.indices(0, rows)
    per_window = [len(np.unique(drawn[first : first + 64] // 16)) for first in range(0, rows - 64, 64)]
    assert sum(per_window) <= 2.5 * len(np.unique(drawn // 16))  # windows end inside of runs of 64 draws
    globally = WeightedOrder(np.arange(rows), weights, 1, "data").indices(0, 64)
    assert np.mean(per_window) < 0.6 * len(np.unique(globally // 16))
