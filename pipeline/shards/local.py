"""Shards on this machine: memory-mapped, each opened once, a bounded number open at a time."""

from __future__ import annotations

import mmap
import resource
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock, local

import pyarrow as pa

from pipeline.errors import DataError
from pipeline.shards.block import LARGE_BYTES, Block
from pipeline.shards.framing import parse_batch
from pipeline.shards.manifest import Manifest
from pipeline.shards.record import ShardRecord
from pipeline.shards.schema import ModalitySpec, shard_schema
from pipeline.storage import join, local_path


class OpenShard:
    """One memory-mapped shard whose record batches are opened on first use.

    Raises:
        DataError: the file is missing or has another size than the manifest says.
    """

    def __init__(self, path: Path, record: ShardRecord, specs: Sequence[ModalitySpec]) -> None:
        self._record = record
        self._specs = specs
        self._schema = shard_schema(specs, {})
        self._blocks: list[Block | None] = [None] * len(record.batches)
        try:
            with path.open("rb") as stream:
                size = stream.seek(0, 2)
                if size != record.bytes:
                    raise DataError(f"{record.name} has {size} bytes, the manifest says {record.bytes}")
                self._map = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
                self._buffer = pa.py_buffer(self._map)
        except FileNotFoundError as error:
            raise DataError(f"{record.name} is missing") from error
        except OSError as error:
            raise DataError(f"{record.name} cannot be read ({error})") from error

    def block(self, index: int) -> Block:
        """The views of record batch ``index``.

        Raises:
            DataError: it is not what was written.
        """
        block = self._blocks[index]
        if block is None:  # two threads may both open it; the result is the same
            record = self._record.batches[index]
            message = self._buffer.slice(record.offset, record.bytes)
            try:
                batch = parse_batch(message, record, self._schema)
            except DataError as error:
                raise DataError(f"{self._record.name}: {error}") from error
            block = self._blocks[index] = Block(batch, self._specs)
        return block

    def ask(self, index: int, rows: Sequence[int], names: Sequence[str]) -> None:
        """Have the system start reading the tokens that some rows of record batch ``index`` have of ``names``.

        Raises:
            DataError: the record batch is not what was written.
        """
        block = self.block(index)
        for address, size in (place for row in rows for place in block.places(row, names)):
            if size >= LARGE_BYTES:  # the system reads as much around a byte that is missing, asked or not
                into_page = (address - self._buffer.address) % mmap.PAGESIZE
                self._map.madvise(mmap.MADV_WILLNEED, address - self._buffer.address - into_page, into_page + size)


class LocalBlocks:
    """The record batches of a local dataset; at most ``max_open`` shards stay mapped."""

    def __init__(self, uri: str, manifest: Manifest, shards: Sequence[ShardRecord]) -> None:
        self._uri = uri
        self._specs = manifest.modalities
        self._shards = shards
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = Lock()
        self._thread = local()
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._max_open = max(8, min(1024, descriptors // 2))
        self.cache_blocks: int | None = None  # nothing is copied

    def block(self, shard: int, index: int) -> Block:
        """Record batch ``index`` of shard number ``shard``."""
        return self._shard(shard).block(index)

    def expect(self, shards_blocks_rows: Sequence[tuple[int, int, Sequence[int]]], names: Sequence[str]) -> None:
        """Say which rows this thread reads next, and which modalities of them.

        Those on the disk are then read at once, not one after the other.
        Nothing is asked for while the memory of the system holds what this thread reads; asking takes time, too.
        """
        reads, before = _disk_reads(), getattr(self._thread, "disk_reads", None)
        self._thread.disk_reads = reads
        if before is None or reads > before:
            for shard, index, rows in shards_blocks_rows:
                self._shard(shard).ask(index, rows, names)

    def fetch(self, shard: int, index: int) -> None:
        """A local block is where it is needed."""

    def _shard(self, shard: int) -> OpenShard:
        with self._lock:
            opened = self._open.get(shard)
            if opened is None:
                record = self._shards[shard]
                opened = OpenShard(local_path(join(self._uri, record.name)), record, self._specs)
                self._open[shard] = opened
                if len(self._open) > self._max_open:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(shard)
        return opened

    def forget(self, shard: int, index: int) -> bool:
        """A local block is the original: there is no second copy to try."""
        return False

    def close(self) -> None:
        """Unmap everything that no batch still uses."""
        with self._lock:
            self._open.clear()


def _disk_reads() -> int:
    """How often this thread has had to wait for a disk, or made one read."""
    usage = resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF))  # Linux knows of threads
    return usage.ru_majflt + usage.ru_inblock
