"""A search in a process of its own, to be killed: ``python tune_driver.py <shards> <storage> <tracking>``."""

from __future__ import annotations

import sys

from pipeline.tracking.options import TrackingOptions
from pipeline.train.options import (
    BatchOptions,
    CheckpointOptions,
    DurationOptions,
    EngineOptions,
    MetricsOptions,
    ModelOptions,
    ValidationOptions,
)
from pipeline.tune.options import SearchOptions, TuneOptions

STEPS = 60


def options(shards: str, storage: str, tracking: str) -> TuneOptions:
    """Three trials, one after the other."""
    return TuneOptions(
        shards=shards,
        storage=storage,
        model=ModelOptions("hip_nano"),
        batch=BatchOptions(8),
        duration=DurationOptions(steps=STEPS),
        engine=EngineOptions(kind="torch", precision="fp32"),
        metrics=MetricsOptions(every_steps=2),
        checkpoint=CheckpointOptions(every_steps=2),
        validation=ValidationOptions(every_steps=0),
        tracking=TrackingOptions(tracking, system_metrics=False),
        search=SearchOptions(
            name="killed",
            trials=3,
            max_concurrent=1,
            scheduler="none",
            algorithm="grid",
            budget="none",
            options={"optim.learning_rate": [1e-3, 2e-3, 3e-3]},
        ),
    )


if __name__ == "__main__":
    import ray

    from pipeline.tune.search import run_search

    ray.init(address="local", num_cpus=1, object_store_memory=200 * 2**20, include_dashboard=False, log_to_driver=False)
    run_search(options(*sys.argv[1:]))
