"""Asks every node of a Ray cluster at once, and compares what they say."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.cluster.doctor_checks import check_machine
from pipeline.cluster.doctor_options import FAIL, OK, WARN, DoctorOptions, Finding
from pipeline.cluster.doctor_services import check_tracking

_SKEW_WARN_SECONDS = 1.0  # logs and metrics of two nodes no longer line up
_SKEW_FAIL_SECONDS = 300.0  # object stores refuse signatures that are 5 to 15 minutes off
_CLOCK_READINGS = 5


@dataclass(frozen=True)
class Node:
    """A node as Ray's head knows it."""

    id: str
    address: str
    alive: bool
    resources: Mapping[str, float]
    metrics_port: int

    @property
    def is_head(self) -> bool:
        """Whether Ray's control service runs there."""
        return "node:__internal_head__" in self.resources

    @property
    def label(self) -> str:
        """How reports name it: several nodes may share an address."""
        return f"{self.address} ({self.id[:8]}{', head' if self.is_head else ''})"


def list_nodes() -> list[Node]:
    """All nodes of the joined cluster, the head first."""
    import ray

    nodes = [
        Node(
            row["NodeID"],
            row["NodeManagerAddress"],
            row["Alive"],
            row.get("Resources", {}),
            int(row.get("MetricsExportPort", 0)),
        )
        for row in ray.nodes()
    ]
    return sorted(nodes, key=lambda node: (not node.is_head, node.address, node.id))


def ask_nodes(nodes: Sequence[Node], options: DoctorOptions, uri: str | None, token: str | None) -> list[Finding]:
    """Findings of every node; one that does not answer in time is a finding of its own.

    Args:
        uri: the MLflow store, or none.
        token: name of a file in the storage folder, written by this machine.
    """
    import ray

    probes = {node.id: _start_probe(node) for node in nodes}
    questions = {
        node.id: (
            probes[node.id].facts.remote(options.storage, options.shards, token),
            probes[node.id].tracking.remote(uri, options.tracking.experiment, options.timeout_seconds / 2)
            if uri
            else None,
        )
        for node in nodes
    }
    deadline = time.monotonic() + options.timeout_seconds
    findings: list[Finding] = []
    answers: dict[str, dict[str, Any]] = {}
    for node in nodes:
        facts, tracking = questions[node.id]
        try:
            answers[node.label] = ray.get(facts, timeout=max(1.0, deadline - time.monotonic()))
            found = list(_judge(node, answers[node.label], _skew(probes[node.id])))
            if tracking is not None and uri:
                seen = ray.get(tracking, timeout=max(1.0, deadline - time.monotonic()))
                found += check_tracking(seen, uri, len(nodes))
        except ray.exceptions.RayError as error:
            found = [_silent(error)]
        findings += [replace(finding, node=node.label) for finding in found]
    for probe in probes.values():
        ray.kill(probe)
    return [*findings, *compare(answers)]


def _start_probe(node: Node) -> Any:
    import ray
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from pipeline.cluster import doctor_probe, doctor_tracking
    from pipeline.tracking import artifact_probe

    modules = (artifact_probe, doctor_probe, doctor_tracking)
    for module in modules:  # by value: the node may lack this package
        cloudpickle.register_pickle_by_value(module)
    try:
        actor = ray.remote(num_cpus=0)(doctor_probe.Probe)
        return actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote()
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _silent(error: Exception) -> Finding:
    what = f"no answer: {type(error).__name__}"
    fix = "look at raylet.out and the worker logs on that node (`ray logs cluster`); drain it if the machine is sick"
    return Finding("answers", FAIL, what, fix)


def _skew(probe: Any) -> float:
    """How far the node's clock is ahead of ours, in seconds, by the quickest of some readings."""
    import ray

    best = (float("inf"), 0.0)
    for _ in range(_CLOCK_READINGS):
        asked = time.time()
        there = ray.get(probe.clock.remote(), timeout=10)
        answered = time.time()
        best = min(best, (answered - asked, there - (asked + answered) / 2))
    return best[1]


def _judge(node: Node, facts: dict[str, Any], skew_seconds: float) -> Iterator[Finding]:
    yield from check_machine(facts, node.resources.get("object_store_memory", 0.0))
    declared, usable = int(node.resources.get("GPU", 0)), len(facts["devices"].get("names", []))
    if declared > usable:
        fix = "start the node with --num-gpus as many as nvidia-smi shows, or mend the driver"
        yield Finding("declared GPUs", FAIL, f"Ray was told {declared}, torch can use {usable}", fix)
    level = FAIL if abs(skew_seconds) > _SKEW_FAIL_SECONDS else WARN if abs(skew_seconds) > _SKEW_WARN_SECONDS else OK
    fix = "" if level == OK else "let chrony or systemd-timesyncd set the clock"
    yield Finding("clock", level, f"{skew_seconds:+.3f} s against this machine", fix)
    yield _metrics_endpoint(node)


def _metrics_endpoint(node: Node) -> Finding:
    """Whether Prometheus could scrape this node from here."""
    place = f"http://{node.address}:{node.metrics_port}/metrics"
    try:
        with urllib.request.urlopen(place, timeout=5) as answer:
            answer.read(1)
        return Finding("metrics", OK, place)
    except (urllib.error.URLError, OSError) as error:
        fix = "start Ray with --metrics-export-port=8080 and open that port to Prometheus only"
        return Finding("metrics", WARN, f"{place}: {error}", fix)


def compare(answers: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Versions that differ between nodes."""
    if len(answers) < 2:
        return
    first = next(iter(answers.values()))
    different = False
    for name in ("python", *first["packages"]):
        versions: dict[str, list[str]] = {}
        for node, facts in answers.items():
            value = facts["python"] if name == "python" else facts["packages"][name]
            versions.setdefault(str(value), []).append(node)
        if len(versions) > 1:
            different = True
            what = "; ".join(f"{version} on {', '.join(nodes)}" for version, nodes in versions.items())
            yield Finding(f"{name} on all nodes", FAIL, what, "use one image, or one release, on every node")
    if not different:
        yield Finding("same versions", OK, f"{len(answers)} nodes")
