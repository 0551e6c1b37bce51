"""How this process treats memory that it freed."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt
_USERS_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Keep freed memory for the next step on CPU, unless the environment sets glibc's own variables; whether it is so.

    glibc gives large buffers back to the system, which zeroes them again, page by page, at every step: 5 to 20 % of
    a step's time. The highest memory use stays the same, it only does not fall between steps.
    """
    if any(name in os.environ for name in _USERS_OWN):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries lack it
    return bool(set_option and set_option(_MMAP_THRESHOLD, 2**31 - 1) and set_option(_TRIM_THRESHOLD, -1))
