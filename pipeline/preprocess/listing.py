"""Files below a folder, and what the file system says of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from pipeline.preprocess.align import Segment
from pipeline.storage import absolute, is_local, join, local_path, resolve

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
    """Path or URI to open; empty for a name that is no text."""
    bytes: int = -1
    """Size, -1 when the file is not there."""
    modified_ns: int = 0
    labels: tuple[str, ...] = ()
    segment: Segment | None = None
    split: str | None = None
    """The split that the source itself states."""


def list_media(location: str) -> list[Source]:
    """Every file below a folder, without labels; hidden ones (a leading dot) are left out.

    Links are followed but never round in circles; one that leads nowhere is listed as a file that is not there.

    Raises:
        OSError: a folder that may not be read.
    """
    if is_local(location):
        root = local_path(location)
        return [_local_source(entry, root) for entry in _files_below(str(root), frozenset())]
    system, root_path = resolve(location)
    infos: Iterable[fs.FileInfo] = system.get_file_info(fs.FileSelector(root_path, recursive=True))
    found = []
    for info in infos:
        name = info.path[len(root_path.rstrip("/")) :].lstrip("/")
        if info.is_file and not any(part.startswith(".") for part in name.split("/")):
            found.append(Source(name, join(location, name), info.size, info.mtime_ns or 0))
    return found


def _files_below(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[os.DirEntry[str]]:
    """Files of a folder and its sub-folders; ``above`` are the folders on the way here, which no link may lead to."""
    state = os.stat(folder)  # noqa: PTH116 - a path with bytes that are no text
    here = above | {(state.st_dev, state.st_ino)}
    with os.scandir(folder) as entries:
        ordered = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in ordered:
        if not entry.is_dir():
            yield entry
        elif not entry.is_symlink() or _identity(entry) not in here:
            yield from _files_below(entry.path, here)


def _identity(entry: os.DirEntry[str]) -> tuple[int, int]:
    state = entry.stat()
    return state.st_dev, state.st_ino


def _local_source(entry: os.DirEntry[str], root: Path) -> Source:
    name = entry.path[len(str(root).rstrip("/")) + 1 :]
    try:
        name.encode()
    except UnicodeEncodeError:  # no table could hold it, and no decoder opens it
        return Source(os.fsencode(name).decode(errors="backslashreplace"), "")
    try:
        state = entry.stat()
    except FileNotFoundError:
        return Source(name, entry.path)
    return Source(name, entry.path, state.st_size if entry.is_file() else 0, state.st_mtime_ns)


def stat_source(location: str, name: str) -> Source:
    """One file by its own path or URI."""
    system, path = resolve(location)
    info = system.get_file_info(path)
    return Source(name, absolute(location), info.size if info.is_file else -1, info.mtime_ns or 0)
