"""One worker: its device, engine, data and hooks, put together and run."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import torch
import torch.distributed as distributed

from pipeline.errors import HipError, Interrupted, TrainingDiverged
from pipeline.tracking.client import Tracker
from pipeline.tracking.runs import open_run
from pipeline.train.assembly import Job, build_trainer
from pipeline.train.build import prepare_device
from pipeline.train.loop import StopFlag, Trainer, train
from pipeline.train.memory import explain_out_of_memory, is_out_of_memory
from pipeline.train.metrics import Metrics, Report
from pipeline.train.options import PretrainOptions
from pipeline.train.outcome import Outcome, known_error
from pipeline.train.precision import slow_bfloat16
from pipeline.train.progress import tracked_run_id, worker_news
from pipeline.train.resume import DIVERGED, FAILED, FINISHED, INTERRUPTED
from pipeline.train.validation import Validation
from pipeline.train.watchdog import StopFile

logger = logging.getLogger(__name__)

_LAST_SAVE_SECONDS = 60.0
_STATUS = {Interrupted: INTERRUPTED, TrainingDiverged: DIVERGED}


def train_worker(job: Job) -> None:
    """The train function of Ray's workers; the process group exists already."""
    if Outcome.read(job.run_folder, job.record.attempts, job.mailbox) is not None:
        return  # a restart after an error that another try would not mend
    options = job.options
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if options.scale.gpus_per_worker else "cpu")
    device = prepare_device(options.scale)
    if options.scale.gpus_per_worker:
        from ray.train.torch import get_device

        device = get_device()
    stop = StopFile(job.run_folder)
    stop.start()
    try:
        run_worker(job, device, stop, job.report)
    finally:
        stop.close()


def run_worker(job: Job, device: torch.device, stop: StopFlag, report: Report | None) -> Outcome:
    """Train; leave the outcome for the driver, and return it.

    Raises:
        HipError: the run ended badly for a reason that only this worker has (others wait for it); the outcome says so.
    """
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    attempt = job.record.attempts
    with ExitStack() as stack:
        show = stack.enter_context(worker_news(job.mailbox, rank))
        tracker = _open_tracker(job) if rank == 0 else Tracker()
        trainer: Trainer | None = None
        try:
            trainer = build_trainer(job, device, stop, report, tracker, stack)
            trainer.show = show
            if rank == 0:
                slow = slow_bfloat16(device, job.options.engine.precision)
                if slow:
                    logger.warning("%s", slow)
                logger.info("workers are up: training from step %d to %d", trainer.state.step, trainer.total_steps)
            train(trainer)
            outcome = _outcome(trainer, FINISHED, attempt)
        except (Interrupted, TrainingDiverged) as error:  # raised by all workers together
            assert trainer is not None, "raised by training only"
            trainer.settle_save()
            outcome = _outcome(trainer, _STATUS[type(error)], attempt, error)
        except Exception as error:
            known = _as_ours(error, job.options)
            if known is None:
                raise  # a lost connection, a dying node: Ray tries again
            logger.exception("rank %d failed", rank)
            if trainer is not None:
                trainer.checkpoints.join(_LAST_SAVE_SECONDS)  # the other workers' threads still answer
            Outcome(FAILED, attempt, str(known), type(known).__name__).leave(job.run_folder, job.mailbox)
            tracker.finish("FAILED")
            raise known from error
        if rank == 0:
            outcome.leave(job.run_folder, job.mailbox)
            tracker.finish({FINISHED: "FINISHED", INTERRUPTED: "KILLED"}.get(outcome.status, "FAILED"))
        return outcome


def _as_ours(error: Exception, options: PretrainOptions) -> HipError | None:
    """The error to tell the user of; none for one that another try may mend."""
    if isinstance(error, HipError) or not is_out_of_memory(error):
        return known_error(error)
    recomputes = options.engine.activation_checkpointing
    other_ways = [] if recomputes else ["engine.activation_checkpointing=true (slower)"]
    what = f"model.name={options.model.name}"
    return explain_out_of_memory(error, options.batch, options.scale.workers, what, other_ways)


def _outcome(trainer: Trainer, status: str, attempt: int, error: HipError | None = None) -> Outcome:
    metrics = next((hook.latest for hook in trainer.hooks if isinstance(hook, Metrics)), {})
    validated = next((hook.latest for hook in trainer.hooks if isinstance(hook, Validation)), {})
    return Outcome(
        status=status,
        attempt=attempt,
        message=str(error or ""),
        error=type(error).__name__ if error else "",
        step=trainer.state.step,
        examples_consumed=trainer.state.examples_consumed,
        checkpoint=trainer.last_checkpoint,
        metrics={**metrics, **validated},
    )


def _open_tracker(job: Job) -> Tracker:
    record = job.record
    run_id = record.tracking_run_id or tracked_run_id(job.mailbox)
    return open_run(job.options.tracking, job.options.storage, record.name, key=record.key, resume_run_id=run_id)


@contextmanager
def own_process_group(options: PretrainOptions) -> Iterator[None]:
    """A process group of one, for an engine that wants one in a process without Ray."""
    if distributed.is_initialized() or options.engine.kind == "torch":
        yield
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    backend = "nccl" if options.scale.gpus_per_worker else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(seconds=options.engine.collective_timeout_seconds))
    try:
        yield
    finally:
        from pipeline.train.engine_deepspeed import end_process_group

        end_process_group()


def run_in_process(job: Job, stop: threading.Event, report: Report | None) -> Outcome:
    """Train in this process, alone."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if job.options.scale.gpus_per_worker else "cpu")
    device = prepare_device(job.options.scale)
    with own_process_group(job.options):
        return run_worker(job, device, stop, report)
