"""Puts the parts of one worker's fine-tuning together, trains to the end, and validates what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

from hip_model.export import save_pretrained
from pipeline import storage
from pipeline.errors import UserError
from pipeline.evaluate.baseline import Baseline, save_baseline
from pipeline.evaluate.classifier import Classifier
from pipeline.evaluate.finetune_data import LabelledSplit
from pipeline.evaluate.finetune_loop import FinetuneRun
from pipeline.evaluate.finetune_options import FinetuneOptions
from pipeline.evaluate.finetune_resume import defining
from pipeline.evaluate.head import save_head
from pipeline.evaluate.options import EvaluateOptions
from pipeline.evaluate.report import EvaluationReport
from pipeline.evaluate.runner import evaluate
from pipeline.evaluate.transfer import Start
from pipeline.shards.manifest import Manifest
from pipeline.tracking.client import Tracker
from pipeline.tracking.options import TrackingOptions
from pipeline.train.checkpoint import CheckpointWriter, latest_checkpoint
from pipeline.train.engine import TorchEngine
from pipeline.train.options import EngineOptions
from pipeline.train.state import TrainerState


def assemble(
    options: FinetuneOptions,
    manifest: Manifest,
    start: Start,
    data: LabelledSplit,
    folder: str,
    device: torch.device,
    tracker: Tracker,
) -> FinetuneRun:
    """One worker's part of a run at its first step; alone where no process group is there."""
    workers = distributed.get_world_size() if distributed.is_initialized() else 1
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    level = level_of(options, start.model)
    classifier = Classifier(start.model, level, list(manifest.label_names), data.task, options.mode != "probe")
    metadata = {**start.metadata, "finetuned": {"init": options.init, "mode": options.mode, "seed": options.seed}}

    def export(weights: Mapping[str, Tensor], average: Mapping[str, Tensor] | None, target: Path) -> None:
        # Weights are whole on every worker: the live module holds what ``weights`` holds.
        save = save_baseline if isinstance(classifier.model, Baseline) else save_pretrained
        save(classifier.model, target, {**metadata, **classifier.to_head().metadata()})
        save_head(classifier.to_head(), target)

    return FinetuneRun(
        options=options,
        manifest=manifest,
        start=start,
        classifier=classifier,
        engine=_engine(options, classifier, device),
        data=data,
        state=TrainerState(
            seed=options.seed, options=defining(options, start), fingerprint=manifest.fingerprint, workers=workers
        ),
        total_steps=options.duration.total_steps(len(data), options.batch.global_size),
        writer=CheckpointWriter(folder, options.checkpoint, export, rank=rank, workers=workers),
        tracker=tracker,
        rank=rank,
        workers=workers,
    )


def validate(run: FinetuneRun) -> EvaluationReport | None:
    """Score the last checkpoint on the validation split, and log the numbers; none where there is no such split."""
    options, folder = run.options, run.writer.run_folder
    if not run.manifest.splits.get(options.validation_split):
        return None
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    with storage.folder_here(checkpoint) as here:
        wanted = EvaluateOptions(
            shards=options.shards,
            model=str(here),
            task=run.data.task,
            output=storage.join(folder, "evaluation"),
            storage=options.storage,
            split=options.validation_split,
            fit_split=options.split,
            absent=options.absent,
            seed=options.seed,
            device=str(run.engine.device.type),
            interval=options.interval,
            limit=replace(options.limit, fit_examples=None),
            tracking=TrackingOptions(enabled=False),
        )
        report = evaluate(wanted)
    run.tracker.log_metrics(validation_numbers(report), run.state.step)
    if storage.is_local(folder):
        run.tracker.log_artifact(storage.local_path(report.html_path), "evaluation")
    return report


def validation_numbers(report: EvaluationReport | None) -> dict[str, float]:
    """A report's values as metrics."""
    return {} if report is None else {f"validation/{key}": value.value for key, value in report.metrics.items()}


def level_of(options: FinetuneOptions, model: Any) -> int:
    """The encoder block that is pooled.

    Raises:
        UserError: the model has no such block.
    """
    groups = getattr(model.config, "num_groups", (1,))
    processor = len(groups) // 2
    if options.head.level == "processor":
        return processor
    level = int(options.head.level)
    if level > processor:
        raise UserError(f"head.level={level}: fine-tuning pools an encoder block, 0 to {processor} in this model")
    return level


def _engine(options: FinetuneOptions, classifier: Classifier, device: torch.device) -> TorchEngine:
    """Pretraining's plain engine; ``optim.layer_decay`` counts blocks below the head, for only they are trained."""
    given = options.trainer
    engine = EngineOptions(kind="torch", precision=given.precision, gradient_clip=given.gradient_clip)
    return TorchEngine(classifier, engine, options.optim, device)
