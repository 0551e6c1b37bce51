"""The labelled examples of a split, and the order in which training sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import UserError
from pipeline.evaluate.balance import class_weights
from pipeline.evaluate.finetune_options import FinetuneOptions
from pipeline.evaluate.probe import check_labels, is_multilabel
from pipeline.ingest.order import ExampleOrder
from pipeline.ingest.spread import spread
from pipeline.ingest.weighted import WeightedOrder
from pipeline.shards.combined import draw_weights
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import ShardReader
from pipeline.shards.schema import ModalitySpec


class RowOrder(ExampleOrder):
    """The deterministic order of :class:`ExampleOrder` over some rows of a split."""

    def __init__(self, rows: np.ndarray, seed: int, fingerprint: str) -> None:
        super().__init__(len(rows), seed, fingerprint)
        self._rows = rows

    def indices(self, start: int, count: int) -> np.ndarray:
        """The rows at stream positions ``start … start+count-1``, int64 [count]."""
        return np.asarray(self._rows[super().indices(start, count)])


@dataclass(frozen=True)
class LabelledSplit:
    """What fine-tuning trains on."""

    reader: ShardReader
    rows: np.ndarray  # numbers of the examples that count, int64 [N]
    order: ExampleOrder
    task: str  # classification | multilabel

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def open(cls, options: FinetuneOptions, manifest: Manifest, specs: Sequence[ModalitySpec]) -> LabelledSplit:
        """Read all labels, decide the task, and drop what has no label (classification only).

        ``specs`` are read; an example lacks what the dataset does not have.

        Raises:
            UserError: no labels, or several on one example where one is needed.
        """
        reader = ShardReader(options.shards, split=options.split, specs=specs)
        labels = read_labels(reader)
        check_labels(labels, list(manifest.label_names), options.split)
        several = is_multilabel(labels)
        if options.task == "classification" and several:
            raise UserError("task=classification, but some examples have several labels; use task=multilabel")
        multilabel = options.task == "multilabel" or (options.task == "auto" and several)
        rows = np.array([row for row, classes in enumerate(labels) if classes or multilabel], dtype=np.int64)
        if options.limit.fit_examples is not None:
            rows = rows[spread(options.limit.fit_examples, len(rows))]
        order: ExampleOrder = RowOrder(rows, options.seed, manifest.fingerprint)
        shares = draw_weights(manifest, options.split)
        if options.class_balance or shares is not None:
            weights = np.ones(len(rows)) if shares is None else shares[rows]
            if options.class_balance:
                weights = weights * class_weights([labels[row] for row in rows], options.class_balance)
            order = WeightedOrder(rows, weights, options.seed, manifest.fingerprint)
        return cls(reader, rows, order, "multilabel" if multilabel else "classification")


def read_labels(reader: ShardReader) -> list[tuple[int, ...]]:
    """The labels of every example, without reading its tokens."""
    found: list[tuple[int, ...]] = []
    for first in range(0, len(reader), 4096):
        found += reader.read(np.arange(first, min(first + 4096, len(reader))), out={}).labels
    return found
