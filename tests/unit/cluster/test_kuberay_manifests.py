"""Manifests follow the settings, and what Kubernetes could not run is refused before kubectl is asked."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cluster.kuberay import manifest, manifest_text
from pipeline.cluster.kuberay_apply import apply_manifest, referenced_keys
from pipeline.cluster.kuberay_options import KubeRayOptions, PodOptions
from pipeline.cluster.submit import prepare
from pipeline.cluster.submit_options import SubmitOptions
from pipeline.errors import InfrastructureError, UserError

REMOTE = ["shards=s3://b/clips", "storage=s3://b/runs", "run.name=first", "tracking.uri=http://mlflow:5000"]
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def made(*settings: str, kuberay: KubeRayOptions | None = None, **own: Any) -> dict[str, Any]:
    options = SubmitOptions(job="pretrain", target="kuberay", kuberay=kuberay or KubeRayOptions(), **own)
    return manifest(options, prepare(options, [*REMOTE, *settings]))


def pool(content: dict[str, Any]) -> tuple[str, int, int]:
    (group,) = content["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return group["groupName"], group["minReplicas"], group["maxReplicas"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["scale=elastic"], ("gpu", 1, 4)),
        (["scale=node"], ("gpu", 1, 1)),
        (["scale=gpu"], ("gpu", 1, 1)),
        (["scale=local"], ("cpu", 1, 1)),
        (["scale.workers=20", "batch.global_size=80"], ("cpu", 3, 3)),
        (["scale.workers=4", "scale.placement=STRICT_SPREAD"], ("cpu", 4, 4)),
        (["scale=in_process"], ("cpu", 1, 1)),
    ],
)
def test_pods_follow_the_worker_group(settings: list[str], expected: tuple[str, int, int]) -> None:
    assert pool(made(*settings)) == expected


def test_a_verb_that_works_by_itself_runs_on_a_worker_and_not_on_the_head() -> None:
    spec = made("scale=in_process")["spec"]
    assert spec["entrypointNumCpus"] == 1
    assert "entrypointNumCpus" not in made("scale=node")["spec"]


def test_settings_arrive_in_the_manifest() -> None:
    kuberay = KubeRayOptions(
        name="mine", namespace="team", retries=5, keep_seconds=60, deadline_seconds=7200, service_account="hip",
        claim="files", gpu_pod=PodOptions(64, 8, 512, 128, node_selector={"pool": "a"}),
    )  # fmt: skip
    content = made("scale=node", "shards=/shared/clips", kuberay=kuberay, env={"A": "1"}, secrets=SECRETS)
    assert content["metadata"]["name"] == "mine"
    assert content["metadata"]["namespace"] == "team"
    spec = content["spec"]
    assert (spec["backoffLimit"], spec["ttlSecondsAfterFinished"], spec["activeDeadlineSeconds"]) == (5, 60, 7200)
    pod = spec["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert pod["serviceAccountName"] == "hip"
    assert pod["nodeSelector"] == {"pool": "a"}
    assert {"name": "shared-files", "mountPath": "/shared"} in pod["containers"][0]["volumeMounts"]
    assert {"name": "A", "value": "1"} in pod["containers"][0]["env"]
    assert referenced_keys(content) == list(SECRETS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["scale.cpus_per_worker=9", "scale.workers=1"], "does not fit a pod of 8 CPUs and 0 GPUs"),
        (["scale=node", "scale.workers=16"], "STRICT_PACK wants 16 workers in one pod, which holds 8"),
        (["storage=/shared/runs"], "gone with its pod"),
    ],
)
def test_what_no_pod_can_run_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(*settings)


def test_a_folder_beside_the_mounted_one_is_not_mounted() -> None:
    with pytest.raises(UserError, match="gone with its pod"):
        made("storage=/shared_not/runs", kuberay=KubeRayOptions(claim="files"))


def test_a_job_needs_a_verb() -> None:
    with pytest.raises(UserError, match="job is required"):
        manifest(SubmitOptions(target="kuberay"), None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "RayJobs"}, "'RayJob'"),
        ({"name": "My_Run"}, "small letters"),
        ({"cpu_image": "hip-pipeline"}, "not pinned"),
        ({"cuda_image": "registry:5000/hip:latest"}, "not pinned"),
        ({"schedule": "daily"}, "five fields"),
        ({"retries": -1}, "kuberay.retries"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        KubeRayOptions(**values)


def test_shared_memory_is_part_of_the_memory() -> None:
    with pytest.raises(UserError, match="taken out of memory_gib"):
        PodOptions(memory_gib=8, shared_memory_gib=8)


def test_the_text_is_the_content_under_its_command() -> None:
    options = SubmitOptions(target="kuberay", kuberay=KubeRayOptions(kind="RayCluster"))
    text = manifest_text(options, None, "hip submit target=kuberay")
    assert text.startswith("# Made by: hip submit target=kuberay\n")
    assert yaml.safe_load(text) == manifest(options, None)
    assert "&id" not in text


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for kubectl and its cluster: knows KubeRay and a secret with one key; notes what is applied."""
    script = tmp_path / "bin" / "kubectl"
    script.parent.mkdir()
    script.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        f"  *get\\ crd*) [ -e {tmp_path}/no_kuberay ] && {{ echo 'Error (NotFound)' >&2; exit 1; }}; echo crd ;;\n"
        f"  *get\\ secret*) cat {tmp_path}/keys ;;\n"
        f"  *apply*) cat > {tmp_path}/applied; echo created ;;\n"
        "esac\n"
    )
    script.chmod(0o755)
    (tmp_path / "keys").write_text("AWS_ACCESS_KEY_ID\n")
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    return tmp_path


def test_a_manifest_is_applied_when_its_secret_is_there(kubectl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = yaml.safe_dump(made(secrets=SECRETS[:1]))
    apply_manifest(KubeRayOptions(), text)
    assert (kubectl / "applied").read_text() == text
    assert "kubectl -n hip get rayjob hip-pretrain-first-" in capsys.readouterr().out


def test_a_missing_key_of_the_secret_is_told_before_anything_is_applied(kubectl: Path) -> None:
    with pytest.raises(UserError, match="has no AWS_SECRET_ACCESS_KEY; make it: kubectl -n hip create secret generic"):
        apply_manifest(KubeRayOptions(), yaml.safe_dump(made(secrets=SECRETS)))
    assert not (kubectl / "applied").exists()


def test_a_cluster_without_kuberay_is_told(kubectl: Path) -> None:
    (kubectl / "no_kuberay").touch()
    with pytest.raises(UserError, match="no KubeRay"):
        apply_manifest(KubeRayOptions(), yaml.safe_dump(made()))
    assert not (kubectl / "applied").exists()


def test_without_kubectl_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="dry_run=true"):
        apply_manifest(KubeRayOptions(), yaml.safe_dump(made()))


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_a_kubernetes_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cluster = {"name": "a", "cluster": {"server": "http://127.0.0.1:1"}}
    context = {"name": "a", "context": {"cluster": "a", "user": ""}}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [cluster],
        "contexts": [context],
        "current-context": "a",
    }
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with pytest.raises(InfrastructureError, match=r"kubectl get crd .* failed: .*refused"):
        apply_manifest(KubeRayOptions(), yaml.safe_dump(made()))
