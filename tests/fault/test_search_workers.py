"""A search whose trials train with two Ray workers each: reports reach the scheduler, and its answers come back."""

from dataclasses import replace
from pathlib import Path

import pytest
from training_data import write_dataset

from pipeline.tracking.options import TrackingOptions
from pipeline.train.checkpoint import latest_checkpoint, read_state
from pipeline.train.options import (
    BatchOptions,
    CheckpointOptions,
    DurationOptions,
    EngineOptions,
    MetricsOptions,
    ModelOptions,
    ScaleOptions,
    ValidationOptions,
)
from pipeline.tune.options import SearchOptions, TuneOptions
from pipeline.tune.results import FINISHED, STOPPED
from pipeline.tune.search import run_search

pytestmark = pytest.mark.fault


@pytest.mark.usefixtures("ray_cluster")
def test_trials_of_two_workers_report_and_are_stopped(tmp_path: Path) -> None:
    options = TuneOptions(
        shards=write_dataset(tmp_path / "shards"),
        storage=str(tmp_path / "runs"),
        model=ModelOptions("hip_nano"),
        batch=BatchOptions(8),
        duration=DurationOptions(steps=12),
        engine=EngineOptions(kind="deepspeed", stage=1, precision="fp32"),
        scale=ScaleOptions(workers=2, cpus_per_worker=0.5),
        metrics=MetricsOptions(every_steps=3),
        checkpoint=CheckpointOptions(every_steps=3),
        validation=ValidationOptions(every_steps=0),
        tracking=TrackingOptions(enabled=False),
        search=SearchOptions(
            name="pairs",
            trials=2,
            max_concurrent=1,
            budget="none",
            algorithm="grid",
            scheduler="asha",
            grace_steps=3,
            options={"optim.learning_rate": [3e-3, 1e-9]},
        ),
    )
    found = run_search(replace(options, seed=3))
    good, bad = found.trials
    assert (good.status, good.step) == (FINISHED, 12)
    assert [step for step, _ in good.curve] == [3, 6, 9, 12]
    assert (bad.status, bad.step) == (STOPPED, 3)
    newest = latest_checkpoint(str(good.run_folder))
    assert newest is not None
    assert read_state(newest).workers == 2
