"""Attentive probe, segmentation by decoder queries, and the PASCAL VOC layout."""

import numpy as np
import pytest
from evaluation_data import LABELS, ModalitySpec, write_dataset, write_model
from PIL import Image

from pipeline.errors import UserError
from pipeline.evaluate.options import EmbedOptions, ProbeOptions, SegmentationOptions
from pipeline.evaluate.runner import evaluate
from pipeline.evaluate.segmentation import intersection_over_union, segmentation
from pipeline.evaluate.session import open_session
from pipeline.evaluate.voc import CLASSES
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import ShardReader
from pipeline.shards.schema import ExampleRow

PICTURE = ModalitySpec("image", (8, 8), 3, "uint8", sampling={"height": 8, "width": 8})
CLASS_MAP = ModalitySpec("segmentation", (8, 8), 1, "uint8")


def test_attentive_probe_learns(options):
    report = evaluate(options(probe=ProbeOptions(kind="attentive", iterations=120, learning_rate=1e-2)))
    assert report.metrics["top1"].value > 0.7


def test_intersection_over_union_agrees_with_scikit_learn():
    from sklearn.metrics import confusion_matrix, jaccard_score

    random = np.random.default_rng(0)
    truth, guess = random.integers(0, 4, 500), random.integers(0, 4, 500)
    ours = intersection_over_union(confusion_matrix(truth, guess, labels=range(4)))
    np.testing.assert_allclose(ours, jaccard_score(truth, guess, average=None))
    assert np.isnan(intersection_over_union(np.array([[3, 0], [0, 0]]))[1])


def _scene(index, split):
    """A bright square of one colour on a dark ground; its class map says which colour where."""
    random = np.random.default_rng([index, len(split)])
    kind, top, left = index % 2 + 1, *random.integers(0, 4, 2)
    image = random.integers(0, 60, (8, 8, 3))
    classes = np.zeros((8, 8, 1), np.uint8)
    image[top : top + 4, left : left + 4, kind] += 180
    classes[top : top + 4, left : left + 4] = kind
    arrays = {"image": image.reshape(64, 3).astype(np.uint8), "segmentation": classes.reshape(64, 1)}
    return ExampleRow(random.bytes(16), f"{split}{index}.png", 0.0, (kind,), arrays)


def test_segmentation_finds_the_square_when_finetuned(options, tmp_path):
    rows = {split: [_scene(i, split) for i in range(count)] for split, count in (("train", 40), ("validation", 10))}
    plain = write_dataset(tmp_path / "plain", {s: [_without_map(r) for r in v] for s, v in rows.items()}, (PICTURE,))
    shards = write_dataset(tmp_path / "maps", rows, (PICTURE, CLASS_MAP), labels=("ground", *LABELS[1:]))
    model = write_model(tmp_path / "model", plain)
    wanted = SegmentationOptions(train="full", iterations=150, learning_rate=3e-3)
    report = evaluate(
        options(task="segmentation", shards=shards, model=model, segmentation=wanted, embed=EmbedOptions(batch_size=16))
    )
    # Always answering "ground" gives 0.75 / 3 = 0.25.
    assert report.metrics["mean_iou"].value > 0.45
    assert report.metrics["pixel_accuracy"].value > 0.85


def test_an_example_without_picture_or_map_counts_for_nothing(options, tmp_path):
    """Otherwise what is missing would be ground, in training and in the score."""
    rows = {split: [_scene(i, split) for i in range(12)] for split in ("train", "validation")}
    whole = write_dataset(tmp_path / "whole", rows, (PICTURE, CLASS_MAP), labels=("ground", *LABELS[1:]))
    model = write_model(tmp_path / "model", whole)
    for split in rows:
        for index in (1, 4, 5):
            rows[split][index].arrays["segmentation" if index == 1 else "image"] = None
    maps = write_dataset(tmp_path / "maps", rows, (PICTURE, CLASS_MAP), labels=("ground", *LABELS[1:]))
    wanted = SegmentationOptions(iterations=3)
    one = EmbedOptions(batch_size=1)  # a step of which nothing counts is among them
    asked = options(task="segmentation", shards=maps, model=model, segmentation=wanted, embed=one)
    findings = segmentation(open_session(asked, asked.output))
    assert sum(row[1] for row in findings.tables[0].rows) == (12 - 3) * 64
    assert np.isfinite(findings.metrics["mean_iou"].value)


def test_a_class_without_a_name_is_told_with_its_picture(options, tmp_path):
    rows = {split: [_scene(i, split) for i in range(4)] for split in ("train", "validation")}
    rows["train"][2].arrays["segmentation"][5] = 77
    shards = write_dataset(tmp_path / "maps", rows, (PICTURE, CLASS_MAP), labels=("ground", *LABELS[1:]))
    model = write_model(tmp_path / "model", shards)
    with pytest.raises(UserError, match=r"segmentation of 'train2\.png' has class 77.*segmentation\.ignore=77"):
        evaluate(options(task="segmentation", shards=shards, model=model))


def _without_map(row):
    return ExampleRow(row.example_id, row.source, 0.0, row.labels, {"image": row.arrays["image"]})


def test_voc_layout_becomes_shards_at_the_models_size(options, tmp_path):
    root = tmp_path / "VOC2012"
    for folder in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (root / folder).mkdir(parents=True)
    for split, names in (("train", ["a", "b", "c"]), ("val", ["d"])):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            Image.new("RGB", (20, 14), (200, 10, 10)).save(root / "JPEGImages" / f"{name}.jpg")
            classes = Image.new("P", (20, 14), 15)
            classes.putpalette([value for index in range(256) for value in (index, index, index)])
            classes.putpixel((0, 0), 255)
            classes.save(root / "SegmentationClass" / f"{name}.png")
    rows = {"train": [_without_map(_scene(i, "train")) for i in range(6)]}
    model = write_model(tmp_path / "model", write_dataset(tmp_path / "plain", rows, (PICTURE,)))
    shards = str(tmp_path / "voc")
    wanted = SegmentationOptions(voc=str(root), iterations=5)
    report = evaluate(options(task="segmentation", shards=shards, model=model, segmentation=wanted))
    assert 0 <= report.metrics["mean_iou"].value <= 1
    manifest = Manifest.load(shards)
    assert manifest.splits == {"train": 3, "validation": 1}
    assert manifest.label_names == CLASSES
    batch = ShardReader(shards, split="train").read(np.array([0]))
    assert set(np.unique(batch.arrays["segmentation"])) <= {15, 255}
    assert abs(batch.arrays["image"][0].mean(0) - (200, 10, 10)).max() < 6


def test_data_without_class_maps_is_refused(options):
    with pytest.raises(UserError, match=r"segmentation\.labels='segmentation'"):
        evaluate(options(task="segmentation"))
    with pytest.raises(UserError, match="ImageSets/Segmentation"):
        evaluate(
            options(
                task="segmentation",
                shards=options().output + "/none",
                segmentation=SegmentationOptions(voc=options().storage),
            )
        )
