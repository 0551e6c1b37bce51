"""One worker: its device, engine, data and hooks, put together and run."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as distributed

from hip_model.autoencoder import MaskedAutoencoder
from pipeline.errors import DataError, HipError, InfrastructureError, Interrupted, TrainingDiverged, UserError
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import ShardReader
from pipeline.storage import exists, join, read_bytes, write_atomic
from pipeline.tracking.client import Tracker
from pipeline.tracking.runs import open_run
from pipeline.train.average import Average
from pipeline.train.build import (
    VALIDATION,
    ModelExport,
    TrainingData,
    build_autoencoder,
    build_skeleton,
    compile_blocks,
    flops_per_example,
    is_complete_data,
    recompute_blocks,
)
from pipeline.train.checkpoint import CheckpointWriter, NamedStates, latest_checkpoint, read_state
from pipeline.train.checkpoint_hook import Checkpoints
from pipeline.train.checks import accumulation_steps
from pipeline.train.engine import Engine, TorchEngine
from pipeline.train.guards import Guard
from pipeline.train.hooks import Hook
from pipeline.train.loop import StopFlag, Trainer, train
from pipeline.train.metrics import Metrics, Report
from pipeline.train.options import PretrainOptions
from pipeline.train.resume import DIVERGED, FAILED, FINISHED, INTERRUPTED, RunRecord
from pipeline.train.state import TrainerState
from pipeline.train.validation import Validation
from pipeline.train.watchdog import StopFile, Watchdog

logger = logging.getLogger(__name__)

_ERRORS = {
    error.__name__: error for error in (DataError, InfrastructureError, Interrupted, TrainingDiverged, UserError)
}
_STATUS = {Interrupted: INTERRUPTED, TrainingDiverged: DIVERGED}


@dataclass(frozen=True)
class Job:
    """What a worker is told: plain values that travel to other machines."""

    options: PretrainOptions
    run_folder: str
    record: RunRecord


@dataclass
class Outcome:
    """How a run ended, written where the driver and restarted workers find it."""

    status: str
    attempt: int
    message: str = ""
    error: str = ""
    step: int = 0
    examples_consumed: int = 0
    checkpoint: str | None = None
    metrics: dict[str, float] | None = None

    def write(self, run_folder: str) -> None:
        """Leave it in the run folder."""
        write_atomic(join(run_folder, "outcome.json"), json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, run_folder: str, attempt: int) -> Outcome | None:
        """The outcome of this attempt, if it has ended."""
        place = join(run_folder, "outcome.json")
        found = cls(**json.loads(read_bytes(place))) if exists(place) else None
        return found if found is not None and found.attempt == attempt else None

    def raise_error(self) -> None:
        """Raise what ended the run, if it was an error."""
        if self.error:
            raise _ERRORS.get(self.error, InfrastructureError)(self.message)


def train_worker(job: Job) -> None:
    """The train function of Ray's workers; the process group exists already."""
    if Outcome.read(job.run_folder, job.record.attempts) is not None:
        return  # a restart after an error that another try would not mend
    options = job.options
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if options.scale.gpus_per_worker else "cpu")
    torch.set_num_threads(options.scale.threads_per_worker)
    device = torch.device("cpu")
    if options.scale.gpus_per_worker:
        from ray.train.torch import get_device

        device = get_device()
    stop = StopFile(job.run_folder)
    stop.start()
    try:
        run_worker(job, device, stop, None)
    finally:
        stop.close()


def run_worker(job: Job, device: torch.device, stop: StopFlag, report: Report | None) -> None:
    """Train, and leave the outcome in the run folder.

    Raises:
        HipError: the run ended badly for a reason that only this worker has (others wait for it); the outcome says so.
    """
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    attempt = job.record.attempts
    with ExitStack() as stack:
        tracker = _open_tracker(job) if rank == 0 else Tracker()
        try:
            trainer = build_trainer(job, device, stop, report, tracker, stack)
            train(trainer)
            outcome = _outcome(trainer, FINISHED, attempt)
        except (Interrupted, TrainingDiverged) as error:  # raised by all workers together
            outcome = _outcome(trainer, _STATUS[type(error)], attempt, error)
        except (HipError, ValueError, TypeError, KeyError, AttributeError) as error:
            known = error if isinstance(error, HipError) else InfrastructureError(f"{type(error).__name__}: {error}")
            logger.exception("rank %d failed", rank)
            Outcome(FAILED, attempt, str(known), type(known).__name__).write(job.run_folder)
            tracker.finish("FAILED")
            raise
        if rank == 0:
            outcome.write(job.run_folder)
            tracker.finish({FINISHED: "FINISHED", INTERRUPTED: "KILLED"}.get(outcome.status, "FAILED"))


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
    return open_run(
        job.options.tracking, job.options.storage, record.name, key=record.key, resume_run_id=record.tracking_run_id
    )


def build_trainer(
    job: Job, device: torch.device, stop: StopFlag, report: Report | None, tracker: Tracker, stack: ExitStack
) -> Trainer:
    """Everything a worker needs, resumed from the newest checkpoint if there is one."""
    options, record = job.options, job.record
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    workers = distributed.get_world_size() if distributed.is_initialized() else 1
    data = TrainingData.open(options, rank, workers, pin_memory=device.type == "cuda")
    manifest = data.reader.manifest
    autoencoder = build_autoencoder(options, manifest)
    accumulation = accumulation_steps(options.batch.global_size, options.batch.per_worker_size, workers)
    flops = flops_per_example(autoencoder.model, options)
    engine = build_engine(options, autoencoder, device, accumulation, workers)
    watchdog = Watchdog(job.run_folder, rank, options.guards.hang_seconds)
    watchdog.start()
    stack.callback(watchdog.stop)
    average = None if options.optim.ema_decay is None else Average(options.optim.ema_decay)
    metadata = {
        "data": manifest.data_card(),
        "run_name": record.name,
        "code_version": record.code_version,
        "config_hash": record.config_hash,
        "model_name": options.model.name,
        "options": record.options,
    }
    writer = CheckpointWriter(
        job.run_folder,
        options.checkpoint,
        ModelExport(build_skeleton(options, manifest).model, autoencoder.model, metadata),
        lambda: average.average.weights if average is not None and average.average is not None else None,
        rank,
        workers,
    )
    trainer = Trainer(
        options=options,
        engine=engine,
        open_loader=data.loader,
        state=TrainerState(
            seed=options.seed,
            options=record.options,
            config_hash=record.config_hash,
            fingerprint=manifest.fingerprint,
            code_version=record.code_version,
            workers=workers,
        ),
        total_steps=options.duration.total_steps(len(data.reader), options.batch.global_size),
        modalities=tuple(spec.name for spec in manifest.modalities),
        checkpoints=writer,
        hooks=build_hooks(options, manifest, data.reader, flops, report, average),
        tracker=tracker,
        stop=stop,
        accumulation_steps=accumulation,
        rank=rank,
        workers=workers,
        check_every_steps=1 if device.type == "cpu" else options.metrics.every_steps,
        beat=watchdog.beat,
        data_is_complete=is_complete_data(manifest),
    )
    restore(trainer, job.run_folder)
    return trainer


def build_engine(
    options: PretrainOptions, autoencoder: MaskedAutoencoder, device: torch.device, accumulation: int, workers: int
) -> Engine:
    """The engine by name, on a model that may recompute or be compiled."""
    if options.engine.activation_checkpointing:
        recompute_blocks(autoencoder.model)
    if options.engine.compile:
        compile_blocks(autoencoder.model)
    if options.engine.kind == "torch":
        return TorchEngine(autoencoder, options.engine, options.optim, device)
    from pipeline.train.engine_deepspeed import DeepSpeedEngine

    micro_batch = options.batch.per_worker_size or -(-options.batch.global_size // workers)
    return DeepSpeedEngine(autoencoder, options.engine, options.optim, device, micro_batch, accumulation)


def build_hooks(
    options: PretrainOptions,
    manifest: Manifest,
    reader: ShardReader,
    flops: float,
    report: Report | None,
    average: Average | None,
) -> list[Hook]:
    """In the order in which they see a step: judge it, measure it, then save."""
    guard = Guard(options.guards)
    tokens = sum(spec.num_tokens for spec in manifest.modalities)
    hooks: list[Hook] = [guard, Metrics(guard, tokens, flops, report)]
    if average is not None:
        hooks.append(average)
    if options.validation.every_steps and manifest.splits.get(VALIDATION):
        hooks.append(Validation(ShardReader(options.shards, VALIDATION, cache=options.ingest.cache)))
    return [*hooks, Checkpoints(guard)]


def restore(trainer: Trainer, run_folder: str) -> None:
    """Take up the newest complete checkpoint, the same one on every worker."""
    found = [latest_checkpoint(run_folder) if trainer.rank == 0 else None]
    if trainer.workers > 1:
        distributed.broadcast_object_list(found, src=0)
    folder = found[0]
    if folder is None:
        return
    saved = read_state(folder)
    states = NamedStates(folder)
    shapes = {name: p.shape for name, p in build_shapes(trainer).items()}
    states.check(shapes)
    trainer.engine.load_named_state(states, saved.optimizer_steps)
    trainer.engine.load_extra_state(saved.engine)
    trainer.state = replace(
        trainer.state, step=saved.step, examples_consumed=saved.examples_consumed, optimizer_steps=saved.optimizer_steps
    )
    for hook in trainer.hooks:
        if saved.hooks.get(hook.name):
            hook.load_state(saved.hooks[hook.name])
    trainer.last_checkpoint = folder
    if trainer.rank == 0:
        logger.info("resumed from %s at step %d (%d examples)", folder, saved.step, saved.examples_consumed)
        if saved.workers != trainer.workers:
            logger.info(
                "%d workers then, %d now: the same batches, losses equal up to summation order",
                saved.workers,
                trainer.workers,
            )


def build_shapes(trainer: Trainer) -> dict[str, Any]:
    """Trained parameters by name, whole: ZeRO-3 leaves empty pieces in the module."""
    return {
        name: torch.empty(getattr(p, "ds_shape", p.shape), device="meta")
        for name, p in trainer.engine.module.named_parameters()
        if p.requires_grad
    }


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
        distributed.destroy_process_group()


def run_in_process(job: Job, stop: threading.Event, report: Report | None) -> None:
    """Train in this process, alone."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if job.options.scale.gpus_per_worker else "cpu")
    torch.set_num_threads(job.options.scale.threads_per_worker)
    device = torch.device("cuda" if job.options.scale.gpus_per_worker else "cpu")
    with own_process_group(job.options):
        run_worker(job, device, stop, report)
