"""The last step: the manifest, which makes the folder a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.preprocess.ledger import LedgerRow, TaskRecord
from pipeline.preprocess.options import PreprocessOptions
from pipeline.preprocess.plan import Plan
from pipeline.shards.manifest import MANIFEST_NAME, Manifest
from pipeline.storage import exists, join, redact


def publish(
    options: PreprocessOptions, plan: Plan, records: Sequence[TaskRecord], failed: Sequence[LedgerRow]
) -> Manifest:
    """Write ``manifest.json`` if it is not there already with the same content, and return it."""
    manifest = Manifest(
        modalities=tuple(plan.recipe.specs()),
        shards=tuple(shard for record in records for shard in record.shards),
        label_names=plan.label_names,
        lineage={
            "recipe": plan.recipe.to_dict(),
            "recipe_fingerprint": plan.recipe.fingerprint(),
            "validation_fraction": plan.validation_fraction,
            "plan": plan.digest(),
            "files": _file_counts(plan, records, failed),
            "class_examples": _class_examples(plan, records),
            "duplicates": _duplicates(plan),
            "software": _software(),
        },
        notes={"source": redact(options.source)},
    )
    if not (exists(join(options.shards, MANIFEST_NAME)) and _stored(options.shards) == manifest.fingerprint):
        manifest.write(options.shards)
    return manifest


def _stored(shards: str) -> str | None:
    from pipeline.errors import HipError

    try:
        return Manifest.load(shards).fingerprint
    except HipError:
        return None


def _file_counts(plan: Plan, records: Sequence[TaskRecord], failed: Sequence[LedgerRow]) -> dict[str, Any]:
    done = [row for record in records for row in record.rows if row.status == "done"]
    return {
        "done": len(done),
        "duplicates": sum(bool(source.duplicate_of) for source in plan.sources),
        "quarantined": dict(sorted(Counter(row.reason for row in failed).items())),
        "bytes": sum(row.bytes for row in done),
        "seconds": round(sum(row.seconds for row in done), 3),
    }


def _class_examples(plan: Plan, records: Sequence[TaskRecord]) -> dict[str, dict[str, int]]:
    """Examples of each class in each split."""
    balance: dict[str, dict[str, int]] = {}
    tasks = plan.tasks()
    pairs = [pair for record in records for pair in zip(tasks[record.task], record.rows, strict=True)]
    for source, row in pairs:
        for label in source.labels if row.examples else ():
            counts = balance.setdefault(label, {})
            counts[source.split] = counts.get(source.split, 0) + row.examples
    return {label: dict(sorted(counts.items())) for label, counts in sorted(balance.items())}


def _duplicates(plan: Plan) -> dict[str, str]:
    """Files left out because another has the same content: path to the path that was kept."""
    return {source.name: source.duplicate_of for source in plan.sources if source.duplicate_of}


def _software() -> dict[str, str]:
    """The versions that decide the exact pixels and samples."""
    return {name: _version(name) for name in ("hip-pipeline", "av", "opencv-python-headless", "pillow", "numpy")}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
