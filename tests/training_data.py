"""Small datasets with something to learn, for the training tests."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np

from pipeline.shards.manifest import Manifest
from pipeline.shards.record import ShardRecord
from pipeline.shards.schema import ExampleRow, ModalitySpec
from pipeline.shards.writer import ShardWriter

IMAGE = ModalitySpec("image", (8, 8), 3, "uint8")
SOUND = ModalitySpec("audio", (64,), 1, "int16")
POINTS = ModalitySpec("points", (16,), 3, "float32")


def example(index: int, specs: tuple[ModalitySpec, ...], split: str, poison: bool = False) -> ExampleRow:
    """A colour gradient and a tone that share a hidden phase; with ``poison`` the points hold a NaN."""
    draw = np.random.default_rng([index, len(split)])
    phase = draw.uniform(0, 2 * np.pi)
    arrays: dict[str, np.ndarray | None] = {}
    for spec in specs:
        wave = np.sin(np.linspace(0, 6, spec.num_tokens)[:, None] + phase + np.arange(spec.num_channels))
        if spec.dtype == "float32":
            arrays[spec.name] = wave.astype(np.float32)
            if poison:
                arrays[spec.name][3, 1] = np.nan
        else:
            top = np.iinfo(spec.dtype).max
            low = np.iinfo(spec.dtype).min
            arrays[spec.name] = ((wave + 1) / 2 * (top - low) + low).astype(spec.dtype)
    identity = hashlib.sha256(f"{split}{index}".encode()).digest()[:16]
    return ExampleRow(identity, f"{split}/{index}.mp4", 0.0, (index % 3,), arrays)


def write_dataset(
    folder: Path,
    train: int = 48,
    validation: int = 8,
    specs: tuple[ModalitySpec, ...] = (IMAGE, SOUND),
    poisoned: tuple[int, ...] = (),
    without_sound: tuple[int, ...] = (),
) -> str:
    """Write a dataset and return its folder; ``poisoned`` and ``without_sound`` name training examples.

    The writer refuses NaN, so to plant one its check is switched off, and the statistics are those of clean data.
    """
    if poisoned:
        clean = write_dataset(folder / "clean", train, validation, specs)
        with patch.object(np, "isfinite", lambda values: np.ones(1, bool)):
            records = _write_shards(folder, train, validation, specs, poisoned, without_sound)
        statistics = [shard.statistics for shard in Manifest.load(clean).shards]
        records = [replace(record, statistics=known) for record, known in zip(records, statistics, strict=True)]
    else:
        records = _write_shards(folder, train, validation, specs, poisoned, without_sound)
    Manifest(tuple(specs), tuple(records), lineage={"recipe": {}}).write(str(folder))
    return str(folder)


def _write_shards(
    folder: Path,
    train: int,
    validation: int,
    specs: tuple[ModalitySpec, ...],
    poisoned: tuple[int, ...],
    without_sound: tuple[int, ...],
) -> list[ShardRecord]:
    records = []
    for split, count in (("train", train), ("validation", validation)):
        if not count:
            continue
        writer = ShardWriter(str(folder), f"{split}-00000", list(specs))
        for index in range(count):
            row = example(index, specs, split, poison=split == "train" and index in poisoned)
            if split == "train" and index in without_sound:
                row.arrays["audio"] = None
            writer.add(row)
        records.append(writer.close())
    return records
