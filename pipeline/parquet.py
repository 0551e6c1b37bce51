"""A small table in a Parquet file's bytes and back, on the calling thread alone."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq


def parquet_bytes(table: pa.Table) -> bytes:
    """``table`` as the bytes of a Parquet file, compressed."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def parquet_table(content: bytes) -> pa.Table:
    """The table of a Parquet file's bytes.

    ``pyarrow.parquet.read_table`` leaves threads behind that give ``content`` back to Python; where the interpreter
    ends first they abort the process (apache/arrow#34314).

    Raises:
        pa.ArrowInvalid: ``content`` is not a whole Parquet file.
    """
    return pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
