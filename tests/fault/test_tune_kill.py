"""A search killed in the middle goes on: what was finished stays, what ran continues, nothing is tracked twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow_processes import Service
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


def search_at_its_second_trial(arguments: list[str], trials: Path) -> subprocess.Popen[bytes]:
    """The driver's process, with the first trial finished and the second at work."""
    driver = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("tune_driver.py")), *arguments], start_new_session=True
    )
    limit = time.monotonic() + 240
    while newest_step(trials / "trial_001") < 6:
        assert driver.poll() is None, "the search ended before it could be stopped"
        assert time.monotonic() < limit, "the second trial did not start"
        time.sleep(0.05)
    return driver


def tracked_states(url: str) -> dict[str, str]:
    """MLflow's status of every run, by name; no name twice."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(url)
    runs = client.search_runs([client.get_experiment_by_name("hip").experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run.info.status for run in runs}


@pytest.mark.timeout(900)
def test_ctrl_c_leaves_true_states_and_the_same_command_goes_on(
    ray_cluster: None, server: Service, tmp_path: Path
) -> None:
    shards = write_dataset(tmp_path / "shards")
    arguments = [shards, str(tmp_path), server.url]
    driver = search_at_its_second_trial(arguments, tmp_path / "killed" / "trials")
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
    assert driver.wait(180) != 0
    stopped = tracked_states(server.url)
    assert stopped == {"killed": "KILLED", "trial_000": "FINISHED", "trial_001": "KILLED"}
    found = run_search(options(*arguments))
    assert [(trial.status, trial.step) for trial in found.trials] == [(FINISHED, STEPS)] * 3
    names = ("killed", "trial_000", "trial_001", "trial_002")
    assert tracked_states(server.url) == dict.fromkeys(names, "FINISHED")


def test_a_killed_search_goes_on(ray_cluster: None, server: Service, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    shards, storage = write_dataset(tmp_path / "shards"), tmp_path
    arguments = [shards, str(storage), server.url]
    trials = storage / "killed" / "trials"
    driver = search_at_its_second_trial(arguments, trials)
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
