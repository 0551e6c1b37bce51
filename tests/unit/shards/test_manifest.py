"""The manifest: a fingerprint of the data, splits, statistics, and a refusal of what it cannot trust."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DataError, UserError
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import ShardReader
from pipeline.shards.schema import ModalitySpec

Build = Callable[..., tuple[str, Manifest]]


def rewrite(folder: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = Path(folder) / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_it_reads_back_equal_with_counts_of_each_split(build_dataset: Build) -> None:
    folder, manifest = build_dataset(train_00000=7, train_00001=5, validation_00000=3)
    loaded = Manifest.load(folder)
    assert loaded == manifest
    assert loaded.fingerprint == manifest.fingerprint
    assert loaded.splits == {"train": 12, "validation": 3}
    assert len(ShardReader(folder)) == 15
    assert len(ShardReader(folder, "validation")) == 3
    with pytest.raises(UserError, match="no split 'valid'; did you mean 'validation'"):
        ShardReader(folder, "valid")


def test_notes_do_not_change_the_fingerprint_but_lineage_does(build_dataset: Build) -> None:
    _, manifest = build_dataset()
    same = Manifest(manifest.modalities, manifest.shards, manifest.label_names, manifest.lineage, {"made": "tomorrow"})
    other = Manifest(
        manifest.modalities, manifest.shards, manifest.label_names, {**manifest.lineage, "code_version": "b"}
    )
    assert same.fingerprint == manifest.fingerprint != other.fingerprint


def test_normalisation_is_that_of_the_training_split(build_dataset: Build) -> None:
    folder, manifest = build_dataset(train_00000=12, validation_00000=8)
    batch = ShardReader(folder, "train").read(np.arange(12))
    for name, (mean, std) in manifest.normalisation().items():
        tokens = batch.arrays[name][batch.present[name]].astype(np.float64)
        assert np.allclose(mean, tokens.mean(axis=(0, 1)), rtol=1e-12)
        assert np.allclose(std, tokens.std(axis=(0, 1)), rtol=1e-12)
    card = manifest.data_card()
    assert card["recipe"] == {"clip_seconds": 2.56}
    assert card["fingerprint"] == manifest.fingerprint
    assert [ModalitySpec.from_dict(spec) for spec in card["modalities"]] == list(manifest.modalities)
    json.dumps(card, allow_nan=False)


def test_a_newer_format_is_refused_with_a_sentence(build_dataset: Build) -> None:
    folder, _ = build_dataset()
    rewrite(folder, lambda values: values.update(format_version=2))
    with pytest.raises(UserError, match="has format version 2, this release reads up to 1; install a newer release"):
        ShardReader(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../train-00000.arrow",
        "/etc/train-00000.arrow",
        "a/train-00000.arrow",
        "train-00000.arrow\n",
        "..",
        "C:\\train-00000.arrow",
    ],
)
def test_a_manifest_cannot_point_outside_its_folder(build_dataset: Build, name: str) -> None:
    folder, _ = build_dataset()
    rewrite(folder, lambda values: values["shards"][0].update(name=name))
    with pytest.raises(DataError, match="is not a shard name"):
        Manifest.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.update(label_names=["x"]), "does not match its own fingerprint"),
        (lambda values: values.pop("shards"), "incomplete or damaged"),
        (lambda values: values.update(format_version="1"), "no valid format_version"),
        (lambda values: values["shards"].append(values["shards"][0]), "lists a shard twice"),
        (lambda values: values["shards"][0].update(rows=-1), "impossible counts"),
        (lambda values: values["shards"][0].update(split="test"), "into split 'test'"),
        (lambda values: values["shards"][0].pop("statistics"), "describes a shard wrongly"),
        (lambda values: values["modalities"][0].update(dtype="float64"), "a modality is described wrongly"),
        (lambda values: values["modalities"][0].update(num_tokens=31), "31 tokens, but shape"),
    ],
)
def test_an_edited_manifest_is_refused(
    build_dataset: Build, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    folder, _ = build_dataset()
    rewrite(folder, change)
    with pytest.raises(DataError, match=message):
        Manifest.load(folder)


def test_no_dataset_and_half_a_manifest_are_explained(build_dataset: Build, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a finished token dataset \(no manifest.json\)"):
        Manifest.load(str(tmp_path / "nowhere"))
    folder, _ = build_dataset()
    path = Path(folder) / "manifest.json"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="is damaged"):
        Manifest.load(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "Video"}, "modality name 'Video' is not usable"),
        ({"name": "labels"}, "modality name 'labels' is not usable"),
        ({"shape": ()}, "at least one token"),
        ({"shape": (4, 0)}, "at least one token"),
        ({"dtype": "uint16"}, "has type 'uint16'; did you mean 'int16'|has type 'uint16'; did you mean 'uint8'"),
    ],
)
def test_impossible_modalities_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModalitySpec(**{"name": "video", "shape": (4, 4), "num_channels": 3, "dtype": "uint8", **values})
