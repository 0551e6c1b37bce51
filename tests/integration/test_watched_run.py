"""What Prometheus reads from Ray's metrics agent while a real run goes on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.tracking.prometheus import METRICS, PREFIX

pytestmark = [pytest.mark.integration, pytest.mark.fault]

HERE = Path(__file__).parent
DEPLOY = HERE.parents[1] / "deploy"
_GPU_ONLY = {"ray_node_gpus_utilization"}


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Name and labels of every line that was seen, with its last value."""
    folder = tmp_path_factory.mktemp("watched")
    done = subprocess.run(
        [sys.executable, str(HERE / "watch_driver.py"), str(folder)],
        env={**os.environ, "RAY_metrics_report_interval_ms": "500"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert (folder / "scraped.json").exists(), done.stderr[-3000:]
    return {str(key): float(value) for key, value in json.loads((folder / "scraped.json").read_text()).items()}


def labelled(scraped: dict[str, float], name: str, *labels: str) -> list[float]:
    start = PREFIX + name + "{"
    return [value for key, value in scraped.items() if key.startswith(start) and all(label in key for label in labels)]


def test_every_metric_is_read_with_its_labels(scraped: dict[str, float]) -> None:
    for metric in METRICS.values():
        lines = [key for key in scraped if key.partition("{")[0] == PREFIX + metric.name]
        assert lines, f"{metric.name} was never exported"
        for label in metric.labels:
            assert all(f'{label}="' in line for line in lines)
    for rank in "01":
        assert labelled(scraped, "hip_train_data_wait_share", 'run="watched"', f'rank="{rank}"')
    assert labelled(scraped, "hip_train_modality_loss", 'modality="audio"')
    assert labelled(scraped, "hip_train_bad_steps", 'reason="loss_spikes"')
    assert min(labelled(scraped, "hip_train_loss")) > 0
    assert 0 < labelled(scraped, "hip_train_storage_used_share")[0] < 1
    assert labelled(scraped, "hip_preprocess_files", 'outcome="failed"') == [1.0]
    assert labelled(scraped, "hip_preprocess_files", 'outcome="planned"') == [4.0]
    assert labelled(scraped, "hip_preprocess_quarantine_share") == [0.25]


def test_the_dashboard_and_the_alerts_use_names_that_this_ray_exports(scraped: dict[str, float]) -> None:
    text = (DEPLOY / "grafana" / "hip.json").read_text() + (DEPLOY / "prometheus" / "alerts.yaml").read_text()
    names = set(re.findall(r"\bray_(?:node|hip|cluster)_[a-z0-9_]+", text)) - _GPU_ONLY
    assert len(names) > len(METRICS)
    assert names <= {key.partition("{")[0] for key in scraped}
