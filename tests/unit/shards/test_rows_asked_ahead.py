"""Local rows that are on the disk are asked for together; rows in memory cost no question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.shards import local
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import ShardReader
from pipeline.shards.schema import ExampleRow, ModalitySpec
from pipeline.shards.writer import ShardWriter

LARGE = ModalitySpec("image", (23_333,), 3, "uint8")  # 69,999 bytes: no row but the first begins on a page
SMALL = ModalitySpec("audio", (100,), 1, "int16")
ROWS = 12


def example(index: int) -> ExampleRow:
    random = np.random.default_rng(index)
    image = random.integers(0, 256, (LARGE.num_tokens, 3), dtype=np.uint8)
    audio = random.integers(-9, 9, (SMALL.num_tokens, 1), dtype=np.int16)
    return ExampleRow(index.to_bytes(16, "little"), f"{index}.png", 0.0, (), {"image": image, "audio": audio})


@pytest.fixture
def reader(tmp_path: Path) -> ShardReader:
    with ShardWriter(str(tmp_path), "train-00000", (LARGE, SMALL)) as writer:
        for index in range(ROWS):
            writer.add(example(index))
        Manifest((LARGE, SMALL), (writer.close(),)).write(str(tmp_path))
    return ShardReader(str(tmp_path), "train")


def test_rows_are_asked_for_only_while_they_come_from_the_disk(
    reader: ShardReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []
    ask = local.OpenShard.ask

    def counted(shard: local.OpenShard, index: int, rows: Sequence[int], names: Sequence[str]) -> None:
        asked.append(list(rows))
        ask(shard, index, rows, names)

    disk_reads = iter([0, 0, 3, 3])
    monkeypatch.setattr(local.OpenShard, "ask", counted)
    monkeypatch.setattr(local, "_disk_reads", lambda: next(disk_reads))
    for _ in range(4):  # not known yet, none since, three since, none since
        reader.read(np.array([7, 2]))
    assert asked == [[2, 7], [2, 7]]


def test_what_is_asked_for_lies_around_the_large_rows(reader: ShardReader, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = reader._blocks._shard(0)  # type: ignore[union-attr]
    places = [opened.block(0).places(row, ["image", "audio", "unknown"]) for row in (0, 5)]
    assert [size for row in places for _, size in row] == [69_999, 200, 69_999, 200]
    asked: list[tuple[int, int]] = []

    class Map:
        def madvise(self, option: int, start: int, length: int) -> None:
            assert option == local.mmap.MADV_WILLNEED
            asked.append((start, length))

    monkeypatch.setattr(opened, "_map", Map())
    opened.ask(0, [0, 5], ["audio"])
    assert not asked, "the picture is not read, and the sound is small"
    opened.ask(0, [0, 5], ["image", "audio"])
    assert len(asked) == 2  # nothing for the small modality
    for (start, length), row in zip(asked, places, strict=True):
        begin = row[0][0] - opened._buffer.address
        assert start % local.mmap.PAGESIZE == 0
        assert start <= begin < start + local.mmap.PAGESIZE
        assert start + length == begin + 69_999


def test_rows_that_were_asked_for_are_the_written_rows(reader: ShardReader) -> None:
    batch = reader.read(np.arange(ROWS)[::-1])
    for slot in range(ROWS):
        written = example(ROWS - 1 - slot).arrays
        assert all(np.array_equal(batch.arrays[name][slot], tokens) for name, tokens in written.items())
