"""A tiny real dataset whose picture and sound follow the class, and a tiny real model that reads it."""

import numpy as np
import torch

from hip_model.export import save_pretrained
from hip_model.variants import build_model
from pipeline.shards.manifest import Manifest
from pipeline.shards.schema import ExampleRow, ModalitySpec
from pipeline.shards.writer import ShardWriter

IMAGE = ModalitySpec("image", (8, 8), 3, "uint8", sampling={"height": 8, "width": 8})
AUDIO = ModalitySpec("audio", (64,), 1, "int16", sampling={"sample_rate": 8000})
LABELS = ("red", "green", "blue")


def example(index: int, split: str, labels: tuple[int, ...] | None = None, without: str | None = None) -> ExampleRow:
    """Class = bright channel of the picture and pitch of the sound, with noise; a function of (split, index)."""
    kind = index % 3
    random = np.random.default_rng([index, len(split)])
    image = random.integers(0, 90, (8, 8, 3))
    image[2:6, 2:6, kind] += 130
    time = np.arange(64) / 64
    sound = 8000 * np.sin(2 * np.pi * (2 + 4 * kind) * time + random.uniform(0, 6)) + random.normal(0, 800, 64)
    arrays = {"image": image.reshape(64, 3).astype(np.uint8), "audio": sound.astype(np.int16)[:, None]}
    if without is not None:
        arrays[without] = None
    identity = np.random.default_rng([index, len(split), 7]).bytes(16)
    return ExampleRow(
        identity, f"{split}_{index // 2}.mp4", float(index % 2), (kind,) if labels is None else labels, arrays
    )


def write_dataset(folder, rows: dict[str, list[ExampleRow]], specs=(IMAGE, AUDIO), labels=LABELS) -> str:
    records = []
    for split, examples in rows.items():
        writer = ShardWriter(str(folder), f"{split}-00000", specs, {})
        for row in examples:
            writer.add(row)
        records.append(writer.close())
    Manifest(tuple(specs), tuple(records), tuple(labels), {"recipe": {"name": "made up"}}).write(str(folder))
    return str(folder)


def write_model(folder, shards: str, name: str = "hip_nano", seed: int = 0) -> str:
    torch.manual_seed(seed)
    manifest = Manifest.load(shards)
    model = build_model(name, [spec.to_modality() for spec in manifest.modalities])
    save_pretrained(model, folder, {"data": manifest.data_card()})
    return str(folder)


def write_small_dataset(folder) -> str:
    """60 examples to fit on, 30 to score, two windows a clip."""
    counts = {"train": 60, "validation": 30}
    return write_dataset(folder, {split: [example(i, split) for i in range(count)] for split, count in counts.items()})
