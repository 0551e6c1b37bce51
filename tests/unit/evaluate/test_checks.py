"""What a task cannot do is said before anything is computed or tracked, not after a split was read."""

import numpy as np
import pytest
from evaluation_data import example, write_dataset

from pipeline.errors import UserError
from pipeline.evaluate.finetune_options import FinetuneOptions
from pipeline.evaluate.options import (
    EvaluateFigureOptions,
    EvaluateOptions,
    LimitOptions,
    MaskSweepOptions,
    ProbeOptions,
    RetrievalOptions,
    SegmentationOptions,
)
from pipeline.evaluate.paper_options import ExperimentOptions
from pipeline.evaluate.runner import evaluate
from pipeline.tracking.options import TrackingOptions


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task": "classification"}, "has no head"),
        ({"task": "multilabel"}, "has no head"),
        ({"task": "segmentation"}, r"segmentation\.labels='segmentation'"),
        ({"task": "segmentation", "segmentation": SegmentationOptions(images="picture")}, r"segmentation\.images"),
        ({"task": "retrieval", "retrieval": RetrievalOptions(query="adio")}, r"retrieval\.query='adio'"),
        ({"task": "retrieval", "retrieval": RetrievalOptions("audio", "audio")}, "name two modalities"),
        ({"task": "reconstruction", "mask": MaskSweepOptions("tube")}, "needs a modality with shape"),
        ({"task": "reconstruction", "mask": MaskSweepOptions("tub")}, "choose one of"),
        ({"task": "linear_probe", "probe": ProbeOptions(level="9")}, r"probe\.level=9"),
        ({"task": "retrieval", "probe": ProbeOptions(level="9")}, r"probe\.level=9"),
    ],
)
def test_a_task_that_does_not_fit_leaves_no_run(options, tmp_path, monkeypatch, changes, says):
    monkeypatch.setattr("pipeline.evaluate.runner.run_task", lambda session: pytest.fail("computed"))
    with pytest.raises(UserError, match=says):
        evaluate(options(**changes, tracking=TrackingOptions()))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("task", ["linear_probe", "knn"])
def test_data_without_labels_is_refused_before_it_is_embedded(options, tmp_path, monkeypatch, task):
    monkeypatch.setattr("pipeline.evaluate.runner.run_task", lambda session: pytest.fail("computed"))
    rows = [example(i, "train", labels=()) for i in range(6)]
    shards = write_dataset(tmp_path / "bare", {"train": rows, "validation": rows}, labels=())
    with pytest.raises(UserError, match="has no labels; preprocess media with labels"):
        evaluate(options(shards=shards, task=task))


def test_a_split_that_is_missing_is_named_first(options, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.evaluate.runner.run_task", lambda session: pytest.fail("computed"))
    shards = write_dataset(tmp_path / "held_out", {"validation": [example(i, "validation") for i in range(6)]})
    with pytest.raises(UserError, match="no split 'train'"):
        evaluate(options(shards=shards))


def test_reconstruction_needs_no_training_split_and_no_labels(options, tmp_path):
    rows = [example(i, "validation", labels=()) for i in range(6)]
    shards = write_dataset(tmp_path / "held_out", {"validation": rows}, labels=())
    report = evaluate(options(shards=shards, task="reconstruction", mask=MaskSweepOptions(ratios=(0.85,))))
    assert np.isfinite(report.metrics["psnr/image/mask_0.85"].value)


@pytest.mark.parametrize("bound", [0, -3])
def test_a_limit_below_one_example_is_refused(bound):
    with pytest.raises(UserError, match=rf"limit\.fit_examples={bound} is too small"):
        LimitOptions(fit_examples=bound)


@pytest.mark.parametrize(
    "make",
    [
        lambda: EvaluateOptions(shards="x", model="y", seed=-1),
        lambda: FinetuneOptions(shards="x", init="y", seed=-1),
        lambda: ExperimentOptions("positions", shards="x", seeds=(0, -1)),
    ],
)
def test_a_seed_that_generators_do_not_take_is_refused(make):
    with pytest.raises(UserError, match=r"seeds?=-1 is too small"):
        make()


@pytest.mark.parametrize("task", ["linear_probe", "reconstruction"])
def test_any_other_seed_goes_through_pictures_and_intervals(options, task):
    figures = EvaluateFigureOptions(enabled=True, examples=2)
    assert evaluate(options(task=task, seed=2**70, figures=figures)).metrics


@pytest.mark.parametrize("empty", ["train", "validation"])
def test_retrieval_without_pairs_names_the_split(options, tmp_path, empty):
    rows = {
        split: [example(i, split, without="audio" if split == empty and i else None) for i in range(6)]
        for split in ("train", "validation")
    }
    with pytest.raises(UserError, match=f"split '{empty}': of 6 examples, 1 have both 'image' and 'audio'"):
        evaluate(options(shards=write_dataset(tmp_path / "halves", rows), task="retrieval"))


@pytest.mark.parametrize("task", ["linear_probe", "knn"])
def test_a_scored_split_without_labels_is_named(options, tmp_path, task):
    rows = {
        "train": [example(i, "train") for i in range(9)],
        "validation": [example(i, "validation", labels=()) for i in range(3)],
    }
    with pytest.raises(UserError, match="split 'validation' has no labels"):
        evaluate(options(shards=write_dataset(tmp_path / "half", rows), task=task))
