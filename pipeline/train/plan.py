"""What a run will be, worked out without starting anything."""

from __future__ import annotations

import functools
import importlib.metadata
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hip_model.accounting import activation_bytes, optimizer_bytes
from hip_model.autoencoder import MaskedAutoencoder
from pipeline.errors import UserError
from pipeline.ingest.options import IngestOptions
from pipeline.shards.manifest import Manifest
from pipeline.storage import absolute, is_local, join, redact
from pipeline.train.build import (
    TRAIN,
    build_skeleton,
    flops_per_example,
    incomplete_modalities,
    is_complete_data,
    mask_config,
    trained_config,
)
from pipeline.train.checks import accumulation_steps
from pipeline.train.options import PretrainOptions
from pipeline.train.resume import config_hash, options_to_dict, run_name
from pipeline.train.warm_start import open_init


@dataclass(frozen=True)
class Plan:
    """The figures of a run."""

    run_name: str
    run_folder: str
    model_name: str
    parameters: int
    num_examples: int
    incomplete: dict[str, int]  # modalities that not every example has: how many do
    total_steps: int
    global_batch_size: int
    workers: int
    accumulation_steps: int
    peak_learning_rate: float
    train_flops_per_example: float
    state_bytes_per_worker: int
    activation_bytes_per_worker: int
    checkpoint_bytes: int
    engine: str
    init: str | None  # where the weights come from that it starts from
    reading: str  # empty where the shards are on this machine


def plan(options: PretrainOptions, manifest: Manifest) -> Plan:
    """Resolve everything and check that model and data fit.

    Raises:
        UserError: no training examples, or a model that does not fit the data.
    """
    if not manifest.splits.get(TRAIN):
        raise UserError(
            f"{options.shards} has no examples in split {TRAIN!r}; it has {manifest.splits or 'none at all'}"
        )
    name = run_name(options, config_hash(options_to_dict(options)), manifest.fingerprint)
    storage = absolute(options.storage)
    autoencoder = build_skeleton(options, manifest)
    if options.init is not None:
        open_init(options, manifest, autoencoder.model, options.init)
    parameters = sum(p.numel() for p in autoencoder.parameters())
    workers = max(1, options.scale.workers)
    stage = options.engine.stage_for(workers)
    batch = options.batch
    accumulation = accumulation_steps(batch.global_size, batch.per_worker_size, workers)
    if options.engine.cuda_graphs:
        _check_recordable(options, manifest, autoencoder, workers * accumulation)
    zero = f" ZeRO-{stage}" if options.engine.kind == "deepspeed" else ""
    recomputes = ", blocks computed again in the backward pass" if options.engine.activation_checkpointing else ""
    return Plan(
        run_name=name,
        run_folder=join(storage, name),
        model_name=options.model.name,
        parameters=parameters,
        num_examples=manifest.num_examples(TRAIN),
        incomplete=incomplete_modalities(manifest),
        total_steps=options.duration.total_steps(manifest.num_examples(TRAIN), batch.global_size),
        global_batch_size=batch.global_size,
        workers=workers,
        accumulation_steps=accumulation,
        peak_learning_rate=options.optim.peak_learning_rate(batch.global_size),
        train_flops_per_example=3 * flops_per_example(autoencoder.model, options),
        state_bytes_per_worker=optimizer_bytes(parameters, options.engine.precision != "fp32", stage, workers),
        activation_bytes_per_worker=_activation_bytes(autoencoder.model, options, workers),
        checkpoint_bytes=parameters * 16,
        engine=f"{options.engine.kind}{zero} {options.engine.precision}{recomputes}",
        init=options.init,
        reading="" if _is_here(options.shards, manifest) else reading(options.ingest, manifest),
    )


def _is_here(shards: str, manifest: Manifest) -> bool:
    return all(is_local(place) for place, _ in manifest.places(shards))


def _check_recordable(options: PretrainOptions, manifest: Manifest, autoencoder: MaskedAutoencoder, parts: int) -> None:
    """A recorded step weighs all examples alike, and masks none that is missing."""
    why = ""
    if not is_complete_data(manifest):
        why = f"every example to have every modality, and in {options.shards} some lack one"
    elif parts > 1 and not autoencoder.has_equal_counts:
        why = (
            f"every example to have as many hidden tokens where a batch is computed in {parts} parts, and with "
            f"mask.policy={options.mask.policy} and these groups they differ"
        )
    if why:
        raise UserError(f"engine.cuda_graphs=true needs {why}; leave engine.cuda_graphs=false")


def reading(ingest: IngestOptions, manifest: Manifest) -> str:
    """What training fetches from elsewhere, and how often, in words."""
    shards = manifest.shards_of(TRAIN)
    size, limit = sum(shard.bytes for shard in shards), ingest.cache.limit_gib
    amount = f"{_size(size)} from elsewhere"
    if size <= ingest.cache.limit_bytes:
        return f"{amount}, fetched once and kept by each machine (ingest.cache.limit_gib={limit:g})"
    if ingest.order == "blocks":
        return f"{amount} an epoch, each record batch about once; each machine keeps {limit:g} GiB"
    block = max(batch.bytes for shard in shards for batch in shard.batches)
    return (
        f"{amount}, any example next, and a machine keeps {limit:g} GiB: most examples fetch {block / 2**20:.3g} MiB; "
        "set ingest.order=blocks, or a larger ingest.cache.limit_gib"
    )


def _activation_bytes(model: Any, options: PretrainOptions, workers: int) -> int:
    """What one micro-batch keeps for its backward pass."""
    size = options.batch.per_worker_size or -(-options.batch.global_size // workers)
    bytes_per_value = 4 if options.engine.precision == "fp32" else 2
    config = trained_config(model.config, options)
    return size * activation_bytes(config, model.modalities, mask_config(options.mask), bytes_per_value)


def describe(planned: Plan) -> str:
    """The plan as a few lines."""
    epochs = planned.total_steps * planned.global_batch_size / planned.num_examples
    flops = planned.train_flops_per_example
    total_flops = flops * planned.total_steps * planned.global_batch_size
    having = ", ".join(f"{count:,} have {name}" for name, count in planned.incomplete.items())
    rows = [
        ("run", f"{planned.run_name} in {planned.run_folder}"),
        ("model", f"{planned.model_name}, {planned.parameters:,} parameters"),
        *([("init", redact(planned.init))] if planned.init else []),
        ("data", f"{planned.num_examples:,} training examples, {epochs:.1f} epochs"),
        *([("", f"of which {having}")] if having else []),
        (
            "steps",
            f"{planned.total_steps:,} of {planned.global_batch_size} examples "
            f"({planned.workers} workers, {planned.accumulation_steps} micro-batches each)",
        ),
        ("engine", f"{planned.engine}, peak learning rate {planned.peak_learning_rate:.3g}"),
        *([("reading", planned.reading)] if planned.reading else []),
        ("compute", f"{flops / 1e9:.3g} GFLOP an example, {total_flops / 1e15:.3g} PFLOP in all"),
        ("memory", f"{_size(planned.state_bytes_per_worker)} of weights, gradients and moments a worker"),
        ("", f"about {_size(planned.activation_bytes_per_worker)} of activations"),
        ("checkpoint", f"{_size(planned.checkpoint_bytes)} each"),
    ]  # fmt: skip
    return "\n".join(f"{key:<11}{value}" for key, value in rows)


def _size(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.3g} GiB" if size_bytes >= 2**30 / 10 else f"{size_bytes / 2**20:.3g} MiB"


@functools.cache
def code_version() -> str:
    """The package version, with the commit when run from a checkout."""
    version = importlib.metadata.version("hip-pipeline")
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version}+{commit}"
