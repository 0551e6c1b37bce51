"""``run_preprocess``: list, plan, decode on the cluster, publish. Killed and run again, the result is the same."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from pipeline.errors import DataError, Interrupted, UserError
from pipeline.preprocess.budget import FailureBudget, commonest, counts_as_failed
from pipeline.preprocess.graph import identify_all, needs_cluster, run_tasks
from pipeline.preprocess.identify import Identity
from pipeline.preprocess.ledger import LedgerRow, TaskRecord, forget, load_done, write_quarantine
from pipeline.preprocess.limits import UNCOUNTED_REASONS
from pipeline.preprocess.listing import Source
from pipeline.preprocess.lock import dataset_lock
from pipeline.preprocess.options import PreprocessOptions
from pipeline.preprocess.plan import (
    Plan,
    PlannedSource,
    check_same_recipe,
    extend_plan,
    known_identities,
    load_plan,
    source_bytes,
)
from pipeline.preprocess.progress import Progress
from pipeline.preprocess.publish import publish
from pipeline.preprocess.sources import list_sources
from pipeline.preprocess.task import ShardTask
from pipeline.preprocess.watch import Watch
from pipeline.ray_session import ray_session
from pipeline.shards.combined import is_combined
from pipeline.shards.manifest import Manifest
from pipeline.storage import absolute, is_local, local_path, redact

logger = logging.getLogger(__name__)

_EARLY_STOP_FAILURES = 20  # below it a run is short enough to show everything that is wrong


@dataclass(frozen=True)
class PreprocessReport:
    """What a run did. ``counts``: files, done, failed, skipped, duplicates, examples. ``quarantined``: by reason."""

    manifest: Manifest
    counts: dict[str, int]
    quarantined: dict[str, int]
    tasks_run: int
    seconds: float


def run_preprocess(options: PreprocessOptions) -> PreprocessReport:
    """Turn the media of ``options.source`` into the token dataset ``options.shards``.

    Raises:
        UserError: the source is missing or empty, the folder holds another dataset, or another run is writing it.
        DataError: more files failed than ``max_failed_fraction`` allows, or none could be used.
        InfrastructureError: a full disk, a lost cluster.
        Interrupted: Ctrl-C; what is done is kept.
    """
    started = time.monotonic()
    if is_combined(options.shards):
        raise UserError(
            f"shards={redact(options.shards)} is a combined dataset; preprocess into another folder, then hip combine"
        )
    sources = list_sources(options)
    try:
        with ExitStack() as stack:
            stack.enter_context(dataset_lock(options.shards))
            _remove_leftovers(options.shards)
            return _run(options, sources, stack, started)
    except KeyboardInterrupt as error:
        raise Interrupted("stopped; finished shards are kept, run the same command again to go on") from error


def _run(options: PreprocessOptions, sources: list[Source], stack: ExitStack, started: float) -> PreprocessReport:
    plan, listed = _plan(options, sources, stack)
    budget = FailureBudget.of(options, plan, listed)
    done = load_done(options.shards, options.tokens.fingerprint())
    if options.retry_failed:
        for task in [name for name, record in done.items() if any(row.status == "failed" for row in record.rows)]:
            forget(options.shards, task)
            del done[task]
    todo = {name: members for name, members in plan.tasks().items() if name not in done}
    unreadable = _unusable_rows(plan)
    budget.check([*unreadable, *_rows(done.values())], _EARLY_STOP_FAILURES)
    if todo:
        stack.enter_context(ray_session(options.ray))
        _decode(options, plan, sources, todo, done, budget)
        _remove_leftovers(options.shards)  # of workers that were killed and whose task another did again
        done = load_done(options.shards, options.tokens.fingerprint())
    records = [done[name] for name in plan.tasks()]
    rows = [*unreadable, *_rows(records)]
    budget.check(rows)
    failed = [row for row in rows if row.status == "failed"]
    write_quarantine(options.shards, failed)
    if not any(row.examples for row in rows):
        raise DataError(f"none of the {len(rows)} files could be used: {commonest(failed)}; {_advice(failed)}")
    manifest = publish(options, plan, records, failed)
    counts = {
        "files": len(plan.sources),
        "done": sum(row.status == "done" for row in rows),
        "failed": sum(counts_as_failed(row) for row in rows),
        "skipped": sum(row.status == "failed" and not counts_as_failed(row) for row in rows),
        "duplicates": sum(bool(source.duplicate_of) for source in plan.sources),
        "examples": manifest.num_examples(),
    }
    reasons = dict(sorted(Counter(row.reason for row in failed).items()))
    return PreprocessReport(manifest, counts, reasons, len(todo), time.monotonic() - started)


def _plan(options: PreprocessOptions, sources: list[Source], stack: ExitStack) -> tuple[Plan, frozenset[str]]:
    """The stored plan, extended by what is new and stored again if anything is; the contents that are listed now."""
    old = load_plan(options.shards)
    if old is not None:
        check_same_recipe(old, options.tokens, options.validation_fraction, options.shards)
    known = known_identities(old)
    found: list[tuple[Source, Identity]] = []
    unknown: list[Source] = []
    for source in sources:
        identity = known.get((source.name, source.bytes, source.modified_ns))
        if identity is None:
            unknown.append(source)
        else:
            found.append((source, identity))
    if needs_cluster(unknown):
        stack.enter_context(ray_session(options.ray))
    if unknown:
        logger.info("reading %d new of %d files to plan the shards", len(unknown), len(sources))
        with Progress(len(unknown), len(unknown), options.progress_seconds) as progress:
            for pair in identify_all(unknown, options.limits, options.scale.workers):
                found.append(pair)
                progress.advance(1, 1)
    before = old or Plan(options.tokens, options.validation_fraction)
    plan = extend_plan(before, found, options.shard_megabytes * 1e6)
    if plan != old:
        plan.save(options.shards)
    return plan, frozenset(identity.content_hash for _, identity in found)


def _decode(
    options: PreprocessOptions,
    plan: Plan,
    sources: list[Source],
    todo: dict[str, list[PlannedSource]],
    done: dict[str, TaskRecord],
    budget: FailureBudget,
) -> None:
    places = {redact(source.location): source.location for source in sources}  # a plan holds no secrets
    tasks = [
        ShardTask(
            name=name,
            dataset=absolute(options.shards),
            recipe=options.tokens,
            limits=options.limits,
            shard_bytes=options.shard_megabytes * 1e6,
            label_names=plan.label_names,
            sources=tuple(replace(member, location=places.get(member.location, member.location)) for member in members),
        )
        for name, members in todo.items()
    ]
    work = {task.name: sum(source_bytes(source, plan.recipe) for source in task.sources) for task in tasks}
    files = sum(len(task.sources) for task in tasks)
    logger.info("decoding %d files into %d shards; %d shards are there already", files, len(tasks), len(done))
    rows = [*_unusable_rows(plan), *_rows(done.values())]
    watch = Watch(options.shards, len(rows) + files)
    watch.advance(len(rows), 0, sum(map(counts_as_failed, rows)))
    with Progress(sum(work.values()), files, options.progress_seconds) as progress:
        for summary in run_tasks(tasks, options.scale.workers):
            rows += summary.rows
            failed = sum(map(counts_as_failed, summary.rows))
            progress.advance(work[summary.task], len(summary.rows), summary.examples, failed)
            watch.advance(len(summary.rows), summary.examples, failed)
            budget.check(rows, _EARLY_STOP_FAILURES)


def _advice(failed: list[LedgerRow]) -> str:
    if all(row.reason in UNCOUNTED_REASONS for row in failed):
        return "choose a recipe for this kind of media, like tokens=image_224, tokens=audio_5s or tokens=points_2048"
    return "check that the files play elsewhere"


def _rows(records: Iterable[TaskRecord]) -> list[LedgerRow]:
    return [row for record in records for row in record.rows]


def _unusable_rows(plan: Plan) -> list[LedgerRow]:
    return [
        LedgerRow(source.name, source.content_hash, "failed", 0, source.reason, source.detail, max(0, source.bytes))
        for source in plan.sources
        if source.reason
    ]


def _remove_leftovers(dataset: str) -> None:
    """Temporary files of a killed run; only the holder of the lock may."""
    if is_local(dataset):
        for path in local_path(dataset).rglob(".*.tmp"):
            path.unlink(missing_ok=True)
