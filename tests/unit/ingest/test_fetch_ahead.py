"""Remote record batches arrive before they are needed: a window ahead, each once, no more than the cache holds."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from pipeline.errors import InfrastructureError
from pipeline.ingest.loader import BatchLoader
from pipeline.ingest.options import IngestOptions
from pipeline.ingest.order import ExampleOrder
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import ShardReader
from pipeline.shards.record import ShardRecord
from pipeline.shards.remote import CacheOptions, RemoteBlocks
from pipeline.shards.schema import ExampleRow, ModalitySpec
from pipeline.shards.writer import ShardWriter

SPEC = ModalitySpec("image", (2,), 1, "uint8")
BLOCK_ROWS = 1024
NUM_BLOCKS = 12
WINDOW_BLOCKS = 4


@pytest.fixture(scope="module")
def uri() -> Iterator[str]:
    """Twelve record batches in three shards, in fsspec's memory file system."""
    location = f"memory://bucket-{uuid.uuid4().hex[:8]}/data"
    records: list[ShardRecord] = []
    for number, rows in enumerate(np.split(np.arange(NUM_BLOCKS * BLOCK_ROWS), 3)):
        with ShardWriter(location, f"train-{number:05d}", (SPEC,)) as writer:
            for index in rows.tolist():
                tokens = np.array([[index % 256], [index // 256 % 256]], np.uint8)
                writer.add(ExampleRow(index.to_bytes(16, "little"), "a.png", 0.0, (), {"image": tokens}))
            records.append(writer.close())
    Manifest((SPEC,), tuple(records)).write(location)
    yield location
    fsspec.filesystem("memory").rm(location.removeprefix("memory:/"), recursive=True)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Shard and offset of every ranged read, in their order."""
    calls: list[tuple[int, int]] = []
    fetch = RemoteBlocks._fetch

    def counted(blocks: RemoteBlocks, shard: int, record: object) -> object:
        calls.append((shard, record.offset))  # type: ignore[attr-defined]
        return fetch(blocks, shard, record)  # type: ignore[arg-type]

    monkeypatch.setattr(RemoteBlocks, "_fetch", counted)
    return calls


def open_reader(uri: str, folder: Path, limit_mib: float = 64) -> ShardReader:
    return ShardReader(uri, "train", cache=CacheOptions(str(folder), limit_mib / 1024))


def open_loader(reader: ShardReader, rank: int = 0, workers: int = 1, end: int | None = None) -> BatchLoader:
    order = ExampleOrder(len(reader), 0, "test", "blocks", reader.block_bounds(), WINDOW_BLOCKS)
    options = IngestOptions(prefetch_batches=1, threads=1)
    return BatchLoader(reader, order, 16, rank, workers, end_examples=end, options=options)


def becomes(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_the_next_window_is_fetched_while_the_batches_of_this_one_are_used(
    uri: str, tmp_path: Path, fetched: list[tuple[int, int]]
) -> None:
    with open_loader(open_reader(uri, tmp_path)) as loader:
        for _ in range(3):
            next(loader)
        # The examples of 64 batches from here on are in this window and the next.
        assert becomes(lambda: len(fetched) == 2 * WINDOW_BLOCKS)
        time.sleep(0.1)
        assert len(fetched) == 2 * WINDOW_BLOCKS


@pytest.mark.parametrize("workers", [1, 3])
def test_every_record_batch_is_fetched_once_an_epoch_and_the_batches_are_the_same(
    uri: str, tmp_path: Path, fetched: list[tuple[int, int]], workers: int
) -> None:
    seen: list[int] = []
    for rank in range(workers):
        with open_loader(open_reader(uri, tmp_path), rank, workers, NUM_BLOCKS * BLOCK_ROWS) as loader:
            seen += [value for batch in loader for value in batch.example_ids.tolist()]
    assert sorted(seen) == list(range(NUM_BLOCKS * BLOCK_ROWS))
    assert set(Counter(fetched).values()) == {1}
    assert len(fetched) == NUM_BLOCKS


def test_a_small_cache_is_not_swept_by_what_is_fetched_ahead(
    uri: str, tmp_path: Path, fetched: list[tuple[int, int]]
) -> None:
    largest = max(batch.bytes for shard in Manifest.load(uri).shards for batch in shard.batches)
    reader = open_reader(uri, tmp_path, limit_mib=9 * largest / 2**20)
    with open_loader(reader, end=NUM_BLOCKS * BLOCK_ROWS) as loader:
        seen = next(loader).example_ids.tolist()
        assert becomes(lambda: len(fetched) == WINDOW_BLOCKS)
        time.sleep(0.1)
        assert len(fetched) == WINDOW_BLOCKS  # a quarter of nine record batches ends within this window
        seen += [value for batch in loader for value in batch.example_ids.tolist()]
    assert sorted(seen) == list(range(NUM_BLOCKS * BLOCK_ROWS))
    assert len(fetched) == NUM_BLOCKS
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.batch")) <= 9 * largest


def test_a_fetch_that_fails_ahead_is_reported_by_the_batch_that_needs_it(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(blocks: RemoteBlocks, shard: int, record: object) -> object:
        raise InfrastructureError("the store is away")

    with open_loader(open_reader(uri, tmp_path)) as loader:
        next(loader)
        becomes(lambda: len(list(tmp_path.rglob("*.batch"))) == 2 * WINDOW_BLOCKS)
        monkeypatch.setattr(RemoteBlocks, "_fetch", broken)
        with pytest.raises(InfrastructureError, match="the store is away"):
            list(loader)
        assert BLOCK_ROWS <= loader.examples_consumed <= 2 * WINDOW_BLOCKS * BLOCK_ROWS


def test_local_shards_are_not_fetched(tmp_path: Path) -> None:
    with ShardWriter(str(tmp_path), "train-00000", (SPEC,)) as writer:
        writer.add(ExampleRow(bytes(16), "a.png", 0.0, (), {"image": np.zeros((2, 1), np.uint8)}))
        Manifest((SPEC,), (writer.close(),)).write(str(tmp_path))
    reader = ShardReader(str(tmp_path), "train")
    assert reader.cache_examples is None
    with open_loader(reader) as loader:
        assert next(loader).sources == ["a.png"] * 16
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("fetch")]
    assert reader.blocks_of(np.array([0, 0])) == [(0, 0)]
