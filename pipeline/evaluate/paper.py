"""Run a comparison of the paper and write its table: the paper's figure beside ours, with the spread over seeds."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from hip_model.export import save_pretrained
from hip_model.variants import build_model
from pipeline import storage
from pipeline.errors import UserError
from pipeline.evaluate.derive import derive_shards
from pipeline.evaluate.finetune import finetune
from pipeline.evaluate.finetune_options import FinetuneOptions, TrainerOptions
from pipeline.evaluate.options import EvaluateFigureOptions, EvaluateOptions, IntervalOptions, LimitOptions
from pipeline.evaluate.paper_options import THROUGHPUT, ExperimentOptions
from pipeline.evaluate.runner import evaluate
from pipeline.evaluate.studies import STUDIES, Arm, Claim, Study, StudyScale
from pipeline.host_memory import keep_freed_memory
from pipeline.seeding import derive_seed
from pipeline.shards.manifest import Manifest
from pipeline.tracking.options import TrackingOptions
from pipeline.train.build import modalities_of
from pipeline.train.modalities import manifest_as_read
from pipeline.train.options import (
    BatchOptions,
    DurationOptions,
    EngineOptions,
    FigureOptions,
    ModelOptions,
    OptimOptions,
    PretrainOptions,
    RunOptions,
    ScaleOptions,
    ScheduleOptions,
)
from pipeline.train.runner import run_pretraining

logger = logging.getLogger(__name__)

KINDS = {"finetuned": "fine-tuned", "probed": "linear probe"}
"""Fields of :class:`ArmResult` and what tables call them."""


@dataclass(frozen=True)
class ArmResult:
    """One arm with one seed, in per cent, with its bootstrap interval."""

    arm: str
    seed: int
    finetuned: tuple[float, float, float]  # value, low, high
    probed: tuple[float, float, float]
    chance: float


def run_study(options: ExperimentOptions) -> str:
    """Run what is missing of a study and write ``table.md`` and ``results.json``; returns the table's location.

    Every part has a name that follows from its settings, so a study that was stopped goes on where it was.
    """
    if options.threads > 0:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    folder = options.output or storage.join(options.storage, "experiments", f"{options.study}-{options.scale}")
    if options.study == THROUGHPUT:
        return _run_throughput(options, folder)
    study = STUDIES[options.study]
    _check_modalities(options, study)
    results = []
    for seed in options.seeds:
        for arm in study.arms:
            if not options.arms or arm.name in options.arms:
                logger.info("%s, seed %d", arm.name, seed)
                results.append(run_arm(options, study.scales[options.scale], arm, seed))
                write_table(options, study, results, folder)
    return storage.join(folder, "table.md")


def _check_modalities(options: ExperimentOptions, study: Study) -> None:
    """Refuse data on which the study's arms would not differ."""
    assert options.shards is not None  # checked with the options
    there = [spec.name for spec in Manifest.load(options.shards).modalities]
    missing = [" or ".join(group) for group in study.needs if not set(group) & set(there)]
    if missing:
        raise UserError(
            f"study={options.study} needs {' and '.join(missing)}, but {storage.redact(options.shards)} has only "
            f"{', '.join(there)}; hip preprocess makes shards with more"
        )


def _run_throughput(options: ExperimentOptions, folder: str) -> str:
    from pipeline.evaluate.throughput import measure_throughput, render_throughput

    device = "cuda" if torch.cuda.is_available() else "cpu"
    small = options.scale == "small"
    models = ("hip_nano", "hip_micro", "io_mini") if small else ("hip_16", "hip_256", "perceiver_io_imagenet")
    sides = (32, 64, 128) if small else (224, 384, 512, 1024, 2048)
    found = measure_throughput(models, sides, options.batch_size or (1 if small else 8), device=device)
    target = storage.join(folder, "table.md")
    storage.write_atomic(storage.join(folder, "results.json"), json.dumps([asdict(e) for e in found]).encode())
    storage.write_atomic(target, render_throughput(found, device).encode())
    return target


def run_arm(options: ExperimentOptions, scale: StudyScale, arm: Arm, seed: int) -> ArmResult:
    """Pretrain (or build afresh), probe the frozen model, fine-tune it."""
    assert options.shards is not None  # checked with the options
    shards = derive_shards(options.shards, storage.join(options.storage, "derived", _slug(str(arm.data))), arm.data)
    name, overrides = scale.models[arm.model]
    model = ModelOptions(name=name, overrides={**overrides, **arm.overrides})
    label = f"{options.study}-{_slug(arm.name)}-seed{seed}"
    pretraining = replace(pretraining_of(options, scale, model, shards, label, seed), modalities=arm.modalities)
    start = _pretrained(pretraining) if arm.pretrained else _fresh(options, pretraining, label)
    limit = LimitOptions(fit_examples=options.fit_examples)
    interval = IntervalOptions(resamples=options.resamples)
    quiet = TrackingOptions(enabled=False)
    with storage.folder_here(start) as here:
        wanted = EvaluateOptions(
            shards=shards,
            model=str(here),
            storage=options.storage,
            seed=seed,
            limit=limit,
            interval=interval,
            output=storage.join(options.storage, "probes", label),
            tracking=quiet,
            figures=EvaluateFigureOptions(enabled=False),
        )
        probe = evaluate(wanted)
        tuned = finetune(_finetune_options(options, scale, shards, str(here), label, seed, limit, interval))
    key = "top1" if "top1" in tuned.metrics else "mean_average_precision"
    chance = probe.metrics["chance_top1"].value if "chance_top1" in probe.metrics else float("nan")
    values = [tuple(100 * v for v in (m[key].value, m[key].low, m[key].high)) for m in (tuned.metrics, probe.metrics)]
    return ArmResult(arm.name, seed, values[0], values[1], 100 * chance)  # type: ignore[arg-type]


def _pretrained(pretraining: PretrainOptions) -> str:
    result = run_pretraining(pretraining)
    assert result.checkpoint is not None
    return result.checkpoint


def pretraining_of(
    options: ExperimentOptions, scale: StudyScale, model: ModelOptions, shards: str, label: str, seed: int
) -> PretrainOptions:
    """What an arm pretrains with: in this process at the small scale, on a node's GPUs at the full one."""
    small, threads = options.scale == "small", max(1, options.threads)
    return PretrainOptions(
        shards=shards,
        storage=options.storage,
        seed=seed,
        run=RunOptions(name=f"{label}-pretrain"),
        model=model,
        batch=BatchOptions(global_size=options.batch_size or scale.batch),
        duration=DurationOptions(epochs=options.pretrain_epochs or scale.pretrain_epochs),
        optim=OptimOptions(base_learning_rate=scale.pretrain_rate),
        engine=EngineOptions(kind="torch" if small else "deepspeed"),
        scale=ScaleOptions(workers=0, threads_per_worker=threads)
        if small
        else ScaleOptions(options.gpus, cpus_per_worker=threads, gpus_per_worker=1, threads_per_worker=threads),
        figures=FigureOptions(every_steps=0),
        tracking=options.tracking,
    )


def _fresh(options: ExperimentOptions, pretraining: PretrainOptions, label: str) -> str:
    """The same model with its initial weights, saved so that it can be probed and fine-tuned like a pretrained one."""
    manifest, model = manifest_as_read(pretraining), pretraining.model
    torch.manual_seed(derive_seed(pretraining.seed, "fresh"))
    built = build_model(model.name, modalities_of(manifest), **model.overrides)
    folder = storage.join(options.storage, "fresh", label)
    with tempfile.TemporaryDirectory(prefix="hip-") as temporary:
        save_pretrained(built, temporary, {"data": manifest.data_card()})
        for file in Path(temporary).iterdir():
            storage.write_atomic(storage.join(folder, file.name), file.read_bytes())
    return folder


def _finetune_options(
    options: ExperimentOptions,
    scale: StudyScale,
    shards: str,
    start: str,
    label: str,
    seed: int,
    limit: LimitOptions,
    interval: IntervalOptions,
) -> FinetuneOptions:
    return FinetuneOptions(
        shards=shards,
        init=start,
        storage=options.storage,
        seed=seed,
        run=RunOptions(name=f"{label}-finetune"),
        batch=BatchOptions(global_size=options.batch_size or scale.batch),
        duration=DurationOptions(epochs=options.finetune_epochs or scale.finetune_epochs),
        optim=OptimOptions(base_learning_rate=scale.finetune_rate, betas=(0.9, 0.999)),
        schedule=ScheduleOptions(warmup_share=0.1),
        trainer=TrainerOptions(threads=options.threads),
        limit=limit,
        interval=interval,
        tracking=options.tracking,
    )


def write_table(options: ExperimentOptions, study: Study, results: list[ArmResult], folder: str) -> None:
    """``results.json`` and ``table.md`` of what is there so far."""
    content = [asdict(result) for result in results]
    storage.write_atomic(storage.join(folder, "results.json"), json.dumps(content, indent=1).encode())
    storage.write_atomic(storage.join(folder, "table.md"), render_table(options, study, results).encode())


def render_table(options: ExperimentOptions, study: Study, results: list[ArmResult]) -> str:
    """Markdown: one line an arm, one line a claim."""
    scale = study.scales[options.scale]
    seeds = sorted({result.seed for result in results})
    lines = [
        f"### {study.title}",
        "",
        f"Scale {options.scale}, seeds {', '.join(map(str, seeds))}; per cent. {scale.says_not}",
        "",
        "| arm | paper | ours, fine-tuned | ours, linear probe |",
        "| --- | --- | --- | --- |",
    ]
    for arm in study.arms:
        mine = [result for result in results if result.arm == arm.name]
        if mine:
            paper = "–" if arm.paper is None else f"{arm.paper:g}"
            shown = (_spread([getattr(result, kind) for result in mine]) for kind in ("finetuned", "probed"))
            lines.append(f"| {arm.name} | {paper} | {' | '.join(shown)} |")
    lines += ["", *[f"* {verdict(claim, results, kind)}" for claim in study.claims for kind in KINDS], ""]
    return "\n".join(lines)


def verdict(claim: Claim, results: Iterable[ArmResult], kind: str) -> str:
    """Whether our figures of one ``kind`` show an ordering, its opposite, or neither.

    Several seeds: the mean of the differences within each seed, with a t interval over the seeds (95 %). One seed: the
    two bootstrap intervals must not overlap.
    """
    found = {(result.arm, result.seed): getattr(result, kind) for result in results}
    seeds = sorted(seed for arm, seed in found if arm == claim.better and (claim.worse, seed) in found)
    text = f"{claim.better} > {claim.worse}, {KINDS[kind]}: "
    if not seeds:
        return text + "not run"
    pairs = [(found[claim.better, seed], found[claim.worse, seed]) for seed in seeds]
    differences = np.array([better[0] - worse[0] for better, worse in pairs])
    if len(seeds) == 1:
        (_, better_low, better_high), (_, worse_low, worse_high) = pairs[0]
        shown, opposite = better_low > worse_high, worse_low > better_high
        figures = f"{differences[0]:+.1f}, one seed"
    else:
        low, high = t_interval(differences)
        shown, opposite = low > 0, high < 0
        figures = f"{differences.mean():+.1f} [{low:+.1f}, {high:+.1f}], {len(seeds)} seeds paired"
    said = "shown" if shown else "not so here, the opposite is shown" if opposite else "undecided here"
    return f"{text}{said} ({figures})"


def t_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of a few independent values."""
    from scipy.stats import t

    half = t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def _spread(values: list[tuple[float, float, float]]) -> str:
    """One seed: value and bootstrap interval; several: mean, and the standard deviation over seeds."""
    if len(values) == 1:
        value, low, high = values[0]
        return f"{value:.1f} [{low:.1f}, {high:.1f}]"
    centre = [value[0] for value in values]
    return f"{np.mean(centre):.1f} ± {np.std(centre, ddof=1):.1f}"


def _slug(text: str) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower().replace("+", " plus ")).strip("-")
    return plain[:80]
