"""One writer per folder: a second one is refused, a dead one's lock does not stand in the way."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.beating_lock import beating_lock, busy
from pipeline.storage import explain_os_error, is_local, join, local_path

_CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some shared and mounted file systems


@contextmanager
def folder_lock(folder: str, name: str, what: str, advice: str) -> Iterator[None]:
    """Hold ``folder`` for this process, by a file ``name`` in it; the folder is made if it is not there.

    On a local file system the kernel drops the lock when its holder dies; where nothing can be locked a file that is
    kept fresh stands for it.

    Raises:
        UserError: another process holds it, ``what (process … on …); advice``; the folder cannot be written.
    """
    if not is_local(folder):
        with beating_lock(join(folder, name), what, advice):
            yield
        return
    path = local_path(folder) / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_current(path, what, advice)
    except OSError as error:
        if error.errno not in _CANNOT_LOCK:
            raise explain_os_error(error, str(path.parent)) from error
        descriptor = None
    if descriptor is None:
        with beating_lock(str(path), what, advice):
            yield
        return
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _open_current(path: Path, what: str, advice: str) -> int:
    """Lock the file that is at ``path`` now: a holder that ends removes it, perhaps between our open and our lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 4096).decode(errors="replace").strip()
            os.close(descriptor)
            raise busy(what, holder or "just starting", advice) from error
        except OSError:
            os.close(descriptor)
            raise
        if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
        os.close(descriptor)
