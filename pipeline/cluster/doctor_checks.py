"""Judges what one machine said about itself; each finding comes with its fix."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from pipeline.cluster.doctor_options import FAIL, OK, WARN, Finding

GIB = 2**30
_FEW_OPEN_FILES = 8192
_RAY_REFUSES_ABOVE = 0.95  # of a disk: Ray spills no more objects there and kills tasks
_FULL_SOON = 0.90
_SMALL_MEMORY = 4 * GIB
_GPU_SHARED_MEMORY = GIB  # NCCL's rings between the GPUs of one machine
_INSTALL = "install the same release on every machine: use one image, or `./deploy/install.sh`"

Facts = dict[str, Any]


def check_machine(facts: Facts, object_store_bytes: float) -> list[Finding]:
    """Everything but Ray and MLflow. ``object_store_bytes``: what Ray takes of the shared memory."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        lambda: check_versions(facts),
        lambda: check_devices(facts),
        lambda: check_memory(facts, object_store_bytes),
        lambda: check_disk("temporary disk", facts["temporary"], facts["temporary"]["path"]),
        lambda: check_storage(facts),
        lambda: check_dataset(facts),
        lambda: check_decoding(facts),
    )
    return [finding for check in checks for finding in check()]


def check_versions(facts: Facts) -> Iterator[Finding]:
    """Python and the pinned packages."""
    wanted = importlib.metadata.metadata("hip-pipeline")["Requires-Python"] or ">=3.11"
    python = Requirement(f"python{wanted}").specifier.contains(Version(facts["python"]))
    fix = "" if python else f"make the environment with Python {wanted}"
    yield Finding("python", OK if python else FAIL, facts["python"], fix)
    packages: dict[str, str | None] = facts["packages"]
    requirements = {found.name: found for found in map(Requirement, importlib.metadata.requires("hip-pipeline") or [])}
    wrong = False
    for name, version in packages.items():
        requirement = requirements.get(name)
        if version is None:
            yield Finding(name, FAIL, "not installed", _INSTALL)
        elif requirement is not None and not requirement.specifier.contains(Version(version), prereleases=True):
            fix = f'pip install "{requirement}"'
            yield Finding(name, FAIL, f"{version}, but {requirement.specifier} is needed", fix)
        else:
            continue
        wrong = True
    if not wrong:
        yield Finding("packages", OK, ", ".join(f"{name} {version}" for name, version in packages.items()))


def check_devices(facts: Facts) -> Iterator[Finding]:
    """GPUs that the machine has and torch cannot use."""
    found = facts["devices"]
    if "error" in found:
        yield Finding("devices", FAIL, found["error"], _INSTALL)
    elif len(found["nodes"]) > len(found["names"]):
        reason = (
            "torch is a CPU build; install the CUDA build of the same version"
            if found["cuda_build"] is None
            else f"torch was built for CUDA {found['cuda_build']}, driver {found['driver'] or 'unknown'}: "
            "update the driver, and look at CUDA_VISIBLE_DEVICES and at what nvidia-smi says"
        )
        what = f"{len(found['nodes'])} GPUs, {len(found['names'])} usable by torch"
        yield Finding("devices", FAIL, what, reason)
    elif found["names"]:
        yield Finding("devices", OK, f"{len(found['names'])} x {found['names'][0]}, driver {found['driver']}")
    else:
        yield Finding("devices", OK, f"no GPU, {facts['cpus']} CPUs")


def check_memory(facts: Facts, object_store_bytes: float) -> Iterator[Finding]:
    """Memory, shared memory and open files."""
    memory, shared = facts["memory"], facts["shared_memory"]
    what = f"{memory['free'] / GIB:.1f} of {memory['total'] / GIB:.1f} GiB free"
    if memory["free"] < _SMALL_MEMORY:
        yield Finding("memory", WARN, what, "stop what else runs here; even a small worker needs 1 to 2 GiB")
    else:
        yield Finding("memory", OK, what)
    needed = max(object_store_bytes, _GPU_SHARED_MEMORY if facts["devices"].get("names") else 0)
    what = f"{shared['total'] / GIB:.1f} GiB, {needed / GIB:.1f} GiB needed"
    if shared["total"] < needed:
        fix = "docker run --shm-size=8g; on Kubernetes an emptyDir with medium: Memory at /dev/shm"
        yield Finding("shared memory", FAIL, what, f"{fix}; or a smaller ray.object_store_gib")
    else:
        yield Finding("shared memory", OK, what)
    files = facts["open_files"]
    few = 0 < files < _FEW_OPEN_FILES
    fix = "ulimit -n 65536 before Ray starts (LimitNOFILE= in systemd, --ulimit nofile=65536 in docker)"
    yield Finding("open files", WARN if few else OK, f"limit {files}", fix if few else "")


def check_disk(name: str, disk: Facts, place: str) -> Iterator[Finding]:
    """Room on a disk. Nothing is said about a disk that is not there (remote storage)."""
    if not disk.get("total"):
        return
    used = 1 - disk["free"] / disk["total"]
    what = f"{disk['free'] / GIB:.0f} GiB free, {100 * used:.0f} % used ({place})"
    fix = f"free some space below {place}, or use another disk"
    if used >= _RAY_REFUSES_ABOVE:
        yield Finding(name, FAIL, what, f"{fix}; above 95 % Ray stops")
    else:
        yield Finding(name, WARN if used >= _FULL_SOON else OK, what, fix if used >= _FULL_SOON else "")


def check_storage(facts: Facts) -> Iterator[Finding]:
    """Whether runs can be written here."""
    found = facts["storage"]
    if not found:
        return
    if "error" in found:
        yield Finding("storage", FAIL, found["error"], _storage_fix(found))
        return
    if not found["same"]:
        fix = "what was written did not come back: look at the server or the file system"
        yield Finding("storage", FAIL, "read back other bytes", fix)
    elif found["token_seen"] is False:
        fix = "put storage on a file system that all nodes mount at the same path, or use s3:// or gs://"
        yield Finding("storage", FAIL, "this node does not see what the others write", fix)
    else:
        what = f"1 MiB written in {found['write_seconds']:.2f} s, read in {found['read_seconds']:.2f} s"
        yield Finding("storage", OK, what)
    yield from check_disk("storage disk", found["disk"], "storage")


def _storage_fix(found: Facts) -> str:
    if "missing" in found:
        return _INSTALL
    text = found["error"].lower()
    if "access" in text or "credential" in text or "denied" in text or "forbidden" in text:
        return "give this machine credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, or a role) and write access"
    if "connect" in text or "timeout" in text or "resolve" in text or "network" in text:
        return "check the endpoint of the URI and that a firewall lets this machine through"
    return "choose a folder or bucket that exists and that this machine may write to"


def check_dataset(facts: Facts) -> Iterator[Finding]:
    """Whether the dataset can be read here."""
    found = facts["shards"]
    if "error" in found:
        fix = "give a path that every node mounts, or a URI; make the dataset with hip preprocess"
        yield Finding("shards", FAIL, found["error"], _INSTALL if "missing" in found else fix)
    elif found:
        yield Finding("shards", OK, f"{found['examples']} examples, manifest read in {found['seconds']:.2f} s")


def check_decoding(facts: Facts) -> Iterator[Finding]:
    """Whether H.264 can be decoded, and how fast on one core."""
    found = facts["decode"]
    if "error" in found:
        yield Finding("decoding", FAIL, found["error"], 'pip install "av>=18,<19": its wheel brings the codecs')
    elif found["frames"] != found["wanted"]:
        what = f"{found['frames']} of {found['wanted']} frames decoded"
        yield Finding("decoding", FAIL, what, "reinstall PyAV: this build loses frames")
    else:
        yield Finding("decoding", OK, f"{found['frames_per_second']:.0f} frames/s on one core (256x256 H.264)")
