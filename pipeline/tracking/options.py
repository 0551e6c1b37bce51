"""Where runs are tracked."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError, nearest
from pipeline.storage import is_local, local_path, redact

_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")


@dataclass(frozen=True)
class TrackingOptions:
    """How runs are tracked with MLflow."""

    uri: str | None = None  # MLflow store; none: MLFLOW_TRACKING_URI, else a SQLite file in the storage folder
    experiment: str = "hip"  # MLflow experiment that holds the runs
    enabled: bool = True  # off: nothing is tracked
    system_metrics: bool = True  # sample processor and memory use of the tracked process

    def __post_init__(self) -> None:
        """Refuse a store that MLflow 3 no longer opens."""
        if not self.experiment.strip():
            raise UserError("tracking.experiment is empty; give a name, such as tracking.experiment=hip")
        if self.uri is not None:
            check_uri(self.uri)


def check_uri(uri: str) -> None:
    """Refuse a tracking URI that cannot work.

    Raises:
        UserError: a file store, or a scheme that MLflow does not know.
    """
    scheme = uri.partition(":")[0].partition("+")[0].lower() if ":" in uri else ""
    if scheme in ("", "file"):
        path = uri.removeprefix("file:").removeprefix("//") or "runs"
        raise UserError(
            f"tracking.uri={redact(uri)}: MLflow no longer keeps runs in plain folders; "
            f"use tracking.uri=sqlite:///{Path(path).absolute() / 'mlflow.db'} or a server, http://host:5000"
        )
    if scheme not in _SCHEMES:
        raise UserError(f"tracking.uri={redact(uri)}: unknown scheme {scheme!r}; {nearest(scheme, _SCHEMES)}")


def resolve_uri(options: TrackingOptions, storage: str) -> str:
    """The MLflow URI to use: the option, ``MLFLOW_TRACKING_URI``, or SQLite inside a local ``storage``.

    Raises:
        UserError: the storage is remote and no URI was given, or the URI cannot work.
    """
    uri = options.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        check_uri(uri)
        # Trials and workers run in folders of their own, where a relative file would be another one.
        return re.sub(r"^(sqlite[^:]*:///)(?!/|:)", lambda begin: f"{begin[0]}{Path.cwd()}/", uri)
    if not is_local(storage):
        raise UserError(
            f"storage={redact(storage)} is remote, so there is no file for MLflow; "
            "give tracking.uri=http://host:5000 (or tracking.enabled=false)"
        )
    return f"sqlite:///{local_path(storage) / 'mlflow.db'}"
