"""The bar and the lines of progress of preprocessing."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import pytest

from pipeline.preprocess.progress import Progress, duration


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What reaches the log."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, handler = logging.getLogger("pipeline"), Handler()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(before)


def test_rate_and_time_left() -> None:
    progress = Progress(work=200.0, num_files=40, interval_seconds=10.0, on_terminal=False)
    assert progress.line(3.0) == "0/40 files | 3 s"
    progress.advance(50.0, files=10, examples=30, failed=1)
    assert progress.line(5.0) == "10/40 files | 1 failed | 30 examples | 6.0 examples/s | 15 s left"
    progress.advance(150.0, files=30)
    assert progress.line(200.0) == "40/40 files | 1 failed | 30 examples | 0.1 examples/s | 3 min"


def test_files_stand_in_for_examples_while_there_are_none() -> None:
    progress = Progress(work=1000, num_files=1000, interval_seconds=10.0, on_terminal=False)
    progress.advance(500, 500)
    assert progress.line(100.0) == "500/1,000 files | 5.0 files/s | 2 min left"


def test_the_log_gets_a_line_an_interval_and_one_at_the_end(lines: list[str]) -> None:
    with Progress(work=1.0, num_files=1, interval_seconds=0.01, on_terminal=False) as progress:
        deadline = time.monotonic() + 30
        while not lines and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lines[0].startswith("0/1 files")
        progress.advance(1.0, 1, 2)
    assert lines[-1].startswith("1/1 files | 2 examples")


def test_the_bar_makes_room_for_log_lines(lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(work=2.0, num_files=2, interval_seconds=0.01, on_terminal=True) as progress:
        progress.advance(1.0, 1, 3)
        shown, deadline = "", time.monotonic() + 30
        while "1/2 files" not in shown and time.monotonic() < deadline:
            shown += capsys.readouterr().err
        assert "█" * 12 + "░" * 12 + " 1/2 files" in shown
        logging.getLogger("pipeline.elsewhere").info("news")
        progress.advance(1.0, 1, 3)
    assert "\r\x1b[K" in capsys.readouterr().err
    assert lines == ["news"]


def test_durations() -> None:
    assert [duration(seconds) for seconds in (7, 99, 600, 7200)] == ["7 s", "99 s", "10 min", "2.0 h"]
