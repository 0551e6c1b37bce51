"""Shards behind a URI: ranged reads of record batches, a bounded cache, the same rows as a local copy."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from shard_samples import AUDIO, VIDEO, make_row

from pipeline.errors import DataError, UserError
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import ShardReader
from pipeline.shards.remote import CacheFolder, CacheOptions
from pipeline.shards.verify import verify_dataset
from pipeline.shards.writer import ShardWriter

NUM_EXAMPLES = 3000  # three record batches of 1,024 rows at most, in two shards


@pytest.fixture(scope="module")
def uri() -> Iterator[str]:
    """A dataset in fsspec's memory file system: no folder of this machine behind it."""
    location = f"memory://bucket-{uuid.uuid4().hex[:8]}/data"
    records = []
    for number, rows in enumerate((range(1100), range(1100, NUM_EXAMPLES))):
        with ShardWriter(location, f"train-{number:05d}", (VIDEO, AUDIO)) as writer:
            for index in rows:
                writer.add(make_row(index))
            records.append(writer.close())
    Manifest((VIDEO, AUDIO), tuple(records)).write(location)
    yield location
    fsspec.filesystem("memory").rm(location.removeprefix("memory:/"), recursive=True)


def cache(folder: Path, limit_mib: float = 64) -> CacheOptions:
    return CacheOptions(str(folder), limit_mib / 1024)


def cached_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def check_rows(reader: ShardReader, wanted: np.ndarray) -> None:
    batch = reader.read(wanted)
    for slot, index in enumerate(wanted.tolist()):
        row = make_row(index)
        assert batch.sources[slot] == row.source
        for name, tokens in row.arrays.items():
            assert bool(batch.present[name][slot]) == (tokens is not None)
            assert tokens is None or np.array_equal(batch.arrays[name][slot], tokens)


def test_remote_rows_are_the_written_rows_and_whole_batches_are_cached(uri: str, tmp_path: Path) -> None:
    reader = ShardReader(uri, "train", cache=cache(tmp_path))
    assert cached_files(tmp_path) == []
    check_rows(reader, np.array([5, 1023, 7]))
    assert [path.name for path in cached_files(tmp_path)] == ["train-00000-00000.batch"]
    check_rows(reader, np.append(np.random.default_rng(0).integers(0, NUM_EXAMPLES, 40), 1050))
    assert len(cached_files(tmp_path)) == 4
    assert all(check.sound for check in verify_dataset(uri))


def test_a_second_process_uses_the_cache_and_needs_no_network(uri: str, tmp_path: Path) -> None:
    ShardReader(uri, cache=cache(tmp_path)).read(np.array([3]))
    again = ShardReader(uri, cache=cache(tmp_path))
    shard = uri.removeprefix("memory:/") + "/train-00000.arrow"
    memory = fsspec.filesystem("memory")
    content = memory.cat(shard)
    memory.rm(shard)
    try:
        check_rows(again, np.array([3, 900]))
        with pytest.raises(DataError, match=r"train-00000\.arrow is missing"):
            again.read(np.array([1024]))
    finally:
        memory.pipe(shard, content)


def test_the_cache_keeps_its_limit_and_its_most_recent_batches(uri: str, tmp_path: Path) -> None:
    largest = max(batch.bytes for shard in Manifest.load(uri).shards for batch in shard.batches)
    limit = 4 * largest / 2**20
    folder = tmp_path / "cache"
    reader = ShardReader(uri, cache=cache(folder, limit))
    old = folder / "record-batches" / "earlier" / "train-00000-00000.batch"
    old.parent.mkdir(parents=True)
    old.write_bytes(bytes(3 * largest))
    for index in (0, 1024, 1100, 2999):
        reader.read(np.array([index]))
    kept = cached_files(folder)
    assert sum(path.stat().st_size for path in kept) <= 4 * largest
    assert "train-00001-00001.batch" in [path.name for path in kept]
    check_rows(reader, np.arange(0, NUM_EXAMPLES, 97))


def test_a_cache_with_room_is_not_listed_at_every_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, looks = pa.py_buffer(bytes(1000)), []
    evict = CacheFolder._evict
    monkeypatch.setattr(CacheFolder, "_evict", lambda folder, keep: looks.append(keep) or evict(folder, keep))
    folder = CacheFolder(tmp_path, 1_000_000)
    for number in range(900):
        folder.store(f"a/{number:05d}.batch", content)
    assert len(looks) < 60
    assert len(cached_files(tmp_path)) == 900
    for number in range(900, 1300):
        folder.store(f"a/{number:05d}.batch", content)
        assert len(cached_files(tmp_path)) <= 1000
    assert "01299.batch" in [path.name for path in cached_files(tmp_path)]
    assert "00000.batch" not in [path.name for path in cached_files(tmp_path)]


def test_a_cache_that_is_too_small_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cache.limit_gib=9.77e-05 holds fewer than four record batches"):
        ShardReader(uri, cache=cache(tmp_path, 0.1))
    with pytest.raises(UserError, match="must be above 0"):
        cache(tmp_path, 0)


@pytest.mark.parametrize("place", ["header", "row"])
def test_a_damaged_local_copy_is_fetched_again(uri: str, tmp_path: Path, place: str) -> None:
    ShardReader(uri, cache=cache(tmp_path)).read(np.array([3]))
    (copy,) = cached_files(tmp_path)
    content = bytearray(copy.read_bytes())
    tokens = make_row(3).arrays["video"]
    assert tokens is not None
    content[40 if place == "header" else content.index(tokens.tobytes())] ^= 4
    copy.write_bytes(content)
    check_rows(ShardReader(uri, cache=cache(tmp_path)), np.array([3]))


def test_damage_at_the_source_is_named(uri: str, tmp_path: Path) -> None:
    shard = uri.removeprefix("memory:/") + "/train-00000.arrow"
    memory = fsspec.filesystem("memory")
    content = memory.cat(shard)
    tokens = make_row(3).arrays["video"]
    assert tokens is not None
    damaged = bytearray(content)
    damaged[content.index(tokens.tobytes())] ^= 4
    memory.pipe(shard, bytes(damaged))
    try:
        with pytest.raises(DataError, match=r"train-00000.arrow, row 3, example .* delete memory://"):
            ShardReader(uri, cache=cache(tmp_path)).read(np.array([3]))
        assert not next(verify_dataset(uri)).sound
    finally:
        memory.pipe(shard, content)
