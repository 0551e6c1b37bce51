"""The steps of fine-tuning: read, augment, normalise, mix, predict, step, save."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as distributed
from torch import Tensor

from pipeline.errors import Interrupted, TrainingDiverged
from pipeline.evaluate.classifier import Classifier, soft_targets
from pipeline.evaluate.finetune_data import LabelledSplit
from pipeline.evaluate.finetune_options import FinetuneOptions
from pipeline.evaluate.head import feature_scale
from pipeline.evaluate.loaded import presence_selection
from pipeline.evaluate.mixing import mix
from pipeline.evaluate.transfer import Start
from pipeline.ingest.loader import BatchLoader, LoadedBatch
from pipeline.ingest.spread import spread
from pipeline.seeding import derive_seed
from pipeline.shards.manifest import Manifest
from pipeline.tracking.client import Tracker
from pipeline.train.augment import augment
from pipeline.train.checkpoint import CheckpointWriter, latest_checkpoint, same_everywhere
from pipeline.train.checks import accumulation_steps
from pipeline.train.engine import TorchEngine
from pipeline.train.loop import StopFlag, micro_batches, seed_generators
from pipeline.train.memory import explain_out_of_memory, is_out_of_memory
from pipeline.train.progress import duration
from pipeline.train.schedule import learning_rate_scale
from pipeline.train.state import TrainerState

logger = logging.getLogger(__name__)

_BAD_STEPS_ALLOWED = 5


@dataclass
class FinetuneRun:
    """All parts of one fine-tuning run."""

    options: FinetuneOptions
    manifest: Manifest
    start: Start
    classifier: Classifier
    engine: TorchEngine
    data: LabelledSplit
    state: TrainerState
    total_steps: int
    writer: CheckpointWriter
    tracker: Tracker
    rank: int = 0
    workers: int = 1
    bad_steps: int = 0  # in a row, without a finite gradient
    began: tuple[int, float] = (0, 0.0)  # step and time at which this process took over


def train_to_end(run: FinetuneRun, stop: StopFlag) -> list[float]:
    """Run to the last step and save; returns the losses of the steps that were made. Called by all workers together.

    Raises:
        TrainingDiverged: several steps in a row without a finite gradient.
        OutOfMemory: a worker's part of the batch is too large for it.
        Interrupted: ``stop`` is set; the step was finished and its state saved.
    """
    options, folder, losses = run.options, run.writer.run_folder, []
    run.classifier.train(options.mode != "probe")
    start = run.state.examples_consumed
    run.began = (run.state.step, time.monotonic())
    loader = BatchLoader(
        run.data.reader, run.data.order, options.batch.global_size, run.rank, run.workers, start_examples=start
    )
    with loader:
        while run.state.step < run.total_steps:
            share, applied = _step_that_fits(run, next(loader))
            loss = _over_workers(run, share)
            losses.append(loss)
            run.bad_steps = 0 if applied else run.bad_steps + 1
            _refuse_divergence(run)
            after_step(run, loss)
            if _over_workers(run, stop.is_set()):
                _stop(run)
    if run.state.step % options.checkpoint.every_steps or not same_everywhere(latest_checkpoint(folder), run.workers):
        save(run)
    return losses


def _step_that_fits(run: FinetuneRun, batch: LoadedBatch) -> tuple[float, bool]:
    """A step.

    Raises:
        OutOfMemory: a worker's part of the batch is too large for it.
    """
    try:
        return _step(run, batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        what = f"init={run.options.init}" if run.options.init else f"model.name={run.options.model.name}"
        raise explain_out_of_memory(error, run.options.batch, run.workers, what, []) from error


def _over_workers(run: FinetuneRun, value: float) -> float:
    """The sum of what each worker has."""
    if run.workers == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=run.engine.device)
    distributed.all_reduce(total)
    return float(total)


def _refuse_divergence(run: FinetuneRun) -> None:
    if run.bad_steps >= _BAD_STEPS_ALLOWED:
        raise TrainingDiverged(
            f"{run.bad_steps} steps in a row without a finite gradient at step {run.state.step}; "
            "lower optim.base_learning_rate or set trainer.gradient_clip"
        )


def _stop(run: FinetuneRun) -> None:
    save(run)
    raise Interrupted(f"stopped at step {run.state.step} of {run.total_steps}, state saved; the same command continues")


def _step(run: FinetuneRun, batch: LoadedBatch) -> tuple[float, bool]:
    """One optimizer step over this worker's part of a global batch; what that adds to the batch's mean loss."""
    options, engine = run.options, run.engine
    others = (run.rank,) if run.rank else ()  # dropout and latent subsets: rank 0 draws as a process alone does
    seed_generators(derive_seed(options.seed, "step", run.state.step, *others), engine.device)
    total = 0.0
    parts = accumulation_steps(options.batch.global_size, options.batch.per_worker_size, run.workers)
    for part, weight, last in micro_batches(batch, parts, options.batch.global_size):
        inputs, targets = _prepare(run, part)
        selection = _selection(run, part)
        scores = engine.forward(inputs=inputs, selection=selection)
        loss = run.classifier.loss(scores, targets) * weight
        engine.backward(loss, last)
        total += float(loss.detach())  # a part of weight 0 adds nothing
    scale = learning_rate_scale(options.schedule, run.state.step, run.total_steps)
    result = engine.step(options.optim.peak_learning_rate(options.batch.global_size) * scale)
    run.state.step += 1
    run.state.examples_consumed = batch.examples_consumed
    return total, result.applied


def _prepare(run: FinetuneRun, part: LoadedBatch) -> tuple[dict[str, Tensor], Tensor]:
    """Augmented, normalised and mixed inputs with their soft targets."""
    options, model = run.options, run.start.model
    modalities = {modality.name: modality for modality in model.modalities}
    raw = {name: part.inputs[name].to(run.engine.device) for name in modalities}
    raw = augment(raw, part.epochs, part.example_ids, modalities, options.augment, options.seed)
    inputs = {}
    for name, values in raw.items():  # blended with another example, what is absent is its mean, not black
        absent = ~part.present[name].to(values.device)[:, None, None]
        inputs[name] = run.start.normalisations[name].normalise(values).masked_fill(absent, 0.0)
    classes = len(run.manifest.label_names)
    targets = soft_targets(part.labels, classes, run.data.task, options.head.label_smoothing).to(run.engine.device)
    return mix(inputs, targets, modalities, options.mix, options.seed, run.state.step)


def _selection(run: FinetuneRun, part: LoadedBatch) -> Any:
    present = {modality.name: part.present[modality.name] for modality in run.start.model.modalities}
    if all(bool(flags.all()) for flags in present.values()):
        return None
    return presence_selection(run.start.model, present, run.engine.device)


def after_step(run: FinetuneRun, loss: float) -> None:
    """Log and save where the step is due for it."""
    step, options = run.state.step, run.options
    if step % options.metrics_every_steps == 0 or step == run.total_steps:
        scale = learning_rate_scale(options.schedule, step - 1, run.total_steps)
        rate = options.optim.peak_learning_rate(options.batch.global_size) * scale
        seconds = (time.monotonic() - run.began[1]) / (step - run.began[0])
        examples = options.batch.global_size / seconds
        values = {"train/loss": loss, "train/learning_rate": rate, "train/examples_per_second": examples}
        run.tracker.log_metrics(values, step)
        left = duration(seconds * (run.total_steps - step))
        what = "step %d/%d | loss %.4f | lr %.3g | %.3g examples/s | %s left"
        logger.info(what, step, run.total_steps, loss, rate, examples, left)
    if step % options.checkpoint.every_steps == 0:
        save(run)


def save(run: FinetuneRun) -> None:
    """Write a checkpoint of this moment, and drop those that are not to be kept."""
    run.state.optimizer_steps = run.engine.optimizer_steps()
    run.writer.save(run.engine, run.state)
    run.writer.prune()


@torch.no_grad()
def measure_scale(run: FinetuneRun) -> None:
    """Mean and scale of the starting features, which then stay fixed: a head at zero needs inputs of order one."""
    run.classifier.eval()
    features = []
    rows = run.data.rows[spread(run.options.head.scale_examples, len(run.data))]
    count = len(rows)
    for first in range(0, count, 32):
        batch = run.data.reader.read(rows[first : min(first + 32, count)])
        present = {name: torch.from_numpy(flags) for name, flags in batch.present.items()}
        inputs = {
            modality.name: run.start.normalisations[modality.name]
            .normalise(torch.from_numpy(batch.arrays[modality.name]))
            .to(run.engine.device)
            for modality in run.start.model.modalities
        }
        everything = all(bool(flags.all()) for flags in present.values())
        selection = None if everything else presence_selection(run.start.model, present, run.engine.device)
        features.append(run.classifier.features(inputs, selection).cpu().numpy())
    mean, std = feature_scale(np.concatenate(features))
    run.classifier.mean.copy_(torch.from_numpy(mean))
    run.classifier.std.copy_(torch.from_numpy(std))
    if run.workers > 1:  # other processors round otherwise
        for measured in (run.classifier.mean, run.classifier.std):
            distributed.broadcast(measured, src=0)
