"""Seconds of a training step, measured: what the budget ``step_time`` is made of.

A step on its own cannot be timed to a few per cent where neighbours come and go and clocks change. So every model is
timed in turns with the one that sets the budget, and what counts is the median of the quotients of neighbouring steps.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from hip_model.variants import ModelConfig, available_models, model_config
from pipeline.shards.manifest import Manifest
from pipeline.train.build import build_autoencoder, prepare_device, trained_config
from pipeline.train.checks import accumulation_steps
from pipeline.train.options import ModelOptions, PretrainOptions

_FEWEST_TURNS, _MOST_TURNS, _MOST_SECONDS = 5, 80, 10.0
_PLANNING_SECONDS = 3.0
_STANDARD_ERROR = 0.006  # of the quotient: a fifth of the budget's usual tolerance

# A model and the options that it is trained with.
Trained = tuple[ModelConfig, PretrainOptions]


@dataclass(frozen=True)
class Comparison:
    """Two models' steps, timed in turns."""

    reference_seconds: float  # median of the model that sets the budget
    quotient: float  # the other model's step over that one's
    standard_error: float  # of the quotient


# Times a reference and another model, here or elsewhere.
StepComparer = Callable[[Trained, Trained, Manifest], Comparison]


def measure_step(model: Trained, manifest: Manifest) -> float:
    """Seconds by the clock of one optimizer step of one worker, in this process: the median of some, one to warm up.

    What a run will take here, neighbours included; ``compare_steps`` leaves them out.
    """
    step = _training_step(*model, manifest, time.perf_counter)
    step()
    began, times = time.perf_counter(), [step() for _ in range(_FEWEST_TURNS)]
    while time.perf_counter() - began < _PLANNING_SECONDS:
        times.append(step())
    return statistics.median(times)


def compare_steps(reference: Trained, other: Trained, manifest: Manifest) -> Comparison:
    """Time one optimizer step of one worker of each, in this process, until the quotient is known well enough."""
    first, second = (_training_step(*model, manifest, _clock(model[1])) for model in (reference, other))
    for step in (first, second):
        step()
    began, pairs = time.perf_counter(), list[tuple[float, float]]()
    while len(pairs) < _MOST_TURNS:
        # Who goes first changes, so that neither always finds the other's data in the caches.
        forwards = len(pairs) % 2 == 0
        times = [step() for step in ((first, second) if forwards else (second, first))]
        pairs.append((times[0], times[1]) if forwards else (times[1], times[0]))
        if len(pairs) >= _FEWEST_TURNS:
            found = _compared(pairs)
            if found.standard_error <= _STANDARD_ERROR or time.perf_counter() - began > _MOST_SECONDS:
                return found
    return _compared(pairs)


class StepTimer:
    """Seconds of a step of any config, as on the moment when the model that sets the budget was first timed."""

    def __init__(self, reference: Trained, manifest: Manifest, compare: StepComparer) -> None:
        self._reference, self._manifest, self._compare = reference, manifest, compare
        self._seconds: float | None = None

    def __call__(self, config: ModelConfig, options: PretrainOptions) -> float:
        """Time ``config`` beside the reference, now."""
        if self._seconds is None:
            self._seconds = self._compare(self._reference, self._reference, self._manifest).reference_seconds
        if (config, options) == self._reference:
            return self._seconds
        return self._seconds * self._compare(self._reference, (config, options), self._manifest).quotient


def compare_on_a_worker(reference: Trained, other: Trained, manifest: Manifest) -> Comparison:
    """``compare_steps`` on the kind of worker that trials get; one measurement at a time."""
    import ray

    scale = reference[1].scale
    task = ray.remote(compare_steps).options(num_cpus=scale.cpus_per_worker, num_gpus=scale.gpus_per_worker)
    found: Comparison = ray.get(task.remote(reference, other, manifest))
    return found


def can_measure_here(options: PretrainOptions) -> bool:
    """Whether this process has the kind of device that trials train on."""
    return not options.scale.gpus_per_worker or torch.cuda.is_available()


def _compared(pairs: list[tuple[float, float]]) -> Comparison:
    quotients = [second / first for first, second in pairs]
    middle = statistics.median(quotients)
    # The median's standard error from the median deviation, which a few interrupted steps do not move.
    deviation = 1.4826 * statistics.median(abs(quotient - middle) for quotient in quotients)
    error = 1.2533 * deviation / math.sqrt(len(quotients)) / middle
    return Comparison(statistics.median(first for first, _ in pairs), middle, error)


def _clock(options: PretrainOptions) -> Callable[[], float]:
    """One thread's own time is its step's time on a core of its own, whoever else is on this one now."""
    alone = not options.scale.gpus_per_worker and options.scale.threads_per_worker == 1
    return time.process_time if alone else time.perf_counter


def _training_step(
    config: ModelConfig, options: PretrainOptions, manifest: Manifest, clock: Callable[[], float]
) -> Callable[[], float]:
    """A function that makes one optimizer step and returns its seconds by ``clock``."""
    name = next(known for known in available_models() if type(model_config(known)) is type(config))
    named = replace(options, model=ModelOptions(name, trained_config(config, options).to_dict()))
    device = prepare_device(options.scale)
    autoencoder = build_autoencoder(named, manifest).to(device)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=1e-6)
    workers = max(1, options.scale.workers)
    share = -(-options.batch.global_size // workers)
    examples = min(share, options.batch.per_worker_size or share)
    micro_batches = accumulation_steps(options.batch.global_size, options.batch.per_worker_size, workers)
    inputs = {
        spec.name: torch.randn(examples, spec.num_tokens, spec.num_channels, device=device)
        for spec in manifest.modalities
    }
    seeds = torch.arange(examples, device=device)

    def step() -> float:
        began = clock()
        for _ in range(micro_batches):
            with torch.autocast(device.type, torch.bfloat16, enabled=options.engine.precision == "bf16"):
                loss = autoencoder(inputs, seeds).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - began

    return step
