"""Fine-tuning on two of Ray's workers: stopped, continued, one killed, and what one process alone computes."""

import json
import logging
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from disturbances import once_at_step, two_ray_workers
from evaluation_data import write_model, write_small_dataset
from safetensors.torch import load_file

from pipeline.errors import Interrupted, UserError
from pipeline.evaluate.finetune import finetune
from pipeline.evaluate.finetune_options import FinetuneOptions
from pipeline.evaluate.options import IntervalOptions
from pipeline.tracking.options import TrackingOptions
from pipeline.train.options import (
    AugmentOptions,
    BatchOptions,
    CheckpointOptions,
    DurationOptions,
    OptimOptions,
    RunOptions,
    ScaleOptions,
    ScheduleOptions,
)

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]

STEPS = 60  # long enough to be caught in the act
TWO = ScaleOptions(workers=2, cpus_per_worker=0.5)


def make_options(folder: Path, name: str) -> FinetuneOptions:
    return FinetuneOptions(
        shards=str(folder / "shards"),
        init=str(folder / "model"),
        storage=str(folder / "runs"),
        run=RunOptions(name),
        batch=BatchOptions(12, 3),
        duration=DurationOptions(steps=STEPS),
        optim=OptimOptions(learning_rate=1e-4),
        augment=AugmentOptions(crop_min_area=0.5, flip=0.5, audio_shift=0.2),
        checkpoint=CheckpointOptions(every_steps=5),
        interval=IntervalOptions(resamples=50),
        metrics_every_steps=1,
    )


def weights(checkpoint: str) -> dict[str, torch.Tensor]:
    return load_file(Path(checkpoint) / "model.safetensors") | load_file(Path(checkpoint) / "head.safetensors")


def test_two_workers_stopped_and_killed_learn_what_one_process_learns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pipeline")
    write_model(tmp_path / "model", write_small_dataset(tmp_path / "shards"))
    alone = finetune(replace(make_options(tmp_path, "alone"), tracking=TrackingOptions(enabled=False)))
    options, run_folder = replace(make_options(tmp_path, "shared"), scale=TWO), tmp_path / "runs" / "shared"

    once_at_step(run_folder, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="the same command continues"):
        finetune(options)
    record = json.loads((run_folder / "run.json").read_text())
    assert record["status"] == "interrupted"
    assert 5 <= record["step"] < STEPS

    killer = once_at_step(run_folder, record["step"] + 5, lambda: two_ray_workers()[0].send_signal(signal.SIGKILL))
    result = finetune(options)
    killer.join(1)
    assert not killer.is_alive()
    assert f"continuing at step {record['step']} of {STEPS}" in caplog.text  # what a worker says reaches the driver
    assert json.loads((run_folder / "run.json").read_text())["status"] == "finished"

    expected, found = weights(alone.checkpoint), weights(result.checkpoint)
    for name, value in expected.items():
        if not name.endswith("key.bias"):  # it moves no output, so all it learns is rounding, which Adam makes large
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert {name: value.value for name, value in result.metrics.items()} == {
        name: value.value for name, value in alone.metrics.items()
    }
    assert result.report is not None
    assert Path(result.report.html_path).is_file()
    assert_one_tracked_run(tmp_path, result.tracking_run_id, alone.losses)


def assert_one_tracked_run(folder: Path, run_id: str | None, losses: list[float]) -> None:
    """One MLflow run for all attempts, ended as finished, with the curve and the validation in it."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("hip")
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.run_id for run in runs] == [run_id]
    assert runs[0].info.status == "FINISHED"
    assert "validation/top1" in runs[0].data.metrics
    curve = {point.step: point.value for point in client.get_metric_history(run_id, "train/loss")}
    assert curve == pytest.approx(dict(enumerate(losses, start=1)), rel=1e-4, abs=1e-6)


def test_a_run_moves_between_one_process_and_two_workers(tmp_path: Path) -> None:
    write_model(tmp_path / "model", write_small_dataset(tmp_path / "shards"))

    def until(name: str, steps: int, scale: ScaleOptions) -> dict[str, torch.Tensor]:
        options = replace(make_options(tmp_path, name), duration=DurationOptions(steps=steps), scale=scale)
        constant = ScheduleOptions(kind="constant", warmup_share=0.0)  # a longer run begins with the same steps
        return weights(
            finetune(replace(options, schedule=constant, tracking=TrackingOptions(enabled=False))).checkpoint
        )

    here = ScaleOptions(workers=0, max_failures=0)
    expected = until("alone", 20, here)
    until("moves", 7, here)
    until("moves", 14, TWO)
    for name, value in until("moves", 20, here).items():
        if not name.endswith("key.bias"):
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_an_error_of_the_workers_is_told_and_no_other_try_is_made(tmp_path: Path) -> None:
    """The shard is damaged behind the driver's back: its labels, which the driver reads, are whole."""
    write_model(tmp_path / "model", write_small_dataset(tmp_path / "shards"))
    shard = tmp_path / "shards" / "train-00000.arrow"
    content = bytearray(shard.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 1
    shard.write_bytes(bytes(content))
    options = replace(make_options(tmp_path, "damaged"), scale=TWO, tracking=TrackingOptions(enabled=False))
    with pytest.raises(Exception, match=r"train-00000\.arrow.*do not match the checksum"):
        finetune(options)
    assert json.loads((tmp_path / "runs" / "damaged" / "run.json").read_text())["status"] == "failed"


def test_what_workers_cannot_share_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"batch\.global_size=12 is not a multiple of scale\.workers=5"):
        replace(make_options(tmp_path, "refused"), scale=ScaleOptions(workers=5))
    with pytest.raises(UserError, match="workers cannot share a GPU"):
        replace(make_options(tmp_path, "refused"), scale=ScaleOptions(workers=2, gpus_per_worker=0.5))
