"""Which example comes when: a pure function of seed, epoch, dataset fingerprint and position in the stream."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from pipeline.errors import UserError, nearest
from pipeline.ingest.permutation import Permutation, by_segment

ORDER_KINDS = ("global", "blocks", "sequential")

_LONGEST_RUN = 1024  # positions in a row that are worked out together


class ExampleOrder:
    """An endless stream of example numbers; position ``p`` is in epoch ``p // num_examples``.

    Every epoch is a permutation of all examples. Batches ignore epoch ends: the last of an epoch is filled up with
    the first of the next, so no example is dropped and none is drawn twice in an epoch. Global batch ``k`` of size
    ``B`` is positions ``kB … kB+B-1``, whoever asks.

    * ``global``: one permutation of all examples. Right for local disks and for caches that hold the dataset.
    * ``blocks``: record batches are permuted, ``window_blocks`` of them at a time form a window, and examples are
      permuted inside it. A reader needs the record batches of one window at a time (two at its ends). Right for
      object stores and spinning disks. Needs ``block_bounds`` (`ShardReader.block_bounds`).
    * ``sequential``: as stored; for evaluation.

    ``dataset_ends`` are the numbers of examples up to the end of each dataset in a combined one whose members have
    different modalities. A worker's part then has as much of each as any other's, and is sorted by dataset, so that
    most micro-batches have the modalities of one, and cost no more than those.

    Raises:
        UserError: no examples, an unknown kind, or ``blocks`` without bounds.
    """

    def __init__(
        self,
        num_examples: int,
        seed: int,
        fingerprint: str,
        kind: str = "global",
        block_bounds: np.ndarray | None = None,
        window_blocks: int = 64,
        dataset_ends: np.ndarray | None = None,
    ) -> None:
        if num_examples < 1:
            raise UserError("the dataset has no examples in this split; look at it with: hip inspect shards=…")
        if kind not in ORDER_KINDS:
            raise UserError(f"order={kind!r} is unknown; {nearest(kind, ORDER_KINDS)}")
        if kind == "blocks" and (block_bounds is None or window_blocks < 1):
            raise UserError(
                f"order='blocks' needs the bounds of blocks and window_blocks of 1 or more, got {window_blocks}"
            )
        self.num_examples = num_examples
        self.kind = kind
        self._key = (seed, fingerprint)
        self._bounds = block_bounds
        self._window_blocks = window_blocks
        self._dataset_ends = dataset_ends
        self._permutation = lru_cache(maxsize=4)(self._epoch_permutation)
        self._windows = lru_cache(maxsize=4)(self._epoch_windows)
        self._run_positions = min(num_examples, _LONGEST_RUN)
        self._run = lru_cache(maxsize=4)(self._shuffled_run)

    @property
    def window_examples(self) -> int:
        """How many positions in a row share the record batches of a window; 0 unless the order is ``blocks``."""
        if self.kind != "blocks" or self._bounds is None:
            return 0
        num_blocks = len(self._bounds) - 1
        return -(-self.num_examples * min(self._window_blocks, num_blocks) // num_blocks)

    def indices(self, start: int, count: int) -> np.ndarray:
        """The examples at stream positions ``start … start+count-1``, int64 ``[count]``."""
        if self.kind == "sequential":
            return np.arange(start, start + count, dtype=np.int64) % self.num_examples
        first, last = start // self._run_positions, max(start, start + count - 1) // self._run_positions
        runs = [self._run(number) for number in range(first, last + 1)]
        whole = runs[0] if len(runs) == 1 else np.concatenate(runs)
        return whole[start - first * self._run_positions :][:count]

    def epochs(self, start: int, count: int) -> np.ndarray:
        """The epoch of each of those positions, int64 ``[count]``."""
        return np.arange(start, start + count, dtype=np.int64) // self.num_examples

    def worker_part(self, start: int, count: int, rank: int, world_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Examples and epochs (both int64) of one worker's part of the global batch at ``start … start+count-1``.

        In order ``blocks`` the batch is dealt out by place in the dataset: within a window a worker then meets
        mostly the same record batches, and the workers together fetch little more than each once.
        """
        first, size = rank_slice(0, count, rank, world_size)
        if self.kind != "blocks" and self._dataset_ends is None:
            return self.indices(start + first, size), self.epochs(start + first, size)
        examples = self.indices(start, count)
        dealt = np.argsort(examples, kind="stable")
        if self._dataset_ends is not None:
            dealt = dealt[np.argsort(_share_before(examples[dealt], self._dataset_ends), kind="stable")]
        mine = dealt[first : first + size]
        mine = mine[np.argsort(examples[mine], kind="stable")]
        return examples[mine], self.epochs(start, count)[mine]

    def _shuffled_run(self, number: int) -> np.ndarray:
        """Many positions at once: for a few, as in a batch, the same numpy operations would take as long."""
        positions = np.arange(self._run_positions, dtype=np.int64) + number * self._run_positions
        epochs, within = np.divmod(positions, self.num_examples)
        found = by_segment(within, epochs, self._in_blocks if self.kind == "blocks" else self._anywhere)
        found.setflags(write=False)
        return found

    def _anywhere(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        return self._permutation(epoch)(positions)

    def _epoch_permutation(self, epoch: int) -> Permutation:
        return Permutation(self.num_examples, *self._key, epoch)

    def _in_blocks(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        windows = self._windows(epoch)
        window = np.searchsorted(windows.starts, positions, side="right") - 1
        return by_segment(positions, window, lambda index, part: windows.examples(index, part))

    def _epoch_windows(self, epoch: int) -> _Windows:
        assert self._bounds is not None
        return _Windows(self._bounds, self._window_blocks, (*self._key, epoch))


class _Windows:
    """One epoch of the ``blocks`` order: which blocks are in which window. Memory: 24 bytes a block."""

    def __init__(self, bounds: np.ndarray, window_blocks: int, key: tuple[object, ...]) -> None:
        num_blocks = len(bounds) - 1
        self._key = key
        self._window_blocks = window_blocks
        order = Permutation(num_blocks, *key, "blocks")(np.arange(num_blocks, dtype=np.int64))
        self._first_example = bounds[:-1][order]
        self._block_starts = np.concatenate([[0], np.cumsum(np.diff(bounds)[order])])
        self.starts = self._block_starts[:-1:window_blocks]

    def examples(self, window: int, positions: np.ndarray) -> np.ndarray:
        """The examples at ``positions`` of this epoch, all in ``window``."""
        first_block = window * self._window_blocks
        starts = self._block_starts[first_block : first_block + self._window_blocks + 1]
        shuffle = Permutation(int(starts[-1] - starts[0]), *self._key, "window", window)
        mixed = shuffle(positions - starts[0]) + starts[0]
        block = np.searchsorted(starts, mixed, side="right") - 1
        return self._first_example[first_block + block] + mixed - starts[block]


def _share_before(examples: np.ndarray, dataset_ends: np.ndarray) -> np.ndarray:
    """Of ascending ``examples``, which part of those from the same dataset comes before each [N]."""
    dataset = np.searchsorted(dataset_ends, examples, side="right")
    starts = np.searchsorted(dataset, dataset, side="left")
    counts = np.searchsorted(dataset, dataset, side="right") - starts
    return (np.arange(len(examples)) - starts + 0.5) / counts


def rank_slice(start: int, count: int, rank: int, world_size: int) -> tuple[int, int]:
    """Start and count of the part of positions ``start … start+count-1`` that ``rank`` of ``world_size`` reads.

    Parts differ by at most one example, for any ``world_size``.
    """
    first, last = count * rank // world_size, count * (rank + 1) // world_size
    return start + first, last - first
