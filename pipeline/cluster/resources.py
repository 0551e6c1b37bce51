"""What a verb needs of a cluster, and whether a cluster can ever give it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.cluster.submit_verbs import sent_verb
from pipeline.errors import UserError


@dataclass(frozen=True)
class Demand:
    """Workers of one kind, and the verb's own process."""

    workers: int  # as many as it would like; 0: everything happens in the driver
    min_workers: int  # it starts with so many
    cpus: float  # of one worker
    gpus: float
    placement: str = "PACK"
    driver_cpus: float = 0.0  # 0: on the head, which runs no work
    driver_gpus: float = 0.0

    @property
    def needs_gpus(self) -> bool:
        """Whether anything of the job asks for a GPU."""
        return self.gpus > 0 or self.driver_gpus > 0


@dataclass(frozen=True)
class Node:
    """One node of a running cluster."""

    cpus: float
    gpus: float

    def fits(self, demand: Demand) -> int:
        """How many of the workers it can hold."""
        by_cpu = math.floor(self.cpus / demand.cpus + 1e-6) if demand.cpus else demand.workers
        by_gpu = math.floor(self.gpus / demand.gpus + 1e-6) if demand.gpus else by_cpu
        return min(by_cpu, by_gpu)


def demand_of(name: str, options: Any, driver_cpus: float | None = None, driver_gpus: float | None = None) -> Demand:
    """What verb ``name`` needs with these options; ``driver_*`` override what its own process reserves."""
    workers, smallest, cpus, gpus, placement = _workers(name, options)
    working_driver = sent_verb(name).in_driver or workers == 0
    device = getattr(options, "device", None) or getattr(getattr(options, "trainer", None), "device", "cpu")
    own_cpus = 1.0 if working_driver else 0.0
    own_gpus = 1.0 if working_driver and device == "cuda" else 0.0
    return Demand(
        workers,
        smallest,
        cpus,
        gpus,
        placement,
        own_cpus if driver_cpus is None else driver_cpus,
        own_gpus if driver_gpus is None else driver_gpus,
    )


def _workers(name: str, options: Any) -> tuple[int, int, float, float, str]:
    if name in ("pretrain", "tune", "finetune"):
        scale = options.scale
        smallest = scale.workers if scale.min_workers is None else scale.min_workers
        return scale.workers, smallest, scale.cpus_per_worker, scale.gpus_per_worker, scale.placement
    if name == "preprocess":
        return options.scale.workers or 1, 1, 1.0, 0.0, "SPREAD"
    if name == "evaluate" and options.embed.engine == "ray":
        return options.embed.workers, options.embed.workers, 1.0, options.embed.gpus_per_worker, "SPREAD"
    if name == "predict" and options.workers:
        return options.workers, 1, 1.0, 0.0, "SPREAD"
    return 0, 0, 0.0, 0.0, "PACK"


def check_capacity(
    demand: Demand, nodes: Sequence[Node], max_cpus: float | None = None, max_gpus: float | None = None
) -> None:
    """Refuse a job that would wait for ever.

    ``max_cpus`` and ``max_gpus`` are what an autoscaler may bring the cluster to; without them it is what it is.

    Raises:
        UserError: more CPUs or GPUs than the cluster can ever have, or workers that no node can hold.
    """
    for kind, limit in (("CPU", max_cpus), ("GPU", max_gpus)):
        _check_total(kind, demand, nodes, limit)
    if max_cpus is not None or max_gpus is not None:
        return  # the nodes to come are not known one by one
    driver = Demand(1, 1, demand.driver_cpus, demand.driver_gpus)
    if (driver.cpus or driver.gpus) and not any(node.fits(driver) for node in nodes):
        raise UserError(
            f"the verb's own process asks for {driver.cpus:g} CPUs and {driver.gpus:g} GPUs, which no node of the "
            f"cluster has ({_listed(nodes)}); lower driver.cpus or driver.gpus, or add a node"
        )
    places = [node.fits(demand) for node in nodes]
    room = {"STRICT_PACK": max(places, default=0), "STRICT_SPREAD": sum(1 for place in places if place)}
    if demand.min_workers > room.get(demand.placement, sum(places)):
        raise UserError(
            f"{demand.min_workers} workers of {demand.cpus:g} CPUs and {demand.gpus:g} GPUs each (scale.placement="
            f"{demand.placement}) do not fit the cluster's nodes ({_listed(nodes)}); use fewer or smaller workers, or "
            "another placement"
        )


def _check_total(kind: str, demand: Demand, nodes: Sequence[Node], limit: float | None) -> None:
    each, own = (demand.cpus, demand.driver_cpus) if kind == "CPU" else (demand.gpus, demand.driver_gpus)
    there = sum(node.cpus if kind == "CPU" else node.gpus for node in nodes)
    most = there if limit is None else limit
    wanted = demand.min_workers * each + own
    if wanted > most + 1e-6:
        key = f"cluster.max_{kind.lower()}s"
        ways = f"give {key} if its autoscaler can bring more" if limit is None else f"correct {key}"
        raise UserError(
            f"the job needs {wanted:g} {kind}s ({demand.min_workers} workers x {each:g}"
            + (f" + {own:g} for the driver" if own else "")
            + f"), but the cluster can never have more than {most:g}; use a smaller scale, or {ways}"
        )


def _listed(nodes: Sequence[Node]) -> str:
    shown = [f"{node.cpus:g} CPUs, {node.gpus:g} GPUs" for node in nodes[:8]]
    return "; ".join(shown) + (f"; and {len(nodes) - 8} more" if len(nodes) > 8 else "")
