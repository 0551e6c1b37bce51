"""Embeddings by Ray Data actors: the same numbers as in process, and a run that MLflow knows."""

from pathlib import Path

import numpy as np
import pytest
from evaluation_data import write_model, write_small_dataset

from pipeline.evaluate.options import EmbedOptions, EvaluateFigureOptions, EvaluateOptions, IntervalOptions
from pipeline.evaluate.runner import evaluate
from pipeline.evaluate.session import open_session
from pipeline.tracking.options import TrackingOptions

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    shards = write_small_dataset(folder / "shards")
    return shards, write_model(folder / "model", shards), folder


def _options(made, **changes):
    shards, model, folder = made
    given = {
        "shards": shards,
        "model": model,
        "storage": str(folder / "runs"),
        "interval": IntervalOptions(resamples=50),
        "figures": EvaluateFigureOptions(enabled=False),
    }
    return EvaluateOptions(**(given | changes))


def test_ray_actors_give_the_same_embeddings_as_this_process(made, ray_cluster):
    folder = made[2]
    here = open_session(_options(made, embed=EmbedOptions(chunk_examples=20)), str(folder / "here"))
    ray = open_session(_options(made, embed=EmbedOptions(engine="ray", chunk_examples=20)), str(folder / "ray"))
    expected, found = here.embeddings("train"), ray.embeddings("train")
    np.testing.assert_allclose(expected.features((0, 1), "groups"), found.features((0, 1), "groups"), atol=1e-6)
    assert expected.sources == found.sources
    # Finished pieces are read, not computed: the second session needs no actor.
    again = open_session(_options(made, embed=EmbedOptions(engine="ray", chunk_examples=20)), str(folder / "ray"))
    stamps = [path.stat().st_mtime_ns for path in sorted((folder / "ray").rglob("rows_*.npz"))]
    again.embeddings("train")
    assert [path.stat().st_mtime_ns for path in sorted((folder / "ray").rglob("rows_*.npz"))] == stamps


def test_an_evaluation_is_one_finished_run_with_its_metrics_and_report(made):
    from mlflow import MlflowClient

    folder = made[2]
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    tracking = TrackingOptions(uri=uri, experiment="evaluations", system_metrics=False)
    report = evaluate(_options(made, task="linear_probe", tracking=tracking))
    assert report.tracking_run_id is not None
    client = MlflowClient(uri)
    run = client.get_run(report.tracking_run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["top1"] == pytest.approx(report.metrics["top1"].value)
    assert run.data.metrics["top1_low"] <= run.data.metrics["top1"] <= run.data.metrics["top1_high"]
    assert run.data.tags["hip.task"] == "linear_probe"
    names = {Path(entry.path).name for entry in client.list_artifacts(report.tracking_run_id, "evaluation")}
    assert names == {"report.html", "report.json"}
