"""Ray's kill of a trial's process for memory is that trial's crash, whatever Ray Tune makes of it by itself."""

from types import SimpleNamespace

import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError

from pipeline.tune.memory import kills_as_crashes, tells_of_memory


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
