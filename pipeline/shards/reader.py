"""Random access to the examples of a dataset: rows copied into one contiguous batch, each checked before use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from pipeline.errors import DataError
from pipeline.shards.block import LARGE_BYTES, Description, RowMismatchError
from pipeline.shards.combined import label_numbers, open_blocks
from pipeline.shards.manifest import Manifest
from pipeline.shards.remote import CacheOptions
from pipeline.shards.schema import ModalitySpec
from pipeline.storage import join, redact

_BLOCKS_AT_ONCE = 32  # record batches that are described before their tokens are copied

_Group = tuple[int, int, list[int], list[int]]  # shard, record batch, rows in it, and their slots in the batch


@dataclass(frozen=True)
class Batch:
    """Examples in the order they were asked for.

    ``arrays`` are raw ``[B, tokens, channels]``, zeros where ``present`` (``[B]``) is False; ``example_ids`` are the
    first 8 bytes of each id as int64.
    """

    arrays: dict[str, np.ndarray]
    present: dict[str, np.ndarray]
    example_ids: np.ndarray
    labels: list[tuple[int, ...]]
    sources: list[str]
    start_seconds: np.ndarray

    def part(self, start: int, stop: int) -> Batch:
        """Views of the examples ``[start, stop)``."""
        rows = slice(start, stop)
        return Batch(
            {name: array[rows] for name, array in self.arrays.items()},
            {name: mask[rows] for name, mask in self.present.items()},
            self.example_ids[rows],
            self.labels[rows],
            self.sources[rows],
            self.start_seconds[rows],
        )


class ShardReader:
    """The examples of one split (None: all), numbered in manifest order.

    Local shards are memory-mapped; of remote ones whole record batches are fetched into a bounded cache. Safe to use
    from several threads. With ``verify`` each row is checked after it was copied and before it is returned.
    ``specs`` says what to read, in that order; what the dataset does not have is missing from every example.

    Raises:
        UserError: no dataset at ``uri``, no such split, or a cache that is too small.
        DataError: a damaged manifest.
    """

    def __init__(
        self,
        uri: str,
        split: str | None = None,
        verify: bool = True,
        cache: CacheOptions | None = None,
        specs: Sequence[ModalitySpec] | None = None,
    ) -> None:
        self.uri = str(uri)
        self.split = split
        self.manifest = Manifest.load(self.uri)
        self._verify = verify
        self._shards = self.manifest.shards_of(split)
        self._specs = {spec.name: spec for spec in (self.manifest.modalities if specs is None else specs)}
        self._row_bytes = {name: spec.row_bytes for name, spec in self._specs.items()}
        self._first_rows = np.cumsum([0, *(shard.rows for shard in self._shards)], dtype=np.int64)
        self._rows_per_block = np.array([shard.rows_per_batch for shard in self._shards], np.int64)
        self._label_numbers = label_numbers(self.manifest, split)
        self._blocks = open_blocks(self.uri, self.manifest, split, cache or CacheOptions())

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    @property
    def specs(self) -> tuple[ModalitySpec, ...]:
        """What ``read`` gives, in this order."""
        return tuple(self._specs.values())

    @property
    def row_bytes(self) -> int:
        """Token bytes of one example."""
        return sum(self._row_bytes.values())

    def block_bounds(self) -> np.ndarray:
        """First example of each record batch, and the number of examples: int64 ``[blocks + 1]``."""
        starts = [
            np.arange(first, first + shard.rows, shard.rows_per_batch, dtype=np.int64)
            for first, shard in zip(self._first_rows[:-1], self._shards, strict=True)
        ]
        return np.concatenate([*starts, self._first_rows[-1:]])

    def read(self, indices: np.ndarray, out: Mapping[str, np.ndarray] | None = None) -> Batch:
        """Copy examples ``indices`` (int64 ``[B]``) into ``out``, arrays ``[B, tokens, channels]``, made if None.

        Those of ``out`` have to be contiguous.

        Raises:
            IndexError: an index outside the dataset.
            DataError: a row differs from what was written, or its shard is missing or damaged; the message names the
                shard, the row, the example and the command that rebuilds the shard.
        """
        wanted = np.asarray(indices, np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"example {int(wanted.max())} of {len(self)}; indices go from 0 to {len(self) - 1}")
        count = len(wanted)
        arrays = dict(out) if out is not None else self.allocate(count)
        present = {name: np.zeros(count, bool) for name in self._specs}
        described: list[Description] = [(b"", "", 0.0, ())] * count
        groups = list(self._by_block(wanted))
        self._expect(groups)
        for start in range(0, len(groups), _BLOCKS_AT_ONCE):
            part = groups[start : start + _BLOCKS_AT_ONCE]
            try:
                self._read_blocks(part, arrays, present, described)
            except (RowMismatchError, DataError):
                for group in part:
                    self._read_again(group, arrays, present, described)
        return Batch(
            arrays,
            present,
            np.frombuffer(bytearray().join(row[0][:8] for row in described), "<i8"),
            labels=[row[3] for row in described],
            sources=[row[1] for row in described],
            start_seconds=np.array([row[2] for row in described], np.float64),
        )

    def allocate(self, count: int) -> dict[str, np.ndarray]:
        """Uninitialised arrays for ``count`` examples."""
        return {
            name: np.empty((count, spec.num_tokens, spec.num_channels), spec.dtype)
            for name, spec in self._specs.items()
        }

    @property
    def cache_examples(self) -> int | None:
        """Examples whose record batches the cache of a remote dataset holds; None for shards on this machine."""
        held = self._blocks.cache_blocks
        return None if held is None else held * len(self) // (len(self.block_bounds()) - 1)

    def blocks_of(self, indices: np.ndarray) -> list[tuple[int, int]]:
        """Shard and record batch of examples ``indices``, each once, in the order in which ``read`` needs them."""
        return [(shard, index) for shard, index, _, _ in self._by_block(np.asarray(indices, np.int64))]

    def fetch(self, shard: int, block_index: int) -> None:
        """Bring a record batch of a remote dataset into the cache.

        Raises:
            DataError: the shard is missing.
            InfrastructureError: the store does not answer, or the disk is full.
        """
        self._blocks.fetch(shard, block_index)

    def close(self) -> None:
        """Unmap shards; batches already returned stay valid."""
        self._blocks.close()

    def _by_block(self, wanted: np.ndarray) -> Iterator[_Group]:
        """Shard, record batch, rows in it, and their slots in the batch; ascending, so that the disk reads forward."""
        slots = np.argsort(wanted, kind="stable")
        shards = np.searchsorted(self._first_rows, wanted[slots], side="right") - 1
        blocks, rows = np.divmod(wanted[slots] - self._first_rows[shards], self._rows_per_block[shards])
        ends = np.flatnonzero(np.diff(shards) | np.diff(blocks)) + 1
        start = 0
        for end in [*ends.tolist(), len(slots)] if len(slots) else []:
            yield int(shards[start]), int(blocks[start]), rows[start:end].tolist(), slots[start:end].tolist()
            start = end

    def _expect(self, groups: Sequence[_Group]) -> None:
        with suppress(DataError):  # reading meets it again, and says how to mend it
            self._blocks.expect([group[:3] for group in groups], list(self._specs))

    def _read_blocks(
        self,
        groups: Sequence[_Group],
        arrays: dict[str, np.ndarray],
        present: dict[str, np.ndarray],
        described: list[Description],
    ) -> None:
        """Describe rows of some record batches, then copy their tokens.

        Not row by row: after each copy the processor has to fetch again what Python needs for anything else.
        """
        places = []
        for shard, block_index, rows, slots in groups:
            block = self._blocks.block(shard, block_index)
            for row, slot in zip(rows, slots, strict=True):
                described[slot] = block.describe_checked(row) if self._verify else block.describe(row)
                places.append((block, row, slot))
            if numbers := self._label_numbers[shard] if self._label_numbers else None:
                for slot in slots:
                    example_id, source, start, labels = described[slot]
                    described[slot] = (example_id, source, start, tuple(numbers[label] for label in labels))
        for name, array in arrays.items():
            is_there, size = present[name], self._row_bytes[name]
            if size >= LARGE_BYTES:
                for block, row, slot in places:
                    is_there[slot] = block.copy_large_tokens(name, row, array[slot], self._verify)
            else:
                content = array.data.cast("B")
                for block, row, slot in places:
                    target = content[slot * size : (slot + 1) * size]
                    is_there[slot] = block.copy_tokens(name, row, target, self._verify)

    def _read_again(
        self,
        group: _Group,
        arrays: dict[str, np.ndarray],
        present: dict[str, np.ndarray],
        described: list[Description],
    ) -> None:
        """Say what is wrong with a record batch, if it is; a damaged copy of a remote one is fetched once more."""
        shard, block_index = group[:2]
        for last_try in (False, True):
            try:
                self._read_blocks([group], arrays, present, described)
                return
            except RowMismatchError as error:
                if last_try or not self._blocks.forget(shard, block_index):
                    row = block_index * self._shards[shard].rows_per_batch + error.row
                    raise DataError(self._mismatch(shard, row, error)) from error
            except DataError as error:
                raise DataError(f"{error}. {self._remedy(shard)}") from error

    def _mismatch(self, shard: int, row: int, error: RowMismatchError) -> str:
        what = "the row's description" if error.column == "row" else f"the tokens of {error.column!r}"
        return (
            f"{self._shards[shard].name}, row {row}, example {error.example_id.hex()}: {what} do not match "
            f"the checksum; the file changed after it was written. {self._remedy(shard)}"
        )

    def _remedy(self, shard: int) -> str:
        return rebuild_hint(*self.manifest.place_of(self.uri, self._shards[shard].name))


def rebuild_hint(uri: str, manifest: Manifest, shard_name: str) -> str:
    """The sentence that tells how to rebuild one shard alone."""
    source = redact(str(manifest.notes.get("source", "<media>")))
    return (
        f"Rebuild this shard alone: delete {redact(join(uri, shard_name))} and run the command that made the dataset "
        f"again (hip preprocess source={source} shards={redact(uri)} …)"
    )
