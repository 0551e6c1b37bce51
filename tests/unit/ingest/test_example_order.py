"""The order of examples: a permutation each epoch, a pure function of position, cheap at any size."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.ingest.order import ExampleOrder, rank_slice
from pipeline.ingest.permutation import Permutation

PINNED_GLOBAL = [328, 646, 705, 21, 557, 68, 96, 321, 415, 384]
PINNED_BLOCKS = [31, 34, 37, 33, 35, 57, 72, 89, 87, 86]
SEEDS = st.integers(0, 2**63 - 1)


@st.composite
def orders(draw: st.DrawFn) -> ExampleOrder:
    """Any order of up to a few hundred examples, blocks of uneven sizes included."""
    sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=20))
    bounds = np.cumsum([0, *sizes])
    kind = draw(st.sampled_from(["global", "blocks"]))
    window = draw(st.integers(1, 8))
    return ExampleOrder(int(bounds[-1]), draw(SEEDS), draw(st.text(max_size=8)), kind, bounds, window)


@settings(deadline=None)
@given(size=st.integers(1, 3000), seed=SEEDS)
def test_a_permutation_is_a_bijection(size: int, seed: int) -> None:
    assert np.array_equal(np.sort(Permutation(size, seed)(np.arange(size))), np.arange(size))


@settings(deadline=None)
@given(order=orders(), epoch=st.integers(0, 10**6))
def test_every_epoch_holds_every_example_once(order: ExampleOrder, epoch: int) -> None:
    examples = order.indices(epoch * order.num_examples, order.num_examples)
    assert np.array_equal(np.sort(examples), np.arange(order.num_examples))


@settings(deadline=None)
@given(order=orders(), start=st.integers(0, 10**9), count=st.integers(0, 200), cut=st.integers(0, 200))
def test_any_part_of_the_stream_is_the_same_however_it_is_cut(
    order: ExampleOrder, start: int, count: int, cut: int
) -> None:
    cut = min(cut, count)
    parts = [order.indices(start, cut), order.indices(start + cut, count - cut)]
    assert np.array_equal(np.concatenate(parts), order.indices(start, count))
    assert order.epochs(start, count).tolist() == [
        position // order.num_examples for position in range(start, start + count)
    ]


@settings(deadline=None)
@given(order=orders(), start=st.integers(0, 10**6), count=st.integers(1, 64), world_size=st.integers(1, 9))
def test_ranks_together_read_the_global_batch(order: ExampleOrder, start: int, count: int, world_size: int) -> None:
    slices = [rank_slice(start, count, rank, world_size) for rank in range(world_size)]
    read = np.concatenate([order.indices(*part) for part in slices])
    assert np.array_equal(read, order.indices(start, count))
    sizes = [size for _, size in slices]
    assert max(sizes) - min(sizes) <= 1


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=20), window=st.integers(1, 8), epoch=st.integers(0, 99))
def test_a_window_of_blocks_is_finished_before_the_next_begins(sizes: list[int], window: int, epoch: int) -> None:
    bounds = np.cumsum([0, *sizes])
    num_examples = int(bounds[-1])
    order = ExampleOrder(num_examples, 1, "f", "blocks", bounds, window)
    block = np.searchsorted(bounds, order.indices(epoch * num_examples, num_examples), side="right") - 1
    seen: set[int] = set()
    start = 0
    while start < num_examples:
        opened = {int(block[start])}
        end = start
        while end - start < sum(sizes[index] for index in opened):
            opened.add(int(block[end]))
            end += 1
        assert len(opened) <= window
        assert not opened & seen
        seen |= opened
        start = end
    assert len(seen) == len(sizes)


@pytest.mark.parametrize("world_size", [1, 3, 8])
def test_in_block_order_the_workers_together_fetch_few_record_batches_twice(world_size: int) -> None:
    order = ExampleOrder(1024, 5, "f", "blocks", np.arange(0, 1025, 16), 32)
    dealt: dict[int, set[int]] = {rank: set() for rank in range(world_size)}
    plain: dict[int, set[int]] = {rank: set() for rank in range(world_size)}
    for start in range(0, 1024, 64):
        parts = [order.worker_part(start, 64, rank, world_size) for rank in range(world_size)]
        assert sorted(np.concatenate([part for part, _ in parts])) == sorted(order.indices(start, 64))
        for rank, (examples, epochs) in enumerate(parts):
            assert set(epochs.tolist()) == {0}
            dealt[rank] |= set((examples // 16).tolist())
            plain[rank] |= set((order.indices(*rank_slice(start, 64, rank, world_size)) // 16).tolist())
    fetched = sum(map(len, dealt.values()))
    assert 64 <= fetched <= 64 * min(world_size, 3)
    assert fetched == 64 or fetched < 0.7 * sum(map(len, plain.values()))


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 60), min_size=2, max_size=5).filter(any),
    kind=st.sampled_from(["global", "blocks"]),
    batch=st.integers(0, 300),
    count=st.integers(1, 100),
    world_size=st.integers(1, 8),
)
def test_workers_get_as_much_of_each_dataset_one_after_the_other(
    sizes: list[int], kind: str, batch: int, count: int, world_size: int
) -> None:
    ends = np.cumsum(sizes)
    order = ExampleOrder(int(ends[-1]), 3, "data", kind, np.arange(ends[-1] + 1), 8, ends)
    parts = [order.worker_part(batch * count, count, rank, world_size) for rank in range(world_size)]
    whole = order.indices(batch * count, count)
    assert sorted(np.concatenate([examples for examples, _ in parts]).tolist()) == sorted(whole.tolist())
    for rank, (examples, epochs) in enumerate(parts):
        assert len(examples) == len(epochs) == rank_slice(0, count, rank, world_size)[1]
        assert (np.diff(examples) >= 0).all()
        mine = np.bincount(np.searchsorted(ends, examples, side="right"), minlength=len(sizes))
        all_of_them = np.bincount(np.searchsorted(ends, whole, side="right"), minlength=len(sizes))
        assert (np.abs(mine - all_of_them / world_size) < 1 + len(sizes)).all()


def test_seed_epoch_fingerprint_and_kind_all_change_the_order() -> None:
    bounds = np.arange(0, 1001, 10)
    variants = [
        ExampleOrder(1000, 1, "a").indices(0, 1000),
        ExampleOrder(1000, 2, "a").indices(0, 1000),
        ExampleOrder(1000, 1, "b").indices(0, 1000),
        ExampleOrder(1000, 1, "a").indices(1000, 1000),
        ExampleOrder(1000, 1, "a", "blocks", bounds).indices(0, 1000),
        ExampleOrder(1000, 1, "a", "blocks", bounds).indices(1000, 1000),
        ExampleOrder(1000, 1, "a", "blocks", bounds, 7).indices(0, 1000),
    ]
    for place, first in enumerate(variants):
        for second in variants[place + 1 :]:
            assert np.mean(first == second) < 0.02


def test_the_order_is_pinned() -> None:
    """A change here would silently reorder the data of runs that are being resumed."""
    assert ExampleOrder(1000, 7, "sha256:ab").indices(995, 10).tolist() == PINNED_GLOBAL
    assert ExampleOrder(100, 7, "x", "blocks", np.arange(0, 101, 10), 3).indices(95, 10).tolist() == PINNED_BLOCKS


def test_small_orders_are_fair() -> None:
    """All 24 orders of 4 examples come up, about equally often."""
    seen = [tuple(ExampleOrder(4, seed, "f").indices(0, 4).tolist()) for seed in range(4800)]
    counts = [seen.count(order) for order in set(seen)]
    assert len(counts) == 24
    assert 140 < min(counts) <= max(counts) < 270


def test_neighbours_in_the_stream_are_strangers_in_the_dataset() -> None:
    examples = ExampleOrder(10**9, 3, "f").indices(5 * 10**8, 100_000).astype(np.float64)
    assert abs(np.corrcoef(examples[:-1], examples[1:])[0, 1]) < 0.02
    assert abs(examples.mean() / 1e9 - 0.5) < 0.01
    assert abs(np.abs(np.diff(examples)).mean() / 1e9 - 1 / 3) < 0.01


def test_a_thousand_million_examples_cost_no_start_up_and_no_memory() -> None:
    def start_up() -> float:
        began = time.perf_counter()
        ExampleOrder(10**9, 0, "sha256:00").indices(123_456_789, 32)
        return time.perf_counter() - began

    assert min(start_up() for _ in range(20)) < 0.002  # measured 0.4 ms; the rest is for a busy machine


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_examples": 0}, "no examples in this split"),
        ({"kind": "block"}, "order='block' is unknown; did you mean 'blocks'"),
        ({"kind": "blocks"}, "needs the bounds of blocks"),
    ],
)
def test_impossible_orders_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ExampleOrder(**{"num_examples": 5, "seed": 0, "fingerprint": "f", **arguments})  # type: ignore[arg-type]
