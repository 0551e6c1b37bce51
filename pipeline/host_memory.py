"""How a process on CPU treats memory that it freed, with glibc."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt
_TUNABLES = "GLIBC_TUNABLES"
_USERS_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", _TUNABLES)
_NO_THREAD_CACHE = "glibc.malloc.tcache_count=0"


def keep_freed_memory() -> bool:
    """Keep freed memory for the next step on CPU, unless the environment sets glibc's own variables; whether it is so.

    glibc gives large buffers back to the system, which zeroes them again, page by page, at every step: 5 to 20 % of
    a step's time. The highest memory use stays the same, it only does not fall between steps.
    """
    if _set_by_the_user():
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries lack it
    return bool(set_option and set_option(_MMAP_THRESHOLD, 2**31 - 1) and set_option(_TRIM_THRESHOLD, -1))


def environment_of_cpu_workers() -> dict[str, str]:
    """Variables that make a new process use freed buffers again; none where the environment sets glibc's own.

    PyTorch asks for aligned memory, for which glibc (2.36) cuts a little off a larger block. That rest waits in a
    cache of the thread, so a freed buffer cannot join it and is always too small for the next one of the same size.
    Without the cache, which is decided as a process starts, a step takes up to half less memory and no more time.
    """
    return {} if _set_by_the_user() else {_TUNABLES: _NO_THREAD_CACHE}


def _set_by_the_user() -> bool:
    return any(os.environ.get(name) not in (None, _NO_THREAD_CACHE) for name in _USERS_OWN)
