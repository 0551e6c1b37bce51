"""The doctor on a real Ray cluster: every node answers, clocks and storage are compared, nothing is left behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cluster.doctor import run_doctor
from pipeline.cluster.doctor_options import OK, DoctorOptions
from pipeline.ray_session import RayOptions
from pipeline.tracking.options import TrackingOptions

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]


def test_every_node_answers_and_nothing_is_left_behind(tmp_path: Path) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    options = DoctorOptions(
        storage=str(tmp_path), ray=RayOptions(address=address), tracking=TrackingOptions("http://127.0.0.1:1")
    )
    report = run_doctor(options)
    found = {finding.check: finding for finding in report.findings}
    for check in ("nodes", "packages", "storage", "clock", "decoding", "shared memory"):
        assert found[check].level == OK, found[check]
    assert abs(float(found["clock"].what.split()[0])) < 1.0
    assert "Connection refused" in found["mlflow"].what
    assert ", head)" in found["storage"].node
    assert list(tmp_path.iterdir()) == []
    untracked = run_doctor(replace(options, tracking=TrackingOptions(enabled=False)))
    assert "mlflow" not in {finding.check for finding in untracked.findings}
