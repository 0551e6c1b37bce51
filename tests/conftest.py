"""One Ray for the whole session, quiet settings for every library, and the tests' shared helpers on the path."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "fault")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), str(HERE / "fault"), os.environ.get("PYTHONPATH")]))
os.environ.update(
    {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process more at every start, as in pipeline.ray_session
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
)

from mlflow_store import migrated_database, new_storage  # noqa: E402, F401  (fixtures for every test)


@pytest.hookimpl(tryfirst=True)  # before pytest selects by mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the session's Ray, for ``make test`` to run by itself."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("shared_ray")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray with four logical CPUs, ended with the session."""
    import ray

    folder = start_ray()
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def start_ray(attempts: int = 3) -> str:
    """Ray's processes get half a minute to start, which a busy machine may not give them: try again."""
    import ray

    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    try:
        ray.init(
            address="local",
            num_cpus=4,
            object_store_memory=300 * 2**20,
            include_dashboard=True,
            log_to_driver=False,
            _temp_dir=folder,
        )
    except Exception:  # a start that times out is a bare Exception
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        if attempts == 1:
            raise
        return start_ray(attempts - 1)
    return folder
