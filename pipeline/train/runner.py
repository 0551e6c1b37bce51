"""``hip pretrain`` from the outside: check, plan, start workers, watch over them, tell how it ended."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace

from pipeline.errors import HipError, InfrastructureError, Interrupted
from pipeline.shards.manifest import Manifest
from pipeline.storage import join, name_of, redact
from pipeline.tracking.client import Tracker
from pipeline.tracking.runs import open_run
from pipeline.train.assembly import Job
from pipeline.train.augment import warn_of_idle_options
from pipeline.train.build import modalities_of, with_absolute_places
from pipeline.train.checkpoint import latest_checkpoint, read_state
from pipeline.train.checks import check_options
from pipeline.train.metrics import Report
from pipeline.train.modalities import manifest_as_read
from pipeline.train.options import PretrainOptions
from pipeline.train.outcome import Outcome
from pipeline.train.plan import Plan, code_version, describe, plan
from pipeline.train.ray_run import run_with_ray
from pipeline.train.resume import (
    FAILED,
    FINISHED,
    RUNNING,
    RunRecord,
    config_hash,
    open_record,
    options_to_dict,
    resume_hint,
    run_lock,
    run_name,
)
from pipeline.train.signals import remove_stop, stop_on_signals
from pipeline.train.warm_start import keep_init
from pipeline.train.worker import run_in_process, train_worker

logger = logging.getLogger(__name__)

_TRACKED = {FINISHED: "FINISHED", "interrupted": "KILLED"}


@dataclass(frozen=True)
class PretrainResult:
    """What a run left behind."""

    run_name: str
    run_folder: str
    checkpoint: str | None
    metrics: dict[str, float]
    tracking_run_id: str | None
    examples_consumed: int
    status: str = FINISHED


def run_pretraining(
    options: PretrainOptions, report: Report | None = None, parent_run_id: str | None = None
) -> PretrainResult:
    """Pretrain, or continue the run of the same name.

    ``report(step, metrics)`` is called by rank 0 at metric intervals, on its machine, and returns true to end the run
    there. ``parent_run_id`` nests the tracked run.

    Raises:
        UserError: options that cannot work, another run of this name, or one that is being trained already.
        TrainingDiverged: the guards gave up.
        Interrupted: stopped on request, state saved.
        InfrastructureError: workers failed more often than allowed.
    """
    options = with_absolute_places(options)
    check_options(options)
    manifest = manifest_as_read(options)
    planned = plan(options, manifest)
    if options.dry_run:
        print(describe(planned))
        return PretrainResult(planned.run_name, planned.run_folder, None, {}, None, 0, "planned")
    warn_of_idle_options(options.augment, modalities_of(manifest))
    with run_lock(planned.run_folder):
        return _train_to_the_end(options, manifest, planned, report, parent_run_id)


def _train_to_the_end(
    options: PretrainOptions, manifest: Manifest, planned: Plan, report: Report | None, parent_run_id: str | None
) -> PretrainResult:
    """The run itself, which no other process trains meanwhile."""
    record = prepare_record(options, manifest, planned.run_folder)
    done = _finished_already(record, planned.run_folder, planned.total_steps)
    if done is not None:
        return done
    logger.info("%s", describe(planned))
    if options.init is not None and latest_checkpoint(planned.run_folder) is None:
        keep_init(options.init, planned.run_folder)
    tracker = _open_tracker(options, record, planned.run_folder, parent_run_id)
    record.status, record.attempts, record.message = RUNNING, record.attempts + 1, ""
    record.write(planned.run_folder)
    remove_stop(planned.run_folder)
    job = Job(options, planned.run_folder, record, manifest.modalities, report if options.scale.workers else None)
    try:
        outcome = _run(job, report, tracker)
        if outcome is None:
            raise InfrastructureError(f"the workers of {record.name} ended without saying how; {resume_hint(record)}")
        return _close(job, outcome, tracker)
    except BaseException as error:
        if record.status == RUNNING:
            _close_failed(job, error, tracker)
        raise


def train_in_process(
    options: PretrainOptions, report: Report | None, parent_run_id: str | None = None
) -> PretrainResult:
    """The same run in this process with one worker and without Ray, for a trial of a search."""
    return run_pretraining(replace(options, scale=replace(options.scale, workers=0)), report, parent_run_id)


def prepare_record(options: PretrainOptions, manifest: Manifest, run_folder: str) -> RunRecord:
    """The run's record, new or continued."""
    values = options_to_dict(options)
    hashed = config_hash(values)
    name = run_name(options, hashed, manifest.fingerprint)
    fresh = RunRecord(name, RUNNING, values, hashed, manifest.fingerprint, code_version())
    return open_record(options, run_folder, fresh)


def _finished_already(record: RunRecord, run_folder: str, total_steps: int) -> PretrainResult | None:
    folder = latest_checkpoint(run_folder)
    if record.status != FINISHED or folder is None or read_state(folder).step < total_steps:
        return None
    logger.info("run %s is finished already: %s", record.name, redact(folder))
    return _result(record, run_folder)


def _result(record: RunRecord, run_folder: str) -> PretrainResult:
    """The record without its place: that may have moved, and is written without credentials."""
    name = name_of(record.checkpoint) if record.checkpoint else None
    return PretrainResult(
        record.name,
        run_folder,
        join(run_folder, "checkpoints", name) if name else None,
        record.metrics,
        record.tracking_run_id,
        record.examples_consumed,
        record.status,
    )


def _open_tracker(options: PretrainOptions, record: RunRecord, run_folder: str, parent_run_id: str | None) -> Tracker:
    tags = {
        "hip.kind": "pretrain",
        "hip.code_version": record.code_version,
        "hip.config_hash": record.config_hash,
        "hip.fingerprint": record.fingerprint,
        "hip.run_folder": run_folder,
        **({"hip.init": redact(options.init)} if options.init is not None else {}),
    }
    quiet = replace(options.tracking, system_metrics=False)  # of the workers, not of this process
    return open_run(
        quiet,
        options.storage,
        record.name,
        key=record.key,
        params=record.options,
        tags=tags,
        parent_run_id=parent_run_id,
        resume_run_id=record.tracking_run_id,
    )


def _run(job: Job, report: Report | None, tracker: Tracker) -> Outcome | None:
    stop = threading.Event()
    with stop_on_signals(job.run_folder, stop):
        if job.options.scale.workers == 0:
            # Known before a worker opens it: two openings of a key at once would make two runs.
            job.record.tracking_run_id = tracker.run_id or job.record.tracking_run_id
            return run_in_process(job, stop, report)
        return run_with_ray(job, tracker, train_worker)


def _close(job: Job, outcome: Outcome, tracker: Tracker) -> PretrainResult:
    record = job.record
    record.status, record.message = outcome.status, outcome.message
    record.step, record.examples_consumed = outcome.step, outcome.examples_consumed
    record.checkpoint, record.metrics = outcome.checkpoint or record.checkpoint, outcome.metrics or {}
    _finish(job, tracker, _TRACKED.get(outcome.status, "FAILED"))
    if outcome.error == "Interrupted":
        raise Interrupted(f"{outcome.message}; {resume_hint(record)}")
    outcome.raise_error()
    return _result(record, job.run_folder)


def _close_failed(job: Job, error: BaseException, tracker: Tracker) -> None:
    """Leave a true status behind, whatever happened."""
    record = job.record
    stopped = isinstance(error, KeyboardInterrupt | Interrupted)
    outcome = Outcome.read(job.run_folder, record.attempts)
    record.status = outcome.status if outcome is not None else "interrupted" if stopped else FAILED
    record.message = str(error)[:2000] if isinstance(error, HipError) else f"{type(error).__name__}: {error}"[:2000]
    try:
        _finish(job, tracker, "KILLED" if stopped else "FAILED")
    except (HipError, OSError) as second:  # on a full disk the first error says more
        logger.error("run.json could not be written: %s", second)


def _finish(job: Job, tracker: Tracker, status: str) -> None:
    job.record.tracking_run_id = tracker.run_id or job.record.tracking_run_id
    tracker.finish(status)
    job.record.write(job.run_folder)
