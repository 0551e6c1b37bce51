"""The plan of a dataset: every source file with its split and shard task, decided before anything is decoded.

A shard is a function of the plan and the recipe, never of scheduling; new sources only add tasks. ``plan.parquet`` in
the dataset folder is the plan's only copy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import xxhash

from pipeline.errors import DataError, UserError
from pipeline.parquet import parquet_bytes, parquet_table
from pipeline.preprocess.align import Segment
from pipeline.preprocess.identify import Identity
from pipeline.preprocess.listing import Source
from pipeline.preprocess.recipe import TokenRecipe
from pipeline.storage import exists, join, read_bytes, redact, write_atomic

PLAN_NAME = "plan.parquet"
_FEWEST_TASKS = 8  # so that a small dataset still has enough shards for several readers
_MOST_SOURCES = 4096  # of one task: what a kill may cost
_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("location", pa.string()),
        ("content_hash", pa.string()),
        ("bytes", pa.int64()),
        ("modified_ns", pa.int64()),
        ("seconds", pa.float64()),
        ("labels", pa.list_(pa.string())),
        ("segment", pa.list_(pa.float64())),
        ("split", pa.string()),
        ("task", pa.string()),
        ("duplicate_of", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class PlannedSource:
    """One source and its place. ``task`` is empty for a duplicate and for a file that cannot even be read."""

    name: str
    location: str
    content_hash: str
    bytes: int
    modified_ns: int
    seconds: float
    labels: tuple[str, ...]
    segment: Segment | None
    split: str
    task: str = ""
    duplicate_of: str = ""
    reason: str = ""
    detail: str = ""

    @property
    def key(self) -> tuple[str, Segment]:
        """What makes two sources the same."""
        return self.content_hash, self.segment or (0.0, 0.0)


@dataclass(frozen=True)
class Plan:
    """All sources of a dataset, those of a task together and in the order of their content hash."""

    recipe: TokenRecipe
    validation_fraction: float
    label_names: tuple[str, ...] = ()
    sources: tuple[PlannedSource, ...] = ()

    def tasks(self) -> dict[str, list[PlannedSource]]:
        """The sources of each shard task, by task name."""
        tasks: dict[str, list[PlannedSource]] = {}
        for source in self.sources:
            if source.task:
                tasks.setdefault(source.task, []).append(source)
        return dict(sorted(tasks.items()))

    def digest(self) -> str:
        """Hash over what decides the data: contents, labels, splits and tasks, but not where the files lie."""
        lines = [
            f"{source.task} {source.content_hash} {source.segment} {source.name} {source.labels}"
            for source in self.sources
            if source.task
        ]
        return str(xxhash.xxh3_128_hexdigest("\n".join(sorted(lines)).encode()))

    def save(self, shards: str) -> None:
        """Write ``plan.parquet`` atomically."""
        columns = {field.name: [_stored(getattr(source, field.name)) for source in self.sources] for field in _SCHEMA}
        head = {
            "recipe": self.recipe.to_dict(),
            "validation_fraction": self.validation_fraction,
            "label_names": self.label_names,
        }
        schema = _SCHEMA.with_metadata({"hip_plan": json.dumps(head, sort_keys=True)})
        write_atomic(join(shards, PLAN_NAME), parquet_bytes(pa.table(columns, schema=schema)))


def load_plan(shards: str) -> Plan | None:
    """The plan of a dataset folder, None if it has none yet.

    Raises:
        DataError: the file is damaged.
    """
    location = join(shards, PLAN_NAME)
    if not exists(location):
        return None
    try:
        table = parquet_table(read_bytes(location))
        head = json.loads(table.schema.metadata[b"hip_plan"])
        rows = [_loaded(row) for row in table.to_pylist()]
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{redact(location)} is damaged ({error}); preprocess into a new folder") from error
    recipe = TokenRecipe.from_dict(head["recipe"])
    return Plan(recipe, head["validation_fraction"], tuple(head["label_names"]), tuple(rows))


def check_same_recipe(plan: Plan, recipe: TokenRecipe, validation_fraction: float, shards: str) -> None:
    """A dataset has one recipe.

    Raises:
        UserError: naming the first difference.
    """
    old = {**plan.recipe.to_dict(), "validation_fraction": plan.validation_fraction}
    new = {**recipe.to_dict(), "validation_fraction": validation_fraction}
    for key, value in old.items():
        if new[key] != value:
            raise UserError(
                f"{redact(shards)} was made with {key}={value}, this run says {new[key]}; "
                "use the same setting to add files, or another folder for another dataset"
            )


def known_identities(plan: Plan | None) -> dict[tuple[str, int, int], Identity]:
    """What was read of unchanged files in an earlier run, by (name, bytes, modification time)."""
    sources = plan.sources if plan else ()
    return {
        (source.name, source.bytes, source.modified_ns): Identity(source.content_hash, source.seconds)
        for source in sources
        if not source.reason
    }


def extend_plan(plan: Plan, found: Iterable[tuple[Source, Identity]], shard_bytes: float) -> Plan:
    """Add what is new in ``found``: a pure function of the old plan and the set of files, whatever their order.

    Sources are ordered by content hash (which mixes classes and neighbours), split by it, and cut into tasks.
    """
    old_by_key = {source.key: source for source in plan.sources if source.task}
    splits = {source.content_hash: source.split for source in old_by_key.values()}
    groups: dict[tuple[str, Segment], list[PlannedSource]] = {}
    for source, identity in sorted(found, key=lambda pair: (pair[0].name, pair[0].segment or (0.0, 0.0))):
        split = splits.setdefault(identity.content_hash, source.split or _split_of(identity.content_hash, plan))
        planned = _planned(source, identity, split)
        groups.setdefault(planned.key, []).append(planned)
    fresh, others = [], []
    for key, group in groups.items():
        if group[0].reason:
            others += group
            continue
        first = _primary(group, old_by_key.get(key))
        others += [replace(source, duplicate_of=first.name) for source in group if source.name != first.name]
        if key in old_by_key:
            old_by_key[key] = first
        else:
            fresh.append(first)
    kept = list(old_by_key.values())
    added = _assign_tasks(fresh, kept, plan.recipe, shard_bytes)
    names = {name for source in fresh for name in source.labels} - set(plan.label_names)
    everything = [*kept, *added, *others]
    everything.sort(key=lambda item: (item.task or "~", item.key, item.name))
    return replace(plan, label_names=(*plan.label_names, *sorted(names)), sources=tuple(everything))


def source_bytes(source: PlannedSource, recipe: TokenRecipe) -> float:
    """Token bytes that a source should give, by the duration that it claims and the part of it that may be used."""
    seconds = min(source.seconds, source.segment[1]) - source.segment[0] if source.segment else source.seconds
    row_bytes = sum(spec.row_bytes for spec in recipe.specs())
    return row_bytes * max(1.0, math.floor(seconds / recipe.stride))


def _primary(group: Sequence[PlannedSource], old: PlannedSource | None) -> PlannedSource:
    """The file that stands for all of one content: the one planned before, else the first by name."""
    if old is None:
        return group[0]
    here = next((source for source in group if source.name == old.name), None)
    if here is None:
        return replace(old, location=group[0].location, modified_ns=group[0].modified_ns)
    return replace(old, location=here.location, modified_ns=here.modified_ns)


def _planned(source: Source, identity: Identity, split: str) -> PlannedSource:
    segment = source.segment
    if segment and 0 < identity.seconds <= segment[1] - segment[0] + 1.0:
        segment = None  # the file was cut to the segment already
    return PlannedSource(
        name=source.name,
        location=redact(source.location),  # the plan is stored; a run takes the way in from its own listing
        content_hash=identity.content_hash,
        bytes=source.bytes,
        modified_ns=source.modified_ns,
        seconds=identity.seconds,
        labels=source.labels,
        segment=segment,
        split=split,
        reason=identity.reason,
        detail=identity.detail,
    )


def _split_of(content_hash: str, plan: Plan) -> str:
    share = xxhash.xxh3_64_intdigest(f"split\x1f{content_hash}".encode()) / 2**64
    return "validation" if share < plan.validation_fraction else "train"


def _assign_tasks(
    fresh: Sequence[PlannedSource], kept: Sequence[PlannedSource], recipe: TokenRecipe, shard_bytes: float
) -> list[PlannedSource]:
    sizes = {source.key: source_bytes(source, recipe) for source in fresh}
    target = min(shard_bytes, sum(sizes.values()) / _FEWEST_TASKS)
    assigned: list[PlannedSource] = []
    for split in ("train", "validation"):
        number = len({source.task for source in kept if source.split == split})
        filled, count = 0.0, 0
        for source in sorted((item for item in fresh if item.split == split), key=lambda item: item.key):
            if count and (filled + sizes[source.key] > target or count == _MOST_SOURCES):
                number, filled, count = number + 1, 0.0, 0
            assigned.append(replace(source, task=f"{split}-{number:05d}"))
            filled, count = filled + sizes[source.key], count + 1
    return assigned


def _stored(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _loaded(row: dict[str, object]) -> PlannedSource:
    labels, segment = row.pop("labels"), row.pop("segment")
    assert isinstance(labels, list)
    pair = (float(segment[0]), float(segment[1])) if isinstance(segment, list) else None
    return PlannedSource(**row, labels=tuple(labels), segment=pair)  # type: ignore[arg-type]
