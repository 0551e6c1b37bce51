"""Supervised training of a pretrained (or fresh) encoder with a linear head: one process, resumable, reproducible."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hip_model.export import save_pretrained
from pipeline import storage
from pipeline.errors import Interrupted, UserError
from pipeline.evaluate.baseline import Baseline, save_baseline
from pipeline.evaluate.classifier import Classifier
from pipeline.evaluate.finetune_data import LabelledSplit
from pipeline.evaluate.finetune_loop import FinetuneRun, train_to_end
from pipeline.evaluate.finetune_options import FinetuneOptions
from pipeline.evaluate.finetune_resume import defining, load_position, previous_checkpoint, record_of, run_name
from pipeline.evaluate.head import save_head
from pipeline.evaluate.options import EvaluateOptions
from pipeline.evaluate.report import EvaluationReport
from pipeline.evaluate.resampling import Estimate
from pipeline.evaluate.runner import evaluate
from pipeline.evaluate.transfer import Start, starting_model
from pipeline.host_memory import keep_freed_memory
from pipeline.shards.manifest import Manifest
from pipeline.tracking.client import Tracker
from pipeline.tracking.options import TrackingOptions
from pipeline.tracking.runs import open_run
from pipeline.train.augment import warn_of_idle_options
from pipeline.train.checkpoint import CheckpointWriter, latest_checkpoint
from pipeline.train.engine import TorchEngine
from pipeline.train.options import EngineOptions
from pipeline.train.resume import FAILED, FINISHED, INTERRUPTED, RunRecord, run_lock
from pipeline.train.state import TrainerState

logger = logging.getLogger(__name__)


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
    run that was stopped and continued gives the same weights as one that was not.

    Raises:
        UserError: data, labels, model and options do not fit; a run of this name has other options or is in training.
        TrainingDiverged: several steps in a row without a finite gradient.
        Interrupted: stopped by Ctrl-C, state saved.
    """
    if options.trainer.threads > 0:
        torch.set_num_threads(options.trainer.threads)
    keep_freed_memory()
    manifest = Manifest.load(options.shards)
    data = LabelledSplit.open(options, manifest)
    start = starting_model(options, manifest)
    _check(options, start.model)
    name = run_name(options, start, manifest)
    folder = storage.join(options.storage, name)
    with run_lock(folder):
        return _train_and_validate(options, manifest, data, start, name, folder)


def _train_and_validate(
    options: FinetuneOptions, manifest: Manifest, data: LabelledSplit, start: Start, name: str, folder: str
) -> FinetuneResult:
    """The run itself, which no other process trains meanwhile."""
    previous = previous_checkpoint(options, start, folder, manifest)
    record = record_of(options, start, manifest, name)
    tags = {"hip.kind": "finetune", "hip.run_folder": folder, "hip.data_fingerprint": manifest.fingerprint}
    with open_run(options.tracking, options.storage, name, f"finetune:{folder}", asdict(options), tags) as tracker:
        run = _assemble(options, manifest, start, data, folder, tracker)
        load_position(run, previous)
        record.write(folder)
        losses = _train(run, record, folder)
        checkpoint = latest_checkpoint(folder)
        assert checkpoint is not None
        report = _validate(run, checkpoint, folder)
        metrics = report.metrics if report is not None else {}
        numbers = {f"validation/{key}": value.value for key, value in metrics.items()}
        tracker.log_metrics(numbers, run.state.step)
        if report is not None and storage.is_local(folder):
            tracker.log_artifact(storage.local_path(report.html_path), "evaluation")
        record.metrics, record.checkpoint, record.tracking_run_id = numbers, checkpoint, tracker.run_id
        _close(record, run, folder, FINISHED)
        return FinetuneResult(name, folder, checkpoint, metrics, report, losses, tracker.run_id)


def _check(options: FinetuneOptions, model: Any) -> None:
    """Hold the options against the model and the machine before a run is opened."""
    _level(options, model)
    _device(options)
    warn_of_idle_options(options.augment, model.modalities)


def _assemble(
    options: FinetuneOptions, manifest: Manifest, start: Start, data: LabelledSplit, folder: str, tracker: Tracker
) -> FinetuneRun:
    level = _level(options, start.model)
    classifier = Classifier(start.model, level, list(manifest.label_names), data.task, options.mode != "probe")
    metadata = {**start.metadata, "finetuned": {"init": options.init, "mode": options.mode, "seed": options.seed}}

    def export(weights: Mapping[str, Tensor], average: Mapping[str, Tensor] | None, target: Path) -> None:
        # Single process: the live module holds what ``weights`` holds.
        save = save_baseline if isinstance(classifier.model, Baseline) else save_pretrained
        save(classifier.model, target, {**metadata, **classifier.to_head().metadata()})
        save_head(classifier.to_head(), target)

    return FinetuneRun(
        options=options,
        manifest=manifest,
        start=start,
        classifier=classifier,
        engine=_engine(options, classifier),
        data=data,
        state=TrainerState(seed=options.seed, options=defining(options, start), fingerprint=manifest.fingerprint),
        total_steps=options.duration.total_steps(len(data), options.batch.global_size),
        writer=CheckpointWriter(folder, options.checkpoint, export),
        tracker=tracker,
    )


def _train(run: FinetuneRun, record: RunRecord, folder: str) -> list[float]:
    try:
        return train_to_end(run)
    except BaseException as error:
        record.message = str(error)
        _close(record, run, folder, INTERRUPTED if isinstance(error, Interrupted) else FAILED)
        raise


def _close(record: RunRecord, run: FinetuneRun, folder: str, status: str) -> None:
    record.status, record.step, record.examples_consumed = status, run.state.step, run.state.examples_consumed
    record.write(folder)


def _validate(run: FinetuneRun, checkpoint: str, folder: str) -> EvaluationReport | None:
    options = run.options
    if not run.manifest.splits.get(options.validation_split):
        return None
    with storage.folder_here(checkpoint) as here:
        wanted = EvaluateOptions(
            shards=options.shards,
            model=str(here),
            task=run.data.task,
            output=storage.join(folder, "evaluation"),
            storage=options.storage,
            split=options.validation_split,
            fit_split=options.split,
            seed=options.seed,
            device=options.trainer.device,
            interval=options.interval,
            limit=replace(options.limit, fit_examples=None),
            tracking=TrackingOptions(enabled=False),
        )
        return evaluate(wanted)


def _engine(options: FinetuneOptions, classifier: Classifier) -> TorchEngine:
    """Pretraining's plain engine; ``optim.layer_decay`` counts blocks below the head, for only they are trained."""
    given = options.trainer
    engine = EngineOptions(kind="torch", precision=given.precision, gradient_clip=given.gradient_clip)
    return TorchEngine(classifier, engine, options.optim, _device(options))


def _level(options: FinetuneOptions, model: Any) -> int:
    groups = getattr(model.config, "num_groups", (1,))
    processor = len(groups) // 2
    if options.head.level == "processor":
        return processor
    level = int(options.head.level)
    if level > processor:
        raise UserError(f"head.level={level}: fine-tuning pools an encoder block, 0 to {processor} in this model")
    return level


def _device(options: FinetuneOptions) -> torch.device:
    wanted = options.trainer.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("trainer.device=cuda, but this machine has no usable GPU; use trainer.device=cpu")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted)
