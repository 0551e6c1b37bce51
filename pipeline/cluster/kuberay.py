"""KubeRay manifests from the settings of ``hip submit`` and of the verb: RayJob, RayCluster, RayCronJob.

Field names and their meaning follow KubeRay's ``ray.io/v1`` resources (KubeRay 1.5 or newer).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import yaml

from pipeline.cluster.kuberay_options import LONGEST_NAME, KubeRayOptions, PodOptions
from pipeline.cluster.kuberay_pods import HEAD_POD, PART_OF, pod_environment, ray_pod, submitter_pod
from pipeline.cluster.resources import Demand
from pipeline.cluster.submit import Submission, runtime_environment
from pipeline.cluster.submit_options import SubmitOptions
from pipeline.cluster.submit_preflight import requirements
from pipeline.errors import UserError

_AUTOSCALER_RESOURCES = {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "500m", "memory": "1Gi"}}


class _PlainDumper(yaml.SafeDumper):
    """Writes what occurs twice twice: people read these files."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def manifest_text(options: SubmitOptions, submission: Submission | None, command: str) -> str:
    """The manifest as YAML, under a line with the command that makes it.

    Raises:
        UserError: settings that no Kubernetes cluster could run.
    """
    content = manifest(options, submission)
    return f"# Made by: {command}\n" + yaml.dump(content, Dumper=_PlainDumper, sort_keys=False, width=120)


def manifest(options: SubmitOptions, submission: Submission | None) -> dict[str, Any]:
    """The manifest of ``kuberay.kind``; a RayCluster and a NetworkPolicy need no verb.

    Raises:
        UserError: a verb is missing, workers fit no pod, or a place is not mounted in the pods.
    """
    kind = options.kuberay.kind
    if kind == "NetworkPolicy":
        return _network_policy(options.kuberay)
    if kind == "RayCluster":
        return _resource(options, "RayCluster", "hip", cluster_spec(options, None))
    if submission is None:
        raise UserError(f"job is required for kuberay.kind={kind}: hip submit job=pretrain target=kuberay …")
    _check_mounted(options.kuberay, submission)
    job = job_spec(options, submission)
    if kind == "RayJob":
        return _resource(options, "RayJob", submission.base, job)
    spec = {"schedule": options.kuberay.schedule, "timeZone": options.kuberay.time_zone, "jobTemplate": job}
    return _resource(options, "RayCronJob", f"hip-{submission.verb}", spec)


def job_spec(options: SubmitOptions, submission: Submission) -> dict[str, Any]:
    """A cluster of its own for one verb, cleaned up after; after a failure a new one continues the run."""
    kuberay, demand = options.kuberay, submission.demand
    spec: dict[str, Any] = {
        "entrypoint": submission.entrypoint,
        "submissionMode": "K8sJobMode",
        "submitterConfig": {"backoffLimit": 2},
        "submitterPodTemplate": submitter_pod(kuberay.cpu_image),
        "runtimeEnvYAML": yaml.safe_dump(runtime_environment(replace(options, env={}), None), sort_keys=False),
        "metadata": {"hip.verb": submission.verb, "hip.run": submission.base},
        "backoffLimit": kuberay.retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": kuberay.keep_seconds,
    }
    if kuberay.deadline_seconds is not None:
        spec["activeDeadlineSeconds"] = kuberay.deadline_seconds
    if demand.driver_cpus:
        spec["entrypointNumCpus"] = demand.driver_cpus
    if demand.driver_gpus:
        spec["entrypointNumGpus"] = demand.driver_gpus
    spec["rayClusterSpec"] = cluster_spec(options, demand)
    return spec


def cluster_spec(options: SubmitOptions, demand: Demand | None) -> dict[str, Any]:
    """A head that runs no work, and the pools that ``demand`` needs; without a demand both pools."""
    kuberay = options.kuberay
    environment = pod_environment(kuberay.secret, options.secrets, options.env)
    pools = _pools(kuberay, demand)
    image = kuberay.cuda_image if demand is not None and demand.needs_gpus else kuberay.cpu_image
    scales = any(low != high for _, low, high in pools)
    spec: dict[str, Any] = {
        "rayVersion": next(iter(requirements()["ray"].specifier)).version,
        # A Ray head runs whatever it is sent: only holders of the cluster's token may send.
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": scales,
    }
    if scales:
        spec["autoscalerOptions"] = {
            "version": "v2",
            "idleTimeoutSeconds": 300,
            "resources": _AUTOSCALER_RESOURCES,
        }
    spec["headGroupSpec"] = {
        "serviceType": "ClusterIP",
        "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},
        "template": ray_pod(kuberay, "ray-head", image, HEAD_POD, environment),
    }
    spec["workerGroupSpecs"] = [_worker_group(kuberay, pod, low, high, environment) for pod, low, high in pools]
    return spec


def _worker_group(
    options: KubeRayOptions, pod: PodOptions, low: int, high: int, environment: list[dict[str, Any]]
) -> dict[str, Any]:
    image = options.cuda_image if pod.gpus else options.cpu_image
    return {
        "groupName": "gpu" if pod.gpus else "cpu",
        "replicas": low if low != high else high,
        "minReplicas": low,
        "maxReplicas": high,
        "rayStartParams": {},
        "template": ray_pod(options, "ray-worker", image, pod, environment),
    }


def _pools(options: KubeRayOptions, demand: Demand | None) -> list[tuple[PodOptions, int, int]]:
    """The kinds of worker pods, each with its smallest and largest number."""
    cpu, gpu = options.cpu_pod, options.gpu_pod
    if demand is None:
        return [(cpu, cpu.min_pods, cpu.max_pods), (gpu, gpu.min_pods, gpu.max_pods)]
    pod = gpu if demand.needs_gpus else cpu
    driver = Demand(1, 1, demand.driver_cpus, demand.driver_gpus)
    room = _room(pod, demand)
    if (demand.workers and not room) or demand.driver_cpus > pod.cpus or driver.gpus > pod.gpus:
        raise UserError(
            f"a worker with {demand.cpus:g} CPUs and {demand.gpus:g} GPUs does not fit a pod of {pod.cpus} CPUs and "
            f"{pod.gpus} GPUs; enlarge kuberay.{'gpu' if pod.gpus else 'cpu'}_pod or use smaller workers"
        )
    low = math.ceil(demand.min_workers / room) if demand.workers else 1
    high = math.ceil(demand.workers / room) if demand.workers else 1
    if demand.placement == "STRICT_SPREAD":
        low, high = demand.min_workers, demand.workers
    if demand.placement == "STRICT_PACK" and demand.workers > room:
        raise UserError(
            f"scale.placement=STRICT_PACK wants {demand.workers} workers in one pod, which holds {room}; use "
            "scale.placement=PACK or larger pods"
        )
    return [(pod, low, high)]


def _room(pod: PodOptions, demand: Demand) -> int:
    """Workers that one pod holds."""
    by_cpu = math.floor(pod.cpus / demand.cpus) if demand.cpus else demand.workers
    return min(by_cpu, math.floor(pod.gpus / demand.gpus)) if demand.gpus else by_cpu


def _check_mounted(options: KubeRayOptions, submission: Submission) -> None:
    for place in submission.local_places:
        path = place.partition("=")[2].removeprefix("file://")
        if options.claim is None or not f"{path}/".startswith(f"{options.claim_path.rstrip('/')}/"):
            raise UserError(
                f"{place} is a local folder, which is gone with its pod; use s3://… or gs://…, or mount a shared "
                f"volume: kuberay.claim=<claim> and a place below kuberay.claim_path={options.claim_path}"
            )


def _resource(options: SubmitOptions, kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    name = (options.kuberay.name or name)[:LONGEST_NAME].strip("-")
    metadata = {"name": name, "namespace": options.kuberay.namespace, "labels": dict(PART_OF)}
    return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": metadata, "spec": spec}


def _network_policy(options: KubeRayOptions) -> dict[str, Any]:
    """Only the cluster's own pods, the operator (dashboard port) and Prometheus (metrics port) may connect."""
    metadata = {"name": options.name or "hip-pipeline", "namespace": options.namespace, "labels": dict(PART_OF)}
    namespace = "kubernetes.io/metadata.name"
    spec = {
        "podSelector": {"matchLabels": dict(PART_OF)},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [{"podSelector": {"matchLabels": dict(PART_OF)}}]},
            {
                "from": [
                    {
                        "namespaceSelector": {},
                        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
                    }
                ],
                "ports": [{"protocol": "TCP", "port": port} for port in (8265, 8000)],
            },
            {
                "from": [{"namespaceSelector": {"matchLabels": {namespace: "monitoring"}}}],
                "ports": [{"protocol": "TCP", "port": 8080}],
            },
        ],
    }
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}
