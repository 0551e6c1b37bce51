"""Supervised training of a pretrained (or fresh) encoder with a linear head: one process, resumable, reproducible."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hip_model.export import save_pretrained
from pipeline import storage
from pipeline.errors import Interrupted, TrainingDiverged, UserError
from pipeline.evaluate.augment import augment
from pipeline.evaluate.classifier import Classifier, soft_targets
from pipeline.evaluate.finetune_data import LabelledSplit
from pipeline.evaluate.finetune_options import FinetuneOptions
from pipeline.evaluate.head import feature_scale, save_head
from pipeline.evaluate.loaded import presence_selection
from pipeline.evaluate.metrics import Estimate
from pipeline.evaluate.mixing import mix
from pipeline.evaluate.options import EvaluateOptions
from pipeline.evaluate.report import EvaluationReport
from pipeline.evaluate.runner import evaluate
from pipeline.evaluate.transfer import Start, starting_model
from pipeline.ingest.loader import BatchLoader, LoadedBatch
from pipeline.seeding import derive_seed
from pipeline.shards.manifest import Manifest
from pipeline.tracking.client import Tracker
from pipeline.tracking.options import TrackingOptions
from pipeline.tracking.runs import open_run
from pipeline.train.checkpoint import CheckpointWriter, NamedStates, latest_checkpoint, read_state
from pipeline.train.engine import TorchEngine
from pipeline.train.loop import micro_batches
from pipeline.train.optim import FiniteStep, build_optimizer, parameter_groups
from pipeline.train.options import EngineOptions
from pipeline.train.schedule import learning_rate_scale
from pipeline.train.state import TrainerState

logger = logging.getLogger(__name__)

_BAD_STEPS_ALLOWED = 5
# Options that may differ between a run and its continuation: they change where or how fast, not what.
_FREE = ("resume", "storage", "tracking", "trainer", "checkpoint", "interval", "metrics_every_steps")


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


@dataclass
class _Run:
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


class _LayerwiseEngine(TorchEngine):
    """The plain engine with lower learning rates towards the input (Clark et al. 2020)."""

    def __init__(self, module: Classifier, options: FinetuneOptions, device: torch.device) -> None:
        engine = EngineOptions(
            kind="torch", precision=options.trainer.precision, gradient_clip=options.trainer.gradient_clip
        )
        super().__init__(module, engine, options.optim, device)
        groups = parameter_groups(self._trained.items(), options.optim, module.depth_of)
        self._optimizer = FiniteStep(build_optimizer(groups, options.optim), engine.gradient_clip)


def finetune(options: FinetuneOptions) -> FinetuneResult:
    """Train, save, and evaluate on the validation split.

    Deterministic: order, augmentation, mixing and dropout are functions of the seed and the position in training, so a
    run that was stopped and continued gives the same weights as one that was not.

    Raises:
        UserError: data, labels, model and options do not fit; a run of this name with other options exists.
        TrainingDiverged: several steps in a row without a finite gradient.
        Interrupted: stopped by Ctrl-C, state saved.
    """
    if options.trainer.threads > 0:
        torch.set_num_threads(options.trainer.threads)
    manifest = Manifest.load(options.shards)
    data = LabelledSplit.open(options, manifest)
    start = starting_model(options, manifest)
    name = options.run.name or _default_name(options, manifest)
    folder = storage.join(options.storage, name)
    previous = _previous(options, folder, manifest)
    tags = {"hip.kind": "finetune", "hip.run_folder": folder, "hip.data_fingerprint": manifest.fingerprint}
    with open_run(options.tracking, options.storage, name, f"finetune:{folder}", asdict(options), tags) as tracker:
        run = _assemble(options, manifest, start, data, folder, tracker)
        _load(run, previous)
        _write_status(run, folder, "RUNNING")
        try:
            losses = _train(run)
        except BaseException as error:
            _write_status(run, folder, "KILLED" if isinstance(error, Interrupted) else "FAILED")
            raise
        checkpoint = latest_checkpoint(folder)
        assert checkpoint is not None
        report = _validate(run, checkpoint, folder)
        _write_status(run, folder, "FINISHED")
        metrics = report.metrics if report is not None else {}
        tracker.log_metrics({f"validation/{key}": value.value for key, value in metrics.items()}, run.state.step)
        if report is not None and storage.is_local(folder):
            tracker.log_artifact(storage.local_path(report.html_path), "evaluation")
        return FinetuneResult(name, folder, checkpoint, metrics, report, losses, tracker.run_id)


def _assemble(
    options: FinetuneOptions, manifest: Manifest, start: Start, data: LabelledSplit, folder: str, tracker: Tracker
) -> _Run:
    device = _device(options)
    level = _level(options, start.model)
    classifier = Classifier(start.model, level, list(manifest.label_names), data.task, options.mode != "probe")
    metadata = {**start.metadata, "finetuned": {"init": options.init, "mode": options.mode, "seed": options.seed}}

    def export(weights: Any, target: Path) -> None:
        # Single process: the live module holds what ``weights`` holds.
        save_pretrained(classifier.model, target, {**metadata, **classifier.to_head().metadata()})
        save_head(classifier.to_head(), target)

    total_steps = options.duration.total_steps(len(data), options.batch.global_size)
    return _Run(
        options=options,
        manifest=manifest,
        start=start,
        classifier=classifier,
        engine=_LayerwiseEngine(classifier, options, device),
        data=data,
        state=TrainerState(seed=options.seed, options=_comparable(options), fingerprint=manifest.fingerprint),
        total_steps=total_steps,
        writer=CheckpointWriter(folder, options.checkpoint, export),
        tracker=tracker,
    )


def _train(run: _Run) -> list[float]:
    options, losses, bad_steps = run.options, [], 0
    run.classifier.train(options.mode != "probe")
    with BatchLoader(
        run.data.reader, run.data.order, options.batch.global_size, start_examples=run.state.examples_consumed
    ) as loader:
        try:
            while run.state.step < run.total_steps:
                loss, applied = _step(run, next(loader))
                losses.append(loss)
                bad_steps = 0 if applied else bad_steps + 1
                if bad_steps >= _BAD_STEPS_ALLOWED:
                    raise TrainingDiverged(
                        f"{bad_steps} steps in a row without a finite gradient at step {run.state.step}; "
                        "lower optim.base_learning_rate or set trainer.gradient_clip"
                    )
                _after_step(run, loss)
        except KeyboardInterrupt as error:
            _save(run)
            raise Interrupted(
                f"stopped at step {run.state.step} of {run.total_steps}, state saved; the same command continues"
            ) from error
    if latest_checkpoint(run.writer.run_folder) is None or run.state.step % options.checkpoint.every_steps:
        _save(run)
    return losses


def _step(run: _Run, batch: LoadedBatch) -> tuple[float, bool]:
    """One optimizer step over a global batch; the loss is its mean."""
    options, engine = run.options, run.engine
    torch.manual_seed(derive_seed(options.seed, "step", run.state.step))  # dropout and latent subsets
    total = 0.0
    parts = -(-options.batch.global_size // (options.batch.per_worker_size or options.batch.global_size))
    for part, weight, last in micro_batches(batch, parts, options.batch.global_size):
        inputs, targets = _prepare(run, part)
        selection = _selection(run, part)
        scores = engine.forward(inputs=inputs, selection=selection)
        loss = run.classifier.loss(scores, targets) * weight
        engine.backward(loss, last)
        total += float(loss.detach())
    scale = learning_rate_scale(options.schedule, run.state.step, run.total_steps)
    result = engine.step(options.optim.peak_learning_rate(options.batch.global_size) * scale)
    run.state.step += 1
    run.state.examples_consumed = batch.examples_consumed
    return total, result.applied


def _prepare(run: _Run, part: LoadedBatch) -> tuple[dict[str, Tensor], Tensor]:
    """Augmented, normalised and mixed inputs with their soft targets."""
    options, model = run.options, run.start.model
    modalities = {modality.name: modality for modality in model.modalities}
    raw = {name: part.inputs[name].to(run.engine.device) for name in modalities}
    raw = augment(raw, modalities, options.augment, options.seed, part.epochs, part.example_ids)
    inputs = {name: normalise_floats(run.start.normalisations[name], values) for name, values in raw.items()}
    classes = len(run.manifest.label_names)
    targets = soft_targets(part.labels, classes, run.data.task, options.head.label_smoothing).to(run.engine.device)
    return mix(inputs, targets, modalities, options.mix, options.seed, run.state.step)


def normalise_floats(normalisation: Any, values: Tensor) -> Tensor:
    """Standardise raw values that augmentation made floats of (``Normalisation`` takes floats as normalised)."""
    mean = torch.tensor(normalisation.mean, device=values.device)
    std = torch.tensor(normalisation.std, device=values.device)
    return (values.float() - mean) / std


def _selection(run: _Run, part: LoadedBatch) -> Any:
    present = {modality.name: part.present[modality.name] for modality in run.start.model.modalities}
    if all(bool(flags.all()) for flags in present.values()):
        return None
    return presence_selection(run.start.model, present, run.engine.device)


def _after_step(run: _Run, loss: float) -> None:
    step, options = run.state.step, run.options
    if step % options.metrics_every_steps == 0 or step == run.total_steps:
        scale = learning_rate_scale(options.schedule, step - 1, run.total_steps)
        rate = options.optim.peak_learning_rate(options.batch.global_size) * scale
        run.tracker.log_metrics({"train/loss": loss, "train/learning_rate": rate}, step)
        logger.info("step %d/%d  loss %.4f", step, run.total_steps, loss)
    if step % options.checkpoint.every_steps == 0:
        _save(run)


def _save(run: _Run) -> None:
    run.state.optimizer_steps = run.engine.optimizer_steps()
    run.writer.save(run.engine, run.state)
    run.writer.prune()


@torch.no_grad()
def _measure_scale(run: _Run) -> None:
    """Mean and scale of the starting features, which then stay fixed: a head at zero needs inputs of order one."""
    run.classifier.eval()
    features = []
    count = min(run.options.head.scale_examples, len(run.data))
    for first in range(0, count, 32):
        batch = run.data.reader.read(run.data.rows[first : min(first + 32, count)])
        present = {name: torch.from_numpy(flags) for name, flags in batch.present.items()}
        inputs = {
            modality.name: normalise_floats(
                run.start.normalisations[modality.name], torch.from_numpy(batch.arrays[modality.name])
            ).to(run.engine.device)
            for modality in run.start.model.modalities
        }
        everything = all(bool(flags.all()) for flags in present.values())
        selection = None if everything else presence_selection(run.start.model, present, run.engine.device)
        features.append(run.classifier.features(inputs, selection).cpu().numpy())
    mean, std = feature_scale(np.concatenate(features))
    run.classifier.mean.copy_(torch.from_numpy(mean))
    run.classifier.std.copy_(torch.from_numpy(std))


def _load(run: _Run, previous: str | None) -> None:
    """Continue from a checkpoint, or measure the features' scale before the first step."""
    if previous is None:
        _measure_scale(run)
        return
    from pipeline.evaluate.head import load_head

    found = read_state(previous)
    states = NamedStates(previous)
    states.check({name: value.weight.shape for name, value in run.engine.named_state(moments=False)})
    run.engine.load_named_state(states, found.optimizer_steps)
    head = load_head(storage.local_path(previous))
    assert head is not None
    run.classifier.mean.copy_(head.mean)
    run.classifier.std.copy_(head.std)
    run.state.step, run.state.examples_consumed = found.step, found.examples_consumed
    logger.info("continuing %s at step %d of %d", run.writer.run_folder, found.step, run.total_steps)


def _previous(options: FinetuneOptions, folder: str, manifest: Manifest) -> str | None:
    """The checkpoint to continue, after holding its options and data against the present ones (promise 4)."""
    found = latest_checkpoint(folder)
    if found is None:
        if options.resume == "must":
            raise UserError(f"resume=must, but {folder} has no checkpoint; use resume=auto to start")
        return None
    if options.resume == "never":
        raise UserError(f"resume=never, but {folder} has a run already; choose another run.name")
    state = read_state(found)
    now = _comparable(options)
    changed = [key for key in now if json.dumps(state.options.get(key)) != json.dumps(now[key])]
    if state.fingerprint != manifest.fingerprint:
        changed.append("the dataset")
    if changed:
        shown = "; ".join(f"{key}: {state.options.get(key)} then, {now.get(key)} now" for key in changed)
        raise UserError(f"run {folder} was started with other settings ({shown}); give them again or another run.name")
    return found


def _comparable(options: FinetuneOptions) -> dict[str, Any]:
    values = {key: value for key, value in asdict(options).items() if key not in _FREE}
    return dict(json.loads(json.dumps(values, default=str)))


def _validate(run: _Run, checkpoint: str, folder: str) -> EvaluationReport | None:
    options = run.options
    if not run.manifest.splits.get(options.validation_split):
        return None
    wanted = EvaluateOptions(
        shards=options.shards,
        model=checkpoint,
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


def _write_status(run: _Run, folder: str, status: str) -> None:
    content = {
        "kind": "finetune",
        "status": status,
        "options": asdict(run.options),
        "tracking_run_id": run.tracker.run_id,
        "step": run.state.step,
        "pid": os.getpid(),
    }
    storage.write_atomic(storage.join(folder, "run.json"), json.dumps(content, indent=1, default=str).encode())


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


def _default_name(options: FinetuneOptions, manifest: Manifest) -> str:
    key = derive_seed(0, json.dumps(_comparable(options), sort_keys=True), manifest.fingerprint)
    origin = storage.local_path(options.init).name if options.init else options.model.name
    return f"finetune-{origin}-{key & 0xFFFFFFFF:08x}"
