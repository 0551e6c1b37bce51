"""A search killed in the middle goes on: what was finished stays, what ran continues, nothing is tracked twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow_processes import tracking_server
from training_data import write_dataset
from tune_driver import STEPS, options

from pipeline.tune.results import FINISHED
from pipeline.tune.search import run_search

pytestmark = pytest.mark.fault


def newest_step(run_folder: Path) -> int:
    """The last complete checkpoint's step."""
    steps = [
        int(path.parent.name.removeprefix("step_")) for path in run_folder.glob("checkpoints/step_*/complete.json")
    ]
    return max(steps, default=0)


def test_a_killed_search_goes_on(ray_cluster: None, migrated_database: Path, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    shards, storage = write_dataset(tmp_path / "shards"), tmp_path
    server = tracking_server(tmp_path / "server", Path(shutil.copyfile(migrated_database, tmp_path / "mlflow.db")))
    server.start()
    arguments = [shards, str(storage), server.url]
    trials = storage / "killed" / "trials"
    driver = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("tune_driver.py")), *arguments], start_new_session=True
    )
    limit = time.monotonic() + 240
    while newest_step(trials / "trial_001") < 6:
        assert driver.poll() is None, "the search ended before it could be killed"
        assert time.monotonic() < limit, "the second trial did not start"
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    first = json.loads((trials / "trial_000" / "run.json").read_text())
    reached = newest_step(trials / "trial_001")
    assert first["status"] == FINISHED

    found = run_search(options(*arguments))

    assert [(trial.status, trial.step) for trial in found.trials] == [(FINISHED, STEPS)] * 3
    records = [json.loads((trials / name / "run.json").read_text()) for name in ("trial_000", "trial_001", "trial_002")]
    assert records[0] == first, "a finished trial was touched"
    assert records[1]["attempts"] == 2
    assert [step for step, _ in found.trials[1].curve][-1] == STEPS
    client = MlflowClient(server.url)
    runs = client.search_runs([client.get_experiment_by_name("hip").experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["killed", "trial_000", "trial_001", "trial_002"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    [continued] = [run for run in runs if run.info.run_name == "trial_001"]
    steps = [entry.step for entry in client.get_metric_history(continued.info.run_id, "loss")]
    assert sorted(set(steps)) == list(range(2, STEPS + 1, 2))
    # Only what came after the last checkpoint was trained again.
    assert all(step > reached for step in steps if steps.count(step) > 1)
    server.stop()
