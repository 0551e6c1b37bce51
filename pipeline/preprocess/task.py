"""One shard task: decode its sources in order, write the shard, then the ledger. The unit of work and of redoing."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import xxhash

from pipeline.preprocess.box import decode_file_boxed
from pipeline.preprocess.decode import DecodedExample
from pipeline.preprocess.fetch import local_copy
from pipeline.preprocess.ledger import LedgerRow, TaskRecord
from pipeline.preprocess.limits import LimitsOptions, MediaError
from pipeline.preprocess.plan import PlannedSource
from pipeline.preprocess.recipe import TokenRecipe
from pipeline.preprocess.spool import ExampleSpool
from pipeline.shards.record import ShardRecord
from pipeline.shards.schema import ExampleRow
from pipeline.shards.writer import ShardWriter
from pipeline.storage import is_local, local_path

_OVERFULL = 2.0  # a shard may reach twice its planned size before the task starts another


@dataclass(frozen=True)
class ShardTask:
    """Everything a worker needs to make one shard."""

    name: str
    dataset: str
    recipe: TokenRecipe
    limits: LimitsOptions
    shard_bytes: float
    label_names: tuple[str, ...]
    sources: tuple[PlannedSource, ...]


def run_task(task: ShardTask) -> TaskRecord:
    """Make the shard(s) and the ledger of one task. The same task gives the same bytes.

    Raises:
        UserError: the dataset folder cannot be written.
        InfrastructureError: the disk is full.
    """
    shards = _Shards(task)
    try:
        rows = [_process(task, source, shards) for source in task.sources]
        record = TaskRecord(task.name, task.recipe.fingerprint(), tuple(shards.finish()), tuple(rows))
    except BaseException:
        shards.abort()
        raise
    record.save(task.dataset)
    return record


@dataclass
class _Shards:
    """The shard in the making; a task whose sources turn out larger than they claimed goes on in a further one."""

    task: ShardTask
    writer: ShardWriter | None = None
    records: list[ShardRecord] = field(default_factory=list)
    written_bytes: float = 0.0

    def add(self, row: ExampleRow) -> None:
        if self.writer is None:
            part = f"{len(self.records):03d}" if self.records else ""
            metadata = {"recipe": self.task.recipe.to_dict()}
            self.writer = ShardWriter(self.task.dataset, self.task.name + part, self.task.recipe.specs(), metadata)
        self.writer.add(row)
        self.written_bytes += sum(spec.row_bytes for spec in self.task.recipe.specs())
        if self.written_bytes > _OVERFULL * self.task.shard_bytes:
            self.finish()

    def finish(self) -> list[ShardRecord]:
        if self.writer is not None:
            self.records.append(self.writer.close())
            self.writer, self.written_bytes = None, 0.0
        return self.records

    def abort(self) -> None:
        if self.writer is not None:
            self.writer.abort()


def _process(task: ShardTask, source: PlannedSource, shards: _Shards) -> LedgerRow:
    """Decode one source. Its rows reach the shard only when the whole file decoded: a broken file leaves none."""
    notes: dict[str, Any] = {}
    fate = LedgerRow(source.name, source.content_hash, "done", bytes=source.bytes, seconds=source.seconds)
    with ExampleSpool() as spool:
        try:
            _decode_into(spool, task, source, notes)
        except MediaError as error:
            fate = replace(fate, status="failed", reason=error.reason, detail=error.detail)
        else:
            labels = tuple(sorted({task.label_names.index(label) for label in source.labels}))
            for example in spool:
                shards.add(_row(task, source, labels, example))
            fate = replace(fate, examples=len(spool))
    return replace(fate, notes=json.dumps(notes, sort_keys=True))


def _decode_into(spool: ExampleSpool, task: ShardTask, source: PlannedSource, notes: dict[str, Any]) -> None:
    _refuse_changed(source)
    try:
        with local_copy(source.location) as path:
            for example in decode_file_boxed(path, task.recipe, task.limits, source.segment, notes):
                spool.add(example)
    except FileNotFoundError as error:
        raise MediaError("missing_file", "it was there when the plan was made") from error
    except PermissionError as error:
        raise MediaError("unreadable", error.strerror or str(error)) from error


def _refuse_changed(source: PlannedSource) -> None:
    """A file that is being rewritten must not enter under the hash of its old content."""
    if not is_local(source.location):
        return
    try:
        state = local_path(source.location).stat()
    except FileNotFoundError as error:
        raise MediaError("missing_file", "it was there when the plan was made") from error
    if state.st_size != source.bytes or state.st_mtime_ns != source.modified_ns:
        raise MediaError("unreadable", "changed after the plan was made; run again to take its new content")


def _row(task: ShardTask, source: PlannedSource, labels: tuple[int, ...], example: DecodedExample) -> ExampleRow:
    identity = f"{source.content_hash}\x1f{source.segment}\x1f{example.index}\x1f{task.recipe.fingerprint()}"
    return ExampleRow(
        example_id=xxhash.xxh3_128_digest(identity.encode()),
        source=source.name,
        start_seconds=example.start_seconds,
        labels=labels,
        arrays=example.arrays,
    )
