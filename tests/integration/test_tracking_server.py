from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from mlflow_processes import Service, tracking_server
from mlflow_store import migrated_database
from registry_models import make_model

from pipeline.cluster.doctor import run_doctor
from pipeline.cluster.doctor_options import FAIL, OK, DoctorOptions
from pipeline.registry.options import RegisterOptions
from pipeline.registry.register import register
from pipeline.registry.resolve import resolve_model
from pipeline.tracking.options import TrackingOptions
from pipeline.tracking.runs import open_run, spool_root

__all__ = ["migrated_database"]

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[Service]:
    service = tracking_server(tmp_path_factory.mktemp("server"), migrated_database)
    service.start()
    yield service
    service.stop()


def test_a_server_that_dies_and_returns_has_everything_once(server: Service, tmp_path: Path) -> None:
    options = TrackingOptions(uri=server.url, system_metrics=False)
    figure = tmp_path / "figure.txt"
    figure.write_text("a picture")
    with open_run(options, str(tmp_path), "interrupted", "key", {"lr": 0.1}) as tracker:
        for step in range(50):
            tracker.log_metrics({"loss": float(step)}, step)
        assert tracker.flush(60)
        server.stop()
        for step in range(50, 100):
            tracker.log_metrics({"loss": float(step)}, step)
        tracker.log_artifact(figure, "figures")
        figure.unlink()
        assert not tracker.flush(60)
        server.start()
    client = MlflowClient(server.url)
    assert tracker.run_id is not None
    history = client.get_metric_history(tracker.run_id, "loss")
    assert sorted(point.step for point in history) == list(range(100))
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert [entry.path for entry in client.list_artifacts(tracker.run_id, "figures")] == ["figures/figure.txt"]
    assert list(spool_root(str(tmp_path), server.url).iterdir()) == []


def test_a_model_goes_to_a_server_and_comes_back(
    server: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # the cache of fetched models
    options = TrackingOptions(uri=server.url)
    model = make_model(tmp_path / "nano")
    register(RegisterOptions(str(model), "clips", str(tmp_path), pytorch=False, tracking=options))
    folder = resolve_model("models:/clips@candidate", str(tmp_path), options)
    assert folder.is_relative_to(tmp_path / "home")
    for name in ("model.safetensors", "config.json", "head.safetensors"):
        assert (folder / name).read_bytes() == (model / name).read_bytes()
    assert resolve_model("models:/clips/1", str(tmp_path), options) == folder


def test_the_doctor_stores_an_artifact_as_a_run_would(server: Service, tmp_path: Path) -> None:
    def found(experiment: str) -> tuple[str, str]:
        tracking = TrackingOptions(server.url, experiment)
        report = run_doctor(DoctorOptions(storage=str(tmp_path), tracking=tracking))
        (finding,) = [finding for finding in report.findings if finding.check == "mlflow artifacts"]
        return finding.level, finding.what

    client = MlflowClient(server.url)
    sound, broken = client.create_experiment("sound"), client.create_experiment("broken")
    client.create_experiment("own_disk", artifact_location=str(tmp_path / "own"))
    stored = server.folder / "artifacts"
    stored.mkdir(exist_ok=True)
    (stored / broken).write_text("a file where the server wants a folder")
    assert found("sound") == (OK, f"mlflow-artifacts:/{sound}")
    assert not [file for file in (stored / sound).rglob("*") if file.is_file()]
    level, what = found("broken")
    assert level == FAIL
    assert what.startswith(f"mlflow-artifacts:/{broken}: ")
    assert found("own_disk")[0] == OK
    assert not (tmp_path / "own").exists()
