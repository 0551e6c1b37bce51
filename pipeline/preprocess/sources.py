"""Which files there are to preprocess, with the labels and splits that their place or a table gives them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

from pyarrow import fs

from pipeline.errors import UserError
from pipeline.preprocess.kinds import kind_of_name
from pipeline.preprocess.listing import SPLIT_FOLDERS, Source, list_media, stat_source
from pipeline.preprocess.options import PreprocessOptions
from pipeline.preprocess.tables import read_table_sources
from pipeline.storage import absolute, exists, is_local, path_of, redact, resolve


def list_sources(options: PreprocessOptions) -> list[Source]:
    """Every file that the source names, by name; hidden files (a leading dot) are left out.

    Raises:
        UserError: the source is missing, empty, unreadable or of a kind that was not recognised.
    """
    try:
        return _list(options)
    except OSError as error:
        place = redact(options.source)
        raise UserError(f"source={place} cannot be listed: {error.strerror or error}; check its permissions") from error


def _list(options: PreprocessOptions) -> list[Source]:
    source = options.source
    if not exists(source):
        raise UserError(
            f"source={redact(source)} does not exist; give a folder, a list file (.txt) or a table (.csv, .parquet)"
        )
    system, path = resolve(source)
    is_folder = system.get_file_info(path).type == fs.FileType.Directory
    if is_folder:
        if options.source_kind in ("list", "table", "audioset", "kinetics"):
            raise UserError(f"source_kind={options.source_kind} needs a file, but source={redact(source)} is a folder")
        own = _folder_of(options.shards)
        if own == _folder_of(source):
            raise UserError(
                f"shards={redact(options.shards)} is the source itself; give a folder of its own, like tokens"
            )
        found = _folder_sources(source, options.source_kind)
        found = [item for item in found if not item.location.startswith(own)]  # a dataset inside its source
    elif options.source_kind in ("folder", "classes", "modelnet"):
        raise UserError(f"source_kind={options.source_kind} needs a folder, but source={redact(source)} is a file")
    elif options.source_kind == "auto" and kind_of_name(path) is not None:
        found = [stat_source(source, PurePosixPath(path).name)]
    else:
        found = read_table_sources(source, options.source_kind, options.media_root)
    if not found:
        raise UserError(f"source={redact(source)} is empty: it names no file")
    return sorted(found, key=lambda item: (item.name, item.segment or (0.0, 0.0)))


def _folder_of(location: str) -> str:
    path = absolute(location) if is_local(location) else path_of(location)
    return path.rstrip("/") + "/"


def _folder_sources(location: str, kind: str) -> list[Source]:
    files = list_media(location)
    if kind == "auto":
        kind = "classes" if _looks_like_classes(files) else "folder"
    return [_with_folder_label(item, kind) for item in files]


def _looks_like_classes(files: list[Source]) -> bool:
    """Every media file lies in a class folder, and there are at least two of them."""
    classes = {_class_folder(item.name) for item in files if kind_of_name(item.name)}
    return len(classes) >= 2 and None not in classes


def _class_folder(name: str) -> str | None:
    """The nearest folder that is not the name of a split: ``chair/train/chair_01.off`` is a ``chair``."""
    folders = [part for part in PurePosixPath(name).parts[:-1] if part.lower() not in SPLIT_FOLDERS]
    return folders[-1] if folders else None


def _with_folder_label(item: Source, kind: str) -> Source:
    folders = PurePosixPath(item.name).parts[:-1]
    split = next((SPLIT_FOLDERS[part.lower()] for part in folders if part.lower() in SPLIT_FOLDERS), None)
    label = _class_folder(item.name) if kind != "folder" else None
    return replace(item, labels=(label,) if label else (), split=split)
