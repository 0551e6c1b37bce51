"""A cancelled job, a preempted pod and a closed terminal end a command as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_TERMINALS = tuple(number for number in (1, 2) if os.isatty(number))  # asked now: one that is gone says that it is none


def end_signals() -> tuple[signal.Signals, ...]:
    """What asks a command to end beside Ctrl-C: SIGTERM, and a closed terminal (SIGHUP) unless ``nohup`` ignores it."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGTERM,) if ignored else (signal.SIGTERM, signal.SIGHUP)


def let_go_of_terminal(number: int) -> None:
    """After SIGHUP: every word to a terminal that is gone would be an error while things are being closed."""
    if number == signal.SIGHUP:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for terminal in _TERMINALS:
            os.dup2(nowhere, terminal)
        os.close(nowhere)


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP do what Ctrl-C does, so that what is open is closed and what is half-done is tidied away.

    Also where Ctrl-C is ignored, as by everything that a script starts with ``&``.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        let_go_of_terminal(number)
        interrupt = signal.getsignal(signal.SIGINT)
        if callable(interrupt):
            interrupt(signal.SIGINT, frame)
        else:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in end_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def terminate_unchanged() -> Iterator[None]:
    """Put a handler of SIGTERM back that the block replaces: Ray sets its own, which ends the process with 15."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
