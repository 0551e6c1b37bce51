"""A metric is checked before a trial is trained; a lack of memory is told from other failures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_data import write_dataset

from pipeline.errors import InfrastructureError, UserError
from pipeline.shards.manifest import Manifest
from pipeline.train.options import ValidationOptions
from pipeline.tune.memory import is_out_of_memory, tells_of_memory
from pipeline.tune.metrics import check_metric, reported_metrics
from pipeline.tune.options import SearchOptions, TuneOptions
from pipeline.tune.prepared import prepare


def options(shards: str, metric: str, validation_every: int = 5) -> TuneOptions:
    search = SearchOptions(metric=metric, dials={"depth": [1, 2]})
    return TuneOptions(shards=shards, validation=ValidationOptions(every_steps=validation_every), search=search)


@pytest.mark.parametrize(
    ("metric", "validation_every", "message"),
    [
        ("los", 5, "search.metric=los: no trial reports it; did you mean 'loss'"),
        ("loss/vidoe", 5, "loss/vidoe: no trial reports it; did you mean 'loss/"),
        ("validation/loss", 0, "search.metric=validation/loss needs validation.every_steps > 0"),
    ],
)
def test_metrics_that_no_trial_reports_are_named(
    tmp_path: Path, metric: str, validation_every: int, message: str
) -> None:
    shards = write_dataset(tmp_path / "shards")
    with pytest.raises(UserError, match=message):
        check_metric(options(shards, metric, validation_every), Manifest.load(shards))


def test_validation_needs_held_out_examples(tmp_path: Path) -> None:
    shards = write_dataset(tmp_path / "shards", validation=0)
    with pytest.raises(UserError, match=r"has no validation split; use search\.metric=loss"):
        check_metric(options(shards, "validation/loss"), Manifest.load(shards))


def test_every_reported_metric_is_accepted(tmp_path: Path) -> None:
    shards = write_dataset(tmp_path / "shards")
    manifest, chosen = Manifest.load(shards), options(shards, "loss")
    names = reported_metrics(chosen, manifest)
    assert {"loss", "loss/image", "psnr_db/audio", "validation/loss", "validation/psnr_db/image"} <= set(names)
    for name in names:
        check_metric(replace(chosen, search=replace(chosen.search, metric=name)), manifest)


@pytest.mark.parametrize(
    ("varied", "metric", "warned"),
    [
        ("mask.ratio", "loss", "search.metric=validation/loss judges all alike"),
        ("mask.ratio", "validation/loss", ""),
        ("augment.flip", "loss", "search.metric=validation/loss judges all alike"),
        ("augment.flip", "validation/loss", ""),
        ("loss.on", "validation/loss/image", "candidates differ in loss.on"),
        ("optim.learning_rate", "loss", ""),
    ],
)
def test_candidates_are_judged_under_one_mask(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, varied: str, metric: str, warned: str
) -> None:
    shards = write_dataset(tmp_path / "shards")
    values = {
        "mask.ratio": [0.5, 0.9],
        "loss.on": ["masked", "all"],
        "augment.flip": [0.0, 0.5],
        "optim.learning_rate": [0.1, 0.2],
    }
    search = SearchOptions(metric=metric, options={varied: values[varied]})
    found = prepare(replace(options(shards, metric), search=search), Manifest.load(shards)).options
    assert found.validation.mask == (found.mask if varied == "mask.ratio" else None)
    assert (warned in caplog.text) if warned else not caplog.text


def test_a_lack_of_memory_is_told_from_other_failures() -> None:
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**50)
    assert is_out_of_memory(real.value)
    wrapped = InfrastructureError("training stopped")
    wrapped.__cause__ = real.value
    assert is_out_of_memory(wrapped)
    assert is_out_of_memory(InfrastructureError("training stopped: CUDA out of memory. Tried to allocate 2 GiB"))
    assert tells_of_memory("ray.exceptions.OutOfMemoryError: the node ran low")
    assert not is_out_of_memory(ValueError("shapes differ"))
