"""Files below a folder, and what the file system says of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pyarrow import fs

from pipeline.preprocess.align import Segment
from pipeline.storage import is_local, join, local_path, resolve

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "validate": "validation",
    "test": "validation",
}
"""Folder and column names that state a split. There are two: a test part is for evaluation, never for training."""


@dataclass(frozen=True)
class Source:
    """One file, or one segment of one file."""

    name: str
    """Path below the source's root, or as a table has it."""
    location: str
    """Path or URI to open."""
    bytes: int = -1
    """Size, -1 when the file is not there."""
    modified_ns: int = 0
    labels: tuple[str, ...] = ()
    segment: Segment | None = None
    split: str | None = None
    """The split that the source itself states."""


def absolute(location: str) -> str:
    """A place that every worker finds, whatever folder it runs in."""
    return str(local_path(location)) if is_local(location) else location


def list_media(location: str) -> list[Source]:
    """Every file below a folder, without labels; hidden ones (a leading dot) are left out."""
    location = absolute(location)
    system, root = resolve(location)
    infos: Iterable[fs.FileInfo] = system.get_file_info(fs.FileSelector(root, recursive=True))
    found = []
    for info in infos:
        name = info.path[len(root.rstrip("/")) :].lstrip("/")
        if info.type == fs.FileType.Directory or any(part.startswith(".") for part in name.split("/")):
            continue
        opened = info.path if is_local(location) else join(location, name)
        found.append(Source(name, opened, info.size if info.is_file else 0, info.mtime_ns or 0))
    return found


def stat_source(location: str, name: str) -> Source:
    """One file by its own path or URI."""
    system, path = resolve(location)
    info = system.get_file_info(path)
    return Source(name, absolute(location), info.size if info.is_file else -1, info.mtime_ns or 0)
