"""Write one shard: an Arrow IPC file, uncompressed, that appears under its name only when it is complete."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

from pipeline.scratch import ScratchFolder
from pipeline.shards.checksum import HashingSink
from pipeline.shards.columns import RowBuffer, check_row
from pipeline.shards.direct import DirectFile
from pipeline.shards.framing import describe_batches
from pipeline.shards.record import ShardRecord, shard_file_name, split_of
from pipeline.shards.schema import ExampleRow, ModalitySpec, rows_per_batch, shard_schema
from pipeline.shards.statistics import ChannelSums
from pipeline.storage import explain_os_error, is_local, join, local_path, resolve


class ShardWriter:
    """Streams rows into ``<folder>/<name>.arrow``; the same rows and metadata give the same bytes.

    Memory: one record batch (about 24 MB), whatever the number of rows. ``name`` is ``<split>-<number>``, like
    ``train-00000``. ``folder`` may be a URI; the file is then made locally and uploaded by ``close``. As a context
    manager it drops the file unless ``close`` was called inside the block.

    Raises:
        UserError: a bad name, or a folder that cannot be written.
        InfrastructureError: the disk is full.
    """

    def __init__(
        self, folder: str, name: str, specs: Sequence[ModalitySpec], metadata: dict[str, Any] | None = None
    ) -> None:
        self.name = shard_file_name(name)
        self._folder = str(folder)
        self._specs = tuple(specs)
        self._batch_rows = rows_per_batch(self._specs)
        self._rows = 0
        self._batch_ends: list[int] = []
        self._row_checksums: list[np.ndarray] = []
        self._sums: dict[str, ChannelSums] = {}
        schema = shard_schema(self._specs, metadata or {})
        self._buffer = RowBuffer(self._specs, schema, self._batch_rows)
        try:
            self._scratch = None if is_local(self._folder) else ScratchFolder("shard")
            here = local_path(self._folder) if self._scratch is None else self._scratch.path
            here.mkdir(parents=True, exist_ok=True)
            self._temporary = here / f".{self.name}.{uuid.uuid4().hex[:8]}.tmp"
            self._file = DirectFile(self._temporary, past_cache=self._scratch is None)
        except OSError as error:
            raise explain_os_error(error, self._folder if is_local(self._folder) else tempfile.gettempdir()) from error
        self._sink = HashingSink(self._file)
        self._ipc = pa.ipc.new_file(self._sink, schema, options=pa.ipc.IpcWriteOptions(use_threads=False))

    def add(self, row: ExampleRow) -> None:
        """Append one example.

        Raises:
            DataError: the row does not fit the modalities.
            InfrastructureError: the disk is full.
        """
        check_row(row, self._specs)
        self._buffer.append(row)
        self._rows += 1
        if self._buffer.full:
            self._flush()

    def close(self) -> ShardRecord:
        """Finish the file, sync it, give it its name, and say what is in it.

        Raises:
            InfrastructureError: the disk is full, or the upload failed.
        """
        try:
            if len(self._buffer):
                self._flush()
            self._ipc.close()
            self._file.sync()
            self._file.close()
            batches = describe_batches(self._temporary, self._batch_ends, self._row_checksums)
            self._publish()
        except OSError as error:
            self.abort()
            raise explain_os_error(error, join(self._folder, self.name)) from error
        return ShardRecord(
            name=self.name,
            split=split_of(self.name),
            rows=self._rows,
            bytes=self._sink.size_bytes,
            xxh3_128=self._sink.hexdigest(),
            statistics={spec.name: self._sums[spec.name] for spec in self._specs if spec.name in self._sums},
            rows_per_batch=self._batch_rows,
            batches=batches,
        )

    def abort(self) -> None:
        """Drop what was written so far."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)
        if self._scratch is not None:
            self._scratch.close()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._file.closed:
            self.abort()

    def _flush(self) -> None:
        try:
            self._ipc.write_batch(self._buffer.batch())
        except OSError as error:
            self.abort()
            raise explain_os_error(error, join(self._folder, self.name)) from error
        self._batch_ends.append(self._sink.size_bytes)
        self._row_checksums.append(self._buffer.checksums)
        for name, sums in self._buffer.sums().items():
            self._sums[name] = self._sums[name] + sums if name in self._sums else sums
        self._buffer.clear()

    def _publish(self) -> None:
        if self._scratch is None:
            self._temporary.replace(local_path(self._folder) / self.name)
            _sync_folder(local_path(self._folder))
            return
        system, path = resolve(join(self._folder, self.name))
        fs.copy_files(str(self._temporary), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=system)
        self._scratch.close()


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
