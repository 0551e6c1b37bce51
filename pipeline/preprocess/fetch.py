"""Decoders need a local file: one that is elsewhere is copied for as long as it is needed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from pyarrow import fs

from pipeline.storage import is_local, local_path, resolve


@contextmanager
def local_copy(location: str) -> Iterator[str]:
    """A local path with the content of ``location``; the file itself when it is local.

    Raises:
        OSError: it cannot be read.
    """
    if is_local(location):
        yield str(local_path(location))
        return
    system, path = resolve(location)
    suffix = "".join(PurePosixPath(path).suffixes[-2:])
    with tempfile.NamedTemporaryFile(prefix="hip_media_", suffix=suffix) as copy:
        fs.copy_files(path, copy.name, source_filesystem=system, destination_filesystem=fs.LocalFileSystem())
        yield copy.name
