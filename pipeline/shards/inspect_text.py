"""A dataset's summary for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_LISTED = 20


def render_text(summary: dict[str, Any]) -> str:
    """The summary of ``summarise`` as aligned lines; control characters in names are escaped."""
    return "\n".join(printable(line) for line in _lines(summary)) + "\n"


def printable(text: str) -> str:
    """``text`` with anything that could steer a terminal written out, like ``\\x1b``."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def size_text(size_bytes: float) -> str:
    """Bytes with a decimal unit: ``1.45 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.2f} TB"


def duration_text(modality: dict[str, Any]) -> str:
    """`` (2.5 hours)`` or `` (12 seconds)``; empty for a modality without a duration."""
    seconds = modality["duration_seconds"]
    if seconds is None:
        return ""
    return f" ({seconds:,.4g} seconds)" if seconds < 3600 else f" ({seconds / 3600:,.1f} hours)"


def channel_rows(modality: dict[str, Any]) -> list[tuple[int, float, float, float, float]]:
    """Channel number, mean, std, min and max of each channel; empty when no example has the modality."""
    statistics = modality["statistics"]
    if statistics is None:
        return []
    columns = [statistics[key] for key in ("mean", "std", "min", "max")]
    return [(channel, *values) for channel, values in enumerate(zip(*columns, strict=True))]


def _lines(summary: dict[str, Any]) -> Iterator[str]:
    yield f"{summary['shards_uri']}"
    yield f"  fingerprint  {summary['fingerprint']}"
    yield f"  examples     {summary['examples']:,} in {summary['shards']:,} shards, {size_text(summary['bytes'])}"
    for name, split in summary["splits"].items():
        size = size_text(split["bytes"])
        yield f"    {name:<12} {split['examples']:>12,} examples {split['shards']:>7,} shards {size:>10}"
    yield from map(member_text, summary["members"])
    for modality in summary["modalities"]:
        yield from _modality_lines(modality)
    yield from _class_lines(summary)
    yield from _quarantine_lines(summary["quarantine"])
    yield from _verified_lines(summary["verified"])


def member_text(member: dict[str, Any]) -> str:
    """A dataset of a combined one, and the part of training that is drawn from it."""
    share = "each once an epoch" if member["share"] is None else f"{member['share']:.3g} of what training draws"
    return f"    of {member['uri']}: {member['examples']:,} examples, {share}"


def _modality_lines(modality: dict[str, Any]) -> Iterator[str]:
    shape = " x ".join(str(size) for size in modality["shape"])
    yield ""
    yield (
        f"  {modality['name']}: {modality['num_tokens']:,} tokens ({shape}) of {modality['num_channels']} channels, "
        f"{modality['dtype']}, {modality['token_order']} order, {size_text(modality['bytes_per_example'])} an example"
    )
    sampling = ", ".join(f"{key} {value}" for key, value in modality["sampling"].items())
    if sampling:
        yield f"    sampling     {sampling}"
    present = f"{modality['examples']:,} examples{duration_text(modality)}"
    yield f"    present in   {present}; missing in {modality['missing']:,}"
    for channel, mean, std, low, high in channel_rows(modality):
        yield f"    channel {channel}    mean {mean:12.5g}  std {std:12.5g}  min {low:10.5g}  max {high:10.5g}"


def _class_lines(summary: dict[str, Any]) -> Iterator[str]:
    classes = summary["class_examples"]
    if not summary["label_names"]:
        return
    yield ""
    yield f"  labels: {len(summary['label_names']):,} classes"
    ranked = sorted(classes.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    for name, counts in ranked[:_LISTED]:
        yield f"    {name:<32} " + "  ".join(f"{split} {count:,}" for split, count in counts.items())
    if len(ranked) > _LISTED:
        yield f"    … and {len(ranked) - _LISTED:,} more classes, the smallest with {sum(ranked[-1][1].values()):,}"


def _quarantine_lines(quarantine: dict[str, Any]) -> Iterator[str]:
    files = quarantine["files"]
    yield ""
    yield f"  quarantine: {len(files):,} files"
    for reason, count in quarantine["reasons"].items():
        yield f"    {count:>6,}  {reason}"
    for file in files[:_LISTED]:
        yield f"    {file['path']} ({file['reason']}, {size_text(file['bytes'])}): {file['detail']}"
    if len(files) > _LISTED:
        yield f"    … and {len(files) - _LISTED:,} more in quarantine.parquet"


def _verified_lines(verified: dict[str, Any] | None) -> Iterator[str]:
    if verified is None:
        return
    yield ""
    size = size_text(verified["bytes"])
    yield f"  verified: {verified['shards']:,} shards, {size}, {len(verified['damaged'])} damaged"
    for check in verified["damaged"]:
        yield f"    {check['name']}"
        for problem in check["problems"]:
            yield f"      {problem}"
        yield f"      {check['remedy']}"
