"""Turns a hang into a restart, and leaves behind where every thread stood."""

from __future__ import annotations

import faulthandler
import logging
import os
import tempfile
import threading
import time
from pathlib import Path

from pipeline.storage import exists, is_local, join, write_atomic

logger = logging.getLogger(__name__)

HANG_EXIT_CODE = 70


class Watchdog:
    """Ends this process when no step was finished for ``limit_seconds``.

    All workers wait for each other, so a hang of one is noticed by all at about the same time, and each leaves its
    stacks in ``stacks/`` of the run folder. Ray sees dead workers and starts the group again from the last checkpoint.
    """

    def __init__(self, run_folder: str, rank: int, limit_seconds: float) -> None:
        self._run_folder = run_folder
        self._rank = rank
        self._limit = limit_seconds
        self._last = time.monotonic()
        self._done = threading.Event()

    def beat(self) -> None:
        """A step is finished."""
        self._last = time.monotonic()

    def start(self) -> None:
        """Watch from now on."""
        if self._limit > 0:
            self.beat()
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Watch no longer."""
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(min(5.0, self._limit / 4)):
            silent = time.monotonic() - self._last
            if silent > self._limit:
                logger.error("rank %d: no step for %.0f s; leaving, so that the group restarts", self._rank, silent)
                try:
                    dump_stacks(self._run_folder, self._rank)
                finally:
                    os._exit(HANG_EXIT_CODE)


def dump_stacks(run_folder: str, rank: int) -> str:
    """Write where every thread of this process stands; returns the place."""
    with tempfile.TemporaryFile() as stream:
        faulthandler.dump_traceback(stream, all_threads=True)
        stream.seek(0)
        content = stream.read()
    place = join(run_folder, "stacks", f"rank-{rank}-{int(time.time())}.txt")
    if is_local(run_folder):
        Path(place).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(place, content)
    return place


class StopFile:
    """A stop request that reaches workers on other machines: a file in the run folder, looked for by a thread."""

    def __init__(self, run_folder: str) -> None:
        self._place = join(run_folder, "stop")
        self._seconds = 0.2 if is_local(run_folder) else 5.0
        self._set = threading.Event()
        self._done = threading.Event()

    def start(self) -> None:
        """Look from now on."""
        threading.Thread(target=self._look, name="stop-file", daemon=True).start()

    def is_set(self) -> bool:
        """Whether a stop was asked for."""
        return self._set.is_set()

    def close(self) -> None:
        """Look no longer."""
        self._done.set()

    def _look(self) -> None:
        while not self._done.wait(self._seconds) and not self._set.is_set():
            try:
                if exists(self._place):
                    self._set.set()
            except OSError as error:
                logger.debug("cannot look for %s: %s", self._place, error)
