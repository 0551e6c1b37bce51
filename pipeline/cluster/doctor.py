"""``hip doctor``: look at this machine or at every node of a cluster, judge, and say how to mend what is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from pipeline.cluster.doctor_checks import check_machine
from pipeline.cluster.doctor_cluster import ask_nodes, list_nodes
from pipeline.cluster.doctor_options import FAIL, OK, WARN, DoctorOptions, Finding
from pipeline.cluster.doctor_probe import probe_machine
from pipeline.cluster.doctor_services import check_tracking
from pipeline.cluster.doctor_tracking import probe_tracking
from pipeline.errors import HipError, InfrastructureError, UserError
from pipeline.ray_session import ray_session
from pipeline.storage import is_local, join, local_path, resolve, write_atomic
from pipeline.tracking.options import resolve_uri

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class DoctorReport:
    """All findings, in the order in which they were made."""

    findings: tuple[Finding, ...]

    def to_json(self) -> str:
        """A list of findings."""
        return json.dumps([asdict(finding) for finding in self.findings], indent=1)

    def to_text(self) -> str:
        """One line a finding below its machine, with the fix under it."""
        lines: list[str] = []
        for node in dict.fromkeys(finding.node for finding in self.findings):
            lines.append(node or "the whole")
            for finding in self.findings:
                if finding.node == node:
                    lines.append(f"  {finding.level:<4}  {finding.check:<16} {finding.what}")
                    lines += [f"        {'fix:':>16} {finding.fix}"] if finding.fix else []
        counts = Counter(finding.level for finding in self.findings)
        return "\n".join([*lines, f"{counts[OK]} ok, {counts[WARN]} warnings, {counts[FAIL]} failed"])

    def check(self) -> None:
        """Raise when anything failed.

        Raises:
            InfrastructureError: naming the checks.
        """
        failed = list(dict.fromkeys(finding.check for finding in self.findings if finding.level == FAIL))
        if failed:
            raise InfrastructureError(f"{len(failed)} checks failed: {', '.join(failed)}; the fix is beside each above")


def run_doctor(options: DoctorOptions) -> DoctorReport:
    """Look at this machine, or at the cluster that ``ray.address`` or ``RAY_ADDRESS`` names."""
    if options.storage is not None and is_local(options.storage):
        options = replace(options, storage=str(local_path(options.storage)))
    address = options.ray.address or os.environ.get("RAY_ADDRESS")
    if address in (None, "", "local"):
        return DoctorReport(tuple(_this_machine(options)))
    return DoctorReport(tuple(_cluster(options, str(address))))


def _this_machine(options: DoctorOptions) -> Iterator[Finding]:
    facts = probe_machine(options.storage, options.shards, None)
    found = check_machine(facts, options.ray.object_store_gib * 2**30)
    uri, trouble = _tracking_uri(options)
    if uri:
        found += check_tracking(probe_tracking(uri, options.tracking.experiment, options.timeout_seconds), uri, 1)
    for finding in [*found, *trouble]:
        yield replace(finding, node=f"{facts['host']} (this machine)")


def _tracking_uri(options: DoctorOptions) -> tuple[str | None, list[Finding]]:
    """Where runs would be tracked, or why that cannot work."""
    if not options.tracking.enabled or (options.storage is None and options.tracking.uri is None):
        return None, []
    try:
        return resolve_uri(options.tracking, options.storage or "."), []
    except UserError as error:
        what, _, fix = str(error).partition("; ")
        return None, [Finding("mlflow", FAIL, what, fix)]


def _cluster(options: DoctorOptions, address: str) -> Iterator[Finding]:
    unreachable = _connects(address)
    if unreachable:
        yield unreachable
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(ray_session(options.ray))
        except InfrastructureError as error:
            yield _refused(error)
            return
        nodes = list_nodes()
        alive = [node for node in nodes if node.alive]
        yield _how_many(len(alive), len(nodes))
        yield from _open_dashboard()
        uri, trouble = _tracking_uri(options)
        yield from trouble
        with _token(options.storage) as token:
            yield from ask_nodes(alive, options, uri, token)


def _connects(address: str) -> Finding | None:
    """Try the port first: Ray itself waits long before it gives up."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return None  # "auto"
    try:
        with socket.create_connection((host, int(port)), 5):
            return None
    except OSError as error:
        fix = f"is the head up (`ray status` there), is the port right, does a firewall let this machine reach {host}?"
        return Finding("address", FAIL, f"{address}: {error}", fix)


def _refused(error: InfrastructureError) -> Finding:
    text = str(error)
    if "ersion" in text and "ython" in text:
        fix = "use the cluster's Ray and Python here, or run the doctor there: hip submit job=doctor address=…"
    elif "uth" in text:
        fix = "export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH with the cluster's token"
    else:
        fix = "look at the head's gcs_server.out; `ray status` on the head says what it knows"
    return Finding("address", FAIL, text[:400], fix)


def _how_many(alive: int, known: int) -> Finding:
    if alive == known:
        return Finding("nodes", OK, f"{alive} alive")
    fix = "if they were not taken away on purpose, look at raylet.out there; elastic runs go on with those that remain"
    return Finding("nodes", WARN, f"{alive} alive, {known - alive} lost since the head started", fix)


def _open_dashboard() -> Iterator[Finding]:
    """A dashboard that others can reach runs their code."""
    import ray

    url = getattr(ray._private.worker.global_worker.node, "webui_url", "") or ""
    host = url.rpartition(":")[0]
    if host and host not in _LOOPBACK and os.environ.get("RAY_AUTH_MODE") != "token":
        fix = "start the head with --dashboard-host=127.0.0.1, or with RAY_AUTH_MODE=token behind a private network"
        yield Finding("dashboard", WARN, f"{url} runs the code of whoever reaches it", fix)


@contextlib.contextmanager
def _token(storage: str | None) -> Iterator[str | None]:
    """A small file in the storage folder for the nodes to look for; none where it cannot be written."""
    if storage is None:
        yield None
        return
    name = f".hip-doctor-{uuid.uuid4().hex[:8]}"
    try:
        write_atomic(join(storage, name), b"seen")
    except (HipError, OSError):
        yield None  # the nodes' own attempts say why
        return
    try:
        yield name
    finally:
        with contextlib.suppress(OSError):
            system, path = resolve(join(storage, name))
            system.delete_file(path)
