"""One writer per dataset folder."""

from __future__ import annotations

from contextlib import AbstractContextManager

from pipeline.errors import UserError
from pipeline.folder_lock import folder_lock
from pipeline.storage import redact


def dataset_lock(dataset: str) -> AbstractContextManager[None]:
    """Hold the dataset folder for this process while the context lasts.

    Raises:
        UserError: another process is preprocessing into this folder, or it cannot be written.
    """

    def refuse(holder: str) -> UserError:
        return UserError(
            f"another run is preprocessing into {redact(dataset)} ({holder}); wait for it or choose another folder"
        )

    return folder_lock(dataset, ".preprocess.lock", refuse)
