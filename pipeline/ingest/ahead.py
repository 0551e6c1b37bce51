"""Record batches of remote shards, fetched before a reading thread asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from pipeline.errors import HipError
from pipeline.ingest.order import ExampleOrder
from pipeline.shards.reader import ShardReader

_CACHE_SHARE = 4  # what is fetched ahead takes a quarter of the cache at most, or it would push out what is in use


class FetchAhead:
    """Fetches, in threads of its own, what one worker needs of the next positions of the stream.

    Without it the first batches of a window of ``order=blocks`` wait for nearly all of its record batches, while the
    network idles in the rest of the window. ``batches`` are the start and count of the global batches from now on.
    A fetch that fails is left to the reading thread, which meets the same fault and reports it.
    """

    def __init__(
        self,
        reader: ShardReader,
        order: ExampleOrder,
        batches: Iterator[tuple[int, int]],
        worker: tuple[int, int],
        ahead_examples: int,
        threads: int,
    ) -> None:
        self._reader = reader
        self._order = order
        self._batches = batches
        self._worker = worker
        self._ahead_examples = min(ahead_examples, (reader.cache_examples or 0) // _CACHE_SHARE)
        self._asked_to = 0
        self._in_flight: set[tuple[int, int]] = set()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="fetch")

    def advance(self, position: int) -> None:
        """Have everything fetched that is needed from ``position`` on, as far as this looks ahead."""
        while self._asked_to < position + self._ahead_examples:
            batch = next(self._batches, None)
            if batch is None:
                return
            self._asked_to = sum(batch)
            self._threads.submit(self._ask, *batch)

    def close(self) -> None:
        """Stop; returns when no fetch is under way."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _ask(self, start: int, count: int) -> None:
        indices, _ = self._order.worker_part(start, count, *self._worker)
        for block in self._reader.blocks_of(indices):
            if block not in self._in_flight:
                self._in_flight.add(block)
                self._threads.submit(self._fetch, block)

    def _fetch(self, block: tuple[int, int]) -> None:
        with suppress(HipError):
            self._reader.fetch(*block)
        self._in_flight.discard(block)
