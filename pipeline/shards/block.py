"""One record batch of a shard, opened: zero-copy views of its rows, and the checks made before a row is used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import DataError
from pipeline.shards.checksum import row_checksum, tokens_checksum
from pipeline.shards.schema import ModalitySpec, hash_column

Description = tuple[bytes, str, float, tuple[int, ...]]
"""Id, source, start in seconds and labels of one row."""

LARGE_BYTES = 1 << 16
"""Bytes of a row's tokens below which a copy is shorter than what it takes to let other threads run."""


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
        self._bytes = {name: tokens.data.cast("B") for name, tokens in self._tokens.items()}
        self._present = {name: _validity(batch.column(name)) for name in self._tokens}
        # Views that give Python's own values: making a numpy or pyarrow scalar takes longer than the checks it is for.
        self._hashes = {name: _view(batch.column(hash_column(name)).buffers()[1], "Q") for name in self._tokens}
        self._ids = _view(batch.column("example_id").buffers()[1], "B")
        self._starts = _view(batch.column("start_seconds").buffers()[1], "d")
        self._checksums = _view(batch.column("row_xxh3").buffers()[1], "Q")
        source, labels = batch.column("source"), batch.column("labels")
        self._source_ends, self._sources = _view(source.buffers()[1], "i"), _view(source.buffers()[2], "B")
        self._label_ends, self._labels = _view(labels.buffers()[1], "i"), _view(labels.values.buffers()[1], "i")

    def tokens(self, name: str, row: int) -> np.ndarray:
        """Read-only view ``[tokens, channels]`` of one row, unchecked."""
        view: np.ndarray = self._tokens[name][row]
        return view

    def places(self, row: int, names: Iterable[str]) -> list[tuple[int, int]]:
        """Address and size in bytes of one row's tokens, for each of the modalities ``names`` that its dataset has."""
        views = (self._tokens[name] for name in names if name in self._tokens)
        sizes = ((view.ctypes.data, view[0].nbytes) for view in views)
        return [(address + row * size, size) for address, size in sizes]

    def present(self, name: str, row: int) -> bool:
        """Whether the row has this modality; none has one that its dataset does not know."""
        there = self._present.get(name)
        return bool(there and there[row])

    def example_id(self, row: int) -> bytes:
        """The 16 bytes that name the example."""
        return bytes(self._ids[16 * row : 16 * row + 16])

    def describe(self, row: int) -> Description:
        """Id, source, start in seconds and labels of one row."""
        source = str(self._sources[self._source_ends[row] : self._source_ends[row + 1]], "utf-8")
        labels = tuple(self._labels[self._label_ends[row] : self._label_ends[row + 1]])
        return self.example_id(row), source, self._starts[row], labels

    def describe_checked(self, row: int) -> Description:
        """The same, once it is known to be what was written; covers everything of a row but its tokens.

        Raises:
            RowMismatchError: it differs from what was written.
        """
        try:
            described = self.describe(row)
        except UnicodeDecodeError as error:
            raise RowMismatchError(row, "row", self.example_id(row)) from error
        hashes = [self._hashes[name][row] if self._present[name][row] else None for name in self._tokens]
        if row_checksum(*described, hashes) != self._checksums[row]:
            raise RowMismatchError(row, "row", described[0])
        return described

    def copy_tokens(self, name: str, row: int, target: memoryview[int], verify: bool) -> bool:
        """Copy one row's tokens into ``target``, its bytes; zeros if missing. Returns whether the row has them.

        Raises:
            RowMismatchError: the copy differs from what was written.
        """
        size, there = len(target), self._present.get(name)
        if not (there and there[row]):
            target[:] = bytes(size)
            return False
        target[:] = self._bytes[name][row * size : (row + 1) * size]
        if verify and tokens_checksum(target) != self._hashes[name][row]:
            raise RowMismatchError(row, name, self.example_id(row))
        return True

    def copy_large_tokens(self, name: str, row: int, target: np.ndarray, verify: bool) -> bool:
        """The same into an array ``[tokens, channels]``, while NumPy lets other threads run.

        Raises:
            RowMismatchError: the copy differs from what was written.
        """
        there = self._present.get(name)
        if not (there and there[row]):
            target[...] = 0
            return False
        np.copyto(target, self._tokens[name][row])
        if verify and tokens_checksum(target.data) != self._hashes[name][row]:
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


def _validity(column: pa.Array) -> bytes:
    mask: np.ndarray = column.is_valid().to_numpy(zero_copy_only=False)
    return mask.tobytes()


def _view(buffer: pa.Buffer | None, kind: str) -> memoryview[Any]:
    """All values of a buffer, which Arrow leaves out where there are none; ``kind`` as in ``struct``."""
    return memoryview(buffer or b"").cast("B").cast(kind)  # type: ignore[call-overload,no-any-return]
