"""A tiny dataset, and runs in this process: no Ray, no DeepSpeed."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from training_data import write_dataset

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


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def make_options(shards: str, tmp_path: Path) -> Callable[..., PretrainOptions]:
    """Options of a small run; keyword arguments replace whole groups."""

    def make(**changes: Any) -> PretrainOptions:
        options = PretrainOptions(
            shards=shards,
            storage=str(tmp_path / "runs"),
            run=RunOptions("run"),
            model=ModelOptions("hip_nano"),
            batch=BatchOptions(8, 4),
            duration=DurationOptions(steps=8),
            optim=OptimOptions(learning_rate=3e-3),
            engine=EngineOptions(kind="torch", precision="fp32"),
            scale=ScaleOptions(workers=0),
            checkpoint=CheckpointOptions(every_steps=4),
            validation=ValidationOptions(every_steps=0),
            metrics=MetricsOptions(every_steps=1),
            figures=FigureOptions(every_steps=0),
            tracking=TrackingOptions(enabled=False),
        )
        return replace(options, **changes)

    return make
