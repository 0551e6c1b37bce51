"""What is in a dataset, as one JSON-ready dictionary that the text and HTML forms are made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from pipeline.shards.manifest import Manifest, Member, describe
from pipeline.shards.quarantine import load_quarantine
from pipeline.shards.schema import FORMAT_VERSION, ModalitySpec
from pipeline.shards.verify import ShardCheck, verify_dataset
from pipeline.storage import redact


def summarise(uri: str, verify: bool = False) -> dict[str, Any]:
    """Counts, sizes, statistics, lineage and quarantine of the dataset at ``uri``; with ``verify`` all checksums too.

    Raises:
        UserError: no dataset at ``uri``.
        DataError: a damaged manifest.
    """
    manifest = Manifest.load(uri)
    quarantined = load_quarantine(uri)
    reasons = Counter(file.reason for file in quarantined)
    return {
        "shards_uri": redact(uri),
        "format_version": FORMAT_VERSION,
        "fingerprint": manifest.fingerprint,
        "examples": manifest.num_examples(),
        "splits": {split: _split(manifest, split) for split in sorted(manifest.splits)},
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "modalities": [_modality(manifest, spec) for spec in manifest.modalities],
        "label_names": list(manifest.label_names),
        "class_examples": manifest.lineage.get("class_examples", {}),
        "members": [_member(member) for member in manifest.members],
        "lineage": manifest.lineage,
        "notes": manifest.notes,
        "quarantine": {
            "files": [asdict(file) for file in quarantined],
            "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        },
        "verified": _checks(verify_dataset(uri, manifest)) if verify else None,
    }


def _split(manifest: Manifest, split: str) -> dict[str, Any]:
    shards = manifest.shards_of(split)
    return {
        "examples": sum(shard.rows for shard in shards),
        "shards": len(shards),
        "bytes": sum(shard.bytes for shard in shards),
    }


def _member(member: Member) -> dict[str, Any]:
    examples = member.manifest.num_examples()
    return {"uri": redact(member.uri), "examples": examples, "share": member.share}


def _modality(manifest: Manifest, spec: ModalitySpec) -> dict[str, Any]:
    """The spec with its statistics over all splits, and its duration where it has one."""
    sums = manifest.statistics().get(spec.name)
    examples = sums.examples if sums else 0
    seconds = spec.sampling.get("clip_seconds")
    return {
        **spec.to_dict(),
        "bytes_per_example": spec.row_bytes,
        "examples": examples,
        "missing": manifest.num_examples() - examples,
        "duration_seconds": examples * seconds if isinstance(seconds, int | float) else None,
        "statistics": describe(sums) if sums else None,
    }


def _checks(checks: Iterable[ShardCheck]) -> dict[str, Any]:
    done = list(checks)
    return {
        "shards": len(done),
        "bytes": sum(check.bytes for check in done),
        "damaged": [asdict(check) for check in done if not check.sound],
    }
