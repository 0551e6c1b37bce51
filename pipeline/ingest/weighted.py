"""Drawing some examples more often than others: an order in which rows come in proportion to their weights."""

from __future__ import annotations

import numpy as np

from pipeline.ingest.order import ExampleOrder
from pipeline.seeding import derive_seed

_REPEAT_BITS = 32


class WeightedOrder(ExampleOrder):
    """A stream of ``rows`` in proportion to ``weights`` [rows]; an epoch draws as many as there are rows.

    Each row comes as evenly as whole draws can: the weights lie end to end on a line, and an epoch's draws are equally
    spaced points on it, from a start that is drawn anew each epoch, in the random order of :class:`ExampleOrder`.
    ``block_bounds`` are among the rows; neighbours on the line are read together in order ``blocks``.
    """

    def __init__(
        self,
        rows: np.ndarray,
        weights: np.ndarray,
        seed: int,
        fingerprint: str,
        kind: str = "global",
        block_bounds: np.ndarray | None = None,
        window_blocks: int = 64,
        dataset_ends: np.ndarray | None = None,
    ) -> None:
        ends = np.cumsum(weights, dtype=np.float64)
        self._rows, self._seed = rows, seed
        self._ends = ends * (len(rows) / ends[-1])  # one point is one draw
        self._begins = np.concatenate([[0.0], self._ends[:-1]])
        if block_bounds is not None:
            on_line = np.concatenate([[0.0], self._ends])[block_bounds]
            block_bounds = np.unique(np.rint(on_line).astype(np.int64))
        super().__init__(len(rows), seed, fingerprint, kind, block_bounds, window_blocks, dataset_ends)

    def indices(self, start: int, count: int) -> np.ndarray:
        """The rows at stream positions ``start … start+count-1``, int64 [count]."""
        return np.asarray(self._rows[self._drawn(start, count)[0]])

    def epochs(self, start: int, count: int) -> np.ndarray:
        """The epoch of each, int64 [count]; a row's later draws in an epoch have another one each, to be varied by."""
        return np.asarray(super().epochs(start, count) + (self._drawn(start, count)[1] << _REPEAT_BITS))

    def _drawn(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers among the rows at these positions, and how often each has its place in the epoch before."""
        points, epochs = super().indices(start, count), super().epochs(start, count)
        shifts = {epoch: self._shift(epoch) for epoch in np.unique(epochs).tolist()}
        shift = np.array([shifts[epoch] for epoch in epochs.tolist()])
        drawn = np.minimum(np.searchsorted(self._ends, points + shift, side="right"), len(self._ends) - 1)
        first = np.ceil(self._begins[drawn] - shift).astype(np.int64)
        return drawn, np.maximum(points - first, 0)

    def _shift(self, epoch: int) -> float:
        return float(np.random.default_rng(derive_seed(self._seed, "balance", epoch)).random())
