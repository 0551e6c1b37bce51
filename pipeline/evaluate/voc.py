"""PASCAL VOC's folder layout as token shards: pictures and class maps of one size, for segmentation."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from hip_model.ordering import flatten, token_order
from pipeline.errors import UserError
from pipeline.shards.manifest import Manifest
from pipeline.shards.schema import ExampleRow, ModalitySpec
from pipeline.shards.writer import ShardWriter

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
SPLITS = {"train": "train", "validation": "val"}


def write_voc_shards(root: str | Path, shards: str, image: ModalitySpec, labels: str = "segmentation") -> Manifest:
    """Read ``ImageSets/Segmentation``, ``JPEGImages`` and ``SegmentationClass`` and write one shard a split.

    Pictures are stretched to ``image``'s size (the model's own), class maps with them by nearest neighbour; class 255
    is the void border.

    Raises:
        UserError: the folder is not laid out like VOC, or ``image`` is not a picture of three channels.
    """
    root = Path(root)
    if len(image.shape) != 2 or image.num_channels != 3 or image.dtype != "uint8":
        raise UserError(f"segmentation needs a uint8 RGB picture, {image.name!r} is {image.dtype} {image.shape}")
    if not (root / "ImageSets" / "Segmentation").is_dir():
        raise UserError(f"{root} has no ImageSets/Segmentation; give the VOC2012 folder itself")
    maps = ModalitySpec(labels, image.shape, 1, "uint8", image.token_order, {"classes": len(CLASSES)})
    records = []
    for split, file_name in SPLITS.items():
        listing = root / "ImageSets" / "Segmentation" / f"{file_name}.txt"
        names = listing.read_text().split() if listing.is_file() else []
        if not names:
            raise UserError(f"{listing} is missing or empty")
        with ShardWriter(shards, f"{split}-00000", (image, maps)) as writer:
            for name in names:
                writer.add(_row(root, name, image, labels))
            records.append(writer.close())
    manifest = Manifest((image, maps), tuple(records), CLASSES, {"source": root.name, "recipe": {"layout": "voc"}})
    manifest.write(shards)
    return manifest


def _row(root: Path, name: str, image: ModalitySpec, labels: str) -> ExampleRow:
    from PIL import Image

    height, width = image.shape
    order = token_order(image.token_order, image.shape)
    arrays: dict[str, np.ndarray | None] = {}
    with Image.open(root / "JPEGImages" / f"{name}.jpg") as opened:
        picture = np.asarray(opened.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
        arrays[image.name] = flatten(picture, order)
    with Image.open(root / "SegmentationClass" / f"{name}.png") as opened:
        classes = np.asarray(opened.resize((width, height), Image.Resampling.NEAREST), dtype=np.uint8)
        arrays[labels] = flatten(classes[..., None], order)
    found = tuple(int(value) for value in np.unique(classes) if 0 < value < len(CLASSES))
    return ExampleRow(hashlib.sha256(name.encode()).digest()[:16], f"{name}.jpg", 0.0, found, arrays)
