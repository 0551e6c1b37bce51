"""Shards in an object store: whole record batches by ranged reads, kept in a bounded folder on this machine."""

from __future__ import annotations

import mmap
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
from pipeline.shards.framing import BatchRecord, parse_batch
from pipeline.shards.manifest import Manifest
from pipeline.shards.record import ShardRecord
from pipeline.shards.schema import shard_schema
from pipeline.storage import explain_os_error, join, redact, resolve

_OPEN_FILES = 64
_OPEN_BLOCKS = 128
_SPARE = 0.05  # share of the cache that is freed when it is full
_PROCESSES = 16  # of one machine that may fill the room left in a cache before one of them looks again


@dataclass(frozen=True)
class CacheOptions:
    """Where record batches of a remote dataset are kept on this machine."""

    folder: str = "~/.cache/hip-pipeline"
    """Folder of the cache; processes and datasets of one machine may share it."""
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
        self._unseen_bytes = 0
        self._next_look_bytes = 0

    def find(self, name: str) -> Path | None:
        """The cached file, marked as used now; None when it is not here."""
        path = self._folder / name
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def store(self, name: str, content: pa.Buffer) -> Path:
        """Write one file and make room for it."""
        path = self._folder / name
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise explain_os_error(error, str(path)) from error
        self._unseen_bytes += len(content)
        if self._unseen_bytes >= self._next_look_bytes:
            self._evict(keep=path)
        return path

    def drop(self, name: str) -> None:
        """Delete one file."""
        (self._folder / name).unlink(missing_ok=True)

    def _evict(self, keep: Path) -> None:
        """Make room, with some to spare: looking at every file takes longer than a fetch once there are thousands."""
        found = []
        for path in self._folder.rglob("*.batch"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process made room too
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        used = sum(size for _, size, _ in found)
        if used > self._limit_bytes:
            for _, size, path in sorted(found):
                if path != keep and used > self._limit_bytes * (1 - _SPARE):
                    path.unlink(missing_ok=True)
                    used -= size
        self._unseen_bytes = 0
        self._next_look_bytes = (self._limit_bytes - used) // _PROCESSES


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
        self._schema = shard_schema(self._specs, {})
        largest = max((batch.bytes for shard in shards for batch in shard.batches), default=0)
        if cache.limit_bytes < 4 * largest:
            raise UserError(
                f"cache.limit_gib={cache.limit_gib:.3g} holds fewer than four record batches "
                f"of {largest / 2**20:.3g} MiB; give it at least {4 * largest / 2**30:.3g}"
            )
        self._cache = CacheFolder(Path(cache.folder).expanduser() / "record-batches", cache.limit_bytes)
        self._prefix = manifest.fingerprint.removeprefix("sha256:")[:24]
        self._files: OrderedDict[int, pa.NativeFile] = OrderedDict()
        self._blocks: OrderedDict[tuple[int, int], Block] = OrderedDict()
        self._lock = Lock()
        self._block_locks = [Lock() for _ in range(_OPEN_BLOCKS)]
        self.cache_blocks: int | None = cache.limit_bytes // max(1, largest)

    def block(self, shard: int, index: int) -> Block:
        """Record batch ``index`` of shard number ``shard``."""
        key = (shard, index)
        block = self._recall(key)
        if block is None:
            with self._fetching(key):
                block = self._recall(key) or self._open(shard, index)
            with self._lock:
                self._blocks[key] = block
                if len(self._blocks) > _OPEN_BLOCKS:
                    self._blocks.popitem(last=False)
        return block

    def fetch(self, shard: int, index: int) -> None:
        """Put a record batch into the cache, without opening it, if it is not there."""
        name = self._name(shard, index)
        if self._recall((shard, index)) is None and self._cache.find(name) is None:
            with self._fetching((shard, index)):
                if self._cache.find(name) is None:
                    self._cache.store(name, self._fetch(shard, self._shards[shard].batches[index]))

    def expect(self, shards_blocks_rows: Sequence[tuple[int, int, Sequence[int]]], names: Sequence[str]) -> None:
        """What is read next has to be fetched, which its thread does."""

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
        return f"{self._prefix}/{self._shards[shard].name.removesuffix('.arrow')}-{index:05d}.batch"

    def _fetching(self, key: tuple[int, int]) -> Lock:
        """One thread fetches a record batch, the others that want it wait and find it cached."""
        return self._block_locks[hash(key) % len(self._block_locks)]

    def _recall(self, key: tuple[int, int]) -> Block | None:
        with self._lock:
            block = self._blocks.get(key)
            if block is not None:
                self._blocks.move_to_end(key)
            return block

    def _open(self, shard: int, index: int) -> Block:
        name = self._name(shard, index)
        record = self._shards[shard].batches[index]
        path = self._cache.find(name)
        if path is not None:
            try:
                return Block(parse_batch(_map(path), record, self._schema), self._specs)
            except (DataError, FileNotFoundError):  # the copy is damaged, or another process made room
                self._cache.drop(name)
        path = self._cache.store(name, self._fetch(shard, record))
        try:
            return Block(parse_batch(_map(path), record, self._schema), self._specs)
        except DataError as error:
            self._cache.drop(name)
            raise DataError(f"{self._shards[shard].name}: {error}") from error

    def _fetch(self, shard: int, record: BatchRecord) -> pa.Buffer:
        """The bytes of one record batch, by one ranged read."""
        where = redact(join(self._uri, self._shards[shard].name))
        try:
            content = self._file(shard).read_at(record.bytes, record.offset)
        except FileNotFoundError as error:
            raise DataError(f"{where} is missing") from error
        except OSError as error:
            raise InfrastructureError(f"reading {where} failed: {error}; the same command may work later") from error
        return pa.py_buffer(content)

    def _file(self, shard: int) -> pa.NativeFile:
        with self._lock:
            if shard in self._files:
                self._files.move_to_end(shard)
                return self._files[shard]
        system, path = resolve(join(self._uri, self._shards[shard].name))
        source = system.open_input_file(path)
        with self._lock:
            self._files[shard] = source
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
        return source


def _map(path: Path) -> pa.Buffer:
    with path.open("rb") as stream:
        return pa.py_buffer(mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ))
