"""Runs whose process died without a word: told apart by the owner written on each run, and closed as KILLED."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from pipeline.tracking.server import Server

logger = logging.getLogger(__name__)


def this_owner() -> str:
    """This process, named so that another process on the same machine can tell whether it still lives."""
    return f"{_machine()}:{os.getpid()}:{psutil.Process().create_time():.2f}"


def owner_is_dead(owner: str) -> bool:
    """Whether ``owner`` was a process of this machine that is gone; false when that cannot be known."""
    machine, _, process = owner.rpartition(":")[0].rpartition(":")
    if machine != _machine() or not process.isdigit():
        return False
    try:
        alive = psutil.Process(int(process))
        return f"{alive.create_time():.2f}" != owner.rpartition(":")[2] or alive.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def sweep_orphans(server: Server) -> list[str]:
    """Close as KILLED the experiment's running runs whose process on this machine is gone; returns their ids."""
    from pipeline.tracking.server import OWNER_TAG

    query = f"attributes.status = 'RUNNING' and tags.`{OWNER_TAG}` LIKE '{_machine()}:%'"
    swept = []
    for run in server.client.search_runs([server.experiment_id], query):
        if owner_is_dead(run.data.tags.get(OWNER_TAG, "")):
            server.client.set_terminated(run.info.run_id, "KILLED")
            swept.append(run.info.run_id)
    if swept:
        logger.warning("closed %d run(s) as KILLED: their process is gone", len(swept))
    return swept


def _machine() -> str:
    """Host and process-id namespace: two containers may share a host name."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink()).partition(":")[2].strip("[]")
    return f"{platform.node()}/{namespace}".replace("'", "")
