"""One writer per dataset folder: a second ``hip preprocess`` refuses, a dead one's lock does not stand in the way."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.preprocess.remote_lock import LOCK_NAME, remote_lock
from pipeline.storage import explain_os_error, is_local, local_path, redact


@contextmanager
def dataset_lock(dataset: str) -> Iterator[None]:
    """Hold the dataset folder for this process.

    On a local file system the kernel drops the lock when its holder dies; in a bucket a file stands for it.

    Raises:
        UserError: another process is preprocessing into this folder, or it cannot be written.
    """
    if is_local(dataset):
        with _file_lock(local_path(dataset), dataset):
            yield
        return
    with remote_lock(dataset):
        yield


@contextmanager
def _file_lock(folder: Path, dataset: str) -> Iterator[None]:
    path = folder / LOCK_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _open_current(path, dataset)
    except OSError as error:
        raise explain_os_error(error, str(folder)) from error
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, _holder().encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _open_current(path: Path, dataset: str) -> int:
    """Lock the file that is at ``path`` now: a holder that ends removes it, perhaps between our open and our lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 4096).decode(errors="replace")
            os.close(descriptor)
            raise _busy(dataset, holder) from error
        if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
        os.close(descriptor)


def _busy(dataset: str, holder: str) -> UserError:
    return UserError(
        f"another run is preprocessing into {redact(dataset)} ({holder.strip() or 'just starting'}); "
        "wait for it or choose another folder"
    )


def _holder() -> str:
    return json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": round(time.time())})
