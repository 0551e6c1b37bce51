"""Everything that ``hip pretrain`` can be told, one dataclass a config group."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.errors import UserError, nearest
from pipeline.ingest.options import IngestOptions
from pipeline.ray_session import RayOptions
from pipeline.tracking.options import TrackingOptions


def one_of(key: str, value: object, choices: Iterable[object]) -> None:
    """Refuse a value that is not among ``choices``.

    Raises:
        UserError: it is not; the message names the nearest.
    """
    choices = list(choices)
    if value not in choices:
        raise UserError(f"{key}={value}: {nearest(value, choices)}")


def at_least(key: str, value: float | None, smallest: float) -> None:
    """Refuse a number below ``smallest`` (none passes).

    Raises:
        UserError: it is smaller.
    """
    if value is not None and not value >= smallest:
        raise UserError(f"{key}={value} is too small; use {smallest:g} or more")


def between(key: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside ``[low, high]``.

    Raises:
        UserError: it is outside.
    """
    if not low <= value <= high:
        raise UserError(f"{key}={value} is out of range; use {low:g} to {high:g}")


@dataclass(frozen=True)
class RunOptions:
    """What the run is called."""

    name: str | None = None  # none: made from the model, the dataset and the configuration

    def __post_init__(self) -> None:
        if self.name is not None and (not self.name.strip() or "/" in self.name or self.name.startswith(".")):
            raise UserError(f"run.name={self.name!r} must be a plain folder name, such as run.name=first_try")


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and what differs from its published form."""

    name: str = "hip_256"
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MaskOptions:
    """Which tokens the model does not see."""

    policy: str = "group_uniform"  # group_uniform (the paper's) | independent | tube | modality | attention
    ratio: float = 0.85  # share of tokens that are hidden
    per_modality: dict[str, float] = field(default_factory=dict)  # ratio of single modalities

    def __post_init__(self) -> None:
        between("mask.ratio", self.ratio, 0.001, 0.999)
        for name, ratio in self.per_modality.items():
            between(f"mask.per_modality.{name}", ratio, 0, 1)


@dataclass(frozen=True)
class LossOptions:
    """What the reconstruction is compared with."""

    on: str = "masked"  # masked | all tokens
    weights: dict[str, float] = field(default_factory=dict)  # weight of single modalities; 1 when not named

    def __post_init__(self) -> None:
        one_of("loss.on", self.on, ("masked", "all"))


@dataclass(frozen=True)
class BatchOptions:
    """Examples per optimizer step, and per worker at once."""

    global_size: int = 64
    per_worker_size: int | None = None  # none: no accumulation, each worker takes its whole share at once

    def __post_init__(self) -> None:
        at_least("batch.global_size", self.global_size, 1)
        at_least("batch.per_worker_size", self.per_worker_size, 1)


@dataclass(frozen=True)
class DurationOptions:
    """How long to train; give exactly one."""

    steps: int | None = None
    examples: int | None = None
    epochs: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("steps", "examples", "epochs") if getattr(self, name) is not None]
        if len(given) != 1:
            raise UserError(
                f"duration: give exactly one of steps, examples and epochs, got {', '.join(given) or 'none'}"
            )
        at_least(f"duration.{given[0]}", getattr(self, given[0]), 0)

    def total_steps(self, num_examples: int, global_batch_size: int) -> int:
        """Optimizer steps for a dataset of ``num_examples``; a started batch counts."""
        if self.steps is not None:
            return self.steps
        wanted = self.examples if self.examples is not None else (self.epochs or 0) * num_examples
        return -int(-wanted // global_batch_size)


@dataclass(frozen=True)
class OptimOptions:
    """The optimizer and its parameter groups."""

    kind: str = "adamw"
    base_learning_rate: float = 1.5e-4  # for 256 examples a step; scaled linearly with batch.global_size
    learning_rate: float | None = None  # the peak itself, instead of the scaled one
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    weight_decay: float = 0.05  # matrices only: never tables, latents, norms and biases
    position_learning_rate_scale: float = 1.0  # of the position tables, relative to the rest
    layer_decay: float = 1.0  # learning rate factor per block away from the output (fine-tuning); 1 = off
    ema_decay: float | None = None  # keep an exponential moving average of the weights; none = off

    def __post_init__(self) -> None:
        one_of("optim.kind", self.kind, ("adamw", "lamb"))
        at_least("optim.base_learning_rate", self.base_learning_rate, 0)
        at_least("optim.learning_rate", self.learning_rate, 0)
        at_least("optim.epsilon", self.epsilon, 0)
        at_least("optim.weight_decay", self.weight_decay, 0)
        between("optim.betas[0]", self.betas[0], 0, 0.99999)
        between("optim.betas[1]", self.betas[1], 0, 0.99999)
        at_least("optim.position_learning_rate_scale", self.position_learning_rate_scale, 0)
        between("optim.layer_decay", self.layer_decay, 0.01, 1)
        if self.ema_decay is not None:
            between("optim.ema_decay", self.ema_decay, 0, 0.999999)

    def peak_learning_rate(self, global_batch_size: int) -> float:
        """The highest learning rate of the run (linear scaling rule, Goyal et al. 2017)."""
        if self.learning_rate is not None:
            return self.learning_rate
        return self.base_learning_rate * global_batch_size / 256


@dataclass(frozen=True)
class ScheduleOptions:
    """How the learning rate moves; shares are of the whole run."""

    kind: str = "warmup_cosine"
    warmup_share: float = 0.05
    constant_share: float = 0.5  # constant_cosine: end of the constant part
    milestone_shares: tuple[float, ...] = (0.7, 0.85, 0.95)  # step: where the rate drops
    milestone_factor: float = 0.1  # step: what it is multiplied with there
    final_scale: float = 0.0  # cosine: the last rate relative to the peak

    def __post_init__(self) -> None:
        one_of("schedule.kind", self.kind, ("warmup_cosine", "constant_cosine", "constant", "step"))
        for key in ("warmup_share", "constant_share", "milestone_factor", "final_scale"):
            between(f"schedule.{key}", getattr(self, key), 0, 1)
        for share in self.milestone_shares:  # a step instead of a share would never be reached, and never be missed
            between("schedule.milestone_shares", share, 0, 1)


@dataclass(frozen=True)
class EngineOptions:
    """What computes gradients and applies them."""

    kind: str = "deepspeed"  # deepspeed | torch (its plain twin)
    stage: int = 1  # ZeRO: 0 nothing, 1 optimizer state, 2 and gradients, 3 and weights are spread over workers
    offload_optimizer: bool = False  # optimizer state in main memory
    precision: str = "auto"  # auto (bf16 on GPUs, fp32 on CPUs: most emulate bf16) | fp32 | bf16 | fp16
    gradient_clip: float | None = 1.0  # largest global gradient norm; none = off
    activation_checkpointing: bool = False  # recompute each block in the backward pass: less memory, more time
    compile: bool = False  # torch.compile the model
    cuda_graphs: bool = False  # replay forward and backward from a recording: for small batches on GPUs
    collective_timeout_seconds: float = 600.0

    def __post_init__(self) -> None:
        one_of("engine.kind", self.kind, ("deepspeed", "torch"))
        one_of("engine.stage", self.stage, (0, 1, 2, 3))
        one_of("engine.precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        if self.gradient_clip is not None and self.gradient_clip <= 0:
            raise UserError(f"engine.gradient_clip={self.gradient_clip} must be positive; null switches clipping off")
        at_least("engine.collective_timeout_seconds", self.collective_timeout_seconds, 1)

    def settled(self, on_gpus: bool) -> EngineOptions:
        """The same with ``auto`` replaced by the precision that it stands for."""
        if self.precision != "auto":
            return self
        return replace(self, precision="bf16" if on_gpus else "fp32")

    def takes_any_order(self, workers: int) -> bool:
        """Whether workers may go through the model's parts each in another order.

        Stages 2 and 3 send gradients and weights as they come, and the others would take them for different ones.
        """
        return self.stage_for(workers) < 2

    def stage_for(self, workers: int) -> int:
        """The ZeRO stage to run: one float32 worker shares nothing, and stage 0 computes the same without the copies.

        bf16 and fp16 keep their stage for its float32 master weights, which stage 0 lacks, offloading for its place.
        """
        alone = workers == 1 and self.precision == "fp32" and not self.offload_optimizer
        return 0 if alone or self.kind == "torch" else self.stage


@dataclass(frozen=True)
class ScaleOptions:
    """How many workers, and what each gets."""

    workers: int = 1  # 0: train inside this process, without Ray
    min_workers: int | None = None  # go on with this many when nodes are lost (elastic); none: always all
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    threads_per_worker: int = 1
    placement: str = "PACK"
    max_failures: int = 3  # restarts of the worker group after a crash; -1 = without end

    def __post_init__(self) -> None:
        at_least("scale.workers", self.workers, 0)
        at_least("scale.min_workers", self.min_workers, 1)
        if self.min_workers is not None and self.min_workers > self.workers:
            raise UserError(f"scale.min_workers={self.min_workers} is more than scale.workers={self.workers}")
        at_least("scale.cpus_per_worker", self.cpus_per_worker, 0.1)
        at_least("scale.gpus_per_worker", self.gpus_per_worker, 0)
        at_least("scale.threads_per_worker", self.threads_per_worker, 1)
        at_least("scale.max_failures", self.max_failures, -1)
        one_of("scale.placement", self.placement, ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"))


@dataclass(frozen=True)
class CheckpointOptions:
    """When state is saved, and what is kept."""

    every_steps: int = 500
    keep_last: int = 2
    keep_every_steps: int | None = None  # these stay for ever

    def __post_init__(self) -> None:
        at_least("checkpoint.every_steps", self.every_steps, 1)
        at_least("checkpoint.keep_last", self.keep_last, 1)
        at_least("checkpoint.keep_every_steps", self.keep_every_steps, 1)


@dataclass(frozen=True)
class ValidationOptions:
    """Reconstruction of held-out examples while training."""

    every_steps: int = 500  # 0 = never
    examples: int = 256  # the first ones of the validation split; a fixed mask each
    mask: MaskOptions | None = None  # none: the training's; given, runs that were masked differently can be compared

    def __post_init__(self) -> None:
        at_least("validation.every_steps", self.every_steps, 0)
        at_least("validation.examples", self.examples, 1)


@dataclass(frozen=True)
class GuardOptions:
    """When a step counts as bad, and what is done about it."""

    consecutive_bad_steps: int = 5  # so many in a row: back to the last good checkpoint, past these examples
    max_rollbacks: int = 3  # after so many, training has diverged (exit code 4)
    spike_window: int = 128  # steps that a loss is compared with
    spike_deviations: float = 20.0  # a spike is above median + this many median absolute deviations
    hang_seconds: float = 1800.0  # a worker without a step for so long is restarted; 0 = never

    def __post_init__(self) -> None:
        at_least("guards.consecutive_bad_steps", self.consecutive_bad_steps, 1)
        at_least("guards.max_rollbacks", self.max_rollbacks, 0)
        at_least("guards.spike_window", self.spike_window, 8)
        at_least("guards.spike_deviations", self.spike_deviations, 1)
        at_least("guards.hang_seconds", self.hang_seconds, 0)


@dataclass(frozen=True)
class MetricsOptions:
    """How often metrics are gathered and shown."""

    every_steps: int = 20
    peak_tflops: float | None = None  # of one worker's device, for the FLOP utilisation; none: known GPUs only
    profile_steps: tuple[int, int] | None = None  # first and last step of a torch profiler window

    def __post_init__(self) -> None:
        at_least("metrics.every_steps", self.every_steps, 1)
        if self.profile_steps is not None and not 1 <= self.profile_steps[0] <= self.profile_steps[1]:
            raise UserError(
                f"metrics.profile_steps={list(self.profile_steps)} must be first and last step, such as [10,12]"
            )


@dataclass(frozen=True)
class AugmentOptions:
    """What varies between two sights of the same example; everything off by default."""

    crop_min_area: float = 1.0  # smallest share of a picture that a random resized crop keeps; 1 = no crop
    crop_aspect: float = 1.3333  # largest stretch of a crop, either way
    flip: float = 0.0  # probability of a left-right flip
    rand_layers: int = 0  # RandAugment: operations per example; 0 = off
    rand_magnitude: float = 5.0  # RandAugment: strength, 0 to 10
    audio_gain_decibel: float = 0.0  # largest change of loudness, either way
    audio_shift: float = 0.0  # largest circular shift, as a share of the length
    points_scale: float = 0.0  # largest relative change of size, either way
    points_jitter: float = 0.0  # standard deviation added to coordinates, in their own units

    def __post_init__(self) -> None:
        between("augment.crop_min_area", self.crop_min_area, 0.05, 1)
        between("augment.crop_aspect", self.crop_aspect, 1, 4)
        between("augment.flip", self.flip, 0, 1)
        between("augment.rand_layers", self.rand_layers, 0, 100)
        between("augment.rand_magnitude", self.rand_magnitude, 0, 10)
        between("augment.audio_gain_decibel", self.audio_gain_decibel, 0, 100)
        between("augment.audio_shift", self.audio_shift, 0, 0.5)
        for name in ("points_scale", "points_jitter"):
            at_least(f"augment.{name}", getattr(self, name), 0)


@dataclass(frozen=True)
class FigureOptions:
    """Pictures during training."""

    every_steps: int = 1000  # 0 = never
    examples: int = 4

    def __post_init__(self) -> None:
        at_least("figures.every_steps", self.every_steps, 0)
        at_least("figures.examples", self.examples, 1)


@dataclass(frozen=True)
class PretrainOptions:
    """``hip pretrain``: masked-autoencoder training on token shards."""

    shards: str  # dataset folder or URI
    storage: str = "hip-runs"  # where runs live
    init: str | None = None  # model folder whose weights to start from (jobs resolve runs and registry names)
    resize_positions: bool = False  # with init: interpolate its position tables when the data has another resolution
    modalities: tuple[str, ...] | None = None  # what is read, in this order; none: all that the dataset has
    resume: str = "auto"  # auto: continue a run of this name | never: refuse one | must: refuse to start one
    seed: int = 0
    dry_run: bool = False  # print the plan, start nothing
    run: RunOptions = field(default_factory=RunOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    mask: MaskOptions = field(default_factory=MaskOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    batch: BatchOptions = field(default_factory=BatchOptions)
    duration: DurationOptions = field(default_factory=lambda: DurationOptions(epochs=100))
    optim: OptimOptions = field(default_factory=OptimOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    scale: ScaleOptions = field(default_factory=ScaleOptions)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    guards: GuardOptions = field(default_factory=GuardOptions)
    metrics: MetricsOptions = field(default_factory=MetricsOptions)
    figures: FigureOptions = field(default_factory=FigureOptions)
    ingest: IngestOptions = field(default_factory=IngestOptions)
    ray: RayOptions = field(default_factory=RayOptions)
    tracking: TrackingOptions = field(default_factory=TrackingOptions)

    def __post_init__(self) -> None:
        one_of("resume", self.resume, ("auto", "never", "must"))
        at_least("seed", self.seed, 0)
        if not self.shards:
            raise UserError("shards is empty; give the dataset folder, shards=/data/clips")
        if self.modalities is not None and len(set(self.modalities)) != max(1, len(self.modalities)):
            raise UserError(f"modalities={list(self.modalities)} must name one or more, each once; null reads all")
        if self.resize_positions and self.init is None:
            raise UserError("resize_positions=true needs init=<run, folder or registered model>")
        # Settled here, so that run.json, the tracked run and the plan name what is used.
        object.__setattr__(self, "engine", self.engine.settled(on_gpus=self.scale.gpus_per_worker > 0))
