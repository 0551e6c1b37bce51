"""Folders for what is on its way to or from elsewhere: they go with the process that made them, however it ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType

_PREFIX = ".hip-scratch-"
_LOCK = "owner.lock"


class ScratchFolder:
    """A folder in ``parent``, deleted by ``close``, at the end of a ``with`` or of the process.

    ``parent`` is the system's temporary folder, or one from which the result is then moved to its place. A killed
    process deletes nothing: what it left is deleted by the next process that makes such a folder there. It finds out
    by a lock that the kernel drops when its holder dies. Where nothing can be locked, nothing is taken for a leftover.
    """

    def __init__(self, purpose: str, parent: Path | None = None) -> None:
        place = str(parent or tempfile.gettempdir())
        _sweep_up(place)
        while True:
            self._folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{purpose}-", dir=place))
            try:
                descriptor = _lock(self._folder, os.O_CREAT)
                break
            except BlockingIOError:  # just taken for a leftover: its lock was not held yet
                continue
        self.path = self._folder / "content"
        self.path.mkdir()
        self._close = weakref.finalize(self, _delete, self._folder, descriptor)

    def close(self) -> None:
        """Delete the folder and everything in it."""
        self._close()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@cache  # once a process: the folder may have thousands of entries
def _sweep_up(place: str) -> None:
    for folder in Path(place).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # in use, another user's, or not locked at all
            descriptor = _lock(folder, 0)
            if descriptor is not None:
                _delete(folder, descriptor)


def _lock(folder: Path, flags: int) -> int | None:
    """An open lock on ``folder``; none where the file system offers no locks.

    Raises:
        BlockingIOError: its owner lives.
        FileNotFoundError: it has no lock, and ``flags`` do not say to make one.
    """
    descriptor = os.open(folder / _LOCK, os.O_RDWR | flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _delete(folder: Path, descriptor: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if descriptor is not None:
        os.close(descriptor)
