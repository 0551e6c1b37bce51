"""What a Kubernetes manifest needs beside the verb: image, pods, secrets, clean-up."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pipeline.errors import UserError
from pipeline.train.options import at_least, one_of

KINDS = ("RayJob", "RayCluster", "RayCronJob", "NetworkPolicy")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
# KubeRay adds up to 16 characters to a job's name for its cluster and pods, and Kubernetes ends at 63.
LONGEST_NAME = 47


@dataclass(frozen=True)
class PodOptions:
    """One worker pod, which should be about one node of the pool."""

    cpus: int = 8
    gpus: int = 0
    memory_gib: int = 32
    shared_memory_gib: int = 8  # /dev/shm: Ray's object store and the workers' exchange; part of the memory
    min_pods: int = 0  # of a RayCluster, and of preprocessing on every CPU
    max_pods: int = 4
    node_selector: dict[str, str] = field(default_factory=dict)  # label of the nodes to run on

    def __post_init__(self) -> None:
        for key, smallest in (("cpus", 1), ("gpus", 0), ("memory_gib", 2), ("shared_memory_gib", 1), ("min_pods", 0)):
            at_least(f"kuberay pod {key}", getattr(self, key), smallest)
        at_least("kuberay pod max_pods", self.max_pods, max(1, self.min_pods))
        if self.shared_memory_gib >= self.memory_gib:
            raise UserError(
                f"shared_memory_gib={self.shared_memory_gib} is taken out of memory_gib={self.memory_gib}; use less"
            )


@dataclass(frozen=True)
class KubeRayOptions:
    """The manifest around a verb."""

    kind: str = "RayJob"  # RayJob | RayCluster (stays up) | RayCronJob (on a schedule) | NetworkPolicy
    name: str | None = None  # none: from the verb and the run
    namespace: str = "hip"
    cpu_image: str = "registry.example.com/hip-pipeline:0.1.0-cpu"  # made with deploy/Dockerfile
    cuda_image: str = "registry.example.com/hip-pipeline:0.1.0-cuda"
    secret: str = "hip-credentials"  # Kubernetes secret that holds the variables of secrets=[…]
    service_account: str | None = None  # one bound to a cloud role makes storage keys unnecessary
    claim: str | None = None  # persistent volume claim that every pod mounts; none: object storage only
    claim_path: str = "/shared"
    schedule: str = "0 3 * * *"  # of a RayCronJob
    time_zone: str = "Etc/UTC"
    retries: int = 3  # new clusters after a failure; each continues the same run
    keep_seconds: int = 3600  # the finished job, with its logs, before it is cleaned up
    deadline_seconds: int | None = None  # of the whole job; none: no end
    cpu_pod: PodOptions = field(default_factory=PodOptions)
    gpu_pod: PodOptions = field(default_factory=lambda: PodOptions(64, 8, 512, 128))

    def __post_init__(self) -> None:
        one_of("kuberay.kind", self.kind, KINDS)
        for key in ("name", "namespace", "secret", "service_account", "claim"):
            value = getattr(self, key)
            if value is not None and (not _NAME.fullmatch(value) or len(value) > LONGEST_NAME):
                raise UserError(
                    f"kuberay.{key}={value}: Kubernetes wants small letters, digits and '-', at most {LONGEST_NAME}"
                )
        at_least("kuberay.retries", self.retries, 0)
        at_least("kuberay.keep_seconds", self.keep_seconds, 0)
        at_least("kuberay.deadline_seconds", self.deadline_seconds, 1)
        if len(self.schedule.split()) != 5:
            raise UserError(f"kuberay.schedule={self.schedule!r} must have five fields, such as '0 3 * * *'")
        for key in ("cpu_image", "cuda_image"):
            _check_image(key, getattr(self, key))


def _check_image(key: str, image: str) -> None:
    """An image without a tag, or ``latest``, changes under a run that restarts."""
    tag = image.rpartition("/")[2].partition(":")[2]
    if "@sha256:" not in image and tag in ("", "latest"):
        raise UserError(
            f"kuberay.{key}={image} is not pinned; give a tag or a digest, such as {image.partition(':')[0]}:0.1.0"
        )
