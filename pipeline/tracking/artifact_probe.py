"""Can this machine store files where the MLflow server wants them? Sent to nodes by value, see ``doctor_probe``."""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # its own patience, and S3's, is minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "AWS_MAX_ATTEMPTS": "2",
}


def probe_artifacts(uri: str, experiment: str) -> dict[str, Any]:
    """Write, read and delete a small file at the experiment's ``location``, as a run would; ``error`` where it failed.

    Empty when the server has no experiment yet. ``kept`` is a file that could not be deleted. A ``folder`` is a place
    on each client's own disk: nothing is written there.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    location = ""
    try:
        from mlflow.tracking import MlflowClient

        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment) or next(iter(client.search_experiments(max_results=1)), None)
        if found is None:
            return {}
        location = found.artifact_location
        place = urlsplit(location)
        if place.scheme in ("", "file"):
            return {"location": location, "folder": True, **_own_folder(Path(unquote(place.path)))}
        return {"location": location, "folder": False, **_store(location, uri)}
    except Exception as error:  # whatever a broken store raises is a finding
        return {"location": location, "folder": False, "error": f"{type(error).__name__}: {error}"[:400]}


def _own_folder(folder: Path) -> dict[str, Any]:
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return {} if os.access(parent, os.W_OK) else {"error": f"{parent} cannot be written"}


def _store(location: str, uri: str) -> dict[str, Any]:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository(location, tracking_uri=uri)
    content = os.urandom(1024)
    with tempfile.TemporaryDirectory(prefix="hip-doctor-") as folder:
        sent = Path(folder) / f"hip-doctor-{uuid.uuid4().hex[:8]}"
        sent.write_bytes(content)
        repository.log_artifact(str(sent))
        back = Path(folder) / "back"
        back.mkdir()
        same = Path(repository.download_artifacts(sent.name, str(back))).read_bytes() == content
    facts: dict[str, Any] = {} if same else {"error": "a file that was written there came back changed"}
    try:
        repository.delete_artifacts(sent.name)
    except Exception:  # runs never delete, so the right to do so may be missing
        facts["kept"] = sent.name
    return facts
