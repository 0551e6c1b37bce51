"""Shards on this machine: memory-mapped, each opened once, a bounded number open at a time."""

from __future__ import annotations

import json
import resource
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import pyarrow as pa

from pipeline.errors import DataError
from pipeline.shards.block import Block
from pipeline.shards.manifest import Manifest
from pipeline.shards.record import ShardRecord
from pipeline.shards.schema import METADATA_KEY, ModalitySpec, shard_schema
from pipeline.storage import join, local_path


class OpenShard:
    """One memory-mapped shard whose record batches are opened on first use.

    Raises:
        DataError: the file is missing, has another size than the manifest says, or is not this dataset's shard.
    """

    def __init__(self, path: str, record: ShardRecord, specs: Sequence[ModalitySpec]) -> None:
        self._specs = specs
        try:
            source = pa.memory_map(path)
            if source.size() != record.bytes:
                raise DataError(f"{record.name} has {source.size()} bytes, the manifest says {record.bytes}")
            self._file = pa.ipc.open_file(source)
        except FileNotFoundError as error:
            raise DataError(f"{record.name} is missing") from error
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{record.name} is not a readable Arrow file ({error})") from error
        check_schema(self._file.schema, record, specs)
        self._blocks: list[Block | None] = [None] * self._file.num_record_batches

    def block(self, index: int) -> Block:
        """The views of record batch ``index``."""
        block = self._blocks[index]
        if block is None:  # two threads may both open it; the result is the same
            block = self._blocks[index] = open_block(self._file, index, self._specs)
        return block


class LocalBlocks:
    """The record batches of a local dataset; at most ``max_open`` shards stay mapped."""

    def __init__(self, uri: str, manifest: Manifest, shards: Sequence[ShardRecord]) -> None:
        self._uri = uri
        self._specs = manifest.modalities
        self._shards = shards
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = Lock()
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._max_open = max(8, min(1024, descriptors // 2))

    def block(self, shard: int, index: int) -> Block:
        """Record batch ``index`` of shard number ``shard``."""
        with self._lock:
            opened = self._open.get(shard)
            if opened is None:
                record = self._shards[shard]
                opened = OpenShard(str(local_path(join(self._uri, record.name))), record, self._specs)
                self._open[shard] = opened
                if len(self._open) > self._max_open:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(shard)
        return opened.block(index)

    def forget(self, shard: int, index: int) -> bool:
        """A local block is the original: there is no second copy to try."""
        return False

    def close(self) -> None:
        """Unmap everything that no batch still uses."""
        with self._lock:
            self._open.clear()


def open_block(file: pa.RecordBatchFileReader, index: int, specs: Sequence[ModalitySpec]) -> Block:
    """Read one record batch (zero-copy from a memory map).

    Raises:
        DataError: its metadata is damaged.
    """
    try:
        return Block(file.get_batch(index), specs)
    except (OSError, pa.ArrowInvalid, KeyError, IndexError) as error:
        raise DataError(f"record batch {index} cannot be read ({error})") from error


def check_schema(schema: pa.Schema, record: ShardRecord, specs: Sequence[ModalitySpec]) -> None:
    """Refuse a shard that describes other modalities than the manifest.

    Raises:
        DataError: the columns, types, token order or sampling differ.
    """
    try:
        described = json.loads((schema.metadata or {})[METADATA_KEY])
        same = described["modalities"] == [spec.to_dict() for spec in specs]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{record.name} does not describe itself; it is damaged or not a shard") from error
    if not same or not schema.equals(shard_schema(specs, {})):
        raise DataError(
            f"{record.name} holds other modalities than the manifest describes; it belongs to another dataset"
        )
