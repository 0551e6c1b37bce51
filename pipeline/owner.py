"""A process by a name that another process can look up: is it still there?"""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

import psutil


def this_owner() -> str:
    """This process, named so that another process on the same machine can tell whether it still lives."""
    return f"{this_machine()}:{os.getpid()}:{_started(os.getpid()):.2f}"


def owner_lives(owner: str) -> bool | None:
    """Whether ``owner`` is a living process of this machine; none when that cannot be known here."""
    machine, _, process = owner.rpartition(":")[0].rpartition(":")
    if machine != this_machine() or not process.isdigit():
        return None
    try:
        started = f"{_started(int(process)):.2f}"
        return started == owner.rpartition(":")[2] and psutil.Process(int(process)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return None


def _started(process: int) -> float:
    """Seconds from the machine's start to the process's, where they can be read: a date moves when the clock is set."""
    try:
        after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return psutil.Process(process).create_time()


def this_machine() -> str:
    """Host and process-id namespace: two containers may share a host name."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink()).partition(":")[2].strip("[]")
    return f"{platform.node()}/{namespace}".replace("'", "")
