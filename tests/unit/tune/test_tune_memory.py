"""Ray's kill of a trial's process for memory is that trial's crash, whatever Ray Tune makes of it by itself."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from training_data import write_dataset

from pipeline.shards.manifest import Manifest
from pipeline.train.options import BatchOptions, ModelOptions, ScaleOptions
from pipeline.tune.driver import warn_of_memory
from pipeline.tune.memory import kills_as_crashes, tells_of_memory
from pipeline.tune.options import SearchOptions, TuneOptions
from pipeline.tune.prepared import prepare


def fail(error: Exception) -> list[Exception]:
    """What an actor's own callback is told when its task ends with ``error``."""
    told: list[Exception] = []
    actor = SimpleNamespace(actor_id=1, _on_error=lambda _, seen: told.append(seen))
    manager = SimpleNamespace(_failed_actor_ids=set(), _cleanup_actor=lambda tracked_actor: None)
    task = SimpleNamespace(_tracked_actor=actor, _on_error=None)
    RayActorManager._actor_task_failed(manager, tracked_actor_task=task, exception=error)
    return told


def test_a_kill_for_memory_is_the_trials_own_failure() -> None:
    kill = OutOfMemoryError("1 worker(s) were killed: how to address the out of memory issue")
    with kills_as_crashes():
        [seen] = fail(kill)
        assert isinstance(seen, RayActorError)
        assert tells_of_memory(str(seen))
        [crash] = fail(RayActorError(error_msg="died"))
        assert str(crash) == "died"
    with pytest.raises(RuntimeError, match="unexpected exception"):  # as it was; when Ray mends it, ours can go
        fail(kill)


def test_trials_that_need_more_memory_than_there_is_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = write_dataset(tmp_path)
    options = TuneOptions(
        shards=shards,
        storage=str(tmp_path / "runs"),
        model=ModelOptions("hip_nano"),
        batch=BatchOptions(64),
        search=SearchOptions(name="memory", budget="none", options={"optim.learning_rate": [1e-3, 2e-3]}),
    )
    prepared = prepare(options, Manifest.load(shards))
    with caplog.at_level(logging.WARNING):
        warn_of_memory(prepared, 2, {"memory": 8 * 2**30})
        assert not caplog.messages
        warn_of_memory(prepared, 2, {"memory": 2**20})
        assert len(caplog.messages) == 1
        assert "2 trials at once need about" in caplog.text
        assert "lower batch.per_worker_size=64 or search.max_concurrent" in caplog.text
        on_gpus = replace(prepared, options=replace(options, scale=ScaleOptions(gpus_per_worker=1)))
        warn_of_memory(on_gpus, 2, {"memory": 2**20})
    assert len(caplog.messages) == 1
