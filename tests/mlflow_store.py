"""MLflow stores for tests: migrating a fresh SQLite file takes seconds, so it is done once and copied."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def new_storage(tmp_path: Path, migrated_database: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Make a storage folder whose MLflow database is ready."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def make(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copyfile(migrated_database, folder / "mlflow.db")
        return folder

    return make


@pytest.fixture
def run_storage(new_storage: Callable[[str], Path]) -> Path:
    """One such folder."""
    return new_storage("storage")
