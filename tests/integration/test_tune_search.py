"""Real searches: Ray Tune, real training, a real MLflow server."""

from __future__ import annotations

import csv
import html
import json
import logging
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow_processes import Service, tracking_server
from s3_server import Behaviour, s3_behind_proxy
from training_data import write_dataset

from pipeline.errors import UserError
from pipeline.folder_lock import folder_lock
from pipeline.shards.manifest import Manifest
from pipeline.storage import join, read_bytes
from pipeline.tracking.options import TrackingOptions
from pipeline.train.options import (
    BatchOptions,
    CheckpointOptions,
    DurationOptions,
    EngineOptions,
    GuardOptions,
    MetricsOptions,
    ModelOptions,
    ScaleOptions,
    ValidationOptions,
)
from pipeline.tune.metrics import reported_metrics
from pipeline.tune.options import SearchOptions, TuneOptions
from pipeline.tune.results import DIVERGED, FINISHED, OUT_OF_MEMORY, REJECTED, STOPPED
from pipeline.tune.search import run_search

pytestmark = pytest.mark.integration

SMALL = {
    "depth": [1, 2],
    "first_groups": 4,
    "first_latents": 8,
    "maximum_latents": 16,
    "processor_latents": 8,
    "processor_channels": 64,
    "processor_heads": 4,
    "core_layers": 1,
    "encoder_layers": 1,
    "processor_layers": 1,
    "embedding_channels": 16,
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("tune") / "shards")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("tune_server")
    service = tracking_server(folder, migrated_database)
    service.start()
    yield service
    service.stop()


def options(shards: str, storage: Path, tracked_in: str | None = None, steps: int = 12, **search: Any) -> TuneOptions:
    return TuneOptions(
        shards=shards,
        storage=str(storage),
        model=ModelOptions("hip_nano"),
        batch=BatchOptions(8),
        duration=DurationOptions(steps=steps),
        engine=EngineOptions(kind="torch", precision="fp32"),
        metrics=MetricsOptions(every_steps=3),
        checkpoint=CheckpointOptions(every_steps=3),
        validation=ValidationOptions(every_steps=0),
        tracking=TrackingOptions(tracked_in, enabled=tracked_in is not None, system_metrics=False),
        search=SearchOptions(**{"name": "small", "trials": 4, **({"max_concurrent": 1} | search)}),
    )


def tracked_runs(uri: str) -> tuple[Any, list[Any]]:
    """The parent run and its children."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("hip")
    runs = client.search_runs([experiment.experiment_id])
    [parent] = [run for run in runs if run.data.tags.get("hip.kind") == "search"]
    return parent, [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]


class Listener(logging.Handler):
    """Hears the search's log lines, whatever other tests did to the loggers above."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def listening() -> Iterator[list[str]]:
    listener, loud = Listener(), logging.getLogger("pipeline.tune")
    before = loud.level
    loud.setLevel(logging.INFO)
    loud.addHandler(listener)
    yield listener.lines
    loud.removeHandler(listener)
    loud.setLevel(before)


def test_bad_trials_stop_early_and_give_their_worker_back(
    ray_cluster: None, server: Service, shards: str, tmp_path: Path
) -> None:
    import ray

    rates = {"optim.learning_rate": [3e-3, 1e-9, 2e-9, 3e-9]}
    search = {"budget": "none", "algorithm": "grid", "scheduler": "asha", "grace_steps": 3, "options": rates}
    with listening() as said:
        found = run_search(options(shards, tmp_path, server.url, **search))
    first, *rest = found.trials
    assert (first.status, first.step) == (FINISHED, 12)
    assert [(trial.status, trial.step) for trial in rest] == [(STOPPED, 3)] * 3
    assert found.best is first
    assert [step for step, _ in first.curve] == [3, 6, 9, 12]
    # A process that was warm needs a fraction of the first one's time.
    assert sum(trial.seconds for trial in rest) < first.seconds
    deadline = time.monotonic() + 30  # Ray's view of what is free lags behind
    while ray.available_resources()["CPU"] < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, f"still taken: {ray.available_resources()}"
        time.sleep(0.5)
    tables = ray.util.placement_group_table().values()
    assert all(table["state"] == "REMOVED" for table in tables)
    assert "trial_000 starts: optim.learning_rate=0.003 | 0/4 done" in said
    assert any(line.startswith("trial_000 step 3/12: loss ") for line in said)
    assert any(line.startswith("trial_003 is stopped early at step 3/12: loss ") for line in said)
    assert any("| 4/4 done, best trial_000 " in line for line in said)
    assert not any("did not close" in line for line in said), "a kept worker closes when the next trial takes it"

    parent, children = tracked_runs(server.url)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["hip.best_trial"] == "trial_000"
    assert sorted(run.info.run_name for run in children) == ["trial_000", "trial_001", "trial_002", "trial_003"]
    assert {run.info.status for run in children} == {"FINISHED"}
    assert {run.info.run_name for run in children if run.data.tags["hip.best"] == "true"} == {"trial_000"}
    assert {run.data.tags["hip.trial.status"] for run in children} == {FINISHED, STOPPED}
    # The same command again finds everything done.
    again = run_search(options(shards, tmp_path, server.url, **search))
    assert [(trial.status, trial.value) for trial in again.trials] == [(t.status, t.value) for t in found.trials]
    assert len(tracked_runs(server.url)[1]) == 4


def check_that_it_trains(command: str) -> None:
    """The report's command as it stands, but for its length."""
    words = ["duration.steps=1", "scale.workers=0", "engine=torch", "tracking.enabled=false"]
    shown = [word for word in shlex.split(command)[1:] if not word.startswith("duration.")]
    done = subprocess.run([sys.executable, "-m", "jobs", *shown, *words], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]


def test_geometries_of_one_cost_are_searched_and_reported(ray_cluster: None, shards: str, tmp_path: Path) -> None:
    chosen = options(
        shards, tmp_path, steps=3, metric="validation/loss", dials=SMALL | {"first_latents": [4, 8, 16]}, trials=4
    )
    chosen = replace(
        chosen, search=replace(chosen.search, algorithm="tpe"), validation=ValidationOptions(every_steps=3)
    )
    found = run_search(chosen)
    trained = [trial for trial in found.trials if trial.status != REJECTED]
    assert len(trained) == 4
    assert all(trial.is_measured for trial in trained)
    costs = [trial.candidate.costs.training_flops for trial in trained if trial.candidate.costs]
    assert max(costs) / min(costs) < 1.03 / 0.97
    assert found.report is not None
    assert found.command is not None
    assert html.escape(found.command) in Path(found.report).read_text()
    check_that_it_trains(found.command)
    rows = list(csv.DictReader((tmp_path / "small" / "trials.csv").open()))
    assert len(rows) == len(found.trials)
    # A longer search of the same space takes over what was trained.
    longer = run_search(replace(chosen, search=replace(chosen.search, trials=5)))
    assert [trial.candidate for trial in longer.trials[: len(found.trials)]] == [t.candidate for t in found.trials]
    assert sum(trial.status != REJECTED for trial in longer.trials) == 5
    for before, after in zip(trained, [t for t in longer.trials if t.status != REJECTED], strict=False):
        record = json.loads((Path(after.run_folder or "") / "run.json").read_text())
        assert record["attempts"] == 1, "trained twice"
        assert set(record["metrics"]) <= set(reported_metrics(chosen, Manifest.load(shards)))
        assert after.value == pytest.approx(before.value)
    # Another space under the same name is refused, and told apart.
    other = replace(chosen, search=replace(chosen.search, dials=SMALL | {"first_latents": [4, 8]}))
    with pytest.raises(UserError, match=r"search.dials.first_latents: \[4, 8, 16\] then, \[4, 8\] now"):
        run_search(other)


def test_a_trial_that_cannot_train_is_a_result(ray_cluster: None, shards: str, tmp_path: Path) -> None:
    fits = {**SMALL, "depth": 1}
    # One matrix of its processor would take a terabyte, which no allocator gives; all before it is small.
    too_large = {**fits, "processor_channels": 8192, "width_scale": 64.0, "channel_growth": 1.0}
    chosen = options(
        shards,
        tmp_path,
        trials=4,
        algorithm="grid",
        scheduler="none",
        budget="none",
        variants=[fits, too_large],
        options={"optim.learning_rate": [1e-3, 1e30]},
    )
    found = run_search(replace(chosen, guards=GuardOptions(consecutive_bad_steps=1, max_rollbacks=0)))
    assert [trial.status for trial in found.trials] == [FINISHED, DIVERGED, OUT_OF_MEMORY, OUT_OF_MEMORY]
    good, *bad = found.trials
    assert all(math.isinf(trial.value) and trial.reason for trial in bad)
    assert found.best is good


@pytest.mark.fault  # long: every member that is moved starts a process
def test_population_based_training_changes_settings_on_the_way(ray_cluster: None, shards: str, tmp_path: Path) -> None:
    rates = {"optim.learning_rate": {"low": 1e-9, "high": 1e-2, "log": True}}
    search = {"trials": 2, "scheduler": "pbt", "budget": "none", "grace_steps": 6, "options": rates}
    found = run_search(options(shards, tmp_path, steps=36, max_concurrent=2, **search))
    assert [(trial.status, trial.step) for trial in found.trials] == [(FINISHED, 36)] * 2
    started = [trial.candidate.settings["optim.learning_rate"] for trial in found.trials]
    ended = [
        json.loads((Path(trial.run_folder or "") / "run.json").read_text())["options"]["optim"]["learning_rate"]
        for trial in found.trials
    ]
    assert started != ended, "nobody took over a better trial's settings"


def test_a_search_is_driven_by_one_process(shards: str, tmp_path: Path) -> None:
    rates = {"optim.learning_rate": {"low": 1e-9, "high": 1e-2, "log": True}}
    told = rf"search small in .* is under way in another process \(process {os.getpid()} on "
    with folder_lock(str(tmp_path / "small"), ".search.lock", "", ""), pytest.raises(UserError, match=told):
        run_search(options(shards, tmp_path, budget="none", options=rates))


@pytest.mark.fault
@pytest.mark.parametrize("scheduler", ["asha", "pbt"])
def test_a_search_in_a_bucket_is_a_search_in_a_folder(
    ray_cluster: None, shards: str, tmp_path: Path, scheduler: str
) -> None:
    rates = {"optim.learning_rate": {"low": 1e-9, "high": 1e-2, "log": True}}
    search = {"trials": 2, "scheduler": scheduler, "budget": "none", "grace_steps": 6, "options": rates}
    with s3_behind_proxy(Behaviour()) as (straight, _):
        at_once = 2 if scheduler == "pbt" else 1  # whom ASHA stops depends on who reports first
        asked = options(shards, tmp_path, steps=18, max_concurrent=at_once, **search)
        far = replace(asked, storage=f"s3://key:secret@data/searches?{straight}")
        found, here = run_search(far), run_search(asked)
        assert run_search(far).best == found.best
        assert {trial.status for trial in found.trials} <= {FINISHED, STOPPED}
        assert read_bytes(join(found.folder, "report.html"))
        if scheduler == "asha":  # a population's moves depend on which member is faster
            assert [trial.value for trial in found.trials] == [trial.value for trial in here.trials]
        assert "secret" not in str(found.command)


@pytest.mark.fault  # long: every trial starts a group of workers
def test_trials_of_several_workers_are_stopped_early_and_free_them(
    ray_cluster: None, shards: str, tmp_path: Path
) -> None:
    import ray

    rates = {"optim.learning_rate": [3e-3, 1e-9]}
    search = {"trials": 2, "budget": "none", "algorithm": "grid", "scheduler": "asha", "grace_steps": 3}
    chosen = replace(options(shards, tmp_path, options=rates, **search), scale=ScaleOptions(workers=2))
    good, bad = run_search(chosen).trials
    assert (good.status, good.step) == (FINISHED, 12)
    assert (bad.status, bad.step) == (STOPPED, 3)
    assert [step for step, _ in good.curve] == [3, 6, 9, 12]
    record = json.loads((Path(good.run_folder or "") / "run.json").read_text())
    assert (record["status"], record["examples_consumed"]) == (FINISHED, 12 * 8)
    closed = json.loads((Path(bad.run_folder or "") / "run.json").read_text())
    assert closed["status"] == FINISHED, "it was killed while it closed"
    deadline = time.monotonic() + 30  # Ray's view of what is free lags behind
    while ray.available_resources()["CPU"] < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, f"still taken: {ray.available_resources()}"
        time.sleep(0.5)


@pytest.mark.fault  # measures time: wrong numbers on a machine that is busy in turns
def test_candidates_are_solved_to_the_measured_time_of_a_step(ray_cluster: None, shards: str, tmp_path: Path) -> None:
    search = {"trials": 2, "budget": "step_time", "budget_tolerance": 0.3, "scheduler": "none", "dials": SMALL}
    found = run_search(options(shards, tmp_path, steps=3, **search))
    trained = [trial for trial in found.trials if trial.status == FINISHED]
    assert trained
    seconds = [trial.candidate.costs.step_seconds for trial in trained if trial.candidate.costs]
    assert all(second is not None and second > 0 for second in seconds)
    assert max(seconds) / min(seconds) <= 1.3 / 0.7


def test_places_may_be_given_as_seen_from_here(
    ray_cluster: None, shards: str, tmp_path: Path, migrated_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each trial runs in a folder of its own, where ``data`` and ``sqlite:///runs.db`` would be other places."""
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(shards)
    shutil.copy(migrated_database, "runs.db")
    asked = options("data", Path("runs"), "sqlite:///runs.db", 3, dials=SMALL, budget="none", trials=1)
    result = run_search(asked)
    assert [trial.status for trial in result.trials] == [FINISHED]
    assert (tmp_path / "runs" / "small" / "trials" / "trial_000" / "run.json").is_file()
    _, children = tracked_runs(f"sqlite:///{tmp_path}/runs.db")
    assert [child.info.status for child in children] == ["FINISHED"]
