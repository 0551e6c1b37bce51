"""How far preprocessing is: a bar on a terminal, one line an interval in a log, with rate and time left."""

from __future__ import annotations

import logging
import sys
import threading
import time

logger = logging.getLogger(__name__)

_BAR_WIDTH = 24
_REFRESH_SECONDS = 1.0


class Progress:
    """Counts what is finished and says so while the block runs, also while nothing finishes.

    ``work`` is whatever the time to go is proportional to: the token bytes that the sources should give, or files.
    """

    def __init__(self, work: float, num_files: int, interval_seconds: float, on_terminal: bool | None = None) -> None:
        self._work, self._num_files, self._interval = work, num_files, interval_seconds
        self._on_terminal = sys.stderr.isatty() if on_terminal is None else on_terminal
        self._worked, self._files, self._examples, self._failed = 0.0, 0, 0, 0
        self._started = self._last_line = time.monotonic()
        self._drawn = False
        self._ended = threading.Event()
        self._clock = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Progress:
        for handler in logging.getLogger("pipeline").handlers:
            handler.addFilter(self._clear)
        self._clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._clock.join()
        for handler in logging.getLogger("pipeline").handlers:
            handler.removeFilter(self._clear)
        if self._on_terminal:
            self._draw()
            print(file=sys.stderr)
        else:
            logger.info("%s", self.line(self._elapsed()))

    def advance(self, work: float, files: int, examples: int = 0, failed: int = 0) -> None:
        """So much more is done."""
        self._worked += work
        self._files += files
        self._examples += examples
        self._failed += failed

    def line(self, elapsed_seconds: float) -> str:
        """The state in one line."""
        parts = [f"{self._files:,}/{self._num_files:,} files"]
        if self._failed:
            parts.append(f"{self._failed:,} failed")
        if self._examples:
            parts.append(f"{self._examples:,} examples")
            parts.append(f"{self._examples / max(elapsed_seconds, 1e-9):,.1f} examples/s")
        elif self._files:
            parts.append(f"{self._files / max(elapsed_seconds, 1e-9):,.1f} files/s")
        if self._files < self._num_files and self._worked:
            parts.append(f"{duration(elapsed_seconds * (self._work / self._worked - 1))} left")
        else:
            parts.append(duration(elapsed_seconds))
        return " | ".join(parts)

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _tick(self) -> None:
        while not self._ended.wait(min(_REFRESH_SECONDS, self._interval)):
            if self._on_terminal:
                self._draw()
            elif time.monotonic() - self._last_line >= self._interval:
                self._last_line = time.monotonic()
                logger.info("%s", self.line(self._elapsed()))

    def _draw(self) -> None:
        filled = round(_BAR_WIDTH * min(1.0, self._worked / max(self._work, 1e-9)))
        bar = "█" * filled + "░" * (_BAR_WIDTH - filled)
        print(f"\r\x1b[K{bar} {self.line(self._elapsed())}", end="", file=sys.stderr, flush=True)
        self._drawn = True

    def _clear(self, _: logging.LogRecord) -> bool:
        """Take the bar away before a log line is written; the next tick draws it again."""
        if self._drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._drawn = False
        return True


def duration(seconds: float) -> str:
    """A duration in the unit that a person would use."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
