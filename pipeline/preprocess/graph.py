"""Ray Data runs the plan: one item per shard task; only a summary comes back, no token enters the object store."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import HipError, InfrastructureError, UserError
from pipeline.preprocess.identify import Identity, identify
from pipeline.preprocess.ledger import LedgerRow
from pipeline.preprocess.limits import LimitsOptions
from pipeline.preprocess.listing import Source
from pipeline.preprocess.task import ShardTask, run_task
from pipeline.storage import explain_os_error

_FEW_SOURCES = 256  # so many files are identified faster here than a Ray job starts
_CHUNK_SOURCES = 64


@dataclass(frozen=True)
class TaskSummary:
    """What comes back from a worker."""

    task: str
    examples: int
    rows: tuple[LedgerRow, ...]


def run_tasks(tasks: Sequence[ShardTask], workers: int | None) -> Iterator[TaskSummary]:
    """Run the shard tasks on the current Ray cluster, at most ``workers`` at once; yield each as it finishes.

    Raises:
        UserError, InfrastructureError: what stopped a worker, as it was raised there.
    """
    for row in _map(_make_shard, [{"task": pickle.dumps(task)} for task in tasks], workers):
        if row["error"]:
            raise _restored(row["error"], row["message"])
        yield pickle.loads(row["summary"])


def identify_all(
    sources: Sequence[Source], limits: LimitsOptions, workers: int | None
) -> Iterator[tuple[Source, Identity]]:
    """Hash and probe every source, on the cluster when there are many."""
    if needs_cluster(sources):
        chunks = [sources[start : start + _CHUNK_SOURCES] for start in range(0, len(sources), _CHUNK_SOURCES)]
        items = [{"chunk": pickle.dumps((list(chunk), limits))} for chunk in chunks]
        for row in _map(_identify_chunk, items, workers):
            yield from pickle.loads(row["found"])
    else:
        for source in sources:
            yield source, identify(source, limits)


def needs_cluster(sources: Sequence[Source]) -> bool:
    """Whether :func:`identify_all` will use Ray for these."""
    return len(sources) > _FEW_SOURCES


def _map(function: Any, items: list[dict[str, Any]], workers: int | None) -> Iterator[dict[str, Any]]:
    import ray
    from ray.data import DataContext

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # "progress bars disabled"
    context = DataContext.get_current()
    context.enable_progress_bars = False  # our own lines count files, not blocks
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    mapped = dataset.map(function, num_cpus=1, compute=ray.data.TaskPoolStrategy(size=workers))
    try:
        yield from mapped.iter_rows()
    except ray.exceptions.RayError as error:
        raise InfrastructureError(
            f"a preprocessing worker failed: {error}; run the same command again to go on"
        ) from error


def _make_shard(item: dict[str, Any]) -> dict[str, Any]:
    """Runs in a Ray worker."""
    task: ShardTask = pickle.loads(item["task"])
    try:
        record = run_task(task)
    except HipError as error:
        return {"error": type(error).__name__, "message": str(error), "summary": b""}
    except OSError as error:
        explained = explain_os_error(error, str(error.filename or task.dataset))
        return {"error": type(explained).__name__, "message": str(explained), "summary": b""}
    summary = TaskSummary(task.name, sum(row.examples for row in record.rows), record.rows)
    return {"error": "", "message": "", "summary": pickle.dumps(summary)}


def _identify_chunk(item: dict[str, Any]) -> dict[str, Any]:
    """Runs in a Ray worker."""
    sources, limits = pickle.loads(item["chunk"])
    return {"found": pickle.dumps([(source, identify(source, limits)) for source in sources])}


def _restored(kind: str, message: str) -> HipError:
    return UserError(message) if kind == "UserError" else InfrastructureError(message)


__all__ = ["TaskSummary", "identify_all", "needs_cluster", "run_tasks"]
