"""From whatever a user calls a model to the local folder with its weights and config."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, nearest
from pipeline.registry.client import connect, local_artifacts, version_by_reference
from pipeline.registry.safety import refuse_foreign
from pipeline.storage import (
    exists,
    is_local,
    join,
    list_files,
    local_path,
    name_of,
    parent_of,
    read_bytes,
    redact,
    resolve,
    write_atomic,
)
from pipeline.tracking.options import TrackingOptions
from pipeline.train.checkpoint_files import AVERAGE

WEIGHTS, CONFIG = "model.safetensors", "config.json"
PACKAGED = "artifacts/model"
"""Where a packaged MLflow model keeps the ``save_pretrained`` folder."""
RUN_FOLDER_TAG = "hip.run_folder"
_REGISTERED = re.compile(r"models:/+(?P<name>[^/@]+)(?:@(?P<alias>[^/]+)|/(?P<version>\d+))$")


def resolve_model(
    spec: str, storage: str = "hip-runs", tracking: TrackingOptions | None = None, key: str = "model"
) -> Path:
    """The local folder with ``model.safetensors`` and ``config.json`` for a model however named.

    ``spec`` is a model folder, a checkpoint, a run folder (its last checkpoint), a packaged MLflow model, the name of a
    run below ``storage`` (``<name>/average``: its averaged weights), ``runs:/<id>`` or ``models:/<name>@<alias>`` (or
    ``/<version>``). Remote ones are copied to a local cache. ``key`` is the setting that named it, for messages.

    Raises:
        UserError: nothing is there; the message names what is near.
        InfrastructureError: the registry or the store does not answer.
    """
    tracking = tracking or TrackingOptions()
    if spec.startswith("models:/"):
        return resolve_registered(spec, storage, tracking)
    if spec.startswith("runs:/"):
        return _resolve_run_id(spec, storage, tracking, key)
    for location in (spec, join(storage, spec)) if "://" not in spec else (spec,):
        if exists(location):
            return _local(_model_folder(location, spec, key))
        if name_of(location) == AVERAGE and exists(parent_of(location)):
            return _local(_average_of(_model_folder(parent_of(location), spec, key), spec, key))
    raise UserError(f"{key}={redact(spec)}: no such file, run or registered model; {_suggest(spec, storage)}")


def resolve_registered(spec: str, storage: str, tracking: TrackingOptions) -> Path:
    """The ``save_pretrained`` folder inside a registered model.

    Raises:
        UserError: no such model or version, or one that ``hip register`` did not make.
    """
    package, version = fetch_registered(spec, storage, tracking)
    folder = package / PACKAGED
    if not (folder / WEIGHTS).is_file():
        refuse_foreign(package, spec, trust=False)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{spec} (version {version.version}) has no {CONFIG}; its package at {package} is damaged")
    return folder


def fetch_registered(spec: str, storage: str, tracking: TrackingOptions) -> tuple[Path, Any]:
    """The packaged model that ``spec`` names, on this machine, and its registry entry; nothing of it is loaded.

    Raises:
        UserError: a malformed name, or no such model or version.
    """
    match = _REGISTERED.match(spec)
    if match is None:
        raise UserError(f"{spec} is not how a registered model is named; write models:/name@alias or models:/name/3")
    server = connect(tracking, storage)
    version = version_by_reference(server.client, match["name"], match["alias"] or match["version"])
    source = server.client.get_model_version_download_uri(version.name, version.version)
    key = hashlib.sha256(f"{redact(server.uri)} {source} {version.creation_timestamp}".encode()).hexdigest()[:16]
    package = local_artifacts(server.uri, source, _cache() / "registered" / key)
    if not (package / "MLmodel").is_file():
        raise UserError(
            f"{spec} (version {version.version}) points at {redact(source)}, where there is no model any more"
        )
    return package, version


def latest_checkpoint_folder(run_folder: str) -> str | None:
    """The newest whole checkpoint below a run folder (both files there), or none."""
    names = {info.path.rsplit("/", 2)[-2] for info in list_files(join(run_folder, "checkpoints"), recursive=True)}
    for name in sorted((name for name in names if name.startswith("step_")), reverse=True):
        folder = join(run_folder, "checkpoints", name)
        if exists(join(folder, WEIGHTS)) and exists(join(folder, CONFIG)):
            return folder
    return None


def _model_folder(location: str, spec: str, key: str) -> str:
    """The folder at or below ``location`` that holds the weights.

    Raises:
        UserError: there is none.
    """
    for folder in (location, join(location, "model"), join(location, PACKAGED)):
        if exists(join(folder, WEIGHTS)):
            if not exists(join(folder, CONFIG)):
                raise UserError(f"{key}={redact(spec)}: {redact(folder)} has {WEIGHTS} but no {CONFIG}")
            return folder
    if exists(join(location, "MLmodel")):
        refuse_foreign(local_path(location), spec, trust=False)
    checkpoint = latest_checkpoint_folder(location)
    if checkpoint is not None:
        return checkpoint
    if exists(join(location, "run.json")):
        status = json.loads(read_bytes(join(location, "run.json"))).get("status", "unknown")
        raise UserError(f"run {redact(spec)} has no checkpoint yet (status {status}); let it reach its first one")
    raise UserError(f"{key}={redact(spec)}: {redact(location)} holds neither {WEIGHTS} nor a run's checkpoints")


def _average_of(checkpoint: str, spec: str, key: str) -> str:
    folder = join(checkpoint, AVERAGE)
    if not exists(join(folder, WEIGHTS)):
        raise UserError(f"{key}={redact(spec)}: {redact(checkpoint)} holds no average; optim.ema_decay makes one")
    return folder


def _resolve_run_id(spec: str, storage: str, tracking: TrackingOptions, key: str) -> Path:
    from mlflow.exceptions import MlflowException

    run_id = spec.removeprefix("runs:/").partition("/")[0]
    for name, described in _runs(storage).items():
        if described.get("tracking_run_id") == run_id:
            return _local(_model_folder(join(storage, name), spec, key))
    server = connect(tracking, storage)
    try:
        run = server.client.get_run(run_id)
    except MlflowException as error:
        raise UserError(f"{spec}: the tracking store has no run {run_id!r}") from error
    folder = run.data.tags.get(RUN_FOLDER_TAG)
    if folder is None or not exists(folder):
        raise UserError(
            f"{spec}: run {run.info.run_name!r} has no checkpoint that can be found; is storage={storage} right?"
        )
    return _local(_model_folder(folder, spec, key))


def _local(folder: str) -> Path:
    """``folder`` itself, or a copy of a remote one in the cache: below the weights' size and time, named as it was."""
    if is_local(folder):
        return local_path(folder)
    system, path = resolve(folder)
    files = [info for info in list_files(folder) if info.base_name in (WEIGHTS, CONFIG, "head.safetensors")]
    stamp = [(info.base_name, info.size, str(info.mtime)) for info in files]
    key = hashlib.sha256(f"{redact(folder)} {stamp}".encode()).hexdigest()[:16]
    target = Path(_cache(), "fetched", key, *path.split("/")[-4:])  # reports call a model by these
    for info in sorted(files, key=lambda info: info.base_name == CONFIG):  # the config last: it marks a whole copy
        if not (target / info.base_name).exists():
            with system.open_input_stream(info.path) as stream:
                write_atomic(str(target / info.base_name), stream.read())
    return target


def _suggest(spec: str, storage: str) -> str:
    runs = list(_runs(storage))
    if not runs:
        return f"storage={redact(storage)} holds no runs (give storage=…, a folder, or models:/name@alias)"
    return nearest(name_of(spec), runs)


def _runs(storage: str) -> dict[str, dict[str, Any]]:
    """The runs below ``storage`` by name, with what their run.json says."""
    system, path = resolve(storage)
    from pyarrow import fs

    found = {}
    for info in system.get_file_info(fs.FileSelector(path, allow_not_found=True)):
        described = join(storage, info.base_name, "run.json")
        if info.type == fs.FileType.Directory and exists(described):
            try:
                found[info.base_name] = json.loads(read_bytes(described))
            except ValueError:
                continue
    return found


def _cache() -> Path:
    return Path.home() / ".cache" / "hip" / "models"
