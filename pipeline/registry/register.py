"""Package a trained model and add it to the registry as a new version: all of it, or nothing."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hip_model.export import weights_digest
from pipeline.errors import InfrastructureError, UserError
from pipeline.registry.card import CardFacts, model_card
from pipeline.registry.client import connect
from pipeline.registry.evaluations import EVALUATIONS_TAG, Evaluation, find_evaluations
from pipeline.registry.inference import Predictor
from pipeline.registry.options import RegisterOptions
from pipeline.registry.package import package_model
from pipeline.registry.resolve import resolve_model
from pipeline.storage import exists, join, read_bytes, redact
from pipeline.tracking.flatten import clean_tags
from pipeline.tracking.server import Server

logger = logging.getLogger(__name__)

FINGERPRINT_TAG = "hip.data_fingerprint"
WEIGHTS_TAG = "hip.weights"
_COST_METRICS = ("seconds", "hours", "flops", "examples_consumed", "gpu_hours", "core_hours")


@dataclass(frozen=True)
class RegisteredVersion:
    """A new version in the registry."""

    name: str
    version: str
    uri: str  # how to name it: models:/<name>@<alias>, or /<version> without an alias
    run_id: str
    package: str  # where its files are


def register(options: RegisterOptions) -> RegisteredVersion:
    """Package the model, check that it loads, and create the version with its tags and alias.

    Raises:
        UserError: nothing to register under that name, or a model that cannot be served.
        InfrastructureError: the registry does not answer.
    """
    folder = resolve_model(options.run, options.storage, options.tracking, key="run")
    if json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architecture") == "timm":
        raise UserError(f"run={options.run} is a baseline of timm; only models of this project are registered")
    server = connect(options.tracking, options.storage, create=True)
    weights = weights_digest(folder)
    evaluations = find_evaluations(options.storage, weights)
    predictor = Predictor.load(folder, device="cpu")
    described = _run_description(folder, options.storage, predictor.loaded.metadata.get("run_name"))
    run_id = _source_run(server.client, described.get("tracking_run_id"))
    training = _training_facts(server.client, described, run_id)
    facts = CardFacts(options.name, options.description, options.licence, options.run, evaluations, training)
    card = model_card(predictor, facts)
    with tempfile.TemporaryDirectory(prefix="hip_register_") as temporary:
        package = Path(temporary) / "package"
        package_model(folder, package, card, options.pytorch)
        tags = clean_tags(
            {
                FINGERPRINT_TAG: predictor.loaded.metadata["data"].get("fingerprint", "unknown"),
                WEIGHTS_TAG: weights,
                **{f"hip.training.{name}": value for name, value in training.items()},
            }
        )
        tags[EVALUATIONS_TAG] = json.dumps([evaluation.to_dict() for evaluation in evaluations])
        run_id = run_id or _own_run(server, options.name)
        return _publish(server, options, package, run_id, tags | _metric_tags(evaluations), card)


def _publish(
    server: Server, options: RegisterOptions, package: Path, run_id: str, tags: dict[str, str], card: str
) -> RegisteredVersion:
    """Upload first, then create the version, then move the alias: a failure on the way leaves no half model."""
    client = server.client
    with _whole_or_nothing(client, server.experiment_id, options.name, run_id) as model:
        client.log_model_artifacts(model.model_id, str(package))
        client.finalize_logged_model(model.model_id, "READY")
        _ensure_registered(client, options.name)
        version = client.create_model_version(
            options.name,
            source=model.artifact_location,
            run_id=run_id,
            tags=tags,
            description=card,
            model_id=model.model_id,
        )
        if options.alias is not None:
            client.set_registered_model_alias(options.name, options.alias, version.version)
    reference = f"@{options.alias}" if options.alias else f"/{version.version}"
    logger.info("registered %s version %s", options.name, version.version)
    return RegisteredVersion(
        options.name, str(version.version), f"models:/{options.name}{reference}", run_id, model.artifact_location
    )


@contextlib.contextmanager
def _whole_or_nothing(client: Any, experiment_id: str, name: str, run_id: str) -> Iterator[Any]:
    from mlflow.exceptions import MlflowException

    model = client.create_logged_model(experiment_id, name=name, source_run_id=run_id, model_type="hip")
    try:
        yield model
    except BaseException as error:
        with contextlib.suppress(Exception):
            client.finalize_logged_model(model.model_id, "FAILED")
            client.delete_logged_model(model.model_id)
        if isinstance(error, Exception):  # of MLflow, of the artifact store's client, of the network
            what = error.message if isinstance(error, MlflowException) else f"{type(error).__name__}: {error}"
            raise InfrastructureError(f"registering {name} failed, nothing was registered: {redact(what)}") from error
        raise


def _ensure_registered(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _source_run(client: Any, run_id: str | None) -> str | None:
    """The tracking run that trained the model, if it is known and still there."""
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
    try:
        return str(client.get_run(run_id).info.run_id)
    except MlflowException:
        return None


def _own_run(server: Server, name: str) -> str:
    """A run to hang the model on when the one that trained it is not known."""
    run = server.client.create_run(server.experiment_id, tags={"hip.kind": "register"}, run_name=f"register-{name}")
    server.client.set_terminated(run.info.run_id)
    return str(run.info.run_id)


def _run_description(folder: Path, storage: str, run_name: str | None) -> dict[str, Any]:
    """What run.json says about the run that trained a model: beside its checkpoints, or found by the run's name."""
    places = [str(parent) for parent in (folder, *folder.parents[:3])]
    places += [join(storage, run_name)] if run_name else []
    for place in places:
        if exists(join(place, "run.json")):
            with contextlib.suppress(ValueError):
                return dict(json.loads(read_bytes(join(place, "run.json"))))
    return {}


def _training_facts(client: Any, described: dict[str, Any], run_id: str | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        name: described[name] for name in ("name", "examples_consumed", "step", "code_version") if name in described
    }
    if run_id is None:
        return facts
    run = client.get_run(run_id)
    facts["run"] = run.info.run_name
    if run.info.end_time and run.info.start_time:
        facts["hours"] = round((run.info.end_time - run.info.start_time) / 3_600_000, 4)
    costs = {name: value for name, value in run.data.metrics.items() if name.rpartition("/")[2] in _COST_METRICS}
    return facts | {name.replace("/", "."): value for name, value in costs.items()}


def _metric_tags(evaluations: list[Evaluation]) -> dict[str, str]:
    """One readable tag a metric, for the registry's own page: ``0.91 [0.88, 0.94]``."""
    return {f"{e.task}.{name}": str(estimate) for e in evaluations for name, estimate in e.metrics.items()}
