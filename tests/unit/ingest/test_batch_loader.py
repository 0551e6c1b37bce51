"""Batches: the same global batches for any number of workers, any stop, and clean ends."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import DataError, UserError
from pipeline.ingest.loader import BatchLoader
from pipeline.ingest.options import IngestOptions
from pipeline.ingest.order import ExampleOrder
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import ShardReader
from pipeline.shards.schema import ExampleRow, ModalitySpec
from pipeline.shards.writer import ShardWriter

SPECS = (ModalitySpec("image", (4, 4), 3, "uint8"), ModalitySpec("audio", (8,), 1, "int16"))
NUM_EXAMPLES = 37


def example(index: int) -> ExampleRow:
    random = np.random.default_rng(index)
    audio = None if index % 5 == 0 else random.integers(-9, 9, (8, 1), dtype=np.int16)
    image = random.integers(0, 256, (16, 3), dtype=np.uint8)
    identity = index.to_bytes(8, "little") + bytes(8)
    return ExampleRow(identity, f"{index}.png", 0.0, (index % 3,), {"image": image, "audio": audio})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("shards"))
    records = []
    for number, part in enumerate(np.array_split(np.arange(NUM_EXAMPLES), 3)):
        with ShardWriter(folder, f"train-{number:05d}", SPECS) as writer:
            for index in part.tolist():
                writer.add(example(index))
            records.append(writer.close())
    Manifest(SPECS, tuple(records)).write(folder)
    return folder


def order_of(reader: ShardReader, kind: str = "global") -> ExampleOrder:
    return ExampleOrder(len(reader), 3, reader.manifest.fingerprint, kind, reader.block_bounds(), 2)


def global_batches(reader: ShardReader, world_size: int, count: int, start: int = 0, kind: str = "global") -> list:
    """Example ids of ``count`` global batches, put together from all ranks."""
    batches: list[list[int]] = [[] for _ in range(count)]
    for rank in range(world_size):
        with BatchLoader(reader, order_of(reader, kind), 10, rank, world_size, start) as loader:
            for batch, loaded in zip(batches, loader, strict=False):
                batch += loaded.example_ids.tolist()
    return batches


@pytest.mark.parametrize("kind", ["global", "blocks"])
@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_any_number_of_workers_reads_the_same_global_batches(dataset: str, world_size: int, kind: str) -> None:
    reader = ShardReader(dataset, "train")
    assert global_batches(reader, world_size, 6, kind=kind) == global_batches(reader, 1, 6, kind=kind)


def test_stopping_anywhere_and_going_on_gives_the_same_batches(dataset: str) -> None:
    reader = ShardReader(dataset, "train")
    whole = global_batches(reader, 1, 9)
    for stop in range(9):
        with BatchLoader(reader, order_of(reader), 10) as loader:
            for _ in range(stop):
                next(loader)
            position = loader.examples_consumed
        assert position == 10 * stop
        assert global_batches(reader, 3, 9 - stop, start=position) == whole[stop:]


def test_batches_hold_what_was_written_and_count_epochs(dataset: str) -> None:
    reader = ShardReader(dataset, "train")
    with BatchLoader(reader, order_of(reader), 16) as loader:
        batches = [next(loader) for _ in range(5)]
    epochs = torch.cat([batch.epochs for batch in batches])
    assert epochs.tolist() == [position // NUM_EXAMPLES for position in range(80)]
    first_epoch = torch.cat([batch.example_ids for batch in batches])[:NUM_EXAMPLES]
    assert sorted(first_epoch.tolist()) == list(range(NUM_EXAMPLES))
    for slot, index in enumerate(batches[0].example_ids.tolist()):
        row = example(index)
        assert np.array_equal(batches[0].inputs["image"][slot].numpy(), row.arrays["image"])
        assert bool(batches[0].present["audio"][slot]) == (row.arrays["audio"] is not None)
        assert batches[0].labels[slot] == row.labels
    assert batches[0].inputs["image"].dtype == torch.uint8
    assert batches[-1].examples_consumed == 80


def test_an_end_gives_every_example_once_with_a_short_last_batch(dataset: str) -> None:
    reader = ShardReader(dataset, "train")
    order = order_of(reader, "sequential")
    for world_size in (1, 2, 9):
        found: list[int] = []
        for rank in range(world_size):
            with BatchLoader(reader, order, 10, rank, world_size, end_examples=len(reader)) as loader:
                batches = list(loader)
                assert len(batches) == 4
                found += [index for batch in batches for index in batch.example_ids.tolist()]
        assert sorted(found) == list(range(NUM_EXAMPLES))


def test_a_damaged_row_is_raised_in_the_caller_and_threads_end(tmp_path: Path) -> None:
    with ShardWriter(str(tmp_path), "train-00000", SPECS) as writer:
        for index in range(20):
            writer.add(example(index))
        record = writer.close()
    Manifest(SPECS, (record,)).write(str(tmp_path))
    shard = tmp_path / "train-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[content.index(example(7).arrays["image"].tobytes())] ^= 1
    shard.write_bytes(content)
    reader = ShardReader(str(tmp_path), "train")
    before = threading.active_count()
    loader = BatchLoader(reader, order_of(reader), 20, options=IngestOptions(threads=3))
    with pytest.raises(DataError, match=r"train-00000\.arrow, row 7, example 0700"):
        next(loader)
    assert threading.active_count() == before
    with pytest.raises(StopIteration):
        next(loader)


def test_closing_early_ends_the_threads_and_waiting_is_measured(dataset: str) -> None:
    reader = ShardReader(dataset, "train")
    before = threading.active_count()
    loader = BatchLoader(reader, order_of(reader), 8, options=IngestOptions(prefetch_batches=4, threads=4))
    waited = [next(loader).wait_seconds for _ in range(3)]
    loader.close()
    loader.close()
    assert threading.active_count() == before
    assert loader.total_wait_seconds == pytest.approx(sum(waited))
    assert all(seconds >= 0 for seconds in waited)


def test_impossible_settings_are_named(dataset: str) -> None:
    reader = ShardReader(dataset, "train")
    with pytest.raises(UserError, match=r"batch.global_size=2 is smaller than the 3 workers"):
        BatchLoader(reader, order_of(reader), 2, 0, 3)
    with pytest.raises(UserError, match=r"rank 3 is not one of 3"):
        BatchLoader(reader, order_of(reader), 8, 3, 3)
    with pytest.raises(UserError, match=r"ingest.order='globl' is unknown; did you mean 'global'"):
        IngestOptions(order="globl")
    with pytest.raises(UserError, match=r"ingest.threads=0"):
        IngestOptions(threads=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pinned_batches_reach_the_device_unchanged(dataset: str) -> None:
    reader = ShardReader(dataset, "train")
    with BatchLoader(reader, order_of(reader), 8, pin_memory=True) as loader:
        batch = next(loader)
    assert batch.inputs["image"].is_pinned()
    on_device = batch.inputs["image"].to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    assert torch.equal(on_device.cpu(), batch.inputs["image"])
