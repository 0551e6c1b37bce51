"""Predictions as files: embeddings, label tables, rendered reconstructions, and what could not be used."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa

from pipeline.parquet import parquet_bytes
from pipeline.registry.work import Window
from pipeline.storage import join, path_of, write_atomic


def write_embeddings(windows: Sequence[Window], output: str, file_format: str) -> str:
    """``embeddings.parquet`` (source, start_seconds, embedding) or ``embeddings.npz`` (the same as arrays)."""
    values = np.stack([window.values for window in windows if window.values is not None])
    sources = [window.source for window in windows]
    starts = np.array([window.start_seconds for window in windows])
    target = join(output, f"embeddings.{file_format}")
    if file_format == "npz":
        buffer = io.BytesIO()
        np.savez_compressed(buffer, embedding=values, source=np.array(sources), start_seconds=starts)
        content = buffer.getvalue()
    else:
        lists = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        content = parquet_bytes(pa.table({"source": sources, "start_seconds": starts, "embedding": lists}))
    write_atomic(target, content)
    return target


def write_labels(
    windows: Sequence[Window], names: Sequence[str], top_k: int, output: str
) -> tuple[str, list[list[str]]]:
    """``labels.csv``: one line a file, its windows' mean probabilities, highest first. Returns the lines too."""
    by_source: dict[str, list[np.ndarray]] = {}
    for window in windows:
        if window.values is not None:
            by_source.setdefault(window.source, []).append(window.values)
    top_k = min(top_k, len(names))
    lines = [["source", "windows", *(f"{what}_{rank}" for rank in range(1, top_k + 1) for what in ("label", "score"))]]
    for source, values in by_source.items():
        scores = np.mean(values, axis=0)
        best = np.argsort(-scores)[:top_k]
        lines.append([source, str(len(values)), *(text for i in best for text in (names[i], f"{scores[i]:.4f}"))])
    target = join(output, "labels.csv")
    write_atomic(target, _csv(lines))
    return target, lines[1:]


def write_reconstructions(window: Window, output: str) -> list[str]:
    """One file a modality: ``<name of the source>_<start in ms>.<modality>.<suffix>``."""
    written = []
    for modality, (suffix, content) in window.files.items():
        name = f"{_file_stem(window.source)}_{round(window.start_seconds * 1000):07d}.{modality}.{suffix}"
        written.append(join(output, name))
        write_atomic(written[-1], content)
    return written


def write_failures(windows: Sequence[Window], output: str) -> str:
    """``failed.csv``: source and reason."""
    target = join(output, "failed.csv")
    write_atomic(target, _csv([["source", "reason"], *([w.source, w.error or ""] for w in windows)]))
    return target


def _file_stem(source: str) -> str:
    """A name that cannot leave the output folder, and that two sources of one name in two folders do not share."""
    path = PurePosixPath(path_of(source))
    name = "_".join([*path.parent.parts[-1:], path.stem])
    return re.sub(r"[^\w\-.]", "_", name).lstrip(".") or "item"


def _csv(lines: Sequence[Sequence[str]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue().encode()
