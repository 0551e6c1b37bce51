"""Supervised training of a pretrained (or fresh) encoder with a linear head, here or on Ray's workers."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pipeline import storage
from pipeline.errors import InfrastructureError, Interrupted, UserError
from pipeline.evaluate.baseline import Baseline
from pipeline.evaluate.finetune_assembly import assemble, level_of, validate, validation_numbers
from pipeline.evaluate.finetune_data import LabelledSplit
from pipeline.evaluate.finetune_loop import train_to_end
from pipeline.evaluate.finetune_options import FinetuneOptions
from pipeline.evaluate.finetune_resume import check_previous, load_position, record_of, run_name
from pipeline.evaluate.finetune_worker import FinetuneJob, finetune_worker, tracking_key
from pipeline.evaluate.report import EvaluationReport, read_report
from pipeline.evaluate.resampling import Estimate
from pipeline.evaluate.transfer import Start, starting_model
from pipeline.host_memory import keep_freed_memory
from pipeline.shards.manifest import Manifest
from pipeline.tracking.client import Tracker
from pipeline.tracking.runs import open_run
from pipeline.train.augment import warn_of_idle_options
from pipeline.train.checkpoint import latest_checkpoint
from pipeline.train.ray_run import run_with_ray
from pipeline.train.resume import FAILED, FINISHED, INTERRUPTED, RunRecord, run_lock
from pipeline.train.signals import remove_stop, stop_on_signals


@dataclass(frozen=True)
class FinetuneResult:
    """A finished fine-tuning run."""

    run_name: str
    run_folder: str
    checkpoint: str  # model folder with head.safetensors
    metrics: dict[str, Estimate]  # on the validation split; empty where there is none
    report: EvaluationReport | None
    losses: list[float]  # of this process's steps
    tracking_run_id: str | None


def finetune(options: FinetuneOptions) -> FinetuneResult:
    """Train, save, and evaluate on the validation split.

    Deterministic: order, augmentation, mixing and dropout are functions of the seed and the position in training, so a
    run that was stopped and continued gives the same weights as one that was not. With ``scale.workers`` Ray's workers
    share each batch; examples are then mixed, and dropout is drawn, within a worker's part.

    Raises:
        UserError: data, labels, model and options do not fit; a run of this name has other options or is in training.
        TrainingDiverged: several steps in a row without a finite gradient.
        Interrupted: stopped by Ctrl-C, state saved.
        InfrastructureError: workers failed more often than allowed.
    """
    if options.trainer.threads > 0:
        torch.set_num_threads(options.trainer.threads)
    keep_freed_memory()
    manifest = Manifest.load(options.shards)
    start = starting_model(options, manifest)
    data = LabelledSplit.open(options, manifest, start.specs(manifest))
    _check(options, start.model)
    name = run_name(options, start, manifest)
    folder = storage.join(options.storage, name)
    with run_lock(folder):
        return _train_and_validate(options, manifest, data, start, name, folder)


def _train_and_validate(
    options: FinetuneOptions, manifest: Manifest, data: LabelledSplit, start: Start, name: str, folder: str
) -> FinetuneResult:
    """The run itself, which no other process trains meanwhile."""
    check_previous(options, start, folder, manifest)
    record = record_of(options, start, manifest, name)
    tags = {"hip.kind": "finetune", "hip.run_folder": folder, "hip.data_fingerprint": manifest.fingerprint}
    with open_run(options.tracking, options.storage, name, tracking_key(folder), asdict(options), tags) as tracker:
        record.write(folder)
        remove_stop(folder)
        try:
            if options.scale.workers:
                losses, report = _on_workers(FinetuneJob(options, folder, record, start), tracker)
            else:
                losses, report = _here(options, manifest, data, start, record, folder, tracker)
        except BaseException as error:
            record.message = str(error)
            _close(record, folder, INTERRUPTED if isinstance(error, Interrupted) else FAILED)
            raise
        checkpoint = latest_checkpoint(folder)
        assert checkpoint is not None
        record.metrics, record.checkpoint = validation_numbers(report), checkpoint
        record.tracking_run_id = tracker.run_id
        _close(record, folder, FINISHED)
        metrics = report.metrics if report is not None else {}
        return FinetuneResult(name, folder, checkpoint, metrics, report, losses, tracker.run_id)


def _here(
    options: FinetuneOptions,
    manifest: Manifest,
    data: LabelledSplit,
    start: Start,
    record: RunRecord,
    folder: str,
    tracker: Tracker,
) -> tuple[list[float], EvaluationReport | None]:
    """Train in this process, alone."""
    run, stop = assemble(options, manifest, start, data, folder, _device(options), tracker), threading.Event()
    load_position(run)
    try:
        with stop_on_signals(folder, stop):
            losses = train_to_end(run, stop)
    finally:
        record.step, record.examples_consumed = run.state.step, run.state.examples_consumed
    return losses, validate(run)


def _on_workers(job: FinetuneJob, tracker: Tracker) -> tuple[list[float], EvaluationReport | None]:
    """Train on Ray's workers; the first of them validates."""
    with stop_on_signals(job.run_folder, threading.Event()):
        outcome = run_with_ray(job, tracker, finetune_worker)
    if outcome is None:
        raise InfrastructureError(
            f"the workers of {job.record.name} ended without saying how; the same command continues"
        )
    job.record.step, job.record.examples_consumed = outcome.step, outcome.examples_consumed
    outcome.raise_error()
    return [], read_report(storage.join(job.run_folder, "evaluation"))


def _close(record: RunRecord, folder: str, status: str) -> None:
    record.status = status
    record.write(folder)


def _check(options: FinetuneOptions, model: Any) -> None:
    """Hold the options against the model and the machine before a run is opened."""
    level_of(options, model)
    if not options.scale.workers:
        _device(options)
    elif isinstance(model, Baseline):
        raise UserError(
            f"scale.workers={options.scale.workers}: a baseline's normalisation layers keep means of their own worker; "
            "leave scale=in_process"
        )
    warn_of_idle_options(options.augment, model.modalities)


def _device(options: FinetuneOptions) -> torch.device:
    wanted = options.trainer.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("trainer.device=cuda, but this machine has no usable GPU; use trainer.device=cpu")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted)
