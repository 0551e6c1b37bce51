"""Check every byte of a dataset, and say which rows a damaged file has lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import xxhash

from pipeline.errors import DataError
from pipeline.shards.block import Block, RowMismatchError
from pipeline.shards.framing import parse_batch
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import rebuild_hint
from pipeline.shards.record import ShardRecord
from pipeline.shards.schema import ModalitySpec, shard_schema
from pipeline.storage import join, resolve

_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class ShardCheck:
    """What was found in one shard; ``problems`` are sentences, empty when every byte is as written."""

    name: str
    rows: int
    bytes: int
    problems: tuple[str, ...]
    remedy: str

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify_dataset(uri: str, manifest: Manifest | None = None) -> Iterator[ShardCheck]:
    """Check the shards of a dataset one after the other.

    Raises:
        UserError: no dataset at ``uri``.
        DataError: a damaged manifest.
    """
    known = manifest or Manifest.load(uri)
    for record in known.shards:
        place, dataset, own_name = known.place_of(uri, record.name)
        yield replace(verify_shard(place, dataset, replace(record, name=own_name)), name=record.name)


def verify_shard(uri: str, manifest: Manifest, record: ShardRecord) -> ShardCheck:
    """Check one shard's size, file checksum and schema; if they differ, also each of its rows."""
    problems: list[str] = []
    try:
        size, checksum = _file_checksum(join(uri, record.name))
        if size != record.bytes:
            problems.append(f"{size} bytes, the manifest says {record.bytes}")
        if checksum != record.xxh3_128:
            problems.append(f"xxh3_128 is {checksum}, the manifest says {record.xxh3_128}")
            problems += _damaged_rows(join(uri, record.name), record, manifest.modalities)
    except FileNotFoundError:
        problems.append("the file is missing")
    except OSError as error:
        problems.append(f"the file cannot be read ({error})")
    remedy = rebuild_hint(uri, manifest, record.name) if problems else ""
    return ShardCheck(record.name, record.rows, record.bytes, tuple(problems), remedy)


def _file_checksum(location: str) -> tuple[int, str]:
    """Size in bytes and xxh3_128 of a whole file, read in pieces."""
    system, path = resolve(location)
    digest = xxhash.xxh3_128()
    buffer = np.empty(_CHUNK_BYTES, np.uint8)
    size = 0
    with system.open_input_file(path) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count].data)
            size += count
    return size, str(digest.hexdigest())


def _damaged_rows(location: str, record: ShardRecord, specs: tuple[ModalitySpec, ...]) -> Iterator[str]:
    """A sentence for each record batch or row that would be refused when read."""
    system, path = resolve(location)
    schema = shard_schema(specs, {})
    with system.open_input_file(path) as source:
        for index, batch in enumerate(record.batches):
            content = source.read_at(batch.bytes, batch.offset)
            try:
                block = Block(parse_batch(pa.py_buffer(content), batch, schema), specs)
            except DataError as error:
                yield f"rows {index * record.rows_per_batch} and following: {error}"
                continue
            for row in range(block.rows):
                damage = _damage(block, row, specs)
                if damage:
                    number = index * record.rows_per_batch + row
                    yield f"row {number}, example {block.example_id(row).hex()}: {damage} differs"


def _damage(block: Block, row: int, specs: tuple[ModalitySpec, ...]) -> str | None:
    """The first column of a row that is not as written."""
    try:
        block.describe_checked(row)
        for spec in specs:
            block.copy_tokens(spec.name, row, memoryview(bytearray(spec.row_bytes)), verify=True)
    except RowMismatchError as error:
        return error.column
    return None
