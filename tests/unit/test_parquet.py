"""Tables in Parquet: what comes back, and that a process which read one ends cleanly."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.parquet import parquet_bytes, parquet_table

_READ_AND_COUNT = """
import os, sys
from pipeline.parquet import parquet_bytes, parquet_table
import pyarrow as pa
content = parquet_bytes(pa.table({"path": ["a", "b"]}))
before = len(os.listdir("/proc/self/task"))
assert parquet_table(content).to_pylist() == [{"path": "a"}, {"path": "b"}]
print(len(os.listdir("/proc/self/task")) - before)
"""


def test_a_table_comes_back_with_its_metadata() -> None:
    table = pa.table({"path": ["a", None], "bytes": [1, 2]}).replace_schema_metadata({"hip": "x"})
    found = parquet_table(parquet_bytes(table))
    assert found.equals(table)
    assert found.schema.metadata[b"hip"] == b"x"


def test_what_is_no_parquet_file_is_refused() -> None:
    with pytest.raises(pa.ArrowInvalid):
        parquet_table(b"no table")


def test_reading_starts_no_thread() -> None:
    """Arrow's threads drop the Python bytes they read; one that does so while the interpreter ends aborts the process.

    ``hip inspect`` did, after it had printed its report (exit code -6, one time in sixty on a busy machine).
    """
    done = subprocess.run([sys.executable, "-c", _READ_AND_COUNT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


def test_no_other_code_of_the_pipeline_reads_parquet() -> None:
    pipeline = Path(__file__).parents[2] / "pipeline"
    readers = [
        path for path in pipeline.rglob("*.py") if re.search(r"read_table\(|Parquet(File|Dataset)\(", path.read_text())
    ]
    assert readers == [pipeline / "parquet.py"]
