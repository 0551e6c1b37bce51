from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.tracking.options import TrackingOptions, resolve_uri


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "file:runs", "./mlruns", "mlruns"])
def test_a_file_store_is_refused_with_the_store_to_use_instead(uri: str) -> None:
    with pytest.raises(UserError, match=r"sqlite:////.*mlflow\.db"):
        TrackingOptions(uri=uri)


def test_an_unknown_scheme_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'sqlite'"):
        TrackingOptions(uri="sqlit:///x.db")


def test_a_refused_uri_is_shown_without_its_password() -> None:
    with pytest.raises(UserError) as caught:
        TrackingOptions(uri="htp://user:hunter2@host")
    assert "hunter2" not in str(caught.value)


def test_default_is_a_database_inside_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(TrackingOptions(), str(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"


def test_environment_is_used_and_the_option_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment:5000")
    assert resolve_uri(TrackingOptions(), "runs") == "http://environment:5000"
    assert resolve_uri(TrackingOptions(uri="http://option:5000"), "runs") == "http://option:5000"


def test_a_file_beside_the_command_is_the_same_one_from_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(TrackingOptions(uri="sqlite:///runs.db"), "runs") == f"sqlite:///{tmp_path}/runs.db"
    assert resolve_uri(TrackingOptions(uri="sqlite:////srv/runs.db"), "runs") == "sqlite:////srv/runs.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite+pysqlite:///a/runs.db")
    assert resolve_uri(TrackingOptions(), "runs") == f"sqlite+pysqlite:///{tmp_path}/a/runs.db"


def test_remote_storage_needs_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"tracking\.uri=http"):
        resolve_uri(TrackingOptions(), "s3://bucket/runs")


def test_an_empty_experiment_is_refused() -> None:
    with pytest.raises(UserError, match="experiment"):
        TrackingOptions(experiment=" ")
