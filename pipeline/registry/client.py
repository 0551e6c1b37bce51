"""A connection to the model registry, and its answers in our words."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from pipeline.errors import InfrastructureError, UserError, nearest
from pipeline.scratch import ScratchFolder
from pipeline.storage import redact
from pipeline.tracking.options import TrackingOptions, resolve_uri
from pipeline.tracking.server import Server


def connect(tracking: TrackingOptions, storage: str, create: bool = False) -> Server:
    """The tracking store, which holds the registry too; one that is not there is made only with ``create``.

    Raises:
        UserError: the tracking options cannot work, or there is no store.
        InfrastructureError: the server cannot be reached.
    """
    uri = resolve_uri(tracking, storage)
    file = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    if uri.startswith("sqlite:///") and not create and not file.exists():
        raise UserError(
            f"nothing was ever run or registered at {redact(uri)}: there is no such file; "
            f"give storage=<folder of the runs> (now {redact(storage)}) or tracking.uri=…"
        )
    try:
        return Server(uri, tracking.experiment, storage)
    except Exception as error:
        raise unreachable(uri, error) from error


def unreachable(uri: str, error: Exception) -> InfrastructureError:
    """The error for a registry that does not answer."""
    first_line = (redact(str(error)).splitlines() or [""])[0]
    return InfrastructureError(f"the model registry at {redact(uri)} cannot be reached: {first_line[:300]}")


def version_by_reference(client: Any, name: str, reference: str) -> Any:
    """The model version that an alias or a number stands for.

    Raises:
        UserError: no such model, alias or version; the message names the nearest one.
    """
    from mlflow.exceptions import MlflowException

    try:
        if reference.isdigit():
            return client.get_model_version(name, reference)
        return client.get_model_version_by_alias(name, reference)
    except MlflowException as error:
        if error.get_http_status_code() not in (400, 404):
            raise InfrastructureError(f"the model registry failed: {redact(error.message)}") from error
    models = {model.name: model for model in client.search_registered_models()}
    if name not in models:
        known = nearest(name, models) if models else "no model is registered yet; hip register makes one"
        raise UserError(f"no registered model is called {name!r}; {known}")
    versions = [str(version.version) for version in client.search_model_versions(f"name='{name}'")]
    choices = [*client.get_registered_model(name).aliases, *versions]
    what = "version" if reference.isdigit() else "alias"
    raise UserError(f"model {name!r} has no {what} {reference!r}; {nearest(reference, choices)}")


def local_artifacts(uri: str, source: str, cached: Path) -> Path:
    """A model's artifacts: themselves on this machine, else a copy at ``cached``.

    Raises:
        InfrastructureError: their store does not give them.
    """
    from mlflow.artifacts import download_artifacts

    if source.startswith(("/", "file:")):
        return Path("/" + source.removeprefix("file:").lstrip("/"))
    if cached.is_dir():
        return cached
    cached.parent.mkdir(parents=True, exist_ok=True)
    with ScratchFolder("download", cached.parent) as folder:
        try:
            copy = Path(download_artifacts(artifact_uri=source, dst_path=str(folder), tracking_uri=uri))
        except Exception as error:  # of MLflow, of the artifact store's client, of the network
            what = redact(f"{type(error).__name__}: {error}")
            raise InfrastructureError(f"the model at {redact(source)} cannot be fetched: {what}") from error
        with contextlib.suppress(OSError):  # another process was faster; its copy is as good
            copy.replace(cached)
    return cached
