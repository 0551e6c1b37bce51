"""``hip plan``: what a pretraining will need and cost, from closed forms and measured constants; starts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hip_model.accounting import ModelCost, activation_bytes, is_recomputed, model_cost, optimizer_bytes
from hip_model.errors import ConfigError
from hip_model.modality import Modality
from hip_model.variants import ModelConfig, model_config
from pipeline.cluster.constants import (
    CPU_HOUR_USD,
    CUDA_CONTEXT_BYTES,
    DECODE_SECONDS,
    DECODED_CLIP_SECONDS,
    DEVICES,
    MESSAGE_BYTES,
    PROCESS_BYTES,
    RAY_BYTES,
    READ_BYTES_PER_SECOND,
    SHARD_BYTES,
    TRAFFIC_PER_SAVED_BYTE,
    UPDATE_BYTES,
    Device,
)
from pipeline.errors import UserError
from pipeline.preprocess.estimate import PreprocessEstimate, estimate_preprocessing
from pipeline.preprocess.recipe import TokenRecipe
from pipeline.shards.manifest import Manifest
from pipeline.shards.schema import ModalitySpec
from pipeline.storage import exists, join
from pipeline.train.build import TRAIN, build_skeleton, mask_config, trained_config
from pipeline.train.checks import check_options
from pipeline.train.modalities import chosen_modalities, manifest_as_read
from pipeline.train.options import PretrainOptions, at_least, one_of
from pipeline.train.warm_start import open_init

GIB = 2**30


@dataclass(frozen=True)
class PlanSettings:
    """The cluster and the dataset to plan for, where they do not exist yet."""

    device: str = "h200"  # what a worker trains on: h200 | h100 | a100 | cpu_core
    examples: int | None = None  # training examples; none: those of the dataset or of plan.source
    source: str | None = None  # media that hip preprocess will read: some of its files are decoded here to measure
    source_height: int = 256  # lines of the source videos: 256 | 720 | 1080
    decode_cores: int = 64  # processor cores for hip preprocess
    workers_per_node: int = 8  # share one node's disk or network
    storage: str = "local"  # where shards lie: local | object_store | page_cache
    usd_per_device_hour: float | None = None  # none: the table's
    measure: bool = False  # measure a real step in this process instead of computing it

    def __post_init__(self) -> None:
        one_of("plan.device", self.device, sorted(DEVICES))
        one_of("plan.source_height", self.source_height, sorted(DECODE_SECONDS))
        one_of("plan.storage", self.storage, sorted(READ_BYTES_PER_SECOND))
        at_least("plan.examples", self.examples, 1)
        at_least("plan.decode_cores", self.decode_cores, 1)
        at_least("plan.workers_per_node", self.workers_per_node, 1)
        at_least("plan.usd_per_device_hour", self.usd_per_device_hour, 0)


@dataclass(frozen=True)
class PlanOptions(PretrainOptions):
    """``hip plan``: all keys of ``hip pretrain``, and what it should be planned for."""

    tokens: TokenRecipe | None = None  # the dataset's recipe, where shards do not exist yet
    plan: PlanSettings = field(default_factory=PlanSettings)

    def __post_init__(self) -> None:
        # What counts is the device planned for, whatever the scale would start here.
        object.__setattr__(self, "engine", self.engine.settled(on_gpus=self.plan.device != "cpu_core"))
        super().__post_init__()


@dataclass(frozen=True)
class RunPlan:
    """The figures."""

    model: str
    parameters: int
    tokens_per_example: int
    training_flops_per_example: int
    examples: int
    dataset_bytes: int
    shards: int
    decode_core_hours: float  # still to be done
    is_decoded: bool
    steps: int
    workers: int
    examples_per_micro_batch: int
    state_bytes: int  # a worker's weights, gradients and optimizer state
    activation_bytes: int  # of its micro-batch
    recomputes: bool  # blocks are computed again in the backward pass
    memory_bytes: int  # all of a worker
    device_memory_bytes: int
    compute_seconds_per_step: float
    read_seconds_per_step: float
    read_bytes_per_second: float  # a worker
    hours: float
    device_hours: float
    usd: float
    bottleneck: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def fits(self) -> bool:
        """Whether one worker's device has the memory."""
        return self.memory_bytes <= self.device_memory_bytes


def make_plan(options: PlanOptions) -> RunPlan:
    """Plan a pretraining.

    Raises:
        UserError: neither a dataset nor a recipe, or a model that does not fit the data.
    """
    check_options(options)
    specs, manifest = _data(options)
    media = _measured_media(options)
    examples = _examples(options, manifest, media)
    if examples < 1:
        raise UserError(f"{options.shards} has no training examples yet; give plan.examples=2000000")
    modalities = [spec.to_modality() for spec in specs]
    config, cost = _model(options, modalities)
    if options.init is not None and manifest is not None:
        open_init(options, manifest, build_skeleton(options, manifest).model, options.init)
    device = DEVICES[options.plan.device]
    workers = max(1, options.scale.workers)
    share = -(-options.batch.global_size // workers)
    micro = min(share, options.batch.per_worker_size or share)
    value_bytes = 4 if options.engine.precision == "fp32" else 2
    stage = options.engine.stage if options.engine.kind == "deepspeed" else 0
    state = optimizer_bytes(cost.parameters, value_bytes == 2, stage, workers)
    activations = micro * activation_bytes(config, modalities, mask_config(options.mask), value_bytes)
    compute = _compute_seconds(options, cost, device, share, value_bytes, config, manifest)
    finished = None if manifest is None or options.plan.examples or media is not None else manifest.shards_of(TRAIN)
    example_bytes = sum(_row_bytes(spec) for spec in specs)
    dataset_bytes = examples * example_bytes if finished is None else sum(shard.bytes for shard in finished)
    read = share * dataset_bytes / examples / _read_rate(options, workers)
    steps = options.duration.total_steps(examples, options.batch.global_size)
    hours = steps * max(compute, read) / 3600
    price = options.plan.usd_per_device_hour
    price = device.usd_per_hour.value if price is None else price
    decode_hours = _decode_core_hours(options, specs, examples, media) if finished is None else 0.0
    return RunPlan(
        model=options.model.name,
        parameters=cost.parameters,
        tokens_per_example=sum(modality.num_tokens for modality in modalities),
        training_flops_per_example=cost.training_flops,
        examples=examples,
        dataset_bytes=dataset_bytes,
        shards=max(1, round(dataset_bytes / SHARD_BYTES.value)) if finished is None else len(finished),
        decode_core_hours=decode_hours,
        is_decoded=finished is not None,
        steps=steps,
        workers=workers,
        examples_per_micro_batch=micro,
        state_bytes=state,
        activation_bytes=activations,
        recomputes=config.activation_checkpointing != "none",
        memory_bytes=_memory(options, state, activations, cost.parameters, workers),
        device_memory_bytes=int(device.memory.value * GIB),
        compute_seconds_per_step=compute,
        read_seconds_per_step=read,
        read_bytes_per_second=share * dataset_bytes / examples / max(compute, read),
        hours=hours,
        device_hours=hours * workers,
        usd=hours * workers * price + decode_hours * CPU_HOUR_USD.value,
        bottleneck=_bottleneck(options, compute, read, hours, decode_hours),
    )


def describe_plan(plan: RunPlan) -> str:
    """The plan as a few lines of text."""
    or_else = "" if plan.recomputes else ", or set engine.activation_checkpointing=true"
    verdict = "fits" if plan.fits else f"DOES NOT FIT: lower batch.per_worker_size{or_else}"
    rows = [
        ("model", f"{plan.model}, {plan.parameters:,} parameters, "
                  f"{plan.training_flops_per_example / 1e9:,.4g} GFLOP an example"),
        ("data", f"{plan.examples:,} examples of {plan.tokens_per_example:,} tokens, "
                 f"{plan.dataset_bytes / 1e9:,.4g} GB in {plan.shards:,} shards"),
        ("decode", "done" if plan.is_decoded else f"{plan.decode_core_hours:,.3g} core-hours, once"),
        ("steps", f"{plan.steps:,} on {plan.workers} workers, {plan.examples_per_micro_batch} examples at once each"),
        ("memory", f"{plan.state_bytes / GIB:.2f} GiB state + {plan.activation_bytes / GIB:.2f} GiB activations, "
                   f"{plan.memory_bytes / GIB:.2f} of {plan.device_memory_bytes / GIB:.0f} GiB a worker: {verdict}"),
        ("step", f"{plan.compute_seconds_per_step:.4g} s to compute, {plan.read_seconds_per_step:.4g} s to read"),
        ("read", f"{plan.read_bytes_per_second / 1e6:,.4g} MB/s a worker"),
        ("time", f"{plan.hours:,.4g} h, {plan.device_hours:,.4g} device-hours, about {plan.usd:,.4g} USD"),
        ("bottleneck", plan.bottleneck),
    ]  # fmt: skip
    return "\n".join(f"{name:<11}{text}" for name, text in rows)


def _data(options: PlanOptions) -> tuple[Sequence[ModalitySpec], Manifest | None]:
    if exists(join(options.shards, "manifest.json")):
        manifest = manifest_as_read(options)
        return manifest.modalities, manifest
    if options.tokens is None:
        raise UserError(f"there is no dataset in {options.shards}; plan one with tokens=audioset plan.examples=2000000")
    return chosen_modalities(options, options.tokens.specs()), None


def _model(options: PlanOptions, modalities: Sequence[Modality]) -> tuple[ModelConfig, ModelCost]:
    try:
        config = model_config(options.model.name)
        config = config.replace(**options.model.overrides) if options.model.overrides else config
        cost = model_cost(config, modalities, mask=mask_config(options.mask))
        return trained_config(config, options), cost
    except ConfigError as error:
        raise UserError(f"model={options.model.name} does not fit the data: {error}") from error


def _compute_seconds(
    options: PlanOptions,
    cost: ModelCost,
    device: Device,
    examples: int,
    value_bytes: int,
    config: ModelConfig,
    manifest: Manifest | None,
) -> float:
    """One optimizer step of one worker: each part at its own roofline, or measured here."""
    if options.plan.measure:
        if manifest is None:
            raise UserError("plan.measure=true needs the dataset's shards; without them leave it false")
        from pipeline.tune.timing import measure_step

        return measure_step((config, options), manifest)
    seconds = 0.0
    recomputes = config.activation_checkpointing != "none"
    for name, part in cost.parts.items():
        moved = TRAFFIC_PER_SAVED_BYTE.value * part.saved_elements * value_bytes
        arithmetic, traffic = 3 * part.flops / device.flops.value, moved / device.bandwidth.value
        passes = 4 / 3 if recomputes and is_recomputed(name) else 1.0  # forward once more beside two for the gradients
        seconds += passes * (max(arithmetic, traffic) if device.overlaps else arithmetic + traffic)
    update = 38 * cost.parameters / device.bandwidth.value  # AdamW reads and writes 38 bytes a parameter
    return max(device.launch_seconds.value, examples * seconds / device.roofline_share.value + update)


def _memory(options: PlanOptions, state: int, activations: int, parameters: int, workers: int) -> int:
    """The most that a worker holds at once."""
    if workers > 1:
        activations += int(MESSAGE_BYTES.value * parameters)
    if options.plan.device == "cpu_core":
        process = PROCESS_BYTES.value + (RAY_BYTES.value if options.scale.workers else 0)
        return int(process + state + max(activations, UPDATE_BYTES.value * parameters))
    return int(CUDA_CONTEXT_BYTES.value + state + activations)


def _read_rate(options: PlanOptions, workers: int) -> float:
    """Bytes a second for one worker: a node's disk or network is shared, its memory is not."""
    rate = READ_BYTES_PER_SECOND[options.plan.storage].value
    return rate if options.plan.storage == "page_cache" else rate / min(workers, options.plan.workers_per_node)


def _row_bytes(spec: ModalitySpec) -> int:
    import numpy as np

    return spec.num_tokens * spec.num_channels * np.dtype(spec.dtype).itemsize


def _measured_media(options: PlanOptions) -> PreprocessEstimate | None:
    if options.plan.source is None:
        return None
    if options.tokens is None:
        raise UserError("plan.source needs the recipe that hip preprocess will use, like tokens=audioset")
    return estimate_preprocessing(options.plan.source, options.tokens)


def _examples(options: PlanOptions, manifest: Manifest | None, media: PreprocessEstimate | None) -> int:
    if options.plan.examples:
        return options.plan.examples
    if media is not None:
        return media.examples
    return manifest.num_examples(TRAIN) if manifest is not None else 0


def _decode_core_hours(
    options: PlanOptions, specs: Sequence[ModalitySpec], examples: int, media: PreprocessEstimate | None
) -> float:
    """Measured, or from the table: there only sound and moving pictures count, longer clips in proportion."""
    if media is not None:
        return media.core_seconds / 3600 * examples / media.examples
    if not any(spec.name in ("video", "audio") for spec in specs):
        return 0.0
    seconds = options.tokens.clip_seconds if options.tokens is not None else DECODED_CLIP_SECONDS.value
    per_clip = DECODE_SECONDS[options.plan.source_height].value * seconds / DECODED_CLIP_SECONDS.value
    return examples * per_clip / 3600


def _bottleneck(options: PlanOptions, compute: float, read: float, hours: float, decode_core_hours: float) -> str:
    decode = decode_core_hours / options.plan.decode_cores
    if read > compute:
        return (
            f"reading: a step waits {read - compute:.3g} s; use a faster plan.storage, "
            "fewer plan.workers_per_node or a larger model"
        )
    if decode > hours:
        return f"decoding: {decode:.3g} h on {options.plan.decode_cores} cores, longer than training; use more cores"
    if compute <= DEVICES[options.plan.device].launch_seconds.value and not options.plan.measure:
        return "the host: steps are too small to keep the device busy; raise the batch per worker"
    return "computing: more workers or devices make it faster"
