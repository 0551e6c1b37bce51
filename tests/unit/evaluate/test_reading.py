"""Examples of a split in order, read ahead, with progress."""

import logging
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluate import reading
from pipeline.evaluate.reading import Progress, batches, read_ahead, spans
from pipeline.ingest.spread import spread
from pipeline.shards.reader import ShardReader


@given(st.integers(0, 50), st.integers(1, 9), st.integers(0, 50))
def test_spans_cover_everything_once_in_order(stop, size, start):
    found = spans(stop, size, start)
    assert [row for first, last in found for row in range(first, last)] == list(range(start, stop))
    assert all(0 < last - first <= size for first, last in found)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(0, 60), size=st.integers(1, 20), read_bytes=st.sampled_from([1, 2000, 1 << 20]))
def test_batches_hold_the_split_in_order_however_much_is_read_at_once(shards, count, size, read_bytes):
    reader = ShardReader(shards, split="train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_READ_BYTES", read_bytes)
        found = list(batches(reader, count, size, "test"))
    assert [len(batch.sources) for batch in found] == [last - first for first, last in spans(count, size)]
    if found:
        whole = reader.read(spread(count, len(reader)))
        for name, array in whole.arrays.items():
            assert np.array_equal(np.concatenate([batch.arrays[name] for batch in found]), array)
        assert [source for batch in found for source in batch.sources] == whole.sources


def test_the_next_piece_is_loaded_while_the_last_is_used_and_only_that():
    loaded = []
    for piece in read_ahead(lambda first, last: loaded.append(first) or first, spans(5, 1)):
        time.sleep(0.02)
        assert max(loaded) <= piece + 1
    assert loaded == [0, 1, 2, 3, 4]


def test_an_error_in_the_thread_comes_where_its_piece_would():
    def load(first, last):
        if first == 2:
            raise ValueError("damaged")
        return first

    seen = []
    with pytest.raises(ValueError, match="damaged"):
        seen.extend(read_ahead(load, spans(5, 1)))
    assert seen == [0, 1]


def test_progress_is_told_every_ten_seconds_with_rate_and_time_left(caplog, monkeypatch):
    clock = iter([0.0, 4.0, 10.0, 15.0, 20.0, 30.0])
    monkeypatch.setattr(reading.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, "pipeline.evaluate.reading"):
        progress = Progress("embedding", 5000)
        for _ in range(5):
            progress.advance(1000)
    assert [record.getMessage() for record in caplog.records] == [
        "embedding: 2,000/5,000 examples | 200 examples/s | 15 s left",
        "embedding: 4,000/5,000 examples | 200 examples/s | 5 s left",
    ]
