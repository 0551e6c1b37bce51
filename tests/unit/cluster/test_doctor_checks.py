"""Each fault of a machine is found, and each finding that is not ok names its fix."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster.doctor_checks import GIB, check_machine
from pipeline.cluster.doctor_cluster import compare
from pipeline.cluster.doctor_options import FAIL, OK, WARN, DoctorOptions, Finding
from pipeline.cluster.doctor_probe import probe_machine
from pipeline.cluster.doctor_services import check_tracking
from pipeline.cluster.doctor_tracking import probe_tracking
from pipeline.errors import UserError

SHARED_MEMORY_BYTES = 0.1 * GIB
Facts = dict[str, Any]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """What this machine really says, with a full disk or little memory of its own made up for."""
    facts = probe_machine(str(tmp_path_factory.mktemp("storage")), None, None)
    facts["memory"] = {"total": 24 * GIB, "free": 20 * GIB}
    facts["open_files"] = 65536
    for disk in (facts["temporary"], facts["storage"]["disk"], facts["shared_memory"]):
        disk |= {"total": 100 * GIB, "free": 50 * GIB}
    return facts


def levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.level for finding in findings}


def test_a_sound_machine_has_no_complaint(sound: Facts) -> None:
    findings = check_machine(sound, SHARED_MEMORY_BYTES)
    assert set(levels(findings).values()) == {OK}, findings
    assert {"python", "packages", "devices", "storage", "storage disk", "decoding"} <= levels(findings).keys()


def change(*path: str, to: Any) -> Callable[[Facts], None]:
    def apply(facts: Facts) -> None:
        for key in path[:-1]:
            facts = facts[key]
        facts[path[-1]] = to

    return apply


@pytest.mark.parametrize(
    ("fault", "check", "level", "fix"),
    [
        (change("python", to="3.9.2"), "python", FAIL, ">=3.11"),
        (change("packages", "ray", to="2.40.0"), "ray", FAIL, "ray[data,default,train,tune]==2.60.0"),
        (change("packages", "hip-pipeline", to=None), "hip-pipeline", FAIL, "one image"),
        (change("devices", to={"error": "libcuda.so is broken"}), "devices", FAIL, "same release"),
        (change("devices", "nodes", to=["nvidia0"]), "devices", FAIL, "CUDA build"),
        (change("memory", "free", to=GIB), "memory", WARN, "stop what else runs"),
        (change("shared_memory", "total", to=GIB // 16), "shared memory", FAIL, "--shm-size"),
        (change("open_files", to=1024), "open files", WARN, "ulimit -n"),
        (change("temporary", "free", to=4 * GIB), "temporary disk", FAIL, "95 %"),
        (change("temporary", "free", to=8 * GIB), "temporary disk", WARN, "another disk"),
        (change("storage", "same", to=False), "storage", FAIL, "file system"),
        (change("storage", "token_seen", to=False), "storage", FAIL, "all nodes mount"),
        (change("storage", to={"error": "PermissionError: access denied"}), "storage", FAIL, "credentials"),
        (change("storage", to={"error": "timeout while connecting"}), "storage", FAIL, "firewall"),
        (change("storage", to={"error": "pipeline cannot be imported", "missing": "pipeline"}), "storage", FAIL, "one"),
        (change("shards", to={"error": "no manifest"}), "shards", FAIL, "hip preprocess"),
        (change("decode", "frames", to=3), "decoding", FAIL, "PyAV"),
        (change("decode", to={"error": "UnknownCodecError: libx264"}), "decoding", FAIL, "av>=18"),
    ],
)
def test_a_fault_is_found_with_its_fix(
    sound: Facts, fault: Callable[[Facts], None], check: str, level: str, fix: str
) -> None:
    facts = copy.deepcopy(sound)
    fault(facts)
    bad = [finding for finding in check_machine(facts, SHARED_MEMORY_BYTES) if finding.level != OK]
    assert [(finding.check, finding.level) for finding in bad] == [(check, level)]
    assert fix in bad[0].fix


def test_fewer_usable_gpus_than_present_and_a_cuda_build_blames_the_driver(sound: Facts) -> None:
    facts = copy.deepcopy(sound)
    facts["devices"] = {"nodes": ["nvidia0", "nvidia1"], "names": ["A"], "driver": "470.1", "cuda_build": "12.8"}
    (bad,) = [finding for finding in check_machine(facts, SHARED_MEMORY_BYTES) if finding.level != OK]
    assert "2 GPUs, 1 usable" in bad.what
    assert "driver 470.1" in bad.fix


def test_looking_makes_no_folder_and_leaves_no_file(tmp_path: Path) -> None:
    facts = probe_machine(str(tmp_path / "not" / "there"), None, None)
    assert facts["storage"]["same"]
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_cannot_be_written_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    facts = probe_machine(str(tmp_path / "file"), str(tmp_path), None)
    found = levels(check_machine(facts, SHARED_MEMORY_BYTES))
    assert found["storage"] == FAIL
    assert found["shards"] == FAIL


def test_versions_that_differ_between_nodes_are_named(sound: Facts) -> None:
    other = copy.deepcopy(sound)
    other["packages"]["torch"] = "2.9.0"
    (found,) = compare({"10.0.0.1": sound, "10.0.0.2": other})
    assert found.level == FAIL
    assert "2.9.0 on 10.0.0.2" in found.what
    assert [found.level for found in compare({"a": sound, "b": sound})] == [OK]
    assert list(compare({"a": sound})) == []


@pytest.mark.parametrize(
    ("answer", "nodes", "level", "fix"),
    [
        ({"kind": "server", "status": 200, "version": "3.17.2", "seconds": 0.1}, 2, OK, ""),
        ({"kind": "server", "status": 200, "version": "", "seconds": 0.1}, 2, OK, ""),
        ({"kind": "server", "status": 200, "version": "2.9.0", "seconds": 0.1}, 1, WARN, "one major version"),
        ({"kind": "server", "status": 401, "version": "", "seconds": 0.1}, 1, FAIL, "MLFLOW_TRACKING_USERNAME"),
        ({"kind": "server", "status": 404, "version": "", "seconds": 0.1}, 1, FAIL, "root"),
        ({"kind": "file", "seconds": 0.1}, 1, OK, ""),
        ({"kind": "file", "seconds": 0.1}, 2, FAIL, "mlflow server"),
        ({"kind": "http", "error": "ConnectionRefusedError"}, 1, FAIL, "mlflow server"),
    ],
)
def test_mlflow_is_judged_by_its_answer(answer: Facts, nodes: int, level: str, fix: str) -> None:
    (found,) = check_tracking(answer, "http://user:hunter2@tracking:5000", nodes)
    assert found.level == level
    assert fix in found.fix
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(
    ("answer", "nodes", "level", "says"),
    [
        ({"location": "mlflow-artifacts:/1", "folder": False}, 4, OK, "mlflow-artifacts:/1"),
        ({"location": "s3://b/1", "folder": False, "kept": "hip-doctor-1"}, 4, OK, "hip-doctor-1"),
        ({"location": "s3://k:hunter2@b", "folder": False, "error": "AccessDenied"}, 4, FAIL, "credentials"),
        ({"location": "/srv/mlruns/1", "folder": True}, 1, OK, "/srv/mlruns/1"),
        ({"location": "/srv/mlruns/1", "folder": True}, 2, WARN, "--artifacts-destination"),
        ({"location": "/srv/1", "folder": True, "error": "/srv cannot be written"}, 2, FAIL, "--artifacts-destination"),
    ],
)
def test_the_place_of_artifacts_is_judged_too(answer: Facts, nodes: int, level: str, says: str) -> None:
    server = {"kind": "server", "status": 200, "version": "3.17.2", "seconds": 0.1}
    _, found = check_tracking({**server, "artifacts": answer}, "http://tracking:5000", nodes)
    assert (found.check, found.level) == ("mlflow artifacts", level)
    assert says in found.what + found.fix
    assert "hunter2" not in str(found)


def test_a_store_that_is_away_gives_an_error_and_a_file_does_not(tmp_path: Path) -> None:
    assert "refused" in probe_tracking("http://127.0.0.1:1", "hip", 2)["error"]
    assert "refused" in probe_tracking("postgresql://user:secret@127.0.0.1:1/mlflow", "hip", 2)["error"]
    assert "error" not in probe_tracking(f"sqlite:///{tmp_path}/new/mlflow.db", "hip", 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("options", "named"), [({"format": "xml"}, "json"), ({"timeout_seconds": 0}, "above 0")])
def test_options_are_checked(options: Facts, named: str) -> None:
    with pytest.raises(UserError, match=named):
        DoctorOptions(**options)
