"""Numbers for Prometheus, exported by the metrics agent of the Ray node that a process runs on.

Prometheus reads each node's agent; a metric ``hip_train_loss`` appears there as ``ray_hip_train_loss`` with the labels
below and those of Ray (node, job, worker). Without Ray nothing is exported, and nothing here ever raises.
"""

from __future__ import annotations

import logging
import math
import sys
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

PREFIX = "ray_"


@dataclass(frozen=True)
class Metric:
    """One gauge: its name without Ray's prefix, what it says, and its labels."""

    name: str
    description: str
    labels: tuple[str, ...]


_RUN, _RANK, _DATASET = ("run",), ("run", "rank"), ("dataset",)
METRICS = {
    metric.name: metric
    for metric in (
        Metric("hip_train_active", "1 while the run trains, 0 after its last step", _RUN),
        Metric("hip_train_step", "last finished step", _RUN),
        Metric("hip_train_steps_planned", "steps of the whole run", _RUN),
        Metric("hip_train_last_step_timestamp_seconds", "when a rank finished its last step, since 1970", _RANK),
        Metric("hip_train_loss", "mean loss of the last interval", _RUN),
        Metric("hip_train_modality_loss", "mean loss of one modality in the last interval", (*_RUN, "modality")),
        Metric("hip_train_gradient_norm", "mean gradient norm of the last interval", _RUN),
        Metric("hip_train_learning_rate", "learning rate of the last step", _RUN),
        Metric("hip_train_examples_per_second", "examples of all workers in a second", _RUN),
        Metric("hip_train_flop_utilisation", "model FLOPs over the peak of all devices, 0 to 1", _RUN),
        Metric("hip_train_step_seconds", "seconds of a rank's last step", _RANK),
        Metric("hip_train_data_wait_share", "share of a rank's last step spent waiting for data", _RANK),
        Metric("hip_train_memory_gib", "highest memory use so far: of the device, or of the process on CPU", _RANK),
        Metric("hip_train_bad_steps", "steps not applied or spiking since the run began", (*_RUN, "reason")),
        Metric("hip_train_rollbacks", "returns to the last good checkpoint since the run began", _RUN),
        Metric("hip_train_checkpoint_seconds", "seconds that the last checkpoint took", _RUN),
        Metric("hip_train_last_checkpoint_timestamp_seconds", "when the last checkpoint was whole, since 1970", _RUN),
        Metric("hip_train_storage_used_share", "used share of the disk that holds the runs, 0 to 1", _RUN),
        Metric("hip_preprocess_files", "files of the run by outcome: planned, done, failed", (*_DATASET, "outcome")),
        Metric("hip_preprocess_examples_per_second", "examples made in a second, since the start", _DATASET),
        Metric("hip_preprocess_quarantine_share", "failed files over finished ones, 0 to 1", _DATASET),
    )
}


class Exporter:
    """Sets gauges of this process, with labels that all of them share.

    Args:
        labels: such as ``run``; metrics that do not have one of them leave it out.
    """

    def __init__(self, **labels: str) -> None:
        self._labels = labels
        self._gauges: dict[str, Any] = {}

    def set(self, name: str, value: float, **labels: str) -> None:
        """Show ``value`` from now on; a number that is not finite is passed over, for Prometheus would keep it."""
        metric = METRICS[name]
        if not math.isfinite(value) or not ray_is_here():
            return
        given = {**self._labels, **labels}
        try:
            gauge = self._gauges.get(name)
            if gauge is None:
                from ray.util.metrics import Gauge

                gauge = self._gauges[name] = Gauge(name, metric.description, metric.labels)
            gauge.set(value, {label: given[label] for label in metric.labels})
        except Exception as error:  # watching a run must not end it
            logger.debug("metric %s was not exported: %s", name, error)


def ray_is_here() -> bool:
    """Whether this process belongs to a Ray cluster."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
