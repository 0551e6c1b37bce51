"""What must hold between options, before anything starts. Each refusal names both sides."""

from __future__ import annotations

from pipeline.errors import UserError
from pipeline.train.options import BatchOptions, PretrainOptions, ScaleOptions


def accumulation_steps(global_size: int, per_worker_size: int | None, workers: int) -> int:
    """Micro-batches of one optimizer step, the same on every worker."""
    share = -(-global_size // max(1, workers))
    return -(-share // (per_worker_size or share))


def check_options(options: PretrainOptions) -> None:
    """Refuse combinations that cannot work.

    Raises:
        UserError: naming both sides, and what to set instead.
    """
    check_batch(options.batch, options.scale)
    _check_engine(options)
    _check_devices(options)
    _check_cuda_graphs(options)


def check_batch(batch: BatchOptions, scale: ScaleOptions) -> None:
    """Refuse a batch that the workers cannot share.

    Raises:
        UserError: naming both sides, and the nearest size that fits.
    """
    workers = max(1, scale.workers)
    if batch.global_size < workers:
        raise UserError(f"batch.global_size={batch.global_size} is less than scale.workers={workers}")
    if scale.min_workers is not None:  # elastic: shares may be uneven
        return
    per_worker = batch.per_worker_size or batch.global_size / workers
    if batch.global_size % workers or batch.global_size % (workers * per_worker):
        size = batch.per_worker_size or 1
        nearest_size = max(1, round(batch.global_size / (workers * size))) * workers * size
        raise UserError(
            f"batch.global_size={batch.global_size} is not a multiple of scale.workers={workers} x "
            f"batch.per_worker_size={batch.per_worker_size}; the nearest that fits is batch.global_size={nearest_size}"
        )


def _check_engine(options: PretrainOptions) -> None:
    engine, optim = options.engine, options.optim
    if engine.kind == "deepspeed" and engine.precision != "fp32" and engine.stage == 0:
        raise UserError(
            f"engine.precision={engine.precision} needs engine.stage of 1 or more with DeepSpeed, got 0 (it has no "
            "float32 master weights that could be saved by name); set engine.stage=1, or engine=torch"
        )
    if optim.kind == "lamb" and engine.kind == "deepspeed" and engine.stage > 0:
        raise UserError(
            f"optim.kind=lamb scales each tensor by its own norm, which engine.stage={engine.stage} cuts into pieces; "
            "set engine.stage=0 with engine.precision=fp32, or engine=torch"
        )
    if engine.kind == "torch" and (engine.offload_optimizer or engine.precision == "fp16"):
        raise UserError("engine.kind=torch has neither offload_optimizer nor fp16; use engine=deepspeed_zero1 for them")
    if engine.offload_optimizer and engine.stage == 0:
        raise UserError("engine.offload_optimizer=true needs engine.stage of 1 or more, got 0")
    if engine.stage == 3 and engine.kind == "deepspeed" and options.scale.workers == 0:
        raise UserError(
            "engine.stage=3 replaces torch functions of its whole process, which scale.workers=0 shares with others; "
            "use scale.workers=1, or engine.stage=1"
        )
    if engine.stage == 3 and engine.kind == "deepspeed" and engine.compile:
        raise UserError("engine.compile=true does not work with engine.stage=3; use engine.stage=2 or 1")
    if engine.stage == 3 and engine.kind == "deepspeed" and optim.ema_decay is not None:
        raise UserError("optim.ema_decay needs whole weights on every worker; engine.stage=3 shards them, use 2 or 1")


def _check_devices(options: PretrainOptions) -> None:
    engine, scale = options.engine, options.scale
    if engine.precision == "fp16" and not scale.gpus_per_worker:
        raise UserError(
            "engine.precision=fp16 needs GPUs, but scale.gpus_per_worker=0; use engine.precision=bf16 or fp32 on CPU"
        )
    check_whole_gpus(scale)


def check_whole_gpus(scale: ScaleOptions) -> None:
    """Refuse a part of a GPU.

    Raises:
        UserError: workers would share one.
    """
    if 0 < scale.gpus_per_worker < 1:
        raise UserError(
            f"scale.gpus_per_worker={scale.gpus_per_worker}: workers cannot share a GPU; use whole ones, or 0 for CPU"
        )


def _check_cuda_graphs(options: PretrainOptions) -> None:
    engine = options.engine
    if not engine.cuda_graphs:
        return
    recomputed = options.model.overrides.get("activation_checkpointing", "none")
    against = {
        f"scale.gpus_per_worker={options.scale.gpus_per_worker:g}": not options.scale.gpus_per_worker,
        "engine.stage=3 (weights come and go)": engine.kind == "deepspeed" and engine.stage == 3,
        "engine.compile=true": engine.compile,
        "engine.activation_checkpointing=true": engine.activation_checkpointing,
        f"model.overrides.activation_checkpointing={recomputed}": recomputed != "none",
        f"mask.policy={options.mask.policy} (mask.policy=group_uniform can)": options.mask.policy != "group_uniform",
    }
    for what, is_so in against.items():
        if is_so:
            raise UserError(f"engine.cuda_graphs=true cannot record a step with {what}; leave engine.cuda_graphs=false")


def check_cluster(scale: ScaleOptions, resources: dict[str, float]) -> None:
    """Refuse to wait for resources that the cluster does not have at all.

    Raises:
        UserError: more workers x CPUs or GPUs than there are.
    """
    workers = scale.min_workers or scale.workers
    for key, each in (("CPU", scale.cpus_per_worker), ("GPU", scale.gpus_per_worker)):
        there = resources.get(key, 0.0)
        if workers * each > there + 1e-6:
            raise UserError(
                f"scale.workers={workers} x scale.{key.lower()}s_per_worker={each:g} = {workers * each:g} {key}s, but "
                f"the cluster has {there:g}; use fewer workers, smaller ones, or a larger cluster"
            )
