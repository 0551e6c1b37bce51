"""MLflow as a team runs it: PostgreSQL, proxied artifacts, basic authentication; and the server restarted meanwhile."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_processes import Service, free_port
from postgres_process import postgres
from training_data import write_dataset

from pipeline.cluster.doctor import run_doctor
from pipeline.cluster.doctor_options import FAIL, OK, DoctorOptions
from pipeline.tracking.options import TrackingOptions
from pipeline.tracking.runs import spool_root
from pipeline.train.options import (
    BatchOptions,
    CheckpointOptions,
    DurationOptions,
    EngineOptions,
    FigureOptions,
    MetricsOptions,
    ModelOptions,
    PretrainOptions,
    RunOptions,
    ScaleOptions,
    ValidationOptions,
)
from pipeline.train.runner import run_pretraining

pytestmark = [pytest.mark.integration, pytest.mark.fault]
pytest.importorskip("psycopg", reason="needs psycopg[binary]")
pytest.importorskip("flask_wtf", reason="needs Flask-WTF (mlflow[auth])")

USER, PASSWORD = "trainer", "a-password-for-tests"
STEPS = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = EDIT\ndatabase_uri = sqlite:///{folder}/users.db\n"
        f"admin_username = {USER}\nadmin_password = {PASSWORD}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    port = free_port()
    with postgres() as database:
        arguments = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        arguments += ["--app-name", "basic-auth", "--workers", "1", "--backend-store-uri", database]
        arguments += ["--artifacts-destination", str(folder / "artifacts")]
        service = Service(
            arguments, port, "/health", folder,
            MLFLOW_AUTH_CONFIG_PATH=str(folder / "auth.ini"), MLFLOW_FLASK_SERVER_SECRET_KEY="for-tests",
        )  # fmt: skip
        service.start()
        try:
            yield service
        finally:
            service.stop()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)


def options(folder: Path, server: Service, name: str) -> PretrainOptions:
    return PretrainOptions(
        shards=write_dataset(folder / f"shards-{name}", train=24, validation=8),
        storage=str(folder / "runs"),
        run=RunOptions(name),
        model=ModelOptions("hip_nano"),
        batch=BatchOptions(8),
        duration=DurationOptions(steps=STEPS),
        engine=EngineOptions(kind="torch", precision="fp32"),
        scale=ScaleOptions(workers=0),
        checkpoint=CheckpointOptions(every_steps=100),
        validation=ValidationOptions(every_steps=0),
        metrics=MetricsOptions(every_steps=1),
        figures=FigureOptions(every_steps=STEPS),
        tracking=TrackingOptions(server.url, system_metrics=False),
    )


@pytest.mark.usefixtures("credentials")
def test_the_server_may_restart_during_a_run(server: Service, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    def restart(step: int, metrics: object) -> bool:
        if step == 10:
            server.stop()
        if step == 40:
            server.start()
        return False

    result = run_pretraining(options(tmp_path, server, "restarted"), restart)
    client = MlflowClient(server.url)
    assert result.tracking_run_id is not None
    run = client.get_run(result.tracking_run_id)
    assert run.info.status == "FINISHED"
    steps = [point.step for point in client.get_metric_history(result.tracking_run_id, "loss")]
    assert sorted(steps) == list(range(1, STEPS + 1))
    assert client.list_artifacts(result.tracking_run_id)
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    written = json.dumps(run.data.params) + json.dumps(run.data.tags)
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert PASSWORD not in written
    assert not [path for path in files if PASSWORD.encode() in path.read_bytes()]


def test_a_wrong_password_never_stops_training_and_nothing_is_lost(
    server: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    first = run_pretraining(options(tmp_path, server, "shut_out"))
    assert first.status == "finished"
    assert first.tracking_run_id is None
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    run_pretraining(options(tmp_path, server, "let_in"))
    assert not list(spool_root(str(tmp_path / "runs"), server.url).iterdir())
    client = MlflowClient(server.url)
    experiment = client.get_experiment_by_name("hip")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    history = client.get_metric_history(runs["shut_out"].info.run_id, "loss")
    assert sorted(point.step for point in history) == list(range(1, STEPS + 1))
    assert runs["shut_out"].info.status == "FINISHED"


def test_the_doctor_sees_the_server_as_a_client_does(
    server: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(tracking: TrackingOptions) -> tuple[str, str]:
        report = run_doctor(DoctorOptions(storage=str(tmp_path), tracking=tracking))
        (finding,) = [finding for finding in report.findings if finding.check == "mlflow"]
        return finding.level, finding.what + finding.fix

    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    level, text = found(TrackingOptions(server.url))
    assert level == FAIL
    assert "HTTP 401" in text
    assert "MLFLOW_TRACKING_PASSWORD" in text
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    level, text = found(TrackingOptions(server.url))
    assert level == OK
    assert "version 3." in text
