"""Where each record batch lies in a shard, and the checks made before Arrow may parse it.

Arrow trusts the headers of its messages: a flipped bit in one can abort the process. So readers take offsets from the
manifest, not from the file, and compare each header with its checksum first. A second checksum ties the batch's rows
to the manifest, so that a shard of another dataset is refused even if it has the same shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from pipeline.errors import DataError

_MAGIC_BYTES = 8
_PREFIX_BYTES = 8
_CONTINUATION = b"\xff\xff\xff\xff"


@dataclass(frozen=True)
class BatchRecord:
    """One record batch: its byte range in the shard, xxh3_64 of its header and of its rows' checksums (hex)."""

    offset: int
    bytes: int
    header_xxh3: str
    rows_xxh3: str

    def to_list(self) -> list[int | str]:
        """Short JSON form; a large dataset has half a million of them."""
        return [self.offset, self.bytes, self.header_xxh3, self.rows_xxh3]


def message_header(message: memoryview) -> memoryview:
    """The header of an encapsulated Arrow message: prefix and metadata, without the body.

    Raises:
        DataError: this is not the start of a message.
    """
    size = int.from_bytes(message[4:_PREFIX_BYTES], "little")
    if bytes(message[:4]) != _CONTINUATION or not 0 < size <= len(message) - _PREFIX_BYTES:
        raise DataError("no Arrow message where the manifest says that one starts")
    return message[: _PREFIX_BYTES + size]


def rows_checksum(row_checksums: np.ndarray) -> str:
    """xxh3_64 over the checksums of a batch's rows (uint64)."""
    return str(xxhash.xxh3_64_hexdigest(np.ascontiguousarray(row_checksums, "<u8").tobytes()))


def describe_batches(shard: Path, ends: Sequence[int], row_checksums: Sequence[np.ndarray]) -> tuple[BatchRecord, ...]:
    """The batches of a shard just written, given where each ended and the checksums of its rows."""
    if not ends:
        return ()
    with shard.open("rb", buffering=0) as stream:
        schema_bytes = len(_read_header(stream, _MAGIC_BYTES))  # it has no body: the first batch follows its header
        starts = [_MAGIC_BYTES + schema_bytes, *ends[:-1]]
        headers = [_read_header(stream, start) for start in starts]
    return tuple(
        BatchRecord(
            start,
            end - start,
            str(xxhash.xxh3_64_hexdigest(header)),
            rows_checksum(checksums),
        )
        for start, end, header, checksums in zip(starts, ends, headers, row_checksums, strict=True)
    )


def _read_header(stream: FileIO, start: int) -> memoryview:
    """The header of the message at byte ``start``, and nothing of what lies around it."""
    stream.seek(start)
    prefix = stream.read(_PREFIX_BYTES)
    return message_header(memoryview(prefix + stream.read(int.from_bytes(prefix[4:], "little"))))


def parse_batch(message: pa.Buffer, record: BatchRecord, schema: pa.Schema) -> pa.RecordBatch:
    """The record batch in ``message``, zero-copy, once it is known to be the one that was written.

    Raises:
        DataError: header, rows or offsets differ from what was written.
    """
    if (
        len(message) != record.bytes
        or xxhash.xxh3_64_hexdigest(message_header(memoryview(message))) != record.header_xxh3
    ):
        raise DataError(f"the header of the record batch at byte {record.offset} does not match its checksum")
    batch = pa.ipc.read_record_batch(pa.ipc.read_message(message), schema)
    if rows_checksum(np.frombuffer(batch.column("row_xxh3").buffers()[1], "<u8", batch.num_rows)) != record.rows_xxh3:
        raise DataError(f"the rows of the record batch at byte {record.offset} are not those that were written")
    try:
        for name in ("source", "labels"):  # their offsets are data, and following a wrong one can crash
            batch.column(name).validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataError(f"the record batch at byte {record.offset} is damaged ({error})") from error
    return batch
