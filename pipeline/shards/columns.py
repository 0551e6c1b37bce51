"""Rows to Arrow record batches: preallocated token buffers in, zero-copy Arrow arrays out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.errors import DataError
from pipeline.shards.checksum import row_checksum, tokens_checksum
from pipeline.shards.schema import ExampleRow, ModalitySpec, tensor_type
from pipeline.shards.statistics import ChannelSums


class TokenColumn:
    """The tokens of one modality for up to ``capacity`` rows, in one contiguous buffer."""

    def __init__(self, spec: ModalitySpec, capacity: int) -> None:
        self.spec = spec
        self._tokens = np.zeros((capacity, spec.num_tokens, spec.num_channels), spec.dtype)
        self._hashes: list[int | None] = []

    def append(self, tokens: np.ndarray | None) -> int | None:
        """Copy one row in and return its xxh3_64; None is a missing modality, stored as zeros under a null."""
        slot = self._tokens[len(self._hashes)]
        slot[...] = 0 if tokens is None else tokens
        self._hashes.append(None if tokens is None else tokens_checksum(slot.data))
        return self._hashes[-1]

    def arrays(self) -> list[pa.Array]:
        """The tokens and their hashes as Arrow arrays over the buffer, valid until ``clear``."""
        rows = len(self._hashes)
        kind = tensor_type(self.spec)
        missing = np.array([value is None for value in self._hashes])
        bitmap = pa.py_buffer(np.packbits(~missing, bitorder="little").tobytes()) if missing.any() else None
        size = rows * self.spec.num_tokens * self.spec.num_channels
        values = pa.Array.from_buffers(kind.value_type, size, [None, pa.py_buffer(self._tokens[:rows])])
        storage = pa.Array.from_buffers(kind.storage_type, rows, [bitmap], int(missing.sum()), children=[values])
        return [pa.ExtensionArray.from_storage(kind, storage), pa.array(self._hashes, pa.uint64())]

    def sums(self) -> ChannelSums | None:
        """Statistics of the rows that have this modality; None if no row has it."""
        present = [row for row, value in enumerate(self._hashes) if value is not None]
        if not present:
            return None
        tokens = self._tokens[: len(present)] if len(present) == len(self._hashes) else self._tokens[present]
        return ChannelSums.of(tokens.reshape(-1, self.spec.num_channels), len(present))

    def clear(self) -> None:
        """Start the next batch in the same buffer."""
        self._hashes.clear()


class RowBuffer:
    """Rows of one record batch."""

    def __init__(self, specs: Sequence[ModalitySpec], schema: pa.Schema, capacity: int) -> None:
        self._columns = [TokenColumn(spec, capacity) for spec in specs]
        self._schema = schema
        self._capacity = capacity
        self._rows: list[tuple[bytes, str, float, tuple[int, ...], int]] = []

    @property
    def full(self) -> bool:
        """Whether the batch has to be taken before the next row."""
        return len(self._rows) == self._capacity

    def __len__(self) -> int:
        return len(self._rows)

    def append(self, row: ExampleRow) -> None:
        """Copy one checked row in."""
        hashes = [column.append(row.arrays.get(column.spec.name)) for column in self._columns]
        labels = tuple(int(label) for label in row.labels)
        start_seconds = float(row.start_seconds)
        checksum = row_checksum(row.example_id, row.source, start_seconds, labels, hashes)
        self._rows.append((row.example_id, row.source, start_seconds, labels, checksum))

    @property
    def checksums(self) -> np.ndarray:
        """Checksum of each row, uint64."""
        return np.array([row[-1] for row in self._rows], np.uint64)

    def batch(self) -> pa.RecordBatch:
        """The rows as one record batch over the buffers; write it before ``clear``."""
        ids, sources, starts, labels, checksums = zip(*self._rows, strict=True)
        arrays = [pa.array(ids, pa.binary(16))]
        for column in self._columns:
            arrays += column.arrays()
        arrays += [
            pa.array(sources, pa.string()),
            pa.array(starts, pa.float64()),
            pa.array(labels, pa.list_(pa.int32())),
            pa.array(checksums, pa.uint64()),
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def sums(self) -> dict[str, ChannelSums]:
        """Statistics of each modality that any of the rows has."""
        found = {column.spec.name: column.sums() for column in self._columns}
        return {name: sums for name, sums in found.items() if sums is not None}

    def clear(self) -> None:
        """Start the next batch."""
        self._rows.clear()
        for column in self._columns:
            column.clear()


def check_row(row: ExampleRow, specs: Sequence[ModalitySpec]) -> None:
    """Refuse a row that would not come back as it went in.

    Raises:
        DataError: wrong id, unknown modality, other shape or type, values that are not finite, or no signal at all.
    """
    where = f"example at {row.start_seconds} s of {row.source!r}"
    if not isinstance(row.example_id, bytes) or len(row.example_id) != 16:
        raise DataError(f"{where}: example_id must be 16 bytes, got {row.example_id!r}")
    if any(not -(2**31) <= label < 2**31 for label in row.labels):
        raise DataError(f"{where}: labels {row.labels} do not fit 32 bits")
    try:
        row.source.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: the source's name is not valid UTF-8; rename it") from error
    unknown = row.arrays.keys() - {spec.name for spec in specs}
    if unknown:
        raise DataError(f"{where} has modalities {sorted(unknown)} that this dataset does not store")
    if all(row.arrays.get(spec.name) is None for spec in specs):
        raise DataError(f"{where} has none of the modalities {[spec.name for spec in specs]}")
    for spec in specs:
        tokens = row.arrays.get(spec.name)
        if tokens is None:
            continue
        if tokens.shape != (spec.num_tokens, spec.num_channels) or tokens.dtype != spec.dtype:
            raise DataError(
                f"{where}: {spec.name} is {tokens.dtype}{list(tokens.shape)}, "
                f"but the dataset stores {spec.dtype}[{spec.num_tokens}, {spec.num_channels}]"
            )
        if tokens.dtype.kind == "f" and not np.isfinite(tokens).all():
            raise DataError(f"{where}: {spec.name} has values that are not finite")
