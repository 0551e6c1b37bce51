from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_processes import Service, tracking_server


@pytest.fixture
def server(tmp_path: Path, migrated_database: Path) -> Iterator[Service]:
    """A tracking server that runs; a test may stop and start it."""
    service = tracking_server(tmp_path / "server", migrated_database)
    service.start()
    yield service
    service.stop()
