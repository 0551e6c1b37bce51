"""What a tracked run has logged so far."""

from __future__ import annotations

from pipeline.tracking.options import TrackingOptions, resolve_uri


def metric_history(options: TrackingOptions, storage: str, run_id: str, metric: str) -> list[tuple[int, float]]:
    """(step, value) of one metric of a run, in the order of steps; empty when the run never logged it."""
    from mlflow import MlflowClient

    entries = MlflowClient(resolve_uri(options, storage)).get_metric_history(run_id, metric)
    return sorted((entry.step, entry.value) for entry in entries)
