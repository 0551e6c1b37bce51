"""Seconds of a training step, measured: what the budget ``step_time`` is made of."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from hip_model.variants import ModelConfig, available_models, model_config
from pipeline.shards.manifest import Manifest
from pipeline.train.build import build_autoencoder
from pipeline.train.checks import accumulation_steps
from pipeline.train.options import ModelOptions, PretrainOptions

_TIMED_STEPS = 3


def measure_step(config: ModelConfig, options: PretrainOptions, manifest: Manifest) -> float:
    """Seconds of one optimizer step of one worker in this process: the fastest of a few, after one to warm up."""
    name = next(known for known in available_models() if type(model_config(known)) is type(config))
    named = replace(options, model=ModelOptions(name, config.to_dict()))
    torch.set_num_threads(options.scale.threads_per_worker)
    device = torch.device("cuda" if options.scale.gpus_per_worker else "cpu")
    autoencoder = build_autoencoder(named, manifest).to(device)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=1e-6)
    workers = max(1, options.scale.workers)
    share = -(-options.batch.global_size // workers)
    examples = min(share, options.batch.per_worker_size or share)
    repeats = accumulation_steps(options.batch.global_size, options.batch.per_worker_size, workers)
    inputs = {
        spec.name: torch.randn(examples, spec.num_tokens, spec.num_channels, device=device)
        for spec in manifest.modalities
    }
    seeds = torch.arange(examples, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=options.engine.precision == "bf16"):
            loss = autoencoder(inputs, seeds).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    return repeats * min(_seconds(step, device) for _ in range(_TIMED_STEPS))


def timer_in_process(manifest: Manifest) -> Callable[[Any, PretrainOptions], float]:
    """A step timer that measures here."""
    return lambda config, options: measure_step(config, options, manifest)


def timer_on_workers(manifest: Manifest) -> Callable[[Any, PretrainOptions], float]:
    """A step timer that measures on the kind of worker that trials get, one measurement at a time."""
    import ray

    remote = ray.remote(measure_step)

    def measure(config: Any, options: PretrainOptions) -> float:
        scale = options.scale
        task = remote.options(num_cpus=scale.cpus_per_worker, num_gpus=scale.gpus_per_worker)
        return float(ray.get(task.remote(config, options, manifest)))

    return measure


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
