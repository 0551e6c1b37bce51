"""Balanced drawing: as even as whole draws can be, a function of the position alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.evaluate.balance import class_weights
from pipeline.evaluate.finetune_options import FinetuneOptions
from pipeline.ingest.weighted import WeightedOrder

WEIGHTS = st.lists(st.floats(0.001, 100), min_size=1, max_size=60).map(np.array)


def order_of(weights: np.ndarray, seed: int = 0) -> WeightedOrder:
    return WeightedOrder(np.arange(len(weights)) * 10, weights, seed, "fingerprint")


@settings(max_examples=80, deadline=None)
@given(WEIGHTS, st.integers(0, 5), st.integers(0, 50))
def test_an_epoch_draws_every_row_its_share_rounded_down_or_up(weights: np.ndarray, epoch: int, seed: int):
    count = len(weights)
    order = order_of(weights, seed)
    drawn, epochs = order.indices(epoch * count, count), order.epochs(epoch * count, count)
    share = weights / weights.sum() * count
    times = np.bincount(drawn // 10, minlength=count)
    assert (np.abs(times - share) < 1 + 1e-6).all()
    assert len(set(zip(drawn.tolist(), epochs.tolist(), strict=True))) == count, "a repeated row can be varied"
    assert {number % 2**32 for number in epochs.tolist()} == {epoch}


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, st.integers(0, 100), st.integers(1, 80), st.integers(1, 4))
def test_it_is_a_function_of_the_position_whoever_asks(weights: np.ndarray, start: int, count: int, workers: int):
    order = order_of(weights)
    parts = [order.worker_part(start, count, rank, workers) for rank in range(workers)]
    assert np.concatenate([rows for rows, _ in parts]).tolist() == order.indices(start, count).tolist()
    assert np.concatenate([epochs for _, epochs in parts]).tolist() == order.epochs(start, count).tolist()
    one_by_one = [int(order.indices(position, 1)[0]) for position in range(start, start + count)]
    assert one_by_one == order.indices(start, count).tolist()


def test_a_row_of_little_weight_comes_once_in_a_while():
    order = order_of(np.array([0.1] + [1.0] * 39))
    times = (order.indices(0, 40 * 400) == 0).sum()
    assert times / 400 == pytest.approx(0.1 * 40 / 39.1, abs=0.05)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_classes_come_by_a_power_of_their_counts(exponent: float):
    counts = np.array([90, 9, 1])
    labels = [(kind,) for kind, count in enumerate(counts) for _ in range(count)]
    drawn = order_of(class_weights(labels, exponent)).indices(0, 100) // 10
    shares = counts ** (1 - exponent)
    assert np.bincount([labels[row][0] for row in drawn], minlength=3) == pytest.approx(
        100 * shares / shares.sum(), abs=1.01
    )


def test_several_labels_weigh_what_their_classes_weigh_together():
    labels = [(0, 1), (0,), (0,), (), ()]
    assert class_weights(labels, 1.0).tolist() == [pytest.approx(1 / 3 + 1), *[pytest.approx(1 / 3)] * 2, 0.5, 0.5]


def test_a_share_outside_of_0_to_1_is_refused():
    with pytest.raises(UserError, match=r"class_balance=2 is out of range; use 0 to 1"):
        FinetuneOptions("shards", class_balance=2)
