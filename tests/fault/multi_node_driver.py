"""One verb in a process of its own on the cluster of ``RAY_ADDRESS``: ``multi_node_driver.py <what> <folder>``."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from pipeline.preprocess.run import run_preprocess
from pipeline.tracking.options import TrackingOptions
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

STEPS = 120


def pretrain_options(folder: Path) -> PretrainOptions:
    """Two workers on two nodes, or one when a node is lost."""
    return PretrainOptions(
        shards=str(folder / "shards"),
        storage=str(folder / "runs"),
        run=RunOptions("nodes"),
        model=ModelOptions("hip_nano"),
        batch=BatchOptions(8, 2),
        duration=DurationOptions(steps=STEPS),
        optim=OptimOptions(learning_rate=1e-3),  # at 3e-3 training amplifies another order of summation 1000 times
        engine=EngineOptions(stage=1, precision="fp32", collective_timeout_seconds=20),
        scale=ScaleOptions(workers=2, min_workers=1, cpus_per_worker=1.0, placement="SPREAD"),
        checkpoint=CheckpointOptions(every_steps=10),
        validation=ValidationOptions(every_steps=0),
        metrics=MetricsOptions(every_steps=1),
        figures=FigureOptions(every_steps=0),
        tracking=TrackingOptions(enabled=False),
    )


def search(folder: Path) -> None:
    """Four trials, two at once."""
    from tune_driver import options

    from pipeline.tune.search import run_search

    base = options(str(folder / "shards"), str(folder / "runs"), None)
    rates = {"optim.learning_rate": [1e-3, 2e-3, 3e-3, 4e-3]}
    space = replace(base.search, trials=4, max_concurrent=2, max_failures=3, options=rates)
    found = run_search(replace(base, search=space, tracking=TrackingOptions(enabled=False)))
    (folder / "trials.json").write_text(json.dumps([(trial.status, trial.step) for trial in found.trials]))


if __name__ == "__main__":
    what, place = sys.argv[1], Path(sys.argv[2])
    if what == "preprocess":
        from preprocess_driver import options as preprocess_options

        run_preprocess(preprocess_options(str(place / "source"), str(place / "tokens")))
    elif what == "pretrain":
        run_pretraining(pretrain_options(place))
    else:
        search(place)
