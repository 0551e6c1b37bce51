"""The report of a machine, and what stands between a user and a cluster."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from jobs.doctor import main
from pipeline.cluster.doctor import run_doctor
from pipeline.cluster.doctor_options import FAIL, DoctorOptions
from pipeline.errors import InfrastructureError
from pipeline.ray_session import RayOptions


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_machine_is_reported_as_text_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = f"storage={tmp_path / 'runs'}"
    assert main([storage, "ray.object_store_gib=0.1"]) in (0, 5)  # 5 on a machine with a full disk
    text = capsys.readouterr().out
    assert f"{socket.gethostname()} (this machine)" in text
    assert "frames/s on one core" in text
    assert "sqlite:///" in text
    main([storage, "format=json", "ray.object_store_gib=0.1"])
    findings = json.loads(capsys.readouterr().out)
    assert {"python", "storage", "mlflow", "decoding"} <= {finding["check"] for finding in findings}


def test_an_address_that_nobody_listens_on_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    report = run_doctor(DoctorOptions(ray=RayOptions(address="127.0.0.1:1")))
    (finding,) = report.findings
    assert (finding.check, finding.level) == ("address", FAIL)
    assert "ray status" in finding.fix
    assert "fix: is the head up" in report.to_text()
    with pytest.raises(InfrastructureError, match="1 checks failed: address"):
        report.check()


def test_remote_storage_without_a_tracking_server_is_a_finding(tmp_path: Path) -> None:
    report = run_doctor(DoctorOptions(storage="s3://bucket/runs?endpoint_override=127.0.0.1:1&scheme=http&region=x"))
    found = {finding.check: finding for finding in report.findings}
    assert found["mlflow"].level == FAIL
    assert "tracking.uri=http://host:5000" in found["mlflow"].fix
    assert found["storage"].level == FAIL
