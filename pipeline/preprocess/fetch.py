"""Decoders need a local file: one that is elsewhere is copied for as long as it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from pipeline.scratch import ScratchFolder
from pipeline.storage import download, is_local, local_path, resolve


@contextmanager
def local_copy(location: str) -> Iterator[str]:
    """A local path with the content of ``location``; the file itself when it is local.

    Raises:
        OSError: it cannot be read.
    """
    if is_local(location):
        yield str(local_path(location))
        return
    suffix = "".join(PurePosixPath(resolve(location)[1]).suffixes[-2:])
    with ScratchFolder("media") as folder:
        copy = folder / f"source{suffix}"
        download(location, copy)
        yield str(copy)
