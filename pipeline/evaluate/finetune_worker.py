"""One of Ray's workers at fine-tuning: opens the data, trains its share of every batch, and says how it ended."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as distributed

from pipeline.errors import HipError, Interrupted, TrainingDiverged
from pipeline.evaluate.finetune_assembly import assemble, validate
from pipeline.evaluate.finetune_data import LabelledSplit
from pipeline.evaluate.finetune_loop import FinetuneRun, train_to_end
from pipeline.evaluate.finetune_options import FinetuneOptions
from pipeline.evaluate.finetune_resume import load_position
from pipeline.evaluate.transfer import Start
from pipeline.shards.manifest import Manifest
from pipeline.tracking.client import Tracker
from pipeline.tracking.runs import open_run
from pipeline.train.build import prepare_device
from pipeline.train.checkpoint import latest_checkpoint
from pipeline.train.outcome import Outcome, known_error
from pipeline.train.progress import tracked_run_id, worker_news
from pipeline.train.resume import DIVERGED, FAILED, FINISHED, INTERRUPTED, RunRecord
from pipeline.train.watchdog import StopFile

logger = logging.getLogger(__name__)

_COLLECTIVE_TIMEOUT_SECONDS = 1800.0
_TOGETHER = {Interrupted: INTERRUPTED, TrainingDiverged: DIVERGED}  # raised by all workers at the same step


@dataclass(frozen=True)
class FinetuneJob:
    """What a worker is told; the model travels with it, for where it came from may be the driver's own disk."""

    options: FinetuneOptions
    run_folder: str
    record: RunRecord
    start: Start
    mailbox: Any = None

    @property
    def collective_timeout_seconds(self) -> float:
        """How long workers wait for each other."""
        return _COLLECTIVE_TIMEOUT_SECONDS


def finetune_worker(job: FinetuneJob) -> None:
    """The train function of Ray's workers; the process group exists already."""
    if Outcome.read(job.run_folder, job.record.attempts, job.mailbox) is not None:
        return  # a restart after an error that another try would not mend
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    rank, stop = distributed.get_rank(), StopFile(job.run_folder)
    device = prepare_device(job.options.scale)
    if job.options.scale.gpus_per_worker:
        from ray.train.torch import get_device

        device = get_device()
    stop.start()
    with ExitStack() as stack:
        stack.callback(stop.close)
        stack.enter_context(worker_news(job.mailbox, rank, "pipeline.evaluate"))
        tracker = _tracker(job) if rank == 0 else Tracker()
        try:
            outcome = _train(job, device, stop, tracker)
        except Exception as error:
            known = known_error(error)
            if known is None:
                raise  # a lost connection, a dying node: Ray tries again
            logger.exception("rank %d failed", rank)
            _outcome(job, FAILED, known).leave(job.run_folder, job.mailbox)
            tracker.finish("FAILED")
            raise known from error
        if rank == 0:
            outcome.leave(job.run_folder, job.mailbox)
            tracker.finish({FINISHED: "FINISHED", INTERRUPTED: "KILLED"}.get(outcome.status, "FAILED"))


def _train(job: FinetuneJob, device: torch.device, stop: StopFile, tracker: Tracker) -> Outcome:
    options = job.options
    manifest = Manifest.load(options.shards)
    data = LabelledSplit.open(options, manifest, job.start.specs(manifest))
    run = assemble(options, manifest, job.start, data, job.run_folder, device, tracker)
    try:
        load_position(run)
        train_to_end(run, stop)
    except (Interrupted, TrainingDiverged) as error:
        return _outcome(job, _TOGETHER[type(error)], error, run)
    if run.rank == 0:
        validate(run)
    return _outcome(job, FINISHED, None, run)


def _outcome(job: FinetuneJob, status: str, error: HipError | None, run: FinetuneRun | None = None) -> Outcome:
    return Outcome(
        status=status,
        attempt=job.record.attempts,
        message=str(error or ""),
        error=type(error).__name__ if error else "",
        step=run.state.step if run is not None else 0,
        examples_consumed=run.state.examples_consumed if run is not None else 0,
        checkpoint=latest_checkpoint(job.run_folder),
    )


def _tracker(job: FinetuneJob) -> Tracker:
    record = job.record
    run_id = record.tracking_run_id or tracked_run_id(job.mailbox)
    key = tracking_key(job.run_folder)
    return open_run(job.options.tracking, job.options.storage, record.name, key, resume_run_id=run_id)


def tracking_key(run_folder: str) -> str:
    """What finds a run's tracked run again."""
    return f"finetune:{run_folder}"
