"""A dataset in another token order, made from its shards without decoding anything again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hip_model.ordering import inverse, token_order
from pipeline import storage
from pipeline.seeding import derive_seed
from pipeline.shards.manifest import MANIFEST_NAME, Manifest
from pipeline.shards.reader import ShardReader
from pipeline.shards.schema import ExampleRow, ModalitySpec
from pipeline.shards.writer import ShardWriter

_ROWS = 256
Change = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Derivation:
    """What differs from the source dataset."""

    order: str | None = None  # token order of everything that lies on a grid; none: as it is
    shuffle_points: bool = False  # points of each cloud in an order of their own (a function of the example)

    def to_dict(self) -> dict[str, Any]:
        """For the new dataset's lineage."""
        return {"order": self.order, "shuffle_points": self.shuffle_points}

    def is_nothing(self) -> bool:
        """Whether the source can be used as it is."""
        return self == Derivation()


def derive_shards(source: str, target: str, derivation: Derivation) -> str:
    """Write the changed dataset to ``target`` unless it is there already; returns the folder to read."""
    if derivation.is_nothing():
        return source
    if storage.exists(storage.join(target, MANIFEST_NAME)):
        return target
    manifest = Manifest.load(source)
    changes = {spec.name: _change(spec, derivation) for spec in manifest.modalities}
    specs = tuple(spec for spec, _ in changes.values())
    records = []
    for split in manifest.splits:
        with ShardWriter(target, f"{split}-00000", specs) as writer:
            for row in _rows(ShardReader(source, split=split), {name: change for name, (_, change) in changes.items()}):
                writer.add(row)
            records.append(writer.close())
    lineage = {**manifest.lineage, "derived_from": manifest.fingerprint, "derivation": derivation.to_dict()}
    replace(manifest, modalities=specs, shards=tuple(records), lineage=lineage, notes={}).write(target)
    return target


def _change(spec: ModalitySpec, derivation: Derivation) -> tuple[ModalitySpec, Change]:
    """The new spec, and tokens [T, C] of one example (with its id) to the new tokens."""
    if derivation.shuffle_points and len(spec.shape) == 1 and spec.num_channels == 3:
        return replace(spec, token_order="raster"), lambda tokens, example: tokens[
            np.random.default_rng(derive_seed(0, "points", example)).permutation(len(tokens))
        ]
    if derivation.order is None or spec.token_order == "kd":
        return spec, lambda tokens, example: tokens
    moved = inverse(token_order(spec.token_order, spec.shape))[token_order(derivation.order, spec.shape)]
    return replace(spec, token_order=derivation.order), lambda tokens, example: tokens[moved]


def _rows(reader: ShardReader, changes: dict[str, Change]) -> Any:
    for first in range(0, len(reader), _ROWS):
        batch = reader.read(np.arange(first, min(first + _ROWS, len(reader))))
        for row, example in enumerate(batch.example_ids.tolist()):
            arrays = {
                name: change(batch.arrays[name][row], example) if batch.present[name][row] else None
                for name, change in changes.items()
            }
            identity = int(example).to_bytes(8, "little", signed=True) * 2
            yield ExampleRow(identity, batch.sources[row], float(batch.start_seconds[row]), batch.labels[row], arrays)
