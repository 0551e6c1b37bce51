"""Batches for one worker, read ahead by background threads; its whole state is one integer."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType

import torch

from pipeline.errors import UserError
from pipeline.ingest.ahead import FetchAhead
from pipeline.ingest.options import IngestOptions
from pipeline.ingest.order import ExampleOrder
from pipeline.shards.reader import ShardReader


@dataclass(frozen=True)
class LoadedBatch:
    """This worker's slice of one global batch, ``b`` examples.

    ``inputs`` are raw ``[b, tokens, channels]`` (zeros where ``present`` ``[b]`` is False). ``examples_consumed`` is
    the position in the stream after the global batch: the state to save. ``wait_seconds`` is how long the caller was
    blocked.
    """

    inputs: dict[str, torch.Tensor]
    present: dict[str, torch.Tensor]
    example_ids: torch.Tensor
    epochs: torch.Tensor
    labels: list[tuple[int, ...]]
    sources: list[str]
    examples_consumed: int
    wait_seconds: float


class BatchLoader:
    """Iterates the global batches of ``order`` from position ``start_examples``, endlessly or up to ``end_examples``.

    Rank ``r`` of ``world_size`` gets its part of each global batch; parts may differ by one example, so any number of
    workers reads the same global batches. With ``end_examples`` the last global batch is short, and a part of it may be
    empty. Memory: ``options.prefetch_batches + 1`` parts, beside the one in the caller's hands; of remote shards also
    a record batch (24 MB) in each of ``options.fetch_threads``. An error in a thread is raised by the ``next`` that
    would have returned its batch. Close it, or use it as a context manager.

    Raises:
        UserError: fewer examples in a global batch than workers, or a position that is not one.
    """

    def __init__(
        self,
        reader: ShardReader,
        order: ExampleOrder,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        start_examples: int = 0,
        end_examples: int | None = None,
        options: IngestOptions | None = None,
        pin_memory: bool = False,
    ) -> None:
        if not 0 <= rank < world_size:
            raise UserError(f"rank {rank} is not one of {world_size} workers")
        if global_batch_size < world_size:
            raise UserError(
                f"batch.global_size={global_batch_size} is smaller than the {world_size} workers; "
                f"use at least {world_size}, or fewer workers"
            )
        if start_examples < 0:
            raise UserError(f"start_examples={start_examples} must be 0 or more")
        self._reader = reader
        self._order = order
        self._pin_memory = pin_memory
        self._worker = (rank, world_size)
        self._batches = _global_batches(global_batch_size, start_examples, end_examples)
        self._options = options or IngestOptions()
        self._threads = ThreadPoolExecutor(self._options.threads, thread_name_prefix="ingest")
        self._ahead = self._fetch_ahead(global_batch_size, start_examples, end_examples)
        self._pending: deque[Future[LoadedBatch]] = deque()
        self._closed = False
        self.examples_consumed = start_examples
        self.total_wait_seconds = 0.0

    def __iter__(self) -> BatchLoader:
        return self

    def __next__(self) -> LoadedBatch:
        if self._closed:
            raise StopIteration
        self.read_ahead()
        if not self._pending:
            raise StopIteration
        began = time.perf_counter()
        try:
            batch = self._pending.popleft().result()
        except BaseException:
            self.close()
            raise
        waited = time.perf_counter() - began
        self.total_wait_seconds += waited
        self.examples_consumed = batch.examples_consumed
        return replace(batch, wait_seconds=waited)

    def close(self) -> None:
        """Stop the threads; returns when none of them is running."""
        self._closed = True
        for future in self._pending:
            future.cancel()
        self._threads.shutdown(wait=True, cancel_futures=True)
        if self._ahead is not None:
            self._ahead.close()
        self._pending.clear()

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read_ahead(self) -> None:
        """Start reading in place of the batch that was taken last; ``next`` does, too, if nobody did before.

        For a caller who is about to leave the interpreter to other threads, as in a backward pass: at any other moment
        the reading threads get in its way.
        """
        while len(self._pending) <= self._options.prefetch_batches:
            batch = next(self._batches, None)
            if batch is None:
                return
            self._pending.append(self._threads.submit(self._load, *batch))
            if self._ahead is not None:
                self._ahead.advance(sum(batch))

    def _load(self, start: int, count: int) -> LoadedBatch:
        indices, epochs = self._order.worker_part(start, count, *self._worker)
        inputs = self._allocate(len(indices))
        batch = self._reader.read(indices, out={name: tensor.numpy() for name, tensor in inputs.items()})
        return LoadedBatch(
            inputs,
            {name: torch.from_numpy(mask) for name, mask in batch.present.items()},
            torch.from_numpy(batch.example_ids),
            torch.from_numpy(epochs),
            batch.labels,
            batch.sources,
            start + count,
            wait_seconds=0.0,
        )

    def _fetch_ahead(self, global_batch_size: int, start: int, end: int | None) -> FetchAhead | None:
        if self._reader.cache_examples is None:
            return None
        ahead_examples = max(self._order.window_examples, global_batch_size)
        batches = _global_batches(global_batch_size, start, end)
        threads = self._options.fetch_threads
        return FetchAhead(self._reader, self._order, batches, self._worker, ahead_examples, threads)

    def _allocate(self, count: int) -> dict[str, torch.Tensor]:
        if not self._pin_memory:
            # NumPy asks for large pages, PyTorch does not: touching fresh memory takes longer than the copy into it.
            return {name: torch.from_numpy(array) for name, array in self._reader.allocate(count).items()}
        return {
            spec.name: torch.empty(
                (count, spec.num_tokens, spec.num_channels), dtype=getattr(torch, spec.dtype), pin_memory=True
            )
            for spec in self._reader.specs
        }


def _global_batches(size: int, start: int, end: int | None) -> Iterator[tuple[int, int]]:
    """First position and number of examples of each global batch; only the last may be short."""
    while end is None or start < end:
        count = size if end is None else min(size, end - start)
        yield start, count
        start += count
