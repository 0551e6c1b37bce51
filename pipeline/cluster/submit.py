"""``hip submit``: check everything here, look at the cluster, then send the verb as a job that can be sent again."""

from __future__ import annotations

import logging
import re
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cluster.resources import Demand, check_capacity, demand_of
from pipeline.cluster.submit_client import ENDED, JobsClient
from pipeline.cluster.submit_code import CodeSet, choose_code, stage_code
from pipeline.cluster.submit_options import SubmitOptions
from pipeline.cluster.submit_preflight import check_cluster_python, check_ray_version, look_at_cluster
from pipeline.cluster.submit_secrets import check_overrides
from pipeline.cluster.submit_verbs import check_places, submission_base, verb_options
from pipeline.errors import UserError, nearest
from pipeline.storage import is_local, redact

logger = logging.getLogger(__name__)

_ATTEMPT = re.compile(r"(?P<base>.+)-(?P<attempt>[0-9]{1,4})")
# Seconds between the signal of a stop and the kill: time to save a checkpoint.
_STOP_SECONDS = 120


@dataclass(frozen=True)
class Submission:
    """A verb that passed every check that needs no cluster."""

    verb: str
    overrides: tuple[str, ...]
    base: str  # submission id without the number of the attempt
    demand: Demand
    local_places: tuple[str, ...]

    @property
    def entrypoint(self) -> str:
        """The command on the cluster; running it again continues the same run."""
        return shlex.join(["python", "-m", "jobs", self.verb, *self.overrides])


@dataclass(frozen=True)
class SentJob:
    """A job on its way."""

    submission_id: str
    url: str  # its page in the cluster's dashboard
    entrypoint: str
    client: JobsClient


def prepare(options: SubmitOptions, overrides: list[str]) -> Submission:
    """Check the verb and its settings here.

    Raises:
        UserError: as the verb itself would, a credential in a setting, or a place that the cluster cannot see.
    """
    check_overrides(overrides)
    sent = verb_options(options.job, overrides)
    verb = str(options.job)
    _check_tracking(options, sent)
    return Submission(
        verb,
        tuple(overrides),
        submission_base(verb, sent),
        demand_of(verb, sent, options.driver.cpus, options.driver.gpus),
        tuple(check_places(verb, sent)),
    )


def _check_tracking(options: SubmitOptions, sent: Any) -> None:
    """Remote storage holds no MLflow database, so the cluster has to know a server."""
    tracking, storage = getattr(sent, "tracking", None), getattr(sent, "storage", None)
    if tracking is None or storage is None or not tracking.enabled or tracking.uri is not None or is_local(storage):
        return
    if "MLFLOW_TRACKING_URI" not in options.env and "MLFLOW_TRACKING_URI" not in options.secrets:
        raise UserError(
            f"storage={redact(storage)} is remote, so there is no file for MLflow; give tracking.uri=http://host:5000, "
            "secrets=[MLFLOW_TRACKING_URI] where the cluster's nodes know it, or tracking.enabled=false"
        )


def submit(options: SubmitOptions, overrides: list[str]) -> SentJob:
    """Send the verb to the cluster, after everything that can be wrong has been looked at; ``dry_run`` stops there.

    Raises:
        UserError: settings, code, or a cluster on which the job cannot work; the run is under way already.
        InfrastructureError: the cluster does not answer.
    """
    submission = prepare(options, overrides)
    code = choose_code(options.code) if options.code.ship else None
    client = JobsClient(options.address)
    check_ray_version(client.ray_version, client.address)
    nodes = client.nodes(options.cluster.wait_seconds)
    check_capacity(submission.demand, nodes, options.cluster.max_cpus, options.cluster.max_gpus)
    submission_id = next_id(submission.base, client.jobs(), client.address)
    found = look_at_cluster(client, options.secrets, options.cluster.wait_seconds)
    check_cluster_python(found, code is not None, options.pip)
    _tell(submission, code, len(nodes))
    if not options.dry_run:
        _send(client, submission_id, submission, options, code)
    return SentJob(submission_id, f"{client.address}/#/jobs/{submission_id}", submission.entrypoint, client)


def next_id(base: str, jobs: Mapping[str, Any], address: str) -> str:
    """The submission id of the next attempt.

    Raises:
        UserError: an attempt of this run is waiting or running.
    """
    attempts = {}
    for name, job in jobs.items():
        matched = _ATTEMPT.fullmatch(name)
        if matched is None or matched["base"] != base:
            continue
        if job.status.value not in ENDED:
            raise UserError(
                f"this run is {job.status.value.lower()} already as {name}; follow it: hip submit logs id={name} "
                f"address={address}, or end it: hip submit stop id={name} address={address}"
            )
        attempts[int(matched["attempt"])] = name
    return f"{base}-{max(attempts, default=0) + 1}"


def latest_id(wanted: str, jobs: Mapping[str, Any]) -> str:
    """The job that ``wanted`` means: an id, or the newest attempt of an id without its number.

    Raises:
        UserError: the cluster knows no such job.
    """
    if wanted in jobs:
        return wanted
    matched = [found for found in map(_ATTEMPT.fullmatch, jobs) if found is not None and found["base"] == wanted]
    if not matched:
        raise UserError(f"id={wanted}: the cluster has no such job; {nearest(wanted, jobs)}")
    return max(matched, key=lambda found: int(found["attempt"])).string


def runtime_environment(options: SubmitOptions, working_dir: Path | None) -> dict[str, Any]:
    """Ray's ``runtime_env`` of the job; nothing is installed unless ``pip`` asks for it."""
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS), **options.env}
    environment: dict[str, Any] = {"env_vars": variables}
    if working_dir is not None:
        environment["working_dir"] = str(working_dir)
    if options.pip:
        environment["pip"] = list(options.pip)
    return environment


def _send(
    client: JobsClient, submission_id: str, submission: Submission, options: SubmitOptions, code: CodeSet | None
) -> None:
    with tempfile.TemporaryDirectory(prefix="hip-code-") as folder:
        if code is not None:
            stage_code(code, Path(folder))
        client.submit(
            submission_id,
            submission.entrypoint,
            runtime_env=runtime_environment(options, Path(folder) if code is not None else None),
            metadata={"hip.verb": submission.verb, "hip.run": submission.base},
            entrypoint_num_cpus=submission.demand.driver_cpus or None,
            entrypoint_num_gpus=submission.demand.driver_gpus or None,
        )


def _tell(submission: Submission, code: CodeSet | None, nodes: int) -> None:
    if code is not None:
        logger.info("code: %d files, %.2f MiB, from %s", len(code.files), code.bytes / 2**20, code.folder)
        if code.untracked:
            logger.info("among them, new to git: %s", ", ".join(code.untracked[:10]))
    if nodes > 1:
        for place in submission.local_places:
            logger.warning("%s must be the same folder on all %d nodes (a shared file system)", place, nodes)
