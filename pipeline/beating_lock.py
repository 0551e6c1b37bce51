"""One writer per folder where the system locks nothing (a bucket): a small file that its holder keeps fresh."""

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
from pipeline.owner import owner_lives, this_owner
from pipeline.storage import exists, read_bytes, redact, resolve, write_atomic

logger = logging.getLogger(__name__)

BEAT_SECONDS = 15.0
SILENT_SECONDS = 60.0  # four beats without a sign of life
_LOOK_SECONDS = 2.0
_PART_SECONDS, _LOOKS_AT_A_PART = 0.1, 10  # how long a beat may be seen half-written
_SETTLE_SECONDS = 1.0  # of two that start at once, the one that wrote last holds it


@contextmanager
def beating_lock(location: str, what: str, advice: str) -> Iterator[None]:
    """Hold the lock file at ``location`` for this process.

    A holder that was killed is seen at once on its own machine; elsewhere it is watched for a minute, by no clock but
    this machine's.

    Raises:
        UserError: another process holds it: ``what (process … on …); advice``.
    """
    token = uuid.uuid4().hex
    _wait_for_silence(location, what, advice)
    _write(location, token)
    time.sleep(_SETTLE_SECONDS)
    if (holder := _read(location)) is not None and holder.get("token") != token:
        raise busy(what, _shown(holder), advice)
    ended = threading.Event()
    beat = threading.Thread(target=_keep_fresh, args=(location, token, ended), name="folder-lock", daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        if (_read(location) or {}).get("token") == token:
            system, path = resolve(location)
            system.delete_file(path)


def busy(what: str, holder: str, advice: str) -> UserError:
    """The refusal of whoever finds a lock held."""
    return UserError(f"{what} ({holder}); {advice}")


def wait_while_held(location: str, limit_seconds: float) -> None:
    """Return when nobody holds the lock file at ``location``, or after ``limit_seconds``."""
    until = time.monotonic() + limit_seconds
    while (holder := _read(location)) is not None and time.monotonic() < until:
        if owner_lives(str(holder.get("owner", ""))) is False:
            return
        time.sleep(_LOOK_SECONDS)


def _wait_for_silence(location: str, what: str, advice: str) -> None:
    """Return when nobody holds the lock, or whoever does is dead."""
    seen = _read(location)
    lives = None if seen is None else owner_lives(str(seen.get("owner", "")))
    if seen is None or lives is False:
        return
    if lives:
        raise busy(what, _shown(seen), advice)
    where = f"{redact(location)} is held by {_shown(seen)}"
    logger.warning("%s: looking for %.0f s whether that lives", where, SILENT_SECONDS)
    silent_at = time.monotonic() + SILENT_SECONDS
    while (left := silent_at - time.monotonic()) > 0:
        time.sleep(min(_LOOK_SECONDS, left))
        now = _read(location)
        if now is None:
            return
        if now != seen:
            raise busy(what, _shown(now), advice)
    logger.warning("%s, which gave no sign of life: taking over", where)


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
    for _ in range(_LOOKS_AT_A_PART):
        try:
            values = json.loads(read_bytes(location)) if exists(location) else None
        except UserError:  # gone since
            return None
        except ValueError:  # not ours, or being written where that can be seen
            time.sleep(_PART_SECONDS)
            continue
        return values if isinstance(values, dict) else None
    return None


def _write(location: str, token: str) -> None:
    values = {"process": os.getpid(), "host": socket.gethostname(), "owner": this_owner()}
    write_atomic(location, json.dumps({**values, "token": token, "beat": time.time()}).encode())


def _shown(holder: dict[str, Any]) -> str:
    return f"process {holder.get('process', '?')} on {holder.get('host', '?')}"
