"""Small datasets with known content for the shard tests."""

from __future__ import annotations

import numpy as np

from pipeline.shards.manifest import Manifest
from pipeline.shards.schema import ExampleRow, ModalitySpec
from pipeline.shards.writer import ShardWriter

VIDEO = ModalitySpec("video", (2, 4, 4), 3, "uint8", sampling={"frames_per_second": 3.125})
AUDIO = ModalitySpec("audio", (50,), 1, "int16", sampling={"sample_rate": 48000})


def make_row(index: int) -> ExampleRow:
    """An example whose content follows from its number; every fifth has no sound."""
    random = np.random.default_rng(index)
    video = random.integers(0, 256, (32, 3), dtype=np.uint8)
    audio = None if index % 5 == 4 else random.integers(-32768, 32767, (50, 1), dtype=np.int16)
    labels = tuple(range(index % 3))
    return ExampleRow(random.bytes(16), f"clips/ä{index}.mp4", index / 4, labels, {"video": video, "audio": audio})


def build(folder: str, counts: dict[str, int], start: int = 0) -> Manifest:
    """Write shards ``{name: rows}`` and their manifest; rows are numbered through."""
    records = []
    for name, count in counts.items():
        with ShardWriter(folder, name, (VIDEO, AUDIO), {"recipe": {"clip_seconds": 2.56}}) as writer:
            for index in range(start, start + count):
                writer.add(make_row(index))
            records.append(writer.close())
        start += count
    lineage = {"recipe": {"clip_seconds": 2.56}, "code_version": "test"}
    manifest = Manifest((VIDEO, AUDIO), tuple(records), ("cat", "dog", "owl"), lineage, {"source": "/media/clips"})
    manifest.write(folder)
    return manifest
