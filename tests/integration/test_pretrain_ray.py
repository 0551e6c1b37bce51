"""Real Ray Train and DeepSpeed, two workers: SIGTERM, then a killed worker; the loss curve does not notice."""

import json
import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from disturbances import once_at_step, two_ray_workers
from training_data import write_dataset
from two_ranks import run_on_two_ranks

from hip_model.export import from_pretrained
from pipeline.errors import Interrupted
from pipeline.host_memory import environment_of_cpu_workers
from pipeline.tracking.options import TrackingOptions
from pipeline.train.checkpoint import latest_checkpoint, read_state
from pipeline.train.options import (
    BatchOptions,
    CheckpointOptions,
    DurationOptions,
    EngineOptions,
    FigureOptions,
    MetricsOptions,
    ModelOptions,
    OptimOptions,
    PretrainOptions,
    RunOptions,
    ScaleOptions,
    ValidationOptions,
)
from pipeline.train.runner import run_pretraining

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]

STEPS = 60  # long enough to be caught in the act on a fast machine


def make_options(folder: Path, name: str) -> PretrainOptions:
    return PretrainOptions(
        shards=str(folder / "shards"),
        storage=str(folder / "runs"),
        run=RunOptions(name),
        model=ModelOptions("hip_nano"),
        batch=BatchOptions(8, 2),
        duration=DurationOptions(steps=STEPS),
        optim=OptimOptions(learning_rate=3e-3),
        engine=EngineOptions(stage=1, precision="fp32"),
        scale=ScaleOptions(workers=2, cpus_per_worker=0.5),
        checkpoint=CheckpointOptions(every_steps=5),
        validation=ValidationOptions(every_steps=0),
        metrics=MetricsOptions(every_steps=1),
        figures=FigureOptions(every_steps=0),
        tracking=TrackingOptions(),
    )


def kill_a_worker(environments: list[dict[str, str]]) -> None:
    """And note its environment."""
    worker = two_ray_workers()[0]
    environments.append(worker.environ())
    worker.send_signal(signal.SIGKILL)


def test_a_stopped_and_a_killed_run_end_with_the_undisturbed_loss_curve(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pipeline")
    write_dataset(tmp_path / "shards", train=24, validation=8)
    quiet = replace(make_options(tmp_path, "undisturbed"), tracking=TrackingOptions(enabled=False))
    (expected,) = run_on_two_ranks(tmp_path / "ranks", [quiet])
    options = make_options(tmp_path, "disturbed")
    run_folder = tmp_path / "runs" / "disturbed"

    once_at_step(run_folder, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match=r"hip pretrain .*run\.name=disturbed"):
        run_pretraining(options)
    record = json.loads((run_folder / "run.json").read_text())
    assert record["status"] == "interrupted"
    stopped_at = record["step"]
    assert 5 <= stopped_at < STEPS
    newest = latest_checkpoint(str(run_folder))
    assert newest is not None
    assert read_state(newest).step == stopped_at  # saved where it stopped, not at the interval before

    environments: list[dict[str, str]] = []
    killer = once_at_step(run_folder, stopped_at + 5, lambda: kill_a_worker(environments))
    result = run_pretraining(options)
    killer.join(1)
    assert not killer.is_alive()
    assert environment_of_cpu_workers().items() <= environments[0].items()
    assert result.status == "finished"
    assert result.checkpoint is not None
    state = read_state(result.checkpoint)
    assert state.step == STEPS
    assert dict(enumerate(state.hooks["guards"]["losses"], start=1)) == expected
    assert from_pretrained(result.checkpoint) is not None
    assert "resumed from" in caplog.text  # what a worker says reaches the driver
    assert "step 60/60 | loss" in caplog.text
    assert_one_tracked_run(tmp_path, result.tracking_run_id)


def assert_one_tracked_run(folder: Path, run_id: str | None) -> None:
    """One MLflow run for all attempts, ended as finished, with the curve in it."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("hip")
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.run_id for run in runs] == [run_id]
    assert runs[0].info.status == "FINISHED"
    steps = {point.step for point in client.get_metric_history(run_id, "loss")}
    assert steps == set(range(1, STEPS + 1))
