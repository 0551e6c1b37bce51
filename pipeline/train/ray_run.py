"""Starts Ray Train's workers and waits for them."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from pipeline.errors import InfrastructureError
from pipeline.host_memory import environment_of_cpu_workers
from pipeline.storage import join
from pipeline.tracking.client import Tracker
from pipeline.train.checks import check_cluster
from pipeline.train.outcome import Outcome
from pipeline.train.progress import Progress, Reader, open_mailbox
from pipeline.train.resume import RunRecord, resume_hint

logger = logging.getLogger(__name__)

# Starts of a worker group that may fail, half a minute each where nodes are missing; Ray's default is to try for ever.
_STARTS_TO_TRY = 60


class Job(Protocol):
    """What workers are told, a dataclass that travels to other machines."""

    @property
    def options(self) -> Any:
        """A verb's, with ``scale``, ``ray`` and ``storage``."""

    @property
    def run_folder(self) -> str:
        """Where checkpoints are."""

    @property
    def record(self) -> RunRecord:
        """The run."""

    @property
    def mailbox(self) -> Any:
        """Where workers leave their news."""

    @property
    def collective_timeout_seconds(self) -> float:
        """How long workers wait for each other."""


_AnyJob = TypeVar("_AnyJob", bound=Job)


def run_with_ray(job: _AnyJob, tracker: Tracker, train: Callable[[_AnyJob], None]) -> Outcome | None:
    """Start workers that ``train(job)``, show what they say, and return how they ended; none if they did not say.

    Raises:
        UserError: the cluster is too small.
        InfrastructureError: Ray does not start, or the workers failed more often than allowed.
    """
    import ray

    from pipeline.ray_session import ray_session

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
    with ray_session(job.options.ray):
        check_cluster(job.options.scale, ray.cluster_resources())
        failures: list[BaseException] = []
        job = replace(job, mailbox=open_mailbox())  # type: ignore[type-var]
        with Progress() as progress, closing(Reader(job.mailbox, progress.show)) as news:
            thread = threading.Thread(target=_fit, args=(job, train, failures), name="ray-train", daemon=True)
            thread.start()
            logger.info("starting %d worker(s) with Ray", job.options.scale.workers)
            if job.record.tracking_run_id is None:  # reaching the tracking server takes as long as starting workers
                job.record.tracking_run_id = tracker.run_id
                job.mailbox.tell_run_id.remote(job.record.tracking_run_id)
                job.record.write(job.run_folder)
            while thread.is_alive():  # in pieces, so that signals are handled
                thread.join(0.2)
                news.poll()
            outcome = Outcome.read(job.run_folder, job.record.attempts, job.mailbox)
        if failures and outcome is None:
            raise InfrastructureError(
                f"training stopped after {job.options.scale.max_failures} restarts: {_last_lines(failures[0])}; "
                + resume_hint(job.record)
            ) from failures[0]
        return outcome


def _last_lines(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " / ".join(lines[-3:])[-600:] or type(error).__name__


def _fit(job: _AnyJob, train: Callable[[_AnyJob], None], failures: list[BaseException]) -> None:
    """Run Ray's trainer to its end; in a thread, because it offers no way to end it in order."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    options, scale = job.options, job.options.scale
    resources: dict[str, float] = {"CPU": scale.cpus_per_worker}
    if scale.gpus_per_worker:
        resources["GPU"] = scale.gpus_per_worker
    workers: Any = scale.workers if scale.min_workers is None else (scale.min_workers, scale.workers)
    try:
        TorchTrainer(
            train,  # type: ignore[arg-type]  # a job is no dictionary
            train_loop_config=job,
            torch_config=TorchConfig(
                backend="nccl" if scale.gpus_per_worker else "gloo",
                timeout_s=int(job.collective_timeout_seconds),
            ),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=bool(scale.gpus_per_worker),
                resources_per_worker=resources,
                placement_strategy=scale.placement,
            ),
            run_config=RunConfig(
                name=f"{job.record.name}-{job.record.attempts}",
                storage_path=join(options.storage, ".ray"),
                worker_runtime_env={"env_vars": {} if scale.gpus_per_worker else environment_of_cpu_workers()},
                failure_config=FailureConfig(
                    max_failures=scale.max_failures,
                    controller_failure_limit=-1 if scale.max_failures == -1 else _STARTS_TO_TRY,
                ),
            ),
        ).fit()
    except BaseException as error:
        failures.append(error)
