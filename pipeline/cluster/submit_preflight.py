"""A look at the cluster's own Python before a job is sent: versions of what the code needs, and missing variables."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import sys
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from pipeline.cluster.submit_client import ENDED, JobsClient
from pipeline.errors import InfrastructureError, UserError

CHECK = "hip-check-"
_MARK = "hip-check:"
# Ray writes a job's end a moment after it reports it; a job that is deleted between the two comes back as failed.
_SETTLED_SECONDS = 60
# Runs with nothing but the standard library, so that it can tell what is missing.
_PROBE = """
import importlib.metadata, importlib.util, json, os, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
asked = json.loads(sys.argv[1])
print("MARK" + json.dumps({
    "python": list(sys.version_info[:3]),
    "packages": {name: version(name) for name in asked["packages"]},
    "missing": [name for name in asked["secrets"] if not os.environ.get(name)],
    "code": importlib.util.find_spec("hip_model") is not None,
}))
""".replace("MARK", _MARK)


@dataclass(frozen=True)
class ClusterPython:
    """What the process of a job finds on the cluster."""

    python: tuple[int, ...]
    packages: Mapping[str, str | None]
    missing: tuple[str, ...]  # names of variables that are not set
    code: bool  # whether hip is installed there


def requirements() -> dict[str, Requirement]:
    """What this project needs to run, by package."""
    parsed = [Requirement(text) for text in importlib.metadata.requires("hip-pipeline") or []]
    return {entry.name: entry for entry in parsed if entry.marker is None or entry.marker.evaluate({"extra": ""})}


def check_ray_version(cluster: str, address: str) -> None:
    """Refuse a cluster whose Ray is not the one that this code is written for.

    Raises:
        UserError: naming both versions.
    """
    needed = requirements()["ray"]
    if not needed.specifier.contains(cluster, prereleases=True):
        raise UserError(
            f"the cluster at {address} runs Ray {cluster}, but this code needs ray{needed.specifier}; start the "
            "cluster from this project's image (deploy/Dockerfile), or send the job from a checkout made for that Ray"
        )


def look_at_cluster(client: JobsClient, secrets: Iterable[str], wait_seconds: float) -> ClusterPython:
    """Ask the cluster's Python, through a tiny job of its own; those of earlier calls are removed.

    Raises:
        InfrastructureError: no answer in time.
    """
    asked = json.dumps({"packages": sorted(requirements()), "secrets": sorted(secrets)})
    _remove_old_checks(client)
    name = f"{CHECK}{uuid.uuid4().hex[:8]}"
    client.submit(name, shlex.join(["python", "-c", _PROBE, asked]))
    found = client.wait(name, wait_seconds)
    if found.status.value not in ENDED:
        client.stop(name)
        raise InfrastructureError(
            f"the cluster at {client.address} did not start a process within {wait_seconds:g} s; it may be full or "
            "unwell: look at `ray status` there, or wait longer with cluster.wait_seconds=300"
        )
    written = client.logs(name)
    answer = next((line for line in written.splitlines() if line.startswith(_MARK)), None)
    if answer is None:
        detail = " ".join((written or found.message or "").split())[-300:]
        raise InfrastructureError(f"the cluster at {client.address} could not run python: {detail}")
    values: dict[str, Any] = json.loads(answer.removeprefix(_MARK))
    return ClusterPython(tuple(values["python"]), values["packages"], tuple(values["missing"]), bool(values["code"]))


def _remove_old_checks(client: JobsClient) -> None:
    settled = (time.time() - _SETTLED_SECONDS) * 1000
    for name, job in client.jobs().items():
        if name.startswith(CHECK) and job.end_time and job.end_time < settled:
            client.delete(name)


def check_cluster_python(found: ClusterPython, ships_code: bool, extra: Iterable[str] = ()) -> None:
    """Refuse a cluster on which the job would fail; packages that ``extra`` installs for the job may be missing.

    Raises:
        UserError: an older Python, a package that is missing or of another version, a variable that is not set.
    """
    if found.missing:
        raise UserError(
            f"on the cluster {', '.join(found.missing)} is not set; set it where the nodes are started (a Kubernetes "
            "secret, the instance's role, the environment of `ray start`) and submit again"
        )
    if found.python < (3, 11):
        raise UserError(
            f"the cluster runs Python {'.'.join(map(str, found.python))}, and this code needs 3.11 or newer (here: "
            f"{'.'.join(map(str, sys.version_info[:3]))}); start it from this project's image (deploy/Dockerfile)"
        )
    if not ships_code and not found.code:
        raise UserError("code.ship=false, but the cluster's image has no hip; build it from deploy/Dockerfile")
    installed = {Requirement(text).name for text in extra}
    wrong = [
        f"{name} {found.packages.get(name) or 'missing'} (needs {str(need.specifier) or 'any version'})"
        for name, need in requirements().items()
        if name not in installed and not _fits(need, found.packages.get(name))
    ]
    if wrong:
        raise UserError(
            f"the cluster's Python does not have what the code needs: {', '.join(wrong)}; start the cluster from this "
            "project's image (deploy/Dockerfile), or let Ray install them for this job: pip=[…]"
        )


def _fits(need: Requirement, version: str | None) -> bool:
    return version is not None and need.specifier.contains(Version(version), prereleases=True)
