from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient

from pipeline.errors import Interrupted
from pipeline.owner import owner_lives, this_owner
from pipeline.tracking.options import TrackingOptions
from pipeline.tracking.orphans import sweep_orphans
from pipeline.tracking.runs import open_run, spool_root
from pipeline.tracking.server import Server
from pipeline.tracking.spool import Segment

OPTIONS = TrackingOptions(system_metrics=False)


def _client(storage: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{storage}/mlflow.db")


def _uri(storage: Path) -> str:
    return f"sqlite:///{storage}/mlflow.db"


def test_a_run_holds_what_was_recorded(run_storage: Path, tmp_path: Path) -> None:
    figure = tmp_path / "figure.txt"
    figure.write_text("a picture")
    with open_run(OPTIONS, str(run_storage), "first", "k", {"optim": {"lr": 0.1}}, {"kind": "test"}) as tracker:
        for step in range(5):
            tracker.log_metrics({"loss": 5.0 - step, "psnr": float("nan")}, step)
        tracker.log_artifact(figure, "figures")
        figure.unlink()
    client = _client(run_storage)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"optim.lr": "0.1"}
    assert run.data.tags["kind"] == "test"
    assert [(m.step, m.value) for m in client.get_metric_history(tracker.run_id, "loss")] == [
        (step, 5.0 - step) for step in range(5)
    ]
    assert [entry.path for entry in client.list_artifacts(tracker.run_id, "figures")] == ["figures/figure.txt"]
    assert list(spool_root(str(run_storage), _uri(run_storage)).iterdir()) == []


def test_the_same_key_continues_the_same_run(run_storage: Path) -> None:
    with open_run(OPTIONS, str(run_storage), "name", "key", {"workers": 2}) as first:
        first.log_metrics({"loss": 1.0}, 1)
    with open_run(OPTIONS, str(run_storage), "name", "key", {"workers": 1, "more": 3}) as second:
        second.log_metrics({"loss": 0.5}, 2)
    run = _client(run_storage).get_run(second.run_id)
    assert second.run_id == first.run_id
    assert run.data.params == {"workers": "2", "more": "3"}
    assert run.data.tags["changed.workers"] == "1"
    assert run.data.metrics == {"loss": 0.5}


def test_without_a_key_every_run_is_new_and_trials_are_nested(run_storage: Path) -> None:
    with open_run(OPTIONS, str(run_storage), "parent") as parent:
        with open_run(OPTIONS, str(run_storage), "trial", parent_run_id=parent.run_id) as trial:
            pass
        with open_run(OPTIONS, str(run_storage), "trial", parent_run_id=parent.run_id) as other:
            pass
    assert len({parent.run_id, trial.run_id, other.run_id}) == 3
    assert _client(run_storage).get_run(other.run_id).data.tags["mlflow.parentRunId"] == parent.run_id


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (Interrupted, "KILLED")]
)
def test_status_tells_how_it_ended(run_storage: Path, error: type[BaseException], status: str) -> None:
    tracker = open_run(OPTIONS, str(run_storage), "ends badly")
    with pytest.raises(error), tracker:
        raise error
    assert _client(run_storage).get_run(tracker.run_id).info.status == status


def test_a_server_that_is_away_stops_nothing_and_is_caught_up_later(run_storage: Path, tmp_path: Path) -> None:
    with socket.socket() as unused:  # bound but not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        away = TrackingOptions(uri=f"http://127.0.0.1:{unused.getsockname()[1]}", system_metrics=False)
        with open_run(away, str(run_storage), "spooled", "key") as tracker:
            for step in range(10):
                tracker.log_metrics({"loss": float(step)}, step)
        assert tracker.run_id is None
        assert tracker.server_away
    [segment] = spool_root(str(run_storage), away.uri or "").iterdir()
    here = spool_root(str(run_storage), _uri(run_storage))
    here.mkdir(parents=True)
    segment.rename(here / segment.name)  # the server comes back: in this test, as SQLite
    with open_run(OPTIONS, str(run_storage), "next run", "another key") as following:
        assert following.flush()
    client = _client(run_storage)
    [run] = client.search_runs([client.get_experiment_by_name("hip").experiment_id], "attributes.run_name = 'spooled'")
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 10
    assert list(here.iterdir()) == []


def test_an_artifact_store_that_fails_costs_neither_numbers_nor_status(
    run_storage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client, figure, wall = _client(run_storage), tmp_path / "figure.txt", tmp_path / "wall"
    figure.write_text("a picture")
    wall.write_text("in the way")
    options = replace(OPTIONS, experiment="walled")
    client.create_experiment(options.experiment, artifact_location=str(wall / "artifacts"))
    with open_run(options, str(run_storage), "first", "key") as first:
        first.log_metrics({"loss": 1.0}, 1)
        first.log_artifact(figure, "figures")
        first.log_metrics({"loss": 0.5}, 2)
    run = client.get_run(first.run_id)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"loss": 0.5})
    assert "artifacts cannot be stored" in caplog.text
    with open_run(options, str(run_storage), "first", "key") as again:
        again.log_metrics({"loss": 0.25}, 3)
    assert again.run_id == first.run_id
    assert client.get_run(first.run_id).data.metrics == {"loss": 0.25}
    wall.unlink()
    with open_run(options, str(run_storage), "next", "another key") as following:
        assert following.flush()
    assert [entry.path for entry in client.list_artifacts(first.run_id, "figures")] == ["figures/figure.txt"]
    assert list(spool_root(str(run_storage), _uri(run_storage)).iterdir()) == []


def test_artifacts_of_a_remote_storage_go_where_its_uri_says_without_its_secrets(
    run_storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "forgotten after this test")
    del os.environ["MLFLOW_S3_ENDPOINT_URL"]
    storage = "s3://key:secret@bucket/runs?scheme=http&endpoint_override=minio.local:9000"
    experiment = Server(_uri(run_storage), "far", storage).client.get_experiment_by_name("far")
    assert experiment.artifact_location == "s3://bucket/runs/mlflow-artifacts/far"
    assert os.environ["MLFLOW_S3_ENDPOINT_URL"] == "http://minio.local:9000"


def test_records_sent_twice_are_stored_once(run_storage: Path) -> None:
    server = Server(_uri(run_storage), "hip", str(run_storage))
    opened = {"kind": "open", "key": "k", "name": "n", "ms": 1, "owner": "o", "parent": None, "resume": None}
    run_id = server.ensure_run(opened)
    values = {"loss": 1.0, "lr": float("nan")}
    records = [{"kind": "metrics", "ms": 1000 + step, "step": step, "values": values} for step in range(20)]
    records.append({"kind": "params", "values": {"a": "1"}})
    for _ in range(2):
        assert server.store(server.ensure_run(opened), records) == 0
    assert len(server.client.get_metric_history(run_id, "loss")) == 20
    assert len(server.client.get_metric_history(run_id, "lr")) == 20


def test_one_refused_record_does_not_cost_its_batch(run_storage: Path) -> None:
    server = Server(_uri(run_storage), "hip", str(run_storage))
    opened = {"kind": "open", "key": "k", "name": "n", "ms": 1, "owner": "o", "parent": None, "resume": None}
    run_id = server.ensure_run(opened)
    bad = {"kind": "metrics", "ms": 1, "step": 0, "values": {"good": 1.0, "b\nad": 2.0, "also good": 3.0}}
    assert server.store(run_id, [bad]) == 1
    assert server.client.get_run(run_id).data.metrics == {"good": 1.0, "also good": 3.0}


def test_metrics_that_are_not_numbers_are_counted_not_raised(run_storage: Path) -> None:
    with open_run(OPTIONS, str(run_storage), "odd") as tracker:
        tracker.log_metrics({"loss": 1.0, "text": "high"}, 0)  # type: ignore[dict-item]
        tracker.log_artifact(run_storage / "missing.png")
    assert tracker.lost_records == 2
    assert _client(run_storage).get_run(tracker.run_id).data.metrics == {"loss": 1.0}


def test_disabled_tracking_writes_nothing(tmp_path: Path) -> None:
    with open_run(TrackingOptions(enabled=False), str(tmp_path / "none"), "off") as tracker:
        tracker.log_metrics({"loss": 1.0}, 0)
    assert tracker.run_id is None
    assert not (tmp_path / "none").exists()


def test_a_storage_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    options = TrackingOptions(uri=f"sqlite:///{tmp_path}/mlflow.db")
    with open_run(options, str(tmp_path / "file"), "blocked") as tracker:
        tracker.log_metrics({"loss": 1.0}, 0)
    assert tracker.run_id is None
    assert "nothing will be tracked" in caplog.text


def test_runs_of_dead_processes_are_closed_and_others_left(run_storage: Path) -> None:
    server = Server(_uri(run_storage), "hip", str(run_storage))
    gone = this_owner().rpartition(":")[0] + ":1.00"  # this process id, another start time
    owners = {"gone": gone, "alive": this_owner(), "elsewhere": "other-host/1:1:1.00"}
    ids = {
        name: server.ensure_run(
            {"kind": "open", "key": name, "name": name, "ms": 1, "owner": owner, "parent": None, "resume": None}
        )
        for name, owner in owners.items()
    }
    assert sweep_orphans(server) == [ids["gone"]]
    assert {name: server.client.get_run(run_id).info.status for name, run_id in ids.items()} == {
        "gone": "KILLED",
        "alive": "RUNNING",
        "elsewhere": "RUNNING",
    }


def test_a_process_that_never_was_is_dead() -> None:
    free = max(psutil.pids()) + 100_000
    assert owner_lives(f"{this_owner().split(':')[0]}:{free}:1.00") is False
    assert owner_lives("nonsense") is None


def test_what_a_killed_worker_left_does_not_reopen_the_run_that_its_driver_ended(run_storage: Path) -> None:
    with open_run(OPTIONS, str(run_storage), "run", "key") as driver:
        pass
    left = Segment.create(spool_root(str(run_storage), _uri(run_storage)))
    key = _client(run_storage).get_run(driver.run_id).data.tags["hip.key"]
    owner = this_owner().rpartition(":")[0] + ":1.00"
    opened = {"kind": "open", "key": key, "name": "run", "ms": 1, "owner": owner, "parent": None, "resume": None}
    for record in (opened, {"kind": "metrics", "ms": 5, "step": 3, "values": {"loss": 2.0}}):
        left.append(record)
    left.close(remove=False)
    with open_run(OPTIONS, str(run_storage), "later") as later:
        assert later.flush()
    run = _client(run_storage).get_run(driver.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"loss": 2.0}


def test_trackers_that_open_the_same_run_at_once_make_one(run_storage: Path) -> None:
    trackers = [open_run(OPTIONS, str(run_storage), "shared", "key") for _ in range(4)]
    for index, tracker in enumerate(trackers):
        tracker.log_metrics({f"from_{index}": 1.0}, 0)
    for tracker in trackers:
        tracker.finish()
    assert len({tracker.run_id for tracker in trackers}) == 1
    assert len(_client(run_storage).get_run(trackers[0].run_id).data.metrics) == 4


def test_a_deleted_run_is_replaced_by_the_one_with_its_key(run_storage: Path) -> None:
    with open_run(OPTIONS, str(run_storage), "first", "key") as first:
        pass
    _client(run_storage).delete_run(first.run_id)
    with open_run(OPTIONS, str(run_storage), "first", "key", resume_run_id=first.run_id) as second:
        pass
    assert second.run_id not in (None, first.run_id)
