"""The MLflow side: find or create a run, and store records on it, each exactly once."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pipeline.storage import is_local, join, local_path, redact
from pipeline.tracking.spool import Record

logger = logging.getLogger(__name__)

KEY_TAG = "hip.key"
OWNER_TAG = "hip.owner"
_METRICS_PER_BATCH = 1000
_MLFLOW_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # its own patience is minutes; ours is the spool
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_ENTRIES_PER_BATCH = 100


class Server:
    """One MLflow store, spoken to through ``MlflowClient`` only (no process-wide tracking state).

    Raises:
        Exception: whatever MLflow raises while the store cannot be reached; callers retry later.
    """

    def __init__(self, uri: str, experiment: str, storage: str) -> None:
        for name, value in (_MLFLOW_SETTINGS | _endpoint_for_artifacts(storage)).items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        for chatty in ("alembic", "mlflow.store.db.utils"):  # a line per table on first use
            logging.getLogger(chatty).setLevel(logging.WARNING)
        self.uri = uri
        with creation_lock(uri):
            self.client: Any = MlflowClient(tracking_uri=uri, registry_uri=uri)
            self.experiment_id = _ensure_experiment(self.client, uri, experiment, storage)

    def ensure_run(self, opened: Record, replay: bool = False) -> str:
        """The id of the run that ``opened`` (an ``open`` record) is for: by id, else by key, else a new one.

        It becomes RUNNING, unless this is the ``replay`` of what a dead process left: others may have ended it since.
        """
        run_id = self._find_run(opened.get("resume"), opened["key"])
        if run_id is not None:
            if replay:
                return run_id
            self.client.update_run(run_id, status="RUNNING", name=opened["name"])
            self.client.set_tag(run_id, OWNER_TAG, opened["owner"])
            return run_id
        tags = {KEY_TAG: opened["key"], OWNER_TAG: opened["owner"], "mlflow.user": _user(), "mlflow.source.name": "hip"}
        if opened.get("parent"):
            tags["mlflow.parentRunId"] = opened["parent"]
        run = self.client.create_run(self.experiment_id, start_time=opened["ms"], tags=tags, run_name=opened["name"])
        return str(run.info.run_id)

    def _find_run(self, run_id: str | None, key: str) -> str | None:
        from mlflow.exceptions import MlflowException

        if run_id:
            try:
                run = self.client.get_run(run_id)
            except MlflowException as error:
                if not refused(error):
                    raise
                logger.warning("tracking run %s is gone; looking for the run with the same key", run_id)
            else:
                if run.info.lifecycle_stage == "active":
                    return run_id
        query = f"tags.`{KEY_TAG}` = '{key}'"
        found = self.client.search_runs([self.experiment_id], query, max_results=1, order_by=["start_time DESC"])
        return str(found[0].info.run_id) if found else None

    def store(self, run_id: str, records: list[Record]) -> int:
        """Store the metrics, parameters and tags among ``records``; returns how many MLflow refused for good."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [
            Metric(key, value, record["ms"], record["step"])
            for record in records
            if record["kind"] == "metrics"
            for key, value in record["values"].items()
        ]
        tags = {key: value for record in records if record["kind"] == "tags" for key, value in record["values"].items()}
        params = self._new_params(run_id, records, tags)
        dropped = 0
        for start in range(0, len(metrics), _METRICS_PER_BATCH):
            dropped += self._log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_BATCH])
        for name, entries in (
            ("params", [Param(key, value) for key, value in params.items()]),
            ("tags", [RunTag(key, value) for key, value in tags.items()]),
        ):
            for start in range(0, len(entries), _ENTRIES_PER_BATCH):
                dropped += self._log_batch(run_id, **{name: entries[start : start + _ENTRIES_PER_BATCH]})
        return dropped

    def _new_params(self, run_id: str, records: list[Record], tags: dict[str, str]) -> dict[str, str]:
        """Parameters not logged yet; MLflow cannot change one, so another value becomes a ``changed.`` tag."""
        wanted = {k: v for record in records if record["kind"] == "params" for k, v in record["values"].items()}
        if not wanted:
            return {}
        present = self.client.get_run(run_id).data.params
        for key, value in wanted.items():
            if key in present and present[key] != value:
                tags[f"changed.{key}"[:250]] = value
        return {key: value for key, value in wanted.items() if key not in present}

    def _log_batch(self, run_id: str, **entries: list[Any]) -> int:
        """Log one batch; when MLflow refuses it, log its entries one by one and count those refused."""
        if not self._attempt(self.client.log_batch, run_id, **entries):
            return 0
        [(name, values)] = entries.items()
        return sum(self._attempt(self.client.log_batch, run_id, **{name: [value]}) for value in values)

    def store_artifact(self, run_id: str, record: Record, path: Path) -> int:
        """Store the copy at ``path`` of an artifact, and delete it; 1 when MLflow refused it for good."""
        if not path.exists():  # sent before
            return 0
        refusals = self._attempt(self.client.log_artifact, run_id, str(path), record["folder"])
        path.unlink()
        return refusals

    def finish(self, run_id: str, records: list[Record]) -> None:
        """End the run if ``records`` say so."""
        for record in records:
            if record["kind"] == "finish":
                self.client.set_terminated(run_id, record["status"], end_time=record["ms"])

    def _attempt(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> int:
        """Run ``call``; 0 when it worked, 1 when MLflow refused its content for good; an outage is raised."""
        from mlflow.exceptions import MlflowException

        try:
            call(*arguments, **named)
        except MlflowException as error:
            if not refused(error):
                raise
            logger.warning("MLflow refused a record: %s", error.message)
            return 1
        return 0


def refused(error: Any) -> bool:
    """Whether MLflow rejected the request itself, so that sending it again cannot help."""
    return error.get_http_status_code() in (400, 404, 409)


@contextlib.contextmanager
def creation_lock(uri: str) -> Iterator[None]:
    """Let one process at a time create a SQLite store: two at once break its migrations."""
    if not uri.startswith("sqlite"):
        yield
        return
    database = Path(uri.partition("///")[2].partition("?")[0])
    with exclusive(database.with_name(f".{database.name}.lock")):
        yield


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file at ``path`` against every other process (and thread) of this machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _ensure_experiment(client: Any, uri: str, name: str, storage: str) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=_artifact_location(uri, name, storage)))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another process was faster
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def _artifact_location(uri: str, name: str, storage: str) -> str | None:
    """Beside the runs in ``storage``, without its query and secrets; a server decides for itself."""
    if uri.startswith("http") or uri.startswith("databricks"):
        return None
    folder = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
    base = str(local_path(storage)) if is_local(storage) else redact(storage).partition("?")[0]
    return join(base, "mlflow-artifacts", folder)


def _endpoint_for_artifacts(storage: str) -> dict[str, str]:
    """MLflow's word for the ``endpoint_override`` of an ``s3://`` location: its artifacts are to go there too."""
    parts = urlsplit(storage)
    given = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if parts.scheme != "s3" or "endpoint_override" not in given:
        return {}
    endpoint = given["endpoint_override"]
    return {"MLFLOW_S3_ENDPOINT_URL": endpoint if "://" in endpoint else f"{given.get('scheme', 'https')}://{endpoint}"}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
