"""One writer per dataset in a bucket, where the system locks nothing: a small file that its holder keeps fresh."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.errors import HipError, UserError
from pipeline.storage import exists, join, read_bytes, redact, resolve, write_atomic
from pipeline.tracking.orphans import owner_is_dead, this_owner

logger = logging.getLogger(__name__)

LOCK_NAME = ".preprocess.lock"
BEAT_SECONDS = 30.0
STALE_SECONDS = 600.0  # twenty beats: clocks differ, and stores fail for minutes
_SETTLE_SECONDS = 1.0  # of two that start at once, the one that wrote last holds it


@contextmanager
def remote_lock(dataset: str) -> Iterator[None]:
    """Hold a remote dataset folder for this process.

    A holder that was killed is seen at once on its own machine, elsewhere when its file is ten minutes old.

    Raises:
        UserError: another process is preprocessing into this folder.
    """
    location, token = join(dataset, LOCK_NAME), uuid.uuid4().hex
    holder = _read(location)
    if holder is not None and _is_alive(holder):
        raise _busy(dataset, holder, location)
    _write(location, token)
    time.sleep(_SETTLE_SECONDS)
    holder = _read(location)
    if holder is not None and holder.get("token") != token:
        raise _busy(dataset, holder, location)
    ended = threading.Event()
    beat = threading.Thread(target=_keep_fresh, args=(location, token, ended), name="dataset-lock", daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        if (_read(location) or {}).get("token") == token:
            system, path = resolve(location)
            system.delete_file(path)


def _is_alive(holder: dict[str, Any]) -> bool:
    if owner_is_dead(str(holder.get("owner", ""))):
        return False
    return time.time() - holder["beat"] < STALE_SECONDS


def _keep_fresh(location: str, token: str, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        try:
            holder = _read(location)
            if holder is not None and holder.get("token") != token:
                logger.error("%s was taken by another run (%s): end one of the two", redact(location), _shown(holder))
                return
            _write(location, token)
        except (OSError, HipError) as error:
            logger.warning("%s could not be kept fresh: %s", redact(location), redact(str(error)))


def _read(location: str) -> dict[str, Any] | None:
    """Who holds it; none for no file and for one that cannot be understood."""
    try:
        values = json.loads(read_bytes(location)) if exists(location) else None
        return {**values, "beat": float(values.get("beat", 0.0))} if isinstance(values, dict) else None
    except (UserError, ValueError, TypeError):  # gone since, or not ours
        return None


def _write(location: str, token: str) -> None:
    values = {"process": os.getpid(), "host": socket.gethostname(), "owner": this_owner()}
    write_atomic(location, json.dumps({**values, "token": token, "beat": round(time.time(), 1)}).encode())


def _shown(holder: dict[str, Any]) -> str:
    return f"process {holder.get('process', '?')} on {holder.get('host', '?')}"


def _busy(dataset: str, holder: dict[str, Any], location: str) -> UserError:
    lapses = max(0.0, STALE_SECONDS - (time.time() - holder["beat"]))
    return UserError(
        f"another run is preprocessing into {redact(dataset)} ({_shown(holder)}); wait for it or choose another "
        f"folder. If that run is dead, its lock lapses in {lapses:.0f} s, or delete {redact(location)}"
    )
