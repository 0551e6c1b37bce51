"""A new file on a disk of this machine, written past the system's page cache."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 1 << 22  # a multiple of every page and sector size; smaller blocks take more time a byte
_DIRECT: int = getattr(os, "O_DIRECT", 0)  # not on macOS


def on_a_disk_here(path: Path) -> bool:
    """Whether a file or folder lies on a disk of this machine: elsewhere the page cache does more than it costs.

    Linux gives file systems without a disk of their own (networks, memory, FUSE) a device whose major number is 0.
    """
    return bool(_DIRECT) and os.major(path.stat().st_dev) != 0


class DirectFile:
    """A new file; with ``past_cache``, and where it can be, its bytes go to the disk without a copy in the page cache.

    That copy takes as much time as everything else that writing a shard needs, and pushes out of memory what others
    read; waiting for the disk costs nothing more, because a shard is synced before it gets its name. Memory: one block
    of 4 MB.

    Raises:
        OSError: as any file does, a full disk included.
    """

    def __init__(self, path: Path, past_cache: bool) -> None:
        self._descriptor = _create(path, past_cache and on_a_disk_here(path.parent))
        self._block = mmap.mmap(-1, _BLOCK_BYTES)  # begins on a page, as such writes demand
        self._filled = 0
        self.closed = False

    def write(self, content: Any) -> int:
        """Take all of ``content``, a contiguous buffer; what fills no block yet is kept."""
        rest = memoryview(content).cast("B")
        size = len(rest)
        while rest:
            part = rest[: _BLOCK_BYTES - self._filled]
            self._block[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == _BLOCK_BYTES:
                self._write_block()
        return size

    def sync(self) -> None:
        """Write what is left, and return when all of it is on the disk; nothing may be written afterwards."""
        self._through_the_cache()  # the last bytes fill no whole sector
        self._write_block()
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Give the file back to the system, whether it is complete or not."""
        if not self.closed:
            self.closed = True
            os.close(self._descriptor)

    def _write_block(self) -> None:
        with memoryview(self._block) as block:
            written = 0
            while written < self._filled:  # a nearly full disk takes less than it is given
                try:
                    written += os.write(self._descriptor, block[written : self._filled])
                except OSError as error:
                    if error.errno != errno.EINVAL or not self._is_direct():
                        raise
                    self._through_the_cache()
        self._filled = 0

    def _is_direct(self) -> bool:
        return bool(fcntl.fcntl(self._descriptor, fcntl.F_GETFL) & _DIRECT)

    def _through_the_cache(self) -> None:
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, fcntl.fcntl(self._descriptor, fcntl.F_GETFL) & ~_DIRECT)


def _create(path: Path, past_cache: bool) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags | (_DIRECT if past_cache else 0), 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL or not past_cache:
            raise
    return os.open(path, flags, 0o666)
