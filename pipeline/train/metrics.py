"""Metrics by interval: what is learned, how fast, and what gets in the way."""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from pipeline.train.guards import Guard
from pipeline.train.hooks import Hook
from pipeline.train.steps import StepFacts
from pipeline.train.validation import Validation

if TYPE_CHECKING:
    from pipeline.train.loop import Trainer

Report = Callable[[int, Mapping[str, float]], bool]

# Dense bf16 peaks by the makers' data sheets, in TFLOP/s.
_KNOWN_PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "V100": 125.0, "T4": 65.0}


class Metrics(Hook):
    """Averages over ``metrics.every_steps`` steps, sent to the tracker, shown, and given to ``report`` if there is one.

    ``report(step, metrics)`` is for a search: it returns true to end the run at this step.
    """

    name = "metrics"

    def __init__(self, guard: Guard, tokens_per_example: int, flops_per_example: float, report: Report | None) -> None:
        self.guard = guard
        self.tokens_per_example = tokens_per_example
        self.flops_per_example = flops_per_example
        self.report = report
        self.latest: dict[str, float] = {}
        self._window: list[StepFacts] = []
        self._before: torch.Tensor | None = None
        self._parameters: list[torch.Tensor] = []
        self._update_ratio = math.nan
        self._mark = time.perf_counter()

    def on_start(self, trainer: Trainer) -> None:
        """Start the clock."""
        self._mark = time.perf_counter()

    def on_facts(self, trainer: Trainer, facts: Sequence[StepFacts]) -> None:
        """Collect; at the end of an interval, say it."""
        self._window.extend(facts)
        step = facts[-1].step
        if step % trainer.options.metrics.every_steps and step < trainer.total_steps:
            return
        self.latest = self._summary(trainer)
        self._window = []
        if trainer.rank == 0:
            trainer.tracker.log_metrics(self.latest, step)
            trainer.show(step, trainer.total_steps, self.latest)
            if self.report is not None:
                trainer.checkpoints.join()  # a search may copy files from here while it thinks
            if self.report is not None and self.report(step, {**_newest_validation(trainer), **self.latest}):
                trainer.ending = True

    def on_step(self, trainer: Trainer) -> None:
        """Weights before and after the last step of an interval give the update ratio."""
        every, step = trainer.options.metrics.every_steps, trainer.state.step
        if trainer.rank != 0 or trainer.options.engine.stage == 3:
            return
        if (step + 1) % every == 0:
            self._before = self._all_weights(trainer)

    def update_ratio(self, trainer: Trainer) -> float:
        """Norm of the last update relative to the norm of the weights; not a number where weights are sharded."""
        before, self._before = self._before, None
        if before is None:
            return math.nan
        now = self._all_weights(trainer)
        moved, whole = (torch.linalg.vector_norm(values, dtype=torch.float32) for values in (before.sub_(now), now))
        return float(moved / whole.clamp_min(1e-12))

    def _all_weights(self, trainer: Trainer) -> torch.Tensor:
        """A copy of all weights in one vector. The parameters are looked up once: their names are many."""
        if not self._parameters:
            self._parameters = list(trainer.engine.module.parameters())
        return torch.cat([parameter.detach().flatten() for parameter in self._parameters])

    def _summary(self, trainer: Trainer) -> dict[str, float]:
        window, last = self._window, self._window[-1]
        now = time.perf_counter()
        wall, self._mark = now - self._mark, now
        good = [fact for fact in window if math.isfinite(fact.loss)]
        examples_per_second = len(window) * trainer.options.batch.global_size / max(wall, 1e-9)
        values: dict[str, float] = {
            "loss": statistics.fmean(fact.loss for fact in good) if good else math.nan,
            **_means("loss", [fact.per_modality_loss for fact in good]),
            **_means("psnr_db", [fact.psnr for fact in good]),
            "learning_rate": last.learning_rate,
            "gradient_norm": statistics.fmean(fact.gradient_norm for fact in good) if good else math.nan,
            "update_ratio": self.update_ratio(trainer),
            "examples": float(last.examples_consumed),
            "examples_per_second": examples_per_second,
            "tokens_per_second": examples_per_second * self.tokens_per_example,
            "flop_utilisation": self._utilisation(trainer, examples_per_second),
            "data_wait_share": sum(fact.wait_seconds for fact in window) / max(wall, 1e-9),
            "seconds_per_step": wall / len(window),
            "seconds_to_finish": (trainer.total_steps - last.step) * wall / len(window),
            "memory_gib": memory_gib(trainer.engine.device),
            "rollbacks": float(self.guard.rollbacks),
            **{name: float(count) for name, count in self.guard.counts.items()},
        }
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def _utilisation(self, trainer: Trainer, examples_per_second: float) -> float:
        peak = trainer.options.metrics.peak_tflops or known_peak_tflops(trainer.engine.device)
        if not peak:
            return math.nan
        # Backward costs twice the forward pass.
        return 3 * self.flops_per_example * examples_per_second / (peak * 1e12 * trainer.workers)


def known_peak_tflops(device: torch.device) -> float | None:
    """The bf16 peak of a GPU, from its name; none for others."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in _KNOWN_PEAKS.items() if key in name), None)


def memory_gib(device: torch.device) -> float:
    """The highest memory use so far: of the device, or of the process on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _newest_validation(trainer: Trainer) -> dict[str, float]:
    """What held-out examples said last; nothing before they were asked."""
    return next((hook.latest for hook in trainer.hooks if isinstance(hook, Validation)), {})


def _means(prefix: str, rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            found.setdefault(f"{prefix}/{name}", []).append(value)
    return {name: statistics.fmean(values) for name, values in found.items()}
