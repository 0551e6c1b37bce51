"""Pods of a Ray cluster on Kubernetes: non-root, with shared memory, secrets by reference, and room for the work."""

from __future__ import annotations

from typing import Any

from pipeline.cluster.kuberay_options import KubeRayOptions, PodOptions

USER = 1000  # deploy/Dockerfile's
PART_OF = {"app.kubernetes.io/part-of": "hip-pipeline"}
_GPU = "nvidia.com/gpu"
_CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
_POD_SECURITY = {
    "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}  # fmt: skip
HEAD_POD = PodOptions(cpus=4, memory_gib=16, shared_memory_gib=4)
_SUBMITTER_RESOURCES = {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "2Gi"}}


def ray_pod(
    options: KubeRayOptions, container: str, image: str, pod: PodOptions, environment: list[dict[str, Any]]
) -> dict[str, Any]:
    """The template of one Ray pod; a pod with GPUs tolerates the taint that keeps others off them."""
    amounts: dict[str, Any] = {"cpu": str(pod.cpus), "memory": f"{pod.memory_gib}Gi"}
    if pod.gpus:
        amounts[_GPU] = str(pod.gpus)
    mounts = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    volumes: list[dict[str, Any]] = [
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": f"{pod.shared_memory_gib}Gi"}}
    ]
    if options.claim is not None:
        mounts.append({"name": "shared-files", "mountPath": options.claim_path})
        volumes.append({"name": "shared-files", "persistentVolumeClaim": {"claimName": options.claim}})
    spec: dict[str, Any] = {
        "securityContext": dict(_POD_SECURITY),
        "containers": [
            {
                "name": container,
                "image": image,
                "env": environment,
                # Equal on purpose: a pod that may take more than it asked for is the first to be evicted.
                "resources": {"requests": dict(amounts), "limits": dict(amounts)},
                "securityContext": dict(_CONTAINER_SECURITY),
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
        # Time to save a checkpoint when the node is drained.
        "terminationGracePeriodSeconds": 120,
    }
    if options.service_account is not None:
        spec["serviceAccountName"] = options.service_account
    if pod.gpus:
        spec["tolerations"] = [{"key": _GPU, "operator": "Exists", "effect": "NoSchedule"}]
    if pod.node_selector:
        spec["nodeSelector"] = dict(pod.node_selector)
    return {"metadata": {"labels": dict(PART_OF)}, "spec": spec}


def submitter_pod(image: str) -> dict[str, Any]:
    """The pod that hands the command to the cluster and waits for it."""
    return {
        "metadata": {"labels": dict(PART_OF)},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": dict(_POD_SECURITY),
            "containers": [
                {
                    "name": "ray-job-submitter",
                    "image": image,
                    "resources": _SUBMITTER_RESOURCES,
                    "securityContext": dict(_CONTAINER_SECURITY),
                }
            ],
        },
    }


def pod_environment(secret: str, secrets: tuple[str, ...], plain: dict[str, str]) -> list[dict[str, Any]]:
    """Variables of a pod, secret ones by reference: without the secret the pod does not start."""
    values = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30", **plain}
    shown: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in values.items()]
    return shown + [{"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name}}} for name in secrets]
