"""Puts the parts of one worker's training together, and resumes them."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as distributed

from hip_model.autoencoder import MaskedAutoencoder
from hip_model.recorded_steps import record_steps
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import ShardReader
from pipeline.shards.schema import ModalitySpec
from pipeline.tracking.client import Tracker
from pipeline.train.augment import augment
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
)
from pipeline.train.checkpoint import CheckpointWriter, NamedStates, latest_checkpoint, read_state, same_everywhere
from pipeline.train.checkpoint_hook import Checkpoints
from pipeline.train.checks import accumulation_steps
from pipeline.train.engine import Engine, TorchEngine
from pipeline.train.figure_hook import Figures
from pipeline.train.guards import Guard
from pipeline.train.hooks import Hook
from pipeline.train.loop import StopFlag, Trainer
from pipeline.train.metrics import Metrics, Report
from pipeline.train.options import PretrainOptions
from pipeline.train.preemption import Preemption
from pipeline.train.profile import Profile
from pipeline.train.resume import RunRecord
from pipeline.train.state import TrainerState
from pipeline.train.validation import Validation
from pipeline.train.warm_start import start_from_kept
from pipeline.train.watch_hook import Watch
from pipeline.train.watchdog import Watchdog

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What a worker is told: plain values that travel to other machines."""

    options: PretrainOptions
    run_folder: str
    record: RunRecord
    modalities: tuple[ModalitySpec, ...]  # what is read of each example
    report: Report | None = None  # a search's, called on rank 0 at metric intervals
    mailbox: Any = None  # where workers leave what the driver shows; none: they are in its process

    @property
    def collective_timeout_seconds(self) -> float:
        """How long workers wait for each other."""
        return self.options.engine.collective_timeout_seconds


def build_trainer(
    job: Job, device: torch.device, stop: StopFlag, report: Report | None, tracker: Tracker, stack: ExitStack
) -> Trainer:
    """Everything a worker needs, resumed from the newest checkpoint if there is one."""
    options, record = job.options, job.record
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    workers = distributed.get_world_size() if distributed.is_initialized() else 1
    manifest = Manifest.load(options.shards).read_as(job.modalities)
    data = TrainingData.open(options, manifest, rank, workers, pin_memory=device.type == "cuda")
    skeleton = build_skeleton(options, manifest).model
    if options.init is None:
        autoencoder, data_card = build_autoencoder(options, manifest), manifest.data_card()
    else:
        autoencoder, data_card = start_from_kept(options, manifest, skeleton, job.run_folder)
    accumulation = accumulation_steps(options.batch.global_size, options.batch.per_worker_size, workers)
    flops = flops_per_example(autoencoder.model, options)
    engine = build_engine(options, autoencoder, device, accumulation, workers)
    watchdog = Watchdog(job.run_folder, rank, options.guards.hang_seconds)
    watchdog.start()
    stack.callback(watchdog.stop)
    average = None if options.optim.ema_decay is None else Average(options.optim.ema_decay)
    metadata = {
        "data": data_card,
        "run_name": record.name,
        "code_version": record.code_version,
        "config_hash": record.config_hash,
        "model_name": options.model.name,
        "options": record.options,
    }
    writer = CheckpointWriter(
        job.run_folder,
        options.checkpoint,
        ModelExport(skeleton, autoencoder.model, metadata),
        lambda: average.average.weights if average is not None and average.average is not None else None,
        rank,
        workers,
    )
    hooks = build_hooks(options, manifest, data.reader, flops, report, average)
    if job.mailbox is not None:  # Ray started this worker
        hooks.insert(-1, Preemption())
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
        hooks=hooks,
        tracker=tracker,
        stop=stop,
        accumulation_steps=accumulation,
        rank=rank,
        workers=workers,
        check_every_steps=1 if device.type == "cpu" else options.metrics.every_steps,
        beat=watchdog.beat,
        vary=partial(
            augment,
            modalities={modality.name: modality for modality in autoencoder.model.modalities},
            options=options.augment,
            seed=options.seed,
        ),
        may_skip_absent=options.engine.takes_any_order(workers),
        parts_are_equal=is_complete_data(manifest) and autoencoder.has_equal_counts,
    )
    restore(trainer, job.run_folder)
    return trainer


def build_engine(
    options: PretrainOptions, autoencoder: MaskedAutoencoder, device: torch.device, accumulation: int, workers: int
) -> Engine:
    """The engine by name, on a model that may recompute, be compiled or be recorded."""
    if options.engine.activation_checkpointing:
        autoencoder.model.recompute_blocks = True
    if options.engine.compile:
        compile_blocks(autoencoder.model)
    if options.engine.cuda_graphs:
        record_steps(autoencoder)
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
    metrics = Metrics(guard, tokens, flops, report)
    hooks: list[Hook] = [guard, metrics, Watch(metrics, guard)]
    if average is not None:
        hooks.append(average)
    held_out = manifest.splits.get(VALIDATION, 0)
    if options.validation.every_steps and held_out:
        hooks.append(Validation(held_out_reader(options, manifest)))
    if options.figures.every_steps:
        hooks.append(Figures(held_out_reader(options, manifest) if held_out else reader))
    if options.metrics.profile_steps is not None:
        hooks.append(Profile(*options.metrics.profile_steps))
    return [*hooks, Checkpoints(guard)]


def held_out_reader(options: PretrainOptions, manifest: Manifest) -> ShardReader:
    """The validation split, of which the same is read as of the training split."""
    return ShardReader(options.shards, VALIDATION, cache=options.ingest.cache, specs=manifest.modalities)


def restore(trainer: Trainer, run_folder: str) -> None:
    """Take up the newest complete checkpoint, the same one on every worker."""
    folder = same_everywhere(latest_checkpoint(run_folder) if trainer.rank == 0 else None, trainer.workers)
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
