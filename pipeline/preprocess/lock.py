"""One writer per dataset folder."""

from __future__ import annotations

from contextlib import AbstractContextManager

from pipeline.folder_lock import folder_lock
from pipeline.storage import redact


def dataset_lock(dataset: str) -> AbstractContextManager[None]:
    """Hold the dataset folder for this process while the context lasts.

    Raises:
        UserError: another process is preprocessing into this folder, or it cannot be written.
    """
    what = f"another run is preprocessing into {redact(dataset)}"
    return folder_lock(dataset, ".preprocess.lock", what, "wait for it or choose another folder")
