"""What fine-tuning is asked to do: the tree behind ``conf/finetune.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.errors import UserError
from pipeline.evaluate.mixing import MixOptions
from pipeline.evaluate.options import IntervalOptions, LimitOptions
from pipeline.ray_session import RayOptions
from pipeline.tracking.options import TrackingOptions
from pipeline.train.checks import check_batch, check_whole_gpus
from pipeline.train.options import (
    AugmentOptions,
    BatchOptions,
    CheckpointOptions,
    DurationOptions,
    ModelOptions,
    OptimOptions,
    RunOptions,
    ScaleOptions,
    ScheduleOptions,
    at_least,
    between,
    one_of,
)

MODES = ("full", "probe", "layerwise")
TASKS = ("auto", "classification", "multilabel")


@dataclass(frozen=True)
class HeadOptions:
    """The classifier on top."""

    level: str = "processor"  # block whose latents are pooled: a number, or "processor"
    label_smoothing: float = 0.0  # share of the target spread over all classes
    scale_examples: int = 256  # examples that the features' mean and scale are measured on before training

    def __post_init__(self) -> None:
        if self.level != "processor" and not self.level.isdigit():
            raise UserError(f"head.level={self.level!r}: use a block's number or 'processor'")
        between("head.label_smoothing", self.label_smoothing, 0, 0.9)
        at_least("head.scale_examples", self.scale_examples, 2)


@dataclass(frozen=True)
class TrainerOptions:
    """What runs the steps."""

    precision: str = "fp32"  # fp32 | bf16 (autocast)
    gradient_clip: float | None = 1.0  # largest global gradient norm; none = off
    device: str = "auto"  # auto | cpu | cuda; in this process (scale.workers=0)
    threads: int = 0  # torch threads; 0: leave as it is; in this process

    def __post_init__(self) -> None:
        one_of("trainer.precision", self.precision, ("fp32", "bf16"))
        one_of("trainer.device", self.device, ("auto", "cpu", "cuda"))
        at_least("trainer.threads", self.threads, 0)
        if self.gradient_clip is not None and self.gradient_clip <= 0:
            raise UserError(f"trainer.gradient_clip={self.gradient_clip} must be positive; null switches clipping off")


@dataclass(frozen=True)
class FinetuneOptions:
    """``hip finetune``: supervised training of a model's encoder and a linear head."""

    shards: str  # token shards: folder or URI
    init: str | None = None  # model folder to start from (jobs resolve runs and registry names); none: from scratch
    storage: str = "hip-runs"  # where runs live
    split: str = "train"
    validation_split: str = "validation"
    mode: str = "full"  # full: every weight; probe: the head alone; layerwise: lower rates for deeper blocks
    task: str = "auto"  # auto: multilabel where any example has several labels
    resume: str = "auto"  # auto: continue a run of this name | never: refuse one | must: refuse to start one
    seed: int = 0
    resize_positions: bool = False  # allow another resolution: position tables are interpolated
    absent: tuple[str, ...] = ()  # modalities of ``init`` that this dataset does not have
    class_balance: float = 0.0  # 0: each example once an epoch; 1: each class as often; between: by count ** -balance
    run: RunOptions = field(default_factory=RunOptions)
    model: ModelOptions = field(default_factory=lambda: ModelOptions(name="hip_micro"))  # from scratch only
    head: HeadOptions = field(default_factory=HeadOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    mix: MixOptions = field(default_factory=MixOptions)
    batch: BatchOptions = field(default_factory=BatchOptions)
    duration: DurationOptions = field(default_factory=lambda: DurationOptions(epochs=20))
    optim: OptimOptions = field(default_factory=OptimOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    scale: ScaleOptions = field(default_factory=lambda: ScaleOptions(workers=0, max_failures=0))  # 0: this process
    ray: RayOptions = field(default_factory=RayOptions)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    interval: IntervalOptions = field(default_factory=IntervalOptions)
    limit: LimitOptions = field(default_factory=LimitOptions)
    metrics_every_steps: int = 20
    tracking: TrackingOptions = field(default_factory=TrackingOptions)

    def __post_init__(self) -> None:
        one_of("mode", self.mode, MODES)
        one_of("task", self.task, TASKS)
        one_of("resume", self.resume, ("auto", "never", "must"))
        at_least("seed", self.seed, 0)
        at_least("metrics_every_steps", self.metrics_every_steps, 1)
        between("class_balance", self.class_balance, 0, 1)
        if self.optim.ema_decay is not None:
            raise UserError(
                f"optim.ema_decay={self.optim.ema_decay}: fine-tuning keeps no average; use optim.ema_decay=null"
            )
        if self.mode == "layerwise" and self.optim.layer_decay >= 1:
            raise UserError("mode=layerwise needs optim.layer_decay below 1, such as optim.layer_decay=0.75")
        if self.mode != "layerwise" and self.optim.layer_decay < 1:
            raise UserError(f"optim.layer_decay={self.optim.layer_decay} only acts with mode=layerwise")
        check_whole_gpus(self.scale)
        if self.scale.workers:
            check_batch(self.batch, self.scale)
        if self.absent and self.init is None:
            raise UserError(f"absent={list(self.absent)} is for init=; a model made here has what the dataset has")
        if self.mode == "probe" and self.init is None:
            raise UserError("mode=probe trains the head alone, so it needs init=<run, folder or registered model>")
