"""The committed deployment files: made by the commands they name, valid, and safe."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from jobs.submit import main
from pipeline.cluster.submit_verbs import SENT_VERBS

ROOT = Path(__file__).parents[3]
SCHEMAS = ROOT.parent / "shared" / "kuberay"
MANIFESTS = sorted((ROOT / "deploy" / "kuberay").glob("*.yaml"))
RAY_CLUSTERS = sorted((ROOT / "deploy" / "ray").glob("*.yaml"))


def content_of(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text())
    assert isinstance(content, dict)
    return content


def ids(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


def pod_specs(content: Any) -> Iterator[dict[str, Any]]:
    """Every pod specification inside a manifest."""
    if isinstance(content, dict):
        if "containers" in content:
            yield content
        for value in content.values():
            yield from pod_specs(value)
    elif isinstance(content, list):
        for value in content:
            yield from pod_specs(value)


def cluster_specs(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    spec = content["spec"].get("jobTemplate", content["spec"])
    if "headGroupSpec" in spec or "rayClusterSpec" in spec:
        yield spec.get("rayClusterSpec", spec)


@pytest.mark.parametrize("path", MANIFESTS, ids=ids(MANIFESTS))
def test_a_manifest_is_what_its_own_command_makes(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = path.read_text()
    command = shlex.split(text.partition("\n")[0].removeprefix("# Made by: "))
    assert command[:2] == ["hip", "submit"]
    assert main(command[2:]) == 0
    assert capsys.readouterr().out == text


def test_there_is_a_manifest_for_every_verb() -> None:
    kinds = {(content_of(path)["kind"], path.stem) for path in MANIFESTS}
    assert {("RayJob", verb) for verb in SENT_VERBS} <= kinds
    assert {kind for kind, _ in kinds} == {"RayJob", "RayCluster", "RayCronJob", "NetworkPolicy"}


@pytest.mark.parametrize("path", MANIFESTS, ids=ids(MANIFESTS))
def test_a_manifest_follows_kuberays_schema(path: Path) -> None:
    content = content_of(path)
    schema = SCHEMAS / f"{content['kind'].lower()}s.json"
    if content["kind"] == "NetworkPolicy" or not schema.exists():
        pytest.skip("no schema at hand")
    jsonschema.Draft7Validator(json.loads(schema.read_text())).validate(content)
    planted = {**content, "spec": {**content["spec"], "backofLimit": 1}}
    assert not jsonschema.Draft7Validator(json.loads(schema.read_text())).is_valid(planted)


@pytest.mark.parametrize("path", MANIFESTS, ids=ids(MANIFESTS))
def test_pods_are_confined_and_pinned(path: Path) -> None:
    for pod in pod_specs(content_of(path)):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert re.search(r":[0-9][\w.-]*$", container["image"])
            assert set(container["resources"]["limits"]) == set(container["resources"]["requests"])


@pytest.mark.parametrize("path", MANIFESTS, ids=ids(MANIFESTS))
def test_secrets_are_references(path: Path) -> None:
    secret = re.compile(r"SECRET|PASSWORD|TOKEN$|ACCESS_KEY")
    for pod in pod_specs(content_of(path)):
        for variable in (entry for container in pod["containers"] for entry in container.get("env", [])):
            assert "value" not in variable or not secret.search(variable["name"])
            if "valueFrom" in variable:
                assert variable["valueFrom"]["secretKeyRef"]["key"] == variable["name"]


@pytest.mark.parametrize("path", MANIFESTS, ids=ids(MANIFESTS))
def test_the_head_works_not_and_pools_have_what_workers_need(path: Path) -> None:
    for cluster in cluster_specs(content_of(path)):
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
        groups = cluster["workerGroupSpecs"]
        assert groups
        for group in groups:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
            assert cluster["enableInTreeAutoscaling"] or group["minReplicas"] == group["maxReplicas"]
            pod = group["template"]["spec"]
            memory = next(volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shared-memory")
            assert memory["medium"] == "Memory"
            assert {"name": "shared-memory", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
            gpus = "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]
            assert gpus == ("tolerations" in pod) == (group["groupName"] == "gpu")
            assert pod["containers"][0]["image"].endswith("cuda") == gpus


def test_elastic_training_has_pods_for_its_smallest_and_largest_group() -> None:
    spec = content_of(ROOT / "deploy" / "kuberay" / "pretrain.yaml")["spec"]
    assert "scale=elastic" in spec["entrypoint"]  # 8 to 32 workers with one GPU each, eight GPUs a pod
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (1, 4)
    assert spec["backoffLimit"] == 3
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] == 3600


def test_both_pools_stand_in_the_lasting_cluster() -> None:
    (cluster,) = cluster_specs(content_of(ROOT / "deploy" / "kuberay" / "ray-cluster.yaml"))
    assert [group["groupName"] for group in cluster["workerGroupSpecs"]] == ["cpu", "gpu"]


def test_evaluation_is_on_a_schedule() -> None:
    spec = content_of(ROOT / "deploy" / "kuberay" / "evaluate-scheduled.yaml")["spec"]
    assert spec["schedule"] == "0 3 * * *"
    assert "jobs evaluate" in spec["jobTemplate"]["entrypoint"]


@pytest.mark.parametrize("path", RAY_CLUSTERS, ids=ids(RAY_CLUSTERS))
def test_a_cluster_file_follows_rays_schema_and_opens_nothing(path: Path) -> None:
    import ray

    content = content_of(path)
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.Draft7Validator(schema).validate(content)
    assert not jsonschema.Draft7Validator(schema).is_valid({**content, "max_worker": 1})
    start = " ".join(content["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert all("RAY_AUTH_MODE=token" in line for line in re.findall(r"[^;]*ray start[^;]*", start))
    head = content["available_node_types"][content["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert {"head", "cpu", "gpu"} == set(content["available_node_types"])


def test_there_are_cluster_files_for_both_clouds() -> None:
    assert [content_of(path)["provider"]["type"] for path in RAY_CLUSTERS] == ["aws", "gcp"]
