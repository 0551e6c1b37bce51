"""One record batch of a shard, opened: zero-copy views of its rows, and the checks made before a row is used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.errors import DataError
from pipeline.shards.checksum import array_checksum, row_checksum
from pipeline.shards.schema import ModalitySpec, hash_column

Description = tuple[bytes, str, float, tuple[int, ...]]
"""Id, source, start in seconds and labels of one row."""


class RowMismatchError(Exception):
    """A row's bytes do not match their checksum; ``column`` is the modality, or ``row`` for everything else."""

    def __init__(self, row: int, column: str, example_id: bytes) -> None:
        super().__init__(row, column, example_id)
        self.row = row
        self.column = column
        self.example_id = example_id


class Block:
    """Views of one record batch; keeps the memory map alive.

    Raises:
        DataError: buffers that do not hold what the schema promises.
    """

    def __init__(self, batch: pa.RecordBatch, specs: Sequence[ModalitySpec]) -> None:
        self.rows = batch.num_rows
        self._tokens = {spec.name: _token_view(batch.column(spec.name), spec) for spec in specs}
        self._present = {name: _validity(batch.column(name)) for name in self._tokens}
        self._hashes = {name: _fixed(batch.column(hash_column(name)), np.uint64) for name in self._tokens}
        self._ids = _fixed(batch.column("example_id"), np.dtype("V16"))
        self._starts = _fixed(batch.column("start_seconds"), np.float64)
        self._checksums = _fixed(batch.column("row_xxh3"), np.uint64)
        self._sources = batch.column("source")
        self._labels = batch.column("labels")

    def tokens(self, name: str, row: int) -> np.ndarray:
        """Read-only view ``[tokens, channels]`` of one row, unchecked."""
        view: np.ndarray = self._tokens[name][row]
        return view

    def present(self, name: str, row: int) -> bool:
        """Whether the row has this modality."""
        return bool(self._present[name][row])

    def example_id(self, row: int) -> bytes:
        """The 16 bytes that name the example."""
        return bytes(self._ids[row].tobytes())

    def describe(self, row: int) -> Description:
        """Id, source, start in seconds and labels of one row."""
        source: str = self._sources[row].as_py()
        return self.example_id(row), source, float(self._starts[row]), tuple(self._labels[row].as_py())

    def describe_checked(self, row: int) -> Description:
        """The same, once it is known to be what was written; covers everything of a row but its tokens.

        Raises:
            RowMismatchError: it differs from what was written.
        """
        try:
            described = self.describe(row)
        except UnicodeDecodeError as error:
            raise RowMismatchError(row, "row", self.example_id(row)) from error
        hashes = [int(self._hashes[name][row]) if self.present(name, row) else None for name in self._tokens]
        if row_checksum(*described, hashes) != int(self._checksums[row]):
            raise RowMismatchError(row, "row", described[0])
        return described

    def copy_tokens(self, name: str, row: int, out: np.ndarray, verify: bool) -> bool:
        """Copy one row's tokens into contiguous ``out``, zeros if missing; returns whether the row has them.

        Raises:
            RowMismatchError: the copy differs from what was written.
        """
        if not self._present[name][row]:
            out.fill(0)
            return False
        np.copyto(out, self._tokens[name][row])
        if verify and array_checksum(out) != int(self._hashes[name][row]):
            raise RowMismatchError(row, name, self.example_id(row))
        return True


def _token_view(column: pa.ExtensionArray, spec: ModalitySpec) -> np.ndarray:
    values = column.storage.values.to_numpy(zero_copy_only=True)
    if values.size != len(column) * spec.num_tokens * spec.num_channels:
        raise DataError(
            f"the buffer of {spec.name!r} has {values.size} values, too few or too many for {len(column)} rows"
        )
    view: np.ndarray = values.reshape(len(column), spec.num_tokens, spec.num_channels)
    return view


def _validity(column: pa.Array) -> np.ndarray:
    mask: np.ndarray = column.is_valid().to_numpy(zero_copy_only=False)
    return mask


def _fixed(column: pa.Array, dtype: np.typing.DTypeLike) -> np.ndarray:
    """A fixed-width column as numpy, whatever its nulls."""
    return np.frombuffer(column.buffers()[1], dtype, count=len(column))
