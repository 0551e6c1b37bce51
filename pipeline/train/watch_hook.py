"""Shows a run to Prometheus: what it does, how fast, what each rank waits for, and when it last moved."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.storage import is_local, local_path, name_of
from pipeline.tracking.prometheus import Exporter
from pipeline.train.guards import Guard
from pipeline.train.hooks import Hook
from pipeline.train.metrics import Metrics, memory_gib
from pipeline.train.steps import StepFacts

if TYPE_CHECKING:
    from pipeline.train.loop import Trainer

logger = logging.getLogger(__name__)

# Metrics of the tracker that Prometheus shows too.
_SHOWN = {
    "loss": "hip_train_loss",
    "gradient_norm": "hip_train_gradient_norm",
    "learning_rate": "hip_train_learning_rate",
    "examples_per_second": "hip_train_examples_per_second",
    "flop_utilisation": "hip_train_flop_utilisation",
    "rollbacks": "hip_train_rollbacks",
}


class Watch(Hook):
    """Comes after ``Metrics``, whose averages it shows. Costs a few microseconds a step, and nothing without Ray."""

    name = "watch"

    def __init__(self, metrics: Metrics, guard: Guard) -> None:
        self.metrics = metrics
        self.guard = guard
        self._exporter = Exporter()
        self._checkpoint: str | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Say that the run is there."""
        run = name_of(trainer.checkpoints.run_folder)
        self._exporter = Exporter(run=run, rank=str(trainer.rank))
        self._checkpoint = trainer.checkpoints.whole
        self._moved(trainer)
        if trainer.rank == 0:
            self._exporter.set("hip_train_active", 1.0)
            self._exporter.set("hip_train_steps_planned", trainer.total_steps)

    def on_facts(self, trainer: Trainer, facts: Sequence[StepFacts]) -> None:
        """At the end of an interval, what ``Metrics`` made of it."""
        if trainer.rank != 0:
            return
        for reason, count in self.guard.counts.items():
            self._exporter.set("hip_train_bad_steps", count, reason=reason)
        if facts[-1].step % trainer.options.metrics.every_steps and facts[-1].step < trainer.total_steps:
            return
        for name, value in self.metrics.latest.items():
            if name in _SHOWN:
                self._exporter.set(_SHOWN[name], value)
            elif name.startswith("loss/"):
                self._exporter.set("hip_train_modality_loss", value, modality=name.removeprefix("loss/"))
        self._show_disk(trainer)

    def on_step(self, trainer: Trainer) -> None:
        """That this rank moves, how long its step took, and how much of that it waited for data."""
        self._moved(trainer)
        record = trainer.recent[-1]
        self._exporter.set("hip_train_step_seconds", record.seconds)
        self._exporter.set("hip_train_data_wait_share", record.wait_seconds / max(record.seconds, 1e-9))
        if trainer.state.step % trainer.options.metrics.every_steps == 0:
            self._exporter.set("hip_train_memory_gib", memory_gib(trainer.engine.device))
        self._show_checkpoint(trainer)

    def on_end(self, trainer: Trainer) -> None:
        """A run that has ended is not one that hangs."""
        if trainer.rank == 0:
            self._exporter.set("hip_train_active", 0.0)

    def _moved(self, trainer: Trainer) -> None:
        self._exporter.set("hip_train_last_step_timestamp_seconds", time.time())
        if trainer.rank == 0:
            self._exporter.set("hip_train_step", trainer.state.step)

    def _show_checkpoint(self, trainer: Trainer) -> None:
        """One that was written since the step before."""
        written = trainer.checkpoints
        if trainer.rank != 0 or written.whole == self._checkpoint:
            return
        self._checkpoint = written.whole
        self._exporter.set("hip_train_checkpoint_seconds", written.seconds)
        self._exporter.set("hip_train_last_checkpoint_timestamp_seconds", time.time())

    def _show_disk(self, trainer: Trainer) -> None:
        if not is_local(trainer.options.storage):
            return
        try:
            disk = shutil.disk_usage(local_path(trainer.options.storage))
        except OSError as error:
            logger.debug("cannot look at the disk: %s", error)
            return
        self._exporter.set("hip_train_storage_used_share", 1 - disk.free / disk.total)
