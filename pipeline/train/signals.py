"""Stopping a run in order: signals here, a file for workers elsewhere."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import HipError, Interrupted
from pipeline.interrupts import end_signals, let_go_of_terminal
from pipeline.storage import exists, join, redact, resolve, write_atomic

logger = logging.getLogger(__name__)


@contextmanager
def stop_on_signals(run_folder: str, stop: threading.Event) -> Iterator[None]:
    """On the first Ctrl-C, SIGTERM or closed terminal ask the workers to save and stop; the second leaves at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        let_go_of_terminal(number)
        if stop.is_set():
            raise Interrupted("stopped at once; the last checkpoint is kept")
        stop.set()
        logger.warning("%s: saving and stopping (once more to stop at once)", signal.Signals(number).name)
        try:
            write_atomic(join(run_folder, "stop"), b"")
        except (OSError, HipError) as error:  # raised here it would end the driver, not the workers
            logger.error("workers elsewhere cannot be told to stop: %s", redact(str(error)))

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, *end_signals())}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def remove_stop(run_folder: str) -> None:
    """Forget an earlier stop request."""
    place = join(run_folder, "stop")
    if exists(place):
        system, path = resolve(place)
        system.delete_file(path)
