"""Shards in an object store: whole record batches by ranged reads, kept in a bounded folder on this machine."""

from __future__ import annotations

import os
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import pyarrow as pa

from pipeline.errors import DataError, InfrastructureError, UserError
from pipeline.shards.block import Block
from pipeline.shards.local import check_schema, open_block
from pipeline.shards.manifest import Manifest
from pipeline.shards.record import ShardRecord
from pipeline.storage import explain_os_error, join, redact, resolve

_OPEN_FILES = 64
_OPEN_BLOCKS = 128


@dataclass(frozen=True)
class CacheOptions:
    """Where record batches of a remote dataset are kept on this machine."""

    folder: str = "~/.cache/hip-pipeline"
    """Folder of the cache; processes of one machine may share it."""
    limit_gib: float = 20.0
    """The least recently used record batches are deleted above this size."""

    def __post_init__(self) -> None:
        if self.limit_gib <= 0:
            raise UserError(f"cache.limit_gib={self.limit_gib} must be above 0")

    @property
    def limit_bytes(self) -> int:
        """The limit in bytes."""
        return int(self.limit_gib * 2**30)


class CacheFolder:
    """Files below one folder, the least recently used deleted above ``limit_bytes``."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes

    def find(self, name: str) -> Path | None:
        """The cached file, marked as used now; None when it is not here."""
        path = self._folder / name
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def store(self, name: str, batch: pa.RecordBatch) -> Path:
        """Write one record batch as its own Arrow file and make room for it."""
        path = self._folder / name
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
                writer.write_batch(batch)
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise explain_os_error(error, str(path)) from error
        self._evict(keep=path)
        return path

    def drop(self, name: str) -> None:
        """Delete one file."""
        (self._folder / name).unlink(missing_ok=True)

    def _evict(self, keep: Path) -> None:
        found = []
        for path in self._folder.rglob("*.arrow"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process made room too
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        excess = sum(size for _, size, _ in found) - self._limit_bytes
        for _, size, path in sorted(found):
            if excess <= 0:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                excess -= size


class RemoteBlocks:
    """The record batches of a remote dataset, fetched on first use.

    Memory: ``_OPEN_BLOCKS`` mapped batches at most, their bytes in the page cache. Disk: ``cache.limit_gib``.

    Raises:
        UserError: a cache smaller than four record batches.
    """

    def __init__(self, uri: str, manifest: Manifest, shards: Sequence[ShardRecord], cache: CacheOptions) -> None:
        self._uri = uri
        self._specs = manifest.modalities
        self._shards = shards
        largest = max((shard.bytes * shard.rows_per_batch // max(1, shard.rows) for shard in shards), default=0)
        if cache.limit_bytes < 4 * largest:
            raise UserError(
                f"cache.limit_gib={cache.limit_gib} holds fewer than four record batches of {largest / 2**20:.0f} MiB; "
                f"give it at least {4 * largest / 2**30:.3f}"
            )
        folder = Path(cache.folder).expanduser() / manifest.fingerprint.removeprefix("sha256:")[:24]
        self._cache = CacheFolder(folder, cache.limit_bytes)
        self._files: OrderedDict[int, pa.RecordBatchFileReader] = OrderedDict()
        self._blocks: OrderedDict[tuple[int, int], Block] = OrderedDict()
        self._lock = Lock()
        self._shard_locks = [Lock() for _ in shards]

    def block(self, shard: int, index: int) -> Block:
        """Record batch ``index`` of shard number ``shard``."""
        key = (shard, index)
        block = self._recall(key)
        if block is None:
            with self._shard_locks[shard]:  # one thread fetches, the others of this shard find it cached
                block = self._recall(key) or self._open(shard, index)
            with self._lock:
                self._blocks[key] = block
                if len(self._blocks) > _OPEN_BLOCKS:
                    self._blocks.popitem(last=False)
        return block

    def forget(self, shard: int, index: int) -> bool:
        """Drop the local copy of a block whose row did not match, so that it is fetched again."""
        with self._lock:
            self._blocks.pop((shard, index), None)
        self._cache.drop(self._name(shard, index))
        return True

    def close(self) -> None:
        """Let go of remote files and mapped blocks; the cache stays for the next run."""
        with self._lock:
            self._blocks.clear()
            self._files.clear()

    def _name(self, shard: int, index: int) -> str:
        return f"{self._shards[shard].name.removesuffix('.arrow')}-{index:05d}.arrow"

    def _recall(self, key: tuple[int, int]) -> Block | None:
        with self._lock:
            block = self._blocks.get(key)
            if block is not None:
                self._blocks.move_to_end(key)
            return block

    def _open(self, shard: int, index: int) -> Block:
        name = self._name(shard, index)
        path = self._cache.find(name) or self._cache.store(name, self._fetch(shard, index))
        return open_block(pa.ipc.open_file(pa.memory_map(str(path))), 0, self._specs)

    def _fetch(self, shard: int, index: int) -> pa.RecordBatch:
        try:
            return self._file(shard).get_batch(index)
        except pa.ArrowInvalid as error:
            raise DataError(f"record batch {index} of {self._shards[shard].name} cannot be read ({error})") from error
        except OSError as error:
            where = redact(join(self._uri, self._shards[shard].name))
            raise InfrastructureError(f"reading {where} failed: {error}; the same command may work later") from error

    def _file(self, shard: int) -> pa.RecordBatchFileReader:
        with self._lock:
            if shard in self._files:
                self._files.move_to_end(shard)
                return self._files[shard]
        record = self._shards[shard]
        system, path = resolve(join(self._uri, record.name))
        source = system.open_input_file(path)
        if source.size() != record.bytes:
            raise DataError(f"{record.name} has {source.size()} bytes, the manifest says {record.bytes}")
        file = pa.ipc.open_file(source)
        check_schema(file.schema, record, self._specs)
        with self._lock:
            self._files[shard] = file
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
        return file
