"""The ledger: one record per source file, written with its shard; the quarantine: the failed ones in one table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pyarrow as pa

from pipeline.errors import DataError
from pipeline.parquet import parquet_bytes, parquet_table
from pipeline.shards.quarantine import QUARANTINE_NAME
from pipeline.shards.record import ShardRecord
from pipeline.storage import exists, join, list_files, read_bytes, resolve, write_atomic

LEDGER_FOLDER = "ledger"
_METADATA_KEY = b"hip_ledger"


@dataclass(frozen=True)
class LedgerRow:
    """The fate of one source: ``status`` is done or failed; ``notes`` say which streams were used."""

    name: str
    content_hash: str
    status: str
    examples: int = 0
    reason: str = ""
    detail: str = ""
    bytes: int = 0
    seconds: float = 0.0
    notes: str = "{}"


@dataclass(frozen=True)
class TaskRecord:
    """What one shard task did."""

    task: str
    recipe: str
    """Fingerprint of the recipe."""
    shards: tuple[ShardRecord, ...]
    rows: tuple[LedgerRow, ...] = field(default=())

    def save(self, dataset: str) -> None:
        """Write ``ledger/<task>.parquet``; the task counts as done from this moment."""
        head = {"task": self.task, "recipe": self.recipe, "shards": [shard.to_dict() for shard in self.shards]}
        table = _rows_table(self.rows).replace_schema_metadata({_METADATA_KEY: json.dumps(head, sort_keys=True)})
        write_atomic(join(dataset, LEDGER_FOLDER, f"{self.task}.parquet"), parquet_bytes(table))


def load_done(dataset: str, recipe: str) -> dict[str, TaskRecord]:
    """The tasks whose ledger and shards are in place, by name; one whose shard is gone or resized is not done."""
    sizes = {info.base_name: info.size for info in list_files(dataset)}
    done = {}
    for info in list_files(join(dataset, LEDGER_FOLDER)):
        if info.extension != "parquet" or info.base_name.startswith("."):
            continue
        record = _load_task(join(dataset, LEDGER_FOLDER, info.base_name))
        if record is None or record.recipe != recipe:
            continue
        if all(sizes.get(shard.name) == shard.bytes for shard in record.shards):
            done[record.task] = record
    return done


def forget(dataset: str, task: str) -> None:
    """Make one task undone."""
    system, path = resolve(join(dataset, LEDGER_FOLDER, f"{task}.parquet"))
    system.delete_file(path)


def write_quarantine(dataset: str, rows: Iterable[LedgerRow]) -> None:
    """Write ``quarantine.parquet``: path, reason, detail, bytes, content hash of every file that gave no example."""
    ordered = sorted(rows, key=lambda row: (row.name, row.content_hash))
    table = pa.table(
        {
            "path": pa.array([row.name for row in ordered], pa.string()),
            "reason": pa.array([row.reason for row in ordered], pa.string()),
            "detail": pa.array([row.detail for row in ordered], pa.string()),
            "bytes": pa.array([row.bytes for row in ordered], pa.int64()),
            "content_hash": pa.array([row.content_hash for row in ordered], pa.string()),
        }
    )
    location, content = join(dataset, QUARANTINE_NAME), parquet_bytes(table)
    if not exists(location) or read_bytes(location) != content:  # a run with nothing to do touches nothing
        write_atomic(location, content)


def _load_task(location: str) -> TaskRecord | None:
    """One ledger file; a damaged one is as good as none: its task is done again."""
    try:
        table = parquet_table(read_bytes(location))
        head: dict[str, Any] = json.loads(table.schema.metadata[_METADATA_KEY])
        shards = tuple(ShardRecord.from_dict(shard) for shard in head["shards"])
        rows = tuple(LedgerRow(**row) for row in table.to_pylist())
        return TaskRecord(str(head["task"]), str(head["recipe"]), shards, rows)
    except (pa.ArrowException, DataError, OSError, KeyError, TypeError, ValueError):
        return None


def _rows_table(rows: Iterable[LedgerRow]) -> pa.Table:
    types = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
    schema = pa.schema([(item.name, types[str(item.type)]) for item in fields(LedgerRow)])
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=schema)
