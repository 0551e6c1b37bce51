"""How far preprocessing is: one line per interval with rate and time left."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger(__name__)


class Progress:
    """Counts finished files and logs at most one line per interval, and one at the end."""

    def __init__(self, num_tasks: int, num_files: int, interval_seconds: float) -> None:
        self._num_tasks, self._num_files, self._interval = num_tasks, num_files, interval_seconds
        self._tasks = self._files = self._examples = self._failed = 0
        self._started = self._last_line = time.monotonic()

    def advance(self, files: int, examples: int, failed: int) -> None:
        """One task is done."""
        self._tasks += 1
        self._files += files
        self._examples += examples
        self._failed += failed
        now = time.monotonic()
        if now - self._last_line >= self._interval or self._tasks == self._num_tasks:
            self._last_line = now
            logger.info("%s", self.line(now - self._started))

    def line(self, elapsed_seconds: float) -> str:
        """The state in one line."""
        rate = self._files / max(elapsed_seconds, 1e-9)
        left = (self._num_files - self._files) / rate if rate else 0.0
        failed = f", {self._failed} failed" if self._failed else ""
        pace = self._examples / max(elapsed_seconds, 1e-9)
        return (
            f"preprocess: {self._tasks}/{self._num_tasks} shards, {self._files}/{self._num_files} files{failed}, "
            f"{self._examples} examples, {pace:.1f} examples/s, {left:.0f} s left"
        )
