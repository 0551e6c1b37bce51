"""The model written once more with the head that a probe fitted, for ``hip register`` and ``hip predict``."""

from __future__ import annotations

import logging
import shutil

from hip_model.export import WEIGHTS_FILE, save_pretrained
from pipeline import storage
from pipeline.errors import UserError
from pipeline.evaluate.head import Head, save_head
from pipeline.evaluate.loaded import LoadedModel
from pipeline.scratch import ScratchFolder

logger = logging.getLogger(__name__)


def check_export(target: str, loaded: LoadedModel) -> None:
    """Refuse a place that must not be written to, before anything is fitted.

    Raises:
        UserError: the model's own folder, a file, or a folder that is more than an exported model.
    """
    if storage.is_local(target):
        if storage.local_path(target).resolve() == loaded.folder.resolve():
            raise UserError(f"export={target} is the model's own folder; choose another one")
        if storage.local_path(target).is_file():
            raise UserError(f"export={target} is a file; choose a new folder")
    names = {info.base_name for info in storage.list_files(target)}
    files = len(storage.list_files(target, recursive=True))
    if files and (WEIGHTS_FILE not in names or files > len(names)):  # the old folder goes, with all that is in it
        raise UserError(f"export={storage.redact(target)} is a folder with other files in it; choose a new folder")


def export_model(target: str, loaded: LoadedModel, head: Head) -> str:
    """Write the folder, a local one all at once; returns where it is, without credentials."""
    metadata = {**loaded.metadata, **head.metadata()}
    near = None
    if storage.is_local(target):
        near = storage.local_path(target).parent
        near.mkdir(parents=True, exist_ok=True)
    with ScratchFolder("export", near) as folder:
        made = folder / "model"
        save_pretrained(loaded.model, made, metadata)
        save_head(head, made)
        if near is None:
            for file in made.iterdir():
                storage.write_atomic(storage.join(target, file.name), file.read_bytes())
        else:
            target = str(storage.local_path(target))
            if storage.exists(target):
                shutil.rmtree(target)
            made.replace(target)
    logger.info("exported the model with its head to %s", storage.redact(target))
    return storage.redact(target)
