"""``quarantine.parquet``: the source files that gave no example, and why."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from pipeline.errors import DataError
from pipeline.parquet import parquet_table
from pipeline.storage import exists, join, read_bytes, redact

QUARANTINE_NAME = "quarantine.parquet"


@dataclass(frozen=True)
class QuarantinedFile:
    """One source file that was given up: its path, a short reason, the decoder's words, its size."""

    path: str
    reason: str
    detail: str
    bytes: int


def load_quarantine(uri: str) -> list[QuarantinedFile]:
    """The quarantined files of a dataset, ordered by path; empty when nothing failed.

    Raises:
        DataError: the table is damaged.
    """
    location = join(uri, QUARANTINE_NAME)
    if not exists(location):
        return []
    try:
        rows = parquet_table(read_bytes(location)).select(["path", "reason", "detail", "bytes"]).to_pylist()
    except (pa.ArrowException, KeyError, OSError) as error:
        raise DataError(f"{redact(location)} is damaged ({error}); run hip preprocess again to rewrite it") from error
    files = [QuarantinedFile(row["path"], row["reason"] or "", row["detail"] or "", row["bytes"] or 0) for row in rows]
    return sorted(files, key=lambda file: file.path)
