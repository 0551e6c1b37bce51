"""Examples in order, the next read while the model works on the last, with a line of progress now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pipeline.ingest.spread import spread
from pipeline.shards.reader import Batch, ShardReader

logger = logging.getLogger(__name__)

_Loaded = TypeVar("_Loaded")
_READ_BYTES = 16_000_000  # of tokens; four times as much once they are float32
_LINE_SECONDS = 10.0


def batches(reader: ShardReader, count: int, batch_size: int, what: str) -> Iterator[Batch]:
    """``count`` examples from all over the split, ``batch_size`` at a time; the progress says ``what`` is done."""
    progress = Progress(what, count)
    rows = spread(count, len(reader))
    reads = spans(len(rows), examples_a_read(reader, batch_size))
    for block in read_ahead(lambda first, last: reader.read(rows[first:last]), reads):
        for first, last in spans(len(block.sources), batch_size):
            yield block.part(first, last)
            progress.advance(last - first)


def examples_a_read(reader: ShardReader, batch_size: int) -> int:
    """Some batches at a time, because a thread that reads holds up the model's small operations."""
    return max(1, _READ_BYTES // (reader.row_bytes * batch_size)) * batch_size


def spans(stop: int, size: int, start: int = 0) -> list[tuple[int, int]]:
    """``[start, stop)`` in pieces of at most ``size``."""
    return [(first, min(first + size, stop)) for first in range(start, stop, size)]


def read_ahead(load: Callable[[int, int], _Loaded], pieces: Sequence[tuple[int, int]]) -> Iterator[_Loaded]:
    """``load(first, last)`` of each piece in turn; the next is made by a thread meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        waiting: Future[_Loaded] | None = None
        for piece in pieces:
            following = pool.submit(load, *piece)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


class Progress:
    """Counts ``total`` of something and says how far it is, every ten seconds; short work says nothing."""

    def __init__(self, what: str, total: int, unit: str = "examples") -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = 0
        self._began = self._told = time.monotonic()

    def advance(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        now = time.monotonic()
        if now - self._told < _LINE_SECONDS or self._done >= self._total:
            return
        self._told = now
        rate = self._done / (now - self._began)
        left = (self._total - self._done) / rate
        line = "%s: %s/%s %s | %.3g %s/s | %.0f s left"
        logger.info(line, self._what, f"{self._done:,}", f"{self._total:,}", self._unit, rate, self._unit, left)
