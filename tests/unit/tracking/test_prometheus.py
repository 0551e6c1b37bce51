"""Exporting costs nothing and breaks nothing where no Ray runs."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from pipeline.tracking.prometheus import METRICS, Exporter


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_names_follow_prometheus_rules_and_say_what_they_are(metric: object) -> None:
    name, labels = metric.name, metric.labels  # type: ignore[attr-defined]
    assert re.fullmatch(r"hip_(train|preprocess)_[a-z_]+", name)
    assert labels[0] in ("run", "dataset")
    assert metric.description  # type: ignore[attr-defined]


def test_a_number_that_is_not_finite_is_not_exported() -> None:
    exporter = Exporter(run="here", rank="0")
    exporter.set("hip_train_loss", float("nan"))
    assert not exporter._gauges


def test_a_process_without_ray_exports_nothing() -> None:
    program = """
from pipeline.tracking.prometheus import Exporter
exporter = Exporter(run="here", rank="0")
exporter.set("hip_train_loss", 1.0)
assert not exporter._gauges
"""
    subprocess.run([sys.executable, "-c", program], check=True)  # of its own: other tests start Ray in this one


def test_a_misspelt_metric_is_a_mistake_of_ours_and_is_told() -> None:
    with pytest.raises(KeyError):
        Exporter(run="here").set("hip_train_lose", 1.0)
