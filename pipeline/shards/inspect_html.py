"""A dataset's summary as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.shards.inspect_text import channel_rows, duration_text, member_text, size_text
from pipeline.shards.pictures import histogram, picture
from pipeline.shards.reader import Batch, ShardReader

_LISTED = 500
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222; }
h1 { overflow-wrap: anywhere; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td { overflow-wrap: anywhere; } code, pre { font-size: 13px; } pre { background: #f6f6f6; padding: 1rem; overflow:
auto; } figure { margin: 1rem 0; } figure img { max-width: 100%; display: block; } figcaption { color: #555; }
.bad { color: #a00; } .good { color: #070; }
"""


def render_html(summary: dict[str, Any], uri: str, samples: int) -> str:
    """The page for the summary of ``summarise``, of the dataset at ``uri``, with ``samples`` examples.

    Every text that comes from the data is escaped; no script, no outside link.
    """
    title = escape(str(summary["shards_uri"]))
    body = "\n".join(_sections(summary, uri, samples))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n{body}\n</body></html>\n"
    )


def _sections(summary: dict[str, Any], uri: str, samples: int) -> Iterator[str]:
    yield f"<p><code>{escape(summary['fingerprint'])}</code></p>"
    rows = [
        (name, f"{split['examples']:,}", f"{split['shards']:,}", size_text(split["bytes"]))
        for name, split in summary["splits"].items()
    ]
    rows.append(("all", f"{summary['examples']:,}", f"{summary['shards']:,}", size_text(summary["bytes"])))
    yield _table(("split", "examples", "shards", "size"), rows)
    yield from (f"<p>{escape(member_text(member))}</p>" for member in summary["members"])
    yield from _verified(summary["verified"])
    yield "<h2>Modalities</h2>"
    yield from map(_modality, summary["modalities"])
    if summary["examples"] and samples:
        yield "<h2>Examples</h2>"
        yield from _examples(summary, uri, samples)
    if summary["class_examples"]:
        yield "<h2>Classes</h2>"
        yield _classes(summary)
    yield from _quarantine(summary["quarantine"])
    yield "<h2>Lineage</h2>"
    lineage = {key: value for key, value in summary["lineage"].items() if key != "class_examples"}
    yield f"<pre>{escape(json.dumps({**lineage, 'notes': summary['notes']}, indent=1, ensure_ascii=False))}</pre>"


def _modality(modality: dict[str, Any]) -> str:
    shape = " × ".join(str(size) for size in modality["shape"])
    described = (
        f"{modality['num_tokens']:,} tokens ({shape}) of {modality['num_channels']} channels, {modality['dtype']}, "
        f"{modality['token_order']} order, {size_text(modality['bytes_per_example'])} an example; present in "
        f"{modality['examples']:,} examples{duration_text(modality)}, missing in {modality['missing']:,}; "
        f"sampling {json.dumps(modality['sampling'], ensure_ascii=False)}"
    )
    rows = [(channel, *(f"{value:.5g}" for value in values)) for channel, *values in channel_rows(modality)]
    table = _table(("channel", "mean", "std", "min", "max"), rows) if rows else ""
    return f"<h3>{escape(modality['name'])}</h3><p>{escape(described)}</p>{table}"


def _examples(summary: dict[str, Any], uri: str, samples: int) -> Iterator[str]:
    """Pictures of examples spread evenly over the dataset, and histograms over them."""
    reader = ShardReader(uri)
    chosen = np.unique(np.linspace(0, len(reader) - 1, samples).astype(np.int64))
    try:
        batch = reader.read(chosen)
    except DataError as error:
        yield f'<p class="bad">{escape(str(error))}</p>'
        return
    specs = reader.manifest.modalities
    for slot in range(len(chosen)):
        pictures = [picture(spec, batch.arrays[spec.name][slot]) for spec in specs if batch.present[spec.name][slot]]
        yield _figure(pictures, _caption(batch, slot, summary["label_names"]))
    for spec in specs:
        present = batch.present[spec.name]
        if present.any():
            yield _figure([histogram(spec, batch.arrays[spec.name][present])], f"{spec.name}: values of these examples")


def _caption(batch: Batch, slot: int, label_names: Sequence[str]) -> str:
    labels = [label_names[label] if 0 <= label < len(label_names) else str(label) for label in batch.labels[slot]]
    labelled = f" — {', '.join(labels)}" if labels else ""
    return f"{batch.sources[slot]} at {batch.start_seconds[slot]:g} s{labelled}"


def _classes(summary: dict[str, Any]) -> str:
    splits = list(summary["splits"])
    ranked = sorted(summary["class_examples"].items(), key=lambda item: (-sum(item[1].values()), item[0]))
    rows = [(name, *(f"{counts.get(split, 0):,}" for split in splits)) for name, counts in ranked[:_LISTED]]
    return _table(("class", *splits), rows) + _more(len(ranked))


def _quarantine(quarantine: dict[str, Any]) -> Iterator[str]:
    files = quarantine["files"]
    yield f"<h2>Quarantine: {len(files):,} files</h2>"
    if files:
        yield _table(("reason", "files"), [(reason, f"{count:,}") for reason, count in quarantine["reasons"].items()])
        rows = [(file["path"], file["reason"], size_text(file["bytes"]), file["detail"]) for file in files[:_LISTED]]
        yield _table(("path", "reason", "size", "detail"), rows, numbers=False) + _more(len(files))


def _verified(verified: dict[str, Any] | None) -> Iterator[str]:
    if verified is None:
        return
    if not verified["damaged"]:
        yield f'<p class="good">All checksums of {verified["shards"]:,} shards are right.</p>'
    for check in verified["damaged"]:
        text = escape("; ".join([*check["problems"], check["remedy"]]))
        yield f'<p class="bad">{escape(check["name"])}: {text}</p>'


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: bool = True) -> str:
    """A table; every column but the first is right-aligned when ``numbers``."""

    def cells(tag: str, values: Sequence[object]) -> str:
        kinds = [' class="number"' if numbers and place else "" for place in range(len(values))]
        return "".join(f"<{tag}{kind}>{escape(str(value))}</{tag}>" for kind, value in zip(kinds, values, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{cells('th', head)}</tr>{body}</table>"


def _figure(pictures: Iterable[bytes], caption: str) -> str:
    images = "".join(f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">' for png in pictures)
    return f"<figure>{images}<figcaption>{escape(caption)}</figcaption></figure>"


def _more(count: int) -> str:
    return f"<p>… and {count - _LISTED:,} more.</p>" if count > _LISTED else ""
