"""The examples that the data benchmarks write and read: random bytes in the shapes of the paper's two settings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]
DISTINCT_EXAMPLES = 32


@dataclass(frozen=True)
class Case:
    """One kind of example: ``(name, shape, channels, type)`` of each modality, and rows of a batch."""

    name: str
    modalities: tuple[tuple[str, tuple[int, ...], int, str], ...]
    batch_rows: int

    @property
    def row_bytes(self) -> int:
        """Token bytes of an example."""
        return sum(
            int(np.prod(shape)) * channels * np.dtype(kind).itemsize for _, shape, channels, kind in self.modalities
        )

    def examples(self, count: int) -> list[Arrays]:
        """``count`` examples, of which 32 are different."""
        random = np.random.default_rng(0)
        distinct = [
            {
                name: random.integers(0, 255, (int(np.prod(shape)), channels)).astype(kind)
                for name, shape, channels, kind in self.modalities
            }
            for _ in range(min(count, DISTINCT_EXAMPLES))
        ]
        return [distinct[index % DISTINCT_EXAMPLES] for index in range(count)]

    def allocate(self, rows: int) -> Arrays:
        """The arrays of one batch, touched, so that no reader pays for fresh memory."""
        return {
            name: np.ones((rows, int(np.prod(shape)), channels), kind)
            for name, shape, channels, kind in self.modalities
        }


AUDIO_VIDEO = Case(
    "audio + video, 1.45 MB", (("video", (8, 224, 224), 3, "uint8"), ("audio", (122_880,), 1, "int16")), 32
)
IMAGE = Case("image 224, 0.15 MB", (("image", (224, 224), 3, "uint8"),), 256)
TINY = Case("tiny", (("image", (8, 8), 3, "uint8"), ("audio", (64,), 1, "int16")), 8)


def write_shard(folder: Path, case: Case, examples: Sequence[Arrays]) -> None:
    """One shard and its manifest, as ``hip preprocess`` writes them."""
    from pipeline.shards.manifest import Manifest
    from pipeline.shards.schema import ExampleRow, ModalitySpec
    from pipeline.shards.writer import ShardWriter

    specs = tuple(ModalitySpec(name, shape, channels, kind) for name, shape, channels, kind in case.modalities)
    with ShardWriter(str(folder), "train-00000", specs) as writer:
        for index, arrays in enumerate(examples):
            writer.add(ExampleRow(index.to_bytes(16, "little"), "x", 0.0, (), dict(arrays)))
        record = writer.close()
    Manifest(specs, (record,)).write(str(folder))


def evict(path: Path) -> None:
    """Drop a file from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
