"""The file side of a checkpoint: written under a temporary name, made visible in one move, deleted marker first."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

from pyarrow import fs

from pipeline.errors import HipError, UserError
from pipeline.storage import explain_os_error, is_local, join, local_path, read_bytes, redact, resolve, write_atomic

logger = logging.getLogger(__name__)

CHECKPOINT_NAME = re.compile(r"^step_(\d{8,})$")
COMPLETE = "complete.json"
STATE = "trainer_state.json"
AVERAGE = "average"  # the folder of the model with averaged weights


def is_complete(folder: str) -> bool:
    """Whether every file that ``complete.json`` lists is there with its size."""
    try:
        sizes = files_of(folder)
    except (UserError, ValueError, KeyError):
        return False
    system, path = resolve(folder)
    infos = system.get_file_info([f"{path}/{name}" for name in sizes])
    return all(info.size == size for info, size in zip(infos, sizes.values(), strict=True))


def files_of(folder: str) -> dict[str, int]:
    """The sizes in bytes of a checkpoint's files, by name; nothing else in the folder is part of it."""
    sizes: dict[str, int] = json.loads(read_bytes(join(folder, COMPLETE)))["files"]
    return sizes


def staging_folder(run_folder: str, token: str) -> Path | None:
    """Where all workers write a checkpoint first, beside its place; none for a URI, where nothing can be renamed."""
    return local_path(run_folder) / "checkpoints" / f".writing-{token}" if is_local(run_folder) else None


def upload(staging: Path, target: str) -> None:
    """Copy this worker's files to a remote checkpoint folder."""
    system, path = resolve(target)
    for file in (file for file in staging.rglob("*") if file.is_file()):
        place = f"{path}/{file.relative_to(staging)}"
        system.create_dir(place.rsplit("/", 1)[0], recursive=True)
        fs.copy_files(str(file), place, source_filesystem=fs.LocalFileSystem(), destination_filesystem=system)


def publish(staging: Path | None, target: str, workers: int) -> str | None:
    """Give a checkpoint whose files are all there its name; returns what went wrong."""
    try:
        if staging is None:
            system, path = resolve(target)
            files = [info for info in system.get_file_info(fs.FileSelector(path, recursive=True)) if info.is_file]
            sizes = {info.path.removeprefix(path).lstrip("/"): info.size for info in files}
            sizes.pop(COMPLETE, None)  # of an earlier save of this step
            sizes = {name: size for name, size in sizes.items() if not _is_of_another_group(name, workers)}
            write_atomic(join(target, COMPLETE), json.dumps({"files": sizes}).encode())
            return None
        paths = [path for path in staging.rglob("*") if path.is_file()]
        if len([path for path in paths if path.name.startswith("part-")]) != workers:
            return f"not all workers see {staging.parent}; put storage on a file system that all nodes share"
        sizes = {str(path.relative_to(staging)): path.stat().st_size for path in paths}
        write_atomic(str(staging / COMPLETE), json.dumps({"files": sizes}).encode())
        place = local_path(target)
        if is_complete(target):  # the same step is the same state
            return None
        shutil.rmtree(place, ignore_errors=True)  # damaged
        staging.rename(place)
    except OSError as error:
        return str(explain_os_error(error, redact(target)))
    except HipError as error:
        return str(error)
    return None


def _is_of_another_group(name: str, workers: int) -> bool:
    """Whether a file was left by a killed save of more or fewer workers: a remote folder is filled in place."""
    return name.startswith("optimizer/part-") and not name.endswith(f"-of-{workers:05d}.safetensors")


def delete(folder: str) -> None:
    """Delete a checkpoint; its marker first, so that a kill in between leaves nothing that looks whole."""
    system, path = resolve(folder)
    try:
        system.delete_file(f"{path}/{COMPLETE}")
        system.delete_dir(path)
    except OSError as error:
        logger.warning("could not delete the old checkpoint %s: %s", redact(folder), error)


def sweep_up(run_folder: str) -> None:
    """Delete what killed writers and deleters left behind; call it while nothing is being written."""
    system, path = resolve(join(run_folder, "checkpoints"))
    found = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    folders = [info.path for info in found if CHECKPOINT_NAME.match(info.base_name)]
    markers = system.get_file_info([f"{folder}/{COMPLETE}" for folder in folders])
    for folder, marker in zip(folders, markers, strict=True):
        if marker.type == fs.FileType.NotFound:
            system.delete_dir(folder)
    if is_local(run_folder):
        for leftover in (local_path(run_folder) / "checkpoints").glob(".writing-*"):
            shutil.rmtree(leftover, ignore_errors=True)
